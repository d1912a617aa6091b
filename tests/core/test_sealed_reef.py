"""A Reef with security=: the same handlers, sealed; and what nobody without keys can do to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from praval import Reef, Spore, agent, broadcast
from praval.core.agent import AgentDefinition
from praval.core.certificates import Rights, sign_status
from praval.core.envelope_format import parse
from praval.core.keys import Keyring
from praval.core.sealed_bridge import SealedBridge
from praval.core.security_events import SecurityEvent
from praval.errors import (
    ConfigurationError,
    KeyringError,
    RequestFailedError,
    RequestTimeoutError,
    SealCode,
)
from praval.settings import merge
from tests.core.hosts import listener, unacknowledged, until
from tests.core.sealed_hosts import CANARY, Root, brisk, now, outsider, reopened, stored
from tests.sealing.stores import SERVERS
from tests.sealing.stores import url as store_url
from tests.servers import Server

HOUR = 3_600_000


def bridge(reef: Reef) -> SealedBridge:
    assert isinstance(reef.bridge, SealedBridge)
    return reef.bridge


def refused(reef: Reef) -> dict[str, int]:
    counts: dict[str, int] = bridge(reef).security()["refused"]
    return counts


def echoing(name: str = "clerk") -> AgentDefinition:
    @agent(name, channel="questions")
    async def clerk(spore: Spore) -> dict[str, Any]:
        if spore.knowledge.get("fail"):
            raise ValueError("out of ink")
        return {"echo": spore.knowledge["say"], "from": spore.from_agent}

    return clerk


def deaf(name: str) -> AgentDefinition:
    """An agent that hears nothing but what is of a type that nobody sends."""
    return listener(name, [], responds_to=["nothing"])


# -- the same handlers -----------------------------------------------------------------------


async def test_handlers_run_unchanged_and_sealed_inside_one_process() -> None:
    heard: list[Any] = []

    @agent("reader", responds_to=["page"])
    async def reader(spore: Spore) -> None:
        broadcast({"type": "digest", "n": len(spore.knowledge["text"])})

    @agent("editor", responds_to=["digest"])
    def editor(spore: Spore) -> None:
        heard.append((spore.from_agent, spore.to_agent, spore.channel, spore.knowledge["n"]))

    @agent("asker", responds_to=["ask"])
    async def asker(spore: Spore, reef: Reef) -> None:
        heard.append((await reef.request("clerk", {"say": "inner"}, timeout=5)).knowledge)

    async with Reef(reader, editor, asker, echoing(), security=Keyring()) as reef:
        await reef.broadcast({"type": "page", "text": "abc"})
        await reef.broadcast({"type": "ask"})
        answer = await reef.request("clerk", {"say": "hi"}, timeout=5)
        await reef.wait_idle(5)
        assert answer.knowledge == {"echo": "hi", "from": None}
        assert (answer.from_agent, answer.to_agent) == ("clerk", None)
        assert sorted(heard, key=str) == [
            ("reader", None, "main", 3),
            {"echo": "inner", "from": "asker"},
        ]
        assert reef.ledger().balanced


async def test_what_fails_is_told_to_whoever_asked() -> None:
    async with Reef(echoing(), security=Keyring()) as reef:
        with pytest.raises(RequestFailedError, match="out of ink"):
            await reef.request("clerk", {"fail": True}, timeout=5)


async def test_every_field_of_a_spore_arrives(url: str) -> None:
    root, got = Root(), list[Spore]()

    @agent("reader")
    async def reader(spore: Spore) -> None:
        got.append(spore)

    async with (
        Reef(reader, transport=url, security=root.keyring("reader"), settings=brisk()),
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
    ):
        sent = Spore.create(
            {"type": "page", "n": 1, "report_reference": "s3://x/y"},
            to_agent="reader", channel="odd", priority=8, key="k", ttl=60, hops=3, root="ab" * 16,
            headers={"traceparent": "00-x"}, data_references=("s3://a/b",),
        )  # fmt: skip
        await sender.publish(sent)
        await sender.wait_idle(5)
    (spore,) = got
    assert spore.knowledge == sent.knowledge
    assert spore.header.created_at == pytest.approx(sent.header.created_at, abs=0.001)
    assert spore.header.expires_at == pytest.approx(sent.header.expires_at or 0, abs=0.002)
    same = (
        "id", "type", "channel", "to_agent", "priority", "key", "hops", "root", "headers",
        "data_references",
    )  # fmt: skip
    assert [getattr(spore, each) for each in same] == [getattr(sent, each) for each in same]


async def test_hosts_with_keys_of_their_own_meet_under_one_root(url: str) -> None:
    root, heard = Root(), list[Any]()
    one = root.keyring("@one", "asker", "a")
    two = root.keyring("@two", "clerk", "b", "c")
    async with (
        Reef(listener("a", heard), deaf("asker"), transport=url, security=one) as first,
        Reef(
            listener("b", heard), listener("c", heard), echoing(), transport=url, security=two
        ) as second,
    ):
        assert {each.name for each in first.agents()} == {"a", "b", "c", "asker", "clerk"}
        answer = await first.request("clerk", {"say": "over there"}, timeout=5)
        assert answer.knowledge["echo"] == "over there"
        await second.broadcast({"type": "x", "n": 7, "say": ""})
        await second.wait_idle(5)
        assert sorted(heard) == [("a", 7), ("b", 7), ("c", 7)]
        await first.send("b", {"n": 8})
        await first.wait_idle(5)
        assert heard[-1] == ("b", 8)
        assert bridge(first).security()["receipts"] == {"handled": 2}


async def test_a_broadcast_is_one_envelope_with_a_stanza_for_each_recipient(url: str) -> None:
    root = Root()
    async with (
        outsider(url) as ear,
        Reef(deaf("a"), deaf("b"), deaf("c"), transport=url, security=root.keyring("a", "b", "c")),
        Reef(transport=url, security=root.keyring("@desk")) as sender,
    ):
        await sender.broadcast({"type": "x"})
        await sender.wait_idle(5)
        (envelope,) = map(parse, ear.on("main"))
    assert (envelope.recipients, envelope.is_group) == (3, True)


async def test_security_must_be_keys() -> None:
    with pytest.raises(ConfigurationError, match="must be a Keyring"):
        Reef(security="secret")  # type: ignore[arg-type]


async def test_an_agent_without_a_certificate_does_not_start(url: str) -> None:
    with pytest.raises(KeyringError, match="certificate"):
        async with Reef(deaf("b"), transport=url, security=Root().keyring("a")):
            pass


async def test_a_process_without_a_certificate_says_nothing_outside_of_agents(url: str) -> None:
    async with Reef(deaf("a"), transport=url, security=Root().keyring("a")) as reef:
        receipt = reef.send("a", {"n": 1})
        with pytest.raises(KeyringError, match="no keys of '@reef-"):
            await receipt


async def test_an_id_that_no_envelope_can_carry_is_refused() -> None:
    async with Reef(deaf("a"), security=Keyring()) as reef:
        with pytest.raises(Exception, match="32 hexadecimal digits"):
            await reef.publish(Spore.create({"n": 1}, id="mine", to_agent="a"))


# -- what the broker sees --------------------------------------------------------------------


async def test_nothing_that_was_said_is_readable_on_the_bus(url: str) -> None:
    root = Root()
    team = (echoing(), listener("a", [], responds_to=[CANARY]))
    async with (
        outsider(url) as ear,
        Reef(*team, transport=url, security=root.keyring("clerk", "a")),
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
    ):
        await sender.request("clerk", {"say": CANARY, CANARY: 1}, timeout=5)
        await sender.broadcast(
            {"type": CANARY, "n": CANARY, "say": ""}, key=CANARY, headers={"x": CANARY}
        )
        with pytest.raises(RequestFailedError):
            await sender.request("clerk", {"fail": CANARY}, timeout=5)
        await sender.wait_idle(5)
    assert len(ear.heard) > 10
    assert not [data for _, data in ear.heard if CANARY.encode() in data]
    spores = [data for topic, data in ear.heard if topic != "praval.@keys"]
    assert {data[:4] for data in spores} == {b"PSV1"}


async def test_plaintext_spores_and_garbage_are_refused(url: str) -> None:
    heard: list[Any] = []
    async with (
        outsider(url) as attacker,
        Reef(listener("a", heard), transport=url, security=Root().keyring("a")) as reef,
    ):
        for body in (Spore.create({"n": 1}).to_bytes(), b"", b"PSV1" + bytes(300), b"{}" * 9000):
            await attacker.publish("praval.main", body)
        await until(lambda: refused(reef).get("malformed") == 4, "all four were refused")
        assert (heard, reef.ledger().rejected) == ([], 4)


# -- what an attacker can do with what it has seen -------------------------------------------


async def test_edited_forged_and_moved_envelopes_change_nothing(url: str) -> None:
    root, heard = Root(), list[Any]()
    async with (
        outsider(url) as attacker,
        Reef(
            listener("a", heard), listener("b", heard),
            transport=url, security=root.keyring("a", "b"),
        ) as reef,
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
    ):  # fmt: skip
        await sender.send("a", {"n": 1})
        await sender.wait_idle(5)
        (seen,) = attacker.on("a_channel")
        step = max(len(seen) // 60, 1)
        edited = [
            seen[:at] + bytes([seen[at] ^ 1]) + seen[at + 1 :] for at in range(0, len(seen), step)
        ]
        for data in edited:
            await attacker.publish("praval.a_channel", data)
        await attacker.publish("praval.b_channel", seen)
        await attacker.publish("praval.main", seen)
        # a stranger has keys, but of a root that nobody here knows
        async with Reef(
            transport=url, security=Root().keyring("@desk"), settings=brisk()
        ) as stranger:
            with pytest.raises(RequestTimeoutError):
                await stranger.request("a", {"n": 2}, timeout=0.3)
        await until(
            lambda: sum(refused(reef).values()) >= len(edited) + 2 and not reef.pending,
            "all were judged",
        )
        counts = refused(reef)
        assert heard == [("a", 1)]
        assert counts["bad_signature"] > len(edited) // 2
        assert {"not_for_me", "malformed"} <= counts.keys()
        # b, to which the group's copy went as well, and a, which had it before
        assert counts.get("replay", 0) == 0


async def test_what_was_committed_is_acknowledged_and_not_handled_again(url: str) -> None:
    root, heard = Root(), list[Any]()
    async with (
        outsider(url) as attacker,
        Reef(listener("a", heard), transport=url, security=root.keyring("a")) as reef,
        Reef(transport=url, security=root.keyring("@desk")) as sender,
    ):
        await sender.send("a", {"n": 1})
        await sender.wait_idle(5)
        (seen,) = attacker.on("a_channel")
        for _ in range(5):
            await attacker.publish("praval.a_channel", seen)
        await until(lambda: reef.ledger().duplicate == 5, "five copies were known")
        assert heard == [("a", 1)]
        assert not unacknowledged(url, "praval.a")


async def test_what_was_committed_is_known_after_a_restart(url: str, tmp_path: Path) -> None:
    root, heard = Root(), list[Any]()
    folder = await asyncio.to_thread(stored, tmp_path / "keys", root.keyring("a"))
    desk = root.keyring("@desk")
    async with outsider(url) as attacker:
        store = await asyncio.to_thread(reopened, folder)
        async with (
            Reef(listener("a", heard), transport=url, security=store),
            Reef(transport=url, security=desk, settings=brisk()) as sender,
        ):
            await sender.send("a", {"n": 1})
            await sender.wait_idle(5)
        (seen,) = attacker.on("a_channel")
        store = await asyncio.to_thread(reopened, folder)
        async with Reef(listener("a", heard), transport=url, security=store) as again:
            await attacker.publish("praval.a_channel", seen)
            await until(lambda: again.ledger().duplicate, "it was known")
    assert heard == [("a", 1)]


@pytest.fixture(params=["folder", *SERVERS])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where replicas may share a store: in a folder, and on real servers over TLS."""
    if request.param == "folder":
        return str(tmp_path / "keys")
    server = request.getfixturevalue(SERVERS[request.param])
    assert isinstance(server, Server)
    return store_url(server)


async def test_replicas_that_share_a_store_handle_a_spore_once(url: str, shared: str) -> None:
    root, heard = Root(), list[Any]()
    await asyncio.to_thread(stored, shared, root.keyring("a"))
    stores = [await asyncio.to_thread(reopened, shared) for _ in range(2)]
    async with (
        outsider(url) as attacker,
        Reef(listener("a", heard), transport=url, security=stores[0]) as one,
        Reef(listener("a", heard), transport=url, security=stores[1]) as two,
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
    ):
        for n in range(20):
            await sender.send("a", {"n": n})
        await sender.wait_idle(10)
        for seen in attacker.on("a_channel")[:20]:  # the bus gives each replica every other one
            await attacker.publish("praval.a_channel", seen)
            await attacker.publish("praval.a_channel", seen)
        await until(
            lambda: one.ledger().duplicate + two.ledger().duplicate >= 40, "all copies were known"
        )
        assert one.ledger().handled
        assert two.ledger().handled
    assert sorted(heard) == [("a", n) for n in range(20)]


async def test_a_store_that_is_open_serves_one_reef(url: str, tmp_path: Path) -> None:
    folder = await asyncio.to_thread(stored, tmp_path / "keys", Root().keyring("a"))
    store = await asyncio.to_thread(reopened, folder)
    async with Reef(deaf("a"), transport=url, security=store):
        with pytest.raises(KeyringError, match="Open it once more"):
            async with Reef(deaf("a"), transport=url, security=store):
                pass
    async with Reef(deaf("a"), transport=url, security=store):
        pass  # one after the other may


async def test_a_replica_learns_of_keys_that_another_one_has_renewed(url: str, shared: str) -> None:
    root, heard = Root(), list[Any]()
    await asyncio.to_thread(stored, shared, root.keyring("a"))
    stores = [await asyncio.to_thread(reopened, shared) for _ in range(2)]
    async with (
        Reef(listener("a", heard), transport=url, security=stores[0]) as one,
        Reef(listener("a", heard), transport=url, security=stores[1]) as two,
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
    ):
        for n in range(30):
            if n % 3 == 0:
                await bridge((one, two)[n % 2]).care.rotate("a")
            await sender.send("a", {"n": n})
        await sender.wait_idle(20)
    assert sorted(heard) == [("a", n) for n in range(30)]
    assert not {"no_key", "stale_card"} & (refused(one).keys() | refused(two).keys())


async def test_what_was_not_acknowledged_is_handled_by_another_process(url: str) -> None:
    root, heard, begun = Root(), list[Any](), asyncio.Event()

    @agent("a")
    async def hangs(spore: Spore) -> None:
        begun.set()
        await asyncio.Event().wait()

    keyring = root.keyring("a")
    async with Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender:
        async with Reef(hangs, transport=url, security=keyring, settings=brisk()) as first:
            await sender.send("a", {"n": 1})
            await begun.wait()
            await first.aclose(drain=False)
        async with Reef(listener("a", heard), transport=url, security=keyring, settings=brisk()):
            await sender.wait_idle(10)
    assert heard == [("a", 1)]


async def test_a_long_handling_keeps_its_lease(url: str) -> None:
    root, heard, go = Root(), list[Any](), asyncio.Event()

    @agent("a")
    async def slow(spore: Spore) -> None:
        heard.append(spore.knowledge["n"])
        await go.wait()

    keyring, settings = root.keyring("a"), brisk()
    async with (
        Reef(slow, transport=url, security=keyring, settings=settings) as one,
        Reef(slow, transport=url, security=keyring, settings=settings) as two,
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
    ):
        await sender.send("a", {"n": 1})
        await until(lambda: heard, "it was begun")
        # a replica looks once a second: at the third look the first lease would have lapsed
        await until(
            lambda: sum(refused(each).get("in_flight", 0) for each in (one, two)) >= 3,
            "another replica was told that it is in work",
        )
        go.set()
        await sender.wait_idle(10)
    assert heard == [1]


# -- keys that change ------------------------------------------------------------------------


async def test_keys_that_rotate_while_spores_fly_lose_nothing(url: str) -> None:
    root, heard = Root(), list[Any]()
    async with (
        Reef(listener("a", heard, concurrent=4), transport=url, security=root.keyring("a")) as reef,
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
    ):

        async def rotate() -> None:
            for each in (reef, sender) * 20:
                await bridge(each).care.rotate()
                await asyncio.sleep(0)

        rotating = asyncio.ensure_future(rotate())
        for n in range(300):
            await sender.send("a", {"n": n})
        await rotating
        await sender.wait_idle(20)
    assert sorted(heard) == [("a", n) for n in range(300)]
    assert not refused(reef).keys() - {"stale_card"}


async def test_keys_are_rotated_and_cards_renewed_when_they_are_due(url: str) -> None:
    from praval.core.lifetimes import Lifetimes

    root = Root()
    quickly = Lifetimes(rotation=200, card=2000, renewal=100, max_ttl=HOUR)
    keyring = root.keyring("a", lifetimes=quickly)
    async with Reef(deaf("a"), transport=url, security=keyring):
        first = keyring.get("a").prekeys[0]
        await until(lambda: keyring.get("a").prekeys[0] is not first, "a fresh prekey")
        assert first.key in [each.key for each in keyring.get("a").prekeys]


async def test_a_revoked_sender_is_silenced(url: str) -> None:
    root, heard = Root(), list[Any]()
    async with (
        Reef(listener("a", heard), transport=url, security=root.keyring("a")) as reef,
        Reef(transport=url, security=root.keyring("@mole"), settings=brisk()) as mole,
    ):
        await mole.send("a", {"n": 1})
        await mole.wait_idle(5)
        status = sign_status(
            root.key, number=1, issued=now(), expires=now() + HOUR, serials=[root.serials["@mole"]]
        )
        await bridge(reef).cards.hear_own(status)  # the mole itself does not believe it
        with pytest.raises(RequestTimeoutError):
            await mole.request("a", {"n": 2}, timeout=0.3)
        assert refused(reef)["revoked"]
    assert heard == [("a", 1)]


async def test_a_status_list_is_told_to_who_comes_later(url: str) -> None:
    root = Root()
    async with Reef(deaf("a"), transport=url, security=root.keyring("a")) as first:
        mole = root.keyring("@mole")
        status = sign_status(
            root.key, number=1, issued=now(), expires=now() + HOUR, serials=[root.serials["@mole"]]
        )
        await bridge(first).cards.publish(status)
        late = root.keyring("b")
        async with Reef(deaf("b"), transport=url, security=late):
            known = late.directory.hear_card
            card = mole.card("@mole")

            def is_revoked() -> bool:
                try:
                    known(card, now())
                except Exception as error:  # noqa: BLE001 - the code is what is looked at
                    return getattr(error, "code", None) is SealCode.REVOKED
                return False

            await until(is_revoked, "the late one knows who is revoked")


async def test_a_spore_waits_for_the_card_of_its_receiver(url: str) -> None:
    root, heard = Root(), list[Any]()
    async with Reef(transport=url, security=root.keyring("@desk")) as sender:
        sending = asyncio.ensure_future(sender.send("late", {"n": 1}))
        await until(lambda: sender.ledger().pending and bridge(sender).outbox.delayed, "it waits")
        async with Reef(listener("late", heard), transport=url, security=root.keyring("late")):
            await sending
            await sender.wait_idle(5)
    assert heard == [("late", 1)]


async def test_without_a_card_in_its_time_to_live_a_spore_is_undeliverable(url: str) -> None:
    async with Reef(transport=url, security=Root().keyring("@desk"), settings=brisk()) as sender:
        with pytest.raises(Exception, match="No card of 'nobody'"):
            await sender.send("nobody", {"n": 1}, ttl=0.2)
        await sender.wait_idle(5)
        assert sender.ledger().undeliverable == 1


async def test_a_broadcast_that_nobody_hears_is_undeliverable(url: str) -> None:
    async with Reef(transport=url, security=Root().keyring("@desk")) as sender:
        await sender.broadcast({"n": 1})
        assert sender.ledger().undeliverable == 1


async def test_an_agent_stops_when_another_store_speaks_for_its_name(url: str) -> None:
    root, heard, events = Root(), list[Any](), list[SecurityEvent]()
    keyring = root.keyring("a")
    twin = Keyring([root.key.verify_key])
    twin.restore(keyring.dump(), now=now())
    async with Reef(listener("a", heard), transport=url, security=keyring) as reef:
        bridge(reef).events.listeners.append(events.append)
        async with Reef(listener("a", heard), transport=url, security=twin) as other:
            await bridge(other).care.rotate("a")
            await until(lambda: not bridge(reef)._agents, "it hears no more")
    assert events[0].grave
    assert (events[0].receiver, events[0].severity) == ("a", "high")


# -- rights, rates, alarms -------------------------------------------------------------------


async def test_who_has_no_right_to_a_channel_does_not_get_its_broadcasts(url: str) -> None:
    root, heard = Root(), list[Any]()
    narrow = Rights(read=("praval.b_channel",))
    async with (
        Reef(listener("a", heard), transport=url, security=root.keyring("a")),
        Reef(listener("b", heard), transport=url, security=root.keyring("b", rights=narrow)),
        Reef(transport=url, security=root.keyring("@desk")) as sender,
    ):
        await sender.broadcast({"n": 1})
        await sender.send("b", {"n": 2})
        await sender.wait_idle(5)
    assert sorted(heard) == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("limits", [{"deny_peers": ["@desk"]}, {"allow_peers": ["@other"]}])
async def test_settings_say_whom_to_let_in(url: str, limits: dict[str, Any]) -> None:
    root, heard = Root(), list[Any]()
    async with (
        Reef(
            listener("a", heard),
            transport=url,
            security=root.keyring("a"),
            settings=brisk(**limits),
        ) as reef,
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
    ):
        with pytest.raises(RequestTimeoutError):
            await sender.request("a", {"n": 1}, timeout=0.3)
        assert refused(reef)["not_permitted"]
    assert heard == []


async def test_a_peer_that_sends_too_much_is_slowed_down(url: str) -> None:
    root, heard = Root(), list[Any]()
    limits = brisk(messages_per_minute=600, burst_size=5)
    async with (
        Reef(
            listener("a", heard), transport=url, security=root.keyring("a"), settings=limits
        ) as reef,
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
    ):
        begun = time.monotonic()
        for n in range(10):
            await sender.send("a", {"n": n})
        await sender.wait_idle(20)
        assert time.monotonic() - begun > 0.4
        assert refused(reef)["rate_limited"]
    assert sorted(heard) == [("a", n) for n in range(10)]


async def test_what_a_flood_on_the_channel_of_keys_keeps_out_is_counted(url: str) -> None:
    """Nothing more is looked at for a while, and nothing passes uncounted."""
    async with (
        outsider(url) as attacker,
        Reef(deaf("a"), transport=url, security=Keyring()) as reef,
    ):
        for n in range(300):
            await attacker.publish("praval.@keys", b"junk %d" % n)
        await until(lambda: sum(refused(reef).values()) == 300, "all were counted")
        assert refused(reef)["rate_limited"] > 50
        assert refused(reef)["malformed"] > 100


async def test_a_security_alert_reaches_the_agent_that_asks_for_it(url: str) -> None:
    root, alerts = Root(), list[dict[str, Any]]()

    @agent("watch", responds_to=["security_alert"])
    async def watch(spore: Spore) -> None:
        alerts.append(spore.knowledge)

    limits = brisk(deny_peers=["@mole"])
    async with (
        outsider(url) as attacker,
        Reef(watch, deaf("a"), transport=url, security=root.keyring("a", "watch"), settings=limits),
        Reef(transport=url, security=root.keyring("@mole"), settings=brisk()) as mole,
    ):
        with pytest.raises(RequestTimeoutError):
            await mole.request("a", {"text": CANARY}, timeout=0.2)
        for _ in range(20):
            await attacker.publish("praval.a_channel", b"not sealed")
        await until(lambda: len(alerts) >= 2, "both were told")
    named, nameless = alerts[:2]
    assert (named["source"], named["code"], named["agent"]) == ("@mole", "not_permitted", "a")
    assert (nameless["source"], nameless["code"], nameless["severity"]) == (
        None,
        "malformed",
        "low",
    )
    assert len(alerts) == 2  # not one for each of twenty
    assert CANARY not in str(alerts)


async def test_a_certificate_is_needed_to_send_an_alert(url: str) -> None:
    root, alerts = Root(), list[Any]()

    @agent("watch", responds_to=["security_alert"])
    async def watch(spore: Spore) -> None:
        alerts.append(spore.from_agent)

    async with (
        Reef(watch, transport=url, security=root.keyring("watch")) as reef,
        Reef(transport=url, security=root.keyring("@mole"), settings=brisk()) as mole,
    ):
        with pytest.raises(RequestTimeoutError):
            await mole.request("watch", {"type": "security_alert"}, timeout=0.2)
        await until(lambda: refused(reef).get("not_permitted"), "it was refused")
    assert "@mole" not in alerts
    assert set(alerts) <= {None}  # our own Reef told of it


# -- receipts --------------------------------------------------------------------------------


async def test_a_receipt_that_never_comes_is_an_unknown_outcome(url: str) -> None:
    root = Root()
    from praval.core.lifetimes import Lifetimes

    desk = root.keyring(
        "@desk", lifetimes=Lifetimes(skew=200, rotation=400, card=HOUR, renewal=HOUR // 2)
    )
    gone = root.keyring("a")
    async with (
        Reef(transport=url, security=desk, settings=brisk()) as sender,
    ):
        async with Reef(deaf("a"), transport=url, security=gone):
            pass
        assert "a" in bridge(sender).presence.names()
        await sender.send("a", {"n": 1}, ttl=0.2)
        await sender.wait_idle(5)
        assert sender.ledger().reasons["no receipt in its time to live; it may have been handled"]
        await until(
            lambda: bridge(sender).security()["receipts"].get("outcome_unknown"), "it was counted"
        )


async def test_who_is_away_is_sealed_to_but_nobody_waits_for_its_receipts(url: str) -> None:
    root, heard = Root(), list[Any]()
    away = root.keyring("away")
    settings = merge(brisk(), {"reef_config": {"unreceipted_capacity": 3}})
    async with Reef(transport=url, security=root.keyring("@desk"), settings=settings) as sender:
        async with Reef(deaf("away"), transport=url, security=away):
            assert bridge(sender).is_present("away")
            assert [(each.name, each.channels) for each in sender.agents()] == [
                ("away", ("main", "away_channel"))
            ]
        await until(lambda: not bridge(sender).is_present("away"), "it has left")
        for n in range(10):  # more than may wait for receipts
            await sender.broadcast({"n": n})
        await sender.wait_idle(5)
        async with Reef(listener("away", heard), transport=url, security=away):
            await until(lambda: len(heard) == 10, "what was sealed to it meanwhile is handled")
            assert bridge(sender).is_present("away")


async def test_a_host_that_falls_silent_is_taken_for_away(url: str) -> None:
    root = Root()
    settings = merge(brisk(), {"reef_config": {"presence_interval": 0.05}})
    async with (
        Reef(transport=url, security=root.keyring("@desk"), settings=settings) as sender,
        Reef(deaf("a"), transport=url, security=root.keyring("a"), settings=settings) as reef,
    ):
        await until(lambda: bridge(sender).is_present("a"), "it is there")
        cards = bridge(reef).cards
        assert cards._rounds is not None
        cards._rounds.cancel()
        await until(lambda: not bridge(sender).is_present("a"), "it is missed")


async def test_a_spore_is_the_same_whether_receipts_are_awaited_or_not(url: str) -> None:
    """The outbox may await them after a restart, and not before; copies must not look forged."""
    root, heard = Root(), list[Any]()
    async with (
        Reef(listener("a", heard), transport=url, security=root.keyring("a")) as reef,
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
    ):
        posted = sender.publisher.compose({"n": 1}, "main")
        for receipt in (False, True):
            await bridge(sender).publish(posted, receipt=receipt, resent=receipt)
        await until(lambda: reef.ledger().duplicate, "the copy was known")
        assert "replay" not in refused(reef)
    assert heard == [("a", 1)]


async def test_a_receipt_says_that_a_spore_is_dead(url: str) -> None:
    root = Root()
    async with (
        Reef(echoing(), transport=url, security=root.keyring("clerk")),
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
    ):
        await sender.send("clerk", {"fail": True})
        await sender.wait_idle(5)
        assert bridge(sender).security()["receipts"] == {"dead": 1}


async def test_receipts_and_replies_of_others_are_refused(url: str) -> None:
    """Whoever holds keys of another name answers, or receipts, what it was not asked."""
    root = Root()
    asked = asyncio.Event()

    @agent("clerk")
    async def silent(spore: Spore) -> dict[str, Any]:
        asked.set()
        await asyncio.Event().wait()
        return {}

    async with (
        Reef(silent, transport=url, security=root.keyring("clerk")) as clerk,
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
        Reef(deaf("mole"), transport=url, security=root.keyring("mole")) as mole,
    ):
        asking = asyncio.ensure_future(sender.request("clerk", {"n": 1}, timeout=1))
        await asked.wait()
        (request_id,) = sender.requests._pending
        sealer = bridge(mole).sealer
        forged = Spore.create(
            {"echo": "stolen"}, from_agent="mole", to_agent=bridge(sender).sealer.process,
            correlation_id=request_id, ttl=60,
        ).replace(spore_type="response", channel=bridge(sender).inbox.channel)  # fmt: skip
        message = sealer.message(
            forged.header, b'{"echo":"stolen"}', bridge(sender).inbox.topic, None
        )
        (envelope,) = sealer.seal(message, awaited=False).envelopes
        await mole.bridge.transport.publish(bridge(sender).inbox.topic, envelope)  # type: ignore[union-attr]
        with pytest.raises(RequestTimeoutError):
            await asking
        assert refused(sender)["not_permitted"] == 1
        await clerk.aclose(drain=False)


# -- with a journal --------------------------------------------------------------------------


async def test_with_a_journal_what_was_accepted_is_sealed_again_after_a_restart(
    url: str, tmp_path: Path
) -> None:
    root, heard = Root(), list[Any]()
    folder = await asyncio.to_thread(stored, tmp_path / "keys", root.keyring("@desk"))
    journal = tmp_path / "journal.sqlite"
    store = await asyncio.to_thread(reopened, folder)
    async with Reef(transport=url, security=store, journal=journal) as sender:
        await sender.send("late", {"n": 1})  # the journal has it: nobody needs to wait
        await sender.aclose(drain=False)
    store = await asyncio.to_thread(reopened, folder)
    async with (
        Reef(listener("late", heard), transport=url, security=root.keyring("late")),
        Reef(transport=url, security=store, journal=journal, settings=brisk()) as sender,
    ):
        await sender.wait_idle(5)
    assert heard == [("late", 1)]


async def test_a_receiver_with_a_journal_handles_and_forgets(url: str, tmp_path: Path) -> None:
    root, heard = Root(), list[Any]()
    async with (
        outsider(url) as attacker,
        Reef(
            listener("a", heard), transport=url, security=root.keyring("a"),
            journal=tmp_path / "a.sqlite",
        ) as reef,
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
    ):  # fmt: skip
        for n in range(20):
            await sender.send("a", {"n": n})
        await sender.wait_idle(5)
        before = reef.ledger().duplicate  # copies that the sender itself has sent
        await attacker.publish("praval.a_channel", attacker.on("a_channel")[0])
        await until(lambda: reef.ledger().duplicate > before, "a copy was known")
    assert sorted(heard) == [("a", n) for n in range(20)]


@pytest.mark.parametrize("with_journal", [False, True])
async def test_a_peer_that_uses_the_id_of_anothers_spore_first_suppresses_nothing(
    url: str, tmp_path: Path, with_journal: bool
) -> None:
    root, heard = Root(), list[Any]()
    journal = tmp_path / "a.sqlite" if with_journal else None
    async with (
        Reef(listener("a", heard), transport=url, security=root.keyring("a"), journal=journal),
        Reef(transport=url, security=root.keyring("@mole"), settings=brisk()) as mole,
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
    ):
        foreseen = "ab" * 16
        await mole.publish(Spore.create({"n": "junk"}, id=foreseen, to_agent="a"))
        await mole.wait_idle(5)
        await sender.publish(Spore.create({"n": 1}, id=foreseen, to_agent="a"))
        await sender.wait_idle(5)
    assert heard == [("a", "junk"), ("a", 1)]


async def test_a_dead_letter_of_a_sealed_spore_survives_and_is_replayed(
    url: str, tmp_path: Path
) -> None:
    root, heard, broken = Root(), list[Any](), [True]
    folder = await asyncio.to_thread(stored, tmp_path / "keys", root.keyring("a", "@host"))

    @agent("a")
    async def fragile(spore: Spore) -> None:
        if broken:
            raise ValueError("broken")
        heard.append((spore.knowledge["n"], "replay_of" in spore.headers))

    async def host() -> Reef:
        store = await asyncio.to_thread(reopened, folder)
        return Reef(
            fragile, transport=url, security=store, journal=tmp_path / "a.sqlite", settings=brisk()
        )

    async with Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender:
        async with await host() as reef:
            await sender.send("a", {"n": 1})
            await sender.wait_idle(5)
            assert [letter.agent for letter in reef.dead_letters()] == ["a"]
        broken.clear()
        async with await host() as reef:
            (letter,) = reef.dead_letters()
            await reef.replay(letter.id)
            await reef.wait_idle(5)
            assert reef.dead_letters() == []
    assert heard == [(1, True)]


# -- clocks ----------------------------------------------------------------------------------


async def test_after_a_jump_of_the_clock_nothing_is_opened_until_somebody_looks(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from praval.core.lifetimes import Lifetimes

    root, heard, events = Root(), list[Any](), list[SecurityEvent]()
    quickly = Lifetimes(rotation=200, card=HOUR, renewal=HOUR // 2, skew=1000)
    keyring = root.keyring("a", lifetimes=quickly)
    ahead = [0.0]
    async with (
        Reef(listener("a", heard), transport=url, security=keyring) as reef,
        Reef(transport=url, security=root.keyring("@desk"), settings=brisk()) as sender,
    ):
        bridge(reef).events.listeners.append(events.append)
        clock: Callable[[], float] = lambda: time.time() + ahead[0]  # noqa: E731
        reef.clock = clock
        bridge(reef).sealer._clock = clock
        ahead[0] = -30.0
        await until(lambda: bridge(reef).care.stopped, "the jump was seen")
        await sender.send("a", {"n": 1})
        ahead[0] = 0.0
        await bridge(reef).care.trust_clock()
        floor = now()
        await until(lambda: now() > floor, "the next millisecond")
        await sender.send("a", {"n": 2})
        await until(lambda: ("a", 2) in heard, "what came after it is handled")
    assert ("a", 1) not in heard  # it is older than the moment from which everything is remembered
    assert any(event.grave for event in events)
