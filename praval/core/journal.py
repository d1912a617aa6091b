"""The durable store behind a Reef: what was accepted, begun, settled and buried.

A journal knows bytes and names, not Reefs. It is an asyncio facade over one writer thread that
owns the SQLite file (`praval.core.journal_store`). The thread takes everything that is queued,
writes it in one transaction, commits, and reports to the loop once per batch (group commit).

Life of a delivery (one spore x one agent)::

    accept -> begin(1) -> [begin(2) ...] -> settle    its id is remembered for `retention` seconds
                                         -> bury      the same, and a dead letter is kept

Guide: `reef.enable_persistence` in the configuration chapter.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Final, Literal, TypeAlias

from praval.core.journal_store import (
    CHANGES,
    PRUNE_CHUNK,
    Accept,
    Begin,
    Bury,
    Change,
    DeadEntry,
    Entry,
    Settle,
    Store,
    open_store,
)
from praval.errors import ConfigurationError, JournalError

__all__ = ["DeadEntry", "Entry", "Journal"]

_Item: TypeAlias = "tuple[asyncio.Future[Any], Change | Callable[[Store], object]]"

_MAX_BATCH = 2_000  # changes in one transaction, so that the first need not wait for the last
_AGAIN: Final = object()  # answer of a call that wants another turn after those that wait
_NOT_OUTCOMES = frozenset({"unsettled", "dead"})  # keys of `counts()` with a meaning of their own
_log = logging.getLogger("praval.journal")


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
    """

    def __init__(
        self,
        writer: _Writer,
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
    ) -> Journal:
        """Open the journal at `path`, or create it (file 0600, missing folders 0700).

        `sync="normal"` survives the death of the process, kill -9 included; a power loss or a
        crash of the operating system may take the last commits, but leaves a sound file.
        `sync="full"` survives those too, for one disk flush per commit. `retention` is how long
        ids of settled deliveries are remembered (seconds); `clock` gives seconds since the epoch
        and is called on the loop.

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
        writer = _Writer(asyncio.get_running_loop(), os.fspath(path), sync)
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
        """The deliveries of `agent` that are not settled, in order of acceptance."""
        entries: list[Entry] = await self._enqueue(lambda store: store.unsettled(agent))
        return entries

    async def dead(self, limit: int = 1000) -> list[DeadEntry]:
        """The newest `limit` dead letters, the oldest of them first."""
        letters: list[DeadEntry] = await self._enqueue(lambda store: store.dead(limit))
        return letters

    def drop_dead(self, row_id: int) -> asyncio.Future[None]:
        """Delete a dead letter. Fails if there is none with that id."""
        return self._enqueue(lambda store: store.drop_dead(row_id))

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
            return _AGAIN if count == PRUNE_CHUNK else forgotten

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
        while writer.thread.is_alive():  # for some microseconds; join() would block the loop
            await asyncio.sleep(0)

    def __del__(self) -> None:
        if not self._closing:
            self._writer.queue.put(None)
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<Journal {self._writer.path!r}>"

    def _enqueue(self, work: Change | Callable[[Store], object]) -> asyncio.Future[Any]:
        writer = self._writer
        if writer.failure is not None:
            raise _dead_writer(writer.path, writer.failure)
        if self._closing:
            raise JournalError(
                f"The journal {writer.path} is closed. Open it again to read or write it."
            )
        future = writer.loop.create_future()
        writer.queue.put((future, work))
        return future


class _Writer:
    """The thread that owns the file, and the queue to it.

    It holds no reference to its Journal, so that a forgotten one is collected and stops it.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, path: str, sync: Literal["normal", "full"]
    ) -> None:
        self.loop = loop
        self.path = path
        self.queue: SimpleQueue[_Item | None] = SimpleQueue()  # None: stop when all is written
        self.opened: asyncio.Future[str] = loop.create_future()
        self.finished: asyncio.Future[None] = loop.create_future()
        self.failure: str | None = None  # set on the loop when the thread has died
        # A daemon, because a program that forgot to close its journal must be able to end. What
        # was reported is committed, whatever happens to the thread.
        self.thread = threading.Thread(
            target=self._run, args=(sync,), name="praval-journal", daemon=True
        )
        self._waiting: deque[_Item | None] = deque()
        self._in_hand: list[_Item] = []

    def _run(self, sync: Literal["normal", "full"]) -> None:
        try:
            store = open_store(self.path, sync=sync)
        except BaseException as exc:  # noqa: BLE001 - not lost: `Journal.open` raises it
            self._tell(_resolve, [self.opened], [exc])
            return
        try:
            self._tell(_resolve, [self.opened], [store.replica_id])
            self._serve(store)
        except BaseException as exc:  # noqa: BLE001 - nobody may wait for a thread that is dead
            _log.critical("The writer of the journal %s died", self.path, exc_info=exc)
            self._tell(self._die, f"{type(exc).__name__}: {exc}")
        finally:
            try:
                store.close()
            finally:
                self._tell(_resolve, [self.finished], [None])

    def _serve(self, store: Store) -> None:
        waiting = self._waiting
        stopping = False
        while waiting or not stopping:
            if not waiting:
                waiting.append(self.queue.get())
            for _ in range(self.queue.qsize()):  # no other consumer: what it counts is there
                waiting.append(self.queue.get_nowait())
            item = waiting.popleft()
            if item is None:
                stopping = True
                continue
            future, work = item
            self._in_hand = [future]
            if isinstance(work, CHANGES):
                self._report(self._write(store, [work, *self._take_changes()]))
                continue
            answer = self._call(store, work)
            if answer is _AGAIN:
                waiting.append(item)
            else:
                self._report([answer])

    def _take_changes(self) -> list[Change]:
        """The changes at the head of what waits: they go into the same transaction."""
        waiting = self._waiting
        changes: list[Change] = []
        while waiting and len(self._in_hand) < _MAX_BATCH:
            item = waiting[0]
            if item is None or not isinstance(item[1], CHANGES):
                break
            self._in_hand.append(item[0])
            changes.append(item[1])
            waiting.popleft()
        return changes

    def _write(self, store: Store, changes: list[Change]) -> list[object]:
        try:
            return store.write(changes)
        except Exception as exc:  # noqa: BLE001 - whatever went wrong, its caller is told
            if len(changes) == 1:
                return [self._unwritten(exc)]
        # Nothing of the batch is in the file. Each change alone: a bad one fails only itself.
        return [answer for change in changes for answer in self._write(store, [change])]

    def _call(self, store: Store, work: Callable[[Store], object]) -> object:
        try:
            return work(store)
        except JournalError as exc:
            return exc
        except Exception as exc:  # noqa: BLE001 - whatever went wrong, its caller is told
            return self._unwritten(exc)

    def _unwritten(self, exc: Exception) -> JournalError:
        error = JournalError(
            f"The journal {self.path} failed: {type(exc).__name__}: {exc}. Nothing of this call "
            "was stored. Check the disk's room and health, and that the arguments can be stored."
        )
        error.__cause__ = exc
        return error

    def _report(self, answers: list[object]) -> None:
        failures = [answer for answer in answers if isinstance(answer, JournalError)]
        if failures:
            _log.error(
                "%d of %d calls to the journal %s failed, the first so: %s",
                *(len(failures), len(answers), self.path, failures[0]),
            )
        futures, self._in_hand = self._in_hand, []
        if not self._tell(_resolve, futures, answers):
            self.queue.put(None)  # the loop is gone, and with it everyone who could ask for more

    def _tell(self, callback: Callable[..., None], *args: object) -> bool:
        try:
            self.loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _die(self, reason: str) -> None:
        """Fail everything that waits. Runs on the loop, where all calls come from: none slips by."""
        self.failure = reason
        items = [*self._waiting, *(self.queue.get_nowait() for _ in range(self.queue.qsize()))]
        futures = self._in_hand + [item[0] for item in items if item is not None]
        _resolve(futures, [_dead_writer(self.path, reason) for _ in futures])


def _resolve(futures: Sequence[asyncio.Future[Any]], answers: Sequence[object]) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if future.done():  # cancelled; the change is written (or logged as failed) all the same
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
            future.exception()  # it is in the log: asyncio need not say so again
        else:
            future.set_result(answer)


def _dead_writer(path: str, reason: str) -> JournalError:
    return JournalError(
        f"The writer of the journal {path} died ({reason}). What was reported as written is safe; "
        "close the journal and open it again to go on."
    )


def _check_outcome(outcome: str) -> None:
    if outcome in _NOT_OUTCOMES:
        raise JournalError(
            f"{outcome!r} cannot be an outcome: counts() uses that key for something else. "
            "Use another word."
        )
