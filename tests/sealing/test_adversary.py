"""A broker that means harm, and processes that die, against two hosts that seal.

The hosts are whole, without a Reef: keyring, replay memory, receipts, intake. The broker is a list
of bytes that the test does with as it likes.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from praval.core import envelope_format as wire
from praval.core.envelope import Opened
from praval.core.envelope_body import encode_body
from praval.core.envelope_format import Message
from praval.core.intake import ATTEMPTS, RING, Advice, Intake, Rate
from praval.core.keys import Keyring
from praval.core.lifetimes import DAY
from praval.core.replay import Key, Replay
from praval.core.replay_tables import MemoryTable
from praval.core.sealed_receipts import (
    ReceiptLedger,
    Settled,
    Told,
    check_reply,
    receipt,
    tell,
)
from praval.errors import EnvelopeError, SealCode, SealError
from tests.sealing.actors import NOW, Dice, acquaint, code_of, host, note, opens
from tests.sealing.test_replay import Crash, Crashing

LEASE = 60_000


class Host:
    """One agent's host: opens, asks its memory, handles, commits, acknowledges."""

    def __init__(self, name: str, *others: str) -> None:
        self.name, self.keyring = name, host(name, *others)
        self.table = MemoryTable(self.keyring.instance)
        self.receipts = ReceiptLedger()
        self.handled: list[bytes] = []
        self.effects: Counter[bytes] = Counter()
        self.alarms: list[str] = []
        self.acknowledged = 0
        self.dice = Dice(name + "-receipts")

    def replay(self, crash_at: int = 10**9) -> Replay:
        return Replay(
            Crashing(self.table, crash_at), instance=self.keyring.instance,
            key=self.keyring.replay_key, lease=LEASE,
        )  # fmt: skip

    def take(self, data: bytes, now: int, *, crash_at: int = 10**9, fails: bool = False) -> str:
        """Do what a bridge does with one delivery; returns the code of a refusal, or "ok"."""
        steps = _Steps(crash_at)
        replay = Replay(
            Crashing(self.table, 10**9), instance=self.keyring.instance,
            key=self.keyring.replay_key, lease=LEASE,
        )  # fmt: skip
        try:
            opened = opens(self.keyring, self.name, data, now)
        except EnvelopeError as error:
            if error.sender:
                self.alarms.append(error.sender)
            return error.code.value
        steps.done("opened")
        message = opened.message
        key = Key(self.name, opened.sender, message.id)
        begun = replay.begin(
            key, opened.content(), created=message.created, expires=message.expires, now=now
        )
        steps.done("begun")
        if begun.code is SealCode.REPLAY:
            self.alarms.append(message.from_name)
        if begun.code is SealCode.DUPLICATE:
            self.acknowledged += 1
        if begun.code is not None:
            return begun.code.value
        self.handled.append(message.id)
        steps.done("handled")
        if fails:
            replay.release(key, begun.fence)
            return "failed"
        replay.commit(key, begun.fence)
        self.effects[message.id] += 1  # in the same transaction, for a handler with a journal
        steps.done("committed")
        self.acknowledged += 1
        steps.done("acknowledged")
        return "ok"


class _Steps:
    """Dies after a chosen step."""

    NAMES = ("opened", "begun", "handled", "committed", "acknowledged")

    def __init__(self, crash_at: int) -> None:
        self._at = crash_at

    def done(self, name: str) -> None:
        if self.NAMES.index(name) == self._at:
            raise Crash


def pair() -> tuple[Host, Host]:
    alice, bob = Host("alice"), Host("bob")
    acquaint(alice.keyring, bob.keyring)
    return alice, bob


def sent(alice: Host, count: int, now: int = NOW, ttl: int = DAY) -> list[bytes]:
    return [
        alice.keyring.seal(note(to="bob", number=n, now=now, ttl=ttl), now=now).envelopes[0]
        for n in range(1, count + 1)
    ]


# -- the broker -----------------------------------------------------------------------------------


def test_a_broker_that_replays_and_reorders_changes_nothing() -> None:
    """Each spore is handled once, in whatever order and however often it comes."""
    alice, bob = pair()
    wire_ = sent(alice, 50) * 4
    random.Random(3).shuffle(wire_)
    codes = Counter(bob.take(data, NOW) for data in wire_)
    assert codes == {"ok": 50, "duplicate": 150}
    assert set(bob.effects.values()) == {1}
    assert bob.acknowledged == 200


def test_a_resend_that_is_sealed_again_is_the_same_spore() -> None:
    """Fresh keys, the same id and content: a duplicate, not a replay."""
    alice, bob = pair()
    message = note(to="bob")
    codes = []
    for step in range(3):
        alice.keyring.rotate("alice", now=NOW + step)
        bob.keyring.hear(alice.keyring.card("alice"), NOW + step)
        (data,) = alice.keyring.seal(message, now=NOW + step).envelopes
        codes.append(bob.take(data, NOW + step))
    assert codes == ["ok", "duplicate", "duplicate"]
    assert bob.alarms == []


def test_other_content_under_a_used_id_is_an_alarm_and_never_handled() -> None:
    """A sender that says two things under one id is named: it signed both."""
    alice, bob = pair()
    first, second = (
        alice.keyring.seal(note(to="bob", knowledge=each), now=NOW).envelopes[0]
        for each in (b'{"pay":1}', b'{"pay":9}')
    )
    assert [bob.take(each, NOW) for each in (first, second, second)] == ["ok", "replay", "replay"]
    assert bob.alarms == ["alice", "alice"]
    assert bob.handled == [note().id]


@pytest.mark.parametrize("field", range(1, 19))
def test_a_broker_that_sets_any_field_of_the_header_gains_nothing(field: int) -> None:
    """To a value of another good envelope, or to zero."""
    alice, bob = pair()
    message = note(to="bob", number=7, priority=9, spore_type=2, reply_to=b"z" * 16, ttl=999)
    data, other = (
        alice.keyring.seal(each, now=NOW).envelopes[0] for each in (note(to="bob"), message)
    )
    fields = list(wire.FIXED.unpack_from(data))
    theirs = wire.FIXED.unpack_from(other)[field]
    for value in (theirs, bytes(len(theirs)) if isinstance(theirs, bytes) else 0):
        if value != fields[field]:
            changed = [*fields[:field], value, *fields[field + 1 :]]
            assert bob.take(wire.FIXED.pack(*changed) + data[wire.FIXED.size :], NOW) != "ok"
    assert (bob.handled, bob.alarms) == ([], [])


def test_a_broker_cannot_downgrade_redirect_or_forge() -> None:
    """Another suite, plain JSON, another agent's queue, an envelope of its own."""
    alice, bob = pair()
    carol = Host("carol")
    acquaint(alice.keyring, carol.keyring)
    (data,) = sent(alice, 1)
    assert bob.take(data[:4] + b"\0" + data[5:], NOW) == SealCode.UNSUPPORTED
    assert bob.take(b'{"praval_spore":1,"header":{},"knowledge":{}}' * 9, NOW) == SealCode.MALFORMED
    assert carol.take(data, NOW) == SealCode.NOT_FOR_ME
    broker = Host("broker")  # it has keys, but no root of ours certified them
    broker.keyring = Keyring(random=Dice("broker"))
    broker.keyring.add("alice", now=NOW)
    broker.keyring.directory.roots |= alice.keyring.directory.roots
    broker.keyring.hear(bob.keyring.card("bob"), NOW)
    (forged,) = broker.keyring.seal(note(to="bob"), now=NOW).envelopes
    assert code_of(lambda: bob.keyring.hear(broker.keyring.card("alice"), NOW)) == (
        SealCode.UNKNOWN_SENDER
    )
    assert bob.take(forged, NOW) == SealCode.UNKNOWN_SENDER
    assert bob.handled == []


def test_what_a_broker_drops_is_known_to_be_unknown() -> None:
    """No receipt by expiry: counted, never taken for handled."""
    alice, bob = pair()
    (data,) = sent(alice, 1, ttl=60_000)
    message = note(to="bob")
    alice.receipts.expect(message, alice.keyring.get("alice").agent_id, ["bob"])
    assert alice.receipts.overdue(message.expires + 240_000, 120_000) == []
    assert alice.receipts.overdue(message.expires + 240_001, 120_000) == [(message.id.hex(), "bob")]
    assert bob.take(data, message.expires + 120_001) == SealCode.EXPIRED


# -- receipts and replies ------------------------------------------------------------


def told_of(opened: Opened, outcome: Any = "handled") -> Told:
    return tell(opened.message.id, opened.content(), outcome)


def returned(bob: Host, opened: Opened, outcome: Any = "handled") -> Message:
    return receipt(
        [told_of(opened, outcome)], to=opened.message.from_name, topic="desk.@inbox-alice",
        receiver=bob.name, now=NOW, random=bob.dice,
    )  # fmt: skip


def awaited() -> tuple[Host, Host, Opened, Message]:
    """Alice has sealed to bob and awaits his receipt; bob has opened."""
    alice, bob = Host("alice"), Host("bob", "carol")
    acquaint(alice.keyring, bob.keyring)
    message = note(to="bob")
    done = alice.keyring.seal(message, now=NOW)
    alice.receipts.expect(message, alice.keyring.get("alice").agent_id, done.names)
    return alice, bob, opens(bob.keyring, "bob", done.envelopes[0]), message


def heard(alice: Host, by: Host, told: Message) -> list[Settled]:
    (data,) = by.keyring.seal(told, now=NOW).envelopes
    return alice.receipts.hear(opens(alice.keyring, "alice", data, kinds={wire.RECEIPT}))


def said(*told: list[str]) -> bytes:
    """The body of a receipt."""
    return encode_body(None, msgspec.json.encode({"told": told}))


@pytest.mark.parametrize("outcome", ["handled", "dead"])
def test_a_receipt_is_believed_once_from_the_addressed_name(outcome: Any) -> None:
    """Repeated, it says nothing new; contradicted, it is refused."""
    alice, bob, opened, message = awaited()
    told = returned(bob, opened, outcome)
    assert heard(alice, bob, told) == [Settled(message.id.hex(), "bob", outcome)]
    assert heard(alice, bob, returned(bob, opened, outcome)) == []
    other = "dead" if outcome == "handled" else "handled"
    assert code_of(lambda: heard(alice, bob, returned(bob, opened, other))) == SealCode.REPLAY
    assert alice.receipts.overdue(NOW + 10**9, 0) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"from_name": "carol"}, SealCode.NOT_PERMITTED),
        ({"spore_type": wire.NOTIFICATION}, SealCode.MISROUTED),
        ({"body": said(["%", "00", "handled"])}, SealCode.REPLAY),
        ({"body": said(["%", "00", "?"])}, SealCode.MALFORMED),
        ({"body": said()}, SealCode.MALFORMED),
        ({"body": said(["x", "00", "handled"], ["%", "00", "dead"])}, SealCode.REPLAY),
        ({"body": encode_body(None, b"{}")}, SealCode.MALFORMED),
        ({"body": b"junk"}, SealCode.MALFORMED),
    ],
)
def test_a_forged_receipt_settles_nothing(change: dict[str, Any], code: SealCode) -> None:
    """Another recipient's word, another content."""
    alice, bob, opened, message = awaited()
    body = change.get("body", b"").replace(b"%", message.id.hex().encode())
    forged = msgspec.structs.replace(returned(bob, opened), **change)
    forged = msgspec.structs.replace(forged, body=body or forged.body)
    assert code_of(lambda: heard(alice, bob, forged)) == code
    assert alice.receipts.overdue(NOW + 10**9, 0) == [(message.id.hex(), "bob")]


def test_a_receipt_of_a_spore_that_nobody_awaits_says_nothing() -> None:
    """It is late; what else the envelope tells counts."""
    alice, bob, opened, message = awaited()
    late = msgspec.structs.replace(opened, message=note(number=8, to="bob"))
    told = receipt(
        [told_of(late), told_of(opened)], to="alice", topic="desk.@inbox-alice",
        receiver="bob", now=NOW, random=bob.dice,
    )  # fmt: skip
    assert heard(alice, bob, told) == [Settled(message.id.hex(), "bob", "handled")]


def test_a_broadcast_awaits_one_receipt_per_recipient() -> None:
    """Also of those who were out of reach at first."""
    alice, bob, _, _ = awaited()
    message = note(number=9)
    (data,) = alice.keyring.seal(message, now=NOW).envelopes
    sender = alice.keyring.get("alice").agent_id
    alice.receipts.expect(message, sender, ["bob"])
    alice.receipts.expect(message, sender, ["bob", "carol"])
    opened = opens(bob.keyring, "bob", data)
    assert heard(alice, bob, returned(bob, opened))
    alice.receipts.expect(message, sender, ["bob", "carol"])
    assert (message.id.hex(), "bob") not in alice.receipts.overdue(NOW + 10**9, 0)


def test_a_stolen_reply_answers_nothing() -> None:
    """Only whom we asked may answer, only what we asked, and only us."""
    alice, bob, _, _ = awaited()

    def reply(**change: Any) -> Opened:
        told = note(
            "bob", to="alice", spore_type=wire.RESPONSE, reply_to=b"q" * 16,
            topic="desk.@inbox-alice",
        )  # fmt: skip
        told = msgspec.structs.replace(told, **change)
        (data,) = bob.keyring.seal(told, now=NOW).envelopes
        return opens(alice.keyring, "alice", data, kinds={wire.RESPONSE})

    asked = {b"q" * 16: "bob"}
    check_reply(reply(), asked)
    for refused, outstanding in (
        (reply(from_name="carol"), asked), (reply(reply_to=b"p" * 16), asked), (reply(), {}),
        (reply(), {b"q" * 16: "carol"}),
    ):  # fmt: skip
        assert code_of(lambda r=refused, o=outstanding: check_reply(r, o)) == (  # type: ignore[misc]
            SealCode.NOT_PERMITTED
        )


# -- crashes ----------------------------------------------------------------------


@pytest.mark.parametrize("step", range(len(_Steps.NAMES)), ids=_Steps.NAMES)
def test_a_crash_after_any_step_loses_nothing_and_commits_once(step: int) -> None:
    """The broker redelivers until it is acknowledged; what was committed is not begun again."""
    alice, bob = pair()
    (data,) = sent(alice, 1)
    with pytest.raises(Crash):
        bob.take(data, NOW, crash_at=step)
    at_once = bob.take(data, NOW + 1)
    expected = {0: "ok", 1: "in_flight", 2: "in_flight"}.get(step, "duplicate")
    assert at_once == expected
    if at_once == "in_flight":  # the dead process cannot renew its lease
        assert bob.take(data, NOW + LEASE) == "ok"
    assert bob.effects[note().id] == 1
    assert bob.take(data, NOW + 2 * LEASE) == "duplicate"


def test_a_crash_inside_the_memory_is_a_crash_before_or_after() -> None:
    """Between any two statements of begin and commit."""
    alice, bob = pair()
    (data,) = sent(alice, 1)
    opened = opens(bob.keyring, "bob", data)
    key = Key("bob", opened.sender, opened.message.id)
    crashes = 0
    for crash_at in range(60):
        replay, now = bob.replay(crash_at), NOW + crash_at * LEASE
        try:
            begun = replay.begin(key, opened.content(), created=NOW, expires=NOW + DAY, now=now)
            if begun.code is None:
                replay.commit(key, begun.fence)
                bob.effects[key.spore] += 1
        except Crash:
            crashes += 1
    assert crashes >= 8
    # a crash right after the commit's last statement leaves it done, without anybody's count
    committed = [entry for entry in bob.table.entries.values() if entry.outcome]
    assert len(committed) == 1
    assert bob.effects[key.spore] <= 1


def test_a_handler_that_fails_is_given_its_spore_again() -> None:
    """As often as the broker redelivers, and no more than once after success."""
    alice, bob = pair()
    (data,) = sent(alice, 1)
    codes = [bob.take(data, NOW, fails=number < 3) for number in range(5)]
    assert codes == ["failed"] * 3 + ["ok", "duplicate"]


# -- floods ----------------------------------------------------------------------


def intake(**options: Any) -> Intake:
    return Intake(now=NOW, **options)


def error_of(bob: Host, data: bytes) -> EnvelopeError:
    with pytest.raises(EnvelopeError) as caught:
        opens(bob.keyring, "bob", data)
    return caught.value


def test_a_flood_of_junk_fills_one_bucket_and_a_bounded_ring() -> None:
    """Then nothing is looked at until it drains; what was claimed is not remembered."""
    _, bob = pair()
    door = intake(anybody=Rate(per_minute=60, burst=10))
    looked = 0
    for number in range(3000):
        if code_of(lambda: door.arrived(NOW)) == SealCode.RATE_LIMITED:
            continue
        looked += 1
        junk = number.to_bytes(400, "big")
        assert door.refuse(junk, error_of(bob, junk), NOW) == Advice("dead-letter")
    assert looked == 10
    door.arrived(NOW + 1000)
    assert len(door.refused) == 10
    for number in range(2 * RING):
        door.refuse(number.to_bytes(4, "big"), EnvelopeError("x"), NOW)
    assert len(door.refused) == RING


def test_an_unknown_sender_gets_three_delayed_attempts_and_few_queries() -> None:
    """Then it is a dead letter; a thousand envelopes bring one query in ten seconds."""
    door = intake()
    error = EnvelopeError("?", SealCode.UNKNOWN_SENDER)
    advice = [door.refuse(b"same", error, NOW) for _ in range(ATTEMPTS + 1)]
    assert advice == [Advice("retry", 1000), Advice("retry", 2000), Advice("retry", 4000),
                      Advice("dead-letter")]  # fmt: skip
    queries = [door.may_query(b"agent", NOW + at) for at in range(0, 20_001, 1000)]
    assert queries.count(True) == 3
    assert door.may_query(b"other", NOW)


def test_one_sender_that_floods_does_not_slow_another() -> None:
    """Each authenticated sender has a bucket."""
    door = intake(sender=Rate(per_minute=60, burst=5))
    codes = [code_of(lambda: door.authenticated(b"alice", "alice", NOW)) for _ in range(20)]
    assert codes.count("ok") == 5
    assert code_of(lambda: door.authenticated(b"bob", "bob", NOW)) == "ok"
    assert code_of(lambda: door.authenticated(b"alice", "alice", NOW + 1000)) == "ok"
    with pytest.raises(SealError, match="'alice' sends more"):
        door.authenticated(b"alice", "alice", NOW + 1000)


def test_what_is_nothing_wrong_is_acknowledged_and_what_is_in_flight_comes_again() -> None:
    """Neither draws on a bucket."""
    door = intake(anybody=Rate(per_minute=1, burst=1))
    for _ in range(5):
        done = door.refuse(b"x", EnvelopeError("?", SealCode.NOT_A_RECIPIENT), NOW)
        assert done == Advice("acknowledge")
        again = door.refuse(b"x", EnvelopeError("?", SealCode.IN_FLIGHT), NOW)
        assert again == Advice("retry", 1000)
    door.arrived(NOW)


def test_tables_of_strangers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million claimed ids take no more room than ten thousand."""
    monkeypatch.setattr("praval.core.intake.REMEMBERED", 10)
    door = intake()
    for number in range(100):
        door.may_query(bytes([number]), NOW)
        door.refuse(bytes([number]), EnvelopeError("?", SealCode.UNKNOWN_SENDER), NOW)
        code_of(lambda n=number: door.authenticated(bytes([n]), "x", NOW))  # type: ignore[misc]
    assert max(map(len, (door._queries, door._attempts, door._senders))) == 10
