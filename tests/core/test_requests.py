"""Requests: one agent asks another and waits for its reply."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from praval import (
    AgentDefinition,
    Outcome,
    Reason,
    Reef,
    Spore,
    SporeType,
    agent,
    conditional_agent,
)
from praval.core.default import get_reef
from praval.errors import (
    ConfigurationError,
    ReefClosedError,
    RequestCycleError,
    RequestFailedError,
    RequestTimeoutError,
)
from praval.settings import PerformanceSettings, Settings
from praval.sync import run_on
from praval.testing import TestReef


@agent("answerer")
async def answerer(spore: Spore) -> dict[str, Any]:
    return {"answer": spore.knowledge.get("n")}


def sleeper(seconds: float) -> AgentDefinition:
    @agent("sleeper")
    async def sleep(spore: Spore) -> dict[str, Any]:
        await asyncio.sleep(seconds)
        return {"answer": spore.knowledge.get("n")}

    return sleep


def chain(length: int, *, plain: bool = False) -> list[AgentDefinition]:
    """Make agents of which each asks the next; the last one answers."""

    def member(place: int) -> AgentDefinition:
        following = f"c{place + 1}"

        async def ask(spore: Spore, reef: Reef) -> dict[str, Any]:
            if place == length - 1:
                return {"depth": 1}
            reply = await reef.request(following, {}, timeout=60)
            return {"depth": reply.knowledge["depth"] + 1}

        def ask_plainly(spore: Spore, reef: Reef) -> dict[str, Any]:
            return run_on(reef.loop, ask(spore, reef))

        return agent(f"c{place}")(ask_plainly if plain else ask)

    return [member(place) for place in range(length)]


# -- replies -------------------------------------------------------------------------------------


async def test_a_request_returns_the_reply_as_a_spore() -> None:
    """What was asked travels as a request, what is answered as a response to it."""
    async with TestReef(answerer) as reef:
        reply = await reef.request("answerer", {"type": "q", "n": 1}, timeout=5)
        assert reply.knowledge == {"answer": 1}
        request, response = reef.spores
        assert (request.spore_type, request.to_agent, request.from_agent) == (
            SporeType.REQUEST, "answerer", None,
        )  # fmt: skip
        assert request.deadline == request.created_at + 5
        assert (response.id, response.correlation_id) == (reply.id, request.id)
        assert not reef.get_statistics()["open_requests"]
        ledger = reef.ledger()
        assert (ledger.handled, ledger.balanced) == (2, True)


async def test_a_request_from_a_handler_belongs_to_its_tree() -> None:
    """It names its asker and its root."""
    async with TestReef(*chain(3)) as reef:
        await reef.request("c0", {}, timeout=5)
        first, second, third = (s for s in reef.spores if s.spore_type is SporeType.REQUEST)
        assert [s.from_agent for s in (first, second, third)] == [None, "c0", "c1"]
        assert second.root == third.root == first.id
        assert [s.hops for s in (first, second, third)] == [0, 1, 2]


async def test_many_requests_at_once_each_get_their_own_reply() -> None:
    """Replies find their askers, in whatever order they come."""

    @agent("shuffler", concurrent=True)
    async def shuffler(spore: Spore) -> dict[str, Any]:
        await asyncio.sleep(spore.knowledge["n"] * 7919 % 101)
        return {"n": spore.knowledge["n"]}

    async with TestReef(shuffler) as reef:
        replies = await asyncio.gather(*[
            reef.request("shuffler", {"n": n}, timeout=200) for n in range(200)
        ])  # fmt: skip
        assert [reply.knowledge["n"] for reply in replies] == list(range(200))


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
async def test_a_timeout_must_be_above_zero(timeout: float) -> None:
    """A typed error, and nothing is sent."""
    async with Reef(answerer) as reef:
        with pytest.raises(ConfigurationError, match="timeout"):
            await reef.request("answerer", {}, timeout=timeout)
        assert reef.ledger().published == 0


# -- time-outs -----------------------------------------------------------------------------------


async def test_a_request_times_out() -> None:
    """After its own seconds, or those of the settings; what came late is counted."""
    settings = Settings(performance=PerformanceSettings(timeout=7))
    async with TestReef(sleeper(10), settings=settings) as reef:
        with pytest.raises(RequestTimeoutError, match="sleeper"):
            await reef.request("sleeper", {}, timeout=3)
        assert reef.elapsed == 3
        await reef.settle()
        with pytest.raises(RequestTimeoutError):
            await reef.request("sleeper", {})
        assert reef.elapsed == 17
        await reef.settle()
        ledger = reef.ledger()
        assert (ledger.handled, ledger.undeliverable) == (2, 2)
        assert ledger.reasons == {Reason.LATE_REPLY.value: 2}
        assert ledger.balanced


async def test_a_request_that_nobody_waits_for_any_more_is_not_handled() -> None:
    """The time-out is the spore's deadline too."""
    async with TestReef(sleeper(10)) as reef:
        await reef.broadcast({"n": 0})
        with pytest.raises(RequestTimeoutError):
            await reef.request("sleeper", {"n": 1}, timeout=3)
        await reef.settle()
        assert [a.spore.knowledge["n"] for a in reef.attempts] == [0]
        assert [loss.reason for loss in reef.losses] == [Reason.TTL]


async def test_a_cancelled_asker_leaves_no_open_request() -> None:
    """Its reply is late when it comes."""
    async with TestReef(sleeper(10)) as reef:
        asking = asyncio.create_task(reef.request("sleeper", {}, timeout=60))
        await reef.advance(1)
        asking.cancel()
        await asyncio.wait([asking])
        assert len(reef.requests) == 0
        await reef.settle()
        assert reef.ledger().reasons == {Reason.LATE_REPLY.value: 1}


# -- no reply ------------------------------------------------------------------------------------


async def test_a_failed_handler_fails_its_request() -> None:
    """After its retries, with the exception as the cause."""

    @agent("broken", retries=2, backoff=1)
    async def broken(spore: Spore) -> None:
        raise ZeroDivisionError("no good")

    async with TestReef(broken) as reef:
        with pytest.raises(RequestFailedError, match="no good") as caught:
            await reef.request("broken", {}, timeout=60)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert reef.elapsed == 3


async def test_a_filtered_request_fails_at_once() -> None:
    """By type or by condition."""
    picky = conditional_agent("picky", lambda spore: False)(answerer.handler)
    typed = agent("typed", responds_to=["x"])(answerer.handler)
    async with TestReef(picky, typed) as reef:
        with pytest.raises(RequestFailedError, match="condition"):
            await reef.request("picky", {}, timeout=60)
        with pytest.raises(RequestFailedError, match="type"):
            await reef.request("typed", {"type": "y"}, timeout=60)
        assert reef.elapsed == 0
        assert reef.ledger().filtered == 2


async def test_a_request_to_an_agent_that_is_removed_fails() -> None:
    """Whether it waits in the mailbox or is given up while it runs."""
    async with TestReef(sleeper(60)) as reef:
        running = asyncio.create_task(reef.request("sleeper", {}, timeout=600))
        waiting = asyncio.create_task(reef.request("sleeper", {}, timeout=600))
        await reef.advance(1)
        await reef.remove("sleeper")
        for task in (running, waiting):
            with pytest.raises(RequestFailedError, match="removed"):
                await task
        assert reef.ledger().cancelled == 2


async def test_closing_the_reef_fails_open_requests() -> None:
    """Nobody waits for an answer from a closed Reef."""
    async with TestReef(sleeper(1000)) as reef:
        asking = asyncio.create_task(reef.request("sleeper", {}, timeout=6000))
        await reef.advance(1)
    with pytest.raises((ReefClosedError, RequestFailedError)):
        await asking


async def test_a_request_cleared_from_its_channel_fails() -> None:
    """Who asked does not wait for what is gone."""
    async with TestReef(sleeper(60)) as reef:
        await reef.broadcast({})
        asking = asyncio.create_task(reef.request("sleeper", {}, timeout=600))
        await reef.timeline.rest()
        assert reef.clear_channel("sleeper_channel") == 1
        with pytest.raises(RequestFailedError, match="cleared"):
            await asking
        await reef.settle()


# -- deep and wide -------------------------------------------------------------------------------


@pytest.mark.every_loop
async def test_requests_nest_200_deep() -> None:
    """Each agent waits for the next, one spore at a time, and all answer."""
    async with Reef(*chain(200)) as reef:
        reply = await reef.request("c0", {}, timeout=30)
        assert reply.knowledge == {"depth": 200}
        assert reef.ledger().balanced


async def test_a_failure_200_deep_comes_up_with_its_first_cause() -> None:
    """Each asker fails in turn; the message does not grow on the way."""
    team = chain(200)

    @agent("c200")
    async def broken(spore: Spore) -> None:
        raise ZeroDivisionError('it\'s "far" down')

    async def ask(spore: Spore, reef: Reef) -> Any:
        return await reef.request("c200", {}, timeout=60)

    team[-1] = agent("c199")(ask)
    async with TestReef(*team, broken) as reef:
        with pytest.raises(RequestFailedError, match="far") as caught:
            await reef.request("c0", {}, timeout=60)
        assert len(str(caught.value)) < 300
        assert reef.ledger().failed == 201


async def test_plain_handlers_nest_deeper_than_there_are_threads() -> None:
    """One that waits for a reply gives its slot to another."""
    async with Reef(*chain(40, plain=True), settings=Settings(max_threads=2)) as reef:
        reply = await reef.request("c0", {}, timeout=30)
        assert reply.knowledge == {"depth": 40}
        assert reef.threads.busy == 0


async def test_one_handler_asks_200_at_once() -> None:
    """All of them run together."""

    @agent("wide", concurrent=True)
    async def wide(spore: Spore, reef: Reef) -> dict[str, Any]:
        if "n" in spore.knowledge:
            await asyncio.sleep(1)
            return {"n": spore.knowledge["n"]}
        replies = await asyncio.gather(*[
            reef.request("wide", {"n": n}, timeout=60) for n in range(200)
        ])  # fmt: skip
        return {"sum": sum(reply.knowledge["n"] for reply in replies)}

    async with TestReef(wide) as reef:
        reply = await reef.request("wide", {}, timeout=60)
        assert reply.knowledge == {"sum": sum(range(200))}
        assert reef.elapsed == 1


async def test_a_handler_asks_200_different_agents() -> None:
    """Each of them one spore at a time."""
    team = [agent(f"a{n}")(answerer.handler) for n in range(200)]

    @agent("asker", responds_to=["go"])
    async def asker(spore: Spore, reef: Reef) -> dict[str, Any]:
        replies = await asyncio.gather(*[
            reef.request(f"a{n}", {"n": n}, timeout=60) for n in range(200)
        ])  # fmt: skip
        return {"sum": sum(reply.knowledge["answer"] for reply in replies)}

    async with TestReef(asker, *team) as reef:
        assert (await reef.request("asker", {"type": "go"}, timeout=60)).knowledge == {
            "sum": sum(range(200))
        }


async def test_a_request_to_oneself_is_answered_with_concurrency() -> None:
    """Recursion is fine where another worker can answer."""

    @agent("factorial", concurrent=True)
    async def factorial(spore: Spore, reef: Reef) -> int:
        n = spore.knowledge["n"]
        if n <= 1:
            return 1
        reply = await reef.request("factorial", {"n": n - 1}, timeout=60)
        return int(n * reply.knowledge["result"])

    async with TestReef(factorial) as reef:
        assert (await reef.request("factorial", {"n": 20}, timeout=60)).knowledge == {
            "result": 2432902008176640000
        }


# -- cycles --------------------------------------------------------------------------------------


def circle(length: int, **options: Any) -> list[AgentDefinition]:
    """Make agents of which each asks the next, the last one the first."""

    def member(place: int) -> AgentDefinition:
        @agent(f"m{place}", **options)
        async def ask(spore: Spore, reef: Reef) -> Any:
            return (await reef.request(f"m{(place + 1) % length}", {}, timeout=100)).knowledge

        return ask

    return [member(place) for place in range(length)]


@pytest.mark.parametrize("length", [1, 2, 3, 20])
async def test_a_circle_of_requests_is_detected_at_once(length: int) -> None:
    """It would wait for ever: an error instead, that names them, before any time passes."""
    async with TestReef(*circle(length)) as reef:
        with pytest.raises(RequestFailedError, match="wait for ever") as caught:
            await reef.request("m0", {}, timeout=60)
        assert reef.elapsed == 0
        cause: BaseException = caught.value
        while cause.__cause__ is not None:
            cause = cause.__cause__
        assert isinstance(cause, RequestCycleError)
        for place in range(length):
            assert f"m{place}" in str(cause)
        assert reef.ledger().pending == 0


async def test_a_circle_of_plain_handlers_is_detected_too() -> None:
    """Threads wait for one another no less than tasks do."""

    def member(place: int) -> AgentDefinition:
        @agent(f"m{place}")
        def ask(spore: Spore) -> Any:
            reef = get_reef()
            return run_on(reef.loop, reef.request(f"m{1 - place}", {}, timeout=100)).knowledge

        return ask

    async with Reef(member(0), member(1)) as reef:
        with pytest.raises(RequestFailedError, match="wait for ever"):
            await reef.request("m0", {}, timeout=30)


async def test_two_requests_that_cross_are_a_circle() -> None:
    """Neither began the other; together they would wait for ever."""

    def member(name: str, other: str) -> AgentDefinition:
        @agent(name)
        async def ask(spore: Spore, reef: Reef) -> Any:
            await asyncio.sleep(1)
            if spore.spore_type is SporeType.REQUEST:
                return None
            return (await reef.request(other, {}, timeout=100)).knowledge

        return ask

    async with TestReef(member("a", "b"), member("b", "a")) as reef:
        await reef.broadcast({})
        await reef.settle(50)
        # one of the two gets the error, and with it the other its answer
        assert [loss.outcome for loss in reef.losses] == [Outcome.REJECTED, Outcome.FAILED]
        assert all(isinstance(loss.error, RequestCycleError) for loss in reef.losses)
        assert reef.elapsed < 50


async def test_a_circle_with_a_second_worker_is_none() -> None:
    """A free worker can answer, and does."""

    @agent("a", concurrent=2)
    async def a(spore: Spore, reef: Reef) -> Any:
        if "end" in spore.knowledge:
            return {"end": True}
        return (await reef.request("b", {}, timeout=100)).knowledge

    @agent("b")
    async def b(spore: Spore, reef: Reef) -> Any:
        return (await reef.request("a", {"end": True}, timeout=100)).knowledge

    async with TestReef(a, b) as reef:
        assert (await reef.request("a", {}, timeout=60)).knowledge == {"end": True}


async def test_a_reply_that_is_on_its_way_is_no_circle() -> None:
    """An asker whose answer has come, but who has not gone on yet, waits for nobody."""

    @agent("a")
    async def a(spore: Spore, reef: Reef) -> Any:
        if spore.knowledge.get("type") == "start":
            return (await reef.request("b", {}, timeout=100)).knowledge
        return {"from": "a"}

    @agent("b")
    async def b(spore: Spore, reef: Reef) -> Any:
        if spore.spore_type is SporeType.REQUEST:
            return {"from": "b"}
        # handled in the same breath as the request before it, while "a" is still to be woken
        return (await reef.request("a", {}, timeout=100)).knowledge

    async with TestReef(a, b) as reef:
        await reef.send("a", {"type": "start"})
        await asyncio.sleep(0)
        await reef.send("b", {"type": "other"})
        await reef.settle(90)
        assert not reef.losses
        assert reef.ledger().balanced


@pytest.mark.parametrize("seed", range(12))
async def test_no_false_alarms_in_random_teams(seed: int) -> None:
    """Agents that only ask those after them cannot form a circle: every request is answered."""
    chance = random.Random(seed)
    count = 12

    def member(place: int) -> AgentDefinition:
        options: dict[str, Any] = {"concurrent": chance.choice([False, False, 2, True])}
        later = [n for n in range(place + 1, count) if chance.random() < 0.4]
        together, pause = chance.random() < 0.5, chance.choice([0, 0, 0.01, 1])

        @agent(f"m{place}", **options)
        async def ask(spore: Spore, reef: Reef) -> int:
            if pause:
                await asyncio.sleep(pause)
            depth = spore.knowledge["depth"]
            asked = later if depth < 3 else []
            work = [reef.request(f"m{n}", {"depth": depth + 1}, timeout=1e6) for n in asked]
            if together:
                replies = await asyncio.gather(*work)
            else:
                replies = [await each for each in work]
            return 1 + sum(reply.knowledge["result"] for reply in replies)

        return ask

    async with TestReef(*[member(n) for n in range(count)]) as reef:
        asked = [
            reef.request(f"m{chance.randrange(count)}", {"depth": 0}, timeout=1e6)
            for _ in range(25)
        ]
        replies = await asyncio.gather(*asked)
        assert all(reply.knowledge["result"] >= 1 for reply in replies)
        await reef.settle()
        assert not reef.losses


@pytest.mark.parametrize("seed", range(12))
async def test_random_teams_with_circles_never_hang(seed: int) -> None:
    """Whoever asks whom: every request ends, by a reply or by a detected circle."""
    chance = random.Random(seed)
    count = 6

    def member(place: int) -> AgentDefinition:
        @agent(f"m{place}", concurrent=chance.choice([False, False, 2]))
        async def ask(spore: Spore, reef: Reef) -> int:
            await asyncio.sleep(chance.choice([0, 0.1, 1]))
            left = spore.knowledge["left"]
            if not left:
                return 1
            target = f"m{chance.randrange(count)}"
            return int(
                (await reef.request(target, {"left": left - 1}, timeout=1e6)).knowledge["result"]
            )

        return ask

    async with TestReef(*[member(n) for n in range(count)]) as reef:
        asked = [
            reef.request(f"m{chance.randrange(count)}", {"left": chance.randrange(5)}, timeout=1e6)
            for _ in range(40)
        ]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert reef.elapsed < 1e5, "some request waited for its time-out"
        for outcome in outcomes:
            assert isinstance(outcome, (Spore, RequestFailedError)), outcome
        await reef.settle()
        assert reef.ledger().balanced
