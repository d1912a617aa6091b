"""Certificates for the negative cases: one of each kind that has to be refused."""

from __future__ import annotations

import atexit
import functools
import shutil
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from praval.certs import Authority, Issued

LOCAL = ("localhost", "127.0.0.1", "::1")


class Clients(NamedTuple):
    """What clients show; all but the first have to be refused."""

    good: Issued
    foreign: Issued
    """Of an authority that the broker does not trust."""
    expired: Issued
    revoked: Issued


class Certificates:
    """An authority with good and bad certificates, and contexts for proxies that show them.

    Blocks: make it in a thread, or take :func:`certificates`.
    """

    def __init__(self, folder: Path) -> None:
        ours = Authority.create(folder / "ours", "Transport conformance")
        foreign = Authority.create(folder / "foreign", "Somebody else")
        past = datetime.now(UTC) - timedelta(days=3)
        self.ca, self.crl = str(ours.ca_cert), str(ours.crl)
        self.server = ours.issue("server", hosts=LOCAL)
        self.expired = ours.issue("expired", hosts=LOCAL, not_before=past, days=1)
        self.elsewhere = ours.issue("elsewhere", hosts=["elsewhere.example"])
        self.revoked = ours.issue("revoked", hosts=LOCAL)
        self.foreign = foreign.issue("server", hosts=LOCAL)
        self.clients = Clients(
            good=ours.issue("client", kind="client"),
            foreign=foreign.issue("client", kind="client"),
            expired=ours.issue("expired-client", kind="client", not_before=past, days=1),
            revoked=ours.issue("revoked-client", kind="client"),
        )
        ours.revoke("revoked")
        ours.revoke("revoked-client")

    def context(
        self,
        server: Issued,
        *,
        newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        demands_client: bool = False,
    ) -> ssl.SSLContext:
        """Return a server's context that shows this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.cert, server.key)
        context.maximum_version = newest
        if demands_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
            context.load_verify_locations(self.crl)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        return context


@functools.cache
def certificates() -> Certificates:
    """Return those of this process: made once, in 0.2 s, and deleted at its end. Blocks."""
    folder = Path(tempfile.mkdtemp(prefix="praval-conformance-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Certificates(folder)
