"""Sealed receipts and replies: who may say that a spore was handled, or answer it. Sans-IO.

A receipt is sealed to the sender after the receiver's commit. It counts only from a name the spore
was sealed to, and only for the content that was sealed; so it can neither be forged by the broker,
nor by another recipient, nor moved to another spore. One that never comes says nothing: after
the spore's expiry its outcome is unknown, and counted as that. Receipts have no receipts.

A reply counts only while its request is outstanding, and only from the name that was asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from praval.core.envelope import Opened, Random, content_digest
from praval.core.envelope_body import decode_body, encode_body
from praval.core.envelope_format import RECEIPT, RESPONSE, Message
from praval.core.replay import Outcome
from praval.errors import EnvelopeError, SealCode

LIFE = 3_600_000
"""Milliseconds that a receipt lives at most."""


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    content: str
    outcome: Outcome


class Settled(NamedTuple):
    """What a receipt says."""

    spore: bytes
    name: str
    outcome: Outcome


def receipt(
    opened: Opened, outcome: Outcome, *, topic: str, receiver: str, now: int, random: Random
) -> Message:
    """Make the receipt for a spore that was committed; to be sealed and sent to its sender.

    Args:
        opened: the spore.
        outcome: what became of it.
        topic: the sender's inbox.
        receiver: who handled it.
        now: UTC milliseconds.
        random: gives unpredictable bytes, for the receipt's own id.
    """
    told = msgspec.json.encode(_Body(opened.content().hex(), outcome))
    life = min(max(opened.message.expires - now, 60_000), LIFE)
    return Message(
        id=random(16),
        created=now,
        expires=now + life,
        from_name=receiver,
        topic=topic,
        body=encode_body(None, told),
        to_name=opened.message.from_name,
        spore_type=RECEIPT,
        reply_to=opened.message.id,
    )


class ReceiptLedger:
    """The receipts that are awaited."""

    def __init__(self) -> None:
        self._awaited: dict[bytes, _Awaited] = {}

    def expect(self, message: Message, sender: bytes, names: Iterable[str]) -> None:
        """Await one receipt from each name that a message was sealed to.

        Sealing it again changes nothing, but adds names that were out of reach before.
        """
        content = content_digest(message, sender).hex()
        held = self._awaited.setdefault(message.id, _Awaited(content, message.expires, set(), {}))
        held.names.update(set(names) - held.told.keys())

    def hear(self, opened: Opened) -> Settled | None:
        """Take a receipt; None: it says again what is known.

        Raises:
            EnvelopeError: NOT_PERMITTED: nobody awaits it from that name; REPLAY: it is about
                other content, or contradicts an earlier one; MALFORMED.
        """
        message = opened.message
        held = self._awaited.get(message.reply_to)
        if message.spore_type != RECEIPT or held is None:
            raise _unwanted("nobody awaits it", SealCode.NOT_PERMITTED, message.from_name)
        said = _read(message)
        if message.from_name not in held.names and message.from_name not in held.told:
            raise _unwanted(
                "its spore was not sealed to that name", SealCode.NOT_PERMITTED, message.from_name
            )
        if said.content != held.content:
            raise _unwanted("it is about other content", SealCode.REPLAY, message.from_name)
        earlier = held.told.setdefault(message.from_name, said.outcome)
        if earlier != said.outcome:
            raise _unwanted("it contradicts an earlier one", SealCode.REPLAY, message.from_name)
        if message.from_name not in held.names:
            return None
        held.names.discard(message.from_name)
        return Settled(message.reply_to, message.from_name, said.outcome)

    def overdue(self, now: int, skew: int) -> list[tuple[bytes, str]]:
        """Give up on what has expired; returns spore and name of each unknown outcome."""
        over = [spore for spore, held in self._awaited.items() if held.expires + 2 * skew < now]
        unknown = []
        for spore in over:
            unknown += [(spore, name) for name in sorted(self._awaited.pop(spore).names)]
        return unknown


class _Awaited(NamedTuple):
    content: str
    expires: int
    names: set[str]
    """Who has not said anything yet."""
    told: dict[str, Outcome]


def check_reply(opened: Opened, asked: Mapping[bytes, str]) -> None:
    """Refuse a reply that nobody waits for, or from another name than the one that was asked.

    Args:
        opened: the reply.
        asked: the outstanding requests, id -> whom they asked.

    Raises:
        EnvelopeError: NOT_PERMITTED.
    """
    message = opened.message
    if message.spore_type != RESPONSE or asked.get(message.reply_to) != message.from_name:
        raise EnvelopeError(
            f"A reply of {message.from_name!r} answers nothing that it was asked (any more).",
            SealCode.NOT_PERMITTED,
            message.from_name,
        )


def _read(message: Message) -> _Body:
    _, knowledge, _ = decode_body(message.body)
    try:
        return msgspec.convert(knowledge, type=_Body)
    except msgspec.ValidationError:
        raise _unwanted("it says nothing", SealCode.MALFORMED, message.from_name) from None


def _unwanted(why: str, code: SealCode, sender: str) -> EnvelopeError:
    return EnvelopeError(f"A receipt of {sender!r} is refused: {why}.", code, sender)
