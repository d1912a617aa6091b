"""The bridge between a Reef and a transport.

Out: everything that is published goes through the :class:`~praval.core.outbox.Outbox` to the topic
of its channel or receiver. In: every agent is a group of its own at the broker, so agents of one
name share the work on all hosts, and agents of different names each get a copy. What comes in is
acknowledged when its handling has ended *and* what it emitted is safe (see ``praval.core.wire``).
Ids that were handled before are known and not handled again; what another replica may have got
as well is claimed from its sender first (see ``praval.core.receipts``).

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
from typing import TYPE_CHECKING, Any

from praval.core import receipts
from praval.core.announcer import Announcer
from praval.core.delivery import INBOUND, Outcome, Posted, Reason
from praval.core.inbox import INBOX, AnyInbox, Inbox
from praval.core.outbox import Outbox
from praval.core.receipts import Key
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
    SporeTooLargeError,
    TopicError,
    UnknownAgentError,
)
from praval.plugins import near

if TYPE_CHECKING:
    from praval.core.card_channel import CardChannel
    from praval.core.presence import Presence
    from praval.core.reef import Reef
    from praval.core.runner import AgentRunner

log = logging.getLogger("praval.bridge")

AT_ONCE = 1000
"""Messages of one agent that may be inside the Reef; the broker's prefetch is the real bound."""
INBOX_AT_ONCE = 16
SLACK = 300.0
"""Seconds that a transport keeps a spore beyond its time to live: the receiving Reef counts it."""
BREATH = 0.05
"""Seconds before what cannot be taken now is given back, so as not to spin."""
REMEMBERED = 100_000
"""Ids of handled spores that are known without a journal."""
TOPICS = 4096
"""Topics that are remembered, encoded."""

PATIENCE = 3.0
"""Seconds for what is polite but not needed when the Reef closes."""


class Bridge:
    """See the module. Used on the Reef's loop only."""

    def __init__(self, reef: Reef, transport: MessageTransport) -> None:
        """Connect a Reef and a transport that is open; whoever opened it closes it."""
        self._reef = reef
        self.transport = transport
        able = transport.capabilities
        self._receipt = reef.settings.reef_config.receipt
        if self._receipt is None and not (able.takes_over and able.survives_broker_kill):
            self._receipt = "receiver"
        self._max_size = reef.settings.security.max_message_size
        journal = reef.journal
        self.replica = journal.replica_id if journal is not None else secrets.token_hex(16)
        self._announcer: Announcer | CardChannel = self._make_announcer()
        self.presence: Presence = self._announcer.presence
        self.inbox: AnyInbox = self._make_inbox()
        self.outbox = self.inbox.outbox = Outbox(reef, reef.books, self)
        self._own: list[Subscription | str] = []
        """Subscriptions that are not an agent's."""
        self._agents: dict[AgentRunner, tuple[list[str], Subscription | None]] = {}
        self._moving: defaultdict[AgentRunner, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Held while an agent comes, or goes from one channel to another."""
        self._open: dict[Key, Inbound] = {}
        """What is being handled, or waits for it."""
        self._following: set[asyncio.Task[None]] = set()
        """They wait for the ends of handlings that were cut off from the broker."""
        self._attempts: dict[Key, int] = {}
        """Attempts that were begun and did not end, in earlier processes with this journal too."""
        self._handled: OrderedDict[Key, None] = OrderedDict()
        self._topics: dict[tuple[str | None, str], str] = {}
        self._attached = False
        """Whether agents are subscribed: from start() to stop_intake()."""
        self._gates: dict[AgentRunner, asyncio.Event] = {}
        """Closed until the start hooks of an agent have run: it is not called before."""

    def _make_announcer(self) -> Announcer | CardChannel:
        return Announcer(self._reef, self.transport, self.replica)

    def _make_inbox(self) -> AnyInbox:
        self._notes = Inbox(
            self._reef.namespace, self.replica, self.transport, self.presence, self._take_reply
        )
        return self._notes

    # -- life ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Hear the inbox and the other hosts."""
        transport = self.transport
        _needs_groups(transport)
        for topic, callback, at_once in (
            (self.inbox.topic, self.inbox.receive, INBOX_AT_ONCE),
            (self._announcer.topic, self._announcer.hear, 1),
        ):
            handle = await transport.subscribe(topic, callback, concurrency=at_once)
            self._own.append(handle or topic)

    async def attach_all(self) -> None:
        """Let the agents be sent to, and go on with what an earlier process had to send.

        What comes in for each of them waits for :meth:`admit`.
        """
        self._attached = True
        for runner in self._reef.runners.values():
            await self.attach(runner)
        if self._reef.journal is not None:
            await self.outbox.recover(self._reef.journal)

    async def announce(self) -> None:
        """Say who is here."""
        self.inbox.start(self._open)
        await self._announcer.start()

    def admit(self, runner: AgentRunner) -> None:
        """Let an agent handle what comes in for it: it has started."""
        if (gate := self._gates.pop(runner, None)) is not None:
            gate.set()

    def is_starting(self, name: str) -> bool:
        """Whether what comes in here for an agent waits for its start hooks."""
        return any(runner.name == name for runner in self._gates)

    async def attach(self, runner: AgentRunner) -> None:
        """Let an agent hear its channels, or others than before; tell the others of it."""
        async with self._moving[runner]:
            topics = self._topics_of(runner)
            known = self._agents.get(runner)
            if known is None:
                await self._recall(runner.name)
            if self._is_wanted(runner) and (known is None or known[0] != topics):
                await self._leave(runner)
                if known is None:
                    self._gates[runner] = asyncio.Event()
                handle = await self.transport.subscribe(
                    topics,
                    functools.partial(self._receive, runner),
                    group=join(self._reef.namespace, runner.name),
                    concurrency=AT_ONCE,
                )
                self._agents[runner] = (topics, handle)
            if not self._is_wanted(runner):  # any more
                await self._leave(runner)
        await self._announcer.changed()

    def _topics_of(self, runner: AgentRunner) -> list[str]:
        return [join(self._reef.namespace, name) for name in dict.fromkeys(runner.channels)]

    def _is_wanted(self, runner: AgentRunner) -> bool:
        """Whether an agent is to be subscribed. Before attach_all() that is too early."""
        return self._attached and runner.gone is None

    async def dismiss(self, runner: AgentRunner) -> None:
        """Let nothing more in for an agent that is removed; what is inside may finish."""
        self.admit(runner)  # what waits for its start is given back
        await self._announcer.changed()
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
        self._attached = False
        for runner in list(self._gates):
            self.admit(runner)  # what waits for it is given back
        results = await asyncio.gather(
            self._announcer.leave(),
            *map(self._leave, list(self._agents)),
            return_exceptions=True,
        )
        for error in results:
            if isinstance(error, Exception):
                log.warning("leaving the transport: %s", error)

    async def close(self) -> None:
        """Send the notes that are owed, and hear no more. The transport is its owner's."""
        for task in self._following:
            task.cancel()
        await self.inbox.aclose(PATIENCE)
        ending = [self.transport.unsubscribe(each, patience=PATIENCE) for each in self._own]
        for error in await asyncio.gather(*ending, return_exceptions=True):
            if isinstance(error, Exception):
                log.warning("leaving the transport: %s", error)

    # -- out -----------------------------------------------------------------------------

    async def publish(self, posted: Posted, *, receipt: bool, resent: bool) -> bool | None:
        """Publish a spore; return whether it was routed (None: the broker does not say).

        Args:
            posted: the spore.
            receipt: whether its receivers are to send receipts.
            resent: whether a copy of it may be on its way already.

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
            headers[receipts.HEADER] = self.inbox.topic
        if resent:
            headers[receipts.RESENT] = "1"
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

    def expected_receivers(self, posted: Posted) -> frozenset[str]:
        """Return the agents whose receipts end a spore; none: the broker's word does."""
        header = posted.header
        if header.spore_type is SporeType.RESPONSE:
            return frozenset()
        watched = posted.tree is not None and posted.tree.watch is not None
        if self._receipt == "broker" and not watched:
            return frozenset()
        if header.to_agent is not None:
            names = frozenset((header.to_agent,))
        else:
            names = self.presence.receivers(header)
        if self._receipt == "receiver" or watched:
            return names
        return frozenset(name for name in names if len(self.presence.hosts_of(name)) > 1)

    def awaited(self, header: Header) -> bool:
        """Whether somebody is there whom the broker should know: it will, once he is back."""
        if header.spore_type is SporeType.RESPONSE:
            return self.presence.is_here(header.channel.removeprefix(INBOX))
        return bool(self.presence.receivers(header))

    def is_present(self, name: str) -> bool:
        """Whether an agent is at work somewhere."""
        return bool(self.presence.hosts_of(name))

    def security(self) -> dict[str, Any] | None:
        """Return what was refused and receipted; None: nothing is sealed here."""
        return None

    def only_here(self, name: str) -> bool:
        """Whether no other host has an agent of this name, as far as is known."""
        return self.presence.hosts_of(name) <= {self.replica}

    def unknown_agent(self, name: str) -> UnknownAgentError:
        """Make the error for a receiver that no host has."""
        known = sorted({*self._reef.runners, *self.presence.names()} - {name})
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
        await self._until_admitted(runner)
        key = (posted.header.id, runner.name)
        inbound = self._open.get(key)
        try:
            if inbound is None:
                inbound = await self._take(key, posted, runner, delivery)
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
        if not inbound.refused and (inbox := self._notes.wanting_receipt(delivery)) is not None:
            self._notes.send_receipt(key, inbox)

    async def _until_admitted(self, runner: AgentRunner) -> None:
        """Wait until an agent may be called.

        Raises:
            GiveBack: it is to be called no more.
        """
        if (gate := self._gates.get(runner)) is not None:
            await gate.wait()
        if not self._is_wanted(runner):
            await asyncio.sleep(BREATH)  # the subscription is about to end
            raise GiveBack

    async def _take(
        self, key: Key, posted: Posted, runner: AgentRunner, delivery: Delivery
    ) -> Inbound:
        """See to it that it is handled once; return when that has ended.

        Raises:
            GiveBack: its agent left before it began.
            JournalError: its beginning or its end could not be written down.
        """
        inbox = self._notes.wanting_receipt(delivery)
        inbound = self._open[key] = Inbound(inbox, self._reef.loop.time())
        wanted = functools.partial(self._is_wanted, runner)
        try:
            if inbox is not None and not await self._notes.is_ours(key, inbox, delivery, wanted):
                self._reef.books.count(posted, Outcome.DUPLICATE, Reason.ELSEWHERE)
                inbound.refused = True
                inbound.release()
            elif await self._is_new(key, posted):
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
            else:  # the callback was cancelled: it is at work still, and may come again
                following = self._reef.loop.create_task(self._follow(key, inbound))
                self._following.add(following)
                following.add_done_callback(self._following.discard)
        return inbound

    async def _follow(self, key: Key, inbound: Inbound) -> None:
        """See to the end of what no callback waits for: whoever got it back is not to repeat it."""
        try:
            await inbound.ended()
        except JournalError:
            self._open.pop(key, None)  # it is to be handled again
            return
        self._close(key, inbound)
        if inbound.inbox is not None and not inbound.returned and not inbound.refused:
            self._notes.send_receipt(key, inbound.inbox)

    def _close(self, key: Key, inbound: Inbound) -> None:
        """It has ended, which is told by whoever waited for it."""
        if self._open.get(key) is inbound:
            del self._open[key]
        if self._reef.journal is None and not inbound.returned and not inbound.refused:
            self._handled[key] = None
            if len(self._handled) > REMEMBERED:
                self._handled.popitem(last=False)

    def _take_reply(self, delivery: Delivery) -> None:
        self._reef.requests.answered(self._read(delivery))

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


def _needs_groups(transport: MessageTransport) -> None:
    parameters = inspect.signature(transport.subscribe).parameters
    if not {"group", "concurrency"} <= parameters.keys():
        raise ConfigurationError(
            f"{type(transport).__name__}.subscribe() has no group and concurrency, which a Reef "
            "needs: its agents share their work by groups. See MessageTransport.subscribe."
        )
