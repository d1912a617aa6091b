"""Faults on purpose: counted, retried, balanced, and only where they are wanted."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from praval import Reason, Spore, agent
from praval.errors import ConfigurationError, RequestFailedError, UnknownAgentError
from praval.testing import InjectedFault, TestReef
from praval.testing.clock import EPOCH


@agent("worker", responds_to=["job"])
async def worker(spore: Spore) -> dict[str, Any]:
    return {"done": spore.knowledge["n"]}


@agent("other", responds_to=["job"])
async def other(spore: Spore) -> dict[str, Any]:
    return {"done": spore.knowledge["n"]}


@agent("steady", responds_to=["job"], retries=5, backoff=1)
async def steady(spore: Spore) -> dict[str, Any]:
    return {"done": spore.knowledge["n"]}


async def publish_jobs(reef: TestReef, number: int) -> None:
    for n in range(number):
        await reef.broadcast({"type": "job", "n": n})
    await reef.settle()


# -- failure ---------------------------------------------------------------------------------


async def test_injected_failures_are_counted_as_failures() -> None:
    """Each is a dead letter with the fault as its error, and the ledger balances."""
    async with TestReef(worker, failure=0.25, seed=1) as reef:
        await publish_jobs(reef, 200)
        ledger = reef.ledger()
        assert 30 < ledger.failed < 70
        assert ledger.handled == 200 - ledger.failed
        assert ledger.balanced
        assert len(reef.dead_letters()) == ledger.failed
        assert all(isinstance(loss.error, InjectedFault) for loss in reef.losses)


async def test_injected_failures_are_retried() -> None:
    """An agent with retries gets over them: every job is done once."""
    async with TestReef(steady, failure=0.4, seed=3) as reef:
        await publish_jobs(reef, 100)
        assert sorted(result["done"] for result in reef.results("steady")) == list(range(100))
        assert len(reef.attempts) > 120
        assert reef.ledger().handled == 100


async def test_the_handler_is_not_called_when_a_failure_is_injected() -> None:
    """The fault stands in its place."""
    called: list[int] = []

    @agent("noting")
    async def noting(spore: Spore) -> None:
        called.append(spore.knowledge["n"])

    async with TestReef(noting, failure=1.0) as reef:
        await publish_jobs(reef, 5)
        assert called == []
        assert reef.ledger().failed == 5


async def test_fail_next_hits_the_next_attempts_of_one_agent() -> None:
    """So many times, with the given error, and nobody else."""
    async with TestReef(steady, worker) as reef:
        reef.fail_next("steady", KeyError("gone"), times=2)
        await publish_jobs(reef, 1)
        errors = {a.agent: [] for a in reef.attempts}  # type: dict[str, list[str]]
        for attempt in reef.attempts:
            errors[attempt.agent].append(repr(attempt.error))
        assert errors == {
            "steady": ["KeyError('gone')", "KeyError('gone')", "None"],
            "worker": ["None"],
        }


async def test_fail_next_takes_a_class_and_has_a_default() -> None:
    """What is raised is what a caller of the agent sees as the cause."""
    async with TestReef(worker) as reef:
        for error, kind in ((ZeroDivisionError, ZeroDivisionError), (None, InjectedFault)):
            reef.fail_next("worker", error)
            with pytest.raises(RequestFailedError) as caught:
                await reef.request("worker", {"type": "job", "n": 1}, timeout=5)
            assert isinstance(caught.value.__cause__, kind)
        assert (await reef.request("worker", {"type": "job", "n": 1})).knowledge == {"done": 1}


# -- delay -----------------------------------------------------------------------------------


async def test_delays_are_virtual_and_within_their_bounds() -> None:
    """Each handler begins between the least and the most seconds late; nobody waits really."""
    began = time.monotonic()
    started: list[float] = []

    @agent("crowd", responds_to=["job"], concurrent=True)
    async def crowd(spore: Spore) -> None:
        started.append(asyncio.get_running_loop().time() - 1000)

    async with TestReef(crowd, delay=(10, 20)) as reef:
        await publish_jobs(reef, 200)
        assert 10 <= min(started) < 11
        assert 19 < max(started) <= 20
        assert started == sorted(started)
    assert time.monotonic() - began < 5


async def test_a_delay_counts_for_the_timeout() -> None:
    """So that slow agents can be played."""

    @agent("hasty", timeout=5)
    async def hasty(spore: Spore) -> None:
        pass

    async with TestReef(hasty) as reef:
        reef.delay_next("hasty", 6)
        reef.delay_next("hasty", 4)
        await publish_jobs(reef, 2)
        assert [loss.reason for loss in reef.losses] == [Reason.HANDLER_TIMEOUT]
        assert reef.elapsed == 9


async def test_delay_next_hits_the_next_attempts_of_one_agent() -> None:
    """The second of three begins a minute late; an agent beside it does not."""
    async with TestReef(worker, other) as reef:
        reef.delay_next("worker", 0)
        reef.delay_next("worker", 60)
        await publish_jobs(reef, 3)
        ended = {"worker": [], "other": []}  # type: dict[str, list[float]]
        for attempt in reef.handled:
            assert attempt.ended is not None
            ended[attempt.agent].append(attempt.ended - EPOCH)
        assert ended == {"worker": [0, 60, 60], "other": [0, 0, 0]}


# -- duplicates ------------------------------------------------------------------------------


async def test_duplicates_are_deliveries_of_their_own() -> None:
    """The second has the same id and the next attempt; the ledger counts and balances both."""
    async with TestReef(worker, duplicate=0.3, seed=5) as reef:
        await publish_jobs(reef, 100)
        ledger = reef.ledger()
        twice = ledger.deliveries - 100
        assert 15 < twice < 45
        assert ledger.published == 100
        assert ledger.handled == ledger.deliveries
        assert ledger.balanced
        seen: dict[str, list[int]] = {}
        for attempt in reef.attempts:
            seen.setdefault(attempt.spore.id, []).append(attempt.spore.attempt)
        assert sorted(seen.values()) == [[1]] * (100 - twice) + [[1, 2]] * twice


async def test_every_delivery_can_come_twice_and_none_three_times() -> None:
    """A duplicate is not duplicated again."""
    async with TestReef(worker, other, duplicate=1.0) as reef:
        await publish_jobs(reef, 10)
        assert reef.ledger().deliveries == 40


async def test_duplicates_of_a_session_belong_to_it() -> None:
    """A causal tree is not finished before its duplicates are."""
    from praval.core.session import run_tree

    @agent("starter", responds_to=["go"])
    async def starter(spore: Spore) -> dict[str, Any]:
        return {"type": "job", "n": 1}

    async with TestReef(starter, worker, duplicate=1.0) as reef:
        result = await run_tree(reef, {"type": "go"}, timeout=5)
        assert len(result.by_agent["starter"]) == 2
        assert len(result.by_agent["worker"]) == 4
        assert result.ledger.handled == 6
        assert result.ledger.balanced


async def test_a_duplicate_of_a_request_is_answered_too_late() -> None:
    """The asker has the first reply; the second is counted undeliverable."""
    async with TestReef(worker) as reef:
        reef.duplicate_next("worker")
        reply = await reef.request("worker", {"type": "job", "n": 1})
        await reef.settle()
        assert reply.knowledge == {"done": 1}
        assert reef.ledger().undeliverable == 1
        assert reef.ledger().balanced


async def test_a_duplicate_waits_for_its_key() -> None:
    """Spores of one key start in order, one at a time, duplicates too."""
    at_work = 0

    @agent("keyed", concurrent=True)
    async def keyed(spore: Spore) -> None:
        nonlocal at_work
        at_work += 1
        assert at_work == 1
        await asyncio.sleep(1)
        at_work -= 1

    async with TestReef(keyed, duplicate=1.0) as reef:
        for _ in range(3):
            await reef.broadcast({}, key="k")
        await reef.settle()
        assert reef.ledger().handled == 6
        assert reef.elapsed == 6


async def test_a_journal_recognises_duplicates(tmp_path: Path) -> None:
    """With a journal the second delivery is counted as a duplicate, not handled."""
    async with TestReef(worker, duplicate=1.0, journal=tmp_path / "journal.sqlite") as reef:
        await publish_jobs(reef, 10)
        ledger = reef.ledger()
        assert (ledger.handled, ledger.duplicate) == (10, 10)
        assert ledger.balanced


# -- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"failure": -0.1},
        {"failure": 1.5},
        {"duplicate": float("nan")},
        {"delay": (2, 1)},
        {"delay": (-1, 1)},
        {"delay": (0, float("inf"))},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    """With a typed error, before anything starts."""
    with pytest.raises(ConfigurationError):
        TestReef(worker, **options)


def test_faults_for_an_agent_that_is_not_there_are_refused() -> None:
    """A slip of the pen would make the test pass for the wrong reason."""
    reef = TestReef(worker)
    with pytest.raises(UnknownAgentError, match="worker"):
        reef.fail_next("wroker")
    with pytest.raises(UnknownAgentError):
        reef.delay_next("nobody", 1)
    with pytest.raises(ConfigurationError, match="times"):
        reef.duplicate_next("worker", times=0)
    with pytest.raises(ConfigurationError, match="delay"):
        reef.delay_next("worker", -1)
