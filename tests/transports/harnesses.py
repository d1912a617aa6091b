"""How the conformance suite reaches the brokers: one harness per column of the matrix."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Self

from praval.core.transport import Capabilities, MessageTransport, TransportFactory
from praval.errors import TransportConnectionError
from praval.testing.transports import Broker, Mutual, Network, TransportHarness
from praval_transports.base import Link
from praval_transports.config import Address
from praval_transports.dispatch import Listening
from praval_transports.local import LocalLink, LocalTransport, _buses
from praval_transports.message import Outgoing
from praval_transports.stomp_servers import SERVERS
from tests.servers import ActiveMQ, Mosquitto, RabbitMQ, Redis, Server

# -- local: a bus without a network, so the network is played --------------------------------

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
        network = _networks.get(address.port)
        if network is None:
            return await super().connect(address, tls)
        await network.pass_on()
        buses = _buses.setdefault(asyncio.get_running_loop(), {})
        link = await super().connect(address, tls)
        return NetworkedLink(network, buses[address.host], self.config) if link else link


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


# -- brokers -----------------------------------------------------------------------------------


class RealBroker(Broker):
    """A server of the tests, durably configured."""

    def __init__(self, harness: ServerHarness) -> None:
        self._harness = harness

    def config(self) -> dict[str, Any]:
        return self._harness.config()

    async def kill(self) -> None:
        await asyncio.to_thread(self._harness.server.kill)

    async def start(self) -> None:
        await asyncio.to_thread(self._harness.server.start)


class ServerHarness(TransportHarness):
    """Reaches a server of `tests.servers`.

    Args:
        server: a running one, which others use too.
        mortal: returns a running, durable one that may be killed. Blocks.
    """

    protocol: ClassVar[str]
    real_broker: ClassVar[type[RealBroker]] = RealBroker
    checks_revocation: ClassVar[bool] = True

    def __init__(self, server: Server, mortal: Callable[[], Server] | None = None) -> None:
        self.server = server
        self._mortal = mortal
        self._transport = TransportFactory.transport_class(self.protocol)

    @property
    def transport(self) -> type[MessageTransport]:
        return self._transport

    def config(self) -> dict[str, Any]:
        return {"url": self.server.url, "ca_cert": str(self.server.pki.ca)}

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[Broker]:
        assert self._mortal is not None
        mortal = await asyncio.to_thread(self._mortal)
        yield self.real_broker(type(self)(mortal))

    def mutual_port(self) -> int:
        """Return the port that demands client certificates. Blocks."""
        port = self.server.mutual_port
        assert isinstance(port, int)
        return port

    @asynccontextmanager
    async def mutual(self) -> AsyncIterator[Mutual]:
        pki = self.server.pki
        shown = (pki.client, pki.foreign_client, pki.expired_client, pki.revoked_client)
        good, foreign, expired, revoked = (
            {"client_cert": str(each.cert), "client_key": str(each.key)} for each in shown
        )
        there = {"host": "localhost", "port": await asyncio.to_thread(self.mutual_port)}
        yield Mutual(there, good, foreign, expired, revoked, self.checks_revocation)


class AMQPHarness(ServerHarness):
    name = "amqp"
    protocol = "amqp"


class MQTTHarness(ServerHarness):
    name = "mqtt"
    protocol = "mqtt"


class ActiveMQHarness(ServerHarness):
    name = "stomp (ActiveMQ)"
    protocol = "stomp"


class RabbitMQStompHarness(ServerHarness):
    name = "stomp (RabbitMQ)"
    protocol = "stomp"

    @property
    def capabilities(self) -> Capabilities:
        return SERVERS["rabbitmq"].capabilities

    def config(self) -> dict[str, Any]:
        server = self.server
        assert isinstance(server, RabbitMQ)
        return {"url": server.stomp_url, "ca_cert": str(server.pki.ca), "server": "rabbitmq"}

    def mutual_port(self) -> int:
        assert isinstance(self.server, RabbitMQ)
        return self.server.mutual_node().stomp_port


class RedisHarness(ServerHarness):
    name = "redis"
    checks_revocation = False
    protocol = "redis"

    def config(self) -> dict[str, Any]:
        return {**super().config(), "claim_idle": 1.0}


HARNESSES: dict[str, tuple[type[ServerHarness], str, type[Server]]] = {
    "amqp": (AMQPHarness, "rabbitmq", RabbitMQ),
    "mqtt": (MQTTHarness, "mosquitto", Mosquitto),
    "activemq": (ActiveMQHarness, "activemq", ActiveMQ),
    "rabbitmq-stomp": (RabbitMQStompHarness, "rabbitmq", RabbitMQ),
    "redis": (RedisHarness, "redis_server", Redis),
}
"""Name in the tests -> harness, the fixture with its shared server, and the kind of server."""
