"""The brokers of a config: which of them is tried, in which order, how often."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from praval.errors import TransportError
from praval_transports.config import Address, BrokerConfig
from praval_transports.link import Link

SLOWEST = 60
"""The longest wait between attempts to reconnect, in first waits."""


class Brokers:
    """Finds a broker that lets us in."""

    def __init__(self, config: BrokerConfig, connect: Callable[[Address], Awaitable[Link]]) -> None:
        self._config = config
        self._connect = connect
        self._next = 0
        self.address: Address | None = None
        """Of the broker that let us in last."""

    async def any(self) -> Link:
        """Try each broker once; the error is the first one's.

        Raises:
            TransportError: none lets us in.
        """
        errors: list[TransportError] = []
        for address in self._in_order():
            try:
                link = await self._connect(address)
            except TransportError as error:
                errors.append(error)
                continue
            self.address = address
            self._next = self._config.addresses.index(address) + 1
            return link
        raise errors[0]

    async def sooner_or_later(self, told: Callable[[TransportError, float], None]) -> Link:
        """Try all brokers again and again, later and later, until one lets us in.

        ``told`` is called after each round in vain, with the error and the seconds to the next.
        """
        delay = self._config.reconnect_delay
        while True:
            try:
                return await self.any()
            except TransportError as error:
                told(error, delay)
            # jitter: many clients of one broker must not come back in step
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, SLOWEST * self._config.reconnect_delay)

    def _in_order(self) -> Sequence[Address]:
        addresses = self._config.addresses
        if self._config.load_balancing == "random":
            return random.sample(addresses, len(addresses))
        in_turn = self._config.load_balancing == "round_robin"
        first = self._next % len(addresses) if in_turn else 0
        return [*addresses[first:], *addresses[:first]]
