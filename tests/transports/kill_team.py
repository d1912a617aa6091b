"""Two hosts that the kill tests kill: a source and a worker, each with a journal.

``python kill_team.py source|worker|worker2 JOURNAL LOG COUNT [FLAW]``; in the environment, as JSON,
``KILL_TEAM_TRANSPORT`` (its config) and ``KILL_TEAM_REEF_CONFIG``; in ``KILL_TEAM_KEYS`` a folder
with a key store for each role, if all is to be sealed, with new keys every second; with
``KILL_TEAM_IMPATIENT`` the source sends again whatever the receivers say. The source publishes
numbers (from the first that its log does not name as accepted) and ends when all of them are out.
The worker handles them one at a time until it is told to end; two of them share the work, and a
log. Every event is one line, appended by a single write, with the role of who wrote it at its end.

``FLAW`` breaks one promise on purpose, so that the test can be seen to fail: ``early-ack``,
``no-dedup``, ``no-outbox``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from praval import Reef, Spore, agent, configure
from praval.core.bridge import Bridge
from praval.core.inbox import Inbox
from praval.core.key_store import KeyStore
from praval.core.lifetimes import Lifetimes
from praval.core.outbox import Outbox
from praval.core.spore import new_id

ROLE, JOURNAL, LOG, COUNT = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
FLAW = sys.argv[5] if len(sys.argv) > 5 else ""
TRANSPORT: dict[str, Any] = json.loads(os.environ["KILL_TEAM_TRANSPORT"])

KEYS: dict[str, Any] = {}
if folder := os.environ.get("KILL_TEAM_KEYS"):
    rotating = Lifetimes(rotation=1000, renewal=60_000, card=600_000)
    now = int(time.time() * 1000)
    KEYS["security"] = KeyStore.open(Path(folder, ROLE), "secret", now=now, lifetimes=rotating)
SECRET = os.environ.get("KILL_TEAM_SECRET", "")

GO = LOG.with_suffix(".go")
"""The file for which a source without an outbox waits: the broker is away then."""

descriptor = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note(line: str) -> None:
    """Append one line; what is written survives the death of this process."""
    os.write(descriptor, f"{line} {ROLE}\n".encode())


@agent("worker", responds_to=["job"])
async def worker(spore: Spore) -> None:
    """Handle one number."""
    note(f"begin {spore.knowledge['number']}")
    await asyncio.sleep(0)
    note(f"end {spore.knowledge['number']}")


async def source(accepted: int) -> None:
    """Publish what was not accepted yet, in parallel; end when all of it is out."""
    journal = None if FLAW == "no-outbox" else JOURNAL
    async with Reef(journal=journal, transport=TRANSPORT, namespace="kill", **KEYS) as reef:

        async def publish(number: int) -> None:
            job = {"type": "job", "number": number, "secret": SECRET}
            publishing = reef.send("worker", job)
            if FLAW == "no-outbox":  # what an outbox in memory calls accepted
                task = asyncio.ensure_future(publishing)
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
                await asyncio.sleep(0)
            else:
                await publishing
            note(f"accepted {number}")

        note("connected")
        while FLAW == "no-outbox" and not GO.exists():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for first in range(accepted, COUNT, 100):
            await asyncio.gather(*(publish(n) for n in range(first, min(first + 100, COUNT))))
        await reef.wait_idle()
        ledger = reef.ledger()
        assert ledger.balanced
        assert ledger.expired == ledger.rejected == ledger.undeliverable == 0, ledger
    note(f"done {ledger}")


async def work() -> None:
    """Handle what comes."""
    note("process")
    async with Reef(worker, journal=JOURNAL, transport=TRANSPORT, namespace="kill", **KEYS) as reef:
        note("started")
        await reef.serve()


async def _always(*_: object) -> bool:
    return True


def _spoil() -> None:
    if "KILL_TEAM_IMPATIENT" in os.environ:  # sends again although the receiver is at it
        Outbox._under_way = lambda *_: 0.0  # type: ignore[method-assign]
    if FLAW == "early-ack":
        take = Bridge._take

        async def take_and_forget(self: Any, *args: Any) -> Any:
            task = asyncio.ensure_future(take(self, *args))
            self.forgotten = {*getattr(self, "forgotten", ()), task}
            inbound = self._open.get(args[0])
            while inbound is None:
                await asyncio.sleep(0)
                inbound = self._open.get(args[0])
            return inbound

        Bridge._take = take_and_forget  # type: ignore[method-assign]
    if FLAW == "no-dedup":
        is_new = Bridge._is_new

        async def is_always_new(self: Any, key: Any, posted: Any) -> bool:
            posted.header = msgspec.structs.replace(posted.header, id=new_id())
            return await is_new(self, (posted.header.id, key[1]), posted)

        Bridge._is_new = is_always_new  # type: ignore[method-assign]
        Inbox.is_ours = _always  # type: ignore[method-assign]


configure(
    {
        "reef_config": {"drain_timeout": 5, **json.loads(os.environ["KILL_TEAM_REEF_CONFIG"])},
        "security": {"lease": 3},
    }
)
_spoil()
already = sum(line.startswith("accepted ") for line in LOG.read_text().splitlines())
asyncio.run(source(already) if ROLE == "source" else work())
