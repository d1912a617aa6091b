"""The order in which one agent starts what waits for it."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from typing import Any

import pytest

from praval import Reason, Reef, Spore, agent
from praval.core.mailbox import AGING
from praval.core.session import run_tree
from praval.settings import ReefSettings, Settings
from praval.testing import TestReef


@agent("noter")
async def noter(spore: Spore) -> None:
    return None


def order(reef: TestReef) -> list[Any]:
    return [a.spore.knowledge["n"] for a in reef.attempts if "n" in a.spore.knowledge]


# -- priority ------------------------------------------------------------------------------------


async def test_without_priorities_the_order_is_that_of_arrival() -> None:
    """First come, first served."""
    async with TestReef(noter) as reef:
        for n in range(100):
            await reef.broadcast({"n": n})
        await reef.settle()
        assert order(reef) == list(range(100))


async def test_a_higher_priority_starts_first() -> None:
    """10 before 5 before 1; among equals, arrival."""
    async with TestReef(noter) as reef:
        for n, priority in enumerate([5, 1, 10, 5, 10, 1]):
            await reef.broadcast({"n": n}, priority=priority)
        await reef.settle()
        assert order(reef) == [2, 4, 0, 3, 1, 5]


async def test_priority_orders_what_waits_and_interrupts_nothing() -> None:
    """What is being handled goes on."""

    @agent("slow")
    async def slow(spore: Spore) -> None:
        await asyncio.sleep(10)

    async with TestReef(slow) as reef:
        await reef.broadcast({"n": 0}, priority=1)
        await reef.advance(1)
        await reef.broadcast({"n": 1}, priority=5)
        await reef.broadcast({"n": 2}, priority=10)
        await reef.settle()
        assert order(reef) == [0, 2, 1]
        assert [a.ended for a in reef.attempts if a.error is not None] == []


async def test_nothing_starves() -> None:
    """A spore of the lowest priority starts although urgent ones never stop coming."""
    urgent = 0
    overtaken_by: list[int] = []

    @agent("busy")
    async def busy(spore: Spore, reef: Reef) -> None:
        nonlocal urgent
        if spore.knowledge["n"] == "patient":
            overtaken_by.append(urgent)
        elif not overtaken_by and urgent < 100 * AGING:
            urgent += 1
            await reef.broadcast({"n": urgent}, target_agent="busy", priority=10)

    async with TestReef(busy) as reef:
        await reef.broadcast({"n": "patient"}, priority=1)
        for _ in range(3):
            await reef.broadcast({"n": 0}, priority=10)
        await reef.settle()
        assert 0 < overtaken_by[0] <= 9 * AGING


@pytest.mark.parametrize("seed", range(5))
async def test_an_earlier_spore_is_overtaken_by_a_bounded_number(seed: int) -> None:
    """By at most ``AGING`` later arrivals per level of priority."""
    chance = random.Random(seed)
    settings = Settings(reef_config=ReefSettings(channel_capacity=5000))
    async with TestReef(noter, settings=settings) as reef:
        priorities = [chance.choice([1, 5, 9]) for _ in range(2000)]
        for n, priority in enumerate(priorities):
            await reef.broadcast({"n": n}, priority=priority)
        await reef.settle()
        started = {n: place for place, n in enumerate(order(reef))}
        for n in chance.sample(range(2000), 60):
            for later in range(n + 1, 2000):
                if started[later] < started[n]:
                    assert later - n <= AGING * (priorities[later] - priorities[n])


# -- key -----------------------------------------------------------------------------------------


async def test_spores_of_one_key_are_handled_one_after_the_other() -> None:
    """However many workers there are; other keys go on meanwhile."""
    running: defaultdict[str, int] = defaultdict(int)
    together = 0

    @agent("worker", concurrent=True)
    async def worker(spore: Spore) -> None:
        nonlocal together
        running[spore.knowledge["k"]] += 1
        assert running[spore.knowledge["k"]] == 1
        together = max(together, sum(running.values()))
        await asyncio.sleep(1)
        running[spore.knowledge["k"]] -= 1

    async with TestReef(worker) as reef:
        for n in range(40):
            await reef.broadcast({"n": n, "k": f"k{n % 4}"}, key=f"k{n % 4}")
        await reef.settle()
        assert together == 4
        assert reef.elapsed == 10
        assert reef.ledger().handled == 40


@pytest.mark.parametrize("concurrent", [False, 3, True])
@pytest.mark.parametrize("seed", range(6))
async def test_a_key_keeps_its_order_with_retries_delays_and_priorities(
    concurrent: bool | int, seed: int
) -> None:
    """The next of a key starts when the one before is settled, also if it is tried five times."""
    open_keys: set[str] = set()

    @agent("worker", concurrent=concurrent, retries=4, backoff=3)
    async def worker(spore: Spore) -> None:
        if spore.key is not None:
            assert spore.key not in open_keys
            open_keys.add(spore.key)
            await asyncio.sleep(0.5)
            open_keys.discard(spore.key)

    chance = random.Random(seed)
    async with TestReef(worker, seed=seed, failure=0.3, delay=(0, 2)) as reef:
        sent: dict[str | None, list[int]] = defaultdict(list)
        for n in range(60):
            key = chance.choice(["a", "b", "c", None])
            sent[key].append(n)
            # a key never overtakes itself: mixed priorities are for those without one
            priority = 5 if key else chance.choice([1, 5, 10])
            await reef.broadcast({"n": n}, key=key, priority=priority)
            await reef.advance(chance.choice([0, 0, 0.1, 1]))
        await reef.settle()
        ended: dict[str | None, list[int]] = defaultdict(list)
        for attempt in reef.attempts:
            numbers = ended[attempt.spore.key]
            if attempt.spore.knowledge["n"] not in numbers:
                numbers.append(attempt.spore.knowledge["n"])
        for key in ("a", "b", "c"):
            assert ended[key] == sent[key]
            last = 0.0
            for attempt in (a for a in reef.attempts if a.spore.key == key):
                assert attempt.began >= last
                assert attempt.ended is not None
                last = attempt.ended
        assert sorted(ended[None]) == sent[None]
        assert reef.ledger().balanced
        assert reef.ledger().pending == 0


async def test_priority_does_not_reorder_a_key() -> None:
    """Within a key the order is that of arrival, whatever the priorities say."""

    @agent("slow")
    async def slow(spore: Spore) -> None:
        await asyncio.sleep(1)

    async with TestReef(slow) as reef:
        for n, priority in enumerate([5, 1, 10, 7]):
            await reef.broadcast({"n": n}, key="k", priority=priority)
        await reef.broadcast({"n": "other"}, priority=10)
        await reef.settle()
        numbers = order(reef)
        assert [n for n in numbers if n != "other"] == [0, 1, 2, 3]
        assert numbers.index("other") <= 1


async def test_a_refused_spore_does_not_let_its_key_go() -> None:
    """One that never got in (wrong type, no room) frees no place for the next of its key."""
    running = 0

    @agent("worker", responds_to=["go"], concurrent=True)
    async def worker(spore: Spore) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(5)
        running -= 1

    settings = Settings(reef_config=ReefSettings(channel_capacity=1, overflow="reject"))
    async with TestReef(worker, settings=settings) as reef:
        await reef.broadcast({"type": "go", "n": 0}, key="k")
        await reef.timeline.rest()
        await reef.send("worker", {"type": "other", "n": 1}, key="k")
        await reef.broadcast({"type": "go", "n": 2}, key="k")
        await reef.broadcast({"type": "go", "n": 3}, key="k")  # no room
        await reef.timeline.rest()
        await reef.settle()
        assert order(reef) == [0, 2]
        assert (reef.ledger().filtered, reef.ledger().rejected) == (1, 1)


async def test_clearing_a_channel_does_not_let_a_key_go() -> None:
    """What waits is cancelled; what is being handled still holds the key."""
    running = 0

    @agent("worker", concurrent=True)
    async def worker(spore: Spore) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(5)
        running -= 1

    async with TestReef(worker) as reef:
        for n in range(3):
            await reef.broadcast({"n": n}, key="k")
        await reef.timeline.rest()
        assert reef.clear_channel("main") == 2
        await reef.broadcast({"n": 3}, key="k")
        await reef.settle()
        assert order(reef) == [0, 3]
        assert reef.ledger().reasons == {"channel cleared": 2}


async def test_the_end_of_a_key_s_first_lets_the_next_start() -> None:
    """Also when the first was given up while it waited for its retry and the agent slept."""

    @agent("worker", retries=1, backoff=1000)
    async def worker(spore: Spore) -> None:
        if spore.knowledge["n"] == 0:
            raise ValueError("no")

    async with TestReef(worker) as reef:
        session = asyncio.create_task(_keyed_session(reef))
        await reef.timeline.rest()
        await reef.broadcast({"n": 1}, key="k")
        await reef.timeline.rest()
        assert order(reef) == [0]
        await session
        await reef.advance(1)
        assert order(reef) == [0, 1]
        await reef.settle()


async def _keyed_session(reef: TestReef) -> None:
    """Run a session whose first agent emits a keyed spore; it is given up after ten seconds."""

    @agent("starter", responds_to=["start"])
    async def starter(spore: Spore) -> None:
        await reef.broadcast({"n": 0}, target_agent="worker", key="k")

    await reef.add(starter)
    result = await run_tree(reef, {"type": "start", "target_agent": "starter"}, timeout=10)
    assert result.timed_out


# -- time to live --------------------------------------------------------------------------------


async def test_time_to_live_is_judged_when_the_turn_comes() -> None:
    """Not at publication, not when it ends: a handler may take longer than its spore lives."""

    @agent("slow")
    async def slow(spore: Spore) -> None:
        await asyncio.sleep(10)

    async with TestReef(slow) as reef:
        await reef.broadcast({"n": 0}, ttl=1)  # starts at 0, ends at 10
        await reef.broadcast({"n": 1}, ttl=10.5)  # starts at 10
        await reef.broadcast({"n": 2}, ttl=15)  # its turn comes at 20
        await reef.broadcast({"n": 3}, ttl=20)  # exactly its last second is too late
        await reef.broadcast({"n": 4})
        await reef.settle()
        assert order(reef) == [0, 1, 4]
        assert [(loss.spore.knowledge["n"], loss.reason) for loss in reef.losses] == [
            (2, Reason.TTL), (3, Reason.TTL),
        ]  # fmt: skip
        assert reef.ledger().expired == 2


async def test_the_default_time_to_live_comes_from_the_settings() -> None:
    """``message_ttl``; None: for ever."""

    @agent("slow")
    async def slow(spore: Spore) -> None:
        await asyncio.sleep(10_000)

    for ttl, expected in ((100.0, [0]), (None, [0, 1])):
        settings = Settings(reef_config=ReefSettings(message_ttl=ttl))
        async with TestReef(slow, settings=settings) as reef:
            await reef.broadcast({"n": 0})
            await reef.broadcast({"n": 1})
            await reef.settle()
            assert order(reef) == expected


async def test_an_expired_spore_of_a_key_lets_the_next_start() -> None:
    """The lane goes on."""

    @agent("slow")
    async def slow(spore: Spore) -> None:
        await asyncio.sleep(10)

    async with TestReef(slow) as reef:
        await reef.broadcast({"n": 0}, key="k")
        await reef.broadcast({"n": 1}, key="k", ttl=5)
        await reef.broadcast({"n": 2}, key="k")
        await reef.settle()
        assert order(reef) == [0, 2]
