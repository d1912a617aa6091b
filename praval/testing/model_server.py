"""A real HTTP server, in a thread, that answers like a vendor of models, or fails as wanted.

What it says and what it accepts is a :class:`Dialect`'s; when and how is a :class:`Reply`'s.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

import msgspec

from praval.core.tls import cut

if TYPE_CHECKING:
    import h11

PATIENCE = 10.0
"""Seconds that anything in a test may take before it is a failure."""
TURNS = 20
"""Of the loop, until a connection that was accepted has a task that sees to its end."""


@dataclass(frozen=True)
class Request:
    """A request that the server got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return msgspec.json.decode(self.body)


class Gate:
    """A place in a body where the server waits until the test lets it go on."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def open(self) -> None:
        """Let the server go on."""
        self._open.set()

    async def passed(self) -> None:
        """Wait for it."""
        while not self._open.is_set():  # noqa: ASYNC110 - the test runs in another thread
            await asyncio.sleep(0.005)


@dataclass(frozen=True)
class Reply:
    """What the server answers to one request.

    ``body`` is sent piece by piece; a :class:`Gate` in it waits. ``ends``: "whole", "cut" (the
    connection is closed before the body is complete), "never" (nothing more comes; the
    connection stays open), "silence" (not even a status).
    """

    body: Sequence[bytes | Gate] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ends: str = "whole"


class Dialect:
    """What a vendor's server accepts and says. Subclasses are strict about the first."""

    path = "/chat/completions"
    prefix = "/v1"
    """What belongs to the ``base_url`` of a provider."""

    def problem(self, request: Request) -> str | None:
        """Return what is wrong with a request's JSON by the vendor's published schema."""
        raise NotImplementedError

    def text(self, text: str, *, input_tokens: int = 11, output_tokens: int = 7) -> bytes:
        """Return an answer."""
        raise NotImplementedError

    def calls(self, calls: Sequence[tuple[str, str, str]]) -> bytes:
        """Return an answer that wants tools called: id, name and JSON arguments of each."""
        raise NotImplementedError

    def events(
        self, pieces: Sequence[str], *, input_tokens: int = 11, output_tokens: int = 7
    ) -> list[bytes]:
        """Return a streamed answer: what is sent before each piece, and after the last."""
        raise NotImplementedError

    def call_events(self, calls: Sequence[tuple[str, str, str]]) -> list[bytes]:
        """Return a streamed answer that wants tools called."""
        raise NotImplementedError

    def failure_event(self) -> bytes:
        """Return the event of a failure in the middle of a stream."""
        raise NotImplementedError

    def error(self, status: int, message: str) -> bytes:
        """Return the body of a refusal."""
        return msgspec.json.encode({"error": {"message": message, "type": str(status)}})

    def is_authorized(self, request: Request, key: str) -> bool:
        """Whether the request has the key where this vendor wants it."""
        return request.headers.get("authorization") == f"Bearer {key}"


class ModelServer:
    """Serves one dialect on a loopback port, to who has the key.

    Replies are given in order, the last again and again; a request that the dialect finds a
    problem with is refused with 400 instead, and the problem is kept.
    """

    def __init__(self, dialect: Dialect, key: str | None = None) -> None:
        self.dialect = dialect
        self.key = key
        self.requests: list[Request] = []
        self.problems: list[str] = []
        self.connections = 0
        """Connections so far."""
        self.replies: collections.deque[Reply] = collections.deque()
        self.arrived = threading.Semaphore(0)
        """Released for each request."""
        self.deserted = threading.Semaphore(0)
        """Released for each client that left before its answer was complete."""
        self._judged: dict[bytes, str | None] = {}
        self._last = Reply([dialect.text("fine")])
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-server", daemon=True)
        self._stop: asyncio.Event

    def reply(self, *replies: Reply) -> None:
        """Answer the next requests so; forget what was requested before."""
        self.replies = collections.deque(replies)
        self.requests.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(PATIENCE):
            raise RuntimeError("The model server did not start.")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)

    def stop(self) -> None:
        """Close the port and all connections; stopping twice is harmless."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        import_module("h11")  # or the first connection imports it on the loop
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=512)
        port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}{self.dialect.prefix}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for _ in range(TURNS):  # one that was accepted just now has no task yet
            await asyncio.sleep(0)
        for writer in self._writers:
            cut(writer.transport)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PATIENCE)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        import h11

        try:
            await self._talk(reader, writer)
        except (ConnectionError, EOFError, h11.RemoteProtocolError):  # it left, perhaps half-way
            self.deserted.release()
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        import h11

        protocol = h11.Connection(h11.SERVER)
        while (request := await _received(protocol, reader)) is not None:
            self.requests.append(request)
            self.arrived.release()
            # a dialect may be slow: it may have to import its vendor's types
            reply = await asyncio.to_thread(self._refused, request) or self._next()
            # a client that leaves is noticed while the answer is on its way, or held
            gone = asyncio.ensure_future(reader.read(1))
            gone.add_done_callback(_seen)
            answer = asyncio.ensure_future(self._answer(protocol, writer, reply))
            await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                answer.cancel()
                await asyncio.gather(answer, return_exceptions=True)
                self.deserted.release()
                return
            answer.result()
            if protocol.our_state is not h11.DONE or gone.done():
                gone.cancel()
                return
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            protocol.start_next_cycle()

    def _next(self) -> Reply:
        if self.replies:
            self._last = self.replies.popleft()
        return self._last

    async def _answer(
        self, protocol: h11.Connection, writer: asyncio.StreamWriter, reply: Reply
    ) -> None:
        import h11

        if reply.ends == "silence":
            await asyncio.Event().wait()
        kind = "text/event-stream" if len(reply.body) > 1 else "application/json"
        headers = {"content-type": kind, "transfer-encoding": "chunked", **reply.headers}
        response = h11.Response(status_code=reply.status, headers=list(headers.items()))
        writer.write(protocol.send(response) or b"")
        for piece in reply.body:
            if isinstance(piece, Gate):
                await piece.passed()
                continue
            writer.write(protocol.send(h11.Data(data=piece)) or b"")
            await writer.drain()
        if reply.ends == "never":
            await asyncio.Event().wait()
        if reply.ends == "whole":
            writer.write(protocol.send(h11.EndOfMessage()) or b"")
        await writer.drain()

    def _refused(self, request: Request) -> Reply | None:
        def refuse(status: int, message: str) -> Reply:
            self.problems.append(message)
            return Reply([self.dialect.error(status, message)], status)

        if (request.method, request.path) != ("POST", self.dialect.prefix + self.dialect.path):
            return refuse(404, f"no such route: {request.method} {request.path}")
        if self.key is not None and not self.dialect.is_authorized(request, self.key):
            return refuse(401, "wrong key")
        if request.headers.get("content-type") != "application/json":
            return refuse(415, "not JSON")
        if request.body not in self._judged:
            self._judged[request.body] = self.dialect.problem(request)
        problem = self._judged[request.body]
        return refuse(400, problem) if problem else None


def _seen(task: asyncio.Future[Any]) -> None:
    """Take note of an exception for which nobody waits: a client may just have left."""
    if not task.cancelled():
        task.exception()


async def _received(protocol: h11.Connection, reader: asyncio.StreamReader) -> Request | None:
    import h11

    head: h11.Request | None = None
    body = b""
    while True:
        event = protocol.next_event()
        if event is h11.NEED_DATA:
            protocol.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            headers = {name.decode(): value.decode() for name, value in head.headers}
            return Request(head.method.decode(), head.target.decode(), headers, body)
        else:
            return None
