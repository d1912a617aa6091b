"""The guide's decorators around handlers: plain and async, below @agent and above it, combined."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest

from praval import (
    Reef,
    Spore,
    agent,
    broadcast,
    cached_agent,
    configure,
    debug_agent,
    monitor_agent_performance,
    resilient_agent,
)
from praval.errors import ConfigurationError, HandlerSignatureError

PATIENCE = 10.0
Wrap = Callable[[Any], Any]


def build(
    kind: str, place: str, wrap: Wrap, work: Callable[[Spore], Any], name: str = "worker"
) -> Any:
    """Make an agent of a handler that does ``work``, wrapped below or above ``@agent``."""
    if kind == "async":

        async def handler(spore: Spore) -> Any:
            return work(spore)
    else:

        def handler(spore: Spore) -> Any:  # type: ignore[misc]
            return work(spore)

    handler.__name__ = name
    make = agent(name, responds_to=["x"])
    return make(wrap(handler)) if place == "below" else wrap(make(handler))


every_way = pytest.mark.parametrize(
    ("kind", "place"), list(itertools.product(["async", "plain"], ["below", "above"]))
)


async def run(*agents: Any, times: int = 1, **knowledge: Any) -> Reef:
    async with Reef(*agents) as reef:
        for _ in range(times):
            await reef.broadcast({"type": "x", **knowledge})
            await reef.wait_idle(PATIENCE)
    return reef


# -- resilient_agent -------------------------------------------------------------------------


@every_way
async def test_a_resilient_handler_tries_again(kind: str, place: str) -> None:
    """At once, in the same handling: the Reef counts one."""
    attempts: list[int] = []

    def work(spore: Spore) -> None:
        attempts.append(spore.attempt)
        if len(attempts) < 3:
            raise ValueError("not yet")

    reef = await run(build(kind, place, resilient_agent(3, 0), work))
    assert attempts == [1, 1, 1]
    assert reef.ledger().handled == 1


@every_way
async def test_after_the_last_attempt_the_failure_is_told_once(kind: str, place: str) -> None:
    """With the number of attempts, to the agents that respond to agent_error."""
    told: list[Any] = []

    @agent("handler", responds_to=["agent_error"])
    async def handle(spore: Spore) -> None:
        told.append(spore.knowledge)

    def work(spore: Spore) -> None:
        raise ValueError("never")

    await run(build(kind, place, resilient_agent(max_retries=2, backoff_delay=0), work), handle)
    assert told == [
        {
            "type": "agent_error",
            "agent_name": "worker",
            "error": "never",
            "attempts": 2,
            "spore_data": {"type": "x"},
        }
    ]


@pytest.mark.parametrize("bad", [{"max_retries": 0}, {"max_retries": 1.5}, {"backoff_delay": -1}])
def test_numbers_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    """When the decorator is written."""
    with pytest.raises(ConfigurationError, match=next(iter(bad))):
        resilient_agent(**bad)


# -- cached_agent ----------------------------------------------------------------------------


@every_way
async def test_a_cached_handler_runs_once_per_knowledge(kind: str, place: str) -> None:
    """The order of the keys does not matter; each gets a result of its own."""
    calls: list[Any] = []

    def work(spore: Spore) -> dict[str, Any]:
        calls.append(spore.knowledge["a"])
        return {"list": [1]}

    worker = build(kind, place, cached_agent(cache_duration=60), work)
    async with Reef(worker) as reef:
        answers = [
            (await reef.request("worker", knowledge, timeout=PATIENCE)).knowledge
            for knowledge in (
                {"type": "x", "a": 1, "b": 2},
                {"b": 2, "a": 1, "type": "x"},
                {"type": "x", "a": 2},
            )
        ]
    assert calls == [1, 2]
    assert answers == [{"list": [1]}] * 3


async def test_a_kept_result_is_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what JSON cannot carry is not kept at all."""
    calls: list[Any] = []

    def work(spore: Spore) -> object:
        calls.append(1)
        return None if spore.knowledge["keep"] else calls.append

    wrapped = cached_agent(cache_duration=1e-9)(work)
    for _ in range(2):
        wrapped(Spore.create({"type": "x", "keep": True}))
    wrapped = cached_agent()(work)
    for _ in range(2):
        wrapped(Spore.create({"type": "x", "keep": False}))
    assert len(calls) >= 4
    with pytest.raises(ConfigurationError, match="cache_duration"):
        cached_agent(0)


# -- monitor_agent_performance ---------------------------------------------------------------


@every_way
async def test_a_monitored_handler_broadcasts_its_metrics(kind: str, place: str) -> None:
    """Name, seconds and status, of successes and failures."""
    seen: list[dict[str, Any]] = []

    @agent("collector", responds_to=["agent_metrics"])
    async def collect(spore: Spore) -> None:
        seen.append(spore.knowledge)

    def work(spore: Spore) -> None:
        if spore.knowledge.get("bad"):
            raise ValueError("bad")

    worker = build(kind, place, monitor_agent_performance, work)
    await run(worker, collect)
    await run(worker, collect, bad=True)
    assert [(each["agent_name"], each["status"], each.get("error")) for each in seen] == [
        ("worker", "success", None),
        ("worker", "error", "bad"),
    ]
    assert all(0 <= each["execution_time"] < PATIENCE for each in seen)


def test_called_directly_it_tells_nobody() -> None:
    """A unit test needs no Reef."""
    assert monitor_agent_performance(lambda spore: 5)(Spore.create({"type": "x"})) == 5


# -- debug_agent -----------------------------------------------------------------------------


@every_way
async def test_a_debugged_handler_logs_what_goes_in_and_out(
    kind: str, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While debugging is on, and not otherwise."""

    def work(spore: Spore) -> Any:
        if spore.knowledge.get("bad"):
            raise ValueError("bad")
        return {"out": 2}

    worker = build(kind, place, debug_agent, work)
    with caplog.at_level(logging.DEBUG, "praval.agents"):
        await run(worker, secret=1)
        assert not caplog.records
        configure({"debug": True})
        await run(worker, secret=1)
        await run(worker, bad=True)
    said = "\n".join(record.getMessage() for record in caplog.records if "agents" in record.name)
    for text in ("'secret': 1", "{'out': 2}", "worker failed", "ValueError: bad", "Traceback"):
        assert text in said
    logging.getLogger("praval").setLevel(logging.NOTSET)


# -- together --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order",
    list(
        itertools.permutations(
            [resilient_agent(2, 0), cached_agent(60), monitor_agent_performance, debug_agent]
        )
    )[::5],
)
@pytest.mark.parametrize("kind", ["async", "plain"])
@pytest.mark.parametrize("below", [0, 2, 4])
async def test_all_of_them_work_together_in_any_order(order: Any, kind: str, below: int) -> None:
    """Some below @agent, the others above."""
    calls: list[int] = []

    def work(spore: Spore) -> dict[str, int]:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("once")
        return {"n": len(calls)}

    def wrap(steps: Any, target: Any) -> Any:
        for step in steps:
            target = step(target)
        return target

    worker = wrap(order[below:], build(kind, "below", lambda f: wrap(order[:below], f), work))
    async with Reef(worker) as reef:
        for _ in range(2):
            reply = await reef.request("worker", {"type": "x"}, timeout=PATIENCE)
            assert reply.knowledge == {"n": 2}
    assert calls == [1, 1]


async def test_parameters_are_still_injected_by_name() -> None:
    """The wrapper looks like the handler to the Reef."""
    seen: list[Any] = []

    @agent("worker")
    @resilient_agent()
    @monitor_agent_performance
    async def worker(reef: Reef, *, spore: Spore, agent: Any, more: int = 7) -> None:
        """Say so."""
        broadcast({"type": "nothing"})
        seen.append((reef.running, spore.type, agent.name, more))

    await run(worker)
    assert seen == [(True, "x", "worker", 7)]
    assert worker.__doc__ == "Say so."


def test_what_is_no_handler_is_refused() -> None:
    """The error says where the decorator goes."""
    from praval import Agent

    for target in (Agent("x"), 5):
        with pytest.raises(HandlerSignatureError, match="put this decorator"):
            debug_agent(target)  # type: ignore[type-var]
