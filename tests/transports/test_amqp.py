"""The AMQP transport: queues, confirms, permissions, alarms, on real RabbitMQ nodes over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from typing import Any

import aio_pika
import aiormq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from praval.core.transport import Delivery, Refuse, transport_connection
from praval.errors import (
    ConfigurationError,
    SporeTooLargeError,
    TransportConnectionError,
    TransportLoginError,
    TransportTimeoutError,
    TransportTLSError,
    TransportUnsupportedError,
)
from praval_transports.amqp_connection import AMQPConfig, check_headers
from praval_transports.amqp_wire import ENOUGH, Gathering, Wire
from praval_transports.config import Address
from praval_transports.dispatch import Listening
from praval_transports.message import Outgoing
from tests.servers import PKI, RabbitMQ, TlsFront

Config = dict[str, Any]
_exchanges = count()

PRIORITY: dict[str, Any] = {"x-queue-type": "classic", "x-max-priority": 10}


def config_for(server: RabbitMQ, **changes: Any) -> Config:
    """Return a config with an exchange that no other test uses."""
    return {
        "url": server.url,
        "ca_cert": str(server.pki.ca),
        "exchange_name": f"test{next(_exchanges)}",
        "retry_delay": 0.01,
        "reconnect_delay": 0.05,
        **changes,
    }


@pytest.fixture
def config(rabbitmq: RabbitMQ) -> Config:
    return config_for(rabbitmq)


@pytest.fixture
async def admin(rabbitmq: RabbitMQ) -> AsyncIterator[aio_pika.abc.AbstractConnection]:
    """A connection of bare aio-pika, to look at the broker with."""
    async with await aio_pika.connect(
        rabbitmq.url, ssl_context=rabbitmq.pki.client_context()
    ) as connection:
        yield connection


def connected(config: Config, **changes: Any) -> Any:
    return transport_connection("amqp", {**config, **changes})


async def queue_of(
    admin: aio_pika.abc.AbstractConnection, name: str, **arguments: Any
) -> aio_pika.abc.AbstractQueue | None:
    """Return the queue if there is one; with arguments, only if it was declared with them."""
    channel = await admin.channel()
    try:
        return await channel.declare_queue(name, passive=not arguments, **arguments)
    except (aiormq.ChannelNotFoundEntity, aiormq.ChannelPreconditionFailed):
        return None
    except aiormq.ChannelLockedResource:
        return None


async def until(condition: Callable[[], Awaitable[Any] | Any], seconds: float = 20.0) -> Any:
    """Wait until a condition holds; return what it returned."""
    async with asyncio.timeout(seconds):
        while True:
            answer = condition()
            if isinstance(answer, Awaitable):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(0.01)


class Inbox:
    """A callback that keeps what it gets."""

    def __init__(self) -> None:
        self.messages: list[Delivery] = []

    async def __call__(self, message: Delivery) -> None:
        self.messages.append(message)

    @property
    def bodies(self) -> list[bytes]:
        return [bytes(message) for message in self.messages]

    async def has(self, number: int) -> list[bytes]:
        await until(lambda: len(self.messages) >= number)
        return self.bodies


# -- queues ----------------------------------------------------------------------------------


async def test_a_group_is_a_durable_classic_queue_with_priorities(
    config: Config, admin: aio_pika.abc.AbstractConnection
) -> None:
    """It is named after exchange and group, and stays when its subscriber has gone."""
    async with connected(config) as transport:
        await transport.subscribe(["a.b", "c.*"], Inbox(), group="billing")
    queue = await queue_of(
        admin, f"{config['exchange_name']}:billing", durable=True, arguments=PRIORITY
    )
    assert queue is not None


async def test_groups_of_two_exchanges_are_apart(config: Config) -> None:
    """Two teams on one broker may have groups of the same name."""
    one, two = Inbox(), Inbox()
    async with (
        connected(config) as ours,
        connected(config, exchange_name=config["exchange_name"] + ".other") as theirs,
    ):
        await ours.subscribe("news", one, group="readers")
        await theirs.subscribe("news", two, group="readers")
        await ours.publish("news", b"ours")
        await theirs.publish("news", b"theirs")
        assert await one.has(1) == [b"ours"]
        assert await two.has(1) == [b"theirs"]


@given(
    names=st.lists(
        st.tuples(st.sampled_from(["a", "a:b"]), st.text(min_size=1, max_size=20)),
        min_size=2,
        unique=True,
    )
)
def test_no_two_groups_share_a_queue(names: list[tuple[str, str]]) -> None:
    """Whatever is in the names, the queue's name differs and is one that AMQP accepts."""
    queues = [
        AMQPConfig(username="u", password="p", exchange_name=exchange).queue_of(group)
        for exchange, group in names
        if ":" not in group  # it is encoded in a group, like all that brokers read as special
    ]
    assert len(set(queues)) == len(queues)
    for queue in queues:
        aiormq.spec.Queue.Declare(queue=queue)


async def test_private_queues_end_with_their_subscription_and_their_connection(
    config: Config,
) -> None:
    """What is published after that is unroutable, so no queue is left that collects it."""
    async with connected(config) as transport:
        async with connected(config) as other:
            await other.subscribe("news", Inbox())
            assert (await transport.publish("news", b"x")).routed is True
        assert (await transport.publish("news", b"x")).routed is False
        handle = await transport.subscribe("news", Inbox())
        assert (await transport.publish("news", b"x")).routed is True
        await transport.unsubscribe(handle)
        assert (await transport.publish("news", b"x")).routed is False
        assert transport.health().reconnects == 0


async def test_what_a_private_subscriber_holds_can_be_acknowledged_after_it_left(
    config: Config,
) -> None:
    """Its queue has gone by then; the acknowledgement breaks nothing."""
    released, begun = asyncio.Event(), asyncio.Event()

    async def slow(_: Delivery) -> None:
        begun.set()
        await released.wait()

    async with connected(config) as transport:
        handle = await transport.subscribe("news", slow)
        await transport.publish("news", b"x")
        await begun.wait()
        leaving = asyncio.ensure_future(transport.unsubscribe(handle))
        await until(lambda: _is_unroutable(transport, "news"))
        released.set()
        await leaving
        assert (await transport.publish("news", b"x")).routed is False
        health = transport.health()
        assert (health.acknowledged, health.reconnects) == (1, 0)


async def _is_unroutable(transport: Any, topic: str) -> bool:
    return (await transport.publish(topic, b"x")).routed is False


async def test_a_queue_that_is_something_else_is_refused_by_its_name(
    config: Config, admin: aio_pika.abc.AbstractConnection
) -> None:
    """The error says what the queue should be, and the connection is not disturbed."""
    name = f"{config['exchange_name']}:billing"
    await (await admin.channel()).declare_queue(name, durable=True)
    async with connected(config) as transport:
        inbox = Inbox()
        await transport.subscribe("other", inbox)
        with pytest.raises(TransportUnsupportedError, match=f"{name}.*x-max-priority 10"):
            await transport.subscribe("news", Inbox(), group="billing")
        await transport.publish("other", b"x")
        await inbox.has(1)
        assert transport.health().reconnects == 0


async def test_an_exchange_that_is_something_else_is_refused_by_its_name(
    config: Config, admin: aio_pika.abc.AbstractConnection
) -> None:
    """A direct exchange cannot serve patterns."""
    await (await admin.channel()).declare_exchange(config["exchange_name"], "direct")
    with pytest.raises(TransportUnsupportedError, match=f"{config['exchange_name']}.*topic"):
        async with connected(config):
            pass


async def test_a_group_with_too_long_a_name_is_refused(config: Config) -> None:
    """AMQP's names take 255 bytes, and the exchange's is in front."""
    async with connected(config) as transport:
        with pytest.raises(ConfigurationError, match="255"):
            await transport.subscribe("news", Inbox(), group="é" * 60)


async def test_a_deleted_queue_is_made_anew_for_its_subscriber(
    config: Config, admin: aio_pika.abc.AbstractConnection
) -> None:
    """The broker ends the consumer; nothing more would come, and nobody would say so."""
    async with connected(config) as transport:
        inbox = Inbox()
        await transport.subscribe("news", inbox, group="readers")
        await (await admin.channel()).queue_delete(f"{config['exchange_name']}:readers")
        await until(lambda: transport.health().reconnects == 1)
        assert (await transport.publish("news", b"after")).routed is True
        assert await inbox.has(1) == [b"after"]


async def test_a_deleted_exchange_is_made_anew_with_what_was_bound_to_it(
    config: Config, admin: aio_pika.abc.AbstractConnection
) -> None:
    """The broker closes the channel of whoever publishes on it; the publication is sent again."""
    async with connected(config) as transport:
        inbox = Inbox()
        await transport.subscribe("news", inbox, group="readers")
        await (await admin.channel()).exchange_delete(config["exchange_name"])
        assert (await transport.publish("news", b"after")).routed is True
        assert await inbox.has(1) == [b"after"]


async def test_a_subscription_that_cannot_be_made_again_is_tried_later_and_later(
    config: Config, rabbitmq: RabbitMQ, admin: aio_pika.abc.AbstractConnection
) -> None:
    """Somebody has replaced the queue meanwhile: ``health`` says so until he takes it back."""
    name = f"{config['exchange_name']}:readers"
    with TlsFront(rabbitmq, rabbitmq.pki.server_context()) as front:
        async with connected(config, url=front.url) as transport:
            inbox = Inbox()
            await transport.subscribe("news", inbox, group="readers")
            await asyncio.to_thread(front.refuse)
            channel = await admin.channel()
            await channel.queue_delete(name)
            await channel.declare_queue(name, durable=True)
            before = front.accepted
            await asyncio.to_thread(front.resume)
            await until(lambda: name in (transport.health().error or ""))
            await asyncio.sleep(1.0)
            assert front.accepted - before <= 2 * 8  # 0.05 s, 0.1 s, 0.2 s, ...
            await channel.queue_delete(name)
            await until(lambda: transport.health().error is None)
            await transport.publish("news", b"after")
            assert await inbox.has(1) == [b"after"]


# -- dead letters ----------------------------------------------------------------------------


async def test_the_group_of_dead_letters_exists_from_the_first_connection_on(
    config: Config, admin: aio_pika.abc.AbstractConnection
) -> None:
    """So that a dead letter is kept though nobody has asked for one yet."""
    async with connected(config, dead_letter_topic="lost.and.found"):
        name = f"{config['exchange_name']}:lost.and.found"
        assert await queue_of(admin, name, durable=True, arguments=PRIORITY)


async def test_a_dead_letter_is_kept_though_its_queue_was_deleted(
    config: Config, admin: aio_pika.abc.AbstractConnection
) -> None:
    """It comes back as unroutable; the queue is declared again, and the letter sent again."""

    def refuse(_: Delivery) -> None:
        raise Refuse("no")

    async with connected(config) as transport:
        await (await admin.channel()).queue_delete(f"{config['exchange_name']}:dead")
        await transport.subscribe("news", refuse, group="readers")
        await transport.publish("news", b"x")
        await until(lambda: transport.health().dead == 1)
        letters = Inbox()
        await transport.subscribe("dead", letters, group="dead")
        assert await letters.has(1) == [b"x"]
        assert transport.health().reconnects == 0


# -- messages --------------------------------------------------------------------------------


async def test_what_is_published_is_a_usual_persistent_message(
    config: Config, admin: aio_pika.abc.AbstractConnection
) -> None:
    """Programs without Praval can read it: properties, headers and body are AMQP's own."""
    channel = await admin.channel()
    queue = await channel.declare_queue(exclusive=True)
    async with connected(config) as transport:
        await queue.bind(config["exchange_name"], "a.*")
        await transport.publish("a/b", b"\0body", priority=10, ttl=100, headers={"naïve": "✓ \n"})
        message = await queue.get()
    assert (message.body, message.routing_key, message.priority) == (b"\0body", "a.b", 9)
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.headers["naïve"] == "✓ \n"
    assert message.expiration is not None
    assert 100 < message.expiration < 200  # seconds: later than the message's own


async def test_messages_of_other_programs_arrive(
    config: Config, admin: aio_pika.abc.AbstractConnection
) -> None:
    """Their headers may hold anything, which becomes text; their priority is the usual one."""
    async with connected(config) as transport:
        inbox = Inbox()
        await transport.subscribe("#", inbox)
        exchange = await (await admin.channel()).get_exchange(config["exchange_name"])
        odd = {
            "number": 7,
            "none": None,
            "list": [1, "two"],
            "text": "ü",
            "raw": bytearray(b"\xff"),
        }
        await exchange.publish(aio_pika.Message(b"strange", headers=odd), "some.where else")
        await exchange.publish(aio_pika.Message(b"bare"), "bare")
        await inbox.has(2)
    strange, bare = inbox.messages
    assert (strange, strange.topic, strange.headers["text"]) == (
        b"strange", "some.where else", "ü",
    )  # fmt: skip
    assert strange.headers["number"] == "7"
    assert all(isinstance(text, str) for text in strange.headers.values())
    assert (bare, bare.headers) == (b"bare", {})


async def test_each_publication_is_told_whether_it_was_routed(config: Config) -> None:
    """Also when many are under way at once: what comes back is matched to its own."""
    async with connected(config) as transport:
        await transport.subscribe("heard.*", Inbox(), group="readers")
        topics = [random.choice(["heard", "unheard"]) for _ in range(200)]
        answers = await asyncio.gather(
            *(transport.publish(f"{topic}.{n}", b"x") for n, topic in enumerate(topics))
        )
        assert [answer.routed for answer in answers] == [topic == "heard" for topic in topics]


async def test_cancelled_publications_disturb_no_other(config: Config) -> None:
    """Whether they were to be routed or to come back, and wherever they were.

    aiormq stops reading a channel when a message comes back whose publication was cancelled.
    """
    async with connected(config) as transport:
        inbox = Inbox()
        await transport.subscribe("heard", inbox, group="readers")
        for number in range(200):
            doomed = [asyncio.ensure_future(transport.publish(t, b"-")) for t in ("heard", "un")]
            kept = asyncio.ensure_future(transport.publish("heard", b"%d" % number))
            for _ in range(number % 25):
                await asyncio.sleep(0)
            for task in doomed:
                task.cancel()
            assert (await kept).routed is True
            await asyncio.wait(doomed)
        await until(lambda: len([body for body in inbox.bodies if body != b"-"]) == 200)
        assert transport.health().reconnects == 0


async def test_one_topic_keeps_its_order_over_several_connections(
    config: Config, rabbitmq: RabbitMQ
) -> None:
    """``connection_pool_size`` connections publish, and a topic is always on the same."""
    with TlsFront(rabbitmq, rabbitmq.pki.server_context()) as front:
        async with connected(config, url=front.url, connection_pool_size=4) as transport:
            assert front.accepted == 1 + 4
            inbox = Inbox()
            await transport.subscribe("#", inbox)
            await asyncio.gather(*(transport.publish(f"t{n % 7}", b"%d" % n) for n in range(350)))
            await inbox.has(350)
    for topic in range(7):
        numbers = [int(message) for message in inbox.messages if message.topic == f"t{topic}"]
        assert numbers == list(range(topic, 350, 7))


@pytest.mark.parametrize("seconds", [0.001, 49 * 86_400.0, 50 * 86_400.0, 3650 * 86_400.0])
async def test_any_time_to_live_is_accepted(config: Config, seconds: float) -> None:
    """RabbitMQ's timers end at 2**32 ms; what lives longer is given to it without one."""
    async with connected(config) as transport:
        await transport.subscribe("news", Inbox(), group="readers")
        assert (await transport.publish("news", b"x", ttl=seconds)).routed is True
        assert transport.health().reconnects == 0


@pytest.mark.parametrize(
    "headers",
    [{"é" * 65: ""}, {"n" * 129: ""}, {"n": "v" * 70_000}, {f"{n:05}": "" for n in range(9_000)}],
    ids=["unicode name", "name", "value", "number"],
)
async def test_headers_that_amqp_would_cut_or_refuse_are_refused(
    config: Config, headers: dict[str, str]
) -> None:
    """A long name would be cut without a word, a large frame would end the connection."""
    async with connected(config) as transport:
        with pytest.raises(ConfigurationError, match="header"):
            await transport.publish("news", b"x", headers=headers)
        assert transport.health().reconnects == 0


async def test_headers_up_to_the_limits_arrive(config: Config) -> None:
    """128 bytes of a name, 64 KiB in all."""
    headers = {"é" * 64: "name", "value": "v" * 60_000}
    check_headers(headers)
    async with connected(config) as transport:
        inbox = Inbox()
        await transport.subscribe("news", inbox)
        await transport.publish("news", b"x", headers=headers)
        await inbox.has(1)
        assert inbox.messages[0].headers == headers


@pytest.mark.every_loop
async def test_messages_of_every_size_come_back(config: Config) -> None:
    """Frames are gathered, cut and put together again on every kind of loop."""
    sizes = [0, 1, 1000, 131_064, 131_065, 500_000]
    async with connected(config) as transport:
        inbox = Inbox()
        await transport.subscribe("news", inbox, group="readers")
        bodies = [random.randbytes(size) for size in sizes]
        await asyncio.gather(*(transport.publish("news", body) for body in bodies))
        assert await inbox.has(len(sizes)) == bodies


# -- a network that breaks -------------------------------------------------------------------


async def test_whatever_waits_for_the_broker_ends_when_the_link_is_lost(
    config: Config, rabbitmq: RabbitMQ
) -> None:
    """And not when the broker's time is up: aiormq forgets some of those who wait."""
    with TlsFront(rabbitmq, rabbitmq.pki.server_context()) as front:
        async with connected(config, url=front.url) as transport:
            link, listening = transport._link, Listening(transport, "news", Inbox(), None, 1)
            await asyncio.to_thread(front.stall)
            waiting = [
                asyncio.ensure_future(link.send(Outgoing(("news",), b"x", 5, None, {}))),
                asyncio.ensure_future(link.listen(listening)),
            ]
            assert (await asyncio.wait(waiting, timeout=0.1))[0] == set()
            link.lose(TransportConnectionError("gone"))
            async with asyncio.timeout(5):
                for each in waiting:
                    with pytest.raises(TransportConnectionError, match="gone"):
                        await each
            await asyncio.to_thread(front.resume)


async def test_publications_go_on_after_a_connection_that_broke_under_them(
    config: Config, rabbitmq: RabbitMQ
) -> None:
    """At once, over the next one, though the broker would have had a minute to confirm."""
    with TlsFront(rabbitmq, rabbitmq.pki.server_context()) as front:
        patient = {"confirm_timeout": 60, "publish_timeout": 60}
        async with connected(config, url=front.url, **patient) as transport:
            await transport.subscribe("news", Inbox(), group="readers")
            await asyncio.to_thread(front.stall)
            sending = [
                asyncio.ensure_future(transport.publish("news", bytes(20_000))) for _ in range(300)
            ]
            await asyncio.sleep(0)
            await asyncio.to_thread(front.cut)
            await asyncio.to_thread(front.resume)
            async with asyncio.timeout(30):
                answers = await asyncio.gather(*sending)
            assert all(answer.routed for answer in answers)


# -- logins ----------------------------------------------------------------------------------


async def test_a_certificate_without_a_password_is_the_login(rabbitmq: RabbitMQ, pki: PKI) -> None:
    """RabbitMQ takes the user from its name (EXTERNAL)."""
    config = {
        **config_for(rabbitmq, url=None, host="localhost", port=rabbitmq.port),
        "client_cert": str(pki.client.cert),
        "client_key": str(pki.client.key),
    }
    async with connected(config, client_id="by certificate") as transport:
        assert (await transport.publish("news", b"x")).routed is False
    log = rabbitmq.log_text()
    assert "by certificate consumer" in log
    assert f"user '{rabbitmq.mutual_user}' authenticated" in log


async def test_a_certificate_of_no_user_is_told_as_such(rabbitmq: RabbitMQ, pki: PKI) -> None:
    """It is a good one, so the reason is the broker's, not that of TLS."""
    stranger = await asyncio.to_thread(pki.authority.issue, "stranger", kind="client")
    config = {
        **config_for(rabbitmq, url=f"amqps://localhost:{rabbitmq.port}/"),
        "client_cert": str(stranger.cert),
        "client_key": str(stranger.key),
    }
    with pytest.raises(TransportLoginError, match="refuses our client certificate"):
        async with connected(config):
            pass


async def test_a_virtual_host_that_is_not_there_is_told(config: Config) -> None:
    """By its name, whether it was in the URL or in the key."""
    for changes in ({"url": config["url"] + "no%20where"}, {"virtual_host": "no where"}):
        with pytest.raises(TransportLoginError, match="'no where'"):
            async with connected(config, **changes):
                pass


async def test_the_slash_is_the_usual_virtual_host(config: Config) -> None:
    """Written as a key, in the URL, or not at all."""
    for changes in ({"virtual_host": "/"}, {"url": config["url"] + "%2F"}, {}):
        async with connected(config, **changes) as transport:
            assert transport.health().state == "connected"


@given(text=st.text(min_size=1, max_size=40).filter(lambda text: "%2F" not in text))
def test_login_and_virtual_host_reach_aiormq_as_they_are(text: str) -> None:
    """Whatever characters are in them."""
    config = AMQPConfig(username=text, password=text, virtual_host=text, port=1)

    async def read() -> tuple[str | None, str | None, str]:
        connection = aiormq.Connection(config.url_for(Address("::1", 5671)))
        return connection.url.user, connection.url.password, connection.vhost

    assert asyncio.run(read()) == (text, text, text)


async def test_nothing_to_log_in_with_is_refused_before_connecting() -> None:
    """No well-known password is tried."""
    for login in ({}, {"username": "guest"}, {"password": "guest"}):
        with pytest.raises(ConfigurationError, match=r"username and password.*client_cert"):
            async with connected({"host": "localhost", **login}):
                pass


@pytest.mark.parametrize(
    "wrong",
    [{"exchange_name": ""}, {"exchange_name": "naïve"}, {"prefetch_count": 70_000},
     {"keepalive": 70_000}],
    ids=str,
)  # fmt: skip
async def test_values_that_amqp_has_no_room_for_are_refused(wrong: Config) -> None:
    """Before anything is connected."""
    (key,) = wrong
    with pytest.raises(ConfigurationError, match=key):
        async with connected({"host": "localhost", "username": "u", "password": "p", **wrong}):
            pass


# -- peers -----------------------------------------------------------------------------------

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def peer(talk: Talk) -> AsyncIterator[int]:
    """Listen in plaintext, let ``talk`` answer each connection, and yield the port."""
    talking: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talking.add(task)
        with contextlib.suppress(OSError):
            await talk(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for task in talking:
        task.cancel()
    await asyncio.gather(*talking, return_exceptions=True)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP\0\1\0\0", b"\0\0", b"", b"\1\0\0\0\0\0\4\0\0\0\0!",
     b"\1\0\0\0\0\0\5\0\x0a\0\x0a\0\xce", b"\2\0\1\0\0\0\0\xce", b"\x08\0\0\0\0\0\0\xce"],
    ids=["http", "AMQP 1.0", "zeros", "nothing", "no end", "cut short", "header", "heartbeat"],
)  # fmt: skip
async def test_a_peer_that_does_not_speak_amqp_is_told(pki: PKI, answer: bytes) -> None:
    """Whatever it answers, the error is a connection error, and in time."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.start_tls(pki.server_context())
        await reader.read(8)
        writer.write(answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with peer(talk) as port:
        config = {"host": "localhost", "port": port, "username": "u", "password": "p"}
        with pytest.raises(TransportConnectionError) as caught:
            async with connected(config, ca_cert=str(pki.ca), connect_timeout=2.0):
                pass
    assert f"localhost:{port}" in str(caught.value)
    assert len(asyncio.all_tasks()) == 1


async def test_the_reason_for_a_refused_certificate_is_heard_though_a_reset_overtook_it(
    pki: PKI,
) -> None:
    """Under TLS 1.3 the peer refuses when we have begun to talk; a second connection listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        refusing = asyncio.ensure_future(asyncio.to_thread(_refuse_twice, listener, pki))
        config = {"host": "localhost", "port": port, "username": "u", "password": "p"}
        with pytest.raises(TransportTLSError, match="demands a client certificate"):
            async with connected(config, ca_cert=str(pki.ca)):
                pass
        await refusing


def _refuse_twice(listener: socket.socket, pki: PKI) -> None:
    """Reset a first connection, and send a second one the alert. Blocks: asyncio sends none."""
    raw, _ = listener.accept()
    with pki.server_context().wrap_socket(raw, server_side=True) as connection:
        connection.recv(8)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw, _ = listener.accept()
    demanding = pki.server_context(client_certificates=ssl.CERT_REQUIRED)
    with raw, pytest.raises(ssl.SSLError):
        demanding.wrap_socket(raw, server_side=True)


async def test_the_socket_has_the_options_that_were_asked_for(rabbitmq: RabbitMQ) -> None:
    """``tcp_nodelay`` and ``buffer_size`` (the system doubles it for its own needs)."""
    tls = rabbitmq.pki.client_context()
    for nodelay, size in ((True, 65_536), (False, 131_072)):
        config = AMQPConfig(
            username="u", password="p", port=1, tcp_nodelay=nodelay, buffer_size=size
        )
        wire = Wire(Address("localhost", rabbitmq.port), tls, config)
        _, writer = await wire.create(URL())
        raw = writer.get_extra_info("socket")
        assert bool(raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) == nodelay
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            assert size <= raw.getsockopt(socket.SOL_SOCKET, option) <= 2 * size
        wire.cut()


# -- gathering -------------------------------------------------------------------------------


class Sent(asyncio.Transport):
    """A transport that keeps what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.pieces.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


Gatherer = Callable[[], tuple[Gathering, Sent]]


@pytest.fixture
def gathering() -> Iterator[Gatherer]:
    """A function that makes a writer, and the transport below it."""
    made: list[tuple[Gathering, Sent]] = []

    def make() -> tuple[Gathering, Sent]:
        loop = asyncio.get_running_loop()
        reader, sent = asyncio.StreamReader(), Sent()
        writer = Gathering(sent, asyncio.StreamReaderProtocol(reader), reader, loop)
        made.append((writer, sent))
        return writer, sent

    yield make
    for _, sent in made:
        sent.closed = True


async def test_what_is_written_turn_by_turn_is_sent_in_one_piece(gathering: Gatherer) -> None:
    """And what is written alone is sent after a few turns."""
    writer, sent = gathering()
    for number in range(10):
        writer.write(b"%d" % number)
        await asyncio.sleep(0)
    assert sent.pieces == []
    await until(lambda: sent.pieces)
    assert sent.pieces == [b"0123456789"]
    writer.write(b"alone")
    for _ in range(4):
        await asyncio.sleep(0)
    assert sent.pieces[1:] == [b"alone"]


async def test_writing_on_and_on_does_not_delay_for_ever(gathering: Gatherer) -> None:
    """Enough bytes are sent at once, and anything after a few milliseconds."""
    writer, sent = gathering()
    writer.write(bytes(ENOUGH))
    await asyncio.sleep(0)
    assert len(sent.pieces) == 1
    async with asyncio.timeout(10):
        while len(sent.pieces) == 1:
            writer.write(b"x")
            await asyncio.sleep(0)
    assert len(sent.pieces[1]) < ENOUGH


async def test_what_is_written_is_sent_before_the_end(gathering: Gatherer) -> None:
    """In order, each byte once, and nothing after it."""
    for end in (Gathering.close, Gathering.drain):
        writer, sent = gathering()
        writer.write(b"good")
        writer.write(b"bye")
        ended = end(writer)
        if ended is not None:
            await ended
        assert sent.pieces == [b"goodbye"]
        sent.closed = True
        writer.write(b"late")
        for _ in range(5):
            await asyncio.sleep(0)
        assert sent.pieces == [b"goodbye"]


# -- a broker with narrow limits -------------------------------------------------------------


class Narrow(RabbitMQ):
    """A node that takes small messages and quick callbacks, and whose users have few rights."""

    settings = ("consumer_timeout = 1000", "max_message_size = 100000")

    def prepare(self) -> None:
        main = self.etc_dir / "rabbitmq.conf"
        main.write_text("\n".join((main.read_text(), *self.settings, "")))
        advanced = self.etc_dir / "advanced.config"
        ticking = "[{rabbit, [{channel_tick_interval, 300},"  # how often time-outs are looked at
        advanced.write_text(advanced.read_text().replace("[{rabbit, [", ticking, 1))
        definitions = self.etc_dir / "definitions.json"
        read = json.loads(definitions.read_text())
        user, rights = read["users"][0], read["permissions"][0]
        for name, changes in {"limited": {}, "declares nothing": {"configure": "^$"}}.items():
            read["users"].append({**user, "name": name})
            read["permissions"].append({**rights, "user": name, **changes})
        read["topic_permissions"] = [
            {"user": "limited", "vhost": "/", "exchange": "rights", "write": "^mine", "read": ".*"}
        ]
        definitions.write_text(json.dumps(read))
        super().prepare()


class Full(RabbitMQ):
    """A node that believes to be short of memory, and blocks all who publish."""

    def prepare(self) -> None:
        main = self.etc_dir / "rabbitmq.conf"
        main.write_text(f"{main.read_text()}\nvm_memory_high_watermark.absolute = 1MB\n")
        super().prepare()


@pytest.fixture(scope="module")
def narrow() -> Iterator[RabbitMQ]:
    server = Narrow()
    with server:
        yield server


async def test_a_callback_that_the_broker_has_no_patience_for_is_not_the_end(
    narrow: RabbitMQ,
) -> None:
    """It closes the channel after ``consumer_timeout``; the message comes again, marked."""
    released = asyncio.Event()
    attempts: list[int] = []

    async def handle(message: Delivery) -> None:
        attempts.append(message.attempt)
        if len(attempts) == 1:
            await released.wait()

    async with connected(config_for(narrow)) as transport:
        await transport.subscribe("news", handle, group="readers", concurrency=2)
        await transport.publish("news", b"x")
        await until(lambda: len(attempts) == 2)
        released.set()
        assert attempts == [1, 2]
        assert transport.health().reconnects == 1
        await until(lambda: transport.health().acknowledged == 1)


async def test_a_message_that_is_too_large_for_the_broker_is_told_and_harms_no_other(
    narrow: RabbitMQ,
) -> None:
    """The broker closes the channel without saying which it was; the others are sent again."""
    async with connected(config_for(narrow)) as transport:
        inbox = Inbox()
        await transport.subscribe("news", inbox, group="readers")
        bodies = [b"%d" % number for number in range(40)]
        bodies[20] = bytes(100_001)
        answers = await asyncio.gather(
            *(transport.publish("news", body) for body in bodies), return_exceptions=True
        )
        assert isinstance(answers.pop(20), SporeTooLargeError)
        assert all(answer.routed for answer in answers)
        await until(lambda: {*inbox.bodies} == {*bodies} - {bodies[20]})


async def test_a_topic_that_the_user_may_not_write_is_told_and_harms_no_other(
    narrow: RabbitMQ,
) -> None:
    """At once, and not when the publication's time is up."""
    config = config_for(narrow, exchange_name="rights", username="limited")
    async with connected(config) as transport:
        topics = ["mine.a", "theirs", "mine.b"]
        mine, theirs, also_mine = await asyncio.gather(
            *(transport.publish(topic, b"x") for topic in topics), return_exceptions=True
        )
        assert isinstance(theirs, TransportUnsupportedError)
        assert "'theirs'" in str(theirs)
        assert (mine.routed, also_mine.routed) == (False, False)


async def test_a_user_who_may_declare_nothing_is_told(narrow: RabbitMQ) -> None:
    """With the broker's words, which name what he has no right to."""
    config = config_for(narrow, username="declares nothing")
    with pytest.raises(TransportUnsupportedError, match=f"no right.*{config['exchange_name']}"):
        async with connected(config):
            pass


async def test_a_broker_that_blocks_publishers_is_waited_for_and_not_left() -> None:
    """Whoever consumes keeps the connection; whoever publishes is told what is the matter."""
    with Full() as server:
        assert isinstance(server, RabbitMQ)
        config = config_for(server, confirm_timeout=0.3, publish_timeout=1.5)
        async with connected(config) as transport:
            await transport.subscribe("news", Inbox(), group="readers")
            for _ in range(2):
                with pytest.raises(TransportTimeoutError, match="short of memory or disk"):
                    await transport.publish("news", b"x")
            await transport.subscribe("more", Inbox(), group="others")
            health = transport.health()
            assert (health.state, health.reconnects) == ("connected", 0)
