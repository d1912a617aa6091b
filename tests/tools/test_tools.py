"""Tools: how a function becomes one, what a model is told, and what becomes of its calls."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest

from praval import Agent, Reef, Spore, achat, agent, astream, chat, tool
from praval.errors import ConfigurationError, ToolDefinitionError, ToolRoundsError
from praval.providers import conversation
from praval.tools import Tool, get_tool

# -- making a tool ---------------------------------------------------------------------------


def test_hints_and_docstring_are_what_a_model_is_told() -> None:
    """Types, defaults, and what each argument means."""

    @tool
    def book(city: str, nights: int = 2, class_: Literal["a", "b"] = "a") -> str:
        """Book a room.

        For one person.

        Args:
            city: where,
                in English
            nights (int): how many

        Returns:
            a number
        """
        return f"{city} {nights} {class_}"

    assert isinstance(book, Tool)
    assert (book.name, book.description) == ("book", "Book a room.\n\nFor one person.")
    properties = book.parameters["properties"]
    assert properties["city"] == {"type": "string", "description": "where, in English"}
    assert properties["nights"] == {"type": "integer", "default": 2, "description": "how many"}
    assert properties["class_"]["enum"] == ["a", "b"]
    assert book.parameters["required"] == ["city"]
    assert book.parameters["additionalProperties"] is False
    assert book("Oslo") == "Oslo 2 a", "it is still its function"
    assert get_tool("book") is book


def test_sphinx_fields_are_understood_too() -> None:
    """The other usual style."""

    @tool("look_up", description="Find something.")
    def find(words: str) -> str:
        """Ignored.

        :param words: what to look for
        """
        return words

    assert (find.name, find.description) == ("look_up", "Find something.")  # type: ignore[attr-defined]
    assert find.parameters["properties"]["words"]["description"] == "what to look for"  # type: ignore[attr-defined]


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: int = 0


class Line(pydantic.BaseModel):
    length: float


class Shape(msgspec.Struct):
    colour: Colour
    points: list[Point]


async def test_arguments_of_any_type_arrive_as_that_type() -> None:
    """Dataclasses, enums, structs, models of pydantic; numbers as text are numbers."""
    got: list[Any] = []

    @tool
    async def draw(
        shape: Shape, line: Line, at: Point | None = None, scale: Annotated[float, "x"] = 1
    ) -> Line:
        got.extend((shape, line, at, scale))
        return line

    said = await draw.run(  # type: ignore[attr-defined]
        '{"shape": {"colour": "red", "points": [{"x": "3"}]}, "line": {"length": 2}, "scale": "4"}'
    )
    assert got == [Shape(Colour.RED, [Point(3)]), Line(length=2), None, 4.0]
    assert said == '{"length":2.0}'


class Odd:
    """A type that JSON cannot carry."""


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tool(lambda *rest: 0), "1 to 64"),
        (lambda: tool("two words")(print), "1 to 64"),
        (lambda: tool("x")(lambda *rest: 0), "needs a name of its own"),
        (lambda: tool("x", timeout=0)(lambda: 0), "timeout"),
        (lambda: tool("x", shared=True, owner="a")(lambda: 0), "cannot be shared"),
        (lambda: get_tool("nothing"), "No tool 'nothing'; known: none"),
    ],
)
def test_what_no_model_could_call_is_refused(make: Any, said: str) -> None:
    """When it is declared."""
    with pytest.raises(ToolDefinitionError, match=said):
        make()


def test_a_hint_that_json_cannot_carry_is_refused() -> None:
    """It is named."""
    with pytest.raises(ToolDefinitionError, match="Odd"):

        @tool
        def f(odd: Odd) -> None: ...


def test_mutable_defaults_are_made_anew_for_each_call() -> None:
    """As nobody expects of Python, and everybody of a tool."""

    @tool
    def collect(item: str, into: list[str] = []) -> list[str]:  # noqa: B006 - the point
        into.append(item)
        return into

    for _ in range(2):
        assert asyncio.run(collect.run('{"item": "a"}')) == '["a"]'  # type: ignore[attr-defined]


# -- calls -----------------------------------------------------------------------------------


async def test_sync_and_async_tools_are_called_and_the_answer_comes_last(caller: Any) -> None:
    """The plain one in a worker thread; the usage is that of both rounds."""
    model = caller([("plain", '{"a": 1}'), ("quick", "{}")], "Done.")
    threads: list[threading.Thread] = []

    def plain(a: int) -> int:
        threads.append(threading.current_thread())
        return a + 1

    async def quick() -> None:
        threads.append(threading.current_thread())

    response = await achat("Go.", provider="caller", tools=[plain, quick])
    assert (response, response.usage.total_tokens, response.tool_calls) == ("Done.", 10, ())
    assert model.results == [("2", False), ("done", False)]
    assert threading.main_thread() in threads
    assert len(set(threads)) == 2


async def test_calls_of_one_round_run_side_by_side(caller: Any) -> None:
    """Two that wait for one another both end."""
    caller([("meet", "{}"), ("meet", "{}")], "Done.")
    meeting = asyncio.Barrier(2)

    async def meet() -> None:
        await meeting.wait()

    assert await achat("Go.", provider="caller", tools=[meet]) == "Done."


async def test_failures_are_told_to_the_model(caller: Any) -> None:
    """An exception, bad arguments, no such tool, too slow: it may try something else."""
    calls = [
        ("broken", "{}"),
        ("typed", '{"n": "many"}'),
        ("typed", "{nonsense"),
        ("tiped", "{}"),
        ("slow", "{}"),
    ]
    model = caller(calls, "Sorry.")

    def broken() -> None:
        raise OSError("the disk is full")

    def typed(n: int) -> int:
        return n

    @tool(timeout=0.01)
    async def slow() -> None:
        await asyncio.Event().wait()

    assert await achat("Go.", provider="caller", tools=[broken, typed, slow]) == "Sorry."
    said = [content for content, is_error in model.results if is_error]
    assert len(said) == 5
    for content, expected in zip(
        said,
        ("OSError: the disk is full", "$.n", "malformed", 'mean "typed"', "longer than 0.01 s"),
        strict=True,
    ):
        assert expected in content


async def test_a_plain_tool_that_raises_stop_iteration_does_not_hang_the_call(caller: Any) -> None:
    """No future can carry one."""
    model = caller([("take", "{}")], "Empty.")

    def take() -> int:
        return next(iter([]))

    assert await achat("Go.", provider="caller", tools=[take], timeout=10) == "Empty."
    ((said, is_error),) = model.results
    assert is_error
    assert "StopIteration" in said


async def test_what_tools_say_can_always_be_sent(caller: Any) -> None:
    """Also the names of files that are no UTF-8, in results and in errors."""
    model = caller([("look", "{}"), ("fail", "{}")], "Fine.")

    def look() -> str:
        return "caf\udce9.txt"

    def fail() -> str:
        raise FileNotFoundError("caf\udce9.txt")

    assert await achat("Go.", provider="caller", tools=[look, fail]) == "Fine."
    assert model.results == [
        ("caf?.txt", False),
        ("FileNotFoundError: caf?.txt", True),
    ]


async def test_cancelling_a_call_cancels_its_tools(caller: Any) -> None:
    """Nothing goes on behind one's back."""
    caller([("wait", "{}")], "never")
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    call = asyncio.create_task(achat("Go.", provider="caller", tools=[wait]))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()


async def test_a_model_that_runs_in_a_circle_is_stopped(
    caller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would cost for ever."""
    monkeypatch.setattr(conversation, "MAX_ROUNDS", 3)
    model = caller([("again", "{}")])

    def again() -> None: ...

    with pytest.raises(ToolRoundsError, match="3 rounds"):
        await achat("Go.", provider="caller", tools=[again])
    assert len(model.requests) == 4


async def test_a_stream_calls_tools_between_its_pieces(caller: Any) -> None:
    """And sums the usage of all rounds."""
    caller([("count", "{}")], "Three.")

    def count() -> int:
        return 3

    async with astream("Go.", provider="caller", tools=[count]) as stream:
        assert [piece async for piece in stream] == ["Three."]
    assert stream.response.usage.total_tokens == 10


def test_plain_code_uses_tools_too(caller: Any) -> None:
    """The blocking form."""
    caller([("count", "{}")], "Three.")

    def count() -> int:
        return 3

    assert chat("Go.", provider="caller", tools=[count]) == "Three."


# -- whose tools -----------------------------------------------------------------------------


def names(model: Any) -> list[str]:
    return [each.name for each in model.requests[-1].tools]


async def test_an_agent_has_its_tools_the_shared_ones_and_its_own(caller: Any) -> None:
    """In its handlers; by function, by name; others do not have them."""
    model = caller("fine")

    @tool
    def by_name() -> None: ...

    @tool(shared=True)
    def for_all() -> None: ...

    @tool(owner="clerk")
    def clerks_own() -> None: ...

    @tool(owner="boss")
    def bosses_own() -> None: ...

    def plain() -> None: ...

    seen: dict[str, list[str]] = {}

    @agent("clerk", provider="caller", tools=["by_name", plain])
    async def clerk(spore: Spore) -> None:
        await achat("Go.")
        seen["agent's"] = names(model)
        await achat("Go.", tools=[])
        seen["none"] = names(model)

    async with Reef(clerk) as reef:
        await reef.broadcast({"type": "x"})
        await reef.wait_idle(5)
        assert reef.ledger().handled == 1
    assert seen == {"agent's": ["by_name", "plain", "for_all", "clerks_own"], "none": []}
    await achat("Go.", provider="caller")
    assert names(model) == [], "code outside agents names its tools"
    await Agent("x", provider="caller", tools=[plain]).achat("Go.")
    assert names(model) == ["plain"]


async def test_a_tool_of_another_agent_is_refused(caller: Any) -> None:
    """An owned tool cannot be borrowed."""
    caller("fine")

    @tool(owner="boss")
    def secret() -> None: ...

    with pytest.raises(ToolDefinitionError, match="belongs to agent 'boss'"):
        await achat("Go.", provider="caller", tools=["secret"])


async def test_two_tools_of_one_name_are_refused(caller: Any) -> None:
    """A model could not tell them apart."""
    caller("fine")

    def make() -> Any:
        def same() -> None: ...

        return same

    with pytest.raises(ToolDefinitionError, match="Two tools are called 'same'"):
        await achat("Go.", provider="caller", tools=[make(), make()])


@pytest.mark.parametrize("tools", ["name", 5, [5], [None]])
def test_what_is_no_list_of_tools_is_refused(tools: Any) -> None:
    """When the agent is declared."""
    with pytest.raises(ConfigurationError, match="tool"):
        agent("x", tools=tools)(lambda spore: None)
