"""praval.testing's models: answers of tape, and a ban on real ones."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from praval import Reef, Spore, achat, agent, astream, chat
from praval.errors import ConfigurationError, OverloadedError, PravalError, ProviderError
from praval.providers import BaseProvider, Response, ToolCall, Usage, register_provider
from praval.testing.models import (
    FunctionModel,
    ModelCall,
    RealModelError,
    ScriptedModel,
    ScriptExhaustedError,
    forbid_real_models,
    use_model,
)


async def test_a_script_is_read_in_order_and_every_call_is_kept() -> None:
    """With its messages, model and options, so that a test can look at the prompt."""
    model = ScriptedModel(["one", "two"])
    with use_model(model):
        assert await achat("First?", system="Count.", model="m", temperature=0) == "one"
        assert await asyncio.to_thread(chat, "Second?") == "two"
    assert model.calls == [
        ModelCall(
            [{"role": "system", "content": "Count."}, {"role": "user", "content": "First?"}],
            "m",
            {"temperature": 0},
        ),
        ModelCall([{"role": "user", "content": "Second?"}], None, {}),
    ]
    assert [call.prompt for call in model.calls] == ["First?", "Second?"]


async def test_a_script_that_runs_out_says_how_often_it_was_asked() -> None:
    """A failed assertion, so that no except clause for model errors hides it."""
    model = ScriptedModel(["one"])
    with use_model(model):
        await achat("First?")
        with pytest.raises(ScriptExhaustedError, match=r"has 1 answers.*asked 2 times.*Second\?"):
            await achat("Second?")
        with pytest.raises(ScriptExhaustedError, match="asked 3 times"):
            await achat("Third?")
    assert issubclass(ScriptExhaustedError, AssertionError)
    assert issubclass(ScriptExhaustedError, PravalError)
    assert len(model.calls) == 3


async def test_a_script_can_repeat_its_last_answer() -> None:
    """For agents that ask an unknown number of times."""
    with use_model(ScriptedModel(["one", "two"], repeat_last=True)):
        assert [await achat("?") for _ in range(4)] == ["one", "two", "two", "two"]


async def test_an_exception_in_a_script_is_raised() -> None:
    """So that a test can see what an agent does when its model fails."""
    with use_model(ScriptedModel([ProviderError("down"), "up again"])):
        with pytest.raises(ProviderError, match="down"):
            await achat("?")
        assert await achat("?") == "up again"


@pytest.mark.parametrize("answers", ["one string", [1], [None]])
def test_a_script_of_something_else_is_refused(answers: Any) -> None:
    """A single string would be read letter by letter."""
    with pytest.raises(ConfigurationError):
        ScriptedModel(answers)


def test_a_script_with_nothing_to_repeat_is_refused() -> None:
    """repeat_last needs a last answer."""
    with pytest.raises(ConfigurationError, match="no last answer"):
        ScriptedModel([], repeat_last=True)


async def test_many_threads_read_one_script_without_losing_or_doubling_a_line() -> None:
    """Each answer is given exactly once."""
    expected = [str(number) for number in range(200)]
    with use_model(ScriptedModel(expected)):
        got = await asyncio.gather(*(asyncio.to_thread(chat, "?") for _ in expected))
    assert sorted(got, key=int) == expected


async def test_a_function_answers_plainly_or_after_awaiting() -> None:
    """Both kinds see the messages; what they raise or return otherwise is passed on or refused."""

    async def slowly(messages: Any) -> str:
        await asyncio.sleep(0)
        return str(messages[-1]["content"]).upper()

    with use_model(FunctionModel(lambda messages: f"{len(messages)} messages")):
        assert await achat("hello", system="be nice") == "2 messages"
        assert await asyncio.to_thread(chat, "hello") == "1 messages"
    with use_model(FunctionModel(slowly)):
        assert await achat("hello") == "HELLO"
    wrong: Any = FunctionModel(lambda messages: 5)  # type: ignore[arg-type,return-value]
    with use_model(wrong), pytest.raises(ProviderError, match="returned int"):
        await achat("hello")


async def test_use_model_answers_for_every_provider_and_for_agents_that_run_already() -> None:
    """Named, unknown or none: the model in use answers, wherever the call comes from."""

    @agent("asker", provider="openai")
    def asker(spore: Spore) -> dict[str, str]:
        return {"text": chat("?")}

    model = FunctionModel(lambda messages: "mine")
    async with Reef(asker) as reef:
        with use_model(model):
            assert await achat("?", provider="anthropic") == "mine"
            assert await achat("?", provider="no such provider", model="none") == "mine"
            reply = await reef.request("asker", {"type": "go"}, timeout=10)
            assert reply.knowledge["text"] == "mine"
    assert len(model.calls) == 3


def test_a_test_model_answers_on_whichever_loop_asks() -> None:
    """It belongs to none, so that a test's order of events does not depend on other loops."""
    loops: list[asyncio.AbstractEventLoop] = []

    async def answer(messages: Any) -> str:
        loops.append(asyncio.get_running_loop())
        return "fine"

    async def main() -> asyncio.AbstractEventLoop:
        await achat("?")
        return asyncio.get_running_loop()

    with use_model(FunctionModel(answer)):
        chat("?")
        mine = asyncio.run(main())
    assert loops[0] is not mine
    assert loops[1] is mine


class MyError(Exception):
    """What a test lets its model raise."""


async def test_use_model_nests_and_restores_even_after_an_error() -> None:
    """The innermost wins; afterwards everything is as before."""
    register_provider("usual", ScriptedModel(["usual"], repeat_last=True))
    outer = ScriptedModel(["outer"], repeat_last=True)
    with use_model(outer) as used:
        assert used is outer
        with pytest.raises(MyError), use_model(ScriptedModel([MyError()])):
            await achat("?")
        assert await achat("?") == "outer"
    assert await achat("?", provider="usual") == "usual"


def test_use_model_takes_only_a_provider() -> None:
    """Not a string, for instance."""
    with pytest.raises(ProviderError, match="takes a provider"), use_model("answer"):  # type: ignore[arg-type]
        pass


class Real(BaseProvider):
    """Not of praval.testing."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def chat(self, messages: Any, model: str | None = None) -> str:
        self.asked.set()
        return "real"


async def test_forbidden_real_models_raise_before_they_are_asked() -> None:
    """Registered, built in or the first available; in both forms of the call."""
    real = Real()
    with forbid_real_models():
        for provider in (None, "local", "openai_compatible", "real"):
            if provider == "real":
                register_provider("real", real)
            with pytest.raises(RealModelError, match="real ones are forbidden"):
                await achat("?", provider=provider)
            with pytest.raises(RealModelError, match="real ones are forbidden"):
                await asyncio.to_thread(chat, "?", provider=provider)
    assert not real.asked.is_set()
    assert await achat("?", provider="real") == "real"


async def test_test_models_answer_while_real_ones_are_forbidden() -> None:
    """Through use_model and through register_provider."""
    register_provider("scripted", ScriptedModel(["registered"]))
    with forbid_real_models():
        assert await achat("?", provider="scripted") == "registered"
        with use_model(ScriptedModel(["used"])):
            assert await achat("?", provider="openai") == "used"


def test_the_ban_holds_from_the_call_on() -> None:
    """A conftest.py calls it once; nothing needs to be entered."""
    register_provider("real", Real())
    ban = forbid_real_models()
    try:
        with pytest.raises(RealModelError):
            chat("?", provider="real")
    finally:
        ban.__exit__(None, None, None)
    assert chat("?", provider="real") == "real"


async def test_a_test_model_may_call_tools_and_tell_of_usage() -> None:
    """A script's entries may be whole responses."""
    calls = [ToolCall("call_1", "double", '{"n": 4}')]
    script = [Response(tool_calls=calls, usage=Usage(1, 1)), "8"]

    def double(n: int) -> int:
        return 2 * n

    with use_model(ScriptedModel(script)) as model:
        assert await achat("2 * 4?", tools=[double]) == "8"
    assert isinstance(model, ScriptedModel)
    assert model.calls[1].messages[-1]["content"] == "8"
    assert model.calls[0].options["tools"][0]["function"]["name"] == "double"


async def test_failures_of_a_test_model_are_not_remembered_of_the_provider_it_stands_for() -> None:
    """No circuit opens for the next test."""
    for _ in range(7):
        with (
            use_model(ScriptedModel([OverloadedError("busy", 501)])),
            pytest.raises(OverloadedError),
        ):
            await achat("?", provider="openai")
    with use_model(ScriptedModel(["fine"])):
        assert await achat("?", provider="openai") == "fine"


@pytest.mark.parametrize("provider", ["openai", "anthropic", "cohere", "local", ["openai", "x"]])
async def test_no_real_provider_is_asked_while_they_are_forbidden(provider: Any) -> None:
    """Not even as a link of a chain; nothing is sent."""
    register_provider("x", ScriptedModel(["fine"]))
    with forbid_real_models():
        with pytest.raises(RealModelError):
            await achat("?", provider=provider)
        with pytest.raises(RealModelError):
            async for _ in astream("?", provider=provider):
                pass
