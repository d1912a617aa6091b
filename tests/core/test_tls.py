"""TLS: contexts by the guide's keys, and errors that say which check failed.

The handshakes are real ones, of OpenSSL with itself, without a network between.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from praval.core.tls import TLSConfig, client_context, explain
from praval.errors import ConfigurationError, TransportTLSError
from tests.servers import PKI


def context(pki: PKI, **keys: Any) -> ssl.SSLContext:
    return client_context(TLSConfig(**{"ca_cert": str(pki.ca), **keys}))


def shown(issued: Any) -> dict[str, str]:
    """Return the keys that show this certificate to a server."""
    return {"client_cert": str(issued.cert), "client_key": str(issued.key)}


class End:
    """One end of a connection without a network."""

    def __init__(self, context: ssl.SSLContext, *, host: str | None = None) -> None:
        self.to, self.out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.to, self.out, server_side=host is None, server_hostname=host
        )
        self.step: Callable[[], Any] | None = self.tls.do_handshake

    def go_on(self) -> None:
        """Do what can be done with what has come."""
        try:
            if self.step is not None:
                self.step()
                self.step = None
        except ssl.SSLWantReadError:
            pass


def connect(client: ssl.SSLContext, server: ssl.SSLContext | bytes, host: str = "localhost") -> str:
    """Shake hands and read, as a client does; return the version, or raise what the client sees.

    Instead of a server there may be what something else than a TLS server answers.
    """
    here = End(client, host=host)
    there = End(server) if isinstance(server, ssl.SSLContext) else None
    refused = False
    for _ in range(10):
        here.go_on()
        if there is None:
            here.to.write(server if isinstance(server, bytes) else b"")
            continue
        there.to.write(here.out.read())
        try:
            there.go_on()
        except ssl.SSLError:
            refused = True
        here.to.write(there.out.read())
        if here.step is None and there.step is None:
            break
    if refused:  # under TLS 1.3 the client thinks that all is well, and finds out when it reads
        here.tls.read(1)
    return str(here.tls.version())


def explained(
    client: ssl.SSLContext, server: ssl.SSLContext | bytes, host: str = "localhost"
) -> str:
    with pytest.raises(ssl.SSLError) as caught:
        connect(client, server, host)
    told = explain(caught.value, "broker:5671")
    assert isinstance(told, TransportTLSError)
    said = str(told)
    assert said.startswith("No TLS connection to broker:5671: ")
    assert said.endswith(". Nothing was sent to it.")
    return said


# -- the broker's certificate ----------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_a_good_certificate_is_taken(pki: PKI, host: str) -> None:
    """In the newest version that both speak."""
    assert connect(context(pki), pki.server_context(), host) == "TLSv1.3"
    older = pki.server_context(maximum=ssl.TLSVersion.TLSv1_2)
    assert connect(context(pki), older, host) == "TLSv1.2"


@pytest.mark.parametrize(
    ("server", "host", "why"),
    [
        ("expired_server", "localhost", "its certificate has expired"),
        ("wrong_host", "localhost", "its certificate is for another host"),
        ("server", "elsewhere.example", "its certificate is for another host"),
        ("server", "192.0.2.1", "its certificate is for another address"),
        ("foreign_server", "localhost", "of an authority that is not trusted"),
        ("revoked_server", "localhost", "its certificate was revoked"),
    ],
)
def test_a_bad_certificate_is_refused_and_told_why(
    pki: PKI, server: str, host: str, why: str
) -> None:
    client = context(pki, crl_check=True, crl=str(pki.crl))
    assert why in explained(client, pki.server_context(getattr(pki, server)), host)


def test_a_certificate_that_signs_itself_is_refused(pki: PKI, tmp_path: Path) -> None:
    """It is told as one of an unknown authority: that is what is wrong."""
    from praval.certs import Authority

    other = Authority.create(tmp_path / "other", "Other CA")
    key = next(path for path in (tmp_path / "other").rglob("*.pem") if "KEY" in path.read_text())
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(other.ca_cert, key)
    assert "of an authority that is not trusted" in explained(context(pki), server)


def test_without_a_check_of_revocation_a_revoked_certificate_is_taken(pki: PKI) -> None:
    """OpenSSL looks at no list unless told to: the negative control of the case above."""
    assert connect(context(pki), pki.server_context(pki.revoked_server))


def test_a_list_of_another_authority_is_none(pki: PKI, tmp_path: Path) -> None:
    from praval.certs import Authority

    other = Authority.create(tmp_path / "other", "Other CA")
    client = context(pki, crl_check=True, crl=str(other.crl))
    assert "there is no revocation list" in explained(client, pki.server_context())


def test_a_list_may_be_in_the_file_of_the_authorities(pki: PKI, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(Path(pki.ca).read_bytes() + Path(pki.crl).read_bytes())
    client = context(pki, ca_cert=str(both), crl_check=True)
    assert connect(client, pki.server_context())
    assert "was revoked" in explained(client, pki.server_context(pki.revoked_server))


@pytest.mark.parametrize(
    ("server", "off"),
    [
        ("foreign_server", "verify_certs"),
        ("expired_server", "verify_certs"),
        ("wrong_host", "verify_certs"),
        ("wrong_host", "check_hostname"),
    ],
)
def test_a_check_can_be_turned_off_and_that_is_logged(
    pki: PKI, server: str, off: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "praval.tls"):
        client = context(pki, **{off: False})
    assert f"{off} is off" in caplog.text
    assert connect(client, pki.server_context(getattr(pki, server)))


def test_without_host_names_authorities_are_still_checked(pki: PKI) -> None:
    client = context(pki, check_hostname=False)
    assert "not trusted" in explained(client, pki.server_context(pki.foreign_server))


# -- versions, and what is no TLS ------------------------------------------------------------


def test_a_version_below_the_wanted_one_is_refused(pki: PKI) -> None:
    """1.3 only, by the guide's `ssl_version`; and nothing below 1.2 in any case."""
    older = pki.server_context(maximum=ssl.TLSVersion.TLSv1_2)
    newest = context(pki, ssl_version="TLSv1.3")
    assert connect(newest, pki.server_context()) == "TLSv1.3"
    assert "versions" in explained(newest, older)
    assert context(pki).minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("answer", [b"AMQP\x00\x00\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_broker_without_tls_is_told_as_that(pki: PKI, answer: bytes) -> None:
    assert "it does not speak TLS on this port" in explained(context(pki), answer)


# -- our certificate -------------------------------------------------------------------------


@pytest.mark.parametrize("maximum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("client", "why"),
    [
        ("expired_client", "it says that our client certificate has expired"),
        ("revoked_client", "it says that our client certificate was revoked"),
        ("foreign_client", "it does not trust the authority of our client certificate"),
        (None, "it demands a client certificate"),
    ],
)
def test_a_broker_that_refuses_our_certificate_is_heard(
    pki: PKI, client: str | None, why: str, maximum: ssl.TLSVersion
) -> None:
    """Its alert is not taken for a finding about its own certificate."""
    ours = {} if client is None else shown(getattr(pki, client))
    server = pki.server_context(client_certificates=ssl.CERT_REQUIRED, maximum=maximum)
    said = explained(context(pki, **ours), server)
    if client is None and maximum is ssl.TLSVersion.TLSv1_2:  # 1.2 has no word for it
        why = "perhaps it demands a client certificate"
    assert why in said


def test_a_good_certificate_of_ours_is_taken(pki: PKI) -> None:
    client = context(pki, **shown(pki.client), require_client_cert=True)
    assert connect(client, pki.server_context(client_certificates=ssl.CERT_REQUIRED))


# -- explaining ------------------------------------------------------------------------------


def test_an_error_of_tls_is_found_behind_others() -> None:
    """Libraries wrap it, and their errors may go round in a circle."""
    inner = ssl.SSLCertVerificationError(1, "certificate verify failed: certificate has expired")
    for link in ("__cause__", "__context__"):
        outer, middle = RuntimeError("outer"), OSError("middle")
        setattr(outer, link, middle)
        setattr(middle, link, inner)
        assert "has expired" in str(explain(outer, "broker"))
    one, other = OSError("one"), OSError("other")
    one.__context__, other.__context__ = other, one
    assert explain(one, "broker") is None


@pytest.mark.parametrize(
    "error", [OSError("refused"), TimeoutError(), ConnectionResetError(104, "reset"), ValueError()]
)
def test_what_is_no_error_of_tls_is_not_told_as_one(error: Exception) -> None:
    assert explain(error, "broker") is None


def test_an_unknown_error_of_tls_is_told_in_its_own_words() -> None:
    error = ssl.SSLError(1, "[SSL: SOMETHING_NEW] something new (_ssl.c:1000)")
    assert "something new" in str(explain(error, "broker"))


# -- keys that cannot be used ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"client_key": "key.pem"}, "client_key needs client_cert"),
        ({"require_client_cert": True}, "require_client_cert asks for mutual TLS"),
        ({"crl": "crl.pem"}, "crl_check is off"),
        ({"crl_check": True}, "there is no revocation list"),
        ({"crl_check": True, "crl": "CRL", "verify_certs": False}, "crl_check needs verify_certs"),
        ({"ca_cert": "nowhere.pem"}, "ca_cert: nowhere.pem cannot be used: No such file"),
        ({"ca_cert": "."}, r"ca_cert: \. cannot be used"),
        ({"ca_cert": "no.pem"}, "ca_cert: no.pem cannot be used: NO_CERTIFICATE"),
        ({"crl_check": True, "crl": "nowhere.pem"}, "crl: nowhere.pem cannot be used"),
        ({"client_cert": "nowhere.pem"}, "client_cert, client_key: nowhere.pem cannot be used"),
        ({"client_cert": "CERT"}, "must be a readable PEM file"),
        ({"client_cert": "CERT", "client_key": "OTHER"}, "must belong together"),
        ({"client_cert": "CERT", "client_key": "no.pem"}, "must be a readable PEM file"),
        ({"client_cert": "CERT", "client_key": "locked.pem"}, "cannot be used"),
    ],
)
def test_keys_that_cannot_be_used_are_refused_by_name(
    pki: PKI, keys: dict[str, Any], why: str, tmp_path: Path
) -> None:
    """Before anything is connected to; nobody is asked for a passphrase."""
    (tmp_path / "no.pem").write_text("This is no certificate.\n")
    key = load_pem_private_key(Path(pki.client.key).read_bytes(), None)
    (tmp_path / "locked.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass"))
    )
    real = {"CERT": pki.client.cert, "OTHER": pki.server.key, "CRL": pki.crl}
    keys = {name: str(real.get(value, value)) if isinstance(value, str) else value
            for name, value in keys.items()}  # fmt: skip
    with pytest.raises(ConfigurationError, match=why):
        context(pki, **keys)


def test_files_may_be_in_the_users_home(
    pki: PKI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ca.pem").write_bytes(Path(pki.ca).read_bytes())
    assert connect(context(pki, ca_cert="~/ca.pem"), pki.server_context())


def test_without_a_file_the_systems_authorities_are_trusted(pki: PKI) -> None:
    client = client_context(TLSConfig())
    assert client.verify_mode is ssl.CERT_REQUIRED
    assert client.check_hostname
    assert "not trusted" in explained(client, pki.server_context())
