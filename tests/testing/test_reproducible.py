"""The same seed gives the same run."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from praval import Spore, agent, broadcast
from praval.core.session import run_tree
from praval.testing import TestReef

FAULTS: dict[str, Any] = {"failure": 0.2, "delay": (0.0, 5.0), "duplicate": 0.2}


@agent("planner", responds_to=["plan"], retries=2)
async def planner(spore: Spore) -> dict[str, Any]:
    for n in range(3):
        broadcast({"type": "task", "n": n, "of": spore.knowledge["n"]}, priority=3 + n)
    await asyncio.sleep(0.5)
    return {"planned": 3}


@agent("crew", responds_to=["task"], concurrent=4, retries=1)
async def crew(spore: Spore) -> dict[str, Any]:
    await asyncio.sleep(spore.knowledge["n"])
    return {"type": "finding", "n": spore.knowledge["n"]}


@agent("rival", responds_to=["task"], concurrent=True, timeout=3)
async def rival(spore: Spore) -> dict[str, Any]:
    await asyncio.sleep(1.5)
    return {"type": "finding", "n": -1}


@agent("editor", responds_to=["finding"])
async def editor(spore: Spore) -> dict[str, Any]:
    return {"text": spore.knowledge["n"]}


async def run_async_team(seed: int) -> list[str]:
    async with TestReef(planner, crew, rival, editor, seed=seed, **FAULTS) as reef:
        for n in range(5):
            await reef.broadcast({"type": "plan", "n": n})
        await reef.settle()
        assert reef.ledger().balanced
        return reef.transcript()


async def test_the_same_seed_gives_the_same_record() -> None:
    """Every publication, attempt, result, error, loss and time is the same in both runs."""
    first, second = await run_async_team(11), await run_async_team(11)
    assert first == second
    assert len(first) > 100


async def test_another_seed_gives_another_record() -> None:
    """The comparison above can fail."""
    assert await run_async_team(11) != await run_async_team(12)


async def test_one_more_agent_leaves_the_others_their_luck() -> None:
    """Each agent draws from a series of its own."""

    @agent("bystander", responds_to=["task"])
    async def bystander(spore: Spore) -> None:
        pass

    async def failures_of_the_crew(*more: Any) -> list[int]:
        async with TestReef(crew, *more, seed=4, failure=0.3) as reef:
            for n in range(40):
                await reef.broadcast({"type": "task", "n": 0, "number": n})
            await reef.settle()
            return [
                attempt.spore.knowledge["number"]
                for attempt in reef.attempts
                if attempt.agent == "crew" and attempt.error is not None
            ]

    alone = await failures_of_the_crew()
    assert alone
    assert await failures_of_the_crew(bystander) == alone


# -- threads ---------------------------------------------------------------------------------


def dawdle() -> None:
    """Take a different real time each time, as threads do."""
    time.sleep(random.uniform(0, 0.004))  # not seeded: that is the point


@agent("splitter", responds_to=["go"])
def splitter(spore: Spore) -> None:
    for n in range(3):
        dawdle()
        broadcast({"type": "part", "n": n, "of": spore.knowledge["n"]})


@agent("left", responds_to=["part"], concurrent=3, retries=2)
def left(spore: Spore) -> dict[str, Any]:
    dawdle()
    broadcast({"type": "note", "by": "left", "n": spore.knowledge["n"]})
    dawdle()
    return {"type": "sum", "n": spore.knowledge["n"]}


@agent("right", responds_to=["part"], concurrent=3)
def right(spore: Spore) -> dict[str, Any]:
    dawdle()
    return {"type": "sum", "n": -spore.knowledge["n"]}


@agent("total", responds_to=["sum", "note"])
def total(spore: Spore) -> dict[str, Any]:
    dawdle()
    return {"got": spore.type}


async def run_plain_team(seed: int) -> list[str]:
    async with TestReef(splitter, left, right, total, seed=seed, **FAULTS) as reef:
        for n in range(3):
            await reef.broadcast({"type": "go", "n": n})
        await reef.settle()
        assert reef.ledger().balanced
        return reef.transcript()


async def test_plain_handlers_in_several_threads_give_the_same_record() -> None:
    """How fast each thread was does not show: what they send is let in by order of beginning."""
    runs = [await run_plain_team(21) for _ in range(4)]
    assert runs[0] == runs[1] == runs[2] == runs[3]
    assert len(runs[0]) > 60


async def test_what_handlers_share_behind_the_reefs_back_is_out_of_reach() -> None:
    """The limit: threads that race for something of their own race still; the order is kept."""
    shared: list[int] = []

    @agent("racer", concurrent=4)
    def racer(spore: Spore) -> dict[str, Any]:
        dawdle()
        shared.append(spore.knowledge["n"])
        return {"n": spore.knowledge["n"]}

    async with TestReef(racer) as reef:
        for n in range(20):
            await reef.broadcast({"n": n})
        await reef.settle()
        assert sorted(shared) == list(range(20))
        first_four = [result["n"] for result in reef.results("racer")][:4]
        assert first_four == [0, 1, 2, 3]


async def test_stopping_a_session_gives_the_same_record() -> None:
    """The order in which running handlers are cancelled is the same too."""

    @agent("many", responds_to=["go", "more"], concurrent=True)
    async def many(spore: Spore) -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            broadcast({"type": "cleanup", "n": spore.knowledge["n"]})

    @agent("root", responds_to=["start"])
    async def root(spore: Spore) -> None:
        for n in range(30):
            broadcast({"type": "more", "n": n})

    async def run() -> list[str]:
        async with TestReef(many, root) as reef:
            result = await run_tree(reef, {"type": "start"}, timeout=60)
            assert result.timed_out
            return reef.transcript()

    first = await run()
    assert len(first) > 90
    for _ in range(5):
        ballast = [object() for _ in range(random.randrange(1000))]  # other addresses
        assert await run() == first
        del ballast


@pytest.mark.parametrize("seed", ["a name", 2**70])
async def test_any_seed_will_do(seed: int | str) -> None:
    """A text or a large number works like a small one."""
    async with TestReef(editor, seed=seed, failure=0.5) as reef:
        await reef.broadcast({"type": "finding", "n": 1})
        await reef.settle()
        assert reef.ledger().balanced
