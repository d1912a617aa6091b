"""The STOMP transport: other programs' messages, what is given back, queues, frames, addresses."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stomp.protocol import Protocol12  # type: ignore[import-untyped]
from stomp.utils import convert_frame  # type: ignore[import-untyped]

from praval.core.topics import encode_segment, parse_pattern
from praval.core.transport import Delivery, GiveBack, transport_connection
from praval.errors import (
    ConfigurationError,
    TransportConnectionError,
    TransportError,
    TransportLoginError,
    TransportTimeoutError,
    TransportUnsupportedError,
)
from praval_transports.config import Address
from praval_transports.stomp_connection import Connection
from praval_transports.stomp_headers import HEADERS, read_headers, write_headers
from praval_transports.stomp_servers import SERVERS
from praval_transports.stomp_servers import ActiveMQ as ActiveMQServer
from tests.servers import ActiveMQ, RabbitMQ, Server, TlsFront
from tests.servers.plugin import FreshServer

Config = dict[str, Any]
Headers = dict[str, str]
_numbers = count()


class Broker(NamedTuple):
    """A server as the tests use it."""

    name: str
    server: Server
    port: int

    def config(self, **more: Any) -> Config:
        """A config whose dead-letter topic no other test uses."""
        return {
            "host": "localhost",
            "port": self.port,
            "username": self.server.user,
            "password": self.server.password,
            "ca_cert": str(self.server.pki.ca),
            "server": self.name,
            "dead_letter_topic": f"dead{next(_numbers)}",
            "retry_delay": 0.01,
            "reconnect_delay": 0.05,
            **more,
        }

    def connected(self, **more: Any) -> Any:
        return transport_connection("stomp", self.config(**more))

    async def foreign(self) -> Connection:
        """A connection of another program; close it."""
        return await Connection.open(
            Address("localhost", self.port),
            self.server.pki.client_context(),
            lambda error: None,
            login={"login": self.server.user, "passcode": self.server.password},
            vhost="/",
            keepalive=30,
        )

    def where(self, topic: str) -> str:
        """What other programs call a (plain) topic."""
        return f"/topic/{'VirtualTopic.' if self.name == 'activemq' else ''}{topic}"


@pytest.fixture(params=["activemq", "rabbitmq"])
def broker(request: pytest.FixtureRequest, activemq: ActiveMQ, rabbitmq: RabbitMQ) -> Broker:
    """Each server that is supported."""
    if request.param == "activemq":
        return Broker("activemq", activemq, activemq.port)
    return Broker("rabbitmq", rabbitmq, rabbitmq.stomp_port)


@pytest.fixture
def classic(activemq: ActiveMQ) -> Broker:
    return Broker("activemq", activemq, activemq.port)


@pytest.fixture
def rabbit(rabbitmq: RabbitMQ) -> Broker:
    return Broker("rabbitmq", rabbitmq, rabbitmq.stomp_port)


@pytest.fixture
def topic() -> str:
    """A topic that no other test uses."""
    return f"topic{next(_numbers)}"


@pytest.fixture
def group() -> str:
    """A group that no other test uses."""
    return f"group{next(_numbers)}"


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(seconds):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


class Inbox:
    """A callback that keeps what it gets, and then does what it is told to."""

    def __init__(self, react: Callable[[Delivery], object] | None = None) -> None:
        self.got: list[Delivery] = []
        self._react = react

    async def __call__(self, message: Delivery) -> None:
        self.got.append(message)
        if self._react is not None:
            answer = self._react(message)
            if isinstance(answer, Awaitable):
                await answer

    async def has(self, number: int) -> list[bytes]:
        await until(lambda: len(self.got) >= number)
        return [bytes(message) for message in self.got]


def give_back(message: Delivery) -> None:
    raise GiveBack


def give_back_once(message: Delivery) -> None:
    if message.attempt == 1:
        raise GiveBack


# -- other programs --------------------------------------------------------------------------


async def test_another_programs_message_comes_with_its_topic_and_headers(
    broker: Broker, topic: str, group: str
) -> None:
    inbox, shared, foreign = Inbox(), Inbox(), await broker.foreign()
    async with broker.connected() as transport:
        await transport.subscribe(f"{topic}.*", inbox)
        await transport.subscribe(f"{topic}.#", shared, group=group)
        headers = {
            "destination": broker.where(f"{topic}.x"),
            "tenant": "a:b\\c\nd",
            "priority": "7",
        }
        await foreign.request("SEND", headers, b"\0hi")
        await foreign.close()
        for each in (inbox, shared):
            assert await each.has(1) == [b"\0hi"]
            assert (each.got[0].topic, each.got[0].headers) == (
                f"{topic}.x",
                {"tenant": "a:b\\c\nd"},
            )


async def test_another_program_reads_what_is_published(broker: Broker, topic: str) -> None:
    foreign, frames = await broker.foreign(), []
    foreign.on_message = frames.append
    subscription = {"destination": broker.where(topic), "id": "1", "ack": "auto"}
    await foreign.request("SUBSCRIBE", subscription)
    async with broker.connected() as transport:
        await transport.publish(topic, b"\0hi", priority=8, headers={"a": "ü"})
        await until(lambda: frames)
    await foreign.close()
    headers = frames[0].headers
    assert (frames[0].body, headers["priority"], headers["persistent"]) == (b"\0hi", "7", "true")
    assert json.loads(headers[HEADERS]) == {"a": "ü", "praval-priority": "8"}


async def test_headers_may_be_longer_than_a_server_takes_in_one_line(
    broker: Broker, topic: str
) -> None:
    headers = {"long": "😀:\\\n" * 10_000, "ключ: \r": "\x01\u2028"}
    inbox = Inbox()
    async with broker.connected() as transport:
        await transport.subscribe(topic, inbox)
        await transport.publish(topic, b"!", headers=headers)
        await inbox.has(1)
    assert inbox.got[0].headers == headers


# -- given back ------------------------------------------------------------------------------


async def test_what_one_member_gives_back_another_one_gets(
    broker: Broker, topic: str, group: str
) -> None:
    unwilling, willing = Inbox(give_back), Inbox()
    async with broker.connected() as one, broker.connected() as other:
        await one.subscribe(topic, unwilling, group=group)
        await other.publish(topic, b"\0work", priority=9, ttl=3600, headers={"a": "ü"})
        await unwilling.has(2)
        await other.subscribe(topic, willing, group=group)
        await until(lambda: willing.got)
        got = willing.got[0]
        found = (bytes(got), got.topic, got.headers, got.attempt)
        assert found == (b"\0work", topic, {"a": "ü"}, 2)
        await until(lambda: other.health().acknowledged == 1)
    async with broker.connected() as late:
        inbox = Inbox()
        await late.subscribe(topic, inbox, group=group)
        await late.publish(topic, b"end")
        assert await inbox.has(1) == [b"end"]


async def test_what_is_given_back_comes_again_once_whatever_pattern_it_came_by(
    broker: Broker, topic: str, group: str
) -> None:
    shared, private = Inbox(give_back_once), Inbox(give_back_once)
    patterns = [f"{topic}.a", f"{topic}.*", f"{topic}.#"]
    async with broker.connected() as transport:
        await transport.subscribe(patterns, shared, group=group)
        await transport.subscribe(patterns, private)
        for name in ("a", "b", "c.d"):
            await transport.publish(f"{topic}.{name}", name.encode())
        for inbox in (shared, private):
            assert sorted(await inbox.has(6)) == [b"a", b"a", b"b", b"b", b"c.d", b"c.d"]
            assert all(each.topic == f"{topic}.{each.decode()}" for each in inbox.got)
            assert sorted(each.attempt for each in inbox.got) == [1, 1, 1, 2, 2, 2]
        await transport.publish(f"{topic}.end", b"end")
        for inbox in (shared, private):
            assert (await inbox.has(8))[6:] == [b"end", b"end"]


# -- queues ----------------------------------------------------------------------------------


@pytest.mark.parametrize("marked", [True, False], ids=["marked", "not marked"])
@pytest.mark.parametrize("pattern", ["empty.topic", "empty.#"])
async def test_a_group_that_never_had_a_message_outlives_a_kill_of_the_broker(
    fresh_server: FreshServer, monkeypatch: pytest.MonkeyPatch, pattern: str, marked: bool
) -> None:
    """ActiveMQ forgets a queue that held nothing yet: a marker makes it remember."""
    monkeypatch.setattr(ActiveMQServer, "forgets_empty_queues", marked)
    server = await asyncio.to_thread(fresh_server, ActiveMQ, durable=True)
    broker, inbox = Broker("activemq", server, server.port), Inbox()
    async with broker.connected() as transport:
        await transport.subscribe(pattern, Inbox(), group="group")
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    async with broker.connected() as transport:
        await transport.publish("empty.topic", b"meanwhile")
        await transport.subscribe(pattern, inbox, group="group")
        await transport.publish("empty.topic", b"end")
        await until(lambda: b"end" in inbox.got)
    assert [bytes(each) for each in inbox.got] == ([b"meanwhile"] if marked else []) + [b"end"]


async def test_what_a_group_hears_by_two_subscriptions_activemq_gives_it_twice_and_acknowledges(
    classic: Broker, topic: str, group: str
) -> None:
    """One queue read by both could not be acknowledged: the copies have one message id."""
    exact, all_of_it = Inbox(), Inbox()
    bodies = [b"%d" % number for number in range(50)]
    async with classic.connected() as transport:
        await transport.subscribe(f"{topic}.a", exact, group=group)
        await transport.subscribe(f"{topic}.*", all_of_it, group=group)
        await asyncio.gather(*(transport.publish(f"{topic}.a", body) for body in bodies))
        for inbox in (exact, all_of_it):
            assert sorted(await inbox.has(50)) == sorted(bodies)
        await until(lambda: transport.health().acknowledged == 100)
        assert transport.health().reconnects == 0


async def test_a_group_that_activemq_cannot_delete_is_named_in_the_refusal(
    classic: Broker, topic: str, group: str
) -> None:
    async with classic.connected() as transport:
        handle = await transport.subscribe(topic, Inbox(), group=group)
        queue = re.escape(f"/queue/Consumer.{group}.VirtualTopic.{topic}")
        with pytest.raises(TransportUnsupportedError, match=queue):
            await transport.unsubscribe(handle, drop_group=True)
        assert not transport.capabilities.drops_groups


async def test_a_queue_that_others_declared_otherwise_is_refused_at_once(
    rabbit: Broker, topic: str, group: str
) -> None:
    foreign = await rabbit.foreign()
    queue = {"x-queue-name": f"praval.{group}", "durable": "true", "auto-delete": "false"}
    await foreign.request("SUBSCRIBE", {"destination": rabbit.where(topic), "id": "1", **queue})
    await foreign.close()
    async with rabbit.connected() as transport:
        with pytest.raises(TransportError, match="PRECONDITION_FAILED") as refused:
            await transport.subscribe(topic, Inbox(), group=group)
        assert not isinstance(refused.value, TransportTimeoutError)
        assert transport.health().reconnects == 0


async def test_a_group_name_that_no_queue_can_have_is_refused(broker: Broker, topic: str) -> None:
    async with broker.connected() as transport:
        with pytest.raises(TransportUnsupportedError, match="250 bytes"):
            await transport.subscribe(topic, Inbox(), group="x" * 250)


# -- connections -----------------------------------------------------------------------------


async def test_publishers_and_each_subscription_have_connections_of_their_own(
    classic: Broker, topic: str, group: str
) -> None:
    with TlsFront(classic.server, classic.server.pki.server_context()) as front:
        async with classic.connected(port=front.port, connection_pool_size=3) as transport:
            assert front.accepted == 3
            handles = [await transport.subscribe(topic, Inbox(), group=group) for _ in range(2)]
            assert front.accepted == 5
            await transport.unsubscribe(handles[0])
            await transport.publish(topic, b"!")
            assert transport.health().reconnects == 0


async def test_what_is_handled_while_its_connection_is_lost_does_not_come_for_ever(
    classic: Broker, topic: str
) -> None:
    """A subscriber's own copy, which the broker has no more: nobody can acknowledge it."""
    calls, go = [], asyncio.Event()

    async def slow(message: Delivery) -> None:
        calls.append(message)
        await go.wait()

    with TlsFront(classic.server, classic.server.pki.server_context()) as front:
        async with classic.connected(port=front.port) as transport:
            await transport.subscribe(topic, slow)
            await transport.publish(topic, b"!")
            async with asyncio.timeout(10):
                while not calls:  # noqa: ASYNC110 - the broker delivers it
                    await asyncio.sleep(0.01)
                front.cut()
                while not transport.health().reconnects:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                go.set()
                while not transport.health().given_back:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await transport.publish(topic, b"?")
            async with asyncio.timeout(10):
                while b"?" not in calls:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        assert calls == [b"!", b"?"]


async def test_the_guides_configuration_works_as_printed(classic: Broker) -> None:
    pki, server = classic.server.pki, classic.server
    stomp_config = {
        "host": "localhost",
        "port": server.mutual_port,
        "username": server.user,
        "password": server.password,
        "ca_cert": str(pki.ca),
        "client_cert": str(pki.client.cert),
        "client_key": str(pki.client.key),
    }
    topic, inbox = "enterprise.ai.processing.results", Inbox()
    async with transport_connection("stomp", stomp_config) as transport:
        await transport.subscribe("enterprise.ai.*.results", inbox)
        await transport.publish(topic=topic, message=b"secure", priority=9, ttl=7200)
        assert await inbox.has(1) == [b"secure"]


async def test_an_unknown_vhost_is_a_login_error(rabbit: Broker) -> None:
    with pytest.raises(TransportLoginError, match="nowhere"):
        async with rabbit.connected(vhost="nowhere"):
            pass


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vhost": "/"}, "RabbitMQ"),
        ({"vhost": "/", "server": "artemis"}, "RabbitMQ"),
        ({"server": "hornetq"}, "server"),
        ({"password": "s3cret\nhost:evil"}, "password must not contain line breaks"),
        ({"username": "a\r"}, "username must not contain line breaks"),
        ({"client_id": "a\0"}, "client_id must not contain line breaks"),
    ],
)
async def test_what_stomp_or_the_server_cannot_use_is_refused(changes: Config, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as refused:
        async with transport_connection("stomp", changes):
            pass
    assert "s3cret" not in str(refused.value)


# -- frames ----------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.aborted = False

    def write(self, data: Any) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted = True


class Peer:
    """A connection whose other end is the test."""

    def __init__(self) -> None:
        self.lost: list[Exception] = []
        self.frames: list[Any] = []
        self.wire = Wire()
        self.connection = Connection(Address("broker", 1), self.lost.append)
        self.connection.on_message = self.frames.append
        self.connection.connection_made(self.wire)


class Written(NamedTuple):
    headers: Headers
    body: bytes

    def encoded(self, length: bool) -> bytes:
        """As stomp.py writes it: with a content-length, or without where the body allows that."""
        written: list[bytes] = []

        class Recorder:
            def set_listener(self, *_: object) -> None: ...

            def transmit(self, frame: Any) -> None:
                written.extend(convert_frame(frame))

        headers = dict(self.headers)
        if length or 0 in self.body:
            headers["content-length"] = str(len(self.body))
        Protocol12(Recorder()).send_frame("MESSAGE", headers, self.body)
        return b"".join(written)


names = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1).map("x-".__add__)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
written = st.builds(Written, st.dictionaries(names, texts, max_size=4), st.binary(max_size=200))


@given(st.lists(st.tuples(written, st.booleans(), st.sampled_from([b"", b"\n", b"\r\n\n"]))),
       st.lists(st.integers(1, 60)))  # fmt: skip
def test_frames_are_read_however_the_network_cuts_them(
    messages: list[tuple[Written, bool, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(one.encoded(length) + eol for one, length, eol in messages)

    async def read() -> list[Written]:
        peer, rest = Peer(), stream
        for size in cuts:
            peer.connection.data_received(rest[:size])
            rest = rest[size:]
        peer.connection.data_received(rest)
        for each in peer.frames:
            each.headers.pop("content-length", None)
        return [Written(each.headers, each.body) for each in peer.frames]

    assert asyncio.run(read()) == [one for one, _, _ in messages]


async def test_what_is_sent_in_one_step_leaves_in_one_piece_and_in_order() -> None:
    peer = Peer()
    for number in "123":
        peer.connection.frames.ack(number)
    assert peer.wire.sent == b""
    await asyncio.sleep(0)
    assert re.findall(rb"ACK\nid:(\d)\n\n\0", peer.wire.sent) == [b"1", b"2", b"3"]


async def test_a_server_that_speaks_another_version_is_refused() -> None:
    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"CONNECTED\nserver:old\n\n\0")
        writer.transport.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as old:
        port = old.sockets[0].getsockname()[1]
        url = f"stomp://127.0.0.1:{port}"
        with pytest.raises(TransportConnectionError, match=r"does not speak STOMP 1\.2"):
            async with transport_connection("stomp", {"url": url, "allow_plaintext": True}):
                pass


async def test_an_error_about_a_request_is_that_requests_failure() -> None:
    peer = Peer()
    one = asyncio.ensure_future(peer.connection.request("SEND", {"destination": "/topic/a"}))
    other = asyncio.ensure_future(peer.connection.request("SEND", {"destination": "/topic/b"}))
    await asyncio.sleep(0)
    peer.connection.data_received(b"ERROR\nreceipt-id:1\nmessage:no\\c this\n\nat java.x\n\0")
    peer.connection.data_received(b"RECEIPT\nreceipt-id:2\n\n\0")
    with pytest.raises(TransportError, match=r"broker:1 refuses that: no: this"):
        await one
    await other
    assert (peer.lost, peer.wire.aborted) == ([], False)


async def test_an_error_about_nothing_in_particular_ends_the_connection() -> None:
    peer = Peer()
    requests = [asyncio.ensure_future(peer.connection.request("SEND", {})) for _ in range(2)]
    await asyncio.sleep(0)
    peer.connection.data_received(b"ERROR\nmessage:out of memory\n\n\0")
    assert peer.wire.aborted
    assert "out of memory" in str(peer.lost[0])
    peer.connection.connection_lost(None)
    for request in requests:
        with pytest.raises(TransportError, match="out of memory"):
            await request
    with pytest.raises(TransportError, match="out of memory"):
        peer.connection.frames.ack("1")
    assert len(peer.lost) == 1


# -- headers and addresses -------------------------------------------------------------------


@given(st.dictionaries(texts.filter(bool), texts))
@example({"a": "\\:\n" * 1000 + "😀" * 3000})
def test_any_headers_survive_in_lines_that_activemq_takes(own: Headers) -> None:
    frame = write_headers(own)
    assert read_headers({**frame, "destination": "/topic/x", "subscription": "0"}) == own
    for value in frame.values():
        escaped = value.replace("\\", "\\\\").replace(":", "\\c").encode()
        assert len(escaped) < 10_000
        assert b"\n" not in escaped


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_headers_that_are_not_ours_do_not_spoil_the_message(text: str) -> None:
    assert read_headers({HEADERS: text, "other": "x"}) == {}


segments = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1)


@given(segments)
@example([",", "?", "%2C", "a%", "VirtualTopic", "/", "ü😀"])
def test_a_topic_is_read_back_from_where_a_message_was_sent(texts: list[str]) -> None:
    topic = tuple(map(encode_segment, texts))
    for name in ("activemq", "artemis"):
        server = SERVERS[name]
        sent = server.address(topic)["destination"]
        assert server.topic_of({"destination": sent}) == ".".join(topic)
        queue = server.subscriptions([topic], "a.group", 1)[0]["destination"]
        assert server.topic_of({"destination": queue}) == ".".join(topic)
    assert not {",", "?"} & set(SERVERS["activemq"].address(topic)["destination"])
    # RabbitMQ reads %2F as a slash, and tells the key with all but plain ASCII encoded
    key = SERVERS["rabbitmq"].address(topic)["destination"].removeprefix("/topic/")
    key = key.replace("%2F", "/")
    told = "".join(c if " " <= c <= "\x7f" and c not in "/%" else quote(c, safe="") for c in key)
    assert SERVERS["rabbitmq"].topic_of({"destination": f"/topic/{told}"}) == ".".join(topic)


def addresses(name: str, pattern: str, group: str | None) -> Iterator[str]:
    server = SERVERS[name]
    for each in server.subscriptions([parse_pattern(pattern)], group, 1):
        yield each["destination"]


@pytest.mark.parametrize(
    ("server", "pattern", "group", "expected"),
    [
        ("activemq", "a.*.#", None, "/topic/VirtualTopic.a.*.>"),
        ("activemq", "a.b", "x.y", "/queue/Consumer.x%2Ey.VirtualTopic.a.b"),
        ("activemq", "a.*.#", "x.y", "/queue/Consumer.x%2Ey~a/+/#.VirtualTopic.a.*.>"),
        ("rabbitmq", "a.*.#", None, "/topic/a.*.#"),
        ("rabbitmq", "a", "x.y", "/topic/a"),
        ("artemis", "a.#", None, "a.#"),
        ("artemis", "a", "x.y", "a::x.y.a"),
    ],
)
def test_addresses_are_those_that_the_servers_document(
    server: str, pattern: str, group: str | None, expected: str
) -> None:
    assert list(addresses(server, pattern, group)) == [expected]


def test_patterns_of_one_subscription_share_the_window() -> None:
    patterns = [parse_pattern(each) for each in ("a", "b", "c")]
    queues = SERVERS["activemq"].subscriptions(patterns, "g", 10)
    assert [queue["activemq.prefetchSize"] for queue in queues] == ["3", "3", "3"]
    queues = SERVERS["rabbitmq"].subscriptions(patterns, None, 2)
    assert [queue["prefetch-count"] for queue in queues] == ["1", "1", "1"]
    assert len({queue["x-queue-name"] for queue in queues}) == 1
