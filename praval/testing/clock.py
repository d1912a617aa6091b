"""Virtual time: an event loop whose clock stands still while there is work, and jumps otherwise.

A running loop asks its selector to wait until the next timer is due. :class:`VirtualClock` takes
that place: when nothing is ready it sets the clock to the next timer instead of waiting, so that
``await asyncio.sleep(3600)`` takes no real time and ends exactly 3600 seconds later.

Threads live in real time. While one is at work that will report to the loop, the clock waits for
it. What threads report is let in only when nothing else is ready, in the order in which their
jobs began, so that the order of events does not depend on how fast a thread was.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, Self
from weakref import WeakKeyDictionary

from praval.errors import ConfigurationError

log = logging.getLogger("praval.testing")

EPOCH = 1_767_225_600.0
"""Where the wall clock starts: 2026-01-01T00:00:00Z, in UTC seconds since 1970."""
START = 1_000.0
"""Where ``loop.time()`` starts, in seconds."""
HOLD_PATIENCE = 10.0
"""Real seconds that time waits for threads before it goes on, to the next timer, without them."""
ORDER_PATIENCE = 3.0
"""Real seconds that the report of one thread waits for those of threads that began earlier."""

thread_job: ContextVar[int] = ContextVar("thread_job", default=0)
"""Number of the job that runs here, in order of beginning; 0: unknown."""


class _Report(NamedTuple):
    """A callback that a thread wants to have called on the loop."""

    job: int
    handle: asyncio.Handle
    callback: Callable[..., object]
    args: tuple[Any, ...]
    context: contextvars.Context


class VirtualClock:
    """Makes the running loop's time virtual, from ``with`` to the end of the block.

    ::

        with VirtualClock() as clock:
            await asyncio.sleep(3600)           # at once
            assert clock.time() == EPOCH + 3600

    Timers that exist already keep their distance. Entering it again on the same loop is
    harmless: the last exit restores the loop. Only loops of asyncio itself can be made virtual.

    Raises (on entering):
        ConfigurationError: the loop is not one of asyncio's, or has another virtual clock.
    """

    _installed: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, VirtualClock]] = (
        WeakKeyDictionary()
    )

    def __init__(self) -> None:
        self._now = START
        self._entered = 0
        self._loop: Any = None  # its private parts are needed, which no type describes
        self._saved: list[tuple[Any, str, Any]] = []
        self._poll: Callable[[float | None], list[Any]]
        self._threads: list[Callable[[], int]] = []
        self._expected = 0
        self._held = 0
        self._stuck = 0
        self._hurried = 0
        self._inbox: list[_Report] = []
        self._lock = threading.Lock()
        self._resting: list[asyncio.Future[None]] = []

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> VirtualClock | None:
        """Return the clock that a loop has at the moment."""
        return cls._installed.get(loop)

    # -- reading -------------------------------------------------------------------------

    def time(self) -> float:
        """Return the wall-clock time in UTC seconds since 1970."""
        return EPOCH + (self._now - START)

    def monotonic(self) -> float:
        """Return what ``loop.time()`` returns, in seconds."""
        return self._now

    # -- moving --------------------------------------------------------------------------

    async def advance(self, seconds: float, *, hold: bool = True) -> None:
        """Let time pass; returns when everything that was due by then has been done.

        Args:
            seconds: how much.
            hold: wait for threads, as ever; False: they are stuck, or slow on purpose, and time
                goes on without them.

        Raises:
            ConfigurationError: the number of seconds is negative, or not finite.
        """
        if not 0 <= seconds < math.inf:
            raise ConfigurationError(f"Time can go on by 0 seconds or more, not by {seconds!r}.")
        self._hurried += not hold
        try:
            await asyncio.sleep(seconds)
            await self.rest()
        finally:
            self._hurried -= not hold

    async def rest(self) -> None:
        """Wait, without letting time pass, until nothing is ready and no thread is at work."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._resting.append(waiter)
        await waiter

    # -- holding -------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep time from jumping in a block, which expects something real: a socket, a process."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def hold_for(self, future: asyncio.Future[Any]) -> None:
        """Keep time from jumping until a thread has resolved this future."""
        self._expected += 1
        future.add_done_callback(self._arrived)

    def watch(self, threads: Callable[[], int]) -> None:
        """Keep time from jumping while this returns more than 0.

        Args:
            threads: returns how many threads are at work that will report to the loop.
        """
        self._threads.append(threads)

    def unwatch(self, threads: Callable[[], int]) -> None:
        """End what :meth:`watch` began."""
        self._threads.remove(threads)

    def _arrived(self, _: object) -> None:
        self._expected -= 1

    def _at_work(self) -> int:
        """Return how many threads, or groups of them, will report by themselves."""
        return sum(threads() for threads in self._threads) + (self._expected > 0)

    # -- installing ----------------------------------------------------------------------

    def __enter__(self) -> Self:
        loop: Any = asyncio.get_running_loop()
        present = self.of(loop)
        if present is not None and present is not self:
            raise ConfigurationError(
                "This event loop has a virtual clock already: use VirtualClock.of(loop)."
            )
        if self._entered and present is None:
            raise ConfigurationError("A virtual clock serves one loop at a time: make a new one.")
        if not isinstance(loop, asyncio.BaseEventLoop) or not hasattr(loop, "_selector"):
            raise ConfigurationError(
                f"Time cannot be made virtual on {type(loop).__module__}.{type(loop).__name__}: "
                "use one of asyncio's own event loops, or virtual_time=False."
            )
        self._entered += 1
        if present is None:
            self._install(loop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if not self._entered:
            self._uninstall()

    def _install(self, loop: Any) -> None:
        self._loop = loop
        self._poll = loop._selector.select
        self._thread = threading.get_ident()
        self._run_in_executor = loop.run_in_executor
        self._call_soon_threadsafe = loop.call_soon_threadsafe
        self._move_timers(self._now - loop.time())
        self._patch(loop._selector, "select", self._select)
        self._patch(loop, "time", self.monotonic)
        self._patch(loop, "call_soon_threadsafe", self._report)
        self._patch(loop, "run_in_executor", self._in_executor)
        self._patch(loop, "_clock_resolution", math.ulp(self._now))
        self._installed[loop] = self

    def _uninstall(self) -> None:
        with self._lock:  # a thread that comes later finds the loop as it was
            for place, name, before in reversed(self._saved):
                if before is _ABSENT:
                    delattr(place, name)
                else:
                    setattr(place, name, before)
            self._saved.clear()
            del self._installed[self._loop]
        self._move_timers(self._loop.time() - self._now)
        while self._inbox:
            self._let_in()
        self._wake_resting()

    def _patch(self, place: Any, name: str, value: object) -> None:
        self._saved.append((place, name, vars(place).get(name, _ABSENT)))
        setattr(place, name, value)

    def _move_timers(self, seconds: float) -> None:
        """Keep the distance of the timers that exist; one shift for all leaves the heap a heap."""
        for timer in self._loop._scheduled:
            timer._when += seconds

    # -- what the loop calls -------------------------------------------------------------

    def _select(self, timeout: float | None = None) -> list[Any]:
        """Stand in for ``selector.select``: wait for what is real, else let time jump."""
        if timeout is not None and timeout <= 0:
            return self._poll(0)
        if events := self._poll(0):
            return events
        if not self._threads_have_their_say():
            return self._wait()
        if self._inbox:
            self._let_in()
        elif self._resting:
            self._wake_resting()
        elif timeout is None:
            return self._poll(None)
        else:
            self._jump()
        return []

    def _threads_have_their_say(self) -> bool:
        """Return whether every thread that will report by itself has done so."""
        at_work = self._at_work()
        self._stuck = at_work if self._hurried else min(self._stuck, at_work)
        awaited = at_work - self._stuck
        with self._lock:
            heard = len({report.job for report in self._inbox})
        return heard >= awaited if heard else not awaited and not self._held

    def _jump(self) -> None:
        """Set the clock to the next timer; a thread that was given up may be waiting for it."""
        self._stuck = 0
        self._now = max(self._now, self._loop._scheduled[0]._when)
        # exactly the timers that are due by now: the loop adds its resolution to the time
        self._loop._clock_resolution = math.ulp(self._now)

    def _wait(self) -> list[Any]:
        """Wait really; give up on threads that say nothing for long."""
        if events := self._poll(ORDER_PATIENCE if self._inbox else HOLD_PATIENCE):
            return events
        if self._inbox:
            self._let_in()  # perhaps an earlier thread waits for this later one
        elif (at_work := self._at_work()) > self._stuck:
            log.warning(
                "%d thread(s) said nothing for %s s: virtual time goes on without them",
                at_work, HOLD_PATIENCE,
            )  # fmt: skip
            self._stuck = at_work
        return []

    def _wake_resting(self) -> None:
        waiters, self._resting = self._resting, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _let_in(self) -> None:
        """Make the first report of the job that began first ready."""
        with self._lock:
            first = min(self._inbox, key=lambda report: report.job)
            self._inbox.remove(first)
        if not first.handle.cancelled():
            self._loop.call_soon(first.callback, *first.args, context=first.context)

    def _report(
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Stand in for ``loop.call_soon_threadsafe``."""
        context = context or contextvars.copy_context()
        if threading.get_ident() != self._thread:
            with self._lock:
                if self._saved and not self._loop.is_closed():
                    handle = asyncio.Handle(callback, args, self._loop, context)
                    job = thread_job.get()
                    self._inbox.append(_Report(job, handle, callback, args, context))
                    self._loop._write_to_self()
                    return handle
        made: asyncio.Handle = self._call_soon_threadsafe(callback, *args, context=context)
        return made

    def _in_executor(
        self, executor: Any, function: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Stand in for ``loop.run_in_executor``."""
        future: asyncio.Future[Any] = self._run_in_executor(executor, function, *args)
        self.hold_for(future)
        return future


_ABSENT = object()
