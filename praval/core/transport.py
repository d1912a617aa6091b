"""Transports: the contract between a Reef (or any asyncio code) and a message broker.

::

    async with transport_connection(TransportProtocol.AMQP, {"url": "amqps://..."}) as transport:
        await transport.subscribe("orders.*", on_order, group="billing")
        await transport.publish("orders.eu", b"...", priority=8, ttl=60)

What every transport promises (``praval.testing.check_transport`` is the proof):

- **At least once.** ``publish`` returns after the broker has confirmed. A message is acknowledged
  after its callback has returned; what dies before comes again, to this subscriber or to another
  of its group, marked by :attr:`Delivery.attempt`.
- **Failures.** A callback that raises is called again (``max_attempts``, ``retry_delay``), then
  the message is published on ``dead_letter_topic`` with the reason. :class:`Refuse` sends it there
  at once, :class:`GiveBack` leaves it to the broker, unacknowledged.
- **Groups.** Subscribers of one group share its messages, on however many hosts; the group is
  durable: it collects while nobody is there. Without a group a subscriber has a copy of its own,
  from now on until it ends.
- **TLS** with verified certificates and host names, unless told otherwise in so many words.

Guide: "Distributed Messaging Architecture", "Transport Factory Pattern".
"""

from __future__ import annotations

import asyncio
import enum
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import msgspec

from praval.core.topics import matches, parse_pattern
from praval.errors import ConfigurationError, TransportUnsupportedError
from praval.plugins import find, load


class TransportProtocol(enum.StrEnum):
    """The protocols that come with Praval."""

    LOCAL = "local"
    AMQP = "amqp"
    MQTT = "mqtt"
    STOMP = "stomp"
    REDIS = "redis"


BUILTIN: Mapping[str, str] = {
    "local": "praval_transports.local:LocalTransport",
    "amqp": "praval_transports.amqp:AMQPTransport",
    "mqtt": "praval_transports.mqtt:MQTTTransport",
    "stomp": "praval_transports.stomp:STOMPTransport",
    "redis": "praval_transports.redis:RedisTransport",
}
"""Protocol -> where its class is; imported when somebody asks for it."""

ENTRY_POINTS = "praval.transports"
"""The group of entry points in which third parties register."""

SCHEMES: Mapping[str, tuple[str, bool]] = {
    "local": ("local", True),
    "amqps": ("amqp", True),
    "amqp": ("amqp", False),
    "mqtts": ("mqtt", True),
    "mqtt": ("mqtt", False),
    "stomp+ssl": ("stomp", True),
    "stomp": ("stomp", False),
    "rediss": ("redis", True),
    "redis": ("redis", False),
}
"""Scheme of a URL -> protocol, and whether it is protected on its way."""


class Delivery(bytes):
    """One message as a callback gets it: its bytes, and what is known about them.

    It is a ``bytes``, so that ``json.loads(message)`` and ``SecureSpore.from_bytes(message)`` work.
    """

    topic: str
    """The topic it was published on, with dots, its segments encoded."""
    headers: dict[str, str]
    attempt: int
    """1 at first; one more at each retry. At least 2 when the broker delivers it again."""

    def __new__(
        cls, body: bytes, topic: str = "", headers: dict[str, str] | None = None, attempt: int = 1
    ) -> Delivery:
        """Make one of a message's body."""
        self = super().__new__(cls, body)
        self.topic = topic
        self.headers = {} if headers is None else headers
        self.attempt = attempt
        return self

    def __repr__(self) -> str:
        """Where it came from and how long it is; what it says may be confidential."""
        return f"<Delivery of {len(self)} bytes on {self.topic!r}, attempt {self.attempt}>"


Callback: TypeAlias = Callable[[Delivery], Awaitable[object] | object]


class Refuse(Exception):
    """A callback raises it: retrying is useless, the message is a dead letter at once."""


class GiveBack(Exception):
    """A callback raises it: neither done nor failed here; the broker is to deliver it again."""


class Confirmation(NamedTuple):
    """What the broker said of a published message. It has it, in any case."""

    routed: bool | None
    """Whether some subscriber or group gets it; None: the protocol does not tell."""


class Health(msgspec.Struct, frozen=True):
    """The state of a transport at one moment, and counts since it was initialised."""

    state: Literal["new", "connecting", "connected", "closing", "closed"]
    broker: str | None = None
    """Host and port of the broker it is connected to."""
    error: str | None = None
    """Why it is not connected."""
    published: int = 0
    """Messages that a broker confirmed."""
    received: int = 0
    acknowledged: int = 0
    retried: int = 0
    dead: int = 0
    """Messages that went to the dead-letter topic."""
    expired: int = 0
    """Messages that came in after their time to live."""
    given_back: int = 0
    reconnects: int = 0


class Capabilities(msgspec.Struct, frozen=True):
    """What a protocol can do on its broker, where they differ."""

    tells_unroutable: bool
    """``Confirmation.routed`` is True or False, never None."""
    durable_wildcards: bool
    """A group may subscribe to a pattern."""
    broker_priority: bool
    """The broker orders by priority; else only among the messages fetched ahead."""
    survives_broker_kill: bool
    """What was confirmed is there after a kill -9 of a durably configured broker."""
    takes_over: bool
    """What a dead member of a group had not acknowledged goes to another member."""
    redelivers_at_once: bool = True
    """What is given back comes again without a reconnection."""
    drops_groups: bool = True
    """``drop_group`` removes the group; else it is refused, after the subscription has ended."""


class Group(msgspec.Struct, frozen=True):
    """A durable group, as its broker knows it."""

    name: str
    members: int | None
    """Subscribers that are connected; None: the broker does not tell."""
    messages: int | None
    """Messages that it keeps for them; None: the broker does not tell."""


class Subscription:
    """A handle for :meth:`MessageTransport.unsubscribe`."""

    def __init__(self, patterns: Sequence[str], group: str | None) -> None:
        self.patterns = tuple(parse_pattern(pattern) for pattern in patterns)
        self.group = group

    def hears(self, topic: tuple[str, ...]) -> bool:
        """Whether one of its patterns matches an (encoded) topic."""
        return any(matches(pattern, topic) for pattern in self.patterns)

    def __repr__(self) -> str:
        names = ", ".join(".".join(pattern) for pattern in self.patterns)
        return f"<{type(self).__name__} to {names}{f' as {self.group!r}' if self.group else ''}>"


class MessageTransport(ABC):
    """One way to a broker. Used on the loop on which it was initialised.

    A transport of your own needs the three abstract methods; what it leaves out works as far as
    it can without (guide, "Custom transport registration").
    """

    protocol: ClassVar[str] = "custom"
    takes_client_id: ClassVar[bool] = False
    """Whether ``client_id`` is a key of its config: a Reef with a journal gives it a stable one."""
    capabilities: Capabilities = Capabilities(
        tells_unroutable=False,
        durable_wildcards=False,
        broker_priority=False,
        survives_broker_kill=False,
        takes_over=False,
    )
    """Where they depend on the config, those of the class are those of the default."""

    @abstractmethod
    async def initialize(self, config: Mapping[str, Any]) -> None:
        """Connect.

        Raises:
            ConfigurationError: a key is unknown, or has a value that cannot be used; or this
                transport cannot honour it, and the message says why.
            TransportTLSError, TransportLoginError, TransportConnectionError: no broker could be
                used; all within ``connect_timeout`` seconds per broker.
        """

    @abstractmethod
    async def publish(
        self,
        topic: str,
        message: bytes,
        *,
        priority: int = 5,
        ttl: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Confirmation | None:
        """Publish; returns when the broker has confirmed.

        A connection that breaks meanwhile is waited for, and the message is sent again: it may
        arrive twice.

        Args:
            topic: see :mod:`praval.core.topics`.
            message: the body, at most ``max_message_size`` bytes.
            priority: 1 to 10, 10 first.
            ttl: seconds after which nobody gets it any more; None: never.
            headers: strings that travel along; ``praval-`` is reserved as a beginning.

        Raises:
            TopicError, ConfigurationError: an argument cannot be used.
            TransportTimeoutError: not confirmed within ``publish_timeout`` seconds; it may have
                been published.
            TransportClosedError: the transport is not open.
        """

    @abstractmethod
    async def subscribe(
        self,
        topic: str | Sequence[str],
        callback: Callback,
        *,
        group: str | None = None,
        concurrency: int = 1,
    ) -> Subscription | None:
        """Let ``callback`` be called with each message; returns when the broker knows of it.

        Args:
            topic: a topic or pattern, or several, heard as one.
            callback: a coroutine function (or a plain one that does not block) of one
                :class:`Delivery`. What it raises: see the module.
            group: share the messages with the other subscribers of this name, durably.
            concurrency: calls at once; with 1, in order.

        Raises:
            TopicError, ConfigurationError: an argument cannot be used.
            TransportUnsupportedError: a group with a wildcard, where the broker has none.
            TransportTimeoutError, TransportClosedError: as for :meth:`publish`.
        """

    async def unsubscribe(
        self,
        target: str | Subscription,
        *,
        drop_group: bool = False,
        patience: float | None = None,
    ) -> None:
        """End a subscription, or all to one topic; callbacks that run may finish.

        A broker that does not answer is waited for a few seconds only, but to drop a group. What
        was not acknowledged it delivers again, when it has noticed the end of the connection.

        Args:
            target: what ``subscribe`` returned, or a topic or pattern as it was given.
            drop_group: remove the group at the broker too, with what it has collected.
            patience: seconds that running callbacks may take; default: ``close_timeout``.

        Raises:
            ConfigurationError: there is no such subscription.
            TransportUnsupportedError, TransportTimeoutError: it has ended, but the group could not
                be removed.
        """
        raise TransportUnsupportedError(f"{type(self).__name__} has no unsubscribe().")

    async def groups(self, names: Sequence[str] | None = None) -> list[Group]:
        """Return the durable groups that the broker has, those without subscribers too.

        Args:
            names: only these; None: all that there are.

        Raises:
            TransportUnsupportedError: the broker does not tell that; the message says who does.
            TransportTimeoutError, TransportClosedError: as for :meth:`publish`.
        """
        raise TransportUnsupportedError(
            f"{type(self).__name__} cannot tell which groups there are."
        )

    async def drop_group(self, name: str, *, member: str | None = None) -> bool | None:
        """Remove a group at the broker, with what it has collected; nobody may be subscribed.

        Args:
            name: the group.
            member: where each member has a part of its own (MQTT): the ``client_id`` of the one
                whose part is removed, in use or not; default: this transport's.

        Returns:
            Whether there was such a group; None: the broker does not tell.

        Raises:
            GroupInUseError: somebody is subscribed, or was until a moment ago, and the broker can
                tell. (RabbitMQ over STOMP and MQTT brokers cannot.)
            TransportUnsupportedError: the broker cannot do that; the message says who can.
            ConfigurationError: a member is named where there is none, or missing.
            TransportTimeoutError, TransportClosedError: as for :meth:`publish`.
        """
        raise TransportUnsupportedError(f"{type(self).__name__} cannot drop groups.")

    async def close(self) -> None:  # noqa: B027 - without a connection there is nothing to do
        """Let running callbacks finish (``close_timeout`` seconds), then disconnect. Idempotent.

        A broker that does not answer is waited for a few seconds only; see :meth:`unsubscribe`.
        """

    def health(self) -> Health:
        """Return the state of the connection, and counts."""
        return Health("connected")

    def _create_tls_context(self, config: Mapping[str, Any]) -> ssl.SSLContext:
        """Make a TLS context of the guide's keys (see :mod:`praval.core.tls`), for subclasses."""
        from praval.core.tls import TLSConfig, client_context

        keys = {key: config[key] for key in TLSConfig.__struct_fields__ if key in config}
        return client_context(msgspec.convert(keys, TLSConfig))


class TransportFactory:
    """Makes transports by protocol."""

    _registered: ClassVar[dict[str, type[MessageTransport]]] = {}

    @classmethod
    def register_transport(
        cls, protocol: TransportProtocol | str, transport: type[MessageTransport]
    ) -> None:
        """Use this class for a protocol from now on, in place of a built-in one too.

        Raises:
            ConfigurationError: it is not a subclass of :class:`MessageTransport`.
        """
        if not (isinstance(transport, type) and issubclass(transport, MessageTransport)):
            raise ConfigurationError(f"{transport!r} is not a subclass of MessageTransport.")
        cls._registered[str(protocol)] = transport

    @classmethod
    def check_protocol(cls, protocol: TransportProtocol | str) -> None:
        """Raise UnknownNameError if nobody registered that protocol; import nothing."""
        if str(protocol) not in cls._registered:
            find("transport", str(protocol), BUILTIN, group=ENTRY_POINTS)

    @classmethod
    def transport_class(cls, protocol: TransportProtocol | str) -> type[MessageTransport]:
        """Return the class for a protocol.

        Raises:
            UnknownNameError: nobody registered that protocol.
            ConfigurationError: the package it needs is not installed.
        """
        name = str(protocol)
        found = cls._registered.get(name)
        if found is None:
            found = load("transport", name, BUILTIN, group=ENTRY_POINTS)
        if not (isinstance(found, type) and issubclass(found, MessageTransport)):
            raise ConfigurationError(f"The entry point {name!r} is not a MessageTransport.")
        return found

    @classmethod
    def create_transport(cls, protocol: TransportProtocol | str) -> MessageTransport:
        """Make a transport that is not connected yet: ``await transport.initialize(config)``.

        Raises:
            UnknownNameError, ConfigurationError: as :meth:`transport_class`.
        """
        return cls.transport_class(protocol)()


@asynccontextmanager
async def transport_connection(
    protocol: TransportProtocol | str, config: Mapping[str, Any] | None = None
) -> AsyncIterator[MessageTransport]:
    """Make a transport, connect it, and close it at the end of the block.

    ``config`` defaults to nothing; the errors are those of ``initialize``.
    """
    # in a thread: a client library may have to be imported, which would hold the loop up
    transport = await asyncio.to_thread(TransportFactory.create_transport, protocol)
    try:
        await transport.initialize({} if config is None else config)
        yield transport
    finally:
        await transport.close()


def read_url(url: str) -> tuple[str, dict[str, Any]]:
    """Split a transport's URL into protocol and config; query parameters are config keys.

    Raises:
        ConfigurationError: it is no URL, or its scheme is unknown. The message does not show a
            password.
    """
    from urllib.parse import parse_qsl, urlsplit

    try:
        parts = urlsplit(url)
    except ValueError:  # what it says may quote the password
        raise ConfigurationError(
            "The transport's URL cannot be read: its host is malformed, or a special character of "
            "its user or password is not percent-encoded."
        ) from None
    if parts.scheme not in SCHEMES:
        raise ConfigurationError(
            f"A transport's URL begins with one of {', '.join(f'{s}://' for s in SCHEMES)}, not "
            f"with {parts.scheme or url.partition(':')[0]!r}."
        )
    protocol, _ = SCHEMES[parts.scheme]
    query: dict[str, Any] = dict(parse_qsl(parts.query, keep_blank_values=True))
    return protocol, {"url": parts._replace(query="").geturl(), **query}


_LAZY = {
    "AMQPTransport": "amqp",
    "MQTTTransport": "mqtt",
    "STOMPTransport": "stomp",
    "RedisTransport": "redis",
    "LocalTransport": "local",
}


def __getattr__(name: str) -> Any:
    """Import a transport's class when it is asked for by name."""
    if name in _LAZY:
        return TransportFactory.transport_class(_LAZY[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
