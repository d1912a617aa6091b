"""Anthropic: the messages API."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import msgspec

from praval.errors import ConfigurationError, ProviderError
from praval.providers.http import Collector, HttpProvider
from praval.providers.keys import key_of, require_key
from praval.providers.messages import ChatRequest, Message, Response, ToolCall, Usage
from praval.providers.openai_compatible import no_text
from praval.providers.refusals import error_text, kind_of
from praval.providers.schemas import closed
from praval.providers.sse import Event
from praval.settings import environment

BASE_URL = "https://api.anthropic.com"
API_VERSION = "2026-10-21"
DEFAULT_MODEL = "claude-haiku-5-5"
DEFAULT_MAX_TOKENS = 4096
"""The API wants a limit in every request."""
BLOCKS = "anthropic-blocks"
"""Wire format of an assistant's turn, to be sent back as it came."""
SAMPLING = ("temperature", "top_p", "top_k")
"""Options that API versions from 2026-10-21 on refuse, whatever their value."""

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "overloaded_error": 529,
}

log = logging.getLogger("praval.providers")


class AnthropicProvider(HttpProvider):
    """Speaks to Anthropic.

    API version 2026-10-21 has no ``temperature`` any more (nor ``top_p``, ``top_k``): they are
    left out, and a warning in the log says so once per provider. For an old model that depends on
    them, pass ``api_version="2023-06-01"``.

    Args:
        api_key: default: ``ANTHROPIC_API_KEY``, then ``ANTHROPIC_AUTH_TOKEN``.
        base_url: default: ``ANTHROPIC_BASE_URL``, then Anthropic's own.
        api_version: the ``anthropic-version`` header.
        model, temperature, max_tokens: what calls without them use.
        allow_plaintext: send the key over plain http to another host.

    Raises:
        NoModelError: no key.
        ConfigurationError: something that cannot be used.
    """

    path: ClassVar[str] = "/v1/messages"
    answers: ClassVar[str] = "message"

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        api_version: str = API_VERSION,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        allow_plaintext: bool = False,
    ) -> None:
        self.api_version = api_version
        self._said_sampling = False
        super().__init__(
            base_url or environment().get("ANTHROPIC_BASE_URL", "").strip() or BASE_URL,
            require_key("anthropic", api_key),
            model=DEFAULT_MODEL if model is None else model,
            temperature=temperature,
            max_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
            allow_plaintext=allow_plaintext,
        )

    @classmethod
    def available(cls) -> bool:
        """Whether the environment holds a key."""
        return key_of("anthropic") is not None

    def headers(self) -> dict[str, str]:
        """Return the headers of key and version."""
        return {**super().headers(), "anthropic-version": self.api_version}

    def fingerprint(self) -> str:
        """Also the version: it decides on what is sent of the request."""
        return f"{super().fingerprint()} {self.api_version}"

    def body(self, request: ChatRequest, *, stream: bool) -> dict[str, Any]:
        """Return the JSON of a message."""
        if request.options.get("stream"):
            raise ConfigurationError("stream=True is no option of chat(): use astream().")
        body: dict[str, Any] = {
            **self._sampling(request),
            "model": request.model,
            "max_tokens": request.max_tokens,
            "messages": _turns(request.turns),
        }
        if request.system:
            body["system"] = request.system
        if request.tools:
            body["tools"] = [
                {
                    "name": tool.name,
                    "description": tool.description,
                    "input_schema": tool.parameters,
                }
                for tool in request.tools
            ]
        if request.output is not None:
            schema = closed(request.output.schema)
            config = {**body.get("output_config", {})}
            body["output_config"] = {**config, "format": {"type": "json_schema", "schema": schema}}
        if stream:
            body["stream"] = True
        return body

    def _sampling(self, request: ChatRequest) -> dict[str, Any]:
        """Return the caller's options, without those that this version of the API refuses."""
        options = dict(request.options)
        if request.temperature is not None:
            options["temperature"] = request.temperature
        if self.api_version < API_VERSION:
            return options
        refused = [name for name in SAMPLING if options.pop(name, None) is not None]
        if refused and not self._said_sampling:
            self._said_sampling = True
            log.warning(
                "Anthropic's API %s has no %s: left out. AnthropicProvider(api_version="
                '"2023-06-01") sends it, for models that know it.',
                self.api_version,
                ", ".join(refused),
            )
        return options

    def parse(self, answer: Any, request: ChatRequest) -> Response:
        """Read a message."""
        message = msgspec.convert(answer, _Message)
        return _response(self, message, answer["content"], request)

    def collector(self, request: ChatRequest) -> Collector:
        """Return what puts the events of a message together."""
        return _EventCollector(self, request)


def _turns(turns: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Return the turns; results of one round of tool calls share one of the user's turns."""
    said: list[dict[str, Any]] = []
    for turn in turns:
        role = "assistant" if turn.role == "assistant" else "user"
        content = _blocks(turn)
        if turn.role == "tool" and said and said[-1]["role"] == "user":
            said[-1]["content"] += content
        elif len(content) == 1 and content[0]["type"] == "text":
            said.append({"role": role, "content": content[0]["text"]})
        else:
            said.append({"role": role, "content": content})
    return said


def _blocks(turn: Message) -> list[dict[str, Any]]:
    if turn.raw is not None and turn.raw_of == BLOCKS:
        return list(turn.raw)
    if turn.role == "tool":
        result = {
            "type": "tool_result",
            "tool_use_id": turn.tool_call_id,
            "content": turn.content,
        }
        return [{**result, "is_error": True} if turn.is_error else result]
    blocks: list[dict[str, Any]] = []
    for image in turn.images:
        if image.data is None:
            source = {"type": "url", "url": image.url}
        else:
            source = {"type": "base64", "media_type": image.media_type, "data": image.base64}
        blocks.append({"type": "image", "source": source})
    if turn.content or not (turn.images or turn.tool_calls):
        blocks.append({"type": "text", "text": turn.content})
    for call in turn.tool_calls:
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call)})
    return blocks


def _input(call: ToolCall) -> dict[str, Any]:
    """Return a call's arguments as an object; another vendor's model may have written nonsense."""
    try:
        return msgspec.json.decode(call.arguments, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    def updated(self, later: _Usage) -> _Usage:
        """Return the counts with those that a later event knows."""
        known = {name: n for name, n in msgspec.structs.asdict(later).items() if n is not None}
        return msgspec.structs.replace(self, **known)

    def counted(self) -> Usage:
        read, written = self.cache_read_input_tokens or 0, self.cache_creation_input_tokens or 0
        return Usage((self.input_tokens or 0) + read + written, self.output_tokens or 0, read)


class _Block(msgspec.Struct):
    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    input: Any = None


class _Message(msgspec.Struct):
    content: list[_Block]
    model: str | None = None
    stop_reason: str | None = None
    usage: _Usage = msgspec.field(default_factory=_Usage)


def _response(
    provider: HttpProvider, message: _Message, raw: list[dict[str, Any]], request: ChatRequest
) -> Response:
    text = "".join(block.text for block in message.content if block.type == "text")
    calls = [
        ToolCall(block.id, block.name, msgspec.json.encode(block.input or {}).decode())
        for block in message.content
        if block.type == "tool_use"
    ]
    if not text and not calls and message.stop_reason in (None, "refusal"):
        raise no_text(provider, None, message.stop_reason)
    thoughtful = calls and any("thinking" in block.type for block in message.content)
    reason = message.stop_reason or "stop"
    return Response(
        text,
        usage=message.usage.counted(),
        model=message.model or request.model,
        finish_reason=_REASONS.get(reason, reason),
        tool_calls=calls,
        raw=raw if thoughtful else None,
        raw_of=BLOCKS if thoughtful else None,
    )


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    partial_json: str = ""
    thinking: str = ""
    signature: str = ""
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str
    index: int = 0
    message: Any = None
    content_block: dict[str, Any] = {}
    delta: _Delta = msgspec.field(default_factory=_Delta)
    usage: _Usage = msgspec.field(default_factory=_Usage)
    error: dict[str, Any] = {}


class _EventCollector(Collector):
    def __init__(self, provider: HttpProvider, request: ChatRequest) -> None:
        self.provider = provider
        self.request = request
        self.blocks: dict[int, dict[str, Any]] = {}
        self.inputs: dict[int, str] = {}
        self.model = request.model
        self.usage = _Usage()
        self.stop_reason: str | None = None
        self.stopped = False

    def take(self, event: Event) -> str:
        said = msgspec.json.decode(event.data, type=_Event)
        if said.type == "error":
            raise self._failure(said.error, event.data)
        if said.type == "message_start":
            begun = msgspec.convert(said.message, _Message)
            self.model, self.usage = begun.model or self.model, begun.usage
        elif said.type == "content_block_start":
            self.blocks[said.index] = dict(said.content_block)
            return str(said.content_block.get("text", ""))
        elif said.type == "content_block_delta":
            return self._add(said.index, said.delta)
        elif said.type == "message_delta":
            self.stop_reason = said.delta.stop_reason or self.stop_reason
            self.usage = self.usage.updated(said.usage)
        elif said.type == "message_stop":
            self.stopped = True
        return ""

    def _add(self, index: int, delta: _Delta) -> str:
        block = self.blocks[index]
        for name in ("text", "thinking", "signature"):
            if more := getattr(delta, name):
                block[name] = (block.get(name) or "") + more
        if delta.partial_json:
            self.inputs[index] = self.inputs.get(index, "") + delta.partial_json
        return delta.text

    def _failure(self, error: dict[str, Any], data: str) -> ProviderError:
        status = _STATUS.get(str(error.get("type")), 500)
        said = self.provider.redacted(error_text(data.encode()))
        return kind_of(status)(f"{self.provider.base_url} failed while it answered: {said}", status)

    def response(self) -> Response | None:
        if not self.stopped:
            return None
        for index, text in self.inputs.items():
            self.blocks[index]["input"] = msgspec.json.decode(text)
        raw = [block for _, block in sorted(self.blocks.items())]
        message = _Message(
            msgspec.convert(raw, list[_Block]), self.model, self.stop_reason, self.usage
        )
        return _response(self.provider, message, raw, self.request)
