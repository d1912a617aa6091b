"""The inbox of a sealed Reef: sealed replies and receipts come in, sealed receipts go out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from praval.core.envelope_format import Message
from praval.core.inbox import INBOX
from praval.core.receipts import Key, NoteDesk
from praval.core.replay import Outcome
from praval.core.sealed_receipts import Settled, Told, tell
from praval.core.sealer import Arrival, Sealer
from praval.core.topics import join
from praval.core.transport import Delivery
from praval.core.wire import Inbound

if TYPE_CHECKING:
    from praval.core.outbox import Outbox


LINGER = 0.005
"""Seconds for which receipts are gathered: one envelope tells of many spores."""


class Owed(NamedTuple):
    """What a receiver has to tell a sender of one spore."""

    receiver: str
    sender: str
    told: Told


class SealedInbox:
    """See the module; in the place of :class:`praval.core.inbox.Inbox`."""

    def __init__(
        self,
        namespace: str,
        replica: str,
        *,
        sealer: Sealer,
        send: Callable[[Message], Awaitable[bool]],
        take_in: Callable[[Delivery], Awaitable[Arrival | list[Settled] | None]],
        take_reply: Callable[[Arrival], None],
    ) -> None:
        """Make one.

        Args:
            namespace: of the Reef.
            replica: whose inbox it is.
            sealer: seals and opens.
            send: seals a message and publishes it; returns whether anybody reads it.
            take_in: opens what came in; raises Refuse or GiveBack.
            take_reply: what to do with a reply.
        """
        self.outbox: Outbox
        """Takes receipts; set by the bridge."""
        self.channel = INBOX + replica
        self.topic = join(namespace, self.channel)
        self._sealer = sealer
        self._send = send
        self._take_in = take_in
        self._take_reply = take_reply
        self._receipts: NoteDesk[Owed] = NoteDesk(self._send_receipts, insists=True)
        self._gathered: list[tuple[str, Owed]] = []
        """Inboxes, and what is to be told there in a moment."""

    def start(self, at_work: Mapping[Key, Inbound]) -> None:
        """See :class:`praval.core.inbox.Inbox`; leases are renewed by the bridge."""

    async def aclose(self, seconds: float) -> None:
        """Send the receipts that are owed, ``seconds`` at most."""
        self._flush()
        await self._receipts.aclose(seconds)

    async def receive(self, delivery: Delivery) -> None:
        """Take a message to the inbox.

        Raises:
            Refuse, GiveBack: see ``take_in``.
        """
        note = await self._take_in(delivery)
        if isinstance(note, Arrival):
            self._take_reply(note)
        else:
            self._settle(note or ())

    def owe(self, arrival: Arrival, outcome: Outcome, receiver: str) -> None:
        """Tell the sender of a spore, if it wants to know, what became of it."""
        if arrival.inbox is None:
            return
        sealer, opened = self._sealer, arrival.opened
        told = tell(opened.message.id, arrival.content, outcome)
        owed = Owed(receiver, opened.message.from_name, told)
        if arrival.inbox == self.topic and sealer.is_ours(opened):
            # both are of this Reef: what it knows need not go over the broker
            receipt = sealer.receipt([owed.told], owed.sender, self.topic, receiver)
            self._settle(sealer.take_own(receipt, sealer.keyring.get(receiver).agent_id))
        else:
            if not self._gathered:
                asyncio.get_running_loop().call_later(LINGER, self._flush)
            self._gathered.append((arrival.inbox, owed))

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, []
        for inbox, owed in gathered:
            self._receipts.owe(inbox, owed)

    def _settle(self, news: Sequence[Settled]) -> None:
        for settled in news:
            self.outbox.received(settled.spore, settled.name)

    async def _send_receipts(self, inbox: str, owed: list[Owed]) -> bool:
        """Send one receipt from each receiver to each sender; whether somebody reads all."""
        by_pair: dict[tuple[str, str], list[Told]] = {}
        for receiver, sender, told in owed:
            by_pair.setdefault((receiver, sender), []).append(told)
        sendings = [
            self._send(self._sealer.receipt(told, sender, inbox, receiver))
            for (receiver, sender), told in by_pair.items()
        ]
        return all(await asyncio.gather(*sendings))
