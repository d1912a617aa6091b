"""The durable store behind a Reef: what was accepted, begun, settled and buried.

A journal knows bytes and names, not Reefs. It is an asyncio facade over one writer thread
(`praval.core.journal_writer`) that owns an SQLite file (`praval.core.journal_store`). The thread
takes everything that is queued, writes it in one transaction (worked out in
`praval.core.journal_changes`), commits, and reports to the loop once per batch: group commit.

Life of a delivery (one spore x one agent)::

    accept -> begin(1) -> [begin(2) ...] -> settle    its id is remembered for `retention` seconds
                                         -> bury      the same, and a dead letter is kept

Guide: `reef.enable_persistence` in the configuration chapter.
"""

from __future__ import annotations

import asyncio
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

from praval.core.journal_changes import Accept, Begin, Bury, DeadEntry, Entry, Settle
from praval.core.journal_store import PRUNE_CHUNK, Store
from praval.core.journal_writer import AGAIN, Work, Writer
from praval.errors import ConfigurationError, JournalError

__all__ = ["DeadEntry", "Entry", "Journal"]

_NOT_OUTCOMES = frozenset({"unsettled", "dead"})  # keys of `counts()` with a meaning of their own


class Journal:
    """An open journal file; make one with `await Journal.open(path)`.

    The methods that return a future only queue their work: calls made one after the other take
    effect in that order, awaited or not. A future resolves after its commit, so what it reports
    survives a kill -9. To cancel a future, or the task that waits for it, undoes and delays
    nothing. The futures belong to the loop that called `open`, and so do all calls.

    A method raises `JournalError` at once when the journal is closed or its writer has died; a
    future fails with `JournalError` when its own change could not be written, which then left
    nothing behind. Failures are also logged, one record per batch, to `praval.journal`: nobody
    has to look at a future only to learn of them.

    Bodies stay on disk; an unsettled delivery takes about 0.3 KB of memory, a settled one none.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        replica_id: str,
        retention: float,
        clock: Callable[[], float],
    ) -> None:
        self._writer = writer
        self._replica_id = replica_id
        self._retention = retention
        self._clock = clock
        self._closing = False

    @classmethod
    async def open(
        cls,
        path: str | os.PathLike[str],
        *,
        sync: Literal["normal", "full"] = "normal",
        retention: float = 86_400.0,
        clock: Callable[[], float] = time.time,
        key: bytes | None = None,
    ) -> Journal:
        """Open the journal at `path`, or create it (file 0600, missing folders 0700).

        `sync="normal"` survives the death of the process, kill -9 included; a power loss or a
        crash of the operating system may take the last commits, but leaves a sound file.
        `sync="full"` survives those too, for one disk flush per commit. `retention` is how long
        ids of settled deliveries are remembered (seconds); `clock` gives seconds since the epoch
        and is called on the loop. With a `key` (32 bytes) spores and errors are encrypted, see
        `praval.core.journal_box`; the same key opens the file again.

        Raises `JournalLockedError` if the file is held by a live process (this one included),
        `JournalSchemaError` if it is no journal or one of another schema version (it is then not
        touched), `JournalError` if it cannot be opened, `ConfigurationError` for a bad option.
        """
        if sync not in ("normal", "full"):
            raise ConfigurationError(f"sync is {sync!r}: it must be 'normal' or 'full'.")
        if not retention >= 0:
            raise ConfigurationError(
                f"retention is {retention!r}: it must be a number of seconds, 0 or more."
            )
        writer = Writer(asyncio.get_running_loop(), os.fspath(path), sync, key)
        writer.thread.start()
        try:
            replica_id = await writer.opened
        except BaseException:
            writer.queue.put(None)
            raise
        return cls(writer, replica_id=replica_id, retention=retention, clock=clock)

    @property
    def replica_id(self) -> str:
        """A random id (32 hexadecimal digits) that was stored when the file was created."""
        return self._replica_id

    def accept(
        self, spore_id: str, body: bytes, agents: Sequence[str]
    ) -> asyncio.Future[tuple[str, ...]]:
        """Store a spore, once, and one unsettled delivery per agent.

        Resolves to the agents for which it is new: one that already has a delivery of this id,
        settled or not, is left out.
        """
        return self._enqueue(Accept(spore_id, body, tuple(agents)))

    def begin(self, spore_id: str, agent: str, attempt: int) -> asyncio.Future[None]:
        """Note that attempt number `attempt` (the first is 1) is about to run."""
        return self._enqueue(Begin(spore_id, agent, attempt))

    def settle(
        self,
        spore_id: str,
        agent: str,
        outcome: str,
        emitted: Sequence[tuple[str, bytes, Sequence[str]]] = (),
    ) -> asyncio.Future[None]:
        """End a delivery and accept what its handler emitted, both or neither.

        `emitted` holds what `accept` takes: spore id, body, agents. The body of the settled
        spore is dropped with its last delivery. Fails if the delivery is not open.
        """
        _check_outcome(outcome)
        spores = tuple((new_id, body, tuple(agents)) for new_id, body, agents in emitted)
        return self._enqueue(Settle(spore_id, agent, outcome, self._clock(), spores))

    def bury(
        self, spore_id: str, agent: str, reason: str, error: str, attempts: int
    ) -> asyncio.Future[int]:
        """End a delivery with `reason` as its outcome and keep it as a dead letter.

        Resolves to the dead letter's id, which is never used twice.
        """
        _check_outcome(reason)
        # Messages may quote undecodable file names, which SQLite would refuse.
        text = error.encode(errors="backslashreplace").decode()
        return self._enqueue(Bury(spore_id, agent, reason, text, attempts, self._clock()))

    async def unsettled(self, agent: str) -> list[Entry]:
        """List the deliveries of `agent` that are not settled, in order of acceptance."""
        entries: list[Entry] = await self._enqueue(lambda store: store.unsettled(agent))
        return entries

    async def dead(self, limit: int = 1000) -> list[DeadEntry]:
        """List the newest `limit` dead letters, the oldest of them first."""
        letters: list[DeadEntry] = await self._enqueue(lambda store: store.dead(limit))
        return letters

    def drop_dead(self, row_id: int) -> asyncio.Future[None]:
        """Delete a dead letter. Fails if there is none with that id."""
        return self._enqueue(lambda store: store.drop_dead(row_id))

    def drop_dead_before(self, at: float) -> asyncio.Future[int]:
        """Delete the dead letters buried before a time (UTC seconds); resolves to how many."""
        return self._enqueue(lambda store: store.drop_dead_before(at))

    def prune(self) -> asyncio.Future[int]:
        """Forget the ids settled more than `retention` seconds ago; resolves to how many.

        Many ids are forgotten piece by piece, with other work in between.
        """
        before = self._clock() - self._retention
        forgotten = 0

        def forget(store: Store) -> object:
            nonlocal forgotten
            count = store.prune(before)
            forgotten += count
            return AGAIN if count == PRUNE_CHUNK else forgotten

        return self._enqueue(forget)

    async def counts(self) -> dict[str, int]:
        """Settled deliveries by outcome, and what is `"unsettled"` and `"dead"` at this moment.

        The outcomes count from the creation of the file: `prune` does not lower them.
        """
        counts: dict[str, int] = await self._enqueue(lambda store: store.counts())
        return counts

    async def aclose(self) -> None:
        """Write what is queued, fold the log into the file, give the file up. Idempotent."""
        writer = self._writer
        if not self._closing:
            self._closing = True
            writer.queue.put(None)
        await asyncio.shield(writer.finished)
        while writer.thread.is_alive():  # noqa: ASYNC110 - microseconds; join() blocks the loop
            await asyncio.sleep(0)

    def __del__(self) -> None:
        if not self._closing:
            self._writer.queue.put(None)
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<Journal {self._writer.path!r}>"

    def _enqueue(self, work: Work) -> asyncio.Future[Any]:
        writer = self._writer
        if writer.failure is not None:
            raise writer.dead()
        if self._closing:
            raise JournalError(
                f"The journal {writer.path} is closed. Open it again to read or write it."
            )
        future = writer.loop.create_future()
        writer.queue.put((future, work))
        return future


def _check_outcome(outcome: str) -> None:
    if outcome in _NOT_OUTCOMES:
        raise JournalError(
            f"{outcome!r} cannot be an outcome: counts() uses that key for something else. "
            "Use another word."
        )
