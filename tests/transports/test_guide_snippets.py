"""The guide's transport snippets, on real brokers; only addresses and file names differ.

Guide: "Distributed Messaging Architecture", "Transport Abstraction Benefits", "Transport Factory
Pattern".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from praval.core.transport import (
    AMQPTransport,
    MessageTransport,
    MQTTTransport,
    STOMPTransport,
    TransportFactory,
    TransportProtocol,
    transport_connection,
)
from tests.servers import ActiveMQ, Mosquitto, RabbitMQ, Server

SEALED = b"PSV1\x00 sealed"


class Heard:
    """A callback, and the wait for its first message."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self._first = asyncio.Event()

    async def __call__(self, encrypted_message: bytes) -> None:
        self.messages.append(encrypted_message)
        self._first.set()

    async def first(self) -> bytes:
        async with asyncio.timeout(20):
            await self._first.wait()
        return self.messages[0]


def files(server: Server) -> dict[str, str]:
    return {
        "ca_cert": str(server.pki.authority.ca_cert),
        "client_cert": str(server.pki.client.cert),
        "client_key": str(server.pki.client.key),
    }


def amqp(server: Server) -> dict[str, Any]:
    return {
        "url": server.url,
        "exchange_name": "praval.secure.spores",
        **files(server),
        "verify_certs": True,
        "prefetch_count": 100,
    }


def hosted(server: Server, **more: Any) -> dict[str, Any]:
    return {
        "host": server.host,
        "port": server.port,
        "username": server.user,
        "password": server.password,
        **files(server),
        **more,
    }


async def test_amqp(rabbitmq: RabbitMQ) -> None:
    """Publish with priority and time to live; subscribe with a wildcard."""
    secure_message_handler = Heard()
    async with transport_connection(TransportProtocol.AMQP, amqp(rabbitmq)) as transport:
        await transport.subscribe("analytics.models.*", secure_message_handler)
        await transport.publish(
            topic="analytics.models.inference", message=SEALED, priority=8, ttl=3600
        )
        assert await secure_message_handler.first() == SEALED


async def test_mqtt(mosquitto: Mosquitto) -> None:
    """Topics with slashes and ``+``."""
    secure_command_handler = Heard()
    config = hosted(mosquitto, client_id="praval-secure-agent-001", keepalive=60)
    async with transport_connection(TransportProtocol.MQTT, config) as transport:
        await transport.subscribe(
            topic="production/ai/agents/+/commands", callback=secure_command_handler
        )
        await transport.publish(
            topic="production/ai/agents/analysis/commands", message=SEALED, priority=7
        )
        assert await secure_command_handler.first() == SEALED


async def test_stomp(activemq: ActiveMQ) -> None:
    """STOMP over TLS."""
    heard = Heard()
    async with transport_connection(TransportProtocol.STOMP, hosted(activemq)) as transport:
        await transport.subscribe("enterprise.ai.processing.results", heard)
        await transport.publish(
            topic="enterprise.ai.processing.results", message=SEALED, priority=9, ttl=7200
        )
        assert await heard.first() == SEALED


async def test_the_same_code_works_on_each(
    rabbitmq: RabbitMQ, mosquitto: Mosquitto, activemq: ActiveMQ
) -> None:
    """``deploy_secure_agent`` of the guide, three times."""

    async def deploy_secure_agent(
        transport_protocol: TransportProtocol,
        config: dict[str, Any],
        command_handler: Callable[[bytes], Awaitable[None]],
    ) -> None:
        async with transport_connection(transport_protocol, config) as transport:
            await transport.publish("agents.deployment", SEALED)
            await transport.subscribe("agents.commands.*", command_handler)
            await transport.publish("agents.commands.stop", b"stop")
            await first()

    for protocol, config in (
        (TransportProtocol.AMQP, amqp(rabbitmq)),
        (TransportProtocol.MQTT, hosted(mosquitto)),
        (TransportProtocol.STOMP, hosted(activemq)),
    ):
        heard = Heard()
        first = heard.first
        await deploy_secure_agent(protocol, config, heard)
        assert heard.messages == [b"stop"]


def test_the_factory_makes_what_the_protocol_names() -> None:
    """Not connected yet; the classes are importable from ``praval.core.transport``."""
    made: dict[TransportProtocol, type[MessageTransport]] = {
        TransportProtocol.AMQP: AMQPTransport,
        TransportProtocol.MQTT: MQTTTransport,
        TransportProtocol.STOMP: STOMPTransport,
    }
    for protocol, kind in made.items():
        transport = TransportFactory.create_transport(protocol)
        assert type(transport) is kind
        assert transport.health().state == "new"
