"""Redis over TLS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from praval.certs import Issued
from tests.servers.machine import find
from tests.servers.pki import PKI
from tests.servers.process import Server
from tests.servers.wire import receive


class Redis(Server):
    """A Redis server. With `durable` it appends every change to a file, flushed each second.

    Whether Redis wants client certificates is one setting for the process, so `mutual_port`
    belongs to a second server with data of its own, started on first use (0.1 s). Redis knows no
    revocation lists: it takes a revoked client certificate.
    """

    kind = "redis"
    scheme = "rediss"

    def __init__(
        self,
        folder: Path | None = None,
        *,
        durable: bool = False,
        pki: PKI | None = None,
        require_client_certificate: bool = False,
    ) -> None:
        super().__init__(folder, durable=durable, pki=pki)
        self._require = require_client_certificate
        self._mutual: Redis | None = None

    @property
    def mutual_port(self) -> int:
        if self._require:
            return self.port
        if self._mutual is None:
            server = Redis(pki=self.pki, require_client_certificate=True)
            server.password = self.password
            server.start()
            self._mutual = server
        return self._mutual.port

    def close(self) -> None:
        if self._mutual is not None:
            self._mutual.close()
        super().close()

    def values(self) -> Mapping[str, str]:
        return {
            "CLIENT_CERTIFICATES": "yes" if self._require else "optional",
            "PERSISTENCE": "yes" if self.durable else "no",
        }

    def command(self) -> list[str]:
        return [find(self.kind, "redis-server"), f"{self.etc_dir}/redis.conf"]

    def login(
        self, port: int | None = None, *, password: str | None = None, client: Issued | None = None
    ) -> None:
        if self._require and port is None:
            client = client or self.pki.client
        with self.connect(port, client=client) as connection:
            connection.sendall(f"AUTH {self.user} {password or self.password}\r\n".encode())
            answer = receive(connection, lambda data: data.endswith(b"\r\n"))
        if answer != b"+OK\r\n":
            raise ConnectionRefusedError(f"refused the login: {answer!r}")
