"""What goes to a model and what comes back, in words of no vendor.

A provider turns a :class:`ChatRequest` into its vendor's JSON and the vendor's answer into a
:class:`Response`. Providers written with a plain ``chat`` get messages as dicts instead, in the
shape of OpenAI's chat completions (:func:`as_dicts`), which is what most servers understand.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import msgspec

from praval.errors import ConfigurationError

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "error"]

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
)


class Image(msgspec.Struct, frozen=True):
    """A picture in a question: by its address, or by its bytes (PNG, JPEG, GIF or WebP)."""

    url: str | None = None
    data: bytes | None = None

    @classmethod
    def of(cls, source: ImageSource) -> Image:
        """Make an image of an address, a file's path, bytes, or return one as it is.

        Reads files: not on an event loop.

        Raises:
            ConfigurationError: no such file, or none of the four formats.
        """
        if isinstance(source, Image):
            return source
        if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
            return cls(url=source)
        if isinstance(source, str | Path):
            try:
                source = Path(source).read_bytes()
            except OSError as error:
                raise ConfigurationError(
                    f"The image {source!s} cannot be read: {error.strerror}."
                ) from None
        if not isinstance(source, bytes):
            raise ConfigurationError(
                f"An image is an address, a path, bytes or an Image, not {type(source).__name__}."
            )
        image = cls(data=source)
        if not image.media_type:
            raise ConfigurationError("An image must be PNG, JPEG, GIF or WebP; this is neither.")
        return image

    @property
    def media_type(self) -> str:
        """Type of the bytes by their beginning; empty for an address or an unknown format."""
        data = self.data or b""
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return "image/webp"
        return next((kind for magic, kind in _MAGIC if data.startswith(magic)), "")

    @property
    def base64(self) -> str:
        """The bytes as base64; empty for an address."""
        return base64.b64encode(self.data or b"").decode()

    @property
    def address(self) -> str:
        """The address, or the bytes as a ``data:`` URL."""
        return self.url or f"data:{self.media_type};base64,{self.base64}"


ImageSource: TypeAlias = "Image | str | Path | bytes"


class ToolCall(msgspec.Struct, frozen=True):
    """A model's wish to have a tool called."""

    id: str
    name: str
    arguments: str
    """JSON text, as the model wrote it: not necessarily valid."""


class ToolSpec(msgspec.Struct, frozen=True):
    """A tool as a model sees it; ``parameters`` is a JSON schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


class OutputSchema(msgspec.Struct, frozen=True):
    """The JSON schema that an answer must fit."""

    name: str
    schema: dict[str, Any]


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation."""

    role: Role
    content: str = ""
    images: tuple[Image, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """In a turn of role "tool": the call that it answers."""
    is_error: bool = False
    """In a turn of role "tool": the tool failed, and the content says how."""
    raw: Any = None
    """An assistant's turn as its vendor wrote it, for that vendor only (signed thoughts etc.)."""
    raw_of: str | None = None
    """The wire format of ``raw``."""

    @classmethod
    def of(cls, source: Message | Mapping[str, Any]) -> Message:
        """Read a message from a dict with ``role`` and ``content``, or return one as it is.

        Raises:
            ConfigurationError: it is no message.
        """
        if isinstance(source, Message):
            return source
        try:
            return msgspec.convert(dict(source), cls)
        except (msgspec.ValidationError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f'A message is a dict with "role" and "content", or a Message: {error}.'
            ) from None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one or several model calls, as the provider counted them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Part of ``input_tokens`` that the provider read from its own cache, at a lower price."""
    reasoning_tokens: int = 0
    """Part of ``output_tokens`` that is thought and not said."""

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            *(mine + theirs for mine, theirs in zip(tuple_of(self), tuple_of(other), strict=True))
        )


def tuple_of(usage: Usage) -> tuple[int, int, int, int]:
    """Return the four counts in the order of the fields."""
    return msgspec.structs.astuple(usage)


class Response(str):
    """A model's answer: its text, and what is known about it.

    It is a string, so it can be used, compared, stored and sent like any other.
    """

    usage: Usage
    cost: float | None
    """US dollars; None: the price of the model is not known (see :func:`set_price`)."""
    model: str | None
    """The model that answered, by its provider's name for it."""
    provider: str | None
    """The provider that answered, by the name under which it was asked."""
    finish_reason: str
    """"stop", "length", "tool_calls", "content_filter", or the vendor's own word."""
    tool_calls: tuple[ToolCall, ...]
    """What the model wants called; empty after ``chat``, which calls them."""
    cached: bool
    """Whether it came from the response cache: nothing was asked, nothing paid."""
    raw: Any
    raw_of: str | None

    def __new__(  # noqa: D102 - the class docstring describes it
        cls,
        text: str = "",
        *,
        usage: Usage | None = None,
        cost: float | None = None,
        model: str | None = None,
        provider: str | None = None,
        finish_reason: str = "stop",
        tool_calls: Iterable[ToolCall] = (),
        cached: bool = False,
        raw: Any = None,
        raw_of: str | None = None,
    ) -> Self:
        self = super().__new__(cls, text)
        self.usage = usage or Usage()
        self.cost = cost
        self.model = model
        self.provider = provider
        self.finish_reason = finish_reason
        self.tool_calls = tuple(tool_calls)
        self.cached = cached
        self.raw = raw
        self.raw_of = raw_of
        return self

    @property
    def text(self) -> str:
        """The answer as a plain string."""
        return self[:]

    def altered(self, **changes: Any) -> Self:
        """Return a copy with these attributes changed (``text`` too)."""
        return type(self)(**{"text": self.text, **vars(self), **changes})

    def as_message(self) -> Message:
        """Return the answer as the assistant's turn of a conversation."""
        return Message(
            "assistant", self.text, tool_calls=self.tool_calls, raw=self.raw, raw_of=self.raw_of
        )


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One question to one model."""

    messages: tuple[Message, ...]
    model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    tools: tuple[ToolSpec, ...] = ()
    output: OutputSchema | None = None
    timeout: float | None = None
    """Seconds for this one request."""
    options: dict[str, Any] = msgspec.field(default_factory=dict)
    """What the caller gave beyond these; goes into the vendor's request as it is."""

    @property
    def system(self) -> str:
        """The system turns as one text."""
        return "\n\n".join(each.content for each in self.messages if each.role == "system")

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages without the system turns."""
        return tuple(each for each in self.messages if each.role != "system")


def as_dicts(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return messages in the shape of OpenAI's chat completions."""
    return [_as_dict(message) for message in messages]


def _as_dict(message: Message) -> dict[str, Any]:
    if message.role == "tool":
        return {
            "role": "tool",
            "tool_call_id": message.tool_call_id,
            "content": message.content,
        }
    if message.tool_calls:
        return {
            "role": "assistant",
            "content": message.content or None,
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in message.tool_calls
            ],
        }
    if message.images:
        parts: list[dict[str, Any]] = [{"type": "text", "text": message.content}]
        parts += [
            {"type": "image_url", "image_url": {"url": image.address}} for image in message.images
        ]
        return {"role": message.role, "content": parts}
    return {"role": message.role, "content": message.content}


def as_functions(tools: Iterable[ToolSpec]) -> list[dict[str, Any]]:
    """Return tools in the shape of OpenAI's chat completions."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
            },
        }
        for tool in tools
    ]


def in_words(request: ChatRequest, output: OutputSchema) -> ChatRequest:
    """Return the request with the wanted schema as a system turn, for who takes no schema."""
    system = [each for each in request.messages if each.role == "system"]
    words = Message("system", instruction(output))
    return msgspec.structs.replace(request, messages=(*system, words, *request.turns), output=None)


def instruction(output: OutputSchema) -> str:
    """Return the words that ask for an answer of this schema."""
    schema = msgspec.json.encode(output.schema).decode()
    return (
        "Answer with one JSON value and nothing else: no explanation, no code fence. It must fit "
        f"this JSON schema: {schema}"
    )
