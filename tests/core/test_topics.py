"""Topics and patterns: any text is a segment, both spellings are one, matching has no surprises."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from praval.core.topics import (
    LONGEST,
    decode_segment,
    dotted,
    encode_segment,
    has_wildcard,
    join,
    matches,
    parse_pattern,
    parse_topic,
)
from praval.core.transport import Subscription
from praval.errors import TopicError

SPECIAL = "./+#*>$%: \t\n\r\x00\x1f\x7f\u2028\xa0"
"""What some broker, or a reader of logs, would not take for text."""

texts = st.text(st.characters(codec="utf-8") | st.sampled_from(SPECIAL), min_size=1, max_size=12)
"""Anything that UTF-8 can carry."""
segments = texts.map(encode_segment) | st.sampled_from(["a", "b", "ab", "A"])
topics = st.lists(segments, min_size=1, max_size=5).map(tuple)
words = st.sampled_from(["a", "b", "c", "*"])
patterns = st.tuples(st.lists(words, max_size=5), st.sampled_from([(), ("#",)])).map(
    lambda parts: (*parts[0], *parts[1])
)


# -- segments --------------------------------------------------------------------------------


@given(texts)
@example("%")
@example("%2E")
@example("..")
@example("#")
def test_any_text_can_be_a_segment(text: str) -> None:
    """It comes back as it was, and in between no broker finds anything special in it."""
    segment = encode_segment(text)
    assert decode_segment(segment) == text
    assert not set(segment.replace("%", "")) & set(SPECIAL)
    assert parse_topic(segment) == (segment,)
    assert not has_wildcard(parse_pattern(segment))


@given(texts, texts)
def test_different_texts_are_different_segments(one: str, other: str) -> None:
    assert (encode_segment(one) == encode_segment(other)) is (one == other)


@pytest.mark.parametrize("text", [string.ascii_letters + string.digits + "-_~!", "größe", "日本"])
def test_readable_text_stays_readable(text: str) -> None:
    assert encode_segment(text) == text


@pytest.mark.parametrize(
    ("text", "why"), [("", "empty"), ("\ud800", "UTF-8"), ("ok\udfff", "UTF-8")]
)
def test_what_no_broker_can_carry_is_refused(text: str, why: str) -> None:
    """As a segment, in a list of them, and in a topic."""
    for refuse in (encode_segment, join, parse_topic, parse_pattern):
        with pytest.raises(TopicError, match=why):
            refuse(text)


@pytest.mark.parametrize("segment", ["%FF", "%E2%82", "%", "%2", "%GG", "100%"])
def test_a_segment_that_encodes_no_text_is_refused(segment: str) -> None:
    with pytest.raises(TopicError):
        decode_segment(segment)


# -- topics ----------------------------------------------------------------------------------


@given(st.lists(texts, min_size=1, max_size=4))
def test_joined_texts_come_apart_again(parts: list[str]) -> None:
    """`join` makes a topic of any texts; parsing and decoding gives them back."""
    assume(len(".".join(map(encode_segment, parts)).encode()) <= LONGEST)
    topic = parse_topic(join(*parts))
    assert [decode_segment(segment) for segment in topic] == parts
    assert dotted(topic) == join(*parts)


@given(topics)
def test_dots_and_slashes_say_the_same(topic: tuple[str, ...]) -> None:
    """Of a topic to publish on, and of a pattern, with `+` as another `*`."""
    assume(len(dotted(topic).encode()) <= LONGEST)
    assert parse_topic(".".join(topic)) == parse_topic("/".join(topic)) == topic
    wild = (*topic[:-1], "*", "#")
    assume(len(dotted(wild).encode()) <= LONGEST)
    for spelled in ((*topic[:-1], "*", "#"), (*topic[:-1], "+", "#")):
        assert parse_pattern(".".join(spelled)) == parse_pattern("/".join(spelled)) == wild


@given(st.text(st.characters(codec="utf-8") | st.sampled_from(SPECIAL + "a.b/c"), max_size=20))
def test_any_text_is_read_as_a_topic_or_refused(text: str) -> None:
    """What is read is canonical; what is refused is refused by TopicError and nothing else."""
    try:
        topic = parse_topic(text)
    except TopicError:
        return
    assert topic
    assert all(topic)
    assert parse_topic(dotted(topic)) == parse_topic("/".join(topic)) == topic
    assert parse_pattern(text) == topic


@pytest.mark.parametrize(
    ("topic", "why"),
    [
        ("a.b/c", "mixes dots and slashes"),
        ("", "not empty"),
        (".", "empty segment"),
        ("a..b", "empty segment"),
        ("a.", "empty segment"),
        ("/a", "empty segment"),
        ("a//b", "empty segment"),
        ("a b", "Write 'a%20b'"),
        ("a.$SYS", "Write '%24SYS'"),
        ("a.b*", r"Write 'b%2A'"),
        ("a/b+/c", r"Write 'b%2B'"),
        ("x#", "Write 'x%23'"),
        ("a>b", "Write 'a%3Eb'"),
        ("a:b", "Write 'a%3Ab'"),
        ("100%", "Write '100%25'"),
        ("a\x00", "Write 'a%00'"),
        ("a\n", "Write 'a%0A'"),
    ],
)
def test_a_topic_that_a_broker_would_misread_is_refused(topic: str, why: str) -> None:
    """To publish on and to subscribe to; the message says why, and what to write."""
    for parse in (parse_topic, parse_pattern):
        with pytest.raises(TopicError, match=why):
            parse(topic)


@given(texts)
def test_what_the_refusal_proposes_is_accepted(text: str) -> None:
    assume("." not in text and "/" not in text and text not in ("*", "+", "#"))
    try:
        parse_topic(text)
    except TopicError as refusal:
        proposed = str(refusal).rpartition("Write ")[2].removesuffix(".")
        assert proposed == repr(encode_segment(text))
        parse_topic(encode_segment(text))


@pytest.mark.parametrize("topic", ["*", "+", "#", "a.*", "a/+/b", "a.#", "*.b"])
def test_nothing_is_published_on_a_wildcard(topic: str) -> None:
    with pytest.raises(TopicError, match="wildcard"):
        parse_topic(topic)
    assert has_wildcard(parse_pattern(topic))


@pytest.mark.parametrize("pattern", ["#.a", "a.#.b", "#/#", "#.*"])
def test_the_rest_is_the_end_of_a_pattern(pattern: str) -> None:
    with pytest.raises(TopicError, match="before its end"):
        parse_pattern(pattern)


@pytest.mark.parametrize("topic", [None, 7, b"a.b", ("a", "b"), ["a"]])
def test_a_topic_is_a_string(topic: Any) -> None:
    with pytest.raises(TopicError, match="must be a string"):
        parse_topic(topic)


@pytest.mark.parametrize("letter", ["a", "é", "日"])
def test_the_limit_is_in_bytes_of_the_encoded_topic(letter: str) -> None:
    """As AMQP counts; a byte more is refused, and told with the limit."""
    size = len(letter.encode())
    longest = "x" * (LONGEST % size) + letter * (LONGEST // size)
    assert len(longest.encode()) == LONGEST
    assert parse_topic(longest) == (longest,)
    for parse in (parse_topic, parse_pattern, join):
        with pytest.raises(TopicError, match="255"):
            parse(longest + "x")
    with pytest.raises(TopicError, match="255"):
        join("." * 86)  # 258 bytes once encoded


# -- matching --------------------------------------------------------------------------------


def hears(pattern: tuple[str, ...], topic: tuple[str, ...]) -> bool:
    """Return the same by the definition: word by word, from the front."""
    if not pattern:
        return not topic
    if pattern[0] == "#":
        return True
    return bool(topic) and pattern[0] in ("*", topic[0]) and hears(pattern[1:], topic[1:])


@given(patterns, st.lists(st.sampled_from("abc"), min_size=1, max_size=6).map(tuple))
def test_matching_is_by_the_definition(pattern: tuple[str, ...], topic: tuple[str, ...]) -> None:
    assume(pattern)
    assert matches(pattern, topic) is hears(pattern, topic)


@given(topics, st.data())
def test_a_topic_is_heard_by_all_that_should(topic: tuple[str, ...], data: st.DataObject) -> None:
    """By itself, with any of its segments as `*`, and with any end of it as `#`."""
    wild = tuple(data.draw(st.sampled_from([segment, "*"])) for segment in topic)
    cut = data.draw(st.integers(0, len(topic)))
    assert matches(topic, topic)
    assert matches(wild, topic)
    assert matches((*wild[:cut], "#"), topic)
    assert not matches((*wild, "*"), topic)
    assert not matches(wild, (*topic, "x"))
    assert not matches((*wild[:-1], topic[-1] + "x"), topic)


@pytest.mark.parametrize(
    ("pattern", "topic", "heard"),
    [
        ("orders.#", "orders", True),
        ("orders.#", "orders.eu.new", True),
        ("orders.#", "ordersx", False),
        ("orders.*", "orders", False),
        ("orders/+/new", "orders.eu.new", True),
        ("orders.*.new", "orders.eu.old", False),
        ("#", "anything.at/all".replace("/", "."), True),
        ("*", "a.b", False),
        ("Orders", "orders", False),
    ],
)
def test_a_subscription_hears_what_its_patterns_say(pattern: str, topic: str, heard: bool) -> None:
    """In either spelling, and if any of several patterns does."""
    assert Subscription([pattern], None).hears(parse_topic(topic)) is heard
    assert Subscription(["x.y.z", pattern], "g").hears(parse_topic(topic)) is heard


def test_a_subscription_shows_what_it_hears() -> None:
    assert repr(Subscription(["a/+", "b.#"], "g")) == "<Subscription to a.*, b.# as 'g'>"
    assert repr(Subscription(["a"], None)) == "<Subscription to a>"
