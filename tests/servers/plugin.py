"""The pytest fixtures: shared servers for the session, and fresh ones for tests that kill them.

The first test that needs a server starts, side by side, all that the collected tests name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import pytest

from tests.servers import PKI, ActiveMQ, Mosquitto, PostgreSQL, RabbitMQ, Redis, Server, shared_pki

S = TypeVar("S", bound=Server)

SHARED: dict[str, type[Server]] = {
    "rabbitmq": RabbitMQ,
    "activemq": ActiveMQ,
    "postgres": PostgreSQL,
    "mosquitto": Mosquitto,
    "redis_server": Redis,
}


class SharedServers:
    """The servers of one session by fixture name, each started once."""

    def __init__(self, expected: list[str]) -> None:
        self._expected = expected
        self._pool = ThreadPoolExecutor(len(SHARED), thread_name_prefix="shared-server")
        self._started: dict[str, Future[Server]] = {}

    def get(self, name: str) -> Server:
        """Return the server; the first call starts all that the session will ask for."""
        for each in dict.fromkeys((*self._expected, name)):
            if each not in self._started:
                self._started[each] = self._pool.submit(_start, SHARED[each])
        return self._started[name].result()

    def close(self) -> None:
        self._pool.shutdown()
        for started in self._started.values():
            if started.exception() is None:
                started.result().close()


def _start(kind: type[Server]) -> Server:
    server = kind()
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    return server


@pytest.fixture(scope="session")
def _shared_servers(request: pytest.FixtureRequest) -> Iterator[SharedServers]:
    wanted = {name for item in request.session.items for name in _named(item)}
    servers = SharedServers([name for name in SHARED if name in wanted])
    yield servers
    servers.close()


def _named(item: pytest.Item) -> Iterator[object]:
    """Yield what a test may need: its fixtures, and what it is parametrised with."""
    yield from getattr(item, "fixturenames", ())
    if (callspec := getattr(item, "callspec", None)) is not None:
        yield from (value for value in callspec.params.values() if isinstance(value, str))


def _shared(name: str, kind: type[S]) -> Callable[[SharedServers], S]:
    @pytest.fixture(scope="session", name=name)
    def fixture(_shared_servers: SharedServers) -> S:
        server = _shared_servers.get(name)
        assert isinstance(server, kind)
        return server

    return fixture


rabbitmq = _shared("rabbitmq", RabbitMQ)
mosquitto = _shared("mosquitto", Mosquitto)
activemq = _shared("activemq", ActiveMQ)
redis_server = _shared("redis_server", Redis)
postgres = _shared("postgres", PostgreSQL)


@pytest.fixture(scope="session")
def pki() -> PKI:
    """The certificates that all servers share."""
    return shared_pki()


class FreshServer(Protocol):
    """The type of the fixture `fresh_server`."""

    def __call__(self, kind: type[S], *, durable: bool = False) -> S: ...


@pytest.fixture
def fresh_server(pki: PKI) -> Iterator[FreshServer]:  # made before the test's loop runs
    """Return a function that starts a server of its own: `fresh_server(RabbitMQ, durable=True)`.

    It is killed and its data deleted after the test.
    """
    servers: list[Server] = []

    def start(kind: type[S], *, durable: bool = False) -> S:
        server = kind(durable=durable, pki=pki)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.close()
