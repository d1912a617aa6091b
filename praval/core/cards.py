"""Cards: what an agent publishes of itself so that others can seal to it and check its word.

A card is signed by the agent's identity, carries its own certificates, and so proves itself to
whoever pins the root: anybody may pass it on. Sans-IO.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec

from praval.core.certificates import Certificate, check_name
from praval.core.key_types import PublicKey, SigningKey, VerifyKey, is_low_order
from praval.core.signed import (
    Key32,
    Name,
    Patterns,
    Payload,
    Whole,
    malformed,
    pattern,
    read,
    sign,
)
from praval.errors import CardError, SealCode

LONGEST_LIFE = 14 * 86_400_000
"""Most milliseconds that a card is good for, whatever its owner wishes."""
LONGEST_TTL = 14 * 86_400_000


class Card(Payload, frozen=True):
    """The payload of a card. Times are UTC milliseconds."""

    certificates: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=6144)], ...],
        msgspec.Meta(min_length=1, max_length=2),
    ]
    """Its own, then perhaps its issuer's."""
    epoch: Whole
    """Rises with each card of this identity."""
    expires: Whole
    identity: Key32
    issued: Whole
    max_ttl: Annotated[int, msgspec.Meta(ge=1, le=LONGEST_TTL)]
    name: Name
    prekey: Key32
    subscriptions: Patterns
    verify_keys: Annotated[tuple[Key32, ...], msgspec.Meta(min_length=1, max_length=64)]
    """The one that signs now, then replaced ones whose spores may still be under way."""


class KnownCard(msgspec.Struct, frozen=True, eq=False):
    """A card that was accepted, with what it was accepted for."""

    card: Card
    data: bytes
    certificate: Certificate
    issuers: tuple[tuple[bytes, int], ...]
    """Issuer and serial number of each certificate in its chain."""
    agent_id: bytes
    keys: Mapping[bytes, VerifyKey]
    """Key id -> verify key."""
    certified: bool
    """Whether a pinned root vouches for it; otherwise it was trusted on first use."""

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Whom to believe more, should two identities bear one name."""
        return self.certified, self.certificate.not_before, self.card.epoch

    @property
    def name(self) -> str:
        """The agent's name."""
        return self.card.name

    def may_publish(self, topic: str) -> bool:
        """Whether its certificate allows it to publish on this topic."""
        return self.certificate.rights.may_publish(topic)

    def may_send(self, kind: str | None) -> bool:
        """Whether its certificate allows it to send this type."""
        return self.certificate.rights.may_send(kind)


def sign_card(card: Card, identity: SigningKey) -> bytes:
    """Sign a card; it must be readable by :func:`read_card`.

    Raises:
        CardError: MALFORMED or TOO_LARGE.
    """
    data = sign("card", card, identity)
    read_card(data)
    return data


def read_card(data: bytes) -> Card:
    """Read a card and check that the identity it names signed it.

    Whether that identity has a right to the name: see ``praval.core.directory``.

    Raises:
        CardError: MALFORMED, TOO_LARGE, BAD_SIGNATURE, NO_KEY (a prekey of low order).
    """
    card, signed = read(data, "card", Card)
    check_name(card.name)
    if not card.issued < card.expires:
        raise malformed("the card ends before it begins")
    if card.expires - card.issued > LONGEST_LIFE:
        raise malformed("the card lives longer than 14 days")
    if len(set(card.verify_keys)) != len(card.verify_keys):
        raise malformed("the card lists a verify key twice")
    for each in card.subscriptions:
        pattern(each)
    if not signed.is_by(VerifyKey(card.identity)):
        raise CardError("The card's signature is wrong.", SealCode.BAD_SIGNATURE)
    if is_low_order(PublicKey(card.prekey)):
        raise CardError(
            f"The card of {card.name!r} has a prekey of low order, which would keep no secret.",
            SealCode.NO_KEY,
        )
    return card
