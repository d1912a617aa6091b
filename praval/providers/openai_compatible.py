"""Any server that speaks OpenAI's chat completions (``POST {base_url}/chat/completions``)."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from praval.errors import (
    ConfigurationError,
    OverloadedError,
    ProviderProtocolError,
)
from praval.providers.http import Collector, HttpProvider
from praval.providers.messages import (
    ChatRequest,
    Response,
    ToolCall,
    Usage,
    as_dicts,
    as_functions,
)
from praval.providers.refusals import error_text
from praval.providers.schemas import closed, is_strict
from praval.providers.sse import Event
from praval.settings import environment


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function
    id: str | None = None
    index: int | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None

    def counted(self) -> Usage:
        read, said = self.prompt_tokens_details, self.completion_tokens_details
        return Usage(
            self.prompt_tokens,
            self.completion_tokens,
            (read and read.cached_tokens) or 0,
            (said and said.reasoning_tokens) or 0,
        )


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


class _ChunkChoice(msgspec.Struct):
    delta: _Message = msgspec.field(default_factory=_Message)
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_ChunkChoice] = []
    model: str | None = None
    usage: _Usage | None = None
    error: Any = None


class OpenAICompatibleProvider(HttpProvider):
    """Speaks to vLLM, Ollama, llama.cpp, LM Studio and others.

    ::

        register_provider("mine", OpenAICompatibleProvider("http://localhost:8000/v1"))
        chat("Hello", provider="mine", model="some-model")

    Args:
        base_url: up to but without ``/chat/completions``; default: ``OPENAI_BASE_URL``.
        api_key: sent as bearer token; default: ``OPENAI_API_KEY``, and only if ``base_url`` comes
            from the environment too. Pass none for servers without keys.
        model: what calls without ``model=`` use.
        temperature, max_tokens: what calls without them use.
        allow_plaintext: send the key over plain http to another host.

    Raises:
        ConfigurationError: no base_url, or one or a key that cannot be used.
    """

    path: ClassVar[str] = "/chat/completions"
    answers: ClassVar[str] = "chat completion"
    max_tokens_option: ClassVar[str] = "max_tokens"

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        allow_plaintext: bool = False,
    ) -> None:
        if base_url is None:
            base_url = environment().get("OPENAI_BASE_URL", "")
            api_key = api_key or environment().get("OPENAI_API_KEY")
        if not base_url:
            raise ConfigurationError(
                'The provider "openai_compatible" does not know its server: set OPENAI_BASE_URL, '
                "or register_provider(name, OpenAICompatibleProvider(base_url=...))."
            )
        super().__init__(
            base_url,
            api_key,
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            allow_plaintext=allow_plaintext,
        )

    @classmethod
    def available(cls) -> bool:
        """Whether ``OPENAI_BASE_URL`` names a server."""
        return bool(environment().get("OPENAI_BASE_URL", "").strip())

    def body(self, request: ChatRequest, *, stream: bool) -> dict[str, Any]:
        """Return the JSON of a chat completion."""
        if request.options.get("stream"):
            raise ConfigurationError("stream=True is no option of chat(): use astream().")
        body = {
            **request.options,
            "model": request.model,
            "messages": as_dicts(request.messages),
        }
        if request.temperature is not None:
            body["temperature"] = request.temperature
        if request.max_tokens is not None:
            body[self.max_tokens_option] = request.max_tokens
        if request.tools:
            body["tools"] = as_functions(request.tools)
        if request.output is not None:
            schema = closed(request.output.schema)
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": request.output.name,
                    "schema": schema,
                    "strict": is_strict(schema),
                },
            }
        if stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        return body

    def parse(self, answer: Any, request: ChatRequest) -> Response:
        """Read a chat completion."""
        completion = msgspec.convert(answer, _Completion)
        choice = completion.choices[0]
        message = choice.message
        calls = [
            ToolCall(
                call.id or f"call_{number}",
                call.function.name or "",
                call.function.arguments or "{}",
            )
            for number, call in enumerate(message.tool_calls or ())
        ]
        if message.content is None and not calls:
            raise no_text(self, message.refusal, choice.finish_reason)
        return Response(
            message.content or "",
            usage=completion.usage.counted() if completion.usage else None,
            model=completion.model or request.model,
            finish_reason=choice.finish_reason or "stop",
            tool_calls=calls,
        )

    def collector(self, request: ChatRequest) -> Collector:
        """Return what puts the chunks of a completion together."""
        return _ChunkCollector(self, request)


class _ChunkCollector(Collector):
    def __init__(self, provider: HttpProvider, request: ChatRequest) -> None:
        self.provider = provider
        self.model = request.model
        self.texts: list[str] = []
        self.refusals: list[str] = []
        self.calls: dict[int, _ToolCall] = {}
        self.usage: Usage | None = None
        self.finish_reason: str | None = None

    def take(self, event: Event) -> str:
        if event.data == "[DONE]":
            return ""
        chunk = msgspec.json.decode(event.data, type=_Chunk)
        if chunk.error:
            raise failed_midway(self.provider, event.data)
        self.model = chunk.model or self.model
        if chunk.usage is not None:
            self.usage = chunk.usage.counted()
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        for number, part in enumerate(choice.delta.tool_calls or ()):
            self._take_call(part.index if part.index is not None else number, part)
        if choice.delta.refusal:
            self.refusals.append(choice.delta.refusal)
        text = choice.delta.content or ""
        self.texts.append(text)
        return text

    def _take_call(self, index: int, part: _ToolCall) -> None:
        call = self.calls.setdefault(index, _ToolCall(_Function("", "")))
        call.id = part.id or call.id
        call.function.name = part.function.name or call.function.name
        call.function.arguments = (call.function.arguments or "") + (part.function.arguments or "")

    def response(self) -> Response | None:
        if self.finish_reason is None:
            return None
        if self.refusals and not any(self.texts):
            raise no_text(self.provider, "".join(self.refusals), self.finish_reason)
        return Response(
            "".join(self.texts),
            usage=self.usage,
            model=self.model,
            finish_reason=self.finish_reason,
            tool_calls=[
                ToolCall(
                    call.id or f"call_{index}",
                    call.function.name or "",
                    call.function.arguments or "{}",
                )
                for index, call in sorted(self.calls.items())
            ],
        )


def no_text(
    provider: HttpProvider, refusal: str | None, finish_reason: str | None
) -> ProviderProtocolError:
    """Return the error for an answer that has neither text nor tool calls."""
    said = f": it refused, {provider.redacted(refusal)!r}" if refusal else "."
    return ProviderProtocolError(
        f"{provider.base_url} answered without text (finish_reason {finish_reason!r}){said}"
    )


def failed_midway(provider: HttpProvider, data: str, status: int = 500) -> OverloadedError:
    """Return the error for a failure that a server reports inside a stream."""
    said = provider.redacted(error_text(data.encode()))
    return OverloadedError(f"{provider.base_url} failed while it answered: {said}", status)
