"""Cards and certificates: whose word is believed, and what a broker cannot undo."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from praval.core import cards, certificates, signed
from praval.core.cards import Card, read_card, sign_card
from praval.core.certificates import (
    Rights,
    certify,
    read_certificate,
    read_status,
    sign_status,
    sign_succession,
)
from praval.core.directory import Directory
from praval.core.key_types import PrivateKey, SigningKey
from praval.core.keys import Keyring
from praval.core.lifetimes import DAY
from praval.core.signed import LIMIT, covers
from praval.errors import CardError, ReplayError, SealCode
from tests.sealing.actors import NOW, Dice, a_root, acquaint, certified, code_of, host, note, opens


def a_card(
    name: str = "bob",
    *,
    root: SigningKey | None = None,
    chain: tuple[bytes, ...] = (),
    identity: SigningKey | None = None,
    **fields: Any,
) -> bytes:
    """A card as its owner would sign it, unless told otherwise."""
    dice = Dice(name)
    identity = identity or SigningKey(dice(32))
    chain = chain or (certified(name, identity, root or a_root()),)
    values = {
        "certificates": chain,
        "epoch": NOW,
        "expires": NOW + DAY,
        "identity": bytes(identity.verify_key),
        "issued": NOW,
        "max_ttl": DAY,
        "name": name,
        "prekey": bytes(PrivateKey(dice(32)).public),
        "subscriptions": ("desk.main",),
        "verify_keys": (bytes(SigningKey(dice(32)).verify_key),),
        **fields,
    }
    return signed.sign("card", Card(**values), identity)


def directory(**options: Any) -> Directory:
    return Directory([a_root().verify_key], **options)


def hears(data: bytes, now: int = NOW, **options: Any) -> str:
    return code_of(lambda: directory(**options).hear_card(data, now))


# -- cards -------------------------------------------------------------------------------------


def test_a_card_that_a_root_vouches_for_is_believed() -> None:
    """It tells to what to seal, and with which keys its owner signs."""
    known = directory().hear_card(a_card(), NOW)
    assert known.name == "bob"
    assert list(known.keys) == [key.id for key in known.keys.values()]
    assert known.certified


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (lambda: a_card(root=a_root("another")), SealCode.UNKNOWN_SENDER),
        (lambda: a_card(expires=NOW), SealCode.MALFORMED),
        (lambda: a_card(issued=NOW - 2 * DAY, expires=NOW - 1), SealCode.STALE_CARD),
        (lambda: a_card(issued=NOW + 120_001, expires=NOW + DAY), SealCode.NOT_YET_VALID),
        (lambda: a_card(epoch=NOW + 120_001), SealCode.NOT_YET_VALID),
        (lambda: a_card(expires=NOW + 15 * DAY), SealCode.MALFORMED),
        (lambda: a_card(prekey=bytes(32)), SealCode.NO_KEY),
        (lambda: a_card(verify_keys=(bytes(32),) * 2), SealCode.MALFORMED),
        (lambda: a_card(verify_keys=()), SealCode.MALFORMED),
        (lambda: a_card(subscriptions=("a.#.b",)), SealCode.MALFORMED),
        (lambda: a_card(subscriptions=("a",) * 65), SealCode.MALFORMED),
        (lambda: a_card(max_ttl=0), SealCode.MALFORMED),
        (lambda: a_card(max_ttl=2**53), SealCode.MALFORMED),
        (lambda: a_card(name="x" * 129), SealCode.MALFORMED),
        (lambda: a_card(name="é" * 65), SealCode.MALFORMED),
    ],
)
def test_a_card_with_a_wrong_field_is_refused(data: Callable[[], bytes], code: SealCode) -> None:
    """Trust, times, keys, patterns and limits."""
    assert code_of(lambda: directory().hear_card(data(), NOW)) == code


def test_an_impostor_with_a_certificate_of_its_own_cannot_take_a_name() -> None:
    """Eve is certified as eve; her card for bob carries her certificate, or bob's."""
    eve = SigningKey(Dice("eve")(32))
    hers = certified("eve", eve, a_root())
    bobs = certified("bob", SigningKey(Dice("bob")(32)), a_root())
    for chain in ((hers,), (bobs,)):
        card = a_card("bob", chain=chain, identity=eve)
        assert hears(card) == SealCode.NOT_PERMITTED
    assert hears(a_card("bob", chain=(bobs, hers), identity=eve)) == SealCode.BAD_SIGNATURE


def test_a_card_that_carries_anothers_prekey_gains_nothing() -> None:
    """What is sealed to eve under bob's prekey is for eve's id: bob does not find himself in it."""
    alice, bob = host("alice"), host("bob")
    acquaint(alice, bob)
    bobs = alice.directory.card("bob", NOW).card.prekey
    alice.hear(a_card("eve", prekey=bobs), NOW)
    (data,) = alice.seal(note(to="eve", topic="desk.main"), now=NOW).envelopes
    assert code_of(lambda: opens(bob, "bob", data)) == SealCode.NOT_FOR_ME
    (data,) = alice.seal(note(), now=NOW).envelopes  # to both: two stanzas, one of them bob's
    assert opens(bob, "bob", data)


def test_an_older_card_is_refused_after_a_newer_one_also_after_a_restart() -> None:
    """The highest epoch persists; a broker that retains the old card cannot roll it back."""
    old, new = a_card(), a_card(epoch=NOW + 1, max_ttl=1000)
    twin = a_card(epoch=NOW + 1, max_ttl=2000)
    first = directory()
    first.hear_card(old, NOW)
    first.hear_card(new, NOW)
    again = directory()
    again.restore(first.dump(), NOW)
    for known in (first, again):
        assert code_of(lambda known=known: known.hear_card(old, NOW)) == SealCode.STALE_CARD  # type: ignore[misc]
        assert code_of(lambda known=known: known.hear_card(twin, NOW)) == SealCode.STALE_CARD  # type: ignore[misc]
        assert known.hear_card(new, NOW).card.max_ttl == 1000


def test_an_epoch_is_remembered_when_its_card_is_long_gone() -> None:
    """Also for an identity of which no card is good any more."""
    first = directory()
    first.hear_card(a_card(epoch=NOW + 1, expires=NOW + 1000), NOW)
    first.forget_expired(NOW + 2000)
    again = directory()
    again.restore(first.dump(), NOW + 2000)
    assert code_of(lambda: again.hear_card(a_card(), NOW + 2000)) == SealCode.STALE_CARD


def test_an_expired_card_neither_receives_nor_speaks() -> None:
    """A broker that withholds the next card gains nothing but silence."""
    known = directory()
    held = known.hear_card(a_card(), NOW)
    late = NOW + DAY
    assert code_of(lambda: known.card("bob", late)) == SealCode.STALE_CARD
    assert known.recipients("desk.main", late) == ([], ["bob"])
    assert known.sender(held.agent_id, late + 120_000)
    assert code_of(lambda: known.sender(held.agent_id, late + 120_001)) == SealCode.STALE_CARD


def test_recipients_are_those_who_listen_and_may_read() -> None:
    """A card's subscriptions are its owner's wish; its certificate says what it may have."""
    known = directory()
    identity = SigningKey(Dice("carol")(32))
    nosy = certified("carol", identity, a_root(), rights=Rights(read=("desk.other",)))
    known.hear_card(a_card(), NOW)
    known.hear_card(a_card("carol", chain=(nosy,), identity=identity, subscriptions=("#",)), NOW)
    assert [each.name for each in known.recipients("desk.main", NOW)[0]] == ["bob"]
    assert [each.name for each in known.recipients("desk.other", NOW)[0]] == ["carol"]


# -- one canonical form -----------------------------------------------------------------------


CARD = a_card()


def variants(data: bytes) -> list[bytes]:
    """The same card in other words, each readable by a lenient parser."""
    text = data.decode()
    loaded = json.loads(text)
    payload = loaded["payload"]

    def signed_again(raw: str) -> bytes:
        key = SigningKey(Dice("bob")(32))
        signature = key.sign(b"praval.card.v1", raw.encode())
        return msgspec.json.encode(signed.Signed("card", msgspec.Raw(raw.encode()), signature))

    compact = json.dumps(payload, separators=(",", ":"))
    assert signed_again(compact) == data
    return [
        text.replace('{"kind"', '{ "kind"').encode(),
        (text + "\n").encode(),
        json.dumps(loaded).encode(),
        json.dumps(dict(reversed(loaded.items())), separators=(",", ":")).encode(),
        text.replace('"kind":"card"', '"kind":"card","kind":"card"').encode(),
        text.replace('"kind":"card"', '"kind":"card","more":1').encode(),
        signed_again(json.dumps(payload)),
        signed_again(json.dumps(dict(reversed(payload.items())), separators=(",", ":"))),
        signed_again(compact.replace('"epoch":', '"epoch":1,"epoch":')),
        signed_again(compact.replace('"epoch":', '"unknown":1,"epoch":')),
        signed_again(compact.replace(f'"epoch":{NOW}', f'"epoch":{NOW}.0')),
        signed_again(compact.replace(f'"epoch":{NOW}', '"epoch":1.8e12')),
        signed_again(compact.replace(f'"epoch":{NOW}', '"epoch":NaN')),
        signed_again(compact.replace(f'"epoch":{NOW}', '"epoch":-0')),
        signed_again(compact.replace(f'"epoch":{NOW}', f'"epoch":"{NOW}"')),
        signed_again(compact.replace(f'"epoch":{NOW}', '"epoch":true')),
        signed_again(compact.replace(f'"epoch":{NOW}', f'"epoch":{2**53}')),
        signed_again(compact.replace('"name":"bob"', '"name":"\\u0062ob"')),
        signed_again(compact.replace('"name":"bob"', '"name":null')),
        signed_again(compact.replace('"name":"bob",', "")),
        signed_again('{"a":' * 5000 + "1" + "}" * 5000),
        data.replace(b"bob", b"b\xffb"),
        data[:-1],
        b"",
        b"null",
        b"[]",
    ]


@pytest.mark.parametrize("number", range(len(variants(CARD))))
def test_a_card_in_any_other_words_is_refused_though_its_owner_signed_them(number: int) -> None:
    """Spaces, order, duplicates, floats, NaN, escapes: one meaning has one writing."""
    data = variants(CARD)[number]
    assert code_of(lambda: read_card(data)) in {SealCode.MALFORMED, SealCode.TOO_LARGE}


def test_no_signed_object_is_larger_than_8_kib() -> None:
    """Neither made nor read."""
    many = tuple(f"desk.{'x' * 200}{n}" for n in range(50))
    assert code_of(lambda: a_card(subscriptions=many)) == SealCode.TOO_LARGE
    assert code_of(lambda: read_card(b" " * (LIMIT + 1))) == SealCode.TOO_LARGE


@given(st.binary(max_size=400), st.integers(0, len(CARD) - 1))
def test_no_bytes_bring_anything_but_a_typed_refusal(junk: bytes, at: int) -> None:
    """Bare junk, and a card with junk inside, to every reader there is."""
    for data in (junk, CARD[:at] + junk + CARD[at + len(junk) :]):
        if data == CARD:
            continue
        assert hears(data) in set(SealCode)
        for read in (read_certificate, read_status):
            assert code_of(lambda read=read, data=data: read(data)) in set(SealCode)  # type: ignore[misc]
        assert code_of(lambda data=data: directory().restore(data, NOW)) == SealCode.MALFORMED  # type: ignore[misc]


def test_every_bit_of_a_card_is_covered() -> None:
    """No flipped bit leaves a card that is believed."""
    data = bytearray(CARD)
    known = directory()
    for position in range(len(data)):
        for bit in range(8):
            data[position] ^= 1 << bit
            assert code_of(lambda: known.hear_card(bytes(data), NOW)) in set(SealCode)
            data[position] ^= 1 << bit


def test_a_signature_cannot_be_moved_to_another_kind_of_object() -> None:
    """The label is signed: a certificate's signature is none for a card, nor an envelope's."""
    key = a_root()
    one = key.sign(b"praval.certificate.v1", b"payload")
    assert key.verify_key.verify(b"praval.certificate.v1", b"payload", one)
    for label in (b"praval.card.v1", b"praval.envelope.v1", b"praval.status.v1", b""):
        assert not key.verify_key.verify(label, b"payload", one)
    assert not key.verify_key.verify(b"praval.certificate.v", b"1\0payload", one)


@pytest.mark.parametrize(
    "schema",
    [Card, certificates.Certificate, certificates.Rights, certificates.Status,
     certificates.Succession],
)  # fmt: skip
def test_fields_are_written_in_alphabetical_order(schema: type) -> None:
    """So that another language can write the same bytes: sorted keys, no spaces."""
    fields = list(schema.__struct_fields__)  # type: ignore[attr-defined]
    assert fields == sorted(fields)


# -- certificates ------------------------------------------------------------------------------


def issued(
    name: str = "bob",
    *,
    rights: Rights | None = None,
    granted: Rights | None = None,
    begin: int = NOW,
    lasts: int = DAY * 10,
) -> str:
    """How a card is received whose certificate an issuer signed, which the root certified."""
    dice = Dice("issuer")
    issuer, identity = SigningKey(dice(32)), SigningKey(dice(32))
    granted = granted or Rights(names=("b*", "carol"), publish=("desk.*",), types=("x", "*"))
    top = certify(
        "issuing", issuer.verify_key, a_root(), kind="issuer",
        not_before=NOW, expires=NOW + 20 * DAY, serial=7, rights=granted,
    )  # fmt: skip
    leaf = certify(
        name, identity.verify_key, issuer, not_before=begin, expires=begin + lasts, serial=8,
        rights=rights or Rights(publish=("desk.main",), types=("x",), read=("#",)),
    )  # fmt: skip
    return hears(a_card(name, chain=(leaf, top), identity=identity))


def test_an_issuer_may_certify_within_what_it_was_granted() -> None:
    """Names, rights and times nest."""
    assert issued() == "ok"
    assert issued("carol", rights=Rights(publish=("desk.*",), types=("anything",))) == "ok"


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "eve"}, {"name": "carolin"}, {"rights": Rights(publish=("#",))},
        {"rights": Rights(publish=("desk.*.x",))}, {"rights": Rights(publish=("desk.#",))},
        {"rights": Rights(publish=("desk.a",), types=("security_alert",))},
        {"lasts": 21 * DAY}, {"begin": NOW - DAY}, {"granted": Rights(names=())},
        {"granted": Rights(names=("bob",), read=("desk.main",))},
    ],
)  # fmt: skip
def test_an_issuer_cannot_grant_what_it_has_not(wrong: dict[str, Any]) -> None:
    """Another name, wider topics or types, a longer time."""
    assert issued(**wrong) == SealCode.NOT_PERMITTED


def test_an_agent_cannot_certify_anybody() -> None:
    """A chain whose second certificate is an agent's ends nowhere."""
    agent, other = SigningKey(Dice("a")(32)), SigningKey(Dice("b")(32))
    top = certified("agent", agent, a_root())
    leaf = certified("bob", other, agent)
    assert hears(a_card(chain=(leaf, top), identity=other)) == SealCode.BAD_SIGNATURE
    assert hears(a_card(chain=(leaf,), identity=other)) == SealCode.UNKNOWN_SENDER


@pytest.mark.parametrize(
    "wrong",
    [
        {"lasts": 91 * DAY}, {"lasts": -1}, {"rights": Rights(names=("x",))},
        {"rights": Rights(publish=("a..b",))}, {"serial": 2**53},
    ],
)  # fmt: skip
def test_a_certificate_that_nobody_would_accept_is_not_signed(wrong: dict[str, Any]) -> None:
    """Over 90 days, backwards, with an issuer's rights, with a pattern that is none."""
    with pytest.raises(CardError):
        certified("bob", a_root(), a_root(), **wrong)


def test_a_card_ends_with_its_certificate() -> None:
    """It neither outlives it nor can be heard before it begins."""
    identity = SigningKey(Dice("bob")(32))
    short = certified("bob", identity, a_root(), lasts=DAY - 1)
    assert hears(a_card(chain=(short,))) == SealCode.NOT_PERMITTED
    future = certified("bob", identity, a_root(), now=NOW + DAY)
    assert hears(a_card(chain=(future,))) == SealCode.NOT_YET_VALID
    past = certified("bob", identity, a_root(), now=NOW - 91 * DAY)
    assert hears(a_card(chain=(past,))) == SealCode.EXPIRED


def test_either_of_two_pinned_roots_will_do() -> None:
    """So that one can be replaced."""
    both = Directory([a_root().verify_key, a_root("second").verify_key])
    assert both.hear_card(a_card("bob"), NOW)
    assert both.hear_card(a_card("carol", root=a_root("second")), NOW)


@given(st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=4), st.data())
def test_a_pattern_that_covers_another_matches_all_that_it_matches(
    wide: list[str], data: st.DataObject
) -> None:
    """Checked against topics: what a narrow right reaches, the wide one reaches too."""
    narrow = data.draw(st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=4))
    for each in (wide, narrow):
        if "#" in each[:-1]:
            each[each.index("#") + 1 :] = []
    w, n = ".".join(wide), ".".join(narrow)
    topic = ".".join(data.draw(st.lists(st.sampled_from("ab"), min_size=1, max_size=5)))
    if covers([w], [n]) and signed.allows((n,), topic):
        assert signed.allows((w,), topic)


# -- revocation -------------------------------------------------------------------------------


def a_status(number: int = 1, serials: tuple[int, ...] = (), **fields: Any) -> bytes:
    values = {"issued": NOW, "expires": NOW + DAY, **fields}
    return sign_status(fields.pop("by", a_root()), number=number, serials=serials, **{
        key: value for key, value in values.items() if key != "by"
    })  # fmt: skip


def test_a_revoked_certificate_silences_its_owner_at_once_and_for_ever() -> None:
    """Neither a later list that leaves it out, nor a restart, brings it back."""
    known = directory()
    held = known.hear_card(a_card(), NOW)
    known.hear_status(a_status(1, (1,)), NOW)
    known.hear_status(a_status(2, ()), NOW)
    again = directory()
    again.restore(known.dump(), NOW)
    for each in (known, again):
        assert code_of(lambda each=each: each.hear_card(a_card(), NOW)) == SealCode.REVOKED  # type: ignore[misc]
        assert code_of(lambda each=each: each.card("bob", NOW)) in {  # type: ignore[misc]
            SealCode.REVOKED, SealCode.UNKNOWN_SENDER,
        }  # fmt: skip
    assert code_of(lambda: known.sender(held.agent_id, NOW)) == SealCode.REVOKED
    assert known.recipients("desk.main", NOW) == ([], [])


def test_a_status_list_cannot_be_rolled_back_or_signed_by_anybody() -> None:
    """Lower numbers, strangers, the future."""
    known = directory()
    known.hear_status(a_status(2), NOW)
    assert code_of(lambda: known.hear_status(a_status(1), NOW)) == SealCode.STALE_CARD
    stranger = a_status(3, by=a_root("stranger"))
    assert code_of(lambda: known.hear_status(stranger, NOW)) == SealCode.UNKNOWN_SENDER
    future = a_status(3, issued=NOW + 120_001)
    assert code_of(lambda: known.hear_status(future, NOW)) == SealCode.NOT_YET_VALID
    broken = bytearray(a_status(3))
    broken[60] ^= 1
    assert code_of(lambda: known.hear_status(bytes(broken), NOW)) in set(SealCode)


def test_with_require_status_silence_is_not_consent() -> None:
    """A broker that hides the list stops everything, instead of hiding a revocation."""
    known = directory(require_status=True)
    assert code_of(lambda: known.hear_card(a_card(), NOW)) == SealCode.STALE_CARD
    known.hear_status(a_status(), NOW)
    held = known.hear_card(a_card(), NOW)
    assert known.sender(held.agent_id, NOW)
    assert code_of(lambda: known.sender(held.agent_id, NOW + DAY)) == SealCode.STALE_CARD


def test_revoking_stops_what_is_already_under_way() -> None:
    """An envelope that was sealed before is refused after."""
    alice, bob = host("alice"), host("bob")
    acquaint(alice, bob)
    (data,) = alice.seal(note(to="bob"), now=NOW).envelopes
    assert opens(bob, "bob", data)
    bob.directory.hear_status(a_status(1, (1,)), NOW)
    assert code_of(lambda: opens(bob, "bob", data)) == SealCode.REVOKED


# -- trust on first use ------------------------------------------------------------------------


def self_signed(name: str = "bob", seed: str = "bob", **fields: Any) -> bytes:
    identity = SigningKey(Dice(seed)(32))
    return a_card(name, identity=identity, chain=(certified(name, identity, identity),), **fields)


def test_trust_on_first_use_happens_only_when_asked_for() -> None:
    """Otherwise nobody vouches for a card but a root."""
    assert hears(self_signed()) == SealCode.UNKNOWN_SENDER
    assert hears(self_signed(), trust_on_first_use=True) == "ok"


def test_a_pinned_name_stays_with_its_first_identity_also_after_a_restart() -> None:
    """Until both identities sign the change."""
    known = Directory(trust_on_first_use=True)
    known.hear_card(self_signed(), NOW)
    again = Directory(trust_on_first_use=True)
    again.restore(known.dump(), NOW)
    usurper = self_signed(seed="usurper", epoch=NOW + 1)
    for each in (known, again):
        assert code_of(lambda each=each: each.hear_card(usurper, NOW)) == SealCode.NOT_PERMITTED  # type: ignore[misc]
    old, new = SigningKey(Dice("bob")(32)), SigningKey(Dice("usurper")(32))
    halves = sign_succession("bob", old, new, NOW)
    known.hear_succession(*halves)
    assert known.hear_card(usurper, NOW).card.identity == bytes(new.verify_key)
    assert known.card("bob", NOW).card.identity == bytes(new.verify_key)
    assert code_of(lambda: again.hear_succession(halves[0], halves[0])) == SealCode.BAD_SIGNATURE
    assert code_of(lambda: again.hear_succession(halves[1], halves[0])) == SealCode.BAD_SIGNATURE
    foreign = sign_succession("bob", new, old, NOW)
    assert code_of(lambda: again.hear_succession(*foreign)) == SealCode.NOT_PERMITTED


def test_who_was_only_trusted_on_first_use_yields_to_whom_a_root_certified() -> None:
    """Whichever of the two came first."""
    for first, second in ((self_signed(seed="x"), a_card()), (a_card(), self_signed(seed="x"))):
        known = directory(trust_on_first_use=True)
        known.hear_card(first, NOW)
        code_of(functools.partial(known.hear_card, second, NOW))
        assert known.card("bob", NOW).certified


def test_who_was_only_trusted_on_first_use_falls_silent_when_a_root_gives_its_name_away() -> None:
    """It may not go on speaking under that name until its card expires."""
    known = directory(trust_on_first_use=True)
    squatter = known.hear_card(self_signed(seed="x"), NOW)
    assert known.sender(squatter.agent_id, NOW)
    known.hear_card(a_card(), NOW)
    assert code_of(lambda: known.sender(squatter.agent_id, NOW)) == SealCode.UNKNOWN_SENDER
    later = self_signed(seed="x", epoch=NOW + 1)
    assert code_of(lambda: known.hear_card(later, NOW)) == SealCode.NOT_PERMITTED


def test_a_certified_name_is_not_for_the_first_to_come_after_its_card_expired() -> None:
    """Also not after a restart."""
    known = directory(trust_on_first_use=True)
    known.hear_card(a_card(expires=NOW + 1000), NOW)
    known.forget_expired(NOW + DAY)
    again = directory(trust_on_first_use=True)
    again.restore(known.dump(), NOW + 2000)
    late = self_signed(seed="x")
    for each in (known, again):
        assert code_of(functools.partial(each.hear_card, late, NOW + 2000)) == (
            SealCode.NOT_PERMITTED
        )


def test_pins_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers who come first under ever new names fill no memory."""
    monkeypatch.setattr("praval.core.directory.MOST_CARDS", 3)
    known = Directory(trust_on_first_use=True)
    codes = []
    for number in range(6):
        card = self_signed(f"name-{number}", f"seed-{number}", expires=NOW + 100)
        codes.append(code_of(functools.partial(known.hear_card, card, NOW)))
        known.forget_expired(NOW + 200)
    assert codes == ["ok"] * 3 + [SealCode.RATE_LIMITED] * 3


# -- the keyring's own name ----------------------------------------------------------------------


def test_a_second_store_with_the_same_identity_is_noticed() -> None:
    """A copy of the keyring that lives on issues cards that we did not: stop, and say so."""
    ours = host("bob")
    copy = Keyring()
    copy.restore(ours.dump(), now=NOW)
    theirs = copy.rotate("bob", now=NOW + 1000)
    with pytest.raises(ReplayError, match="another process"):
        ours.hear(theirs, NOW + 1000)
    assert ours.hear(ours.card("bob"), NOW).name == "bob"
    again = ours.rotate("bob", now=NOW + 2000)  # an own card that comes late is no alarm
    assert again != theirs
    assert code_of(lambda: ours.hear(theirs, NOW + 2000)) == "ok"


def test_a_directory_takes_no_more_cards_than_it_has_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who holds certificates cannot fill the memory either."""
    monkeypatch.setattr("praval.core.directory.MOST_CARDS", 3)
    known = directory()
    for number in range(3):
        known.hear_card(a_card(f"agent-{number}"), NOW)
    assert code_of(lambda: known.hear_card(a_card("one-more"), NOW)) == SealCode.RATE_LIMITED
    assert known.hear_card(a_card("agent-1", epoch=NOW + 1), NOW)


def test_what_is_signed_can_be_read() -> None:
    """Signing checks what reading will."""
    identity = a_root()
    card = msgspec.structs.replace(
        msgspec.json.decode(signed.read_signed(CARD).payload, type=Card), prekey=bytes(32)
    )
    with pytest.raises(CardError):
        sign_card(card, identity)
    assert cards.read_card(CARD).name == "bob"
