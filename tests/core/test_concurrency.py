"""How many spores an agent handles at once."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from praval import AgentDefinition, Reef, Spore, agent
from praval.core.runner import KEPT_IDLE
from praval.settings import Settings
from praval.testing import TestReef


class Crowd:
    """Counts how many are inside at once."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0

    def __enter__(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    def __exit__(self, *details: object) -> None:
        self.now -= 1


def sleeper(crowd: Crowd, seconds: float = 1, **options: Any) -> AgentDefinition:
    @agent("sleeper", **options)
    async def sleep(spore: Spore) -> None:
        with crowd:
            await asyncio.sleep(seconds)

    return sleep


async def test_a_thousand_sleeping_handlers_take_one_sleep_of_virtual_time() -> None:
    """``concurrent=True`` has no limit of its own."""
    crowd = Crowd()
    async with TestReef(sleeper(crowd, 60, concurrent=True)) as reef:
        for n in range(1000):
            await reef.broadcast({"n": n})
        await reef.settle()
        assert reef.elapsed == 60
        assert crowd.most == 1000


@pytest.mark.every_loop
async def test_a_thousand_sleeping_handlers_take_about_one_sleep() -> None:
    """The same in real time: two seconds of sleep, far from the thousand of one by one."""
    crowd = Crowd()
    async with Reef(sleeper(crowd, 2, concurrent=True)) as reef:
        began = time.monotonic()
        for n in range(1000):
            await reef.broadcast({"n": n})
        await reef.wait_idle(20)
        assert crowd.most == 1000
        assert time.monotonic() - began < 4


async def test_one_at_a_time_unless_asked_otherwise() -> None:
    """An agent need not think about concurrency until it asks for it."""
    crowd = Crowd()
    async with TestReef(sleeper(crowd)) as reef:
        for n in range(20):
            await reef.broadcast({"n": n})
        await reef.settle()
        assert (crowd.most, reef.elapsed) == (1, 20)


@pytest.mark.parametrize("limit", [1, 2, 3, 17])
async def test_a_number_is_an_exact_bound(limit: int) -> None:
    """Never more than so many, and no fewer while there is work."""
    crowd = Crowd()
    async with TestReef(sleeper(crowd, concurrent=limit)) as reef:
        for n in range(10 * limit):
            await reef.broadcast({"n": n})
        await reef.settle()
        assert (crowd.most, reef.elapsed) == (limit, 10)


async def test_spores_that_trickle_in_find_a_free_worker() -> None:
    """The bound holds, and is used, whatever the arrivals look like."""
    crowd = Crowd()
    async with TestReef(sleeper(crowd, 10, concurrent=4)) as reef:
        for n in range(8):
            await reef.broadcast({"n": n})
            await reef.advance(1)
        await reef.settle()
        began = [round(a.began - reef.started_at) for a in reef.attempts]
        assert began == [0, 1, 2, 3, 10, 11, 12, 13]
        assert crowd.most == 4


async def test_handlers_that_never_suspend_need_one_worker() -> None:
    """Another one is started only when all there are hang in their handlers."""

    @agent("quick", concurrent=True)
    async def quick(spore: Spore) -> None:
        return None

    async with TestReef(quick) as reef:
        for n in range(1000):
            await reef.broadcast({"n": n})
        await reef.settle()
        assert len(reef.runners["quick"].workers) <= 2


async def test_elastic_workers_shrink_after_a_burst() -> None:
    """What a burst needed is not kept for ever; the next burst is served all the same."""
    crowd = Crowd()
    async with TestReef(sleeper(crowd, concurrent=True)) as reef:
        for _ in range(3):
            for n in range(500):
                await reef.broadcast({"n": n})
            await reef.settle()
            assert crowd.most == 500
            assert len(reef.runners["sleeper"].workers) <= KEPT_IDLE
            crowd.most = 0


async def test_different_agents_never_wait_for_one_another() -> None:
    """One at a time is per agent."""
    crowd = Crowd()

    def member(n: int) -> AgentDefinition:
        @agent(f"m{n}")
        async def sleep(spore: Spore) -> None:
            with crowd:
                await asyncio.sleep(1)

        return sleep

    async with TestReef(*[member(n) for n in range(50)]) as reef:
        await reef.broadcast({})
        await reef.settle()
        assert (crowd.most, reef.elapsed) == (50, 1)


async def test_one_busy_agent_does_not_starve_the_loop() -> None:
    """A worker with a long backlog lets others run in between."""
    turns: list[str] = []

    def member(name: str) -> AgentDefinition:
        @agent(name)
        async def note(spore: Spore) -> None:
            turns.append(name)

        return note

    async with TestReef(member("a"), member("b")) as reef:
        for n in range(900):
            await reef.broadcast({"n": n})
        await reef.settle()
        last_a = max(i for i, name in enumerate(turns) if name == "a")
        assert turns.index("b") < last_a / 2


# -- plain handlers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("concurrent", "threads", "expected"), [(False, 8, 1), (3, 8, 3), (True, 4, 4)]
)
async def test_plain_handlers_run_at_once_up_to_both_limits(
    concurrent: bool | int, threads: int, expected: int
) -> None:
    """The agent's concurrency and the Reef's ``max_threads``."""
    lock = threading.Lock()
    crowd = Crowd()
    full = threading.Barrier(expected)

    @agent("plain", concurrent=concurrent)
    def plain(spore: Spore) -> None:
        with lock:
            crowd.__enter__()
        full.wait(10)  # only so many together get past
        with lock:
            crowd.__exit__()

    async with Reef(plain, settings=Settings(max_threads=threads)) as reef:
        for n in range(3 * expected):
            await reef.broadcast({"n": n})
        await reef.wait_idle(20)
        assert crowd.most == expected
        assert reef.ledger().handled == 3 * expected


async def test_plain_handlers_leave_the_loop_free() -> None:
    """While a thread blocks, async agents go on."""
    release = threading.Event()

    @agent("blocker", responds_to=["block"])
    def blocker(spore: Spore) -> None:
        release.wait(10)

    @agent("releaser", responds_to=["free"])
    async def releaser(spore: Spore) -> None:
        release.set()

    async with Reef(blocker, releaser) as reef:
        await reef.broadcast({"type": "block"})
        await reef.broadcast({"type": "free"})
        await reef.wait_idle(5)
        assert reef.ledger().handled == 2


async def test_one_spore_at_a_time_also_while_its_predecessor_is_retried() -> None:
    """A retry takes its place among the others."""
    crowd = Crowd()

    @agent("flaky", retries=2, backoff=0.5)
    async def flaky(spore: Spore) -> None:
        with crowd:
            await asyncio.sleep(1)
            if spore.attempt == 1:
                raise ValueError("no")

    async with TestReef(flaky) as reef:
        for n in range(10):
            await reef.broadcast({"n": n})
        await reef.settle()
        assert (crowd.most, reef.elapsed) == (1, 20)
