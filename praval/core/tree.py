"""Causal trees: a root spore and everything that was emitted while handling it.

A tree is made when a root spore gets its first descendant, to count against the spore budget.
A :class:`Watch` is hung on it when somebody waits for the tree to finish.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import msgspec

from praval.core.delivery import Failure, Outcome, Posted, Tally

KEPT = 10_000
"""Most spores and failures that a watch remembers; its counters stay exact."""


class Tree:
    """One causal tree."""

    __slots__ = ("root", "spores", "watch")

    def __init__(self, root: str, watch: Watch | None = None) -> None:
        self.root = root
        self.spores = 1
        self.watch = watch


class Result(msgspec.Struct, frozen=True):
    """What one handler returned."""

    agent: str
    value: dict[str, Any]


class Watch:
    """Follows one tree for somebody who waits for it; used on the Reef's loop only."""

    def __init__(self, max_iterations: int | None = None) -> None:
        self.max_iterations = max_iterations
        self.tally = Tally()
        self.results: list[Result] = []
        self.failures: deque[Failure] = deque(maxlen=KEPT)
        self.posted: deque[Posted] = deque(maxlen=KEPT)
        self.started = 0
        self.stopped = False
        self.raised: BaseException | None = None
        """What the session raises: that of an ``on_error="raise"`` agent, or of the Reef."""
        self.finished = asyncio.Event()

    def accept(self, deliveries: int) -> None:
        """So many deliveries have begun."""
        self.tally.deliveries += deliveries
        self.tally.pending += deliveries

    def start(self) -> bool:
        """Ask leave to handle one delivery; refused once the tree is stopped."""
        if self.stopped:
            return False
        if self.max_iterations is not None and self.started >= self.max_iterations:
            self.stopped = True
            return False
        self.started += 1
        return True

    def settle(self, outcome: Outcome) -> None:
        """A delivery has ended; the last one finishes the tree."""
        self.tally.counts[outcome] += 1
        self.tally.pending -= 1
        if self.tally.pending == 0:
            self.finished.set()

    def give_up(self, error: BaseException) -> None:
        """The tree will never be finished: whoever waits gets the error."""
        self.raised = self.raised or error
        self.finished.set()

    def add_result(self, agent: str, value: dict[str, Any]) -> None:
        """Remember what a handler returned."""
        self.results.append(Result(agent, value))
