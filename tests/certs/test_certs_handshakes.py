"""What certificates and revocation lists are worth: real handshakes, TLS 1.2 and 1.3."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tls_peers import VERSIONS, client_of, handshake, server_of

from praval.certs import Authority

NOW = datetime.now(UTC)

# Reasons of X509_verify_cert(3); a client of 1.3 only hears of its refusal later, so each test
# sees the error of the side that refuses.
NOT_YET, EXPIRED, CRL_EXPIRED, NO_ISSUER, REVOKED, PURPOSE, HOST, IP = 9, 10, 12, 20, 23, 26, 62, 64

pytestmark = pytest.mark.parametrize("version", VERSIONS, ids=lambda each: each.name)


def refused(client: ssl.SSLContext, server: ssl.SSLContext, version: ssl.TLSVersion,
            host: str = "localhost") -> int:  # fmt: skip
    """Return why the handshake was refused."""
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        handshake(client, server, host=host, version=version)
    return caught.value.verify_code


def test_both_ends_authenticate_each_other(authority: Authority, version: ssl.TLSVersion) -> None:
    """Server and client trust one CA, check revocation, and see each other's common name."""
    server = authority.issue("broker", hosts=["localhost"])
    client = authority.issue("praval", kind="client")
    one, other = handshake(
        client_of(authority, client, crl=authority.crl),
        server_of(authority, server, crl=authority.crl, mutual=True),
        version=version,
    )
    assert one.version() == version.name.replace("_", ".")
    assert one.getpeercert()["subject"] == ((("commonName", "broker"),),)
    assert other.getpeercert()["subject"] == ((("commonName", "praval"),),)


@pytest.mark.parametrize("host", ["localhost", "a.example.org", "127.0.0.1", "::1"])
def test_a_server_is_known_by_each_of_its_hosts(
    authority: Authority, version: ssl.TLSVersion, host: str
) -> None:
    """Names, wildcards and addresses of both kinds are alternative names of their kind."""
    hosts = ["localhost", "*.example.org", "127.0.0.1", "0:0:0:0:0:0:0:1"]
    server = authority.issue("broker", hosts=hosts)
    handshake(client_of(authority), server_of(authority, server), host=host, version=version)


@pytest.mark.parametrize(("host", "why"), [("broker", HOST), ("127.0.0.2", IP)])
def test_another_host_is_refused(
    authority: Authority, version: ssl.TLSVersion, host: str, why: int
) -> None:
    """The common name is no host name, and an address counts only if it was named."""
    server = authority.issue("broker", hosts=["localhost", "127.0.0.1"])
    assert refused(client_of(authority), server_of(authority, server), version, host) == why


@pytest.mark.parametrize(("start", "why"), [(-3, EXPIRED), (3, NOT_YET)])
def test_a_certificate_out_of_its_time_is_refused(
    authority: Authority, version: ssl.TLSVersion, start: int, why: int
) -> None:
    """One that began in the past with a short life has expired; one of the future is not valid."""
    begin = NOW + timedelta(days=start)
    server = authority.issue("broker", hosts=["localhost"], not_before=begin, days=1)
    client = authority.issue("praval", kind="client", not_before=begin, days=1)
    good = authority.issue("good", hosts=["localhost"])
    assert refused(client_of(authority), server_of(authority, server), version) == why
    mutual = server_of(authority, good, mutual=True)
    assert refused(client_of(authority, client), mutual, version) == why


def test_a_revoked_server_is_refused(authority: Authority, version: ssl.TLSVersion) -> None:
    """The list is what makes the difference: without it, the server is believed."""
    server = authority.issue("broker", hosts=["localhost"])
    authority.revoke("broker")
    handshake(client_of(authority), server_of(authority, server), version=version)
    checking = client_of(authority, crl=authority.crl)
    assert refused(checking, server_of(authority, server), version) == REVOKED


def test_a_revoked_client_is_refused_and_no_other(
    authority: Authority, version: ssl.TLSVersion
) -> None:
    """Only what was revoked is on the list."""
    server = authority.issue("broker", hosts=["localhost"])
    lost, kept = (authority.issue(name, kind="client") for name in ("lost", "kept"))
    authority.revoke(lost.serial)
    mutual = server_of(authority, server, crl=authority.crl, mutual=True)
    assert refused(client_of(authority, lost), mutual, version) == REVOKED
    handshake(client_of(authority, kept), mutual, version=version)


def test_peers_of_another_authority_are_refused(
    authority: Authority, version: ssl.TLSVersion, tmp_path: Path
) -> None:
    """Another CA of the same name signs nothing that this one is believed for."""
    other = Authority.create(tmp_path / "other")
    server = authority.issue("broker", hosts=["localhost"])
    stranger = other.issue("praval", kind="client")
    foreign = other.issue("broker", hosts=["localhost"])
    mutual = server_of(authority, server, mutual=True)
    assert refused(client_of(authority, stranger), mutual, version) == NO_ISSUER
    assert refused(client_of(authority), server_of(authority, foreign), version) == NO_ISSUER


def test_a_certificate_serves_its_kind_only(authority: Authority, version: ssl.TLSVersion) -> None:
    """A client cannot pose as a server, nor a server as a client; "both" may do both."""
    server = authority.issue("broker", hosts=["localhost"], kind="server")
    client = authority.issue("praval", hosts=["localhost"], kind="client")
    both = authority.issue("node", hosts=["localhost"], kind="both")
    mutual = server_of(authority, server, mutual=True)
    assert refused(client_of(authority), server_of(authority, client), version) == PURPOSE
    assert refused(client_of(authority, server), mutual, version) == PURPOSE
    handshake(client_of(authority, both), server_of(authority, both, mutual=True), version=version)


def test_a_successor_leaves_the_old_certificate_valid(
    authority: Authority, version: ssl.TLSVersion, tmp_path: Path
) -> None:
    """A server that still has the old files is believed until that serial number is revoked."""
    old = authority.issue("broker", hosts=["localhost"])
    cert, key = (path.rename(tmp_path / path.name) for path in (old.cert, old.key))
    new = authority.issue("broker", hosts=["localhost"], force=True)
    running = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    running.load_cert_chain(cert, key)
    handshake(client_of(authority, crl=authority.crl), running, version=version)
    authority.revoke(old.serial)
    client = client_of(authority, crl=authority.crl)
    assert refused(client, running, version) == REVOKED
    handshake(client, server_of(authority, new), version=version)
