"""The care of keys: rotated, renewed and erased when it is due; clocks watched; memory purged."""

from __future__ import annotations

import asyncio
import logging
import time

from praval.core.card_channel import CardChannel
from praval.core.key_keeper import KeyKeeper
from praval.core.keys import Keyring
from praval.core.replay import PURGE_CHUNK
from praval.core.replay_writer import ReplayCaller
from praval.core.sealer import Sealer
from praval.core.security_events import SecurityEvent
from praval.errors import ReplayError, SealCode, SealError

log = logging.getLogger("praval.keys")

TICK = 5.0
"""Most seconds between two looks at what is due."""


class KeyCare:
    """See the module. Used on the Reef's loop only."""

    def __init__(
        self, keeper: KeyKeeper, sealer: Sealer, cards: CardChannel, memory: ReplayCaller
    ) -> None:
        self._keeper = keeper
        self._sealer = sealer
        self._cards = cards
        self._memory = memory
        self._rounds: asyncio.Task[None] | None = None
        self.stopped: ReplayError | None = None
        """Why nothing is opened, rotated or erased now: a clock jumped, or cannot be trusted."""

    def start(self) -> None:
        """Look after the keys from time to time."""
        self._rounds = asyncio.create_task(self._keep_ticking(), name="praval:keys")

    async def aclose(self) -> None:
        """End. Idempotent."""
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.wait([self._rounds])

    async def rotate(self, *names: str) -> None:
        """Replace the keys of these names (default: all of this Reef) now, and say so.

        Raises:
            KeyringError: a name has no keys, or the store cannot be written.
            CardError: a name can have no card now.
        """
        now = self._sealer.now()

        def replace(keyring: Keyring) -> None:
            for name in names or sorted(self._cards.names):
                keyring.rotate(name, now=now)

        await self._keeper.change(replace, now)
        self._cards.presence.changed()
        await self._cards.changed()

    async def check_clock(self) -> bool:
        """Whether the clock may be trusted; if not, that is told, and nothing is opened."""
        now, boot = self._sealer.now(), _boottime()
        try:
            await self._memory.call(lambda replay: replay.check_clock(now, boot))
        except ReplayError as error:
            if self.stopped is None:
                self._report(error.code, str(error))
            self.stopped = error
            return False
        self.stopped = None
        return True

    async def trust_clock(self) -> None:
        """Go on after a jump that somebody has looked at; refuse what was created before now."""
        now, boot = self._sealer.now(), _boottime()
        await self._memory.call(lambda replay: replay.trust_clock(now, boot))
        self.stopped = None

    async def _keep_ticking(self) -> None:
        seconds = min(TICK, self._keeper.keyring.lifetimes.rotation / 4000)
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._tick()
            except SealError as error:
                self._report(error.code, f"The keys could not be looked after: {error}")
            except Exception as error:  # a store's; the next round may do better
                log.exception("the keys could not be looked after")
                self._report(SealCode.NO_KEY, f"The keys could not be looked after: {error!r}")

    async def _tick(self) -> None:
        if not await self.check_clock():
            return
        now = self._sealer.now()
        await self._keeper.change(lambda keyring: keyring.tick(now), now)
        self._cards.presence.changed()
        await self._cards.changed_soon()  # keys go on changing while the broker is away
        for name, failure in self._keeper.keyring.failed.items():
            self._report(failure.code, f"{name!r} can have no card: {failure}")
        while await self._memory.call(lambda replay: replay.purge(now)) == PURGE_CHUNK:
            pass
        self._sealer.count_overdue()

    def _report(self, code: SealCode, text: str) -> None:
        log.error("%s", text)
        at = self._sealer.now() / 1000
        self._sealer.events.report(SecurityEvent(code, at, text, grave=True))


def _boottime() -> int:
    """Return milliseconds of a clock that nobody sets and that runs during sleep."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return int((time.monotonic() if clock is None else time.clock_gettime(clock)) * 1000)
