"""A message's own headers as STOMP carries them: one JSON object in the header ``praval-headers``.

Servers use many names of headers themselves, and not all of them read all characters in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

import msgspec

HEADERS = "praval-headers"
"""Its name; what is too long for one goes on in ``praval-headers-1`` and so on."""
PIECE = 1200
"""Characters in one: ActiveMQ takes 10 KiB, and a character may need eight bytes."""
MARKER = "praval-marker"
"""On a message that says nothing; see :attr:`Server.forgets_empty_queues`."""
AGAIN = "praval-again"
"""On the copy of a message that was given back: the topic."""

# of servers and of STOMP itself, in what they deliver
_THEIRS = frozenset({
    "ack", "amqp-message-id", "content-length", "content-type", "correlation-id", "destination",
    "expiration", "expires", "message-id", "original-destination", "persistent", "priority",
    "receipt", "redelivered", "reply-to", "subscription", "timestamp", "type",
})  # fmt: skip
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, str]).decode


def write_headers(own: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of a frame that carry those of a message."""
    text = _encode(own).decode()
    return {
        _name(number): text[start : start + PIECE]
        for number, start in enumerate(range(0, len(text), PIECE))
    }


def read_headers(frame: Mapping[str, str]) -> dict[str, str]:
    """Undo :func:`write_headers`; of another program's message, return all that is not STOMP's."""
    text = frame.get(HEADERS)
    if text is None:
        return {key: value for key, value in frame.items() if key not in _THEIRS}
    for number in count(1):
        if (piece := frame.get(_name(number))) is None:
            break
        text += piece
    try:
        return _decode(text)
    except msgspec.DecodeError:
        return {}  # not of our making; the message itself may be good


def _name(number: int) -> str:
    return f"{HEADERS}-{number}" if number else HEADERS
