"""What becomes of the value that a handler returns."""

from __future__ import annotations

from typing import Any

import pytest

from praval import Agent, Outcome, Spore, SporeType, agent, astart_agents, broadcast
from praval.errors import RequestFailedError
from praval.testing import TestReef


@agent("listener", responds_to=["finding"])
async def listener(spore: Spore) -> None:
    return None


@agent("catch_all")
async def catch_all(spore: Spore) -> None:
    return None


def returning(value: Any, **options: Any) -> Any:
    @agent("worker", responds_to=["go"], **options)
    async def worker(spore: Spore) -> Any:
        return value

    return worker


async def test_none_is_no_result() -> None:
    """A handler that returns nothing broadcasts nothing and leaves no result."""
    async with TestReef(returning(None), catch_all) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        assert reef.results("worker") == []
        assert len(reef.spores) == 1


async def test_a_dictionary_with_a_type_is_broadcast() -> None:
    """It comes from the agent, on main, as a child of what was handled."""
    async with TestReef(returning({"type": "finding", "n": 1}), listener) as reef:
        root = await reef.broadcast({"type": "go"})
        await reef.settle()
        (finding,) = reef.published("finding")
        assert (finding.from_agent, finding.channel, finding.root) == ("worker", "main", root.id)
        assert finding.knowledge == {"type": "finding", "n": 1}
        assert [attempt.agent for attempt in reef.handled] == ["worker", "listener"]


async def test_a_dictionary_without_a_type_never_wakes_catch_all_agents() -> None:
    """It is a result, but not a message."""
    async with TestReef(returning({"n": 1}), catch_all) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        assert reef.results("worker") == [{"n": 1}]
        assert len(reef.spores) == 1


async def test_a_type_of_none_is_no_type() -> None:
    """``{"type": None}`` is a result like any without a type."""
    async with TestReef(returning({"type": None, "n": 1}), catch_all) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        assert len(reef.spores) == 1
        assert reef.ledger().failed == 0


async def test_auto_broadcast_false_keeps_the_result_to_itself() -> None:
    """The result is there for the session, but no spore."""
    worker = returning({"type": "finding"}, auto_broadcast=False)
    async with TestReef(worker, listener) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        assert reef.results("worker") == [{"type": "finding"}]
        assert len(reef.spores) == 1


@pytest.mark.parametrize("value", ["text", 5, 0, False, "", [1, 2], 2.5])
async def test_what_is_no_dictionary_becomes_one(value: Any) -> None:
    """``{"result": value}``, falsy values included; a session returns it."""
    result = await astart_agents(returning(value), initial_data={"type": "go"}, timeout=5)
    assert dict(result) == {"result": value}
    assert result.by_agent == {"worker": [{"result": value}]}


async def test_the_reply_to_a_request_is_what_the_handler_returned() -> None:
    """The asker gets it and nobody else does, whatever its type."""
    async with TestReef(returning({"type": "finding", "n": 1}), listener, catch_all) as reef:
        reply = await reef.request("worker", {"type": "go"}, timeout=5)
        await reef.settle()
        assert reply.knowledge == {"type": "finding", "n": 1}
        assert reply.spore_type is SporeType.RESPONSE
        assert [attempt.agent for attempt in reef.handled] == ["worker"]
        (request,) = reef.published(spore_type=SporeType.REQUEST)
        assert (reply.correlation_id, reply.from_agent) == (request.id, "worker")
        assert reply.root == request.id
        assert reef.ledger().balanced


@pytest.mark.parametrize(
    ("value", "reply"),
    [(None, {"result": None}), ("text", {"result": "text"}), ({"n": 1}, {"n": 1})],
)
async def test_every_request_gets_a_reply(value: Any, reply: dict[str, Any]) -> None:
    """Also from a handler that returns None: the asker must not wait for ever."""
    async with TestReef(returning(value)) as reef:
        assert (await reef.request("worker", {"type": "go"}, timeout=5)).knowledge == reply


async def test_auto_broadcast_false_replies_all_the_same() -> None:
    """It is about broadcasts; a request is answered."""
    async with TestReef(returning({"type": "finding"}, auto_broadcast=False)) as reef:
        reply = await reef.request("worker", {"type": "go"}, timeout=5)
        assert reply.type == "finding"


async def test_a_handler_may_broadcast_beside_its_reply() -> None:
    """What it says with ``broadcast()`` goes its own way."""

    @agent("worker")
    async def worker(spore: Spore) -> dict[str, Any]:
        broadcast({"type": "finding"})
        return {"type": "answer"}

    async with TestReef(worker, listener) as reef:
        assert (await reef.request("worker", {}, timeout=5)).type == "answer"
        await reef.settle()
        assert [attempt.agent for attempt in reef.handled] == ["worker", "listener"]


@pytest.mark.parametrize(
    "value",
    [{"type": "finding", "x": object()}, {"type": 5}, {"type": "finding", "x": float("inf")}],
)
async def test_a_result_that_cannot_be_sent_fails_the_delivery(value: Any) -> None:
    """It is the handler's failure: counted, and a dead letter."""
    async with TestReef(returning(value), listener) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        assert [loss.outcome for loss in reef.losses] == [Outcome.FAILED]
        assert [letter.agent for letter in reef.dead_letters()] == ["worker"]


async def test_a_reply_that_cannot_be_sent_fails_the_request() -> None:
    """The asker hears why."""
    async with TestReef(returning({"x": object()})) as reef:
        with pytest.raises(RequestFailedError, match="cannot be sent"):
            await reef.request("worker", {"type": "go"}, timeout=5)


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_both_kinds_of_handler_return_alike(kind: str) -> None:
    """A plain handler's value is treated like an async one's."""

    def plain(spore: Spore) -> Any:
        return {"type": "finding", "tuple": (1, 2)}

    async def coroutine(spore: Spore) -> Any:
        return plain(spore)

    worker = agent("worker", responds_to=["go"])(plain if kind == "plain" else coroutine)
    async with TestReef(worker, listener) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        assert reef.published("finding")[0].knowledge == {"type": "finding", "tuple": [1, 2]}


async def test_a_subclass_of_agent_answers_with_what_handle_returns() -> None:
    """An agent class is an agent like a decorated function."""

    class Doubler(Agent):
        async def handle(self, spore: Spore) -> Any:
            return {"type": "finding", "n": 2 * spore.knowledge["n"]}

    async with TestReef(Doubler("doubler"), listener) as reef:
        await reef.broadcast({"type": "go", "n": 4})
        await reef.settle()
        assert [spore.knowledge["n"] for spore in reef.published("finding")] == [8]
