"""Failures: retries, time-outs, dead letters, error events, and cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from praval import DeadLetter, Outcome, Reason, Reef, Spore, agent, astart_agents, broadcast
from praval.errors import (
    HandlerTimeoutError,
    ReefError,
    RequestFailedError,
    UnknownAgentError,
)
from praval.settings import ReefSettings, SecuritySettings, Settings
from praval.testing import TestReef


def began(reef: TestReef, name: str) -> list[float]:
    """Return when an agent's attempts began, in seconds since the Reef was entered."""
    return [round(a.began - reef.started_at, 3) for a in reef.attempts if a.agent == name]


def failing(name: str, error: BaseException, **options: Any) -> Any:
    @agent(name, **options)
    async def fail(spore: Spore) -> None:
        raise error

    return fail


# -- retries -------------------------------------------------------------------------------------


async def test_a_failed_handling_is_retried_with_growing_pauses() -> None:
    """``backoff`` seconds before the first retry, doubled for each further one; then a letter."""
    async with TestReef(failing("a", ValueError("no"), retries=3, backoff=2)) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        assert began(reef, "a") == [0, 2, 6, 14]
        assert [attempt.spore.attempt for attempt in reef.attempts] == [1, 2, 3, 4]
        (letter,) = reef.dead_letters()
        assert (letter.attempts, letter.reason) == (4, Reason.HANDLER_RAISED)
        ledger = reef.ledger()
        assert (ledger.deliveries, ledger.failed, ledger.balanced) == (1, 1, True)


async def test_without_retries_the_first_failure_is_the_last() -> None:
    """``retries`` is 0 unless asked for."""
    async with TestReef(failing("a", ValueError("no"))) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        assert len(reef.attempts) == 1
        assert reef.ledger().failed == 1


async def test_a_retry_that_succeeds_is_handled_once() -> None:
    """The ledger counts the delivery, not the attempts."""

    @agent("a", retries=2, backoff=0)
    async def flaky(spore: Spore) -> None:
        if spore.attempt < 3:
            raise ValueError("not yet")

    async with TestReef(flaky) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        ledger = reef.ledger()
        assert (ledger.handled, ledger.failed, ledger.deliveries) == (1, 0, 1)
        assert not reef.dead_letters()


async def test_a_retry_blocks_nobody() -> None:
    """While one spore waits to be tried again, the agent handles the others."""

    @agent("a", retries=1, backoff=60)
    async def flaky(spore: Spore) -> None:
        if spore.knowledge["n"] == 0 and spore.attempt == 1:
            raise ValueError("not yet")

    async with TestReef(flaky) as reef:
        for n in range(3):
            await reef.broadcast({"n": n})
        await reef.settle()
        order = [(a.spore.knowledge["n"], round(a.began - reef.started_at)) for a in reef.attempts]
        assert order == [(0, 0), (1, 0), (2, 0), (0, 60)]


async def test_each_attempt_gets_knowledge_as_it_was_sent() -> None:
    """What a failed attempt did to it is not seen by the next."""
    seen: list[dict[str, Any]] = []

    @agent("a", retries=1, backoff=0)
    async def spoil(spore: Spore) -> None:
        seen.append(dict(spore.knowledge))
        spore.knowledge.clear()
        if spore.attempt == 1:
            raise ValueError("not yet")

    async with TestReef(spoil) as reef:
        await reef.broadcast({"n": 1})
        await reef.settle()
    assert seen == [{"n": 1}] * 2


async def test_a_retry_after_its_time_to_live_is_expired() -> None:
    """The time to live goes on between attempts."""
    async with TestReef(failing("a", ValueError("no"), retries=1, backoff=60)) as reef:
        await reef.broadcast({"type": "go"}, ttl=30)
        await reef.settle()
        assert [loss.reason for loss in reef.losses] == [Reason.TTL]


# -- time-outs -----------------------------------------------------------------------------------


async def test_an_async_handler_over_its_timeout_is_cancelled() -> None:
    """It sees CancelledError, its clean-up runs, and the delivery has failed."""
    cleaned: list[float] = []

    @agent("a", timeout=5)
    async def slow(spore: Spore, reef: Reef) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(reef.clock())

    async with TestReef(slow) as reef:
        await reef.broadcast({"n": 1})
        await reef.broadcast({"n": 2})
        await reef.settle()
        assert [round(at - reef.started_at, 3) for at in cleaned] == [5, 10]
        assert [loss.reason for loss in reef.losses] == [Reason.HANDLER_TIMEOUT] * 2
        assert isinstance(reef.losses[0].error, HandlerTimeoutError)
        assert reef.ledger().failed == 2


async def test_a_timed_out_handling_is_retried() -> None:
    """A time-out is a failure like any other."""

    @agent("a", timeout=5, retries=1, backoff=1)
    async def slow_once(spore: Spore) -> None:
        await asyncio.sleep(60 if spore.attempt == 1 else 1)

    async with TestReef(slow_once) as reef:
        await reef.broadcast({"n": 1})
        await reef.settle()
        assert began(reef, "a") == [0, 6]
        assert reef.ledger().handled == 1


async def test_a_timeout_error_of_its_own_is_no_timeout_of_the_agent() -> None:
    """Whatever the handler raises itself is reported as raised."""

    @agent("a", timeout=60)
    async def impatient(spore: Spore) -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(5)

    async with TestReef(impatient) as reef:
        await reef.broadcast({"n": 1})
        await reef.settle()
        assert [loss.reason for loss in reef.losses] == [Reason.HANDLER_RAISED]


async def test_a_handler_that_answers_its_timeout_with_a_result_is_handled() -> None:
    """As with ``asyncio.timeout``: who catches the cancellation has finished after all."""

    @agent("a", timeout=5)
    async def saver(spore: Spore) -> dict[str, Any]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return {"partial": True}
        return {"partial": False}

    async with TestReef(saver) as reef:
        await reef.broadcast({"n": 1})
        await reef.settle()
        assert reef.results("a") == [{"partial": True}]
        assert reef.ledger().handled == 1


async def test_a_caught_timeout_leaves_no_trace_on_the_next_delivery() -> None:
    """The worker goes on, and a later cancellation is not taken for another's."""

    @agent("a", timeout=5)
    async def saver(spore: Spore) -> None:
        if spore.knowledge["n"] == 1:
            raise asyncio.CancelledError("mine")
        if spore.knowledge["n"] == 0:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return
        async with asyncio.timeout(60):
            await asyncio.sleep(1)

    async with TestReef(saver) as reef:
        for n in range(4):
            await reef.broadcast({"n": n})
        await reef.settle(60)
        assert [loss.reason for loss in reef.losses] == [Reason.HANDLER_CANCELLED]
        assert (reef.ledger().handled, reef.ledger().cancelled) == (3, 1)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Something that plain handlers block on; opened at the end, so that no thread is left."""
    event = threading.Event()
    yield event
    event.set()


async def test_a_plain_handler_over_its_timeout_keeps_its_slot(gate: threading.Event) -> None:
    """A thread cannot be killed: the delivery has failed, the slot is busy until it returns."""

    @agent("stuck", timeout=5)
    def stuck(spore: Spore) -> None:
        gate.wait(60)

    @agent("next", responds_to=["next"])
    def next_one(spore: Spore) -> str:
        return "done"

    async with TestReef(stuck, next_one, settings=Settings(max_threads=1)) as reef:
        await reef.send("stuck", {"type": "go"})
        await reef.advance(6, hold=False)
        assert [loss.reason for loss in reef.losses] == [Reason.HANDLER_TIMEOUT]
        assert reef.threads.busy == 1
        await reef.send("next", {"type": "next"})
        await reef.advance(1, hold=False)
        assert reef.pending == 1, "there is no slot for the next one"
        gate.set()
        with reef.timeline.held():  # the stuck thread needs real time to notice
            await reef.wait_idle()
        assert reef.results("next") == [{"result": "done"}]
        assert reef.threads.busy == 0


async def test_what_a_plain_handler_says_after_its_timeout_has_no_parent(
    gate: threading.Event,
) -> None:
    """The delivery has ended; what its thread still publishes is an orphan, not lost."""
    spoken = threading.Event()

    @agent("stuck", responds_to=["go"], timeout=5)
    def stuck(spore: Spore) -> None:
        gate.wait(60)
        broadcast({"type": "late"})
        spoken.set()

    @agent("h", responds_to=["late"])
    async def hearer(spore: Spore) -> None:
        return None

    async with TestReef(stuck, hearer) as reef:
        await reef.broadcast({"type": "go"})
        await reef.advance(6, hold=False)
        gate.set()
        with reef.timeline.held():
            await asyncio.to_thread(spoken.wait, 10)
        await reef.settle()
        (late,) = reef.published("late")
        assert (late.root, late.hops) == (late.id, 0)
        assert reef.ledger().handled == 1


# -- on_error ------------------------------------------------------------------------------------


async def test_on_error_raise_reaches_the_requester() -> None:
    """The asker gets the very exception."""
    async with TestReef(failing("a", ZeroDivisionError("mine"), on_error="raise")) as reef:
        with pytest.raises(ZeroDivisionError, match="mine"):
            await reef.request("a", {}, timeout=5)
        assert len(reef.dead_letters()) == 1


async def test_on_error_dead_letter_gives_the_requester_a_request_error() -> None:
    """Its cause is the exception."""
    async with TestReef(failing("a", ZeroDivisionError("mine"))) as reef:
        with pytest.raises(RequestFailedError, match="mine") as caught:
            await reef.request("a", {}, timeout=5)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_on_error_raise_ends_a_session_with_the_exception() -> None:
    """What is left of its tree is cancelled."""
    cancelled: list[str] = []

    @agent("sleeper", responds_to=["go"])
    async def sleeper(spore: Spore) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append("sleeper")
            raise

    broken = failing("broken", ZeroDivisionError("mine"), responds_to=["go"], on_error="raise")
    with pytest.raises(ZeroDivisionError, match="mine"):
        await astart_agents(sleeper, broken, initial_data={"type": "go"}, timeout=30)
    assert cancelled == ["sleeper"]


async def test_on_error_raise_after_retries_only() -> None:
    """A failure that will be tried again raises nothing yet."""

    @agent("a", retries=1, backoff=0, on_error="raise")
    async def flaky(spore: Spore) -> int:
        if spore.attempt == 1:
            raise ValueError("not yet")
        return spore.attempt

    async with TestReef(flaky) as reef:
        assert (await reef.request("a", {}, timeout=5)).knowledge == {"result": 2}


# -- dead letters --------------------------------------------------------------------------------


async def test_a_dead_letter_says_everything() -> None:
    """Who, what, why, how often and when."""
    async with TestReef(failing("a", ValueError("no good"))) as reef:
        receipt = await reef.broadcast({"type": "go", "n": 1})
        await reef.settle()
        (letter,) = reef.dead_letters()
        assert isinstance(letter, DeadLetter)
        assert letter.spore.id == receipt.id
        assert letter.spore.knowledge == {"type": "go", "n": 1}
        assert (letter.agent, letter.attempts) == ("a", 1)
        assert "no good" in letter.error
        assert letter.at == reef.clock()


async def test_failed_and_expired_deliveries_leave_letters_others_do_not() -> None:
    """A letter can be replayed; what was filtered or rejected has its reason counted only."""
    async with TestReef(failing("a", ValueError("no"), responds_to=["go"])) as reef:
        await reef.publish(
            Spore.create({"type": "go"}, created_at=0.0, expires_at=reef.clock() - 1)
        )
        await reef.broadcast({"type": "go"})
        await reef.send("a", {"type": "other"})
        await reef.broadcast({"type": "unheard"})
        await reef.settle()
        assert [letter.reason for letter in reef.dead_letters()] == [
            Reason.TTL, Reason.HANDLER_RAISED,
        ]  # fmt: skip
        ledger = reef.ledger()
        assert (ledger.expired, ledger.failed, ledger.filtered, ledger.undeliverable) == (
            1,
            1,
            1,
            1,
        )


async def test_a_replay_is_a_new_spore_to_the_same_agent() -> None:
    """It names what it replays, and the letter is gone."""
    broken = True

    @agent("a")
    async def repaired(spore: Spore) -> dict[str, Any]:
        if broken:
            raise ValueError("no")
        return {"n": spore.knowledge["n"]}

    @agent("b")
    async def bystander(spore: Spore) -> None:
        return None

    async with TestReef(repaired, bystander) as reef:
        first = await reef.broadcast({"n": 1}, priority=7, key="k", headers={"x": "y"})
        await reef.settle()
        broken = False
        (letter,) = reef.dead_letters()
        again = await reef.replay(letter.id)
        await reef.settle()
        assert reef.results("a") == [{"n": 1}]
        spore = reef.spores[-1]
        assert again.id == spore.id != first.id
        assert spore.headers == {"x": "y", "replay_of": first.id}
        assert (spore.priority, spore.key, spore.to_agent) == (7, "k", "a")
        assert not reef.dead_letters()
        assert sum(attempt.agent == "b" for attempt in reef.attempts) == 1


async def test_a_replay_that_fails_again_is_a_letter_again() -> None:
    """Nothing is lost by trying."""
    async with TestReef(failing("a", ValueError("no"))) as reef:
        await reef.broadcast({"n": 1})
        await reef.settle()
        (first,) = reef.dead_letters()
        await reef.replay(first.id)
        await reef.settle()
        (second,) = reef.dead_letters()
        assert second.id != first.id
        with pytest.raises(UnknownAgentError):
            await reef.replay(first.id)


async def test_a_letter_whose_agent_is_gone_stays() -> None:
    """Replaying it raises; it can be replayed when the agent is back."""
    a = failing("a", ValueError("no"))
    async with TestReef(a) as reef:
        await reef.broadcast({"n": 1})
        await reef.settle()
        (letter,) = reef.dead_letters()
        await reef.remove("a")
        with pytest.raises(UnknownAgentError):
            await reef.replay(letter.id)
        assert reef.dead_letters() == [letter]
        await reef.add(a)
        await reef.replay(letter.id)
        await reef.settle()
        assert len(reef.attempts) == 2


async def test_two_replays_of_one_letter_at_once_publish_it_once() -> None:
    """The second finds it gone."""
    settings = Settings(reef_config=ReefSettings(channel_capacity=1))
    proceed = asyncio.Event()

    @agent("a")
    async def slow(spore: Spore) -> None:
        if spore.knowledge["n"] == 0:
            raise ValueError("no")
        await proceed.wait()

    async with TestReef(slow, settings=settings) as reef:
        await reef.broadcast({"n": 0})
        await reef.settle()
        await reef.broadcast({"n": 1})
        await reef.timeline.rest()
        await reef.broadcast({"n": 2})  # the mailbox is full: replays must wait
        (letter,) = reef.dead_letters()
        replays = [asyncio.create_task(reef.replay(letter.id)) for _ in range(2)]
        await reef.timeline.rest()
        proceed.set()
        outcomes = await asyncio.gather(*replays, return_exceptions=True)
        await reef.settle()
        assert [type(each) for each in outcomes if isinstance(each, Exception)] == [
            UnknownAgentError
        ]
        assert sum("replay_of" in attempt.spore.headers for attempt in reef.attempts) == 1


async def test_the_last_letters_are_kept_and_the_counters_stay_exact() -> None:
    """``dead_letters`` bounds the memory; nothing bounds the numbers."""
    settings = Settings(reef_config=ReefSettings(dead_letters=10))
    async with TestReef(failing("a", ValueError("no")), settings=settings) as reef:
        for n in range(25):
            await reef.broadcast({"n": n})
        await reef.settle()
        assert [letter.spore.knowledge["n"] for letter in reef.dead_letters()] == list(
            range(15, 25)
        )
        assert reef.ledger().failed == 25


# -- agent_error ---------------------------------------------------------------------------------


async def test_agent_error_reaches_only_those_who_name_it() -> None:
    """Wherever they listen, with name, error, attempts and the knowledge; in the same tree."""

    @agent("guard", responds_to=["agent_error"], channel="security")
    async def guard(spore: Spore) -> None:
        return None

    @agent("catch_all")
    async def catch_all(spore: Spore) -> None:
        return None

    broken = failing("broken", ValueError("no"), responds_to=["go"], retries=1, backoff=0)
    async with TestReef(broken, guard, catch_all) as reef:
        root = await reef.broadcast({"type": "go", "n": 1})
        await reef.settle()
        reports = [a.spore for a in reef.handled if a.spore.type == "agent_error"]
        assert [a.agent for a in reef.handled if a.spore.type == "agent_error"] == ["guard"]
        assert reports[0].root == root.id
        assert reports[0].knowledge == {
            "type": "agent_error",
            "agent_name": "broken",
            "error": "no",
            "attempts": 2,
            "spore_data": {"type": "go", "n": 1},
        }


async def test_failing_error_handlers_emit_no_errors() -> None:
    """Else two of them would keep one another busy for ever."""
    guards = [failing(f"g{n}", ValueError("no"), responds_to=["agent_error"]) for n in range(2)]
    async with TestReef(failing("broken", ValueError("no"), responds_to=["go"]), *guards) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        assert len(reef.published("agent_error")) == 1
        assert reef.ledger().failed == 3


async def test_an_error_report_that_cannot_be_sent_breaks_nothing() -> None:
    """A spore near the size limit fails; its report would be over it. The Reef goes on."""

    @agent("guard", responds_to=["agent_error"])
    async def guard(spore: Spore) -> None:
        return None

    settings = Settings(security=SecuritySettings(max_message_size=200))
    broken = failing("broken", ValueError("no"), responds_to=["go"])
    async with TestReef(broken, guard, settings=settings) as reef:
        await reef.broadcast({"type": "go", "text": "x" * 160})
        await reef.settle(60)
        await reef.broadcast({"type": "go"})
        await reef.settle(60)
        assert reef.running
        assert reef.ledger().failed == 2


@pytest.mark.parametrize("error", [ValueError("\ud800"), ValueError(b"\xff")])
async def test_an_error_text_that_json_cannot_carry_breaks_nothing(error: Exception) -> None:
    """Whatever a handler raises, the machinery survives it."""

    @agent("guard", responds_to=["agent_error"])
    async def guard(spore: Spore) -> None:
        return None

    async with TestReef(failing("broken", error, responds_to=["go"]), guard) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle(60)
        assert reef.running
        assert reef.ledger().failed == 1


async def test_an_error_whose_text_fails_breaks_nothing() -> None:
    """Not even an exception that cannot be shown."""

    class Hidden(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

    @agent("guard", responds_to=["agent_error"])
    async def guard(spore: Spore) -> None:
        return None

    async with TestReef(failing("broken", Hidden(), responds_to=["go"]), guard) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle(60)
        assert reef.running
        assert reef.ledger().failed == 1


# -- cancellation --------------------------------------------------------------------------------


async def test_a_handlers_own_cancelled_error_ends_its_delivery_only() -> None:
    """It is counted as cancelled; the worker and what waits go on."""

    @agent("a")
    async def quitter(spore: Spore) -> None:
        if spore.knowledge["n"] == 0:
            raise asyncio.CancelledError

    async with TestReef(quitter) as reef:
        for n in range(3):
            await reef.broadcast({"n": n})
        await reef.settle(60)
        assert [(loss.outcome, loss.reason) for loss in reef.losses] == [
            (Outcome.CANCELLED, Reason.HANDLER_CANCELLED)
        ]
        assert reef.ledger().handled == 2


async def test_awaiting_a_cancelled_task_ends_the_delivery_only() -> None:
    """The CancelledError of something the handler awaits is the handler's own."""

    @agent("a")
    async def waiter(spore: Spore) -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await task

    async with TestReef(waiter) as reef:
        await reef.broadcast({})
        await reef.broadcast({})
        await reef.settle(60)
        assert reef.ledger().cancelled == 2


async def test_a_request_to_a_handler_that_cancels_itself_fails() -> None:
    """The asker is not cancelled along."""

    @agent("a")
    async def quitter(spore: Spore) -> None:
        raise asyncio.CancelledError

    async with TestReef(quitter) as reef:
        with pytest.raises(RequestFailedError, match="cancelled"):
            await reef.request("a", {}, timeout=5)


async def test_a_handler_that_cancels_its_own_task_does_not_stop_its_agent() -> None:
    """What waits behind it is handled all the same."""

    @agent("a")
    async def suicidal(spore: Spore) -> None:
        if spore.knowledge["n"] == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    async with TestReef(suicidal) as reef:
        for n in range(3):
            await reef.broadcast({"n": n})
        await reef.settle(60)
        assert reef.ledger().handled == 2
        assert reef.ledger().cancelled == 1


async def test_cancelling_a_publisher_or_an_asker_reaches_it() -> None:
    """Whoever is cancelled while waiting in the Reef ends as cancelled."""

    @agent("a")
    async def slow(spore: Spore) -> None:
        await asyncio.sleep(60)

    settings = Settings(reef_config=ReefSettings(channel_capacity=1))
    async with TestReef(slow, settings=settings) as reef:
        await reef.broadcast({})
        await reef.timeline.rest()
        await reef.broadcast({})
        waiting = [
            asyncio.create_task(work)
            for work in (reef.broadcast({}), reef.request("a", {}), reef.wait_idle())
        ]
        await reef.timeline.rest()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert all(task.cancelled() for task in waiting)
        await reef.settle()
        assert reef.ledger().balanced


# -- the process is to end -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "plain"])
@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_keyboard_interrupt_and_system_exit_in_a_handler_end_the_program(
    kind: str, signal: type[BaseException]
) -> None:
    """They leave ``asyncio.run`` as in any program; the Reef is closed on the way out."""
    reefs: list[Reef] = []

    async def async_body(spore: Spore) -> None:
        raise signal

    def plain_body(spore: Spore) -> None:
        raise signal

    ender = agent("ender", retries=3)(async_body if kind == "async" else plain_body)

    async def main() -> None:
        async with Reef(ender) as reef:
            reefs.append(reef)
            await reef.broadcast({"n": 1})
            await reef.broadcast({"n": 2})
            await reef.wait_idle(10)

    with pytest.raises(signal):
        asyncio.run(main())
    (reef,) = reefs
    assert not reef.running
    ledger = reef.ledger()
    assert (ledger.failed, ledger.cancelled, ledger.pending) == (1, 1, 0)
    assert ledger.balanced


async def test_a_reef_that_broke_down_says_so() -> None:
    """After an error of the machinery nothing is accepted in silence, and nobody waits for ever."""

    def bug(*details: Any) -> None:
        raise RuntimeError("a bug of ours")

    async with Reef(failing("a", ValueError("no"))) as reef:
        reef.books.listeners.append(bug)
        await reef.broadcast({})
        with pytest.raises(ReefError, match="broke down"):
            await reef.wait_idle(10)
        with pytest.raises(ReefError, match="broke down"):
            await reef.broadcast({})
        assert reef.health_check()["status"] == "failed"


async def test_serving_ends_when_the_reef_breaks_down() -> None:
    """A service that handles nothing any more must not look alive."""

    def bug(*details: Any) -> None:
        raise RuntimeError("a bug of ours")

    async with Reef(failing("a", ValueError("no"))) as reef:
        reef.books.listeners.append(bug)
        await reef.broadcast({})
        async with asyncio.timeout(10):
            await reef.serve()
        assert reef.health_check()["error"] == repr(RuntimeError("a bug of ours"))
