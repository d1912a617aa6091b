"""Mosquitto: MQTT over TLS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.servers.pki import PKI
from tests.servers.process import Server, find, free_port, receive


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

    def probe(self) -> None:
        user, password = self.user.encode(), self.password.encode()
        body = b"\0\4MQTT\4\xc2\0\x3c" + b"".join(
            len(text).to_bytes(2) + text for text in (b"", user, password)
        )
        with self.connect() as connection:
            connection.sendall(b"\x10" + bytes([len(body)]) + body)
            answer = receive(connection, lambda data: len(data) >= 4)
        if answer != b"\x20\x02\0\0":
            raise ConnectionError(f"refused the login: {answer!r}")
