"""Spores: small structured messages.

A :class:`Spore` is a :class:`Header`, which all its receivers share, and the knowledge, of which
each receiver has its own copy. Knowledge is what JSON can carry. It is encoded once, when the
spore is published; that is the check of type and size, and it makes a local spore look exactly
like one that came over a wire (tuples are lists, dates are ISO 8601 strings).
"""

from __future__ import annotations

import enum
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import chain, count
from typing import Annotated, Any

import msgspec

from praval.errors import KnowledgeError, MalformedSporeError, SporeTooLargeError
from praval.plugins import near

CONTENT_TYPE = "application/vnd.praval.spore+json"
SCHEMA_VERSION = 1
MAX_SIZE = 1_048_576
"""Default limit of encoded knowledge, in bytes."""
HEADER_ROOM = 65_536
"""Bytes that a spore on the wire may take beyond its knowledge."""
DEFAULT_PRIORITY = 5
MAX_DEPTH = 256
"""Most levels of nesting. A fixed limit, so that whoever can send a spore can read it too."""
DEEP = 2 * MAX_DEPTH
"""Size, in bytes, below which knowledge cannot be nested too deep."""
YEAR_10000 = 253_402_300_800
"""The second at which the calendar of ``datetime`` ends."""


class SporeType(enum.StrEnum):
    """What a spore is for."""

    KNOWLEDGE = "knowledge"
    REQUEST = "request"
    RESPONSE = "response"
    BROADCAST = "broadcast"
    NOTIFICATION = "notification"


_TAILS = tuple(f"{tail:03x}" for tail in range(4096))
_prefix = os.urandom(8).hex()


def _block(number: int) -> Iterator[str]:
    return map(f"{_prefix}{number:013x}".__add__, _TAILS)


new_id: Callable[[], str] = chain.from_iterable(map(_block, count())).__next__
"""Return a fresh 128-bit id: 64 random bits, then a counter, in hexadecimal.

Everything that runs per id is C code, which makes it both fast and atomic among threads.
"""


def _reseed() -> None:
    """Draw a new prefix, so that a forked child never repeats an id of its parent."""
    global _prefix  # noqa: PLW0603 - one source of ids per process
    _prefix = os.urandom(8).hex()
    for _ in _TAILS:  # leave the block that was begun with the old prefix
        new_id()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reseed)


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything about a spore but its knowledge; times are UTC seconds since the epoch."""

    id: str
    created_at: Annotated[float, msgspec.Meta(ge=0, lt=YEAR_10000)]
    expires_at: float | None = None
    type: str | None = None
    channel: str = "main"
    from_agent: str | None = None
    to_agent: str | None = None
    priority: Annotated[int, msgspec.Meta(ge=1, le=10)] = DEFAULT_PRIORITY
    spore_type: SporeType = SporeType.KNOWLEDGE
    correlation_id: str | None = None
    reply_to: str | None = None
    root: str | None = None
    hops: Annotated[int, msgspec.Meta(ge=0)] = 0
    deadline: float | None = None
    key: str | None = None
    headers: dict[str, str] | None = None
    data_references: tuple[str, ...] = ()


class _Wire(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A spore as one JSON object."""

    schema: int = msgspec.field(name="praval_spore")
    header: Header
    knowledge: msgspec.Raw
    attempt: Annotated[int, msgspec.Meta(ge=1)] = 1


class Spore(msgspec.Struct, frozen=True, eq=False):
    """A message as one receiver sees it. Immutable; the knowledge is the receiver's own copy."""

    header: Header
    knowledge: dict[str, Any]
    attempt: int = 1
    """1 at the first delivery to this agent, one more at each retry or redelivery."""

    @classmethod
    def create(
        cls,
        knowledge: Mapping[str, Any],
        *,
        type: str | None = None,
        ttl: float | None = None,
        limit: int = MAX_SIZE,
        **fields: Any,
    ) -> Spore:
        """Build a spore.

        Args:
            knowledge: what it says; must be encodable as a JSON object.
            type: message type; default: ``knowledge["type"]``.
            ttl: seconds until it expires; None: never.
            limit: most bytes of encoded knowledge.
            **fields: further fields of :class:`Header` (``channel``, ``to_agent``, ``priority``,
                ``key``, ``headers``, ...).

        Raises:
            KnowledgeError, SporeTooLargeError: the knowledge cannot be carried.
            MalformedSporeError: a field has a wrong type or range.
        """
        raw = encode_knowledge(knowledge, limit)
        decoded = decode_knowledge(raw)
        if type is not None:
            decoded["type"] = type
        now = time.time()
        fields = {"id": new_id(), "created_at": now, **fields, "type": spore_type_of(decoded)}
        if ttl is not None:
            if not (isinstance(ttl, (int, float)) and ttl > 0):
                raise MalformedSporeError(f"ttl must be a number of seconds above 0, not {ttl!r}.")
            fields["expires_at"] = now + ttl
        return cls(_checked_header(fields), decoded)

    def to_bytes(self) -> bytes:
        """Encode as one JSON object (content type ``CONTENT_TYPE``)."""
        return wire_bytes(self.header, encode_knowledge(self.knowledge, None), self.attempt)

    @classmethod
    def from_bytes(cls, data: bytes, *, limit: int = MAX_SIZE) -> Spore:
        """Decode what :meth:`to_bytes` made; unknown fields are ignored, unknown headers kept.

        Raises:
            SporeTooLargeError: more than ``limit`` bytes plus 64 KiB for the header.
            MalformedSporeError: not a spore; the message says what is wrong where.
        """
        header, raw, attempt = read_wire(data, limit)
        return cls(header, decode_knowledge(raw), attempt)

    def replace(self, *, knowledge: Mapping[str, Any] | None = None, **fields: Any) -> Spore:
        """Return a copy with other knowledge or header fields.

        Raises:
            MalformedSporeError: a field has a wrong name, type or range.
        """
        return Spore(
            _checked_header({**msgspec.structs.asdict(self.header), **fields}),
            self.knowledge if knowledge is None else dict(knowledge),
            self.attempt,
        )

    @property
    def id(self) -> str:
        """128 bits in hexadecimal, unique across hosts."""
        return self.header.id

    @property
    def type(self) -> str | None:
        """The message type that ``responds_to`` filters on."""
        return self.header.type

    @property
    def from_agent(self) -> str | None:
        """Name of the agent that emitted it; None: published outside any agent."""
        return self.header.from_agent

    @property
    def to_agent(self) -> str | None:
        """Name of the only receiver; None: whoever listens on the channel."""
        return self.header.to_agent

    @property
    def channel(self) -> str:
        """The channel it was published on."""
        return self.header.channel

    @property
    def created_at(self) -> float:
        """UTC seconds since the epoch."""
        return self.header.created_at

    @property
    def timestamp(self) -> str:
        """``created_at`` as an ISO 8601 string in UTC."""
        return datetime.fromtimestamp(self.header.created_at, UTC).isoformat()

    @property
    def expires_at(self) -> float | None:
        """UTC seconds after which it is not handled any more; None: never."""
        return self.header.expires_at

    @property
    def priority(self) -> int:
        """1 to 10; 10 is the highest."""
        return self.header.priority

    @property
    def spore_type(self) -> SporeType:
        """What it is for (knowledge, request, response, ...)."""
        return self.header.spore_type

    @property
    def correlation_id(self) -> str | None:
        """In a response: the id of the request."""
        return self.header.correlation_id

    @property
    def reply_to(self) -> str | None:
        """In a request: the inbox that waits for the reply."""
        return self.header.reply_to

    @property
    def root(self) -> str:
        """Id of the first ancestor (its own id, if nobody emitted it while handling another)."""
        return self.header.root or self.header.id

    @property
    def hops(self) -> int:
        """Number of ancestors."""
        return self.header.hops

    @property
    def deadline(self) -> float | None:
        """UTC seconds after which nobody waits for the answer; None: nobody waits at all."""
        return self.header.deadline

    @property
    def key(self) -> str | None:
        """Spores with one key are handled strictly in order by each agent."""
        return self.header.key

    @property
    def headers(self) -> dict[str, str]:
        """Further headers (``traceparent``, ``replay_of``, ...), a copy."""
        return dict(self.header.headers or {})

    @property
    def data_references(self) -> list[str]:
        """Storage URIs it carries: declared ones, and those the knowledge holds.

        Keys looked at are ``data_references`` and ``*_reference`` (guide, "Automatic Data
        Reference Management").
        """
        found = list(self.header.data_references)
        for name, value in self.knowledge.items():
            if name == "data_references" and isinstance(value, list):
                found += [item for item in value if _is_uri(item)]
            elif name.endswith("_reference") and _is_uri(value):
                found.append(value)
        return list(dict.fromkeys(found))

    def has_data_references(self) -> bool:
        """Whether :attr:`data_references` is not empty."""
        return bool(self.data_references)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spore):
            return NotImplemented
        return (self.header, self.knowledge, self.attempt) == (
            other.header,
            other.knowledge,
            other.attempt,
        )

    def __hash__(self) -> int:
        return hash(self.header.id)

    def __repr__(self) -> str:
        """Who, what and where, without the knowledge: that may be confidential."""
        head = self.header
        return (
            f"<Spore {head.id} {head.type!r} from {head.from_agent!r} on {head.channel!r}"
            f"{f' to {head.to_agent!r}' if head.to_agent else ''}>"
        )


def _as_plain_text(value: object) -> str:
    """Encode a subclass of str (a model's answer, for instance) as the text that it is."""
    if isinstance(value, str):
        return str(value[:])
    raise TypeError(f"Encoding objects of type {type(value).__name__} is unsupported")


_encoder = msgspec.json.Encoder(enc_hook=_as_plain_text)
raw_encode = _encoder.encode
_decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict)
_wire_decoder = msgspec.json.Decoder(_Wire)
decode_knowledge: Callable[[bytes | msgspec.Raw], dict[str, Any]] = _decoder.decode


def encode_knowledge(knowledge: Mapping[str, Any], limit: int | None) -> bytes:
    """Encode knowledge as a JSON object of at most ``limit`` bytes.

    Raises:
        KnowledgeError: not a mapping, or something in it that JSON cannot carry (the message
            says where), NaN and infinities included.
        SporeTooLargeError: over the limit.
    """
    if knowledge.__class__ is not dict and not isinstance(knowledge, Mapping):
        raise KnowledgeError(
            f"Knowledge must be a mapping of strings to values, not {type(knowledge).__name__}."
        )
    try:
        raw = _encoder.encode(knowledge if isinstance(knowledge, dict) else dict(knowledge))
    except (TypeError, ValueError, OverflowError, RecursionError, UnicodeError) as error:
        raise KnowledgeError(f"{_culprit(knowledge)} cannot be sent: {error}.") from None
    # NaN and infinities are encoded as null, so only a text with a null needs the slow look.
    if raw.find(b"null") >= 0 and (where := _not_finite(knowledge, "knowledge")):
        raise KnowledgeError(f"{where} is not a finite number, which JSON cannot carry.")
    if len(raw) >= DEEP and depth(raw) > MAX_DEPTH:
        raise KnowledgeError(f"The knowledge is nested more than {MAX_DEPTH} levels deep.")
    if limit is not None and len(raw) > limit:
        raise SporeTooLargeError(
            f"The knowledge takes {len(raw)} bytes; the limit is {limit}. Send a reference to the "
            "data instead, or raise security.max_message_size."
        )
    return raw


def depth(raw: bytes) -> int:
    """Return how deep some encoded JSON is nested; exact only above ``MAX_DEPTH`` brackets."""
    brackets = raw.count(b"{") + raw.count(b"[")
    if brackets <= MAX_DEPTH:
        return brackets
    level = deepest = 0
    for token in _BRACKETS.finditer(raw):
        if token[0] in (b"{", b"["):
            level += 1
            deepest = max(deepest, level)
        elif token[0] in (b"}", b"]"):
            level -= 1
    return deepest


_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')
"""Strings (to be passed over) and brackets."""


def spore_type_of(knowledge: Mapping[str, Any]) -> str | None:
    """Return the message type that the knowledge names.

    Raises:
        KnowledgeError: it is not a string.
    """
    kind = knowledge.get("type")
    if kind is None or isinstance(kind, str):
        return kind
    raise KnowledgeError(f"knowledge['type'] must be a string, not {type(kind).__name__}.")


def wire_bytes(header: Header, raw: bytes, attempt: int = 1) -> bytes:
    """Encode a spore whose knowledge is encoded already."""
    return _encoder.encode(
        _Wire(schema=SCHEMA_VERSION, header=header, knowledge=msgspec.Raw(raw), attempt=attempt)
    )


def read_wire(data: bytes, limit: int) -> tuple[Header, bytes, int]:
    """Return header, encoded knowledge and attempt of a spore on the wire.

    Raises:
        SporeTooLargeError, MalformedSporeError: see :meth:`Spore.from_bytes`.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise MalformedSporeError(f"A spore is read from bytes, not from {type(data).__name__}.")
    if len(data) > limit + HEADER_ROOM:
        raise SporeTooLargeError(f"A spore of {len(data)} bytes came in; the limit is {limit}.")
    try:
        wire = _wire_decoder.decode(data)
        if len(data) >= DEEP and depth(bytes(wire.knowledge)) > MAX_DEPTH:
            raise MalformedSporeError(f"A spore nested more than {MAX_DEPTH} levels came in.")
        decode_knowledge(wire.knowledge)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise MalformedSporeError(f"These bytes are not a spore: {error}.") from None
    if wire.schema != SCHEMA_VERSION:
        raise MalformedSporeError(
            f"This spore has schema version {wire.schema}; this Praval reads {SCHEMA_VERSION}. "
            "Upgrade the older side."
        )
    return wire.header, bytes(wire.knowledge), wire.attempt


def _checked_header(fields: dict[str, Any]) -> Header:
    """Make a header of fields that a user named.

    Raises:
        MalformedSporeError: a field has a wrong name, type or range, or JSON cannot carry it.
    """
    if unknown := fields.keys() - set(Header.__struct_fields__):
        name = min(unknown)
        raise MalformedSporeError(
            f"A spore has no field {name!r}.{near(name, Header.__struct_fields__)}"
        )
    for name, value in fields.items():
        if isinstance(value, float) and math.isnan(value):
            raise MalformedSporeError(f"A spore cannot have {name}=NaN.")
    try:
        header = msgspec.convert(fields, Header)
    except msgspec.ValidationError as error:
        raise MalformedSporeError(f"A spore cannot have these fields: {error}.") from None
    try:
        _encoder.encode(header)
    except UnicodeError as error:
        field = _culprit(fields, "").partition(" ")[0]
        raise MalformedSporeError(f"A spore cannot have this field{field}: {error}.") from None
    return header


def _is_uri(value: object) -> bool:
    return isinstance(value, str) and "://" in value


def _children(value: Any, path: str) -> Iterator[tuple[Any, str]]:
    if isinstance(value, Mapping):
        return ((item, f"{path}[{key!r}]") for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return ((item, f"{path}[{index}]") for index, item in enumerate(value))
    names: Any = getattr(value, "__struct_fields__", None)
    names = names or getattr(value, "__dataclass_fields__", ())
    return ((getattr(value, name, None), f"{path}.{name}") for name in names)


def _not_finite(value: Any, path: str) -> str | None:
    """Return the path of a number that is not finite; without recursion, for any depth."""
    waiting = [(value, path)]
    while waiting:
        item, where = waiting.pop()
        if isinstance(item, float):
            if not math.isfinite(item):
                return where
        elif item is not None and not isinstance(item, (str, int)):
            waiting += _children(item, where)
    return None


def _culprit(value: Any, path: str = "knowledge", depth: int = 0) -> str:
    """Return the path of the innermost value that cannot be encoded."""
    for item, where in _children(value, path) if depth < 20 else ():
        try:
            _encoder.encode(item)
        except (TypeError, ValueError, OverflowError, RecursionError, UnicodeError):
            return _culprit(item, where, depth + 1)
    return f"{path} ({type(value).__name__})"
