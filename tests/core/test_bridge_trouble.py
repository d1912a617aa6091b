"""A Reef with a transport in trouble: it closes, moves agents, is refused, is told nonsense."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from praval import Reason, Reef, Spore, agent, broadcast
from praval.core.agent import AgentDefinition
from praval.core.delivery import INBOUND
from praval.core.interceptor import Interceptor
from praval.core.journal import Journal
from praval.core.session import run_tree
from praval.core.spore import SporeType
from praval.core.transport import Confirmation, transport_connection
from praval.errors import (
    JournalError,
    PravalError,
    RequestFailedError,
    TransportError,
    TransportTimeoutError,
)
from praval.settings import Settings, merge
from praval_transports.local import LocalTransport
from tests.core.hosts import Broken, broken, listener, quick, unacknowledged, until


def relay() -> AgentDefinition:
    """An agent that emits ``out`` for each ``in``."""

    @agent("relay", responds_to=["in"])
    async def relay(spore: Spore) -> None:
        broadcast({"type": "out", "n": spore.knowledge["n"]})

    return relay


# -- closing ---------------------------------------------------------------------------------


async def test_what_was_emitted_and_not_confirmed_is_emitted_again_elsewhere(url: str) -> None:
    """A Reef that closes gives the input back, or the emission would be lost with it."""
    heard: list[Any] = []
    sink, once = listener("sink", heard, responds_to=["out"]), quick(receipt="broker")
    async with Reef(sink, transport=url, settings=once) as other:
        async with broken(url) as transport:
            reef = Reef(relay(), transport=transport, settings=quick(drain_timeout=0.01))
            async with reef:
                transport.error = TransportTimeoutError("the broker is away")
                publishing = asyncio.create_task(other.broadcast({"type": "in", "n": 1}))
                await until(lambda: reef.ledger().handled == 1, "the handler has ended")
            assert reef.ledger().cancelled == 1  # the emission
            assert reef.ledger().balanced
        assert heard == []
        async with Reef(relay(), transport=url):
            await until(lambda: heard == [("sink", 1)], "another host has emitted it")
        await publishing


async def test_a_handler_that_fails_while_its_agent_leaves_is_retried_elsewhere(url: str) -> None:
    """It has retries left, and the broker somebody else to give it to."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    heard: list[Any] = []

    @agent("worker", retries=1)
    async def fails(spore: Spore) -> None:
        begun.set()
        await go_on.wait()
        raise ValueError("its pool is closed")

    async with Reef(transport=url) as sender, Reef(fails, transport=url) as reef:
        publishing = asyncio.create_task(sender.broadcast({"n": 1}))
        await begun.wait()
        removing = asyncio.create_task(reef.remove("worker"))
        await until(lambda: not reef.runners, "it is leaving")
        go_on.set()
        await removing
        assert (reef.ledger().failed, reef.ledger().cancelled) == (0, 1)
        async with Reef(listener("worker", heard), transport=url):
            await until(lambda: heard == [("worker", 1)], "handled there")
        await publishing


@pytest.mark.parametrize("with_journal", [True, False])
async def test_a_handler_that_cancels_its_own_task_does_so_a_few_times(
    url: str, tmp_path: Path, *, with_journal: bool
) -> None:
    """It may have been an accident; then it is a dead letter, and neither lost nor for ever."""
    attempts: list[int] = []

    @agent("odd")
    async def odd(spore: Spore) -> None:
        attempts.append(spore.attempt)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.Event().wait()

    journal = tmp_path / "j.sqlite" if with_journal else None
    async with Reef(odd, transport=url, journal=journal) as reef, Reef(transport=url) as sender:
        publishing = asyncio.create_task(sender.broadcast({"n": 1}))
        await until(reef.dead_letters, "it was buried")
        await publishing
        (letter,) = reef.dead_letters()
        assert letter.reason is Reason.CRASH_LOOP
        assert attempts == [1, 2, 3, 4]
        assert reef.ledger().balanced


# -- agents that come, go and move -----------------------------------------------------------


async def test_an_agent_that_is_moved_twice_at_once_hears_one_of_the_channels(url: str) -> None:
    """And no subscription is left behind, which would take messages for nobody."""
    heard: list[Any] = []
    a = listener("a", heard)
    async with transport_connection("local", {"url": url}) as transport:
        assert isinstance(transport, LocalTransport)
        async with Reef(a, transport=transport) as reef:
            await asyncio.gather(reef.add(a, main="x"), reef.add(a, main="y"))
            await reef.broadcast({"n": 1}, channel="y")
            await until(lambda: heard == [("a", 1)], "it hears the last")
            assert len([each for each in transport._listenings if each.group]) == 1
        assert not transport._listenings


async def test_an_agent_that_is_removed_while_it_is_added_leaves_nothing(url: str) -> None:
    """What would come in for it would go round in a circle."""
    async with transport_connection("local", {"url": url}) as transport:
        assert isinstance(transport, LocalTransport)
        async with Reef(transport=transport) as reef:
            adding = asyncio.ensure_future(reef.add(listener("a", [])))
            await reef.remove("a")
            await adding
            assert not [each for each in transport._listenings if each.group]


async def test_who_gives_up_waiting_for_a_move_leaves_no_deaf_agent(url: str) -> None:
    """The move goes on, when the handler that it waits for has ended."""
    begun, go_on, heard = asyncio.Event(), asyncio.Event(), []

    @agent("a")
    async def a(spore: Spore) -> None:
        heard.append(spore.channel)
        begun.set()
        await go_on.wait()

    async with broken(url) as transport, Reef(a, transport=transport) as reef:
        first = asyncio.create_task(reef.broadcast({"n": 1}))
        await begun.wait()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await reef.add(a, main="x")
        go_on.set()
        moved = lambda: any(each.hears(("praval", "x")) for each in transport._listenings)  # noqa: E731
        await until(moved, "it hears the new channel")
        await reef.broadcast({"n": 2}, channel="x")
        await until(lambda: heard == ["main", "x"], "and handles what comes there")
        await first


async def test_other_hosts_learn_at_once_what_a_redefined_agent_responds_to(url: str) -> None:
    """A cell of a notebook that is run again must not wait for the next round."""

    def define(kind: str) -> AgentDefinition:
        @agent("a", responds_to=[kind])
        async def a(spore: Spore) -> None: ...

        return a

    rare = quick(presence_interval=60)
    async with (
        Reef(define("old"), transport=url, settings=rare) as here,
        Reef(transport=url) as there,
    ):
        types = lambda: [each.responds_to for each in there.agents()]  # noqa: E731
        await until(lambda: types() == [("old",)], "known")
        await here.add(define("new"))
        await until(lambda: types() == [("new",)], "known anew")


async def test_a_session_does_not_wait_for_an_agent_that_was_removed_before(url: str) -> None:
    """Receipts are expected of those that are there."""
    async with Reef(listener("a", []), listener("b", []), transport=url) as reef:
        await run_tree(reef, {"n": 1}, timeout=10)
        await reef.remove("b")
        result = await run_tree(reef, {"n": 2}, timeout=10)
        assert not result.timed_out


async def test_a_session_counts_what_is_handled_and_not_what_is_sent(url: str) -> None:
    """``max_iterations`` means the same with and without a transport."""

    @agent("a", responds_to=["t"])
    async def a(spore: Spore) -> dict[str, Any]:
        return {"n": 1}

    async with Reef(a, transport=url) as reef:
        result = await run_tree(reef, {"type": "t"}, timeout=10, max_iterations=1)
        assert result.by_agent == {"a": [{"n": 1}]}


async def test_a_reef_starts_although_its_first_announcement_is_lost(url: str) -> None:
    """The next round says who is here."""
    async with broken(url) as transport:
        transport.error = TransportTimeoutError("not now")
        settings = quick(presence_interval=0.05)
        async with Reef(listener("a", []), transport=transport, settings=settings):
            transport.error = None
            async with Reef(transport=url) as other:
                await until(other.agents, "the others have heard")


# -- requests --------------------------------------------------------------------------------


async def test_a_reply_that_finds_no_inbox_for_a_moment_is_sent_again(url: str) -> None:
    """Its asker is at work; after a broken connection the broker will know its inbox again."""
    missed: list[str] = []

    class Forgetful(Broken):
        async def publish(self, topic: str, message: bytes, **options: Any) -> Confirmation:
            if "inbox" in topic and not missed:
                missed.append(topic)
                return Confirmation(False)
            return await super().publish(topic, message, **options)

    @agent("a")
    async def a(spore: Spore) -> dict[str, Any]:
        return {"n": 1}

    transport = Forgetful()
    await transport.initialize({"url": url})
    async with Reef(a, transport=transport, settings=quick()), Reef(transport=url) as asker:
        assert (await asker.request("a", {}, timeout=10)).knowledge == {"n": 1}
    assert missed
    await transport.close()


async def test_a_failure_that_cannot_be_told_to_its_asker_breaks_no_reef(url: str) -> None:
    """An interceptor may refuse that reply as any other publication."""

    class Mute(Interceptor):
        def publish(self, spore: Spore) -> Spore:
            raise PravalError("nothing leaves this house")

    @agent("a")
    async def fails(spore: Spore) -> None:
        raise ValueError("out of ink")

    async with Reef(fails, transport=url, interceptors=[Mute()]) as reef:
        async with Reef(transport=url) as asker:
            asking = asyncio.create_task(asker.request("a", {}, timeout=60))
            await until(lambda: reef.ledger().failed == 1, "it has failed")
            await reef.wait_idle(5)
            assert reef.running
        with pytest.raises(PravalError, match="closed before the reply"):
            await asking


async def test_a_long_error_is_told_by_a_host_that_sends_short_spores_only(url: str) -> None:
    """The reason of a failure has a place that the limit of knowledge does not count."""

    @agent("a")
    async def fails(spore: Spore) -> None:
        raise ValueError("ü" * 3000)

    small: Settings = merge(Settings(), {"security": {"max_message_size": 500}})
    async with (
        Reef(fails, transport=url, settings=small) as reef,
        Reef(transport=url, settings=small) as asker,
    ):
        with pytest.raises(RequestFailedError, match="üüü"):
            await asker.request("a", {}, timeout=60)
        assert reef.running


async def test_an_inbox_is_reserved_also_after_a_reply_went_there(url: str) -> None:
    """A topic that is remembered is not a topic that is allowed."""

    @agent("a")
    async def a(spore: Spore) -> dict[str, Any]:
        return {"n": 1}

    async with Reef(a, transport=url) as reef, Reef(transport=url) as asker:
        await asker.request("a", {}, timeout=10)
        with pytest.raises(TransportError, match="reserved"):
            await reef.broadcast({"n": 1}, channel=asker.requests.inbox)
        forged = Spore.create({"n": 1}, channel="@presence", spore_type=SporeType.RESPONSE)
        with pytest.raises(TransportError, match="no inbox"):
            await reef.publish(forged)


# -- order, ids and the journal --------------------------------------------------------------


async def test_spores_of_one_key_stay_in_order_whatever_their_priorities(url: str) -> None:
    """Brokers order by priority: what has a key is ordinary to them."""
    heard: list[Any] = []
    async with Reef(listener("a", heard), transport=url):
        pass  # its group collects from now on
    async with Reef(transport=url, settings=quick(receipt="broker")) as sender:
        for n, priority in enumerate((1, 9, 5, 10)):
            await sender.send("a", {"n": n}, key="k", priority=priority)
        async with Reef(listener("a", heard), transport=url):
            await until(lambda: len(heard) == 4, "all came")
    assert [n for _, n in heard] == [0, 1, 2, 3]


async def test_to_publish_an_accepted_id_again_is_no_error(url: str, tmp_path: Path) -> None:
    """It is a duplicate, as without a transport."""
    heard: list[Any] = []
    journal = tmp_path / "j.sqlite"
    async with Reef(listener("a", heard), transport=url, journal=journal) as reef:
        spore = Spore.create({"n": 1}, to_agent="a")
        await reef.publish(spore)
        await reef.publish(spore)
        await reef.wait_idle(5)
        assert reef.ledger().duplicate == 1
    assert heard == [("a", 1)]


async def test_what_the_journal_does_not_take_is_given_back_and_so_are_its_duplicates(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the end of what never began."""
    heard: list[Any] = []
    refused: list[asyncio.Future[tuple[str, ...]]] = []
    async with (
        Reef(listener("a", heard), transport=url, journal=tmp_path / "j.sqlite") as reef,
        Reef(transport=url) as sender,
    ):

        def accept(*args: Any) -> asyncio.Future[tuple[str, ...]]:
            refused.append(reef.loop.create_future())
            return refused[-1]

        with monkeypatch.context() as patch:
            patch.setattr(reef.journal, "accept", accept)
            spore = Spore.create({"n": 1}, to_agent="a")
            publishing = [asyncio.create_task(sender.publish(spore)) for _ in range(2)]
            await until(lambda: reef.ledger().duplicate == 1, "the second waits for the first")
        refused[0].set_exception(JournalError("the disk is full"))
        await until(lambda: heard == [("a", 1)], "handled once the disk has room")
        await until(lambda: not unacknowledged(url, "praval.a"), "both are acknowledged")
        await asyncio.gather(*publishing)


async def test_the_journal_forgets_what_came_in_and_can_not_come_again(
    url: str, tmp_path: Path
) -> None:
    """Another replica had it after a crash: nothing is kept here for ever."""
    path = tmp_path / "j.sqlite"
    journal = await Journal.open(path)
    old = Spore.create({"n": 1}, created_at=0.0, expires_at=1.0)
    new = Spore.create({"n": 2}, ttl=60)
    for spore in (old, new):
        await journal.accept(spore.id, spore.to_bytes(), [f"{INBOUND}a"])
    await journal.aclose()
    async with Reef(listener("a", []), transport=url, journal=path) as reef:
        assert reef.journal is not None
        (kept,) = await reef.journal.unsettled(f"{INBOUND}a")
        assert kept.spore_id == new.id
