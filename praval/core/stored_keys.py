"""How keys are written down, before they are encrypted: JSON, secrets in base64. Sans-IO.

A keyring is stored whole. A backup (:func:`backup`) has the identity and its certificates only:
prekeys never leave the store they live in, or erasing them would mean nothing.
"""

from __future__ import annotations

import msgspec

from praval.core.key_types import PrivateKey, SigningKey
from praval.core.principal import Prekey, Principal, Signer
from praval.core.signed import Key32, Name, Whole
from praval.errors import KeyringError, SealCode


class StoredPrekey(msgspec.Struct, forbid_unknown_fields=True):
    """A :class:`Prekey`."""

    key: Key32
    created: Whole
    listed_until: Whole
    replaced: bool

    def __repr__(self) -> str:
        return "<StoredPrekey, secret>"


class StoredSigner(msgspec.Struct, forbid_unknown_fields=True):
    """A :class:`Signer`."""

    key: Key32
    created: Whole
    replaced_at: Whole | None

    def __repr__(self) -> str:
        return "<StoredSigner, secret>"


class StoredPrincipal(msgspec.Struct, forbid_unknown_fields=True):
    """A :class:`Principal`."""

    name: Name
    identity: Key32
    certificates: list[bytes]
    signers: list[StoredSigner]
    prekeys: list[StoredPrekey]
    epoch: Whole
    card: bytes
    card_issued: Whole
    card_expires: Whole
    subscriptions: list[str]

    def __repr__(self) -> str:
        return f"<StoredPrincipal {self.name!r}, secret>"


class StoredKeyring(msgspec.Struct, forbid_unknown_fields=True):
    """A whole keyring."""

    instance: bytes
    replay_key: Key32
    journal_key: Key32
    audit_key: Key32
    root: Key32 | None
    roots: list[Key32]
    principals: list[StoredPrincipal]
    directory: bytes

    def __repr__(self) -> str:
        return f"<StoredKeyring {self.instance.hex()}, secret>"


class Backup(msgspec.Struct, forbid_unknown_fields=True, tag="praval.backup.v1", tag_field="kind"):
    """What is needed to be the same agent again: no prekeys, no signing keys."""

    name: Name
    identity: Key32
    certificates: list[bytes]
    epoch: Whole

    def __repr__(self) -> str:
        return f"<Backup of {self.name!r}, secret>"


def stored_principal(keys: Principal) -> StoredPrincipal:
    """Return a principal as it is stored."""
    return StoredPrincipal(
        keys.name,
        keys.identity.reveal(),
        list(keys.certificates),
        [StoredSigner(each.key.reveal(), each.created, each.replaced_at) for each in keys.signers],
        [
            StoredPrekey(each.key.reveal(), each.created, each.listed_until, each.replaced)
            for each in keys.prekeys
        ],
        keys.epoch,
        keys.card,
        keys.card_issued,
        keys.card_expires,
        list(keys.subscriptions),
    )


def taken_principal(stored: StoredPrincipal) -> Principal:
    """Return a stored principal.

    Raises:
        KeyringError: MALFORMED: it has no key that signs, or none that receives.
    """
    if not (stored.signers and stored.prekeys):
        raise KeyringError("The stored keyring lacks keys.", SealCode.MALFORMED)
    return Principal(
        stored.name,
        SigningKey(stored.identity),
        tuple(stored.certificates),
        tuple(
            Signer(SigningKey(each.key), each.created, each.replaced_at) for each in stored.signers
        ),
        tuple(
            Prekey(PrivateKey(each.key), each.created, each.listed_until, each.replaced)
            for each in stored.prekeys
        ),
        stored.epoch,
        stored.card,
        stored.card_issued,
        stored.card_expires,
        tuple(stored.subscriptions),
    )


def backup(keys: Principal) -> bytes:
    """Return the identity of a principal, to be encrypted at once."""
    return msgspec.json.encode(
        Backup(keys.name, keys.identity.reveal(), list(keys.certificates), keys.epoch)
    )


def read_backup(data: bytes, name: str | None = None) -> Backup:
    """Read a backup, of a certain name if one is given.

    Raises:
        KeyringError: MALFORMED, or NOT_PERMITTED: it is somebody else's.
    """
    try:
        found = msgspec.json.decode(data, type=Backup)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise KeyringError("This is no backup of keys.", SealCode.MALFORMED) from None
    if name is not None and found.name != name:
        raise KeyringError(
            f"These are the keys of {found.name!r}, not of {name!r}.", SealCode.NOT_PERMITTED
        )
    return found
