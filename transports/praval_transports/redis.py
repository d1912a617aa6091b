"""Redis: streams with consumer groups, on a single server (or one with replicas), 7.0 or later.

How the contract is kept:

- Each topic is a stream that exists while somebody hears it. So a publication (``XADD
  NOMKSTREAM``) tells whether it was routed, and nothing grows that nobody would read.
- Each subscription reads with ``XREADGROUP`` on a connection of its own. Without a group it is a
  group of its own, which a lease removes when its process is gone.
- What a member holds is refreshed while it works. What nobody has refreshed for ``claim_idle``
  seconds is claimed by another member; what is given back, at once.
- A stream is trimmed to what some group still needs, after a thousand acknowledgements and now
  and then: nothing unread is ever dropped, unless ``stream_maxlen`` is set. A group that never
  comes back keeps its messages until ``unsubscribe(..., drop_group=True)``.
- A group with wildcards is durable too: it gets a matching topic from its first message on.
- The messages of one topic come in order; between topics there is none.
- The server does not expire single entries: the time to live is judged by the receiver alone. It
  knows no priorities: they order what was fetched ahead.
- While the server is full (``maxmemory`` with ``noeviction``, the only policy that loses nothing),
  publications wait; subscribers go on, and make room.

With ``appendonly yes`` a confirmed message survives a kill -9 of the server, as the file is
written before the answer; a crash of its machine only with ``appendfsync always``. Without
``appendonly`` all is lost with the process. A replica that is promoted may lack the last
confirmed messages: Redis replicates after the answer.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import msgspec

from praval.core.topics import dotted, has_wildcard, parse_topic
from praval.core.transport import Capabilities, Group
from praval.errors import (
    ConfigurationError,
    GroupInUseError,
    TransportConnectionError,
    TransportError,
)
from praval_transports import redis_scripts as scripts
from praval_transports.base import BrokerTransport
from praval_transports.config import Address, BrokerConfig, Count, Seconds
from praval_transports.dispatch import Listening
from praval_transports.link import FAREWELL, Link
from praval_transports.message import Outgoing
from praval_transports.redis_reader import BODY, Member, Reader
from praval_transports.redis_wire import NoRoomError, Wire

log = logging.getLogger("praval.transport")

ROOM_EVERY = 0.5
"""Seconds between attempts to publish on a server that is full."""
LEASE = 60
"""Seconds, beside three signs of life, after which a silent subscriber counts as dead."""


class RedisConfig(BrokerConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``redis_url`` is another name of ``url``. A ``client_id`` is for one process at a time."""

    db: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Number of the database; None: the path of the URL, else 0."""
    prefix: Annotated[str, msgspec.Meta(min_length=1)] = "praval"
    """All keys begin with it and a colon."""
    stream_maxlen: Count | None = None
    """Keep about so many messages of a topic, **read or not**; None: all that are needed."""
    claim_idle: Seconds = 30.0
    """Seconds without a sign of life after which a member's messages go to another one."""

    def __post_init__(self) -> None:
        """Refuse a URL whose path is no database."""
        if not (urlsplit(self.url or "").path.strip("/") or "0").isdecimal():
            raise ValueError("the path of url must be the number of a database")

    @property
    def database(self) -> int:
        """The number of the database."""
        return int(urlsplit(self.url or "").path.strip("/") or 0) if self.db is None else self.db

    @property
    def pulse(self) -> float:
        """Seconds between signs of life."""
        return min(self.keepalive, self.claim_idle / 3)

    @property
    def lease(self) -> int:
        """Seconds without a sign of life after which a subscriber is forgotten."""
        return LEASE + 3 * self.keepalive


class RedisLink(Link):
    """Connections that publish and settle, one more for each subscription, and a pulse."""

    def __init__(
        self,
        config: RedisConfig,
        address: Address,
        tls: ssl.SSLContext | None,
        member_of: Callable[[Listening], Member],
    ) -> None:
        super().__init__()
        self.config = config
        self._address = address
        self._tls = tls
        self._member_of = member_of
        self._wires: list[Wire] = []
        self._readers: dict[Listening, Reader] = {}
        self._pulse: asyncio.Task[None] | None = None
        self._has_room = True

    async def open(self) -> None:
        """Connect; fails on a server that cannot serve: a replica, a node of a cluster."""

        async def add_wire() -> None:
            self._wires.append(await self._new_wire())

        wanted = self.config.connection_pool_size
        done = await asyncio.gather(*(add_wire() for _ in range(wanted)), return_exceptions=True)
        for problem in filter(None, done):
            raise problem
        await self.call("EXISTS", self.key(":topics"), self.key(":patterns"))  # no cluster can
        await self._keep_dead_letters()
        self._pulse = asyncio.create_task(self._beat(), name="praval:redis pulse")

    async def _new_wire(self) -> Wire:
        return await Wire.open(
            self._address, self._tls, self.config, self.config.database, self.lose
        )

    # -- commands ------------------------------------------------------------------------

    def key(self, topic: str) -> str:
        """Return a topic's stream."""
        return f"{self.config.prefix}:{topic}"

    def script(self, text: str, *arguments: str | bytes | int) -> tuple[str | bytes | int, ...]:
        """Return the command that runs one of the scripts; each takes the lease first."""
        return ("EVAL", text, 1, self.key(""), self.config.lease, *arguments)

    def call(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """Send a command; the future has its reply."""
        self.must_live()
        return self._wires[0].call(*command)

    def tell(self, *command: str | bytes | int) -> None:
        """Send a command; if it fails the link is lost."""
        if not self.lost.done():
            self._wires[0].call(*command).add_done_callback(self._told)

    def _told(self, reply: asyncio.Future[Any]) -> None:
        if not reply.cancelled() and (error := reply.exception()) is not None:
            self.lose(TransportConnectionError(str(error)))

    def must_live(self) -> None:
        """Raise TransportConnectionError if the link is lost."""
        if self.lost.done():
            raise TransportConnectionError(f"The connection is lost: {self.lost.result()}")

    # -- publishing ----------------------------------------------------------------------

    async def send(self, message: Outgoing) -> bool:
        """See :class:`Link`; while the server has no room for it, it is sent again and again."""
        while True:
            try:
                routed = await self._add(message)
            except NoRoomError as error:
                if self._has_room:
                    log.warning("%s", error)
                self._has_room = False
                await asyncio.sleep(ROOM_EVERY)
            else:
                self._has_room = True
                return routed

    async def blocked(self) -> bool:
        """See :class:`Link`."""
        return not self._has_room

    async def _add(self, message: Outgoing) -> bool:
        self.must_live()
        topic, limit = message.dotted, self.config.stream_maxlen
        entry = (
            *(() if limit is None else ("MAXLEN", "~", limit)),
            "*", BODY, message.body, *chain.from_iterable(message.headers.items()),
        )  # fmt: skip
        # the messages of a topic keep their order: they take one connection
        wire = self._wires[hash(topic) % len(self._wires)]
        if await wire.call("XADD", self.key(topic), "NOMKSTREAM", *entry) is not None:
            return True
        return bool(await wire.call(*self.script(scripts.ROUTE, topic, *entry)))

    async def bury(self, message: Outgoing) -> None:
        """See :class:`Link`."""
        if not await self.send(message):  # somebody has dropped their group
            await self._keep_dead_letters()
            await self.send(message)

    async def _keep_dead_letters(self) -> None:
        topic = dotted(parse_topic(self.config.dead_letter_topic))
        await self.call(*self.script(scripts.JOIN, topic, "", 1, topic))

    # -- subscribing ---------------------------------------------------------------------

    async def listen(self, listening: Listening) -> None:
        """See :class:`Link`."""
        member = self._member_of(listening)
        exact = [dotted(topic) for topic in listening.patterns if not has_wildcard(topic)]
        wild = [scripts.lua_pattern(each) for each in listening.patterns if has_wildcard(each)]

        async def join() -> list[str]:
            command = self.script(scripts.JOIN, *member, len(exact), *exact, *wild)
            return [topic.decode() for topic in await self.call(*command)]

        wire = await self._new_wire()
        try:
            topics = await join()
        except BaseException:
            await wire.close()
            raise
        self._readers[listening] = Reader(
            self, wire, member, topics, receive=listening.receive, rejoin=join if wild else None
        )

    async def leave(self, listening: Listening, *, drop_group: bool) -> None:
        """See :class:`Link`."""
        member = self._member_of(listening)
        drop = drop_group or member.is_private
        if (reader := self._readers.get(listening)) is not None:
            await reader.stop(group_goes=drop)
        await self.call(*self.script(scripts.LEAVE, *member, int(drop)))

    # -- groups --------------------------------------------------------------------------

    async def groups(self, names: Sequence[str] | None) -> list[Group]:
        """See :class:`Link`."""
        found = await self.call(*self.script(scripts.GROUPS))
        groups = [
            Group(name.decode(), members, messages if messages >= 0 else None)
            for name, members, messages in found
        ]
        return [each for each in groups if names is None or each.name in names]

    async def drop(self, group: str, member: str | None) -> bool:
        """See :class:`Link`."""
        found = int(await self.call(*self.script(scripts.DROP, group)))
        if found < 0:
            raise GroupInUseError(
                f"Somebody is subscribed as {group!r}, or was within the last "
                f"{self.config.lease} s and did not say good-bye."
            )
        return found > 0

    # -- life ----------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Show signs of life, and expect the server's."""
        while True:
            await asyncio.sleep(self.config.pulse)
            try:
                async with asyncio.timeout(self.config.confirm_timeout):
                    await asyncio.gather(
                        *(wire.call("PING") for wire in self._wires),
                        *(reader.refresh() for reader in self._readers.values()),
                    )
                for listening in [each for each, r in self._readers.items() if r.is_done]:
                    del self._readers[listening]
            except (TransportError, OSError) as error:  # TimeoutError is one, and says nothing
                return self.lose(
                    TransportConnectionError(f"No sign of life: {str(error) or 'no answer'}")
                )

    async def close(self) -> None:
        """See :class:`Link`; what was acknowledged goes out first."""
        try:
            if not self.lost.done():
                await asyncio.sleep(0)  # the acknowledgements of this step of the loop
                for reader in self._readers.values():
                    reader.trim()
                async with asyncio.timeout(FAREWELL):
                    await self.call("PING")
        finally:
            self.lose(TransportConnectionError("The Redis transport was closed."))
            if self._pulse is not None:
                self._pulse.cancel()
                await asyncio.wait([self._pulse])
            for reader in self._readers.values():
                await reader.close()
            for wire in self._wires:
                await wire.close()


class RedisTransport(BrokerTransport[RedisConfig]):
    """See the module."""

    protocol = "redis"
    config_type = RedisConfig
    ports = (6379, 6379)
    capabilities = Capabilities(
        tells_unroutable=True,
        durable_wildcards=True,
        broker_priority=False,
        survives_broker_kill=True,
        takes_over=True,
    )

    def __init__(self) -> None:
        super().__init__()
        self._identity = secrets.token_hex(8)
        self._members: WeakKeyDictionary[Listening, Member] = WeakKeyDictionary()
        self._joined: Counter[str] = Counter()

    async def initialize(self, config: Mapping[str, Any]) -> None:
        """See :class:`BrokerTransport`."""
        if isinstance(config, Mapping) and "redis_url" in config:
            if "url" in config:
                raise ConfigurationError("Give url or redis_url, not both: they are the same key.")
            config = {("url" if k == "redis_url" else k): v for k, v in config.items()}
        await super().initialize(config)

    async def connect(self, address: Address, tls: ssl.SSLContext | None) -> Link:
        """See :class:`BrokerTransport`."""
        link = RedisLink(self.config, address, tls, self._member_of)
        try:
            await link.open()
        except BaseException as error:
            link.lose(TransportConnectionError(f"Not connected: {error}"))
            await link.close()
            raise
        return link

    def _member_of(self, listening: Listening) -> Member:
        """Return who a subscription is for the server, as long as it lives."""
        if (member := self._members.get(listening)) is None:
            group = listening.group or "private"
            self._joined[group] += 1
            if listening.group is None:
                name = f"{self._identity}:{self._joined[group]}"
                member = Member(scripts.PRIVATE + name, name)
            else:
                identity = self.config.client_id or self._identity
                member = Member(group, f"{identity}:{group}:{self._joined[group]}")
            self._members[listening] = member
        return member
