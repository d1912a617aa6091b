"""How the conformance suite reaches the local bus. It has no network: that is played here."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

from praval.errors import TransportConnectionError
from praval.testing.transports import Broker, Network, TransportHarness
from praval_transports.config import Address
from praval_transports.dispatch import Listening
from praval_transports.link import Link
from praval_transports.local import LocalLink, LocalTransport, _buses
from praval_transports.message import Outgoing

_networks: dict[int, LocalNetwork] = {}
_ports = itertools.count(2)


class LocalNetwork(Network):
    """Lies before the bus for the transports whose config has its port."""

    def __init__(self) -> None:
        self.port = next(_ports)
        self.changes = {"host": "default", "port": self.port}
        self.links: set[Link] = set()
        self.refusing = False
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def __aenter__(self) -> Self:
        _networks[self.port] = self
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.cut()
        del _networks[self.port]

    async def cut(self) -> None:
        for link in self.links:
            link.lose(TransportConnectionError("cut"))
        self.links.clear()

    async def refuse(self) -> None:
        self.refusing = True
        await self.cut()

    async def stall(self) -> None:
        self._flowing.clear()

    async def resume(self) -> None:
        self.refusing = False
        self._flowing.set()

    async def pass_on(self, link: Link | None = None) -> None:
        """Wait while it is stalled; raise if the link is lost meanwhile, or cannot be made."""
        if self.refusing and link is None:
            raise ConnectionRefusedError("refused")
        flowing = asyncio.ensure_future(self._flowing.wait())
        try:
            lost = () if link is None else (link.lost,)
            await asyncio.wait([flowing, *lost], return_when=asyncio.FIRST_COMPLETED)
            if link is not None and link.lost.done():
                raise TransportConnectionError(str(link.lost.result()))
        finally:
            flowing.cancel()


class NetworkedLink(LocalLink):
    """A link of the bus that goes over such a network."""

    def __init__(self, network: LocalNetwork, *args: Any) -> None:
        super().__init__(*args)
        self._network = network
        network.links.add(self)

    async def send(self, message: Outgoing) -> bool:
        await self._network.pass_on(self)
        return await super().send(message)

    async def listen(self, listening: Listening) -> None:
        await self._network.pass_on(self)
        await super().listen(listening)

    async def leave(self, listening: Listening, *, drop_group: bool) -> None:
        await self._network.pass_on(self)
        await super().leave(listening, drop_group=drop_group)


class NetworkedLocal(LocalTransport):
    """The local transport, over a network if its port is one's."""

    async def connect(self, address: Address, tls: ssl.SSLContext | None) -> Link:
        link = await super().connect(address, tls)
        network = _networks.get(address.port)
        if network is None:
            return link
        await network.pass_on()
        bus = _buses[asyncio.get_running_loop()][address.host]
        return NetworkedLink(network, bus, self.config)


class LocalBroker(Broker):
    """A bus that dies with what it holds."""

    may_lose = 200
    verdict = "no: lives in the process"

    def __init__(self, network: LocalNetwork) -> None:
        self._network = network

    def config(self) -> dict[str, Any]:
        return {**self._network.changes, "host": "mortal"}

    async def kill(self) -> None:
        await self._network.refuse()
        del _buses[asyncio.get_running_loop()]["mortal"]

    async def start(self) -> None:
        await self._network.resume()


class LocalHarness(TransportHarness):
    name = "local"
    transport = NetworkedLocal
    has_network = False

    def config(self) -> dict[str, Any]:
        return {"password": "l0cal-s3cret"}

    def network(self) -> LocalNetwork:
        return LocalNetwork()

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[Broker]:
        async with LocalNetwork() as network:
            yield LocalBroker(network)
