"""The numbered budgets as data, and the ratio each is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Runs = Mapping[str, Sequence[Mapping[str, float] | None]]
"""Contestant -> one result per round; None where it did not run."""


@dataclass(frozen=True, slots=True)
class Budget:
    """``numerator / denominator`` of one metric must be on the right side of ``threshold``.

    Without a denominator the numerator's own figure is judged, in the metric's unit.
    """

    number: str
    what: str
    workload: str
    metric: str
    numerator: str
    denominator: str | None
    direction: Literal[">=", "<="]
    threshold: float

    def judge(self, runs: Runs) -> Verdict | None:
        """Median of the pairwise ratios; None when no round has both contestants."""
        ratios: list[float] = []
        above = runs.get(self.numerator, ())
        below = (
            runs.get(self.denominator, ())
            if self.denominator
            else [{self.metric: 1.0}] * len(above)
        )
        for top, bottom in zip(above, below, strict=False):
            if top is not None and bottom is not None:
                ratios.append(top[self.metric] / bottom[self.metric])
        return Verdict(self, tuple(ratios)) if ratios else None

    def margin(self, ratio: float) -> float:
        """How many times better than the threshold; below 1 the budget is missed."""
        return ratio / self.threshold if self.direction == ">=" else self.threshold / ratio


@dataclass(frozen=True, slots=True)
class Verdict:
    """A budget with the ratios that were measured, one per pair."""

    budget: Budget
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The median, which decides."""
        return median(self.ratios)

    @property
    def margin(self) -> float:
        """Of the median."""
        return self.budget.margin(self.ratio)

    @property
    def met(self) -> bool:
        return self.margin >= 1.0

    @property
    def agreeing(self) -> int:
        """Pairs that say the same as the median: fewer than all means the figure is noisy."""
        return sum((self.budget.margin(ratio) >= 1.0) == self.met for ratio in self.ratios)


def _rate(number: str, workload: str, other: str, threshold: float, what: str) -> Budget:
    return Budget(number, what, workload, "rate", "praval", other, ">=", threshold)


BUDGETS: tuple[Budget, ...] = (
    _rate("1a", "W1x100", "direct", 0.15, "1 to 100 agents, against a direct await"),
    _rate("1b", "W1x100", "queue", 0.7, "1 to 100 agents, against asyncio.Queue"),
    _rate("1c", "W1x100", "autogen-core", 20, "1 to 100 agents, against autogen-core"),
    _rate("2a", "W1x1", "queue", 0.4, "1 to 1 agent, against asyncio.Queue"),
    _rate("2b", "W1x1", "autogen-core", 30, "1 to 1 agent, against autogen-core"),
    _rate("3a", "W2", "queue", 0.9, "request and reply, against queue + future + timeout"),
    _rate("3b", "W2", "autogen-core", 8, "request and reply, against autogen-core"),
    Budget(
        "3c",
        "request and reply on uvloop, against itself on asyncio",
        "W2",
        "rate",
        "praval+uvloop",
        "praval",
        ">=",
        1.5,
    ),
    _rate("4a", "W3", "queue", 0.2, "pipeline of 5, against a pipeline of queues"),
    _rate("4b", "W3", "autogen-core", 20, "pipeline of 5, against autogen-core"),
    Budget(
        "5",
        "1,000 sleeping handlers, wall time against asyncio.gather",
        "W5",
        "wall_ms",
        "praval",
        "gather",
        "<=",
        1.5,
    ),
    Budget("6a", "latency p50, against a queue", "W6", "p50", "praval", "queue", "<=", 2),
    Budget("6b", "latency p99, against a queue", "W6", "p99", "praval", "queue", "<=", 3),
    Budget(
        "7a",
        "memory of an idle agent, against a queue and its task",
        "W4-idle",
        "bytes",
        "praval",
        "queue",
        "<=",
        2,
    ),
    Budget(
        "7b",
        "registering an agent, us of CPU",
        "W4-register",
        "cpu_us",
        "praval",
        None,
        "<=",
        100,
    ),
    Budget(
        "8",
        "CPU of `import praval`, against `import asyncio`",
        "W4-import",
        "cpu_ms",
        "praval",
        "asyncio",
        "<=",
        2.5,
    ),
    Budget(
        "9a",
        "tracing installed but off, 1 agent, against no hooks",
        "W9x1",
        "relative",
        "praval+tracing",
        None,
        ">=",
        0.95,
    ),
    Budget(
        "9b",
        "tracing installed but off, 100 agents, against no hooks",
        "W9x100",
        "relative",
        "praval+tracing",
        None,
        ">=",
        0.95,
    ),
)
