"""One member of a consumer group on Redis: what it reads, holds, acknowledges and gives back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from praval.errors import TransportConnectionError
from praval_transports import redis_scripts as scripts
from praval_transports.message import Incoming
from praval_transports.redis_wire import Wire

if TYPE_CHECKING:
    from praval_transports.redis import RedisLink

BODY = b"body"
"""The first field of an entry; the others are the headers."""
UNTRIMMED = 4 * 1024 * 1024
"""Bytes acknowledged (4 KiB more for each message) after which streams are trimmed."""

Place = tuple[str, bytes]
"""The topic and the id of an entry."""


class Member(NamedTuple):
    """Who reads: the same over reconnections, and with a ``client_id`` over restarts."""

    group: str
    name: str

    @property
    def is_private(self) -> bool:
        """Whether the group is its own, and goes with it."""
        return self.group.startswith(scripts.PRIVATE)


class RedisIncoming(Incoming):
    """An entry of a stream."""

    __slots__ = ("_reader", "place")

    def __init__(
        self, reader: Reader, place: Place, fields: list[bytes], *, redelivered: bool
    ) -> None:
        body, rest = (fields[1], fields[2:]) if fields[0] == BODY else (b"", fields)
        texts = [text.decode(errors="replace") for text in rest]
        headers = dict(zip(texts[::2], texts[1::2], strict=True))
        super().__init__(place[0], body, headers, redelivered)
        self._reader = reader
        self.place = place

    async def acknowledge(self) -> None:
        """See :class:`Incoming`; goes out with others at the end of this step of the loop."""
        self._reader.acknowledge(self)

    async def give_back(self) -> None:
        """See :class:`Incoming`."""
        await self._reader.give_back(self)


class Reader:
    """See the module. Its reading blocks a connection, so it has one of its own."""

    def __init__(
        self,
        link: RedisLink,
        wire: Wire,
        member: Member,
        topics: Iterable[str],
        *,
        receive: Callable[[Incoming], None],
        rejoin: Callable[[], Awaitable[list[str]]] | None,
    ) -> None:
        """``rejoin``: tells which topics there are now, if there are wildcards."""
        self.member = member
        self._link = link
        self._wire = wire
        self._receive = receive
        self._rejoin = rejoin
        self._prefetch = link.config.prefetch_count
        self._wake_key = link.key(f":wake:{member.name}").encode()
        self._listen_to(topics)
        self._held: dict[Place, RedisIncoming] = {}
        """What was read and is neither acknowledged nor given back."""
        self._spare: deque[RedisIncoming] = deque()
        """What of that was read beyond the prefetch: ``COUNT`` is for each stream."""
        self._room = asyncio.Event()
        self._done: dict[bytes, list[bytes]] = {}
        """Stream -> ids to acknowledge at the end of this step of the loop."""
        self._untrimmed: dict[str, int] = {}
        self._claim_at = 0.0
        self._stopping = False
        self._group_is_gone = False
        self._reading = asyncio.create_task(self._read(), name="praval:redis reader")

    def _listen_to(self, topics: Iterable[str]) -> None:
        self._topics = {self._link.key(topic).encode(): topic for topic in topics}

    # -- reading -------------------------------------------------------------------------

    async def _read(self) -> None:
        """Read until told to stop. Whatever ends it otherwise ends the link."""
        loop = asyncio.get_running_loop()
        try:
            await self._take_own()
            while not self._stopping:
                if not self._has_room():
                    await self._room.wait()
                elif loop.time() >= self._claim_at:
                    await self._claim()
                else:
                    await self._take_new()
            while self._spare:
                await self.give_back(self._spare.popleft())
        except Exception as error:  # noqa: BLE001 - whatever it is: nobody reads any more
            why = f"Reading as {self.member.group!r} ended: {str(error) or 'no answer'}"
            self._link.lose(TransportConnectionError(why))
        finally:
            await self._wire.close()

    def _has_room(self) -> bool:
        """Whether there is room for more; if not, ``_room`` will be set when there is."""
        self._room.clear()
        return len(self._held) < self._prefetch or self._stopping

    @property
    def _count(self) -> int:
        """How many messages of each stream to read."""
        return max(1, (self._prefetch - len(self._held)) // max(1, len(self._topics)))

    async def _take_own(self) -> None:
        """Take what this member had when its last connection was lost."""
        after = dict.fromkeys(self._topics, b"0")
        while after:
            answer = await self._read_group(after, "COUNT", self._prefetch)
            after = {stream: entries[-1][0] for stream, entries in answer if entries}
            self._take(answer, redelivered=True)
        await self.refresh()

    async def _take_new(self) -> None:
        pulse = self._link.config.pulse
        streams = dict.fromkeys((*self._topics, self._wake_key), b">")
        async with asyncio.timeout(pulse + self._link.config.confirm_timeout):
            self._take(
                await self._read_group(
                    streams, "COUNT", self._count, "BLOCK", max(1, int(pulse * 1000))
                ),
                redelivered=False,
            )

    async def _read_group(self, streams: dict[bytes, bytes], *options: str | int) -> Any:
        answer = await self._wire.call(
            "XREADGROUP", "GROUP", *self.member, *options, "STREAMS", *streams, *streams.values()
        )
        return answer or ()

    async def _claim(self) -> None:
        """Take what nobody has refreshed for too long, or somebody has given back."""
        idle = self._link.config.claim_idle
        self._claim_at = asyncio.get_running_loop().time() + idle / 2
        if self._rejoin is not None:
            self._listen_to(await self._rejoin())
        for stream in self._topics:
            start = b"0-0"
            while not self._stopping:
                start, entries, *_ = await self._wire.call(
                    "XAUTOCLAIM", stream, *self.member, int(idle * 1000), start,
                    "COUNT", self._count,
                )  # fmt: skip
                self._take([(stream, entries)], redelivered=True)
                if start == b"0-0":
                    break
                if not self._has_room():
                    await self._room.wait()

    def _take(self, answer: Iterable[tuple[bytes, Any]], *, redelivered: bool) -> None:
        for stream, entries in answer:
            if stream == self._wake_key:
                self._claim_at = 0.0
                self._acknowledge(stream, *(entry[0] for entry in entries))
                continue
            for entry_id, fields in entries:
                place = self._topics[stream], entry_id
                if not fields:  # somebody has trimmed it away
                    self._acknowledge(stream, entry_id)
                elif place not in self._held:
                    incoming = RedisIncoming(self, place, fields, redelivered=redelivered)
                    self._held[place] = incoming
                    self._spare.append(incoming)
        self._hand_over()

    def _hand_over(self) -> None:
        """Let the subscriber have as much as it may hold."""
        while (
            self._spare
            and not self._stopping
            and len(self._held) - len(self._spare) < self._prefetch
        ):
            self._receive(self._spare.popleft())
        self._room.set()

    # -- settling ------------------------------------------------------------------------

    def acknowledge(self, incoming: RedisIncoming) -> None:
        """Note that a message is done with.

        Raises:
            TransportConnectionError: the link is lost; the message will come again.
        """
        self._link.must_live()
        if self._held.pop(incoming.place, None) is not None:
            topic, entry_id = incoming.place
            cost = 4096 + len(incoming.body)
            self._untrimmed[topic] = self._untrimmed.get(topic, 0) + cost
            self._acknowledge(self._link.key(topic).encode(), entry_id)
            self._hand_over()

    def _acknowledge(self, stream: bytes, *entry_ids: bytes) -> None:
        if not self._done:
            asyncio.get_running_loop().call_soon(self._flush)
        self._done.setdefault(stream, []).extend(entry_ids)

    def _flush(self) -> None:
        done, self._done = self._done, {}
        for stream, entry_ids in done.items():
            self._link.tell("XACK", stream, self.member.group, *entry_ids)
        if sum(self._untrimmed.values()) > UNTRIMMED:
            self.trim()

    def trim(self) -> None:
        """Let the server drop what all groups have acknowledged."""
        if self._untrimmed:
            self._link.tell(*self._link.script(scripts.TEND, *self._untrimmed))
            self._untrimmed = {}

    async def give_back(self, incoming: RedisIncoming) -> None:
        """Let any member of the group have it at once.

        Raises:
            TransportConnectionError: the link is lost; the message will come again.
        """
        if self._held.pop(incoming.place, None) is not None:
            self._hand_over()
            await self._link.call(
                *self._link.script(scripts.GIVE_BACK, *self.member, *incoming.place)
            )

    # -- life ----------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Tell the server that this member lives and works on what it holds."""
        if self._group_is_gone:
            return
        link, held = self._link, dict[str, list[bytes]]()
        for topic, entry_id in self._held:
            held.setdefault(topic, []).append(entry_id)
        calls = [
            link.call("XCLAIM", link.key(topic), *self.member, 0, *entry_ids, "JUSTID")
            for topic, entry_ids in held.items()
        ]
        if not self._stopping:
            for key in (self._wake_key, link.key(f":members:{self.member.group}")):
                calls.append(link.call("EXPIRE", key, link.config.lease))
            if self.member.is_private:  # its streams have a lease as well
                self._untrimmed |= dict.fromkeys(self._topics.values(), 0)
            self.trim()
        await asyncio.gather(*calls)

    @property
    def is_done(self) -> bool:
        """Whether it was stopped, and all that it had is settled."""
        return self._stopping and not self._held

    async def stop(self, *, group_goes: bool) -> None:
        """Read no more; what was read and not handed over goes back to the group."""
        self._stopping = True
        self._room.set()
        await self._link.call(*self._link.script(scripts.WAKE, self.member.name))
        await asyncio.wait([self._reading])
        self._link.must_live()
        self._group_is_gone = group_goes

    async def close(self) -> None:
        """End, with the link."""
        self._reading.cancel()
        await asyncio.wait([self._reading])
