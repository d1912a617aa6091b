"""What a handler does to its own Reef never deadlocks it, and follows the same rules as outside."""

from __future__ import annotations

import asyncio

import pytest

from praval import Reef, Spore, agent, broadcast
from praval.errors import NoReefError, ReefError, RequestTimeoutError
from praval.settings import ReefSettings, Settings
from praval.testing import TestReef


def capacity(soft: int, hard: int | None = None) -> Settings:
    """Settings with small mailboxes."""
    return Settings(reef_config=ReefSettings(channel_capacity=soft, hard_capacity=hard))


async def test_a_request_times_out_while_its_agent_s_mailbox_is_full() -> None:
    """The time-out counts from the call, not from when there is room."""

    @agent("stuck")
    async def stuck(spore: Spore) -> None:
        await asyncio.Event().wait()

    async with TestReef(stuck, settings=capacity(1)) as reef:
        for n in range(2):
            await reef.broadcast({"n": n})
        with pytest.raises(RequestTimeoutError, match="stuck"):
            await reef.request("stuck", {}, timeout=3)
        assert reef.elapsed == pytest.approx(3)
        await reef.aclose(drain=False)
        assert reef.ledger().balanced


@pytest.mark.parametrize("transactional", [False, True])
async def test_transactional_emissions_obey_the_same_limits(transactional: bool) -> None:
    """The type filter and the hard capacity hold for what is emitted with the commit, too."""

    @agent("right", responds_to=["right"])
    async def right(spore: Spore) -> None:
        return None

    @agent("source", responds_to=["go"], transactional=transactional)
    async def source(spore: Spore) -> None:
        broadcast({"type": "wrong"}, target_agent="right")
        for _ in range(50):
            broadcast({"type": "right"})

    async with TestReef(right, source, settings=capacity(5, 5)) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        ledger = reef.ledger()
        assert (ledger.filtered, ledger.rejected, ledger.handled) == (1, 45, 6)
        assert ledger.balanced


async def test_a_handler_may_replay_into_its_own_full_mailbox() -> None:
    """It does not wait for room that only it could make."""
    healed = False

    @agent("worker")
    async def worker(spore: Spore, reef: Reef) -> None:
        nonlocal healed
        if spore.knowledge.get("bad") and not healed:
            raise ValueError("no")
        if spore.knowledge.get("heal"):
            healed = True
            await reef.replay(reef.dead_letters()[0].id)

    async with TestReef(worker, settings=capacity(1)) as reef:
        await reef.broadcast({"bad": True})
        await reef.settle()
        await reef.broadcast({"heal": True})
        await reef.broadcast({"other": True})
        await reef.settle()
        assert reef.ledger().handled == 3
        assert not reef.dead_letters()


async def test_a_handler_cannot_remove_its_own_agent() -> None:
    """It would wait for itself."""

    @agent("me")
    async def me(spore: Spore, reef: Reef) -> None:
        await reef.remove("me")

    async with TestReef(me) as reef:
        await reef.broadcast({})
        await reef.settle()
        assert "own agent" in reef.dead_letters()[0].error
        assert reef.elapsed < 1


async def test_replacing_an_agent_lowers_its_concurrency() -> None:
    """Surplus workers end; the new definition's bound holds, and its start hooks run."""
    running = peak = 0
    started: list[str] = []

    def make(concurrent: bool | int):
        @agent("many", concurrent=concurrent)
        async def many(spore: Spore) -> None:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(1)
            running -= 1

        @many.on_start
        async def hook() -> None:
            started.append(str(concurrent))

        return many

    async with TestReef(make(8)) as reef:
        for _ in range(8):
            await reef.broadcast({})
        await reef.settle()
        assert peak == 8
        await reef.add(make(concurrent=False))
        peak = 0
        for _ in range(8):
            await reef.broadcast({})
        await reef.settle()
        assert peak == 1
    assert started == ["8", "False"]


async def test_deep_knowledge_reaches_many_receivers() -> None:
    """What is accepted can be copied, failed, and looked at: the limit of nesting is fixed."""
    deep: list[object] = []
    for _ in range(250):
        deep = [deep]

    def failing(number: int):
        @agent(f"a{number}")
        async def handler(spore: Spore) -> None:
            raise ValueError("no")

        return handler

    async with TestReef(*(failing(n) for n in range(6))) as reef:
        await reef.broadcast({"deep": deep})
        await reef.settle()
        assert reef.ledger().failed == 6
        assert reef.health_check()["status"] == "healthy"


def test_a_reef_whose_loop_does_not_run_is_refused() -> None:
    """Nothing waits for a loop that nobody runs."""
    loop = asyncio.new_event_loop()
    reef = Reef()
    loop.run_until_complete(reef.__aenter__())
    try:
        with pytest.raises(NoReefError, match="not running"):
            reef.wait_for_completion(timeout=1)
        with pytest.raises(NoReefError, match="not running"):
            asyncio.run(reef.aclose())
    finally:
        loop.run_until_complete(reef.aclose())
        loop.close()


async def test_serving_a_reef_that_was_not_entered_is_refused() -> None:
    """It would wait for ever."""
    with pytest.raises(ReefError, match="running"):
        await Reef().serve()
