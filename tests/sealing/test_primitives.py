"""The primitives, against their RFCs, a second library, and arithmetic written out by hand.

What is checked is what PSV1 relies on: agreement of both sides, refusal of points of low order and
of every signature that is not the one and only, authenticated encryption, keyed and personalised
hashes.
"""

from __future__ import annotations

import struct
from hashlib import blake2b

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings

from praval.core.key_types import (
    PrivateKey,
    PublicKey,
    SigningKey,
    VerifyKey,
    decrypt,
    encrypt,
    is_low_order,
)
from praval.errors import KeyringError

ORDER = 2**252 + 27742317777372353535851937790883648493
PRIME = 2**255 - 19
LOW_ORDER = [
    0, 1, PRIME - 1, PRIME, PRIME + 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
]  # fmt: skip
key32 = st.binary(min_size=32, max_size=32)


def test_x25519_agrees_with_its_rfc() -> None:
    """RFC 7748, section 6.1."""
    a = PrivateKey(
        bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    b = PrivateKey(
        bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    )
    assert bytes(a.public).hex().startswith("8520f0098930a754748b7ddcb43ef75a")
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert a.exchange(b.public).hex() == b.exchange(a.public).hex() == shared


def test_ed25519_agrees_with_its_rfc() -> None:
    """RFC 8032, section 7.1, the key of test 2."""
    key = SigningKey(
        bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    )
    expected = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert bytes(key.verify_key).hex() == expected


@given(key32, key32)
def test_x25519_agrees_with_another_library(secret: bytes, point: bytes) -> None:
    """For any scalar and any 32 bytes as a point; what one refuses, the other refuses."""
    ours, theirs = PrivateKey(secret), X25519PrivateKey.from_private_bytes(secret)
    assert bytes(ours.public) == theirs.public_key().public_bytes_raw()
    try:
        expected = theirs.exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError:
        with pytest.raises(KeyringError):
            ours.exchange(PublicKey(point))
    else:
        assert ours.exchange(PublicKey(point)) == expected


@pytest.mark.parametrize("point", LOW_ORDER)
@pytest.mark.parametrize("high_bit", [0, 1])
def test_a_point_of_low_order_is_recognised_in_each_of_its_writings(
    point: int, high_bit: int
) -> None:
    """Reduced or not, with the unused bit set or not."""
    raw = (point | high_bit << 255).to_bytes(32, "little")
    assert is_low_order(PublicKey(raw))
    with pytest.raises(KeyringError, match="low order"):
        PrivateKey(b"s" * 32).exchange(PublicKey(raw))
    assert not is_low_order(PrivateKey(raw).public)


@given(key32, st.binary(max_size=200))
def test_ed25519_agrees_with_another_library(secret: bytes, message: bytes) -> None:
    """Both make the same signature, and each accepts it."""
    ours, theirs = SigningKey(secret), Ed25519PrivateKey.from_private_bytes(secret)
    signature = ours.sign(b"label", message)
    assert signature == theirs.sign(b"label\x00" + message)
    assert ours.verify_key.verify(b"label", message, signature)


def test_a_signature_has_one_form() -> None:
    """S + L is the same number to arithmetic, and refused; so are other lengths."""
    key = SigningKey(b"k" * 32)
    signature = key.sign(b"label", b"message")
    s = int.from_bytes(signature[32:], "little")
    for number in range(1, 8):
        other = s + number * ORDER
        if other < 2**256:
            forged = signature[:32] + other.to_bytes(32, "little")
            assert not key.verify_key.verify(b"label", b"message", forged)
    for length in (0, 1, 63, 65, 128):
        assert not key.verify_key.verify(b"label", b"message", (signature * 2)[:length])


@pytest.mark.parametrize("point", [1, PRIME - 1, 0, PRIME, 2**255 - 18])
def test_a_verify_key_of_low_order_verifies_nothing(point: int) -> None:
    """With it, one signature could fit many messages."""
    raw = point.to_bytes(32, "little")
    for signature in (raw + bytes(32), bytes(64), (1).to_bytes(32, "little") + bytes(32)):
        for message in (b"", b"a", b"b"):
            assert not VerifyKey(raw).verify(b"label", message, signature)


def test_no_bit_of_a_signature_may_change() -> None:
    """Nor of the message, nor of the label."""
    key = SigningKey(b"k" * 32)
    signature = bytearray(key.sign(b"label", b"message"))
    for position in range(64):
        for bit in range(8):
            signature[position] ^= 1 << bit
            assert not key.verify_key.verify(b"label", b"message", bytes(signature))
            signature[position] ^= 1 << bit
    assert key.verify_key.verify(b"label", b"message", bytes(signature))
    assert not key.verify_key.verify(b"label", b"messag", bytes(signature))
    assert not key.verify_key.verify(b"labe", b"l\x00message", bytes(signature))


# -- XSalsa20-Poly1305, written out ---------------------------------------------------------------


def rotated(value: int, by: int) -> int:
    return (value << by | value >> (32 - by)) & 0xFFFFFFFF


def salsa20_rounds(state: list[int]) -> list[int]:
    x = state[:]
    for _ in range(10):
        for step in (0, 1):
            for row in range(4):
                i = [(row * 5 + n * (4, 1)[step]) % 16 if step == 0 else row * 4 + (row + n) % 4
                     for n in range(4)]  # fmt: skip
                a, b, c, d = i
                x[b] ^= rotated((x[a] + x[d]) & 0xFFFFFFFF, 7)
                x[c] ^= rotated((x[b] + x[a]) & 0xFFFFFFFF, 9)
                x[d] ^= rotated((x[c] + x[b]) & 0xFFFFFFFF, 13)
                x[a] ^= rotated((x[d] + x[c]) & 0xFFFFFFFF, 18)
    return x


def laid_out(key: bytes, block: bytes) -> list[int]:
    constant = struct.unpack("<4I", b"expand 32-byte k")
    k, n = struct.unpack("<8I", key), struct.unpack("<4I", block)
    return [constant[0], *k[:4], constant[1], *n, constant[2], *k[4:], constant[3]]


def xsalsa20(key: bytes, nonce: bytes, length: int) -> bytes:
    inner = salsa20_rounds(laid_out(key, nonce[:16]))
    subkey = struct.pack("<8I", *(inner[i] for i in (0, 5, 10, 15, 6, 7, 8, 9)))
    out = b""
    for counter in range(length // 64 + 1):
        state = laid_out(subkey, nonce[16:] + counter.to_bytes(8, "little"))
        mixed = salsa20_rounds(state)
        words = ((a + b) & 0xFFFFFFFF for a, b in zip(state, mixed, strict=True))
        out += struct.pack("<16I", *words)
    return out[:length]


def poly1305(key: bytes, message: bytes) -> bytes:
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for at in range(0, len(message), 16):
        block = int.from_bytes(message[at : at + 16] + b"\x01", "little")
        total = (total + block) * r % (2**130 - 5)
    return ((total + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


@given(key32, st.binary(min_size=24, max_size=24), st.binary(max_size=200))
def test_encryption_is_xsalsa20_with_poly1305(key: bytes, nonce: bytes, data: bytes) -> None:
    """As it is specified, computed step by step."""
    stream = xsalsa20(key, nonce, 32 + len(data))
    hidden = bytes(a ^ b for a, b in zip(data, stream[32:], strict=True))
    assert encrypt(data, nonce, key) == poly1305(stream[:32], hidden) + hidden


@given(st.binary(max_size=60), st.integers(0, 10**6))
def test_what_was_changed_is_not_decrypted(data: bytes, at: int) -> None:
    """Not one bit, not the nonce, not the key, not a byte less."""
    key, nonce = b"k" * 32, b"n" * 24
    box = encrypt(data, nonce, key)
    assert decrypt(box, nonce, key) == data
    changed = bytearray(box)
    changed[at // 8 % len(box)] ^= 1 << at % 8
    assert decrypt(bytes(changed), nonce, key) is None
    assert decrypt(box, b"m" * 24, key) is None
    assert decrypt(box, nonce, b"l" * 32) is None
    assert decrypt(box[:-1], nonce, key) is None
    assert decrypt(b"", nonce, key) is None


@given(st.binary(max_size=300), st.binary(min_size=1, max_size=64), st.binary(max_size=16))
def test_the_hash_is_libsodiums_blake2b(data: bytes, key: bytes, person: bytes) -> None:
    """The standard library's and libsodium's agree, keyed and personalised."""
    ours = blake2b(data, digest_size=32, key=key, person=person).digest()
    theirs = bindings.crypto_generichash_blake2b_salt_personal(
        data, 32, key=key, person=person.ljust(16, b"\0")
    )
    assert ours == theirs
