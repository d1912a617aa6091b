"""Servers that answer without end, compressed to the extreme, or elsewhere."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from praval import achat, astream
from praval.errors import ConfigurationError, ProviderProtocolError, ProviderStatusError
from praval.providers import (
    AnthropicProvider,
    Limits,
    OpenAICompatibleProvider,
    OpenAIProvider,
    http,
    register_provider,
    sse,
)
from praval.providers.streams import AnswerStream

LIMIT = 100_000


@asynccontextmanager
async def answering(head: str, body: Iterable[bytes]) -> AsyncIterator[str]:
    """Serve one answer to everybody; the provider "hostile" asks for it."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {head}\r\nconnection: close\r\n\r\n".encode())
        try:
            for piece in body:
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    provider = OpenAICompatibleProvider(
        f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "sk-4711", model="m"
    )
    register_provider("hostile", provider, limits=Limits(max_retries=0))
    try:
        yield provider.base_url
    finally:
        await provider.aclose()
        server.close()


def without_end(piece: bytes) -> Iterable[bytes]:
    while True:
        yield piece


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small limits: nothing that is tested here depends on how large they are."""
    monkeypatch.setattr(http, "ANSWER_LIMIT", LIMIT)
    monkeypatch.setattr(sse, "ANSWER_LIMIT", LIMIT)
    monkeypatch.setattr(sse, "EVENT_LIMIT", LIMIT // 2)


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize("head", ["200 OK", "500 Oh", "200 OK\r\ncontent-encoding: gzip"])
async def test_an_answer_without_end_does_not_fill_the_memory(head: str) -> None:
    """Nor does an error's text, nor what a small body unpacks to."""
    packed = [gzip.compress(bytes(100 * LIMIT))]
    body = packed if "gzip" in head else without_end(b" " * 10_000)
    async with answering(head, body):
        with pytest.raises(ProviderProtocolError, match=f"more than {LIMIT} bytes"):
            await achat("?", provider="hostile", timeout=10)


async def read_all(stream: AnswerStream) -> None:
    async with stream:
        async for _ in stream:
            pass


ENDLESS_STREAMS = {
    "events": b'data: {"choices": [{"delta": {"content": "la"}}]}\n\n',
    "comments": b": still here\n\n",
    "a line": b"data: xxxxxxxxxxxxxxxxxxxxxxxx",
    "an event of empty lines": b"data:\n",
}


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize("piece", ENDLESS_STREAMS.values(), ids=ENDLESS_STREAMS)
@pytest.mark.parametrize("status", ["200 OK", "429 Busy"])
async def test_a_stream_without_end_does_not_fill_the_memory(status: str, piece: bytes) -> None:
    """Whatever it is made of."""
    async with answering(status, without_end(piece * 100)):
        with pytest.raises(ProviderProtocolError, match="more than"):
            await read_all(astream("?", provider="hostile", timeout=10))


def test_a_long_line_in_small_pieces_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not anew with each piece, which would stop the loop for minutes."""
    seen: list[int] = []
    split = sse._split

    def counting(data: bytes) -> tuple[list[bytes], bytes]:
        seen.append(len(data))
        return split(data)

    monkeypatch.setattr(sse, "_split", counting)
    decoder = sse.EventDecoder()
    sent = b"data: " + b"x" * 10_000 + b"\n\n"
    events = [event for byte in sent for event in decoder.feed(bytes([byte]))]
    assert events == [sse.Event("message", "x" * 10_000)]
    assert sum(seen) < 2 * len(sent)


async def test_a_redirection_is_not_followed() -> None:
    """The key and the question go to nobody but the server that was named."""
    async with answering("307 Elsewhere\r\nlocation: http://127.0.0.1:9/", []):
        with pytest.raises(ProviderStatusError, match="307"):
            await achat("?", provider="hostile", timeout=10)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\0", "é"])
def test_what_cannot_be_a_header_is_refused_when_it_is_given(value: str) -> None:
    """And not only when something is asked."""
    with pytest.raises(ConfigurationError, match="OpenAI-Project must consist of"):
        OpenAIProvider("sk-4711", project=value)
    with pytest.raises(ConfigurationError, match="anthropic-version must consist of"):
        AnthropicProvider("sk-4711", api_version=value)
