"""Connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from praval.core.transport import Delivery, MessageTransport
from praval.errors import (
    ConfigurationError,
    TransportConnectionError,
    TransportError,
    TransportTimeoutError,
)
from praval.testing.transports.case import NO_NETWORK, YES, case
from praval.testing.transports.harness import Broker
from praval.testing.transports.network import Network
from praval.testing.transports.trial import Trial, expect, expect_equal, refused


async def reconnected(trial: Trial, client: MessageTransport, times: int = 1) -> None:
    """Wait until it has reconnected that often, and is connected."""
    await trial.until(
        lambda: client.health().reconnects >= times and client.health().state == "connected",
        f"{times} reconnections; it is {client.health()}",
    )


@case()
async def reconnect(trial: Trial) -> str:
    """After a broken connection it connects again, and all subscriptions go on."""
    network = await trial.network()
    client = await trial.client(**network.changes)
    topics = [trial.topic(each) for each in ("private", "pattern", "group")]
    inboxes = [trial.inbox() for _ in topics]
    await client.subscribe(topics[0], inboxes[0])
    await client.subscribe(trial.topic() + ".*", inboxes[1])
    await client.subscribe(topics[2], inboxes[2], group=trial.group())
    for times in (1, 2):
        await network.cut()
        await reconnected(trial, client, times)
        await trial.fill_topics(client, topics)
        for inbox, count in zip(inboxes, (times, 3 * times, times), strict=True):
            await inbox.wait(count)
    # an acknowledgement that was cut off lets the group's come again
    expect_equal([len(inbox.got) for inbox in inboxes[:2]], [2, 6], "the calls")
    expect_equal(client.health().broker, "{host}:{port}".format(**network.changes), "broker")
    return YES


@case()
async def publish_meanwhile(trial: Trial) -> str:
    """A message published while the connection is down is sent when it is back."""
    network, topic = await trial.network(), trial.topic("meanwhile")
    listener, inbox = await trial.client("listener"), trial.inbox()
    await listener.subscribe(topic, inbox, group=trial.group())
    client = await trial.client(**network.changes)
    await network.refuse()
    await trial.until(lambda: client.health().state == "connecting", "it knows")
    await trial.until(lambda: client.health().error, "health() says why it is not connected")
    sending = [asyncio.ensure_future(client.publish(topic, b"%d" % each)) for each in range(5)]
    subscribing = asyncio.ensure_future(client.subscribe(topic, trial.inbox()))
    done, _ = await asyncio.wait([*sending, subscribing], timeout=0.05)
    expect(not done, "done without a connection")
    await network.resume()
    await asyncio.gather(*sending)
    await subscribing
    await inbox.wait(5)
    expect_equal({*inbox.bodies}, {b"%d" % each for each in range(5)}, "what came")
    return YES


@case(60.0)
async def nothing_lost(trial: Trial) -> str:
    """Connections that break while messages are published and handled lose none of them."""
    network, topic = await trial.network(), trial.topic("nothing lost")
    worker = await trial.client("worker", **network.changes)
    publisher = await trial.client("publisher", **network.changes)
    inbox = trial.inbox()
    await worker.subscribe(topic, inbox, group=trial.group(), concurrency=3)
    bodies = [b"%d" % number for number in range(300)]
    for start in range(0, 300, 75):
        batch = bodies[start : start + 75]
        sending = [asyncio.ensure_future(publisher.publish(topic, body)) for body in batch]
        count = len(inbox.got)
        await trial.until(lambda: len(inbox.got) > count + 5, "some came")  # noqa: B023
        if start < 225:
            await network.cut()
        await asyncio.gather(*sending)
    await trial.until(lambda: {*bodies} <= {*inbox.bodies}, "all came")
    expect(worker.health().reconnects >= 2, "the connection was not broken: bad harness")
    return YES


@case()
async def failover(trial: Trial) -> str:
    """With several `brokers` the next one is used when one cannot be reached."""
    if not trial.harness.has_network:
        with refused(ConfigurationError, "brokers"):
            await trial.client(brokers=["one:1", "two:2"])
        return NO_NETWORK
    one, two = await trial.network(), await trial.network()
    names = ["{host}:{port}".format(**network.changes) for network in (one, two)]
    topic, inbox = trial.topic("failover"), trial.inbox()
    client = await trial.client(brokers=names)
    await client.subscribe(topic, inbox, group=trial.group())
    expect_equal(client.health().broker, names[0], "the first broker")
    await client.publish(topic, b"one")
    await inbox.wait(1)
    await one.refuse()
    await reconnected(trial, client)
    expect_equal(client.health().broker, names[1], "the next broker")
    await client.publish(topic, b"two")
    await trial.until(lambda: b"two" in inbox.bodies, "the second message")
    late = await trial.client("late", brokers=names)
    expect_equal(late.health().broker, names[1], "the broker of one that comes late")
    await one.resume()
    return YES


@asynccontextmanager
async def stalled(network: Network) -> AsyncIterator[None]:
    """Let the network pass nothing on for the block."""
    await network.stall()
    try:
        yield
    finally:
        await network.resume()


@case()
async def silent_publish(trial: Trial) -> str:
    """When the broker does not confirm, `publish` and `subscribe` end with a time-out error."""
    network, topic, inbox = await trial.network(), trial.topic("silent"), trial.inbox()
    client = await trial.client(**network.changes, publish_timeout=0.4, confirm_timeout=0.2)
    async with stalled(network):
        with refused(TransportTimeoutError, "publish_timeout", "failover_timeout") as refusal:
            await client.publish(topic, b"lost?")
        expect(isinstance(refusal.error, TimeoutError), "it is no TimeoutError")
        with refused(TransportTimeoutError):
            await client.subscribe(topic, trial.inbox())
        expect(client.health().state != "closed", "it has given up")
    await _in_the_end(trial, lambda: client.subscribe(topic, inbox))
    await _in_the_end(trial, lambda: client.publish(topic, b"again"))
    await trial.until(lambda: b"again" in inbox.bodies, "it works again")
    return YES


async def _in_the_end(trial: Trial, act: Callable[[], Awaitable[object]]) -> None:
    """Do it until it works: with time-outs so short it may fail a few times."""
    deadline = asyncio.get_running_loop().time() + trial.harness.patience
    while True:
        try:
            await act()
        except TransportTimeoutError:
            expect(asyncio.get_running_loop().time() < deadline, "it does not recover")
        else:
            return


@case()
async def silent_connect(trial: Trial) -> str:
    """A broker that takes the connection and says nothing ends `initialize` in time."""
    if not trial.harness.has_network:
        return NO_NETWORK
    network = await trial.network()
    async with stalled(network):
        with refused(TransportConnectionError, "connect_timeout"):
            await trial.client(**network.changes, connect_timeout=0.3)
    await network.refuse()
    with refused(TransportConnectionError):
        await trial.client(**network.changes)
    return YES


@case()
async def keepalive(trial: Trial) -> str:
    """A client that only listens notices by `keepalive` that its broker fell silent."""
    if not trial.harness.has_network:
        return NO_NETWORK
    network = await trial.network()
    client = await trial.client(**network.changes, keepalive=1, confirm_timeout=2.0)
    inbox = trial.inbox()
    topic = trial.topic("listens")
    await client.subscribe(topic, inbox, group=trial.group())
    async with stalled(network):
        await trial.until(lambda: client.health().state == "connecting", "it notices")
    await reconnected(trial, client)
    publisher = await trial.client("publisher")
    await publisher.publish(topic, b"again")
    await inbox.wait(1)
    return YES


@case(120.0)
async def broker_killed(trial: Trial) -> str:
    """What was confirmed for a group survives a kill -9 of the broker; clients come back."""
    context = trial.harness.broker()
    if context is None:
        return "not checked"
    broker: Broker = await trial.enter(context)
    topic, group = trial.topic("kill"), trial.group()
    here = {**broker.config(), "connect_timeout": 30.0, "publish_timeout": 60.0}
    here |= {"failover_timeout": 60.0}
    worker = await trial.client("worker", **here)
    await worker.subscribe(topic, trial.inbox(), group=group)
    await worker.close()
    publisher, heard = await trial.client("publisher", **here), trial.inbox()
    await publisher.subscribe(trial.topic("heard"), heard)
    bodies = [b"%d" % number for number in range(200)]
    await asyncio.gather(*(publisher.publish(topic, body) for body in bodies))
    await broker.kill()
    await trial.until(lambda: publisher.health().state == "connecting", "it notices")
    sending = asyncio.ensure_future(publisher.publish(topic, b"while it is down"))
    await broker.start()
    await sending
    await trial.until(lambda: publisher.health().state == "connected", "it comes back")
    await publisher.publish(trial.topic("heard"), b"!")
    await heard.wait(1)
    worker, inbox = await trial.client("worker", **here), trial.inbox()
    await worker.subscribe(topic, inbox, group=group)
    await publisher.publish(topic, b"the end")
    await trial.until(lambda: b"the end" in inbox.bodies, "messages come again")
    lost = {*bodies} - {*inbox.bodies}
    if trial.capabilities.survives_broker_kill:
        expect_equal(lost, set(), "lost")
        return YES
    expect(len(lost) <= broker.may_lose, f"{len(lost)} of 200 were lost, not {broker.may_lose}")
    return broker.verdict


@case()
async def callbacks_survive(trial: Trial) -> str:
    """A callback that runs while the connection breaks ends; its message comes again."""
    network, topic, gate = await trial.network(), trial.topic("survives"), asyncio.Event()
    client = await trial.client(**network.changes)

    async def first_waits(message: Delivery) -> None:
        if message.attempt == 1:
            await gate.wait()

    inbox = trial.inbox(first_waits)
    await client.subscribe(topic, inbox, group=trial.group())
    await client.publish(topic, b"work")
    await inbox.wait(1)
    await network.cut()
    await reconnected(trial, client)
    gate.set()
    await trial.until(lambda: len(inbox.done) == 2, "it is handled again")
    await trial.until(lambda: client.health().acknowledged == 1, "it is acknowledged")
    expect(inbox.got[1].attempt >= 2, f"the second attempt is {inbox.got[1].attempt}")
    await trial.nothing_more(client, topic, inbox, [b"work", b"work"])
    return YES


@case()
async def no_broker(trial: Trial) -> str:
    """While no broker can be reached `publish` waits `failover_timeout` and says why it failed."""
    network = await trial.network()
    client = await trial.client(**network.changes, failover_timeout=0.2)
    await network.refuse()
    await trial.until(lambda: client.health().state == "connecting", "it notices")
    with refused(TransportTimeoutError, "failover_timeout"):
        await client.publish(trial.topic(), b"")
    with refused(TransportError, "failover_timeout"):
        await client.subscribe(trial.topic(), trial.inbox())
    await network.resume()
    await reconnected(trial, client)
    await client.publish(trial.topic(), b"")
    return YES
