"""Signed JSON objects in their one canonical form, and the patterns that rights are made of.

An object is ``{"kind": ..., "payload": {...}, "signature": ...}``: keys in alphabetical order, no
spaces, bytes as base64, integers below 2**53, nothing unknown, nothing twice, at most 8 KiB. Bytes
that differ from their own re-encoding are refused, so that no two readers can see two meanings.
The signature is over ``praval.<kind>.v1 || 0x00 || payload``. Sans-IO.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, TypeVar

import msgspec

from praval.core.key_types import SigningKey, VerifyKey
from praval.core.topics import ONE, REST, Topic, matches, parse_pattern, parse_topic
from praval.errors import CardError, SealCode, TopicError

LIMIT = 8192
"""Most bytes of a signed object."""

Key32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Whole = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Patterns = Annotated[tuple[Pattern, ...], msgspec.Meta(max_length=64)]

T = TypeVar("T")


class Payload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is signed. Subclasses name their fields in alphabetical order."""


class Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A payload that was read, as it was signed; nobody has checked the signature yet."""

    kind: Annotated[str, msgspec.Meta(max_length=32)]
    payload: msgspec.Raw
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]

    def is_by(self, key: VerifyKey) -> bool:
        """Whether that key signed it."""
        return key.verify(_label(self.kind), bytes(self.payload), self.signature)


def sign(kind: str, payload: Payload, key: SigningKey) -> bytes:
    """Sign a payload and return the whole object.

    Raises:
        CardError: TOO_LARGE.
    """
    raw = msgspec.json.encode(payload)
    signature = key.sign(_label(kind), raw)
    data = msgspec.json.encode(Signed(kind, msgspec.Raw(raw), signature))
    if len(data) > LIMIT:
        raise CardError(
            f"The {kind} takes {len(data)} bytes; {LIMIT} is the limit. Use fewer patterns.",
            SealCode.TOO_LARGE,
        )
    return data


def read(data: bytes, kind: str, schema: type[T]) -> tuple[T, Signed]:
    """Read an object of one kind; the signature is not checked.

    Raises:
        CardError: TOO_LARGE or MALFORMED; nothing else, whatever the bytes are.
    """
    signed = read_signed(data)
    if signed.kind != kind:
        raise malformed(f"it is a {signed.kind!r}, not a {kind}")
    payload = bytes(signed.payload)
    try:
        read_payload = msgspec.json.decode(payload, type=schema)
        canonical = msgspec.json.encode(read_payload) == payload
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise malformed(f"not a {kind} ({_shown(error)})") from None
    if not canonical:
        raise malformed("its payload is not in canonical form")
    return read_payload, signed


def read_signed(data: bytes) -> Signed:
    """Read the outer object.

    Raises:
        CardError: TOO_LARGE or MALFORMED.
    """
    if len(data) > LIMIT:
        raise CardError(
            f"A signed object of {len(data)} bytes came in; {LIMIT} is the limit.",
            SealCode.TOO_LARGE,
        )
    try:
        signed = msgspec.json.decode(data, type=Signed)
        canonical = msgspec.json.encode(signed) == data
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise malformed(f"no signed object ({_shown(error)})") from None
    if not canonical:
        raise malformed("it is not in canonical form")
    return signed


def malformed(what: str) -> CardError:
    """Make the error for bytes that are not what they should be."""
    return CardError(f"These bytes cannot be used: {what}.", SealCode.MALFORMED)


def _label(kind: str) -> bytes:
    return f"praval.{kind}.v1".encode()


def _shown(error: Exception) -> str:
    """What the parser says, which quotes no more than the position."""
    return str(error)[:120]


# -- patterns --------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def pattern(text: str) -> Topic:
    """Read a pattern of topics.

    Raises:
        CardError: MALFORMED.
    """
    try:
        return parse_pattern(text)
    except TopicError as error:
        raise malformed(str(error).rstrip(".")) from None


@lru_cache(maxsize=4096)
def allows(patterns: tuple[str, ...], topic: str) -> bool:
    """Whether one of these patterns matches a topic."""
    try:
        segments = parse_topic(topic)
    except TopicError:
        return False
    return any(matches(pattern(each), segments) for each in patterns)


def covers(wide: Sequence[str], narrow: Sequence[str]) -> bool:
    """Whether each topic that some narrow pattern matches is matched by one of the wide ones."""
    return all(any(_covers(pattern(w), pattern(n)) for w in wide) for n in narrow)


def _covers(wide: Topic, narrow: Topic) -> bool:
    for position, segment in enumerate(wide):
        if segment == REST:
            return True
        if position >= len(narrow) or narrow[position] == REST:
            return False
        if segment not in (ONE, narrow[position]):
            return False
    return len(wide) == len(narrow)
