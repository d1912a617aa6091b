"""The MQTT transport: sessions, order of acknowledgement, dead letters, other people's messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from typing import Any

import aiomqtt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from praval.core.topics import decode_segment, join
from praval.core.transport import Delivery, GiveBack, MessageTransport, transport_connection
from praval.errors import ConfigurationError, TransportUnsupportedError
from praval_transports import mqtt as module
from praval_transports.config import Address
from praval_transports.mqtt import MQTTConfig
from praval_transports.mqtt_codec import Packed, read_publication
from praval_transports.mqtt_socket import open_socket
from tests.servers import Mosquitto, TlsFront
from tests.servers.plugin import FreshServer

Config = dict[str, Any]
_numbers = count()


@pytest.fixture
def config(mosquitto: Mosquitto) -> Config:
    """A config whose client id and dead-letter topic no other test uses."""
    return config_for(mosquitto)


def config_for(server: Mosquitto, url: str | None = None, **more: Any) -> Config:
    number = next(_numbers)
    return {
        "url": url or server.url,
        "ca_cert": str(server.pki.ca),
        "client_id": f"client{number}",
        "dead_letter_topic": f"dead{number}",
        "retry_delay": 0.01,
        "reconnect_delay": 0.05,
        "max_attempts": 2,
        **more,
    }


@pytest.fixture
def topic() -> str:
    """A topic that no other test uses."""
    return f"topic{next(_numbers)}"


@pytest.fixture
async def front(mosquitto: Mosquitto) -> AsyncIterator[TlsFront]:
    """A way to the broker that can be cut."""
    with TlsFront(mosquitto, mosquitto.pki.server_context()) as front:
        yield front


def connected(config: Config, **changes: Any) -> Any:
    return transport_connection("mqtt", {**config, **changes})


def foreign(server: Mosquitto, **more: Any) -> aiomqtt.Client:
    """A client of another program."""
    return aiomqtt.Client(
        server.host,
        server.port,
        username=server.user,
        password=server.password,
        protocol=aiomqtt.ProtocolVersion.V5,
        tls_context=server.pki.client_context(),
        **more,
    )


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
    """A callback that keeps what it gets, and then does what it is told to."""

    def __init__(self, react: Callable[[Delivery], Any] | None = None) -> None:
        self.got: list[Delivery] = []
        self._react = react

    async def __call__(self, message: Delivery) -> None:
        self.got.append(message)
        if self._react is not None:
            answer = self._react(message)
            if isinstance(answer, Awaitable):
                await answer

    @property
    def bodies(self) -> list[bytes]:
        return [bytes(message) for message in self.got]

    async def has(self, number: int) -> list[bytes]:
        await until(lambda: len(self.got) >= number)
        return self.bodies


async def nobody_hears(transport: MessageTransport, topic: str) -> bool:
    confirmation = await transport.publish(topic, b"anybody?")
    assert confirmation is not None
    return confirmation.routed is False


async def reconnected(transport: MessageTransport, times: int = 1) -> None:
    await until(
        lambda: transport.health().reconnects >= times and transport.health().state == "connected"
    )


# -- sessions --------------------------------------------------------------------------------


async def test_what_a_member_held_when_it_was_cut_off_waits_for_it(
    mosquitto: Mosquitto, front: TlsFront, topic: str
) -> None:
    gate = asyncio.Event()
    inbox, other = Inbox(lambda m: gate.wait() if m.attempt == 1 else None), Inbox()
    async with (
        connected(config_for(mosquitto, front.url)) as member,
        connected(config_for(mosquitto)) as living,
    ):
        await member.subscribe(topic, inbox, group="desk")
        await member.publish(topic, b"one")
        await inbox.has(1)
        await living.subscribe(topic, other, group="desk")
        await asyncio.to_thread(front.refuse)
        await until(lambda: member.health().state == "connecting")
        for number in range(10):
            await living.publish(topic, b"%d" % number)
        gate.set()
        shared_out = len(other.got)
        await asyncio.to_thread(front.resume)
        await until(lambda: len({*inbox.bodies, *other.bodies}) == 11)
        assert b"one" not in other.bodies
        assert [m.attempt for m in inbox.got if m == b"one"] == [1, 2]
        assert len(inbox.got) + len(other.got) == 12
        assert shared_out < 10, "Mosquitto shares out to those that are away as well"


async def test_a_group_ends_when_its_client_has_been_away_for_session_expiry(
    config: Config, topic: str
) -> None:
    async with connected(config, client_id=None) as publisher:
        async with connected(config, session_expiry=1) as client:
            await client.subscribe(topic, Inbox(), group="desk")
        await until(lambda: nobody_hears(publisher, topic))


async def test_a_group_of_a_client_without_a_name_ends_when_it_is_closed(
    config: Config, topic: str
) -> None:
    async with connected(config) as publisher:
        async with connected(config, client_id=None) as client:
            await client.subscribe(topic, Inbox(), group="desk")
            assert not await nobody_hears(publisher, topic)
        await until(lambda: nobody_hears(publisher, topic))


async def test_a_client_without_a_name_keeps_its_group_while_nobody_of_it_is_subscribed(
    config: Config, topic: str
) -> None:
    async with connected(config, client_id=None) as client:
        inbox = Inbox()
        await client.subscribe(topic, Inbox(), group="desk")
        await client.unsubscribe(topic)
        await client.publish(topic, b"meanwhile")
        await client.subscribe(topic, inbox, group="desk")
        assert await inbox.has(1) == [b"meanwhile"]


async def test_what_a_client_without_a_name_leaves_when_it_dies_does_not_pile_up(
    mosquitto: Mosquitto, front: TlsFront, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RANDOM_EXPIRY", 1)
    config = config_for(mosquitto, front.url, client_id=None)
    async with connected(config_for(mosquitto)) as publisher, connected(config) as client:
        await client.subscribe(topic, Inbox(), group="desk")
        await asyncio.to_thread(front.refuse)
        await until(lambda: nobody_hears(publisher, topic))


async def test_a_client_without_a_name_finds_its_messages_after_a_short_loss(
    mosquitto: Mosquitto, front: TlsFront, topic: str
) -> None:
    config = config_for(mosquitto, front.url, client_id=None)
    async with connected(config_for(mosquitto)) as publisher, connected(config) as client:
        inbox = Inbox()
        await client.subscribe(topic, inbox, group="desk")
        await asyncio.to_thread(front.refuse)
        await until(lambda: client.health().state == "connecting")
        await publisher.publish(topic, b"meanwhile")
        await asyncio.to_thread(front.resume)
        assert await inbox.has(1) == [b"meanwhile"]


async def test_another_process_with_the_same_client_id_is_told_of(
    mosquitto: Mosquitto, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(config) as client:
        intruder = foreign(mosquitto, identifier=config["client_id"])
        with contextlib.suppress(aiomqtt.MqttError):  # it is ended in its turn
            async with intruder:
                await reconnected(client)
        assert f"connection '{config['client_id']}'" in caplog.text
        assert "another process has this client id" in caplog.text
        await client.publish("again", b"!")


async def test_the_loss_of_one_session_replaces_the_whole_link(
    mosquitto: Mosquitto, config: Config, topic: str
) -> None:
    async with connected(config) as client:
        inbox, private = Inbox(), Inbox()
        await client.subscribe(topic, inbox, group="desk")
        await client.subscribe(topic, private)
        with contextlib.suppress(aiomqtt.MqttError):
            async with foreign(mosquitto, identifier=f"{config['client_id']}:desk"):
                await reconnected(client)
        await client.publish(topic, b"again")
        assert await inbox.has(1) == await private.has(1) == [b"again"]


async def test_a_second_subscription_of_a_group_does_not_disturb_the_first(
    config: Config, topic: str
) -> None:
    gate = asyncio.Event()
    async with connected(config, prefetch_count=1) as client:
        first, second = Inbox(lambda _: gate.wait()), Inbox(lambda _: gate.wait())
        await client.subscribe(topic, first, group="desk")
        await client.publish(topic, b"one")
        await first.has(1)
        await client.publish(topic, b"two")  # it waits at the broker: the window is full
        await client.subscribe(topic, second, group="desk")
        assert await second.has(1) == [b"two"]
        gate.set()
        await until(lambda: client.health().acknowledged == 2)
        assert [m.attempt for m in first.got + second.got] == [1, 1]
        assert client.health().reconnects == 0


async def test_a_group_that_is_dropped_while_messages_come_in_costs_no_connection(
    config: Config, topic: str
) -> None:
    async with connected(config) as client:
        inbox = Inbox()
        handle = await client.subscribe(topic, inbox, group="desk")
        publishing = [asyncio.ensure_future(client.publish(topic, b"")) for _ in range(300)]
        await inbox.has(1)
        await client.unsubscribe(handle, drop_group=True)
        await asyncio.gather(*publishing)
        await until(lambda: nobody_hears(client, topic))
        assert client.health().reconnects == 0


# -- acknowledgement -------------------------------------------------------------------------


async def test_what_was_done_before_an_earlier_message_comes_again_after_a_loss(
    mosquitto: Mosquitto, front: TlsFront, topic: str
) -> None:
    """MQTT demands that acknowledgements keep the order of arrival."""
    gate = asyncio.Event()
    inbox = Inbox(lambda m: gate.wait() if (m, m.attempt) == (b"slow", 1) else None)
    async with connected(config_for(mosquitto, front.url)) as client:
        await client.subscribe(topic, inbox, group="desk", concurrency=2)
        await client.publish(topic, b"done")
        await until(lambda: client.health().acknowledged == 1)
        for body in (b"slow", b"quick"):
            await client.publish(topic, body)
        await until(lambda: client.health().acknowledged == 2)
        await asyncio.to_thread(front.cut)
        await reconnected(client)
        gate.set()
        assert sorted((await inbox.has(5))[3:]) == [b"quick", b"slow"]
        assert [m.attempt for m in inbox.got] == [1, 1, 1, 2, 2]


async def test_what_is_given_back_is_passed_over_and_comes_again_after_a_loss(
    mosquitto: Mosquitto, front: TlsFront, topic: str
) -> None:
    def give_back(message: Delivery) -> None:
        if message == b"not now" and message.attempt == 1:
            raise GiveBack

    inbox = Inbox(give_back)
    async with connected(config_for(mosquitto, front.url)) as client:
        await client.subscribe(topic, inbox, group="desk")
        for body in (b"not now", b"one", b"two"):
            await client.publish(topic, body)
        await until(lambda: client.health().acknowledged == 2)
        await client.publish(topic, b"three")
        assert (await inbox.has(4))[3] == b"three"
        await asyncio.to_thread(front.cut)
        await client.publish(topic, b"four")
        await until(lambda: b"four" in inbox.bodies and inbox.bodies.count(b"not now") == 2)
        assert inbox.bodies.count(b"one") == inbox.bodies.count(b"two") == 1


async def test_when_all_places_are_given_back_the_connection_is_replaced(
    config: Config, topic: str
) -> None:
    def give_back(message: Delivery) -> None:
        if message.attempt == 1:
            raise GiveBack

    async with connected(config, prefetch_count=2) as client:
        inbox = Inbox(give_back)
        await client.subscribe(topic, inbox, group="desk")
        for body in (b"one", b"two"):
            await client.publish(topic, body)
        await until(lambda: client.health().acknowledged == 2)
        assert inbox.bodies == [b"one", b"two"] * 2
        assert client.health().reconnects == 1


async def test_cancelled_publications_leave_room_for_others(
    mosquitto: Mosquitto, front: TlsFront, topic: str
) -> None:
    async with connected(config_for(mosquitto, front.url)) as client:
        await asyncio.to_thread(front.stall)
        publishing = [asyncio.ensure_future(client.publish(topic, b"")) for _ in range(60)]
        await asyncio.sleep(0)
        for each in publishing:
            each.cancel()
        await asyncio.wait(publishing)
        await asyncio.to_thread(front.resume)
        await asyncio.gather(*(client.publish(topic, b"") for _ in range(60)))
        assert client.health().reconnects == 0


async def test_publications_that_wait_for_room_go_over_the_next_connection(
    mosquitto: Mosquitto, front: TlsFront, topic: str
) -> None:
    forever = {"confirm_timeout": 3600, "publish_timeout": 3600}
    async with connected(config_for(mosquitto, front.url, **forever)) as client:
        await asyncio.to_thread(front.stall)
        publishing = [asyncio.ensure_future(client.publish(topic, b"")) for _ in range(60)]
        await asyncio.sleep(0)
        for each in publishing[:20]:  # as many as Mosquitto takes at once
            each.cancel()
        await asyncio.wait(publishing[:20])
        await asyncio.to_thread(front.cut)
        await asyncio.to_thread(front.resume)
        async with asyncio.timeout(20):
            await asyncio.gather(*publishing[20:])


# -- patterns that overlap -------------------------------------------------------------------


async def test_members_with_overlapping_patterns_handle_each_message_once(
    config: Config, topic: str
) -> None:
    patterns = [f"{topic}.a", f"{topic}.*", f"{topic}.#", "*.a"]
    async with (
        connected(config, client_id="one") as one,
        connected(config, client_id="two") as two,
    ):
        inboxes = [Inbox(), Inbox()]
        for member, inbox in zip((one, two), inboxes, strict=True):
            await member.subscribe(patterns, inbox, group=f"desk{topic}")
        bodies = [b"%d" % number for number in range(40)]
        for body in bodies:
            await one.publish(f"{topic}.a", body)
        await until(lambda: sum(len(inbox.got) for inbox in inboxes) >= 40)
        await until(lambda: all(_all_acknowledged(each) for each in (one, two)))
        assert sorted(inboxes[0].bodies + inboxes[1].bodies) == sorted(bodies)


def _all_acknowledged(transport: MessageTransport) -> bool:
    health = transport.health()
    return health.received == health.acknowledged


async def test_a_group_may_change_its_patterns_and_gets_each_message_once(
    config: Config, topic: str
) -> None:
    async with connected(config, client_id=None) as publisher:
        async with connected(config) as client:
            await client.subscribe([f"{topic}.a", f"{topic}.b"], Inbox(), group="desk")
        for name in "ab":
            await publisher.publish(f"{topic}.{name}", name.encode())
        async with connected(config, prefetch_count=1) as client:
            subscribed = asyncio.Event()
            inbox = Inbox(lambda _: subscribed.wait())
            await client.subscribe([f"{topic}.*", f"{topic}.#"], inbox, group="desk")
            subscribed.set()
            await publisher.publish(f"{topic}.c", b"new")
            await inbox.has(3)
            await publisher.publish(f"{topic}.a", b"newer")  # the session hears that twice
            await publisher.publish(f"{topic}.c", b"last")
            await inbox.has(5)
            assert inbox.bodies == [b"a", b"b", b"new", b"newer", b"last"]


# -- dead letters ----------------------------------------------------------------------------


def fail(_: Delivery) -> None:
    raise ValueError("always")


async def make_letter(config: Config, topic: str, body: bytes = b"poison") -> None:
    async with connected(config) as client:
        await client.subscribe(topic, Inbox(fail), group="desk")
        await client.publish(topic, body, headers={"a": "b"})
        await until(lambda: client.health().acknowledged == 1)
        assert client.health().dead == 1


@pytest.mark.parametrize("body", [b"poison", b""])
async def test_a_dead_letter_waits_for_any_client_and_is_gone_when_it_is_acknowledged(
    config: Config, topic: str, body: bytes
) -> None:
    await make_letter(config, topic, body)
    dead = config["dead_letter_topic"]
    letters, later = Inbox(), Inbox()
    for inbox in (letters, later):
        async with connected(config, client_id=None) as anybody:
            await anybody.subscribe(dead, inbox, group=dead)
            await anybody.publish(dead, b"last")
            await inbox.has(2 if inbox is letters else 1)
            await until(lambda: _all_acknowledged(anybody))
    assert sorted(letters.bodies) == sorted([body, b"last"])
    assert later.bodies == [b"last"]
    [letter] = (m for m in letters.got if m != b"last")
    assert letter.topic == dead
    assert (letter.headers["a"], letter.headers["praval-topic"]) == ("b", topic)


async def test_dead_letters_survive_a_broker_that_is_started_again(
    fresh_server: FreshServer, topic: str
) -> None:
    server = await asyncio.to_thread(fresh_server, Mosquitto, durable=True)
    config = config_for(server)
    await make_letter(config, topic)
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start)
    async with connected(config) as client:
        inbox = Inbox()
        await client.subscribe(
            config["dead_letter_topic"], inbox, group=config["dead_letter_topic"]
        )
        assert await inbox.has(1) == [b"poison"]
        assert inbox.got[0].headers["a"] == "b"


async def test_a_dead_letter_that_is_given_back_stays(config: Config, topic: str) -> None:
    await make_letter(config, topic)
    dead = config["dead_letter_topic"]

    def give_back(_: Delivery) -> None:
        raise GiveBack

    for react in (give_back, None):
        async with connected(config) as client:
            inbox = Inbox(react)
            await client.subscribe(dead, inbox, group=dead)
            assert await inbox.has(1) == [b"poison"]
            await until(lambda: client.health().given_back + client.health().acknowledged == 1)


async def test_each_dead_letter_goes_to_one_member_and_to_each_other_subscriber(
    config: Config, topic: str
) -> None:
    dead = config["dead_letter_topic"]
    async with (
        connected(config, client_id=None) as one,
        connected(config, client_id=None) as two,
    ):
        members, audit, private, wild, below = Inbox(), Inbox(), Inbox(), Inbox(), Inbox()
        await one.subscribe(dead, members, group=dead)
        await two.subscribe(f"{dead}.#", members, group=dead)
        await one.subscribe(dead, audit, group="audit")
        await one.subscribe(dead, private)
        await two.subscribe("#", wild)
        await two.subscribe(f"{dead}.*", below)
        for number in range(4):
            await make_letter(config, topic, b"%d" % number)
        await one.publish(f"{dead}.last", b"last")
        bodies = [b"0", b"1", b"2", b"3"]
        await until(lambda: b"last" in wild.bodies)
        assert await audit.has(4) == await private.has(4) == bodies
        assert [bytes(m) for m in wild.got if m.topic == dead] == bodies
        assert await below.has(1) == [b"last"]
        assert sorted(await members.has(5)) == [*bodies, b"last"]


# -- messages of other programs --------------------------------------------------------------


def properties_of(**values: Any) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


async def test_messages_of_other_programs_are_understood(
    mosquitto: Mosquitto, config: Config, topic: str
) -> None:
    said = properties_of(
        UserProperty=[("name", "grüße \ufeff"), ("praval-expires", "soon")],
        ContentType="application/json",
        CorrelationData=b"\0\1",
        ResponseTopic="answers/here",
        PayloadFormatIndicator=1,
    )
    async with connected(config) as client, foreign(mosquitto) as other:
        inbox = Inbox()
        await client.subscribe(f"{topic}/#", inbox, group="desk")
        await other.publish(f"{topic}/room 1/v1.2", b"{}", qos=1, properties=said)
        await other.publish(f"{topic}//x", b"", qos=2)
        await other.publish(topic, b"no acknowledgement", qos=0)
        await inbox.has(3)
        assert inbox.bodies == [b"{}", b"", b"no acknowledgement"]
        segments = [decode_segment(part) for part in inbox.got[0].topic.split(".")]
        assert segments == [topic, "room 1", "v1.2"]
        assert inbox.got[0].headers == {"name": "grüße \ufeff"}
        await until(lambda: client.health().acknowledged == 3)


async def test_other_programs_understand_our_messages(
    mosquitto: Mosquitto, config: Config, topic: str
) -> None:
    async with connected(config) as client, foreign(mosquitto) as other:
        await other.subscribe(f"{topic}/+", qos=1)
        await client.publish(f"{topic}.größe", b"body", priority=7, ttl=600, headers={"a": "ü"})
        message = await anext(other.messages)
        assert (str(message.topic), message.payload) == (f"{topic}/größe", b"body")
        assert (message.qos, message.retain) == (1, False)
        told: Any = message.properties
        assert 600 <= told.MessageExpiryInterval <= 660
        assert dict(told.UserProperty)["a"] == "ü"
        assert dict(told.UserProperty)["praval-priority"] == "7"


async def test_any_character_can_be_in_topics_groups_and_headers(
    config: Config, topic: str
) -> None:
    odd = "\x81\x9f\x7f\ufeff\ufdd0\uffff\U0010ffff\u2028%41"
    async with connected(config) as client:
        inbox = Inbox()
        await client.subscribe(join(topic, odd), inbox, group=odd)
        confirmation = await client.publish(join(topic, odd), b"!", headers={odd: odd})
        assert confirmation.routed
        await inbox.has(1)
        assert inbox.got[0].headers == {odd: odd}
        assert inbox.got[0].topic == join(topic, odd)


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30)


def publish_packet(topic: str, properties: bytes, body: bytes) -> bytes:
    encoded = topic.encode()
    return struct.pack("!H", len(encoded)) + encoded + b"\0\7" + properties + body


@given(st.dictionaries(TEXT, TEXT, max_size=8), st.none() | st.floats(1, 1e12), st.binary())
def test_headers_and_bodies_come_out_as_they_went_in(
    headers: dict[str, str], ttl: float | None, body: bytes
) -> None:
    packet = publish_packet("a/ü", Packed(headers, ttl).pack(), body)
    found = read_publication(0x3A, packet)
    assert (found.topic, found.body, found.headers) == ("a/ü", body, headers)
    assert (found.packet, found.again, found.identifiers) == (7, True, [])


@given(
    st.dictionaries(st.text("abcü 漢", max_size=30), st.text("abc", max_size=300), max_size=8),
    st.integers(1, 2**32 - 2),
)
def test_paho_reads_the_properties_that_are_packed_here(headers: dict[str, str], ttl: int) -> None:
    packed = Packed(headers, ttl).pack()
    read: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    _, size = read.unpack(packed + b"body")
    assert size == len(packed)
    assert dict(getattr(read, "UserProperty", ())) == headers
    assert read.MessageExpiryInterval == ttl


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_no_packet_does_more_harm_than_to_be_refused(properties: bytes, rest: bytes) -> None:
    for packet in (rest, publish_packet("a", properties, rest)):
        with contextlib.suppress(IndexError, ValueError):
            read_publication(0x32, packet)


async def test_a_header_that_mqtt_cannot_carry_is_refused(config: Config) -> None:
    async with connected(config) as client:
        with pytest.raises(ConfigurationError, match="65535 bytes"):
            await client.publish("a", b"", headers={"long": "x" * 65_536})
        await client.publish("a", b"", headers={"long": "x" * 65_535})


# -- the broker's refusals, and connections ----------------------------------------------------


class StrictMosquitto(Mosquitto):
    """Takes small packets only, and messages only below ``allowed``."""

    def prepare(self) -> None:
        rights = self.etc_dir / "rights"
        rights.write_text(f"user {self.user}\ntopic readwrite allowed/#\n")
        settings = self.etc_dir / "mosquitto.conf"
        limited = settings.read_text().replace(
            "password_file", f"acl_file {rights}\npassword_file", 1
        )
        settings.write_text(re.sub(r"max_packet_size \d+", "max_packet_size 5000", limited))
        self.own()


async def test_what_the_broker_refuses_is_an_error_and_costs_no_connection(
    fresh_server: FreshServer,
) -> None:
    server = await asyncio.to_thread(fresh_server, StrictMosquitto)
    async with connected(config_for(server)) as client:
        with pytest.raises(TransportUnsupportedError, match="Not authorized"):
            await client.publish("forbidden", b"")
        with pytest.raises(TransportUnsupportedError, match="5000 at most"):
            await client.publish("allowed.a", bytes(5000))
        await client.publish("allowed.a", bytes(4000))
        assert client.health().reconnects == 0


@pytest.mark.parametrize(
    "wrong",
    [{"keepalive": 65_536}, {"session_expiry": 0}, {"client_id": ""}, {"client_id": "a\x81"}],
)
async def test_values_that_mqtt_does_not_have_are_refused(
    config: Config, wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        async with connected(config, **wrong):
            pass


async def test_a_pool_of_connections_publishes_and_keeps_the_order_of_each_topic(
    mosquitto: Mosquitto, front: TlsFront, topic: str
) -> None:
    async with connected(config_for(mosquitto, front.url), connection_pool_size=3) as client:
        assert front.accepted == 3
        inbox = Inbox()
        await client.subscribe(f"{topic}.*", inbox)
        bodies = [b"%d" % number for number in range(200)]
        await asyncio.gather(*(client.publish(f"{topic}.{int(body) % 4}", body) for body in bodies))
        await inbox.has(200)
        for name in range(4):
            heard = [bytes(m) for m in inbox.got if m.topic == f"{topic}.{name}"]
            assert heard == bodies[name::4]


@pytest.mark.every_loop
async def test_it_works_on_each_kind_of_loop(config: Config, topic: str) -> None:
    async with connected(config) as client:
        inbox = Inbox()
        await client.subscribe(topic, inbox, group="desk")
        large = bytes(8_000_000)  # more than the socket takes at once
        await asyncio.gather(client.publish(topic, large), client.publish(topic, b"small"))
        assert await inbox.has(2) == [large, b"small"]


async def test_sockets_get_the_options_of_the_config(mosquitto: Mosquitto) -> None:
    address, context = Address(mosquitto.host, mosquitto.port), mosquitto.pki.client_context()
    for nodelay in (True, False):
        config = MQTTConfig(tcp_nodelay=nodelay, buffer_size=20_000)
        with await open_socket(address, context, config) as found:
            assert not found.getblocking()
            assert bool(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) == nodelay
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # Linux tells the double
                assert found.getsockopt(socket.SOL_SOCKET, option) in (20_000, 40_000)


async def test_a_handshake_that_is_cancelled_leaves_no_socket(mosquitto: Mosquitto) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        await reader.read()  # to its end
        writer.close()
        ended.set()

    accepted, ended = asyncio.Event(), asyncio.Event()
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        context = mosquitto.pki.client_context()
        opening = asyncio.ensure_future(open_socket(address, context, MQTTConfig()))
        await accepted.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await ended.wait()


async def test_nothing_of_the_client_library_is_logged(
    config: Config, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with connected(config) as client:
        await client.subscribe(topic, Inbox())
        await client.publish(topic, b"", headers={"token": "s3cret"})
    assert {record.name.partition(".")[0] for record in caplog.records} <= {"praval", "asyncio"}
    assert "s3cret" not in caplog.text
