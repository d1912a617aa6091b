"""Providers and event loops: who works where, and what happens when a loop ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Coroutine
from importlib import import_module
from typing import Any

import pytest
from dialects import Compatible

from praval import achat
from praval.providers import (
    BaseProvider,
    ChatRequest,
    Message,
    OpenAICompatibleProvider,
    accounts,
    budgets,
    cache,
    history,
    register_provider,
    registry,
)
from praval.testing import ModelServer, Reply
from praval.testing.model_server import PATIENCE


class Connected(BaseProvider):
    """Keeps something that belongs to a loop, as a client with open connections does."""

    def __init__(self, ends: bool = True) -> None:
        self.answered_on: list[asyncio.AbstractEventLoop] = []
        self.closed_on: list[asyncio.AbstractEventLoop] = []
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.ends = ends

    async def achat(self, messages: Any, model: str | None = None, **options: Any) -> str:
        self.answered_on.append(asyncio.get_running_loop())
        self.begun.set()
        try:
            if not self.ends:
                await asyncio.Event().wait()
        finally:
            self.ended.set()
        return "answer"

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.closed_on.append(asyncio.get_running_loop())


class LoopThread:
    """An event loop that runs in another thread until the end of the block."""

    def __enter__(self) -> LoopThread:
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self.thread.start()
        assert self.ready.wait(10)
        return self

    async def _main(self) -> None:
        self.loop, self.stop = asyncio.get_running_loop(), asyncio.Event()
        self.ready.set()
        await self.stop.wait()

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)


async def test_a_provider_works_on_one_loop_while_that_runs() -> None:
    """Calls from a second loop are carried to the first: its connections live there."""
    provider = Connected()
    register_provider("mine", provider)
    with LoopThread() as other:
        await asyncio.to_thread(other.run, achat("Hello", provider="mine"))
        assert await achat("Hello", provider="mine") == "answer"
        assert provider.answered_on == [other.loop, other.loop]
    assert provider.closed_on == [other.loop]
    assert await achat("Hello", provider="mine") == "answer"
    assert provider.answered_on[2:] == [asyncio.get_running_loop()]


@pytest.mark.every_loop
async def test_a_carried_call_can_be_cancelled() -> None:
    """Cancellation travels to the loop on which the provider works."""
    provider = Connected(ends=False)
    register_provider("mine", provider)
    with LoopThread() as other:
        asyncio.run_coroutine_threadsafe(_claim(provider), other.loop).result(10)
        call = asyncio.create_task(achat("Hello", provider="mine"))
        assert await asyncio.to_thread(provider.begun.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(provider.ended.wait, 10)
    assert provider.answered_on == [other.loop]


async def _claim(provider: BaseProvider) -> None:
    assert await registry.claim(provider) is asyncio.get_running_loop()


def test_a_provider_that_moved_on_is_not_closed_by_the_loop_it_left() -> None:
    """A loop may pause between two runs; when it ends, it closes only what is still its own."""
    provider = Connected()
    register_provider("mine", provider)
    with asyncio.Runner() as first:
        first.run(achat("Hello", provider="mine"))
        with asyncio.Runner() as second:
            second.run(achat("Hello", provider="mine"))
            first.close()
            assert provider.closed_on == []
            assert second.run(achat("Hello", provider="mine")) == "answer"
    assert provider.closed_on == [provider.answered_on[1]]


def test_each_loop_that_ends_closes_what_worked_on_it_once() -> None:
    """asyncio.run twice: closed twice, on the right loop, before the loop is gone."""
    provider = Connected()
    register_provider("mine", provider)

    async def main() -> None:
        await asyncio.gather(*(achat("Hello", provider="mine") for _ in range(3)))

    for _ in range(2):
        asyncio.run(main())
    assert len(provider.answered_on) == 6
    assert provider.closed_on == [provider.answered_on[0], provider.answered_on[3]]


def test_a_provider_that_fails_to_close_does_not_keep_others_open() -> None:
    """Its error goes to the loop's exception handler."""
    reported: list[str] = []

    class Broken(Connected):
        async def aclose(self) -> None:
            raise OSError("cannot close")

    good, broken = Connected(), Broken()
    for name, provider in (("good", good), ("broken", broken)):
        register_provider(name, provider)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: reported.append(str(context.get("exception")))
        )
        for name in ("good", "broken"):
            await achat("Hello", provider=name)

    asyncio.run(main())
    assert good.closed_on == good.answered_on
    assert reported == ["cannot close"]


def test_a_built_in_provider_is_made_once_per_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lazily, at the first call; even when many first calls come at once."""
    monkeypatch.setattr(registry, "BUILTIN", {"test": f"{__name__}:make"})
    made.clear()

    async def main() -> None:
        await asyncio.gather(*(achat("Hello", provider="test") for _ in range(20)))

    for _ in range(2):
        asyncio.run(main())
    used = [provider for provider in made if provider.answered_on]
    assert [len(provider.answered_on) for provider in used] == [20, 20]
    assert [provider.closed_on for provider in used] == [
        [provider.answered_on[0]] for provider in used
    ]


made: list[Connected] = []


def make() -> Connected:
    made.append(Connected())
    return made[-1]


async def test_a_stream_that_is_cancelled_just_as_it_begins_is_closed() -> None:
    """The answer has arrived, and whoever waits for it is cancelled before it is taken."""
    dialect = Compatible()
    async with ModelServer(dialect) as server:
        head, *_ = dialect.events(["a", "b"])
        server.reply(Reply([head], ends="never"))
        provider = OpenAICompatibleProvider(server.url, model="m")
        client = await provider._open()
        arrived = asyncio.Event()
        send = client.send

        async def sending(*args: Any, **options: Any) -> Any:
            response = await send(*args, **options)
            arrived.set()  # wakes this test before the one who waits for the response
            return response

        client.send = sending  # type: ignore[method-assign]
        source = provider.stream(ChatRequest(messages=(Message("user", "?"),)))
        first = asyncio.ensure_future(anext(source))
        await arrived.wait()
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        assert await asyncio.to_thread(server.deserted.acquire, timeout=PATIENCE)
        await provider.aclose()


@pytest.mark.parametrize("form", ["whole", "streamed"])
async def test_a_call_that_is_cancelled_at_any_step_loses_no_connection(form: str) -> None:
    """Of the hundred that a provider may have: what is lost is never used or closed again."""
    dialect = Compatible()
    async with ModelServer(dialect) as server:
        body = dialect.events(["a", "b"]) if form == "streamed" else [dialect.text("fine")]
        server.reply(Reply(body))
        provider = OpenAICompatibleProvider(server.url, model="m")
        request = ChatRequest(messages=(Message("user", "?"),))

        async def call() -> None:
            if form == "whole":
                await provider.respond(request)
                return
            async with contextlib.aclosing(provider.stream(request)) as pieces:
                async for _ in pieces:
                    pass

        client = await provider._open()
        for steps in range(60):  # few at once, so that some connections are new and some are not
            calls = [asyncio.create_task(call()) for _ in range(4)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for each in calls:
                each.cancel()
            await asyncio.wait(calls)
        pool = client._transport._pool  # type: ignore[attr-defined]
        assert not pool._requests
        assert all(each.is_idle() for each in pool.connections), pool.connections
        await provider.aclose()


LOCKS = {
    "accounts": accounts._lock,
    "budgets": budgets._known_lock,
    "cache": cache._lock,
    "history": history._lock,
    "tools": import_module("praval.tools.tool")._lock,  # the name in the package is the decorator
}


@pytest.mark.parametrize("lock", LOCKS.values(), ids=LOCKS)
def test_a_forked_child_waits_for_no_thread_of_its_parent(lock: threading.Lock) -> None:
    """A thread that is at work in the moment of the fork does not exist in the child."""
    busy, end = threading.Event(), threading.Event()

    def work() -> None:
        while not end.is_set():
            with lock:
                busy.set()
                time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    busy.wait()
    child = os.fork()
    if not child:
        os._exit(0 if lock.acquire(timeout=PATIENCE) else 1)
    _, status = os.waitpid(child, 0)
    end.set()
    thread.join()
    assert status == 0
