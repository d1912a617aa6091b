"""Secure spores by hand: the guide's API on top of PSV1, for whoever has no Reef to do it.

::

    alice, bob = SporeKeyManager("alice"), SporeKeyManager("bob")
    spore = SecureSporeFactory(alice).create_secure_spore(
        to_agent="bob", knowledge={"n": 1}, recipient_public_keys=bob.get_public_keys()
    )
    received = SecureSpore.from_bytes(spore.to_bytes())
    SecureSporeFactory(bob).open_secure_spore(received, alice.get_public_keys())   # {"n": 1}

What is protected: nobody but the recipient reads the knowledge, nobody can change it or pretend to
be the sender, and keys that are stolen later do not open it (see ``Lifetimes.window``). What is
not: *who* somebody is remains your decision, since a key manager vouches for its own name only;
and an envelope can be handed to you twice. Use ``Reef(security=Keyring(...))`` for names that a
root certifies, authenticated topics, and a memory of what was handled.

Guide: "Secure Spores Enterprise Edition".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from praval.core.cards import KnownCard, read_card
from praval.core.certificates import verify_chain
from praval.core.directory import recipient_of
from praval.core.envelope import Receiver, Sender, open_envelope, seal
from praval.core.envelope_body import decode_body, encode_body
from praval.core.envelope_format import (
    KNOWLEDGE,
    MAX_SIZE,
    NO_ID,
    SIGNATURE,
    Envelope,
    Message,
    parse,
)
from praval.core.key_types import VerifyKey
from praval.core.spore import MAX_SIZE as MAX_KNOWLEDGE
from praval.core.spore import SporeType, decode_knowledge, encode_knowledge, spore_type_of
from praval.core.spore_keys import PublicKeys, Rotation, SporeKeyManager
from praval.errors import CardError, EnvelopeError, SealCode

__all__ = ["PublicKeys", "Rotation", "SecureSpore", "SecureSporeFactory", "SporeKeyManager"]

TYPES = tuple(SporeType)
"""Spore types in the order of their numbers, the first of which is 1."""


class SecureSpore:
    """A sealed spore. Its fields are what the envelope claims: nothing is true before it is opened.

    ``SecureSporeFactory.open_secure_spore`` opens it.
    """

    def __init__(self, envelope: Envelope) -> None:
        """Wrap an envelope; see :meth:`from_bytes`."""
        self._envelope = envelope

    @classmethod
    def from_bytes(cls, data: bytes, *, max_size: int = MAX_SIZE) -> SecureSpore:
        """Parse an envelope.

        Raises:
            EnvelopeError: TOO_LARGE, MALFORMED, UNSUPPORTED.
        """
        return cls(parse(bytes(data), max_size))

    def to_bytes(self) -> bytes:
        """Return the envelope, to be published."""
        return bytes(self._envelope.data)

    @property
    def id(self) -> str:
        """128 bits in hexadecimal."""
        return self._envelope.id.hex()

    @property
    def from_agent(self) -> str:
        """Who claims to have sent it."""
        return self._envelope.from_name

    @property
    def to_agent(self) -> str:
        """For whom it is said to be."""
        return self._envelope.to_name

    @property
    def spore_type(self) -> SporeType:
        """What it is for.

        Raises:
            EnvelopeError: UNSUPPORTED: it carries no spore but a receipt.
        """
        if self._envelope.spore_type > len(TYPES):
            raise EnvelopeError("The envelope is a receipt, not a spore.", SealCode.UNSUPPORTED)
        return TYPES[self._envelope.spore_type - 1]

    @property
    def priority(self) -> int:
        """1 to 10; 10 is the highest."""
        return self._envelope.priority

    @property
    def created_at(self) -> float:
        """UTC seconds."""
        return self._envelope.created / 1000

    @property
    def expires_at(self) -> float:
        """UTC seconds."""
        return self._envelope.expires / 1000

    @property
    def encrypted_knowledge(self) -> bytes:
        """The encrypted body."""
        return self._envelope.data[self._envelope.body_at : self._envelope.tail_at]

    @property
    def signature(self) -> bytes:
        """The signature over everything else."""
        return self._envelope.data[-SIGNATURE:]

    def __repr__(self) -> str:
        return f"<SecureSpore {self._envelope!r}>"


class SecureSporeFactory:
    """Seals and opens spores with the keys of one agent."""

    def __init__(self, key_manager: SporeKeyManager) -> None:
        """Use the keys of ``key_manager``."""
        self.key_manager = key_manager

    def create_secure_spore(  # noqa: PLR0917 - the parameters that the guide prints
        self,
        to_agent: str,
        knowledge: Mapping[str, Any],
        spore_type: SporeType = SporeType.KNOWLEDGE,
        priority: int = 5,
        expires_in_seconds: float = 3600,
        recipient_public_keys: Mapping[str, Any] | None = None,
        *,
        reply_to: str | None = None,
    ) -> SecureSpore:
        """Seal knowledge to one agent.

        Args:
            to_agent: the receiver's name.
            knowledge: what JSON can carry.
            spore_type: what it is for.
            priority: 1 to 10.
            expires_in_seconds: its time to live; at most the recipient's ``max_ttl``.
            recipient_public_keys: the receiver's ``get_public_keys()``.
            reply_to: id of the spore that this one answers.

        Raises:
            EnvelopeError: no recipient, or a field that no envelope can carry; STALE_CARD or
                NOT_PERMITTED for keys or a time to live that are over what the recipient said.
            CardError: the recipient's keys are not what its card says, or somebody else's.
            KnowledgeError, SporeTooLargeError: the knowledge cannot be carried.
        """
        if not recipient_public_keys:
            raise EnvelopeError(
                "A secure spore needs recipient_public_keys: what the receiver's "
                "get_public_keys() returned."
            )
        raw = encode_knowledge(knowledge, MAX_KNOWLEDGE)
        manager = self.key_manager
        keys, now = manager.current(), manager.now()
        recipient = recipient_of(_checked_keys(recipient_public_keys, to_agent, now))
        message = Message(
            id=os.urandom(16),
            created=now,
            expires=now + int(expires_in_seconds * 1000),
            from_name=manager.agent_name,
            topic="",
            body=encode_body(spore_type_of(decode_knowledge(raw)), raw),
            to_name=to_agent,
            spore_type=TYPES.index(SporeType(spore_type)) + KNOWLEDGE,
            priority=priority,
            reply_to=NO_ID if reply_to is None else _id(reply_to),
        )
        sender = Sender(keys.agent_id, keys.signers[0].key)
        return SecureSpore(parse(seal(message, sender, [recipient], now=now, random=os.urandom)))

    def open_secure_spore(
        self, spore: SecureSpore, sender_public_keys: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the knowledge of a spore, if it is for us and from the owner of those keys.

        It does not remember what it opened: being handed an old spore again is not noticed
        before that expires. Keep the ids, or use a Reef.

        Raises:
            EnvelopeError: with the code of the first check that failed.
            CardError: the sender's keys are not what its card says.
        """
        manager = self.key_manager
        keys, now = manager.current(), manager.now()
        known = _checked_keys(sender_public_keys, spore.from_agent, now)
        receiver = Receiver(
            manager.agent_name,
            keys.agent_id,
            keys.opening_keys(),
            (),
            frozenset(range(KNOWLEDGE, KNOWLEDGE + len(TYPES))),
            manager.lifetimes.max_ttl,
            manager.lifetimes.skew,
        )
        opened = open_envelope(spore.to_bytes(), receiver, _OnlyOne(known), now=now)
        return decode_body(opened.message.body)[1]


class _OnlyOne:
    """A directory of the one sender that was asked for."""

    def __init__(self, known: KnownCard) -> None:
        self._known = known

    def sender(self, agent_id: bytes, now: int) -> KnownCard:
        if agent_id != self._known.agent_id:
            raise EnvelopeError("The sender has another identity.", SealCode.UNKNOWN_SENDER)
        return self._known


def _checked_keys(keys: Mapping[str, Any], name: str, now: int) -> KnownCard:
    """Check that public keys are those of a card, that the card is in order, and whose it is."""
    try:
        data = bytes(keys["card"])
        given = bytes(keys["public_key"]), bytes(keys["verify_key"]), bytes(keys["identity_key"])
    except (KeyError, TypeError, ValueError):
        raise CardError(
            "Public keys are what get_public_keys() returned: public_key, verify_key, "
            "identity_key and card."
        ) from None
    card = read_card(data)
    certificate = verify_chain(card.certificates, (), now, skew=0)[0]
    if (certificate.name, certificate.identity) != (card.name, card.identity):
        raise CardError("The card carries somebody else's certificate.", SealCode.NOT_PERMITTED)
    if given != (card.prekey, card.verify_keys[0], card.identity):
        raise CardError("The public keys are not those of their card.", SealCode.BAD_SIGNATURE)
    if card.name != name:
        raise CardError(
            f"The public keys are those of {card.name!r}, not of {name!r}.", SealCode.NOT_PERMITTED
        )
    if card.expires <= now:
        raise CardError(
            f"The card of {card.name!r} has expired. Ask for get_public_keys() again.",
            SealCode.STALE_CARD,
        )
    verify_keys = {key.id: key for key in map(VerifyKey, card.verify_keys)}
    agent_id = VerifyKey(card.identity).agent_id
    return KnownCard(card, data, certificate, (), agent_id, verify_keys, certified=False)


def _id(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise EnvelopeError(f"{text!r} is no id of a spore.") from None
