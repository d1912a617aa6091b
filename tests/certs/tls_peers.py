"""Two peers of a TLS connection, without sockets between them."""

from __future__ import annotations

import ssl
from pathlib import Path

from praval.certs import Authority, Issued

STRICT = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
"""What Python checks by default from 3.13 on."""

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def client_of(
    authority: Authority, issued: Issued | None = None, *, crl: Path | None = None
) -> ssl.SSLContext:
    """Make a client that trusts the authority, checks host names and, with a CRL, revocation."""
    return _peer(ssl.PROTOCOL_TLS_CLIENT, authority, issued, crl)


def server_of(
    authority: Authority, issued: Issued, *, crl: Path | None = None, mutual: bool = False
) -> ssl.SSLContext:
    """Make a server with that certificate; a mutual one wants one of the client, too."""
    context = _peer(ssl.PROTOCOL_TLS_SERVER, authority, issued, crl)
    context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE
    return context


def _peer(
    side: int, authority: Authority, issued: Issued | None, crl: Path | None
) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.verify_flags |= STRICT
    context.load_verify_locations(authority.ca_cert)
    if issued is not None:
        context.load_cert_chain(issued.cert, issued.key)
    if crl is not None:
        context.load_verify_locations(crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def handshake(
    client: ssl.SSLContext,
    server: ssl.SSLContext,
    *,
    host: str = "localhost",
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Let the two shake hands; returns both ends, or raises what the one that refuses raises."""
    for context in (client, server):
        context.minimum_version = context.maximum_version = version
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(10):
        done = [_done(end) for end in ends]
        if all(done):
            return ends
    raise AssertionError("The handshake does not end.")


def _done(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
