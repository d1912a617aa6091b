"""Running a Reef as a service until it is told to end."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from praval.errors import ReefClosedError

if TYPE_CHECKING:
    from praval.core.reef import Reef

SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(reef: Reef) -> None:
    """Wait for SIGTERM, SIGINT or ``reef.stop()``, then close; a second signal ends the draining.

    Off the main thread, or where the loop has no signals, only ``reef.stop()`` ends it.
    """
    if not reef.running:
        raise ReefClosedError("serve() needs a running Reef: async with reef: await reef.serve()")
    previous = _install(reef)
    try:
        await reef.stopped()
        await reef.aclose()
    finally:
        for number, handler in previous.items():
            reef.loop.remove_signal_handler(number)
            signal.signal(number, handler)
    entered_by = reef.entered_by
    if entered_by is not None and entered_by is not asyncio.current_task():
        entered_by.cancel("praval: the Reef it entered was told to end")


def _install(reef: Reef) -> dict[signal.Signals, signal._HANDLER]:
    """Take the signals over; return who had them."""
    told = False

    def on_signal() -> None:
        nonlocal told
        if told:
            reef.hurry()
        told = True
        reef.stop()

    previous: dict[signal.Signals, signal._HANDLER] = {}
    for number in SIGNALS:
        handler = signal.getsignal(number)
        try:
            reef.loop.add_signal_handler(number, on_signal)
        except (NotImplementedError, RuntimeError, ValueError):
            continue
        previous[number] = handler
    return previous
