"""The thread that writes a journal: group commit, and reports back to the loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Final, Literal, TypeAlias

from praval.core.journal_changes import CHANGES, Change
from praval.core.journal_store import Store, open_store
from praval.errors import JournalError

Work: TypeAlias = Change | Callable[[Store], object]
_Item: TypeAlias = "tuple[asyncio.Future[Any], Work]"

AGAIN: Final = object()  # answer of a call that wants another turn after those that wait
_MAX_BATCH = 2_000  # changes in one transaction, so that the first need not wait for the last
_log = logging.getLogger("praval.journal")


class Writer:
    """The thread that owns the file, and the queue to it.

    It holds no reference to its Journal, so that a forgotten one is collected and stops it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: str,
        sync: Literal["normal", "full"],
        key: bytes | None,
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
            target=self._run, args=(sync, key), name="praval-journal", daemon=True
        )
        self._waiting: deque[_Item | None] = deque()
        self._in_hand: list[asyncio.Future[Any]] = []

    def _run(self, sync: Literal["normal", "full"], key: bytes | None) -> None:
        try:
            store = open_store(self.path, sync=sync, key=key)
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
            if answer is AGAIN:
                waiting.append(item)
            else:
                self._report([answer])

    def _take_changes(self) -> list[Change]:
        """Take the changes at the head of what waits, for the same transaction."""
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
        """Fail all that waits; on the loop, where all calls are made, so that none slips by."""
        self.failure = reason
        items = [*self._waiting, *(self.queue.get_nowait() for _ in range(self.queue.qsize()))]
        futures = self._in_hand + [item[0] for item in items if item is not None]
        _resolve(futures, [self.dead() for _ in futures])

    def dead(self) -> JournalError:
        """Build what calls are told once the thread has died."""
        return JournalError(
            f"The writer of the journal {self.path} died ({self.failure}). What was reported as "
            "written is safe; close the journal and open it again to go on."
        )


def _resolve(futures: Sequence[asyncio.Future[Any]], answers: Sequence[object]) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if future.done():  # cancelled; the change is written (or logged as failed) all the same
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
            future.exception()  # it is in the log: asyncio need not say so again
        else:
            future.set_result(answer)
