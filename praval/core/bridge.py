"""The bridge between a Reef and a transport.

Out: everything that is published goes through the :class:`~praval.core.outbox.Outbox` to the topic
of its channel or receiver. In: every agent is a group of its own at the broker, so agents of one
name share the work on all hosts, and agents of different names each get a copy. What comes in is
acknowledged when its handling has ended *and* what it emitted is safe (see ``praval.core.wire``).
Ids that were handled before are known and not handled again.

Topics, all under the namespace: ``<channel>``, ``<agent>_channel``, ``@inbox-<replica>`` (replies
and receipts), ``@presence``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING

from praval.core import presence, receipts
from praval.core.delivery import INBOUND, Outcome, Posted, Reason
from praval.core.outbox import Outbox
from praval.core.presence import Presence
from praval.core.receipts import ReceiptDesk
from praval.core.spore import CONTENT_TYPE, Header, SporeType, read_wire, wire_bytes
from praval.core.topics import join
from praval.core.transport import Delivery, GiveBack, MessageTransport, Refuse, Subscription
from praval.core.wire import Inbound
from praval.errors import (
    ConfigurationError,
    JournalError,
    MalformedSporeError,
    PravalError,
    SporeTooLargeError,
    TopicError,
    UnknownAgentError,
)
from praval.plugins import near

if TYPE_CHECKING:
    from praval.core.reef import Reef
    from praval.core.runner import AgentRunner

log = logging.getLogger("praval.bridge")

AT_ONCE = 1000
"""Messages of one agent that may be inside the Reef; the broker's prefetch is the real bound."""
INBOX_AT_ONCE = 16
SLACK = 300.0
"""Seconds that a transport keeps a spore beyond its time to live: the receiving Reef counts it."""
BREATH = 0.05
"""Seconds before an agent that is gone gives back what still comes, so as not to spin."""
REMEMBERED = 100_000
"""Ids of handled spores that are known without a journal."""
TOPICS = 4096
"""Topics that are remembered, encoded."""

PATIENCE = 7.0
"""Seconds for what is polite but not needed when the Reef closes."""

Key = tuple[str, str]
"""Spore id and agent."""


class Bridge:
    """See the module. Used on the Reef's loop only."""

    def __init__(self, reef: Reef, transport: MessageTransport, *, receipts: bool) -> None:
        """Connect a Reef and a transport that is open.

        Args:
            reef: the Reef.
            transport: open; whoever opened it closes it.
            receipts: whether a spore is done with only when its receivers say so.
        """
        self._reef = reef
        self.transport = transport
        self._wants_receipts = receipts
        config = reef.settings.reef_config
        journal = reef.journal
        self.replica = journal.replica_id if journal is not None else secrets.token_hex(16)
        self.inbox = f"@inbox-{self.replica}"
        self._inbox_topic = join(reef.namespace, self.inbox)
        self.presence = Presence(config.presence_interval)
        self.outbox = Outbox(reef, reef.books, self, config.resend_after)
        self._desk = ReceiptDesk(self._send_receipts)
        self._own: list[Subscription | str] = []
        """Subscriptions that are not an agent's."""
        self._agents: dict[str, tuple[list[str], Subscription | None]] = {}
        self._open: dict[Key, Inbound] = {}
        """What is being handled, or waits for it."""
        self._attempts: dict[Key, int] = {}
        """Attempts that earlier processes with this journal began and did not end."""
        self._handled: OrderedDict[Key, None] = OrderedDict()
        self._topics: dict[tuple[str | None, str], str] = {}
        self._announcer: asyncio.Task[None] | None = None
        self._started = False
        """Whether agents get what comes in for them: from start() to stop_intake()."""

    # -- life ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Hear the inbox, the other hosts, and what is for the agents; then say who is here."""
        transport, namespace = self.transport, self._reef.namespace
        _needs_groups(transport)
        for topic, callback, at_once in (
            (self._inbox_topic, self._post, INBOX_AT_ONCE),
            (join(namespace, "@presence"), self._hear, 1),
        ):
            handle = await transport.subscribe(topic, callback, concurrency=at_once)
            self._own.append(handle or topic)
        if self._reef.journal is not None:
            await self.outbox.recover(self._reef.journal)
        self._started = True
        for runner in self._reef.runners.values():
            await self.attach(runner)
        await self._announce(asks=True)
        self._announcer = asyncio.create_task(self._keep_announcing(), name="praval:presence")

    async def attach(self, runner: AgentRunner) -> None:
        """Let an agent hear its channels, or others than before."""
        if not self._started:
            return  # start() will, or it is too late
        topics = [join(self._reef.namespace, name) for name in dict.fromkeys(runner.channels)]
        known = self._agents.get(runner.name)
        if known is not None and known[0] == topics:
            return
        if known is None and (journal := self._reef.journal) is not None:
            for entry in await journal.unsettled(INBOUND + runner.name):
                self._attempts[entry.spore_id, runner.name] = entry.attempt
        if known is not None:
            await self.detach(runner.name)
        handle = await self.transport.subscribe(
            topics,
            functools.partial(self._receive, runner),
            group=join(self._reef.namespace, runner.name),
            concurrency=AT_ONCE,
        )
        self._agents[runner.name] = (topics, handle)
        if self._announcer is not None:
            await self._announce()

    async def detach(self, name: str) -> None:
        """Let nothing more in for an agent; what is inside may finish."""
        topics, handle = self._agents.pop(name, ([], None))
        # longer than whoever closes or removes lets handlers run: those end first, and are counted
        patience = self._reef.settings.reef_config.drain_timeout + PATIENCE
        if handle is not None:
            await self.transport.unsubscribe(handle, patience=patience)
        elif topics:
            for topic in topics:
                await self.transport.unsubscribe(topic, patience=patience)

    async def stop_intake(self) -> None:
        """Take in nothing more for any agent; returns when what is inside has ended."""
        self._started = False
        if self._announcer is not None:
            self._announcer.cancel()
            await asyncio.wait([self._announcer])
        results = await asyncio.gather(
            self._say_goodbye(),
            *(self.detach(name) for name in list(self._agents)),
            return_exceptions=True,
        )
        for error in results:
            if isinstance(error, Exception):
                log.warning("leaving the transport: %s", error)

    async def _say_goodbye(self) -> None:
        async with asyncio.timeout(PATIENCE):  # the others will miss us otherwise
            await self._announce(leaves=True)

    async def close(self) -> None:
        """Send the receipts that are owed, and hear no more. The transport is its owner's."""
        await self._desk.aclose(PATIENCE)
        for handle in self._own:
            try:
                await self.transport.unsubscribe(handle, patience=PATIENCE)
            except PravalError as error:
                log.warning("leaving the transport: %s", error)

    # -- out -----------------------------------------------------------------------------

    async def publish(self, posted: Posted, *, receipt: bool) -> bool | None:
        """Publish a spore; return whether it was routed (None: the broker does not say).

        Raises:
            TransportError: see :meth:`MessageTransport.publish`.
        """
        header = posted.header
        ttl = None
        if header.expires_at is not None:
            ttl = max(header.expires_at - self._reef.clock(), 0.0) + SLACK
        headers = {"content-type": CONTENT_TYPE}
        if receipt:
            headers[receipts.HEADER] = self._inbox_topic
        confirmation = await self.transport.publish(
            self._topic(header),
            wire_bytes(header, posted.raw),
            priority=header.priority,
            ttl=ttl,
            headers=headers,
        )
        return None if confirmation is None else confirmation.routed

    def _topic(self, header: Header) -> str:
        reply = header.spore_type is SporeType.RESPONSE
        key = (None if reply else header.to_agent, header.channel)
        topic = self._topics.get(key)
        if topic is None:
            channel = header.channel if key[0] is None else f"{key[0]}_channel"
            if channel.startswith("@") and not reply:
                raise TopicError(f"The channel {channel!r} is reserved: channels with @ are ours.")
            topic = join(self._reef.namespace, channel)
            if len(self._topics) >= TOPICS:
                self._topics.clear()
            self._topics[key] = topic
        return topic

    def expected_receivers(self, posted: Posted) -> set[str]:
        """Return the agents whose receipts end a spore; none: the broker's word does."""
        header = posted.header
        watched = posted.tree is not None and posted.tree.watch is not None
        if header.spore_type is SporeType.RESPONSE or not (self._wants_receipts or watched):
            return set()
        if header.to_agent is not None:
            return {header.to_agent}
        return self.presence.receivers(header)

    def somebody_of(self, names: set[str]) -> bool:
        """Whether one of these agents is at work somewhere."""
        return not names.isdisjoint(self.presence.names())

    def only_here(self, name: str) -> bool:
        """Whether no other host has an agent of this name, as far as is known."""
        return self.presence.hosts_of(name) <= {self.replica}

    def unknown_agent(self, name: str) -> UnknownAgentError:
        """Make the error for a receiver that no host has."""
        known = sorted({*self._reef.runners, *self.presence.names()})
        return UnknownAgentError(
            f"No agent {name!r} on any host of namespace {self._reef.namespace!r}."
            f"{near(name, known)} Known: {', '.join(known) or 'none'}."
        )

    # -- in ------------------------------------------------------------------------------

    async def _receive(self, runner: AgentRunner, delivery: Delivery) -> None:
        """Take one message for one agent; return when it may be acknowledged."""
        posted = self._read(delivery)
        if not self._is_for(runner, posted):
            return
        if runner.gone is not None:
            await asyncio.sleep(BREATH)  # the subscription is about to end
            raise GiveBack
        key = (posted.header.id, runner.name)
        inbound = self._open.get(key)
        if inbound is None:
            inbound = await self._take(key, posted, runner, delivery)
        else:  # it came again while it is at work here
            self._reef.books.count(posted, Outcome.DUPLICATE, Reason.SAME_ID)
            await inbound.ended()
        if inbound.returned:
            raise GiveBack
        self._send_receipt(delivery, key)

    async def _take(
        self, key: Key, posted: Posted, runner: AgentRunner, delivery: Delivery
    ) -> Inbound:
        """See to it that it is handled once; return when that has ended."""
        inbound = self._open[key] = Inbound()
        try:
            if await self._is_new(key, posted, delivery):
                posted.wire = inbound
                self._admit(posted, runner)
                await inbound.ended()
                if not inbound.returned:
                    self._remember(key)
            else:
                self._reef.books.count(posted, Outcome.DUPLICATE, Reason.SAME_ID)
                inbound.release()
        except JournalError as error:
            raise GiveBack from error
        finally:
            # a cancelled callback leaves it: it is at work still, and may come again
            if inbound.outcome is not None or posted.wire is None:
                del self._open[key]
        return inbound

    def _is_for(self, runner: AgentRunner, posted: Posted) -> bool:
        """Whether an agent is to handle it; if not, that is counted, and the broker's copy done.

        Raises:
            Refuse: it is somebody else's.
        """
        header, books = posted.header, self._reef.books
        if header.to_agent not in (None, runner.name):
            books.count(posted, Outcome.UNDELIVERABLE, Reason.MISROUTED)
            raise Refuse(f"addressed to {header.to_agent!r}, came in for {runner.name!r}")
        if header.to_agent is None and header.from_agent == runner.name:
            return False  # an agent never hears its own broadcast
        if not runner.responds(header):
            books.count(posted, Outcome.FILTERED, Reason.TYPE)
            return False
        return True

    def _read(self, delivery: Delivery) -> Posted:
        try:
            header, raw, _ = read_wire(delivery, self._reef.settings.security.max_message_size)
        except (MalformedSporeError, SporeTooLargeError) as error:
            self._reef.books.count_refused(Reason.MALFORMED)
            raise Refuse(str(error)) from None
        return Posted(header, raw)

    async def _is_new(self, key: Key, posted: Posted, delivery: Delivery) -> bool:
        """Whether this agent has not ended it before; sets the number of its attempt."""
        posted.attempt = delivery.attempt
        journal = self._reef.journal
        if journal is None:
            return key not in self._handled
        accepting = journal.accept(key[0], bytes(delivery), (INBOUND + key[1],))
        try:
            if await asyncio.shield(accepting):
                return True
        except asyncio.CancelledError:
            accepting.add_done_callback(functools.partial(self._left_behind, key))
            raise
        if (begun := self._attempts.pop(key, None)) is None:
            return False
        posted.attempt = begun + 1
        return True

    def _left_behind(self, key: Key, accepting: asyncio.Future[tuple[str, ...]]) -> None:
        """The journal accepted what nobody here went on with: it will come again."""
        if not accepting.cancelled() and accepting.exception() is None and accepting.result():
            self._attempts[key] = 0

    def _admit(self, posted: Posted, runner: AgentRunner) -> None:
        posted.tree = self._reef.trees.get(posted.header.root or posted.header.id)
        self._reef.books.accept(posted, 1)
        if self._reef.journal is None:
            runner.put(posted)
        else:
            runner.take_back(posted)

    def _remember(self, key: Key) -> None:
        if self._reef.journal is None:
            self._handled[key] = None
            if len(self._handled) > REMEMBERED:
                self._handled.popitem(last=False)

    def _send_receipt(self, delivery: Delivery, key: Key) -> None:
        inbox = delivery.headers.get(receipts.HEADER)
        if inbox == self._inbox_topic:
            self.outbox.received(*key)
        elif inbox is not None:
            self._desk.owe(inbox, *key)

    async def _send_receipts(self, inbox: str, body: bytes) -> None:
        await self.transport.publish(inbox, body, headers={receipts.KIND: receipts.RECEIPTS})

    def _post(self, delivery: Delivery) -> None:
        """Take a message to the inbox: replies and receipts."""
        if delivery.headers.get(receipts.KIND) != receipts.RECEIPTS:
            self._reef.requests.answered(self._read(delivery))
            return
        try:
            for spore_id, agent in receipts.decode(delivery):
                self.outbox.received(spore_id, agent)
        except MalformedSporeError as error:
            raise Refuse(str(error)) from None

    # -- presence ------------------------------------------------------------------------

    async def _hear(self, delivery: Delivery) -> None:
        try:
            said = presence.decode(delivery)
        except MalformedSporeError as error:
            raise Refuse(str(error)) from None
        if said.replica == self.replica:
            return
        self.presence.hear(said)
        if said.asks and self._started:
            await self._announce()

    async def _announce(self, *, asks: bool = False, leaves: bool = False) -> None:
        said = presence.announcement(self._reef, self.replica, asks=asks, leaves=leaves)
        self.presence.hear(said)
        ttl = self._reef.settings.reef_config.presence_interval
        topic = join(self._reef.namespace, "@presence")
        await self.transport.publish(topic, presence.encode(said), ttl=ttl)

    async def _keep_announcing(self) -> None:
        while True:
            await asyncio.sleep(self._reef.settings.reef_config.presence_interval)
            try:
                await self._announce()
            except PravalError as error:  # the transport is looking for a broker
                log.warning("no announcement of presence: %s", error)


def _needs_groups(transport: MessageTransport) -> None:
    parameters = inspect.signature(transport.subscribe).parameters
    if not {"group", "concurrency"} <= parameters.keys():
        raise ConfigurationError(
            f"{type(transport).__name__}.subscribe() has no group and concurrency, which a Reef "
            "needs: its agents share their work by groups. See MessageTransport.subscribe."
        )
