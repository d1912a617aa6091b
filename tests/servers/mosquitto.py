"""Mosquitto: MQTT over TLS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from praval.certs import Issued
from tests.servers.machine import find, free_port
from tests.servers.pki import PKI
from tests.servers.process import Server
from tests.servers.wire import receive


class Mosquitto(Server):
    """A Mosquitto broker: `port` takes passwords, `mutual_port` client certificates instead.

    Both listeners share their topics. With `durable` it saves all it holds after each change:
    right, but slow with a backlog of thousands.
    """

    kind = "mosquitto"
    scheme = "mqtts"

    def __init__(
        self, folder: Path | None = None, *, durable: bool = False, pki: PKI | None = None
    ) -> None:
        super().__init__(folder, durable=durable, pki=pki)
        self.mutual_port = free_port()

    def values(self) -> Mapping[str, str]:
        return {
            "MUTUAL_PORT": str(self.mutual_port),
            "PERSISTENCE": str(self.durable).lower(),
        }

    def command(self) -> list[str]:
        return [find(self.kind, "mosquitto", "/usr/sbin"), "-c", f"{self.etc_dir}/mosquitto.conf"]

    def login(
        self, port: int | None = None, *, password: str | None = None, client: Issued | None = None
    ) -> None:
        words = [b"", self.user.encode(), (password or self.password).encode()]
        flags = b"\xc2"
        if port == self.mutual_port:  # there the certificate says who it is
            words, flags = [b""], b"\x02"
        body = b"\0\4MQTT\4" + flags + b"\0\x3c"
        body += b"".join(len(word).to_bytes(2, "big") + word for word in words)
        with self.connect(port, client=client) as connection:
            connection.sendall(b"\x10" + bytes([len(body)]) + body)
            answer = receive(connection, lambda data: len(data) >= 4)
        if answer != b"\x20\x02\0\0":
            raise ConnectionRefusedError(f"refused the login: {answer!r}")
