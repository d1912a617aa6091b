"""Requests that may be cancelled at any moment, and lose no connection by that.

httpcore closes a connection in several steps, and makes and uses one in several. It spares the
closing from cancellation by scopes of anyio, which a task's ``cancel()`` does not know; and one
that strikes between making and using leaves a connection in its pool that nobody uses or closes
ever again. A hundred of these, and no request gets a connection any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

GRACE = 0.5
"""Seconds that a request may take to get to a step in which it can be cancelled; what takes longer
waits for a connection, and has none to lose."""
_SAFE = ("connect_tcp.started", "start_tls.started", "send_request_headers.started")
_UNSAFE = ("connect_tcp.complete", "start_tls.complete")


class Progress:
    """How far a request has come, told by httpcore: ``extensions={"trace": progress.trace}``."""

    def __init__(self) -> None:
        self._safe = False
        self._cancel: Callable[[], None] | None = None

    async def trace(self, event: str, _: Any) -> None:
        """Take note of a step."""
        _, _, step = event.partition(".")
        if step in _SAFE:
            self._safe = True
            if self._cancel is not None:
                self._cancel()
        elif step in _UNSAFE:
            self._safe = False

    def when_safe(self, cancel: Callable[[], None]) -> None:
        """Call ``cancel``, now or as soon as nothing is lost by it."""
        if self._safe:
            cancel()
        else:
            self._cancel = cancel
            asyncio.get_running_loop().call_later(GRACE, cancel)


async def finishing(work: Coroutine[Any, Any, T], progress: Progress | None = None) -> T:
    """Await work that a cancellation ends, but that a second one does not keep from closing.

    Args:
        work: uses httpx.
        progress: of a request that begins in it; None: it has begun.
    """
    import anyio

    scope = anyio.CancelScope()

    async def inside() -> T:
        with scope:
            return await work
        raise asyncio.CancelledError

    task = asyncio.ensure_future(inside())
    task.add_done_callback(_seen)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if progress is None:
            scope.cancel()
        else:
            progress.when_safe(scope.cancel)
        await asyncio.wait([task])
        raise


async def closed(response: httpx.Response) -> None:
    """Close a stream, whatever is cancelled meanwhile."""
    task = asyncio.ensure_future(response.aclose())
    task.add_done_callback(_seen)
    await asyncio.shield(task)


def _seen(task: asyncio.Future[Any]) -> None:
    """Take note of an exception for which nobody waits any more."""
    if not task.cancelled():
        task.exception()
