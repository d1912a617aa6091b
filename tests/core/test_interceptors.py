"""Interceptors: code around every publication and every handling."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from praval import (
    AgentDefinition,
    Interceptor,
    Reef,
    Spore,
    SporeType,
    agent,
    broadcast,
    conditional_agent,
)
from praval.errors import RequestFailedError, SporeTooLargeError
from praval.settings import SecuritySettings, Settings

CallNext = Callable[[Spore], Awaitable[Any]]


class Tagged(Interceptor):
    """Notes what passes, under a name."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def publish(self, spore: Spore) -> Spore:
        self.log.append(f"{self.name} publish {spore.type}")
        return spore

    async def handle(self, spore: Spore, agent: AgentDefinition, call_next: CallNext) -> Any:
        self.log.append(f"{self.name} > {agent.name}")
        try:
            return await call_next(spore)
        finally:
            self.log.append(f"{self.name} < {agent.name}")


@agent("echo")
async def echo(spore: Spore) -> dict[str, Any]:
    return dict(spore.knowledge)


async def test_the_first_interceptor_is_the_outermost() -> None:
    """Around publication and around handling alike."""
    log: list[str] = []

    @agent("a")
    async def a(spore: Spore) -> None:
        log.append("handler")

    async with Reef(a, interceptors=[Tagged("1", log), Tagged("2", log)]) as reef:
        await reef.broadcast({"type": "x"})
        await reef.wait_idle(5)
    assert log == ["1 publish x", "2 publish x", "1 > a", "2 > a", "handler", "2 < a", "1 < a"]


async def test_every_publication_passes() -> None:
    """Broadcasts, sends, emissions, results, requests, replies and spores."""
    seen: list[tuple[str | None, SporeType]] = []

    class Watcher(Interceptor):
        def publish(self, spore: Spore) -> Spore:
            seen.append((spore.type, spore.spore_type))
            return spore

    @agent("a", responds_to=["go"])
    async def a(spore: Spore) -> dict[str, Any]:
        broadcast({"type": "said"})
        return {"type": "result"}

    @agent("broken", responds_to=["break"])
    async def broken(spore: Spore) -> None:
        raise ValueError("no")

    @agent("guard", responds_to=["agent_error"])
    async def guard(spore: Spore) -> None:
        return None

    async with Reef(a, broken, guard, interceptors=[Watcher()]) as reef:
        await reef.broadcast({"type": "go"})
        await reef.wait_idle(5)
        await reef.request("a", {"type": "go"}, timeout=5)
        await reef.publish(Spore.create({"type": "mine"}))
        await reef.broadcast({"type": "break"})
        await reef.wait_idle(5)
    kinds = SporeType
    assert seen == [
        ("go", kinds.KNOWLEDGE), ("said", kinds.KNOWLEDGE), ("result", kinds.KNOWLEDGE),
        ("go", kinds.REQUEST), ("said", kinds.KNOWLEDGE), ("result", kinds.RESPONSE),
        ("mine", kinds.KNOWLEDGE), ("break", kinds.KNOWLEDGE), ("agent_error", kinds.KNOWLEDGE),
    ]  # fmt: skip


async def test_a_publication_can_be_changed_and_rerouted() -> None:
    """What it returns is what is routed: knowledge, channel, headers."""

    class Redirect(Interceptor):
        def publish(self, spore: Spore) -> Spore:
            return spore.replace(
                knowledge={**spore.knowledge, "seen": True}, channel="side", headers={"by": "me"}
            )

    got: list[Spore] = []

    @agent("sider", channel="side")
    async def sider(spore: Spore) -> None:
        got.append(spore)

    async with Reef(sider, interceptors=[Redirect()]) as reef:
        await reef.broadcast({"type": "x"})
        await reef.wait_idle(5)
    assert got[0].knowledge == {"type": "x", "seen": True}
    assert (got[0].channel, got[0].headers) == ("side", {"by": "me"})


async def test_an_interceptor_that_refuses_a_publication_reaches_its_publisher() -> None:
    """Nothing is counted as published; inside a handler it is the handler's failure."""

    class Strict(Interceptor):
        def publish(self, spore: Spore) -> Spore:
            if spore.type == "secret":
                raise PermissionError("not this")
            return spore

    @agent("leaker", responds_to=["go"])
    async def leaker(spore: Spore) -> dict[str, Any]:
        return {"type": "secret"}

    async with Reef(leaker, interceptors=[Strict()]) as reef:
        with pytest.raises(PermissionError):
            await reef.broadcast({"type": "secret"})
        assert reef.ledger().published == 0
        await reef.broadcast({"type": "go"})
        await reef.wait_idle(5)
        assert reef.ledger().failed == 1
        with pytest.raises(RequestFailedError, match="not this"):
            await reef.request("leaker", {"type": "go"}, timeout=5)


async def test_an_interceptor_that_refuses_error_reports_breaks_nothing() -> None:
    """The failure itself is counted; the Reef goes on."""

    class Strict(Interceptor):
        def publish(self, spore: Spore) -> Spore:
            if spore.type == "agent_error":
                raise PermissionError("not this")
            return spore

    @agent("broken", responds_to=["go"])
    async def broken(spore: Spore) -> None:
        raise ValueError("no")

    @agent("guard", responds_to=["agent_error"])
    async def guard(spore: Spore) -> None:
        return None

    async with Reef(broken, guard, interceptors=[Strict()]) as reef:
        for _ in range(3):
            await reef.broadcast({"type": "go"})
        await reef.wait_idle(5)
        assert reef.running
        assert (reef.ledger().failed, reef.ledger().deliveries) == (3, 3)


async def test_what_an_interceptor_makes_larger_is_measured_again() -> None:
    """The size limit holds for what travels."""

    class Grow(Interceptor):
        def publish(self, spore: Spore) -> Spore:
            return spore.replace(knowledge={"x": "y" * 200})

    settings = Settings(security=SecuritySettings(max_message_size=100))
    async with Reef(echo, interceptors=[Grow()], settings=settings) as reef:
        with pytest.raises(SporeTooLargeError):
            await reef.broadcast({"type": "x"})


async def test_a_handling_can_be_answered_changed_or_refused() -> None:
    """Whatever it returns or raises is what the handler returned or raised."""

    class Cache(Interceptor):
        async def handle(self, spore: Spore, agent: AgentDefinition, call_next: CallNext) -> Any:
            if spore.knowledge.get("cached"):
                return {"from": "cache"}
            if spore.knowledge.get("bad"):
                raise PermissionError("refused")
            result = await call_next(spore.replace(knowledge={**spore.knowledge, "extra": 1}))
            return {**result, "after": 2}

    async with Reef(echo, interceptors=[Cache()]) as reef:
        reply = await reef.request("echo", {"cached": True}, timeout=5)
        assert reply.knowledge == {"from": "cache"}
        reply = await reef.request("echo", {"n": 1}, timeout=5)
        assert reply.knowledge == {"n": 1, "extra": 1, "after": 2}
        with pytest.raises(RequestFailedError, match="refused"):
            await reef.request("echo", {"bad": True}, timeout=5)


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_interceptors_stand_around_each_attempt_and_both_kinds_of_handler(kind: str) -> None:
    """A retry passes the chain again."""
    log: list[str] = []

    def plain(spore: Spore) -> None:
        if spore.attempt == 1:
            raise ValueError("not yet")

    async def coroutine(spore: Spore) -> None:
        plain(spore)

    handler = plain if kind == "plain" else coroutine
    flaky = agent("flaky", retries=1, backoff=0)(handler)
    async with Reef(flaky, interceptors=[Tagged("t", log)]) as reef:
        await reef.broadcast({"type": "x"})
        await reef.wait_idle(5)
    assert log == ["t publish x", *["t > flaky", "t < flaky"] * 2]


async def test_a_filtered_spore_is_not_handled_and_so_not_intercepted() -> None:
    """The condition comes first."""
    log: list[str] = []
    never = conditional_agent("never", lambda spore: False)(echo.handler)
    async with Reef(never, interceptors=[Tagged("t", log)]) as reef:
        await reef.broadcast({"type": "x"})
        await reef.wait_idle(5)
        assert reef.ledger().filtered == 1
    assert log == ["t publish x"]


async def test_an_interceptor_that_is_not_enabled_is_left_out() -> None:
    """It is asked once, when the Reef is made."""
    log: list[str] = []

    class Sleeping(Tagged):
        asked = 0

        def enabled(self) -> bool:
            type(self).asked += 1
            return False

    async with Reef(echo, interceptors=[Sleeping("s", log)]) as reef:
        await reef.broadcast({"type": "x"})
        await reef.wait_idle(5)
    assert log == []
    assert Sleeping.asked == 1


async def test_an_interceptor_sees_the_cancellation_of_a_timed_out_handler() -> None:
    """Its own clean-up runs."""
    seen: list[str] = []

    class Witness(Interceptor):
        async def handle(self, spore: Spore, agent: AgentDefinition, call_next: CallNext) -> Any:
            try:
                return await call_next(spore)
            except BaseException as error:
                seen.append(type(error).__name__)
                raise

    @agent("slow", timeout=0.01)
    async def slow(spore: Spore) -> None:
        await asyncio.Event().wait()

    async with Reef(slow, interceptors=[Witness()]) as reef:
        await reef.broadcast({"type": "x"})
        await reef.wait_idle(5)
        assert reef.ledger().failed == 1
        assert [letter.reason.value for letter in reef.dead_letters()] == ["handler timed out"]
    assert seen == ["CancelledError"]
