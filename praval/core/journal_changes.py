"""What can happen to a delivery in a journal, and what a batch of that does to the file.

A batch is worked out in memory (`Delta`), on top of an index of the unsettled deliveries, and then
written table by table. That costs about half of running each change's statements in turn, and a
batch that fails leaves nothing to undo but its transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import msgspec

from praval.errors import JournalError

Emission: TypeAlias = tuple[str, bytes, tuple[str, ...]]  # spore id, body, agents
Key: TypeAlias = tuple[str, str]  # spore id, agent
Row: TypeAlias = tuple[int, int | None]  # delivery number, number of the body it shares


class Entry(msgspec.Struct, frozen=True):
    """One delivery that is not settled; `attempt` counts the attempts begun (0: never started)."""

    spore_id: str
    agent: str
    body: bytes
    attempt: int


class DeadEntry(msgspec.Struct, frozen=True):
    """One dead letter; `id` is its row, `at` the time it was buried (seconds since the epoch)."""

    id: int
    spore_id: str
    agent: str
    body: bytes
    reason: str
    error: str
    attempts: int
    at: float


class Accept(msgspec.Struct, frozen=True):
    """Store one spore for these agents."""

    spore_id: str
    body: bytes
    agents: tuple[str, ...]


class Begin(msgspec.Struct, frozen=True):
    """Note that an attempt begins."""

    spore_id: str
    agent: str
    attempt: int


class Settle(msgspec.Struct, frozen=True):
    """End one delivery and accept what its handler emitted."""

    spore_id: str
    agent: str
    outcome: str
    at: float
    emitted: tuple[Emission, ...]


class Bury(msgspec.Struct, frozen=True):
    """End one delivery and keep it as a dead letter."""

    spore_id: str
    agent: str
    reason: str
    error: str
    attempts: int
    at: float


Change: TypeAlias = Accept | Begin | Settle | Bury
CHANGES: Final = (Accept, Begin, Settle, Bury)  # for isinstance, which is slow on a union


class Delta:
    """What a batch of changes does to the file, worked out before any of it is written."""

    def __init__(
        self, unsettled: Mapping[Key, Row], settled: set[Key], number: int, dead_id: int
    ) -> None:
        self._before = unsettled
        self._settled = settled
        self.number = number  # the next free one, for deliveries and bodies alike
        self.dead_id = dead_id
        self.changed: dict[Key, Row | None] = {}  # None: settled by this batch
        self.bodies: list[tuple[int, int, bytes]] = []
        self.deliveries: list[tuple[int, str, str, int | None, bytes | None]] = []
        self.attempts: list[tuple[int, int]] = []
        self.dead: list[tuple[int, str, str, str, str | bytes, int, float, int]] = []
        self.ended: list[tuple[int]] = []
        self.released: set[tuple[int]] = set()
        self.settled: list[tuple[str, str, float]] = []
        self.totals: Counter[str] = Counter()

    def apply(self, change: Change) -> object:
        """Return what the caller of `change` is told: a `JournalError` if it changes nothing."""
        if isinstance(change, Accept):
            return self._accept(change.spore_id, change.body, change.agents)
        row = self._find(change.spore_id, change.agent)
        if row is None:
            return JournalError(
                f"The delivery of spore {change.spore_id!r} to agent {change.agent!r} is not open "
                "in the journal: it was never accepted, or it is settled already. Accept a spore "
                "before anything else and settle each of its deliveries once."
            )
        if isinstance(change, Begin):
            self.attempts.append((change.attempt, row[0]))
            return None
        if isinstance(change, Settle):
            self._end(change, row, change.outcome)
            for spore_id, body, agents in change.emitted:
                self._accept(spore_id, body, agents)
            return None
        return self._bury(change, row)

    def _find(self, spore_id: str, agent: str) -> Row | None:
        key = (spore_id, agent)
        return self.changed[key] if key in self.changed else self._before.get(key)

    def _accept(self, spore_id: str, body: bytes, agents: Sequence[str]) -> tuple[str, ...]:
        shared = self.number if len(agents) > 1 else None
        own = None if shared else body
        new: list[str] = []
        for agent in agents:
            key = (spore_id, agent)
            if key in self.changed or key in self._before or key in self._settled:
                continue
            self.changed[key] = (self.number, shared)
            self.deliveries.append((self.number, spore_id, agent, shared, own))
            self.number += 1
            new.append(agent)
        if shared and new:
            self.bodies.append((shared, self.number - 1, body))
        return tuple(new)

    def _bury(self, change: Bury, row: Row) -> int:
        letter, self.dead_id = self.dead_id, self.dead_id + 1
        whose = (letter, change.spore_id, change.agent)
        self.dead.append((*whose, change.reason, change.error, change.attempts, change.at, row[0]))
        self._end(change, row, change.reason)
        return letter

    def _end(self, change: Settle | Bury, row: Row, outcome: str) -> None:
        self.changed[change.spore_id, change.agent] = None
        self.ended.append((row[0],))
        if row[1]:
            self.released.add((row[1],))
        self.settled.append((change.spore_id, change.agent, change.at))
        self.totals[outcome] += 1
