"""A network that misbehaves when it is told to: what lies between a client and its broker."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, TypeVar

from praval.core.tls import cut

T = TypeVar("T")

HOST = "localhost"
"""Where proxies listen, and what the certificates of brokers under test must name."""
CHUNK = 64 * 1024


class Reader(Protocol):
    """What bytes come from."""

    async def read(self, n: int, /) -> bytes:
        """Return some bytes; none: the end."""
        ...


class Writer(Protocol):
    """What bytes go to."""

    def write(self, data: bytes, /) -> None:
        """Take them."""

    async def drain(self) -> None:
        """Wait until there is room for more."""


End: TypeAlias = tuple[Reader, Writer]
"""One end of a connection."""


class Protected:
    """The server's side of TLS over a connection.

    asyncio's own hangs up on a client that fails the handshake, without the alert that says why;
    brokers send it, and clients have to understand it.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)

    @classmethod
    async def accept(
        cls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext
    ) -> End:
        """Do the handshake.

        Raises:
            ssl.SSLError: it failed; the client has been told.
        """
        self = cls(reader, writer, context)
        try:
            await self._whatever_it_needs(self._tls.do_handshake)
        except ssl.SSLError:
            writer.write_eof()  # and not a reset, which would overtake the alert
            await reader.read()
            raise
        return self, self

    async def read(self, n: int, /) -> bytes:
        """See :class:`Reader`."""
        try:
            return await self._whatever_it_needs(lambda: self._tls.read(n))
        except ssl.SSLError:  # an end without TLS's own end, mostly
            return b""

    def write(self, data: bytes, /) -> None:
        """See :class:`Writer`."""
        self._tls.write(data)
        self._flush()

    async def drain(self) -> None:
        """See :class:`Writer`."""
        await self._writer.drain()

    async def _whatever_it_needs(self, act: Callable[[], T]) -> T:
        while True:
            try:
                return act()
            except ssl.SSLWantReadError:
                pass
            finally:
                self._flush()
            if data := await self._reader.read(CHUNK):
                self._in.write(data)
            else:
                self._in.write_eof()

    def _flush(self) -> None:
        if self._out.pending:
            self._writer.write(self._out.read())


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
        self._connections: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._take, "127.0.0.1", 0)
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
            cut(writer.transport)
            return
        # a task of our own: `start_server` would log its cancellation as an error
        connection = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes both ways until one end closes; then close both."""
        async with contextlib.AsyncExitStack() as ends:
            ends.callback(writer.transport.abort)
            client: End = (reader, writer)
            try:
                if self._shows is not None:
                    client = await Protected.accept(reader, writer, self._shows)
                answers, above = await asyncio.open_connection(*self._broker, ssl=self._upstream)
            except OSError:  # ssl.SSLError is one; or the broker is down, and so is this connection
                return
            ends.callback(above.transport.abort)
            ways = [
                asyncio.ensure_future(self._pass(client[0], above)),
                asyncio.ensure_future(self._pass(answers, client[1])),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async def _pass(self, reader: Reader, writer: Writer) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
