"""Spores: what they carry, how they travel as bytes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import threading
import types
import uuid
from datetime import UTC, date, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from praval import Spore, SporeType
from praval.core.spore import MAX_DEPTH, Header, new_id
from praval.errors import KnowledgeError, MalformedSporeError, SporeError, SporeTooLargeError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | TEXT
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)
KNOWLEDGE = st.dictionaries(TEXT.filter(lambda key: key != "type"), VALUE, max_size=5)
NOT_FINITE = st.sampled_from([math.nan, math.inf, -math.inf])


@st.composite
def spores(draw: st.DrawFn) -> Spore:
    name = st.none() | TEXT
    seconds = st.floats(0, 4e9)
    return Spore.create(
        draw(KNOWLEDGE),
        type=draw(name),
        channel=draw(TEXT),
        from_agent=draw(name),
        to_agent=draw(name),
        priority=draw(st.integers(1, 10)),
        spore_type=draw(st.sampled_from(SporeType)),
        correlation_id=draw(name),
        reply_to=draw(name),
        root=draw(name),
        hops=draw(st.integers(0, 1000)),
        key=draw(name),
        created_at=draw(seconds),
        expires_at=draw(st.none() | seconds),
        deadline=draw(st.none() | seconds),
        headers=draw(st.none() | st.dictionaries(TEXT, TEXT, max_size=3)),
        data_references=tuple(draw(st.lists(TEXT, max_size=3))),
    )


# -- bytes and back --------------------------------------------------------------------------


@given(spores())
def test_what_is_encoded_comes_back_equal(spore: Spore) -> None:
    """Every header field and any JSON knowledge survive the way to bytes and back."""
    again = Spore.from_bytes(spore.to_bytes())
    assert again == spore
    assert msgspec.structs.asdict(again.header) == msgspec.structs.asdict(spore.header)
    assert again.knowledge == spore.knowledge
    assert hash(again) == hash(spore)


@given(spores())
def test_another_language_can_read_the_bytes(spore: Spore) -> None:
    """The bytes are one JSON object with a schema version, a header and the knowledge."""
    read = json.loads(spore.to_bytes())
    assert set(read) == {"praval_spore", "header", "knowledge"}
    assert read["praval_spore"] == 1
    assert read["knowledge"] == spore.knowledge
    assert read["header"]["id"] == spore.id


def test_the_attempt_travels_along() -> None:
    """A redelivered spore says at the other end that it is not the first attempt."""
    spore = Spore(Spore.create({"n": 1}).header, {"n": 1}, 3)
    assert Spore.from_bytes(spore.to_bytes()).attempt == 3


def test_unknown_headers_survive_and_unknown_fields_are_ignored() -> None:
    """A newer sender's additions neither break an older reader nor lose their string headers."""
    wire = json.loads(Spore.create({"n": 1}, headers={"traceparent": "00-1"}).to_bytes())
    wire["header"]["headers"]["x-new"] = "kept"
    wire["header"]["invented_later"] = {"deep": [1]}
    wire["also_later"] = 5
    spore = Spore.from_bytes(json.dumps(wire).encode())
    assert spore.headers == {"traceparent": "00-1", "x-new": "kept"}
    assert "invented_later" not in json.loads(spore.to_bytes())["header"]


def test_what_has_one_form_in_json_arrives_in_that_form() -> None:
    """Dates become ISO 8601, tuples and sets lists, bytes base64, numbers as keys strings."""
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    number = uuid.UUID(int=7)
    given_ = {
        "when": moment, "day": date(2026, 1, 2), "pair": (1, (2, 3)), "set": {4}, "raw": b"x",
        "id": number, "of": {1: "one"}, "kind": SporeType.REQUEST, "path": {"a": ({"b": (1,)},)},
    }  # fmt: skip
    spore = Spore.create(given_)
    assert spore.knowledge == {
        "when": "2026-01-02T03:04:05Z", "day": "2026-01-02", "pair": [1, [2, 3]], "set": [4],
        "raw": "eA==", "id": str(number), "of": {"1": "one"}, "kind": "request",
        "path": {"a": [{"b": [1]}]},
    }  # fmt: skip
    assert Spore.from_bytes(spore.to_bytes()).knowledge == spore.knowledge


def test_a_read_only_mapping_is_knowledge_too() -> None:
    """Any mapping can be sent, not only a dictionary."""
    assert Spore.create(types.MappingProxyType({"n": 1, "type": "t"})).knowledge == {
        "n": 1,
        "type": "t",
    }


def test_a_spore_does_not_share_the_senders_objects() -> None:
    """What the sender changes afterwards is not seen by whoever holds the spore."""
    inner = {"list": [1]}
    spore = Spore.create({"inner": inner})
    inner["list"].append(2)
    assert spore.knowledge == {"inner": {"list": [1]}}


# -- refused knowledge -----------------------------------------------------------------------


@given(VALUE, NOT_FINITE, st.lists(st.tuples(st.sampled_from("dlt"), VALUE), max_size=6))
def test_a_number_that_is_not_finite_is_refused_with_its_path(
    beside: Any, bad: float, way: list[tuple[str, Any]]
) -> None:
    """NaN and infinities are found wherever they hide; evaluating the named path leads to them."""
    value: Any = bad
    for kind, other in way:
        value = {"d": {"a": other, "b": value}, "l": [other, value], "t": (other, value)}[kind]
    knowledge = {"beside": beside, "v": value}
    with pytest.raises(KnowledgeError) as refused:
        Spore.create(knowledge)
    path = str(refused.value).partition(" is not a finite number")[0]
    assert eval(path, {"knowledge": knowledge}) is bad


@dataclasses.dataclass
class Measured:
    value: float


class Reading(msgspec.Struct):
    value: float


@pytest.mark.parametrize("made", [Measured, Reading])
def test_a_number_that_is_not_finite_is_found_inside_objects(made: Any) -> None:
    """An object that is encoded by its fields cannot smuggle a NaN in as null."""
    assert Spore.create({"of": [made(1.5)]}).knowledge == {"of": [{"value": 1.5}]}
    with pytest.raises(KnowledgeError, match=r"knowledge\['of'\]\[0\]\.value is not a finite"):
        Spore.create({"of": [made(math.nan)]})


def test_depth_is_no_way_around_the_check() -> None:
    """Deep knowledge with a null in it is either sent or refused, in words."""
    for depth in (100, 400, 700, 2_000, 100_000):
        deep: Any = None
        for _ in range(depth):
            deep = [deep]
        refused = None
        try:
            spore = Spore.create({"deep": deep})
        except KnowledgeError as error:
            refused = str(error)
        if refused is None:
            assert depth < MAX_DEPTH
            assert Spore.from_bytes(spore.to_bytes()) == spore
        else:
            assert depth > 100
            assert "nested" in refused or "recursion" in refused


@pytest.mark.parametrize(
    ("knowledge", "where"),
    [
        ({"a": {"b": [1, object()]}}, r"knowledge\['a'\]\['b'\]\[1\] \(object\)"),
        ({"f": print}, r"knowledge\['f'\] \(builtin_function_or_method\)"),
        ({"c": 1 + 2j}, r"knowledge\['c'\] \(complex\)"),
        ({"s": ["\ud800"]}, r"knowledge\['s'\]\[0\] \(str\)"),
        ({"k": {None: 1}}, r"knowledge\['k'\] \(dict\)"),
        ({(1, 2): 3}, r"knowledge \(dict\)"),
    ],
)
def test_what_json_cannot_carry_is_refused_with_its_path(
    knowledge: dict[Any, Any], where: str
) -> None:
    """The message says which value it is, however deep it lies."""
    with pytest.raises(KnowledgeError, match=f"{where} cannot be sent"):
        Spore.create(knowledge)


@pytest.mark.parametrize(
    "knowledge", [None, 5, "text", b"{}", [1], {1}, Measured(1.0), Reading(1.0), msgspec.Raw(b"{}")]
)
def test_knowledge_is_a_mapping(knowledge: Any) -> None:
    """Anything else is refused, also what would be encoded as an object."""
    with pytest.raises(KnowledgeError, match=f"must be a mapping.* not {type(knowledge).__name__}"):
        Spore.create(knowledge)


def test_a_circle_is_refused() -> None:
    """Knowledge that contains itself is a typed error, not an overflow."""
    circle: dict[str, Any] = {"null": None}
    circle["again"] = [circle]
    with pytest.raises(KnowledgeError, match="recursion"):
        Spore.create(circle)


@given(KNOWLEDGE)
def test_the_size_limit_is_exact(knowledge: dict[str, Any]) -> None:
    """A limit of exactly the encoded size passes; one byte less is refused."""
    size = len(msgspec.json.encode(knowledge))
    assert Spore.create(knowledge, limit=size).knowledge == knowledge
    with pytest.raises(SporeTooLargeError, match=f"{size} bytes; the limit is {size - 1}"):
        Spore.create(knowledge, limit=size - 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": 0}, {"priority": 11}, {"priority": "high"}, {"hops": -1}, {"channel": 5},
        {"headers": {"a": 1}}, {"spore_type": "rumour"}, {"id": 7}, {"key": 1}, {"ttl": -1},
        {"ttl": 0}, {"ttl": math.nan}, {"ttl": "5"}, {"created_at": math.nan},
        {"created_at": 1e300}, {"expires_at": math.nan}, {"deadline": math.nan},
        {"prioritty": 5}, {"channel": "\ud800"},
    ],
)  # fmt: skip
def test_a_header_field_of_wrong_type_or_range_is_refused(fields: dict[str, Any]) -> None:
    """A bad or unknown field is named by the error, in making a spore and in changing one."""
    (name,) = fields
    with pytest.raises(MalformedSporeError, match=name):
        Spore.create({"n": 1}, **fields)
    if name != "ttl":
        with pytest.raises(MalformedSporeError, match=name):
            Spore.create({"n": 1}).replace(**fields)


def test_a_copy_differs_only_in_what_is_named() -> None:
    """``replace`` keeps the id, the other fields and the attempt; the original is unchanged."""
    spore = Spore(Spore.create({"n": 1}, channel="a", priority=7).header, {"n": 1}, 2)
    other = spore.replace(knowledge={"n": 2}, channel="b")
    assert (other.id, other.channel, other.priority, other.attempt) == (spore.id, "b", 7, 2)
    assert (spore.channel, spore.knowledge, other.knowledge) == ("a", {"n": 1}, {"n": 2})


def test_a_spore_cannot_be_changed() -> None:
    """Neither the spore nor its header lets a field be assigned."""
    spore = Spore.create({"n": 1})
    with pytest.raises(AttributeError):
        spore.attempt = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        spore.header.channel = "other"  # type: ignore[misc]


def test_a_repr_does_not_show_the_knowledge() -> None:
    """Logs show who, what and where; knowledge may be confidential."""
    spore = Spore.create({"type": "note", "password": "hunter2"}, to_agent="bob")
    assert "hunter2" not in repr(spore)
    assert all(part in repr(spore) for part in (spore.id, "note", "bob", "main"))


@pytest.mark.parametrize("kind", [5, ["a"], {"b": 1}, True])
def test_the_type_is_a_string(kind: Any) -> None:
    """A type in the knowledge that could never match ``responds_to`` is refused."""
    with pytest.raises(KnowledgeError, match="'type'"):
        Spore.create({"type": kind})


def test_a_timestamp_is_utc() -> None:
    """``timestamp`` is ``created_at`` in ISO 8601."""
    spore = Spore.create({}, created_at=1_767_323_045.5)
    assert spore.timestamp == "2026-01-02T03:04:05.500000+00:00"


# -- ids -------------------------------------------------------------------------------------


def test_ids_are_128_bits() -> None:
    """An id is 32 hexadecimal digits."""
    assert len(bytes.fromhex(new_id())) == 16


def test_ids_of_several_threads_never_meet() -> None:
    """Eight threads that draw ids at the same time draw different ones."""
    drawn: list[list[str]] = [[] for _ in range(8)]
    start = threading.Barrier(8)

    def draw(into: list[str]) -> None:
        start.wait()
        into.extend(new_id() for _ in range(20_000))

    threads = [threading.Thread(target=draw, args=(into,)) for into in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one for into in drawn for one in into}) == 160_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_ids_of_a_forked_child_are_its_own() -> None:
    """Parent and children go on from one state and never draw the same id, whenever they fork."""
    seen = [new_id() for _ in range(10)]
    for _ in range(3):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, "".join(new_id() for _ in range(500)).encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as stream:
            text = stream.read().decode()
        assert os.waitpid(child, 0)[1] == 0
        assert len(text) == 500 * 32
        seen += [text[i : i + 32] for i in range(0, len(text), 32)]
        seen += [new_id() for _ in range(5_000)]
    assert len(set(seen)) == len(seen)
    prefixes = {one[:16] for one in seen}
    assert len(prefixes) == 4


# -- malformed bytes -------------------------------------------------------------------------

GOOD = json.loads(
    Spore.create({"type": "t", "a": [1, {"b": None}]}, priority=7, key="k").to_bytes()
)


def changed(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def with_header(**changes: Any) -> bytes:
    return changed(header={**GOOD["header"], **changes})


@pytest.mark.parametrize(
    "data",
    [
        b"", b" ", b"null", b"5", b'"text"', b"[]", b"{}", b"\xff\xfe", b"\x00" * 20,
        changed()[:-1], changed() + b"x", json.dumps(GOOD).encode("utf-16"),
        changed(praval_spore=2), changed(praval_spore="1"), changed(praval_spore=None),
        changed(knowledge=None), changed(knowledge=[1]), changed(knowledge="x"),
        changed(attempt=0), changed(attempt=1.5), changed(header=None), changed(header=[]),
        with_header(id=None), with_header(created_at="now"), with_header(created_at=-1e300),
        with_header(created_at=1e300), with_header(priority=0), with_header(priority=11),
        with_header(hops=-1), with_header(spore_type="rumour"), with_header(headers={"a": 1}),
        with_header(data_references="x"), with_header(channel=None), with_header(key=5),
        changed(knowledge=math.nan), changed(knowledge={"a": math.inf}),
        json.dumps(GOOD).encode().replace(b'"a"', b'"\xff"'),
        changed().replace(b"null", b"[" * 100_000 + b"]" * 100_000),
        changed().replace(b"null", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    ],
)  # fmt: skip
def test_bytes_that_are_no_spore_are_refused_in_words(data: bytes) -> None:
    """Each kind of damage is a MalformedSporeError that says what is wrong."""
    with pytest.raises(MalformedSporeError, match=r".{20,}\."):
        Spore.from_bytes(data)


@pytest.mark.parametrize("data", [None, 5, [1], {"a": 1}, object()])
def test_what_is_not_bytes_is_refused_in_words(data: Any) -> None:
    """A caller who hands over something else gets the same typed error."""
    with pytest.raises(MalformedSporeError, match=type(data).__name__):
        Spore.from_bytes(data)


def test_the_newer_schema_version_is_named() -> None:
    """The error for another schema version says which one, and what to do."""
    with pytest.raises(MalformedSporeError, match=r"version 2; this Praval reads 1\. Upgrade"):
        Spore.from_bytes(changed(praval_spore=2))


def test_too_many_bytes_are_refused_before_they_are_read() -> None:
    """Over the limit (and 64 KiB for the header) nothing is parsed, not even what is no JSON."""
    with pytest.raises(SporeTooLargeError, match="limit is 100"):
        Spore.from_bytes(b"x" * (65_536 + 101), limit=100)
    with pytest.raises(MalformedSporeError):
        Spore.from_bytes(b"x" * (65_536 + 100), limit=100)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Damage some bytes in one of the ways in which files and networks do."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(5):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del out[at : at + rng.randint(1, 9)]
            case 2:
                out[at:at] = rng.choice(
                    [b"{", b"}", b"[", b'"', b"null", b"-1e999", b"\\ud800", b","]
                )
            case 3:
                out[at : at + 5] = out[:5]
            case 4:
                other = rng.randrange(len(out) + 1)
                out[at:at] = out[other : other + rng.randint(1, 30)]
    return bytes(out)


@pytest.mark.parametrize("seed", range(8))
def test_no_damage_leads_to_another_error(seed: int) -> None:
    """Thousands of damaged spores are either read in full or refused as malformed."""
    rng = random.Random(seed)
    full = Spore.create(
        {"type": "t", "text": "Grüße", "list": [1, 2.5, None, {"deep": [True]}]},
        channel="c", to_agent="b", priority=9, key="k", headers={"a": "b"}, ttl=60, hops=3,
        deadline=1e9, data_references=("s3://a/b",),
    ).to_bytes()  # fmt: skip
    refused = 0
    for _ in range(1_500):
        try:
            spore = Spore.from_bytes(mutated(full, rng))
        except MalformedSporeError:
            refused += 1
            continue
        assert Spore.from_bytes(spore.to_bytes()) == spore
        assert isinstance(spore.timestamp, str)
        assert isinstance(spore.data_references, list)
        assert 1 <= spore.priority <= 10
    assert 500 < refused < 1_500, "the mutations must hit both kinds"


@given(st.binary(max_size=200) | VALUE.map(lambda value: json.dumps(value).encode()))
def test_no_input_leads_to_another_error(data: bytes) -> None:
    """Arbitrary bytes, and JSON that is not a spore, are refused as malformed."""
    with pytest.raises(MalformedSporeError):
        Spore.from_bytes(data)


@pytest.mark.parametrize("error", [KnowledgeError, SporeTooLargeError, MalformedSporeError])
def test_one_except_catches_all(error: type[Exception]) -> None:
    """Whatever is wrong with a spore is a SporeError."""
    assert issubclass(error, SporeError)


# -- data references -------------------------------------------------------------------------


def test_references_are_found_where_the_guide_puts_them() -> None:
    """Declared ones come first, then the knowledge's; each once, and only those with a scheme."""
    spore = Spore.create(
        {
            "data_references": ["s3://bucket/a", "not one", 5, "redis://k"],
            "model_reference": "file:///m",
            "self_reference": "no scheme",
            "count_reference": 7,
            "copy_reference": "s3://bucket/a",
            "nested": {"deep_reference": "s3://not/looked/at"},
        },
        data_references=("pg://table/1", "redis://k"),
    )
    assert spore.data_references == ["pg://table/1", "redis://k", "s3://bucket/a", "file:///m"]
    assert spore.has_data_references()


def test_a_spore_without_references_has_none() -> None:
    """Text that is no URI and a value of the wrong kind are not references."""
    spore = Spore.create({"data_references": "s3://a", "x_reference": None, "reference": "s3://b"})
    assert spore.data_references == []
    assert not spore.has_data_references()


def test_a_root_spore_is_its_own_root() -> None:
    """``root`` is the first ancestor, or the spore itself."""
    spore = Spore.create({})
    assert spore.root == spore.id
    assert Spore.create({}, root="first", hops=2).root == "first"


def test_header_defaults_are_those_of_the_design() -> None:
    """A spore that says nothing else is knowledge of priority 5 on main that never expires."""
    header = Header("id", 0.0)
    assert (header.channel, header.priority, header.spore_type, header.expires_at) == (
        "main",
        5,
        SporeType.KNOWLEDGE,
        None,
    )
