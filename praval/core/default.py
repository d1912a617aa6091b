"""The default Reef: what ``start_agents``, ``broadcast`` and ``get_reef`` mean without a Reef.

Inside a handler it is that handler's Reef. A plain script has one on the background loop. Code
on an event loop of its own has one per loop. It starts on first use and closes with its loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from praval.core.context import current_worker
from praval.core.delivery import Receipt
from praval.core.reef import Reef
from praval.errors import NoReefError
from praval.sync import (
    at_background_exit,
    background_loop,
    has_background_loop,
    refuse_on_loop,
    run_on,
    running_loop,
)

Lifetime = AsyncGenerator[None, None]


class _Default:
    """The default Reef of one loop."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.reef: Reef | None = None
        self.lifetime: Lifetime | None = None


_defaults: dict[asyncio.AbstractEventLoop, _Default] = {}


async def default_reef() -> Reef:
    """Return the Reef of this place, starting the loop's default one if there is none."""
    worker = current_worker.get()
    if worker is not None:
        return worker.runner.reef
    loop = asyncio.get_running_loop()
    default = _defaults.setdefault(loop, _Default())
    async with default.lock:
        if default.reef is None or not default.reef.running:
            default.reef = Reef()
            default.lifetime = _live(loop, default.reef)
            await anext(default.lifetime)
            if has_background_loop() and loop is background_loop():
                at_background_exit(default.reef.aclose)
        return default.reef


async def _live(loop: asyncio.AbstractEventLoop, reef: Reef) -> Lifetime:
    """Keep a Reef until its loop shuts its asynchronous generators down, as its last act."""
    try:
        async with reef:
            yield
    finally:
        default = _defaults.get(loop)
        if default is not None and default.reef is reef:  # else it has a successor already
            del _defaults[loop]


def get_reef() -> Reef:
    """Return the Reef of this place: the handler's, the loop's default one, or the script's.

    Raises:
        NoReefError: a thread that belongs to no handler, and no script has started a Reef; or
            code on an event loop before its first ``await astart_agents(...)``.
    """
    worker = current_worker.get()
    if worker is not None:
        return worker.runner.reef
    loop = running_loop()
    if loop is not None:
        default = _defaults.get(loop)
        if default is None or default.reef is None:
            raise NoReefError(
                "This event loop has no Reef yet: use `async with Reef(...) as reef:`, or "
                "`await astart_agents(...)` first."
            )
        return default.reef
    _refuse_strange_thread("get_reef()")
    return run_on(background_loop(), default_reef())


async def abroadcast(
    data: Mapping[str, Any],
    channel: str | None = None,
    target_agent: str | None = None,
    **options: Any,
) -> Receipt:
    """Publish knowledge in the Reef of this place; see ``Reef.broadcast`` for options and errors.

    In a handler's own Reef this never waits for room; elsewhere it does.
    """
    reef = await default_reef()
    return await reef.broadcast(data, channel, target_agent, **options)


def broadcast(
    data: Mapping[str, Any],
    channel: str | None = None,
    target_agent: str | None = None,
    **options: Any,
) -> Receipt:
    """Publish knowledge in the Reef of this place.

    Inside a handler, plain or async, it needs no ``await`` and never waits; awaiting the receipt
    waits for acceptance. In a plain script it returns when the spore is accepted.

    Args:
        data: the knowledge; ``"type"`` in it is what ``responds_to`` filters on.
        channel: default: ``main``.
        target_agent: the only receiver.
        **options: ``priority``, ``ttl``, ``key``, ``headers`` as in ``Reef.broadcast``.

    Raises:
        BlockingCallError: on an event loop, outside handlers: ``await abroadcast(...)`` there.
        NoReefError: in a thread that belongs to nobody.
        KnowledgeError, SporeTooLargeError, ...: as ``Reef.broadcast``.

    Source: guide, "Communication Functions".
    """
    worker = current_worker.get()
    if worker is None:
        refuse_on_loop("broadcast", "abroadcast")
        _refuse_strange_thread("broadcast()")
        return run_on(background_loop(), abroadcast(data, channel, target_agent, **options))
    runner = worker.runner
    if running_loop() is runner.reef.loop:
        return runner.reef.emit(data, runner, channel, target_agent, **options)

    async def emit() -> Receipt:
        return runner.reef.emit(data, runner, channel, target_agent, **options)

    return run_on(runner.reef.loop, emit())


def _refuse_strange_thread(what: str) -> None:
    if threading.current_thread() is not threading.main_thread() and not has_background_loop():
        raise NoReefError(
            f"{what} was called in a thread that belongs to no handler, and this process has no "
            "default Reef. Start one with start_agents(...), or use a Reef of your own."
        )
