"""A Reef's life: entering, changing its agents, closing, serving."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from praval import AgentDefinition, Reason, Reef, Spore, agent, broadcast, throttled_agent
from praval.errors import (
    DuplicateAgentError,
    HandlerSignatureError,
    ReefClosedError,
    ReefError,
    UnknownAgentError,
)
from praval.settings import ReefSettings, Settings
from praval.testing import TestReef


def draining(seconds: float) -> Settings:
    return Settings(reef_config=ReefSettings(drain_timeout=seconds))


def sleeper(
    log: list[str], seconds: float, name: str = "sleeper", **options: Any
) -> AgentDefinition:
    @agent(name, **options)
    async def sleep(spore: Spore) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            log.append("cancelled")
            raise
        log.append("done")

    return sleep


@pytest.fixture(autouse=True)
def _no_task_left() -> Iterator[None]:
    """Every test below also shows that closing leaves no task behind: its loop would say so."""
    yield
    gc.collect()


def tasks_of_praval() -> list[str]:
    return [
        task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("praval:")
    ]


# -- leaving -------------------------------------------------------------------------------------


async def test_leaving_lets_accepted_work_finish() -> None:
    """What runs, what waits, and what comes of it."""
    log: list[str] = []

    @agent("source", responds_to=["go"])
    async def source(spore: Spore) -> dict[str, Any]:
        await asyncio.sleep(1)
        return {"type": "item"}

    async with TestReef(source, sleeper(log, 2, responds_to=["item"])) as reef:
        for _ in range(2):
            await reef.broadcast({"type": "go"})
    assert log == ["done", "done"]
    ledger = reef.ledger()
    assert (ledger.handled, ledger.pending, ledger.balanced) == (4, 0, True)
    assert not tasks_of_praval()


async def test_what_is_not_done_after_the_drain_timeout_is_cancelled() -> None:
    """What runs sees CancelledError, what waits never starts; all is counted."""
    log: list[str] = []
    async with TestReef(sleeper(log, 4), settings=draining(6)) as reef:
        for _ in range(4):
            await reef.broadcast({})
    assert log == ["done", "cancelled"]
    ledger = reef.ledger()
    assert (ledger.handled, ledger.cancelled, ledger.pending) == (1, 3, 0)
    assert ledger.reasons == {Reason.CLOSED.value: 3}
    assert ledger.balanced
    assert not tasks_of_praval()


async def test_leaving_by_an_exception_cancels_at_once() -> None:
    """Nobody wants the rest then; no time passes."""
    log: list[str] = []
    with contextlib.suppress(ZeroDivisionError):
        async with TestReef(sleeper(log, 4)) as reef:
            for _ in range(3):
                await reef.broadcast({})
            await reef.timeline.rest()
            raise ZeroDivisionError
    assert reef.elapsed == 0
    assert log == ["cancelled"]
    assert reef.ledger().cancelled == 3


async def test_leaving_cancels_a_retry_that_is_far_away() -> None:
    """A timer is no reason to stay longer than ``drain_timeout``."""

    @agent("broken", retries=1, backoff=1000)
    async def broken(spore: Spore) -> None:
        raise ValueError("no")

    async with TestReef(broken) as reef:
        await reef.broadcast({})
        await reef.timeline.rest()
    assert (reef.ledger().cancelled, reef.ledger().pending) == (1, 0)


async def test_what_a_handler_says_while_it_is_cancelled_starts_nothing_new() -> None:
    """Its last words are counted, and the Reef closes all the same."""
    log: list[str] = []

    @agent("talker", responds_to=["go"])
    async def talker(spore: Spore) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            broadcast({"type": "last words"})

    async with TestReef(
        talker, sleeper(log, 1, responds_to=["last words"]), settings=draining(1)
    ) as reef:
        await reef.broadcast({"type": "go"})
    assert log == []
    ledger = reef.ledger()
    assert (ledger.cancelled, ledger.pending, ledger.balanced) == (2, 0, True)
    assert not tasks_of_praval()


async def test_a_handler_that_goes_on_after_its_cancellation_is_waited_for_a_while() -> None:
    """Its clean-up may take seconds; its worker ends with it."""

    @agent("tidy")
    async def tidy(spore: Spore) -> str:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await asyncio.sleep(2)
        return "tidied"

    async with TestReef(tidy, settings=draining(1)) as reef:
        await reef.broadcast({})
        await reef.broadcast({})
    assert reef.results("tidy") == [{"result": "tidied"}]
    assert (reef.ledger().handled, reef.ledger().cancelled) == (1, 1)
    assert not tasks_of_praval()


async def test_a_publisher_that_waits_for_room_is_let_go() -> None:
    """It hears that the Reef is closed; its spore is counted."""
    log: list[str] = []
    settings = Settings(reef_config=ReefSettings(channel_capacity=1, drain_timeout=1))
    async with TestReef(sleeper(log, 1000), settings=settings) as reef:
        for _ in range(2):
            await reef.broadcast({})
            await reef.timeline.rest()
        waiting = asyncio.create_task(reef.send("sleeper", {}))
        await reef.timeline.rest()
    with pytest.raises(ReefClosedError):
        await waiting
    ledger = reef.ledger()
    assert (ledger.cancelled, ledger.pending, ledger.balanced) == (3, 0, True)
    assert not tasks_of_praval()


async def test_closing_twice_is_harmless() -> None:
    """In a row, at once, and before it was ever entered."""
    reef = Reef(sleeper([], 0))
    await reef.aclose()
    await reef.aclose()
    with pytest.raises(ReefError):
        await reef.__aenter__()
    stopped: list[str] = []
    definition = sleeper([], 0.01)
    definition.on_stop(lambda: stopped.append("stopped"))
    async with Reef(definition) as reef:
        await reef.broadcast({})
        await asyncio.gather(reef.aclose(), reef.aclose())
        await reef.aclose()
    assert stopped == ["stopped"]
    assert reef.ledger().handled == 1


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_handler_cannot_close_its_own_reef(kind: str) -> None:
    """It would wait for itself: a clear error; ``stop()`` is the way."""
    errors: list[str] = []

    async def coroutine(spore: Spore, reef: Reef) -> None:
        try:
            await reef.aclose()
        except ReefError as error:
            errors.append(str(error))

    def plain(spore: Spore, reef: Reef) -> None:
        try:
            reef.shutdown()
        except ReefError as error:
            errors.append(str(error))

    closer = agent("closer")(coroutine if kind == "async" else plain)
    async with Reef(closer) as reef:
        await reef.broadcast({})
        await reef.wait_idle(5)
        assert reef.running
    assert len(errors) == 1
    assert "stop()" in errors[0]


async def test_stop_from_a_handler_ends_serve() -> None:
    """In the order: the handler, what waits, the Reef."""

    @agent("stopper", responds_to=["stop"])
    async def stopper(spore: Spore, reef: Reef) -> None:
        reef.stop()

    log: list[str] = []
    async with TestReef(stopper, sleeper(log, 1, responds_to=["go"])) as reef:
        await reef.broadcast({"type": "go"})
        await reef.broadcast({"type": "stop"})
        await reef.serve()
        assert not reef.running
    assert log == ["done"]


# -- hooks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_hooks_run_around_the_life_of_an_agent(kind: str) -> None:
    """Start hooks before its first spore, stop hooks after its last; with the Reef if wanted."""
    log: list[str] = []

    @agent("a")
    async def a(spore: Spore) -> None:
        log.append("handled")

    if kind == "async":

        @a.on_start
        async def start(reef: Reef) -> None:
            log.append(f"start {reef.namespace}")

        @a.on_stop
        async def stop() -> None:
            log.append("stop")
    else:
        a.on_start(lambda reef: log.append(f"start {reef.namespace}"))
        a.on_stop(lambda: log.append("stop"))

    async with Reef(a, namespace="desk") as reef:
        assert log == ["start desk"]
        await reef.broadcast({})
    assert log == ["start desk", "handled", "stop"]


async def test_a_start_hook_that_fails_keeps_the_reef_closed() -> None:
    """What was started is stopped again, and the error comes out."""
    log: list[str] = []
    first, second = sleeper([], 0, "first"), sleeper([], 0, "second")
    first.on_stop(lambda: log.append("first stopped"))

    @second.on_start
    async def fail() -> None:
        raise ZeroDivisionError

    reef = Reef(first, second)
    with pytest.raises(ZeroDivisionError):
        await reef.__aenter__()
    assert not reef.running
    assert log == ["first stopped"]


# -- agents come and go --------------------------------------------------------------------------


async def test_an_agent_added_while_running_hears_what_comes_after() -> None:
    """From the moment ``add`` returns."""
    log: list[str] = []
    late = sleeper(log, 0, "late")
    late.on_start(lambda: log.append("started"))
    async with TestReef(sleeper([], 0)) as reef:
        await reef.broadcast({})
        await reef.add(late)
        await reef.broadcast({})
        await reef.settle()
        assert log == ["started", "done"]


async def test_an_agent_may_be_added_without_waiting() -> None:
    """Nothing is forgotten when nobody awaits it."""
    log: list[str] = []
    async with TestReef(sleeper([], 0)) as reef:
        reef.add(sleeper(log, 0, "late"))
        gc.collect()
        await reef.broadcast({})
        await reef.settle()
        assert log == ["done"]


async def test_a_removed_agent_finishes_what_it_is_handling() -> None:
    """What waits for it is cancelled, and later spores do not find it."""
    log: list[str] = []
    definition = sleeper(log, 5)
    definition.on_stop(lambda: log.append("stopped"))
    async with TestReef(definition) as reef:
        for _ in range(3):
            await reef.broadcast({})
        await reef.timeline.rest()
        await reef.remove("sleeper")
        assert log == ["done", "stopped"]
        assert 5 <= reef.elapsed < 6
        await reef.broadcast({})
        with pytest.raises(UnknownAgentError):
            await reef.remove("sleeper")
        ledger = reef.ledger()
        assert (ledger.handled, ledger.cancelled, ledger.undeliverable) == (1, 2, 1)
        assert ledger.reasons[Reason.AGENT_REMOVED.value] == 2
        assert ledger.balanced
        await reef.wait_idle(1)
        assert not tasks_of_praval()


async def test_a_removed_agent_that_does_not_finish_is_cancelled() -> None:
    """After ``drain_timeout``."""
    log: list[str] = []
    async with TestReef(sleeper(log, 1000), settings=draining(3)) as reef:
        await reef.broadcast({})
        await reef.timeline.rest()
        await reef.remove("sleeper")
        assert log == ["cancelled"]
        await reef.wait_idle(1)
        assert reef.ledger().reasons == {Reason.AGENT_REMOVED.value: 1}


async def test_a_removed_agent_does_not_come_back_for_a_retry() -> None:
    """Neither for one that waits, nor for one that would have been."""

    @agent("broken", retries=5, backoff=10)
    async def broken(spore: Spore) -> None:
        await asyncio.sleep(spore.knowledge["sleep"])
        raise ValueError("no")

    async with TestReef(broken) as reef:
        await reef.broadcast({"sleep": 0})
        await reef.broadcast({"sleep": 3})
        await reef.advance(1)
        await reef.remove("broken")
        await reef.wait_idle(1)
        await reef.advance(100)
        assert len(reef.attempts) == 2
        ledger = reef.ledger()
        assert (ledger.failed, ledger.cancelled, ledger.balanced) == (1, 1, True)


async def test_a_throttled_agent_can_be_removed_while_a_spore_waits_for_its_turn() -> None:
    """It never began, so it is cancelled."""

    @throttled_agent("slow", 1)
    async def slow(spore: Spore) -> None:
        return None

    async with TestReef(slow) as reef:
        for _ in range(3):
            await reef.broadcast({})
        await reef.timeline.rest()
        await reef.remove("slow")
        await reef.wait_idle(1)
        ledger = reef.ledger()
        assert (ledger.handled, ledger.cancelled, ledger.balanced) == (1, 2, True)


async def test_a_throttled_agent_can_be_closed_while_a_spore_waits_for_its_turn() -> None:
    """The same when the Reef closes: counted, not forgotten."""

    @throttled_agent("slow", 1)
    async def slow(spore: Spore) -> None:
        return None

    async with TestReef(slow) as reef:
        for _ in range(3):
            await reef.broadcast({})
    ledger = reef.ledger()
    assert (ledger.handled, ledger.cancelled, ledger.pending) == (1, 2, 0)
    assert ledger.balanced


async def test_a_caught_cancellation_does_not_keep_a_journalled_reef_at_work(
    tmp_path: Path,
) -> None:
    """The handling is done; what waits stays in the journal for the next start."""
    handled: list[int] = []

    @agent("tidy")
    async def tidy(spore: Spore) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            handled.append(spore.knowledge["n"])

    journal = tmp_path / "journal.sqlite"
    async with TestReef(tidy, settings=draining(1), journal=journal) as reef:
        for n in range(3):
            await reef.broadcast({"n": n})
    assert handled == [0]
    assert (reef.ledger().handled, reef.ledger().pending) == (1, 2)
    assert not tasks_of_praval()
    async with TestReef(tidy, settings=draining(1), journal=journal) as reef:
        assert reef.pending == 2
    assert handled == [0, 1]


async def test_the_same_function_defined_again_replaces_the_old_one() -> None:
    """A notebook cell run twice; what waits is handled by the new one."""
    log: list[str] = []

    def cell(version: str) -> AgentDefinition:
        @agent("note")
        async def note(spore: Spore) -> None:
            log.append(version)
            await asyncio.sleep(1)

        return note

    async with TestReef(cell("old")) as reef:
        await reef.broadcast({})
        await reef.broadcast({})
        await reef.timeline.rest()
        await reef.add(cell("new"))
        await reef.settle()
        assert log == ["old", "new"]
        assert len(reef.runners) == 1


async def test_a_replaced_agent_may_listen_elsewhere() -> None:
    """Types and channel are those of the new definition."""

    def cell(**options: Any) -> AgentDefinition:
        @agent("note", **options)
        async def note(spore: Spore) -> None:
            return None

        return note

    async with TestReef(cell(responds_to=["a"])) as reef:
        await reef.add(cell(responds_to=["b"], channel="side"))
        await reef.broadcast({"type": "a"})
        await reef.broadcast({"type": "b"}, "side")
        await reef.settle()
        assert [attempt.spore.type for attempt in reef.handled] == ["b"]


async def test_another_agent_of_the_same_name_is_refused() -> None:
    """Before entry and after; what is there stays."""

    @agent("sleeper")
    async def other(spore: Spore) -> None:
        return None

    with pytest.raises(DuplicateAgentError, match="sleeper"):
        Reef(sleeper([], 0), other)
    log: list[str] = []
    async with TestReef(sleeper(log, 0)) as reef:
        with pytest.raises(DuplicateAgentError):
            reef.add(other)
        await reef.broadcast({})
        await reef.settle()
        assert log == ["done"]


async def test_a_handler_that_wants_what_nobody_provides_is_refused() -> None:
    """When the Reef starts, or when it is added to a running one, which goes on without it."""

    @agent("wants")
    async def wants(spore: Spore, storage: Any) -> None:
        return None

    with pytest.raises(HandlerSignatureError, match="storage"):
        await Reef(wants).__aenter__()
    async with TestReef(sleeper([], 0)) as reef:
        with pytest.raises(HandlerSignatureError):
            await reef.add(wants)
        assert list(reef.runners) == ["sleeper"]
        receipt = await reef.broadcast({})
        assert receipt.recipients == 1


# -- several Reefs -------------------------------------------------------------------------------


async def test_reefs_live_side_by_side() -> None:
    """One definition in several, each with its own mailboxes, order and ledger."""
    running = 0
    most = 0

    @agent("shared")
    async def shared(spore: Spore, reef: Reef) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return reef.namespace

    async with Reef(shared, namespace="a") as a, Reef(shared, namespace="b") as b:
        replies = await asyncio.gather(
            *[reef.request("shared", {}, timeout=5) for reef in (a, b) for _ in range(3)]
        )
        assert [reply.knowledge["result"] for reply in replies] == ["a"] * 3 + ["b"] * 3
        assert most == 2, "one at a time in each"
        assert a.ledger().handled == b.ledger().handled == 6


async def test_a_handler_publishes_in_its_own_reef() -> None:
    """``broadcast()`` means the Reef whose handler runs, and only that."""
    heard: list[str] = []

    @agent("speaker", responds_to=["go"])
    async def speaker(spore: Spore) -> None:
        broadcast({"type": "said"})

    @agent("listener", responds_to=["said"])
    async def listener(spore: Spore, reef: Reef) -> None:
        heard.append(reef.namespace)

    async with (
        Reef(speaker, listener, namespace="a") as a,
        Reef(speaker, listener, namespace="b") as b,
    ):
        await a.broadcast({"type": "go"})
        await a.wait_idle(5)
        await b.wait_idle(5)
    assert heard == ["a"]


async def test_a_handler_may_use_another_reef_from_outside() -> None:
    """There it is a publisher like any other: it waits for room, and may ask."""

    @agent("answerer")
    async def answerer(spore: Spore) -> int:
        return 2 * int(spore.knowledge["n"])

    async with Reef(answerer) as inner:

        @agent("asker")
        async def asker(spore: Spore) -> Any:
            await inner.broadcast({"n": 0})
            return (await inner.request("answerer", {"n": 21}, timeout=5)).knowledge

        async with Reef(asker) as outer:
            reply = await outer.request("asker", {}, timeout=5)
            assert reply.knowledge == {"result": 42}


# -- nothing left --------------------------------------------------------------------------------


async def test_nothing_is_left_after_closing() -> None:
    """No task, no thread, no timer."""

    @agent("plain", concurrent=True, timeout=60)
    def plain(spore: Spore) -> None:
        return None

    before = threading.active_count()
    async with Reef(plain, sleeper([], 0, concurrent=True, timeout=60)) as reef:
        for _ in range(20):
            await reef.broadcast({})
        await reef.wait_idle(5)
        assert threading.active_count() > before
    for thread in threading.enumerate():
        if thread.name == "praval-worker":
            thread.join(5)
    assert threading.active_count() == before
    assert asyncio.all_tasks() == {asyncio.current_task()}
    loop: Any = asyncio.get_running_loop()
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


def test_a_reef_that_is_never_closed_warns() -> None:
    """A ResourceWarning, like a file."""

    async def main() -> None:
        await Reef(sleeper([], 0)).__aenter__()
        gc.collect()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert [
        str(w.message) for w in caught if w.category is ResourceWarning and "Reef" in str(w.message)
    ]


# -- serving -------------------------------------------------------------------------------------

SERVICE = """
    import asyncio, sys
    from praval import Reef, agent
    from praval.settings import ReefSettings, Settings

    @agent("slow", concurrent=True)
    async def slow(spore):
        await asyncio.sleep(0)  # serve() is there when the world hears of it
        print("begun", flush=True)
        try:
            await asyncio.sleep(spore.knowledge["seconds"])
        except asyncio.CancelledError:
            print("cancelled", flush=True)
            raise
        print("handled", flush=True)

    @slow.on_stop
    async def stopped(reef):
        ledger = reef.ledger()
        print("stopped", ledger.handled, ledger.cancelled, ledger.balanced, flush=True)

    async def main():
        settings = Settings(reef_config=ReefSettings(drain_timeout=60))
        async with Reef(slow, settings=settings) as reef:
            await reef.broadcast({"seconds": float(sys.argv[1])})
            %s
        print("left", flush=True)

    asyncio.run(main())
    """
ALONE = "await reef.serve()"
BESIDE = "asyncio.create_task(reef.serve()); await asyncio.Event().wait()"


def serving(tmp_path: Path, seconds: float, body: str = ALONE) -> subprocess.Popen[str]:
    script = tmp_path / "service.py"
    script.write_text(textwrap.dedent(SERVICE) % body)
    return subprocess.Popen(
        [sys.executable, str(script), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_drains_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """What it has accepted is done; then it ends with 0."""
    with serving(tmp_path, 0.5) as process:
        assert line(process) == "begun"
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    assert output.split("\n")[:-1] == ["handled", "stopped 1 0 True", "left"]
    assert process.returncode == 0, errors
    assert not errors


def test_a_second_signal_ends_the_draining(tmp_path: Path) -> None:
    """Whoever asks twice does not want to wait."""
    with serving(tmp_path, 1000) as process:
        assert line(process) == "begun"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert output.split("\n")[:-1] == ["cancelled", "stopped 0 1 True", "left"]
    assert process.returncode == 0, errors


def test_serving_beside_other_work_ends_that_work(tmp_path: Path) -> None:
    """The task that entered the Reef is cancelled when the service has closed."""
    with serving(tmp_path, 0.2, BESIDE) as process:
        assert line(process) == "begun"
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    assert output.split("\n")[:-1] == ["handled", "stopped 1 0 True"]
    assert process.returncode != 0, "asyncio.run() ended by CancelledError"


async def test_whoever_closes_second_waits_for_the_first() -> None:
    """Two closers at once both return when the Reef is closed, not before."""
    gate = asyncio.Event()

    @agent("busy")
    async def busy(spore: Spore) -> None:
        await gate.wait()

    async with TestReef(busy) as reef:
        await reef.broadcast({"n": 1})
        first = asyncio.create_task(reef.aclose())
        await reef.timeline.rest()
        second = asyncio.create_task(reef.aclose())
        await reef.timeline.rest()
        assert not second.done()
        gate.set()
        await asyncio.gather(first, second)
        assert reef.ledger().handled == 1


async def test_a_cancelled_closer_does_not_leave_a_half_closed_reef() -> None:
    """The closing goes on to its end, even if whoever asked for it is cancelled twice."""
    cleaned = asyncio.Event()

    @agent("slow")
    async def slow(spore: Spore) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            cleaned.set()

    async with TestReef(slow) as reef:
        await reef.broadcast({"n": 1})
        await reef.timeline.rest()
        closer = asyncio.create_task(reef.aclose())
        for _ in range(2):
            await reef.timeline.rest()
            closer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closer
        await reef.aclose()
        assert cleaned.is_set()
        assert reef.health_check()["status"] == "closed"
        assert reef.ledger().cancelled == 1
        assert reef.ledger().balanced
