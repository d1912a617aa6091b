"""Cancelling and closing."""

from __future__ import annotations

import asyncio
import contextlib

from praval.core.transport import Delivery, MessageTransport
from praval.errors import ConfigurationError, TransportClosedError
from praval.testing.transports.cancelling import cancelled_everywhere
from praval.testing.transports.case import YES, case
from praval.testing.transports.trial import Trial, expect, expect_equal, refused


@case(60.0)
async def cancel_initialize(trial: Trial) -> str:
    """`initialize` can be cancelled at each of its awaits, and nothing of it stays."""
    made: list[MessageTransport] = []

    async def start() -> None:
        made.append(trial.new())
        await made[-1].initialize(trial.config())

    async for _ in cancelled_everywhere(start):
        await made[-1].close()
    await made[-1].publish(trial.topic(), b"the last one works")
    return YES


@case(60.0)
async def cancel_publish(trial: Trial) -> str:
    """`publish` can be cancelled at each of its awaits, and the next one works."""
    client, inbox, topic = await trial.client(), trial.inbox(), trial.topic("cancelled")
    await client.subscribe(topic, inbox, group=trial.group())

    async def publish() -> None:
        await client.publish(topic, b"perhaps")

    times = 0
    async for at in cancelled_everywhere(publish):
        await client.publish(topic, b"%d" % at)
        times = at
    await trial.until(lambda: inbox.bodies.count(b"perhaps") >= 1, "the last one came")
    await trial.until(lambda: len({*inbox.bodies}) == times + 1, "those between came")
    expect_equal(client.health().reconnects, 0, "connections that it cost")
    return YES


@case(60.0)
async def cancel_subscribe(trial: Trial) -> str:
    """`subscribe` can be cancelled at each of its awaits, and leaves no consumer behind."""
    client, topic, group = await trial.client(), trial.topic("cancelled"), trial.group()
    ghost = trial.inbox()

    async def subscribe() -> None:
        handle = await client.subscribe(topic, ghost, group=group)
        assert handle is not None
        await client.unsubscribe(handle)

    inbox = trial.inbox()
    wanted = 0
    async for at in cancelled_everywhere(subscribe):
        handle = await client.subscribe(topic, inbox, group=group)
        assert handle is not None
        bodies = [b"%d %d" % (at, number) for number in range(3)]  # a ghost would take some
        await trial.fill(client, topic, bodies)
        wanted += 3
        await inbox.wait(wanted)
        await client.unsubscribe(handle)
    await client.subscribe(topic, inbox, group=group)
    await client.publish(topic, b"last of all")
    await inbox.wait(wanted + 1)
    expect_equal((ghost.got, len(inbox.got)), ([], wanted + 1), "ghosts, and calls")
    return YES


@case(60.0)
async def cancel_unsubscribe(trial: Trial) -> str:
    """`unsubscribe` can be cancelled at each of its awaits: it can be done again, or is done."""
    client, topic, group = await trial.client(), trial.topic("cancelled"), trial.group()
    ended, inbox = trial.inbox(), trial.inbox()

    async def unsubscribe() -> None:
        await client.unsubscribe(topic)

    await client.subscribe(topic, ended, group=group)

    async def is_unsubscribed(times: int) -> None:
        handle = await client.subscribe(topic, inbox, group=group)
        assert handle is not None
        await trial.fill(client, topic, [b"%d" % number for number in range(3)])
        await inbox.wait(3 * times)
        await client.unsubscribe(handle)
        expect_equal(ended.got, [], "calls of what was unsubscribed")

    times = 1
    async for times in cancelled_everywhere(unsubscribe):
        with contextlib.suppress(ConfigurationError):  # it is done
            await client.unsubscribe(topic)
        await is_unsubscribed(times)
        await client.subscribe(topic, ended, group=group)
    await is_unsubscribed(times + 1)
    return YES


@case(60.0)
async def cancel_close(trial: Trial) -> str:
    """`close` can be cancelled at each of its awaits; the closing goes on, and can be awaited."""
    clients: list[MessageTransport] = []

    async def next_one() -> None:
        client = await trial.client()
        await client.subscribe(trial.topic(), trial.inbox(), group=trial.group())
        clients.append(client)

    async def close() -> None:
        await clients[-1].close()

    await next_one()
    async for _ in cancelled_everywhere(close):
        await clients[-1].close()
        expect_equal(clients[-1].health().state, "closed", "the state")
        await next_one()
    expect_equal(clients[-1].health().state, "closed", "the state")
    return YES


@case()
async def close_busy(trial: Trial) -> str:
    """`close` lets running callbacks finish and acknowledges them; what waits is given back."""
    topic, group, gate = trial.topic("busy"), trial.group(), asyncio.Event()
    client = await trial.client()

    async def publish_after(message: Delivery) -> None:
        await gate.wait()
        if message == b"0":  # a callback that runs can still publish what came of it
            await client.publish(trial.topic("result"), b"result")

    busy, results = trial.inbox(publish_after), trial.inbox()
    publisher = await trial.client("publisher")
    await publisher.subscribe(trial.topic("result"), results)
    await client.subscribe(topic, busy, group=group, concurrency=2)
    await trial.fill(publisher, topic, [b"%d" % number for number in range(6)])
    await trial.until(lambda: client.health().received == 6, "all are fetched")
    closing = asyncio.ensure_future(client.close())
    await trial.until(lambda: client.health().state == "closing", "it closes")
    with refused(TransportClosedError, "closing"):
        await client.subscribe(topic, trial.inbox())
    gate.set()
    await closing
    expect_equal((sorted(busy.done), busy.running), ([b"0", b"1"], 0), "the calls")
    expect_equal(client.health().acknowledged, 2, "acknowledged")
    await results.wait(1)
    again, inbox = await trial.client(), trial.inbox()
    await again.subscribe(topic, inbox, group=group)
    await trial.nothing_more(publisher, topic, inbox, [b"%d" % number for number in range(2, 6)])
    return YES


@case()
async def close_late(trial: Trial) -> str:
    """A callback that runs longer than `close_timeout` is cancelled; its message comes again."""
    topic, group = trial.topic("late"), trial.group()
    client, late = (
        await trial.client(close_timeout=0.1),
        trial.inbox(lambda _: asyncio.Event().wait()),
    )
    await client.subscribe(topic, late, group=group)
    await client.publish(topic, b"work")
    await late.wait(1)
    await client.close()
    expect_equal((late.running, client.health().acknowledged), (0, 0), "running, acknowledged")
    again, inbox = await trial.client(), trial.inbox()
    await again.subscribe(topic, inbox, group=group)
    await trial.nothing_more(again, topic, inbox, [b"work"])
    return YES


@case()
async def close_twice(trial: Trial) -> str:
    """`close` may be called again, at the same time, and before `initialize`."""
    client = await trial.client()
    await client.subscribe(trial.topic(), trial.inbox())
    await asyncio.gather(client.close(), client.close())
    await client.close()
    expect_equal(client.health().state, "closed", "the state")
    never = trial.new()
    await never.close()
    return YES


@case()
async def close_silent(trial: Trial) -> str:
    """`close` ends within a few `close_timeout` when the broker is silent or gone."""
    clock = asyncio.get_running_loop().time
    for ill in ("silent", "gone"):
        network = await trial.network()
        client = await trial.client(**network.changes, close_timeout=0.2)
        await client.subscribe(trial.topic(), trial.inbox(), group=trial.group())
        await client.subscribe(trial.topic(), trial.inbox())
        await (network.stall() if ill == "silent" else network.refuse())
        began = clock()
        await client.close()
        expect(clock() - began < 0.5 * trial.harness.patience, f"{clock() - began} s when {ill}")
        expect_equal(client.health().state, "closed", "the state")
        await network.resume()
    return YES


@case()
async def not_open(trial: Trial) -> str:
    """Before `initialize` and after `close` every use is refused with a typed error."""
    client, topic = trial.new(), trial.topic()
    expect_equal(client.health().state, "new", "the state")
    for words in ("not initialised", "closed"):
        with refused(TransportClosedError, words):
            await client.publish(topic, b"")
        with refused(TransportClosedError, words):
            await client.subscribe(topic, trial.inbox())
        with refused(TransportClosedError, words):
            await client.unsubscribe(topic)
        if words == "not initialised":
            await client.initialize(trial.config())
            with refused(ConfigurationError, "once"):
                await client.initialize(trial.config())
            await client.close()
    with refused((ConfigurationError, TransportClosedError)):
        await client.initialize(trial.config())
    return YES
