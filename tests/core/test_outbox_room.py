"""Receivers that are away or slow bound what their senders send, and nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from praval import Reason, Reef, Spore, agent, broadcast
from praval.errors import MailboxFullError
from praval.settings import Settings
from tests.core.hosts import listener, quick, until

ROOM = 10


def bounded(**changes: Any) -> Settings:
    """Settings with receipts, few of which may be missing."""
    return quick(receipt="receiver", resend_after=60, unreceipted_capacity=ROOM, **changes)


async def make_group(url: str, name: str) -> None:
    """Let the broker know an agent that is away afterwards."""
    async with Reef(listener(name, []), transport=url):
        pass


async def test_publishers_wait_for_a_receiver_that_is_far_behind(url: str) -> None:
    """And go on when its receipts have come; who sends to another agent does not wait."""
    heard: list[Any] = []
    await make_group(url, "away")
    async with (
        Reef(listener("here", heard), transport=url),
        Reef(transport=url, settings=bounded()) as sender,
    ):
        await until(sender.agents, "the one that is here is known")
        for n in range(ROOM):
            await sender.send("away", {"n": n})
        waiting = asyncio.ensure_future(sender.send("away", {"n": ROOM}))
        for n in range(3 * ROOM):
            await sender.send("here", {"n": n})
        assert not waiting.done()
        assert sender.ledger().pending >= ROOM + 1
        late: list[Any] = []
        async with Reef(listener("away", late), transport=url):
            await waiting
            await sender.wait_idle(10)
        assert [n for _, n in late] == list(range(ROOM + 1))
        assert sender.ledger().delivered == 4 * ROOM + 1
        assert sender.ledger().balanced


async def test_a_publisher_that_is_cancelled_while_it_waits_leaves_room(url: str) -> None:
    """Its spore is counted as cancelled; the next one gets its place."""
    await make_group(url, "away")
    async with Reef(transport=url, settings=bounded()) as sender:
        for n in range(ROOM):
            await sender.send("away", {"n": n})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await sender.send("away", {"n": ROOM})
        assert sender.ledger().reasons == {Reason.PUBLISHER_CANCELLED.value: 1}
        late: list[Any] = []
        async with Reef(listener("away", late), transport=url):
            await sender.send("away", {"n": 99})
            await sender.wait_idle(10)
        assert [n for _, n in late] == [*range(ROOM), 99]


async def test_each_receipt_lets_one_publisher_go_on(url: str) -> None:
    """Also while older spores are still being handled."""
    gate, go = asyncio.Event(), asyncio.Event()

    @agent("worker", concurrent=True)
    async def worker(spore: Spore) -> None:
        await (gate if spore.knowledge["n"] < ROOM - 1 else go).wait()

    async with (
        Reef(worker, transport=url),
        Reef(transport=url, settings=bounded()) as sender,
    ):
        await until(sender.agents, "the receiver is known")
        for n in range(ROOM):
            await sender.send("worker", {"n": n})
        waiting = asyncio.ensure_future(sender.send("worker", {"n": ROOM}))
        await asyncio.sleep(0)
        assert not waiting.done()
        go.set()  # one of ten ends
        async with asyncio.timeout(5):
            await waiting
        gate.set()
        await sender.wait_idle(5)


async def test_nobody_waits_for_a_receiver_that_has_left(url: str) -> None:
    """A broadcast is not for it any more."""

    @agent("stuck", channel="main", concurrent=True)
    async def stuck(spore: Spore) -> None:
        await asyncio.Event().wait()

    async with Reef(transport=url, settings=bounded(drain_timeout=0.01)) as sender:
        receiver = Reef(stuck, transport=url, settings=quick(drain_timeout=0.01))
        await receiver.__aenter__()
        await until(sender.agents, "the receiver is known")
        for n in range(ROOM):
            await sender.broadcast({"n": n})
        waiting = asyncio.ensure_future(sender.broadcast({"n": ROOM}))
        await asyncio.sleep(0)
        assert not waiting.done()
        await receiver.aclose(drain=False)
        async with asyncio.timeout(5):
            await waiting


async def test_waiting_publishers_leave_nothing_behind_and_cost_the_same_each(url: str) -> None:
    """Cancelled or not, whatever their number."""
    await make_group(url, "away")
    async with Reef(transport=url, settings=bounded(drain_timeout=0.01)) as sender:
        for n in range(ROOM):
            await sender.send("away", {"n": n})
        for n in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await sender.send("away", {"n": n})
        assert not sender.bridge.outbox.backlog._lines  # type: ignore[union-attr]
    heard: list[Any] = []
    async with (
        Reef(listener("here", heard, concurrent=True), transport=url),
        Reef(transport=url, settings=bounded()) as sender,
    ):
        await until(sender.agents, "the receiver is known")
        await asyncio.gather(*(sender.send("here", {"n": n}) for n in range(2000)))
        await sender.wait_idle(20)
        assert sorted(n for _, n in heard) == list(range(2000))
        assert not sender.bridge.outbox.backlog.missing  # type: ignore[union-attr]


async def test_the_overflow_policy_holds_for_receipts_too(url: str) -> None:
    """``reject`` raises and says which agent is behind; ``drop_oldest`` gives up the oldest."""
    await make_group(url, "away")
    async with Reef(
        transport=url, settings=bounded(overflow="reject", drain_timeout=0.01)
    ) as sender:
        for n in range(ROOM):
            await sender.send("away", {"n": n})
        with pytest.raises(MailboxFullError, match=r"receipt from agent 'away'.*unreceipted"):
            await sender.send("away", {"n": ROOM})
    async with Reef(
        transport=url, settings=bounded(overflow="drop_oldest", drain_timeout=0.01)
    ) as sender:
        for n in range(ROOM + 3):
            await sender.send("away", {"n": n})
        assert sender.ledger().reasons == {Reason.DROPPED_OLDEST.value: 3}
        assert sender.ledger().pending == ROOM


async def test_a_waiting_publisher_is_told_when_the_reef_closes(url: str) -> None:
    """It does not wait for ever."""
    await make_group(url, "away")
    sender = await Reef(transport=url, settings=bounded()).__aenter__()
    for n in range(ROOM):
        await sender.send("away", {"n": n})
    waiting = asyncio.ensure_future(sender.send("away", {"n": ROOM}))
    await asyncio.sleep(0)
    await sender.aclose(drain=False)
    with pytest.raises(Exception, match=r"closed|takes nothing"):
        async with asyncio.timeout(5):
            await waiting
    assert sender.ledger().balanced


@pytest.mark.parametrize("journal", [False, True])
async def test_two_hosts_whose_agents_flood_one_another_do_not_wait_for_each_other(
    url: str, journal: bool, tmp_path: Any
) -> None:
    """What handlers emit never waits: each spore brings ten back, far above the bound."""
    heard: list[int] = []

    @agent("ping", responds_to=["ping"], concurrent=4)
    async def ping(spore: Spore) -> None:
        for n in range(ROOM):
            broadcast({"type": "pong", "n": n})

    @agent("pong", responds_to=["pong"], concurrent=4)
    async def pong(spore: Spore) -> None:
        heard.append(spore.knowledge["n"])
        if spore.hops == 1:
            broadcast({"type": "ping"})

    settings = bounded(message_ttl=20)
    journals = [tmp_path / name if journal else None for name in ("a", "b")]
    async with (
        Reef(ping, transport=url, settings=settings, journal=journals[0]) as one,
        Reef(pong, transport=url, settings=settings, journal=journals[1]) as two,
    ):
        await until(lambda: len(one.agents()) == len(two.agents()) == 2, "they know each other")
        await asyncio.gather(*(two.broadcast({"type": "ping"}) for _ in range(2 * ROOM)))
        await until(lambda: len(heard) == 2 * ROOM * (ROOM + ROOM * ROOM), "all came")
        await one.wait_idle(10)
        await two.wait_idle(10)
        assert one.ledger().balanced
        assert two.ledger().balanced
        assert one.ledger().rejected == two.ledger().rejected == 0


async def test_start_hooks_may_publish_and_run_before_their_agent_is_called(url: str) -> None:
    """What waited for an agent comes when it is ready; what its hook publishes is heard."""
    heard: list[Any] = []
    await make_group(url, "late")
    async with Reef(transport=url, settings=quick(receipt="broker")) as sender:
        await sender.send("late", {"n": "before"})
    ready = asyncio.Event()

    @agent("late")
    async def late(spore: Spore) -> None:
        heard.append((spore.knowledge["n"], ready.is_set()))

    @late.on_start
    async def prepare(reef: Reef) -> None:
        await reef.send("late", {"n": "to itself"})
        await reef.broadcast({"n": "to all"})
        ready.set()

    other: list[Any] = []
    async with Reef(late, listener("other", other), transport=url) as reef:
        await until(lambda: len(heard) == 3 and other, "all were heard")
        await reef.wait_idle(5)
        assert reef.ledger().undeliverable == 0
    assert sorted(heard) == [("before", True), ("to all", True), ("to itself", True)]
    assert other == [("other", "to all")]


@pytest.mark.parametrize("remote", [False, True])
async def test_a_start_hook_may_ask_the_agents_before_its_own(url: str, remote: bool) -> None:
    """They have started, on a wire as on the local bus."""
    answers: list[Any] = []

    @agent("first")
    async def first(spore: Spore) -> dict[str, int]:
        return {"n": spore.knowledge["n"] + 1}

    second = listener("second", [])

    @second.on_start
    async def ask(reef: Reef) -> None:
        answers.append((await reef.request("first", {"n": 1}, timeout=5)).knowledge["n"])

    async with Reef(first, second, transport=url if remote else False):
        assert answers == [2]


async def test_an_agent_that_is_added_later_starts_like_the_first(url: str) -> None:
    """Also if its hook fails: it is at work then, as on the local bus."""
    heard: list[Any] = []
    added = listener("added", heard)

    @added.on_start
    async def prepare(reef: Reef) -> None:
        await reef.send("added", {"n": 1})
        raise RuntimeError("no database")

    async with Reef(transport=url) as reef:
        with pytest.raises(RuntimeError, match="no database"):
            await reef.add(added)
        await until(lambda: heard == [("added", 1)], "it heard what its hook sent")


async def test_a_start_hook_may_publish_more_than_has_room(url: str) -> None:
    """It cannot wait for receipts of an agent that waits for it."""
    heard: list[Any] = []
    added = listener("added", heard)

    @added.on_start
    async def fill(reef: Reef) -> None:
        for n in range(3 * ROOM):
            await reef.send("added", {"n": n})

    async with asyncio.timeout(10), Reef(added, transport=url, settings=bounded()) as reef:
        await until(lambda: len(heard) == 3 * ROOM, "all were heard")
        await reef.wait_idle(5)


async def test_an_agent_can_be_removed_while_its_start_hook_hangs(url: str) -> None:
    """What waits for it is given back."""
    await make_group(url, "added")
    async with Reef(transport=url, settings=quick(receipt="broker")) as sender:
        await sender.send("added", {"n": 1})
    added = listener("added", [])

    @added.on_start
    async def hang(reef: Reef) -> None:
        await asyncio.Event().wait()

    async with Reef(transport=url, settings=quick(drain_timeout=0.1)) as reef:
        adding = asyncio.ensure_future(reef.add(added))
        await until(lambda: reef.bridge and reef.bridge.is_starting("added"), "it is starting")
        async with asyncio.timeout(5):
            await reef.remove("added")
        adding.cancel()
