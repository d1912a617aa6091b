"""The Reef for tests: time, record and queries."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from praval import Interceptor, Outcome, Reason, Reef, Spore, SporeType, agent, broadcast, get_reef
from praval.errors import ConfigurationError, IdleTimeoutError, JournalError, ReefError
from praval.testing import TestReef, VirtualClock, clock
from praval.testing.clock import EPOCH


@agent("sleeper", responds_to=["question"])
async def sleeper(spore: Spore) -> dict[str, Any]:
    await asyncio.sleep(365 * 86_400)
    return {"type": "answer", "to": spore.knowledge.get("n")}


@agent("reader", responds_to=["answer"])
async def reader(spore: Spore) -> dict[str, Any]:
    return {"read": spore.knowledge["to"]}


@agent("flaky", responds_to=["try"], retries=3, backoff=60)
async def flaky(spore: Spore) -> dict[str, Any]:
    if spore.attempt < 3:
        raise ValueError(f"attempt {spore.attempt}")
    return {"took": spore.attempt}


@agent("echo")
async def echo(spore: Spore) -> dict[str, Any]:
    return {"echo": spore.knowledge.get("n")}


# -- time ------------------------------------------------------------------------------------


async def test_a_handler_that_sleeps_a_year_settles_at_once() -> None:
    """``settle`` returns when all is done, a year later, within real seconds."""
    began = time.monotonic()
    async with TestReef(sleeper, reader) as reef:
        await reef.broadcast({"type": "question", "n": 1})
        await reef.settle()
        assert reef.elapsed == 365 * 86_400
        assert reef.results("reader") == [{"read": 1}]
    assert time.monotonic() - began < 5


async def test_retries_wait_in_virtual_time() -> None:
    """Back-off of 60 and 120 seconds has passed after the third attempt."""
    async with TestReef(flaky) as reef:
        await reef.broadcast({"type": "try"})
        await reef.settle()
        began = [round(attempt.began - EPOCH, 3) for attempt in reef.attempts]
        assert began == [0, 60, 180]
        assert [repr(attempt.error) for attempt in reef.attempts[:2]] == [
            "ValueError('attempt 1')",
            "ValueError('attempt 2')",
        ]
        assert reef.results("flaky") == [{"took": 3}]


async def test_time_to_live_ends_in_virtual_time() -> None:
    """A spore that waited too long behind a slow one is expired, not handled."""
    async with TestReef(sleeper, reader) as reef:
        await reef.broadcast({"type": "question"}, ttl=60)
        await reef.broadcast({"type": "question"}, ttl=60)
        await reef.settle()
        assert [loss.reason for loss in reef.losses] == [Reason.TTL]
        assert [attempt.agent for attempt in reef.handled] == ["sleeper", "reader"]


async def test_a_request_times_out_in_virtual_time() -> None:
    """The default of 30 seconds passes at once."""
    async with TestReef(sleeper) as reef:
        with pytest.raises(TimeoutError):
            await reef.request("sleeper", {"type": "question"})
        assert reef.elapsed == 30


async def test_spores_carry_the_virtual_wall_clock() -> None:
    """Created when the clock says so, which starts with 2026."""
    async with TestReef(sleeper, reader) as reef:
        await reef.broadcast({"type": "question"})
        await reef.settle()
        (answer,) = reef.published("answer")
        assert answer.created_at == EPOCH + 365 * 86_400
        assert reef.spores[0].timestamp.startswith("2026-01-01T00:00:00")


async def test_settle_says_when_something_is_stuck() -> None:
    """A handler that waits for what nobody will do is an error, at once."""

    @agent("stuck")
    async def stuck(spore: Spore) -> None:
        await asyncio.Event().wait()

    async with TestReef(stuck) as reef:
        await reef.broadcast({})
        with pytest.raises(IdleTimeoutError):
            await reef.settle()
        await reef.aclose(drain=False)
    assert [loss.outcome for loss in reef.losses] == [Outcome.CANCELLED]


async def test_advance_goes_as_far_as_it_is_told() -> None:
    """Before the time is up the handler is still at it."""
    async with TestReef(sleeper) as reef:
        await reef.broadcast({"type": "question"})
        await reef.advance(365 * 86_400 - 1)
        assert reef.handled == []
        assert reef.attempts[0].ended is None
        await reef.advance(1)
        assert len(reef.handled) == 1


async def test_time_waits_for_plain_handlers() -> None:
    """A plain handler that takes real time is not overtaken by a timer."""
    order: list[str] = []

    @agent("thread")
    def thread(spore: Spore) -> None:
        time.sleep(0.05)
        order.append("thread")

    async with TestReef(thread) as reef:
        asyncio.get_running_loop().call_later(0.001, order.append, "timer")
        await reef.broadcast({})
        await reef.settle()
        assert reef.elapsed == 0
        await reef.advance(1)
    assert order == ["thread", "timer"]


async def test_time_waits_for_a_plain_handler_between_two_calls_into_the_loop() -> None:
    """It is still at work after its own broadcast was accepted."""

    @agent("talker", responds_to=["go"])
    def talker(spore: Spore) -> None:
        for n in range(20):
            broadcast({"type": "said", "n": n})
            time.sleep(0.001)

    async with TestReef(talker, echo) as reef:
        ticks: list[float] = []
        asyncio.get_running_loop().call_later(0.001, lambda: ticks.append(len(reef.published())))
        await reef.broadcast({"type": "go"})
        await reef.settle()
        await reef.advance(1)
        assert ticks == [21]


async def test_time_passes_while_a_plain_handler_waits_for_an_async_one() -> None:
    """Waiting inside the bridge is not work: the year goes by."""

    @agent("boss", responds_to=["go"])
    def boss(spore: Spore) -> dict[str, Any]:
        reply = asyncio.run(get_reef().request("sleeper", {"type": "question"}, timeout=1e9))
        return {"answered_at": reply.created_at}

    async with TestReef(boss, sleeper) as reef:
        await reef.broadcast({"type": "go"}, ttl=1e9)
        await reef.settle()
        assert reef.results("boss") == [{"answered_at": EPOCH + 365 * 86_400}]


async def test_a_plain_handler_runs_into_its_timeout_when_time_is_told_to_pass() -> None:
    """``advance(hold=False)`` leaves a blocked thread behind."""
    gate = threading.Event()

    @agent("blocked", timeout=5)
    def blocked(spore: Spore) -> None:
        gate.wait(30)

    async with TestReef(blocked) as reef:
        await reef.broadcast({})
        await reef.advance(5, hold=False)
        assert [loss.reason for loss in reef.losses] == [Reason.HANDLER_TIMEOUT]
        gate.set()


async def test_a_plain_handler_waits_for_another_thread_of_the_reef() -> None:
    """That one began later does not keep it from reporting first."""
    met = threading.Barrier(2)

    @agent("one")
    def one(spore: Spore) -> dict[str, Any]:
        met.wait(10)
        return {"n": 1}

    @agent("two")
    def two(spore: Spore) -> dict[str, Any]:
        met.wait(10)
        return {"n": 2}

    async with TestReef(one, two) as reef:
        await reef.broadcast({})
        await reef.settle()
        assert [attempt.agent for attempt in reef.handled] == ["one", "two"]


async def test_a_thread_that_waits_for_a_later_one_does_not_hold_it_up_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first says nothing until the second has been answered: order gives way after a while."""
    monkeypatch.setattr(clock, "ORDER_PATIENCE", 0.05)
    answered = threading.Event()

    @agent("first", responds_to=["go"])
    def first(spore: Spore) -> dict[str, Any]:
        return {"met": answered.wait(10)}

    @agent("second", responds_to=["go"])
    def second(spore: Spore) -> None:
        broadcast({"type": "unheard"})
        answered.set()

    async with TestReef(first, second) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        assert reef.results("first") == [{"met": True}]
        assert reef.elapsed == 0


async def test_a_thread_that_waits_for_time_to_pass_does_not_stop_it_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After real seconds without a word time goes on, and the log says so."""
    monkeypatch.setattr(clock, "HOLD_PATIENCE", 0.05)
    later = threading.Event()

    @agent("patient")
    def patient(spore: Spore) -> dict[str, Any]:
        return {"met": later.wait(10)}

    async with TestReef(patient) as reef:
        asyncio.get_running_loop().call_later(60, later.set)
        await reef.broadcast({})
        await reef.settle()
        assert reef.results("patient") == [{"met": True}]
        assert reef.elapsed >= 60
    assert "virtual time goes on without them" in caplog.text


async def test_time_waits_for_the_journal(tmp_path: Path) -> None:
    """A request with a short time-out is not overtaken by its clock while the disk is written."""
    async with TestReef(echo, journal=tmp_path / "journal.sqlite") as reef:
        for n in range(20):
            reply = await reef.request("echo", {"n": n}, timeout=0.001)
            assert reply.knowledge == {"echo": n}
        assert reef.elapsed == 0
        assert reef.ledger().balanced


async def test_the_journal_survives_into_the_next_reef(tmp_path: Path) -> None:
    """What was cancelled by closing is handled by the Reef that opens the file again."""

    @agent("napper")
    async def napper(spore: Spore) -> None:
        await asyncio.sleep(3000)

    path = tmp_path / "journal.sqlite"
    async with TestReef(napper, journal=path) as reef:
        await reef.broadcast({})
        await reef.advance(1)
        await reef.aclose(drain=False)
    async with TestReef(napper, journal=path) as reef:
        await reef.settle()
        assert [attempt.spore.attempt for attempt in reef.handled] == [2]


async def test_a_journal_that_cannot_be_opened_leaves_real_time(tmp_path: Path) -> None:
    """A Reef that fails to start gives the loop back."""
    (tmp_path / "journal.sqlite").write_bytes(b"no database" * 100)
    reef = TestReef(echo, journal=tmp_path / "journal.sqlite")
    with pytest.raises(JournalError):
        await reef.__aenter__()
    assert VirtualClock.of(asyncio.get_running_loop()) is None


async def test_two_reefs_share_the_time_of_their_loop() -> None:
    """The loop is given back when the last of them closes."""
    loop = asyncio.get_running_loop()
    async with TestReef(sleeper) as one:
        async with TestReef(echo) as two:
            await one.broadcast({"type": "question"}, ttl=1e9)
            await two.advance(365 * 86_400)
            assert len(one.handled) == 1
        assert VirtualClock.of(loop) is not None
        await one.settle()
    assert VirtualClock.of(loop) is None


@pytest.mark.every_loop
async def test_real_time_works_on_every_loop() -> None:
    """Record and faults need no virtual time."""
    async with TestReef(echo, virtual_time=False, duplicate=1.0) as reef:
        await reef.broadcast({"n": 1})
        await reef.settle()
        assert reef.results("echo") == [{"echo": 1}, {"echo": 1}]
        assert time.time() - reef.spores[0].created_at < 60
        with pytest.raises(ReefError, match="no virtual time"):
            await reef.advance(1)


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.every_loop
async def test_virtual_time_on_uvloop_is_a_clear_error() -> None:
    """The Reef does not start."""
    reef = TestReef(echo)
    with pytest.raises(ConfigurationError, match="uvloop"):
        await reef.__aenter__()
    assert not reef.running


# -- record ----------------------------------------------------------------------------------


async def test_every_publication_is_recorded_in_order() -> None:
    """From outside, from handlers, requests, replies, unheard ones and error events."""

    @agent("watch", responds_to=["agent_error"])
    async def watch(spore: Spore) -> None:
        pass

    @agent("relay", responds_to=["relay"])
    async def relay(spore: Spore) -> dict[str, Any]:
        broadcast({"type": "unheard"})
        return {"type": "also unheard"}

    @agent("bad", responds_to=["bad"])
    async def bad(spore: Spore) -> None:
        raise ValueError("no")

    async with TestReef(watch, relay, bad, flaky) as reef:
        await reef.broadcast({"type": "relay"})
        await reef.settle()
        await reef.publish(Spore.create({"type": "bad"}))
        await reef.settle()
        await reef.request("flaky", {"type": "try"}, timeout=1e6)
        kinds = [(spore.type, spore.from_agent) for spore in reef.spores]
        assert kinds == [
            ("relay", None),
            ("unheard", "relay"),
            ("also unheard", "relay"),
            ("bad", None),
            ("agent_error", None),
            ("try", None),
            (None, "flaky"),
        ]
        (reply,) = reef.published(spore_type=SporeType.RESPONSE)
        (request,) = reef.published(spore_type=SporeType.REQUEST)
        assert reply.correlation_id == request.id
        ledger = reef.ledger()
        assert len(reef.spores) == ledger.published
        assert len(reef.handled) + 1 == ledger.handled  # no handler gets the reply


async def test_the_record_accounts_for_every_delivery() -> None:
    """Ended attempts and losses together are the ledger."""

    @agent("picky", responds_to=["try"])
    async def picky(spore: Spore) -> None:
        raise ValueError("never")

    async with TestReef(flaky, picky, sleeper) as reef:
        await reef.broadcast({"type": "try"})
        await reef.broadcast({"type": "nobody"})
        await reef.broadcast({"type": "question"}, ttl=60)
        await reef.broadcast({"type": "question"}, ttl=60)
        await reef.settle()
        ledger = reef.ledger()
        assert ledger.handled == len(reef.handled)
        assert ledger.deliveries == len(reef.handled) + len(reef.losses)
        assert Counter(loss.reason.value for loss in reef.losses) == ledger.reasons


async def test_the_record_is_of_that_moment() -> None:
    """What handlers do to their knowledge or state afterwards does not change it."""
    state: dict[str, Any] = {"count": 0}

    @agent("counter")
    async def counter(spore: Spore) -> dict[str, Any]:
        spore.knowledge["n"] = "changed"
        state["count"] += 1
        return state

    async with TestReef(counter) as reef:
        for n in range(2):
            await reef.broadcast({"n": n})
        await reef.settle()
        assert [attempt.spore.knowledge for attempt in reef.attempts] == [{"n": 0}, {"n": 1}]
        assert reef.results("counter") == [{"count": 1}, {"count": 2}]


async def test_queries_select_by_description() -> None:
    """Type, sender, recipient and channel narrow down what was published."""
    async with TestReef(sleeper, reader, echo) as reef:
        await reef.send("echo", {"type": "a"})
        await reef.broadcast({"type": "a"}, channel="side")
        await reef.broadcast({"type": "question"})
        await reef.settle()
        assert len(reef.published("a")) == 2
        assert [spore.to_agent for spore in reef.published("a", to_agent="echo")] == ["echo"]
        assert [spore.channel for spore in reef.published(channel="side")] == ["side"]
        assert [spore.type for spore in reef.published(from_agent="sleeper")] == ["answer"]
        assert reef.published("missing") == []
        assert reef.results("nobody") == []


async def test_results_are_what_a_session_reports() -> None:
    """None is no result; what is no mapping becomes one."""

    @agent("various")
    async def various(spore: Spore) -> Any:
        return spore.knowledge["value"]

    async with TestReef(various) as reef:
        for value in (None, 5, {"a": 1}):
            await reef.broadcast({"value": value})
        await reef.settle()
        assert reef.results("various") == [{"result": 5}, {"a": 1}]
        assert len(reef.handled) == 3


async def test_other_interceptors_stand_between_record_and_handler() -> None:
    """The record has what came out of them, and the spores as they left them."""

    class Stamp(Interceptor):
        def publish(self, spore: Spore) -> Spore:
            return spore.replace(knowledge={**spore.knowledge, "stamped": True})

        async def handle(self, spore: Spore, agent: Any, call_next: Any) -> Any:
            return {**await call_next(spore), "by": agent.name}

    async with TestReef(echo, interceptors=[Stamp()]) as reef:
        await reef.broadcast({"n": 1})
        await reef.settle()
        assert reef.spores[0].knowledge == {"n": 1, "stamped": True}
        assert reef.results("echo") == [{"echo": 1, "by": "echo"}]


async def test_the_chain_around_publishing_sees_replies() -> None:
    """What seals or stamps every spore must not miss the answers."""

    class Stamp(Interceptor):
        def publish(self, spore: Spore) -> Spore:
            return spore.replace(knowledge={**spore.knowledge, "stamped": True})

    async with Reef(echo, interceptors=[Stamp()]) as reef:
        reply = await reef.request("echo", {"n": 1}, timeout=5)
        assert reply.knowledge == {"echo": 1, "stamped": True}
