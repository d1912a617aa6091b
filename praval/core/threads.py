"""Worker threads of one Reef, in which plain (``def``) handlers run.

At most ``limit`` plain handlers run at once. One that waits inside the sync bridge gives its
slot back meanwhile and goes on without queueing afterwards, so that plain handlers that ask one
another never starve. A thread cannot be killed: a handler that was given up (time-out, close)
keeps its slot until it returns. Threads are daemons: a stuck one does not keep the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from praval.errors import ReefClosedError
from praval.sync import thread_slot

T = TypeVar("T")
Job = Callable[[], None]


class WorkerThreads:
    """A pool with slots; all methods but those of a slot are for the loop's thread."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self.limit = limit
        self.loop = loop
        self.busy = 0
        self.closed = False
        self._paused: list[Callable[[], bool]] = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle: list[SimpleQueue[Job | None]] = []
        self._queues: set[SimpleQueue[Job | None]] = set()

    @property
    def going_on(self) -> int:
        """Threads that go on by themselves: not idle, and not waiting for the loop."""
        return self.busy + sum(over() for over in self._paused)

    async def run(self, function: Callable[..., T], /, *args: Any) -> T:
        """Run ``function`` in a worker thread, with the caller's context variables.

        A cancelled caller leaves at once; the thread and its slot stay busy until it returns.
        """
        await self._acquire()
        future: asyncio.Future[T] = self.loop.create_future()
        slot = _Slot(self)
        context = copy_context()
        context.run(thread_slot.set, slot)

        def job() -> None:
            try:
                result = function(*args)
            except BaseException as error:  # noqa: BLE001 - carried to the waiter, whatever it is
                self._report(_finish, future, None, error, queue)
            else:
                self._report(_finish, future, result, None, queue)

        def _finish(
            future: asyncio.Future[T], result: Any, error: BaseException | None, queue: Any
        ) -> None:
            self._release()
            if len(self._idle) < self.limit:
                self._idle.append(queue)
            else:
                self._queues.discard(queue)
                queue.put(None)
            if future.done():
                return
            if isinstance(error, StopIteration):
                error = RuntimeError(f"handler raised {error!r}")
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        queue = self._idle.pop() if self._idle else self._spawn()
        queue.put(partial(context.run, job))
        return await future

    def close(self) -> None:
        """Let idle threads end at once, and busy ones after what they are doing."""
        self.limit = 0
        self.closed = True
        for future in self._waiting:
            if not future.done():
                future.set_exception(ReefClosedError("The Reef was closed."))
        self._waiting.clear()
        for queue in self._queues:
            queue.put(None)
        self._queues.clear()
        self._idle.clear()

    async def _acquire(self) -> None:
        if self.closed:
            raise ReefClosedError("The Reef is closed: its worker threads take nothing any more.")
        if self.busy < self.limit and not self._waiting:
            self.busy += 1
            return
        future: asyncio.Future[None] = self.loop.create_future()
        self._waiting.append(future)
        try:
            await future  # whoever wakes us has counted us as busy
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        self.busy -= 1
        while self._waiting and self.busy < self.limit:
            future = self._waiting.popleft()
            if not future.done():
                self.busy += 1
                future.set_result(None)

    def _pause(self, over: Callable[[], bool]) -> None:
        self._paused.append(over)
        self._release()

    def _resume(self, over: Callable[[], bool]) -> None:
        self._paused.remove(over)
        self.busy += 1

    def _spawn(self) -> SimpleQueue[Job | None]:
        queue: SimpleQueue[Job | None] = SimpleQueue()
        self._queues.add(queue)
        threading.Thread(target=_serve, args=(queue,), name="praval-worker", daemon=True).start()
        return queue

    def _report(self, function: Callable[..., None], *args: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if not self.loop.is_closed():
                raise
            # the loop is gone, and with it everybody who could wait for this handler


def _serve(queue: SimpleQueue[Job | None]) -> None:
    while (job := queue.get()) is not None:
        job()


class _Slot:
    """A running plain handler's slot; used from its thread.

    A handler may wait for several things at once (``asyncio.gather`` on a loop of its own): the
    slot is given back when the first wait begins, and taken again when the last one ends.
    """

    def __init__(self, threads: WorkerThreads) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._waits: list[Callable[[], bool]] = []

    def pause(self, over: Callable[[], bool]) -> None:
        with self._lock:
            self._waits.append(over)
            if len(self._waits) == 1:
                self._threads._report(self._threads._pause, self._goes_on)

    def resume(self, over: Callable[[], bool]) -> None:
        with self._lock:
            self._waits.remove(over)
            if not self._waits:
                self._threads._report(self._threads._resume, self._goes_on)

    def _goes_on(self) -> bool:
        waits = tuple(self._waits)
        return not waits or any(over() for over in waits)
