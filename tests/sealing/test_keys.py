"""The life of keys: rotated with nothing lost, erased when they must be, stolen in vain."""

from __future__ import annotations

import copy
import logging
import pickle
import random
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from praval.core import principal
from praval.core.envelope_format import parse
from praval.core.key_box import CHEAP, HEAD, MAGIC, BoxKey, unlock
from praval.core.key_types import PrivateKey, PublicKey, SigningKey, VerifyKey
from praval.core.keys import Keyring
from praval.core.lifetimes import DAY, DEFAULT, HOUR, MINUTE, STRICT, Lifetimes, shown
from praval.core.stored_keys import StoredKeyring, backup, read_backup, stored_principal
from praval.errors import (
    CardError,
    ConfigurationError,
    KeyringError,
    PassphraseError,
    SealCode,
    SealError,
)
from tests.sealing.actors import NOW, Dice, acquaint, code_of, host, note, opens

CANARY = b"CANARY-secret-of-32-bytes-------"
assert len(CANARY) == 32


# -- lifetimes ------------------------------------------------------------------------------------


def test_the_window_is_what_the_configured_times_add_up_to() -> None:
    """Rotation, card, spore and twice the skew; `praval keys show` prints it."""
    assert DEFAULT.window == DAY + 2 * DAY + DAY + 2 * 2 * MINUTE
    assert STRICT.window == HOUR + 2 * HOUR + HOUR + 2 * 2 * MINUTE
    assert shown(DEFAULT.window) == "4 d 4 min"
    assert shown(STRICT.window) == "4 h 4 min"
    assert shown(0) == "0 s"


@pytest.mark.parametrize(
    "wrong", [{"rotation": 0}, {"skew": -1}, {"max_ttl": 1.5}, {"renewal": 2 * DAY},
              {"card": 15 * DAY}, {"max_ttl": 15 * DAY}],
)  # fmt: skip
def test_lifetimes_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    """Zero, negative, fractional, contradictory, or beyond what others accept."""
    with pytest.raises(ConfigurationError):
        Lifetimes(**wrong)


SHORT = Lifetimes(max_ttl=MINUTE, skew=1000, rotation=5 * MINUTE, card=10 * MINUTE, renewal=MINUTE)


def run(keyring: Keyring, until: int, *, since: int = NOW, step: int = MINUTE) -> None:
    """Let the time pass as a process sees it that calls tick every now and then."""
    for now in range(since, until + 1, step):
        keyring.tick(now)


def test_keys_are_rotated_and_cards_renewed_on_time() -> None:
    """Neither earlier nor later; each card has a higher epoch."""
    keyring = host("bob", lifetimes=SHORT)
    first = keyring.get("bob")
    assert keyring.tick(NOW + MINUTE - 1) == []
    assert len(keyring.tick(NOW + MINUTE)) == 1
    assert keyring.get("bob").epoch > first.epoch
    assert keyring.get("bob").prekeys[0].key == first.prekeys[0].key
    run(keyring, NOW + 5 * MINUTE, since=NOW + 2 * MINUTE)
    assert keyring.get("bob").prekeys[0].key != first.prekeys[0].key
    assert keyring.get("bob").prekeys[1].key == first.prekeys[0].key


def test_a_prekey_is_erased_when_the_last_card_that_lists_it_and_its_spores_are_over() -> None:
    """To the millisecond, and never while it is in use."""
    keyring = host("bob", lifetimes=SHORT)
    run(keyring, NOW + 5 * MINUTE)
    old = keyring.get("bob").prekeys[1]
    last_card = NOW + 4 * MINUTE + SHORT.card
    assert old.listed_until == last_card
    end = last_card + SHORT.max_ttl + 2 * SHORT.skew
    assert principal.erase_at(old, SHORT) == end
    keyring.tick(end - 1)
    assert old.key in [each.key for each in keyring.get("bob").prekeys]
    keyring.tick(end)
    assert old.key not in [each.key for each in keyring.get("bob").prekeys]
    assert old.key.reveal() not in keyring.dump()


def test_a_replaced_verify_key_stays_listed_as_long_as_its_spores_live() -> None:
    """And its private half is erased then."""
    alice, bob = host("alice", lifetimes=SHORT), host("bob", lifetimes=SHORT)
    acquaint(alice, bob)
    (data,) = alice.seal(note(to="bob", ttl=SHORT.max_ttl), now=NOW).envelopes
    old = alice.get("alice").signers[0].key
    alice.rotate("alice", now=NOW)
    bob.hear(alice.card("alice"), NOW)
    late = NOW + SHORT.max_ttl + SHORT.skew
    alice.tick(late)
    bob.hear(alice.card("alice"), late)
    assert opens(bob, "bob", data, now=late)
    alice.tick(NOW + SHORT.grace)
    assert old not in [each.key for each in alice.get("alice").signers]
    later = alice.rotate("alice", now=NOW + SHORT.grace)
    assert bytes(old.verify_key) not in b"".join(
        bob.hear(later, NOW + SHORT.grace).card.verify_keys
    )


# -- theft ----------------------------------------------------------------------------------------


MOMENTS = [NOW + at * SHORT.window // 10 for at in range(20)]


@pytest.mark.parametrize("stolen_at", MOMENTS)
def test_who_steals_the_recipients_keys_reads_nothing_older_than_the_window(
    stolen_at: int,
) -> None:
    """All that bob's disk and memory hold at one moment, against all that was ever on the wire."""
    alice, bob = host("alice", lifetimes=SHORT), host("bob", lifetimes=SHORT)
    acquaint(alice, bob)
    recorded: list[tuple[int, bytes]] = []
    for number, now in enumerate(range(NOW, stolen_at + 1, MINUTE), 1):
        for card in bob.tick(now):
            alice.hear(card, now)
        for card in alice.tick(now):
            bob.hear(card, now)
        message = note(to="bob", now=now, number=number, ttl=SHORT.max_ttl)
        recorded += [(now, each) for each in alice.seal(message, now=now).envelopes]
    bob.tick(stolen_at)
    thief = Keyring(lifetimes=SHORT)
    thief.restore(bob.dump(), now=stolen_at)
    readable = []
    for sealed_at, data in recorded:
        # What a thief needs is the prekey of a stanza: no check of signatures or times holds it.
        if not set(parse(data).stanza_ids()).isdisjoint(thief.get("bob").opening_keys()):
            readable.append(sealed_at)
    assert code_of(lambda: opens(thief, "bob", recorded[-1][1], now=stolen_at)) == "ok"
    oldest = min(readable)
    assert stolen_at - oldest <= SHORT.window
    if stolen_at - NOW > SHORT.window:
        assert len(readable) < len(recorded)


def test_who_steals_the_senders_keys_reads_nothing_at_all() -> None:
    """Ephemeral keys are nobody's: alice herself cannot open what she sealed."""
    alice, bob = host("alice"), host("bob")
    acquaint(alice, bob)
    recorded = [alice.seal(note(to="bob", number=n), now=NOW).envelopes[0] for n in range(1, 50)]
    thief = Keyring()
    thief.restore(alice.dump(), now=NOW)
    secrets = [each.key for each in thief.get("alice").prekeys]
    for data in recorded:
        assert code_of(lambda data=data: opens(thief, "alice", data)) == SealCode.NOT_FOR_ME  # type: ignore[misc]
        for secret in secrets:
            assert secret.reveal() not in data


def test_after_a_theft_new_prekeys_close_the_door_at_once() -> None:
    """What is sealed to the new card, the thief cannot read."""
    alice, bob = host("alice"), host("bob")
    acquaint(alice, bob)
    thief = Keyring()
    thief.restore(bob.dump(), now=NOW)
    alice.hear(bob.renew_prekeys("bob", now=NOW + 1), NOW + 1)
    assert len(bob.get("bob").prekeys) == 1
    (data,) = alice.seal(note(to="bob"), now=NOW + 1).envelopes
    assert opens(bob, "bob", data)
    assert code_of(lambda: opens(thief, "bob", data)) == SealCode.NO_KEY


# -- rotation under load --------------------------------------------------------------------------


def test_a_thousand_rotations_lose_nothing_that_is_under_way() -> None:
    """Envelopes and cards overtake one another by up to the spores' whole life."""
    times = Lifetimes(max_ttl=MINUTE, skew=1000, rotation=1000, card=2 * MINUTE, renewal=500)
    alice, bob = host("alice", lifetimes=times), host("bob", lifetimes=times)
    acquaint(alice, bob)
    dice = random.Random(4)
    wire: list[tuple[int, bytes, int]] = []
    to_alice: list[tuple[int, bytes]] = []
    sealed = opened = rotations = retried = 0
    now = NOW
    for number in range(1, 1051):
        now += 1000
        for card in alice.tick(now):
            bob.hear(card, now)
        for card in bob.tick(now):
            rotations += 1
            to_alice.append((now + dice.randrange(30_000), card))
        for arrives, card in [each for each in to_alice if each[0] <= now]:
            to_alice.remove((arrives, card))
            code_of(lambda card=card: alice.hear(card, now))  # type: ignore[misc] # noqa: B023
        for data in alice.seal(note(to="bob", now=now, number=number), now=now).envelopes:
            sealed += 1
            wire.append((now + dice.randrange(60_000), data, number))
        for arrives, data, _ in [each for each in wire if each[0] <= now]:
            wire.remove((arrives, data, _))
            opens(bob, "bob", data, now=now)
            opened += 1
    for _, data, _ in wire:
        opens(bob, "bob", data, now=now)
        opened += 1
    assert rotations >= 1000
    assert (sealed, retried) == (1050, 0)
    assert opened == sealed


def test_a_card_never_lists_more_keys_than_it_has_room_for() -> None:
    """Rotations quicker than spores expire keep the signing key rather than lose a spore."""
    keyring = host("bob")
    for second in range(100):
        keyring.rotate("bob", now=NOW + second * 1000)
    assert len(keyring.directory.card("bob", NOW).card.verify_keys) == principal.MOST_LISTED
    assert len(keyring.get("bob").prekeys) == 101


# -- keeping ---------------------------------------------------------------------------------------


def test_a_keyring_that_was_stored_is_the_same_again() -> None:
    """Keys, epochs, pins, roots, revocations."""
    bob = host("bob", "carol")
    again = Keyring()
    again.restore(bob.dump(), now=NOW)
    assert again.dump() == bob.dump()
    assert (again.names, again.instance) == (bob.names, bob.instance)
    assert again.directory.roots == bob.directory.roots


def test_a_keyring_alone_certifies_its_own() -> None:
    """For tests and for one process: a throw-away root that signs again in time."""
    keyring = Keyring(random=Dice("alone"))
    keyring.add("alice", now=NOW)
    keyring.add("bob", now=NOW)
    (data,) = keyring.seal(note(to="bob"), now=NOW).envelopes
    assert opens(keyring, "bob", data)
    for day in range(1, 100):
        keyring.tick(NOW + day * DAY)
    late = NOW + 99 * DAY
    (data,) = keyring.seal(note(to="bob", now=late), now=late).envelopes
    assert opens(keyring, "bob", data, now=late)
    other = Keyring(random=Dice("other"))
    assert code_of(lambda: other.hear(keyring.card("bob"), late)) == SealCode.UNKNOWN_SENDER
    assert keyring.root is not None
    other.directory.roots.add(keyring.root)
    assert other.hear(keyring.card("bob"), late)


def test_a_name_has_keys_once_and_needs_a_certificate() -> None:
    """With pinned roots nobody certifies itself."""
    keyring = host("bob")
    with pytest.raises(KeyringError, match="already"):
        keyring.add("bob", now=NOW)
    with pytest.raises(KeyringError, match="praval keys root --certify"):
        keyring.add("carol", now=NOW)
    with pytest.raises(KeyringError, match="there are keys of: bob"):
        keyring.get("carol")
    other = host("carol")
    chain = other.get("carol").certificates
    with pytest.raises(CardError):
        keyring.install("bob", chain, now=NOW)


def test_a_backup_has_no_prekeys_and_makes_the_same_agent() -> None:
    """Old spores stay closed to whoever finds it."""
    bob = host("bob")
    keys = bob.get("bob")
    data = backup(keys)
    for each in (*keys.prekeys, *keys.signers):
        assert each.key.reveal() not in data
    found = read_backup(data, "bob")
    assert SigningKey(found.identity) == keys.identity
    with pytest.raises(KeyringError, match="not of 'carol'"):
        read_backup(data, "carol")
    for junk in (b"", b"{}", b"[]", data[:-1], b"\xff", b"[" * 9999):
        with pytest.raises(KeyringError):
            read_backup(junk)


@pytest.mark.parametrize("junk", [b"", b"{}", b"null", b"\xff", b"[" * 99_999])
def test_a_stored_keyring_that_is_damaged_is_refused(junk: bytes) -> None:
    """By a typed error."""
    with pytest.raises(KeyringError):
        Keyring().restore(junk, now=NOW)


# -- boxes -----------------------------------------------------------------------------------------


def a_box(secret: bytes = b"secret", passphrase: str = "horse") -> bytes:
    return BoxKey.fresh(passphrase, random=Dice("box"), cost=CHEAP).lock(secret, Dice("nonce"))


def test_a_box_opens_with_its_passphrase_alone() -> None:
    """Not with another, and not when one bit was changed."""
    box = a_box()
    assert unlock(box, "horse")[0] == b"secret"
    with pytest.raises(PassphraseError):
        unlock(box, "cow")
    for position in range(len(box)):
        for bit in range(8):
            changed = bytearray(box)
            changed[position] ^= 1 << bit
            with pytest.raises(KeyringError):
                unlock(bytes(changed), "horse", CHEAP)
    for size in range(len(box)):
        with pytest.raises(KeyringError):
            unlock(box[:size], "horse")


@pytest.mark.parametrize(
    ("passes", "memory"), [(2**32 - 1, 8192), (1, 2**63), (11, 8192), (1, 2**31), (0, 8192), (1, 1)]
)
def test_a_box_cannot_make_us_spend_an_hour(passes: int, memory: int) -> None:
    """The cost of trying a passphrase is capped, and checked before it is paid."""
    head = HEAD.pack(MAGIC, passes, memory, bytes(16), bytes(24))
    with pytest.raises(KeyringError) as caught:
        unlock(head + bytes(32), "x")
    assert caught.value.code is SealCode.UNSUPPORTED


@pytest.mark.parametrize("passphrase", ["", "\ud800"])
def test_a_passphrase_is_some_text(passphrase: str) -> None:
    """An empty one protects nothing."""
    with pytest.raises(KeyringError):
        a_box(passphrase=passphrase)


# -- no secret is ever shown ----------------------------------------------------------------------


def canaries() -> list[object]:
    """All objects that hold secrets, each with the canary inside."""
    keyring = Keyring(random=lambda size: (CANARY * 3)[:size])
    keyring.add("bob", now=NOW, identity=SigningKey(CANARY))
    keys = keyring.get("bob")
    stored = stored_principal(keys)
    return [
        SigningKey(CANARY), PrivateKey(CANARY), keyring, keys, keys.prekeys[0], keys.signers[0],
        stored, stored.prekeys[0], stored.signers[0], read_backup(backup(keys)),
        StoredKeyring(b"", CANARY, CANARY, CANARY, CANARY, [], [stored], b""),
        BoxKey("CANARY-passphrase", bytes(16), CHEAP),
    ]  # fmt: skip


@pytest.mark.parametrize("secret", canaries(), ids=lambda secret: type(secret).__name__)
def test_no_secret_shows_in_a_repr_a_format_or_a_log(
    secret: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever way it is turned into text."""
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("test").debug("%s %r", secret, secret)
    shown_ = f"{secret} {secret!r} {[secret]} {caplog.text}"
    for form in (CANARY.decode(), CANARY.hex(), "CANARY", "Q0FOQVJZ"):
        assert form not in shown_


@pytest.mark.parametrize(
    "secret",
    [each for each in canaries() if "Stored" not in type(each).__name__
     and type(each).__name__ not in ("Backup", "Keyring")],
    ids=lambda secret: type(secret).__name__,
)  # fmt: skip
@pytest.mark.parametrize("way", [pickle.dumps, copy.copy, copy.deepcopy])
def test_no_secret_can_be_pickled(secret: object, way: Callable[[object], object]) -> None:
    """It would end in a cache, a queue or another process."""
    if way is copy.copy and not isinstance(secret, (SigningKey, PrivateKey, BoxKey)):
        return  # a shallow copy of what refers to a key is no copy of the key
    with pytest.raises(TypeError, match="secret"):
        way(secret)


ALICE, BOB = host("alice"), host("bob")
acquaint(ALICE, BOB)
SEALED = ALICE.seal(note(to="bob", knowledge=b'{"k":"CANARY"}'), now=NOW).envelopes[0]


@pytest.mark.parametrize(
    "failure",
    [
        lambda: opens(BOB, "bob", SEALED[:-1] + bytes([SEALED[-1] ^ 1])),
        lambda: unlock(a_box(b"CANARY-secret"), "CANARY-passphrase"),
        lambda: SigningKey(b"CANARY"),
        lambda: PrivateKey(CANARY).exchange(PublicKey(bytes(32))),
        lambda: read_backup(b'{"CANARY":1}'),
        lambda: read_backup(b'{"kind":"praval.backup.v1","name":"CANARY","identity":5}'),
        lambda: Keyring().restore(b'{"CANARY":1', now=NOW),
        lambda: ALICE.seal(note(to="nobody", knowledge=b'{"k":"CANARY"}'), now=NOW),
        lambda: ALICE.seal(note(to="bob", knowledge=b'{"k":"CANARY"}', priority=99), now=NOW),
    ],
)
def test_no_secret_is_in_an_exception_or_its_causes(failure: Callable[[], object]) -> None:
    """Passphrases, keys and plaintexts, in whatever goes wrong."""
    with pytest.raises(SealError) as caught:
        failure()
    text = "".join(traceback.format_exception(caught.value))
    said = [line for line in text.splitlines() if not line.startswith("    ")]  # no source lines
    assert "CANARY" not in repr(caught.value) + "\n".join(said)


# -- keys are types ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PublicKey, VerifyKey, PrivateKey, SigningKey])
@pytest.mark.parametrize("raw", [b"", b"x" * 31, b"x" * 33, "x" * 32, None, bytearray(32)])
def test_a_key_is_made_of_32_bytes(kind: type, raw: Any) -> None:
    """Neither more, nor fewer, nor text."""
    with pytest.raises(KeyringError):
        kind(raw)


def test_keys_of_different_kinds_are_never_equal() -> None:
    """Nor hash alike, nor equal their bytes."""
    raw = bytes(range(32))
    public, verify = PublicKey(raw), VerifyKey(raw)
    assert public == PublicKey(raw)
    assert public != verify
    assert public != raw
    assert hash(public) != hash(verify)
    assert PrivateKey(raw) != SigningKey(raw)
    assert PrivateKey(raw) == PrivateKey(raw)
    assert PrivateKey(raw) != PrivateKey(bytes(32))
