"""The sockets of AMQP connections: their options, their end, and frames that travel together."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any

import aiormq
from yarl import URL

from praval.core.tls import cut
from praval_transports.config import Address, BrokerConfig

ENOUGH = 64 * 1024
"""Bytes that are sent without waiting for more."""
LONGEST_WAIT = 0.005
"""Seconds after which they are sent in any case, when the loop is busy."""
READ_AHEAD = 256 * 1024
"""Bytes to take from the system before aiormq has looked at them."""
PATIENCE = 1.0
"""Seconds in which a broker that refuses our certificate has said so."""
FAREWELL = 1.0
"""Seconds that the other side has for its part of ending a connection."""


class Gathering(asyncio.StreamWriter):
    """Sends what is written in a few turns of the loop in one piece.

    To TLS and to the systems on both sides a frame of 20 bytes costs as much as a message, and
    aiormq writes each frame on its own, one in a turn at most.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._size = 0
        self._since = 0.0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it for now."""
        self._pieces.append(data)
        self._size += len(data)
        if len(self._pieces) == 1:
            loop = asyncio.get_running_loop()
            self._since = loop.time()
            loop.call_soon(self._wait, 0, True)

    def _wait(self, known: int, patient: bool) -> None:
        """Send after two turns that brought nothing new, or if it is enough, or late."""
        loop, count = asyncio.get_running_loop(), len(self._pieces)
        grown = count > known
        late = loop.time() - self._since > LONGEST_WAIT
        if (grown or patient) and self._size < ENOUGH and not late:
            loop.call_soon(self._wait, count, grown)
        else:
            self._send()

    def _send(self) -> None:
        pieces, self._pieces, self._size = self._pieces, [], 0
        if pieces and not self.is_closing():
            super().write(b"".join(pieces))

    async def drain(self) -> None:
        """Send, and wait until the system has taken most of it."""
        self._send()
        await super().drain()

    def write_eof(self) -> None:
        """Send, and nothing more after it."""
        self._send()
        super().write_eof()

    def close(self) -> None:
        """Send, and end the connection."""
        self._send()
        super().close()


class Wire(aiormq.TransportFactory):
    """The socket of one connection: opened with the config's options, and cut when need be."""

    def __init__(self, address: Address, tls: ssl.SSLContext | None, config: BrokerConfig) -> None:
        self.address = address
        self.tls = tls
        self._config = config
        self._writer: asyncio.StreamWriter | None = None

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open it; errors come out as they are."""
        reader, self._writer = await self._open()
        raw, config = self._writer.get_extra_info("socket"), self._config
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, config.tcp_nodelay)
        if config.buffer_size is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.buffer_size)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, config.buffer_size)
        return reader, self._writer

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop, (host, port) = asyncio.get_running_loop(), self.address
        reader = asyncio.StreamReader(limit=READ_AHEAD, loop=loop)
        patience = None if self.tls is None else FAREWELL
        transport, protocol = await loop.create_connection(
            lambda: asyncio.StreamReaderProtocol(reader, loop=loop),
            host, port, ssl=self.tls, ssl_shutdown_timeout=patience,
        )  # fmt: skip
        return reader, Gathering(transport, protocol, reader, loop)

    def cut(self) -> None:
        """End it without a word to the broker."""
        if self._writer is not None:
            cut(self._writer.transport)

    async def hear_why(self) -> None:
        """Connect again and only listen: raise ssl.SSLError if our certificate is refused.

        Under TLS 1.3 the broker looks at it when we have begun to talk; what we have sent makes
        its system reset the connection, and the reset can overtake the alert that says why.
        """
        reader, writer = await self._open()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await reader.read(1)
        finally:
            cut(writer.transport)
