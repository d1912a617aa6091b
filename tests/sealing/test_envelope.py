"""PSV1: what a sealed spore gives, and what becomes of each way to tamper with it."""

from __future__ import annotations

import functools
import json
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from praval.core import envelope_format as wire
from praval.core.certificates import Rights
from praval.core.envelope import (
    LABEL,
    ZERO_NONCE,
    Recipient,
    Sender,
    _body_key,
    _commitment,
    _header_hash,
    _kek,
    seal,
    seal_all,
    stanza_id,
)
from praval.core.envelope_body import LENGTHS, Fields, decode_body, encode_body
from praval.core.envelope_format import FIXED, MOST_RECIPIENTS, STANZA, Message, header_bytes, parse
from praval.core.key_types import PrivateKey, PublicKey, SigningKey, blake2b, encrypt
from praval.core.keys import Keyring
from praval.errors import EnvelopeError, SealCode
from tests.sealing.actors import NOW, Dice, a_root, acquaint, code_of, host, note, opens


def pair() -> tuple[Keyring, Keyring]:
    alice, bob = host("alice"), host("bob")
    acquaint(alice, bob)
    return alice, bob


def sealed(to: str = "bob", **fields: object) -> tuple[Keyring, Keyring, bytes]:
    alice, bob = pair()
    (data,) = alice.seal(note(to=to, **fields), now=NOW).envelopes  # type: ignore[arg-type]
    return alice, bob, data


def crowd(count: int) -> tuple[Keyring, Keyring, bytes]:
    """An envelope to that many recipients, of whom bob is the last."""
    alice, bob = pair()
    dice = Dice("crowd")
    card = alice.directory.card("bob", NOW).card
    others = [
        Recipient(dice(16), PrivateKey(dice(32)).public, NOW + 10**9, 86_400_000)
        for _ in range(count - 1)
    ]
    bob_ = Recipient(bob.get("bob").agent_id, PublicKey(card.prekey), card.expires, card.max_ttl)
    keys = alice.get("alice")
    sender = Sender(keys.agent_id, keys.signers[0].key)
    return alice, bob, seal(note(), sender, [*others, bob_], now=NOW, random=dice)


# -- what it gives ---------------------------------------------------------------------------


def test_what_was_sealed_comes_out_and_says_who_sent_it() -> None:
    """Every field of the message, and the identity behind the name."""
    alice, bob = pair()
    message = note(
        to="bob", kind="finding", knowledge=b'{"type":"finding","n":[1,2]}', priority=9,
        spore_type=wire.REQUEST, reply_to=b"q" * 16,
    )  # fmt: skip
    (data,) = alice.seal(message, now=NOW).envelopes
    opened = opens(bob, "bob", data)
    assert opened.message == message
    assert opened.type == "finding"
    assert opened.sender == alice.get("alice").agent_id
    assert decode_body(opened.message.body)[1] == {"type": "finding", "n": [1, 2]}


def test_a_broadcast_is_sealed_to_everyone_who_hears_it_and_to_nobody_else() -> None:
    """One envelope, a stanza for each subscriber; the others learn that it is not for them."""
    alice, bob, eve = host("alice"), host("bob", "carol"), host("eve", hears=("desk.other",))
    acquaint(alice, bob, eve)
    done = alice.seal(note(), now=NOW)
    assert (sorted(done.names), done.missed) == (["bob", "carol"], [])
    (data,) = done.envelopes
    for name in ("bob", "carol"):
        assert opens(bob, name, data).message == note()
    assert code_of(lambda: opens(eve, "eve", data)) == SealCode.NOT_A_RECIPIENT
    assert SealCode.NOT_A_RECIPIENT.acknowledged


def test_nothing_of_the_plaintext_is_in_the_envelope() -> None:
    """Neither the knowledge nor the inner type; names and topic are there to be seen."""
    _, _, data = sealed(kind="secret-type", knowledge=b'{"type":"secret-type","k":"CANARY-42"}')
    assert b"CANARY-42" not in data
    assert b"secret-type" not in data
    assert b"alice" in data
    assert b"desk.bob_channel" in data


def test_sealing_the_same_again_shares_nothing_with_the_first_envelope() -> None:
    """Ephemeral key, commitment, nonce, stanza and body are fresh; the content is the same."""
    alice, bob, first = sealed()
    (second,) = alice.seal(note(to="bob"), now=NOW).envelopes
    a, b = parse(first), parse(second)
    assert not {a.ephemeral, a.commitment, a.nonce} & {b.ephemeral, b.commitment, b.nonce}
    assert first[a.stanzas_at + 16 : a.tail_at] != second[b.stanzas_at + 16 : b.tail_at]
    assert opens(bob, "bob", first).content() == opens(bob, "bob", second).content()
    assert opens(bob, "bob", first).content() != note_content(alice, bob, knowledge=b'{"n":2}')


def note_content(alice: Keyring, bob: Keyring, **fields: object) -> bytes:
    (data,) = alice.seal(note(to="bob", **fields), now=NOW).envelopes  # type: ignore[arg-type]
    return opens(bob, "bob", data).content()


@pytest.mark.parametrize(
    "change",
    [
        {"priority": 6}, {"ttl": 60_001}, {"topic": "desk.other"}, {"reply_to": b"r" * 16},
        {"spore_type": wire.NOTIFICATION}, {"knowledge": b'{"n":2}'}, {"number": 2},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_the_content_digest_tells_every_change_of_what_was_said(change: dict[str, object]) -> None:
    """Each field that stays the same when a spore is sealed again is part of the digest."""
    alice, bob = pair()
    assert note_content(alice, bob) != note_content(alice, bob, **change)


def test_more_than_1024_recipients_get_several_envelopes_of_one_id() -> None:
    """Their recipients are disjoint, and each envelope opens."""
    alice, _ = pair()
    dice, keys = Dice("many"), alice.get("alice")
    keys_of = [PrivateKey(dice(32)) for _ in range(MOST_RECIPIENTS + 1)]
    recipients = [Recipient(dice(16), key.public, NOW + 10**9, 10**8) for key in keys_of]
    sender = Sender(keys.agent_id, keys.signers[0].key)
    done = [parse(each) for each in seal_all(note(), sender, recipients, now=NOW, random=dice)]
    assert [each.recipients for each in done] == [MOST_RECIPIENTS, 1]
    assert {each.id for each in done} == {note().id}
    ids = [stanza for each in done for stanza in each.stanza_ids()]
    assert len(set(ids)) == len(ids) == MOST_RECIPIENTS + 1


@given(
    knowledge=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=4),
    priority=st.integers(1, 10),
    spore_type=st.integers(1, 5),
    ttl=st.integers(1, 86_400_000),
    number=st.integers(1, 2**128 - 1),
    fields=st.builds(
        Fields,
        hops=st.integers(0, 2**53 - 1),
        key=st.none() | st.text(max_size=9),
        headers=st.none() | st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3),
    ),
)
def test_whatever_is_sealed_is_opened_unchanged(
    knowledge: dict[str, object], priority: int, spore_type: int, ttl: int, number: int,
    fields: Fields,
) -> None:  # fmt: skip
    """A property of all messages: open is the inverse of seal."""
    knowledge.pop("type", None)
    alice, bob = PAIR
    message = msgspec.structs.replace(
        note(to="bob", priority=priority, spore_type=spore_type, ttl=ttl, number=number),
        body=encode_body(None, msgspec.json.encode(knowledge), fields),
    )
    (data,) = alice.seal(message, now=NOW).envelopes
    opened = opens(bob, "bob", data)
    assert opened.message == message
    assert decode_body(opened.message.body) == (None, knowledge, fields)


PAIR = pair()


@given(st.binary(max_size=600))
def test_no_bytes_whatever_bring_anything_but_a_typed_refusal(junk: bytes) -> None:
    """Neither bare junk nor junk behind a good beginning."""
    bob = PAIR[1]
    assert code_of(lambda: opens(bob, "bob", junk)) in set(SealCode)
    assert code_of(lambda: opens(bob, "bob", GOOD[: len(junk)] + junk)) in set(SealCode)
    assert code_of(lambda: decode_body(junk)) in {*SealCode, "ok"}


GOOD = PAIR[0].seal(note(to="bob"), now=NOW).envelopes[0]


# -- tampering -------------------------------------------------------------------------------


@pytest.mark.parametrize("recipients", [1, 3, 64])
def test_every_single_bit_that_is_flipped_is_noticed(recipients: int) -> None:
    """No bit of an envelope is without meaning."""
    _, bob, data = crowd(recipients)
    assert opens(bob, "bob", data)
    mutable = bytearray(data)
    for position in range(len(data)):
        for bit in range(8):
            mutable[position] ^= 1 << bit
            assert code_of(lambda: opens(bob, "bob", bytes(mutable))) in set(SealCode), position
            mutable[position] ^= 1 << bit


@pytest.mark.parametrize("recipients", [1, 3, 64])
def test_every_truncation_and_extension_is_noticed(recipients: int) -> None:
    """From nothing at all to one byte too few, and bytes too many."""
    _, bob, data = crowd(recipients)
    for size in range(len(data)):
        assert code_of(lambda size=size: opens(bob, "bob", data[:size])) == SealCode.MALFORMED  # type: ignore[misc]
    for extra in (b"\0", data[:1], data):
        assert code_of(lambda extra=extra: opens(bob, "bob", data + extra)) == SealCode.MALFORMED  # type: ignore[misc]


@pytest.mark.parametrize("recipients", [1, 3, 64])
def test_no_splice_of_two_good_envelopes_is_one(recipients: int) -> None:
    """The first part of one and the last of another, cut anywhere."""
    alice, bob, first = crowd(recipients)
    keys, dice = alice.get("alice"), Dice("other")
    stanzas = parse(first).recipients
    card = alice.directory.card("bob", NOW).card
    others = [
        Recipient(dice(16), PrivateKey(dice(32)).public, NOW + 10**9, 86_400_000)
        for _ in range(stanzas - 1)
    ]
    bob_ = Recipient(bob.get("bob").agent_id, PublicKey(card.prekey), card.expires, card.max_ttl)
    sender = Sender(keys.agent_id, keys.signers[0].key)
    second = seal(note(), sender, [*others, bob_], now=NOW, random=dice)
    assert len(first) == len(second)
    common = next(at for at in range(len(first)) if first[at] != second[at])
    last = next(at for at in range(len(first), 0, -1) if first[at - 1] != second[at - 1])
    for cut in range(common + 1, last):
        spliced = first[:cut] + second[cut:]
        assert code_of(lambda spliced=spliced: opens(bob, "bob", spliced)) in set(SealCode)  # type: ignore[misc]


def resigned(data: bytes, key: SigningKey) -> bytes:
    """The same bytes with a good signature: what a peer can do who is allowed to speak."""
    body = data[:-64]
    return body + key.sign(LABEL, blake2b(body, person=b"psv1.sign").digest())


def test_a_recipient_cannot_change_what_it_got_and_pass_it_on() -> None:
    """Bob knows the content key, but the signature covers the ciphertext."""
    _, bob, data = crowd(3)
    forged = resigned(data, bob.get("bob").signers[0].key)
    assert code_of(lambda: opens(bob, "bob", forged)) == SealCode.BAD_SIGNATURE


@pytest.mark.parametrize("committed", [True, False])
def test_a_sender_cannot_seal_different_bodies_to_different_recipients_under_one_envelope(
    committed: bool,
) -> None:
    """All else being right, a content key other than the committed one is refused."""
    alice, bob = pair()
    keys, card, dice = alice.get("alice"), alice.directory.card("bob", NOW).card, Dice("two")
    ephemeral, cek, other, nonce = PrivateKey(dice(32)), dice(32), dice(32), dice(24)
    signer, message = keys.signers[0].key, note(to="bob")
    ek, spk, bob_id = bytes(ephemeral.public), card.prekey, bob.get("bob").agent_id
    header = header_bytes(
        message, sender=keys.agent_id, key_id=signer.verify_key.id, recipients=1,
        secrets=(ek, _commitment(cek if committed else other), nonce),
    )  # fmt: skip
    hashed = _header_hash(header)
    kek = _kek(ephemeral.exchange(PublicKey(spk)), hashed, ek, spk, bob_id)
    stanza = stanza_id(bob_id, spk) + encrypt(cek, ZERO_NONCE, kek)
    sealed_ = header + stanza + encrypt(message.body, nonce, _body_key(cek, hashed))
    data = resigned(sealed_ + bytes(64), signer)
    expected = "ok" if committed else SealCode.BAD_DECRYPT
    assert code_of(lambda: opens(bob, "bob", data)) == expected


@pytest.mark.parametrize("part", ["stanza", "body", "header"])
def test_a_signed_envelope_whose_inside_is_damaged_names_no_step(part: str) -> None:
    """Stanza, body or binding to the header: one code and one message for all."""
    alice, bob, data = sealed()
    envelope = parse(data)
    at = {"stanza": envelope.stanzas_at + 20, "body": envelope.body_at, "header": 7}[part]
    damaged = bytearray(data)
    damaged[at] ^= 2
    forged = resigned(bytes(damaged), alice.get("alice").signers[0].key)
    with pytest.raises(EnvelopeError) as caught:
        opens(bob, "bob", forged)
    assert caught.value.code is SealCode.BAD_DECRYPT
    assert str(caught.value) == "The envelope cannot be decrypted."
    assert caught.value.sender == "alice"


def test_who_takes_the_signature_away_and_puts_its_own_there_is_not_believed() -> None:
    """Eve claims authorship of an envelope she cannot read: her name is not bound to its sender."""
    alice, bob, eve = host("alice"), host("bob"), host("eve")
    acquaint(alice, bob, eve)
    (data,) = alice.seal(note(to="bob"), now=NOW).envelopes
    keys = eve.get("eve")
    fields = list(FIXED.unpack_from(data))
    fields[9], fields[10] = keys.agent_id, keys.signers[0].key.verify_key.id
    stolen = resigned(FIXED.pack(*fields) + data[FIXED.size :], keys.signers[0].key)
    assert code_of(lambda: opens(bob, "bob", stolen)) == SealCode.NOT_PERMITTED
    fields[14] = 3
    body = FIXED.pack(*fields) + b"eve" + data[FIXED.size + 5 :]
    assert code_of(lambda: opens(bob, "bob", resigned(body, keys.signers[0].key))) == (
        SealCode.BAD_DECRYPT
    )


# -- each refusal ----------------------------------------------------------------------------


def test_what_is_for_another_agent_is_refused_even_with_a_stanza_for_us() -> None:
    """``to`` decides, not who could read it."""
    alice, bob, _ = sealed()
    card = alice.directory.card("bob", NOW).card
    keys = alice.get("alice")
    bob_ = Recipient(bob.get("bob").agent_id, PublicKey(card.prekey), card.expires, card.max_ttl)
    data = seal(
        note(to="carol"), Sender(keys.agent_id, keys.signers[0].key), [bob_],
        now=NOW, random=Dice("x"),
    )  # fmt: skip
    assert code_of(lambda: opens(bob, "bob", data)) == SealCode.NOT_FOR_ME


def test_a_broker_that_moves_an_envelope_to_another_topic_is_noticed() -> None:
    """The signed topic is held against the local subscription, whatever the broker says."""
    _, bob, data = sealed()
    heard = opens(bob, "bob", data, filters=("desk.bob_channel",))
    assert heard.message.topic == "desk.bob_channel"
    for filters in (("desk.main",), ("other.*",), ("desk.*.x",)):
        refused = code_of(lambda filters=filters: opens(bob, "bob", data, filters=filters))  # type: ignore[misc]
        assert refused == SealCode.MISROUTED


@pytest.mark.parametrize("topic", ["desk/main", "desk..main", "desk.*", "desk.#", "des k", "desk."])
def test_a_topic_that_is_not_canonical_is_heard_by_nobody(topic: str) -> None:
    """Not even by who hears everything."""
    alice, bob = pair()
    keys, card = alice.get("alice"), alice.directory.card("bob", NOW).card
    bob_ = Recipient(bob.get("bob").agent_id, PublicKey(card.prekey), card.expires, card.max_ttl)
    sender = Sender(keys.agent_id, keys.signers[0].key)
    data = seal(note(to="bob", topic=topic), sender, [bob_], now=NOW, random=Dice("x"))
    assert code_of(lambda: opens(bob, "bob", data)) == SealCode.MISROUTED


@pytest.mark.parametrize(
    ("later", "code"),
    [
        (-120_001, SealCode.NOT_YET_VALID), (-120_000, "ok"), (0, "ok"),
        (60_000 + 120_000, "ok"), (60_000 + 120_001, SealCode.EXPIRED),
    ],
)  # fmt: skip
def test_times_are_judged_with_the_skew_and_to_the_millisecond(later: int, code: str) -> None:
    """Created in the future, or expired: by more than clocks may differ."""
    _, bob, data = sealed()
    assert code_of(lambda: opens(bob, "bob", data, now=NOW + later)) == code


def test_a_life_beyond_the_receivers_limit_is_refused_on_both_sides() -> None:
    """A sealed spore may not outlive the memory that guards against its replay."""
    alice, bob = pair()
    long = note(to="bob", ttl=86_400_001)
    assert code_of(lambda: alice.seal(long, now=NOW)) == SealCode.NOT_PERMITTED
    keys, card = alice.get("alice"), alice.directory.card("bob", NOW).card
    bob_ = Recipient(bob.get("bob").agent_id, PublicKey(card.prekey), card.expires, 10**9)
    sender = Sender(keys.agent_id, keys.signers[0].key)
    data = seal(long, sender, [bob_], now=NOW, random=Dice("x"))
    assert code_of(lambda: opens(bob, "bob", data)) == SealCode.NOT_PERMITTED


def test_an_expired_card_is_not_sealed_to() -> None:
    """The outbox waits for a new one."""
    alice, _ = pair()
    late = NOW + alice.lifetimes.card
    alice.rotate("alice", now=late)
    assert code_of(lambda: alice.seal(note(to="bob", now=late), now=late)) == SealCode.STALE_CARD
    done = alice.seal(note(now=late), now=late)
    assert (done.envelopes, done.names, done.missed) == ([], [], ["bob"])


def test_a_key_that_is_gone_is_told_apart_from_a_wrong_signature() -> None:
    """NO_KEY: sealed to prekeys that were thrown away."""
    _, bob, data = sealed()
    bob.renew_prekeys("bob", now=NOW)
    assert code_of(lambda: opens(bob, "bob", data)) == SealCode.NO_KEY


def test_an_unknown_sender_may_become_known_later() -> None:
    """The card decides; the refusal is one that is worth a retry."""
    alice, bob = host("alice"), host("bob")
    alice.hear(bob.card("bob"), NOW)
    (data,) = alice.seal(note(to="bob"), now=NOW).envelopes
    assert code_of(lambda: opens(bob, "bob", data)) == SealCode.UNKNOWN_SENDER
    assert SealCode.UNKNOWN_SENDER.retried
    bob.hear(alice.card("alice"), NOW)
    assert opens(bob, "bob", data)


def test_a_signing_key_that_is_not_listed_yet_is_retried_too() -> None:
    """After a rotation the envelope may overtake the card."""
    alice, bob = pair()
    card = alice.rotate("alice", now=NOW + 1)
    (data,) = alice.seal(note(to="bob"), now=NOW).envelopes
    assert code_of(lambda: opens(bob, "bob", data)) == SealCode.STALE_CARD
    bob.hear(card, NOW + 1)
    assert opens(bob, "bob", data)


def test_rights_bind_topics_and_types() -> None:
    """What a certificate does not grant is not accepted, nor sealed in the first place."""
    rights = Rights(publish=("desk.#",), types=("finding",))
    alice = host("alice", rights=rights)
    bob = host("bob")
    acquaint(alice, bob)
    assert code_of(lambda: alice.seal(note(topic="other.main"), now=NOW)) == SealCode.NOT_PERMITTED
    wrong_type = note(to="bob", kind="order", knowledge=b'{"type":"order"}')
    (data,) = alice.seal(wrong_type, now=NOW).envelopes
    assert code_of(lambda: opens(bob, "bob", data)) == SealCode.NOT_PERMITTED
    right = note(to="bob", kind="finding", knowledge=b'{"type":"finding"}')
    (data,) = alice.seal(right, now=NOW).envelopes
    assert opens(bob, "bob", data).type == "finding"
    # a peer that ignores its own certificate
    keys, card = alice.get("alice"), alice.directory.card("bob", NOW).card
    bob_ = Recipient(bob.get("bob").agent_id, PublicKey(card.prekey), card.expires, card.max_ttl)
    sender = Sender(keys.agent_id, keys.signers[0].key)
    for topic, code in (("other.main", SealCode.NOT_PERMITTED), ("desk.x", "ok")):
        message = note(to="bob", topic=topic, kind="finding", knowledge=b'{"type":"finding"}')
        data = seal(message, sender, [bob_], now=NOW, random=Dice("x"))
        assert code_of(functools.partial(opens, bob, "bob", data)) == code


@pytest.mark.parametrize("kind", ["security_alert", "agent_error"])
def test_alerts_are_local_unless_a_certificate_names_them(kind: str) -> None:
    """No wildcard grants them."""
    body = json.dumps({"type": kind}).encode()
    for rights, code in ((Rights(), SealCode.NOT_PERMITTED), (Rights(types=("*", kind)), "ok")):
        alice, bob = host("alice", rights=rights), host("bob")
        acquaint(alice, bob)
        (data,) = alice.seal(note(to="bob", kind=kind, knowledge=body), now=NOW).envelopes
        assert code_of(lambda bob=bob, data=data: opens(bob, "bob", data)) == code  # type: ignore[misc]


def test_an_inbox_takes_replies_and_receipts_and_an_agent_does_not() -> None:
    """Each subscription says which spore types it expects."""
    alice, bob = pair()
    reply = note(to="bob", spore_type=wire.RESPONSE, topic="desk.@inbox-bob", reply_to=b"q" * 16)
    (data,) = alice.seal(reply, now=NOW).envelopes
    assert opens(bob, "bob", data, kinds={wire.RESPONSE, wire.RECEIPT})
    assert code_of(lambda: opens(bob, "bob", data, kinds={wire.KNOWLEDGE})) == SealCode.MISROUTED


def test_a_replica_that_shares_the_keys_opens_as_well() -> None:
    """Identity, prekeys and directory come with the keyring."""
    _, bob, data = sealed()
    other = Keyring()
    other.restore(bob.dump(), now=NOW)
    assert opens(other, "bob", data).message == note(to="bob")


# -- a valid but hostile peer -------------------------------------------------------------------


def hostile(body: bytes) -> str:
    """How the opening of a well-sealed envelope with this body ends."""
    alice, bob = PAIR
    message = msgspec.structs.replace(note(to="bob"), body=body)
    (data,) = alice.seal(message, now=NOW).envelopes
    return code_of(lambda: decode_body(opens(bob, "bob", data).message.body))


def framed(kind: bytes, fields: bytes, knowledge: bytes) -> bytes:
    return LENGTHS.pack(len(kind), len(fields)) + kind + fields + knowledge


@pytest.mark.parametrize(
    "field",
    ["id", "from_agent", "to_agent", "created_at", "expires_at", "priority", "spore_type",
     "topic", "reply_to", "type", "knowledge", "attempt"],
)  # fmt: skip
def test_a_body_that_repeats_a_field_of_the_header_is_malformed(field: str) -> None:
    """There is one place for each fact, and that place is authenticated."""
    assert hostile(framed(b"", json.dumps({field: "x"}).encode(), b"{}")) == SealCode.MALFORMED


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\0", framed(b"", b"", b""), framed(b"", b"", b"[]"), framed(b"", b"", b"{"),
        framed(b"", b"", b'{"a":NaN}'), framed(b"", b"", b'{"a":"\xff"}'),
        framed(b"\xff", b"", b"{}"), framed(b"a", b"", b'{"type":"b"}'), framed(b"a", b"", b"{}"),
        framed(b"", b"", b'{"type":"a"}'), framed(b"", b"", b'{"type":5}'),
        framed(b"", b"{}", b"{}"), framed(b"", b'{"hops":1, "key":"a"}', b"{}"),
        framed(b"", b'{"hops":1,"hops":1}', b"{}"), framed(b"", b'{"hops":-1}', b"{}"),
        framed(b"", b'{"hops":1e3}', b"{}"), framed(b"", b'{"hops":9007199254740992}', b"{}"),
        framed(b"", b'{"key":"a","hops":1}', b"{}"), framed(b"", b'{"key":null}', b"{}"),
        framed(b"", b"", b'{"a":' + b"[" * 300 + b"]" * 300 + b"}"),
        framed(b"", b"", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        framed(b"", b'{"headers":' + b"[" * 20_000 + b"]" * 20_000 + b"}", b"{}"),
        LENGTHS.pack(65535, 0) + b"{}", LENGTHS.pack(0, 2**32 - 1) + b"{}",
    ],
)  # fmt: skip
def test_a_body_with_two_readings_or_none_is_malformed(body: bytes) -> None:
    """NaN, duplicate and unordered keys, bad UTF-8, depth, lengths, and types that disagree."""
    assert hostile(body) == SealCode.MALFORMED


def test_an_envelope_of_1024_stanzas_costs_one_exchange() -> None:
    """A hostile peer cannot make a receiver try them all; two for one key are malformed."""
    alice, bob, data = crowd(MOST_RECIPIENTS)
    exchanges = 0

    class Counted(PrivateKey):
        __slots__ = ()

        def exchange(self, other: PublicKey) -> bytes:
            nonlocal exchanges
            exchanges += 1
            return super().exchange(other)

    keys = bob.get("bob")
    counted = Counted(keys.prekeys[0].key.reveal())
    prekeys = (msgspec.structs.replace(keys.prekeys[0], key=counted),)
    bob._put(msgspec.structs.replace(keys, prekeys=prekeys))
    assert opens(bob, "bob", data)
    assert exchanges == 1
    envelope = parse(data)
    at = envelope.stanzas_at
    doubled = data[:at] + data[at : at + STANZA] * 2 + data[at + 2 * STANZA :]
    forged = resigned(doubled, alice.get("alice").signers[0].key)
    assert code_of(lambda: opens(bob, "bob", forged)) == SealCode.MALFORMED


def test_a_stanza_that_carries_another_content_key_is_refused() -> None:
    """Alice wraps a CEK for bob that is not the one she committed to."""
    alice, bob, data = sealed()
    envelope = parse(data)
    (other,) = alice.seal(note(to="bob"), now=NOW).envelopes
    wrapped = parse(other)
    swapped = (
        data[: envelope.stanzas_at]
        + other[wrapped.stanzas_at : wrapped.body_at]
        + data[envelope.body_at :]
    )
    forged = resigned(swapped, alice.get("alice").signers[0].key)
    assert code_of(lambda: opens(bob, "bob", forged)) == SealCode.BAD_DECRYPT


def test_a_flood_of_junk_raises_no_alarm_that_names_an_agent() -> None:
    """Before the signature holds, nobody is accused: the refusal carries no sender."""
    _, bob, data = sealed()
    dice = random.Random(7)
    for _ in range(2000):
        junk = bytearray(data)
        for _ in range(dice.randint(1, 5)):
            junk[dice.randrange(len(junk))] ^= dice.randint(1, 255)
        with pytest.raises(EnvelopeError) as caught:
            opens(bob, "bob", bytes(junk))
        assert caught.value.sender is None


# -- fields that no envelope can carry --------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"id": bytes(16)}, {"id": b"short"}, {"reply_to": b""}, {"created": -1},
        {"expires": NOW}, {"expires": wire.YEAR_10000}, {"from_name": ""},
        {"from_name": "é" * 65}, {"to_name": "x" * 129}, {"topic": "t" * 513},
        {"priority": 0}, {"priority": 11}, {"spore_type": 0}, {"spore_type": 7},
        {"from_name": "\ud800"},
    ],
    ids=lambda change: "-".join(map(str, change)),
)  # fmt: skip
def test_a_field_that_cannot_be_carried_is_refused_before_anything_is_sealed(
    change: dict[str, object],
) -> None:
    """What a receiver would refuse is an error of the sender."""
    message = msgspec.structs.replace(note(to="bob"), **change)
    root = a_root()
    recipient = Recipient(b"r" * 16, PrivateKey(b"p" * 32).public, NOW + 10**15, 10**15)
    sender = Sender(root.verify_key.agent_id, root)
    with pytest.raises(EnvelopeError):
        seal(message, sender, [recipient], now=NOW, random=Dice("x"))


@pytest.mark.parametrize("count", [0, 1025])
def test_an_envelope_has_1_to_1024_recipients(count: int) -> None:
    """Neither none nor one too many."""
    root, dice = a_root(), Dice("x")
    recipients = [
        Recipient(dice(16), PrivateKey(dice(32)).public, NOW + 1, 10**9) for _ in range(count)
    ]
    with pytest.raises(EnvelopeError):
        seal(note(), Sender(root.verify_key.agent_id, root), recipients, now=NOW, random=dice)


def test_a_recipient_is_named_once() -> None:
    """Two stanzas for one key would be malformed for whoever opens it."""
    root, dice = a_root(), Dice("x")
    recipient = Recipient(dice(16), PrivateKey(dice(32)).public, NOW + 1, 10**9)
    with pytest.raises(EnvelopeError):
        seal(note(), Sender(dice(16), root), [recipient] * 2, now=NOW, random=dice)


def test_a_prekey_of_low_order_is_not_sealed_to() -> None:
    """All of Curve25519's points of small order that libsodium knows."""
    for point in (bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"):
        weak = Recipient(b"r" * 16, PublicKey(point), NOW + 1, 10**9)
        with pytest.raises(EnvelopeError) as caught:
            seal(note(), Sender(b"s" * 16, a_root()), [weak], now=NOW, random=Dice("x"))
        assert caught.value.code is SealCode.NO_KEY


def test_a_message_shows_no_body() -> None:
    """Messages, envelopes and what was opened can be logged."""
    _, bob, data = sealed(knowledge=b'{"k":"CANARY-42"}')
    opened = opens(bob, "bob", data)
    assert isinstance(opened.message, Message)
    for each in (opened, opened.message, parse(data)):
        assert "CANARY" not in repr(each)
    assert "desk.bob_channel" in repr(opened)
