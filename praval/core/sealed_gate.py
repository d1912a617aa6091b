"""The gate of a sealed Reef: what comes in is opened here, tried again, or turned away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from praval.core.card_channel import CardChannel
from praval.core.delivery import Reason
from praval.core.envelope_format import parse
from praval.core.intake import DELAY
from praval.core.key_care import KeyCare
from praval.core.key_keeper import KeyKeeper
from praval.core.ledger import Ledger
from praval.core.sealer import Sealer
from praval.core.transport import Delivery, GiveBack, Refuse
from praval.errors import EnvelopeError, SealCode

T = TypeVar("T")


class Gate:
    """See the module. Used on the Reef's loop only."""

    def __init__(
        self,
        books: Ledger,
        keeper: KeyKeeper,
        sealer: Sealer,
        *,
        cards: CardChannel,
        care: KeyCare,
    ) -> None:
        self._keeper = keeper
        self._sealer = sealer
        self._cards = cards
        self._care = care
        self._books = books
        self._closed = asyncio.Event()

    def close(self) -> None:
        """Take in nothing more: whoever waits to try again gives back."""
        self._closed.set()

    async def open(
        self, delivery: Delivery, open_it: Callable[[], T], receiver: str | None
    ) -> T | None:
        """Open what came in, in several attempts if need be; None: its message is done with.

        Raises:
            Refuse, GiveBack: what is to become of the message.
        """
        refreshed = False
        while True:
            await self._keeper.ready()
            if self._care.stopped is not None:
                await self.pause(DELAY / 1000)
                raise GiveBack
            try:
                return open_it()
            except EnvelopeError as error:
                if error.code is SealCode.NO_KEY and self._keeper.is_shared and not refreshed:
                    refreshed = True  # perhaps another replica has renewed the keys we share
                    await self._keeper.refresh(self._sealer.now())
                    continue
                if error.code in (SealCode.UNKNOWN_SENDER, SealCode.STALE_CARD):
                    self._cards.want(agent_id=parse(delivery).sender)
                if await self.refuse(delivery, error, receiver):
                    return None

    async def refuse(self, delivery: Delivery, error: EnvelopeError, receiver: str | None) -> bool:
        """Do with a refused message what is advised; return whether it is done with.

        False: it may be tried again now.

        Raises:
            Refuse: it is a dead letter.
            GiveBack: nobody waits for the next attempt.
        """
        advice = self._sealer.refuse(delivery, error, receiver)
        if advice.what == "acknowledge":
            return True
        if advice.what == "dead-letter":
            self._books.count_refused(Reason.SEALED, told=True)
            raise Refuse(error.code.value)
        if await self.pause(advice.delay / 1000):
            raise GiveBack
        return False

    async def pause(self, seconds: float) -> bool:
        """Wait; return whether nothing more is taken in."""
        try:
            async with asyncio.timeout(seconds):
                return await self._closed.wait()
        except TimeoutError:
            return False
