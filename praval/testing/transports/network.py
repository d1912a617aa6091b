"""A network that misbehaves when it is told to: what lies between a client and its broker."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

HOST = "localhost"
"""Where proxies listen, and what the certificates of brokers under test must name."""
CHUNK = 64 * 1024


class Network(ABC):
    """A way to a broker that can be cut. Each method has taken effect when it returns."""

    changes: Mapping[str, Any]
    """Keys of the config that lead a client over this network."""

    @abstractmethod
    async def cut(self) -> None:
        """Abort all connections; new ones are taken."""

    @abstractmethod
    async def refuse(self) -> None:
        """Abort all connections, and new ones at once."""

    @abstractmethod
    async def stall(self) -> None:
        """Pass nothing on any more; connections stay, and new ones are taken."""

    @abstractmethod
    async def resume(self) -> None:
        """Undo :meth:`refuse` and :meth:`stall`; what was held back is passed on."""


class Proxy(Network):
    """Takes TCP connections and passes their bytes on.

    Without contexts TLS goes through it untouched. With both it ends the client's TLS and makes
    its own to the broker, to show another certificate; with ``upstream`` alone it makes a
    plaintext port of the broker's protected one.

    Args:
        host, port: where the broker listens.
        shows: the context with the certificate that clients see.
        upstream: the context for connections to the broker.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        shows: ssl.SSLContext | None = None,
        upstream: ssl.SSLContext | None = None,
    ) -> None:
        self._broker = (host, port)
        self._shows = shows
        self._upstream = upstream
        self._listener: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False

    async def __aenter__(self) -> Self:
        # `start_server` would make the tasks itself, and log their cancellation as an error
        self._listener = await asyncio.start_server(self._take, "127.0.0.1", 0, ssl=self._shows)
        self.changes = {"host": HOST, "port": self._listener.sockets[0].getsockname()[1]}
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._listener is not None
        self._listener.close()
        await self.cut()

    async def cut(self) -> None:
        """See :class:`Network`."""
        cut = list(self._connections)
        for connection in cut:
            connection.cancel()
        if cut:
            await asyncio.wait(cut)

    async def refuse(self) -> None:
        """See :class:`Network`. The port stays bound, so that nobody else can take it."""
        self._refusing = True
        await self.cut()

    async def stall(self) -> None:
        """See :class:`Network`."""
        self._flowing.clear()

    async def resume(self) -> None:
        """See :class:`Network`."""
        self._refusing = False
        self._flowing.set()

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        connection = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections[connection] = writer
        connection.add_done_callback(self._connections.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes both ways until one end closes; then abort both."""
        async with contextlib.AsyncExitStack() as ends:
            ends.callback(writer.transport.abort)
            try:
                answers, above = await asyncio.open_connection(*self._broker, ssl=self._upstream)
            except OSError:
                return  # the broker is down: so is this connection
            ends.callback(above.transport.abort)
            ways = [
                asyncio.ensure_future(self._pass(reader, above)),
                asyncio.ensure_future(self._pass(answers, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
