"""The inbox of a Reef: where replies, receipts, claims and answers to claims come in.

It also sends the notes that go to the inboxes of others.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from praval.core import receipts
from praval.core.claims import ClaimDesk
from praval.core.presence import Presence
from praval.core.receipts import Answer, Claims, Key, NoteDesk
from praval.core.topics import join
from praval.core.transport import Delivery, MessageTransport, Refuse
from praval.core.wire import Inbound
from praval.errors import MalformedSporeError

if TYPE_CHECKING:
    from praval.core.outbox import Outbox

INBOX = "@inbox-"
"""Beginning of the channel on which a Reef hears replies and notes."""
ACQUAINTANCE = 2.0
"""Seconds after its first announcement in which a Reef may not have heard of all others yet."""


class AnyInbox(Protocol):
    """An inbox, sealed or not."""

    outbox: Outbox
    """Takes receipts; set by the bridge."""
    channel: str
    topic: str

    def start(self, at_work: Mapping[Key, Inbound]) -> None:
        """See to what is ``at_work`` from time to time."""
        ...

    async def receive(self, delivery: Delivery) -> None:
        """Take a message to the inbox."""
        ...

    async def aclose(self, seconds: float) -> None:
        """Send the notes that are owed, ``seconds`` at most."""
        ...


class Inbox:
    """See the module. Used on the Reef's loop only."""

    def __init__(
        self,
        namespace: str,
        replica: str,
        transport: MessageTransport,
        presence: Presence,
        take_reply: Callable[[Delivery], None],
    ) -> None:
        self.outbox: Outbox
        """Decides about claims, and takes receipts; set by the bridge."""
        self.channel = INBOX + replica
        self.topic = join(namespace, self.channel)
        self._topics = join(namespace, INBOX)
        """Beginning of the topics of all inboxes of the namespace."""
        self._replica = replica
        self._transport = transport
        self._presence = presence
        self._take_reply = take_reply
        self._acquainted_at = math.inf
        """From when on it knows of others: before, it does not take itself for the only one."""
        self._receipts = NoteDesk(self._send_receipts, insists=True)
        self._answers = NoteDesk(self._send_answers)
        self._claims = ClaimDesk(replica, self.topic, self._send, self._is_read)

    def start(self, at_work: Mapping[Key, Inbound]) -> None:
        """Renew the claims for what is ``at_work``, from time to time."""
        self._acquainted_at = asyncio.get_running_loop().time() + ACQUAINTANCE
        self._claims.start(at_work)

    async def aclose(self, seconds: float) -> None:
        """Send the notes that are owed, ``seconds`` at most."""
        desks = (self._receipts, self._answers, self._claims)
        await asyncio.gather(*(desk.aclose(seconds) for desk in desks))

    # -- of the receiver -----------------------------------------------------------------

    def wanting_receipt(self, delivery: Delivery) -> str | None:
        """Return the topic to which receipts for a message go, if any are wanted."""
        inbox = delivery.headers.get(receipts.HEADER)
        return inbox if inbox is not None and inbox.startswith(self._topics) else None

    async def is_ours(
        self, key: Key, inbox: str, delivery: Delivery, wanted: Callable[[], bool]
    ) -> bool:
        """Whether no other replica handles it, nor has; its sender is asked if need be.

        Raises:
            GiveBack: it is not ``wanted`` any more.
        """
        others = self._presence.hosts_of(key[1]) - {self._replica}
        only_copy = delivery.attempt == 1 and receipts.RESENT not in delivery.headers
        if only_copy and not others and asyncio.get_running_loop().time() >= self._acquainted_at:
            return True
        if inbox == self.topic:
            return self.outbox.claim(*key, self._replica)
        return await self._claims.may_handle(inbox, key, wanted)

    def send_receipt(self, key: Key, inbox: str) -> None:
        """Tell the sender that an agent is done with a spore."""
        if inbox == self.topic:
            self.outbox.received(*key)
        else:
            self._receipts.owe(inbox, key)

    # -- what comes in -------------------------------------------------------------------

    async def receive(self, delivery: Delivery) -> None:
        """Take a message to the inbox: a reply, or notes.

        Raises:
            Refuse: it is neither.
        """
        kind = delivery.headers.get(receipts.KIND)
        if kind is None:
            self._take_reply(delivery)
            return
        try:
            self._read(kind, delivery)
        except MalformedSporeError as error:
            raise Refuse(str(error)) from None

    def _read(self, kind: str, body: bytes) -> None:
        if kind == receipts.RECEIPTS:
            for key in receipts.decode(body):
                self.outbox.received(*key)
        elif kind == receipts.CLAIMS:
            self._judge(receipts.decode_claims(body))
        elif kind == receipts.ANSWERS:
            for answer in receipts.decode_answers(body):
                self._claims.answered(answer)
        else:
            raise MalformedSporeError(f"There are no notes of kind {kind!r}.")

    def _judge(self, claims: Claims) -> None:
        """Take claims for what was sent from here, and answer if an answer is wanted."""
        inbox = claims.answer_to
        for spore_id, name in claims.keys:
            granted = self.outbox.claim(spore_id, name, claims.replica)
            if inbox is not None and inbox.startswith(self._topics):
                self._answers.owe(inbox, Answer(spore_id, name, granted))

    # -- what goes out -------------------------------------------------------------------

    async def _send_receipts(self, inbox: str, keys: list[Key]) -> bool:
        return await self._send(inbox, receipts.RECEIPTS, receipts.encode(keys))

    async def _send_answers(self, inbox: str, answers: list[Answer]) -> bool:
        return await self._send(inbox, receipts.ANSWERS, receipts.encode(answers))

    async def _send(self, inbox: str, kind: str, body: bytes) -> bool:
        """Send notes; return False if the broker says that nobody reads that inbox."""
        if inbox == self.topic:
            self._read(kind, body)
            return True
        headers = {receipts.KIND: kind}
        confirmation = await self._transport.publish(inbox, body, headers=headers)
        return confirmation is None or confirmation.routed is not False

    def _is_read(self, inbox: str) -> bool:
        """Whether whoever reads the inbox of this topic is at work."""
        return self._presence.is_here(inbox.removeprefix(self._topics))
