"""Ending over a server that has fallen silent: soon, without remains, and nothing is lost.

The server's process is stopped, or the network swallows what is sent; both come back later. The
time-outs are the defaults.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Any

import pytest

from praval import Reef, Spore, agent
from praval.core.transport import Delivery, MessageTransport
from praval.errors import TransportError
from praval.testing.transports import Network, Proxy
from tests.core.hosts import until
from tests.transports.harnesses import HARNESSES, Mortals, ServerHarness

SOON = 10.0
"""Seconds that ending may take: a few for what is polite, and a machine that is busy."""

_numbers = count()


@pytest.fixture(scope="module")
def mortals() -> Iterator[Mortals]:
    mortals = Mortals()
    yield mortals
    mortals.close()


@pytest.fixture(params=HARNESSES)
def harness(request: pytest.FixtureRequest, mortals: Mortals) -> ServerHarness:
    kind = HARNESSES[request.param]
    return kind(mortals.get(kind.server_type), lambda: mortals.get(kind.server_type))


class StoppedServer(Network):
    """A network in order, before a server that is stopped with SIGSTOP."""

    def __init__(self, harness: ServerHarness) -> None:
        self.changes = {}
        self._server = harness.server

    async def __aenter__(self) -> StoppedServer:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.unpause()

    async def cut(self) -> None:
        raise NotImplementedError

    async def refuse(self) -> None:
        raise NotImplementedError

    async def stall(self) -> None:
        self._server.pause()

    async def resume(self) -> None:
        self._server.unpause()


@pytest.fixture(params=["stopped", "swallowing"])
def way(
    request: pytest.FixtureRequest, harness: ServerHarness
) -> AbstractAsyncContextManager[Network]:
    """How the server falls silent."""
    return StoppedServer(harness) if request.param == "stopped" else harness.network()


async def soon(work: Coroutine[Any, Any, Any]) -> None:
    """Await what ends, or begins to end, over the silent server."""
    clock = asyncio.get_running_loop().time
    began = clock()
    await work
    print(f"took {clock() - began:.1f} s")
    assert clock() - began < SOON


def running() -> set[asyncio.Task[Any]]:
    """All tasks but those of the network that is played here."""
    coroutines = {task: task.get_coro() for task in asyncio.all_tasks()}
    return {
        task
        for task, each in coroutines.items()
        if inspect.getfile(Proxy) != each.cr_code.co_filename
    }


@asynccontextmanager
async def nothing_left_running() -> AsyncIterator[None]:
    before = running()
    yield
    await asyncio.sleep(0)  # done callbacks
    assert running() <= before


class Client:
    """A transport, and a subscription of a group whose third message waits for ``gate``."""

    def __init__(self, harness: ServerHarness) -> None:
        number = next(_numbers)
        self.topic, self.group = f"work{number}", f"team{number}"
        self._harness = harness
        self._client_id = f"worker{number}"
        self.gate = asyncio.Event()
        self.begun: list[bytes] = []
        self.ended: list[bytes] = []

    async def open(self, **changes: Any) -> MessageTransport:
        transport = self._harness.transport()
        await transport.initialize(
            {**self._harness.config(), "client_id": self._client_id, **changes}
        )
        return transport

    async def work(self, message: Delivery) -> None:
        self.begun.append(bytes(message))
        if len(self.begun) == 3:
            await self.gate.wait()
        self.ended.append(bytes(message))

    async def fill(self, transport: MessageTransport) -> Any:
        """Subscribe, and come to where two are done, one is at work, and three wait."""
        handle = await transport.subscribe(self.topic, self.work, group=self.group)
        for number in range(6):
            await transport.publish(self.topic, b"%d" % number)
        await until(
            lambda: transport.health().received == 6 and len(self.begun) == 3, "three have begun"
        )
        return handle

    async def has_lost_nothing(self) -> None:
        """What was not handled comes to whoever takes the group's work on."""
        again: list[bytes] = []
        transport = await self.open()
        try:
            await transport.subscribe(self.topic, again.append, group=self.group)
            await until(lambda: {*self.ended, *again} == {b"%d" % n for n in range(6)}, "all came")
            assert self.ended == [b"0", b"1", b"2"]
        finally:
            await transport.close()


async def test_closing_is_soon_and_loses_nothing(
    harness: ServerHarness, way: AbstractAsyncContextManager[Network]
) -> None:
    """The callback that runs may finish; what waits comes again, and so may what was finished."""
    client = Client(harness)
    async with way as network:
        async with nothing_left_running():
            transport = await client.open(**network.changes)
            await transport.subscribe(f"{client.topic}.other", print)
            await client.fill(transport)
            await network.stall()
            closing = asyncio.create_task(soon(transport.close()))
            await until(lambda: transport.health().state == "closing", "it closes")
            client.gate.set()
            await closing
            assert transport.health().state == "closed"
        await network.resume()
        await client.has_lost_nothing()


async def test_closing_ends_what_is_being_published(
    harness: ServerHarness, way: AbstractAsyncContextManager[Network]
) -> None:
    """Its publisher is told; without subscriptions there is nothing to be polite about."""
    client = Client(harness)
    async with way as network, nothing_left_running():
        transport = await client.open(**network.changes)
        await transport.publish(client.topic, b"heard")
        await network.stall()
        publishing = asyncio.create_task(transport.publish(client.topic, b"into the void"))
        await asyncio.sleep(0)
        await soon(transport.close())
        with pytest.raises(TransportError):
            await publishing


async def test_unsubscribing_is_soon_and_loses_nothing(
    harness: ServerHarness, way: AbstractAsyncContextManager[Network]
) -> None:
    """The other subscriptions of the transport go on when the server is back."""
    client, heard = Client(harness), list[bytes]()
    async with way as network, nothing_left_running():
        transport = await client.open(**network.changes, reconnect_delay=0.05, connect_timeout=1)
        await transport.subscribe(f"{client.topic}.other", heard.append)
        handle = await client.fill(transport)
        await network.stall()
        ending = asyncio.create_task(soon(transport.unsubscribe(handle)))
        await asyncio.sleep(0)
        client.gate.set()
        await ending
        await network.resume()
        await client.has_lost_nothing()
        other = await client.open(client_id="other")
        while not heard:
            await other.publish(f"{client.topic}.other", b"news")
            await asyncio.sleep(0.05)
        await asyncio.gather(transport.close(), other.close())


async def test_a_reef_closes_over_a_silent_server(harness: ServerHarness) -> None:
    """Its farewell to the other hosts, its agents' and its inbox's to the broker take no longer."""
    namespace = f"reef{next(_numbers)}"
    heard: list[Any] = []

    @agent("worker")
    async def worker(spore: Spore) -> None:
        heard.append(spore.knowledge["n"])

    async with StoppedServer(harness) as network, nothing_left_running():
        config = {"protocol": harness.protocol, **harness.config()}
        reef = await Reef(worker, transport=config, namespace=namespace).__aenter__()
        await reef.send("worker", {"n": 1})
        await until(lambda: heard == [1], "it was handled")
        await reef.wait_idle(30)
        await network.stall()
        await soon(reef.aclose())
