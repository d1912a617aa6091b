"""Groups of subscribers that never come back: what brokers tell of them, and how they go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import Any

import pytest

from praval.core.transport import Group, MessageTransport, transport_connection
from praval.errors import (
    ConfigurationError,
    GroupInUseError,
    TransportClosedError,
    TransportUnsupportedError,
)
from praval.testing.transports import Proxy
from tests.servers import ActiveMQ, Mosquitto, RabbitMQ, Redis, Server

_numbers = count()
Opened = AbstractAsyncContextManager[MessageTransport]


def over(protocol: str, at: Server | None = None, **more: Any) -> Opened:
    if at is None:
        return transport_connection(protocol, more)
    config = {"url": at.url, "ca_cert": str(at.pki.ca), **more}
    return transport_connection(protocol, config)


@pytest.fixture
def group() -> str:
    """A group of this test's own; a name that brokers get in another form."""
    return f"groups{next(_numbers)}.nigh~t ü"


@pytest.fixture(params=["local", "amqp", "redis"])
def opened(request: pytest.FixtureRequest) -> Callable[[], Opened]:
    """Where the broker tells of groups."""
    if request.param == "local":
        return lambda: over("local", host=f"groups{id(request)}")
    name = {"amqp": "rabbitmq", "redis": "redis_server"}[request.param]
    server: Server = request.getfixturevalue(name)
    return lambda: over(request.param, server)


async def until(holds: Callable[[], Awaitable[object]], what: str) -> None:
    try:
        async with asyncio.timeout(20):
            while not await holds():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"never happened: {what}")


async def leave_behind(opened: Callable[[], Opened], group: str, *topics: str) -> None:
    """Let there be a group that has collected a message of each topic, and no subscriber."""
    async with opened() as transport:
        await transport.subscribe(topics, print, group=group)
    async with opened() as transport:
        for topic in topics:
            await transport.publish(topic, b"for nobody")


async def test_a_group_is_told_of_by_name_with_what_it_has_collected(
    opened: Callable[[], Opened], group: str
) -> None:
    """Whether anybody is there or not; a name that is none is left out."""
    topics = [f"{group.partition('.')[0]}.{name}" for name in "ab"]
    async with opened() as look:
        assert await look.groups([group]) == []
        await leave_behind(opened, group, *topics)
        assert await look.groups([group, "no.such"]) == [Group(group, 0, 2)]
        async with opened() as back:
            gate = asyncio.Event()
            await back.subscribe(topics, lambda _: gate.wait(), group=group)
            await until(lambda: has(look, group, members=1), "it is seen")
            gate.set()
            await until(lambda: has(look, group, messages=0), "all is read")
        await until(lambda: has(look, group, members=0), "it has gone")


async def has(look: MessageTransport, group: str, **told: int) -> bool:
    [found] = await look.groups([group])
    return all(getattr(found, name) == number for name, number in told.items())


async def test_a_group_that_nobody_is_subscribed_to_is_dropped(
    opened: Callable[[], Opened], group: str
) -> None:
    """With what it has collected; what is published later is for nobody, and a second time is
    told."""
    topic = group.partition(".")[0]
    await leave_behind(opened, group, topic)
    async with opened() as transport:
        assert await transport.drop_group(group) is True
        assert await transport.groups([group]) == []
        assert await transport.drop_group(group) is False
        confirmation = await transport.publish(topic, b"for nobody")
        assert confirmation is not None
        assert confirmation.routed is False


async def test_a_group_in_use_is_not_dropped(opened: Callable[[], Opened], group: str) -> None:
    """Its subscriber goes on, over the same connection."""
    heard: list[bytes] = []
    topic = group.partition(".")[0]
    async with opened() as busy, opened() as transport:
        await busy.subscribe(topic, heard.append, group=group)
        with pytest.raises(GroupInUseError):
            await transport.drop_group(group)
        await transport.publish(topic, b"still here")

        async def came() -> bool:
            return heard == [b"still here"]

        await until(came, "it came")
        assert busy.health().reconnects == transport.health().reconnects == 0


@pytest.mark.parametrize("protocol", ["local", "redis"])
async def test_all_groups_are_told_where_the_broker_knows_them(
    protocol: str, redis_server: Redis, group: str
) -> None:
    """Those with wildcards that have heard nothing too; subscribers without a group are none."""
    where = {"prefix": group} if protocol == "redis" else {"host": group}
    server = redis_server if protocol == "redis" else None
    async with over(protocol, server, **where) as transport:
        await transport.subscribe("news", print)
        await transport.subscribe(["a.b", "wild.#"], print, group=group)
        await transport.subscribe("nothing.*", print, group="quiet")
        found = {each.name: each for each in await transport.groups()}
        assert found == {
            "dead": Group("dead", 0, 0), group: Group(group, 1, 0), "quiet": Group("quiet", 1, 0),
        }  # fmt: skip


async def test_a_group_with_wildcards_goes_with_its_patterns(
    redis_server: Redis, group: str
) -> None:
    """Else it would be back with the next topic that matches."""
    topic = group.partition(".")[0]
    async with over("redis", redis_server, prefix=group) as transport:
        handle = await transport.subscribe(f"{topic}.#", print, group=group)
        assert handle is not None
        await transport.unsubscribe(handle)
        assert await transport.drop_group(group) is True
        confirmation = await transport.publish(f"{topic}.new", b"x")
        assert confirmation is not None
        assert confirmation.routed is False
        assert [each.name for each in await transport.groups()] == ["dead"]


async def test_a_group_of_a_redis_client_that_was_killed_is_in_use_for_its_lease(
    redis_server: Redis, monkeypatch: pytest.MonkeyPatch, group: str
) -> None:
    """It might come back until then."""
    monkeypatch.setattr("praval_transports.redis.LEASE", 0)
    async with (
        over("redis", redis_server) as transport,
        Proxy("localhost", redis_server.port) as way,
    ):
        killed = {**way.changes, "keepalive": 1, "close_timeout": 0.1}
        async with over("redis", redis_server, **killed) as member:
            await member.subscribe(group.partition(".")[0], print, group=group)
            await way.refuse()
        with pytest.raises(GroupInUseError, match="did not say good-bye"):
            await transport.drop_group(group)

        async def counts_as_gone() -> bool:
            return await transport.groups([group]) == [Group(group, members=0, messages=0)]

        await until(counts_as_gone, "its lease ended")
        assert await transport.drop_group(group) is True


async def test_a_closed_transport_tells_and_drops_nothing(
    opened: Callable[[], Opened], group: str
) -> None:
    async with opened() as transport:
        pass
    with pytest.raises(TransportClosedError):
        await transport.groups([group])
    with pytest.raises(TransportClosedError):
        await transport.drop_group(group)


async def test_rabbitmq_tells_of_groups_by_name_only(rabbitmq: RabbitMQ) -> None:
    """The error says which command lists them."""
    async with over("amqp", rabbitmq) as transport:
        with pytest.raises(TransportUnsupportedError, match=r"rabbitmqctl list_queues.*praval:"):
            await transport.groups()


async def test_on_mqtt_the_session_of_one_client_is_dropped(
    mosquitto: Mosquitto, group: str
) -> None:
    """By its client id, from another client; whether there was one is told. The rest stays."""
    topic = group.partition(".")[0]
    for name in ("gone", "stays"):
        async with over("mqtt", mosquitto, client_id=f"{topic}-{name}") as transport:
            await transport.subscribe(topic, print, group=group)
    async with over("mqtt", mosquitto) as transport:
        with pytest.raises(ConfigurationError, match="by its client_id"):
            await transport.drop_group(group)
        assert await transport.drop_group(group, member=f"{topic}-gone") is True
        assert await transport.drop_group(group, member=f"{topic}-gone") is False
        for number in range(4):
            await transport.publish(topic, b"%d" % number)
    heard: list[bytes] = []
    async with over("mqtt", mosquitto, client_id=f"{topic}-stays") as transport:
        await transport.subscribe(topic, heard.append, group=group)

        async def all_came() -> bool:
            return len(heard) == 4

        await until(all_came, "what was published went to the one that is left")
        with pytest.raises(GroupInUseError, match="itself"):
            await transport.drop_group(group)
        with pytest.raises(TransportUnsupportedError, match="sessions"):
            await transport.groups()


async def test_on_mqtt_what_waited_goes_with_its_session(mosquitto: Mosquitto, group: str) -> None:
    """Also where it would come in again meanwhile."""
    topic = group.partition(".")[0]

    def opened() -> Opened:
        return over("mqtt", mosquitto, client_id=topic)

    await leave_behind(opened, group, topic, f"{topic}.more")
    heard: list[bytes] = []
    async with opened() as transport:
        assert await transport.drop_group(group) is True
        assert transport.health().reconnects == 0
        await transport.subscribe(topic, heard.append, group=group)
        await transport.publish(topic, b"new")

        async def came() -> bool:
            return bool(heard)

        await until(came, "the new one came")
        assert heard == [b"new"]


async def test_other_brokers_have_no_members_to_name(redis_server: Redis) -> None:
    async with over("redis", redis_server) as transport:
        with pytest.raises(ConfigurationError, match="name none of them"):
            await transport.drop_group("x", member="y")


async def test_activemq_says_which_queues_to_look_for(activemq: ActiveMQ) -> None:
    """It neither lists nor deletes any by STOMP."""
    async with over("stomp", activemq) as transport:
        with pytest.raises(TransportUnsupportedError, match=r"Consumer\.a%2Eb\.VirtualTopic"):
            await transport.drop_group("a.b")
        with pytest.raises(TransportUnsupportedError, match="own tools"):
            await transport.groups(["a.b"])


async def test_rabbitmq_drops_a_group_over_stomp(rabbitmq: RabbitMQ, group: str) -> None:
    """It does not tell whether there was one; what it had collected is gone."""
    topic = group.partition(".")[0]

    url, ca = rabbitmq.stomp_url, str(rabbitmq.pki.ca)

    def opened() -> Opened:
        return over("stomp", url=url, ca_cert=ca, server="rabbitmq")

    await leave_behind(opened, group, topic)
    heard: list[bytes] = []
    async with opened() as transport:
        assert await transport.drop_group(group) is None
        await transport.subscribe(topic, heard.append, group=group)
        await transport.publish(topic, b"new")

        async def came() -> bool:
            return bool(heard)

        await until(came, "the new one came")
        assert heard == [b"new"]
