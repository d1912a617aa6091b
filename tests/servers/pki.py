"""Certificates for the tests: good ones, and one of each kind that has to be refused."""

from __future__ import annotations

import atexit
import functools
import shutil
import ssl
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from praval.certs import Authority, Issued

LOCAL = ("localhost", "127.0.0.1", "::1")
STORE_PASSWORD = "only-for-the-tests"


class PKI:
    """The certificates that all servers of one process share.

    Good: `server` (for localhost) and `client`. To be refused: the servers `expired_server`,
    `wrong_host`, `revoked_server` (it is on `crl`; a client has to look) and `foreign_server`,
    the clients `expired_client`, `revoked_client` and `foreign_client`. The foreign ones come
    from another authority, whose certificate is `foreign_ca`. Each has `.name` (its common
    name), `.cert` and `.key` (paths of PEM files).
    """

    def __init__(self, folder: Path) -> None:
        authority = Authority.create(folder / "ours", "Praval test CA")
        foreign = Authority.create(folder / "foreign", "Foreign CA")
        past = datetime.now(UTC) - timedelta(days=3)
        self.authority = authority
        self.ca, self.foreign_ca, self.crl = authority.ca_cert, foreign.ca_cert, authority.crl
        self.server = authority.issue("server", hosts=LOCAL)
        self.expired_server = authority.issue(
            "expired-server", hosts=LOCAL, not_before=past, days=1
        )
        self.wrong_host = authority.issue("wrong-host", hosts=["elsewhere.example"])
        self.revoked_server = authority.issue("revoked-server", hosts=LOCAL)
        self.foreign_server = foreign.issue("server", hosts=LOCAL)
        self.client = authority.issue("client", kind="client")
        self.expired_client = authority.issue(
            "expired-client", kind="client", not_before=past, days=1
        )
        self.revoked_client = authority.issue("revoked-client", kind="client")
        self.foreign_client = foreign.issue("client", kind="client")
        authority.revoke("revoked-server")
        authority.revoke("revoked-client")
        self.keystore, self.truststore = authority.java_stores("server", STORE_PASSWORD)

    def client_context(self, client: Issued | None = None) -> ssl.SSLContext:
        """Return a verifying context for a client, with its certificate if one is given."""
        context = ssl.create_default_context(cafile=self.ca)
        if client is not None:
            context.load_cert_chain(client.cert, client.key)
        return context

    def server_context(
        self,
        server: Issued | None = None,
        *,
        client_certificates: ssl.VerifyMode = ssl.CERT_NONE,
        maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> ssl.SSLContext:
        """Return a context for a `TlsFront`; by default with the good certificate."""
        server = server or self.server
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.ca)
        context.load_cert_chain(server.cert, server.key)
        context.maximum_version = maximum
        context.verify_mode = client_certificates
        if client_certificates is not ssl.CERT_NONE:
            context.load_verify_locations(self.crl)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        return context


_making = threading.Lock()


def shared_pki() -> PKI:
    """Return the certificates of this process; they are made once and deleted at its end."""
    with _making:  # servers start side by side, and all must have the same
        return _make_pki()


@functools.cache
def _make_pki() -> PKI:
    folder = Path(tempfile.mkdtemp(prefix="praval-pki-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return PKI(folder)
