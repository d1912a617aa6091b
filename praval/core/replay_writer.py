"""The thread that owns a Reef's replay memory: many calls, one transaction.

Whatever is queued when a transaction begins is part of it, so that one flush of the disk serves
all spores that are begun or committed meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Protocol, TypeAlias, TypeVar

from praval.core.replay import Replay
from praval.errors import ReplayError, SealCode

log = logging.getLogger("praval.replay")

MOST = 500
"""Calls in one transaction: other processes wait meanwhile."""

T = TypeVar("T")
Work: TypeAlias = Callable[[Replay], object]
_Item: TypeAlias = "tuple[asyncio.Future[Any], Work]"


class ReplayCaller(Protocol):
    """What makes the calls of a Reef to its replay memory. Used on the Reef's loop only."""

    async def open(self, make: Callable[[], Replay], close: Callable[[], None]) -> None:
        """Start; raises ReplayError or KeyringError if the replay memory cannot be used."""
        ...

    def call(self, work: Callable[[Replay], T]) -> asyncio.Future[T]:
        """Make a call; what it did is durable when the future resolves. It fails with ReplayError.

        Cancelling the future undoes nothing.
        """
        ...

    async def aclose(self) -> None:
        """Finish what was begun. Idempotent."""
        ...


class DirectCaller:
    """Calls a replay memory that never blocks, at once."""

    def __init__(self, lease: float) -> None:
        """Make one; ``lease``: seconds for which a spore that was begun is somebody's."""
        self._lease = int(lease * 1000)
        self._replay: Replay

    async def open(self, make: Callable[[], Replay], close: Callable[[], None]) -> None:
        """See :class:`ReplayCaller`."""
        self._replay = make()
        self._replay.lease = self._lease

    def call(self, work: Callable[[Replay], T]) -> asyncio.Future[T]:
        """See :class:`ReplayCaller`."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        _resolve([future], [_answer(self._replay, work)])
        return future

    async def aclose(self) -> None:
        """See :class:`ReplayCaller`."""


class ReplayWriter:
    """See the module; for a memory that blocks. Used on the loop on which it was opened."""

    def __init__(self, lease: float) -> None:
        """Make one; ``lease``: seconds for which a spore that was begun is somebody's."""
        self._lease = int(lease * 1000)
        self._loop: asyncio.AbstractEventLoop
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._finished: asyncio.Future[None]

    async def open(self, make: Callable[[], Replay], close: Callable[[], None]) -> None:
        """See :class:`ReplayCaller`; both functions are called on the thread."""
        self._loop = asyncio.get_running_loop()
        self._finished = self._loop.create_future()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(make, close, opened), name="praval-replay", daemon=True
        )
        self._thread.start()
        await opened

    def call(self, work: Callable[[Replay], T]) -> asyncio.Future[T]:
        """See :class:`ReplayCaller`."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._thread is None or self._finished.done():
            future.set_exception(ReplayError("The replay memory is closed."))
            future.exception()  # seen here; whoever awaits it sees it again
        else:
            self._queue.put((future, work))
        return future

    async def aclose(self) -> None:
        """See :class:`ReplayCaller`: do what is queued, then end the thread."""
        if self._thread is None:
            return
        self._queue.put(None)
        await asyncio.shield(self._finished)
        while self._thread.is_alive():  # noqa: ASYNC110 - microseconds; join() blocks the loop
            await asyncio.sleep(0)

    # -- on the thread -------------------------------------------------------------------

    def _run(
        self, make: Callable[[], Replay], close: Callable[[], None], opened: asyncio.Future[None]
    ) -> None:
        try:
            replay = make()
            replay.lease = self._lease
        except BaseException as error:  # noqa: BLE001 - not lost: open() raises it
            self._tell([opened], [error])
            self._tell([self._finished], [None])
            return
        self._tell([opened], [None])
        try:
            self._serve(replay)
        finally:
            try:
                close()
            finally:
                self._tell([self._finished], [None])

    def _serve(self, replay: Replay) -> None:
        stopping = False
        while not stopping:
            items: list[_Item] = []
            item = self._queue.get()
            while item is not None:
                items.append(item)
                if len(items) >= MOST or not self._queue.qsize():  # no other consumer
                    break
                item = self._queue.get_nowait()
            else:
                stopping = True
            answers = self._write(replay, [work for _, work in items])
            if items and not self._tell([future for future, _ in items], answers):
                return  # the loop is gone, and with it everyone who could ask for more

    def _write(self, replay: Replay, works: Sequence[Work]) -> Sequence[object]:
        try:
            with replay.batch():
                return [_answer(replay, work) for work in works]
        except Exception as error:  # noqa: BLE001 - whatever went wrong, each caller is told
            log.error("%d calls to the replay memory failed: %s", len(works), error)
            code = error.code if isinstance(error, ReplayError) else SealCode.RATE_LIMITED
            why = str(error).rstrip(".")
            failure = ReplayError(f"The replay memory could not be written: {why}.", code)
            failure.__cause__ = error
            return [failure] * len(works)

    def _tell(self, futures: Sequence[asyncio.Future[Any]], answers: Sequence[object]) -> bool:
        try:
            self._loop.call_soon_threadsafe(_resolve, futures, answers)
        except RuntimeError:  # the loop is closed
            return False
        return True


def _answer(replay: Replay, work: Work) -> object:
    try:
        return work(replay)
    except ReplayError as error:  # a refusal, which leaves the transaction as it is
        return error


def _resolve(futures: Sequence[asyncio.Future[Any]], answers: Sequence[object]) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if future.done():  # cancelled: it was done all the same
            continue
        if isinstance(answer, BaseException):
            future.set_exception(answer)
            future.exception()  # nobody has to look at it
        else:
            future.set_result(answer)
