"""The response cache: what is asked once, what is asked again, and where answers are kept."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from praval import achat, astream, configure, tool
from praval.errors import ConfigurationError
from praval.providers import (
    AnthropicProvider,
    BaseProvider,
    ChatRequest,
    Image,
    OpenAICompatibleProvider,
    OpenAIProvider,
    Response,
    Usage,
    cache,
    register_provider,
    usage,
)
from praval.providers.messages import Message, OutputSchema, ToolSpec
from praval.settings import Settings, current_settings
from praval.tools import clear_tools


class Counting(BaseProvider):
    """Numbers its answers."""

    any_loop = True

    def __init__(self, finish_reason: str = "stop") -> None:
        self.number = 0
        self.finish_reason = finish_reason

    async def respond(self, request: ChatRequest) -> Response:
        self.number += 1
        return Response(
            f"{self.number}",
            usage=Usage(10, 5),
            model="gpt-4o",
            finish_reason=self.finish_reason,
        )


@pytest.fixture
def model() -> Counting:
    found = Counting()
    register_provider("model", found)
    return found


async def test_nothing_is_kept_unless_that_is_wanted(model: Counting) -> None:
    """Two equal questions may well want two different answers."""
    assert [await achat("?", provider="model") for _ in range(2)] == ["1", "2"]


async def test_the_same_question_is_asked_and_paid_once(model: Counting) -> None:
    """By the call's wish or by the settings; the kept answer says that it is one."""
    first = await achat("?", provider="model", cache=True)
    second = await achat("?", provider="model", cache=True)
    assert (first, second) == ("1", "1")
    assert (first.cached, second.cached) == (False, True)
    assert (second.cost, second.usage.total_tokens, second.model) == (0.0, 0, "gpt-4o")
    assert usage().usage.total_tokens == 15
    configure({"performance": {"enable_caching": True}})
    assert await achat("?", provider="model") == "1"
    assert await achat("?", provider="model", cache=False) == "2"


async def test_streams_share_the_cache(model: Counting) -> None:
    """A kept answer comes in one piece."""
    for _ in range(2):
        async with astream("?", provider="model", cache=True) as stream:
            assert [piece async for piece in stream] == ["1"]
    assert stream.response.cached
    assert await achat("?", provider="model", cache=True) == "1"


DIFFERENT: dict[str, dict[str, Any]] = {
    "the question": {"message": "??"},
    "the system": {"system": "Be short."},
    "the model": {"model": "big"},
    "the temperature": {"temperature": 0.5},
    "the length": {"max_tokens": 5},
    "an option": {"seed": 1},
    "the history": {"history": [{"role": "user", "content": "a"}]},
    "an image": {"images": [Image(url="https://x.example/1")]},
    "the tools": {"tools": [max]},
    "the wanted type": {"returns": str},
}


@pytest.mark.parametrize("what", DIFFERENT)
async def test_whatever_changes_the_answer_is_part_of_the_key(model: Counting, what: str) -> None:
    """One thing at a time."""
    if what == "the tools":

        @tool
        def maximum() -> None: ...

        DIFFERENT[what]["tools"] = [maximum]
        clear_tools()
    await achat("?", provider="model", cache=True)
    with contextlib.suppress(Exception):  # a number is no JSON string
        await achat(**{"message": "?", "provider": "model", "cache": True, **DIFFERENT[what]})
    assert model.number >= 2


def test_the_key_covers_every_field_of_a_request_and_of_a_provider() -> None:
    """Whoever adds a field to either changes the key."""
    provider = OpenAICompatibleProvider("http://localhost:1/v1", model="a")
    base = ChatRequest(messages=(Message("user", "?"),))
    changes: dict[str, Any] = {
        "messages": (Message("user", "!"),),
        "model": "m",
        "temperature": 1.0,
        "max_tokens": 1,
        "tools": (ToolSpec("t", "", {}),),
        "output": OutputSchema("o", {}),
        "options": {"a": 1},
    }
    assert set(changes) | {"timeout"} == set(ChatRequest.__struct_fields__)
    keys = {cache.key_of("p", provider, base), cache.key_of("q", provider, base)}
    for name, value in changes.items():
        request = ChatRequest(**{"messages": base.messages, name: value})
        keys.add(cache.key_of("p", provider, request))
    for other in (
        OpenAICompatibleProvider("http://localhost:2/v1", model="a"),
        OpenAICompatibleProvider("http://localhost:1/v1", model="b"),
        OpenAICompatibleProvider("http://localhost:1/v1", model="a", temperature=1.0),
        OpenAICompatibleProvider("http://localhost:1/v1", model="a", max_tokens=1),
    ):
        keys.add(cache.key_of("p", other, base))
    assert len(keys) == 2 + len(changes) + 4
    later = ChatRequest(messages=base.messages, timeout=5.0)
    assert cache.key_of("p", provider, later) == cache.key_of("p", provider, base)


def test_what_a_provider_of_a_vendor_makes_of_a_request_is_part_of_the_key() -> None:
    """Its API, and the version of that."""
    request = ChatRequest(messages=(Message("user", "?"),))
    providers = (
        OpenAIProvider("k"),
        OpenAIProvider("k", api="responses"),
        AnthropicProvider("k"),
        AnthropicProvider("k", api_version="2023-06-01"),
    )
    assert len({cache.key_of("p", each, request) for each in providers}) == len(providers)


async def test_an_answer_that_was_cut_off_is_not_kept() -> None:
    """It would be given again and again."""
    register_provider("model", Counting(finish_reason="length"))
    assert [await achat("?", provider="model", cache=True) for _ in range(2)] == ["1", "2"]


async def test_a_store_that_fails_keeps_nobody_from_asking(
    model: Counting, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log tells of it."""

    async def broken(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(cache.MemoryStore, "get", broken)
    monkeypatch.setattr(cache.MemoryStore, "set", broken)
    assert await achat("?", provider="model", cache=True) == "1"
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


# -- stores ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A private Redis server; the suite needs the Debian package redis-server for it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("redis-server is not installed (Debian package redis-server)")
    process = subprocess.Popen(
        [program, "--port", str(port), "--save", "", "--dir", tmp_path_factory.mktemp("redis")],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(100_000):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> cache.Store:
    name = request.param
    if name == "redis":
        name = request.getfixturevalue("redis_url")
    configure({"performance": {"cache": name}})
    return cache.store_for(current_settings())


async def test_a_store_keeps_values_until_their_time_is_over(store: cache.Store) -> None:
    """Each in its way: memory, a file, Redis."""
    assert await store.get("k") is None
    await store.set("k", b"\0value", 60)
    assert await store.get("k") == b"\0value"
    await store.set("k", b"new", 60)
    assert await store.get("k") == b"new"
    await store.set("gone", b"x", 0.001)
    async with asyncio.timeout(5):
        while await store.get("gone") is not None:  # noqa: ASYNC110 - time has to pass
            await asyncio.sleep(0.001)


async def test_answers_of_each_store_are_whole(store: cache.Store, model: Counting) -> None:
    """Through the public call."""
    assert [await achat("?", provider="model", cache=True) for _ in range(2)] == ["1", "1"]
    assert model.number == 1


async def test_a_file_serves_the_next_process(model: Counting) -> None:
    """It lies in the data directory, readable for its user only."""
    configure({"performance": {"cache": "sqlite"}})
    await achat("?", provider="model", cache=True)
    cache.clear_caches()
    assert (await achat("?", provider="model", cache=True)).cached
    path = current_settings().data_path / cache.FILE
    assert path.stat().st_mode & 0o077 == 0


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not used for longest goes first."""
    monkeypatch.setattr(cache, "MAX_ENTRIES", 2)
    store = cache.MemoryStore()
    for key in "ab":
        await store.set(key, b"x", 60)
    await store.get("a")
    await store.set("c", b"x", 60)
    assert [await store.get(key) for key in "abc"] == [b"x", None, b"x"]


async def test_a_kept_answer_of_another_version_is_asked_for_again(model: Counting) -> None:
    """Nobody has to empty a cache after an upgrade."""
    store = cache.store_for(current_settings())
    await store.set("k", b'{"other": 1}', 60)
    assert await cache.find(store, "k") is None


def test_a_store_that_does_not_exist_is_refused() -> None:
    """The error lists what there is; the password of an address does not show."""
    settings = Settings()
    configure({"performance": {"cache": "disk"}})
    with pytest.raises(ConfigurationError, match="memory"):
        cache.store_for(current_settings())
    configure({"performance": {"cache": "redis://user:secret@host/0"}})
    assert "secret" not in repr(current_settings())
    assert "memory" in repr(settings)
