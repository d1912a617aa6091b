"""MQTT 5's publications as bytes: their headers, and what else comes with them.

paho's ``Properties`` would do, but it takes longer than all the rest of a message, copies the body
with each property, and takes a message with U+FEFF in a header for a malformed packet.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote

from paho.mqtt.properties import Properties

from praval.errors import ConfigurationError

LONGEST_TEXT = 65_535
"""Bytes of a header's name, of its value, and of a topic."""
FOREVER = 0xFFFF_FFFE
"""The most seconds that a message or a session is kept; one more means without end."""
QUOTED = "praval-quoted"
"""Header of a message whose headers are percent-encoded: MQTT has no control characters."""

EXPIRY, IDENTIFIER, PAIR = 0x02, 0x0B, 0x26
_SIZES = {0x01: 1, EXPIRY: 4, 0x23: 2}
"""Bytes of the properties that have as many always; others begin with their length."""

_UNSENDABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef\ufeff\ufffe\uffff"
    + "".join(f"\\U{plane:04X}FFFE\\U{plane:04X}FFFF" for plane in range(1, 17))
    + "]"
)
"""Control characters and what is no character: brokers hang up for them, paho for U+FEFF."""


def make_properties(kind: int, **values: object) -> Properties:
    """Make the properties of a packet; None: leave one out."""
    properties = Properties(kind)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        if value is not None:
            setattr(properties, name, value)
    return properties


class Packed(Properties):
    """The properties of a publication, as paho wants them, and packed already."""

    packed: bytes

    def __init__(self, headers: Mapping[str, str], ttl: float | None = None) -> None:
        if _UNSENDABLE.search("".join((*headers, *headers.values()))):
            headers = {quote(name): quote(value) for name, value in headers.items()}
            headers[QUOTED] = "1"
        packed = bytearray()
        if ttl is not None:
            packed.append(EXPIRY)
            packed += min(math.ceil(ttl), FOREVER).to_bytes(4)
        for pair in headers.items():
            packed.append(PAIR)
            for text in pair:
                encoded = text.encode()
                if len(encoded) > LONGEST_TEXT:
                    raise ConfigurationError(
                        f"The header {pair[0][:40]!r} takes more than {LONGEST_TEXT} bytes, which "
                        "MQTT cannot carry: put it into the body."
                    )
                packed += len(encoded).to_bytes(2) + encoded
        # paho's class takes nothing for an attribute that is no property
        object.__setattr__(self, "packed", _pack_number(len(packed)) + packed)

    def pack(self) -> bytes:
        """Return the bytes for the packet."""
        return self.packed


class Publication(NamedTuple):
    """A message as it came in."""

    topic: str
    body: bytes
    headers: dict[str, str]
    packet: int
    """Its identifier; 0 if the broker wants no acknowledgement."""
    again: bool
    """Whether it may have come before."""
    identifiers: list[int]
    """Of the subscriptions that it comes for, as far as they have one."""


def read_publication(first: int, packet: bytes | bytearray) -> Publication:
    """Read a PUBLISH packet: its first byte, and what follows its length.

    Raises:
        IndexError, ValueError: it is none.
    """
    view = memoryview(packet)
    topic, at = _read_text(view, 0)
    identifier = 0
    if first & 0x06:
        identifier = int.from_bytes(view[at : at + 2])
        at += 2
    size, at = _read_number(view, at)
    end = at + size
    headers: dict[str, str] = {}
    identifiers: list[int] = []
    while at < end:
        kind = view[at]
        if kind == PAIR:
            name, at = _read_text(view, at + 1)
            headers[name], at = _read_text(view, at)
        elif kind == IDENTIFIER:
            number, at = _read_number(view, at + 1)
            identifiers.append(number)
        else:
            length = _SIZES.get(kind)
            if length is None:
                length = 2 + int.from_bytes(view[at + 1 : at + 3])
            at += 1 + length
    if end > len(view):
        raise ValueError("The packet ends within its properties.")
    if headers.pop(QUOTED, None) is not None:
        headers = {unquote(name): unquote(value) for name, value in headers.items()}
    return Publication(
        topic, bytes(view[end:]), headers, identifier, bool(first & 0x08), identifiers
    )


def _read_text(view: memoryview, at: int) -> tuple[str, int]:
    start = at + 2
    end = start + int.from_bytes(view[at:start])
    if end > len(view):
        raise ValueError("The packet ends within a text.")
    return str(view[start:end], "utf-8"), end


def _read_number(view: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = view[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return number, at
        shift += 7


def _pack_number(number: int) -> bytes:
    packed = bytearray()
    while number > 0x7F:
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    packed.append(number)
    return bytes(packed)
