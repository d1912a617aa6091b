"""The bytes of a PSV1 envelope: written and read here, trusted nowhere.

::

    header   fixed part (178 bytes, big-endian), then the names and the topic
    stanzas  64 bytes per recipient: whose it is (16), the wrapped content key (48)
    body     XSalsa20-Poly1305: 16 bytes more than the plaintext
    tail     64 bytes: Ed25519

Every length is checked against the size of the whole before anything is done with it. Sans-IO.
"""

from __future__ import annotations

from struct import Struct

import msgspec

from praval.errors import EnvelopeError, SealCode

MAGIC, SUITE, GROUP = b"PSV1", 1, 0x04
FIXED = Struct(">4sBBBB16s16sQQ16s8s32s32s24sBBHHI")
LONGEST_NAME, LONGEST_TOPIC, MOST_RECIPIENTS = 128, 512, 1024
STANZA_ID, STANZA, MAC, SIGNATURE = 16, 64, 16, 64
SMALLEST = FIXED.size + STANZA + MAC + SIGNATURE
MAX_SIZE = 10_485_760 + 131_072
"""Default limit of a whole envelope, in bytes: 10 MiB of body and whatever else there can be."""
NO_ID = bytes(16)
YEAR_10000 = 253_402_300_800_000
"""The millisecond at which the calendar ends."""

KNOWLEDGE, REQUEST, RESPONSE, BROADCAST, NOTIFICATION, RECEIPT = range(1, 7)
"""Numbers of the spore types; a receipt is the one kind of envelope that carries no spore."""


class Message(msgspec.Struct, frozen=True):
    """What is sealed and what comes out again: the header's fields and the plain body.

    Times are UTC milliseconds since the epoch.
    """

    id: bytes
    """16 bytes, not all zero."""
    created: int
    expires: int
    from_name: str
    topic: str
    """The canonical topic it is published on."""
    body: bytes
    to_name: str = ""
    """The one agent it is for; empty: a group."""
    spore_type: int = KNOWLEDGE
    priority: int = 5
    reply_to: bytes = NO_ID
    """Id of the request that it answers, or 16 zero bytes."""

    def __repr__(self) -> str:
        """Where it goes, without the body: that is confidential."""
        to = self.to_name or "a group"
        return f"<Message {self.id.hex()} from {self.from_name!r} to {to!r} on {self.topic!r}>"


class Envelope(msgspec.Struct, frozen=True, eq=False):
    """A well-formed envelope. Nothing in it is true before it was opened."""

    data: bytes
    flags: int
    spore_type: int
    priority: int
    id: bytes
    reply_to: bytes
    created: int
    expires: int
    sender: bytes
    """The sender's agent id."""
    key_id: bytes
    ephemeral: bytes
    commitment: bytes
    nonce: bytes
    from_name: str
    to_name: str
    topic: str
    stanzas_at: int
    body_at: int
    tail_at: int

    @property
    def is_group(self) -> bool:
        """Whether it is for whoever has a stanza in it, not for one name."""
        return self.flags == GROUP

    @property
    def recipients(self) -> int:
        """Number of stanzas."""
        return (self.body_at - self.stanzas_at) // STANZA

    def stanza_ids(self) -> list[bytes]:
        """Whose the stanzas are, in order."""
        return _stanza_ids(self.data, self.stanzas_at, self.body_at)

    def __repr__(self) -> str:
        return f"<Envelope {self.id.hex()} of {len(self.data)} bytes, not opened>"


def parse(data: bytes, max_size: int = MAX_SIZE) -> Envelope:
    """Read the structure of an envelope of at most ``max_size`` bytes.

    Raises:
        EnvelopeError: TOO_LARGE, MALFORMED or UNSUPPORTED; nothing else, whatever the bytes are.
    """
    if not isinstance(data, bytes):
        raise _malformed(f"it is of type {type(data).__name__}, not bytes")
    size = len(data)
    if size > max_size:
        raise EnvelopeError(
            f"An envelope of {size} bytes came in; the limit is {max_size}. Send a reference to "
            "the data instead, or raise message_security.max_message_size.",
            SealCode.TOO_LARGE,
        )
    if size < SMALLEST:
        raise _malformed(f"it has {size} bytes, fewer than any envelope")
    (
        magic, suite, flags, spore_type, priority, spore_id, reply_to, created, expires,
        sender, key_id, ephemeral, commitment, nonce, from_size, to_size, topic_size, count, length,
    ) = FIXED.unpack_from(data)  # fmt: skip
    if magic != MAGIC:
        raise _malformed("it does not begin with PSV1")
    if suite != SUITE:
        raise _unsupported(f"cipher suite {suite}")
    if from_size > LONGEST_NAME or to_size > LONGEST_NAME or topic_size > LONGEST_TOPIC:
        raise _malformed("a name or the topic is too long")
    if not 1 <= count <= MOST_RECIPIENTS:
        raise _malformed(f"it has {count} recipients")
    to_at = FIXED.size + from_size
    topic_at = to_at + to_size
    stanzas_at = topic_at + topic_size
    body_at = stanzas_at + STANZA * count
    tail_at = body_at + length + MAC
    if tail_at + SIGNATURE != size:
        raise _malformed("its lengths do not add up")
    if flags & ~GROUP:
        raise _unsupported(f"flags {flags:#04x}")
    if (flags == GROUP) is not (to_size == 0):
        raise _malformed("the group flag contradicts its receiver")
    if count > 1 and len(set(_stanza_ids(data, stanzas_at, body_at))) != count:
        raise _malformed("two of its stanzas are for the same key")
    try:
        from_name = str(data[FIXED.size : to_at], "utf-8")
        to_name = str(data[to_at:topic_at], "utf-8")
        topic = str(data[topic_at:stanzas_at], "utf-8")
    except UnicodeDecodeError:
        raise _malformed("a name or the topic is no UTF-8") from None
    envelope = Envelope(
        data, flags, spore_type, priority, spore_id, reply_to, created, expires,
        sender, key_id, ephemeral, commitment, nonce,
        from_name, to_name, topic, stanzas_at, body_at, tail_at,
    )  # fmt: skip
    _check_values(envelope)
    return envelope


def header_bytes(
    message: Message, *, sender: bytes, key_id: bytes, secrets: tuple[bytes, bytes, bytes],
    recipients: int,
) -> bytes:  # fmt: skip
    """Write the header of an envelope.

    Args:
        message: what is sealed.
        sender: agent id of the sender.
        key_id: id of the signing key.
        secrets: ephemeral public key, commitment, nonce.
        recipients: number of stanzas that follow.

    Raises:
        EnvelopeError: MALFORMED or TOO_LARGE, for a field that no envelope can carry.
    """
    try:
        names = (message.from_name.encode(), message.to_name.encode(), message.topic.encode())
    except UnicodeEncodeError:
        raise _malformed("a name or the topic cannot be written as UTF-8") from None
    if max(len(names[0]), len(names[1])) > LONGEST_NAME or len(names[2]) > LONGEST_TOPIC:
        raise _malformed("a name or the topic is too long")
    if not 1 <= recipients <= MOST_RECIPIENTS:
        raise _malformed(f"it has {recipients} recipients")
    _check_values(message)
    if len(message.body) > 0xFFFF_FFFF - MAC:
        raise EnvelopeError("The body is larger than 4 GiB.", SealCode.TOO_LARGE)
    fixed = FIXED.pack(
        MAGIC, SUITE, 0 if names[1] else GROUP, message.spore_type, message.priority,
        message.id, message.reply_to, message.created, message.expires, sender, key_id, *secrets,
        len(names[0]), len(names[1]), len(names[2]), recipients, len(message.body),
    )  # fmt: skip
    return b"".join((fixed, *names))


def _check_values(fields: Message | Envelope) -> None:
    if not (1 <= fields.spore_type <= RECEIPT and 1 <= fields.priority <= 10):
        raise _malformed("its type or priority does not exist")
    if len(fields.id) != 16 or len(fields.reply_to) != 16 or fields.id == NO_ID:
        raise _malformed("an id has not 16 bytes, or the spore's own is zero")
    if not fields.from_name:
        raise _malformed("it has no sender's name")
    if not 0 <= fields.created < fields.expires < YEAR_10000:
        raise _malformed("it does not expire after it was created")


def _stanza_ids(data: bytes, start: int, end: int) -> list[bytes]:
    return [data[at : at + STANZA_ID] for at in range(start, end, STANZA)]


def _malformed(what: str) -> EnvelopeError:
    return EnvelopeError(f"This is not an envelope that can be opened: {what}.")


def _unsupported(what: str) -> EnvelopeError:
    return EnvelopeError(
        f"The envelope uses {what}, which this Praval does not know. Upgrade the older side.",
        SealCode.UNSUPPORTED,
    )
