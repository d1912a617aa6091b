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
from collections import OrderedDict, defaultdict
from typing import TYPE_CHECKING

from praval.core import presence, receipts
from praval.core.delivery import INBOUND, Outcome, Posted, Reason
from praval.core.outbox import Outbox
from praval.core.presence import Presence
from praval.core.receipts import ReceiptDesk
from praval.core.spore import (
    CONTENT_TYPE,
    DEFAULT_PRIORITY,
    HEADER_ROOM,
    Header,
    SporeType,
    read_wire,
    wire_bytes,
)
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
INBOX = "@inbox-"
"""Beginning of the channel on which a Reef hears replies and receipts."""
INBOX_AT_ONCE = 16
SLACK = 300.0
"""Seconds that a transport keeps a spore beyond its time to live: the receiving Reef counts it."""
BREATH = 0.05
"""Seconds before what cannot be taken now is given back, so as not to spin."""
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
        self._max_size = reef.settings.security.max_message_size
        config = reef.settings.reef_config
        journal = reef.journal
        self.replica = journal.replica_id if journal is not None else secrets.token_hex(16)
        self.inbox = INBOX + self.replica
        self._inbox_topic = join(reef.namespace, self.inbox)
        self._inbox_topics = join(reef.namespace, INBOX)
        """Beginning of the topics of all inboxes of the namespace."""
        self.presence = Presence(config.presence_interval)
        self.outbox = Outbox(reef, reef.books, self, config.resend_after)
        self._desk = ReceiptDesk(self._send_receipts)
        self._own: list[Subscription | str] = []
        """Subscriptions that are not an agent's."""
        self._agents: dict[AgentRunner, tuple[list[str], Subscription | None]] = {}
        self._moving: defaultdict[AgentRunner, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Held while an agent comes, or goes from one channel to another."""
        self._open: dict[Key, Inbound] = {}
        """What is being handled, or waits for it."""
        self._attempts: dict[Key, int] = {}
        """Attempts that were begun and did not end, in earlier processes with this journal too."""
        self._handled: OrderedDict[Key, None] = OrderedDict()
        self._topics: dict[tuple[str | None, str], str] = {}
        self._said: set[presence.AgentCard] = set()
        """What the last announcement told of our agents."""
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
        await self._announce_in_time(asks=True)
        self._announcer = asyncio.create_task(self._keep_announcing(), name="praval:presence")

    async def attach(self, runner: AgentRunner) -> None:
        """Let an agent hear its channels, or others than before; tell the others of it."""
        async with self._moving[runner]:
            topics = [join(self._reef.namespace, name) for name in dict.fromkeys(runner.channels)]
            known = self._agents.get(runner)
            if known is None:
                await self._recall(runner.name)
            if self._is_wanted(runner) and (known is None or known[0] != topics):
                await self._leave(runner)
                handle = await self.transport.subscribe(
                    topics,
                    functools.partial(self._receive, runner),
                    group=join(self._reef.namespace, runner.name),
                    concurrency=AT_ONCE,
                )
                self._agents[runner] = (topics, handle)
            if not self._is_wanted(runner):  # any more
                await self._leave(runner)
        await self._announce_changes()

    def _is_wanted(self, runner: AgentRunner) -> bool:
        """Whether an agent is to be subscribed. Before start() that is too early."""
        return self._started and runner.gone is None

    async def dismiss(self, runner: AgentRunner) -> None:
        """Let nothing more in for an agent that is removed; what is inside may finish."""
        await self._announce_changes()
        await self._leave(runner)
        self._moving.pop(runner, None)

    async def _leave(self, runner: AgentRunner) -> None:
        topics, handle = self._agents.pop(runner, ([], None))
        # longer than whoever closes or removes lets handlers run: those end first, and are counted
        patience = self._reef.settings.reef_config.drain_timeout + PATIENCE
        if handle is not None:
            await self.transport.unsubscribe(handle, patience=patience)
        elif topics:
            for topic in topics:
                await self.transport.unsubscribe(topic, patience=patience)

    async def _recall(self, name: str) -> None:
        """Read from the journal what an earlier process took in for an agent and did not end."""
        journal = self._reef.journal
        if journal is None:
            return
        oldest = self._reef.clock() - SLACK
        for entry in await journal.unsettled(INBOUND + name):
            expires_at = read_wire(entry.body, len(entry.body))[0].expires_at
            if expires_at is None or expires_at > oldest:
                self._attempts[entry.spore_id, name] = entry.attempt
            else:  # the broker has given it to another replica, or forgotten it, since
                journal.settle(entry.spore_id, entry.agent, Outcome.EXPIRED.name.lower())

    async def stop_intake(self) -> None:
        """Take in nothing more for any agent; returns when what is inside has ended."""
        self._started = False
        if self._announcer is not None:
            self._announcer.cancel()
            await asyncio.wait([self._announcer])
        results = await asyncio.gather(
            self._announce_in_time(leaves=True),  # the others will miss us otherwise
            *map(self._leave, list(self._agents)),
            return_exceptions=True,
        )
        for error in results:
            if isinstance(error, Exception):
                log.warning("leaving the transport: %s", error)

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
        body = wire_bytes(header, posted.raw)
        if len(body) > self._max_size + HEADER_ROOM:
            raise SporeTooLargeError(
                f"Spore {header.id} takes {len(body)} bytes with its headers, which no host would "
                f"read: {HEADER_ROOM} are for all but the knowledge."
            )
        ttl = None
        if header.expires_at is not None:
            ttl = max(header.expires_at - self._reef.clock(), 0.0) + SLACK
        headers = {"content-type": CONTENT_TYPE}
        if receipt:
            headers[receipts.HEADER] = self._inbox_topic
        confirmation = await self.transport.publish(
            self._topic(header),
            body,
            # what is of one key must not overtake on its way; its receiver sees its priority
            priority=header.priority if header.key is None else DEFAULT_PRIORITY,
            ttl=ttl,
            headers=headers,
        )
        return None if confirmation is None else confirmation.routed

    def _topic(self, header: Header) -> str:
        reply = header.spore_type is SporeType.RESPONSE
        to_agent = None if reply else header.to_agent
        if to_agent is None and header.channel.startswith("@" if not reply else INBOX) != reply:
            raise TopicError(
                f"The channel {header.channel!r} is no inbox, to which alone replies go."
                if reply
                else f"The channel {header.channel!r} is reserved: channels with @ are ours."
            )
        key = (to_agent, header.channel)
        topic = self._topics.get(key)
        if topic is None:
            channel = header.channel if to_agent is None else f"{to_agent}_channel"
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

    def awaited(self, header: Header) -> bool:
        """Whether somebody is there whom the broker should know: it will, once he is back."""
        if header.spore_type is SporeType.RESPONSE:
            return self.presence.is_here(header.channel.removeprefix(INBOX))
        return bool(self.presence.receivers(header))

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
        try:
            if inbound is None:
                inbound = await self._take(key, posted, runner)
            else:  # it came again while it is at work here
                self._reef.books.count(posted, Outcome.DUPLICATE, Reason.SAME_ID)
                await inbound.ended()
        except JournalError as error:
            await asyncio.sleep(BREATH)
            raise GiveBack from error
        self._close(key, inbound)
        if inbound.returned:
            if runner.gone is None:  # its handler has cancelled its own task
                self._attempts[key] = posted.attempt
            raise GiveBack
        self._send_receipt(delivery, key)

    async def _take(self, key: Key, posted: Posted, runner: AgentRunner) -> Inbound:
        """See to it that it is handled once; return when that has ended.

        Raises:
            JournalError: its beginning or its end could not be written down.
        """
        inbound = self._open[key] = Inbound()
        try:
            if await self._is_new(key, posted):
                posted.wire = inbound
                self._admit(posted, runner)
                await inbound.ended()
            else:
                self._reef.books.count(posted, Outcome.DUPLICATE, Reason.SAME_ID)
                inbound.release()
        finally:
            if posted.wire is None or inbound.outcome is not None:
                self._open.pop(key, None)
                inbound.leave_off()
            # else the callback was cancelled: it is at work still, and may come again
        return inbound

    def _close(self, key: Key, inbound: Inbound) -> None:
        """It has ended, which is told by whoever waited for it."""
        if self._open.get(key) is inbound:
            del self._open[key]
        if self._reef.journal is None and not inbound.returned:
            self._handled[key] = None
            if len(self._handled) > REMEMBERED:
                self._handled.popitem(last=False)

    def _is_for(self, runner: AgentRunner, posted: Posted) -> bool:
        """Whether it concerns an agent; if not, that is counted, and the broker's copy done.

        Raises:
            Refuse: it is somebody else's.
        """
        header, books = posted.header, self._reef.books
        if header.to_agent not in (None, runner.name):
            books.count(posted, Outcome.UNDELIVERABLE, Reason.MISROUTED)
            raise Refuse(f"addressed to {header.to_agent!r}, came in for {runner.name!r}")
        if header.to_agent is None and header.from_agent == runner.name:
            return False  # an agent never hears its own broadcast
        if header.to_agent is None and not runner.responds(header):
            books.count(posted, Outcome.FILTERED, Reason.TYPE)
            return False
        return True

    def _read(self, delivery: Delivery) -> Posted:
        try:
            header, raw, _ = read_wire(delivery, self._max_size)
        except (MalformedSporeError, SporeTooLargeError) as error:
            self._reef.books.count_refused(Reason.MALFORMED)
            raise Refuse(str(error)) from None
        return Posted(header, raw, attempt=delivery.attempt)

    async def _is_new(self, key: Key, posted: Posted) -> bool:
        """Whether this agent has not ended it before; sets the number of its attempt."""
        journal = self._reef.journal
        if journal is None:
            fresh = key not in self._handled
        else:
            body = wire_bytes(posted.header, posted.raw)
            accepting = journal.accept(key[0], body, (INBOUND + key[1],))
            try:
                fresh = bool(await asyncio.shield(accepting))
            except asyncio.CancelledError:
                accepting.add_done_callback(functools.partial(self._left_behind, key))
                raise
        if (begun := self._attempts.pop(key, None)) is None:
            return fresh
        posted.attempt = begun + 1
        return True

    def _left_behind(self, key: Key, accepting: asyncio.Future[tuple[str, ...]]) -> None:
        """The journal accepted what nobody here went on with: it will come again."""
        if not accepting.cancelled() and accepting.exception() is None and accepting.result():
            self._attempts[key] = 0

    def _admit(self, posted: Posted, runner: AgentRunner) -> None:
        posted.tree = self._reef.trees.get(posted.header.root or posted.header.id)
        self._reef.books.accept(posted, 1)
        if not runner.responds(posted.header):  # whoever asks it is told so
            runner.lose(None, posted, Outcome.FILTERED, Reason.TYPE)
        else:
            runner.take_back(posted)

    def _send_receipt(self, delivery: Delivery, key: Key) -> None:
        inbox = delivery.headers.get(receipts.HEADER)
        if inbox == self._inbox_topic:
            self.outbox.received(*key)
        elif inbox is not None and inbox.startswith(self._inbox_topics):
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
            await self._announce_in_time()

    async def _announce(self, *, asks: bool = False, leaves: bool = False) -> None:
        said = presence.announcement(self._reef, self.replica, asks=asks, leaves=leaves)
        self._said = set(said.agents)
        self.presence.hear(said)
        ttl = self._reef.settings.reef_config.presence_interval
        topic = join(self._reef.namespace, "@presence")
        await self.transport.publish(topic, presence.encode(said), ttl=ttl)

    async def _announce_in_time(self, *, asks: bool = False, leaves: bool = False) -> None:
        """Announce; if there is no broker for now, the next round will do better."""
        try:
            async with asyncio.timeout(PATIENCE):
                await self._announce(asks=asks, leaves=leaves)
        except (PravalError, TimeoutError) as error:
            log.warning(
                "no announcement of presence: %s", str(error) or f"{PATIENCE} s were not enough"
            )

    async def _announce_changes(self) -> None:
        announces = self._announcer is not None and not self._announcer.done()
        if announces and set(map(presence.card_of, self._reef.runners.values())) != self._said:
            await self._announce_in_time()

    async def _keep_announcing(self) -> None:
        while True:
            await asyncio.sleep(self._reef.settings.reef_config.presence_interval)
            await self._announce_in_time()


def _needs_groups(transport: MessageTransport) -> None:
    parameters = inspect.signature(transport.subscribe).parameters
    if not {"group", "concurrency"} <= parameters.keys():
        raise ConfigurationError(
            f"{type(transport).__name__}.subscribe() has no group and concurrency, which a Reef "
            "needs: its agents share their work by groups. See MessageTransport.subscribe."
        )
