"""What each vendor's server accepts and says, after the vendor's own published types.

Requests are checked against the JSON schema of the request types in the vendor's SDK, with every
object closed: an unknown or misplaced key is a problem, as it is for the vendor. Answers have the
shapes of the SDK's response types, and are checked against them in ``test_dialects.py``.
"""

from __future__ import annotations

import functools
import inspect
import json
import warnings
from collections.abc import Sequence
from typing import Any

import jsonschema
import pydantic
from pydantic.json_schema import GenerateJsonSchema

from praval.testing import Dialect, Request

Calls = Sequence[tuple[str, str, str]]


class _Lenient(GenerateJsonSchema):
    """Files and the like, which JSON cannot carry, match nothing."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {"not": {}}


def closed(schema: Any) -> Any:
    """Refuse every key that the schema does not name."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: closed(value) for key, value in schema.items()}
    if isinstance(copy.get("properties"), dict):
        copy["additionalProperties"] = False
    return copy


@functools.cache
def checker(kind: Any) -> jsonschema.Draft202012Validator:
    """Return what checks JSON against a type of an SDK."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = pydantic.TypeAdapter(kind).json_schema(schema_generator=_Lenient)
    return jsonschema.Draft202012Validator(closed(schema))


def mismatch(kind: Any, value: Any) -> str | None:
    """Return the first thing in which some JSON differs from a type, or None."""
    errors = sorted(checker(kind).iter_errors(value), key=lambda error: list(error.absolute_path))
    if not errors:
        return None
    best = jsonschema.exceptions.best_match(errors)
    where = "/".join(map(str, best.absolute_path))
    return f"at {where or 'the top'}: {best.message[:300]}"


def sse(*events: Any, named: bool = False) -> bytes:
    """Encode events."""
    lines = []
    for event in events:
        name = f"event: {event['type']}\n" if named else ""
        data = event if isinstance(event, str) else json.dumps(event)
        lines.append(f"{name}data: {data}\n\n")
    return "".join(lines).encode()


# ------------------------------------------------------------------------------------- OpenAI


class OpenAIChat(Dialect):
    """Chat completions."""

    model = "gpt-6-luna"
    limit = "max_completion_tokens"

    def problem(self, request: Request) -> str | None:
        from openai.types.chat import completion_create_params as params

        body = request.json
        kind = (
            params.CompletionCreateParamsStreaming
            if isinstance(body, dict) and body.get("stream")
            else params.CompletionCreateParamsNonStreaming
        )
        return mismatch(kind, body) or self._limits(body) or _unanswered(body["messages"])

    def _limits(self, body: Any) -> str | None:
        wrong = {"max_tokens", "max_completion_tokens"} - {self.limit}
        return f"{wrong} is deprecated" if wrong & set(body) else None

    def usage(self, input_tokens: int, output_tokens: int) -> dict[str, Any]:
        return {
            "prompt_tokens": input_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }

    def _completion(self, message: dict[str, Any], reason: str, usage: dict[str, Any]) -> bytes:
        choice = {"index": 0, "finish_reason": reason, "logprobs": None, "message": message}
        return json.dumps(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1_790_000_000,
                "model": self.model,
                "choices": [choice],
                "usage": usage,
                "service_tier": "default",
                "system_fingerprint": "fp_1",
            }
        ).encode()

    def text(self, text: str, *, input_tokens: int = 11, output_tokens: int = 7) -> bytes:
        message = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        return self._completion(message, "stop", self.usage(input_tokens, output_tokens))

    def calls(self, calls: Calls) -> bytes:
        message = {"role": "assistant", "content": None, "refusal": None}
        message["tool_calls"] = [_function(*call) for call in calls]  # type: ignore[assignment]
        return self._completion(message, "tool_calls", self.usage(11, 7))

    def chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1_790_000_000,
            "model": self.model,
            "choices": [choice],
            "usage": None,
        }

    def _ended(self, reason: str, usage: dict[str, Any]) -> bytes:
        last = {**self.chunk({}), "choices": [], "usage": usage}
        return sse(self.chunk({}, reason), last, "[DONE]")

    def events(
        self, pieces: Sequence[str], *, input_tokens: int = 11, output_tokens: int = 7
    ) -> list[bytes]:
        first, *rest = pieces
        opening = self.chunk({"role": "assistant", "content": "", "refusal": None})
        return [
            sse(opening, self.chunk({"content": first})),
            *(sse(self.chunk({"content": piece})) for piece in rest),
            self._ended("stop", self.usage(input_tokens, output_tokens)),
        ]

    def call_events(self, calls: Calls) -> list[bytes]:
        sent = [sse(self.chunk({"role": "assistant", "content": None}))]
        for index, (id, name, arguments) in enumerate(calls):
            half = len(arguments) // 2
            begun = {**_function(id, name, ""), "index": index}
            sent.append(sse(self.chunk({"tool_calls": [begun]})))
            for part in (arguments[:half], arguments[half:]):
                more = {"index": index, "function": {"arguments": part}}
                sent.append(sse(self.chunk({"tool_calls": [more]})))
        return [*sent, self._ended("tool_calls", self.usage(11, 7))]

    def failure_event(self) -> bytes:
        error = {"message": "The server had an error", "type": "server_error", "code": None}
        return sse({"error": error})

    def error(self, status: int, message: str) -> bytes:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        return json.dumps({"error": error}).encode()


class Compatible(OpenAIChat):
    """Servers like vLLM and Ollama: chat completions with the older name of the limit."""

    model = "tiny"
    limit = "max_tokens"


def _function(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _unanswered(messages: Any) -> str | None:
    """Each tool call must be answered, and each answer must have its call."""
    called = {call["id"] for each in messages for call in each.get("tool_calls") or ()}
    answered = {each["tool_call_id"] for each in messages if each["role"] == "tool"}
    return None if called == answered else f"calls {called} have answers {answered}"


class OpenAIResponses(Dialect):
    """The responses API."""

    path = "/responses"

    def problem(self, request: Request) -> str | None:
        from openai.types.responses import response_create_params as params

        body = request.json
        kind = (
            params.ResponseCreateParamsStreaming
            if isinstance(body, dict) and body.get("stream")
            else params.ResponseCreateParamsNonStreaming
        )
        if found := mismatch(kind, body):
            return found
        items = body["input"]
        called = {each["call_id"] for each in items if each.get("type") == "function_call"}
        answered = {each["call_id"] for each in items if each.get("type") == "function_call_output"}
        if called != answered:
            return f"calls {called} have answers {answered}"
        if called and not any(each.get("type") == "reasoning" for each in items):
            return "function_call was provided without its required reasoning item"
        return None

    def response(
        self, output: list[Any], input_tokens: int = 11, output_tokens: int = 7
    ) -> dict[str, Any]:
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": 1_790_000_000.0,
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": "gpt-6-luna",
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": {
                "input_tokens": input_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": input_tokens + output_tokens,
            },
        }

    def message(self, text: str) -> dict[str, Any]:
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [part],
        }

    def thought(self) -> dict[str, Any]:
        return {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "gAAA"}

    def called(self, calls: Calls) -> list[Any]:
        return [
            self.thought(),
            *(
                {
                    "id": f"fc_{id}",
                    "type": "function_call",
                    "call_id": id,
                    "name": name,
                    "arguments": arguments,
                    "status": "completed",
                }
                for id, name, arguments in calls
            ),
        ]

    def text(self, text: str, *, input_tokens: int = 11, output_tokens: int = 7) -> bytes:
        return json.dumps(self.response([self.message(text)], input_tokens, output_tokens)).encode()

    def calls(self, calls: Calls) -> bytes:
        return json.dumps(self.response(self.called(calls))).encode()

    def events(
        self, pieces: Sequence[str], *, input_tokens: int = 11, output_tokens: int = 7
    ) -> list[bytes]:
        whole = self.response([self.message("".join(pieces))], input_tokens, output_tokens)
        begun = {**whole, "output": [], "status": "in_progress", "usage": None}
        numbers = iter(range(1000))
        where = {"item_id": "msg_1", "output_index": 0, "content_index": 0, "logprobs": []}

        def event(kind: str, **fields: Any) -> dict[str, Any]:
            return {"type": kind, "sequence_number": next(numbers), **fields}

        sent = [
            sse(event("response.output_text.delta", delta=piece, **where), named=True)
            for piece in pieces
        ]
        sent[0] = sse(event("response.created", response=begun), named=True) + sent[0]
        return [*sent, sse(event("response.completed", response=whole), named=True)]

    def call_events(self, calls: Calls) -> list[bytes]:
        whole = self.response(self.called(calls))
        begun = {**whole, "output": [], "status": "in_progress", "usage": None}
        return [
            sse({"type": "response.created", "sequence_number": 0, "response": begun}, named=True),
            sse({"type": "response.completed", "sequence_number": 1, "response": whole},
                named=True),
        ]  # fmt: skip

    def failure_event(self) -> bytes:
        error = {"code": "server_error", "message": "The server had an error", "param": None}
        return sse({"type": "error", "sequence_number": 9, **error}, named=True)

    def error(self, status: int, message: str) -> bytes:
        return OpenAIChat().error(status, message)


# ---------------------------------------------------------------------------------- Anthropic


class Anthropic(Dialect):
    """The messages API, version 2026-10-21; with ``thinks``, a model that signs its thoughts."""

    path = "/v1/messages"
    prefix = ""
    version = "2026-10-21"

    def __init__(self, *, thinks: bool = False) -> None:
        self.thinks = thinks

    def problem(self, request: Request) -> str | None:
        from anthropic.types import message_create_params as params

        if request.headers.get("anthropic-version") != self.version:
            return "anthropic-version: header is required"
        body = request.json
        kind = (
            params.MessageCreateParamsStreaming
            if isinstance(body, dict) and body.get("stream")
            else params.MessageCreateParamsNonStreaming
        )
        return mismatch(kind, body) or self._turns(body["messages"])

    def _turns(self, messages: list[Any]) -> str | None:
        called: set[str] = set()
        for each in messages:
            blocks = each["content"] if isinstance(each["content"], list) else []
            answered = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
            if answered != called:
                return f"`tool_use` ids {called} were found without `tool_result`: {answered}"
            called = {block["id"] for block in blocks if block["type"] == "tool_use"}
            if called and self.thinks and blocks[0].get("signature") != "sig==":
                return "a final `assistant` message must start with a thinking block"
        if messages[0]["role"] != "user":
            return "first message must use the user role"
        return "tool_use ids without tool_result" if called else None

    def usage(self, input_tokens: int, output_tokens: int) -> dict[str, Any]:
        return {
            "input_tokens": input_tokens - 2,
            "cache_read_input_tokens": 2,
            "cache_creation_input_tokens": 0,
            "output_tokens": output_tokens,
            "service_tier": "standard",
        }

    def message(self, content: list[Any], reason: str | None, usage: Any) -> dict[str, Any]:
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-haiku-5-5",
            "content": content,
            "stop_reason": reason,
            "stop_sequence": None,
            "usage": usage,
        }

    def _thought(self) -> list[Any]:
        thought = {"type": "thinking", "thinking": "Hm.", "signature": "sig=="}
        return [thought] if self.thinks else []

    def text(self, text: str, *, input_tokens: int = 11, output_tokens: int = 7) -> bytes:
        content = [*self._thought(), {"type": "text", "text": text, "citations": None}]
        usage = self.usage(input_tokens, output_tokens)
        return json.dumps(self.message(content, "end_turn", usage)).encode()

    def calls(self, calls: Calls) -> bytes:
        content = [
            *self._thought(),
            *(
                {"type": "tool_use", "id": id, "name": name, "input": json.loads(arguments)}
                for id, name, arguments in calls
            ),
        ]
        return json.dumps(self.message(content, "tool_use", self.usage(11, 7))).encode()

    def _begun(self, input_tokens: int) -> list[Any]:
        start = self.message([], None, self.usage(input_tokens, 1))
        begun: list[Any] = [{"type": "message_start", "message": start}, {"type": "ping"}]
        if self.thinks:
            block = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = (
                {"type": "thinking_delta", "thinking": "Hm."},
                {"type": "signature_delta", "signature": "sig=="},
            )
            begun += self._block(0, block, deltas)
        return begun

    def _block(self, index: int, block: Any, deltas: Sequence[Any]) -> list[Any]:
        return [
            {"type": "content_block_start", "index": index, "content_block": block},
            *({"type": "content_block_delta", "index": index, "delta": each} for each in deltas),
            {"type": "content_block_stop", "index": index},
        ]

    def _ended(self, reason: str, output_tokens: int) -> list[Any]:
        delta = {"stop_reason": reason, "stop_sequence": None}
        return [
            {"type": "message_delta", "delta": delta, "usage": {"output_tokens": output_tokens}},
            {"type": "message_stop"},
        ]

    def events(
        self, pieces: Sequence[str], *, input_tokens: int = 11, output_tokens: int = 7
    ) -> list[bytes]:
        deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
        index = int(self.thinks)
        start, *middle, stop = self._block(index, {"type": "text", "text": ""}, deltas)
        first, *rest = middle
        return [
            sse(*self._begun(input_tokens), start, first, named=True),
            *(sse(each, named=True) for each in rest),
            sse(stop, *self._ended("end_turn", output_tokens), named=True),
        ]

    def call_events(self, calls: Calls) -> list[bytes]:
        sent = self._begun(11)
        for index, (id, name, arguments) in enumerate(calls, int(self.thinks)):
            half = len(arguments) // 2
            block = {"type": "tool_use", "id": id, "name": name, "input": {}}
            parts = [
                {"type": "input_json_delta", "partial_json": part}
                for part in ("", arguments[:half], arguments[half:])
            ]
            sent += self._block(index, block, parts)
        return [sse(each, named=True) for each in (*sent, *self._ended("tool_use", 7))]

    def failure_event(self) -> bytes:
        error = {"type": "overloaded_error", "message": "Overloaded"}
        return sse({"type": "error", "error": error}, named=True)

    def error(self, status: int, message: str) -> bytes:
        error = {"type": "invalid_request_error", "message": message}
        return json.dumps({"type": "error", "error": error, "request_id": "req_1"}).encode()


# ------------------------------------------------------------------------------------- Cohere


@functools.cache
def _cohere_request(*, stream: bool) -> Any:
    """Return the type of the body that Cohere's client sends, made of its method's signature."""
    from cohere.v2.client import V2Client

    method = V2Client.chat_stream if stream else V2Client.chat
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(method, eval_str=True).parameters.items():
        if name not in ("self", "request_options"):
            default = ... if parameter.default is parameter.empty else None
            fields[name] = (parameter.annotation, default)
    fields["stream"] = (bool, ...)
    return pydantic.create_model("CohereChat", **fields)


class Cohere(Dialect):
    """Chat, version 2."""

    path = "/v2/chat"
    prefix = ""

    def problem(self, request: Request) -> str | None:
        body = request.json
        kind = _cohere_request(stream=bool(isinstance(body, dict) and body.get("stream")))
        return mismatch(kind, body) or _unanswered(body["messages"])

    def usage(self, input_tokens: int, output_tokens: int) -> dict[str, Any]:
        return {
            "billed_units": {"input_tokens": input_tokens, "output_tokens": output_tokens},
            "tokens": {"input_tokens": input_tokens + 60, "output_tokens": output_tokens + 2},
        }

    def _answer(self, message: dict[str, Any], reason: str, usage: dict[str, Any]) -> bytes:
        return json.dumps(
            {"id": "1", "finish_reason": reason, "message": message, "usage": usage}
        ).encode()

    def text(self, text: str, *, input_tokens: int = 11, output_tokens: int = 7) -> bytes:
        message = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        return self._answer(message, "COMPLETE", self.usage(input_tokens, output_tokens))

    def calls(self, calls: Calls) -> bytes:
        message = {
            "role": "assistant",
            "tool_plan": "I will look.",
            "tool_calls": [_function(*call) for call in calls],
        }
        return self._answer(message, "TOOL_CALL", self.usage(11, 7))

    def _started(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [],
                   "citations": []}  # fmt: skip
        return {"type": "message-start", "id": "1", "delta": {"message": message}}

    def _ended(self, reason: str, usage: dict[str, Any]) -> list[Any]:
        delta = {"finish_reason": reason, "usage": usage}
        return [{"type": "message-end", "id": "1", "delta": delta}]

    def events(
        self, pieces: Sequence[str], *, input_tokens: int = 11, output_tokens: int = 7
    ) -> list[bytes]:
        def content(kind: str, part: dict[str, str]) -> dict[str, Any]:
            return {"type": kind, "index": 0, "delta": {"message": {"content": part}}}

        first, *rest = [content("content-delta", {"text": piece}) for piece in pieces]
        start = content("content-start", {"type": "text", "text": ""})
        ended = self._ended("COMPLETE", self.usage(input_tokens, output_tokens))
        return [
            sse(self._started(), start, first, named=True),
            *(sse(each, named=True) for each in rest),
            sse({"type": "content-end", "index": 0}, *ended, named=True),
        ]

    def call_events(self, calls: Calls) -> list[bytes]:
        plan = {"type": "tool-plan-delta", "delta": {"message": {"tool_plan": "I will look."}}}
        sent: list[Any] = [self._started(), plan]
        for index, (id, name, arguments) in enumerate(calls):
            half = len(arguments) // 2

            def event(kind: str, call: dict[str, Any], index: int = index) -> dict[str, Any]:
                return {"type": kind, "index": index, "delta": {"message": {"tool_calls": call}}}

            sent.append(event("tool-call-start", _function(id, name, "")))
            for part in (arguments[:half], arguments[half:]):
                sent.append(event("tool-call-delta", {"function": {"arguments": part}}))
            sent.append({"type": "tool-call-end", "index": index})
        ended = self._ended("TOOL_CALL", self.usage(11, 7))
        return [sse(each, named=True) for each in (*sent, *ended)]

    def failure_event(self) -> bytes:
        delta = {"finish_reason": "ERROR", "error": "generation failed"}
        return sse({"type": "message-end", "id": "1", "delta": delta}, named=True)

    def error(self, status: int, message: str) -> bytes:
        return json.dumps({"id": "1", "message": message}).encode()
