"""Sealed spores, while hosts and brokers die, keys rotate and an attacker replays all it can.

The default run is short. ``make soak`` runs it with 10,000 spores per broker, prints the counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from praval.core.transport import Delivery, MessageTransport, transport_connection
from praval.errors import PravalError
from tests.core.sealed_hosts import CANARY, Root, reopened, stored
from tests.servers import TlsFront
from tests.transports import test_kills
from tests.transports.test_kills import Run, Tally

SPORES = int(os.environ.get("PRAVAL_SOAK_SEALED", "400"))
KILLS = (1, 1) if "PRAVAL_SOAK_SEALED" not in os.environ else (4, 2)
"""Of the worker, and of the broker."""
LIMIT = 90 + SPORES / 40
"""Seconds that one run may take."""
EVERY = 3
"""One of so many envelopes is replayed."""


class Attacker:
    """A client of the broker without keys, in a thread of its own: it replays what it hears."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.replayed = 0
        self.heard = 0
        self._config = config
        self._seen: list[bytes] = []
        self._known: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="attacker")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        keys = dict(self._config)
        async with transport_connection(keys.pop("protocol"), keys) as transport:
            await self._attack(transport)

    async def _attack(self, transport: MessageTransport) -> None:
        await transport.subscribe("kill.worker_channel", self._hear)
        while not self._stop.is_set():
            await asyncio.sleep(0.02)
            seen, self._seen = self._seen, []
            for data in seen:
                with contextlib.suppress(PravalError):  # the broker was killed
                    await transport.publish("kill.worker_channel", data)
                    self.replayed += 1

    def _hear(self, delivery: Delivery) -> None:
        data = bytes(delivery)
        if data in self._known:
            return
        self._known.add(data)
        self.heard += 1
        if self.heard % EVERY == 0:
            self._seen.append(data)


class SealedRun(Run):
    """A run whose spores are sealed, over a front that shows what the broker is told."""

    def __init__(self, protocol: str, folder: Path) -> None:
        super().__init__(protocol, folder, seed=11)
        root, self._keys = Root(), folder / "keys"
        stored(self._keys / "source", root.keyring("@source"))
        stored(self._keys / "worker", root.keyring("worker", "@worker"))
        self._environment = {"KILL_TEAM_KEYS": str(self._keys), "KILL_TEAM_SECRET": CANARY}
        self.captured = 0
        self.leaks = 0
        self._tail = b""
        self._front = TlsFront(self._server, self._server.pki.server_context())
        self._front.tap = self._listen
        self.leaky_files: list[Path] | None = None
        self.attacker: Attacker | None = None

    @property
    def url(self) -> str:
        return self._front.url

    def run(self) -> Tally:
        with self._front:
            try:
                return super().run()
            finally:
                if self.attacker is not None:
                    self.attacker.stop()

    def serving(self) -> None:
        server = self._server
        ca_cert = str(server.pki.authority.ca_cert)
        self.attacker = Attacker(
            {
                "protocol": self._protocol,
                "url": server.url,
                "ca_cert": ca_cert,
                "reconnect_delay": 0.05,
            }
        )
        self.attacker.start()

    def over(self) -> None:
        """Look for the canary in all files of the broker."""
        files = [path for path in self._server.folder.rglob("*") if path.is_file()]
        assert any(path.stat().st_size for path in files)
        self.leaky_files = [path for path in files if CANARY.encode() in path.read_bytes()]

    def rotations(self, role: str, name: str) -> int:
        """How often the keys of a name were replaced."""
        return len(reopened(self._keys / role).keyring.get(name).prekeys) - 1

    def _listen(self, data: bytes) -> None:
        """Look for the canary in what passes, over the borders of pieces too."""
        self.captured += len(data)
        self.leaks += (self._tail + data).count(CANARY.encode())
        self._tail = data[-len(CANARY) + 1 :]


@pytest.fixture
def _size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_kills, "SPORES", SPORES)
    monkeypatch.setattr(test_kills, "WORKER_KILLS", KILLS[0])
    monkeypatch.setattr(test_kills, "BROKER_KILLS", KILLS[1])
    monkeypatch.setattr(test_kills, "LIMIT", LIMIT)


@pytest.mark.timeout(int(LIMIT * 2))
@pytest.mark.usefixtures("_size")
@pytest.mark.parametrize("protocol", ["amqp", "mqtt", "stomp"])
def test_sealed_spores_outlive_kills_rotations_and_replays(
    protocol: str, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    """Nothing is lost, nothing handled again after its commit, and nothing readable anywhere."""
    run = SealedRun(protocol, tmp_path)
    tally = run.run()
    attacker = run.attacker
    assert attacker is not None
    rotations = run.rotations("worker", "worker")
    found = {
        **tally._asdict(),
        "replayed_by_attacker": attacker.replayed,
        "rotations": rotations,
        "captured_bytes": run.captured,
        "leaks": run.leaks,
        "leaky_files": run.leaky_files,
    }
    record_property("tally", found)
    print(f"\n{protocol}, sealed: {found}")
    assert (tally.accepted, tally.lost, tally.again_after_commit) == (SPORES, 0, 0)
    assert tally.repeated <= tally.worker_kills
    assert (tally.worker_kills, tally.broker_kills) == KILLS
    assert attacker.replayed > SPORES / EVERY / 4
    assert rotations >= tally.seconds / 3  # one a second, while the worker is there
    assert run.captured > SPORES * 500
    assert run.leaks == 0
    assert run.leaky_files == []
