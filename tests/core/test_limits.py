"""Limits: chains that are too long, trees that are too big, knowledge that is too large."""

from __future__ import annotations

from typing import Any

import pytest

from praval import Outcome, Reason, Receipt, Spore, agent, astart_agents, broadcast, configure
from praval.errors import BudgetError, RequestFailedError, SporeTooLargeError
from praval.settings import ReefSettings, SecuritySettings, Settings
from praval.testing import TestReef


def limits(**options: Any) -> Settings:
    return Settings(reef_config=ReefSettings(**options))


@agent("ping", responds_to=["ping"])
async def ping(spore: Spore) -> dict[str, Any]:
    return {"type": "pong"}


@agent("pong", responds_to=["pong"])
async def pong(spore: Spore) -> dict[str, Any]:
    return {"type": "ping"}


# -- hops ----------------------------------------------------------------------------------------


async def test_agents_that_answer_one_another_for_ever_are_stopped() -> None:
    """The spore over the hop limit is rejected; everything before it was handled."""
    async with TestReef(ping, pong, settings=limits(max_hops=25)) as reef:
        await reef.broadcast({"type": "ping"})
        await reef.settle()
        assert [spore.hops for spore in reef.spores][:26] == list(range(26))
        ledger = reef.ledger()
        assert (ledger.handled, ledger.rejected, ledger.pending) == (26, 1, 0)
        assert ledger.reasons == {Reason.HOP_LIMIT.value: 1}
        assert ledger.balanced


async def test_the_default_hop_limit_is_1000() -> None:
    """And the error is in the session's ``errors``."""
    result = await astart_agents(ping, pong, initial_data={"type": "ping"}, timeout=30)
    (error,) = result.errors
    assert (error.outcome, error.reason) == (Outcome.REJECTED, Reason.HOP_LIMIT)
    assert isinstance(error.error, BudgetError)
    assert result.ledger.handled == 1001
    assert not result.timed_out


async def test_requests_count_as_hops() -> None:
    """Recursion by request ends there, too: the asker gets the error."""

    @agent("self", concurrent=True)
    async def ask_itself(spore: Spore, reef: Any) -> Any:
        return (await reef.request("self", {}, timeout=60)).knowledge

    async with TestReef(ask_itself, settings=limits(max_hops=10)) as reef:
        with pytest.raises(RequestFailedError, match="hops"):
            await reef.request("self", {}, timeout=60)
        assert reef.ledger().reasons[Reason.HOP_LIMIT.value] == 1
        assert reef.ledger().balanced


# -- trees ---------------------------------------------------------------------------------------


async def test_an_explosion_is_stopped_at_the_budget_of_its_tree() -> None:
    """Each spore makes two; the tree may have 100."""

    def doubler(name: str, other: str) -> Any:
        @agent(name, responds_to=[name])
        async def double(spore: Spore) -> None:
            broadcast({"type": other})
            broadcast({"type": other})

        return double

    async with TestReef(
        doubler("a", "b"), doubler("b", "a"), settings=limits(max_tree=100)
    ) as reef:
        await reef.broadcast({"type": "a"})
        await reef.settle()
        ledger = reef.ledger()
        assert ledger.handled == 100
        assert ledger.reasons == {Reason.TREE_BUDGET.value: ledger.rejected}
        assert ledger.rejected == 101
        assert ledger.balanced


async def test_each_root_has_its_own_budget() -> None:
    """What one root spends is not taken from another."""

    @agent("source", responds_to=["go"])
    async def source(spore: Spore) -> None:
        for _ in range(9):
            broadcast({"type": "item"})

    @agent("sink", responds_to=["item"])
    async def sink(spore: Spore) -> None:
        return None

    async with TestReef(source, sink, settings=limits(max_tree=10)) as reef:
        for _ in range(5):
            await reef.broadcast({"type": "go"})
        await reef.settle()
        assert reef.ledger().handled == 50
        assert reef.ledger().rejected == 0


async def test_a_refused_spore_is_an_error_on_its_receipt() -> None:
    """The handler may look, and goes on if it does not."""
    receipts: list[Receipt] = []

    @agent("source", responds_to=["go"])
    async def source(spore: Spore) -> str:
        receipts.extend(broadcast({"type": "item"}) for _ in range(3))
        return "done"

    @agent("sink", responds_to=["item"])
    async def sink(spore: Spore) -> None:
        return None

    async with TestReef(source, sink, settings=limits(max_tree=2)) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        assert [type(receipt.error) for receipt in receipts] == [
            type(None),
            BudgetError,
            BudgetError,
        ]
        assert [receipt.recipients for receipt in receipts] == [1, 0, 0]
        with pytest.raises(BudgetError, match="max_tree"):
            await receipts[1]
        assert reef.results("source") == [{"result": "done"}]


# -- size ----------------------------------------------------------------------------------------


async def test_knowledge_over_the_size_limit_is_refused() -> None:
    """Exactly the limit passes; one byte more does not, and changes nothing."""
    settings = Settings(security=SecuritySettings(max_message_size=100))
    frame = len('{"text":""}')

    @agent("reader")
    async def reader(spore: Spore) -> int:
        return len(spore.knowledge["text"])

    async with TestReef(reader, settings=settings) as reef:
        await reef.broadcast({"text": "x" * (100 - frame)})
        with pytest.raises(SporeTooLargeError, match="101 bytes; the limit is 100"):
            await reef.broadcast({"text": "x" * (101 - frame)})
        with pytest.raises(SporeTooLargeError):
            await reef.request("reader", {"text": "x" * 100})
        with pytest.raises(SporeTooLargeError):
            await reef.publish(Spore.create({"text": "x" * 100}))
        await reef.settle()
        assert reef.results("reader") == [{"result": 100 - frame}]
        assert reef.ledger().published == 1


async def test_bytes_are_counted_not_characters() -> None:
    """What travels is UTF-8."""
    settings = Settings(security=SecuritySettings(max_message_size=100))
    async with TestReef(ping, settings=settings) as reef:
        await reef.broadcast({"text": "e" * 80})
        with pytest.raises(SporeTooLargeError):
            await reef.broadcast({"text": "\u00e9" * 80})


async def test_a_result_over_the_size_limit_fails_its_delivery() -> None:
    """It is the handler's failure, and the dead letter holds what was asked."""

    @agent("writer", responds_to=["go"])
    async def writer(spore: Spore) -> dict[str, Any]:
        return {"type": "text", "text": "x" * 200}

    configure({"security": {"max_message_size": 100}})
    async with TestReef(writer) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        (letter,) = reef.dead_letters()
        assert "SporeTooLargeError" in letter.error
