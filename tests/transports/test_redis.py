"""The Redis transport: streams, groups, leases, trimming, on a real server over TLS."""

from __future__ import annotations

import asyncio
import logging
import socket
import traceback
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from typing import Any

import psutil
import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from praval.core.topics import Topic, dotted, matches
from praval.core.transport import Delivery, GiveBack, Subscription, transport_connection
from praval.errors import (
    ConfigurationError,
    TransportConnectionError,
    TransportLoginError,
    TransportTimeoutError,
    TransportUnsupportedError,
)
from praval_transports import redis as module
from praval_transports.redis import RedisTransport
from praval_transports.redis_scripts import lua_pattern
from tests.servers import PKI, Redis, TlsFront, free_port
from tests.servers.plugin import FreshServer

Config = dict[str, Any]
_prefixes = count()


@pytest.fixture
def config(redis_server: Redis) -> Config:
    """A config with a prefix that no other test uses."""
    return config_for(redis_server)


def config_for(server: Redis, url: str | None = None, **more: Any) -> Config:
    return {
        "url": url or server.url,
        "ca_cert": str(server.pki.ca),
        "prefix": f"test{next(_prefixes)}",
        "retry_delay": 0.01,
        "reconnect_delay": 0.05,
        **more,
    }


@pytest.fixture
async def admin(redis_server: Redis) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of redis-py, to look at the server with."""
    async with admin_of(redis_server) as client:
        yield client


def admin_of(server: Redis) -> redis.asyncio.Redis:
    return redis.asyncio.from_url(
        server.url, ssl_ca_certs=str(server.pki.ca), decode_responses=True
    )


def connected(config: Config, **changes: Any) -> Any:
    return transport_connection("redis", {**config, **changes})


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


class Stuck(Inbox):
    """A callback that keeps what it gets, and does not return before it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.released = asyncio.Event()

    async def __call__(self, message: Delivery) -> None:
        await super().__call__(message)
        await self.released.wait()


# -- streams ---------------------------------------------------------------------------------


async def test_a_topic_that_nobody_hears_has_no_stream(
    config: Config, admin: redis.asyncio.Redis
) -> None:
    """A publication on it is told to be unroutable, and leaves nothing on the server."""
    async with connected(config) as transport:
        for _ in range(3):
            assert (await transport.publish("news", b"x")).routed is False
        assert await admin.exists(f"{config['prefix']}:news") == 0


async def test_a_stream_is_dropped_with_its_last_subscriber(
    config: Config, admin: redis.asyncio.Redis
) -> None:
    """Private subscribers and dropped groups leave no stream and no name behind."""
    async with connected(config) as transport:
        inbox = Inbox()
        private = await transport.subscribe("news", inbox)
        group = await transport.subscribe(["news", "old.#"], inbox, group="readers")
        assert (await transport.publish("news", b"x")).routed is True
        await transport.unsubscribe(private)
        assert (await transport.publish("news", b"x")).routed is True
        await transport.unsubscribe(group, drop_group=True)
        assert (await transport.publish("news", b"x")).routed is False
        assert (await transport.publish("old.1", b"x")).routed is False
        kept = await admin.keys(f"{config['prefix']}:*")
        assert {key.removeprefix(config["prefix"]) for key in kept} == {":dead", "::topics"}
        assert await admin.zrange(f"{config['prefix']}::topics", 0, -1) == ["dead"]


async def test_what_was_acknowledged_is_trimmed(config: Config, admin: redis.asyncio.Redis) -> None:
    """After some MiB, and when the transport closes, the server keeps only what is needed."""
    stream, inbox = f"{config['prefix']}:news", Inbox()
    async with connected(config) as transport:
        await transport.subscribe("news", inbox, group="readers")
        for _ in range(6):
            await transport.publish("news", bytes(1024 * 1024))
        await until(lambda: transport.health().acknowledged == 6)
        await until(lambda: _length_below(admin, stream, 3))
        await transport.publish("news", b"last")
        await inbox.has(7)
    assert await admin.xlen(stream) == 0


async def _length_below(admin: redis.asyncio.Redis, stream: str, limit: int) -> bool:
    return bool(await admin.xlen(stream) < limit)


async def test_a_slow_subscriber_keeps_its_messages(config: Config) -> None:
    """Trimming waits for the slowest: a stuck group, one that is away, one without a group."""
    fast, slow, late, private = Inbox(), Stuck(), Inbox(), Stuck()
    async with connected(config, prefetch_count=1) as transport:
        away = await transport.subscribe("news", late, group="away")
        await transport.unsubscribe(away)
        await transport.subscribe("news", slow, group="slow")
        await transport.subscribe("news", private)
        await transport.subscribe("news", fast, group="fast")
        bodies = [str(number).encode() + bytes(500_000) for number in range(12)]
        for body in bodies:
            await transport.publish("news", body)
        assert await fast.has(12) == bodies
        slow.released.set()
        private.released.set()
        assert await slow.has(12) == bodies
        assert await private.has(12) == bodies
        await transport.subscribe("news", late, group="away")
        assert await late.has(12) == bodies


async def test_stream_maxlen_bounds_a_stream_read_or_not(
    config: Config, admin: redis.asyncio.Redis
) -> None:
    """Asked for, the oldest messages go, also those that somebody holds."""
    async with connected(config, stream_maxlen=10) as transport:
        stuck = Stuck()
        await transport.subscribe("news", stuck, group="readers")
        for number in range(500):
            await transport.publish("news", str(number).encode())
        assert await admin.xlen(f"{config['prefix']}:news") < 250
        stuck.released.set()
        await until(lambda: stuck.bodies[-1:] == [b"499"])


async def test_a_private_subscriber_that_dies_is_forgotten(
    config: Config, admin: redis.asyncio.Redis, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lease ends; the groups of others stop waiting for it, and its own streams go."""
    pace = {"keepalive": 1, "claim_idle": 0.6}
    stream = f"{config['prefix']}:news"
    with TlsFront(redis_server, redis_server.pki.server_context()) as front:
        async with connected(config, url=front.url, close_timeout=0.2, **pace) as dying:
            await dying.subscribe("news", Inbox())
            await dying.subscribe("own", Inbox())
            await dying.subscribe("wild.#", Inbox())
            assert await admin.ttl(f"{config['prefix']}:own") >= 0
            monkeypatch.setattr(module, "LEASE", -2)  # one second, from the next sign of life on
            await until(lambda: _ends_soon(admin, f"{config['prefix']}:own"))
            front.refuse()
            async with connected(config, **pace) as living:
                inbox = Inbox()
                await living.subscribe("news", inbox, group="readers")
                assert await admin.ttl(stream) == -1
                await living.publish("news", b"1")
                await until(lambda: _is_gone(admin, f"{config['prefix']}:own"))
                await living.publish("news", b"2")
                await inbox.has(2)
                await until(lambda: _length_below(admin, stream, 1))
                assert len(await admin.xinfo_groups(stream)) == 1
                assert (await living.publish("wild.1", b"")).routed is False
            front.resume()


async def _ends_soon(admin: redis.asyncio.Redis, key: str) -> bool:
    return bool(await admin.ttl(key) <= 1)


async def _is_gone(admin: redis.asyncio.Redis, key: str) -> bool:
    return not await admin.exists(key)


async def test_consumers_of_dead_processes_are_forgotten(
    config: Config, admin: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process has a name of its own; a group does not collect them for ever."""
    stream = f"{config['prefix']}:news"
    for _ in range(5):
        async with connected(config, keepalive=1) as transport:
            await transport.subscribe("news", Inbox(), group="readers")
            await transport.publish("news", b"x")

    async def consumers() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await admin.xinfo_consumers(stream, "readers")
        return found

    async def all_are_silent() -> bool:
        return all(consumer["idle"] > 1000 for consumer in await consumers())

    assert len(await consumers()) == 5
    monkeypatch.setattr(module, "LEASE", -2)  # one second
    await until(all_are_silent)
    async with connected(config, keepalive=1) as transport:
        await transport.subscribe("news", Inbox(), group="readers")
        assert len(await consumers()) <= 1


# -- wildcards -------------------------------------------------------------------------------


async def test_a_pattern_hears_topics_that_come_later(config: Config) -> None:
    """It gets a new topic from its first message on, at once, with a group or without."""
    private, grouped = Inbox(), Inbox()
    async with connected(config) as transport, connected(config) as other:
        await transport.subscribe("orders.*", private)
        await transport.subscribe(["orders.#", "bills"], grouped, group="audit")
        assert (await other.publish("orders.eu", b"1")).routed is True
        assert (await other.publish("orders.eu.new", b"2")).routed is True
        assert (await other.publish("orders", b"3")).routed is True
        assert (await other.publish("bills", b"4")).routed is True
        assert (await other.publish("order", b"5")).routed is False
        assert sorted(await grouped.has(4)) == [b"1", b"2", b"3", b"4"]
        assert await private.has(1) == [b"1"]


async def test_a_group_with_wildcards_collects_while_nobody_is_there(config: Config) -> None:
    """Topics that come up meanwhile included."""
    async with connected(config) as transport:
        first = Inbox()
        subscription = await transport.subscribe("orders.#", first, group="audit")
        await transport.publish("orders.eu", b"1")
        await first.has(1)
        await transport.unsubscribe(subscription)
        await transport.publish("orders.eu", b"2")
        assert (await transport.publish("orders.us", b"3")).routed is True
        second = Inbox()
        await transport.subscribe("orders.#", second, group="audit")
        assert sorted(await second.has(2)) == [b"2", b"3"]


async def test_a_message_comes_once_though_two_patterns_match(config: Config) -> None:
    """Several patterns of one subscription are one queue."""
    inbox = Inbox()
    async with connected(config) as transport:
        await transport.subscribe(["a.b", "a.*", "#"], inbox, group="all")
        for topic in ("a.b", "a.c", "d", "a.b"):
            await transport.publish(topic, topic.encode())
        await transport.publish("end", b"end")
        await until(lambda: b"end" in inbox.bodies)
        await until(lambda: len(inbox.bodies) >= 5)
        assert sorted(inbox.bodies) == [b"a.b", b"a.b", b"a.c", b"d", b"end"]


segments = st.text(
    st.characters(codec="utf-8", exclude_characters="./+#*>$%: \t\r\n\v\f\x00"),
    min_size=1,
    max_size=5,
).filter(lambda text: not any(c.isspace() or ord(c) < 32 or ord(c) == 127 for c in text))
topics = st.lists(segments | st.sampled_from(["a", "b", "%2E", "-", "a-"]), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def lua(redis_server: Redis) -> Iterator[Callable[[str, str], bool]]:
    client = redis.from_url(redis_server.url, ssl_ca_certs=str(redis_server.pki.ca))
    find = client.register_script("return string.find(ARGV[1] .. '.', ARGV[2]) and 1 or 0")
    yield lambda topic, pattern: bool(find(args=[topic, pattern]))
    client.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data(), topic=topics.map(tuple))
def test_the_server_matches_as_everybody_does(
    lua: Callable[[str, str], bool], data: st.DataObject, topic: Topic
) -> None:
    """The patterns in Lua find what `praval.core.topics.matches` finds."""
    pattern = [data.draw(st.sampled_from([segment, "*"])) for segment in topic]
    cut = data.draw(st.integers(0, len(pattern)))
    if data.draw(st.booleans()):
        pattern = [*pattern[:cut], "#"]
    elif data.draw(st.booleans()):
        pattern = pattern[:cut] or ["*"]
    other = tuple(data.draw(topics))
    for each in (topic, other):
        found = lua(dotted(each), lua_pattern(tuple(pattern)))
        assert found == matches(tuple(pattern), each)


# -- members of a group ----------------------------------------------------------------------


async def test_a_dead_members_messages_are_claimed(config: Config, redis_server: Redis) -> None:
    """After `claim_idle` seconds another member has them, marked as delivered before."""
    with TlsFront(redis_server, redis_server.pki.server_context()) as front:
        async with (
            connected(config, url=front.url, close_timeout=0.2) as dying,
            connected(config, claim_idle=0.3) as living,
        ):
            stuck, inbox = Stuck(), Inbox()
            await dying.subscribe(["news", "olds"], stuck, group="readers", concurrency=9)
            for number in range(6):
                topic = "news" if number % 2 else "olds"
                await living.publish(topic, str(number).encode())
            await stuck.has(6)
            front.refuse()
            await living.subscribe(["news", "olds"], inbox, group="readers")
            assert sorted(await inbox.has(6)) == [b"0", b"1", b"2", b"3", b"4", b"5"]
            assert {message.attempt for message in inbox.messages} == {2}
            front.resume()
            stuck.released.set()


async def test_a_member_that_works_keeps_its_message(
    config: Config, admin: redis.asyncio.Redis
) -> None:
    """However long a callback runs: signs of life keep it from looking abandoned."""
    stuck, stream = Stuck(), f"{config['prefix']}:news"
    # a full window: it claims nothing itself
    async with connected(config, claim_idle=1.5, prefetch_count=1) as transport:
        await transport.subscribe("news", stuck, group="readers")
        await transport.publish("news", b"x")
        await stuck.has(1)
        refreshed, last = 0, 0
        async with asyncio.timeout(30):
            while refreshed < 4:  # each half a second
                (pending,) = await admin.xpending_range(stream, "readers", "-", "+", 1)
                assert pending["times_delivered"] == 1
                idle = pending["time_since_delivered"]
                refreshed, last = refreshed + (idle < last), idle
                await asyncio.sleep(0.02)
        stuck.released.set()
        await until(lambda: transport.health().acknowledged == 1)
    assert stuck.bodies == [b"x"]


async def test_a_restarted_process_takes_its_own_at_once(
    config: Config, redis_server: Redis
) -> None:
    """With the same `client_id` it does not wait for `claim_idle`."""
    with TlsFront(redis_server, redis_server.pki.server_context()) as front:
        async with connected(
            config, url=front.url, client_id="my host 1", close_timeout=0.2
        ) as dying:
            stuck, inbox = Stuck(), Inbox()
            await dying.subscribe("news", stuck, group="readers", concurrency=3)
            for body in (b"1", b"2", b"3"):
                await dying.publish("news", body)
            await stuck.has(3)
            front.refuse()
            async with connected(config, client_id="my host 1") as reborn:
                await reborn.subscribe("news", inbox, group="readers")
                assert await inbox.has(3) == [b"1", b"2", b"3"]
                assert {message.attempt for message in inbox.messages} == {2}
            front.resume()
            stuck.released.set()


async def test_what_is_given_back_goes_to_any_member_at_once(config: Config) -> None:
    """A member that cannot handle it does not keep it from the others."""
    async with connected(config) as unable, connected(config) as able:
        inbox = Inbox()
        given = 0

        async def give_back(message: Delivery) -> None:
            nonlocal given
            given += 1
            raise GiveBack

        await unable.subscribe("news", give_back, group="readers")
        await unable.publish("news", b"x")
        await until(lambda: given > 3)
        await able.subscribe("news", inbox, group="readers")
        assert await inbox.has(1) == [b"x"]
        assert inbox.messages[0].attempt == 2
        await until(lambda: able.health().acknowledged == 1)


async def test_a_member_that_closes_hands_its_messages_on(config: Config) -> None:
    """What waits behind a running callback is another's at once; what runs is finished."""
    async with connected(config) as staying:
        stuck, inbox = Stuck(), Inbox()
        leaving = RedisTransport()
        await leaving.initialize(config)
        await leaving.subscribe("news", stuck, group="readers")
        for number in range(20):
            await staying.publish("news", str(number).encode())
        await stuck.has(1)
        await staying.subscribe("news", inbox, group="readers")
        closing = asyncio.create_task(leaving.close())
        assert len(set(await inbox.has(19))) == 19
        stuck.released.set()
        await closing
        assert stuck.bodies == [b"0"]
        assert b"0" not in inbox.bodies


async def test_what_was_read_beyond_the_prefetch_is_handed_on_too(config: Config) -> None:
    """A member that leaves keeps nothing that its callback has not seen."""
    stuck, inbox, names = Stuck(), Inbox(), ["a", "b", "c", "d"]
    async with connected(config) as staying:
        leaving = RedisTransport()
        await leaving.initialize({**config, "prefetch_count": 1})
        subscription = await leaving.subscribe(names, Inbox(), group="readers")
        await leaving.unsubscribe(subscription)
        for name in names:  # they are there when it comes, and each stream gives it one
            await staying.publish(name, name.encode())
        await leaving.subscribe(names, stuck, group="readers")
        await stuck.has(1)
        closing = asyncio.create_task(leaving.close())
        await staying.subscribe(names, inbox, group="readers")
        await inbox.has(3)
        stuck.released.set()
        await closing
        assert sorted(stuck.bodies + inbox.bodies) == [b"a", b"b", b"c", b"d"]


async def test_no_more_than_the_prefetch_is_held(config: Config) -> None:
    """Whatever the number of topics: `COUNT` of the server is for each stream."""
    stuck, names = Stuck(), [f"t{number}" for number in range(5)]
    async with connected(config, prefetch_count=2) as transport:
        await transport.subscribe(names, stuck, group="readers", concurrency=10)
        for name in names:
            for _ in range(3):
                await transport.publish(name, name.encode())
        await stuck.has(2)
        assert transport.health().received == 2
        stuck.released.set()
        await stuck.has(15)
        assert sorted(stuck.bodies) == sorted(name.encode() for name in names * 3)
        assert transport.health().given_back == 0


async def test_a_topic_keeps_its_order_over_several_connections(config: Config) -> None:
    """Publications that are not awaited one by one included."""
    inbox = Inbox()
    async with connected(config, connection_pool_size=4) as transport:
        await transport.subscribe(["a", "b", "c"], inbox, group="readers")
        async with asyncio.TaskGroup() as group:
            for number in range(300):
                for topic in ("a", "b", "c"):
                    group.create_task(transport.publish(topic, str(number).encode()))
        await inbox.has(900)
    for topic in ("a", "b", "c"):
        heard = [int(message) for message in inbox.messages if message.topic == topic]
        assert heard == list(range(300))


async def test_entries_that_others_wrote_are_delivered(
    config: Config, admin: redis.asyncio.Redis
) -> None:
    """A program in any language can add to a topic's stream; nothing of it breaks the reading."""
    inbox = Inbox()
    async with connected(config) as transport:
        await transport.subscribe("news", inbox, group="readers")
        stream = f"{config['prefix']}:news"
        await admin.xadd(stream, {"body": "hello", "language": "COBOL"})
        await admin.xadd(stream, {"temperature": "20", b"\xff": b"\xfe"})
        await transport.publish("news", b"x")
        assert await inbox.has(3) == [b"hello", b"", b"x"]
        assert inbox.messages[0].headers == {"language": "COBOL"}
        assert inbox.messages[1].headers == {"temperature": "20", "\ufffd": "\ufffd"}


async def test_dead_letters_are_kept_though_somebody_dropped_their_group(config: Config) -> None:
    """The group is made again with the next one."""
    letters = Inbox()

    def fail(message: Delivery) -> None:
        raise ValueError("no")

    async with connected(config, max_attempts=1, dead_letter_topic="lost.mail") as transport:
        dead = await transport.subscribe("lost.mail", letters, group="lost.mail")
        await transport.unsubscribe(dead, drop_group=True)
        await transport.subscribe("news", fail, group="readers")
        await transport.publish("news", b"x")
        await until(lambda: transport.health().dead == 1)
        await transport.subscribe("lost.mail", letters, group="lost.mail")
        assert await letters.has(1) == [b"x"]
        assert letters.messages[0].headers["praval-topic"] == "news"


# -- the connection --------------------------------------------------------------------------


async def test_a_server_that_lost_everything_is_subscribed_to_again(
    config: Config, fresh_server: FreshServer
) -> None:
    """After a FLUSHALL nothing hangs: the groups are made anew."""
    server = fresh_server(Redis)
    inbox = Inbox()
    async with connected(config_for(server)) as transport, admin_of(server) as admin:
        await transport.subscribe("news", inbox, group="readers")
        await transport.subscribe("news", inbox)
        await admin.flushall()
        await until(lambda: transport.health().reconnects)
        await until(lambda: _publishes_routed(transport, "news"))
        await until(lambda: len(inbox.bodies) >= 2)


async def _publishes_routed(transport: Any, topic: str) -> bool:
    return bool((await transport.publish(topic, b"x")).routed)


async def test_a_server_that_freezes_is_given_up(fresh_server: FreshServer) -> None:
    """Its connections stay open and nobody answers: publishers and subscribers notice."""
    server = fresh_server(Redis)
    config = config_for(server, confirm_timeout=1, keepalive=1, connect_timeout=5)
    inbox = Inbox()
    async with connected(config, publish_timeout=2) as transport:
        await transport.subscribe("news", inbox, group="readers")
        server.pause()
        try:
            await until(lambda: transport.health().state == "connecting")  # nobody publishes
            with pytest.raises(TransportTimeoutError):
                await transport.publish("news", b"x")
        finally:
            server.unpause()
        await until(lambda: transport.health().state == "connected")
        await transport.publish("news", b"y")
        await until(lambda: b"y" in inbox.bodies)


async def test_confirmed_messages_survive_a_kill(fresh_server: FreshServer) -> None:
    """With `appendonly yes`, as configured in docker/: none is lost of those under way."""
    server = fresh_server(Redis, durable=True)
    config, inbox, confirmed = config_for(server), Inbox(), set[bytes]()
    numbers, stopping = count(), False

    async def publish_on_and_on() -> None:
        while not stopping:
            number = next(numbers)
            body = str(number).encode()
            await transport.publish("news" if number % 2 else f"wild.{number % 7}", body)
            confirmed.add(body)

    async with connected(config) as transport, connected(config) as receiver:
        await receiver.subscribe(["news", "wild.*"], inbox, group="readers")
        publishers = [asyncio.create_task(publish_on_and_on()) for _ in range(20)]
        for _ in range(3):
            before = len(confirmed)
            await until(lambda before=before: len(confirmed) > before + 300)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        stopping = True
        await asyncio.gather(*publishers)
        await until(lambda: confirmed <= set(inbox.bodies))
        assert transport.health().reconnects >= 3


async def test_a_replica_is_not_used(fresh_server: FreshServer) -> None:
    """Nor a server that was demoted while connected: the next of the list is."""
    one, two = fresh_server(Redis), fresh_server(Redis)
    config = config_for(one, brokers=(f"localhost:{one.port}", f"localhost:{two.port}"))
    inbox = Inbox()
    async with admin_of(one) as first, admin_of(two) as second:
        await second.acl_setuser("praval", enabled=True, passwords=[f"+{one.password}"])
        await first.replicaof("localhost", "1")
        async with connected(config) as transport:
            assert str(two.port) in transport.health().broker
            await transport.subscribe("news", inbox, group="readers")
            await transport.publish("news", b"1")
            await inbox.has(1)
            await first.replicaof("NO", "ONE")
            await second.replicaof("localhost", "1")
            await until(lambda: _publishes_routed(transport, "news"))
            assert str(one.port) in transport.health().broker
            await until(lambda: len(inbox.bodies) >= 2)


async def test_a_server_that_loads_its_data_is_waited_for(pki: PKI) -> None:
    """It accepts connections and refuses every command; that is no error of the login."""
    server = SlowLoading(durable=True, pki=pki)
    await asyncio.to_thread(server.start)
    try:
        config, inbox = config_for(server), Inbox()
        async with connected(config) as transport, admin_of(server) as admin:
            subscription = await transport.subscribe("news", inbox, group="readers")
            await transport.unsubscribe(subscription)
            await transport.publish("news", b"x")
            filling = admin.pipeline(transaction=False)
            for number in range(8000):  # it looks at its connections after each 1024
                filling.set(f"key{number}", "")
            await filling.execute()
            await asyncio.to_thread(server.kill)
            starting = asyncio.create_task(asyncio.to_thread(server.start))
            await until(lambda: _says_that_it_loads(config))
            await starting
            await transport.subscribe("news", inbox, group="readers")
            assert await inbox.has(1) == [b"x"]
    finally:
        await asyncio.to_thread(server.close)


async def _says_that_it_loads(config: Config) -> bool:
    try:
        async with connected(config):
            return False
    except TransportConnectionError as error:
        return "cannot serve now: Redis is loading" in str(error)


async def test_a_cluster_is_refused(pki: PKI) -> None:
    """What belongs together has keys that a cluster would put on different nodes."""
    server = ClusterNode(pki=pki)
    await asyncio.to_thread(server.start)
    try:
        async with admin_of(server) as admin:
            await admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            await until(lambda: _is_up(admin))
            with pytest.raises(TransportUnsupportedError, match="single server"):
                async with connected(config_for(server)):
                    pass
    finally:
        await asyncio.to_thread(server.close)


async def _is_up(admin: redis.asyncio.Redis) -> bool:
    return "cluster_state:ok" in str(await admin.execute_command("CLUSTER", "INFO"))


class ClusterNode(Redis):
    """A cluster of one."""

    bus = free_port()

    def command(self) -> list[str]:
        return [*super().command(), "--cluster-enabled", "yes", "--cluster-port", str(self.bus)]


class SlowLoading(Redis):
    """A server that answers while it loads, and takes a while to."""

    def command(self) -> list[str]:
        return [*super().command(), "--key-load-delay", "100"]  # microseconds


async def test_a_full_server_is_waited_for_and_can_be_drained(fresh_server: FreshServer) -> None:
    """Publishers are told what is the matter; subscribing, reading and leaving go on."""
    server = fresh_server(Redis)
    inbox = Inbox()
    patience = {"confirm_timeout": 1, "publish_timeout": 2.5}
    async with connected(config_for(server, **patience)) as transport, admin_of(server) as admin:
        subscription = await transport.subscribe("news", inbox, group="readers")
        await transport.unsubscribe(subscription)
        await transport.publish("news", bytes(2_000_000))
        await admin.config_set("maxmemory", "1mb")
        with pytest.raises(TransportTimeoutError, match="short of memory"):
            await transport.publish("news", b"x")
        waiting = asyncio.create_task(transport.publish("news", b"y"))
        async with connected(transport_config(transport)) as other:  # connects all the same
            subscription = await other.subscribe("news", inbox, group="readers")
            await other.subscribe("olds.*", inbox)
            await inbox.has(1)
            await until(lambda: other.health().acknowledged == 1)
            await other.unsubscribe(subscription)
        await admin.config_set("maxmemory", "0")
        assert (await waiting).routed is True
        assert transport.health().reconnects == 0


def transport_config(transport: RedisTransport) -> Config:
    """Return what leads another one to the same messages."""
    config = transport.config
    return {"url": config.url, "ca_cert": config.ca_cert, "prefix": config.prefix}


async def test_cancelled_calls_leave_the_transport_usable(config: Config) -> None:
    """Wherever they are: publications, subscriptions and their ends."""
    inbox = Inbox()
    async with connected(config) as transport:
        for steps in range(12):
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: transport.publish("news", b"?"),
                lambda: transport.subscribe("news", inbox),
                lambda: transport.subscribe("w.*", inbox, group="w"),
            ]
            for call in calls:
                task = asyncio.ensure_future(call())
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                if not task.cancelled() and isinstance(task.result(), Subscription):
                    ending = asyncio.ensure_future(transport.unsubscribe(task.result()))
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    ending.cancel()
                    await asyncio.wait([ending])
        await transport.subscribe("news", inbox, group="readers")
        await transport.publish("news", b"!")
        await until(lambda: b"!" in inbox.bodies)
        assert transport.health().reconnects == 0


async def test_nothing_stays_behind_after_close(config: Config, admin: redis.asyncio.Redis) -> None:
    """No task, no connection, no wake-up key."""
    tasks = asyncio.all_tasks()
    name = config["prefix"]
    async with connected(config, client_id=name, connection_pool_size=3) as transport:
        await transport.subscribe("news", Inbox(), group="readers")
        await transport.subscribe("news.*", Inbox())
        assert len([c for c in await admin.client_list() if c["name"] == name]) == 5
    assert asyncio.all_tasks() <= tasks

    async def gone() -> bool:
        return not [c for c in await admin.client_list() if c["name"] == name]

    await until(gone)
    kept = await admin.keys(f"{name}:*")
    assert {key.removeprefix(name) for key in kept} == {":dead", ":news", "::topics"}


# -- login and configuration -----------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"password": "wr0ng-s3cret"},
        {"username": "nobody"},
        {"username": "default", "password": "wr0ng-s3cret"},
    ],
)
async def test_a_refused_login_says_so_and_shows_no_password(
    config: Config, changes: Config, redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """In the error, in its causes and in the log; and the connection is closed."""
    caplog.set_level(logging.DEBUG)
    before = connections_to(redis_server)
    with pytest.raises(TransportLoginError, match="refused the login") as caught:
        async with connected(config, **changes):
            pass
    assert connections_to(redis_server) <= before
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert changes.get("password", config["url"].split(":")[2].split("@")[0]) not in shown


def connections_to(server: Redis) -> set[int]:
    """Return the own ports of this process's connections to it."""
    ours = psutil.Process().net_connections("tcp")
    return {each.laddr.port for each in ours if each.raddr and each.raddr.port == server.port}


async def test_without_credentials_the_login_is_refused(
    config: Config, redis_server: Redis
) -> None:
    """And not taken for a broken connection."""
    with pytest.raises(TransportLoginError):
        async with connected(config, url=f"rediss://localhost:{redis_server.port}"):
            pass


async def test_a_user_with_few_rights_is_enough(
    config: Config, admin: redis.asyncio.Redis, redis_server: Redis
) -> None:
    """`~prefix:* +@all -@dangerous`; outside of the prefix it is refused, and told why."""
    prefix, inbox = config["prefix"], Inbox()
    await admin.execute_command(
        "ACL", "SETUSER", prefix, "on", ">pw", f"~{prefix}:*", "+@all", "-@dangerous"
    )
    try:
        login = {"username": prefix, "password": "pw"}
        async with connected(config, **login, client_id="x", claim_idle=0.3) as transport:
            subscription = await transport.subscribe(["news", "w.*"], inbox, group="readers")
            private = await transport.subscribe("w.#", inbox)
            await transport.publish("news", b"x")
            await transport.publish("w.1", b"x")
            await inbox.has(3)
            await transport.unsubscribe(private)
            await transport.unsubscribe(subscription, drop_group=True)
        with pytest.raises(TransportLoginError, match="ACL"):
            async with connected(config, **login, prefix="other"):
                pass
    finally:
        await admin.acl_deluser(prefix)


async def test_no_password_is_logged_at_any_level(
    config: Config, redis_server: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Through connecting, losing, reconnecting, failing and closing."""
    caplog.set_level(1)
    with TlsFront(redis_server, redis_server.pki.server_context()) as front:
        async with connected(config, url=front.url) as transport:
            inbox = Inbox()
            await transport.subscribe("news", inbox, group="readers")
            front.refuse()
            await until(lambda: transport.health().error)
            assert redis_server.password not in repr(transport.health())
            front.resume()
            await transport.publish("news", b"x")
            await inbox.has(1)
            assert redis_server.password not in repr(transport) + repr(transport.config)
    assert caplog.text
    assert redis_server.password not in caplog.text


async def test_redis_url_is_another_name_of_url(config: Config) -> None:
    """The guide's custom transport calls it so."""
    url = config.pop("url")
    async with connected(config, redis_url=url) as transport:
        await transport.publish("news", b"x")
    with pytest.raises(ConfigurationError, match="not both"):
        async with connected(config, redis_url=url, url=url):
            pass


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"url": "rediss://localhost/0?ssl_cert_reqs=none"}, "ssl_cert_reqs"),
        ({"url": "rediss://localhost/cache"}, "database"),
        ({"url": "redis://localhost/0"}, "allow_plaintext"),
        ({"prefix": ""}, "prefix"),
        ({"db": -1}, "db"),
        ({"claim_idle": 0}, "claim_idle"),
        ({"claim_idel": 30}, "claim_idle"),
        ({"stream_maxlen": 0}, "stream_maxlen"),
    ],
)
async def test_a_config_that_cannot_be_used_is_refused(changes: Config, match: str) -> None:
    """By name, before anything is connected to."""
    with pytest.raises(ConfigurationError, match=match):
        await RedisTransport().initialize(changes)


@pytest.mark.parametrize("how", ["path", "key"])
async def test_the_database_is_chosen_by_url_or_key(
    config: Config, redis_server: Redis, how: str
) -> None:
    """Topics of two databases are strangers."""
    there = {"db": 3} if how == "key" else {"url": f"{redis_server.url}3"}
    inbox, elsewhere = Inbox(), Inbox()
    async with connected(config, **there) as third, connected(config) as default:
        await third.subscribe("news", inbox, group="readers")
        await default.subscribe("news", elsewhere, group="readers")
        await third.publish("news", b"3")
        await default.publish("news", b"0")
        assert await inbox.has(1) == [b"3"]
        assert await elsewhere.has(1) == [b"0"]


async def test_the_guides_keys_reach_the_sockets(
    config: Config, admin: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`high_performance_config` as printed, and its opposites."""
    options: list[tuple[int, ...]] = []
    original = TransportSocket.setsockopt

    def noting(self: TransportSocket, *option: int) -> None:
        options.append(option)
        original(self, *option)

    monkeypatch.setattr(TransportSocket, "setsockopt", noting)
    fast = {
        "connection_pool_size": 20,
        "prefetch_count": 1000,
        "compression": "gzip",
        "keepalive": 17,
        "tcp_nodelay": False,
        "buffer_size": 65536,
    }
    inbox, name = Inbox(), config["prefix"]
    async with connected(config, **fast, client_id=name) as transport:
        assert len([c for c in await admin.client_list() if c["name"] == name]) == 20
        await transport.subscribe("news", inbox)
        await transport.publish("news", bytes(100_000))
        assert await inbox.has(1) == [bytes(100_000)]
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY, False) in options
    assert (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 17) in options
    assert (socket.SOL_SOCKET, socket.SO_SNDBUF, 65536) in options
    assert (socket.SOL_SOCKET, socket.SO_RCVBUF, 65536) in options
