"""Publishing: who hears a spore, what the publisher is told, and what nobody heard."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from praval import AgentDefinition, Outcome, Reason, Receipt, Reef, Spore, SporeType, agent
from praval import broadcast as say
from praval.errors import (
    ConfigurationError,
    KnowledgeError,
    ReefClosedError,
    ReefError,
    UnknownAgentError,
)
from praval.testing import TestReef


def hearer(name: str, **options: Any) -> AgentDefinition:
    """Make an agent that only takes note."""

    @agent(name, **options)
    async def hear(spore: Spore) -> None:
        return None

    return hear


def heard(reef: TestReef) -> list[tuple[str, Any]]:
    return [(attempt.agent, attempt.spore.knowledge.get("n")) for attempt in reef.handled]


# -- broadcast ---------------------------------------------------------------------------------


async def test_a_broadcast_reaches_every_agent_that_responds_to_its_type() -> None:
    """``responds_to`` filters on the type; the others do not even get a delivery."""
    team = [
        hearer("a", responds_to=["x"]),
        hearer("b", responds_to=["x", "y"]),
        hearer("c", responds_to="y"),
    ]
    async with TestReef(*team) as reef:
        receipt = await reef.broadcast({"type": "x", "n": 1})
        await reef.settle()
        assert sorted(heard(reef)) == [("a", 1), ("b", 1)]
        assert receipt.recipients == 2
        ledger = reef.ledger()
        assert (ledger.published, ledger.deliveries, ledger.handled) == (1, 2, 2)


async def test_an_agent_without_responds_to_hears_every_type_and_none() -> None:
    """A catch-all agent gets typed and untyped broadcasts."""
    async with TestReef(hearer("all")) as reef:
        await reef.broadcast({"type": "x", "n": 1})
        await reef.broadcast({"n": 2})
        await reef.settle()
        assert heard(reef) == [("all", 1), ("all", 2)]


@pytest.mark.parametrize("kind", ["agent_error", "security_alert"])
async def test_a_catch_all_agent_does_not_hear_system_types(kind: str) -> None:
    """``agent_error`` and ``security_alert`` are only for those who name them."""
    async with TestReef(hearer("all"), hearer("guard", responds_to=[kind])) as reef:
        await reef.broadcast({"type": kind, "n": 1})
        await reef.settle()
        assert heard(reef) == [("guard", 1)]


async def test_every_receiver_has_its_own_copy_of_the_knowledge() -> None:
    """What one handler changes, however deep, no other sees, nor does the publisher."""
    seen: list[list[int]] = []

    def spoiler(name: str) -> AgentDefinition:
        @agent(name)
        async def spoil(spore: Spore) -> None:
            seen.append(list(spore.knowledge["deep"]["list"]))
            spore.knowledge["deep"]["list"].append(99)

        return spoil

    data = {"type": "x", "deep": {"list": [1]}}
    async with Reef(*[spoiler(f"s{n}") for n in range(6)]) as reef:
        await reef.broadcast(data)
        await reef.wait_idle(5)
    assert seen == [[1]] * 6
    assert data == {"type": "x", "deep": {"list": [1]}}


# -- to one agent --------------------------------------------------------------------------------


async def test_send_reaches_one_agent_whatever_the_channel() -> None:
    """``send`` and ``target_agent`` address an agent, not a channel."""
    async with TestReef(hearer("a", channel="far"), hearer("b")) as reef:
        await reef.send("a", {"type": "x", "n": 1})
        await reef.broadcast({"type": "x", "n": 2}, target_agent="a")
        await reef.settle()
        assert heard(reef) == [("a", 1), ("a", 2)]


async def test_a_target_agent_in_the_data_addresses_one_agent() -> None:
    """The guide's form: the knowledge names the receiver."""
    async with TestReef(hearer("a"), hearer("b")) as reef:
        await reef.broadcast({"type": "x", "n": 1, "target_agent": "b"})
        await reef.settle()
        assert heard(reef) == [("b", 1)]


async def test_an_addressed_agent_may_not_respond_to_the_type() -> None:
    """It is counted as filtered: addressed does not mean understood."""
    async with TestReef(hearer("a", responds_to=["y"])) as reef:
        await reef.send("a", {"type": "x"})
        await reef.settle()
        assert [(loss.outcome, loss.reason) for loss in reef.losses] == [
            (Outcome.FILTERED, Reason.TYPE)
        ]
        assert reef.ledger().balanced


@pytest.mark.parametrize("how", ["send", "argument", "request"])
async def test_an_unknown_name_as_argument_raises_and_suggests_the_near_one(how: str) -> None:
    """The publisher hears of it, and the ledger counts it."""
    async with TestReef(hearer("librarian")) as reef:
        with pytest.raises(UnknownAgentError, match="librarian"):
            await {
                "send": lambda: reef.send("librarain", {"type": "x"}),
                "argument": lambda: reef.broadcast({"type": "x"}, target_agent="librarain"),
                "request": lambda: reef.request("librarain", {"type": "x"}),
            }[how]()
        ledger = reef.ledger()
        assert ledger.undeliverable == 1
        assert ledger.balanced


async def test_an_unknown_name_in_the_data_is_counted_not_raised() -> None:
    """Data may come from a model; it must not break its publisher."""
    async with TestReef(hearer("a")) as reef:
        receipt = await reef.broadcast({"type": "x", "target_agent": "nobody"})
        assert receipt.recipients == 0
        assert reef.ledger().undeliverable == 1
        assert reef.ledger().reasons == {"no such agent": 1}


async def test_an_unknown_name_inside_a_handler_is_on_the_receipt() -> None:
    """The handler goes on; awaiting the receipt raises."""
    receipts: list[Receipt] = []

    @agent("asker")
    async def asker(spore: Spore) -> None:
        receipts.append(say({"type": "x"}, target_agent="nobody"))

    async with Reef(asker) as reef:
        await reef.broadcast({"type": "go"})
        await reef.wait_idle(5)
        assert isinstance(receipts[0].error, UnknownAgentError)
        with pytest.raises(UnknownAgentError):
            await receipts[0]
        assert reef.ledger().handled == 1


@pytest.mark.parametrize("target", [5, ["a"], {"name": "a"}])
async def test_a_target_agent_that_is_no_string_is_refused(target: object) -> None:
    """A wrong type in the data is a typed error, and nothing is counted."""
    async with Reef(hearer("a")) as reef:
        with pytest.raises(ConfigurationError, match="target_agent"):
            await reef.broadcast({"type": "x", "target_agent": target})
        assert reef.ledger().published == 0


# -- who does not hear ---------------------------------------------------------------------------


async def test_an_agent_never_hears_its_own_broadcast() -> None:
    """Neither what it broadcasts nor what it returns comes back to it."""

    @agent("echo")
    async def echo(spore: Spore) -> dict[str, Any]:
        say({"type": "said"})
        return {"type": "returned"}

    async with TestReef(echo, hearer("other")) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        assert [(a.agent, a.spore.type) for a in reef.handled if a.agent == "echo"] == [
            ("echo", "go")
        ]
        assert {a.spore.type for a in reef.handled if a.agent == "other"} == {
            "go", "said", "returned",
        }  # fmt: skip


async def test_an_agent_may_address_itself() -> None:
    """Only broadcasts are kept from their sender; an addressed spore is what it asked for."""

    @agent("counter")
    async def counter(spore: Spore) -> None:
        if spore.knowledge["n"]:
            say({"n": spore.knowledge["n"] - 1}, target_agent="counter")

    async with TestReef(counter) as reef:
        await reef.broadcast({"n": 3})
        await reef.settle()
        assert [n for _, n in heard(reef)] == [3, 2, 1, 0]


async def test_a_broadcast_that_nobody_hears_is_counted_undeliverable() -> None:
    """No exception: it is one delivery with no agent."""
    async with TestReef(hearer("a", responds_to=["y"])) as reef:
        receipt = await reef.broadcast({"type": "x"})
        assert (receipt.recipients, receipt.rejected, receipt.error) == (0, (), None)
        ledger = reef.ledger()
        assert (ledger.undeliverable, ledger.deliveries, ledger.pending) == (1, 1, 0)
        assert [loss.reason for loss in reef.losses] == [Reason.NO_RECIPIENT]


# -- channels ------------------------------------------------------------------------------------


async def test_channels_separate_agents() -> None:
    """Without ``channel=``: main and one's own; with it: only that one and one's own."""
    async with TestReef(hearer("a"), hearer("b", channel="side")) as reef:
        for n, channel in enumerate([None, "main", "side", "a_channel", "b_channel", "empty"]):
            await reef.broadcast({"n": n}, channel)
        await reef.settle()
        assert sorted(heard(reef)) == [("a", 0), ("a", 1), ("a", 3), ("b", 2), ("b", 4)]
        assert reef.ledger().undeliverable == 1
        assert reef.channels == ["a_channel", "b_channel", "main", "side"]


async def test_an_agent_on_a_side_channel_broadcasts_to_main() -> None:
    """``broadcast()`` goes to ``main`` unless told otherwise, and so do results."""

    @agent("sider", channel="side")
    async def sider(spore: Spore) -> dict[str, Any]:
        say({"type": "said", "n": 1})
        say({"type": "said", "n": 2}, channel="other")
        return {"type": "returned", "n": 3}

    async with TestReef(sider, hearer("mainer"), hearer("otherer", channel="other")) as reef:
        await reef.broadcast({"type": "go"}, "side")
        await reef.settle()
        assert sorted((who, n) for who, n in heard(reef) if n) == [
            ("mainer", 1), ("mainer", 3), ("otherer", 2),
        ]  # fmt: skip


# -- from handlers ---------------------------------------------------------------------------------


@pytest.mark.every_loop
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_broadcast_needs_no_await_in_either_kind_of_handler(kind: str) -> None:
    """It returns a receipt with the id; in an async handler the receipt may be awaited."""
    ids: list[str] = []

    async def async_body(spore: Spore) -> None:
        ids.append(say({"type": "said"}).id)
        ids.append((await say({"type": "said"})).id)

    def plain_body(spore: Spore) -> None:
        ids.extend(say({"type": "said"}).id for _ in range(2))

    speaker = agent("speaker", responds_to=["go"])(async_body if kind == "async" else plain_body)
    async with TestReef(speaker, hearer("h", responds_to=["said"]), virtual_time=False) as reef:
        root = await reef.broadcast({"type": "go"})
        await reef.settle()
        said = [attempt.spore for attempt in reef.handled if attempt.agent == "h"]
        assert [spore.id for spore in said] == ids
        assert [(s.from_agent, s.root, s.hops) for s in said] == [("speaker", root.id, 1)] * 2


async def test_a_task_inside_a_handler_publishes_as_that_handler() -> None:
    """While the handler is open, its tasks belong to the handling: same parent, same tree."""

    @agent("parent", responds_to=["go"])
    async def parent(spore: Spore) -> None:
        async def child() -> None:
            say({"type": "said"})

        await asyncio.gather(child(), child())

    async with TestReef(parent, hearer("h", responds_to=["said"])) as reef:
        root = await reef.broadcast({"type": "go"})
        await reef.settle()
        assert [s.root for s in reef.published("said")] == [root.id] * 2


@pytest.fixture
def orphans() -> Iterator[list[asyncio.Task[Any]]]:
    yield (tasks := [])
    assert all(task.done() for task in tasks)


@pytest.mark.parametrize("suspended", [True, False])
async def test_a_task_that_outlives_its_handler_publishes_without_a_parent(
    suspended: bool, orphans: list[asyncio.Task[Any]]
) -> None:
    """Also when the handler never gave the loop a chance before it returned."""

    @agent("parent", responds_to=["go"])
    async def parent(spore: Spore) -> None:
        async def child() -> None:
            if suspended:
                await asyncio.sleep(1)
            await say({"type": "said"})

        orphans.append(asyncio.create_task(child()))
        if suspended:
            await asyncio.sleep(0)

    async with TestReef(parent, hearer("h", responds_to=["said"])) as reef:
        await reef.broadcast({"type": "go"})
        await reef.broadcast({"type": "go"})  # the worker has another delivery by then
        await reef.settle()
        await asyncio.gather(*orphans)
        await reef.settle()
        said = reef.published("said")
        assert [(s.from_agent, s.root == s.id, s.hops) for s in said] == [("parent", True, 0)] * 2
        assert reef.ledger().balanced


async def test_an_orphan_of_a_closed_reef_is_refused(orphans: list[asyncio.Task[Any]]) -> None:
    """Nothing is started any more in a Reef that was closed."""
    go_on = asyncio.Event()

    @agent("parent", responds_to=["go"])
    async def parent(spore: Spore) -> None:
        async def child() -> None:
            await go_on.wait()
            say({"type": "said"})

        orphans.append(asyncio.create_task(child()))

    listener = hearer("h", responds_to=["said"])
    async with Reef(parent, listener) as reef:
        await reef.broadcast({"type": "go"})
    before = asyncio.all_tasks()
    go_on.set()
    with pytest.raises(ReefClosedError):
        await orphans[0]
    assert asyncio.all_tasks() <= before
    assert reef.ledger().published == 1


# -- publish(spore) --------------------------------------------------------------------------------


async def test_publish_keeps_the_spore_as_it_is() -> None:
    """Id, sender, headers, type of spore: what was built is what is handled."""
    spore = Spore.create(
        {"type": "x", "n": 1},
        from_agent="elsewhere",
        priority=7,
        key="k",
        headers={"traceparent": "00-1"},
        spore_type=SporeType.NOTIFICATION,
    )
    async with TestReef(hearer("keeper")) as reef:
        receipt = await reef.publish(spore)
        await reef.settle()
        (got,) = [attempt.spore for attempt in reef.handled]
    assert receipt.id == spore.id == got.id
    assert got.replace(expires_at=None) == spore


async def test_publish_inside_a_handler_joins_its_tree() -> None:
    """A session would count it, and its budget too."""

    @agent("publisher", responds_to=["go"])
    async def publisher(spore: Spore, reef: Reef) -> None:
        await reef.publish(Spore.create({"type": "said"}))

    async with TestReef(publisher, hearer("h", responds_to=["said"])) as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        assert [a.agent for a in reef.handled] == ["publisher", "h"]


async def test_publish_refuses_a_spore_whose_type_and_knowledge_disagree() -> None:
    """A receiver could trust neither."""
    spore = Spore.create({"type": "x"}).replace(knowledge={"type": "y"})
    async with Reef(hearer("a")) as reef:
        with pytest.raises(KnowledgeError):
            await reef.publish(spore)
        assert reef.ledger().published == 0


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "options", "error"),
    [
        ({"x": object()}, {}, KnowledgeError),
        ({"x": float("nan")}, {}, KnowledgeError),
        ({"type": 5}, {}, KnowledgeError),
        ([1], {}, KnowledgeError),
        (None, {}, KnowledgeError),
        (5, {}, KnowledgeError),
        ("text", {}, KnowledgeError),
        ({"x": 1}, {"priority": 0}, ConfigurationError),
        ({"x": 1}, {"priority": 11}, ConfigurationError),
        ({"x": 1}, {"priority": True}, ConfigurationError),
        ({"x": 1}, {"ttl": 0}, ConfigurationError),
        ({"x": 1}, {"ttl": -1}, ConfigurationError),
        ({"x": 1}, {"ttl": float("nan")}, ConfigurationError),
    ],
)
async def test_what_cannot_be_sent_is_refused_and_changes_nothing(
    data: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    """A typed error from outside and from inside a handler; the ledger stays empty."""
    caught: list[BaseException] = []

    @agent("inside", responds_to=["go"])
    async def inside(spore: Spore) -> None:
        try:
            say(data, **options)
        except (KnowledgeError, ConfigurationError) as refusal:
            caught.append(refusal)

    async with Reef(inside, hearer("a", responds_to=["x"])) as reef:
        with pytest.raises(error):
            await reef.broadcast(data, **options)
        assert reef.ledger().published == 0
        await reef.broadcast({"type": "go"})
        await reef.wait_idle(5)
        assert [type(refusal) for refusal in caught] == [error]
        assert reef.ledger().published == 1


async def test_a_reef_that_is_not_open_refuses() -> None:
    """Before entry, and after close, with an error that says which."""
    reef = Reef(hearer("a"))
    with pytest.raises(ReefClosedError, match="not entered"):
        await reef.broadcast({"type": "x"})
    async with reef:
        pass
    for attempt in (reef.broadcast({"x": 1}), reef.send("a", {}), reef.request("a", {})):
        with pytest.raises(ReefClosedError, match="closed"):
            await attempt
    with pytest.raises(ReefClosedError):
        await reef.publish(Spore.create({"x": 1}))
    with pytest.raises(ReefError, match="once"):
        await reef.__aenter__()


# -- other loops -----------------------------------------------------------------------------------


async def test_methods_may_be_awaited_from_another_loop() -> None:
    """They travel to the Reef's loop and back, errors included."""

    async def elsewhere() -> tuple[Receipt, dict[str, Any]]:
        with pytest.raises(UnknownAgentError):
            await reef.send("nobody", {})
        reply = await reef.request("answerer", {"n": 2}, timeout=5)
        return await reef.broadcast({"type": "x"}), reply.knowledge

    @agent("answerer")
    async def answerer(spore: Spore) -> dict[str, Any]:
        return {"twice": 2 * spore.knowledge.get("n", 0)}

    async with Reef(answerer) as reef:
        receipt, reply = await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        assert receipt.recipients == 1
        assert reply == {"twice": 4}
        await reef.wait_idle(5)
