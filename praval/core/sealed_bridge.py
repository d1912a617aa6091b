"""The bridge of a Reef with ``security=``: only sealed spores go out, and only sealed ones come in.

What comes in is opened, then begun in the replay memory: a lease, so that a broker's redelivery is
neither an attack nor handled twice. Its end is committed before it is receipted and acknowledged.
The outbox keeps spores, not envelopes: a resend is sealed anew. Instead of announcements there are
cards (``praval.core.card_channel``), instead of claims there is the store that replicas share.

Guide: "Secure Spores Enterprise Edition".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from praval.core.auditor import Auditor
from praval.core.bridge import BREATH, SLACK, Bridge
from praval.core.card_channel import CardChannel
from praval.core.cards import KnownCard
from praval.core.delivery import Outcome, Posted, Reason
from praval.core.envelope_format import Message
from praval.core.inbox import INBOX
from praval.core.key_care import KeyCare
from praval.core.key_keeper import KeyKeeper, Security, process_name
from praval.core.leases import Leases
from praval.core.replay import Begun, Key
from praval.core.sealed_gate import Gate
from praval.core.sealed_inbox import SealedInbox
from praval.core.sealed_receipts import Settled
from praval.core.sealed_wire import SealedInbound, journal_id
from praval.core.sealer import Arrival, Sealer
from praval.core.security_events import SecurityEvent, SecurityEvents
from praval.core.spore import DEFAULT_PRIORITY, SporeType
from praval.core.topics import join
from praval.core.transport import Delivery, GiveBack, MessageTransport
from praval.errors import (
    CardError,
    EnvelopeError,
    JournalError,
    KeyringError,
    ReplayError,
    SealCode,
)

if TYPE_CHECKING:
    from praval.core.reef import Reef
    from praval.core.runner import AgentRunner

log = logging.getLogger("praval.bridge")

CONTENT_TYPE = "application/vnd.praval.psv1"

WHY = {
    SealCode.IN_FLIGHT: "somebody is at work on it",
    SealCode.REPLAY: "its id was used for other content",
    SealCode.EXPIRED: "it is older than what is remembered of its sender",
    SealCode.RATE_LIMITED: "too much of its sender is remembered",
}


class SealedBridge(Bridge):
    """See the module. Used on the Reef's loop only."""

    def __init__(self, reef: Reef, transport: MessageTransport, security: Security) -> None:
        """Connect a Reef and an open transport, which nobody needs to trust."""
        settings = reef.settings.security
        self.keeper = KeyKeeper(security)
        self.auditor: Auditor | None = None
        self.events = SecurityEvents(self._alert)
        self.sealer = Sealer(
            self.keeper.keyring, join(reef.namespace, INBOX), settings, self.events, reef.clock
        )
        self._writer = self.keeper.replay_caller(settings.lease)
        self._leases = Leases(self._writer, settings.lease / 3, self.sealer.now, self._done_with)
        super().__init__(reef, transport)
        self.care = KeyCare(self.keeper, self.sealer, self.cards, self._writer)
        self._gate = Gate(reef.books, self.keeper, self.sealer, cards=self.cards, care=self.care)
        self._receipt = reef.settings.reef_config.receipt or "receiver"  # brokers are not trusted

    def _make_announcer(self) -> CardChannel:
        reef, sealer = self._reef, self.sealer
        cards = CardChannel(
            reef,
            self.transport,
            replica=self.replica,
            keeper=self.keeper,
            sealer=sealer,
        )
        cards.believed = self._card_came
        cards.usurped = self._usurped
        self.cards = cards
        return cards

    def _make_inbox(self) -> SealedInbox:
        self._sealed_inbox = SealedInbox(
            self._reef.namespace,
            self.replica,
            sealer=self.sealer,
            send=self._send_note,
            take_in=self._open_note,
            take_reply=self._take_sealed_reply,
        )
        return self._sealed_inbox

    # -- life ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the replay memory, see to the process's own keys, hear inbox and cards.

        Raises:
            KeyringError, CardError, ReplayError: the keys cannot be used.
        """
        await self._writer.open(self.keeper.open_replay, self.keeper.close_replay)
        await self.care.check_clock()
        await self.keeper.refresh(self.sealer.now())
        self.sealer.process = process_name(self.keeper.keyring)
        if self._reef.settings.audit.enabled:
            key = self.keeper.keyring.audit_key
            self.auditor = await Auditor.open(self._reef.settings, self._reef.namespace, key)
            self.events.listeners.append(self.auditor.noticed)
        try:
            await self.cards.join_as(self.sealer.process, ())
        except KeyringError as error:
            log.warning("agents can speak, but nothing outside of them: %s", error)
        self._leases.start()
        self.care.start()
        await super().start()

    async def attach(self, runner: AgentRunner) -> None:
        """See :class:`Bridge`; first of all the agent has keys."""
        if self._is_wanted(runner):
            await self.cards.join_as(runner.name, self._topics_of(runner))
        await super().attach(runner)

    async def stop_intake(self) -> None:
        """See :class:`Bridge`."""
        self._gate.close()
        await super().stop_intake()

    async def close(self) -> None:
        """See :class:`Bridge`; at last the replay memory is closed."""
        try:
            await super().close()
        finally:
            await self.care.aclose()
            await self._leases.aclose()
            await self._writer.aclose()
            if self.auditor is not None:
                await self.auditor.aclose()

    # -- out -----------------------------------------------------------------------------

    async def publish(self, posted: Posted, *, receipt: bool, resent: bool) -> bool | None:
        """Seal a spore with the keys of now, and publish it; see :class:`Bridge`.

        Raises:
            CardError: its receiver has no card that is good now; it may come.
            EnvelopeError, KeyringError, KnowledgeError: it cannot be sealed.
            TransportError: see :meth:`MessageTransport.publish`.
        """
        header = posted.header
        # also where no receipt is awaited now: sealed again later, it must have the same content
        inbox = None if header.spore_type is SporeType.RESPONSE else self.inbox.topic
        message = self.sealer.message(header, posted.raw, self._topic(header), inbox)
        await self.keeper.ready()
        try:
            done = self.sealer.seal(message, awaited=receipt)
        except CardError as error:
            if error.code is SealCode.REVOKED:
                raise EnvelopeError(str(error), error.code) from None
            self.cards.want(name=message.to_name)
            raise
        self._audit("sent", message)
        if not resent:
            for name in done.missed:
                self._count_missed(posted, name)
        # what is of one key must not overtake on its way; its receiver sees its priority
        priority = header.priority if header.key is None else DEFAULT_PRIORITY
        return await self._send(message, done.envelopes, priority)

    def _count_missed(self, posted: Posted, name: str) -> None:
        error = CardError(f"The card of {name!r} has expired.", SealCode.STALE_CARD)
        again = Posted(posted.header, posted.raw)
        self._reef.books.count(again, Outcome.UNDELIVERABLE, Reason.NO_CARD, error)

    async def _send(self, message: Message, envelopes: list[bytes], priority: int) -> bool | None:
        ttl = max(message.expires - self.sealer.now(), 0) / 1000 + SLACK
        routed: bool | None = False
        for envelope in envelopes:
            confirmation = await self.transport.publish(
                message.topic,
                envelope,
                priority=priority,
                ttl=ttl,
                headers={"content-type": CONTENT_TYPE},
            )
            if routed is False:
                routed = None if confirmation is None else confirmation.routed
        return routed

    async def _send_note(self, message: Message) -> bool:
        """Seal a receipt and publish it; return False if the broker says that nobody reads it."""
        await self.keeper.ready()
        done = self.sealer.seal(message, awaited=False)
        return await self._send(message, done.envelopes, DEFAULT_PRIORITY) is not False

    # -- in ------------------------------------------------------------------------------

    async def _receive(self, runner: AgentRunner, delivery: Delivery) -> None:
        """See :class:`Bridge`."""
        attached = self._agents.get(runner)
        filters = attached[0] if attached is not None else self._topics_of(runner)
        arrival = await self._gate.open(
            delivery, lambda: self.sealer.open(runner.name, delivery, filters), runner.name
        )
        if arrival is None:
            return
        posted = arrival.posted(delivery.attempt)
        if not self._is_for(runner, posted):
            self._sealed_inbox.owe(arrival, "handled", runner.name)  # nothing is left to be done
            return
        await self._until_admitted(runner)
        key = Key(runner.name, arrival.opened.sender, arrival.opened.message.id)
        try:
            inbound = await self._begin(key, arrival, posted, runner, delivery)
            if inbound is None:
                return
            await self._until_over(inbound)
        except (JournalError, ReplayError) as error:
            log.warning("spore %s stays unacknowledged: %s", posted.header.id, error)
            await self._gate.pause(BREATH)
            raise GiveBack from error
        if inbound.returned:
            if runner.gone is None:  # its handler has cancelled its own task
                self._attempts[journal_id(key), runner.name] = posted.attempt
            raise GiveBack
        self._sealed_inbox.owe(arrival, inbound.committed, runner.name)

    async def _until_over(self, inbound: SealedInbound) -> None:
        try:
            await inbound.ended()
        except asyncio.CancelledError:
            if inbound.outcome is not None and not inbound.is_over:
                inbound.give_up()  # what it emitted is not safe: it is to be handled again
            raise  # a handler that is at work goes on, and what it does is committed

    async def _begin(
        self, key: Key, arrival: Arrival, posted: Posted, runner: AgentRunner, delivery: Delivery
    ) -> SealedInbound | None:
        """See to it that a spore is handled once; None: its message is done with.

        Raises:
            Refuse, GiveBack: what is to become of the message.
            JournalError, ReplayError: it could not be written down.
        """
        name = runner.name
        while True:
            at_work = self._leases.at_work.get(key)
            if at_work is not None and at_work.arrival.content == arrival.content:
                self._reef.books.count(posted, Outcome.DUPLICATE, Reason.SAME_ID)
                return at_work
            begun = await self._leases.begin(key, arrival)
            if begun.code is None:
                self._audit("received", arrival.opened.message, name)
                return await self._take_in(key, arrival, posted, runner, begun)
            if begun.code is SealCode.DUPLICATE:
                self._reef.books.count(posted, Outcome.DUPLICATE, Reason.SAME_ID)
                self._sealed_inbox.owe(arrival, begun.outcome or "handled", name)
                return None
            error = EnvelopeError(
                f"Spore {posted.header.id} of {arrival.opened.message.from_name!r} is not begun: "
                f"{WHY[begun.code]}.",
                begun.code,
                arrival.opened.message.from_name,
            )
            await self._gate.refuse(delivery, error, name)
            if not self._is_wanted(runner):
                raise GiveBack

    async def _take_in(
        self, key: Key, arrival: Arrival, posted: Posted, runner: AgentRunner, begun: Begun
    ) -> SealedInbound:
        inbound = self._leases.hold(key, arrival, begun.fence)
        # the broker counts deliveries, the memory leases: what both have seen was begun and died
        posted.attempt = min(posted.attempt, begun.attempt)
        try:
            fresh = await self._is_new((journal_id(key), runner.name), posted)
        except BaseException:
            inbound.give_up()
            raise
        if fresh:
            posted.wire = inbound
            self._admit(posted, runner)
        else:
            self._reef.books.count(posted, Outcome.DUPLICATE, Reason.SAME_ID)
            inbound.release()
        return inbound

    # -- the inbox -----------------------------------------------------------------------

    async def _open_note(self, delivery: Delivery) -> Arrival | list[Settled] | None:
        def open_it() -> Arrival | list[Settled]:
            note = self.sealer.open_note(delivery, self.inbox.topic)
            if isinstance(note, Arrival):
                self.sealer.check_reply(note, self._reef.requests.asked(note.header.correlation_id))
            return note

        return await self._gate.open(delivery, open_it, None)

    def _take_sealed_reply(self, arrival: Arrival) -> None:
        self._reef.requests.answered(arrival.posted(1))

    # -- keys and alarms -----------------------------------------------------------------

    def _card_came(self, known: KnownCard) -> None:
        self.outbox.reachable(known.name)

    def _usurped(self, name: str, error: ReplayError) -> None:
        """Another store speaks for one of our names: two would answer for it, so this one stops."""
        at = self._reef.clock()
        self.events.report(SecurityEvent(error.code, at, str(error), receiver=name, grave=True))
        runner = self._reef.runners.get(name)
        if runner is not None and runner in self._agents:
            leaving = self._reef.loop.create_task(self._leave(runner))
            leaving.add_done_callback(_seen)

    def _done_with(self, inbound: SealedInbound) -> None:
        self._audit(inbound.committed, inbound.arrival.opened.message, inbound.key.receiver)

    def _audit(self, what: str, message: Message, agent: str | None = None) -> None:
        if self.auditor is not None:
            self.auditor.message(what, message, agent=agent)

    def _alert(self, knowledge: Mapping[str, Any]) -> None:
        if self._reef.settings.monitoring.security_alerts:
            self._reef.publisher.report("security_alert", knowledge, None)

    def security(self) -> dict[str, Any]:
        """Return counts: refusals by code, receipts by what they said."""
        return {
            "process": self.sealer.process,
            "refused": dict(self.events.counts),
            "receipts": dict(self.sealer.told),
            "stopped": None if self.care.stopped is None else str(self.care.stopped),
        }


def _seen(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("leaving the transport: %s", error)
