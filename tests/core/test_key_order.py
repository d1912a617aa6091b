"""Spores with one key are handled strictly in order, and cost nothing while they wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from praval import Outcome, Spore, agent, broadcast
from praval.core.session import run_tree
from praval.settings import Settings, merge
from praval.testing import TestReef


class Turns:
    """Handles spores for a virtual second each and notes who was at work together."""

    def __init__(self) -> None:
        self.order: list[Any] = []
        self.at_work = 0
        self.most = 0

    async def take(self, spore: Spore) -> None:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        self.order.append(spore.knowledge.get("n"))
        try:
            await asyncio.sleep(1)
        finally:
            self.at_work -= 1


def keyed(turns: Turns, **options: Any) -> Any:
    @agent("keyed", concurrent=True, **options)
    async def handler(spore: Spore) -> None:
        await turns.take(spore)

    return handler


async def test_one_key_is_handled_in_order_one_at_a_time() -> None:
    """However many workers an agent may have."""
    turns = Turns()
    async with TestReef(keyed(turns)) as reef:
        for n in range(5):
            await reef.broadcast({"n": n}, key="k")
        await reef.settle()
        assert turns.order == [0, 1, 2, 3, 4]
        assert turns.most == 1
        assert reef.elapsed == 5


async def test_different_keys_are_handled_at_once() -> None:
    """One key does not wait for another."""
    turns = Turns()
    async with TestReef(keyed(turns)) as reef:
        for n in range(5):
            await reef.broadcast({"n": n}, key=f"k{n}")
        await reef.settle()
        assert turns.most == 5
        assert reef.elapsed == 1


async def test_workers_rest_while_spores_wait_for_their_key() -> None:
    """Nothing is ready while the first is at work: idle workers do not spin."""
    turns = Turns()
    async with TestReef(keyed(turns)) as reef:
        for n in range(3):
            await reef.broadcast({"n": n})  # three workers
        await reef.settle()
        for n in range(3):
            await reef.broadcast({"n": n}, key="k")
        async with asyncio.timeout(0.5):
            await reef.timeline.rest()  # never ends if a worker keeps the loop busy
        await reef.settle()
        assert reef.ledger().handled == 6


async def test_a_refused_spore_does_not_free_the_key() -> None:
    """One that was never let in (wrong type) leaves those that wait for the key in order."""
    turns = Turns()
    async with TestReef(keyed(turns, responds_to=["right"])) as reef:
        for n in range(2):
            await reef.broadcast({"type": "right", "n": n}, key="k")
        await reef.advance(0.5)
        await reef.send("keyed", {"type": "wrong"}, key="k")
        await reef.settle()
        assert turns.most == 1
        assert reef.ledger().filtered == 1
        assert reef.ledger().balanced


async def test_a_spore_rejected_for_want_of_room_does_not_free_the_key() -> None:
    """The hard capacity refuses it; the order of those before it stays."""
    turns = Turns()

    @agent("source", responds_to=["go"])
    async def source(spore: Spore) -> None:
        for n in range(6):
            broadcast({"type": "job", "n": n}, key="k")

    settings = merge(Settings(), {"reef_config": {"channel_capacity": 2, "hard_capacity": 3}})
    async with TestReef(source, keyed(turns, responds_to=["job"]), settings=settings) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        ledger = reef.ledger()
        assert ledger.rejected > 0
        assert ledger.balanced
        assert turns.most == 1
        assert turns.order == sorted(turns.order)


async def test_a_cancelled_retry_frees_its_key() -> None:
    """When a session ends while its spore waits for a retry, the next of the key starts."""
    turns = Turns()
    first = True

    @agent("keyed", responds_to=["job"], retries=1, backoff=1000)
    async def handler(spore: Spore) -> None:
        nonlocal first
        if first:
            first = False
            raise ValueError("once")
        await turns.take(spore)

    @agent("root", responds_to=["start"])
    async def root(spore: Spore) -> None:
        broadcast({"type": "job", "n": "of the session"}, key="k")

    async with TestReef(handler, root) as reef:
        session = asyncio.create_task(run_tree(reef, {"type": "start"}, timeout=10))
        await reef.advance(5)
        await reef.broadcast({"type": "job", "n": "other"}, key="k")
        await reef.advance(1)
        assert turns.order == []
        assert (await session).timed_out
        await reef.advance(2)
        assert turns.order == ["other"]
        assert reef.pending == 0


@pytest.mark.parametrize("retries", [1, 3])
async def test_a_retry_keeps_its_hold_on_the_key(retries: int) -> None:
    """The next of the key starts only after the last attempt of the one before."""
    order: list[tuple[int, int]] = []

    @agent("keyed", concurrent=True, retries=retries, backoff=10)
    async def handler(spore: Spore) -> None:
        order.append((spore.knowledge["n"], spore.attempt))
        if spore.knowledge["n"] == 0:
            raise ValueError("again")

    async with TestReef(handler) as reef:
        for n in range(2):
            await reef.broadcast({"n": n}, key="k")
        await reef.settle()
        assert order == [(0, n + 1) for n in range(retries + 1)] + [(1, 1)]
        assert [loss.outcome for loss in reef.losses] == [Outcome.FAILED]
