"""AMQP 0-9-1, tried with RabbitMQ, over aio-pika and the aiormq in it.

How the contract is kept:

- A durable topic exchange, ``exchange_name``, takes all messages. ``publish`` returns after the
  broker's confirmation; a message that no queue wanted comes back and is told as unroutable.
- **Groups** are durable classic queues, ``<exchange_name>:<group>``, bound to the group's topics
  and patterns. A binding stays: a group that once heard a topic hears it until it is dropped.
- Subscriptions **without a group** have queues that end with their connection.
- All queues order by **priority**. **Dead letters** are kept by the group named like
  ``dead_letter_topic``, which exists from the first connection on.
- What comes in is on one connection, what goes out on others (``connection_pool_size``; one topic
  always on the same, so that it keeps its order): a broker that has no room for more messages
  stops those that publish, and they wait while the others still receive and acknowledge.
- A queue that is deleted under a subscriber, a callback that takes longer than the broker's
  ``consumer_timeout`` (30 minutes by default), and a closed channel are losses of the connection:
  all of it is made anew, and what was not acknowledged comes again.

Declaring is done by aio-pika. Messages and acknowledgements go through the channel of aiormq that
aio-pika shows: its own way makes two message objects, two tasks and a wait for the socket of each.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Coroutine, Sequence
from itertools import count
from typing import Any, TypeVar

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel
from aiormq import spec
from aiormq.abc import DeliveredMessage

from praval.core.topics import Topic, dotted, parse_topic
from praval.core.transport import Capabilities, Group
from praval.errors import (
    GroupInUseError,
    PravalError,
    TransportConnectionError,
    TransportError,
    TransportUnsupportedError,
)
from praval_transports.amqp_connection import (
    AMQPConfig,
    Connection,
    check_headers,
    closed,
    failure,
    refusal,
    said,
)
from praval_transports.amqp_wire import FAREWELL
from praval_transports.base import BrokerTransport
from praval_transports.config import Address
from praval_transports.dispatch import Listening
from praval_transports.link import Link
from praval_transports.message import Incoming, Outgoing

T = TypeVar("T")

PRIORITIES = 10
ARGUMENTS: dict[str, Any] = {"x-queue-type": "classic", "x-max-priority": PRIORITIES}
LONGEST_EXPIRATION = 2**32
"""Milliseconds that RabbitMQ's timers count to; what lives longer does not expire there."""


class AMQPIncoming(Incoming):
    """A message from a queue."""

    __slots__ = ("_link", "_tag")

    def __init__(self, link: AMQPLink, message: DeliveredMessage) -> None:
        headers = message.header.properties.headers or {}
        super().__init__(
            message.routing_key or "",
            message.body,
            # those of other programs may hold anything
            {name: text if isinstance(text, str) else str(text) for name, text in headers.items()},
            bool(message.redelivered),
        )
        self._link = link
        self._tag = message.delivery_tag or 0

    async def acknowledge(self) -> None:
        """See :class:`Incoming`."""
        await self._link.acknowledge(self._tag)

    async def give_back(self) -> None:
        """See :class:`Incoming`."""
        await self._link.give_back(self._tag)


class AMQPLink(Link):
    """The connection that consumes, and those that publish."""

    def __init__(self, config: AMQPConfig, address: Address, tls: ssl.SSLContext | None) -> None:
        super().__init__()
        self._config = config
        self._consuming = Connection(config, address, tls, "consumer")
        self._publishing = [
            Connection(config, address, tls, "publisher")
            for _ in range(config.connection_pool_size)
        ]
        self._outlets: list[aiormq.Channel] = []
        self._consumers: dict[Listening, str] = {}
        """The tag of each."""
        self._tags = count(1)
        self._publications: set[asyncio.Task[Any]] = set()
        """Those that the broker has not confirmed, whether anybody still waits for it or not."""
        self._waiting: set[asyncio.Timeout] = set()
        """What has to end when the link is lost: aiormq leaves some of it waiting for ever."""
        self.lost.add_done_callback(self._end_waiting)

    # -- life ----------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, log in, and declare what all need."""
        config = self._config
        self._channel, self._inbox = await self._open(self._consuming, confirms=False)
        self._inbox.on_consumer_cancel_callbacks.add(self._consumer_cancelled)
        async with self._alive():
            await self._channel.set_qos(config.prefetch_count)  # of each consumer
            try:
                await self._channel.declare_exchange(
                    config.exchange_name, aio_pika.ExchangeType.TOPIC, durable=True
                )
            except aiormq.ChannelPreconditionFailed as error:
                raise TransportUnsupportedError(
                    f"The exchange {config.exchange_name!r} exists, but not as a durable topic "
                    f"exchange: {said(error)}. Use another exchange_name."
                ) from error
            await self._declare_dead()
        try:
            async with asyncio.TaskGroup() as group:
                opening = [
                    group.create_task(self._open(connection, confirms=True))
                    for connection in self._publishing
                ]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        self._outlets = [task.result()[1] for task in opening]

    async def _open(
        self, connection: Connection, *, confirms: bool
    ) -> tuple[AbstractChannel, aiormq.Channel]:
        await connection.log_in()
        connection.core.closing.add_done_callback(self._closed)
        async with self._alive():
            channel = await connection.channel(publisher_confirms=confirms)
            core = await channel.get_underlay_channel()
        assert isinstance(core, aiormq.Channel)
        core.closing.add_done_callback(self._closed)
        return channel, core

    async def close(self) -> None:
        """See :class:`Link`."""
        self.lose(TransportConnectionError("The connection was closed."))
        connections = (self._consuming, *self._publishing)
        closing = asyncio.gather(*(each.close() for each in connections), return_exceptions=True)
        try:
            await asyncio.wait([closing], timeout=FAREWELL)
        finally:
            for connection in connections:
                connection.cut()
            for publication in self._publications:
                publication.cancel()
            # soon, now; nothing of aiormq may outlive us
            await asyncio.wait([closing, *self._publications])

    def _closed(self, closing: asyncio.Future[Any]) -> None:
        """Note that a connection or a channel has ended."""
        self.lose(closed(None if closing.cancelled() else closing.exception()))

    def _consumer_cancelled(self, frame: spec.Basic.Cancel) -> None:
        who = [each for each, tag in self._consumers.items() if tag == frame.consumer_tag]
        self.lose(
            TransportConnectionError(
                f"The broker ended {who}: its queue was deleted, or is not available any more."
            )
        )

    def _end_waiting(self, _: object) -> None:
        for waiting in self._waiting:
            waiting.reschedule(0)

    @contextlib.asynccontextmanager
    async def _alive(self) -> AsyncIterator[None]:
        """Let what is inside end when the link is lost, and with errors of ours."""
        if self.lost.done():
            raise TransportConnectionError(str(self.lost.result()))
        try:
            async with asyncio.timeout(None) as waiting:
                self._waiting.add(waiting)
                try:
                    yield
                finally:
                    self._waiting.discard(waiting)
        except PravalError:
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise failure(error) from error  # so aiormq can say that a channel is closed
        except Exception as error:  # a TimeoutError of ours, or of aiormq: a bare Exception, too
            if isinstance(meant := failure(error), TransportConnectionError) and self.lost.done():
                meant = TransportConnectionError(str(self.lost.result()))
            raise meant from error

    # -- sending -------------------------------------------------------------------------

    async def send(self, message: Outgoing) -> bool:
        """See :class:`Link`."""
        check_headers(message.headers)
        key, expiration = message.dotted, None
        if message.ttl is not None and message.ttl * 1000 < LONGEST_EXPIRATION:
            expiration = str(int(message.ttl * 1000))
        properties = spec.Basic.Properties(
            headers=message.headers,  # type: ignore[arg-type]  # dict is invariant
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            priority=message.priority - 1,
            expiration=expiration,
        )
        outlet = self._outlets[hash(key) % len(self._outlets)]
        async with self._alive():
            await outlet.connection.ready()  # it is not while the broker blocks publishers
            publication = outlet.basic_publish(
                message.body,
                exchange=self._config.exchange_name,
                routing_key=key,
                properties=properties,
                mandatory=True,
                wait=False,  # for the socket: the confirmation is what counts
            )
            try:
                answer = await self._shielded(publication)
            except (aiormq.ChannelPreconditionFailed, aiormq.ChannelAccessRefused) as error:
                self.lose(closed(error))  # the channel is
                raise refusal(error, message) from error
        return not isinstance(answer, DeliveredMessage)  # that is one that came back

    async def _shielded(self, publication: Coroutine[Any, Any, T]) -> T:
        """Await a publication, which goes on when we are cancelled.

        A channel of aiormq stops reading if a message comes back whose publication was.
        """
        task = asyncio.get_running_loop().create_task(publication)
        self._publications.add(task)
        task.add_done_callback(self._publications.discard)
        return await asyncio.shield(task)

    async def blocked(self) -> bool:
        """See :class:`Link`."""
        try:
            async with asyncio.timeout(0):
                for outlet in self._outlets:
                    await outlet.connection.ready()
        except TimeoutError:
            return True
        return False

    async def bury(self, message: Outgoing) -> None:
        """See :class:`Link`."""
        if await self.send(message):
            return
        async with self._alive():  # somebody has deleted the queue
            await self._declare_dead()
        if not await self.send(message):
            raise TransportError("The broker has no queue that keeps dead letters.")

    # -- receiving -----------------------------------------------------------------------

    async def listen(self, listening: Listening) -> None:
        """See :class:`Link`."""

        async def receive(message: DeliveredMessage) -> None:
            listening.receive(AMQPIncoming(self, message))

        async with self._alive():
            if listening.group is None:
                name = await self._declare_private(listening.patterns)
            else:
                name = await self._declare_group(listening.group, listening.patterns)
            self._consumers[listening] = tag = str(next(self._tags))
            await self._inbox.basic_consume(name, receive, consumer_tag=tag)

    async def _declare_private(self, patterns: Sequence[Topic]) -> str:
        # On this channel, which an error or a cancellation closes, and with it the link: no queue
        # is left that collects for nobody.
        queue = await self._channel.declare_queue(
            exclusive=True, auto_delete=True, arguments=ARGUMENTS
        )
        for pattern in patterns:
            await queue.bind(self._config.exchange_name, dotted(pattern))
        return queue.name

    async def _declare_group(self, group: str, patterns: Sequence[Topic]) -> str:
        name = self._config.queue_of(group)
        # on a channel of its own, because a refusal closes it
        async with self._consuming.channel(publisher_confirms=False) as channel:
            try:
                queue = await channel.declare_queue(name, durable=True, arguments=ARGUMENTS)
            except (aiormq.ChannelPreconditionFailed, aiormq.ChannelLockedResource) as error:
                raise TransportUnsupportedError(
                    f"The queue {name!r} exists, but not as a durable classic queue with "
                    f"x-max-priority {PRIORITIES}: {said(error)}. Empty and delete it, or use "
                    "another group or exchange_name."
                ) from error
            for pattern in patterns:
                await queue.bind(self._config.exchange_name, dotted(pattern))
        return name

    async def _declare_dead(self) -> None:
        topic = parse_topic(self._config.dead_letter_topic)
        await self._declare_group(dotted(topic), [topic])

    async def leave(self, listening: Listening, *, drop_group: bool) -> None:
        """See :class:`Link`."""
        async with self._alive():
            if (tag := self._consumers.pop(listening, None)) is not None:
                await self._inbox.basic_cancel(tag)
            if drop_group and listening.group is not None:
                await self._inbox.queue_delete(self._config.queue_of(listening.group))

    # -- groups --------------------------------------------------------------------------

    async def groups(self, names: Sequence[str] | None) -> list[Group]:
        """See :class:`Link`."""
        if names is None:
            raise TransportUnsupportedError(
                "Over AMQP a broker tells of a group by its name only: say which you mean. All "
                f"are listed by `rabbitmqctl list_queues`, as {self._config.queue_of('<group>')!r}."
            )
        found = [await self._look_at(name) for name in names]
        return [each for each in found if each is not None]

    async def _look_at(self, group: str) -> Group | None:
        # on a channel of its own, because "not found" closes it
        async with self._alive(), self._consuming.channel(publisher_confirms=False) as channel:
            try:
                queue = await channel.declare_queue(self._config.queue_of(group), passive=True)
            except aiormq.ChannelNotFoundEntity:
                return None
            told = queue.declaration_result
            return Group(group, told.consumer_count, told.message_count)

    async def drop(self, group: str, member: str | None) -> bool:
        """See :class:`Link`."""
        if await self._look_at(group) is None:
            return False
        async with self._alive(), self._consuming.channel(publisher_confirms=False) as channel:
            try:
                await channel.queue_delete(self._config.queue_of(group), if_unused=True)
            except aiormq.ChannelPreconditionFailed as error:
                raise GroupInUseError(f"Somebody is subscribed as {group!r}.") from error
        return True

    async def acknowledge(self, tag: int) -> None:
        """Tell the broker that a message is done with."""
        async with self._alive():
            await self._inbox.basic_ack(tag, wait=False)

    async def give_back(self, tag: int) -> None:
        """Let the broker deliver a message again."""
        async with self._alive():
            await self._inbox.basic_nack(tag, requeue=True, wait=False)


class AMQPTransport(BrokerTransport[AMQPConfig]):
    """See the module."""

    protocol = "amqp"
    config_type = AMQPConfig
    ports = (5671, 5672)
    capabilities = Capabilities(
        tells_unroutable=True,
        durable_wildcards=True,
        broker_priority=True,
        survives_broker_kill=True,
        takes_over=True,
    )

    async def connect(self, address: Address, tls: ssl.SSLContext | None) -> Link:
        """See :class:`BrokerTransport`."""
        link = AMQPLink(self.config, address, tls)
        try:
            await link.open()
        except BaseException:
            await link.close()
            raise
        return link

    def check(self, listening: Listening) -> None:
        """See :class:`BrokerTransport`."""
        if listening.group is not None:
            self.config.queue_of(listening.group)  # its name must not be too long
