"""Answers to queries for cards: ours at once, those of others if nobody else has given them."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable

OWN_EVERY, OTHERS_EVERY = 0.05, 1.0
"""Seconds between two publications of one card: anybody may ask, as often as he likes."""
MOMENT = (0.05, 0.2)
"""Seconds, by chance, for which others may answer before us."""
REMEMBERED = 1000


class CardAnswers:
    """See the module. Used on the Reef's loop only."""

    def __init__(self, say: Callable[[bytes], None]) -> None:
        """Make one; ``say`` publishes a card soon."""
        self._say = say
        self._owed: dict[bytes, asyncio.TimerHandle] = {}
        self._last: OrderedDict[bytes, float] = OrderedDict()
        """Card -> when it was said last, on the loop's clock."""
        self._closed = False

    def owe(self, card: bytes, *, own: bool) -> None:
        """Somebody asks for a card that we have."""
        if card in self._owed or self._closed:
            return
        loop = asyncio.get_running_loop()
        wait, every = (0.0, OWN_EVERY) if own else (random.uniform(*MOMENT), OTHERS_EVERY)
        last = self._last.get(card, -every)
        self._owed[card] = loop.call_later(max(wait, last + every - loop.time()), self._pay, card)

    def said(self, card: bytes) -> None:
        """Somebody has said it: we need not."""
        if (timer := self._owed.pop(card, None)) is not None:
            timer.cancel()

    def close(self) -> None:
        """Answer nothing any more."""
        self._closed = True
        for timer in self._owed.values():
            timer.cancel()
        self._owed.clear()

    def _pay(self, card: bytes) -> None:
        self._owed.pop(card, None)
        self._last.pop(card, None)
        self._last[card] = asyncio.get_running_loop().time()
        if len(self._last) > REMEMBERED:
            self._last.popitem(last=False)
        self._say(card)
