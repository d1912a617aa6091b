"""Full mailboxes: who waits, who is refused, and why nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from praval import Outcome, Reason, Receipt, Reef, Spore, agent, broadcast
from praval.errors import MailboxFullError, ReefClosedError, RequestFailedError
from praval.settings import ReefSettings, Settings
from praval.testing import TestReef


def small(capacity: int, **options: Any) -> Settings:
    return Settings(reef_config=ReefSettings(channel_capacity=capacity, **options))


class Gate:
    """An agent that handles one spore each time the gate is opened."""

    def __init__(self, name: str = "gated", **options: Any) -> None:
        self.tickets = asyncio.Semaphore(0)
        self.handled: list[Any] = []

        @agent(name, **options)
        async def gated(spore: Spore) -> None:
            await self.tickets.acquire()
            self.handled.append(spore.knowledge.get("n"))

        self.agent = gated

    def open(self, times: int = 1) -> None:
        for _ in range(times):
            self.tickets.release()


async def fill(reef: TestReef, spores: int) -> None:
    """Publish n = 0, 1, ...: the first is being handled, the others wait."""
    for n in range(spores):
        await reef.broadcast({"n": n})
        await reef.timeline.rest()


# -- wait ----------------------------------------------------------------------------------------


async def test_a_publisher_waits_while_the_mailbox_is_full() -> None:
    """And is let in when there is room; nothing is lost, and the order is kept."""
    gate = Gate()
    async with TestReef(gate.agent, settings=small(4)) as reef:
        await fill(reef, 5)
        waiting = [asyncio.create_task(reef.broadcast({"n": n})) for n in range(5, 9)]
        await reef.timeline.rest()
        assert not any(task.done() for task in waiting)
        assert reef.pending == 9
        gate.open()
        await reef.timeline.rest()
        assert not any(task.done() for task in waiting), "one place is not worth a switch"
        gate.open(2)
        await reef.timeline.rest()
        assert [task.done() for task in waiting] == [True, True, True, False]
        gate.open(10)
        await asyncio.gather(*waiting)
        await reef.settle()
        assert gate.handled == list(range(9))


@pytest.mark.parametrize("capacity", [1, 2, 3, 7])
async def test_many_publishers_all_get_in(capacity: int) -> None:
    """Whatever the capacity, nobody is forgotten."""

    @agent("slow")
    async def slow(spore: Spore) -> None:
        await asyncio.sleep(0)

    async with TestReef(slow, settings=small(capacity)) as reef:

        async def publish(publisher: int) -> None:
            for n in range(20):
                await reef.broadcast({"n": [publisher, n]})

        await asyncio.gather(*[publish(n) for n in range(20)])
        await reef.settle()
        handled = [a.spore.knowledge["n"] for a in reef.handled]
        assert sorted(handled) == [[p, n] for p in range(20) for n in range(20)]
        for publisher in range(20):
            assert [n for p, n in handled if p == publisher] == list(range(20))


async def test_the_mailbox_never_holds_more_than_its_capacity_from_outside() -> None:
    """Waiting publishers are what bounds the memory."""
    sizes: list[int] = []

    @agent("slow")
    async def slow(spore: Spore, reef: Reef) -> None:
        sizes.append(reef.runners["slow"].mailbox.size)
        await asyncio.sleep(0)

    async with TestReef(slow, settings=small(8)) as reef:
        await asyncio.gather(*[reef.broadcast({"n": n}) for n in range(200)])
        await reef.settle()
        assert max(sizes) <= 8


async def test_a_full_agent_does_not_keep_a_broadcast_from_the_others() -> None:
    """Its publisher waits; those with room and before it in line are served."""
    gate, other = Gate(), Gate("other")
    async with TestReef(other.agent, gate.agent, settings=small(1)) as reef:
        other.open(10)
        await fill(reef, 2)
        task = asyncio.create_task(reef.broadcast({"n": 2}))
        await reef.timeline.rest()
        assert other.handled == [0, 1, 2]
        assert not task.done()
        gate.open(10)
        await task
        await reef.settle()
        assert gate.handled == [0, 1, 2]


async def test_a_cancelled_publisher_is_counted_and_forgotten() -> None:
    """Its delivery ends as cancelled; the next in line gets the place."""
    gate = Gate()
    async with TestReef(gate.agent, settings=small(1)) as reef:
        await fill(reef, 2)
        first, second = (asyncio.create_task(reef.broadcast({"n": n})) for n in (2, 3))
        await reef.timeline.rest()
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        assert reef.ledger().reasons == {Reason.PUBLISHER_CANCELLED.value: 1}
        gate.open(10)
        await second
        await reef.settle()
        assert gate.handled == [0, 1, 3]
        assert (reef.ledger().cancelled, reef.ledger().balanced) == (1, True)


async def test_a_publisher_cancelled_just_as_it_is_let_in_passes_its_place_on() -> None:
    """The wake-up is not lost with it."""
    gate = Gate()
    async with TestReef(gate.agent, settings=small(1)) as reef:
        await fill(reef, 2)
        first, second = (asyncio.create_task(reef.broadcast({"n": n})) for n in (2, 3))
        await reef.timeline.rest()
        reef.runners["gated"].mailbox.pop()  # as the worker does, when its turn comes
        first.cancel()
        await reef.timeline.rest()
        assert first.cancelled()
        assert second.done()
        gate.open(10)
        await reef.timeline.rest()


async def test_a_publisher_whose_spore_is_filtered_passes_its_place_on() -> None:
    """A wrong type for the addressed agent takes no room, so the next must not wait for it."""
    gate = Gate(responds_to=["go"])
    async with TestReef(gate.agent, settings=small(1)) as reef:
        for n in range(2):
            await reef.send("gated", {"type": "go", "n": n})
            await reef.timeline.rest()
        wrong = asyncio.create_task(reef.send("gated", {"type": "other", "n": 2}))
        await asyncio.sleep(0)
        right = asyncio.create_task(reef.send("gated", {"type": "go", "n": 3}))
        await reef.timeline.rest()
        gate.open(10)
        await asyncio.wait([wrong, right], timeout=60)
        assert right.done()
        await reef.settle()
        assert gate.handled == [0, 1, 3]
        assert reef.ledger().filtered == 1


async def test_an_agent_removed_meanwhile_frees_its_publishers() -> None:
    """Who named it hears of it; who did not gets a receipt; both are counted."""
    gate = Gate()
    async with TestReef(gate.agent, settings=small(1)) as reef:
        await fill(reef, 2)
        named = asyncio.create_task(reef.send("gated", {"n": 2}))
        open_to_all = asyncio.create_task(reef.broadcast({"n": 3}))
        await reef.timeline.rest()
        gate.open()
        await reef.remove("gated")
        with pytest.raises(ReefClosedError, match="gated"):
            await named
        assert isinstance((await open_to_all).error, ReefClosedError)
        ledger = reef.ledger()
        assert (ledger.handled, ledger.cancelled, ledger.pending) == (1, 3, 0)
        assert ledger.balanced


async def test_an_agent_removed_before_its_turn_in_a_broadcast_gets_nothing() -> None:
    """A publisher that waits for one receiver meanwhile loses another."""
    gate, other = Gate(), Gate("other")
    other.open(10)
    async with TestReef(gate.agent, other.agent, settings=small(1)) as reef:
        await fill(reef, 2)
        task = asyncio.create_task(reef.broadcast({"n": 2}))
        await reef.timeline.rest()
        await reef.remove("other")
        gate.open(10)
        await task
        await reef.settle()
        assert other.handled == [0, 1]
        assert gate.handled == [0, 1, 2]
        ledger = reef.ledger()
        assert (ledger.cancelled, ledger.pending, ledger.balanced) == (1, 0, True)


# -- reject --------------------------------------------------------------------------------------


async def test_policy_reject_refuses_what_finds_no_room() -> None:
    """A broadcast says so on its receipt; one with a named receiver raises."""
    gate = Gate()
    async with TestReef(gate.agent, settings=small(1, overflow="reject")) as reef:
        await fill(reef, 2)
        receipt = await reef.broadcast({"n": 2})
        assert (receipt.recipients, receipt.rejected) == (0, ("gated",))
        with pytest.raises(MailboxFullError, match="gated"):
            await reef.send("gated", {"n": 3})
        assert [loss.reason for loss in reef.losses] == [Reason.MAILBOX_FULL] * 2
        gate.open(10)
        await reef.settle()
        assert gate.handled == [0, 1]
        assert (reef.ledger().rejected, reef.ledger().balanced) == (2, True)


async def test_policy_reject_refuses_requests_too() -> None:
    """The asker hears at once, not at its time-out."""
    gate = Gate()
    async with TestReef(gate.agent, settings=small(1, overflow="reject")) as reef:
        await fill(reef, 2)
        with pytest.raises(RequestFailedError, match="full") as caught:
            await reef.request("gated", {"n": 2}, timeout=30)
        assert isinstance(caught.value.__cause__, MailboxFullError)
        assert reef.elapsed == 0
        gate.open(10)
        await reef.settle()
        assert reef.ledger().rejected == 1


# -- drop_oldest ---------------------------------------------------------------------------------


async def test_policy_drop_oldest_keeps_the_newest() -> None:
    """What waited longest makes room, and is counted as rejected."""
    gate = Gate()
    async with TestReef(gate.agent, settings=small(2, overflow="drop_oldest")) as reef:
        await fill(reef, 6)
        gate.open(10)
        await reef.settle()
        assert gate.handled == [0, 4, 5]
        assert [(loss.spore.knowledge["n"], loss.reason) for loss in reef.losses] == [
            (n, Reason.DROPPED_OLDEST) for n in (1, 2, 3)
        ]
        assert (reef.ledger().rejected, reef.ledger().balanced) == (3, True)


async def test_policy_drop_oldest_drops_by_age_not_by_urgency() -> None:
    """The most urgent spore starts first; that is no reason to lose it first."""
    gate = Gate()
    async with TestReef(gate.agent, settings=small(2, overflow="drop_oldest")) as reef:
        await fill(reef, 2)
        await reef.broadcast({"n": "urgent"}, priority=10)
        await reef.broadcast({"n": 3})
        gate.open(10)
        await reef.settle()
        assert gate.handled == [0, "urgent", 3]


async def test_policy_drop_oldest_bounds_the_spores_of_one_key_too() -> None:
    """What waits for another of its key can be the oldest as well."""
    gate = Gate()
    async with TestReef(gate.agent, settings=small(2, overflow="drop_oldest")) as reef:
        for n in range(6):
            await reef.broadcast({"n": n}, key="k")
            await reef.timeline.rest()
            assert reef.runners["gated"].mailbox.size <= 2
        gate.open(10)
        await reef.settle()
        assert gate.handled == [0, 4, 5]
        assert reef.ledger().rejected == 3


async def test_a_dropped_request_fails_at_once() -> None:
    """Its asker does not wait for what is gone."""
    gate = Gate()
    async with TestReef(gate.agent, settings=small(1, overflow="drop_oldest")) as reef:
        await fill(reef, 1)
        asking = asyncio.create_task(reef.request("gated", {"n": 1}, timeout=60))
        await reef.timeline.rest()
        await reef.broadcast({"n": 2})
        with pytest.raises(RequestFailedError, match="newer"):
            await asking
        gate.open(10)
        await reef.settle()


# -- emissions -----------------------------------------------------------------------------------


async def test_emissions_overflow_softly_and_are_rejected_beyond_the_hard_cap() -> None:
    """A handler never waits for room; the receipt says what did not fit."""
    gate = Gate("gated", responds_to=["item"])
    receipts: list[Receipt] = []

    @agent("source", responds_to=["go"])
    async def source(spore: Spore) -> None:
        receipts.extend(broadcast({"type": "item", "n": n}) for n in range(20))

    settings = small(2, hard_capacity=12)
    async with TestReef(source, gate.agent, settings=settings) as reef:
        await reef.broadcast({"type": "go"})
        await reef.timeline.rest()
        accepted = [receipt.recipients for receipt in receipts]
        assert accepted == [1] * 12 + [0] * 8
        assert receipts[-1].rejected == ("gated",)
        assert [loss.outcome for loss in reef.losses] == [Outcome.REJECTED] * 8
        gate.open(20)
        await reef.settle()
        assert gate.handled == list(range(12))
        ledger = reef.ledger()
        assert (ledger.handled, ledger.rejected, ledger.balanced) == (13, 8, True)


async def test_an_emission_to_a_named_agent_beyond_the_hard_cap_is_an_error_on_its_receipt() -> (
    None
):
    """Awaiting it raises, so that a handler that cares can know."""
    gate = Gate()
    errors: list[BaseException] = []

    @agent("source", responds_to=["go"], channel="start")
    async def source(spore: Spore) -> None:
        broadcast({"n": 0}, target_agent="gated")
        try:
            await broadcast({"n": 1}, target_agent="gated")
        except MailboxFullError as error:
            errors.append(error)

    async with TestReef(source, gate.agent, settings=small(1, hard_capacity=1)) as reef:
        await reef.broadcast({"type": "go"}, "start")
        await reef.timeline.rest()
        assert len(errors) == 1
        gate.open(5)
        await reef.settle()


@pytest.mark.every_loop
async def test_a_cycle_of_agents_with_tiny_mailboxes_never_stops() -> None:
    """50 agents in a circle, mailboxes of 2, 200 tokens that take 60 steps each."""
    count, tokens, steps = 50, 200, 60
    passed: Counter[int] = Counter()

    def member(place: int) -> Any:
        @agent(f"m{place}", responds_to=[f"to{place}"])
        async def pass_on(spore: Spore) -> dict[str, Any] | None:
            passed[spore.knowledge["token"]] += 1
            if place % 7 == 0:
                await asyncio.sleep(0)
            left = spore.knowledge["left"] - 1
            if not left:
                return None
            return {**spore.knowledge, "type": f"to{(place + 1) % count}", "left": left}

        return pass_on

    settings = small(2)
    async with Reef(*[member(n) for n in range(count)], settings=settings) as reef:
        await asyncio.gather(*[
            reef.broadcast({"type": f"to{token % count}", "token": token, "left": steps})
            for token in range(tokens)
        ])  # fmt: skip
        await reef.wait_idle(30)
        assert passed == Counter(dict.fromkeys(range(tokens), steps))
        ledger = reef.ledger()
        assert ledger.handled == tokens * steps
        assert ledger.balanced


async def test_plain_handlers_emit_without_waiting_too() -> None:
    """A worker thread that waited for room would hold its slot meanwhile."""
    gate = Gate("gated", responds_to=["item"])

    @agent("source", responds_to=["go"])
    def source(spore: Spore) -> int:
        return sum(broadcast({"type": "item", "n": n}).recipients for n in range(10))

    async with TestReef(source, gate.agent, settings=small(1)) as reef:
        await reef.broadcast({"type": "go"})
        gate.open(10)
        await reef.settle()
        assert reef.results("source") == [{"result": 10}]
        assert gate.handled == list(range(10))
