"""MQTT sessions: what the broker keeps under one client id, and who gets it here."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from praval.core.topics import ONE, Topic, dotted, encode_segment, matches, parse_topic
from praval.errors import TopicError, TransportConnectionError
from praval_transports.dispatch import Listening
from praval_transports.message import Incoming
from praval_transports.mqtt_codec import Publication
from praval_transports.mqtt_connection import Connection

if TYPE_CHECKING:
    from praval_transports.mqtt import MQTTLink

FETCHED = 268_435_455
"""Identifier of subscriptions to what is retained; those of others are smaller."""
LETTERS = ":letters"
"""The topics below this level of the dead-letter topic are the dead letters. No topic of ours has
a colon: they are encoded."""
EMPTY = "praval-empty"
"""Header of a dead letter without a body: a retained message must have one."""


class MQTTIncoming(Incoming):
    """A message from a session."""

    __slots__ = ("_session", "done", "here", "letter", "listening", "packet")

    def __init__(self, session: Session, message: Publication) -> None:
        super().__init__(canonical(message.topic), message.body, message.headers, message.again)
        self.packet = message.packet
        self.listening: Listening | None = None
        """Who got it."""
        self.done: bool | None = None
        """True: acknowledged; False: given back."""
        self.here = True
        """Whether it came over the connection that the session has now."""
        self.letter: str | None = None
        """The topic of a dead letter that is to be removed."""
        self._session = session

    async def acknowledge(self) -> None:
        """See :class:`Incoming`."""
        if self.letter is not None:
            await self._session.link.remove_letter(self.letter)
        self._session.settle(self, True)

    async def give_back(self) -> None:
        """See :class:`Incoming`."""
        self._session.settle(self, False)


class Session:
    """A session at the broker, and the subscriptions of this client that share its messages.

    Args:
        link: what it belongs to.
        client_id: its name.
        group: whose messages it shares; None: it has copies of its own.
        expiry: seconds that the broker keeps it; 0: it is for one subscription, and ends with it.
        lingers: whether it stays connected, taking nothing in, when no subscription is left.
    """

    def __init__(
        self, link: MQTTLink, client_id: str, group: str | None, expiry: int, *, lingers: bool
    ) -> None:
        self.link = link
        self.listenings: list[Listening] = []
        self._client_id = client_id
        self._group = group
        self._prefix = "" if group is None else f"$share/{group}/"
        self._expiry = expiry
        self._connection: Connection | None = None
        self._window = 0
        self._held: deque[MQTTIncoming] = deque()
        """What came in and is not acknowledged, in its order."""
        self._given_back = 0
        self._patterns: tuple[Topic, ...] = ()
        self._meanings: dict[int, tuple[Topic, tuple[Topic, ...]]] = {}
        """Subscription identifier -> its pattern, and all that were subscribed to with it."""
        self._up_to_date = False
        """Whether something came that was published after it has subscribed."""
        self._lingers = lingers
        self._retired = False
        self._last_expiry: int | None = None

    # -- subscribing ---------------------------------------------------------------------

    async def join(self, listening: Listening, patterns: Sequence[Topic]) -> None:
        """Let a subscription share the messages, and those of its patterns come in too."""
        self.listenings.append(listening)
        window = len(self.listenings) * self.link.config.prefetch_count
        if window > self._window:
            await self._connect(window)
            self._window = window
        wanted = tuple(sorted({*self._patterns, *patterns}))
        if wanted != self._patterns:
            for pattern in wanted:
                await self._hear(pattern, wanted)
            self._patterns = wanted

    async def _connect(self, window: int) -> None:
        """Connect, or take the session over to a connection with a larger window."""
        previous = self._connection
        if previous is not None:
            previous.leaving, previous.receive = True, None
        self._connection = connection = Connection(
            self.link.config,
            self._client_id,
            session_expiry=self._expiry,
            window=window,
            receive=self._receive,
            ended=self.link.lose,
        )
        for each in self._held:
            each.here = False
        try:
            await self.link.connect(connection)
        except BaseException:
            if previous is not None:  # the others that share it have none now
                self.link.lose(TransportConnectionError("A connection could not be replaced."))
            raise

    async def _hear(self, pattern: Topic, patterns: tuple[Topic, ...]) -> None:
        """Subscribe to one of several patterns.

        The broker sends a copy for each that matches. The identifier tells them apart; only the
        copy of the first pattern counts. It depends on all patterns, because what a persistent
        session has collected under others must not be taken for such copies.
        """
        assert self._connection is not None
        number = zlib.crc32(repr((pattern, patterns)).encode()) % (FETCHED - 1) + 1
        self._meanings[number] = (pattern, patterns)
        await self._connection.hear(self._prefix + on_the_wire(pattern), number)

    async def fetch(self, pattern: Topic) -> None:
        """Let all retained messages of a pattern come in, and no others of it."""
        assert self._connection is not None
        self._meanings[FETCHED] = (pattern, (pattern,))
        await self._connection.hear(on_the_wire(pattern), FETCHED, retained=True)
        await self._connection.unhear([on_the_wire(pattern)])

    async def forget(self) -> None:
        """End its subscriptions at the broker: other members get what is published from now on."""
        if self._connection is not None and self._patterns:
            await self._connection.unhear([self._prefix + on_the_wire(p) for p in self._patterns])

    def retire(self, last_expiry: int | None = None) -> None:
        """Take nothing more in, and disconnect when all that is held is settled.

        Args:
            last_expiry: seconds that the broker keeps the session; None: as it was agreed.
        """
        self._retired, self._last_expiry = True, last_expiry
        self._lingers = self._lingers and last_expiry is None
        if self._connection is not None:
            self._connection.leaving = True
            self._flush()

    # -- messages ------------------------------------------------------------------------

    def _receive(self, message: Publication) -> None:
        if not self.listenings:
            return  # it stays unacknowledged, and with it in the session
        if message.again:
            for held in self._held:
                if held.packet == message.packet and not held.here:
                    held.here = True  # it has been with us all the time
                    self._flush()
                    return
        incoming = MQTTIncoming(self, message)
        if message.packet:
            self._held.append(incoming)
        if self._is_copy(message) or self._is_unwanted(incoming, message.topic):
            self.settle(incoming, True)
            return
        incoming.listening = self._next()
        incoming.listening.receive(incoming)

    def _is_copy(self, message: Publication) -> bool:
        """Whether it came for a pattern beside another one that counts."""
        known = [self._meanings[each] for each in message.identifiers if each in self._meanings]
        levels = tuple(message.topic.split("/"))
        if known:
            self._up_to_date = True
            return all(
                any(matches(other, levels) for other in patterns[: patterns.index(pattern)])
                for pattern, patterns in known
            )
        # A subscription of an earlier run, which the session still has. What was published before
        # this run has no other copy; messages come in order.
        return self._up_to_date and any(matches(pattern, levels) for pattern in self._patterns)

    def _is_unwanted(self, incoming: MQTTIncoming, topic: str) -> bool:
        """Read a dead letter; whether it is one that our subscriptions do not get here."""
        dead = self.link.dead
        if not topic.startswith(f"{'/'.join(dead)}/{LETTERS}/"):
            return False
        if not incoming.body:
            return True  # it says that somebody has removed the letter
        if incoming.headers.pop(EMPTY, None) is not None:
            incoming.body = b""
        incoming.topic = dotted(dead)
        if self._group == incoming.topic:
            incoming.letter = topic
            return self._expiry > 0  # a session of its own has them
        return not any(each.hears(dead) for each in self.listenings)

    def _next(self) -> Listening:
        """Return the subscription that has the fewest messages."""
        if len(self.listenings) == 1:
            return self.listenings[0]
        busy = [each.listening for each in self._held]
        return min(self.listenings, key=busy.count)

    def settle(self, incoming: MQTTIncoming, done: bool) -> None:
        """Acknowledge a message, as soon as all before it are settled, or never.

        Raises:
            TransportConnectionError: the connection has ended.
        """
        if self._connection is None or self._connection.ended.done():
            raise TransportConnectionError("The connection that it came over has ended.")
        incoming.done = done
        self._flush()

    def _flush(self) -> None:
        assert self._connection is not None
        held = self._held
        while held and held[0].here and held[0].done is not None:
            if (first := held.popleft()).done:
                self._connection.acknowledge(first.packet)
            else:
                self._given_back += 1
        if self._retired:
            if not held and not self._lingers:
                self._connection.hang_up(self._last_expiry)
        elif self._given_back >= self._window > 0:
            self._given_back = 0
            error = TransportConnectionError(
                "As many messages as prefetch_count allows were given back: only a new connection "
                "brings them, and any other."
            )
            loop = asyncio.get_running_loop()
            loop.call_later(self.link.config.reconnect_delay, self.link.lose, error)


def on_the_wire(pattern: Topic) -> str:
    """Write a topic or pattern as MQTT does."""
    return "/".join("+" if segment == ONE else segment for segment in pattern)


@lru_cache(maxsize=4096)
def canonical(topic: str) -> str:
    """Write a topic from the wire with dots, and encode what other programs did not."""
    return dotted([_encoded(level) for level in topic.split("/")])


def _encoded(level: str) -> str:
    try:
        if level and dotted(parse_topic(level)) == level and "." not in level:
            return level
    except TopicError:
        pass
    return encode_segment(level) if level else level
