"""A team with a journal, run as a process that the persistence tests kill.

``python persistence_team.py JOURNAL LOG COUNT``: publishes ``COUNT`` spores (those that the log
does not name as accepted yet) to three agents, then handles until nothing is left. Every event is
one line, appended by a single write: ``accepted ID``, ``begin AGENT ID``, ``end AGENT ID``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from praval import Reef, Spore, agent, broadcast

JOURNAL, LOG, COUNT = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
descriptor = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note(line: str) -> None:
    """Append one line; what is written survives the death of this process."""
    os.write(descriptor, f"{line}\n".encode())


@agent("plain", responds_to=["job"])
async def plain(spore: Spore) -> None:
    """Handle without waiting."""
    note(f"begin plain {spore.id}")
    note(f"end plain {spore.id}")


@agent("slow", responds_to=["job"])
async def slow(spore: Spore) -> None:
    """Hang for a turn of the loop inside the handler."""
    note(f"begin slow {spore.id}")
    await asyncio.sleep(0)
    note(f"end slow {spore.id}")


@agent("source", responds_to=["job"], transactional=True)
async def source(spore: Spore) -> None:
    """Emit one spore per job, which leaves only with this one's commit."""
    note(f"begin source {spore.id}")
    broadcast({"type": "made", "job": spore.id})
    note(f"end source {spore.id}")


@agent("sink", responds_to=["made"])
async def sink(spore: Spore) -> None:
    """Say which job the emission was made for."""
    note(f"begin sink {spore.id}")
    note(f"made {spore.knowledge['job']} {spore.id}")
    note(f"end sink {spore.id}")


async def main(accepted: int) -> None:
    """Publish what was not accepted yet, in parallel; handle all there is."""
    async with Reef(plain, slow, source, sink, journal=JOURNAL) as reef:
        note("started")

        async def publish(number: int) -> None:
            receipt = await reef.broadcast({"type": "job", "number": number})
            note(f"accepted {receipt.id}")

        for first in range(accepted, COUNT, 100):
            await asyncio.gather(*(publish(n) for n in range(first, min(first + 100, COUNT))))
        await reef.wait_idle()
        assert reef.ledger().balanced
    note("done")


lines = LOG.read_text().splitlines()
asyncio.run(main(sum(1 for line in lines if line.startswith("accepted "))))
