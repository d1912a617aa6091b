"""Routing: who hears what, by channel, type and name."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from praval import Reason, Spore, agent
from praval.core.routing import REMEMBERED, Routes
from praval.core.runner import AgentRunner
from praval.core.session import run_tree
from praval.core.spore import Header
from praval.testing import TestReef

# -- the rules, on a Reef --------------------------------------------------------------------


class Ears:
    """Agents that note what they hear."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str | None]] = []

    def agent(self, name: str, **options: Any) -> Any:
        async def handler(spore: Spore) -> None:
            self.heard.append((name, spore.knowledge.get("type")))

        return agent(name, **options)(handler)

    def take(self) -> list[str]:
        """Return the names that heard something since the last call, sorted."""
        names, self.heard = sorted(name for name, _ in self.heard), []
        return names


async def hears(reef: TestReef, ears: Ears, channel: str | None, **data: Any) -> list[str]:
    await reef.broadcast(data, channel)
    await reef.settle()
    return ears.take()


async def test_without_a_channel_an_agent_hears_main_and_its_own() -> None:
    """``main`` is the default channel; ``<name>_channel`` is private to one agent."""
    ears = Ears()
    async with TestReef(ears.agent("a"), ears.agent("b")) as reef:
        assert await hears(reef, ears, None) == ["a", "b"]
        assert await hears(reef, ears, "main") == ["a", "b"]
        assert await hears(reef, ears, "a_channel") == ["a"]
        assert await hears(reef, ears, "elsewhere") == []
        assert reef.ledger().reasons == {Reason.NO_RECIPIENT.value: 1}
        assert reef.channels == ["a_channel", "b_channel", "main"]


async def test_with_a_channel_an_agent_hears_only_that_and_its_own() -> None:
    """An agent on a side channel does not hear ``main``."""
    ears = Ears()
    async with TestReef(ears.agent("side", channel="x"), ears.agent("plain")) as reef:
        assert await hears(reef, ears, "x") == ["side"]
        assert await hears(reef, ears, "main") == ["plain"]
        assert await hears(reef, ears, "side_channel") == ["side"]


async def test_an_agent_whose_channel_is_its_own_hears_once() -> None:
    """Naming one's private channel as ``channel=`` does not double deliveries."""
    ears = Ears()
    async with TestReef(ears.agent("a", channel="a_channel")) as reef:
        assert await hears(reef, ears, "a_channel") == ["a"]
        assert reef.ledger().deliveries == 1


async def test_a_session_channel_takes_the_place_of_main() -> None:
    """An agent added with ``main="x"`` hears and, by default, speaks on that channel."""
    ears = Ears()

    @agent("asker", responds_to=["start"])
    async def asker(spore: Spore) -> dict[str, Any]:
        return {"type": "question"}

    async with TestReef() as reef:
        await reef.add(asker, main="x")
        await reef.add(ears.agent("listener", responds_to=["question"]), main="x")
        await reef.add(ears.agent("outsider"))
        await run_tree(reef, {"type": "start"}, channel="x")
        assert ears.take() == ["listener"]
        (question,) = reef.published(type="question")
        assert question.channel == "x"


async def test_responds_to_filters_on_the_type() -> None:
    """Only the named types are heard; a spore without a type reaches only catch-all agents."""
    ears = Ears()
    listed = ears.agent("listed", responds_to=["a", "b"])
    async with TestReef(listed, ears.agent("one", responds_to="b"), ears.agent("all")) as reef:
        assert await hears(reef, ears, None, type="a") == ["all", "listed"]
        assert await hears(reef, ears, None, type="b") == ["all", "listed", "one"]
        assert await hears(reef, ears, None, type="ab") == ["all"]
        assert await hears(reef, ears, None, n=1) == ["all"]


async def test_an_agent_that_responds_to_nothing_hears_nothing() -> None:
    """An empty list of types is not the same as none."""
    ears = Ears()
    async with TestReef(ears.agent("deaf", responds_to=[])) as reef:
        assert await hears(reef, ears, None, type="a") == []
        assert await hears(reef, ears, None) == []


async def test_a_removed_agent_hears_no_more() -> None:
    """Neither by channel nor by name; its channel is gone with it."""
    ears = Ears()
    async with TestReef(ears.agent("a"), ears.agent("b")) as reef:
        assert await hears(reef, ears, None, type="t") == ["a", "b"]
        await reef.remove("a")
        assert await hears(reef, ears, None, type="t") == ["b"]
        assert reef.channels == ["b_channel", "main"]


async def test_an_agent_added_later_hears_what_comes_later() -> None:
    """A route that was remembered before does not hide the newcomer."""
    ears = Ears()
    async with TestReef(ears.agent("a")) as reef:
        assert await hears(reef, ears, None, type="t") == ["a"]
        await reef.add(ears.agent("b", responds_to=["t"]))
        assert await hears(reef, ears, None, type="t") == ["a", "b"]


# -- against a naive matcher -----------------------------------------------------------------


class Listener(NamedTuple):
    """What a runner looks like to the routes."""

    name: str
    channels: tuple[str, str]
    agent: Any

    def responds(self, header: Header) -> bool:
        return AgentRunner.responds(self, header)  # type: ignore[arg-type]


def listener(name: str, channel: str, types: list[str] | None) -> Any:
    options = SimpleNamespace(responds_to=None if types is None else frozenset(types))
    return Listener(name, (channel, f"{name}_channel"), SimpleNamespace(options=options))


NAME = st.sampled_from("abcd")
CHANNEL = st.sampled_from(["main", "x", "a_channel", "b_channel"])
KIND = st.sampled_from(["t", "u", "agent_error", "security_alert"])
LISTENER = st.builds(listener, NAME, CHANNEL, st.none() | st.lists(KIND, max_size=2))
HEADER = st.builds(
    Header,
    st.just("id"),
    st.just(0.0),
    type=st.none() | KIND,
    channel=CHANNEL,
    from_agent=st.none() | NAME,
    to_agent=st.none() | NAME,
)


def naive(listeners: dict[str, Any], header: Header) -> set[str]:
    """Match a spore with every agent, one rule after the other."""
    if header.to_agent is not None:
        return {header.to_agent} & set(listeners)
    heard = set()
    for name, each in listeners.items():
        types = each.agent.options.responds_to
        system = header.type in ("agent_error", "security_alert")
        if header.channel not in each.channels or name == header.from_agent:
            continue
        if (types is None and not system) or (types is not None and header.type in types):
            heard.add(name)
    return heard


@settings(max_examples=200)
@given(st.lists(LISTENER | NAME | HEADER, max_size=40))
def test_remembered_routes_are_those_a_naive_matcher_finds(steps: list[Any]) -> None:
    """Whatever is added, removed and asked in between, nobody is forgotten, added or doubled."""
    routes = Routes()
    listeners: dict[str, Any] = {}
    for step in steps:
        if isinstance(step, Header):
            got = [each.name for each in routes.receivers(step)]
            assert len(got) == len(set(got))
            assert set(got) == naive(listeners, step)
            # in order of joining, which is what makes a run repeatable
            if step.to_agent is None:
                assert got == [name for name in listeners if name in got]
            continue
        name = step if isinstance(step, str) else step.name
        if name in listeners:
            routes.remove(listeners.pop(name))
        if not isinstance(step, str):
            listeners[name] = step
            routes.add(step)
    expected = {channel for each in listeners.values() for channel in each.channels}
    assert routes.channels == sorted(expected)


# -- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["type", "channel", "from_agent"])
def test_routes_of_a_million_strangers_do_not_fill_the_memory(field: str) -> None:
    """Types, channels and senders come from outside, so what is remembered has a bound."""
    routes = Routes()
    routes.add(listener("a", "main", None))

    def ask(start: int, number: int) -> None:
        for each in range(start, start + number):
            fields: dict[str, Any] = {field: f"{each:064}"}
            routes.receivers(Header("id", 0.0, **fields))

    ask(0, REMEMBERED)
    tracemalloc.start()
    ask(REMEMBERED, 5 * REMEMBERED)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(routes._found) <= REMEMBERED
    assert grown < 2 * REMEMBERED * 400
