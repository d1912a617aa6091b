"""The servers of the conformance suite are strict, and speak as their vendors do."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest
from dialects import Anthropic, Cohere, Compatible, OpenAIChat, OpenAIResponses

from praval.testing import Dialect, Request

CALLS = [("call_1", "look", '{"at": "x"}'), ("call_2", "look", '{"at": "y"}')]


def types(dialect: Dialect) -> tuple[Any, Any]:
    """Return the SDK's types of an answer and of a stream's event."""
    if isinstance(dialect, OpenAIChat):
        from openai.types.chat import ChatCompletion, ChatCompletionChunk

        return ChatCompletion, ChatCompletionChunk
    if isinstance(dialect, OpenAIResponses):
        from openai.types.responses import Response, ResponseStreamEvent

        return Response, ResponseStreamEvent
    if isinstance(dialect, Anthropic):
        from anthropic.types import Message, RawMessageStreamEvent

        return Message, RawMessageStreamEvent
    from cohere.v2.types import V2ChatResponse, V2ChatStreamResponse

    return V2ChatResponse, V2ChatStreamResponse


DIALECTS = [
    OpenAIChat(),
    OpenAIResponses(),
    Anthropic(),
    Anthropic(thinks=True),
    Cohere(),
]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: type(dialect).__name__)
def test_answers_have_the_shapes_of_the_vendors_own_types(dialect: Dialect) -> None:
    """Validated by the SDK's models, whole answers and each event of a stream."""
    answer, event = map(pydantic.TypeAdapter, types(dialect))
    for body in (dialect.text("Hello"), dialect.calls(CALLS)):
        answer.validate_python(json.loads(body))
    for stream in (dialect.events(["a", "b"]), dialect.call_events(CALLS)):
        lines = b"".join(stream).decode().splitlines()
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        events = [json.loads(each) for each in data if each != "[DONE]"]
        assert len(events) > 1
        for each in events:
            if each.get("type") != "ping":
                event.validate_python(each)


USER = {"role": "user", "content": "Hello"}
GOOD: list[tuple[Dialect, dict[str, Any]]] = [
    (OpenAIChat(), {"model": "m", "messages": [USER]}),
    (Compatible(), {"model": "m", "messages": [USER]}),
    (OpenAIResponses(), {"model": "m", "input": [USER]}),
    (Anthropic(), {"model": "m", "max_tokens": 5, "messages": [USER]}),
    (Cohere(), {"model": "m", "messages": [USER], "stream": False}),
]
SPOILT: dict[str, Any] = {
    "an unknown key": lambda body: {**body, "tempreature": 1},
    "no model": lambda body: {**body, "model": 5},
    "a bad role": lambda body: {**body, _turns(body): [{"role": "nobody", "content": "x"}]},
    "a key in the wrong place": lambda body: {**body, _turns(body): [{**USER, "max_tokens": 5}]},
    "no turns": lambda body: {**body, _turns(body): "Hello" if "input" not in body else 5},
}


def _turns(body: dict[str, Any]) -> str:
    return "input" if "input" in body else "messages"


def problem(dialect: Dialect, body: Any) -> str | None:
    headers = {"anthropic-version": "2026-10-21"}
    return dialect.problem(Request("POST", dialect.path, headers, json.dumps(body).encode()))


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize(("dialect", "good"), GOOD, ids=lambda each: type(each).__name__)
def test_a_request_that_the_vendor_would_refuse_is_a_problem(
    dialect: Dialect, good: dict[str, Any], spoilt: str
) -> None:
    """A good one is none."""
    assert problem(dialect, good) is None
    assert problem(dialect, SPOILT[spoilt](good)) is not None


def test_what_vendors_refuse_beyond_their_schemas_is_a_problem_too() -> None:
    """Sampling options, a missing version, deprecated limits, unanswered calls."""
    anthropic, body = Anthropic(), GOOD[3][1]
    for option in ("temperature", "top_p", "top_k"):
        assert problem(anthropic, {**body, option: 1})
    unversioned = Request("POST", "/v1/messages", {}, json.dumps(body).encode())
    assert anthropic.problem(unversioned)
    used = {"role": "assistant", "content": [
        {"type": "tool_use", "id": "1", "name": "look", "input": {}}]}  # fmt: skip
    assert problem(anthropic, {**body, "messages": [USER, used, USER]})
    assert problem(OpenAIChat(), {**GOOD[0][1], "max_tokens": 5})
    assert problem(Compatible(), {**GOOD[0][1], "max_completion_tokens": 5})
    called = {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}  # fmt: skip
    assert problem(OpenAIChat(), {"model": "m", "messages": [USER, called]})
