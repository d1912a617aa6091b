"""The servers that the other tests rely on: they start, refuse, survive, and leave nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import aio_pika
import paho.mqtt.client as paho
import psutil
import pytest
import redis
from paho.mqtt.enums import CallbackAPIVersion

from praval.certs import Issued
from tests.servers import (
    PKI,
    ActiveMQ,
    Mosquitto,
    PostgreSQL,
    RabbitMQ,
    Redis,
    Server,
    ServerError,
    free_port,
    start_all,
)
from tests.servers.plugin import SHARED, FreshServer
from tests.servers.process import ROOT
from tests.servers.wire import receive

PATIENCE = 20.0


@pytest.fixture(params=SHARED)
def server(request: pytest.FixtureRequest) -> Server:
    """Each of the shared servers in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Server)
    return found


# -- what each of them does ------------------------------------------------------------------


def test_a_server_answers_over_verified_tls(server: Server) -> None:
    """A login by its own password, over a connection whose certificate was checked."""
    server.login()


def test_a_server_refuses_a_wrong_password(server: Server) -> None:
    """A password that differs in one letter is refused."""
    with pytest.raises(ConnectionError, match=r"refused|failed"):
        server.login(password=server.password[:-1] + "x")


def test_rabbitmq_has_no_default_user(rabbitmq: RabbitMQ) -> None:
    """The guest that it makes when nobody tells it not to cannot log in."""
    rabbitmq.login(user=rabbitmq.user)
    with pytest.raises(ConnectionError, match="refused"):
        rabbitmq.login(user="guest", password="guest")


def test_a_password_is_in_no_log(server: Server) -> None:
    """Whatever a server writes about logins, it does not write the password."""
    with contextlib.suppress(OSError):
        server.login(password="wrong-" + "x" * 18)
    server.login()
    assert server.password not in server.log_text()
    assert "wrong-" + "x" * 18 not in server.log_text()


GREETINGS = {
    "rabbitmq": b"AMQP\0\0\x09\x01",
    "mosquitto": b"\x10\x10\0\4MQTT\4\2\0\x3c\0\4test",
    "activemq": b"CONNECT\naccept-version:1.2\n\n\0",
    "redis": b"PING\r\n",
}


@pytest.mark.parametrize("name", [name for name in SHARED if name != "postgres"])
def test_a_server_does_not_speak_plaintext(name: str, request: pytest.FixtureRequest) -> None:
    """Plain words are answered by a TLS alert, or by closing the connection."""
    server: Server = request.getfixturevalue(name)
    with socket.create_connection((server.host, server.port), PATIENCE) as plain:
        answer = b""
        with contextlib.suppress(OSError):  # it has closed the connection already
            plain.sendall(GREETINGS[server.kind])
            plain.shutdown(socket.SHUT_WR)
            answer = plain.recv(100)
    assert answer[:1] in (b"", b"\x15")


def test_postgresql_does_not_speak_plaintext(postgres: PostgreSQL) -> None:
    """PostgreSQL negotiates TLS on its one port; a client that does not want it is refused."""
    with pytest.raises(ConnectionError, match="no encryption"):
        postgres.psql("select 1", tls="disable")


# -- client certificates ---------------------------------------------------------------------


@pytest.mark.parametrize("name", SHARED)
def test_a_client_certificate_is_accepted(name: str, request: pytest.FixtureRequest) -> None:
    """The listener that requires one takes the good one."""
    server = request.getfixturevalue(name)
    server.login(server.mutual_port, client=server.pki.client)


@pytest.mark.parametrize("bad", [None, "foreign_client", "expired_client", "revoked_client"])
@pytest.mark.parametrize("name", [name for name in SHARED if name != "postgres"])
def test_a_bad_client_certificate_is_refused(
    name: str, bad: str | None, request: pytest.FixtureRequest
) -> None:
    """None, another authority's, an expired and a revoked one; but Redis reads no CRL."""
    server = request.getfixturevalue(name)
    client: Issued | None = None if bad is None else getattr(server.pki, bad)
    if name == "redis_server" and bad == "revoked_client":
        server.login(server.mutual_port, client=client)
        return
    with pytest.raises((ssl.SSLError, ConnectionError)) as caught:
        server.login(server.mutual_port, client=client)
    assert not isinstance(caught.value, ssl.SSLCertVerificationError)  # ours of theirs is fine


@pytest.mark.parametrize("bad", ["foreign_client", "expired_client", "revoked_client"])
def test_postgresql_refuses_a_bad_client_certificate(postgres: PostgreSQL, bad: str) -> None:
    """The user who logs in by certificate has no other way, and it has to be a good one."""
    with pytest.raises(ConnectionError, match=r"alert|certificate"):
        postgres.login(client=getattr(postgres.pki, bad))


# -- surviving -------------------------------------------------------------------------------


async def _leave_amqp(server: Server, words: list[str]) -> None:
    connection = await aio_pika.connect(server.url, ssl_context=server.pki.client_context())
    async with connection, connection.channel() as channel:
        queue = await channel.declare_queue("kept", durable=True)
        for word in words:
            message = aio_pika.Message(word.encode(), delivery_mode=2)
            await channel.default_exchange.publish(message, queue.name, mandatory=True)


async def _find_amqp(server: Server) -> list[str]:
    connection = await aio_pika.connect(server.url, ssl_context=server.pki.client_context())
    async with connection, connection.channel() as channel:
        queue = await channel.declare_queue("kept", durable=True, passive=True)
        found = []
        while (message := await queue.get(no_ack=True, fail=False)) is not None:
            found.append(message.body.decode())
        return found


def leave_amqp(server: Server, words: list[str]) -> None:
    asyncio.run(_leave_amqp(server, words))


def find_amqp(server: Server) -> list[str]:
    return asyncio.run(_find_amqp(server))


def mqtt(server: Server, name: str, got: list[str]) -> paho.Client:
    """Connect with a session that the broker keeps."""
    client = paho.Client(CallbackAPIVersion.VERSION2, name, clean_session=False)
    client.tls_set_context(server.pki.client_context())
    client.username_pw_set(server.user, server.password)
    subscribed = threading.Event()
    client.on_message = lambda _client, _data, message: got.append(message.payload.decode())

    def subscribe(*_: object) -> None:
        client.subscribe("kept", 1)

    client.on_connect = subscribe
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect(server.host, server.port)
    client.loop_start()
    assert subscribed.wait(PATIENCE)
    return client


def leave_mqtt(server: Server, words: list[str]) -> None:
    for name in ("reader", "writer"):
        client = mqtt(server, name, [])
        for word in words if name == "writer" else ():
            client.publish("kept", word, qos=1).wait_for_publish(PATIENCE)
        client.disconnect()
        client.loop_stop()


def find_mqtt(server: Server) -> list[str]:
    got: list[str] = []
    client = mqtt(server, "reader", got)
    client.publish("kept", "end", qos=1)
    until(lambda: "end" in got)
    client.disconnect()
    client.loop_stop()
    return got[: got.index("end")]


def stomp(server: Server, *frames: str, last: str) -> str:
    """Log in by STOMP, send frames and return what came up to what comes last."""
    login = f"CONNECT\naccept-version:1.2\nlogin:{server.user}\npasscode:{server.password}\n\n\0"
    with server.connect() as connection:
        connection.sendall((login + "".join(frames)).encode())
        answer = receive(connection, lambda data: last.encode() in data)
        connection.sendall(b"DISCONNECT\n\n\0")
    return answer.decode()


def leave_stomp(server: Server, words: list[str]) -> None:
    frames = [
        f"SEND\ndestination:/queue/kept\npersistent:true\nreceipt:{word}.\n\n{word}\0"
        for word in words
    ]
    stomp(server, *frames, last=f"receipt-id:{words[-1]}.")


def find_stomp(server: Server) -> list[str]:
    came = stomp(
        server,
        "SUBSCRIBE\nid:1\ndestination:/queue/kept\nack:auto\n\n\0",
        "SEND\ndestination:/queue/kept\n\nend\0",
        last="\n\nend\0",
    )
    frames = [frame.lstrip() for frame in came.split("\0")]
    return [frame.split("\n\n")[1] for frame in frames if frame.startswith("MESSAGE")][:-1]


def redis_client(server: Server) -> redis.Redis:
    return redis.Redis.from_url(server.url, ssl_ca_certs=str(server.pki.ca), decode_responses=True)


def leave_redis(server: Server, words: list[str]) -> None:
    with redis_client(server) as client:
        client.rpush("kept", *words)


def find_redis(server: Server) -> list[str]:
    with redis_client(server) as client:
        found = client.lrange("kept", 0, -1)
    assert isinstance(found, list)
    return [str(word) for word in found]


def leave_sql(server: Server, words: list[str]) -> None:
    assert isinstance(server, PostgreSQL)
    server.psql("create table kept (id serial, word text)")
    for word in words:
        server.psql(f"insert into kept (word) values ('{word}')")


def find_sql(server: Server) -> list[str]:
    assert isinstance(server, PostgreSQL)
    return server.psql("select word from kept order by id").split()


Leave = Callable[[Server, list[str]], None]
Find = Callable[[Server], list[str]]
CLIENTS: dict[type[Server], tuple[Leave, Find]] = {
    RabbitMQ: (leave_amqp, find_amqp),
    Mosquitto: (leave_mqtt, find_mqtt),
    ActiveMQ: (leave_stomp, find_stomp),
    Redis: (leave_redis, find_redis),
    PostgreSQL: (leave_sql, find_sql),
}
WORDS = [f"word-{n}" for n in range(20)]


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_durable_server_keeps_what_it_confirmed(
    kind: type[Server], fresh_server: FreshServer
) -> None:
    """Killed with SIGKILL and started again, it has the same address and the same data."""
    leave, find = CLIENTS[kind]
    server = fresh_server(kind, durable=True)
    url = server.url
    if kind is RabbitMQ:  # under load a queue was gone that was declared just before the kill
        leave(server, [])
        server.stop()
        server.start()
    leave(server, WORDS)
    pids = family(server)
    server.kill()
    assert not any(map(alive, pids))
    server.start()
    assert server.url == url
    found = find(server)
    if kind is Mosquitto:  # it saves after a change, not before it acknowledges
        assert found in (WORDS, WORDS[:-1])
    else:
        assert found == WORDS


@pytest.mark.parametrize("kind", [Mosquitto, ActiveMQ, Redis])
def test_a_server_that_is_not_durable_forgets(
    kind: type[Server], fresh_server: FreshServer
) -> None:
    """The control of the test above: the same clients find nothing."""
    leave, find = CLIENTS[kind]
    server = fresh_server(kind)
    leave(server, WORDS)
    server.kill()
    server.start()
    assert find(server) == []


def test_a_stopped_server_starts_again(fresh_server: FreshServer) -> None:
    """Stopping is graceful, may be repeated, and is no end."""
    server = fresh_server(Redis)
    server.stop()
    server.stop()
    assert "User requested shutdown" in server.log_text()
    with pytest.raises(ConnectionRefusedError):
        server.login()
    server.start()
    server.login()


def test_a_paused_server_is_silent_until_it_goes_on(fresh_server: FreshServer) -> None:
    """Frozen, it keeps the connection and says nothing."""
    server = fresh_server(Redis)
    with server.connect() as connection:
        connection.settimeout(0.2)
        server.pause()
        connection.sendall(b"PING\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(10)
        server.unpause()
        connection.settimeout(PATIENCE)
        assert connection.recv(10).startswith(b"-NOAUTH")


# -- failing to start ------------------------------------------------------------------------


def test_a_missing_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a skip: the error names the script and the packages."""
    monkeypatch.setenv("PATH", "/nonexistent")
    server = Redis()
    with pytest.raises(ServerError, match=r"redis-server is missing.*install-servers\.sh"):
        server.start()
    server.close()


def test_a_server_that_ends_at_once_shows_its_log() -> None:
    """Its last words are in the error, and nothing is left of it."""
    with Redis() as one:
        other = Redis()
        other.port = one.port
        with pytest.raises(ServerError, match="Address already in use"):
            other.start()
        assert not other.running
        other.close()
        assert not other.folder.exists()


# -- leaving nothing -------------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def family(server: Server) -> list[int]:
    """Return the process of a server and all that it has started."""
    assert server.pid is not None
    return [server.pid, *(each.pid for each in psutil.Process(server.pid).children(recursive=True))]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the unprivileged user may enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="praval-orphans-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_killed_test_run_leaves_no_process(open_folder: Path) -> None:
    """The servers end with the process that started them, by SIGKILL too, with all they began.

    They are started from a thread that has ended by then: only the process counts.
    """
    script = """
        import json, sys, threading
        import psutil
        from tests.servers import *

        servers = [kind() for kind in (RabbitMQ, ActiveMQ, Mosquitto, Redis, PostgreSQL)]
        thread = threading.Thread(target=start_all, args=[servers])
        thread.start()
        thread.join()
        for server in servers:
            server.login()
        family = [child.pid for child in psutil.Process().children(recursive=True)]
        print(json.dumps([[server.pid for server in servers], family]))
        sys.stdout.flush()
        sys.stdin.read()
    """
    runner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(open_folder), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with runner:
        assert runner.stdout is not None
        servers, all_pids = json.loads(runner.stdout.readline())
        assert all(map(alive, servers))
        assert len(all_pids) > len(servers) == len(SHARED)
        runner.send_signal(signal.SIGKILL)
        runner.wait()
        until(lambda: not any(map(alive, all_pids)))


def test_a_closed_server_leaves_neither_process_nor_folder() -> None:
    """Its children included."""
    server = PostgreSQL()
    server.start()
    pids = family(server)
    assert len(pids) > 1
    server.close()
    assert not any(map(alive, pids))
    assert not server.folder.exists()


def test_one_that_fails_ends_those_started_beside_it() -> None:
    """`start_all` starts all of them or none."""
    good, bad = Redis(), Redis()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", bad.port))
        with pytest.raises(ServerError):
            start_all([good, bad])
    assert not good.running
    good.close()
    bad.close()


def test_ports_are_given_out_once() -> None:
    """And none from the range from which the kernel takes the ports of outgoing connections."""
    ports = [free_port() for _ in range(200)]
    assert len(set(ports)) == 200
    assert max(ports) < 32_768


def test_the_certificates_are_what_they_are_called(pki: PKI) -> None:
    """The good ones and the bad ones belong to the authorities that their names say."""
    assert pki.expired_server.state == pki.expired_client.state == "expired"
    revoked = [each for each in pki.authority.issued() if each.state == "revoked"]
    assert [each.name for each in revoked] == ["revoked-server", "revoked-client"]
    assert "localhost" not in pki.wrong_host.hosts
