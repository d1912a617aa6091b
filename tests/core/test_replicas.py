"""Replicas of an agent on several hosts: each spore is handled by one of them.

On brokers the same is shown in tests/transports/test_reef_on_brokers.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from praval import Reason, Reef, Spore, agent
from praval.core import bridge as bridge_module
from praval.core import claims, inbox, receipts
from praval.core import outbox as outbox_module
from praval.core.agent import AgentDefinition
from praval.core.claims import ClaimDesk
from praval.core.inbox import Inbox
from praval.core.receipts import Answer, decode_claims
from praval.core.transport import MessageTransport, transport_connection
from praval.errors import TransportConnectionError
from tests.core.hosts import broken, listener, quick, until

SPORES = 21


def slow_worker(handled: Counter[int], seconds: float) -> AgentDefinition:
    """An agent that takes longer than its sender waits before it sends again."""

    @agent("worker", concurrent=2)
    async def worker(spore: Spore) -> None:
        handled[spore.knowledge["n"]] += 1
        await asyncio.sleep(seconds)  # the time of the handling, which is what is tested

    return worker


async def share(url: str, handled: Counter[int]) -> list[Reef]:
    """Let two hosts handle spores that are sent again all the time."""
    impatient = quick(receipt="receiver")
    async with (
        Reef(slow_worker(handled, 0.05), transport=url) as first,
        Reef(slow_worker(handled, 0.05), transport=url) as second,
        Reef(transport=url, settings=impatient) as sender,
    ):
        await until(lambda: len(sender.agents()) == 2, "both replicas are known")
        await until(lambda: len(first.agents()) == len(second.agents()) == 2, "to each other, too")
        await asyncio.gather(*(sender.send("worker", {"n": n}) for n in range(SPORES)))
        await sender.wait_idle(10)
        assert sender.ledger().delivered == SPORES
        assert first.ledger().balanced
        assert second.ledger().balanced
    return [first, second]


async def test_replicas_do_not_repeat_what_is_sent_again_while_one_is_at_it(url: str) -> None:
    """Copies of a spore reach both replicas; its sender grants it to one."""
    handled: Counter[int] = Counter()
    reefs = await share(url, handled)
    assert handled == dict.fromkeys(range(SPORES), 1)
    assert all(reef.runners["worker"].counts[0] > 0 for reef in reefs), "both took a share"


async def test_without_claims_replicas_would_repeat(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail: this is what it guards against."""

    async def always(*_: object) -> bool:
        return True

    monkeypatch.setattr(Inbox, "is_ours", always)
    handled: Counter[int] = Counter()
    await share(url, handled)
    assert max(handled.values()) > 1


async def test_a_copy_that_another_replica_has_is_counted(url: str) -> None:
    """It is a duplicate, for a reason of its own, and acknowledged."""
    started, gate = asyncio.Event(), asyncio.Event()

    @agent("worker", concurrent=True)
    async def worker(spore: Spore) -> None:
        started.set()
        await gate.wait()

    async with (
        Reef(worker, transport=url) as first,
        Reef(worker, transport=url) as second,
        Reef(transport=url, settings=quick(receipt="receiver")) as sender,
    ):
        await until(lambda: len(sender.agents()) == 2, "both replicas are known")
        sending = asyncio.ensure_future(sender.send("worker", {"n": 1}))
        await started.wait()
        (parcel,) = sender.bridge.outbox._parcels.values()  # type: ignore[union-attr]
        await until(lambda: parcel.claims, "one of them has claimed it")
        for _ in range(4):
            await sender.bridge.publish(parcel.posted, receipt=True, resent=True)  # type: ignore[union-attr]
        elsewhere = lambda: sum(  # noqa: E731
            reef.ledger().reasons.get(Reason.ELSEWHERE.value, 0) for reef in (first, second)
        )
        await until(elsewhere, "the other one was refused")
        gate.set()
        await sending
        await sender.wait_idle(10)
        assert sum(reef.ledger().handled for reef in (first, second)) == 1


async def test_what_a_long_handling_has_is_not_sent_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its claim is renewed all the time, by an agent without replicas, too."""
    monkeypatch.setattr(claims, "RENEWAL", 0.01)
    gate = asyncio.Event()
    seen: list[int] = []

    @agent("worker", concurrent=True)
    async def worker(spore: Spore) -> None:
        seen.append(spore.attempt)
        await gate.wait()

    async with (
        broken(url) as transport,
        Reef(worker, transport=url),
        Reef(transport=transport, settings=quick(receipt="receiver")) as sender,
    ):
        await until(sender.agents, "the receiver is known")
        sent: list[str] = []
        transport.lose = lambda topic: bool(sent.append(topic))
        await sender.send("worker", {"n": 1})
        (parcel,) = sender.bridge.outbox._parcels.values()  # type: ignore[union-attr]
        await until(lambda: parcel.claims, "claimed")
        copies = len(sent)
        until_then = parcel.claims["worker"][1]
        await until(lambda: parcel.claims["worker"][1] > until_then + 0.1, "renewed")
        assert len(sent) == copies, "0.1 s are five times the wait before it is sent again"
        gate.set()
        await sender.wait_idle(10)
    assert seen == [1]


async def test_what_a_replica_had_that_left_goes_to_another(url: str) -> None:
    """Its claim does not keep the others from it."""
    held, handled = asyncio.Event(), Counter[int]()

    @agent("worker")
    async def stuck(spore: Spore) -> None:
        held.set()
        await asyncio.Event().wait()

    settings = quick(receipt="receiver", drain_timeout=0.05)
    async with Reef(transport=url, settings=settings) as sender:
        leaving = await Reef(stuck, transport=url, settings=settings).__aenter__()
        await until(sender.agents, "the first replica is known")
        await sender.send("worker", {"n": 1})
        await held.wait()
        async with Reef(slow_worker(handled, 0), transport=url):
            await until(lambda: len(sender.agents()) == 2, "the second is known")
            await leaving.aclose()
            await sender.wait_idle(10)
        assert sender.ledger().delivered == 1
    assert handled == {1: 1}


async def test_the_sender_grants_a_spore_to_one_replica_at_a_time(url: str) -> None:
    """Until the claim lapses, the replica leaves, or its receipt comes."""
    async with Reef(transport=url, settings=quick(receipt="receiver", resend_after=60)) as sender:
        outbox = sender.bridge.outbox  # type: ignore[union-attr]
        assert outbox.claim("unknown", "worker", "a"), "of an earlier process: better twice"
        posted = sender.publisher.compose({"n": 1}, "worker_channel", "worker")
        parcel = outbox._new_parcel(posted, {"worker"})
        spore_id = posted.header.id
        assert outbox.claim(spore_id, "worker", "a")
        assert outbox.claim(spore_id, "worker", "a"), "renewed"
        assert not outbox.claim(spore_id, "worker", "b")
        parcel.claims["worker"] = ("a", sender.loop.time() - 1)
        assert outbox.claim(spore_id, "worker", "b"), "the claim of a has lapsed"
        assert not outbox.claim(spore_id, "worker", "a")
        sender.bridge.presence._depart("b")  # type: ignore[union-attr]
        assert outbox.claim(spore_id, "worker", "a"), "b has left"
        outbox._parcels.pop(spore_id)
        outbox.backlog.missing.clear()
        outbox._receipted[spore_id, "worker"] = None
        assert not outbox.claim(spore_id, "worker", "a"), "it is done with"


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_spore_that_is_published_again_is_done_with_again(url: str, at_once: bool) -> None:
    """Nobody handles it again, and nobody waits for receipts that will not come."""
    heard: list[Any] = []
    async with (
        Reef(listener("worker", heard), transport=url) as first,
        Reef(listener("worker", heard), transport=url) as second,
        Reef(transport=url, settings=quick(receipt="receiver")) as sender,
    ):
        for reef in (first, second, sender):
            await until(lambda reef=reef: len(reef.agents()) == 2, "both replicas are known")
        spore = sender.publisher.compose({"n": 1}, "worker_channel", "worker").open()
        if at_once:
            await asyncio.gather(*(sender.publish(spore) for _ in range(3)))
        else:
            for _ in range(3):
                await sender.publish(spore)
                await sender.wait_idle(5)
        await sender.wait_idle(5)
        assert heard == [("worker", 1)]
        assert sender.ledger().balanced


async def test_a_handling_that_was_cut_off_from_the_broker_tells_its_end(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agent moved, so no message waits for it; another replica is not to repeat it."""
    monkeypatch.setattr(bridge_module, "PATIENCE", 0.05)
    monkeypatch.setattr(claims, "RENEWAL", 0.02)
    for module in (claims, outbox_module):
        monkeypatch.setattr(module, "LEASE", 0.3)
    gate, started = asyncio.Event(), asyncio.Event()
    handled: list[Any] = []

    @agent("worker", concurrent=True)
    async def worker(spore: Spore) -> None:
        handled.append("moved")
        started.set()
        await gate.wait()

    patient = quick(receipt="receiver", resend_after=0.5)
    async with (
        Reef(transport=url, settings=patient) as sender,
        Reef(worker, transport=url, settings=quick(drain_timeout=0.05)) as first,
    ):
        await until(sender.agents, "the first replica is known")
        await sender.send("worker", {"n": 1})
        await started.wait()
        async with Reef(listener("worker", handled), transport=url) as second:
            for reef in (sender, first):
                await until(lambda reef=reef: len(reef.agents()) == 2, "the second is known")
            await first.add(worker, main="other")
            await until(lambda: second.ledger().duplicate, "its copy was refused")
            gate.set()
            await sender.wait_idle(5)
    assert handled == ["moved"]


async def test_receipts_outlast_a_broker_that_is_away_for_long(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long they are tried again counts from when there is one."""
    monkeypatch.setattr(receipts, "PATIENCE", 0.6)
    monkeypatch.setattr(inbox, "ACQUAINTANCE", 0)  # it claims nothing: it cannot ask
    heard: list[Any] = []
    async with (
        broken(url) as transport,
        Reef(listener("worker", heard), transport=transport),
        Reef(transport=url, settings=quick(receipt="receiver", resend_after=60)) as sender,
    ):
        await until(sender.agents, "the receiver is known")
        transport.error = TransportConnectionError("down")
        await sender.send("worker", {"n": 1})
        await until(lambda: heard, "handled")
        await asyncio.sleep(1.5)  # the time of the outage, which is what is tested
        transport.error = None
        await sender.wait_idle(5)


async def test_a_host_closes_soon_although_a_sender_has_left_or_does_not_answer(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It owes receipts to one that nobody hears, and waits for answers to its claims."""
    gate = asyncio.Event()

    @agent("worker", concurrent=True)
    async def worker(spore: Spore) -> None:
        await gate.wait()

    hasty = quick(receipt="receiver", drain_timeout=0.1)
    first = await Reef(worker, transport=url).__aenter__()
    async with Reef(transport=url, settings=hasty) as sender:
        await until(sender.agents, "the replica is known")
        await sender.send("worker", {"n": 1})
    gate.set()
    await until(lambda: first.ledger().handled, "handled, and its sender has left")
    async with asyncio.timeout(3):
        await first.aclose()

    async with (
        Reef(worker, transport=url) as first,
        Reef(transport=url, settings=hasty) as sender,
    ):
        second = await Reef(worker, transport=url, settings=hasty).__aenter__()
        for reef in (first, second, sender):
            await until(lambda reef=reef: len(reef.agents()) == 2, "both replicas are known")
        monkeypatch.setattr(sender.bridge.inbox, "_judge", lambda claims: None)  # type: ignore[union-attr]
        for n in range(4):
            await sender.send("worker", {"n": n})
        async with asyncio.timeout(5):
            await second.aclose()
        monkeypatch.undo()


async def test_what_is_owed_or_claimed_by_anybody_is_bounded(url: str) -> None:
    """Notes come from outside, and may be said again before they are sent."""
    stuck = asyncio.Event()

    async def send(inbox: str, notes: list[Any]) -> bool:
        await stuck.wait()
        return True

    desk = receipts.NoteDesk[Any](send)
    for _ in range(1000):
        desk.owe("inbox", ("spore", "worker"))
        await asyncio.sleep(0)
    assert len(desk._owed["inbox"]) == 1
    stuck.set()
    await desk.aclose(1)
    async with Reef(listener("worker", []), transport=url):
        pass
    settings = quick(receipt="receiver", resend_after=60, drain_timeout=0.01)
    async with Reef(transport=url, settings=settings) as sender:
        await sender.send("worker", {"n": 1})
        outbox = sender.bridge.outbox  # type: ignore[union-attr]
        (parcel,) = outbox._parcels.values()
        for n in range(1000):
            outbox.claim(parcel.posted.header.id, f"stranger{n}", "replica")
        assert len(parcel.claims) < 10


async def test_a_claim_is_made_again_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes may get lost; an answer for something else is no answer."""
    monkeypatch.setattr(claims, "ANSWER_WITHIN", 0.01)
    asked: list[Any] = []

    async def send(inbox: str, kind: str, body: bytes) -> bool:
        asked.append((inbox, kind, decode_claims(body)))
        return True

    desk = ClaimDesk("me", "n.@inbox-me", send, lambda inbox: True)
    asking = asyncio.ensure_future(desk.may_handle("n.@inbox-you", ("s", "worker"), lambda: True))
    await until(lambda: len(asked) >= 3, "asked again")
    inbox, kind, said = asked[0]
    assert (inbox, kind, said.replica, said.answer_to) == (
        "n.@inbox-you", "claims", "me", "n.@inbox-me",
    )  # fmt: skip
    desk.answered(Answer("other", "worker", True))
    desk.answered(Answer("s", "worker", False))
    assert await asking is False
    await desk.aclose(1)


@pytest.mark.parametrize("present", [False, True])
async def test_without_any_answer_a_spore_is_handled(
    present: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sender is gone, or does not answer for long: better twice than never."""
    monkeypatch.setattr(claims, "ANSWER_WITHIN", 0.005)
    asked: list[Any] = []

    async def send(inbox: str, kind: str, body: bytes) -> bool:
        asked.append(body)
        return True

    desk = ClaimDesk("me", "n.@inbox-me", send, lambda inbox: present)
    assert await desk.may_handle("n.@inbox-you", ("s", "worker"), lambda: True)
    assert len(asked) > 1 if present else len(asked) == 1
    assert "no answer to the claim for spore s" in caplog.text
    await desk.aclose(1)


async def test_what_a_sender_left_behind_is_handled_at_once(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody reads its inbox, and it is not expected to: there is no answer to wait for."""
    monkeypatch.setattr(claims, "ANSWER_WITHIN", 60)
    gate, handled = asyncio.Event(), Counter[int]()

    @agent("worker")
    async def worker(spore: Spore) -> None:
        handled[spore.knowledge["n"]] += 1
        await gate.wait()

    def narrow() -> AbstractAsyncContextManager[MessageTransport]:
        return transport_connection("local", {"url": url, "prefetch_count": 1})

    async with (
        narrow() as one,
        narrow() as two,
        Reef(worker, transport=one) as first,
        Reef(worker, transport=two) as second,
    ):
        await until(lambda: len(first.agents()) == len(second.agents()) == 2, "they are known")
        settings = quick(receipt="receiver", resend_after=60, drain_timeout=0.01)
        async with Reef(transport=url, settings=settings) as sender:
            await until(lambda: len(sender.agents()) == 2, "they are known to the sender")
            for n in range(SPORES):
                await sender.send("worker", {"n": n})
        gate.set()
        await until(lambda: len(handled) == SPORES, "all were handled")


async def test_a_replica_that_knows_of_no_other_yet_claims(url: str) -> None:
    """When it starts it has heard of nobody, and a copy may go to one of those."""
    started, gate = asyncio.Event(), asyncio.Event()

    @agent("worker")
    async def worker(spore: Spore) -> None:
        started.set()
        await gate.wait()

    async with (
        Reef(transport=url, settings=quick(receipt="receiver", resend_after=60)) as sender,
        Reef(worker, transport=url),
    ):
        await until(sender.agents, "the replica is known")
        await sender.send("worker", {"n": 1})
        await started.wait()
        (parcel,) = sender.bridge.outbox._parcels.values()  # type: ignore[union-attr]
        assert parcel.claims, "before it was handled"
        gate.set()
        await sender.wait_idle(5)


async def test_who_is_only_cut_off_is_asked_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that is at work reads its inbox again when its link is back."""
    monkeypatch.setattr(claims, "ANSWER_WITHIN", 0.005)
    asked: list[Any] = []

    async def send(inbox: str, kind: str, body: bytes) -> bool:
        asked.append(body)
        return False

    desk = ClaimDesk("me", "n.@inbox-me", send, lambda inbox: True)
    asking = asyncio.ensure_future(desk.may_handle("n.@inbox-you", ("s", "worker"), lambda: True))
    await until(lambda: len(asked) >= 3, "asked again")
    desk.answered(Answer("s", "worker", False))
    assert await asking is False
    await desk.aclose(1)


async def test_notes_that_are_none_are_refused(url: str) -> None:
    """They come from outside."""
    async with Reef(listener("a", []), transport=url) as reef:
        inbox = reef.bridge.inbox.topic  # type: ignore[union-attr]
        transport = reef.bridge.transport  # type: ignore[union-attr]
        for kind in ("claims", "answers", "receipts", "novelties"):
            for body in (b"", b"{}", b'{"replica":1,"keys":[]}', b"[[1]]", b"\xff"):
                await transport.publish(inbox, body, headers={"kind": kind})
        await until(lambda: transport.health().dead == 20, "all were refused")
        assert reef.running
        assert Reason.ELSEWHERE.value not in reef.ledger().reasons
