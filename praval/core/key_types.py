"""Keys as types: a secret one cannot be printed, pickled, compared slowly or taken for another.

X25519 keys agree on secrets, Ed25519 keys sign. Everything signed is ``label || 0x00 || payload``
with one label per kind of object, so that no signature can be moved to another kind. Each hash
has a ``person`` of its own for the same reason. Sans-IO.

Guide: "Cryptographic Architecture".
"""

from __future__ import annotations

import hmac
from hashlib import blake2b
from typing import NoReturn

from praval.errors import KeyringError, SealCode

try:
    from nacl import bindings
    from nacl.exceptions import CryptoError
except ModuleNotFoundError as error:
    if error.name != "nacl":
        raise
    raise KeyringError(
        "Sealing needs the package PyNaCl, which is not installed. "
        'Install it with: pip install "praval-asyncio[secure]"'
    ) from error

KEY_SIZE = 32
SIGNATURE_SIZE = 64
AGENT_ID_SIZE = 16
KEY_ID_SIZE = 8


class _Public:
    """32 public bytes."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        self._raw = _checked(raw, type(self).__name__)

    def __bytes__(self) -> bytes:
        return self._raw

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and hmac.compare_digest(self._raw, bytes(other))

    def __hash__(self) -> int:
        return hash((type(self), self._raw))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._raw[:8].hex()}...>"


class _Secret:
    """32 secret bytes: only :meth:`reveal` shows them."""

    __slots__ = ("__weakref__", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = _checked(raw, type(self).__name__)

    def reveal(self) -> bytes:
        """Return the secret bytes, to be encrypted and stored at once."""
        return self._raw

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and hmac.compare_digest(self._raw, other.reveal())

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}, secret>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"A {type(self).__name__} is secret: it cannot be pickled or copied.")


class PublicKey(_Public):
    """An X25519 public key: what is sealed to it, only its private key opens."""

    __slots__ = ()


class PrivateKey(_Secret):
    """An X25519 private key."""

    __slots__ = ("public",)

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        self.public = PublicKey(bindings.crypto_scalarmult_base(raw))

    def exchange(self, other: PublicKey) -> bytes:
        """Return the 32 bytes that both sides can compute.

        Raises:
            KeyringError: the other key is a point of low order: the secret would be no secret.
        """
        try:
            return bindings.crypto_scalarmult(self._raw, other._raw)
        except CryptoError:
            raise low_order() from None


class VerifyKey(_Public):
    """An Ed25519 public key."""

    __slots__ = ("_id",)

    @property
    def id(self) -> bytes:
        """8 bytes that name it in an envelope."""
        try:
            return self._id
        except AttributeError:
            self._id: bytes = blake2b(
                self._raw, digest_size=KEY_ID_SIZE, person=b"psv1.key"
            ).digest()
            return self._id

    @property
    def agent_id(self) -> bytes:
        """16 bytes that name the agent whose identity key this is."""
        return blake2b(self._raw, digest_size=AGENT_ID_SIZE, person=b"psv1.agent").digest()

    def verify(self, label: bytes, payload: bytes, signature: bytes) -> bool:
        """Whether the signature was made by its signing key over this payload with this label."""
        if len(signature) != SIGNATURE_SIZE:
            return False
        try:
            bindings.crypto_sign_open(b"".join((signature, label, b"\x00", payload)), self._raw)
        except CryptoError:
            return False
        return True


class SigningKey(_Secret):
    """An Ed25519 private key."""

    __slots__ = ("_expanded", "verify_key")

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw)
        public, self._expanded = bindings.crypto_sign_seed_keypair(raw)
        self.verify_key = VerifyKey(public)

    def sign(self, label: bytes, payload: bytes) -> bytes:
        """Return the 64 bytes of a signature over ``label || 0x00 || payload``."""
        return bindings.crypto_sign(label + b"\x00" + payload, self._expanded)[:SIGNATURE_SIZE]


def encrypt(data: bytes, nonce: bytes, key: bytes) -> bytes:
    """Encrypt with XSalsa20-Poly1305: 16 bytes more than before. A nonce is used once per key."""
    return bindings.crypto_secretbox(data, nonce, key)


def decrypt(data: bytes, nonce: bytes, key: bytes) -> bytes | None:
    """Undo :func:`encrypt`; None: another key, another nonce, or the data was changed."""
    try:
        return bindings.crypto_secretbox_open(data, nonce, key)
    except CryptoError:
        return None


_PROBE = bytes([64]) * KEY_SIZE


def is_low_order(key: PublicKey) -> bool:
    """Whether an exchange with this key would give zero, whatever the other side's secret."""
    try:
        bindings.crypto_scalarmult(_PROBE, bytes(key))
    except CryptoError:
        return True
    return False


def low_order() -> KeyringError:
    """Make the error for a public key that keeps no secrets."""
    return KeyringError(
        "The public key is a point of low order, with which no secret can be agreed on. "
        "Whoever published it made a mistake, or means harm.",
        SealCode.NO_KEY,
    )


def _checked(raw: bytes, what: str) -> bytes:
    if type(raw) is not bytes or len(raw) != KEY_SIZE:
        raise KeyringError(f"A {what} is made of {KEY_SIZE} bytes.", SealCode.MALFORMED)
    return raw
