"""OpenAI: chat completions (the default) and responses."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

from praval.errors import ConfigurationError
from praval.providers.http import Collector
from praval.providers.keys import require_key
from praval.providers.messages import ChatRequest, Message, Response, ToolCall, Usage
from praval.providers.openai_compatible import (
    OpenAICompatibleProvider,
    failed_midway,
    no_text,
)
from praval.providers.schemas import closed, is_strict
from praval.providers.sse import Event
from praval.settings import environment

BASE_URL = "https://api.openai.com/v1"
DEFAULT_MODEL = "gpt-6-luna"
RESPONSES = "openai-responses"
"""Wire format of an assistant's turn, to be sent back as it came."""


class OpenAIProvider(OpenAICompatibleProvider):
    """Speaks to OpenAI.

    Args:
        api_key: default: ``OPENAI_API_KEY``.
        base_url: default: ``OPENAI_BASE_URL``, then OpenAI's own.
        organization, project: default: ``OPENAI_ORG_ID``, ``OPENAI_PROJECT_ID``.
        api: "chat" for chat completions, "responses" for the responses API (which gives a model
            that thinks its own thoughts back between tool calls; nothing is stored there).
        model, temperature, max_tokens: what calls without them use.
        allow_plaintext: send the key over plain http to another host.

    Raises:
        ConfigurationError: no key, or something that cannot be used.
    """

    max_tokens_option: ClassVar[str] = "max_completion_tokens"

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        organization: str | None = None,
        project: str | None = None,
        api: Literal["chat", "responses"] = "chat",
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        allow_plaintext: bool = False,
    ) -> None:
        if api not in ("chat", "responses"):
            raise ConfigurationError(f'OpenAI\'s api is "chat" or "responses", not {api!r}.')
        variables = environment()
        self.api = api
        self.organization = organization or variables.get("OPENAI_ORG_ID")
        self.project = project or variables.get("OPENAI_PROJECT_ID")
        super().__init__(
            base_url or variables.get("OPENAI_BASE_URL", "").strip() or BASE_URL,
            require_key("openai", api_key),
            model=DEFAULT_MODEL if model is None else model,
            temperature=temperature,
            max_tokens=max_tokens,
            allow_plaintext=allow_plaintext,
        )
        if api == "responses":
            self.path, self.answers = "/responses", "response"  # type: ignore[misc]

    @classmethod
    def available(cls) -> bool:
        """Whether ``OPENAI_API_KEY`` is set."""
        return bool(environment().get("OPENAI_API_KEY", "").strip())

    def headers(self) -> dict[str, str]:
        """Return the key's header and those of organization and project."""
        more = {"OpenAI-Organization": self.organization, "OpenAI-Project": self.project}
        return {**super().headers(), **{name: text for name, text in more.items() if text}}

    def fingerprint(self) -> str:
        """Also the API: the two may answer differently."""
        return f"{super().fingerprint()} {self.api}"

    def body(self, request: ChatRequest, *, stream: bool) -> dict[str, Any]:
        """Return the JSON of a chat completion or of a response."""
        if self.api == "chat":
            return super().body(request, stream=stream)
        if request.options.get("stream"):
            raise ConfigurationError("stream=True is no option of chat(): use astream().")
        body: dict[str, Any] = {
            "store": False,
            "include": ["reasoning.encrypted_content"],
            **request.options,
            "model": request.model,
            "input": [item for turn in request.turns for item in _items(turn)],
        }
        if request.system:
            body["instructions"] = request.system
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.max_tokens is not None:
            body["max_output_tokens"] = request.max_tokens
        if request.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                    "strict": False,
                }
                for tool in request.tools
            ]
        if request.output is not None:
            schema = closed(request.output.schema)
            body["text"] = {
                "format": {
                    "type": "json_schema",
                    "name": request.output.name,
                    "schema": schema,
                    "strict": is_strict(schema),
                }
            }
        if stream:
            body["stream"] = True
        return body

    def parse(self, answer: Any, request: ChatRequest) -> Response:
        """Read a chat completion or a response."""
        if self.api == "chat":
            return super().parse(answer, request)
        return read_response(self, answer, request)

    def collector(self, request: ChatRequest) -> Collector:
        """Return what puts a streamed answer together."""
        if self.api == "chat":
            return super().collector(request)
        return _ResponseCollector(self, request)


def _items(turn: Message) -> list[dict[str, Any]]:
    """Return a turn as input items of the responses API."""
    if turn.raw is not None and turn.raw_of == RESPONSES:
        return list(turn.raw)
    if turn.role == "tool":
        return [
            {"type": "function_call_output", "call_id": turn.tool_call_id, "output": turn.content}
        ]
    items: list[dict[str, Any]] = []
    if turn.images:
        content: Any = [{"type": "input_text", "text": turn.content}]
        content += [
            {"type": "input_image", "image_url": image.address, "detail": "auto"}
            for image in turn.images
        ]
        items.append({"role": turn.role, "content": content})
    elif turn.content or not turn.tool_calls:
        items.append({"role": turn.role, "content": turn.content})
    items += [
        {
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }
        for call in turn.tool_calls
    ]
    return items


class _Part(msgspec.Struct):
    type: str
    text: str = ""
    refusal: str = ""


class _Item(msgspec.Struct):
    type: str
    content: list[_Part] | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = "{}"


class _InputDetails(msgspec.Struct):
    cached_tokens: int = 0


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _InputDetails = msgspec.field(default_factory=_InputDetails)
    output_tokens_details: _OutputDetails = msgspec.field(default_factory=_OutputDetails)


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    output: list[_Item]
    model: str | None = None
    status: str | None = None
    usage: _Usage | None = None
    error: Any = None
    incomplete_details: _Incomplete | None = None


_REASONS = {"max_output_tokens": "length", "content_filter": "content_filter"}


def read_response(
    provider: OpenAICompatibleProvider, answer: Any, request: ChatRequest
) -> Response:
    """Read a response of the responses API."""
    said = msgspec.convert(answer, _Response)
    if said.error or said.status in ("failed", "cancelled"):
        raise failed_midway(provider, msgspec.json.encode({"error": said.error}).decode())
    parts = [part for item in said.output for part in item.content or () if item.type == "message"]
    text = "".join(part.text for part in parts if part.type == "output_text")
    refusal = "".join(part.refusal for part in parts if part.type == "refusal")
    calls = [
        ToolCall(item.call_id, item.name, item.arguments)
        for item in said.output
        if item.type == "function_call"
    ]
    reason = (said.incomplete_details and said.incomplete_details.reason) or ""
    if not text and not calls and (refusal or said.status != "incomplete"):
        raise no_text(provider, refusal, reason or said.status)
    usage = said.usage
    return Response(
        text,
        usage=None
        if usage is None
        else Usage(
            usage.input_tokens,
            usage.output_tokens,
            usage.input_tokens_details.cached_tokens,
            usage.output_tokens_details.reasoning_tokens,
        ),
        model=said.model or request.model,
        finish_reason="tool_calls" if calls else _REASONS.get(reason, reason or "stop"),
        tool_calls=calls,
        raw=answer["output"] if calls else None,
        raw_of=RESPONSES if calls else None,
    )


class _Typed(msgspec.Struct):
    type: str
    delta: Any = None
    response: Any = None


class _ResponseCollector(Collector):
    def __init__(self, provider: OpenAICompatibleProvider, request: ChatRequest) -> None:
        self.provider = provider
        self.request = request
        self.whole: Response | None = None

    def take(self, event: Event) -> str:
        if event.data == "[DONE]":
            return ""
        said = msgspec.json.decode(event.data, type=_Typed)
        if said.type == "error":
            raise failed_midway(self.provider, event.data)
        if said.type in ("response.completed", "response.incomplete", "response.failed"):
            self.whole = read_response(self.provider, said.response, self.request)
        return str(said.delta) if said.type == "response.output_text.delta" else ""

    def response(self) -> Response | None:
        return self.whole
