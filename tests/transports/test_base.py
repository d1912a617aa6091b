"""What all transports share: which broker, how often, how long; and nothing lost between links.

The links are scripted and time is virtual, so that each wait can be looked at.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import logging
import random
import ssl
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
from rich.console import Console

from praval.core.transport import Delivery
from praval.errors import (
    ConfigurationError,
    SporeTooLargeError,
    TransportClosedError,
    TransportConnectionError,
    TransportLoginError,
    TransportTimeoutError,
    TransportUnsupportedError,
)
from praval.testing import VirtualClock
from praval_transports import base, dispatch
from praval_transports.base import BrokerTransport
from praval_transports.config import Address, BrokerConfig
from praval_transports.dispatch import Listening
from praval_transports.link import Link
from praval_transports.message import Incoming, Outgoing

SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
async def clock() -> Any:
    """Let waiting take no time."""
    with VirtualClock() as clock:
        yield clock


class FakeLink(Link):
    """A link to a broker that does what the test says."""

    def __init__(self, host: str) -> None:
        super().__init__()
        self.host = host
        self.sent: list[Outgoing] = []
        self.listening: list[Listening] = []
        self.left: list[Listening] = []
        self.is_closed = False
        self.answer: Callable[[], Awaitable[bool | None]] = confirm
        self.on_listen: Callable[[], Awaitable[Any]] = confirm
        self.on_leave: Callable[[], Awaitable[Any]] = confirm
        self.on_close: Callable[[], Awaitable[Any]] = confirm

    async def send(self, message: Outgoing) -> bool | None:
        self.sent.append(message)
        return await self.answer()

    async def listen(self, listening: Listening) -> None:
        await self.on_listen()
        self.listening.append(listening)

    async def leave(self, listening: Listening, *, drop_group: bool) -> None:
        self.left.append(listening)
        await self.on_leave()

    async def drop(self, group: str, member: str | None) -> bool:
        raise NotImplementedError

    async def close(self) -> None:
        await self.on_close()
        self.is_closed = True


async def confirm() -> bool | None:
    return True


async def be_silent() -> bool | None:
    await asyncio.Event().wait()
    return None


def fail_with(error: Exception) -> Callable[[], Awaitable[bool | None]]:
    async def fail() -> bool | None:
        raise error

    return fail


class Message(Incoming):
    """A message that notes what became of it."""

    def __init__(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        super().__init__("a.b", body, headers or {}, False)
        self.fate: list[str] = []
        self.on_give_back: Callable[[], Awaitable[Any]] = confirm

    async def acknowledge(self) -> None:
        self.fate.append("acknowledged")

    async def give_back(self) -> None:
        await self.on_give_back()
        self.fate.append("given back")


class Scripted(BrokerTransport[BrokerConfig]):
    """A transport whose brokers are up, down, silent, or refuse the login."""

    protocol = "amqp"
    config_type = BrokerConfig
    ports = (5671, 5672)

    def __init__(self) -> None:
        super().__init__()
        self.brokers: dict[str, Callable[[], Awaitable[Any]]] = {}
        """Host -> what else happens there than a connection."""
        self.attempts: list[tuple[float, str]] = []
        self.links: list[FakeLink] = []
        self.prepare: Callable[[FakeLink], None] = lambda link: None

    async def connect(self, address: Address, tls: ssl.SSLContext | None) -> Link:
        self.attempts.append((asyncio.get_running_loop().time(), address.host))
        await self.brokers.get(address.host, confirm)()
        link = FakeLink(address.host)
        self.prepare(link)
        self.links.append(link)
        return link

    @property
    def tried(self) -> str:
        """The brokers that were tried since this was asked the last time."""
        tried = "".join(host for _, host in self.attempts)
        self.attempts.clear()
        return tried

    async def open(self, **config: Any) -> None:
        plain = {"url": "amqp://a", "allow_plaintext": True, "brokers": ["a", "b", "c"]}
        await self.initialize({**plain, **config})

    async def lose(self) -> None:
        """Lose the link, and wait until there is another."""
        self.links[-1].lose(TransportConnectionError("cut"))
        await asyncio.sleep(0)
        while self.health().state != "connected":  # noqa: ASYNC110 - time is virtual
            await asyncio.sleep(0.01)


DOWN = fail_with(ConnectionRefusedError(111, "Connection refused"))


@pytest.fixture
async def transport() -> Any:
    transport = Scripted()
    yield transport
    for link in transport.links:
        link.on_close = confirm
    await transport.close()


# -- which broker ----------------------------------------------------------------------------


async def test_failover_begins_with_the_first_broker_each_time(transport: Scripted) -> None:
    """The others follow in their order, until one is there."""
    transport.brokers = {"a": DOWN, "b": DOWN}
    await transport.open()
    assert transport.tried == "abc"
    assert transport.health().broker == "c:5672"
    transport.brokers = {"a": DOWN}
    await transport.lose()
    assert transport.tried == "ab"
    transport.brokers = {}
    await transport.lose()
    assert transport.tried == "a"


async def test_round_robin_begins_after_the_broker_that_was_had(transport: Scripted) -> None:
    """One that is down is passed over, and does not shift the turn."""
    await transport.open(load_balancing="round_robin")
    for expected in "bca":
        await transport.lose()
        assert transport.links[-1].host == expected
    assert transport.tried == "abca"
    transport.brokers = {"b": DOWN}
    await transport.lose()
    assert transport.tried == "bc"
    await transport.lose()
    assert transport.tried == "a"


async def test_random_begins_anywhere_and_leaves_none_out(
    transport: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a thousand clients would all come to the same broker."""
    monkeypatch.setattr(base, "random", random.Random(7))
    transport.brokers = dict.fromkeys("abc", DOWN)
    orders = set()
    for _ in range(60):
        with pytest.raises(TransportConnectionError):
            await transport.open(load_balancing="random")
        orders.add(transport.tried)
    assert {"".join(sorted(order)) for order in orders} == {"abc"}
    assert {order[0] for order in orders} == {"a", "b", "c"}


async def test_the_first_brokers_reason_is_told_when_there_is_none(transport: Scripted) -> None:
    """And the transport may be initialised again, when that is mended."""
    transport.brokers = {"a": fail_with(TransportLoginError("no such user")), "b": DOWN, "c": DOWN}
    with pytest.raises(TransportLoginError, match="no such user"):
        await transport.open()
    assert transport.tried == "abc"
    assert transport.health().state == "new"
    transport.brokers = {}
    await transport.open()
    assert transport.health().state == "connected"
    with pytest.raises(ConfigurationError, match="make a new one"):
        await transport.open()


async def test_a_silent_broker_costs_connect_timeout_and_no_more(
    transport: Scripted, clock: VirtualClock
) -> None:
    transport.brokers = dict.fromkeys("ab", be_silent)
    began = clock.time()
    await transport.open(connect_timeout=3)
    assert clock.time() - began == pytest.approx(6)
    assert transport.tried == "abc"
    other = Scripted()
    other.brokers = dict.fromkeys("abc", be_silent)
    with pytest.raises(TransportConnectionError, match=r"a:5672 .* within 3.0 s \(connect_timeout"):
        await other.open(connect_timeout=3)


# -- how often -------------------------------------------------------------------------------


async def test_the_waits_between_attempts_double_up_to_a_bound_and_vary(
    transport: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """Many clients of one broker must not come back in step."""
    await transport.open(reconnect_delay=0.5, brokers=["a"])
    transport.brokers = {"a": DOWN}
    transport.attempts.clear()
    await asyncio.sleep(100)
    transport.links[-1].lose(TransportConnectionError("cut"))
    await asyncio.sleep(400)
    times = [time for time, _ in transport.attempts]
    waits = [later - earlier for earlier, later in pairwise(times)]
    full = [min(0.5 * 2**number, 30) for number in range(len(waits))]
    assert len(waits) > 12
    shares = [wait / most for wait, most in zip(waits, full, strict=True)]
    assert all(0.5 <= share <= 1 for share in shares)
    assert max(shares) - min(shares) > 0.1
    assert "Trying again" in caplog.text
    assert transport.health().state == "connecting"
    assert "Connection refused" in str(transport.health().error)
    transport.brokers = {}
    await asyncio.sleep(31)
    assert transport.health().state == "connected"
    assert transport.health().error is None
    assert transport.health().reconnects == 1


async def test_the_first_attempt_after_a_loss_is_at_once(
    transport: Scripted, clock: VirtualClock
) -> None:
    await transport.open()
    await asyncio.sleep(60)
    transport.attempts.clear()
    lost = asyncio.get_running_loop().time()
    await transport.lose()
    assert transport.attempts[0][0] == pytest.approx(lost, abs=0.01)


async def test_links_that_break_as_soon_as_they_are_made_are_not_made_in_a_hurry(
    transport: Scripted,
) -> None:
    """Such as those over which a subscription is refused each time."""
    await transport.open(brokers=["a"], reconnect_delay=0.5)
    await transport.subscribe("a.b", print)
    transport.prepare = lambda link: setattr(
        link, "on_listen", fail_with(TransportUnsupportedError("not any more"))
    )
    await asyncio.sleep(60)
    transport.attempts.clear()
    transport.links[-1].lose(TransportConnectionError("cut"))
    await asyncio.sleep(100)
    assert 3 <= len(transport.attempts) <= 20
    transport.prepare = lambda link: None
    await asyncio.sleep(60)
    assert transport.health().state == "connected"
    assert len(transport.links[-1].listening) == 1


# -- publishing ------------------------------------------------------------------------------


async def test_a_publication_that_was_not_confirmed_is_sent_again(transport: Scripted) -> None:
    """Over the next link, the same message, counted once."""
    await transport.open()
    first = transport.links[0]
    first.answer = fail_with(TransportConnectionError("cut"))
    confirmation = await transport.publish("a.b", b"x", priority=9, headers={"k": "v"})
    assert confirmation.routed is True
    assert first.is_closed
    assert first.sent == transport.links[1].sent
    assert transport.links[1].sent[0].body == b"x"
    health = transport.health()
    assert (health.published, health.reconnects) == (1, 1)


async def test_a_link_that_is_lost_while_it_is_silent_is_not_waited_for(
    transport: Scripted, clock: VirtualClock
) -> None:
    """What a link awaits when it is lost has to end; the time-outs are the second line."""
    await transport.open(confirm_timeout=10)
    link = transport.links[0]

    async def until_lost() -> bool | None:
        raise await link.lost

    link.answer = until_lost
    publishing = asyncio.create_task(transport.publish("a.b", b"x"))
    await asyncio.sleep(1)
    began = clock.time()
    link.lose(TransportConnectionError("cut"))
    await publishing
    assert clock.time() - began < 1


async def test_a_broker_that_does_not_confirm_is_left(
    transport: Scripted, clock: VirtualClock
) -> None:
    """After confirm_timeout its link counts as lost."""
    await transport.open(confirm_timeout=4)
    transport.links[0].answer = be_silent
    began = clock.time()
    await transport.publish("a.b", b"x")
    assert 4 <= clock.time() - began < 5
    assert transport.links[0].lost.done()
    assert transport.links[1].sent


async def test_a_publication_ends_after_publish_timeout(
    transport: Scripted, clock: VirtualClock
) -> None:
    """Whatever was tried; the message says that nobody knows, and the last error."""
    transport.prepare = lambda link: setattr(link, "answer", be_silent)
    await transport.open(confirm_timeout=4, publish_timeout=10)
    began = clock.time()
    with pytest.raises(TransportTimeoutError, match=r"10.0 s \(publish_timeout.*or not") as caught:
        await transport.publish("a.b", b"x")
    assert clock.time() - began == pytest.approx(10, abs=0.01)
    assert "did not answer: confirm_timeout" in str(caught.value)
    assert len(transport.links) >= 3


async def test_without_any_broker_a_publication_ends_after_failover_timeout(
    transport: Scripted, clock: VirtualClock
) -> None:
    """With the reason why there is none."""
    await transport.open(failover_timeout=5)
    transport.brokers = dict.fromkeys("abc", DOWN)
    transport.links[0].lose(TransportConnectionError("cut"))
    began = clock.time()
    with pytest.raises(TransportTimeoutError, match="Connection refused"):
        await transport.publish("a.b", b"x")
    assert clock.time() - began == pytest.approx(5, abs=0.01)


async def test_what_another_attempt_cannot_mend_is_raised_at_once(transport: Scripted) -> None:
    """The link stays."""
    await transport.open()
    transport.links[0].answer = fail_with(TransportUnsupportedError("too large for this broker"))
    with pytest.raises(TransportUnsupportedError, match="too large"):
        await transport.publish("a.b", b"x")
    with pytest.raises(SporeTooLargeError):
        await transport.publish("a.b", bytes(transport.config.max_message_size + 1))
    assert len(transport.links) == 1
    assert transport.health().published == 0


async def test_a_broker_that_takes_nothing_for_now_is_not_left(transport: Scripted) -> None:
    """Its silence is no loss; the publisher is told when the time is up."""
    await transport.open(confirm_timeout=1, publish_timeout=5)
    link = transport.links[0]
    link.answer = be_silent

    async def blocked() -> bool:
        return True

    link.blocked = blocked  # type: ignore[method-assign]
    with pytest.raises(TransportTimeoutError, match="short of memory or disk"):
        await transport.publish("a.b", b"x")
    assert not link.lost.done()


# -- subscribing -----------------------------------------------------------------------------


async def test_subscriptions_are_made_again_in_their_order(transport: Scripted) -> None:
    """Over each new link, before publications go over it; those that ended are not."""
    await transport.open()
    first = await transport.subscribe("a.*", print)
    second = await transport.subscribe(["b", "c.#"], print, group="g")
    third = await transport.subscribe("d", print)
    await transport.unsubscribe(second)
    await transport.lose()
    assert transport.links[-1].listening == [first, third]
    with pytest.raises(ConfigurationError, match="no subscription"):
        await transport.unsubscribe(second)


async def test_a_subscription_waits_for_a_link(transport: Scripted, clock: VirtualClock) -> None:
    await transport.open(reconnect_delay=1)
    transport.brokers = dict.fromkeys("abc", DOWN)
    transport.links[0].lose(TransportConnectionError("cut"))
    await asyncio.sleep(0)
    subscribing = asyncio.create_task(transport.subscribe("a", print))
    await asyncio.sleep(5)
    assert not subscribing.done()
    transport.brokers = {}
    subscription = await subscribing
    assert transport.links[-1].listening == [subscription]


async def test_a_refused_subscription_leaves_nothing(transport: Scripted) -> None:
    """Neither at this broker nor at the next."""
    await transport.open()
    transport.links[0].on_listen = fail_with(TransportUnsupportedError("no patterns here"))
    with pytest.raises(TransportUnsupportedError, match="no patterns here"):
        await transport.subscribe("a.*", print)
    await transport.lose()
    assert transport.links[-1].listening == []


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"topic": []}, "needs a topic"),
        ({"topic": ""}, "not empty"),
        ({"topic": ["a", "b..c"]}, "empty segment"),
        ({"callback": None}, "callback must be a function"),
        ({"concurrency": 0}, "concurrency must be 1 or more"),
        ({"concurrency": 1.5}, "concurrency must be 1 or more"),
        ({"group": ""}, "group must be a string"),
        ({"group": 7}, "group must be a string"),
    ],
)
async def test_arguments_of_a_subscription_are_checked(
    transport: Scripted, arguments: dict[str, Any], why: str
) -> None:
    await transport.open()
    said = {"topic": "a", "callback": print, **arguments}
    with (
        pytest.raises(ValueError, match=why)
        if "topic" not in arguments
        else pytest.raises(Exception, match=why)
    ):
        await transport.subscribe(said.pop("topic"), said.pop("callback"), **said)
    assert transport.links[0].listening == []


async def test_what_had_been_fetched_over_a_lost_link_is_not_handled(transport: Scripted) -> None:
    """It comes again over the next; a callback that runs goes on."""
    await transport.open()
    release, seen = asyncio.Event(), []

    async def callback(message: Delivery) -> None:
        seen.append(bytes(message))
        await release.wait()

    listening = await transport.subscribe("a.b", callback)
    assert isinstance(listening, Listening)
    messages = [Message(b"1"), Message(b"2")]
    for message in messages:
        listening.receive(message)
    await asyncio.sleep(0)
    await transport.lose()
    release.set()
    again = Message(b"2")
    listening.receive(again)
    await asyncio.sleep(1)
    assert seen == [b"1", b"2"]
    assert messages[1].fate == []
    assert again.fate == ["acknowledged"]


async def test_messages_that_wait_are_handled_by_priority(transport: Scripted) -> None:
    """Then by arrival; nonsense counts as 5."""
    await transport.open()
    seen: list[bytes] = []
    listening = await transport.subscribe("a.b", lambda message: seen.append(bytes(message)))
    for body, said in enumerate(["5", "1", "x", "10", "", "10", "0", "2"]):
        listening.receive(Message(b"%d" % body, {"praval-priority": said}))  # type: ignore[attr-defined]
    await asyncio.sleep(1)
    assert seen == [b"3", b"5", b"0", b"2", b"4", b"6", b"7", b"1"]


async def test_a_gzip_bomb_becomes_a_dead_letter(transport: Scripted) -> None:
    """Its callback never sees it, and it is not tried again."""
    await transport.open(max_message_size=10_000)
    seen: list[bytes] = []
    listening = await transport.subscribe("a.b", lambda message: seen.append(bytes(message)))
    bomb = Message(gzip.compress(bytes(1_000_000)), {"praval-encoding": "gzip"})
    listening.receive(bomb)  # type: ignore[attr-defined]
    await asyncio.sleep(1)
    assert (seen, bomb.fate) == ([], ["acknowledged"])
    letter = transport.links[0].sent[0]
    assert letter.dotted == "dead"
    assert letter.body == bomb.body
    assert "more than 10000 bytes" in letter.headers["praval-reason"]
    assert transport.health().dead == 1


# -- life ------------------------------------------------------------------------------------


async def test_a_transport_that_is_not_open_says_so(transport: Scripted) -> None:
    """Before it is initialised, and after it is closed."""
    for how in ("was not initialised yet", "is closed"):
        with pytest.raises(TransportClosedError, match=how):
            await transport.publish("a", b"")
        with pytest.raises(TransportClosedError, match=how):
            await transport.subscribe("a", print)
        if how == "is closed":
            return
        await transport.open()
        await transport.close()
        await transport.close()
        assert transport.health().state == "closed"
        assert transport.links[0].is_closed


async def test_closing_ends_what_waits_for_a_broker(
    transport: Scripted, clock: VirtualClock
) -> None:
    """Publishers and subscribers, and the attempts to reconnect."""
    await transport.open()
    transport.brokers = dict.fromkeys("abc", DOWN)
    transport.links[0].lose(TransportConnectionError("cut"))
    calls = [
        asyncio.create_task(transport.publish("a", b"x")),
        asyncio.create_task(transport.subscribe("a", print)),
    ]
    await asyncio.sleep(1)
    began = clock.time()
    await transport.close()
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, TransportClosedError)
    assert clock.time() - began < 1
    transport.attempts.clear()
    await asyncio.sleep(100)
    assert transport.attempts == []


async def test_a_link_that_does_not_close_is_not_waited_for_long(
    transport: Scripted, clock: VirtualClock
) -> None:
    await transport.open(close_timeout=3)
    transport.links[0].on_close = be_silent
    began = clock.time()
    await transport.close()
    assert clock.time() - began == pytest.approx(3, abs=0.1)


async def test_a_broker_that_is_silent_when_we_leave_is_told_by_the_end_of_its_connection(
    transport: Scripted, clock: VirtualClock
) -> None:
    """It gets a few seconds, for all subscriptions together; drop_group alone insists."""
    transport.prepare = lambda link: setattr(link, "on_leave", be_silent)
    await transport.open()
    handles = [await transport.subscribe(topic, print, group=topic) for topic in "abc"]
    began = clock.time()
    await asyncio.gather(*map(transport.unsubscribe, handles))
    assert clock.time() - began == pytest.approx(dispatch.POLITE)
    assert transport.links[0].is_closed
    last = await transport.subscribe("d", print, group="d")
    with pytest.raises(TransportTimeoutError, match="has dropped the group"):
        await transport.unsubscribe(last, drop_group=True)
    await transport.subscribe("e", print)
    await transport.subscribe("f", print)
    began = clock.time()
    await transport.close()
    assert clock.time() - began == pytest.approx(dispatch.POLITE, abs=0.1)
    assert all(link.is_closed for link in transport.links)


async def test_a_broker_that_takes_nothing_back_is_not_waited_for_long(
    transport: Scripted, clock: VirtualClock
) -> None:
    """What it did not answer for comes again with the end of the connection."""
    await transport.open()
    listening = await transport.subscribe("a.b", lambda _: asyncio.sleep(1000), group="g")
    messages = [Message(b"%d" % number) for number in range(5)]
    for message in messages:
        message.on_give_back = lambda: asyncio.shield(transport.links[0].lost)
        listening.receive(message)  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    began = clock.time()
    await transport.unsubscribe(listening, patience=1)
    assert clock.time() - began == pytest.approx(dispatch.POLITE + 1, abs=0.1)
    assert transport.links[0].lost.done()


async def test_closing_ends_what_is_ending_already(
    transport: Scripted, clock: VirtualClock
) -> None:
    """The patience of whoever unsubscribes does not count any more, but close_timeout does."""
    await transport.open(close_timeout=3)
    message = Message(b"slow")
    listening = await transport.subscribe("a.b", lambda _: asyncio.sleep(1000))
    listening.receive(message)  # type: ignore[attr-defined]
    await asyncio.sleep(0)
    ending = asyncio.create_task(transport.unsubscribe(listening, patience=500))
    await asyncio.sleep(1)
    began = clock.time()
    await transport.close()
    await ending
    assert clock.time() - began == pytest.approx(3, abs=0.1)
    assert message.fate == ["given back"]


async def test_a_subscription_that_ends_while_it_is_made_again_is_left(transport: Scripted) -> None:
    """Else the broker would go on to deliver to it, and take it back, for ever."""
    await transport.open()
    release = asyncio.Event()
    handles = [await transport.subscribe(topic, print) for topic in "abc"]
    transport.prepare = lambda link: setattr(link, "on_listen", release.wait)
    transport.links[0].lose(TransportConnectionError("cut"))
    await asyncio.sleep(1)
    for handle in handles[:2]:
        await transport.unsubscribe(handle)
    release.set()
    await asyncio.sleep(1)
    link = transport.links[1]
    assert transport.health().state == "connected"
    assert set(link.listening) - set(link.left) == {handles[2]}


async def test_a_cancelled_close_goes_on_to_its_end(transport: Scripted) -> None:
    await transport.open()
    release = asyncio.Event()
    transport.links[0].on_close = release.wait
    closing = asyncio.create_task(transport.close())
    await asyncio.sleep(1)
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    release.set()
    await transport.close()
    assert transport.links[0].is_closed


async def test_a_cancelled_initialize_leaves_a_new_transport(transport: Scripted) -> None:
    transport.brokers = {"a": be_silent}
    opening = asyncio.create_task(transport.open(connect_timeout=60))
    await asyncio.sleep(1)
    opening.cancel()
    await asyncio.wait([opening])
    transport.brokers = {}
    await transport.open()


async def test_a_bug_in_a_link_ends_the_transport_with_its_reason(
    transport: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for ever for what will never be mended."""
    await transport.open()
    transport.brokers = dict.fromkeys("abc", fail_with(AssertionError("a bug")))
    transport.links[0].lose(TransportConnectionError("cut"))
    publishing = asyncio.create_task(transport.publish("a", b"x"))
    await asyncio.sleep(1)
    with pytest.raises(TransportClosedError):
        await publishing
    assert "a bug" in str(transport.health().error)
    assert [record for record in caplog.records if record.levelno == logging.CRITICAL]


# -- secrets ---------------------------------------------------------------------------------


async def test_no_password_is_shown_by_a_transport(
    transport: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """In what it logs, raises, and tells of itself, through losses and failures."""
    caplog.set_level(1)
    transport.brokers = {"a": DOWN}
    url = f"amqp://me:{SECRET}@a:7000"
    await transport.open(url=url, failover_timeout=1)
    await transport.subscribe("a", print)
    transport.brokers = dict.fromkeys("abc", fail_with(TransportLoginError("refused")))
    transport.links[-1].lose(TransportConnectionError("cut"))
    with pytest.raises(TransportTimeoutError) as caught:
        await transport.publish("a", b"x")
    console = Console(file=io.StringIO(), width=500)
    console.print(transport, transport.health(), transport.config)
    assert isinstance(console.file, io.StringIO)
    shown = [caplog.text, str(caught.value), repr(caught.value), console.file.getvalue()]
    shown += [repr(transport), repr(transport.health()), repr(transport.config)]
    assert caplog.records
    assert not [text for text in shown if SECRET in text]
