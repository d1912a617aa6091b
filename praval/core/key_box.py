"""Secrets under a passphrase: argon2id, then XSalsa20-Poly1305. Sans-IO.

::

    4 bytes  PVK1
    4, 8     argon2id: passes, bytes of memory
    16, 24   salt, nonce
    rest     the encrypted secret
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from praval.core.envelope import Random
from praval.core.key_types import decrypt, encrypt
from praval.errors import KeyringError, PassphraseError, SealCode

MAGIC = b"PVK1"
HEAD = Struct(">4sIQ16s24s")
LARGEST = 16_777_216
"""Most bytes of a box."""


class Cost(NamedTuple):
    """How expensive it is to try a passphrase."""

    passes: int
    memory: int
    """Bytes."""


MODERATE = Cost(3, 268_435_456)
"""About 0.4 s and 256 MiB: libsodium's recommendation for keys that matter."""
CHEAP = Cost(1, 8192)
"""For tests, and for secrets of 32 random bytes, which nobody can try."""
MOST = Cost(10, 1_073_741_824)
"""More than Praval ever asks for."""


class BoxKey:
    """The key derived from a passphrase, so that what is stored often is not derived often."""

    __slots__ = ("_cost", "_key", "_salt")

    def __init__(self, passphrase: str, salt: bytes, cost: Cost) -> None:
        self._salt, self._cost = salt, cost
        self._key = _derive(passphrase, salt, cost)

    @classmethod
    def fresh(cls, passphrase: str, *, random: Random, cost: Cost = MODERATE) -> BoxKey:
        """Derive one with a new salt.

        Raises:
            KeyringError: the passphrase is empty.
        """
        return cls(passphrase, random(16), cost)

    def lock(self, secret: bytes, random: Random) -> bytes:
        """Return the secret as a box."""
        nonce = random(24)
        head = HEAD.pack(MAGIC, *self._cost, self._salt, nonce)
        return head + encrypt(secret, nonce, self._key)

    def unlock(self, box: bytes) -> bytes:
        """Return the secret in a box that this key, or one of the same passphrase, locked.

        Raises:
            KeyringError: MALFORMED, UNSUPPORTED or TOO_LARGE.
            PassphraseError: the box has another salt or passphrase, or was changed.
        """
        cost, salt, nonce = _read(box)
        if (cost, salt) != (self._cost, self._salt):
            raise _wrong()
        secret = decrypt(box[HEAD.size :], nonce, self._key)
        if secret is None:
            raise _wrong()
        return secret

    def __repr__(self) -> str:
        return "<BoxKey, secret>"

    def __reduce_ex__(self, protocol: object) -> str:
        raise TypeError("A BoxKey is secret: it cannot be pickled or copied.")


def unlock(box: bytes, passphrase: str, most: Cost = MOST) -> tuple[bytes, BoxKey]:
    """Return the secret in a box, and the key with which to lock its next version.

    A box that asks for more than ``most`` is refused: nobody makes us spend an hour.

    Raises:
        KeyringError: MALFORMED, UNSUPPORTED or TOO_LARGE.
        PassphraseError: the passphrase is wrong, or the box was changed.
    """
    cost, salt, _ = _read(box, most)
    key = BoxKey(passphrase, salt, cost)
    return key.unlock(box), key


def _read(box: bytes, most: Cost = MOST) -> tuple[Cost, bytes, bytes]:
    if len(box) > LARGEST:
        raise KeyringError("The key file is larger than any.", SealCode.TOO_LARGE)
    if len(box) < HEAD.size + 16 or box[:4] != MAGIC:
        raise KeyringError("This is no key file of Praval.", SealCode.MALFORMED)
    _, passes, memory, salt, nonce = HEAD.unpack_from(box)
    cost = Cost(passes, memory)
    if not (1 <= passes <= most.passes and CHEAP.memory <= memory <= most.memory):
        raise KeyringError(
            f"The key file asks for {passes} passes over {memory} bytes to try a passphrase; at "
            f"most {most.passes} over {most.memory} are allowed here.",
            SealCode.UNSUPPORTED,
        )
    return cost, salt, nonce


def _derive(passphrase: str, salt: bytes, cost: Cost) -> bytes:
    from nacl import pwhash
    from nacl.exceptions import CryptoError

    if not passphrase:
        raise KeyringError("The passphrase is empty. Choose one of several words.")
    try:
        raw = passphrase.encode()
    except UnicodeEncodeError:
        raise KeyringError("The passphrase is no text that UTF-8 can carry.") from None
    try:
        return pwhash.argon2id.kdf(32, raw, salt, opslimit=cost.passes, memlimit=cost.memory)
    except CryptoError:  # libsodium's only word for it
        raise KeyringError(
            f"There is no memory ({cost.memory} bytes) to try the passphrase with."
        ) from None


def _wrong() -> PassphraseError:
    return PassphraseError(
        "The passphrase is wrong, or the key file was changed. Check both; without them the keys "
        "cannot be had.",
        SealCode.BAD_DECRYPT,
    )
