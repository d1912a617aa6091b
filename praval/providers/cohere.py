"""Cohere: chat, version 2."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from praval.errors import ConfigurationError
from praval.providers.http import Collector, HttpProvider
from praval.providers.keys import key_of, require_key
from praval.providers.messages import (
    ChatRequest,
    Message,
    Response,
    ToolCall,
    Usage,
    as_dicts,
    as_functions,
    in_words,
)
from praval.providers.openai_compatible import failed_midway, no_text
from praval.providers.sse import Event
from praval.settings import environment

BASE_URL = "https://api.cohere.com"
DEFAULT_MODEL = "command-a-03-2025"
PLAN = "cohere-plan"
"""Wire format of the plan that comes with tool calls, to be sent back with them."""

_REASONS = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "TOOL_CALL": "tool_calls",
}


class CohereProvider(HttpProvider):
    """Speaks to Cohere.

    Args:
        api_key: default: ``COHERE_API_KEY``, then ``CO_API_KEY``.
        base_url: default: ``COHERE_BASE_URL``, then ``CO_API_URL``, then Cohere's own.
        model, temperature, max_tokens: what calls without them use.
        allow_plaintext: send the key over plain http to another host.

    Raises:
        NoModelError: no key.
        ConfigurationError: something that cannot be used.
    """

    path: ClassVar[str] = "/v2/chat"
    answers: ClassVar[str] = "chat answer"

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        allow_plaintext: bool = False,
    ) -> None:
        variables = environment()
        named = variables.get("COHERE_BASE_URL") or variables.get("CO_API_URL") or ""
        super().__init__(
            base_url or named.strip() or BASE_URL,
            require_key("cohere", api_key),
            model=DEFAULT_MODEL if model is None else model,
            temperature=temperature,
            max_tokens=max_tokens,
            allow_plaintext=allow_plaintext,
        )

    @classmethod
    def available(cls) -> bool:
        """Whether the environment holds a key."""
        return key_of("cohere") is not None

    def body(self, request: ChatRequest, *, stream: bool) -> dict[str, Any]:
        """Return the JSON of a chat."""
        if request.options.get("stream"):
            raise ConfigurationError("stream=True is no option of chat(): use astream().")
        if request.tools and request.output is not None:
            request = in_words(request, request.output)  # it takes no schema beside tools
        body: dict[str, Any] = {
            **request.options,
            "model": request.model,
            "messages": [_turn(message) for message in request.messages],
            "stream": stream,
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        if request.tools:
            body["tools"] = as_functions(request.tools)
        if request.output is not None:
            body["response_format"] = {
                "type": "json_object",
                "json_schema": request.output.schema,
            }
        return body

    def parse(self, answer: Any, request: ChatRequest) -> Response:
        """Read a chat's answer."""
        said = msgspec.convert(answer, _Answer)
        text = "".join(part.text for part in said.message.content or () if part.type == "text")
        calls = [
            ToolCall(call.id, call.function.name, call.function.arguments or "{}")
            for call in said.message.tool_calls or ()
        ]
        if said.finish_reason in ("ERROR", "TIMEOUT"):
            raise failed_midway(self, f"finish_reason {said.finish_reason}")
        if not text and not calls and said.message.content is None:
            raise no_text(self, None, said.finish_reason)
        return _response(
            text, calls, said.usage, said.finish_reason, said.message.tool_plan, request
        )

    def collector(self, request: ChatRequest) -> Collector:
        """Return what puts the events of a chat together."""
        return _EventCollector(self, request)


def _turn(message: Message) -> dict[str, Any]:
    """Return a turn; Cohere's differs from OpenAI's in details only."""
    (turn,) = as_dicts([message])
    if message.tool_calls:
        if not message.content:
            del turn["content"]
        if message.raw_of == PLAN:
            turn["tool_plan"] = message.raw
    return turn


class _Tokens(msgspec.Struct):
    input_tokens: float | None = None
    output_tokens: float | None = None


class _Usage(msgspec.Struct):
    billed_units: _Tokens | None = None
    tokens: _Tokens | None = None
    cached_tokens: float | None = None

    def counted(self) -> Usage:
        """Return what is billed; all tokens if the answer does not tell that."""
        tokens = self.billed_units
        if tokens is None or tokens.output_tokens is None:
            tokens = self.tokens or _Tokens()
        return Usage(
            int(tokens.input_tokens or 0),
            int(tokens.output_tokens or 0),
            int(self.cached_tokens or 0),
        )


class _Function(msgspec.Struct):
    name: str = ""
    arguments: str = ""


class _Call(msgspec.Struct):
    id: str = ""
    function: _Function = msgspec.field(default_factory=_Function)


class _Part(msgspec.Struct):
    type: str = "text"
    text: str = ""


class _Said(msgspec.Struct):
    content: list[_Part] | None = None
    tool_calls: list[_Call] | None = None
    tool_plan: str | None = None


class _Answer(msgspec.Struct):
    message: _Said
    finish_reason: str
    usage: _Usage | None = None


def _response(  # noqa: PLR0917 - what both readers have found, in one place
    text: str,
    calls: list[ToolCall],
    usage: _Usage | None,
    finish_reason: str,
    plan: str | None,
    request: ChatRequest,
) -> Response:
    return Response(
        text,
        usage=None if usage is None else usage.counted(),
        model=request.model,
        finish_reason=_REASONS.get(finish_reason, finish_reason),
        tool_calls=calls,
        raw=plan if calls and plan else None,
        raw_of=PLAN if calls and plan else None,
    )


class _DeltaMessage(msgspec.Struct):
    content: _Part | list[Any] | None = None
    tool_calls: _Call | list[Any] | None = None
    tool_plan: str | None = None


class _Delta(msgspec.Struct):
    message: _DeltaMessage = msgspec.field(default_factory=_DeltaMessage)
    finish_reason: str | None = None
    usage: _Usage | None = None
    error: str | None = None


class _Event(msgspec.Struct):
    type: str
    index: int = 0
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _EventCollector(Collector):
    def __init__(self, provider: HttpProvider, request: ChatRequest) -> None:
        self.provider = provider
        self.request = request
        self.texts: list[str] = []
        self.plan = ""
        self.calls: dict[int, _Call] = {}
        self.end: _Delta | None = None

    def take(self, event: Event) -> str:
        if event.data == "[DONE]":
            return ""
        said = msgspec.json.decode(event.data, type=_Event)
        message = said.delta.message
        if said.type in ("content-start", "content-delta") and isinstance(message.content, _Part):
            if message.content.type == "text":
                self.texts.append(message.content.text)
                return message.content.text
        elif said.type == "tool-plan-delta":
            self.plan += message.tool_plan or ""
        elif said.type == "tool-call-start" and isinstance(message.tool_calls, _Call):
            self.calls[said.index] = message.tool_calls
        elif said.type == "tool-call-delta" and isinstance(message.tool_calls, _Call):
            self.calls[said.index].function.arguments += message.tool_calls.function.arguments
        elif said.type == "message-end":
            self.end = said.delta
            if said.delta.error or said.delta.finish_reason in ("ERROR", "TIMEOUT"):
                raise failed_midway(self.provider, said.delta.error or event.data)
        return ""

    def response(self) -> Response | None:
        if self.end is None or self.end.finish_reason is None:
            return None
        calls = [
            ToolCall(call.id, call.function.name, call.function.arguments or "{}")
            for _, call in sorted(self.calls.items())
        ]
        return _response(
            "".join(self.texts), calls, self.end.usage, self.end.finish_reason, self.plan,
            self.request,
        )  # fmt: skip
