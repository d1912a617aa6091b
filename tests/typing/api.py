"""What type checkers see of the public API. Never run: mypy and pyright read it in `make lint`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, assert_type

from praval import (
    Agent,
    AgentDefinition,
    AgentSession,
    DeadLetter,
    Failure,
    Interceptor,
    LedgerSnapshot,
    Outcome,
    Pipeline,
    PravalError,
    Reason,
    Receipt,
    Reef,
    Registry,
    Response,
    SessionResult,
    Settings,
    Spore,
    SporeType,
    abroadcast,
    achat,
    agent,
    agent_pipeline,
    astart_agents,
    astream,
    broadcast,
    cached_agent,
    chat,
    conditional_agent,
    configure,
    debug_agent,
    get_agent_info,
    get_reef,
    get_registry,
    monitor_agent_performance,
    register_agent,
    resilient_agent,
    start_agents,
    throttled_agent,
    tool,
)
from praval.providers import budget, select_best_provider, usage


@agent("coroutine", responds_to=["question"], concurrent=8, retries=2, timeout=1.5)
async def coroutine(spore: Spore) -> dict[str, Any]:
    """An `async def` handler."""
    assert_type(spore.knowledge, dict[str, Any])
    assert_type(spore.type, str | None)
    assert_type(spore.spore_type, SporeType)
    assert_type(broadcast({"type": "note"}), Receipt)
    assert_type(await achat("hello"), Response)
    return {"type": "answer"}


@agent("plain", on_error="raise")
def plain(spore: Spore) -> None:
    """A plain handler that returns nothing."""
    assert_type(chat("hello"), Response)


@conditional_agent("urgent", lambda spore: spore.priority > 7)
async def urgent(spore: Spore) -> str:
    """The condition is a function of a spore."""
    return spore.id


@throttled_agent("slow", max_calls_per_minute=10, channel="quiet")
async def slow(spore: Spore) -> None:
    """A decorator that passes options on."""


assert_type(coroutine, AgentDefinition)
assert_type(plain, AgentDefinition)
assert_type(urgent, AgentDefinition)
assert_type(slow, AgentDefinition)


async def reefs() -> None:
    """A Reef is an asynchronous context manager of its own type."""
    async with Reef(coroutine, plain, Agent("third"), namespace="desk") as reef:
        assert_type(reef, Reef)
        assert_type(await reef.broadcast({"type": "question"}, channel="main", ttl=5), Receipt)
        assert_type(await reef.publish(Spore.create({"n": 1}, type="question")), Receipt)
        assert_type(await reef.send("plain", {"n": 1}), Receipt)
        assert_type(await reef.request("coroutine", {"type": "question"}, timeout=5), Spore)
        assert_type(await reef.abroadcast_to_channel("main", {"n": 1}), Receipt)
        assert_type(await reef.replay("letter"), Receipt)
        assert_type(reef.add(urgent), Awaitable[None])
        await reef.add(urgent)
        await reef.remove("urgent")
        await reef.wait_idle(timeout=30)
        assert_type(reef.channels, list[str])
        assert_type(reef.pending, int)
        assert_type(reef.running, bool)
        assert_type(reef.clear_channel("main"), int)
        assert_type(reef.get_statistics(), dict[str, Any])
        assert_type(reef.health_check(), dict[str, Any])
        assert_type(reef.settings, Settings)
        await reef.aclose()
        assert_type(reef.ledger(), LedgerSnapshot)
        assert_type(reef.ledger().balanced, bool)
        assert_type(reef.dead_letters(), list[DeadLetter])


def spores(spore: Spore) -> None:
    """A spore travels as bytes."""
    assert_type(spore.to_bytes(), bytes)
    assert_type(Spore.from_bytes(b"{}"), Spore)
    assert_type(spore.replace(channel="other"), Spore)
    assert_type(spore.id, str)
    assert_type(spore.expires_at, float | None)
    assert_type(spore.headers, dict[str, str])
    assert_type(spore.data_references, list[str])


def losses(failure: Failure, letter: DeadLetter, receipt: Receipt) -> None:
    """What became of a delivery is typed, down to the reason."""
    assert_type(failure.outcome, Outcome)
    assert_type(failure.reason, Reason)
    assert_type(failure.error, BaseException | None)
    assert_type(letter.spore, Spore)
    assert_type(letter.reason, Reason)
    assert_type(receipt.id, str)
    assert_type(receipt.rejected, tuple[str, ...])


class Timing(Interceptor):
    """An interceptor overrides what it needs."""

    def publish(self, spore: Spore) -> Spore:
        """See each spore before it is routed."""
        return spore.replace(headers={**spore.headers, "timed": "yes"})

    async def handle(
        self, spore: Spore, agent: AgentDefinition, call_next: Callable[[Spore], Awaitable[Any]]
    ) -> Any:
        """Stand around a handler."""
        return await call_next(spore)


class Librarian(Agent):
    """A subclass overrides ``handle``."""

    async def handle(self, spore: Spore) -> dict[str, Any]:
        """Answer with the model."""
        assert_type(await self.achat("hello"), Response)
        return {"name": self.name}


async def classes() -> None:
    """Instances of Agent and interceptors go where the signatures say."""
    async with Reef(Librarian("librarian"), transport=False, interceptors=[Timing()]) as reef:
        assert_type(reef, Reef)
    try:
        await reef.send("librarian", {})
    except PravalError as error:
        assert_type(error, PravalError)


async def sessions() -> None:
    """A session's result is a mapping with more beside it."""
    result = await astart_agents(coroutine, plain, initial_data={"type": "question"}, timeout=60)
    assert_type(result, SessionResult)
    as_mapping: Mapping[str, Any] = result
    assert_type(as_mapping["answer"], Any)
    assert_type(result.by_agent, dict[str, list[dict[str, Any]]])
    assert_type(result.spores, list[Spore])
    assert_type(result.errors, list[Failure])
    assert_type(result.ledger, LedgerSnapshot)
    assert_type(result.timed_out, bool)
    assert_type(await abroadcast({"type": "note"}), Receipt)
    async with AgentSession(timeout=5) as session:
        session.add_agent(coroutine)
        await session.astart({"type": "question"})
        assert_type(await session.await_for_completion(), SessionResult)


def from_a_script() -> None:
    """The blocking forms return what their twins do."""
    assert_type(start_agents(coroutine, initial_data={"n": 1}, max_iterations=9), SessionResult)
    assert_type(get_reef(), Reef)
    assert_type(Agent("x").chat("hello"), Response)
    session = AgentSession("id", timeout=5, max_agents=3)
    session.start({"type": "question"})
    assert_type(session.wait_for_completion(), SessionResult)
    pipeline = agent_pipeline(coroutine, plain)
    assert_type(pipeline, Pipeline)
    assert_type(pipeline.run({"n": 1}, timeout=5), SessionResult)
    assert_type(get_registry(), Registry)
    assert_type(register_agent(plain), Agent)
    assert_type(get_registry().get_agent("plain"), Agent)
    assert_type(get_registry().list_agents(), list[dict[str, Any]])
    assert_type(get_agent_info("plain"), dict[str, Any])
    assert_type(configure({"reef_config": {"channel_capacity": 10}}), Settings)


@dataclass
class Report:
    """What an answer may have to be."""

    title: str


@tool
def add(a: int, b: int = 0) -> int:
    """Add two numbers."""
    return a + b


@tool("search", requires_approval=True)
async def search(words: str) -> list[str]:
    """Search."""
    return [words]


@agent("modelled", provider=["anthropic", "openai:gpt-6-sol", "local"], tools=[add, "search"])
@resilient_agent(max_retries=2)
@cached_agent(cache_duration=60)
@monitor_agent_performance
@debug_agent
async def modelled(spore: Spore) -> None:
    """An answer has the type that was asked for."""
    assert_type(await achat("Report.", returns=Report), Report)
    assert_type(await achat("Numbers.", returns=list[int]), list[int])
    assert_type(await Agent("x").achat("Report.", returns=Report), Report)
    answer = await achat("hello", history="mine", images=["https://x/y.png"], tools=[add])
    assert_type(answer.cost, float | None)
    assert_type(answer.usage.input_tokens, int)
    async with astream("hello") as pieces:
        async for piece in pieces:
            assert_type(piece, str)
    assert_type(pieces.response, Response)


def plainly() -> None:
    """The blocking forms are typed alike; a tool is still its function."""
    assert_type(chat("Report.", returns=Report), Report)
    assert_type(Agent("x").chat("Report.", returns=Report), Report)
    assert_type(add(1, b=2), int)
    chosen = select_best_provider("reasoning", 8000, "fast", "medium")
    assert_type(chosen.explanation, str)
    with budget(tokens=5) as limit:
        assert_type(limit.used_tokens, int)
    assert_type(usage(agent="x").cost, float)
