"""The TLS front: bad certificates, and a network that misbehaves on request."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Iterator

import pytest
import redis

from tests.servers import Redis, TlsFront, shared_pki

PATIENCE = 20.0


def connect(front: TlsFront, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
    raw = socket.create_connection((front.host, front.port), PATIENCE)
    try:
        context = context or front.server.pki.client_context()
        return context.wrap_socket(raw, server_hostname=front.host)
    except BaseException:
        raw.close()
        raise


def ping(connection: socket.socket) -> bytes:
    """Ask Redis something; it wants a login first, which is an answer too."""
    connection.sendall(b"PING\r\n")
    return connection.recv(100)


def ended(connection: socket.socket) -> bool:
    """Tell whether the other end closes, one way or the other, and sends nothing."""
    try:
        return connection.recv(100) == b""
    except (ssl.SSLError, ConnectionError):
        return True


@pytest.fixture
def front(redis_server: Redis) -> Iterator[TlsFront]:
    with TlsFront(redis_server, redis_server.pki.server_context()) as front:
        yield front


def test_a_front_passes_bytes_both_ways(front: TlsFront) -> None:
    """A login through it is a login at the server."""
    front.server.login(front.port)
    assert front.accepted == 1
    assert f":{front.port}/" in front.url


def test_a_front_passes_large_messages(front: TlsFront) -> None:
    """Ten megabytes come back as they went."""
    message = random.Random(1).randbytes(10 * 1024 * 1024)
    with redis.Redis.from_url(front.url, ssl_ca_certs=str(front.server.pki.ca)) as client:
        client.set("large", message)
        assert client.getdel("large") == message


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        ("expired_server", "certificate has expired"),
        ("wrong_host", "Hostname mismatch"),
        ("foreign_server", "unable to get local issuer certificate"),
    ],
)
def test_a_client_refuses_a_bad_server_certificate(
    redis_server: Redis, certificate: str, reason: str
) -> None:
    """Each for the reason that its name says."""
    context = redis_server.pki.server_context(getattr(redis_server.pki, certificate))
    with (
        TlsFront(redis_server, context) as front,
        pytest.raises(ssl.SSLCertVerificationError) as caught,
    ):
        connect(front)
    assert reason in caught.value.verify_message


def test_a_client_that_reads_the_crl_refuses_a_revoked_server(redis_server: Redis) -> None:
    """One that does not read it is none the wiser."""
    pki = redis_server.pki
    with TlsFront(redis_server, pki.server_context(pki.revoked_server)) as front:
        connect(front).close()
        context = pki.client_context()
        context.load_verify_locations(pki.crl)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            connect(front, context)
    assert "revoked" in caught.value.verify_message


def test_a_front_may_speak_tls_1_2_only(redis_server: Redis) -> None:
    """A client that insists on 1.3 does not get through."""
    pki = redis_server.pki
    context = pki.server_context(maximum=ssl.TLSVersion.TLSv1_2)
    with TlsFront(redis_server, context) as front:
        with connect(front) as connection:
            assert connection.version() == "TLSv1.2"
        modern = pki.client_context()
        modern.minimum_version = ssl.TLSVersion.TLSv1_3
        with pytest.raises(ssl.SSLError):
            connect(front, modern)


@pytest.mark.parametrize("bad", [None, "foreign_client", "expired_client", "revoked_client"])
def test_a_front_may_require_a_client_certificate(redis_server: Redis, bad: str | None) -> None:
    """The good one passes; the bad ones, the revoked one included, do not."""
    pki = redis_server.pki
    context = pki.server_context(client_certificates=ssl.CERT_REQUIRED)
    with TlsFront(redis_server, context) as front:
        redis_server.login(front.port, client=pki.client)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            redis_server.login(front.port, client=None if bad is None else getattr(pki, bad))


def test_a_front_without_a_context_speaks_plaintext(redis_server: Redis) -> None:
    """For clients that have to refuse that: it works for one that does not."""
    with (
        TlsFront(redis_server, None) as front,
        socket.create_connection((front.host, front.port), PATIENCE) as plain,
    ):
        assert ping(plain).startswith(b"-NOAUTH")
        plain.sendall(b"\x16\x03\x01")
        plain.settimeout(0.2)
        with pytest.raises(TimeoutError):  # the start of a TLS handshake interests nobody
            plain.recv(100)


def test_cut_connections_end_and_new_ones_are_taken(front: TlsFront) -> None:
    """As when a switch restarts."""
    with connect(front) as connection:
        ping(connection)
        front.cut()
        assert ended(connection)
    front.server.login(front.port)


def test_a_stalled_front_is_silent_and_resumes(front: TlsFront) -> None:
    """Nothing is lost by it: the answer comes afterwards."""
    with connect(front) as connection:
        ping(connection)
        front.stall()
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            ping(connection)
        front.resume()
        connection.settimeout(PATIENCE)
        assert connection.recv(100).startswith(b"-NOAUTH")


def test_a_refusing_front_refuses_until_it_resumes(front: TlsFront) -> None:
    """As when the server is down."""
    front.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect(front)
    front.resume()
    front.server.login(front.port)


def test_a_front_of_a_server_that_is_down_closes_connections() -> None:
    """It does not hang: there is nobody to pass the bytes to."""
    server = Redis()
    with TlsFront(server, shared_pki().server_context()) as front, connect(front) as connection:
        assert ended(connection)
    server.close()


def test_a_delayed_front_delays(front: TlsFront) -> None:
    """Both ways: a request and its answer take two delays."""
    front.delay = 0.05
    with connect(front) as connection:
        connection.settimeout(0.06)
        with pytest.raises(TimeoutError):
            ping(connection)
        connection.settimeout(PATIENCE)
        assert connection.recv(100)
