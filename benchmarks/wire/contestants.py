"""How each contestant publishes and consumes N messages of 1 KiB; one class per client library.

Every one confirms each publication, keeps at most ``WINDOW`` unconfirmed, and acknowledges each
message after its handler.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

WINDOW = 100
BODY = bytes(range(256)) * 4


class Contestant(Protocol):
    """A client library."""

    async def consume(self, config: dict[str, Any], count: int, ready: Callable[[], None]) -> None:
        """Subscribe, say that it is ready, return when ``count`` messages are acknowledged."""

    async def produce(self, config: dict[str, Any], count: int, begin: Callable[[], None]) -> None:
        """Connect, say that it begins, return when ``count`` publications are confirmed."""


async def in_window(count: int, publish: Callable[[], Awaitable[object]]) -> None:
    """Call ``publish`` ``count`` times, ``WINDOW`` at once."""
    left = iter(range(count))

    async def lane() -> None:
        for _ in left:
            await publish()

    await asyncio.gather(*(lane() for _ in range(WINDOW)))


class Countdown:
    """An event that is set when it was counted down."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._done = asyncio.Event()

    def one(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done.set()

    async def wait(self) -> None:
        await self._done.wait()


def tls(config: dict[str, Any]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=config["ca_cert"])


class PravalTransport:
    """Praval's transport, used directly."""

    async def consume(self, config: dict[str, Any], count: int, ready: Callable[[], None]) -> None:
        from praval.core.transport import transport_connection

        done = Countdown(count)

        async def handle(message: bytes) -> None:
            done.one()

        async with transport_connection(config["protocol"], _praval(config)) as transport:
            await transport.subscribe("bench", handle, group="bench", concurrency=WINDOW)
            ready()
            await done.wait()

    async def produce(self, config: dict[str, Any], count: int, begin: Callable[[], None]) -> None:
        from praval.core.transport import transport_connection

        async with transport_connection(config["protocol"], _praval(config)) as transport:
            begin()
            await in_window(count, lambda: transport.publish("bench", BODY))


class PravalReef:
    """Two Reefs: spores, ledger, outbox and deduplication on top of the transport."""

    def options(self, name: str) -> dict[str, Any]:
        """Further arguments of the Reef in which that name speaks."""
        return {}

    async def consume(self, config: dict[str, Any], count: int, ready: Callable[[], None]) -> None:
        from praval import Reef, Spore, agent

        done = Countdown(count)

        @agent("bench", concurrent=WINDOW)
        async def handle(spore: Spore) -> None:
            done.one()

        config = {"protocol": config["protocol"], **_praval(config)}
        async with Reef(handle, transport=config, namespace="bench", **self.options("bench")):
            ready()
            await done.wait()

    async def produce(self, config: dict[str, Any], count: int, begin: Callable[[], None]) -> None:
        from praval import Reef

        config = {"protocol": config["protocol"], **_praval(config)}
        knowledge = {"type": "bench", "text": "x" * 900}
        async with Reef(transport=config, namespace="bench", **self.options("@bench")) as reef:
            begin()
            await in_window(count, lambda: reef.send("bench", knowledge))


class PravalReceipted(PravalReef):
    """Two Reefs that want receipts, as sealed ones do: what those are compared with."""

    def options(self, name: str) -> dict[str, Any]:
        from praval.settings import Settings, merge

        return {"settings": merge(Settings(), {"reef_config": {"receipt": "receiver"}})}


class PravalSealed(PravalReef):
    """Two Reefs that seal what they send, each with keys of its own in memory."""

    def options(self, name: str) -> dict[str, Any]:
        return {"security": keyring(name)}


def keyring(name: str) -> Any:
    """Make keys of a name under a root that all contestants know."""
    import os
    import time

    from praval.core.certificates import certify
    from praval.core.key_types import SigningKey
    from praval.core.keys import Keyring

    now, root, identity = int(time.time() * 1000), SigningKey(bytes(32)), SigningKey(os.urandom(32))
    made = Keyring([root.verify_key])
    chain = certify(
        name, identity.verify_key, root, not_before=now, expires=now + 86_400_000 * 30, serial=now
    )
    made.add(name, now=now, identity=identity, certificates=(chain,))
    return made


def _praval(config: dict[str, Any]) -> dict[str, Any]:
    return {"url": config["url"], "ca_cert": config["ca_cert"], "prefetch_count": WINDOW}


class AioPika:
    """aio-pika with a plain connection, publisher confirms, manual acknowledgement."""

    async def consume(self, config: dict[str, Any], count: int, ready: Callable[[], None]) -> None:
        import aio_pika

        connection = await aio_pika.connect(config["url"], ssl_context=tls(config))
        channel = await connection.channel()
        await channel.set_qos(WINDOW)
        exchange = await channel.declare_exchange("bench", "topic", durable=True)
        queue = await channel.declare_queue("bench-raw", durable=True)
        await queue.bind(exchange, "bench")
        done = Countdown(count)

        async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            await message.ack()
            done.one()

        await queue.consume(handle)
        ready()
        await done.wait()
        await connection.close()

    async def produce(self, config: dict[str, Any], count: int, begin: Callable[[], None]) -> None:
        import aio_pika

        connection = await aio_pika.connect(config["url"], ssl_context=tls(config))
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.declare_exchange("bench", "topic", durable=True)
        mode = aio_pika.DeliveryMode.PERSISTENT
        begin()
        await in_window(
            count, lambda: exchange.publish(aio_pika.Message(BODY, delivery_mode=mode), "bench")
        )
        await connection.close()


class FastStreamRabbit:
    """FastStream's RabbitBroker."""

    def _broker(self, config: dict[str, Any]) -> Any:
        from faststream.rabbit import Channel, RabbitBroker
        from faststream.security import BaseSecurity

        return RabbitBroker(
            config["url"],
            security=BaseSecurity(ssl_context=tls(config)),
            default_channel=Channel(prefetch_count=WINDOW),
            logger=None,
        )

    async def consume(self, config: dict[str, Any], count: int, ready: Callable[[], None]) -> None:
        from faststream.rabbit import RabbitQueue

        done = Countdown(count)
        broker = self._broker(config)

        @broker.subscriber(RabbitQueue("bench-faststream", durable=True))  # type: ignore[untyped-decorator]
        async def handle(body: bytes) -> None:
            done.one()

        async with broker:
            await broker.start()
            ready()
            await done.wait()

    async def produce(self, config: dict[str, Any], count: int, begin: Callable[[], None]) -> None:
        async with self._broker(config) as broker:
            begin()
            await in_window(
                count, lambda: broker.publish(BODY, queue="bench-faststream", persist=True)
            )


class AioMqtt:
    """aiomqtt at QoS 1 (it acknowledges when a message is queued, before it is handled)."""

    def _client(self, config: dict[str, Any], name: str) -> Any:
        import aiomqtt

        return aiomqtt.Client(
            config["host"],
            config["port"],
            username=config["user"],
            password=config["password"],
            identifier=name,
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=tls(config),
            max_inflight_messages=WINDOW,
            max_queued_outgoing_messages=0,
        )

    async def consume(self, config: dict[str, Any], count: int, ready: Callable[[], None]) -> None:
        async with self._client(config, "bench-in") as client:
            await client.subscribe("bench", qos=1)
            ready()
            async for _ in client.messages:
                count -= 1
                if not count:
                    return

    async def produce(self, config: dict[str, Any], count: int, begin: Callable[[], None]) -> None:
        async with self._client(config, "bench-out") as client:
            client.pending_calls_threshold = 10 * WINDOW  # else it warns of what is meant here
            begin()
            await in_window(count, lambda: client.publish("bench", BODY, qos=1))


class StompPy:
    """stomp.py: a thread that reads, receipts, client-individual acknowledgement."""

    async def consume(self, config: dict[str, Any], count: int, ready: Callable[[], None]) -> None:
        await asyncio.to_thread(self._consume, config, count, ready)

    async def produce(self, config: dict[str, Any], count: int, begin: Callable[[], None]) -> None:
        await asyncio.to_thread(self._produce, config, count, begin)

    def _connect(self, config: dict[str, Any], listener: Any) -> Any:
        import stomp

        address = (config["host"], config["port"])
        connection = stomp.Connection12([address], auto_decode=False, heartbeats=(0, 0))
        connection.set_ssl([address], ca_certs=config["ca_cert"])
        connection.set_listener("bench", listener)
        connection.connect(config["user"], config["password"], wait=True)
        return connection

    def _consume(self, config: dict[str, Any], count: int, ready: Callable[[], None]) -> None:
        import stomp

        done = threading.Event()

        class Listener(stomp.ConnectionListener):  # type: ignore[misc]
            left = count

            def on_message(self, frame: Any) -> None:
                connection.ack(frame.headers["ack"])
                self.left -= 1
                if not self.left:
                    done.set()

        connection = self._connect(config, Listener())
        queue = "/queue/Consumer.bench.VirtualTopic.bench"
        headers = {"activemq.prefetchSize": str(WINDOW)}
        connection.subscribe(queue, "1", "client-individual", headers)
        ready()
        done.wait()
        connection.disconnect()

    def _produce(self, config: dict[str, Any], count: int, begin: Callable[[], None]) -> None:
        import stomp

        window = threading.Semaphore(WINDOW)

        class Listener(stomp.ConnectionListener):  # type: ignore[misc]
            def on_receipt(self, frame: Any) -> None:
                window.release()

        connection = self._connect(config, Listener())
        begin()
        for number in range(count):
            window.acquire()
            connection.send(
                "/topic/VirtualTopic.bench", BODY, receipt=str(number), persistent="true"
            )
        for _ in range(WINDOW):
            window.acquire()


class RedisPy:
    """redis.asyncio: XADD and a consumer group."""

    def _client(self, config: dict[str, Any]) -> Any:
        import redis.asyncio

        return redis.asyncio.Redis.from_url(config["url"], ssl_ca_certs=config["ca_cert"])

    async def consume(self, config: dict[str, Any], count: int, ready: Callable[[], None]) -> None:
        client = self._client(config)
        await client.delete("bench-raw")  # the round before
        await client.xgroup_create("bench-raw", "bench", "$", mkstream=True)
        ready()
        while count:
            found = await client.xreadgroup(
                "bench", "one", {"bench-raw": ">"}, count=WINDOW, block=1000
            )
            for _, entries in found:
                for number, _ in entries:
                    await client.xack("bench-raw", "bench", number)
                    count -= 1
        await client.aclose()

    async def produce(self, config: dict[str, Any], count: int, begin: Callable[[], None]) -> None:
        client = self._client(config)
        await client.ping()
        begin()
        await in_window(count, lambda: client.xadd("bench-raw", {"body": BODY}))
        await client.aclose()


CONTESTANTS: dict[str, type[Contestant]] = {
    "aio-pika": AioPika,
    "faststream": FastStreamRabbit,
    "aiomqtt": AioMqtt,
    "stomp.py": StompPy,
    "redis-py": RedisPy,
    "praval": PravalTransport,
    "praval reef": PravalReef,
    "with receipts": PravalReceipted,
    "sealed": PravalSealed,
}
