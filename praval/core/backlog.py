"""How many receipts of each agent are missing, and the publishers that wait for fewer.

They wait in a line for each agent, first come, first served. Each receipt lets one of them go on;
one that is cancelled when it is its turn passes the turn on.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

LOOK_AGAIN = 1.0
"""Seconds after which a publisher asks whether it still has to wait: agents come and go."""


class _Line:
    """The publishers that wait for one agent."""

    __slots__ = ("called", "waiting")

    def __init__(self) -> None:
        self.waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self.called = 0
        """Publishers whose turn it is, and who have not gone on yet."""

    def call(self) -> None:
        """Tell the first one that it is its turn."""
        turn, _ = self.waiting.popitem(last=False)
        turn.set_result(None)
        self.called += 1


class Backlog:
    """See the module. Used on the Reef's loop only."""

    def __init__(self, most: int) -> None:
        self.missing: Counter[str] = Counter()
        """Agent -> spores whose receipt from it is missing; no zeros."""
        self._most = most
        self._lines: dict[str, _Line] = {}

    def more(self, names: Iterable[str]) -> None:
        """One receipt more of each of these is missing."""
        self.missing.update(names)

    def less(self, name: str) -> None:
        """One receipt less of this agent is missing."""
        self.missing[name] -= 1
        if not self.missing[name]:
            del self.missing[name]
        self._call(name)

    def is_full(self, name: str) -> bool:
        """Whether as many are missing as may."""
        return self.missing[name] >= self._most

    def is_shut(self, name: str) -> bool:
        """Whether it is full, or other publishers wait, whom nobody is to pass."""
        return name in self._lines or self.missing[name] >= self._most

    async def wait(self, name: str, needed: Callable[[], bool]) -> None:
        """Wait for a turn to send to an agent, as long as that is ``needed``."""
        line = self._lines.setdefault(name, _Line())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line.waiting[turn] = None
        used = False
        try:
            while not turn.done() and needed():
                self._call(name)  # a turn may have been given to one that had no use for it
                await asyncio.wait((turn,), timeout=LOOK_AGAIN)
            used = True
        finally:
            if turn.done():
                line.called -= 1
            else:
                del line.waiting[turn]
            if not line.waiting and not line.called:
                del self._lines[name]
            elif not used:
                self._call(name)

    def release(self) -> None:
        """Let all publishers go on."""
        for line in self._lines.values():
            while line.waiting:
                line.call()

    def _call(self, name: str) -> None:
        """Let as many publishers go on as there is room for."""
        if (line := self._lines.get(name)) is not None:
            room = self._most - self.missing[name] - line.called
            while line.waiting and room > 0:
                line.call()
                room -= 1
