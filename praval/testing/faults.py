"""Faults on purpose: failures, delays and duplicates, drawn from a seed or ordered by name.

Each agent has a series of random numbers of its own for each kind of fault, so that one more
agent, or one more kind of fault, does not change what happens to the others.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from praval.core.context import open_handling
from praval.core.interceptor import Interceptor
from praval.core.spore import Spore
from praval.errors import ConfigurationError
from praval.testing.clock import thread_job

if TYPE_CHECKING:
    from praval.core.agent import AgentDefinition
    from praval.core.reef import Reef
    from praval.testing.record import Record

Fault = Exception | type[Exception]


class InjectedFault(Exception):
    """What a handler "raises" when a :class:`~praval.testing.TestReef` lets it fail."""


class Faults(Interceptor):
    """The innermost interceptor: stands where the handler would be called.

    Args:
        reef: whose deliveries are delivered twice.
        record: told of every publication, as it will be routed.
        seed: decides what happens to whom.
        failure: fraction of the attempts that fail.
        delay: least and most seconds before a handler is called.
        duplicate: fraction of the deliveries that come twice.

    Raises:
        ConfigurationError: a fraction is not between 0 and 1, or the delays are out of order.
    """

    def __init__(
        self,
        reef: Reef,
        record: Record,
        *,
        seed: int | str,
        failure: float,
        delay: tuple[float, float],
        duplicate: float,
    ) -> None:
        for name, fraction in (("failure", failure), ("duplicate", duplicate)):
            if not 0 <= fraction <= 1:
                raise ConfigurationError(f"{name} is a fraction from 0 to 1, not {fraction!r}.")
        if not 0 <= delay[0] <= delay[1] < math.inf:
            raise ConfigurationError(f"delay is (least, most) in seconds, not {delay!r}.")
        self._reef = reef
        self._record = record
        self._seed = seed
        self._failure = failure
        self._delay = delay
        self._duplicate = duplicate
        self._random: dict[tuple[str, str], random.Random] = {}
        self._jobs = 0
        self.failures: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self.delays: defaultdict[str, deque[float]] = defaultdict(deque)
        self.duplicates: defaultdict[str, int] = defaultdict(int)

    def publish(self, spore: Spore) -> Spore:
        """Record it as the last to see it."""
        self._record.published(spore)
        return spore

    async def handle(
        self, spore: Spore, agent: AgentDefinition, call_next: Callable[[Spore], Awaitable[Any]]
    ) -> Any:
        """Let the handler be called late, twice, or not at all."""
        name = agent.name
        again = self._comes_again(name, spore.attempt)
        delay = self._delay_of(name)
        fault = self._fault_of(name)
        if again:
            worker = open_handling()
            assert worker is not None
            assert worker.posted is not None
            self._reef.publisher.redeliver(worker.posted, worker.runner)
        if delay:
            await asyncio.sleep(delay)
        if fault is not None:
            raise fault
        self._jobs += 1
        thread_job.set(self._jobs)
        return await call_next(spore)

    def _comes_again(self, agent: str, attempt: int) -> bool:
        if attempt > 1:
            return False
        if self.duplicates[agent]:
            self.duplicates[agent] -= 1
            return True
        return self._draw("duplicate", agent) < self._duplicate

    def _delay_of(self, agent: str) -> float:
        if self.delays[agent]:
            return self.delays[agent].popleft()
        least, most = self._delay
        return least + (most - least) * self._draw("delay", agent)

    def _fault_of(self, agent: str) -> Fault | None:
        if self.failures[agent]:
            return self.failures[agent].popleft()
        if self._draw("failure", agent) < self._failure:
            return InjectedFault(f"injected into agent {agent!r} (seed {self._seed!r})")
        return None

    def _draw(self, kind: str, agent: str) -> float:
        series = self._random.get((kind, agent))
        if series is None:
            # a text as seed is hashed in a way that no process and no version changes
            series = self._random[kind, agent] = random.Random(f"{self._seed}/{kind}/{agent}")
        return series.random()
