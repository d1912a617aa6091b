"""Write ``psv1.json``: envelopes with the keys to open them, and what becomes of each.

    python tests/vectors/make_psv1.py

The vectors are frozen: another writing of PSV1 must pass them, and this one may not change what is
in them. Keys come from seeds, so the file can be made again; the test compares the two.

Each vector has ``data`` (hexadecimal), ``at`` (UTC ms), the receiver ``to`` and what it expects;
``code`` is "ok" or the refusal. ``message`` is what comes out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from praval.core import envelope_format as wire
from praval.core.certificates import Rights, sign_status
from praval.core.directory import Directory
from praval.core.envelope import (
    LABEL,
    Receiver,
    Recipient,
    Sender,
    open_envelope,
    seal,
    stanza_id,
)
from praval.core.envelope_body import LENGTHS, Fields, decode_body, encode_body
from praval.core.envelope_format import FIXED, Message, parse
from praval.core.key_types import PrivateKey, PublicKey, SigningKey, VerifyKey
from praval.core.keys import Keyring
from praval.core.signed import pattern
from tests.sealing.actors import NOW, Dice, a_root, acquaint, code_of, host, note

FILE = Path(__file__).with_name("psv1.json")
FILTERS = ("desk.#",)


class World:
    """Alice, bob, carol, and mallory who may send little."""

    def __init__(self) -> None:
        self.dice = Dice("vectors")
        self.alice, self.bob = host("alice"), host("bob")
        self.carol = host("carol")
        self.mallory = host("mallory", rights=Rights(publish=("desk.main",), types=("note",)))
        acquaint(self.alice, self.bob, self.carol, self.mallory)
        self.stranger = host("stranger")
        self.stranger.hear(self.bob.card("bob"), NOW)

    def to(self, keyring: Keyring, name: str) -> Recipient:
        card = keyring.directory.card(name, NOW).card
        agent_id = keyring.get(name).agent_id
        return Recipient(agent_id, PublicKey(card.prekey), NOW + 10**9, 10**12)

    def seal(self, message: Message, by: Keyring | None = None, crowd: int = 0) -> bytes:
        """Seal to bob (and a crowd before him), without asking whether one may."""
        by = by or self.alice
        keys = by.get(by.names[0])
        others = [
            Recipient(self.dice(16), PrivateKey(self.dice(32)).public, NOW + 10**9, 10**12)
            for _ in range(crowd)
        ]
        recipients = [*others, self.to(self.bob, "bob")]
        sender = Sender(keys.agent_id, keys.signers[0].key)
        return seal(message, sender, recipients, now=NOW, random=self.dice)

    def signed(self, data: bytes, by: Keyring | None = None) -> bytes:
        """Sign changed bytes again, as a hostile peer can."""
        by = by or self.alice
        body = data[:-64]
        key = by.get(by.names[0]).signers[0].key
        return body + key.sign(LABEL, blake2b(body, person=b"psv1.sign").digest())


def good(world: World) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Envelopes that open."""
    for kind in range(1, 7):
        yield f"spore type {kind}", world.seal(note(to="bob", spore_type=kind)), {}
    for priority in range(1, 11):
        yield f"priority {priority}", world.seal(note(to="bob", priority=priority)), {}
    for crowd in (0, 1, 2, 3, 7, 63):
        yield f"a group of {crowd + 1}", world.seal(note(), crowd=crowd), {}
    for size in (0, 1, 15, 16, 17, 63, 64, 65, 255, 1024, 4096):
        knowledge = json.dumps({"k": "x" * size}).encode()
        yield f"{size} characters", world.seal(note(to="bob", knowledge=knowledge)), {}
    for text in ("", "é", "漢字", "🦀", "\\u0000", '\\"', "\\n"):
        knowledge = f'{{"k":"{text}"}}'.encode()
        yield f"text {text!r}", world.seal(note(to="bob", knowledge=knowledge)), {}
    for kind in ("a", "note", "x" * 1024, "ünïcode"):
        knowledge = json.dumps({"type": kind}, ensure_ascii=False).encode()
        yield f"type {kind[:9]}", world.seal(note(to="bob", kind=kind, knowledge=knowledge)), {}
    for topic in ("desk", "desk.a", "desk.a.b.c", "desk.%2E", "desk.ünï"):
        yield f"topic {topic}", world.seal(note(to="bob", topic=topic)), {}
    for later in (-120_000, 0, 60_000, 180_000):
        yield f"opened {later} ms later", world.seal(note(to="bob")), {"at": NOW + later}
    for ttl in (1, 86_400_000):
        yield f"a life of {ttl} ms", world.seal(note(to="bob", ttl=ttl)), {}
    for number in (1, 2**64, 2**128 - 1):
        yield f"id {number:#x}", world.seal(note(to="bob", number=number)), {}
    yield "a reply", world.seal(note(to="bob", spore_type=3, reply_to=b"r" * 16)), {}
    for fields in (
        Fields(hops=2**53 - 1), Fields(key="k"), Fields(headers={"b": "1", "a": "2"}),
        Fields(root="r", inbox="i", deadline=1, channel="c", data_references=("s3://a", "b://c")),
    ):  # fmt: skip
        message = note(to="bob")
        body = encode_body(None, b"{}", fields)
        yield f"fields {fields}", world.seal(with_body(message, body)), {}
    right = note("mallory", kind="note", knowledge=b'{"type":"note"}')
    yield "limited rights, kept to", world.seal(right, world.mallory), {}


def with_body(message: Message, body: bytes) -> Message:
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return Message(**{**fields, "body": body})


def bad_bits(world: World) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """One bit of each field, unsigned and signed again."""
    data = world.seal(note(to="bob"))
    places = {
        "magic": 0, "suite": 4, "flags": 5, "type": 6, "priority": 7, "id": 8, "reply_to": 24,
        "created": 47, "expires": 55, "sender": 56, "key id": 72, "ephemeral": 80,
        "commitment": 112, "nonce": 144, "len from": 168, "len to": 169, "len topic": 171,
        "recipients": 173, "body length": 177, "from": 178, "to": 184, "topic": 190,
    }  # fmt: skip
    envelope = parse(data)
    places |= {
        "stanza id": envelope.stanzas_at, "wrapped key": envelope.stanzas_at + 16,
        "wrapped key end": envelope.body_at - 1, "body": envelope.body_at,
        "body end": envelope.tail_at - 1, "signature R": envelope.tail_at,
        "signature S": envelope.tail_at + 32, "signature end": len(data) - 1,
    }  # fmt: skip
    for name, at in places.items():
        changed = bytearray(data)
        changed[at] ^= 1
        yield f"{name}, a bit", bytes(changed), {}
        if at < envelope.tail_at:
            yield f"{name}, a bit, signed", world.signed(bytes(changed)), {}


def bad_shape(world: World) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Lengths, counts, flags and values that no envelope has."""
    data = world.seal(note(to="bob"))
    for size in (0, 1, 3, 4, 177, 178, 321, len(data) - 64, len(data) - 1):
        yield f"cut to {size}", data[:size], {}
    yield "a byte more", data + b"\0", {}
    yield "twice", data + data, {}
    for index, values in {
        1: (0, 2, 255), 2: (1, 2, 4, 5, 8, 0x80, 0xFF), 3: (0, 7, 255), 4: (0, 11, 255),
        5: (bytes(16),), 7: (0, NOW + 60_000, NOW + 60_001, 2**64 - 1),
        8: (0, NOW, NOW + 10**12, 2**63), 14: (0, 4, 6, 129, 255), 15: (0, 2, 4, 129, 255),
        16: (0, 513, 65535), 17: (0, 2, 1024, 1025, 65535), 18: (0, 1, 2**31, 2**32 - 1),
    }.items():  # fmt: skip
        for value in values:
            fields = list(FIXED.unpack_from(data))
            fields[index] = value
            changed = FIXED.pack(*fields) + data[FIXED.size :]
            yield f"field {index} is {str(value)[:20]}", world.signed(changed), {}
    for name, old in (("from", b"alice"), ("to", b"bob"), ("topic", b"desk.bob")):
        changed = data.replace(old, b"\xff" * len(old), 1)
        yield f"{name} is no UTF-8", world.signed(changed), {}
    three = world.seal(note(), crowd=2)
    at = parse(three).stanzas_at
    doubled = three[:at] + three[at : at + 64] * 2 + three[at + 128 :]
    yield "two stanzas for one key", world.signed(doubled), {}
    yield "larger than allowed", data, {"max_size": len(data) - 1}


def bad_claims(world: World) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Well-formed and well-signed, and yet not acceptable."""
    data = world.seal(note(to="bob"))
    for later in (-120_001, 180_001, -(10**9), 10**9, 10**11):
        yield f"opened {later} ms later", data, {"at": NOW + later}
    yield "a life too long", world.seal(note(to="bob", ttl=86_400_001)), {}
    yield "from a stranger", world.seal(note("stranger", to="bob"), world.stranger), {}
    yield "under another's name", world.seal(note("carol", to="bob")), {}
    yield "for another", world.seal(note(to="carol", topic="desk.main")), {}
    for filters in (("desk.main",), ("other.#",), ("desk.*.*",), ("desk",)):
        yield f"not heard by {filters[0]}", data, {"filters": filters}
    for topic in ("", "desk/bob", "desk..x", "desk.*", "desk.#", "a b", "desk.%", "other.x"):
        yield f"topic {topic!r}", world.seal(with_topic(topic)), {}
    for kinds in ((), (2, 3), (6,)):
        yield f"expected {kinds}", data, {"kinds": kinds}
    mallory = world.mallory
    order = note("mallory", kind="order", knowledge=b'{"type":"order"}')
    yield "a type without a right", world.seal(order, mallory), {}
    elsewhere = note("mallory", to="bob", kind="note", knowledge=b'{"type":"note"}')
    yield "a topic without a right", world.seal(elsewhere, mallory), {}
    for kind in ("security_alert", "agent_error"):
        body = json.dumps({"type": kind}).encode()
        yield f"{kind} from afar", world.seal(note(to="bob", kind=kind, knowledge=body)), {}
    yield "signed by another", world.signed(data, world.carol), {}
    yield "not sealed to us, group", seal_to(world, note()), {}
    yield "not sealed to us, to us", seal_to(world, note(to="bob")), {}
    other = parse(world.seal(note(to="bob")))
    envelope = parse(data)
    stanza = other.data[other.stanzas_at : other.body_at]
    swapped = data[: envelope.stanzas_at] + stanza + data[envelope.body_at :]
    yield "another envelope's stanza", world.signed(swapped), {}
    swapped = data[: envelope.body_at] + other.data[other.body_at :]
    yield "another envelope's body", world.signed(swapped), {}
    for point in (bytes(32), b"\1" + bytes(31)):
        weak = data[:80] + point + data[112:]
        yield f"ephemeral key of low order {point[0]}", world.signed(weak), {}


def with_topic(topic: str) -> Message:
    message = note(to="bob")
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return Message(**{**fields, "topic": topic})


def seal_to(world: World, message: Message) -> bytes:
    keys = world.alice.get("alice")
    sender = Sender(keys.agent_id, keys.signers[0].key)
    return seal(message, sender, [world.to(world.carol, "carol")], now=NOW, random=world.dice)


def bad_bodies(world: World) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """What a valid but hostile peer can put inside."""

    def framed(kind: bytes, fields: bytes, rest: bytes) -> bytes:
        return LENGTHS.pack(len(kind), len(fields)) + kind + fields + rest

    bodies = {
        "empty": b"", "short": b"\0" * 5, "no knowledge": framed(b"", b"", b""),
        "list": framed(b"", b"", b"[]"), "not closed": framed(b"", b"", b"{"),
        "NaN": framed(b"", b"", b'{"a":NaN}'), "infinite": framed(b"", b"", b'{"a":Infinity}'),
        "bad UTF-8": framed(b"", b"", b'{"a":"\xff"}'),
        "type no UTF-8": framed(b"\xff", b"", b"{}"),
        "type disagrees": framed(b"a", b"", b'{"type":"b"}'),
        "type only outside": framed(b"a", b"", b"{}"),
        "type only inside": framed(b"", b"", b'{"type":"a"}'),
        "type a number": framed(b"", b"", b'{"type":5}'),
        "empty fields": framed(b"", b"{}", b"{}"),
        "fields with space": framed(b"", b'{"hops": 1}', b"{}"),
        "fields twice": framed(b"", b'{"hops":1,"hops":1}', b"{}"),
        "fields out of order": framed(b"", b'{"key":"a","hops":1}', b"{}"),
        "hops negative": framed(b"", b'{"hops":-1}', b"{}"),
        "hops 2**53": framed(b"", b'{"hops":9007199254740992}', b"{}"),
        "hops a float": framed(b"", b'{"hops":1.0}', b"{}"),
        "deep": framed(b"", b"", b'{"a":' + b"[" * 300 + b"]" * 300 + b"}"),
        "type length": LENGTHS.pack(65535, 0) + b"{}",
        "fields length": LENGTHS.pack(0, 2**32 - 1) + b"{}",
    }  # fmt: skip
    for field in ("id", "from_agent", "to_agent", "created_at", "expires_at", "priority",
                  "spore_type", "topic", "reply_to", "type"):  # fmt: skip
        bodies[f"repeats {field}"] = framed(b"", json.dumps({field: 1}).encode(), b"{}")
    for name, body in bodies.items():
        yield f"body: {name}", world.seal(with_body(note(to="bob"), body)), {}


def revoked(world: World) -> tuple[str, bytes, dict[str, Any]]:
    status = sign_status(a_root(), number=1, issued=NOW, expires=NOW + 10**9, serials=(1,))
    return "revoked", world.seal(note(to="bob")), {"status": status.hex()}


def make() -> dict[str, Any]:
    """Return the whole file."""
    world = World()
    file: dict[str, Any] = {"format": "PSV1", **keys_of(world)}
    bad = (bad_bits, bad_shape, bad_claims, bad_bodies)
    vectors = [vector(file, *each, valid=True) for each in good(world)]
    vectors += [vector(file, *each, valid=False) for source in bad for each in source(world)]
    vectors.append(vector(file, *revoked(world), valid=False))
    return {**file, "vectors": vectors}


def keys_of(world: World) -> dict[str, Any]:
    senders = {"alice": world.alice, "carol": world.carol, "mallory": world.mallory}
    bob = world.bob.get("bob")
    return {
        "root": bytes(a_root().verify_key).hex(),
        "senders": {name: keyring.card(name).hex() for name, keyring in senders.items()},
        "receiver": {
            "name": "bob",
            "identity_seed": bob.identity.reveal().hex(),
            "prekey": bob.prekeys[0].key.reveal().hex(),
        },
    }


def vector(
    file: dict[str, Any], name: str, data: bytes, options: dict[str, Any], *, valid: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": name,
        "valid": valid,
        "data": data.hex(),
        "at": options.get("at", NOW),
        "filters": list(options.get("filters", FILTERS)),
        "kinds": list(options.get("kinds", range(1, wire.RECEIPT + 1))),
        "max_size": options.get("max_size", wire.MAX_SIZE),
    }
    if "status" in options:
        found["status"] = options["status"]
    found.update(outcome(load(file), found))
    assert (found["code"] == "ok") is valid, found
    return found


def load(file: dict[str, Any]) -> Any:
    """Return what opens the vectors of a file: directory and receiver's keys."""
    directory = Directory([VerifyKey(bytes.fromhex(file["root"]))])
    for card in file["senders"].values():
        directory.hear_card(bytes.fromhex(card), NOW)
    receiver = file["receiver"]
    agent_id = SigningKey(bytes.fromhex(receiver["identity_seed"])).verify_key.agent_id
    prekey = PrivateKey(bytes.fromhex(receiver["prekey"]))
    prekeys = {stanza_id(agent_id, bytes(prekey.public)): prekey}
    return directory, receiver["name"], agent_id, prekeys


def outcome(loaded: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Open a vector and return what came of it."""
    directory, name, agent_id, prekeys = loaded
    if "status" in found:
        directory.hear_status(bytes.fromhex(found["status"]), NOW)
    receiver = Receiver(
        name, agent_id, prekeys, tuple(map(pattern, found["filters"])), frozenset(found["kinds"])
    )
    result: dict[str, Any] = {}

    def opens() -> None:
        opened = open_envelope(
            bytes.fromhex(found["data"]), receiver, directory,
            now=found["at"], max_size=found["max_size"],
        )  # fmt: skip
        decode_body(opened.message.body)
        fields = opened.message.__struct_fields__
        message = {each: getattr(opened.message, each) for each in fields}
        result["message"] = {
            key: value.hex() if isinstance(value, bytes) else value
            for key, value in message.items()
        }
        result["content"] = opened.content().hex()

    result["code"] = code_of(opens)
    return result


if __name__ == "__main__":
    made = make()
    FILE.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    codes: dict[str, int] = {}
    for each in made["vectors"]:
        codes[each["code"]] = codes.get(each["code"], 0) + 1
    print(len(made["vectors"]), "vectors", dict(sorted(codes.items())))
