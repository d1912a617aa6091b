"""Cancel a coroutine at each of its awaits in turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")

MOST = 200
"""Suspensions at which an operation is cancelled before the suite gives up finding its end."""


class _Counted(Awaitable[T], Generic[T]):
    """Awaits another, and calls back at its n-th suspension."""

    def __init__(self, inner: Awaitable[T], at: int, callback: Callable[[], object]) -> None:
        self._inner = inner
        self._left = at
        self._callback = callback

    def __await__(self) -> Generator[Any, None, T]:
        steps = self._inner.__await__()
        send: Callable[[], Any] = lambda: next(steps)  # noqa: E731 - replaced below
        while True:
            try:
                waits_for = send()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            self._left -= 1
            if self._left == 0:
                # not yet: the task must first have noted what it waits for
                asyncio.get_running_loop().call_soon(self._callback)
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the inner one
                thrown = error
                send = lambda: _throw(steps, thrown)  # noqa: E731, B023
            else:
                send = lambda: next(steps)  # noqa: E731


def _throw(steps: Generator[Any, Any, Any], error: BaseException) -> Any:
    return steps.throw(error)


async def cancelled_everywhere(
    operation: Callable[[], Awaitable[object]],
) -> AsyncIterator[int]:
    """Run the operation again and again, cancelled at its first await, its second, and so on.

    Yields the number of the await after each run that was cancelled; ends with the run that has
    no more of them. A run that was cancelled may end well none the less, if that was too late.
    """
    for at in range(1, MOST):
        cancelled = False

        def cancel() -> None:
            nonlocal cancelled
            cancelled = True
            task.cancel()  # noqa: B023

        async def run() -> None:
            await _Counted(operation(), at, cancel)  # noqa: B023

        task = asyncio.ensure_future(run())
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()  # an error of its own is the case's
        if not cancelled:
            return
        yield at
    raise AssertionError(f"it suspended more than {MOST} times")
