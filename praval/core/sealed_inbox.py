"""The inbox of a sealed Reef: sealed replies and receipts come in, sealed receipts go out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from praval.core.envelope import Opened
from praval.core.envelope_format import Message
from praval.core.inbox import INBOX
from praval.core.receipts import Key, NoteDesk
from praval.core.replay import Outcome
from praval.core.sealed_receipts import Settled
from praval.core.sealer import Arrival, Sealer
from praval.core.topics import join
from praval.core.transport import Delivery
from praval.core.wire import Inbound

if TYPE_CHECKING:
    from praval.core.outbox import Outbox


class SealedInbox:
    """See the module; in the place of :class:`praval.core.inbox.Inbox`."""

    def __init__(
        self,
        namespace: str,
        replica: str,
        *,
        sealer: Sealer,
        send: Callable[[Message], Awaitable[bool]],
        take_in: Callable[[Delivery], Awaitable[Arrival | Settled | None]],
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
        self._receipts: NoteDesk[Message] = NoteDesk(self._send_receipts, insists=True)

    def start(self, at_work: Mapping[Key, Inbound]) -> None:
        """See :class:`praval.core.inbox.Inbox`; leases are renewed by the bridge."""

    async def aclose(self, seconds: float) -> None:
        """Send the receipts that are owed, ``seconds`` at most."""
        await self._receipts.aclose(seconds)

    async def receive(self, delivery: Delivery) -> None:
        """Take a message to the inbox.

        Raises:
            Refuse, GiveBack: see ``take_in``.
        """
        note = await self._take_in(delivery)
        if isinstance(note, Settled):
            self.outbox.received(note.spore.hex(), note.name)
        elif note is not None:
            self._take_reply(note)

    def owe(self, arrival: Arrival, outcome: Outcome, receiver: str) -> None:
        """Tell the sender of a spore, if it wants to know, what became of it."""
        if arrival.inbox is None:
            return
        sealer, opened = self._sealer, arrival.opened
        receipt = sealer.receipt(opened, outcome, arrival.inbox, receiver)
        if arrival.inbox == self.topic and sealer.is_ours(opened):
            self._take_own(receipt, opened, receiver)
        else:
            self._receipts.owe(arrival.inbox, receipt)

    def _take_own(self, receipt: Message, opened: Opened, receiver: str) -> None:
        """Both are of this Reef: what it knows need not go over the broker."""
        own = self._sealer.keyring.get(receiver).agent_id
        if (settled := self._sealer.take_own(receipt, own)) is not None:
            self.outbox.received(settled.spore.hex(), settled.name)

    async def _send_receipts(self, inbox: str, receipts: list[Message]) -> bool:
        return all(await asyncio.gather(*map(self._send, receipts)))
