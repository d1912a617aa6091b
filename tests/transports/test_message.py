"""What is packed around a body: checked on its way out, distrusted on its way in."""

from __future__ import annotations

import gzip
import os
import time
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from praval.core.topics import parse_topic
from praval.errors import ConfigurationError, MalformedSporeError, SporeTooLargeError
from praval_transports.config import BrokerConfig
from praval_transports.message import (
    GRACE,
    LARGE,
    WORTH_COMPRESSING,
    Incoming,
    Outgoing,
    is_expired,
    pack,
    priority_of,
    unpack,
)

PLAIN = BrokerConfig(port=1)
GZIP = BrokerConfig(port=1, compression="gzip")
MIB = 1024 * 1024


class Received(Incoming):
    """A message that came from nowhere."""

    def __init__(self, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        super().__init__("a.b", body, headers or {}, False)

    async def acknowledge(self) -> None:
        raise NotImplementedError

    async def give_back(self) -> None:
        raise NotImplementedError


async def packed(body: Any = b"", config: BrokerConfig = PLAIN, **options: Any) -> Outgoing:
    said = {"priority": 5, "ttl": None, "headers": None, **options}
    return await pack(
        parse_topic("a/b"), body, said["priority"], said["ttl"], said["headers"], config
    )


# -- out -------------------------------------------------------------------------------------


async def test_a_message_knows_its_topic_in_both_spellings() -> None:
    message = await packed()
    assert (message.dotted, message.slashed) == ("a.b", "a/b")


@pytest.mark.parametrize("body", [b"", b"\x00\xff", bytearray(b"x"), memoryview(b"xy")])
async def test_any_bytes_are_a_body(body: Any) -> None:
    """What the caller changes afterwards is not changed in the message."""
    message = await packed(body)
    assert message.body == bytes(body)
    assert type(message.body) is bytes


@pytest.mark.parametrize("body", ["text", None, 7, [1], {"a": 1}])
async def test_only_bytes_are_a_body(body: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be bytes"):
        await packed(body)


async def test_a_body_over_the_limit_is_refused() -> None:
    """One of the limit's size is not."""
    config = BrokerConfig(port=1, max_message_size=100)
    await packed(bytes(100), config)
    with pytest.raises(SporeTooLargeError, match="101 bytes; max_message_size is 100"):
        await packed(bytes(101), config)


@pytest.mark.parametrize("priority", [0, 11, -1, 5.0, "5", True, None])
async def test_a_priority_is_a_whole_number_from_1_to_10(priority: Any) -> None:
    with pytest.raises(ConfigurationError, match="priority must be 1 to 10"):
        await packed(priority=priority)


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "60", 1e12])
async def test_a_time_to_live_is_a_number_of_seconds(ttl: Any) -> None:
    with pytest.raises(ConfigurationError, match="ttl must be a number of seconds"):
        await packed(ttl=ttl)


async def test_the_broker_keeps_a_message_longer_than_it_lives() -> None:
    """So that its expiry is judged, and counted, by the receiver."""
    before = time.time()
    message = await packed(ttl=7.5)
    assert message.ttl == 7.5 + GRACE
    expires = int(message.headers["praval-expires"]) / 1000
    assert before + 7.4 <= expires <= time.time() + 7.5
    assert not is_expired(Received(headers=message.headers))
    past = {"praval-expires": str(int((time.time() - 1) * 1000))}
    assert is_expired(Received(headers=past))


@pytest.mark.parametrize(
    "headers",
    [
        {"praval-priority": "9"},
        {"praval-": "x"},
        {"": "x"},
        {"a": 1},
        {1: "a"},
        {"a": None},
        {"a": b"x"},
        {"a": "x\x00"},
        {"a\x00": "x"},
        {"a": "\ud800"},
    ],
)
async def test_headers_that_cannot_travel_are_refused(headers: Any) -> None:
    with pytest.raises(ConfigurationError, match="header"):
        await packed(headers=headers)


async def test_headers_are_copied_and_not_changed() -> None:
    mine = {"größe": "日本", "a": ""}
    message = await packed(headers=mine)
    assert message.headers == {**mine, "praval-priority": "5"}
    assert mine == {"größe": "日本", "a": ""}


# -- in --------------------------------------------------------------------------------------


@given(st.text() | st.integers().map(str) | st.integers(1, 10_000).map(lambda n: "9" * n))
def test_no_header_of_a_stranger_stops_the_receiver(text: str) -> None:
    """A priority is 1 to 10 in any case, an expiry is past or is not."""
    headers = {"praval-priority": text, "praval-expires": text}
    priority = priority_of(Received(headers=headers))
    assert priority == (int(text) if text in map(str, range(1, 11)) else 5) or text[:1] == "0"
    assert 1 <= priority <= 10
    assert is_expired(Received(headers=headers)) in (True, False)


def test_without_headers_the_priority_is_5_and_nothing_expires() -> None:
    assert priority_of(Received()) == 5
    assert not is_expired(Received())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x" * (WORTH_COMPRESSING - 1),
        b"x" * WORTH_COMPRESSING,
        os.urandom(5000),  # random bytes do not become less
        b"x" * LARGE,
        os.urandom(LARGE) + bytes(MIB),
    ],
)
async def test_what_is_compressed_comes_out_as_it_went_in(body: bytes) -> None:
    """In a thread when it is large; not at all when it is small, or would become larger."""
    message = await packed(body, GZIP)
    pays = WORTH_COMPRESSING <= len(body) != 5000
    assert ("praval-encoding" in message.headers) is pays
    assert (len(message.body) < len(body)) is pays
    assert await unpack(Received(message.body, message.headers), len(body)) == body


async def test_a_gzip_bomb_is_refused_before_it_goes_off() -> None:
    """A quarter of a gigabyte in a megabyte: what it takes to see that is bounded by the limit."""
    machine = zlib.compressobj(1, wbits=31)
    chunk = bytes(16 * MIB)
    bomb = b"".join(machine.compress(chunk) for _ in range(16)) + machine.flush()
    assert len(bomb) < 2 * MIB
    tracemalloc.start()
    try:
        with pytest.raises(SporeTooLargeError, match="unpacks to more than 4194304 bytes"):
            await unpack(Received(bomb, {"praval-encoding": "gzip"}), 4 * MIB)
        assert tracemalloc.get_traced_memory()[1] < 32 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 1, 100_000])
async def test_a_body_is_unpacked_up_to_the_limit(size: int) -> None:
    body = gzip.compress(bytes(size), mtime=0)
    headers = {"praval-encoding": "gzip"}
    assert await unpack(Received(body, headers), max(size, len(body))) == bytes(size)
    if size > len(body):
        with pytest.raises(SporeTooLargeError):
            await unpack(Received(body, headers), size - 1)


WHOLE = gzip.compress(b"message" * 1000, mtime=0)


@pytest.mark.parametrize(
    ("body", "encoding", "why"),
    [
        (WHOLE[:-1], "gzip", "does not end"),
        (WHOLE[:20], "gzip", "does not end"),
        (b"", "gzip", "does not end"),
        (WHOLE + b"more", "gzip", "does not end"),
        (WHOLE + WHOLE, "gzip", "does not end"),
        (b"no gzip at all", "gzip", "no gzip"),
        (zlib.compress(b"x"), "gzip", "no gzip"),
        (WHOLE[:-6] + b"\x00" * 6, "gzip", "no gzip"),
        (WHOLE, "br", "unknown encoding 'br'"),
        (WHOLE, "", "unknown encoding ''"),
    ],
)
async def test_a_body_that_is_not_what_it_says_is_refused(
    body: bytes, encoding: str, why: str
) -> None:
    """Cut off, followed by something, damaged, or packed in a way that is not known."""
    with pytest.raises(MalformedSporeError, match=why):
        await unpack(Received(body, {"praval-encoding": encoding}), MIB)


async def test_a_plain_body_over_the_limit_is_refused() -> None:
    assert await unpack(Received(bytes(100)), 100) == bytes(100)
    with pytest.raises(SporeTooLargeError, match="101 bytes came in; 100 is the limit"):
        await unpack(Received(bytes(101)), 100)
