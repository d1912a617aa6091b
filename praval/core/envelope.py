"""PSV1: seal a message to its recipients, open what came in. Sans-IO.

Keys, randomness and the current time come in as arguments; bytes or one typed refusal come out.

*Seal*: a fresh ephemeral key, content key (CEK) and nonce for each envelope. The header commits to
the CEK; the CEK is wrapped for each recipient under a key that binds the exchanged secret to the
whole header, the recipient's prekey and the recipient's identity; the body is encrypted under a
key that binds the CEK to the header; the sender signs all of it.

*Open*, the cheapest check first: size, structure, flags, times, sender's card, key id, name,
receiver, topic, right to publish; then the signature; then stanza, commitment, body, inner type.
Until the signature holds, nothing in an envelope is anybody's word, and a refusal names nobody.

Guide: "Cryptographic Architecture".
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple, Protocol

import msgspec

from praval.core.envelope_body import body_type
from praval.core.envelope_format import (
    MAX_SIZE,
    MOST_RECIPIENTS,
    RECEIPT,
    RESPONSE,
    STANZA,
    STANZA_ID,
    Envelope,
    Message,
    header_bytes,
    parse,
)
from praval.core.key_types import (
    PrivateKey,
    PublicKey,
    SigningKey,
    VerifyKey,
    decrypt,
    encrypt,
)
from praval.core.topics import Topic, dotted, matches, parse_topic
from praval.errors import EnvelopeError, KeyringError, SealCode, TopicError

LABEL = b"praval.envelope.v1"
ZERO_NONCE = bytes(24)
"""For wrapping a CEK: each key that wraps one is used once."""

Random = Callable[[int], bytes]
"""Gives that many unpredictable bytes."""


# -- sealing ---------------------------------------------------------------------------------


class Sender(NamedTuple):
    """Who seals."""

    agent_id: bytes
    key: SigningKey


class Recipient(NamedTuple):
    """To whom something is sealed; from an unexpired card."""

    agent_id: bytes
    prekey: PublicKey
    expires: int
    """When the card expires (UTC ms)."""
    max_ttl: int
    """The longest life of a spore (ms) that this recipient accepts."""


def seal(
    message: Message, sender: Sender, recipients: Sequence[Recipient], *, now: int, random: Random
) -> bytes:
    """Seal a message to 1 to 1,024 recipients.

    Raises:
        EnvelopeError: STALE_CARD, NOT_PERMITTED (it lives longer than a recipient accepts),
            MALFORMED (a field or the number of recipients), NO_KEY (a prekey of low order).
    """
    _check_recipients(message, recipients, now)
    fresh = random(88)
    ephemeral, cek, nonce = PrivateKey(fresh[:32]), fresh[32:64], fresh[64:]
    ek = bytes(ephemeral.public)
    secrets = (ek, _commitment(cek), nonce)
    header = header_bytes(
        message,
        sender=sender.agent_id,
        key_id=sender.key.verify_key.id,
        secrets=secrets,
        recipients=len(recipients),
    )
    hashed = _header_hash(header)
    parts = [header]
    for recipient in recipients:
        spk = bytes(recipient.prekey)
        try:
            kek = _kek(ephemeral.exchange(recipient.prekey), hashed, ek, spk, recipient.agent_id)
        except KeyringError as error:
            raise EnvelopeError(str(error), SealCode.NO_KEY) from None
        parts.append(stanza_id(recipient.agent_id, spk))
        parts.append(encrypt(cek, ZERO_NONCE, kek))
    parts.append(encrypt(message.body, nonce, _body_key(cek, hashed)))
    sealed = b"".join(parts)
    return sealed + sender.key.sign(LABEL, blake2b(sealed, person=b"psv1.sign").digest())


def seal_all(
    message: Message, sender: Sender, recipients: Sequence[Recipient], *, now: int, random: Random
) -> list[bytes]:
    """Seal to any number of recipients: several envelopes, if there must be, of the same id.

    Raises:
        EnvelopeError: see :func:`seal`.
    """
    return [
        seal(message, sender, recipients[at : at + MOST_RECIPIENTS], now=now, random=random)
        for at in range(0, len(recipients), MOST_RECIPIENTS)
    ]


def _check_recipients(message: Message, recipients: Sequence[Recipient], now: int) -> None:
    lifetime = message.expires - message.created
    for recipient in recipients:
        if recipient.expires <= now:
            raise EnvelopeError(
                f"The card of a recipient ({recipient.agent_id.hex()}) has expired. Wait for its "
                "next one, or ask for it.",
                SealCode.STALE_CARD,
            )
        if lifetime > recipient.max_ttl:
            raise EnvelopeError(
                f"The spore would live {lifetime} ms; the recipient accepts "
                f"{recipient.max_ttl} ms. Give it a shorter time to live.",
                SealCode.NOT_PERMITTED,
            )
    keys = {(recipient.agent_id, bytes(recipient.prekey)) for recipient in recipients}
    if len(keys) != len(recipients):
        raise EnvelopeError("A recipient is named twice.")


# -- opening ---------------------------------------------------------------------------------


class KnownSender(Protocol):
    """What the directory knows of a sender whose card is valid now."""

    @property
    def name(self) -> str:
        """The name that its certificate gives it."""
        ...

    @property
    def keys(self) -> Mapping[bytes, VerifyKey]:
        """Key id -> verify key, of those its card lists."""
        ...

    def may_publish(self, topic: str) -> bool:
        """Whether its certificate allows this topic."""
        ...

    def may_send(self, kind: str | None) -> bool:
        """Whether its certificate allows this message type."""
        ...


class Senders(Protocol):
    """Where senders are looked up: the directory."""

    def sender(self, agent_id: bytes, now: int) -> KnownSender:
        """Return who that is; raise UNKNOWN_SENDER, STALE_CARD or REVOKED."""
        ...


class Receiver(msgspec.Struct, frozen=True):
    """Who opens, and what one subscription of it accepts."""

    name: str
    agent_id: bytes
    prekeys: Mapping[bytes, PrivateKey]
    """Stanza id -> prekey, of all that are not erased; see :func:`stanza_id`."""
    filters: tuple[Topic, ...]
    """What the local subscription hears; none: no topic at all, for what no Reef sends."""
    kinds: frozenset[int] = frozenset(range(1, RECEIPT + 1))
    """Which spore types it takes: an inbox takes responses and receipts, an agent the others."""
    max_ttl: int = 86_400_000
    skew: int = 120_000

    def __repr__(self) -> str:
        return f"<Receiver {self.name!r}>"


class Opened(msgspec.Struct, frozen=True, eq=False):
    """A message whose sender is certain and that nobody else could read or change."""

    message: Message
    type: str | None
    """The inner type, which the sender may send."""
    sender: bytes
    """The sender's agent id; ``message.from_name`` is bound to it."""

    def content(self) -> bytes:
        """Return the digest of what stays the same when this spore is sealed again."""
        return content_digest(self.message, self.sender)

    def __repr__(self) -> str:
        return f"<Opened {self.message!r}>"


def open_envelope(
    data: bytes, receiver: Receiver, senders: Senders, *, now: int, max_size: int = MAX_SIZE
) -> Opened:
    """Open an envelope, or refuse it; whether it was handled before is the replay memory's say.

    Raises:
        EnvelopeError: with the code of the first check that failed; never anything else.
    """
    envelope = parse(data, max_size)
    _check_times(envelope, receiver, now)
    known = senders.sender(envelope.sender, now)
    _check_claims(envelope, receiver, known)
    key = known.keys[envelope.key_id]
    signed = blake2b(memoryview(data)[: envelope.tail_at], person=b"psv1.sign").digest()
    if not key.verify(LABEL, signed, data[envelope.tail_at :]):
        raise EnvelopeError(
            "The envelope's signature is wrong: it was changed, or made by somebody else.",
            SealCode.BAD_SIGNATURE,
        )
    try:
        body = _decrypted(envelope, receiver)
        kind = body_type(body)
    except EnvelopeError as error:
        error.sender = known.name
        raise
    if envelope.spore_type not in (RESPONSE, RECEIPT) and not known.may_send(kind):
        raise EnvelopeError(
            f"{known.name!r} has no right to send the type {kind!r}: its certificate says so.",
            SealCode.NOT_PERMITTED,
            known.name,
        )
    message = Message(
        envelope.id, envelope.created, envelope.expires, envelope.from_name, envelope.topic, body,
        envelope.to_name, envelope.spore_type, envelope.priority, envelope.reply_to,
    )  # fmt: skip
    return Opened(message, kind, envelope.sender)


def _check_times(envelope: Envelope, receiver: Receiver, now: int) -> None:
    if envelope.expires + receiver.skew < now:
        raise EnvelopeError("The envelope has expired.", SealCode.EXPIRED)
    if envelope.created > now + receiver.skew:
        raise EnvelopeError(
            "The envelope comes from the future. Set the clocks of both hosts.",
            SealCode.NOT_YET_VALID,
        )
    if envelope.expires - envelope.created > receiver.max_ttl:
        raise EnvelopeError(
            f"The envelope would live longer than the {receiver.max_ttl} ms accepted here.",
            SealCode.NOT_PERMITTED,
        )


def _check_claims(envelope: Envelope, receiver: Receiver, known: KnownSender) -> None:
    """Check what costs no arithmetic; all of it is the claim of whoever wrote the envelope."""
    if envelope.key_id not in known.keys:
        raise EnvelopeError(
            "The envelope is signed with a key that its sender's card does not list (yet).",
            SealCode.STALE_CARD,
        )
    if envelope.from_name != known.name:
        raise EnvelopeError(
            "The envelope's sender uses a name that is not its own.", SealCode.NOT_PERMITTED
        )
    if envelope.to_name not in ("", receiver.name):
        raise EnvelopeError("The envelope is for another agent.", SealCode.NOT_FOR_ME)
    heard = hears(receiver.filters, envelope.topic) if receiver.filters else not envelope.topic
    if envelope.spore_type not in receiver.kinds or not heard:
        raise EnvelopeError(
            "The envelope was published on a topic that is not heard here: somebody moved it.",
            SealCode.MISROUTED,
        )
    # A reply and a receipt go to an inbox: what they answer gives the right, and is checked there.
    needs_right = envelope.topic and envelope.spore_type not in (RESPONSE, RECEIPT)
    if needs_right and not known.may_publish(envelope.topic):
        raise EnvelopeError(
            "The envelope's sender has no right to publish on its topic.", SealCode.NOT_PERMITTED
        )


def _decrypted(envelope: Envelope, receiver: Receiver) -> bytes:
    data = envelope.data
    for at in range(envelope.stanzas_at, envelope.body_at, STANZA):
        prekey = receiver.prekeys.get(data[at : at + STANZA_ID])
        if prekey is not None:
            break
    else:
        if envelope.is_group:
            raise EnvelopeError("The envelope is not sealed to us.", SealCode.NOT_A_RECIPIENT)
        raise EnvelopeError(
            "The envelope is sealed to a key that is erased, or never was ours.", SealCode.NO_KEY
        )
    hashed = _header_hash(memoryview(data)[: envelope.stanzas_at])
    ek, spk = envelope.ephemeral, bytes(prekey.public)
    try:
        shared = prekey.exchange(PublicKey(ek))
    except KeyringError:
        raise bad_decrypt() from None
    kek = _kek(shared, hashed, ek, spk, receiver.agent_id)
    cek = decrypt(data[at + STANZA_ID : at + STANZA], ZERO_NONCE, kek)
    if cek is None or not hmac.compare_digest(_commitment(cek), envelope.commitment):
        raise bad_decrypt()
    sealed = data[envelope.body_at : envelope.tail_at]
    body = decrypt(sealed, envelope.nonce, _body_key(cek, hashed))
    if body is None:
        raise bad_decrypt()
    return body


def bad_decrypt() -> EnvelopeError:
    """Make the one error for whatever went wrong inside: which step it was is nobody's business."""
    return EnvelopeError("The envelope cannot be decrypted.", SealCode.BAD_DECRYPT)


@lru_cache(maxsize=4096)
def hears(filters: tuple[Topic, ...], topic: str) -> bool:
    """Whether a subscription to these patterns hears a topic that is written canonically."""
    try:
        segments = parse_topic(topic)
    except TopicError:
        return False
    return dotted(segments) == topic and any(matches(each, segments) for each in filters)


# -- hashes: each has a purpose, and a name for it ---------------------------------------------


def content_digest(message: Message, sender: bytes) -> bytes:
    """Return 32 bytes that tell a spore's content, however often it is sealed anew."""
    digest = blake2b(digest_size=32, key=message.id, person=b"psv1.content")
    fields: tuple[object, ...] = (
        message.created, message.expires, message.spore_type, message.priority,
        message.reply_to.hex(), sender.hex(), message.from_name, message.to_name, message.topic,
    )  # fmt: skip
    digest.update(msgspec.json.encode(fields))
    digest.update(b"\x00")
    digest.update(message.body)
    return digest.digest()


def stanza_id(agent_id: bytes, spk: bytes) -> bytes:
    """Return the 16 bytes by which a recipient finds its stanza."""
    return blake2b(agent_id + spk, digest_size=STANZA_ID, person=b"psv1.stanza").digest()


def _commitment(cek: bytes) -> bytes:
    return blake2b(digest_size=32, key=cek, person=b"psv1.commit").digest()


def _header_hash(header: bytes | memoryview) -> bytes:
    return blake2b(header, digest_size=32, person=b"psv1.header").digest()


def _kek(shared: bytes, hashed: bytes, ek: bytes, spk: bytes, agent_id: bytes) -> bytes:
    joined = b"".join((shared, hashed, ek, spk, agent_id))
    return blake2b(joined, digest_size=32, person=b"psv1.kek").digest()


def _body_key(cek: bytes, hashed: bytes) -> bytes:
    return blake2b(hashed, digest_size=32, key=cek, person=b"psv1.body").digest()
