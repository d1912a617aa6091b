"""Sealed receipts and replies: who may say that a spore was handled, or answer it. Sans-IO.

A receipt is sealed to the sender after the receiver's commit. It counts only from a name the spore
was sealed to, and only for the content that was sealed; so it can neither be forged by the broker,
nor by another recipient, nor moved to another spore. One that never comes says nothing: after
the spore's expiry its outcome is unknown, and counted as that. Receipts have no receipts. One
envelope carries what a receiver has to tell a sender of any number of spores.

A reply counts only while its request is outstanding, and only from the name that was asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, NamedTuple

import msgspec

from praval.core.envelope import Opened, Random, content_digest
from praval.core.envelope_body import decode_body, encode_body
from praval.core.envelope_format import RECEIPT, RESPONSE, Message
from praval.core.replay import Outcome
from praval.errors import EnvelopeError, SealCode

LIFE = 3_600_000
"""Milliseconds that a receipt lives; one that is late is said again when the spore is."""


MOST = 500
"""Spores that one receipt tells of."""


class Told(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a receipt says of one spore."""

    spore: str
    """Its id, in hexadecimal."""
    content: str
    """The digest of its content, in hexadecimal."""
    outcome: Outcome


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    told: Annotated[tuple[Told, ...], msgspec.Meta(min_length=1, max_length=MOST)]


class Settled(NamedTuple):
    """What became of a spore at one receiver."""

    spore: str
    """Its id, in hexadecimal."""
    name: str
    outcome: Outcome


def tell(spore: bytes, content: bytes, outcome: Outcome) -> Told:
    """Say what became of a spore that was committed."""
    return Told(spore.hex(), content.hex(), outcome)


def receipt(
    told: Sequence[Told],
    *,
    to: str,
    topic: str,
    receiver: str,
    now: int,
    random: Random,
    life: int = LIFE,
) -> Message:
    """Make the receipt for spores of one sender; to be sealed and sent to it.

    Args:
        told: 1 to `MOST` spores, and what became of each.
        to: the sender's name.
        topic: the sender's inbox.
        receiver: who handled it.
        now: UTC milliseconds.
        random: gives unpredictable bytes, for the receipt's own id.
        life: how long it is good for (ms), as far as the sender accepts that.
    """
    return Message(
        id=random(16),
        created=now,
        expires=now + life,
        from_name=receiver,
        topic=topic,
        body=encode_body(None, msgspec.json.encode(_Body(tuple(told)))),
        to_name=to,
        spore_type=RECEIPT,
    )


class ReceiptLedger:
    """The receipts that are awaited."""

    def __init__(self) -> None:
        self._awaited: dict[str, _Awaited] = {}

    def expect(self, message: Message, sender: bytes, names: Iterable[str]) -> None:
        """Await one receipt from each name that a message was sealed to.

        Sealing it again changes nothing, but adds names that were out of reach before.
        """
        held = self._awaited.get(message.id.hex())
        if held is None:
            content = content_digest(message, sender).hex()
            held = _Awaited(content, message.expires, set(), {})
            self._awaited[message.id.hex()] = held
        held.names.update(set(names) - held.told.keys())

    def hear(self, opened: Opened) -> list[Settled]:
        """Take a receipt; returns what it says that is news.

        Of spores that are not awaited (any more) it may say what it likes: that is late, not wrong.

        Raises:
            EnvelopeError: nothing of it counts. NOT_PERMITTED: a spore was not sealed to that name;
                REPLAY: it is about other content, or contradicts an earlier one; MALFORMED.
        """
        message, name = opened.message, opened.message.from_name
        if message.spore_type != RECEIPT:
            raise _unwanted("it is none", SealCode.NOT_PERMITTED, name)
        news: dict[str, tuple[_Awaited, Outcome]] = {}
        for told in _read(message).told:
            held = self._awaited.get(told.spore)
            if held is None:
                continue
            if name not in held.names and name not in held.told:
                why = "a spore was not sealed to that name"
                raise _unwanted(why, SealCode.NOT_PERMITTED, name)
            if told.content != held.content:
                raise _unwanted("it is about other content", SealCode.REPLAY, name)
            earlier = held.told.get(name) or news.get(told.spore, (held, told.outcome))[1]
            if earlier != told.outcome:
                raise _unwanted("it contradicts an earlier one", SealCode.REPLAY, name)
            if name in held.names:
                news[told.spore] = held, told.outcome
        for held, outcome in news.values():
            held.names.discard(name)
            held.told[name] = outcome
        return [Settled(spore, name, outcome) for spore, (_, outcome) in news.items()]

    def overdue(self, now: int, skew: int) -> list[tuple[str, str]]:
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
