"""One connection to a Redis server: commands go out as they come, replies come in that order.

redis-py connects, logs in and decodes (with hiredis, which encodes as well). Its clients are not
used: they wait for one reply before the next command, and reconnect behind one's back.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from hiredis import pack_command
from redis.asyncio import Connection
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as HungUp

from praval.core.tls import cut
from praval.errors import (
    TransportConnectionError,
    TransportError,
    TransportLoginError,
    TransportUnsupportedError,
)
from praval_transports.config import Address, BrokerConfig

GONE = (BusyLoadingError, ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError)
"""Answers of a server that cannot serve now; another one may, or this one later."""
CLUSTERED = (AskError, ClusterCrossSlotError, MovedError)
NO_ROOM = ("OOM", "MISCONF", "NOREPLICAS")
"""How answers begin of a server that reads and does not write: memory, disk, replicas are short."""
ALERT_PATIENCE = 2.0
"""Seconds that a server which refuses our certificate may take to say so."""


class NoRoomError(TransportError):
    """The server takes no messages for now."""


class Socket(Connection):
    """redis-py's connection, over a TLS context and with the socket's options."""

    def __init__(
        self, address: Address, tls: ssl.SSLContext | None, config: BrokerConfig, database: int
    ) -> None:
        super().__init__(
            host=address.host,
            port=address.port,
            db=database,
            username=config.username,
            password=config.password,
            client_name=None if config.client_id is None else quote(config.client_id),
            protocol=2,
            driver_info=None,
            socket_timeout=None,
            socket_connect_timeout=config.connect_timeout,
            socket_keepalive_options=_keepalive(config.keepalive),
        )
        self._tls = tls
        self._config = config
        self.transport: asyncio.WriteTransport | None = None
        """None: no connection was ever made."""

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {"host": self.host, "port": self.port, "ssl": self._tls}

    async def _connect(self) -> None:
        await super()._connect()  # type: ignore[no-untyped-call]
        assert self._writer is not None
        self.transport = self._writer.transport
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, self._config.tcp_nodelay)
        if (size := self._config.buffer_size) is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def write(self, data: bytes) -> None:
        """Send; what waits for its reply is the bound of what is buffered."""
        if self._writer is not None:
            self._writer.write(data)

    async def abort(self) -> None:
        """Disconnect without waiting for the other side, which may be silent."""
        if self.transport is not None:  # the base class forgets it before it is closed
            cut(self.transport)
        await self.disconnect()
        await asyncio.sleep(0)  # the step in which the socket is closed


def _keepalive(seconds: int) -> dict[int, int]:
    idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)
    return {} if idle is None else {idle: seconds}


class Wire:
    """See the module. ``on_lost`` is called when the connection ends otherwise than by close()."""

    def __init__(
        self,
        connection: Socket,
        address: Address,
        on_lost: Callable[[TransportError], None],
    ) -> None:
        self._connection = connection
        self._address = address
        self._on_lost = on_lost
        self._lost: TransportError | None = None
        self._out: list[bytes] = []
        self._replies: deque[asyncio.Future[Any]] = deque()
        self._reading = asyncio.create_task(self._read(), name="praval:redis wire")

    @classmethod
    async def open(
        cls,
        address: Address,
        tls: ssl.SSLContext | None,
        config: BrokerConfig,
        database: int,
        on_lost: Callable[[TransportError], None],
    ) -> Wire:
        """Connect and log in.

        Raises:
            TransportLoginError: user or password are refused.
            TransportConnectionError, OSError: there is no connection.
        """
        connection = Socket(address, tls, config, database)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException as error:
            await connection.abort()
            if not isinstance(error, RedisError):
                raise
            if tls is not None and connection.transport is not None and type(error) is HungUp:
                await _read_alert(address, tls)
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise _translated(error, "the login", address) from error
        return cls(connection, address, on_lost)

    def call(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """Send a command; the future has its reply, or fails with a TransportError.

        What is called in one step of the loop goes out in one piece.

        Raises:
            TransportConnectionError: the connection is lost.
        """
        if self._lost is not None:
            raise self._lost
        loop = asyncio.get_running_loop()
        if not self._out:
            loop.call_soon(self._flush)
        self._out.append(pack_command(command))  # type: ignore[arg-type]  # its stub: 1-tuples
        reply = loop.create_future()
        self._replies.append(reply)
        return reply

    async def close(self) -> None:
        """Disconnect; what still waits for a reply fails."""
        self._lose(TransportConnectionError(f"The connection to {self._address} was closed."))
        self._reading.cancel()
        await self._connection.abort()
        await asyncio.wait([self._reading])

    def _flush(self) -> None:
        out, self._out = self._out, []
        self._connection.write(b"".join(out))

    async def _read(self) -> None:
        """Hand each reply to whoever waits for it."""
        read, replies = self._connection.read_response, self._replies
        try:
            while True:
                try:
                    reply = await read(disable_decoding=True)
                except ResponseError as error:
                    waiting = replies.popleft()
                    if not waiting.done():
                        waiting.set_exception(_translated(error, "a command", self._address))
                else:
                    waiting = replies.popleft()
                    if not waiting.done():  # its caller was cancelled
                        waiting.set_result(reply)
        except Exception as error:  # noqa: BLE001 - whatever it is: nobody reads any more
            lost = _translated(error, "the connection", self._address)
            self._lose(lost)
            self._on_lost(lost)

    def _lose(self, error: TransportError) -> None:
        if self._lost is not None:
            return
        self._lost = error
        for waiting in self._replies:
            if not waiting.done():
                waiting.set_exception(error)
        self._replies.clear()


async def _read_alert(address: Address, tls: ssl.SSLContext) -> None:
    """Raise what a server says that refuses our certificate.

    It says so after the handshake, when the login is on its way; the reset of the connection that
    answers the login can overtake the alert. So shake hands again, and only listen.
    """
    writer = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ALERT_PATIENCE):
            try:
                reader, writer = await asyncio.open_connection(address.host, address.port, ssl=tls)
                await reader.read(1)
            finally:
                if writer is not None:
                    cut(writer.transport)
                    await asyncio.sleep(0)  # the step in which the socket is closed


def _translated(error: Exception, what: str, address: Address) -> TransportError:
    """Return what an answer of the server means."""
    said = (str(error) or type(error).__name__).rstrip(".")
    kind: type[TransportError] = TransportConnectionError
    if isinstance(error, AuthenticationError):
        kind, means = TransportLoginError, f"refused the login: {said}. Check username and password"
    elif isinstance(error, NoPermissionError):
        kind, means = TransportLoginError, f"refused {what}: {said}. In its ACL the user needs: "
        means += "~<prefix>:* +@all -@dangerous"
    elif isinstance(error, GONE):
        means = f"cannot serve now: {said}"
    elif not isinstance(error, ResponseError):
        means = f"hung up: {said}"
    elif isinstance(error, CLUSTERED):
        kind, means = TransportUnsupportedError, f"is a node of a Redis Cluster ({said}). Use a "
        means += "single server, which may have replicas"
    elif isinstance(error, OutOfMemoryError) or said.startswith(NO_ROOM):
        kind, means = NoRoomError, f"takes no messages for now: {said}"
    else:
        kind, means = TransportError, f"refused {what}: {said}"
    return kind(f"{address} {means}.")
