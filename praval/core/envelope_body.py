"""The plain body of an envelope: the inner type, a few fields of the spore, the knowledge.

::

    2 bytes   length of the type; 0: none
    4 bytes   length of the further fields; 0: none
    type      UTF-8
    fields    JSON in its one canonical form
    the rest  the knowledge: a JSON object, as the publisher encoded it

The header of an envelope is authenticated; a body that says something of its own about a field of
the header is malformed, and so is knowledge whose ``"type"`` is not the inner type. Sans-IO.
"""

from __future__ import annotations

from struct import Struct
from typing import Annotated, Any

import msgspec

from praval.errors import EnvelopeError

LENGTHS = Struct(">HI")
LONGEST_TYPE, LONGEST_FIELDS = 1024, 65_536


class Fields(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True
):
    """Fields of a spore that no header of an envelope has."""

    channel: str | None = None
    """The channel, where the topic does not tell it."""
    data_references: tuple[str, ...] = ()
    deadline: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] | None = None
    """UTC milliseconds."""
    headers: dict[str, str] | None = None
    hops: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] = 0
    inbox: str | None = None
    """In a request: the topic on which its reply is awaited."""
    key: str | None = None
    root: str | None = None


NO_FIELDS = Fields()
_fields_decoder = msgspec.json.Decoder(Fields)
_knowledge_decoder: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


def encode_body(kind: str | None, knowledge: bytes, fields: Fields = NO_FIELDS) -> bytes:
    """Make a body of knowledge that is encoded already (UTF-8 JSON).

    Raises:
        EnvelopeError: the type or the fields are too long, or no UTF-8.
    """
    try:
        name = (kind or "").encode()
        more = b"" if fields == NO_FIELDS else msgspec.json.encode(fields)
    except UnicodeEncodeError:
        raise EnvelopeError("The spore has text that UTF-8 cannot carry.") from None
    if len(name) > LONGEST_TYPE or len(more) > LONGEST_FIELDS:
        raise EnvelopeError(
            f"A type has at most {LONGEST_TYPE} bytes, and headers, key and references together "
            f"{LONGEST_FIELDS}. Put large values into the knowledge."
        )
    return b"".join((LENGTHS.pack(len(name), len(more)), name, more, knowledge))


def body_type(body: bytes) -> str | None:
    """Return the inner type alone.

    Raises:
        EnvelopeError: MALFORMED.
    """
    return _text(body[LENGTHS.size : _ends(body)[0]])


def decode_body(body: bytes, max_depth: int = 256) -> tuple[str | None, dict[str, Any], Fields]:
    """Return the type, the decoded knowledge and the further fields of a body.

    Raises:
        EnvelopeError: MALFORMED; nothing else, whatever the bytes are.
    """
    type_ends, fields_end = _ends(body)
    kind = _text(body[LENGTHS.size : type_ends])
    fields = _fields(body[type_ends:fields_end])
    raw = body[fields_end:]
    if raw[:1] != b"{":
        raise _malformed("its knowledge is no JSON object")
    try:
        knowledge = _knowledge_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _malformed("its knowledge cannot be read as JSON") from None
    if raw.count(b"{") + raw.count(b"[") > max_depth and _deeper(knowledge, max_depth):
        raise _malformed(f"its knowledge is nested more than {max_depth} levels")
    named = knowledge.get("type")
    if (None if named == "" else named) != kind:
        raise _malformed("its type is not the one that its knowledge names")
    return kind, knowledge, fields


def _ends(body: bytes) -> tuple[int, int]:
    if len(body) < LENGTHS.size:
        raise _malformed("it is too short")
    name, more = LENGTHS.unpack_from(body)
    fields_end = LENGTHS.size + name + more
    if name > LONGEST_TYPE or more > LONGEST_FIELDS or fields_end > len(body):
        raise _malformed("its lengths do not add up")
    return LENGTHS.size + name, fields_end


def _text(raw: bytes) -> str | None:
    try:
        return str(raw, "utf-8") or None
    except UnicodeDecodeError:
        raise _malformed("its type is no UTF-8") from None


def _fields(raw: bytes) -> Fields:
    if not raw:
        return NO_FIELDS
    try:
        fields = _fields_decoder.decode(raw)
        if msgspec.json.encode(fields) == raw and fields != NO_FIELDS:
            return fields
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass  # as wrong as what is not canonical
    raise _malformed("its fields are unknown, repeat the header's, or are not canonical JSON")


def _deeper(value: Any, levels: int) -> bool:
    """Whether decoded JSON is nested deeper than that, without recursion."""
    level = [value]
    for _ in range(levels):
        level = [
            inner
            for item in level
            for inner in (item.values() if isinstance(item, dict) else item)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def _malformed(what: str) -> EnvelopeError:
    return EnvelopeError(f"The body of the envelope is malformed: {what}.")
