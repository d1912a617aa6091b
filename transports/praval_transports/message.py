"""Messages on their way out and in: what is packed around a body, and counts of what became of it.

Beside the user's headers these travel along, as strings: ``praval-expires`` (UTC milliseconds),
``praval-priority``, ``praval-encoding``, and on dead letters ``praval-topic``, ``praval-group``,
``praval-reason``, ``praval-attempts``.
"""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from praval.core.topics import Topic, dotted
from praval.errors import ConfigurationError, MalformedSporeError, SporeTooLargeError
from praval_transports.config import BrokerConfig

RESERVED = "praval-"
WORTH_COMPRESSING = 1024
"""Bytes from which compressing can pay."""
LARGE = 256 * 1024
"""Bytes from which compressing would hold the loop up: a thread does it."""
GRACE = 60.0
"""Seconds that a broker keeps a message beyond its time to live: the receiver judges and counts."""
LONGEST_TTL = 10 * 365 * 86_400.0


class Counts(msgspec.Struct):
    """What happened since the transport was initialised; ``Health`` explains each."""

    published: int = 0
    received: int = 0
    acknowledged: int = 0
    retried: int = 0
    dead: int = 0
    expired: int = 0
    given_back: int = 0
    reconnects: int = 0


class Outgoing(NamedTuple):
    """A message as a link sends it."""

    topic: Topic
    body: bytes
    priority: int
    """1 to 10."""
    ttl: float | None
    """Seconds after which the broker may drop it (later than ``praval-expires``)."""
    headers: dict[str, str]

    @property
    def dotted(self) -> str:
        """The topic with dots."""
        return dotted(self.topic)

    @property
    def slashed(self) -> str:
        """The topic with slashes."""
        return "/".join(self.topic)


class Incoming(ABC):
    """A message as a link received it; protocols add how it is acknowledged."""

    __slots__ = ("body", "headers", "redelivered", "topic")

    def __init__(self, topic: str, body: bytes, headers: dict[str, str], redelivered: bool) -> None:
        self.topic = topic
        """With dots."""
        self.body = body
        self.headers = headers
        self.redelivered = redelivered
        """Whether the broker says that somebody may have had it before."""

    @abstractmethod
    async def acknowledge(self) -> None:
        """Tell the broker that it is done with. Raises TransportConnectionError if it cannot."""

    @abstractmethod
    async def give_back(self) -> None:
        """Let the broker deliver it again: at once if it can, else after a reconnection."""


async def pack(  # noqa: PLR0917 - in the order of publish()
    topic: Topic,
    body: bytes,
    priority: int,
    ttl: float | None,
    headers: Mapping[str, str] | None,
    config: BrokerConfig,
) -> Outgoing:
    """Check what the user gave and make a message of it.

    Raises:
        ConfigurationError, SporeTooLargeError: an argument cannot be used.
    """
    if not isinstance(body, (bytes, bytearray, memoryview)):
        raise ConfigurationError(f"A message must be bytes, not {type(body).__name__}.")
    body = bytes(body)
    if len(body) > config.max_message_size:
        raise SporeTooLargeError(
            f"The message takes {len(body)} bytes; max_message_size is {config.max_message_size}."
        )
    if type(priority) is not int or not 1 <= priority <= 10:
        raise ConfigurationError(f"priority must be 1 to 10, not {priority!r}.")
    meta = _checked(headers)
    meta["praval-priority"] = str(priority)
    if ttl is not None:
        if not (isinstance(ttl, (int, float)) and 0 < ttl <= LONGEST_TTL):
            raise ConfigurationError(f"ttl must be a number of seconds above 0, not {ttl!r}.")
        meta["praval-expires"] = str(int((time.time() + ttl) * 1000))
        ttl += GRACE
    if config.compression is not None and len(body) >= WORTH_COMPRESSING:
        large = len(body) >= LARGE
        less = await asyncio.to_thread(_compress, body) if large else _compress(body)
        if len(less) < len(body):
            body = less
            meta["praval-encoding"] = "gzip"
    return Outgoing(topic, body, priority, ttl, meta)


def _compress(body: bytes) -> bytes:
    return gzip.compress(body, compresslevel=1, mtime=0)


def _checked(headers: Mapping[str, str] | None) -> dict[str, str]:
    if not headers:
        return {}
    for item in headers.items():
        for text in item:
            if not isinstance(text, str) or "\x00" in text or not _is_text(text):
                raise ConfigurationError(f"headers must map text to text, not hold {item!r}.")
        if not item[0] or item[0].startswith(RESERVED):
            raise ConfigurationError(f"The header name {item[0]!r} is empty or reserved.")
    return dict(headers)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def priority_of(incoming: Incoming) -> int:
    """Return the priority it was published with; 5 if it says none that makes sense."""
    said = _number(incoming.headers.get("praval-priority", ""))
    return said if said is not None and 1 <= said <= 10 else 5


def is_expired(incoming: Incoming) -> bool:
    """Whether its time to live is over."""
    said = _number(incoming.headers.get("praval-expires", ""))
    return said is not None and said <= time.time() * 1000


def _number(text: str) -> int | None:
    # a stranger may send anything: int() raises on some digits, and on very many of them
    return int(text) if len(text) < 20 and text.isascii() and text.isdigit() else None


async def unpack(incoming: Incoming, limit: int) -> bytes:
    """Return the body, decompressed.

    Raises:
        MalformedSporeError: it is not what its encoding says, or the encoding is unknown.
        SporeTooLargeError: more than ``limit`` bytes come out of it.
    """
    encoding = incoming.headers.get("praval-encoding")
    if len(incoming.body) > limit:
        raise SporeTooLargeError(f"A message of {len(incoming.body)} bytes came in; {limit} is "
                                 "the limit (max_message_size).")  # fmt: skip
    if encoding is None:
        return incoming.body
    if encoding != "gzip":
        raise MalformedSporeError(f"A message came in with the unknown encoding {encoding!r}.")
    if len(incoming.body) >= LARGE // 8:  # it may become large
        return await asyncio.to_thread(_decompress, incoming.body, limit)
    return _decompress(incoming.body, limit)


def _decompress(body: bytes, limit: int) -> bytes:
    machine = zlib.decompressobj(wbits=31)
    try:
        plain = machine.decompress(body, limit + 1)
    except zlib.error as error:
        raise MalformedSporeError(f"A message came in that is no gzip: {error}.") from None
    if len(plain) > limit:
        raise SporeTooLargeError(f"A message came in that unpacks to more than {limit} bytes.")
    if not machine.eof or machine.unused_data:
        raise MalformedSporeError("A message came in whose gzip does not end where it ends.")
    return plain
