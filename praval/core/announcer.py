"""Tells the other hosts which agents are at work here, and hears what they say."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from praval.core import presence
from praval.core.presence import Presence
from praval.core.topics import join
from praval.core.transport import Delivery, MessageTransport, Refuse
from praval.errors import MalformedSporeError, PravalError

if TYPE_CHECKING:
    from praval.core.reef import Reef

log = logging.getLogger("praval.presence")

PATIENCE = 7.0
"""Seconds for an announcement; the next one makes up for it."""
LAST_WORD = 3.0
"""Seconds for the one that nobody is here any more; silence says it too, only later."""


class Announcer:
    """See the module. Used on the Reef's loop only."""

    def __init__(self, reef: Reef, transport: MessageTransport, replica: str) -> None:
        self._reef = reef
        self._transport = transport
        self._replica = replica
        self._interval = reef.settings.reef_config.presence_interval
        self.topic = join(reef.namespace, "@presence")
        self.presence = Presence(self._interval)
        self._said: set[presence.AgentCard] = set()
        """What the last announcement told of our agents."""
        self._rounds: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Say who is here and ask who else is; say it again from time to time."""
        await self._say_in_time(asks=True)
        self._rounds = asyncio.create_task(self._keep_saying(), name="praval:presence")

    async def leave(self) -> None:
        """Say that nobody is here any more; the others would miss us otherwise."""
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.wait([self._rounds])
        await self._say_in_time(leaves=True)

    @property
    def at_work(self) -> bool:
        """Whether it announces: between :meth:`start` and :meth:`leave`."""
        return self._rounds is not None and not self._rounds.done()

    async def changed(self) -> None:
        """An agent may have come, gone or moved: if so, say it."""
        if self.at_work and set(map(presence.card_of, self._reef.runners.values())) != self._said:
            await self._say_in_time()

    async def hear(self, delivery: Delivery) -> None:
        """Take what was said on the presence channel.

        Raises:
            Refuse: it is no announcement.
        """
        try:
            said = presence.decode(delivery)
        except MalformedSporeError as error:
            raise Refuse(str(error)) from None
        if said.replica == self._replica:
            return
        self.presence.hear(said)
        if said.asks and self.at_work:
            await self._say_in_time()

    async def _say(self, *, asks: bool = False, leaves: bool = False) -> None:
        said = presence.announcement(self._reef, self._replica, asks=asks, leaves=leaves)
        self._said = set(said.agents)
        self.presence.hear(said)
        await self._transport.publish(self.topic, presence.encode(said), ttl=self._interval)

    async def _say_in_time(self, *, asks: bool = False, leaves: bool = False) -> None:
        """Announce; if there is no broker for now, the next round will do better."""
        seconds = LAST_WORD if leaves else PATIENCE
        try:
            async with asyncio.timeout(seconds):
                await self._say(asks=asks, leaves=leaves)
        except (PravalError, TimeoutError) as error:
            log.warning(
                "no announcement of presence: %s", str(error) or f"{seconds} s were not enough"
            )

    async def _keep_saying(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self._say_in_time()
