"""How the conformance suite reaches the brokers: one harness per column of the matrix."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from praval.core.transport import Capabilities, TransportFactory
from praval.testing.transports import Broker, Mutual, TransportHarness
from praval_transports.stomp_servers import SERVERS
from tests.servers import ActiveMQ, Mosquitto, RabbitMQ, Redis, Server


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


class MosquittoBroker(RealBroker):
    """It saves after each change, but a moment after it has confirmed."""

    may_lose = 20
    verdict = "no: the last second may be lost"


class ServerHarness(TransportHarness):
    """Reaches a server of `tests.servers`.

    Args:
        server: a running one, which others use too.
        mortal: returns a running, durable one that may be killed. Blocks.
    """

    protocol: ClassVar[str]
    server_type: ClassVar[type[Server]]
    fixture: ClassVar[str]
    """The one with the shared server."""
    mortal_type: ClassVar[type[RealBroker]] = RealBroker
    checks_revocation: ClassVar[bool] = True

    def __init__(self, server: Server, mortal: Callable[[], Server]) -> None:
        self.server = server
        self._mortal = mortal
        self.transport = TransportFactory.transport_class(self.protocol)

    def config(self) -> dict[str, Any]:
        return {"url": self.server.url, "ca_cert": str(self.server.pki.ca)}

    @asynccontextmanager
    async def broker(self) -> AsyncIterator[Broker]:
        server = await asyncio.to_thread(self._mortal)
        yield self.mortal_type(type(self)(server, self._mortal))

    def mutual_port(self) -> int:
        """Return the port that demands client certificates. Blocks."""
        port: int = self.server.mutual_port  # type: ignore[attr-defined]  # all four have it
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
    name = "RabbitMQ, AMQP"
    protocol = "amqp"
    server_type, fixture = RabbitMQ, "rabbitmq"


class MQTTHarness(ServerHarness):
    name = "Mosquitto, MQTT"
    protocol = "mqtt"
    server_type, fixture = Mosquitto, "mosquitto"
    mortal_type = MosquittoBroker


class ActiveMQHarness(ServerHarness):
    name = "ActiveMQ, STOMP"
    protocol = "stomp"
    server_type, fixture = ActiveMQ, "activemq"


class RabbitMQStompHarness(ServerHarness):
    name = "RabbitMQ, STOMP"
    protocol = "stomp"
    server_type, fixture = RabbitMQ, "rabbitmq"

    @property
    def capabilities(self) -> Capabilities:
        return SERVERS["rabbitmq"].capabilities

    def config(self) -> dict[str, Any]:
        url: str = self.server.stomp_url  # type: ignore[attr-defined]  # it is a RabbitMQ
        return {**super().config(), "url": url, "server": "rabbitmq"}

    def mutual_port(self) -> int:
        port: int = self.server.mutual_node().stomp_port  # type: ignore[attr-defined]
        return port


class RedisHarness(ServerHarness):
    name = "Redis"
    protocol = "redis"
    server_type, fixture = Redis, "redis_server"
    checks_revocation = False

    def config(self) -> dict[str, Any]:
        return {**super().config(), "claim_idle": 1.0}


HARNESSES: dict[str, type[ServerHarness]] = {
    "amqp": AMQPHarness,
    "mqtt": MQTTHarness,
    "activemq": ActiveMQHarness,
    "rabbitmq-stomp": RabbitMQStompHarness,
    "redis": RedisHarness,
}
"""By their name in the ids of the tests."""


class Mortals:
    """Durable servers that may be killed: one of each kind, started when it is asked for."""

    def __init__(self) -> None:
        self._servers: dict[type[Server], Server] = {}

    def get(self, kind: type[Server]) -> Server:
        """Return a running one. Blocks."""
        if kind not in self._servers:
            self._servers[kind] = kind(durable=True)
        server = self._servers[kind]
        if not server.running:
            server.start()
        return server

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
