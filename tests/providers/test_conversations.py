"""What surrounds a question: streams, history, images, wanted types, usage, prices, budgets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import pydantic
import pytest

from praval import Agent, Reef, Spore, achat, agent, astart_agents, astream, broadcast, chat
from praval.errors import (
    ConfigurationError,
    ModelBudgetError,
    ProviderTimeoutError,
    RequestFailedError,
    StructuredOutputError,
)
from praval.providers import (
    BaseProvider,
    Budgets,
    ChatRequest,
    Image,
    Message,
    Response,
    Usage,
    budget,
    history,
    register_provider,
    set_price,
    usage,
)
from praval.testing import FunctionModel, ScriptedModel

PATIENCE = 10.0
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 8


class Echo(BaseProvider):
    """Answers with the last turn; keeps what it was asked; each call uses 10 + 5 tokens."""

    any_loop = True

    def __init__(self, model: str = "gpt-4o") -> None:
        self.model = model
        self.requests: list[ChatRequest] = []

    async def respond(self, request: ChatRequest) -> Response:
        self.requests.append(request)
        return Response(request.messages[-1].content, usage=Usage(10, 5), model=self.model)

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(each.role, each.content) for each in self.requests[-1].messages]


@pytest.fixture
def echo() -> Echo:
    model = Echo()
    register_provider("echo", model)
    return model


# -- the answer ------------------------------------------------------------------------------


async def test_an_answer_is_a_string_that_knows_more(echo: Echo) -> None:
    """It goes wherever a string goes: into JSON, into a spore, through replace()."""
    answer = await achat("one two", provider="echo")
    assert answer == "one two"
    assert answer.replace("one", "three") == "three two"
    assert json.dumps({"a": answer}) == '{"a": "one two"}'
    assert type(answer.text) is str
    assert (answer.provider, answer.model, answer.cached) == ("echo", "gpt-4o", False)
    assert Spore.create({"a": answer, "b": [answer]}).knowledge == {"a": answer, "b": [answer]}

    @agent("worker")
    async def worker(spore: Spore) -> dict[str, str]:
        return {"said": await achat("hello", provider="echo")}

    async with Reef(worker) as reef:
        reply = await reef.request("worker", {"type": "x"}, timeout=PATIENCE)
        assert reply.knowledge == {"said": "hello"}
        assert type(reply.knowledge["said"]) is str


# -- streams ---------------------------------------------------------------------------------


class Slow(BaseProvider):
    """Streams what it is told to, piece by piece, and notes how it ended."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.loops: set[asyncio.AbstractEventLoop] = set()

    async def respond(self, request: ChatRequest) -> Response:
        raise AssertionError("it was asked for a stream")

    async def stream(self, request: ChatRequest) -> AsyncGenerator[str | Response, None]:
        try:
            for number in range(3):
                self.loops.add(asyncio.get_running_loop())
                yield f"{number} "
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def test_a_stream_that_is_left_ends_its_source() -> None:
    """By leaving the block, and by a plain break once the stream is forgotten."""
    register_provider("slow", slow := Slow())
    async with astream("?", provider="slow") as stream:
        async for _ in stream:
            break
    assert slow.ended.is_set()
    with pytest.raises(ConfigurationError, match="complete"):
        stream.response  # noqa: B018


async def test_a_stream_has_its_time_limit() -> None:
    """The whole of it; the error is a TimeoutError."""
    register_provider("slow", slow := Slow())
    pieces = []

    async def read() -> None:
        async for piece in astream("?", provider="slow", timeout=0.05):
            pieces.append(piece)

    with pytest.raises(ProviderTimeoutError, match=r"within 0\.05 s"):
        await read()
    assert pieces == ["0 ", "1 ", "2 "]
    assert slow.ended.is_set()


async def test_a_provider_without_streams_answers_in_one_piece(echo: Echo) -> None:
    """Whatever form it has."""
    register_provider("function", FunctionModel(lambda messages: "whole"))

    class Plain(BaseProvider):
        def chat(self, messages: Any, model: str | None = None) -> str:
            return "plain"

    register_provider("plain", Plain())
    for name, expected in {"echo": "hello", "function": "whole", "plain": "plain"}.items():
        async with astream("hello", provider=name) as stream:
            assert [piece async for piece in stream] == [expected]
        assert stream.response == expected


async def test_a_stream_in_a_plain_handler_is_carried_to_the_loop_of_its_reef() -> None:
    """asyncio.run() inside a thread works with a provider that belongs to the Reef's loop."""
    register_provider("slow", slow := Slow())

    async def read() -> list[str]:
        pieces = []
        async with astream("?", provider="slow") as stream:
            async for piece in stream:
                pieces.append(piece)
                if len(pieces) == 3:
                    break
        return pieces

    @agent("worker")
    def worker(spore: Spore) -> dict[str, Any]:
        return {"pieces": asyncio.run(read())}

    async with Reef(worker) as reef:
        reply = await reef.request("worker", {"type": "x"}, timeout=PATIENCE)
    assert reply.knowledge == {"pieces": ["0 ", "1 ", "2 "]}
    assert slow.loops == {asyncio.get_running_loop()}
    assert slow.ended.is_set()


async def test_an_agent_streams_as_itself(echo: Echo) -> None:
    """With its identity."""
    pieces = Agent("x", "Be short.", provider="echo").astream("hello")
    assert [piece async for piece in pieces] == ["hello"]
    assert echo.said == [("system", "Be short."), ("user", "hello")]


# -- history and images ----------------------------------------------------------------------


async def test_turns_before_the_question_are_sent_in_order(echo: Echo) -> None:
    """As dicts or as Messages."""
    before = [{"role": "user", "content": "a"}, Message("assistant", "b")]
    await achat("c", provider="echo", system="s", history=before)
    assert echo.said == [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    with pytest.raises(ConfigurationError, match="role"):
        await achat("c", provider="echo", history=[{"role": "nobody", "content": "x"}])


async def test_a_named_conversation_goes_on(echo: Echo) -> None:
    """Plain and async, streamed or not; others do not see it."""
    await achat("a", provider="echo", history="h")
    async for _ in astream("b", provider="echo", history="h"):
        pass
    await achat("c", provider="echo", history="h")
    assert [content for _, content in echo.said] == ["a", "a", "b", "b", "c"]
    await achat("d", provider="echo", history="other")
    assert echo.said == [("user", "d")]


def test_plain_code_continues_conversations_too() -> None:
    """Also with a plain provider, in the calling thread."""

    class Plain(BaseProvider):
        def chat(self, messages: Any, model: str | None = None) -> str:
            return " ".join(each["content"] for each in messages)

    register_provider("plain", Plain())
    assert [chat("a", provider="plain", history="h") for _ in range(3)] == [
        "a",
        "a a a",
        "a a a a a a a",
    ]


async def test_a_conversation_is_bounded(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest turns go first, and so do the conversations that were not used for longest."""
    monkeypatch.setattr(history, "MAX_TURNS", 4)
    monkeypatch.setattr(history, "MAX_CONVERSATIONS", 2)
    for number in range(5):
        await achat(str(number), provider="echo", history="h")
    assert [content for _, content in echo.said] == ["2", "2", "3", "3", "4"]
    for name in ("i", "j"):
        await achat("x", provider="echo", history=name)
    await achat("y", provider="echo", history="h")
    assert echo.said == [("user", "y")]


async def test_a_handlers_conversation_is_that_of_its_spores_correlation(echo: Echo) -> None:
    """Each agent has its own; another tree begins anew; outside handlers there is none."""
    seen: dict[str, list[Any]] = {"first": [], "second": []}

    @agent("first", provider="echo", responds_to=["begin"])
    async def first(spore: Spore) -> None:
        for _ in range(2):
            await achat(spore.knowledge["text"], history=True)
            seen["first"].append(len(echo.said))
        broadcast({"type": "next", "text": "n"})

    @agent("second", provider="echo", responds_to=["next"])
    async def second(spore: Spore) -> None:
        await achat(spore.knowledge["text"], history=True)
        seen["second"].append(len(echo.said))

    async with Reef(first, second) as reef:
        for text in "ab":
            await reef.broadcast({"type": "begin", "text": text})
            await reef.wait_idle(PATIENCE)
    assert seen == {"first": [1, 3, 1, 3], "second": [1, 1]}
    with pytest.raises(ConfigurationError, match="history=True"):
        await achat("x", provider="echo", history=True)


async def test_images_come_from_paths_bytes_and_addresses(echo: Echo, tmp_path: Path) -> None:
    """Read off the loop; the type is that of the bytes, whatever the name says."""
    path = tmp_path / "picture.txt"
    path.write_bytes(PNG)
    await achat("?", provider="echo", images=[path, str(path), PNG, "https://x.example/y"])
    images = echo.requests[0].messages[-1].images
    assert [image.media_type for image in images] == ["image/png"] * 3 + [""]
    assert images[3].address == "https://x.example/y"
    assert images[0].address.startswith("data:image/png;base64,iVBOR")


async def test_a_provider_with_a_plain_chat_gets_images_in_the_usual_shape() -> None:
    """As parts of the content, like OpenAI's."""
    register_provider("model", model := ScriptedModel(["a"]))
    await achat("?", provider="model", images=[PNG])
    (text, image) = model.calls[0].messages[-1]["content"]
    assert text == {"type": "text", "text": "?"}
    assert image["image_url"]["url"].startswith("data:image/png")


@pytest.mark.parametrize(
    ("source", "said"),
    [(b"text", "PNG"), ("/no/such/file", "cannot be read"), (5, "not int"), (b"", "PNG")],
)
def test_what_is_no_image_is_refused(source: Any, said: str) -> None:
    """The error says what is accepted."""
    with pytest.raises(ConfigurationError, match=said):
        Image.of(source)


# -- wanted types ----------------------------------------------------------------------------


@dataclass
class Report:
    title: str
    score: int = 0


class Struct(msgspec.Struct):
    kind: Literal["a", "b"]


class Model(pydantic.BaseModel):
    size: int = pydantic.Field(gt=0)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Report, '{"title": "T", "score": 3}', Report("T", 3)),
        (Struct, '{"kind": "b"}', Struct("b")),
        (Model, '{"size": 2}', Model(size=2)),
        (list[int], '{"value": [1, 2]}', [1, 2]),
        (dict[str, float], '{"value": {"a": 1}}', {"a": 1.0}),
        (bool, '{"value": true}', True),
        (Report, 'Here:\n```json\n{"title": "T"}\n```\nDone.', Report("T")),
    ],
    ids=str,
)
async def test_an_answer_becomes_a_value_of_the_wanted_type(
    kind: Any, text: str, value: Any
) -> None:
    """Of any kind; a code fence around the JSON does no harm."""
    register_provider("model", model := ScriptedModel([text]))
    assert await achat("?", provider="model", returns=kind) == value
    assert "JSON schema" in model.calls[0].messages[0]["content"], "told in words"


async def test_an_answer_that_does_not_fit_is_sent_back_once() -> None:
    """With what is wrong; the second answer counts, and both are paid."""
    register_provider("model", model := ScriptedModel(['{"title": 5}', '{"title": "T"}']))
    assert await achat("?", provider="model", returns=Report) == Report("T")
    *_, answer, complaint = model.calls[1].messages
    assert answer == {"role": "assistant", "content": '{"title": 5}'}
    assert "$.title" in complaint["content"]
    assert usage().calls == 2


@pytest.mark.parametrize("text", ["no JSON", '{"size": 0}', "[]", ""])
async def test_after_one_repair_the_error_quotes_the_answer(text: str) -> None:
    """There is no third attempt; pydantic's own rules count too."""
    register_provider("model", model := ScriptedModel([text] * 2))
    with pytest.raises(StructuredOutputError, match="gave no Model") as caught:
        await achat("?", provider="model", returns=Model)
    assert repr(text) in str(caught.value)
    assert len(model.calls) == 2


async def test_a_provider_that_takes_schemas_is_given_one(echo: Echo) -> None:
    """And no words about it."""
    with pytest.raises(StructuredOutputError):
        await achat("?", provider="echo", returns=Report)
    output = echo.requests[0].output
    assert output is not None
    assert (output.name, output.schema["required"]) == ("Report", ["title"])
    assert echo.requests[0].messages == (Message("user", "?"),)


def test_plain_code_wants_types_too() -> None:
    """chat(returns=) and Agent.chat(returns=)."""
    register_provider("model", ScriptedModel(['{"title": "T"}'] * 2))
    assert chat("?", provider="model", returns=Report) == Report("T")
    assert Agent("x", provider="model").chat("?", returns=Report) == Report("T")


async def test_a_type_that_json_cannot_express_is_refused() -> None:
    """Before anything is asked."""
    register_provider("model", model := ScriptedModel([]))
    with pytest.raises(ConfigurationError, match="cannot be asked for"):
        await achat("?", provider="model", returns=object)
    assert not model.calls


# -- usage, prices, budgets ------------------------------------------------------------------


async def test_usage_is_summed_per_agent_session_and_spore(echo: Echo) -> None:
    """And over all; calls outside agents are in the last only."""
    spores: list[Spore] = []

    @agent("first", provider="echo", responds_to=["begin"])
    async def first(spore: Spore) -> dict[str, Any]:
        spores.append(spore)
        await asyncio.gather(achat("a"), achat("b"))
        return {"type": "next"}

    @agent("second", provider="echo", responds_to=["next"])
    def second(spore: Spore) -> None:
        chat("c")

    result = await astart_agents(first, second, initial_data={"type": "begin"})
    await astart_agents(first, second, initial_data={"type": "begin"})
    await achat("d", provider="echo")
    assert usage(agent="first").usage == Usage(40, 20)
    assert (usage(agent="second").calls, usage(session=result).calls) == (2, 3)
    assert usage(spore=spores[0]).usage.total_tokens == 30
    assert usage().calls == 7
    assert usage(agent="nobody").calls == 0
    with pytest.raises(ConfigurationError):
        usage(agent="first", spore="x")


async def test_a_price_makes_a_cost(echo: Echo) -> None:
    """10 tokens in and 5 out of a model with a built-in price, an own one, and none."""
    answer = await achat("?", provider="echo")
    assert answer.cost == pytest.approx((10 * 2.5 + 5 * 10) / 1e6)
    set_price("mine", input=1.0, output=2.0)
    echo.model = "mine-2026-01-31"
    assert (await achat("?", provider="echo")).cost == pytest.approx(20 / 1e6)
    echo.model = "mine-too"
    assert (await achat("?", provider="echo")).cost is None
    account = usage()
    assert account.cost == pytest.approx(75e-6 + 20e-6)
    assert account.unpriced == 1


async def test_prices_come_from_a_file_of_the_user(
    echo: Echo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PRAVAL_PRICES, or prices.json in the data directory; a bad one is an error."""
    path = tmp_path / "mine.json"
    path.write_text('{"gpt-4o": {"input": 100, "output": 0, "cached": 1}}')
    monkeypatch.setenv("PRAVAL_PRICES", str(path))
    assert (await achat("?", provider="echo")).cost == pytest.approx(1000 / 1e6)


async def test_a_bad_file_of_prices_is_an_error(
    echo: Echo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the file and shows the form."""
    path = tmp_path / "mine.json"
    path.write_text('{"gpt-4o": {"inputs": 100}}')
    monkeypatch.setenv("PRAVAL_PRICES", str(path))
    with pytest.raises(ConfigurationError, match=r"mine.json is no table.*dollars"):
        await achat("?", provider="echo")


async def test_a_spent_budget_refuses_further_calls(echo: Echo) -> None:
    """Of tokens and of money; the call that exceeds it is still answered."""
    with budget(tokens=20) as limit:
        await achat("?", provider="echo")
        await achat("?", provider="echo")
        assert limit.used_tokens == 30
        with pytest.raises(ModelBudgetError, match=r"20 tokens is spent \(30"):
            await achat("?", provider="echo")
        with pytest.raises(ModelBudgetError):
            async for _ in astream("?", provider="echo"):
                pass
    with budget(cost=0.00001):
        await achat("?", provider="echo")
        with pytest.raises(ModelBudgetError, match=r"\$1e-05 is spent"):
            await achat("?", provider="echo")
    await achat("?", provider="echo")
    assert len(echo.requests) == 4


async def test_a_budget_inside_a_budget_is_charged_to_both(echo: Echo) -> None:
    """And refused by either."""
    with budget(tokens=40) as outer:
        with budget(tokens=10):
            await achat("?", provider="echo")
            with pytest.raises(ModelBudgetError, match="10 tokens"):
                await achat("?", provider="echo")
        assert outer.used_tokens == 15


async def test_a_budget_travels_with_spores_and_is_enforced_downstream(echo: Echo) -> None:
    """Two agents away; sisters share one account; other trees are not limited."""
    asked: list[str] = []

    @agent("first", responds_to=["begin"])
    async def first(spore: Spore) -> None:
        for _ in range(3):
            broadcast({"type": "work", "of": spore.knowledge["of"]})

    @agent("second", provider="echo", responds_to=["work"])
    async def second(spore: Spore) -> None:
        await achat("?")
        asked.append(spore.knowledge["of"])

    async with Reef(first, second, interceptors=[Budgets()]) as reef:
        with budget(tokens=20) as limit:
            await reef.broadcast({"type": "begin", "of": "poor"})
        await reef.broadcast({"type": "begin", "of": "rich"})
        await reef.wait_idle(PATIENCE)
        (letter,) = reef.dead_letters()
    assert sorted(asked) == ["poor", "poor", "rich", "rich", "rich"]
    assert "ModelBudgetError" in letter.error
    assert limit.used_tokens == 30


async def test_a_budget_that_comes_from_another_host_holds_here(echo: Echo) -> None:
    """What its header says was used there counts; a header that is none does no harm."""

    @agent("worker", provider="echo")
    async def worker(spore: Spore) -> str:
        return await achat("?")

    header = '{"id": "elsewhere", "tokens": 20, "used_tokens": 10}'
    async with Reef(worker) as reef:
        options = {"timeout": PATIENCE, "headers": {"praval-budget": header}}
        await reef.request("worker", {"type": "x"}, **options)
        with pytest.raises(RequestFailedError, match="budget"):
            await reef.request("worker", {"type": "x"}, **options)
        options["headers"] = {"praval-budget": "{nonsense"}
        await reef.request("worker", {"type": "x"}, **options)


async def test_what_was_spent_on_another_host_is_known_when_its_spore_comes_back(
    echo: Echo,
) -> None:
    """The account at home learns of it, and so does that of the budget around it."""

    @agent("home", provider="echo")
    async def home(spore: Spore) -> str:
        return await achat("?")

    async with Reef(home, interceptors=[Budgets()]) as reef:
        with budget(tokens=1_000) as outer, budget(tokens=100) as inner:
            header = json.loads(inner.header())
            assert (header["tokens"], header["inside"]["tokens"]) == (100, 1_000)
            header["used_tokens"] = header["inside"]["used_tokens"] = 90
            options = {"timeout": PATIENCE, "headers": {"praval-budget": json.dumps(header)}}
        await reef.request("home", {"type": "x"}, **options)
        with pytest.raises(RequestFailedError, match="100 tokens is spent"):
            await reef.request("home", {"type": "x"}, **options)
    assert (inner.used_tokens, outer.used_tokens) == (105, 105)


async def test_the_budget_around_a_budget_travels_too(echo: Echo) -> None:
    """On another host the outer one holds as well."""

    @agent("worker", provider="echo")
    async def worker(spore: Spore) -> str:
        return await achat("?")

    outer = {"id": "around", "tokens": 10}
    header = json.dumps({"id": "within", "tokens": 1_000, "inside": outer})
    async with Reef(worker) as reef:
        options = {"timeout": PATIENCE, "headers": {"praval-budget": header}}
        await reef.request("worker", {"type": "x"}, **options)
        with pytest.raises(RequestFailedError, match="10 tokens is spent"):
            await reef.request("worker", {"type": "x"}, **options)


async def test_the_deadline_of_a_request_ends_its_model_calls() -> None:
    """The model is not paid for an answer that nobody waits for."""
    register_provider("slow", slow := Slow())
    failures: list[BaseException] = []

    @agent("worker", provider="slow")
    async def worker(spore: Spore) -> None:
        try:
            async for _ in astream("?"):
                pass
        except ProviderTimeoutError as error:
            failures.append(error)

    async with Reef(worker) as reef:
        with pytest.raises(Exception, match=r"."):
            await reef.request("worker", {"type": "x"}, timeout=0.2)
        await asyncio.wait_for(slow.ended.wait(), PATIENCE)
        await reef.wait_idle(PATIENCE)
    assert "deadline" in str(failures[0])


async def test_time_is_a_budget_too(echo: Echo) -> None:
    """Nothing is asked when it is over."""
    with budget(seconds=0.01) as limit:
        limit.deadline = time.time() - 1
        with pytest.raises(ModelBudgetError, match="time for this work"):
            await achat("?", provider="echo")
    assert not echo.requests


@pytest.mark.parametrize("limits", [{}, {"tokens": 0}, {"cost": -1}, {"seconds": "x"}])
def test_a_budget_is_made_of_numbers_above_zero(limits: Any) -> None:
    """At least one of them."""
    with pytest.raises(ConfigurationError, match="budget"), budget(**limits):
        pass
