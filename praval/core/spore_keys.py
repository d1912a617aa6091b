"""`SporeKeyManager`: the keys of one agent, without a Reef; see ``praval.core.secure_spore``.

Guide: "Key Management System".
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, TypedDict

import msgspec

from praval.core import principal
from praval.core.certificates import LONGEST, certify
from praval.core.envelope import bad_decrypt
from praval.core.key_box import BoxKey, unlock
from praval.core.key_types import PrivateKey, PublicKey, SigningKey, VerifyKey, decrypt, encrypt
from praval.core.lifetimes import DEFAULT, Lifetimes
from praval.core.spore import MAX_SIZE, decode_knowledge, encode_knowledge
from praval.core.stored_keys import backup, read_backup
from praval.errors import EnvelopeError, KeyringError, SealCode

LABEL = b"praval.context-free.v1"
"""Nothing that is signed with it can pass for an envelope, a card or a certificate."""


class PublicKeys(TypedDict):
    """What others need to write to somebody and to check what comes from there."""

    public_key: bytes
    """The current prekey (X25519)."""
    verify_key: bytes
    """The key that signs spores now (Ed25519)."""
    identity_key: bytes
    """The identity (Ed25519): compare it with its owner by another way than this one."""
    card: bytes
    """All of that, signed by the identity."""


class Rotation(TypedDict):
    """What a rotation brought; no private keys."""

    agent: str
    epoch: int
    rotated_at: float
    """UTC seconds."""
    public_key: bytes
    verify_key: bytes
    card: bytes


class SporeKeyManager:
    """The keys of one agent: identity, signing keys, prekeys.

    The identity vouches for itself: whoever gets these public keys must know by other means whose
    they are. Prekey and signing key are replaced when ``lifetimes`` say so, or by
    :meth:`rotate_keys`; what was replaced is erased when nothing sealed to it can be under way.
    """

    def __init__(
        self,
        agent_name: str,
        *,
        lifetimes: Lifetimes = DEFAULT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make fresh keys.

        Args:
            agent_name: 1 to 128 bytes.
            lifetimes: how long keys live.
            clock: gives UTC seconds.

        Raises:
            CardError: the name cannot be carried.
        """
        self.agent_name, self.lifetimes, self._clock = agent_name, lifetimes, clock
        self._begin(SigningKey(os.urandom(32)), epoch=0)

    def __repr__(self) -> str:
        return f"<SporeKeyManager {self._keys!r}>"

    def get_public_keys(self) -> PublicKeys:
        """Return what others need; ask again after a rotation."""
        keys = self.current()
        return PublicKeys(
            public_key=bytes(keys.prekeys[0].key.public),
            verify_key=bytes(keys.signers[0].key.verify_key),
            identity_key=bytes(keys.identity.verify_key),
            card=keys.card,
        )

    def rotate_keys(self) -> Rotation:
        """Replace prekey and signing key. The old ones still open and verify for a while.

        Returns the new public keys and their epoch; private keys never leave the manager.
        """
        now = self.now()
        self._keys = principal.rotated(self.current(), self.lifetimes, now=now, random=os.urandom)
        public = self.get_public_keys()
        return Rotation(
            agent=self.agent_name,
            epoch=self._keys.epoch,
            rotated_at=now / 1000,
            public_key=public["public_key"],
            verify_key=public["verify_key"],
            card=public["card"],
        )

    def export_keys(self, passphrase: str | None = None, *, insecure: bool = False) -> bytes:
        """Return the identity for a backup, encrypted under a passphrase.

        Prekeys are left out: a backup that could open old spores would undo forward secrecy. So
        what was sealed before and was not opened yet is lost with the original.

        Args:
            passphrase: takes 0.4 s and 256 MiB to try (argon2id).
            insecure: without a passphrase, export the identity in plain.

        Raises:
            KeyringError: neither was given.
        """
        secret = backup(self._keys)
        if passphrase is not None:
            return BoxKey.fresh(passphrase, random=os.urandom).lock(secret, os.urandom)
        if not insecure:
            raise KeyringError(
                "The export would hold the private identity key in plain. Give a passphrase: "
                "export_keys(passphrase=...)"
            )
        return secret

    @classmethod
    def import_keys(
        cls,
        agent_name: str,
        exported: bytes,
        passphrase: str | None = None,
        *,
        lifetimes: Lifetimes = DEFAULT,
        clock: Callable[[], float] = time.time,
    ) -> SporeKeyManager:
        """Be an exported agent again: the same identity, new prekeys and signing keys.

        Raises:
            PassphraseError: the passphrase is wrong, or the export was changed.
            KeyringError: it is no export, or that of another name.
        """
        secret = exported if passphrase is None else unlock(exported, passphrase)[0]
        found = read_backup(secret, agent_name)
        made = cls.__new__(cls)
        made.agent_name, made.lifetimes, made._clock = agent_name, lifetimes, clock
        made._begin(SigningKey(found.identity), epoch=found.epoch)
        return made

    def encrypt_and_sign(
        self, knowledge: Mapping[str, Any], recipient_public_key: bytes
    ) -> tuple[bytes, bytes, bytes]:
        """Encrypt some knowledge for the owner of a public key, and sign it.

        This protects the content alone: neither who sent it to whom, nor when, nor against being
        handed over twice. Use a factory, or a Reef, where that matters; no Reef accepts this.

        Returns:
            Ciphertext, nonce, signature.

        Raises:
            KnowledgeError, SporeTooLargeError: the knowledge cannot be carried.
            KeyringError: that is no public key.
        """
        keys = self.current()
        recipient = PublicKey(recipient_public_key)
        ephemeral, nonce = PrivateKey(os.urandom(32)), os.urandom(24)
        sender_key, signer = bytes(keys.prekeys[0].key.public), keys.signers[0].key
        ek = bytes(ephemeral.public)
        key = _content_key(
            ephemeral.exchange(recipient), ek, recipient_public_key, bytes(signer.verify_key)
        )
        ciphertext = ek + encrypt(encode_knowledge(knowledge, MAX_SIZE), nonce, key)
        return ciphertext, nonce, signer.sign(LABEL, _context(ciphertext, nonce, sender_key))

    def decrypt_and_verify(
        self,
        encrypted_data: bytes,
        nonce: bytes,
        signature: bytes,
        sender_public_key: bytes,
        sender_verify_key: bytes,
    ) -> dict[str, Any]:
        """Undo :meth:`encrypt_and_sign`, with the sender's keys of that time.

        See there for what this does not protect.

        Raises:
            EnvelopeError: BAD_SIGNATURE, BAD_DECRYPT or MALFORMED.
            KeyringError: one of the sender's keys is no key.
        """
        PublicKey(sender_public_key)
        verify_key = VerifyKey(sender_verify_key)
        if len(nonce) != 24 or len(encrypted_data) < 32 + 16:
            raise EnvelopeError("The nonce or the encrypted data has a wrong length.")
        context = _context(encrypted_data, nonce, sender_public_key)
        if not verify_key.verify(LABEL, context, signature):
            raise EnvelopeError(
                "The signature is wrong: the data, or one of the sender's keys, is another.",
                SealCode.BAD_SIGNATURE,
            )
        for each in self.current().prekeys:
            plain = _opened(each.key, encrypted_data, nonce, sender_verify_key)
            if plain is not None:
                return _decoded(plain)
        raise bad_decrypt()

    # -- for the factory -----------------------------------------------------------------

    def now(self) -> int:
        """Return the time in UTC milliseconds."""
        return int(self._clock() * 1000)

    def current(self) -> principal.Principal:
        """Return the keys, after doing what is due: erasing, rotating, renewing the card."""
        now = self.now()
        keys = principal.erased(self._keys, self.lifetimes, now)
        due = principal.due(keys, self.lifetimes, now)
        if due.rotate or due.renew:
            certificates = (self._certificate(keys.identity, now),)
            keys = msgspec.structs.replace(keys, certificates=certificates)
        if due.rotate:
            keys = principal.rotated(keys, self.lifetimes, now=now, random=os.urandom)
        elif due.renew:
            keys = principal.with_card(keys, self.lifetimes, now=now)
        self._keys = keys
        return keys

    def _begin(self, identity: SigningKey, epoch: int) -> None:
        now = self.now()
        made = principal.create(
            self.agent_name,
            identity,
            (self._certificate(identity, now),),
            now=now,
            random=os.urandom,
        )
        self._keys = principal.with_card(made, self.lifetimes, now=now, above=epoch)

    def _certificate(self, identity: SigningKey, now: int) -> bytes:
        begin = max(now - self.lifetimes.skew, 0)
        return certify(
            self.agent_name, identity.verify_key, identity,
            not_before=begin, expires=begin + LONGEST, serial=now,
        )  # fmt: skip


def _context(ciphertext: bytes, nonce: bytes, sender_key: bytes) -> bytes:
    joined = b"".join((nonce, sender_key, ciphertext))
    return blake2b(joined, person=b"psv1.free.sign").digest()


def _content_key(shared: bytes, ek: bytes, recipient: bytes, verify_key: bytes) -> bytes:
    joined = b"".join((shared, ek, recipient, verify_key))
    return blake2b(joined, digest_size=32, person=b"psv1.free.key").digest()


def _opened(key: PrivateKey, data: bytes, nonce: bytes, verify_key: bytes) -> bytes | None:
    ek = data[:32]
    try:
        shared = key.exchange(PublicKey(ek))
    except KeyringError:
        return None
    return decrypt(data[32:], nonce, _content_key(shared, ek, bytes(key.public), verify_key))


def _decoded(plain: bytes) -> dict[str, Any]:
    try:
        return decode_knowledge(plain)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise EnvelopeError("The decrypted knowledge is no JSON object.") from None
