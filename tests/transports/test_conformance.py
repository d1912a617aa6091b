"""Every case of the conformance suite, on every transport, on a real broker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from praval.testing.transports import CASES, TransportHarness, run_case
from tests.servers import Server
from tests.transports.harnesses import HARNESSES, LocalHarness

Mortal = Callable[[type[Server]], Server]


@pytest.fixture(scope="session")
def mortal() -> Iterator[Mortal]:
    """Return a function that returns a durable server that may be killed: one of each kind."""
    servers: dict[type[Server], Server] = {}
    lock = threading.Lock()

    def get(kind: type[Server]) -> Server:
        with lock:
            if kind not in servers:
                servers[kind] = kind(durable=True)
            if not servers[kind].running:
                servers[kind].start()
            return servers[kind]

    yield get
    for server in servers.values():
        server.close()


@pytest.fixture
def harness(
    request: pytest.FixtureRequest, name: str, server: str | None, mortal: Mortal
) -> TransportHarness:
    """The harness of that name, over the server that all tests share."""
    if server is None:
        return LocalHarness()
    kind, _, spare = HARNESSES[name]
    return kind(request.getfixturevalue(server), lambda: mortal(spare))


# the fixtures of servers are parameters: so all are started side by side
NAMES = {"local": None, **{name: fixture for name, (_, fixture, _) in HARNESSES.items()}}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "server"), NAMES.items(), ids=NAMES)
async def test_transport(harness: TransportHarness, case: str) -> None:
    """The case's sentence holds."""
    result = await run_case(case, harness)
    print(result)
    if result.error is not None:
        raise result.error
