"""The few words of the protocols that it takes to log in."""

from __future__ import annotations

import ssl
from collections.abc import Callable


def receive(connection: ssl.SSLSocket, enough: Callable[[bytes], bool]) -> bytes:
    """Read until `enough(what came)`; raise `ConnectionError` if the peer closes before."""
    data = b""
    while not enough(data):
        more = connection.recv(4096)
        if not more:
            raise ConnectionError(f"the server closed the connection after {data!r}")
        data += more
    return data


def stomp_login(connection: ssl.SSLSocket, user: str, password: str) -> None:
    """Log in by STOMP; raise `ConnectionError` if that is refused."""
    frame = f"CONNECT\naccept-version:1.2\nhost:/\nlogin:{user}\npasscode:{password}\n\n\0"
    connection.sendall(frame.encode())
    answer = receive(connection, lambda data: b"\0" in data)
    if not answer.startswith(b"CONNECTED"):
        raise ConnectionError(f"refused the login: {answer!r}")


def amqp_login(connection: ssl.SSLSocket, mechanism: str, response: str) -> None:
    """Answer Connection.Start with Start-Ok; raise `ConnectionError` unless Tune comes."""
    connection.sendall(b"AMQP\0\0\x09\x01")
    _method(connection, 10)
    # without this capability a refused login is answered by silence
    able = _short("authentication_failure_close") + b"t\x01"
    properties = _short("capabilities") + b"F" + _long(able)
    payload = b"\0\x0a\0\x0b" + _long(properties) + _short(mechanism)
    payload += _long(response.encode()) + _short("en_US")
    connection.sendall(b"\x01\0\0" + _long(payload) + b"\xce")
    _method(connection, 30)


def _method(connection: ssl.SSLSocket, expected: int) -> None:
    """Read one frame; raise unless it is that method of the class Connection."""
    head = receive(connection, lambda data: len(data) >= 7)
    size = int.from_bytes(head[3:7], "big") + 8
    frame = head + receive(connection, lambda data: len(head) + len(data) >= size)
    if frame[7:11] != bytes([0, 10, 0, expected]):
        raise ConnectionRefusedError(f"refused the login: {frame[11:]!r}")


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _long(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data
