"""A real HTTP server, in a thread, that accepts only what the OpenAI protocol allows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from dataclasses import dataclass
from typing import Any, Self

import h11


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def completion(text: str | None) -> bytes:
    """A complete answer, with the fields that real servers add."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}
    ).encode()


class OpenAIServer:
    """Answers ``POST /v1/chat/completions`` with ``answer``; nothing while it ``holds``."""

    def __init__(self, key: str | None = None) -> None:
        self.key = key
        self.answer: tuple[int, bytes, dict[str, str]] = (200, completion("fine"), {})
        self.holds = False
        self.hangs_up = False
        self.requests: list[Request] = []
        self.connections = 0
        self.arrived = threading.Semaphore(0)
        """Released for each request."""
        self.deserted = threading.Semaphore(0)
        """Released for each client that left before it got an answer."""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="openai-server")
        self._stop: asyncio.Event

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._talk(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = h11.Connection(h11.SERVER)
        while (request := await self._received(protocol, reader)) is not None:
            self.requests.append(request)
            self.arrived.release()
            if self.hangs_up:
                return
            if self.holds:
                assert await reader.read(1) == b"", "a client must not send more than its request"
                self.deserted.release()
                return
            status, body, extra = self._refusal(request) or self.answer
            headers = {"content-length": str(len(body)), **extra}
            response = h11.Response(status_code=status, headers=list(headers.items()))
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                writer.write(protocol.send(event) or b"")
            await writer.drain()
            if protocol.our_state is not h11.DONE:
                return
            protocol.start_next_cycle()

    async def _received(
        self, protocol: h11.Connection, reader: asyncio.StreamReader
    ) -> Request | None:
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
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                headers = {name.decode(): value.decode() for name, value in head.headers}
                return Request(head.method.decode(), head.target.decode(), headers, body)
            else:
                return None

    def _refusal(self, request: Request) -> tuple[int, bytes, dict[str, str]] | None:
        if (request.method, request.path) != ("POST", "/v1/chat/completions"):
            return 404, b'{"error": {"message": "no such route"}}', {}
        expected = None if self.key is None else f"Bearer {self.key}"
        if request.headers.get("authorization") != expected:
            return 401, b'{"error": {"message": "wrong key"}}', {}
        if request.headers.get("content-type") != "application/json":
            return 415, b'{"error": {"message": "not JSON"}}', {}
        if problem := _problem(request.json):
            return 400, json.dumps({"error": {"message": problem}}).encode(), {}
        return None


OPTIONS = {"temperature": (int, float), "max_tokens": (int,), "seed": (int,), "stop": (list, str)}


def _problem(body: Any) -> str | None:
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        return "model must be a string"
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        return "messages must be a list that is not empty"
    for message in body["messages"]:
        if set(message) != {"role", "content"} or message["role"] not in ("system", "user"):
            return f"bad message {message}"
    for name, value in body.items():
        if name not in ("model", "messages") and not isinstance(value, OPTIONS.get(name, ())):
            return f"bad option {name}={value!r}"
    return None
