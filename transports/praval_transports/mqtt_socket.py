"""A connected, non-blocking socket for libraries that bring a loop of their own.

Such a library (paho here) would block while it connects and shakes hands, could not be cancelled,
and would leave the socket of a failed handshake to the garbage collector.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

from praval_transports.config import Address, BrokerConfig


async def open_socket(
    address: Address, tls: ssl.SSLContext | None, config: BrokerConfig
) -> socket.socket:
    """Connect, and shake hands; errors come out as they are."""
    loop = asyncio.get_running_loop()
    error: OSError | None = None
    for family, kind, protocol, _, where in await loop.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM
    ):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, config.tcp_nodelay)
            if config.buffer_size is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.buffer_size)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, config.buffer_size)
            await loop.sock_connect(sock, where)
        except OSError as refusal:
            sock.close()
            error = error or refusal
        except BaseException:
            sock.close()
            raise
        else:
            return sock if tls is None else await _shake_hands(sock, tls, address.host)
    assert error is not None  # getaddrinfo raises rather than to return nothing
    raise error


async def _shake_hands(sock: socket.socket, tls: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    loop = asyncio.get_running_loop()
    secured = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    try:
        while True:
            try:
                secured.do_handshake()
                return secured
            except ssl.SSLWantReadError:
                await _ready(secured, loop.add_reader, loop.remove_reader)
            except ssl.SSLWantWriteError:
                await _ready(secured, loop.add_writer, loop.remove_writer)
    except BaseException:
        secured.close()
        raise


async def _ready(
    sock: socket.socket, add: Callable[..., Any], remove: Callable[[int], object]
) -> None:
    ready = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add(sock.fileno(), wake)
    try:
        await ready
    finally:
        remove(sock.fileno())
