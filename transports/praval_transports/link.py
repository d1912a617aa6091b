"""A link: one live connection to one broker. It is used until it is lost, and then thrown away."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from praval.core.transport import Group
from praval.errors import TransportUnsupportedError
from praval_transports.dispatch import Listening
from praval_transports.message import Outgoing

FAREWELL = 2.0
"""Seconds that a broker has for its part of ending a connection."""


class Link(ABC):
    """One live connection. Once it is lost it stays lost.

    Whatever of it is awaited when it is lost must end with TransportConnectionError; the
    transport's time-outs are only the second line.
    """

    def __init__(self) -> None:
        self.lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        """Done when the connection is; says why."""

    def lose(self, error: Exception) -> None:
        """Note that the connection is gone. Call it whenever that is noticed, from the loop."""
        if not self.lost.done():
            self.lost.set_result(error)

    @abstractmethod
    async def send(self, message: Outgoing) -> bool | None:
        """Publish; return after the broker's confirmation whether it was routed (None: unknown)."""

    async def bury(self, message: Outgoing) -> None:
        """Publish a dead letter, so that it is kept even while nobody listens."""
        await self.send(message)

    async def blocked(self) -> bool:
        """Whether the broker has said that it takes nothing for now: its silence is no loss."""
        return False

    @abstractmethod
    async def listen(self, listening: Listening) -> None:
        """Let ``listening.receive(...)`` get the messages; return when the broker knows."""

    @abstractmethod
    async def leave(self, listening: Listening, *, drop_group: bool) -> None:
        """Let nothing more come in for it; what is being handled can still be acknowledged."""

    async def groups(self, names: Sequence[str] | None) -> list[Group]:
        """Return the durable groups that there are, of those names or all."""
        raise TransportUnsupportedError("This broker does not tell which groups there are.")

    @abstractmethod
    async def drop(self, group: str, member: str | None) -> bool | None:
        """Remove a group that nobody is subscribed to; whether there was one (None: unknown)."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect. May be called when lost, and is given ``close_timeout`` at most."""
