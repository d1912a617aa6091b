"""A Reef with a transport: several hosts share agents, and nothing is lost between them.

Here the hosts are Reefs of one process on the local transport; on brokers, and with processes that
are killed, the same is shown in tests/transports. What goes wrong is in test_bridge_trouble.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from praval import Outcome, Reason, Reef, Spore, agent, astart_agents, broadcast, configure
from praval.core import inbox
from praval.core.session import run_tree
from praval.core.spore import SporeType
from praval.core.transport import Delivery, MessageTransport, transport_connection
from praval.errors import (
    ConfigurationError,
    ReefError,
    RequestCycleError,
    RequestFailedError,
    RequestTimeoutError,
    SporeTooLargeError,
    TransportError,
    TransportTimeoutError,
    UnknownAgentError,
    UnknownNameError,
)
from praval_transports import local
from tests.core.hosts import broken, listener, quick, unacknowledged, until

# -- who hears what --------------------------------------------------------------------------


@pytest.mark.every_loop
async def test_agents_of_one_name_share_the_work_and_each_name_hears_a_broadcast(url: str) -> None:
    """Two hosts have a worker, one an auditor too: each spore is for one worker and for him."""
    first: list[Any] = []
    second: list[Any] = []
    async with (
        Reef(listener("worker", first), listener("auditor", first), transport=url) as here,
        Reef(listener("worker", second), transport=url) as there,
    ):
        for n in range(40):
            await here.broadcast({"n": n})
        worked = lambda: [n for name, n in (*first, *second) if name == "worker"]  # noqa: E731
        await until(lambda: len(worked()) == 40 and len(first) + len(second) == 80, "all handled")
        assert sorted(worked()) == list(range(40))
        assert sorted(n for name, n in first if name == "auditor") == list(range(40))
        assert second, "the second host took a share"
        assert any(name == "worker" for name, _ in first), "the first host took a share"
        await here.wait_idle(5)
        await there.wait_idle(5)
        assert here.ledger().balanced
        assert there.ledger().balanced


async def test_an_agent_does_not_hear_its_own_broadcast_on_another_host_either(url: str) -> None:
    """Its name is what counts: replicas would answer one another for ever."""
    seen: list[str] = []

    @agent("parrot", responds_to=["word"])
    async def parrot(spore: Spore) -> dict[str, Any]:
        seen.append(spore.knowledge["text"])
        return {"type": "word", "text": "again"}

    async with Reef(parrot, transport=url) as here, Reef(parrot, transport=url) as there:
        await here.broadcast({"type": "word", "text": "first"})
        await until(lambda: seen == ["first"], "heard once")
        await here.wait_idle(5)
        await there.wait_idle(5)
        assert seen == ["first"]


async def test_types_are_filtered_where_they_arrive(url: str) -> None:
    """What an agent does not respond to is acknowledged and counted as filtered."""
    heard: list[Any] = []
    async with Reef(listener("a", heard, responds_to=["x"]), transport=url) as reef:
        await reef.broadcast({"type": "y", "n": 1})
        await reef.broadcast({"type": "x", "n": 2})
        await until(lambda: heard == [("a", 2)], "x was handled")
        await until(lambda: reef.ledger().filtered == 1, "y was filtered")
        assert reef.ledger().reasons[Reason.TYPE.value] == 1


async def test_namespaces_do_not_hear_one_another(url: str) -> None:
    """Teams of different namespaces share a broker and nothing else."""
    heard: list[Any] = []
    async with (
        Reef(listener("a", heard), transport=url, namespace="one") as one,
        Reef(listener("a", heard), transport=url, namespace="two") as two,
    ):
        await one.broadcast({"n": 1})
        await until(lambda: heard == [("a", 1)], "heard in its namespace")
        await one.wait_idle(5)
        assert two.ledger().deliveries == 0
        assert {each.replica for each in one.agents()}.isdisjoint(
            each.replica for each in two.agents()
        )


async def test_channels_and_names_of_any_text_are_topics(url: str) -> None:
    """Dots, slashes, wildcards and other alphabets in names are text, not syntax."""
    heard: list[Any] = []
    odd = ["a.b/c", "#", "*", "größe 名", "100%", "$x>y"]
    agents = [listener(f"{name}!", heard, channel=name) for name in odd]
    async with Reef(*agents, transport=url) as reef:
        for n, name in enumerate(odd):
            await reef.broadcast({"n": n}, channel=name)
            await reef.send(f"{name}!", {"n": 100 + n})
        await until(lambda: len(heard) == 2 * len(odd), "each heard both")
        assert sorted(heard) == sorted(
            (f"{name}!", n + extra) for n, name in enumerate(odd) for extra in (0, 100)
        )


async def test_a_channel_of_ours_is_refused(url: str) -> None:
    """Nobody publishes into an inbox or the presence channel by accident."""
    async with Reef(transport=url) as reef:
        with pytest.raises(TransportError, match="reserved"):
            await reef.broadcast({"n": 1}, channel="@presence")
        assert reef.ledger().rejected == 1
        assert reef.ledger().balanced


async def test_a_broadcast_that_nobody_hears_is_counted(url: str) -> None:
    """On a broker that tells, it is undeliverable, as on the local bus."""
    async with Reef(transport=url) as reef:
        receipt = await reef.broadcast({"n": 1})
        assert receipt.recipients == 0
        assert reef.ledger().undeliverable == 1


async def test_the_nearest_name_is_suggested_for_one_that_no_host_has(url: str) -> None:
    """``send`` to a wrong name raises in its caller; in the data it is counted."""
    async with Reef(listener("editor", []), transport=url), Reef(transport=url) as reef:
        await until(reef.agents, "the other host is known")
        with pytest.raises(UnknownAgentError, match='Did you mean "editor"'):
            await reef.send("editr", {"n": 1})
        await reef.broadcast({"n": 2, "target_agent": "nobody"})
        assert reef.ledger().reasons[Reason.UNKNOWN_AGENT.value] == 2


async def test_priority_key_headers_and_ttl_travel(url: str) -> None:
    """What a spore says of itself is the same on the other host."""
    got: list[Spore] = []

    @agent("a")
    async def keep(spore: Spore) -> None:
        got.append(spore)

    async with Reef(keep, transport=url), Reef(transport=url) as reef:
        await reef.broadcast({"type": "t", "n": [1, {"x": None}]}, priority=9, ttl=60, key="k",
                             headers={"trace": "ü"})  # fmt: skip
        await until(lambda: got, "it came")
    (spore,) = got
    assert (spore.priority, spore.key, spore.headers) == (9, "k", {"trace": "ü"})
    assert spore.knowledge == {"type": "t", "n": [1, {"x": None}]}
    assert spore.expires_at == pytest.approx(spore.created_at + 60)


# -- requests --------------------------------------------------------------------------------


async def test_a_request_finds_its_reply_across_hosts(url: str) -> None:
    """The reply comes to the host that asked, and to no other."""

    @agent("adder")
    async def adder(spore: Spore) -> dict[str, Any]:
        return {"sum": sum(spore.knowledge["numbers"])}

    async with (
        Reef(adder, transport=url),
        Reef(transport=url) as here,
        Reef(transport=url) as there,
    ):
        replies = await asyncio.gather(
            *(reef.request("adder", {"numbers": [n, n]}, 5) for n in range(20)
              for reef in (here, there))
        )  # fmt: skip
        assert [reply.knowledge["sum"] for reply in replies[::2]] == [2 * n for n in range(20)]
        assert {reply.from_agent for reply in replies} == {"adder"}
        assert here.ledger().handled == 20  # the replies


async def test_a_request_that_fails_on_another_host_fails_at_once(url: str) -> None:
    """The asker learns the reason and does not wait for its time-out."""

    @agent("broken")
    async def fails(spore: Spore) -> None:
        raise ValueError("out of ink")

    async with Reef(fails, transport=url), Reef(transport=url) as reef:
        with pytest.raises(RequestFailedError, match="out of ink"):
            await reef.request("broken", {}, timeout=60)
        with pytest.raises(UnknownAgentError):
            await reef.request("nobody", {}, timeout=60)


async def test_a_late_reply_is_counted_where_it_arrives(url: str) -> None:
    """Its asker has gone; the request's handler could not know."""
    gate = asyncio.Event()

    @agent("slow")
    async def slow(spore: Spore) -> dict[str, Any]:
        await gate.wait()
        return {"n": 1}

    async with Reef(slow, transport=url), Reef(transport=url) as reef:
        with pytest.raises(RequestTimeoutError):
            await reef.request("slow", {}, timeout=0.05)
        gate.set()
        # the reply itself expires with the request: what counts is that nothing is left
        await reef.wait_idle(5)
        assert reef.ledger().balanced


async def test_a_circle_of_requests_in_one_process_is_refused(url: str) -> None:
    """It would wait for ever, broker or not; with another host it might not."""

    @agent("a")
    async def a(spore: Spore, reef: Reef) -> Any:
        return (await reef.request("b", {}, 5)).knowledge

    @agent("b")
    async def b(spore: Spore, reef: Reef) -> Any:
        return (await reef.request("a", {}, 5)).knowledge

    async with Reef(a, b, transport=url) as reef:
        with pytest.raises(RequestFailedError, match="RequestCycleError") as caught:
            await reef.request("a", {}, 5)
    assert RequestCycleError.__name__ in str(caught.value)


# -- presence --------------------------------------------------------------------------------


async def test_every_host_knows_the_agents_of_all_hosts(url: str) -> None:
    """Also of one that came later, of agents added later, and of those that left."""
    async with Reef(listener("early", []), transport=url) as here:
        async with Reef(listener("late", [], responds_to=["t"]), transport=url) as there:
            names = lambda reef: [each.name for each in reef.agents()]  # noqa: E731
            for reef in (here, there):
                await until(lambda reef=reef: names(reef) == ["early", "late"], "both known")
            (late,) = [each for each in here.agents() if each.name == "late"]
            assert late.channels == ("main", "late_channel")
            assert late.responds_to == ("t",)
            assert late.replica == there.bridge.replica
            await there.add(listener("later", []))
            await until(lambda: names(here) == ["early", "late", "later"], "the new one is known")
            await there.remove("later")
        await until(lambda: names(here) == ["early"], "who left is gone")


async def test_a_host_that_is_draining_answers_no_questions(url: str) -> None:
    """It has said good-bye: whoever asks who is there must not count on it."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    @agent("busy")
    async def busy(spore: Spore) -> None:
        begun.set()
        await go_on.wait()

    async with Reef(transport=url) as here, Reef(busy, transport=url) as there:
        await here.broadcast({"n": 1})
        await begun.wait()
        closing = asyncio.create_task(there.aclose())
        await until(lambda: not here.agents(), "it said good-bye")
        async with Reef(listener("late", []), transport=url) as late:  # asks who is there
            await until(lambda: [each.name for each in here.agents()] == ["late"], "late is here")
            assert [each.name for each in late.agents()] == ["late"]
        go_on.set()
        await closing


async def test_a_host_that_is_silent_for_three_intervals_is_gone(url: str) -> None:
    """A killed process says no goodbye."""
    settings = quick(presence_interval=0.05)
    async with (
        broken(url) as transport,
        Reef(transport=url, settings=settings) as here,
        Reef(listener("a", []), transport=transport, settings=settings),
    ):
        await until(here.agents, "it is known")
        transport.open.clear()  # as good as dead
        await until(lambda: not here.agents(), "it is taken for gone")
        transport.open.set()
        await until(here.agents, "it is back")


async def test_without_a_transport_a_reef_knows_its_own_agents() -> None:
    """The same call, whatever carries the spores."""
    async with Reef(listener("a", [])) as reef:
        (a,) = reef.agents()
        assert (a.name, a.channels) == ("a", ("main", "a_channel"))


# -- acknowledgement -------------------------------------------------------------------------


async def test_what_a_closing_host_had_not_handled_is_handled_elsewhere(url: str) -> None:
    """It is given back, counted as cancelled here, and comes with a higher attempt there."""
    handled: list[tuple[str, int, int]] = []
    never = asyncio.Event()

    @agent("worker")
    async def stuck(spore: Spore) -> None:
        await never.wait()

    @agent("worker")
    async def works(spore: Spore) -> None:
        handled.append(("works", spore.knowledge["n"], spore.attempt))

    async with Reef(transport=url) as sender:
        async with Reef(stuck, transport=url) as first:
            for n in range(5):
                await sender.broadcast({"n": n})
            await until(lambda: first.pending == 5, "all are inside")
            await first.aclose(drain=False)
            assert first.ledger().cancelled == 5
            assert first.ledger().balanced
        async with Reef(works, transport=url):
            await until(lambda: len(handled) == 5, "handled by the second host")
    assert sorted(n for _, n, _ in handled) == list(range(5))
    assert {attempt for _, _, attempt in handled} == {2}


async def test_the_input_is_acknowledged_after_what_was_emitted_is_confirmed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a journal: until the broker has the emission, the input must come again."""
    monkeypatch.setattr(inbox, "ACQUAINTANCE", 0)  # it claims nothing: it cannot ask

    @agent("relay", responds_to=["in"])
    async def relay(spore: Spore) -> None:
        broadcast({"type": "out", "n": spore.knowledge["n"]})

    heard: list[Any] = []
    async with (
        broken(url) as transport,
        Reef(listener("sink", heard, responds_to=["out"]), transport=url) as other,
        Reef(relay, transport=transport) as reef,
    ):
        transport.open.clear()
        await other.broadcast({"type": "in", "n": 1})
        await until(lambda: reef.ledger().handled == 1, "the handler has ended")
        assert unacknowledged(url, "praval.relay") == 1
        transport.open.set()
        await until(lambda: heard == [("sink", 1)], "the emission arrived")
        await until(lambda: not unacknowledged(url, "praval.relay"), "then it is acknowledged")


async def test_with_a_journal_the_input_is_acknowledged_once_the_outbox_has_the_emission(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker may be away meanwhile: what was emitted goes out later, or after a restart."""
    monkeypatch.setattr(inbox, "ACQUAINTANCE", 0)  # it claims nothing: it cannot ask

    @agent("relay", responds_to=["in"])
    async def relay(spore: Spore) -> None:
        broadcast({"type": "out", "n": spore.knowledge["n"]})

    heard: list[Any] = []
    journal = tmp_path / "j.sqlite"
    async with Reef(
        listener("sink", heard, responds_to=["out"]), transport=url, settings=quick()
    ) as other:
        async with (
            broken(url) as transport,
            Reef(relay, transport=transport, journal=journal, settings=quick()) as reef,
        ):
            transport.error = TransportTimeoutError("the broker is away")
            await other.broadcast({"type": "in", "n": 1})
            await until(lambda: reef.ledger().handled == 1, "the handler has ended")
            await until(lambda: not unacknowledged(url, "praval.relay"), "it is acknowledged")
            await reef.aclose(drain=False)
        assert heard == []
        async with Reef(relay, transport=url, journal=journal, settings=quick()) as reef:
            await until(lambda: heard == [("sink", 1)], "it left after the restart")
            await reef.wait_idle(5)


async def test_a_spore_that_comes_twice_is_handled_once(url: str) -> None:
    """By id, whatever the broker or a repeating sender does; the second is counted."""
    heard: list[Any] = []
    async with Reef(listener("a", heard), transport=url) as reef, Reef(transport=url) as sender:
        spore = Spore.create({"n": 1})
        await sender.publish(spore)
        await until(lambda: heard, "handled")
        await sender.publish(spore)
        await until(lambda: reef.ledger().duplicate == 1, "the duplicate is counted")
        await sender.wait_idle(5)
        assert heard == [("a", 1)]


async def test_with_a_journal_ids_are_known_after_a_restart(url: str, tmp_path: Path) -> None:
    """Handled and committed once is handled once."""
    heard: list[Any] = []
    spore = Spore.create({"n": 1})
    for restart in range(2):
        async with (
            Reef(listener("a", heard), transport=url, journal=tmp_path / "j.sqlite") as reef,
            Reef(transport=url) as sender,
        ):
            await sender.publish(spore)
            ended = lambda: reef.ledger().handled + reef.ledger().duplicate  # noqa: E731
            await until(lambda: ended() == 1, "it has ended")  # noqa: B023
            assert reef.ledger().duplicate == restart
    assert heard == [("a", 1)]


async def test_a_duplicate_that_comes_while_the_first_is_at_work_waits_for_its_end(
    url: str,
) -> None:
    """Redelivery after a broken connection must not run a handler beside itself."""
    gate, begun = asyncio.Event(), []

    @agent("a")
    async def slow(spore: Spore) -> None:
        begun.append(spore.id)
        await gate.wait()

    async with Reef(slow, transport=url) as reef, Reef(transport=url) as sender:
        spore = Spore.create({"n": 1})
        first = asyncio.ensure_future(sender.publish(spore))
        await until(lambda: begun, "it is at work")
        second = asyncio.ensure_future(sender.publish(spore))
        await until(lambda: reef.ledger().duplicate == 1, "the duplicate is known for one")
        assert unacknowledged(url, "praval.a") == 2
        gate.set()
        await asyncio.gather(first, second)
        await sender.wait_idle(5)
    assert begun == [spore.id]


async def test_attempts_add_up_over_restarts_until_the_spore_is_buried(
    url: str, tmp_path: Path
) -> None:
    """A spore that keeps killing its process does not do so for ever."""
    begun: list[int] = []

    @agent("fragile")
    async def fragile(spore: Spore) -> None:
        begun.append(spore.attempt)
        await asyncio.Event().wait()

    async with Reef(transport=url) as sender:
        for restart in range(6):
            async with Reef(fragile, transport=url, journal=tmp_path / "j.sqlite") as reef:
                if restart == 0:
                    await sender.broadcast({"n": 1})
                attempts = min(restart + 1, 4)
                await until(lambda: len(begun) == attempts, "it began")  # noqa: B023
                if restart == 4:
                    await until(lambda: reef.ledger().failed == 1, "it was buried")
                await reef.aclose(drain=False)
                letters = reef.dead_letters()
    assert begun == [1, 2, 3, 4]
    (letter,) = letters
    assert (letter.agent, letter.reason) == ("fragile", Reason.CRASH_LOOP)


async def test_a_failed_spore_is_a_dead_letter_of_the_reef_and_can_be_replayed(url: str) -> None:
    """Retries and dead letters are the Reef's; the broker's copy is acknowledged."""
    tries: list[int] = []

    @agent("moody", retries=1, backoff=0.001)
    async def moody(spore: Spore) -> None:
        tries.append(spore.attempt)
        if len(tries) < 3:
            raise ValueError("not in the mood")

    async with Reef(moody, transport=url) as reef, Reef(transport=url) as sender:
        await sender.broadcast({"n": 1})
        await until(reef.dead_letters, "it is a dead letter")
        (letter,) = reef.dead_letters()
        assert (letter.agent, letter.attempts) == ("moody", 2)
        await reef.replay(letter.id)
        await until(lambda: len(tries) == 3, "it was replayed")
        await reef.wait_idle(5)
        assert not reef.dead_letters()


async def test_what_is_no_spore_is_refused_counted_and_kept(url: str) -> None:
    """Bytes of a stranger reach no handler; they are a dead letter of the transport."""
    heard: list[Any] = []
    kept: list[Delivery] = []
    async with (
        Reef(listener("a", heard), transport=url, namespace="n") as reef,
        transport_connection("local", {"url": url}) as stranger,
    ):
        await stranger.subscribe("dead", kept.append, group="dead")
        await stranger.publish("n.main", b"\x00 not a spore")
        other = Spore.create({"n": 1}, to_agent="b")
        await stranger.publish("n.a_channel", other.to_bytes())
        await until(lambda: len(kept) == 2, "both are kept")
        assert reef.ledger().reasons[Reason.MALFORMED.value] == 1
        assert reef.ledger().reasons[Reason.MISROUTED.value] == 1
        assert reef.ledger().balanced
    assert heard == []
    assert "not a spore" in kept[0].headers["praval-reason"]


# -- receipts --------------------------------------------------------------------------------


async def test_delivered_is_another_state_than_sent(url: str) -> None:
    """With ``receipt="receiver"`` a spore is done with when all its receivers say so."""
    gate = asyncio.Event()
    heard: list[Any] = []

    @agent("slow")
    async def slow(spore: Spore) -> None:
        await gate.wait()

    async with (
        Reef(slow, listener("fast", heard), transport=url) as _,
        Reef(transport=url, settings=quick(receipt="receiver")) as patient,
        Reef(transport=url, settings=quick(receipt="broker")) as hasty,
    ):
        await until(lambda: len(patient.agents()) == 2, "the receivers are known")
        await patient.broadcast({"n": 1})
        await hasty.broadcast({"n": 2})
        await until(lambda: len(heard) == 2, "the fast one has handled both")
        assert (hasty.ledger().sent, hasty.ledger().delivered) == (1, 0)
        assert (patient.ledger().delivered, patient.ledger().pending) == (0, 1)
        gate.set()
        await until(lambda: patient.ledger().delivered == 1, "both receipts came")
        assert patient.ledger().balanced


async def test_a_spore_that_the_broker_lost_is_sent_again_until_the_receipt_comes(
    url: str,
) -> None:
    """Confirmed is not delivered: the broker may die with what it confirmed."""
    heard: list[Any] = []
    lost: list[str] = []

    def lose(topic: str) -> bool:
        if topic.endswith(".main") and len(lost) < 3:
            lost.append(topic)
            return True
        return False

    async with (
        Reef(listener("a", heard), transport=url),
        broken(url) as transport,
        Reef(transport=transport, settings=quick(receipt="receiver")) as sender,
    ):
        await until(sender.agents, "the receiver is known")
        transport.lose = lose
        await sender.broadcast({"n": 1})
        await sender.wait_idle(5)
        assert sender.ledger().delivered == 1
    assert heard == [("a", 1)]
    assert len(lost) == 3


async def test_a_lost_receipt_is_repeated_and_nothing_is_handled_again(url: str) -> None:
    """The sender sends again, the receiver knows the id and repeats its receipt."""
    heard: list[Any] = []
    lost: list[str] = []

    def lose(topic: str) -> bool:
        if "@inbox" in topic and len(lost) < 2:
            lost.append(topic)
            return True
        return False

    async with (
        broken(url) as transport,
        Reef(listener("a", heard), transport=transport) as receiver,
        Reef(transport=url, settings=quick(receipt="receiver")) as sender,
    ):
        await until(sender.agents, "the receiver is known")
        transport.lose = lose
        await sender.broadcast({"n": 1})
        await sender.wait_idle(5)
        assert sender.ledger().delivered == 1
        assert receiver.ledger().duplicate >= 2
    assert heard == [("a", 1)]


async def test_no_receipt_in_time_is_a_dead_letter_that_says_so(url: str) -> None:
    """The outcome is unknown, and counted as such: it may have been handled."""
    async with (
        broken(url) as transport,
        Reef(listener("a", []), transport=url),
        Reef(transport=transport, settings=quick(receipt="receiver")) as sender,
    ):
        await until(sender.agents, "the receiver is known")
        transport.lose = lambda topic: True
        await sender.broadcast({"n": 1}, ttl=0.1)
        await until(lambda: sender.ledger().expired == 1, "it expired")
        (letter,) = sender.dead_letters()
        assert letter.reason is Reason.NO_RECEIPT
        assert "no receipt came from a" in letter.error
        transport.lose = lambda topic: False
        await sender.replay(letter.id)
        await until(lambda: sender.ledger().delivered == 1, "replayed, it arrived")


async def test_what_no_broker_takes_in_time_is_a_dead_letter(url: str) -> None:
    """Its publisher is told, and it can be replayed."""
    async with broken(url) as transport, Reef(transport=transport, settings=quick()) as reef:
        transport.error = TransportTimeoutError("nobody there")
        with pytest.raises(Exception, match=r"No broker has confirmed spore .* nobody there"):
            await reef.broadcast({"n": 1}, ttl=0.1)
        (letter,) = reef.dead_letters()
        assert letter.reason is Reason.NOT_SENT
        transport.error = None


async def test_a_reply_that_could_not_be_sent_is_no_spore_to_replay(url: str) -> None:
    """It is a dead letter for the record; its asker has given up long since."""

    @agent("clerk")
    async def clerk(spore: Spore) -> dict[str, Any]:
        transport.error = TransportTimeoutError("nobody there")
        return {"answer": 1}

    async with (
        broken(url) as transport,
        Reef(clerk, transport=transport, settings=quick()) as reef,
        Reef(transport=url) as asker,
    ):
        await until(asker.agents, "the clerk is known")
        with pytest.raises(RequestTimeoutError):
            await asker.request("clerk", {}, 0.1)
        await until(reef.dead_letters, "the reply died")
        (letter,) = reef.dead_letters()
        transport.error = None
        with pytest.raises(ReefError, match="is a reply"):
            await reef.replay(letter.id)
        assert reef.dead_letters() == [letter]


async def test_a_publisher_that_gives_up_waiting_leaves_its_spore_in_the_outbox(url: str) -> None:
    """Cancelled is the waiting, not the spore: it was accepted."""
    heard: list[Any] = []
    async with (
        Reef(listener("a", heard), transport=url),
        broken(url) as transport,
        Reef(transport=transport) as sender,
    ):
        transport.open.clear()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await sender.broadcast({"n": 1})
        transport.open.set()
        await until(lambda: heard == [("a", 1)], "it left all the same")
        await sender.wait_idle(5)
        assert sender.ledger().balanced


# -- sessions, transactions, closing ---------------------------------------------------------


async def test_a_session_waits_for_its_local_team_over_a_transport(url: str) -> None:
    """``start_agents`` runs unchanged: the tree is followed by receipts."""

    @agent("counter", responds_to=["text"])
    async def counter(spore: Spore) -> None:
        broadcast({"type": "counted", "words": len(spore.knowledge["text"].split())})

    @agent("judge", responds_to=["counted"])
    def judge(spore: Spore) -> dict[str, Any]:
        return {"verdict": "long" if spore.knowledge["words"] > 5 else "short"}

    configure(transport=url)
    result = await astart_agents(
        counter, judge, initial_data={"type": "text", "text": "to be or not to be"}, timeout=10
    )
    assert result["verdict"] == "long"
    assert result.ledger.balanced
    assert not result.timed_out


async def test_what_a_transactional_handler_emitted_leaves_with_its_commit(
    url: str, tmp_path: Path
) -> None:
    """A handler that fails has emitted nothing, on a transport too."""
    heard: list[Any] = []

    @agent("maker", responds_to=["job"], transactional=True, retries=1, backoff=0.001)
    async def maker(spore: Spore) -> None:
        broadcast({"type": "made", "n": spore.attempt})
        if spore.attempt == 1:
            raise ValueError("half-way")

    async with (
        Reef(listener("sink", heard, responds_to=["made"]), transport=url),
        Reef(maker, transport=url, journal=tmp_path / "j.sqlite") as reef,
    ):
        await reef.broadcast({"type": "job"})
        await until(lambda: heard, "it came")
        await reef.wait_idle(5)
    assert heard == [("sink", 2)]


async def test_closing_drains_what_is_inside_and_what_it_emits(url: str) -> None:
    """Leaving the block takes in nothing more, and loses nothing."""
    heard: list[Any] = []
    started = asyncio.Event()

    @agent("relay", responds_to=["in"])
    async def relay(spore: Spore) -> None:
        started.set()
        await asyncio.sleep(0.01)
        broadcast({"type": "out", "n": spore.knowledge["n"]})

    async with Reef(listener("sink", heard, responds_to=["out"]), transport=url) as other:
        async with Reef(relay, transport=url) as reef:
            await other.broadcast({"type": "in", "n": 1})
            await started.wait()
        assert reef.ledger().balanced
        assert reef.ledger().pending == 0
        await until(lambda: heard == [("sink", 1)], "what it emitted has left")


async def test_a_transport_that_was_given_open_is_left_open(url: str) -> None:
    """Who opens it closes it."""
    async with transport_connection("local", {"url": url}) as transport:
        async with Reef(transport=transport):
            pass
        assert transport.health().state == "connected"
    async with Reef(transport=url) as reef:
        owned = reef.bridge.transport
    assert owned.health().state == "closed"


async def test_an_agent_can_be_added_moved_and_removed_while_others_work(url: str) -> None:
    """Its group keeps collecting while it is away."""
    heard: list[Any] = []
    async with Reef(transport=url) as reef, Reef(transport=url) as sender:
        await reef.add(listener("a", heard))
        await sender.send("a", {"n": 1})
        await until(lambda: heard == [("a", 1)], "it hears")
        await reef.remove("a")
        await sender.send("a", {"n": 2})
        await reef.add(listener("a", heard))
        await until(lambda: heard == [("a", 1), ("a", 2)], "what came meanwhile was kept")
        await reef.add(listener("b", heard), main="aside")
        await sender.broadcast({"n": 3}, channel="aside")
        await until(lambda: heard[-1] == ("b", 3), "it hears its session's channel")


async def test_health_and_statistics_tell_of_the_transport(url: str) -> None:
    """An operator sees whether the broker is there and what is not confirmed."""
    async with Reef(listener("a", []), transport=url) as reef:
        health = reef.health_check()
        assert health["status"] == "healthy"
        assert health["transport"]["state"] == "connected"
        assert reef.get_statistics()["outbox"]["pending"] == 0


@pytest.mark.parametrize(
    ("transport", "error", "words"),
    [
        ("telnet://host", ConfigurationError, "begins with one of"),
        ({"host": "x"}, ConfigurationError, 'needs "url", or "protocol"'),
        ({"protocol": "ampq"}, UnknownNameError, 'Did you mean "amqp"'),
        (7, ConfigurationError, "must be a URL"),
    ],
)
def test_a_transport_that_cannot_be_is_refused_when_the_reef_is_made(
    transport: Any, error: type[Exception], words: str
) -> None:
    """The message says what would do."""
    with pytest.raises(error, match=words):
        Reef(transport=transport)


async def test_a_transport_without_groups_is_refused(url: str) -> None:
    """A publish-and-forget transport cannot carry a Reef."""

    class Bare(MessageTransport):
        async def initialize(self, config: Any) -> None: ...
        async def publish(self, topic: str, message: bytes, **options: Any) -> None: ...
        async def subscribe(self, topic: Any, callback: Any) -> None: ...  # type: ignore[override]

    with pytest.raises(ConfigurationError, match="group"):
        async with Reef(listener("a", []), transport=Bare()):
            pass


def test_a_wire_outcome_is_a_state_of_the_ledger() -> None:
    """Nothing that leaves is uncounted."""
    assert {"SENT", "DELIVERED"} <= {outcome.name for outcome in Outcome}


async def test_a_session_that_times_out_takes_its_spores_back_from_the_outbox(url: str) -> None:
    """What has not left is not sent any more, and is counted as cancelled."""

    @agent("never", responds_to=["t"])
    async def never(spore: Spore) -> None: ...

    async with broken(url) as transport:
        reef = Reef(never, transport=transport, settings=quick())
        async with reef:
            transport.error = TransportTimeoutError("the broker is away")
            result = await run_tree(reef, {"type": "t"}, timeout=0.05)
            assert result.timed_out
            await reef.wait_idle(5)
            assert reef.ledger().cancelled == 1
            transport.error = None


async def test_a_reef_leaves_nothing_subscribed_on_a_transport_that_is_not_its_own(
    url: str,
) -> None:
    """Its owner goes on using it."""
    async with transport_connection("local", {"url": url}) as transport:
        before = len(local._buses[asyncio.get_running_loop()][url.removeprefix("local://")].private)
        async with Reef(listener("a", []), transport=transport):
            pass
        bus = local._buses[asyncio.get_running_loop()][url.removeprefix("local://")]
        assert len(bus.private) == before


# -- strangers, sizes, comings and goings ----------------------------------------------------


async def test_an_agent_that_is_removed_is_known_to_be_gone_at_once(url: str) -> None:
    """Nobody waits for its receipts, or for its next announcement."""
    async with (
        Reef(listener("a", []), listener("b", []), transport=url) as here,
        Reef(transport=url) as there,
    ):
        await until(lambda: len(there.agents()) == 2, "both are known")
        await here.remove("a")
        await until(lambda: [each.name for each in there.agents()] == ["b"], "one is gone")


async def test_a_spore_that_no_host_would_read_is_refused_before_it_leaves(url: str) -> None:
    """Headers count, too: what a receiver refuses would be lost to its publisher."""
    async with Reef(listener("a", []), transport=url), Reef(transport=url) as sender:
        with pytest.raises(SporeTooLargeError, match="with its headers"):
            await sender.broadcast({"n": 1}, headers={"long": "x" * 1_200_000})
        assert sender.ledger().rejected == 1
        assert sender.ledger().balanced


async def test_a_request_of_a_type_that_is_not_responded_to_fails_at_once(url: str) -> None:
    """Its asker is told, and does not wait for the time-out."""
    async with (
        Reef(listener("picky", [], responds_to=["x"]), transport=url),
        Reef(transport=url) as reef,
    ):
        with pytest.raises(RequestFailedError, match="does not respond to this type"):
            await reef.request("picky", {"type": "y"}, timeout=60)


async def test_a_reply_goes_to_an_inbox_and_nowhere_else(url: str) -> None:
    """A stranger's request cannot make an agent publish on a channel of the stranger's choice."""
    heard: list[Any] = []

    @agent("clerk")
    async def clerk(spore: Spore) -> dict[str, Any]:
        return {"n": "secret"}

    async with (
        Reef(clerk, listener("ear", heard), transport=url, namespace="n") as reef,
        transport_connection("local", {"url": url}) as stranger,
    ):
        request = Spore.create({}, to_agent="clerk", spore_type=SporeType.REQUEST, reply_to="main")
        await stranger.publish("n.clerk_channel", request.to_bytes())
        await until(lambda: reef.ledger().rejected == 1, "the reply was refused")
        assert heard == []
        assert reef.ledger().balanced


async def test_receipts_go_to_inboxes_of_the_namespace_only(url: str) -> None:
    """A stranger cannot make a Reef publish wherever the stranger likes."""
    heard: list[Any] = []
    told: list[Delivery] = []
    async with (
        Reef(listener("a", heard), transport=url, namespace="n") as reef,
        transport_connection("local", {"url": url}) as stranger,
    ):
        await stranger.subscribe("elsewhere", told.append)
        spore = Spore.create({"n": 1}, to_agent="a")
        headers = {"receipt-to": "elsewhere"}
        await stranger.publish("n.a_channel", spore.to_bytes(), headers=headers)
        await until(lambda: heard, "it was handled")
    assert told == []
    assert reef.ledger().balanced
