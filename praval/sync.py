"""The only bridge between blocking code and event loops.

A blocking function of the public API is made from its async twin by :func:`blocking`; nothing is
written twice. Where the twin runs:

* inside a plain handler (a worker thread): on the loop of that handler's Reef;
* in a plain script: on one background loop, started on first use, closed at exit;
* on a running event loop: nowhere: :class:`~praval.errors.BlockingCallError` names the twin.

An async function whose owner lives on another loop is carried there by :func:`hop`, so that
``asyncio.run(...)`` inside a plain handler works.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any, ParamSpec, Protocol, TypeVar

from praval.errors import BlockingCallError, NoReefError

P = ParamSpec("P")
T = TypeVar("T")

INTERRUPT_GRACE = 5.0
"""Seconds that Ctrl-C waits for the cancelled work to clean up."""


class ThreadSlot(Protocol):
    """A plain handler's place among the worker threads."""

    def pause(self, over: Callable[[], bool]) -> None:
        """Let another handler run until ``over()``."""

    def resume(self, over: Callable[[], bool]) -> None:
        """Go on: what was waited for is over."""


class ThreadRunner(Protocol):
    """The worker threads of a Reef."""

    async def run(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Run a blocking function in one of them."""


owner_loop: ContextVar[asyncio.AbstractEventLoop | None] = ContextVar("owner_loop", default=None)
"""The loop of the Reef whose handler runs here."""
thread_slot: ContextVar[ThreadSlot | None] = ContextVar("thread_slot", default=None)
"""The slot of the plain handler that runs in this thread."""
worker_threads: ContextVar[ThreadRunner | None] = ContextVar("worker_threads", default=None)
"""The worker threads of the Reef whose handler runs here."""


class _Background:
    """The process's background loop: one daemon thread, made when first asked for."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread: threading.Thread | None = None
        self.closers: list[Callable[[], Awaitable[None]]] = []

    def get(self) -> asyncio.AbstractEventLoop:
        with self.lock:
            if self.loop is None:
                self.loop = asyncio.new_event_loop()
                self.thread = threading.Thread(
                    target=_run_forever, args=(self.loop,), name="praval-loop", daemon=True
                )
                running = threading.Event()
                self.loop.call_soon(running.set)
                self.thread.start()
                running.wait()
                # threading's own hook would run after the daemon thread is frozen
                atexit.register(self.close)
            return self.loop

    def close(self) -> None:
        with self.lock:
            loop, self.loop = self.loop, None
        if loop is None or self.thread is None or not self.thread.is_alive():
            return
        with contextlib.suppress(KeyboardInterrupt):
            run_on(loop, self._close_all())
        loop.call_soon_threadsafe(loop.stop)
        self.thread.join(INTERRUPT_GRACE)
        if not self.thread.is_alive():
            loop.close()

    async def _close_all(self) -> None:
        closers, self.closers = self.closers, []
        for close in reversed(closers):
            await close()
        await asyncio.get_running_loop().shutdown_asyncgens()


_background = _Background()


def _run_forever(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop until it is stopped, whatever a handler raises.

    asyncio lets SystemExit and KeyboardInterrupt of a task end the loop. Here the Reef whose
    handler raised them has failed, and whoever waits for it is told; others go on.
    """
    while True:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            continue
        return


def _reset_after_fork() -> None:
    global _background  # noqa: PLW0603 - a forked child must not touch its parent's loop
    _background = _Background()
    owner_loop.set(None)
    thread_slot.set(None)
    worker_threads.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def forkable_lock() -> threading.Lock:
    """Make a lock that is free in a forked child, and what it guards whole.

    For locks that are held for moments, by code that takes no other one meanwhile.
    """
    lock = threading.Lock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the background loop, starting it if needed."""
    return _background.get()


def has_background_loop() -> bool:
    """Whether the background loop was started."""
    return _background.loop is not None


def at_background_exit(close: Callable[[], Awaitable[None]]) -> None:
    """Await ``close()`` on the background loop before the process ends."""
    _background.closers.append(close)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@contextlib.contextmanager
def waiting(over: Callable[[], bool]) -> Iterator[None]:
    """Give this thread's slot to other plain handlers until what it waits for is ``over``."""
    slot = thread_slot.get()
    if slot is None:
        yield
        return
    slot.pause(over)
    try:
        yield
    finally:
        slot.resume(over)


def run_on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` on ``loop``, which runs in another thread, and wait for its result.

    Ctrl-C cancels the work, waits up to five seconds for it to end, and goes on as
    KeyboardInterrupt. The context variables of the caller are visible to the work.

    Raises:
        NoReefError: the loop is closed.
    """
    finished = threading.Event()
    tasks: list[asyncio.Task[T]] = []

    def start() -> None:
        task = loop.create_task(work)
        task.add_done_callback(lambda _: finished.set())
        tasks.append(task)

    _refuse_dead(loop, work)
    loop.call_soon_threadsafe(start)
    try:
        with waiting(finished.is_set):
            finished.wait()
    except KeyboardInterrupt:
        with contextlib.suppress(RuntimeError):  # the loop may just have closed
            loop.call_soon_threadsafe(_cancel_all, tasks)
        finished.wait(INTERRUPT_GRACE)
        raise
    return tasks[0].result()


def _refuse_dead(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any]) -> None:
    """Raise NoReefError if nobody runs the loop: waiting for it would be in vain."""
    if not loop.is_running():
        work.close()
        how = "closed" if loop.is_closed() else "not running"
        raise NoReefError(
            f"The event loop of this Reef is {how}: start a new Reef, or call earlier."
        )


def _cancel_all(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()


async def hop(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` on ``loop``, from whichever loop this runs on; cancellation travels along."""
    if running_loop() is loop:
        return await work
    _refuse_dead(loop, work)
    future = asyncio.run_coroutine_threadsafe(work, loop)
    with waiting(future.done):
        return await asyncio.wrap_future(future)


def blocking(twin: Callable[P, Coroutine[Any, Any, T]], name: str | None = None) -> Callable[P, T]:
    """Make the blocking function ``x`` from its async twin ``ax``.

    Raises (the made function):
        BlockingCallError: called on a running event loop; the message names the twin.
    """
    name = name or twin.__name__.removeprefix("a")

    @functools.wraps(twin)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        refuse_on_loop(name, twin.__name__)
        return run_on(owner_loop.get() or background_loop(), twin(*args, **kwargs))

    call.__name__ = name
    call.__qualname__ = call.__qualname__.replace(twin.__name__, name)
    del call.__wrapped__  # inspect must not take it for a coroutine function
    call.__doc__ = f"Blocking form of :func:`{twin.__name__}`.\n\n{twin.__doc__ or ''}"
    return call


def blocking_method(twin: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., T]:
    """Make the blocking method ``x`` from its async twin ``ax``; it runs on ``self.loop``, if any.

    Raises (the made method):
        BlockingCallError: called on a running event loop; the message names the twin.
    """
    name = twin.__name__.removeprefix("a")

    @functools.wraps(twin)
    def call(self: Any, *args: Any, **kwargs: Any) -> T:
        refuse_on_loop(name, twin.__name__)
        loop = getattr(self, "loop", None) or owner_loop.get() or background_loop()
        return run_on(loop, twin(self, *args, **kwargs))

    call.__name__ = name
    del call.__wrapped__  # as in blocking()
    call.__doc__ = f"Blocking form of :meth:`{twin.__name__}`.\n\n{twin.__doc__ or ''}"
    return call


def refuse_on_loop(name: str, twin: str) -> None:
    """Raise BlockingCallError if an event loop runs in this thread."""
    if running_loop() is not None:
        raise BlockingCallError(
            f"{name}() blocks, and this code runs on an event loop, which it would stop. "
            f"Write `await {twin}(...)` instead."
        )


async def in_thread(function: Callable[..., T], /, *args: Any) -> T:
    """Run a blocking function in a worker thread: the Reef's, or else one of its own.

    Not in one of the loop's executor: a few functions that hang would keep everything else from
    being run there, names of hosts from being looked up, and ``asyncio.run`` from returning. A
    cancelled waiter leaves at once; the thread goes on (a thread cannot be killed).
    """
    loop = asyncio.get_running_loop()
    threads = worker_threads.get()
    if threads is not None and owner_loop.get() is loop:
        result: T = await threads.run(function, *args)
        return result
    future: asyncio.Future[T] = loop.create_future()
    work = functools.partial(contextvars.copy_context().run, _settle, future, function, *args)
    threading.Thread(target=work, name="praval-call", daemon=True).start()
    return await future


def _settle(future: asyncio.Future[T], function: Callable[..., T], *args: Any) -> None:
    """Call the function and carry its result, or whatever it raises, to the future's loop."""
    try:
        outcome = functools.partial(future.set_result, function(*args))
    except StopIteration as error:  # no future can carry one: its waiter would wait for ever
        failure = RuntimeError(f"{function!r} raised StopIteration")
        failure.__cause__ = error
        outcome = functools.partial(future.set_exception, failure)
    except BaseException as error:  # noqa: BLE001 - as above
        outcome = functools.partial(future.set_exception, error)
    with contextlib.suppress(RuntimeError):  # the loop is gone, and with it who waited
        future.get_loop().call_soon_threadsafe(lambda: future.done() or outcome())
