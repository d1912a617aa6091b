"""MQTT 5, tried with Mosquitto, over aiomqtt and the paho client in it.

How the contract is kept:

- Everything travels with QoS 1; a priority is never made a QoS. ``publish`` returns after PUBACK,
  whose reason says whether a subscription matched. A message is acknowledged after its callback.
- **Groups** are shared subscriptions of persistent sessions: each client has one session per group,
  named ``<client_id>:<group>``, which the broker keeps for ``session_expiry`` seconds. Messages are
  shared out among the sessions as they are published, to those of clients that are away as well:
  what a member had not acknowledged waits for *its* return (``takes_over`` is False). So give each
  replica a ``client_id`` of its own that stays the same. **Without one** a random id is used: what
  it has not acknowledged is lost when the process dies or is away for more than a minute, and
  nothing is collected for it after ``close()``.
- Subscriptions **without a group** have sessions that end with their connection.
- Each session has its own connection, so that a slow callback holds up no other group. On it the
  broker sends ``prefetch_count`` messages ahead, and acknowledgements keep the order of arrival, as
  MQTT demands: that many can be finished and still unacknowledged while an earlier one is at work.
- There is no negative acknowledgement. What is **given back** stays unacknowledged, is passed over
  by the acknowledgements of later ones, and comes again (as redelivered) over the next connection.
  Until then it takes one of the ``prefetch_count`` places; when all are taken so, the connection is
  replaced after ``reconnect_delay``.
- **Dead letters** are retained messages, each on a topic of its own below
  ``<dead_letter_topic>/:letters/``: a session that collects them would have to exist beforehand,
  and those of replicas that never look would collect their share. The group named like the
  dead-letter topic (``subscribe("dead", ..., group="dead")``) gets them all, from whatever client,
  and removes those that it acknowledges. A member that joins it also gets what another one is
  still at work on. ``drop_group`` does not remove them.

Mosquitto drops what a session has to keep above ``max_queued_messages`` (1,000 by default), after
it has confirmed it to the publisher. (Dead letters above it stay, and come over a later
connection.) It also forgets all when it is killed, unless it is configured with ``persistence``,
``autosave_interval 1`` and ``autosave_on_changes``, and then up to a second of it. A Reef's outbox
(``receipt="receiver"``) covers both. Limit sizes with ``max_packet_size``: the broker tells it, and
a larger message is an error here; over ``message_size_limit`` it hangs up without a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
from collections.abc import Hashable, Sequence
from typing import Annotated

import msgspec

from praval.core.topics import ONE, dotted, parse_topic
from praval.core.transport import Capabilities, Group
from praval.errors import (
    ConfigurationError,
    GroupInUseError,
    TransportConnectionError,
    TransportUnsupportedError,
)
from praval_transports.base import BrokerTransport
from praval_transports.config import Address, BrokerConfig
from praval_transports.dispatch import Listening
from praval_transports.link import FAREWELL, Link
from praval_transports.message import Outgoing
from praval_transports.mqtt_codec import FOREVER, Packed
from praval_transports.mqtt_connection import Connection
from praval_transports.mqtt_session import EMPTY, LETTERS, Session

RANDOM_EXPIRY = 60
"""Seconds that the sessions of a random client id last: long enough for a reconnection."""


class MQTTConfig(BrokerConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Set ``client_id``: see the module."""

    client_id: Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")] | None = None
    keepalive: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 30
    session_expiry: Annotated[int, msgspec.Meta(ge=1, le=FOREVER)] = 7 * 86_400
    """Seconds that the broker keeps a group's session, and what it collects, while its client is
    away."""


class MQTTLink(Link):
    """Connections that publish, and one for each session."""

    def __init__(
        self, config: MQTTConfig, address: Address, tls: ssl.SSLContext | None, name: str
    ) -> None:
        super().__init__()
        self.config = config
        self.dead = parse_topic(config.dead_letter_topic)
        self._address = address
        self._tls = tls
        self._name = name
        """The client id, given or random."""
        self._lasts = config.client_id is not None
        self._connections: set[Connection] = set()
        self._publishers: list[Connection] = []
        self._sessions: dict[Hashable, Session] = {}
        """By group, or by subscription."""

    # -- life ----------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect those that publish."""
        for number in range(self.config.connection_pool_size):
            name = f"{self._name}/{number}" if number else self._name
            connection = Connection(self.config, name, ended=self.lose)
            await self.connect(connection)
            self._publishers.append(connection)

    async def connect(self, connection: Connection) -> None:
        """Open a connection of this link."""
        if self.lost.done():
            raise TransportConnectionError(str(self.lost.result()))
        self._connections.add(connection)
        connection.ended.add_done_callback(lambda _: self._connections.discard(connection))
        await connection.open(self._address, self._tls)

    async def close(self) -> None:
        """See :class:`Link`."""
        meant = not self.lost.done()
        self.lose(TransportConnectionError("The connection was closed."))
        connections = list(self._connections)
        for connection in connections:
            connection.receive = None
            connection.hang_up(0 if meant and not self._lasts else None)
        try:
            await asyncio.sleep(0)  # what can be written at once is
            if meant and connections:
                ended = [connection.ended for connection in connections]
                await asyncio.wait(ended, timeout=FAREWELL)
        finally:
            for connection in connections:
                connection.abort()
        for connection in connections:
            await connection.gone()

    # -- sending -------------------------------------------------------------------------

    async def send(self, message: Outgoing) -> bool:
        """See :class:`Link`."""
        topic = message.slashed
        return await self._publisher(topic).send(
            topic, message.body, Packed(message.headers, message.ttl)
        )

    async def bury(self, message: Outgoing) -> None:
        """See :class:`Link`."""
        topic, headers = f"{message.slashed}/{LETTERS}/{secrets.token_hex(16)}", message.headers
        if not message.body:
            headers = {**headers, EMPTY: "1"}
        await self._publisher(topic).send(
            topic, message.body or b"\0", Packed(headers), retain=True
        )

    async def remove_letter(self, topic: str) -> None:
        """Let the broker keep a dead letter no longer."""
        await self._publisher(topic).send(topic, b"", Packed({}), retain=True)

    def _publisher(self, topic: str) -> Connection:
        """Return the same one for a topic always: its messages stay in order."""
        return self._publishers[hash(topic) % len(self._publishers)]

    # -- receiving -----------------------------------------------------------------------

    async def listen(self, listening: Listening) -> None:
        """See :class:`Link`."""
        group, patterns = listening.group, list(listening.patterns)
        letters = (*self.dead, LETTERS, ONE)
        try:
            if listening.hears(self.dead):
                if group == dotted(self.dead):
                    box = self._session((listening, "letters"), group, durable=False)
                    await box.join(listening, [letters])
                    await box.fetch(letters)
                else:
                    patterns.append(letters)
            durable = group is not None
            session = self._session(group if durable else listening, group, durable=durable)
            await session.join(listening, patterns)
        except BaseException:
            for session in self._part(listening):
                session.retire()
            raise

    def _session(self, key: Hashable, group: str | None, *, durable: bool) -> Session:
        session = self._sessions.get(key)
        if session is None:
            # a group has no colon: it is encoded
            name = f"{self._name}:{group}" if durable else f"{self._name}::{secrets.token_hex(8)}"
            expiry = self.config.session_expiry if self._lasts else RANDOM_EXPIRY
            session = self._sessions[key] = Session(
                self,
                name,
                group,
                expiry if durable else 0,
                # a random id never comes back after close(): its sessions are to end there
                lingers=durable and not self._lasts,
            )
        return session

    def _part(self, listening: Listening) -> list[Session]:
        """Take a subscription out of its sessions; return those that are left without one."""
        empty = []
        for key, session in list(self._sessions.items()):
            with contextlib.suppress(ValueError):
                session.listenings.remove(listening)
            if not session.listenings:
                empty.append(self._sessions.pop(key))
        return empty

    async def leave(self, listening: Listening, *, drop_group: bool) -> None:
        """See :class:`Link`.

        ``drop_group`` ends this client's session of the group, unless another subscription of this
        client uses it; the sessions of other clients are theirs.
        """
        empty = self._part(listening)
        try:
            for session in empty if drop_group else ():
                await session.forget()
        finally:
            for session in empty:
                session.retire(0 if drop_group else None)
        group = listening.group
        if drop_group and group is not None and not empty and group not in self._sessions:
            await self._end_session(self._name, group)

    async def _end_session(self, client_id: str, group: str) -> bool:
        """End a client's session of a group that is not in use here; whether there was one."""
        ending = Connection(self.config, f"{client_id}:{group}", resumes=True)
        await self.connect(ending)
        ending.hang_up()
        await asyncio.wait([ending.ended], timeout=FAREWELL)
        return ending.resumed

    async def groups(self, names: Sequence[str] | None) -> list[Group]:
        """See :class:`Link`."""
        raise TransportUnsupportedError(
            "MQTT brokers do not tell which sessions they keep. A group's are named "
            "<client_id>:<group>, one for each client; some brokers show them in tools of theirs."
        )

    async def drop(self, group: str, member: str | None) -> bool:
        """See :class:`Link`."""
        client_id = member or self.config.client_id
        if client_id is None:
            raise ConfigurationError(
                "On MQTT each member of a group has a session of its own: say whose is to be "
                "dropped, by its client_id. A Reef with a journal has praval-<replica>."
            )
        if client_id == self._name and group in self._sessions:
            raise GroupInUseError(f"This client is subscribed as {group!r} itself.")
        return await self._end_session(client_id, group)


class MQTTTransport(BrokerTransport[MQTTConfig]):
    """See the module."""

    protocol = "mqtt"
    config_type = MQTTConfig
    has_member_parts = True
    ports = (8883, 1883)
    capabilities = Capabilities(
        tells_unroutable=True,
        durable_wildcards=True,
        broker_priority=False,
        survives_broker_kill=False,
        takes_over=False,
        redelivers_at_once=False,
    )

    def __init__(self) -> None:
        super().__init__()
        self._random_name = f"praval-{secrets.token_hex(8)}"

    async def connect(self, address: Address, tls: ssl.SSLContext | None) -> Link:
        """See :class:`BrokerTransport`."""
        link = MQTTLink(self.config, address, tls, self.config.client_id or self._random_name)
        try:
            await link.open()
        except BaseException:
            link.lose(TransportConnectionError("It was never connected."))
            await link.close()
            raise
        return link
