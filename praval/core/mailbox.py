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
from praval.core.spore import DEFAULT_PRIORITY

AGING = 100
"""Arrivals that one level of priority is worth."""


class Mailbox:
    """What waits for one agent. Not for use from several threads."""

    __slots__ = ("_fifo", "_heap", "_lanes", "_publishers", "_sequence", "capacity", "size")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        """Spores that wait, in lanes too."""
        self._fifo: deque[Posted] = deque()
        self._heap: list[tuple[int, int, Posted]] | None = None
        self._lanes: dict[str, deque[Posted]] | None = None
        self._sequence = 0
        self._publishers: deque[asyncio.Future[None]] | None = None

    def put(self, posted: Posted) -> None:
        """Add a spore, whatever the capacity: whether there is room is the caller's question."""
        self.size += 1
        if posted.header.key is not None and self._lane_taken(posted):
            return
        self._enqueue(posted)

    def put_back(self, posted: Posted) -> None:
        """Add a spore that was popped before (a retry); it keeps its hold on its key."""
        self.size += 1
        self._enqueue(posted)

    def pop(self) -> Posted | None:
        """Take the spore whose turn it is; None if there is none."""
        if self._heap is not None:
            if not self._heap:
                return None
            posted = heapq.heappop(self._heap)[2]
        elif self._fifo:
            posted = self._fifo.popleft()
        else:
            return None
        self.size -= 1
        if self._publishers is not None:
            self._wake_publishers()
        return posted

    def finished(self, key: str) -> None:
        """A popped spore with this key is settled: the next of its lane may start."""
        lanes = self._lanes
        if lanes is None or key not in lanes:
            return
        lane = lanes[key]
        if lane:
            self._enqueue(lane.popleft())
        else:
            del lanes[key]

    def discard(self, unwanted: Callable[[Posted], bool]) -> list[Posted]:
        """Remove and return all that wait and are unwanted, in order of starting."""
        waiting = list(self._waiting())
        removed = [posted for posted in waiting if unwanted(posted)]
        if removed:
            gone = {id(posted) for posted in removed}
            held = set(self._lanes or ()) - {
                posted.header.key for posted in self._queue() if posted.header.key
            }
            kept = [posted for posted in waiting if id(posted) not in gone]
            self._fifo.clear()
            self._heap = None if self._heap is None else []
            # a key whose spore is being handled right now stays held
            self._lanes = {key: deque() for key in held} or None
            self.size = 0
            for posted in kept:
                self.put(posted)
            self._wake_publishers()
        return removed

    def has_room(self) -> bool:
        """Whether a publisher may add a spore now, without passing others that wait."""
        return self.size < self.capacity and not self._publishers

    async def wait_for_room(self) -> None:
        """Wait, in order of arrival, until there is room.

        Publishers are woken when the mailbox is half empty, all that then find room together:
        that costs one switch per batch instead of one per spore.
        """
        if self._publishers is None:
            self._publishers = deque()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._publishers.append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._wake_publishers()  # the room we were given is another's now
            elif future in self._publishers:
                self._publishers.remove(future)
            raise

    def close(self) -> None:
        """Wake every waiting publisher; they find the agent gone."""
        publishers, self._publishers = self._publishers, None
        for future in publishers or ():
            if not future.done():
                future.set_result(None)

    def _wake_publishers(self) -> None:
        publishers = self._publishers
        if publishers is None:
            return
        if self.size <= self.capacity // 2:
            for _ in range(min(len(publishers), self.capacity - self.size)):
                future = publishers.popleft()
                if not future.done():
                    future.set_result(None)
        if not publishers:
            self._publishers = None

    def _enqueue(self, posted: Posted) -> None:
        self._sequence += 1
        if self._heap is None:
            if posted.header.priority == DEFAULT_PRIORITY:
                self._fifo.append(posted)
                return
            first = self._sequence - len(self._fifo)
            self._heap = [(first + i, first + i, waiting) for i, waiting in enumerate(self._fifo)]
            self._fifo.clear()
        rank = self._sequence - AGING * (posted.header.priority - DEFAULT_PRIORITY)
        heapq.heappush(self._heap, (rank, self._sequence, posted))

    def _lane_taken(self, posted: Posted) -> bool:
        key = posted.header.key
        assert key is not None
        if self._lanes is None:
            self._lanes = {}
        lane = self._lanes.get(key)
        if lane is None:
            self._lanes[key] = deque()
            return False
        lane.append(posted)
        return True

    def _queue(self) -> Iterator[Posted]:
        if self._heap is not None:
            return (entry[2] for entry in sorted(self._heap))
        return iter(self._fifo)

    def _waiting(self) -> Iterator[Posted]:
        yield from self._queue()
        for lane in (self._lanes or {}).values():
            yield from lane
