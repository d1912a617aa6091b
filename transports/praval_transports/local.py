"""The local transport: a broker inside this process, for one event loop.

It keeps the whole contract (groups, acknowledgement, redelivery, dead letters, priority) without
a network, so that what is written for a broker can be tried and tested without one. Messages live
as long as the process. A Reef without a transport is faster; this is the broker's stand-in.

``local://name`` names the bus; transports of one loop that name the same one meet there.
"""

from __future__ import annotations

import asyncio
import heapq
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import count
from typing import ClassVar
from weakref import WeakKeyDictionary

from praval.core.topics import Topic, dotted, matches, parse_topic
from praval.core.transport import Capabilities, Group
from praval.errors import GroupInUseError, TransportConnectionError
from praval_transports.base import BrokerTransport
from praval_transports.config import Address, BrokerConfig
from praval_transports.dispatch import Listening
from praval_transports.link import Link
from praval_transports.message import Incoming, Outgoing

NO_NETWORK = "there is no network here."


class LocalConfig(BrokerConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``host`` is the name of the bus."""

    host: str | None = "default"
    port: int | None = 1


class Stored:
    """A message in a queue."""

    __slots__ = ("message", "order", "redelivered")

    def __init__(self, message: Outgoing, order: int) -> None:
        self.message = message
        self.order = order
        self.redelivered = False

    def __lt__(self, other: Stored) -> bool:
        return (-self.message.priority, self.order) < (-other.message.priority, other.order)


class Queue:
    """What one group (or one subscriber without a group) has not had yet."""

    def __init__(self) -> None:
        self.patterns: set[Topic] = set()
        self._waiting: list[Stored] = []
        self._members: deque[Member] = deque()

    @property
    def members(self) -> int:
        """How many share the messages."""
        return len(self._members)

    @property
    def kept(self) -> int:
        """How many messages wait, or are with its members."""
        return len(self._waiting) + sum(member.holds for member in self._members)

    def put(self, stored: Stored) -> None:
        """Keep a message until somebody takes it."""
        heapq.heappush(self._waiting, stored)
        self.serve()

    def join(self, member: Member) -> None:
        """Let a subscriber share the messages."""
        self._members.append(member)
        self.serve()

    def part(self, member: Member) -> None:
        """Let a subscriber have no more."""
        if member in self._members:
            self._members.remove(member)

    def serve(self) -> None:
        """Give what waits to the members in turn, as far as they may have more."""
        idle = 0
        while self._waiting and idle < len(self._members):
            member = self._members[0]
            self._members.rotate(-1)
            if member.full:
                idle += 1
                continue
            idle = 0
            member.deliver(heapq.heappop(self._waiting))


class Member:
    """One subscriber at one queue."""

    def __init__(self, queue: Queue, listening: Listening, prefetch: int) -> None:
        self.queue = queue
        self._listening = listening
        self._prefetch = prefetch
        self._held: set[Stored] = set()

    @property
    def holds(self) -> int:
        """How many messages it has not acknowledged."""
        return len(self._held)

    @property
    def full(self) -> bool:
        """Whether it holds as many unacknowledged messages as it may."""
        return self.holds >= self._prefetch

    def deliver(self, stored: Stored) -> None:
        """Hand over a message."""
        self._held.add(stored)
        self._listening.receive(LocalIncoming(stored, self))

    def done(self, stored: Stored) -> None:
        """Forget a message that was acknowledged."""
        if stored not in self._held:
            raise TransportConnectionError("The bus has given this message to somebody else.")
        self._held.remove(stored)
        self.queue.serve()

    def give_back(self, *messages: Stored) -> None:
        """Let these be delivered again; none named: all that it holds."""
        for stored in messages or tuple(self._held):
            if stored in self._held:
                self._held.remove(stored)
                stored.redelivered = True
                self.queue.put(stored)


class LocalIncoming(Incoming):
    """A message from the bus."""

    __slots__ = ("_member", "_stored")

    def __init__(self, stored: Stored, member: Member) -> None:
        message = stored.message
        super().__init__(message.dotted, message.body, dict(message.headers), stored.redelivered)
        self._stored = stored
        self._member = member

    async def acknowledge(self) -> None:
        """See :class:`Incoming`."""
        self._member.done(self._stored)

    async def give_back(self) -> None:
        """See :class:`Incoming`."""
        self._member.give_back(self._stored)


class Bus:
    """The broker: its groups, and the queues of those without one."""

    def __init__(self) -> None:
        self.groups: dict[str, Queue] = {}
        self.private: set[Queue] = set()
        self._order = count()

    def publish(self, message: Outgoing) -> bool:
        """Put a message into each queue that hears its topic; whether there was one."""
        routed = False
        for queue in (*self.groups.values(), *self.private):
            if any(matches(pattern, message.topic) for pattern in queue.patterns):
                queue.put(Stored(message, next(self._order)))
                routed = True
        return routed


_buses: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Bus]] = WeakKeyDictionary()


class LocalLink(Link):
    """A transport's connection to the bus."""

    def __init__(self, bus: Bus, config: LocalConfig) -> None:
        super().__init__()
        self._bus = bus
        self._config = config
        self._members: dict[Listening, Member] = {}
        dead = parse_topic(config.dead_letter_topic)
        self._group(dotted(dead)).patterns.add(dead)

    async def send(self, message: Outgoing) -> bool:
        """See :class:`Link`."""
        await asyncio.sleep(0)  # a publisher in a loop must let others run
        self._must_live()
        return self._bus.publish(message)

    async def listen(self, listening: Listening) -> None:
        """See :class:`Link`."""
        self._must_live()
        queue = Queue() if listening.group is None else self._group(listening.group)
        queue.patterns.update(listening.patterns)
        if listening.group is None:
            self._bus.private.add(queue)
        member = Member(queue, listening, self._config.prefetch_count)
        self._members[listening] = member
        queue.join(member)

    async def leave(self, listening: Listening, *, drop_group: bool) -> None:
        """See :class:`Link`."""
        self._must_live()
        if (member := self._members.get(listening)) is not None:
            member.queue.part(member)
            self._bus.private.discard(member.queue)
        if drop_group and listening.group is not None:
            self._bus.groups.pop(listening.group, None)

    async def groups(self, names: Sequence[str] | None) -> list[Group]:
        """See :class:`Link`."""
        self._must_live()
        queues = self._bus.groups
        wanted = queues if names is None else [name for name in names if name in queues]
        return [Group(name, queues[name].members, queues[name].kept) for name in wanted]

    async def drop(self, group: str, member: str | None) -> bool:
        """See :class:`Link`."""
        self._must_live()
        if (queue := self._bus.groups.get(group)) is None:
            return False
        if queue.members:
            raise GroupInUseError(f"{queue.members} are subscribed as {group!r}.")
        del self._bus.groups[group]
        return True

    async def close(self) -> None:
        """See :class:`Link`."""
        for member in self._members.values():
            member.queue.part(member)
            self._bus.private.discard(member.queue)
        for member in self._members.values():
            member.give_back()
        self._members.clear()
        self.lose(TransportConnectionError("The local transport was closed."))

    def _group(self, name: str) -> Queue:
        return self._bus.groups.setdefault(name, Queue())

    def _must_live(self) -> None:
        if self.lost.done():
            raise TransportConnectionError(f"The bus is gone: {self.lost.result()}")


class LocalTransport(BrokerTransport[LocalConfig]):
    """See the module."""

    protocol = "local"
    config_type = LocalConfig
    ports = (1, 1)
    refused: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("buffer_size", "brokers", "connection_pool_size", "client_cert", "client_key"), NO_NETWORK
    )
    capabilities = Capabilities(
        tells_unroutable=True,
        durable_wildcards=True,
        broker_priority=True,
        survives_broker_kill=False,
        takes_over=True,
    )

    async def connect(self, address: Address, tls: ssl.SSLContext | None) -> Link:
        """See :class:`BrokerTransport`."""
        buses = _buses.setdefault(asyncio.get_running_loop(), {})
        return LocalLink(buses.setdefault(address.host, Bus()), self.config)
