"""The guide's API: sealing by hand, and what it does not let one do by mistake."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from praval.core.envelope_format import parse
from praval.core.lifetimes import Lifetimes
from praval.core.secure_spore import SecureSpore, SecureSporeFactory, SporeKeyManager
from praval.core.spore import SporeType
from praval.errors import (
    CardError,
    EnvelopeError,
    KeyringError,
    KnowledgeError,
    PassphraseError,
    SealCode,
)
from tests.sealing.actors import code_of, host, opens


class Clock:
    """A clock that only a test moves; UTC seconds."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()
ALICE, BOB = SporeKeyManager("alice", clock=CLOCK), SporeKeyManager("bob", clock=CLOCK)


def sealed(
    manager: SporeKeyManager = ALICE, to: SporeKeyManager = BOB, **options: Any
) -> SecureSpore:
    options = {"knowledge": {"type": "order", "n": 1}, **options}
    return SecureSporeFactory(manager).create_secure_spore(
        to_agent=to.agent_name, recipient_public_keys=to.get_public_keys(), **options
    )


def opened(
    spore: SecureSpore, by: SporeKeyManager = BOB, sender: SporeKeyManager = ALICE
) -> dict[str, Any]:
    return SecureSporeFactory(by).open_secure_spore(spore, sender.get_public_keys())


def test_a_secure_spore_goes_over_any_wire_and_opens_at_its_receiver() -> None:
    """With all that its envelope says of it."""
    spore = sealed(spore_type=SporeType.REQUEST, priority=10, expires_in_seconds=60)
    received = SecureSpore.from_bytes(spore.to_bytes())
    assert opened(received) == {"type": "order", "n": 1}
    assert (received.from_agent, received.to_agent) == ("alice", "bob")
    assert (received.spore_type, received.priority) == (SporeType.REQUEST, 10)
    assert received.expires_at - received.created_at == 60
    assert received.created_at == CLOCK.now
    assert received.id == spore.id
    assert b"order" not in received.encrypted_knowledge
    assert len(received.signature) == 64


def test_a_spore_without_recipients_is_not_made() -> None:
    """Nothing leaves unsealed because somebody forgot an argument."""
    factory = SecureSporeFactory(ALICE)
    for keys in (None, {}):
        with pytest.raises(EnvelopeError, match="recipient_public_keys"):
            factory.create_secure_spore("bob", {"n": 1}, recipient_public_keys=keys)


def test_a_reef_refuses_what_was_sealed_by_hand() -> None:
    """The topic is empty: no subscription hears it, whatever the broker says."""
    keyring = host("bob")
    assert code_of(lambda: opens(keyring, "bob", sealed().to_bytes())) == SealCode.UNKNOWN_SENDER
    assert parse(sealed().to_bytes()).topic == ""


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"public_key": bytes(32)}, CardError),
        ({"identity_key": bytes(32)}, CardError),
        ({"verify_key": bytes(32)}, CardError),
        ({"card": b"{}"}, CardError),
        ({"card": None}, CardError),
    ],
)
def test_public_keys_must_be_those_of_their_card(change: dict[str, Any], kind: type) -> None:
    """A single key that was exchanged on the way is noticed."""
    keys = {**BOB.get_public_keys(), **change}
    with pytest.raises(kind):
        SecureSporeFactory(ALICE).create_secure_spore("bob", {}, recipient_public_keys=keys)
    with pytest.raises(CardError):
        SecureSporeFactory(ALICE).create_secure_spore(
            "bob", {}, recipient_public_keys={"public_key": BOB.get_public_keys()["public_key"]}
        )


def test_keys_of_somebody_else_are_not_used_for_a_name() -> None:
    """Neither to seal to it nor to believe it."""
    eve = SporeKeyManager("eve", clock=CLOCK)
    with pytest.raises(CardError, match="'eve', not of 'bob'"):
        SecureSporeFactory(ALICE).create_secure_spore(
            "bob", {}, recipient_public_keys=eve.get_public_keys()
        )
    with pytest.raises(CardError, match="'eve', not of 'alice'"):
        opened(sealed(), sender=eve)
    second_alice = SporeKeyManager("alice", clock=CLOCK)
    assert code_of(lambda: opened(sealed(), sender=second_alice)) == SealCode.UNKNOWN_SENDER


def test_nobody_but_the_receiver_opens_it() -> None:
    """Not even another agent of that name."""
    other = SporeKeyManager("bob", clock=CLOCK)
    assert code_of(lambda: opened(sealed(), by=other)) == SealCode.NO_KEY
    eve = SporeKeyManager("eve", clock=CLOCK)
    assert code_of(lambda: opened(sealed(), by=eve)) == SealCode.NOT_FOR_ME


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"expires_in_seconds": 86_401}, EnvelopeError), ({"expires_in_seconds": 0}, EnvelopeError),
        ({"priority": 11}, EnvelopeError), ({"knowledge": {"x": object()}}, KnowledgeError),
        ({"reply_to": "no hex"}, EnvelopeError), ({"reply_to": "aa"}, EnvelopeError),
        ({"spore_type": "nothing"}, ValueError),
    ],
)  # fmt: skip
def test_what_cannot_be_sealed_is_told_at_once(options: dict[str, Any], kind: type) -> None:
    """By the sender's own library, not by a refusal far away."""
    with pytest.raises(kind):
        sealed(**options)


# -- rotation ------------------------------------------------------------------------------------


def test_a_rotation_gives_new_keys_and_never_a_private_one() -> None:
    """The old ones still open what is under way."""
    bob = SporeKeyManager("bob", clock=CLOCK)
    before, spore = bob.get_public_keys(), sealed(to=bob)
    result = bob.rotate_keys()
    after = bob.get_public_keys()
    assert result["public_key"] == after["public_key"] != before["public_key"]
    assert result["verify_key"] == after["verify_key"] != before["verify_key"]
    assert after["identity_key"] == before["identity_key"]
    assert set(result) == {"agent", "epoch", "rotated_at", "public_key", "verify_key", "card"}
    assert opened(spore, by=bob) == {"type": "order", "n": 1}


def test_a_sender_that_rotated_is_still_believed_for_what_it_said_before() -> None:
    """Its card lists the replaced verify key until those spores are over."""
    alice = SporeKeyManager("alice", clock=CLOCK)
    spore = sealed(alice)
    alice.rotate_keys()
    assert opened(spore, sender=alice) == {"type": "order", "n": 1}


def test_keys_rotate_and_are_erased_by_themselves() -> None:
    """Whenever they are used after their time."""
    clock = Clock()
    times = Lifetimes(max_ttl=60_000, skew=0, rotation=100_000, card=200_000, renewal=50_000)
    bob = SporeKeyManager("bob", lifetimes=times, clock=clock)
    alice = SporeKeyManager("alice", lifetimes=times, clock=clock)
    old = sealed(alice, bob, expires_in_seconds=60)
    first = bob.get_public_keys()
    clock.now += 100
    assert bob.get_public_keys()["public_key"] != first["public_key"]
    assert len(bob.current().prekeys) == 2
    clock.now += 400
    bob.get_public_keys()
    clock.now = 1_800_000_001.0  # a thief with its own clock, and all that bob still has
    assert code_of(lambda: opened(old, by=bob, sender=alice)) == SealCode.NO_KEY


def test_a_manager_outlives_its_own_certificates() -> None:
    """It vouches for itself again, years later."""
    clock = Clock()
    alice, bob = SporeKeyManager("alice", clock=clock), SporeKeyManager("bob", clock=clock)
    identity = bob.get_public_keys()["identity_key"]
    for _ in range(200):
        clock.now += 86_400
        bob.get_public_keys()
    assert opened(sealed(alice, bob), by=bob, sender=alice)
    assert bob.get_public_keys()["identity_key"] == identity
    assert len(bob.current().prekeys) <= 5


# -- backup --------------------------------------------------------------------------------------


def test_an_export_needs_its_passphrase_and_its_name() -> None:
    """A wrong passphrase, a wrong name, one changed bit."""
    exported = ALICE.export_keys(passphrase="horse")
    again = SporeKeyManager.import_keys("alice", exported, passphrase="horse", clock=CLOCK)
    assert again.get_public_keys()["identity_key"] == ALICE.get_public_keys()["identity_key"]
    assert again.get_public_keys()["public_key"] != ALICE.get_public_keys()["public_key"]
    with pytest.raises(PassphraseError):
        SporeKeyManager.import_keys("alice", exported, passphrase="cow")
    with pytest.raises(KeyringError, match="not of 'bob'"):
        SporeKeyManager.import_keys("bob", exported, passphrase="horse")
    with pytest.raises(PassphraseError):
        SporeKeyManager.import_keys("alice", exported[:-1] + b"!", passphrase="horse")
    assert ALICE._keys.identity.reveal() not in exported


def test_a_plain_export_is_made_only_by_saying_so() -> None:
    """And it has no prekeys either."""
    with pytest.raises(KeyringError, match="passphrase"):
        ALICE.export_keys()
    plain = ALICE.export_keys(insecure=True)
    again = SporeKeyManager.import_keys("alice", plain, clock=CLOCK)
    assert again.get_public_keys()["identity_key"] == ALICE.get_public_keys()["identity_key"]
    with pytest.raises(KeyringError):
        SporeKeyManager.import_keys("alice", b"junk")


def test_a_recovered_manager_issues_a_newer_card() -> None:
    """Its epoch is above that of the export, though the clock may have been set back."""
    exported = ALICE.export_keys(insecure=True)
    behind = Clock()
    behind.now -= 10_000
    again = SporeKeyManager.import_keys("alice", exported, clock=behind)
    assert again.current().epoch > ALICE.current().epoch


# -- context-free --------------------------------------------------------------------------------


def parts() -> dict[str, bytes]:
    keys = ALICE.get_public_keys()
    data, nonce, signature = ALICE.encrypt_and_sign({"n": 1}, BOB.get_public_keys()["public_key"])
    return {
        "encrypted_data": data, "nonce": nonce, "signature": signature,
        "sender_public_key": keys["public_key"], "sender_verify_key": keys["verify_key"],
    }  # fmt: skip


def test_encrypt_and_sign_is_undone_by_the_recipient_alone() -> None:
    """Also after it rotated; by nobody else."""
    bob = SporeKeyManager("bob", clock=CLOCK)
    keys = ALICE.get_public_keys()
    data, nonce, signature = ALICE.encrypt_and_sign({"n": 1}, bob.get_public_keys()["public_key"])
    for _ in range(2):
        plain = bob.decrypt_and_verify(
            data, nonce, signature, keys["public_key"], keys["verify_key"]
        )
        assert plain == {"n": 1}
        bob.rotate_keys()
    assert code_of(lambda: BOB.decrypt_and_verify(
        data, nonce, signature, keys["public_key"], keys["verify_key"]
    )) == SealCode.BAD_DECRYPT  # fmt: skip


@pytest.mark.parametrize("part", list(parts()))
def test_no_part_may_change(part: str) -> None:
    """Every bit of ciphertext, nonce, signature and of the sender's keys."""
    good = parts()
    assert BOB.decrypt_and_verify(**good) == {"n": 1}
    for position in range(len(good[part]) * 8):
        changed = bytearray(good[part])
        changed[position // 8] ^= 1 << position % 8
        refused: Callable[[], object] = lambda: BOB.decrypt_and_verify(  # noqa: E731
            **{**good, part: bytes(changed)}  # noqa: B023
        )
        assert code_of(refused) in set(SealCode)
    for size in (0, 1, len(good[part]) - 1):
        with pytest.raises((EnvelopeError, KeyringError)):
            BOB.decrypt_and_verify(**{**good, part: good[part][:size]})


def test_who_signs_somebody_elses_ciphertext_does_not_become_its_author() -> None:
    """The sender's key is part of what the content is encrypted under."""
    good = parts()
    eve = SporeKeyManager("eve", clock=CLOCK)
    keys = eve.get_public_keys()
    from praval.core.spore_keys import LABEL, _context

    context = _context(good["encrypted_data"], good["nonce"], keys["public_key"])
    stolen = {
        **good, "signature": eve.current().signers[0].key.sign(LABEL, context),
        "sender_public_key": keys["public_key"], "sender_verify_key": keys["verify_key"],
    }  # fmt: skip
    assert code_of(lambda: BOB.decrypt_and_verify(**stolen)) == SealCode.BAD_DECRYPT


def test_nothing_shows_or_pickles_a_secret() -> None:
    """Neither the manager nor a spore."""
    secret = ALICE._keys.identity.reveal().hex()
    assert secret not in f"{ALICE!r} {SecureSporeFactory(ALICE)!r} {sealed()!r}"
    with pytest.raises(TypeError):
        pickle.dumps(ALICE)


@pytest.mark.parametrize("size", [0, 1, 100, 322])
def test_bytes_that_are_no_envelope_are_refused(size: int) -> None:
    """By one typed error."""
    with pytest.raises(EnvelopeError):
        SecureSpore.from_bytes(sealed().to_bytes()[:size])
