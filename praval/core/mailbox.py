"""A bounded mailbox: what waits for one agent.

Order of starting is priority, aged, then arrival. A plain deque serves until a second priority
appears; from then on a heap does. A spore of priority p starts ahead of at most
``AGING * (p - q)`` earlier spores of priority q, so that nothing starves.

Spores with a ``key`` start strictly in order, one at a time: while one is waiting or being
handled, the later ones of its key wait in a lane of their own.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterator

from praval.core.delivery import Posted
from praval.core.spore import DEFAULT_PRIORITY, Header

AGING = 100
"""Arrivals that one level of priority is worth."""


class _Lane:
    """The spores of one key: which of them holds it, and those that wait for their turn."""

    __slots__ = ("holder", "waiting")

    def __init__(self, holder: Header) -> None:
        self.holder = holder
        """Its header, which a retry of it shares."""
        self.waiting: deque[Posted] = deque()


class Mailbox:
    """What waits for one agent. Not for use from several threads.

    While all that waits is ordinary (no key, default priority), ``special`` is False and the hot
    path of ``praval.core.runner`` works on ``fifo`` directly; ``crowded`` says that publishers
    wait for room, or were given some and are on their way.
    """

    __slots__ = (
        "_heap", "_lanes", "_parked", "_publishers", "_sequence", "_woken", "capacity", "closed",
        "crowded", "fifo", "low_mark", "special",
    )  # fmt: skip

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.fifo: deque[Posted] = deque()
        self.special = False
        self.crowded = False
        self.closed = False
        self.low_mark = capacity // 2
        """Size at which waiting publishers are woken, all that then find room together."""
        self._heap: list[tuple[int, int, Posted]] = []
        self._lanes: dict[str, _Lane] = {}
        self._parked = 0
        self._sequence = 0
        self._publishers: deque[asyncio.Future[None]] = deque()
        self._woken = 0
        """Publishers that were given room and have not used it yet."""

    @property
    def size(self) -> int:
        """Spores that wait, in lanes too."""
        return len(self.fifo) + len(self._heap) + self._parked

    @property
    def ready(self) -> int:
        """Spores that may start now: all but those that wait for another of their key."""
        return len(self.fifo) + len(self._heap)

    def put(self, posted: Posted) -> None:
        """Add a spore, whatever the capacity: whether there is room is the caller's question."""
        key = posted.header.key
        if key is not None:
            self.special = True
            lane = self._lanes.get(key)
            if lane is not None:
                lane.waiting.append(posted)
                self._parked += 1
                return
            self._lanes[key] = _Lane(posted.header)
        self._enqueue(posted)

    def put_back(self, posted: Posted) -> None:
        """Add a spore that was popped before (a retry); it keeps its hold on its key."""
        self._enqueue(posted)

    def pop(self) -> Posted | None:
        """Take the spore whose turn it is; None if there is none."""
        if self._heap:
            posted = heapq.heappop(self._heap)[2]
        elif self.fifo:
            posted = self.fifo.popleft()
        else:
            return None
        self.special = bool(self._heap or self._lanes or self.closed)
        if self.crowded and self.size <= self.low_mark:
            self.admit()
        return posted

    def take_oldest(self) -> Posted | None:
        """Remove and return what was published first, whatever its priority or key."""
        if not self.special:
            return self.pop()
        parked = [lane.waiting[0] for lane in self._lanes.values() if lane.waiting]
        oldest = min(
            [*self._queue(), *parked],
            key=lambda posted: (posted.header.created_at, posted.header.id),
            default=None,
        )
        if oldest is not None:
            self.discard(lambda posted: posted is oldest)
        return oldest

    def finished(self, key: str, header: Header) -> bool:
        """A spore with this key is settled; return whether the next of its lane may start now.

        One that never held the key, because it was refused, frees nobody.
        """
        lane = self._lanes.get(key)
        if lane is None or lane.holder is not header:
            return False
        if not lane.waiting:
            del self._lanes[key]
            return False
        self._parked -= 1
        following = lane.waiting.popleft()
        lane.holder = following.header
        self._enqueue(following)
        return True

    def discard(self, unwanted: Callable[[Posted], bool]) -> list[Posted]:
        """Remove and return all that wait and are unwanted, in order of starting.

        What is removed must be settled by the caller like any popped spore.
        """
        removed = [posted for posted in self._queue() if unwanted(posted)]
        gone = {id(posted) for posted in removed}
        if removed:
            kept = [posted for posted in self.fifo if id(posted) not in gone]
            self.fifo.clear()
            self.fifo.extend(kept)
            self._heap = [entry for entry in self._heap if id(entry[2]) not in gone]
            heapq.heapify(self._heap)
        for lane in self._lanes.values():
            parked = [posted for posted in lane.waiting if unwanted(posted)]
            removed += parked
            self._parked -= len(parked)
            lane.waiting = deque(posted for posted in lane.waiting if not unwanted(posted))
        self.special = bool(self._heap or self._lanes or self.closed)
        if self.crowded and self.size <= self.low_mark:
            self.admit()
        return removed

    def has_room(self) -> bool:
        """Whether a publisher may add a spore now, without passing others that wait."""
        return self.size < self.capacity and not self.crowded

    async def wait_for_room(self) -> None:
        """Wait, in order of arrival, until there is room.

        That is when the mailbox is half empty: it costs one switch per batch, not per spore.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._publishers.append(future)
        self.crowded = True
        try:
            await future
        except asyncio.CancelledError:
            if not future.cancelled():
                self._woken -= 1
                self.admit()  # the room we were given is another's now
            elif future in self._publishers:
                self._publishers.remove(future)
                self._wake(0)
            raise
        self._woken -= 1
        self._wake(0)

    def close(self) -> None:
        """Wake every waiting publisher; they find the agent gone. Nobody passes by put()."""
        self.closed = self.special = True
        self._wake(len(self._publishers))

    def admit(self) -> None:
        """Wake as many waiting publishers as find room."""
        room = self.capacity - self.size - self._woken
        self._wake(min(len(self._publishers), max(0, room)))

    def _wake(self, number: int) -> None:
        while number and self._publishers:
            publisher = self._publishers.popleft()
            if not publisher.done():  # else it was cancelled
                publisher.set_result(None)
                self._woken += 1
                number -= 1
        self.crowded = bool(self._publishers or self._woken)

    def _enqueue(self, posted: Posted) -> None:
        if not self._heap and posted.header.priority == DEFAULT_PRIORITY:
            self.fifo.append(posted)
            return
        self.special = True
        while self.fifo:
            self._push(self.fifo.popleft())
        self._push(posted)

    def _push(self, posted: Posted) -> None:
        self._sequence += 1
        rank = self._sequence - AGING * (posted.header.priority - DEFAULT_PRIORITY)
        heapq.heappush(self._heap, (rank, self._sequence, posted))

    def _queue(self) -> Iterator[Posted]:
        yield from self.fifo
        for entry in sorted(self._heap):
            yield entry[2]
