"""The keys of one principal (an agent, or the process), as data and pure functions of the time.

An *identity* signs cards and nothing else. A *signing key* signs envelopes, a *prekey* receives
them; both are replaced at each rotation. What is replaced stays as long as something that was
sealed with it may be under way, and is erased then: :func:`erased` says when. Sans-IO.

Erasing means that nothing refers to a key any more and that the stored keyring is written without
it. Python does not promise to overwrite memory.

Guide: "Key Management System".
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from praval.core.cards import Card, sign_card
from praval.core.certificates import read_certificate
from praval.core.envelope import Random, stanza_id
from praval.core.key_types import PrivateKey, SigningKey, VerifyKey
from praval.core.lifetimes import Lifetimes

MOST_LISTED = 32
"""Verify keys in one card."""


class Prekey(msgspec.Struct, frozen=True):
    """A key that receives."""

    key: PrivateKey
    created: int
    listed_until: int
    """Expiry of the last card that lists it."""
    replaced: bool = False


class Signer(msgspec.Struct, frozen=True):
    """A key that signs envelopes."""

    key: SigningKey
    created: int
    replaced_at: int | None = None


class Principal(msgspec.Struct, frozen=True):
    """All keys of one name; a change makes another one. Newest keys first."""

    name: str
    identity: SigningKey
    certificates: tuple[bytes, ...]
    signers: tuple[Signer, ...]
    prekeys: tuple[Prekey, ...]
    epoch: int = 0
    card: bytes = b""
    card_issued: int = 0
    card_expires: int = 0
    subscriptions: tuple[str, ...] = ()

    @property
    def agent_id(self) -> bytes:
        """16 bytes derived from the identity."""
        return self.identity.verify_key.agent_id

    def opening_keys(self) -> dict[bytes, PrivateKey]:
        """Return the prekeys that are not erased, by stanza id."""
        return {stanza_id(self.agent_id, bytes(each.key.public)): each.key for each in self.prekeys}

    def __repr__(self) -> str:
        return f"<Principal {self.name!r} {self.agent_id.hex()}, epoch {self.epoch}>"


class Due(NamedTuple):
    """What has to be done now."""

    rotate: bool
    renew: bool
    erase: bool


def create(
    name: str, identity: SigningKey, certificates: tuple[bytes, ...], *, now: int, random: Random
) -> Principal:
    """Make the first keys of an identity; it has no card yet: see :func:`with_card`."""
    return Principal(
        name,
        identity,
        certificates,
        (Signer(SigningKey(random(32)), now),),
        (Prekey(PrivateKey(random(32)), now, 0),),
    )


def rotated(keys: Principal, lifetimes: Lifetimes, *, now: int, random: Random) -> Principal:
    """Replace prekey and signing key, and issue the card that says so.

    While a card has no room for one more verify key (rotations much quicker than spores expire),
    the signing key stays: nothing that is under way may become unreadable.
    """
    old_signer, old_prekey = keys.signers[0], keys.prekeys[0]
    signers = keys.signers
    if len(_listed(keys, lifetimes, now)) < MOST_LISTED:
        replaced = msgspec.structs.replace(old_signer, replaced_at=now)
        signers = (Signer(SigningKey(random(32)), now), replaced, *signers[1:])
    keys = msgspec.structs.replace(
        keys,
        signers=signers,
        prekeys=(
            Prekey(PrivateKey(random(32)), now, 0),
            msgspec.structs.replace(old_prekey, replaced=True),
            *keys.prekeys[1:],
        ),
    )
    return with_card(keys, lifetimes, now=now)


def with_card(
    keys: Principal,
    lifetimes: Lifetimes,
    *,
    now: int,
    subscriptions: tuple[str, ...] | None = None,
    above: int = 0,
) -> Principal:
    """Issue a card; its epoch is above the last one's and above ``above``.

    Raises:
        CardError: the certificate has ended, or it would not fit.
    """
    subscriptions = keys.subscriptions if subscriptions is None else subscriptions
    epoch = max(keys.epoch + 1, above + 1, now)
    certified = min(read_certificate(each).expires for each in keys.certificates)
    expires = min(now + lifetimes.card, certified)
    listed = _listed(keys, lifetimes, now)
    card = Card(
        certificates=keys.certificates,
        epoch=epoch,
        expires=expires,
        identity=bytes(keys.identity.verify_key),
        issued=now,
        max_ttl=lifetimes.max_ttl,
        name=keys.name,
        prekey=bytes(keys.prekeys[0].key.public),
        subscriptions=subscriptions,
        verify_keys=tuple(map(bytes, listed)),
    )
    current = keys.prekeys[0]
    listed_until = max(current.listed_until, expires)
    return msgspec.structs.replace(
        keys,
        prekeys=(msgspec.structs.replace(current, listed_until=listed_until), *keys.prekeys[1:]),
        epoch=epoch,
        card=sign_card(card, keys.identity),
        card_issued=now,
        card_expires=expires,
        subscriptions=subscriptions,
    )


def due(keys: Principal, lifetimes: Lifetimes, now: int) -> Due:
    """Say what has to be done now."""
    return Due(
        rotate=now - keys.prekeys[0].created >= lifetimes.rotation,
        renew=not keys.card or now - keys.card_issued >= lifetimes.renewal,
        erase=erased(keys, lifetimes, now) is not keys,
    )


def erase_at(prekey: Prekey, lifetimes: Lifetimes) -> int | None:
    """Return when a prekey has to be gone; None: it is in use."""
    return prekey.listed_until + lifetimes.grace if prekey.replaced else None


def erased(keys: Principal, lifetimes: Lifetimes, now: int) -> Principal:
    """Return the keys without those whose time is over; the same object if there are none."""
    prekeys = tuple(
        each for each in keys.prekeys if (end := erase_at(each, lifetimes)) is None or now < end
    )
    signers = tuple(
        each
        for each in keys.signers
        if each.replaced_at is None or now < each.replaced_at + lifetimes.grace
    )
    if len(prekeys) == len(keys.prekeys) and len(signers) == len(keys.signers):
        return keys
    return msgspec.structs.replace(keys, prekeys=prekeys, signers=signers)


def _listed(keys: Principal, lifetimes: Lifetimes, now: int) -> list[VerifyKey]:
    return [
        each.key.verify_key
        for each in keys.signers
        if each.replaced_at is None or now < each.replaced_at + lifetimes.grace
    ]
