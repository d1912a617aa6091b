"""STOMP 1.2, over stomp.py: ActiveMQ Classic, and RabbitMQ with its STOMP plugin.

What differs between the servers is in :mod:`praval_transports.stomp_servers`, how frames travel in
:mod:`praval_transports.stomp_connection`.

Each subscription has a connection of its own, beside those that publish: when ActiveMQ makes
publishers wait, it reads nothing more from their connection, acknowledgements neither; and only the
end of a connection gives unacknowledged messages back on every server without losing the
acknowledgement of what is still in callbacks.

A message is a SEND with ``persistent:true`` and a receipt; how its own headers travel is in
:mod:`praval_transports.stomp_headers`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count, cycle
from typing import Any, Literal
from uuid import uuid4

from praval.core.topics import Topic, dotted, matches, parse_topic
from praval.core.transport import Group
from praval.errors import TransportConnectionError, TransportUnsupportedError
from praval_transports.base import BrokerTransport
from praval_transports.config import Address, BrokerConfig
from praval_transports.dispatch import Listening
from praval_transports.link import Link
from praval_transports.message import Incoming, Outgoing
from praval_transports.stomp_connection import Connection
from praval_transports.stomp_headers import AGAIN, MARKER, read_headers, write_headers
from praval_transports.stomp_servers import SERVERS, Headers

LONGEST_GROUP = 240
"""Bytes: a queue's name has 255 on RabbitMQ."""
MARKING = 2.0
"""Seconds that the broker may take to store a marker."""


class STOMPConfig(BrokerConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``client_id`` is what ActiveMQ shows; RabbitMQ has no place for it in STOMP."""

    server: Literal["activemq", "rabbitmq", "artemis"] = "activemq"
    """ActiveMQ Classic; RabbitMQ with ``rabbitmq_stomp``; ActiveMQ Artemis (never tested)."""
    vhost: str | None = None
    """RabbitMQ's virtual host; None: ``/``."""

    def __post_init__(self) -> None:
        """Check what the types do not say.

        Raises:
            ValueError: a text would be read as another header, or ``vhost`` as nothing.
        """
        for name in ("username", "password", "vhost", "client_id"):
            if not {"\r", "\n", "\0"}.isdisjoint(getattr(self, name) or ""):
                raise ValueError(f"{name} must not contain line breaks: STOMP cannot carry them")
        if self.vhost is not None and self.server != "rabbitmq":
            raise ValueError(f"vhost is RabbitMQ's: {self.server} has none")


class StompIncoming(Incoming):
    """A message of one consumer."""

    __slots__ = ("_consumer", "frame")

    def __init__(self, consumer: Consumer, frame: Any, topic: str, redelivered: bool) -> None:
        super().__init__(topic, frame.body, read_headers(frame.headers), redelivered)
        self.frame = frame
        self._consumer = consumer

    async def acknowledge(self) -> None:
        """See :class:`Incoming`."""
        self._consumer.acknowledge(self)

    async def give_back(self) -> None:
        """See :class:`Incoming`."""
        await self._consumer.give_back(self)


class Consumer:
    """A subscription at work, on a connection of its own."""

    connection: Connection

    def __init__(self, link: StompLink, listening: Listening, prefetch: int) -> None:
        self.leaving = False
        self.dropped = False
        """Its group does not exist any more: there is nothing to acknowledge."""
        self._link = link
        self._server = link.server
        self._listening = listening
        self._patterns = tuple(dict.fromkeys(listening.patterns))
        self.queues = link.server.subscriptions(self._patterns, listening.group, prefetch)
        self._held = 0
        """Messages handed over that are neither acknowledged nor given back."""

    def lost(self, error: Exception) -> None:
        """Its connection is gone; unless it was leaving, so is the link."""
        if not self.leaving:
            self._link.lose(error)

    def receive(self, frame: Any) -> None:
        """Hand over a message."""
        if self.leaving:
            return  # the broker takes it back when the connection ends
        headers = frame.headers
        again = headers.get(AGAIN)
        topic = again or self._server.topic_of(headers)
        if MARKER in headers or (not again and self._comes_by_another(topic, headers)):
            self.connection.frames.ack(headers["ack"])
            return
        redelivered = bool(again) or headers.get("redelivered") == "true"
        self._held += 1
        self._listening.receive(StompIncoming(self, frame, topic, redelivered))

    def _comes_by_another(self, topic: str, headers: Headers) -> bool:
        """Whether it also comes by a pattern before the one that this copy comes by."""
        if len(self._patterns) == 1 or self._server.one_queue:
            return False
        segments, by = tuple(topic.split(".")), int(headers["subscription"])
        return any(matches(pattern, segments) for pattern in self._patterns[:by])

    def acknowledge(self, incoming: StompIncoming) -> None:
        """Tell the broker that it is done with."""
        if not self.dropped:
            self.connection.frames.ack(incoming.frame.headers["ack"])
        self._settled()

    async def give_back(self, incoming: StompIncoming) -> None:
        """Let it be delivered again."""
        headers, frames = incoming.frame.headers, self.connection.frames
        if self.leaving or self._link.lost.done():
            pass  # with the end of the connection
        elif self._server.nack_requeues:
            frames.nack(headers["ack"], requeue="true")
        elif self._listening.group is not None:
            queue = self.queues[int(headers["subscription"])]
            await self._link.send_again(incoming, queue["destination"])
            frames.ack(headers["ack"])
        else:  # nobody else may have it
            await asyncio.sleep(0)
            incoming.redelivered = True
            self._listening.receive(incoming)
            return
        self._settled()

    def _settled(self) -> None:
        self._held -= 1
        if self.leaving and not self._held:
            self._link.end(self.connection)

    async def leave(self) -> None:
        """Take nothing more, and end as soon as all that was taken is settled."""
        self.leaving = True
        if not self._held:
            await asyncio.shield(self._link.end(self.connection))


class StompLink(Link):
    """Connections that publish, and one for each subscription."""

    def __init__(self, config: STOMPConfig, address: Address, tls: ssl.SSLContext | None) -> None:
        super().__init__()
        self.server = SERVERS[config.server]
        self._config = config
        self._address = address
        self._tls = tls
        self._name = f"{config.client_id or 'praval'}-{uuid4()}"
        self._numbers = count(1)
        self._connections: set[Connection] = set()
        self._publishers: Iterator[Connection]
        self._consumers: dict[Listening, Consumer] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._burying = asyncio.Lock()
        self._dead_are_kept = False

    async def open(self) -> None:
        """Make the connections that publish."""
        size = self._config.connection_pool_size
        self._publishers = cycle([await self._connect(self.lose) for _ in range(size)])

    # -- publishing ----------------------------------------------------------------------

    async def send(self, message: Outgoing) -> None:
        """See :class:`Link`."""
        headers = self.server.address(message.topic)
        headers["priority"] = str(message.priority - 1)
        if message.ttl is not None:
            headers.update(self.server.expiry(message.ttl))
        await self._publish(headers, message.headers, message.body)

    async def send_again(self, incoming: StompIncoming, queue: str) -> None:
        """Publish a copy of a message to one group's queue."""
        old = incoming.frame.headers
        headers = {key: old[key] for key in ("priority", "expires") if key in old}
        headers |= {"destination": queue, AGAIN: incoming.topic}
        await self._publish(headers, incoming.headers, incoming.body)

    async def _publish(self, headers: Headers, own: Mapping[str, str], body: bytes) -> None:
        headers |= write_headers(own)
        headers["persistent"] = "true"
        await next(self._publishers).request("SEND", headers, body)

    async def bury(self, message: Outgoing) -> None:
        """See :class:`Link`. The group that is named as the topic keeps it."""
        async with self._burying:
            if not self._dead_are_kept:
                async with self._visit([message.topic], dotted(message.topic)):
                    self._dead_are_kept = True
        await self.send(message)

    # -- subscribing ---------------------------------------------------------------------

    async def listen(self, listening: Listening) -> None:
        """See :class:`Link`."""
        consumer = Consumer(self, listening, self._config.prefetch_count)
        connection = consumer.connection = await self._connect(consumer.lost)
        connection.on_message = consumer.receive
        try:
            for number, queue in enumerate(consumer.queues):
                await _subscribe(connection, number, queue)
            if listening.group is not None and self.server.forgets_empty_queues:
                await self._mark(consumer.queues)
        except BaseException:
            consumer.leaving = True
            self._connections.discard(connection)
            await connection.abort()
            raise
        self._consumers[listening] = consumer

    async def _mark(self, queues: Sequence[Headers]) -> None:
        """Let queues outlive a restart. A broker too full for that must not keep consumers out."""
        with suppress(TimeoutError):
            async with asyncio.timeout(MARKING):
                for queue in queues:
                    marker = {"destination": queue["destination"], "persistent": "true"}
                    await next(self._publishers).request("SEND", {**marker, MARKER: "1"})

    async def leave(self, listening: Listening, *, drop_group: bool) -> None:
        """See :class:`Link`."""
        server, group = self.server, listening.group if drop_group else None
        consumer = self._consumers.pop(listening, None)
        if consumer is not None:
            consumer.dropped = group is not None and server.capabilities.drops_groups
            await consumer.leave()
        if group is None:
            return
        if not server.capabilities.drops_groups:
            queues = server.subscriptions(listening.patterns, group, 1)
            raise TransportUnsupportedError(
                f"The subscription has ended, but the group {group!r} stays and goes on "
                f"collecting: {self._config.server} deletes no queue by STOMP. Delete "
                f"{', '.join(queue['destination'] for queue in queues)} with its own tools."
            )
        async with self._visit(listening.patterns, group) as visitor:
            await visitor.request("UNSUBSCRIBE", {"id": "0", **server.deletion(group)})

    # -- groups --------------------------------------------------------------------------

    async def groups(self, names: Sequence[str] | None) -> list[Group]:
        """See :class:`Link`."""
        raise TransportUnsupportedError(
            "No STOMP server tells which queues there are. Look with the broker's own tools for "
            f"{self.server.queues_of('<group>')}."
        )

    async def drop(self, group: str, member: str | None) -> None:
        """See :class:`Link`."""
        if not self.server.capabilities.drops_groups:
            raise TransportUnsupportedError(
                f"{self._config.server} deletes no queue by STOMP. Delete "
                f"{self.server.queues_of(group)} with its own tools."
            )
        async with self._visit([parse_topic(group)], group) as visitor:
            await visitor.request("UNSUBSCRIBE", {"id": "0", **self.server.deletion(group)})

    # -- connections ---------------------------------------------------------------------

    async def _connect(self, on_lost: Callable[[Exception], None]) -> Connection:
        config = self._config
        login = {"login": config.username, "passcode": config.password}
        connection = await Connection.open(
            self._address,
            self._tls,
            on_lost,
            login={key: value for key, value in login.items() if value is not None}
            | {"client-id": f"{self._name}-{next(self._numbers)}"},
            vhost=config.vhost or ("/" if config.server == "rabbitmq" else self._address.host),
            keepalive=config.keepalive,
        )
        connection.set_socket(nodelay=config.tcp_nodelay, buffer_size=config.buffer_size)
        self._connections.add(connection)
        if self.lost.done():  # meanwhile: nobody would close it
            await connection.abort()
            raise TransportConnectionError(f"The link is lost: {self.lost.result()}")
        return connection

    @asynccontextmanager
    async def _visit(self, patterns: Sequence[Topic], group: str) -> AsyncIterator[Connection]:
        """Make sure that a group's queue exists: subscribe to it in passing, without consuming."""
        queue, *_ = self.server.subscriptions(patterns, group, 1)
        connection = await self._connect(lambda _: None)
        try:
            await _subscribe(connection, 0, queue | self.server.untouched)
            yield connection
        finally:
            await asyncio.shield(self.end(connection))

    def end(self, connection: Connection) -> asyncio.Task[None]:
        """Close a connection, in the background."""
        task = asyncio.create_task(connection.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.add_done_callback(lambda _: self._connections.discard(connection))
        return task

    async def close(self) -> None:
        """See :class:`Link`."""
        orderly = not self.lost.done()
        self.lose(TransportConnectionError("The STOMP transport disconnected."))
        ends = [each.close() if orderly else each.abort() for each in self._connections]
        await asyncio.gather(*ends, *self._ending)


class STOMPTransport(BrokerTransport[STOMPConfig]):
    """See the module."""

    protocol = "stomp"
    config_type = STOMPConfig
    ports = (61614, 61613)
    capabilities = SERVERS["activemq"].capabilities

    async def initialize(self, config: Mapping[str, Any]) -> None:
        """See :class:`MessageTransport`."""
        await super().initialize(config)
        self.capabilities = SERVERS[self.config.server].capabilities

    async def connect(self, address: Address, tls: ssl.SSLContext | None) -> Link:
        """See :class:`BrokerTransport`."""
        link = StompLink(self.config, address, tls)
        try:
            await link.open()
        except BaseException:
            link.lose(TransportConnectionError("It was never used."))
            await link.close()
            raise
        return link

    def check(self, listening: Listening) -> None:
        """See :class:`BrokerTransport`."""
        if listening.group is not None and len(listening.group.encode()) > LONGEST_GROUP:
            raise TransportUnsupportedError(
                f"The group's name takes {len(listening.group.encode())} bytes (encoded); over "
                f"STOMP {LONGEST_GROUP} is the limit. Shorten it."
            )


async def _subscribe(connection: Connection, number: int, queue: Headers) -> None:
    headers = {"id": str(number), "ack": "client-individual", **queue}
    await connection.request("SUBSCRIBE", headers)
