"""Topics: where on a transport a message goes, and which of them a subscription hears.

A topic is a list of segments. It is written with dots or with slashes, whichever the user's
broker prefers, but not both: ``orders.eu.new`` and ``orders/eu/new`` are the same topic. In a
pattern ``*`` or ``+`` stands for one segment, and a final ``#`` for the rest, which may be
nothing. Inside a segment the characters that some broker gives a meaning are percent-encoded, so
that any text can be one: see :func:`encode_segment`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from praval.errors import TopicError

Topic: TypeAlias = tuple[str, ...]
"""The encoded segments of a topic, or of a pattern (with ``*`` and ``#``)."""

ONE, REST = "*", "#"
"""The canonical wildcards: one segment, and the rest."""
LONGEST = 255
"""Most bytes of an encoded topic; AMQP's routing keys carry no more."""

# What AMQP, MQTT, ActiveMQ and RabbitMQ's STOMP read as something else than text, controls, and
# what Unicode says is no character: Mosquitto hangs up for the last two.
_NO_TEXT = r"\s\x00-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff" + "".join(
    f"\\U{plane:04X}FFFE\\U{plane:04X}FFFF" for plane in range(1, 17)
)
_SPECIAL = re.compile(rf"[./+#*>$%:{_NO_TEXT}]")
_NOT_ENCODED = re.compile(rf"[./+#*>$:{_NO_TEXT}]|%(?![0-9A-Fa-f]{{2}})")


def encode_segment(text: str) -> str:
    """Percent-encode what a broker would not take for text; the rest stays readable UTF-8.

    Raises:
        TopicError: it is empty, or has half of a surrogate pair.
    """
    if not text:
        raise TopicError("A topic's segment must not be empty.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TopicError(f"The segment {text!r} is no text that UTF-8 can carry.") from None
    return _SPECIAL.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), text)


def decode_segment(segment: str) -> str:
    """Undo :func:`encode_segment`.

    Raises:
        TopicError: it encodes no text.
    """
    from urllib.parse import unquote

    try:
        if not _NOT_ENCODED.search(segment):
            return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        pass
    raise TopicError(f"The segment {segment!r} is no percent-encoded UTF-8.")


def join(*texts: str) -> str:
    """Make a dotted topic of any texts, one segment each.

    Raises:
        TopicError: a text cannot be a segment, or the whole is too long.
    """
    return _checked(tuple(map(encode_segment, texts)), ".".join(texts))[1]


def parse_topic(text: str) -> Topic:
    """Read a topic to publish on.

    Raises:
        TopicError: it is empty, mixes dots and slashes, has an empty segment, a wildcard, a
            character that must be encoded, or is too long; the message says which.
    """
    topic = _parse(text)
    if any(segment in (ONE, REST) for segment in topic):
        raise TopicError(f"The topic {text!r} has a wildcard: those are for subscriptions.")
    return topic


def parse_pattern(text: str) -> Topic:
    """Read a topic or pattern to subscribe to; ``+`` is returned as ``*``.

    Raises:
        TopicError: as :func:`parse_topic`, or ``#`` is not the last segment.
    """
    topic = _parse(text)
    if REST in topic[:-1]:
        raise TopicError(f"The pattern {text!r} has '#' before its end: it stands for the rest.")
    return topic


def has_wildcard(pattern: Topic) -> bool:
    """Whether it can match more than one topic."""
    return ONE in pattern or REST in pattern


def matches(pattern: Topic, topic: Topic) -> bool:
    """Whether a subscription to ``pattern`` hears ``topic``."""
    for position, segment in enumerate(pattern):
        if segment == REST:
            return True
        if position >= len(topic) or segment not in (ONE, topic[position]):
            return False
    return len(pattern) == len(topic)


def dotted(topic: Sequence[str]) -> str:
    """Write a topic with dots: the form in which deliveries carry it."""
    return ".".join(topic)


def _parse(text: str) -> Topic:
    if not isinstance(text, str) or not text:
        raise TopicError(f"A topic must be a string that is not empty, not {text!r}.")
    if "." in text and "/" in text:
        raise TopicError(
            f"The topic {text!r} mixes dots and slashes: separate its segments with one of them, "
            "and percent-encode the other inside a segment (see praval.core.topics)."
        )
    segments = text.split("/" if "/" in text else ".")
    return _checked(tuple(ONE if segment == "+" else segment for segment in segments), text)[0]


def _checked(topic: Topic, text: str) -> tuple[Topic, str]:
    for segment in topic:
        if segment in (ONE, REST):
            continue
        if not segment:
            raise TopicError(f"The topic {text!r} has an empty segment.")
        if found := _NOT_ENCODED.search(segment):
            raise TopicError(
                f"The segment {segment!r} of topic {text!r} has the character {found[0]!r}, which "
                f"some brokers read as something else. Write {encode_segment(segment)!r}."
            )
    whole = dotted(topic)
    try:
        size = len(whole.encode())
    except UnicodeEncodeError:
        raise TopicError(f"The topic {text!r} is no text that UTF-8 can carry.") from None
    if size > LONGEST:
        raise TopicError(f"The topic {text[:40]!r}... takes {size} bytes; {LONGEST} is the limit.")
    return topic, whole
