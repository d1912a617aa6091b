"""One STOMP 1.2 connection on the event loop: stomp.py's protocol and frames over asyncio.

stomp.py makes and reads every frame here, but its own connection is not used. That runs two threads
per connection, takes no ``SSLContext`` (so no revocation list), and in version 9.0.0 does not
notice that a TLS peer hung up: its thread spins, and what is sent afterwards vanishes without an
error. It is built to have its transport replaced, as its own WebSocket adapter does.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, cast

from praval.core.tls import cut
from praval.errors import TransportConnectionError, TransportError, TransportLoginError
from praval_transports.config import Address
from praval_transports.link import FAREWELL

# the import would look this host's name up in the DNS, which may take seconds
os.environ.setdefault("STOMP_SKIP_HOSTNAME_SCAN", "1")

from stomp.protocol import Protocol12  # type: ignore[import-untyped]
from stomp.utils import (  # type: ignore[import-untyped]
    PREAMBLE_END_RE,
    calculate_heartbeats,
    convert_frame,
    parse_frame,
)

_LENGTH = re.compile(rb"^content-length:\s*(\d+)", re.MULTILINE)

LOGIN = "CONNECTED"
"""What the login waits for, in place of a receipt's id."""


class Connection(asyncio.Protocol):
    """Made by :meth:`open`. When it is lost, all that is awaited in it ends with the reason."""

    def __init__(self, address: Address, on_lost: Callable[[Exception], None]) -> None:
        self.frames: Any = Protocol12(self)
        """stomp.py's protocol object: ``ack``, ``nack``, ``send_frame``."""
        self.on_message: Callable[[Any], None] | None = None
        self.current_host_and_port = address  # stomp.py reads both when it logs in
        self.vhost: str | None = None
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._lost: Exception | None = None
        self._gone = asyncio.Event()
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._receipts = count(1)
        self._incoming = bytearray()
        self._needed = 0
        self._outgoing: list[bytes] = []
        self._writable = asyncio.Event()
        self._writable.set()
        self._heard = self._loop.time()
        self._silent = True
        self._beat: asyncio.TimerHandle | None = None

    @classmethod
    async def open(
        cls,
        address: Address,
        tls: ssl.SSLContext | None,
        on_lost: Callable[[Exception], None],
        *,
        login: Mapping[str, str],
        vhost: str | None,
        keepalive: int,
    ) -> Connection:
        """Connect and log in. ``on_lost`` is called when the connection ends later on.

        Raises:
            TransportLoginError: the broker does not let us in.
            OSError, TransportConnectionError: the way to it failed.
        """
        loop = asyncio.get_running_loop()
        connection: Connection
        _, connection = await loop.create_connection(
            lambda: cls(address, on_lost),
            *address,
            ssl=tls,
            server_hostname=None if tls is None else address.host,
        )
        try:
            await connection._log_in(login, vhost, keepalive)
        except BaseException:
            await connection.abort()
            raise
        return connection

    async def request(self, command: str, headers: dict[str, str], body: bytes = b"") -> None:
        """Send a frame; return when the broker's receipt for it is in.

        Raises:
            TransportError: the broker refuses this one.
            TransportConnectionError: the connection is lost.
        """
        await self._writable.wait()
        receipt = headers["receipt"] = str(next(self._receipts))
        if body:  # else it would end at its first NUL
            headers["content-length"] = str(len(body))
        answer = self._expect(receipt)
        self.frames.send_frame(command, headers, body)
        try:
            await answer
        finally:
            self._waiting.pop(receipt, None)

    async def close(self) -> None:
        """Let the broker finish what was sent, then hang up."""
        try:
            async with asyncio.timeout(FAREWELL):
                await self.request("DISCONNECT", {})
        except (TransportError, TimeoutError):
            pass  # it is as gone as it would be after the answer
        finally:
            await self.abort()

    async def abort(self) -> None:
        """Hang up at once."""
        self._lost = self._lost or TransportConnectionError("The connection was closed here.")
        if self._transport is not None:
            cut(self._transport)
            await self._gone.wait()

    def set_socket(self, *, nodelay: bool, buffer_size: int | None) -> None:
        """Set what the configuration says about the socket."""
        assert self._transport is not None
        own = self._transport.get_extra_info("socket")
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, nodelay)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF) if buffer_size is not None else ():
            own.setsockopt(socket.SOL_SOCKET, option, buffer_size)

    # -- what stomp.py's protocol object asks of its transport ---------------------------------

    def set_listener(self, name: str, listener: object) -> None:
        """Take note of nothing: frames go where :meth:`_take` sends them."""

    def transmit(self, frame: Any) -> None:
        """Send a frame, together with all others of this step of the loop."""
        if self._lost is not None:
            raise _copy(self._lost)
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing += convert_frame(frame)

    # -- what asyncio calls --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        logging_in = LOGIN in self._waiting
        known = logging_in or self._lost is not None
        if self._beat is not None:
            self._beat.cancel()
        if logging_in and isinstance(exc, OSError):
            self._lost = exc  # why TLS failed is explained by who asked
        elif self._lost is None:
            self._lost = TransportConnectionError(f"{self._name} {self._reason(exc)}.")
        assert self._lost is not None
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(_copy(self._lost))
        self._writable.set()
        self._gone.set()
        if not known:
            self._on_lost(self._lost)

    def _reason(self, exc: Exception | None) -> str:
        if LOGIN not in self._waiting:
            return f"broke the connection: {exc}" if exc else "hung up"
        return (
            "hung up before it answered the login. If it demands a client certificate, it may have "
            "refused ours, or that there is none"
        )

    def pause_writing(self) -> None:
        """See :class:`asyncio.Protocol`."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See :class:`asyncio.Protocol`."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        self._heard = self._loop.time()
        self._incoming += data
        if len(self._incoming) >= self._needed:
            self._read_frames()

    # -- inside --------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return str(self.current_host_and_port)

    def _read_frames(self) -> None:
        buffer, start, self._needed = self._incoming, 0, 0
        while True:
            while start < len(buffer) and buffer[start] in b"\r\n":
                start += 1  # between frames: a sign of life
            if (head := PREAMBLE_END_RE.search(buffer, start)) is None:
                break
            if length := _LENGTH.search(buffer, start, head.start()):
                end = head.end() + int(length[1])
                if end >= len(buffer):
                    self._needed = end + 1 - start
                    break
            elif (end := buffer.find(0, head.end())) < 0:
                break
            self._take(parse_frame(bytes(buffer[start:end])))
            start = end + 1
        del buffer[:start]

    def _take(self, frame: Any) -> None:
        if frame.cmd == "MESSAGE":
            if self.on_message is not None:
                self.on_message(frame)
        elif frame.cmd == "RECEIPT":
            self._answer(frame.headers.get("receipt-id", ""), frame)
        elif frame.cmd == "CONNECTED":
            self._answer(LOGIN, frame)
        elif frame.cmd == "ERROR":
            self._fail(frame)

    def _fail(self, frame: Any) -> None:
        """Let the request fail that an ERROR is about; the connection, if that is not known."""
        about = frame.headers.get("receipt-id")
        if about is None and len(self._waiting) == 1:
            about = next(iter(self._waiting))
        said = _said(frame)
        if about == LOGIN:
            why = f"{self._name} refuses the login: {said}. Check the username and the password."
            self._answer(LOGIN, TransportLoginError(why))
        elif about in self._waiting:
            self._answer(about, TransportError(f"{self._name} refuses that: {said}."))
        else:
            self._lose(f"{self._name} reports an error: {said}.")

    def _lose(self, why: str) -> None:
        if self._lost is None:
            assert self._transport is not None
            self._lost = TransportConnectionError(why)
            cut(self._transport)
            self._on_lost(self._lost)

    def _expect(self, what: str) -> asyncio.Future[Any]:
        if self._lost is not None:
            raise _copy(self._lost)
        answer = self._waiting[what] = self._loop.create_future()
        return answer

    def _answer(self, what: str, result: object) -> None:
        answer = self._waiting.pop(what, None)
        if answer is None or answer.done():
            return
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    async def _log_in(self, login: Mapping[str, str], vhost: str | None, keepalive: int) -> None:
        self.vhost = vhost
        every = keepalive * 1000
        # stomp.py leaves CONNECT as it is, brokers read a backslash in it as in any other frame
        headers = {key: value.replace("\\", "\\\\") for key, value in login.items()}
        answer = self._expect(LOGIN)
        self.frames.connect(
            headers={**headers, "heart-beat": f"{every},{every}"}, with_connect_command=True
        )
        frame = await answer
        if frame.headers.get("version") != "1.2":
            raise TransportConnectionError(f"{self._name} does not speak STOMP 1.2.")
        theirs = frame.headers.get("heart-beat", "0,0").replace(" ", "").split(",")
        send, expect = calculate_heartbeats(theirs, (every, every))
        # twice as often as promised and half as strict: clocks and networks are not exact
        if send or expect:
            self._keep_alive(min(filter(None, (send, expect))) / 2000, expect / 500)

    def _keep_alive(self, every: float, patience: float) -> None:
        """Send a sign of life if nothing else was sent; hang up when nothing comes in."""
        assert self._transport is not None
        if patience and self._loop.time() - self._heard > patience:
            return self._lose(f"{self._name} gave no sign of life for {patience:.1f} s.")
        if self._silent:
            self._transport.write(b"\n")
        self._silent = True
        self._beat = self._loop.call_later(every, self._keep_alive, every, patience)

    def _flush(self) -> None:
        assert self._transport is not None
        outgoing, self._outgoing = self._outgoing, []
        self._silent = False
        self._transport.write(b"".join(outgoing))


def _copy(error: Exception) -> Exception:
    """Return the same error anew: each waiter raises its own, with its own traceback."""
    if isinstance(error, TransportError):
        return type(error)(*error.args)
    return error


def _said(frame: Any) -> str:
    """Return what an ERROR frame says, without the stack trace that some brokers append."""
    message = str(frame.headers.get("message", ""))
    detail = (frame.body or b"").decode(errors="replace").strip().partition("\n")[0]
    said = f"{message}: {detail}" if detail and message not in detail else message
    return said[:300].rstrip(". ")
