"""Server-sent events: bytes in, events out (the WHATWG format). No socket, no loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from praval.errors import ProviderProtocolError

EVENT_LIMIT = 16 * 1024 * 1024
"""Bytes that one event may have; a server that never ends a line cannot fill the memory."""
ANSWER_LIMIT = 128 * 1024 * 1024
"""Bytes that a whole answer may have, streamed or not."""


class Event(NamedTuple):
    """One event; ``name`` is "message" if the server gave none."""

    name: str
    data: str


class EventDecoder:
    """Feed it what arrives, in pieces of any size; characters may be split anywhere."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._name = ""
        self._data: list[str] = []
        self._size = 0
        self._total = 0
        self._begun = False

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Yield the events that this piece completes.

        Raises:
            ProviderProtocolError: an event, or all of them, are larger than may be.
        """
        self._total += len(piece)
        if self._total > ANSWER_LIMIT:
            raise ProviderProtocolError(f"The stream has more than {ANSWER_LIMIT} bytes.")
        ended = self._rest.endswith(b"\r") or b"\n" in piece or b"\r" in piece
        self._rest += piece
        lines: list[bytes] = []
        if ended:  # a long line in many pieces is not read anew with each of them
            lines, rest = _split(bytes(self._rest))
            self._rest = bytearray(rest)
        for line in lines:
            if not self._begun:
                line = line.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901 - a byte order mark
                self._begun = True
            if (event := self._take(line)) is not None:
                yield event
        self._check_size(len(self._rest))

    def _check_size(self, more: int) -> None:
        if self._size + more > EVENT_LIMIT:
            raise ProviderProtocolError(
                f"The stream has an event of more than {EVENT_LIMIT} bytes."
            )

    def _take(self, line: bytes) -> Event | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode(errors="replace")
        if field == b"data":
            self._data.append(text)
            self._size += len(line) + 1
            self._check_size(0)
        elif field == b"event":
            self._name = text
        return None

    def _dispatch(self) -> Event | None:
        name, data = self._name, self._data
        self._name, self._data, self._size = "", [], 0
        return Event(name or "message", "\n".join(data)) if data else None


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the complete lines and the rest; a final CR may be half of a CR LF."""
    held = b""
    if data.endswith(b"\r"):
        data, held = data[:-1], b"\r"
    *lines, rest = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return lines, rest + held
