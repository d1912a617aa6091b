"""A TLS front before a server: other certificates, and a network that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from praval.core.tls import cut
from tests.servers.machine import free_port
from tests.servers.process import Server

T = TypeVar("T")

CHUNK = 65_536
PATIENCE = 10.0


class TlsFront:
    """Takes connections, ends their TLS and passes the bytes to a server's own TLS port.

    The context says which certificate the front shows (`server.pki.server_context(...)`);
    without one it speaks plaintext. Reach the server through it by `front.url`. It runs in a
    thread of its own, so its methods may be called from tests of any kind; each takes effect
    before it returns.
    """

    host = "localhost"

    def __init__(
        self, server: Server, context: ssl.SSLContext | None, *, upstream: int | None = None
    ) -> None:
        self.server = server
        self.port = free_port()
        self.delay = 0.0
        """Seconds that every piece waits before it is passed on."""
        self.tap: Callable[[bytes], None] = lambda data: None
        """Called, on the front's thread, with each piece that passes, in either direction."""
        self.accepted = 0
        """How many connections came so far (after their handshake)."""
        self._context = context
        self._upstream = upstream or server.port
        self._upstream_context = server.pki.client_context()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="front", daemon=True)
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    @property
    def url(self) -> str:
        return self.server.url_for(self.port)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def cut(self) -> None:
        """Abort all connections; new ones are taken."""
        self._call(self._cut())

    def stall(self) -> None:
        """Pass nothing on any more, in either direction; connections stay and are taken."""
        self._call(self._set_flowing(False))

    def refuse(self) -> None:
        """Abort all connections and refuse new ones."""
        self._call(self._refuse())

    def resume(self) -> None:
        """Undo `stall` and `refuse`: pass on what was held back, take connections."""
        self._call(self._set_flowing(True))
        self._call(self._listen())

    # -- inside, on the front's own loop -----------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self._cut()

    async def _cut(self) -> None:
        for writer in self._writers:
            cut(writer.transport)

    async def _close(self) -> None:
        await self._refuse()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        for _ in range(3):  # the loop closes the sockets of what was aborted in its next turns
            await asyncio.sleep(0)

    async def _set_flowing(self, flowing: bool) -> None:
        if flowing:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._writers.add(writer)
        above: asyncio.StreamWriter | None = None
        try:
            # TLS begins here and not in the call before: what is cut amid a handshake is known
            if self._context is not None:
                await _start_tls(writer, self._context)
            self.accepted += 1
            answers, above = await asyncio.open_connection("127.0.0.1", self._upstream)
            self._writers.add(above)
            await _start_tls(above, self._upstream_context, self.server.host)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, above))
                group.create_task(self._pass(answers, writer))
        except* (OSError, asyncio.CancelledError):
            pass  # one end has gone, or this front closes: both are cut below
        finally:
            for end in (writer, above):
                if end is not None:
                    cut(end.transport)
                    self._writers.discard(end)
            self._connections.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on until one end closes, which closes the other."""
        while data := await reader.read(CHUNK):
            self.tap(data)
            if self.delay:
                await asyncio.sleep(self.delay)
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()


async def _start_tls(
    writer: asyncio.StreamWriter, context: ssl.SSLContext, host: str | None = None
) -> None:
    """Begin TLS; raise an `OSError` if the other side hangs up meanwhile.

    asyncio leaves the writer without a transport if that happens at the end of the handshake.
    """
    raw = writer.transport
    try:
        await writer.start_tls(context, server_hostname=host)
    except AttributeError:
        writer._transport = raw  # type: ignore[attr-defined]
        raise ConnectionResetError("hung up amid the handshake") from None
