"""A transport of one's own, in the shape of the guide's example, on a real Redis server.

The guide's `RedisTransport` uses aioredis, which has become `redis.asyncio`; see
docs/guide-errata.md. All else is as printed there: three methods, and the TLS context of the base.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any

import pytest
import redis.asyncio

from praval.core.transport import (
    MessageTransport,
    TransportFactory,
    TransportProtocol,
    transport_connection,
)
from praval.errors import ConfigurationError, TransportUnsupportedError, UnknownNameError
from tests.servers import Redis


class TLSConnection(redis.asyncio.Connection):
    """A connection over a context that is there already."""

    def __init__(self, *, tls: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self._tls = tls

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {"host": self.host, "port": self.port, "ssl": self._tls}


class RedisTransport(MessageTransport):
    """Custom Redis-based transport implementation."""

    async def initialize(self, config):  # type: ignore[no-untyped-def]
        pool = redis.asyncio.ConnectionPool.from_url(
            config["redis_url"],
            connection_class=TLSConnection,
            tls=self._create_tls_context(config),
        )
        self.redis_client = redis.asyncio.Redis.from_pool(pool)

    async def publish(self, topic, message, **kwargs):  # type: ignore[no-untyped-def]
        await self.redis_client.publish(f"praval:{topic}", message)

    async def subscribe(self, topic, callback):  # type: ignore[no-untyped-def, override]
        async with self.redis_client.pubsub() as channel:
            await channel.subscribe(f"praval:{topic}")
            async for message in channel.listen():
                if message["type"] == "message":
                    await callback(message["data"])


@pytest.fixture(autouse=True)
def _registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test has registered."""
    monkeypatch.setattr(TransportFactory, "_registered", {})


async def test_the_guides_custom_transport_works(redis_server: Redis) -> None:
    """Registered for a built-in protocol it replaces that, and carries messages over TLS."""
    TransportFactory.register_transport(TransportProtocol.REDIS, RedisTransport)
    config = {
        # redis:// as the connection class brings the TLS
        "redis_url": redis_server.url.replace("rediss://", "redis://"),
        "ca_cert": str(redis_server.pki.ca),
    }
    received: asyncio.Queue[bytes] = asyncio.Queue()
    async with transport_connection(TransportProtocol.REDIS, config) as transport:
        assert type(transport) is RedisTransport
        listening = asyncio.create_task(transport.subscribe("analytics.models", received.put))
        async with asyncio.timeout(20):
            while received.empty():  # it is heard once the server knows the subscription
                await transport.publish("analytics.models", b"\x00sealed", priority=8, ttl=3600)
                await asyncio.sleep(0.01)
        assert await received.get() == b"\x00sealed"
        listening.cancel()
        await asyncio.wait([listening])
        assert transport.health().state == "connected"
        with pytest.raises(TransportUnsupportedError, match="unsubscribe"):
            await transport.unsubscribe("analytics.models")
        with pytest.raises(TransportUnsupportedError, match="which groups"):
            await transport.groups()
        with pytest.raises(TransportUnsupportedError, match="cannot drop"):
            await transport.drop_group("analytics")
        await transport.redis_client.aclose()


async def test_its_tls_context_checks_the_server(redis_server: Redis) -> None:
    """`_create_tls_context` honours the guide's keys, and ignores the transport's own."""
    transport = RedisTransport()
    config = {
        "redis_url": f"redis://localhost:{redis_server.port}",
        "ca_cert": str(redis_server.pki.foreign_ca),
        "ssl_version": "TLSv1.3",
    }
    await transport.initialize(config)
    with pytest.raises(redis.ConnectionError) as caught:
        await transport.publish("news", b"x")
    assert isinstance(caught.value.__context__, ssl.SSLCertVerificationError)
    await transport.redis_client.aclose()
    with pytest.raises(ConfigurationError, match="client_cert"):
        await transport.initialize({**config, "require_client_cert": True})


def test_a_name_of_ones_own_can_be_registered() -> None:
    """A protocol need not be one of those that come with Praval."""
    TransportFactory.register_transport("carrier-pigeon", RedisTransport)
    assert isinstance(TransportFactory.create_transport("carrier-pigeon"), RedisTransport)


def test_an_unknown_protocol_is_refused_with_the_near_name() -> None:
    with pytest.raises(UnknownNameError, match='Did you mean "redis"'):
        TransportFactory.create_transport("redsi")


@pytest.mark.parametrize("what", [object, RedisTransport(), "redis", None])
def test_only_a_transport_class_can_be_registered(what: Any) -> None:
    with pytest.raises(ConfigurationError, match="not a subclass of MessageTransport"):
        TransportFactory.register_transport("mine", what)
