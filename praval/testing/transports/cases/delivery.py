"""Delivery."""

from __future__ import annotations

import asyncio
import functools

from praval.core.transport import Delivery, GiveBack
from praval.testing.transports.case import YES, case
from praval.testing.transports.trial import Trial, expect, expect_equal, in_callbacks


@case()
async def callback(trial: Trial) -> str:
    """A callback, a coroutine function or a plain one, gets bytes with topic and attempt."""
    client, topic = await trial.client(), trial.topic("callback")
    got: list[Delivery] = []
    inbox = trial.inbox()
    await client.subscribe(topic, got.append)
    await client.subscribe(topic, functools.partial(inbox))
    await client.publish(topic.replace(".", "/"), b"{}", headers={"a": "b"})
    await trial.until(lambda: got and inbox.got, "both callbacks are called")
    for message in (got[0], inbox.got[0]):
        expect(isinstance(message, bytes), f"it is a {type(message)}")
        found = (bytes(message), message.topic, message.headers, message.attempt)
        expect_equal(found, (b"{}", topic, {"a": "b"}, 1), "body, topic, headers, attempt")
    return YES


@case()
async def order(trial: Trial) -> str:
    """With a concurrency of 1 messages come in the order of publication, retries included."""
    topic, group = trial.topic("order"), trial.group()

    def fail_once(message: Delivery) -> None:
        if message in (b"3", b"50") and message.attempt == 1:
            raise ValueError("once")

    client, inbox = await trial.client(), trial.inbox(fail_once)
    await client.subscribe(topic, inbox, group=group)
    bodies = [b"%d" % number for number in range(100)]
    await trial.fill(client, topic, bodies)
    await inbox.wait(102)
    expect_equal(inbox.bodies, sorted([*bodies, b"3", b"50"], key=int), "the order of the calls")
    expect_equal(inbox.most, 1, "calls at once")
    return YES


@case()
async def concurrency(trial: Trial) -> str:
    """With a concurrency of N that many calls run at once, and no more, however much waits."""
    for prefetch_count in (5, 100):
        topic, group, gate = trial.topic(f"{prefetch_count}"), trial.group(), asyncio.Event()
        client = await trial.client(prefetch_count=prefetch_count)
        inbox = trial.inbox(lambda _: gate.wait())  # noqa: B023
        await client.subscribe(topic, inbox, group=f"{group}-{prefetch_count}", concurrency=5)
        for count in range(1, 6):  # one by one: no batch fills the window
            await client.publish(topic, b"first")
            await inbox.wait(count)
        await trial.fill(client, topic, [b"%d" % number for number in range(15)])
        wanted = min(prefetch_count, 20)
        await trial.until(lambda: client.health().received == wanted, "all are fetched")  # noqa: B023
        expect_equal(inbox.running, 5, "calls at once")
        gate.set()
        await trial.until(lambda: len(inbox.done) == 20, "all calls end")  # noqa: B023
        expect_equal(inbox.most, 5, "calls at once, at most")
        await client.close()
    return YES


@case()
async def ack_after_success(trial: Trial) -> str:
    """What a consumer had not finished when it died comes again, to another of its group."""
    topic, group, gate = trial.topic("work"), trial.group(), asyncio.Event()
    network = await trial.network()
    first = await trial.client("first", **network.changes)
    doomed = trial.inbox(lambda _: gate.wait())
    await first.subscribe(topic, doomed, group=group)
    publisher = await trial.client("publisher")
    await publisher.publish(topic, b"work")
    await doomed.wait(1)
    await network.refuse()  # what a kill -9 looks like to the broker
    takes_over = trial.capabilities.takes_over
    second, inbox = await trial.client("second" if takes_over else "first"), trial.inbox()
    await second.subscribe(topic, inbox, group=group)
    await inbox.wait(1)
    gate.set()
    expect_equal(inbox.bodies, [b"work"], "what the other one got")
    expect(inbox.got[0].attempt >= 2, f"its attempt is {inbox.got[0].attempt}, not 2 or more")
    await trial.until(lambda: in_callbacks(first.health()) == 0, "the first call ends")
    expect_equal(first.health().acknowledged, 0, "acknowledged by the dead")
    await trial.nothing_more(publisher, topic, inbox, [b"work"])
    return YES if takes_over else "no: to the same client_id"


@case()
async def give_back(trial: Trial) -> str:
    """What a callback gives back is neither failed nor done: the broker delivers it again."""
    network, topic = await trial.network(), trial.topic("give back")

    def give_back_once(message: Delivery) -> None:
        if message == b"later" and message.attempt == 1:
            raise GiveBack

    client, inbox = await trial.client(**network.changes), trial.inbox(give_back_once)
    await client.subscribe(topic, inbox, group=trial.group())
    await client.publish(topic, b"later")
    await trial.until(lambda: client.health().given_back == 1, "it is given back")
    at_once = trial.capabilities.redelivers_at_once
    if not at_once:
        expect_equal(len(inbox.got), 1, "calls before the reconnection")
        await network.cut()
    await trial.nothing_more(client, topic, inbox, [b"later", b"later"])
    expect(inbox.got[1].attempt >= 2, f"its attempt is {inbox.got[1].attempt}, not 2 or more")
    health = client.health()
    expect_equal((health.retried, health.dead), (0, 0), "retried and dead")
    return YES if at_once else "on reconnection"


@case()
async def window(trial: Trial) -> str:
    """A subscription never holds more than `prefetch_count` messages unacknowledged."""
    topic, other, gate = trial.topic("window"), trial.topic("other"), asyncio.Event()
    most = 0

    async def look(_: Delivery) -> None:
        nonlocal most
        most = max(most, in_callbacks(client.health()))
        await gate.wait()

    client = await trial.client(prefetch_count=4)
    inbox, echo = trial.inbox(look), trial.inbox()
    await client.subscribe(topic, inbox, group=trial.group(), concurrency=2)
    await client.subscribe(other, echo)
    await trial.fill(client, topic, [b"%d" % number for number in range(20)])
    await inbox.wait(2)
    await trial.fill(client, other, [b"echo"] * 5)
    await echo.wait(5)  # time enough for more to come
    expect_equal((inbox.running, inbox.most), (2, 2), "calls at once")
    await client.unsubscribe(other)
    gate.set()
    await trial.until(lambda: len(inbox.done) == 20, "all come in the end")
    expect(most <= 4, f"{most} were held at once")
    return YES


@case()
async def busy_member(trial: Trial) -> str:
    """What a busy member of a group has not fetched goes to another one."""
    topic, group, gate = trial.topic("busy"), trial.group(), asyncio.Event()
    busy = await trial.client("busy", prefetch_count=2)
    idle = await trial.client("idle", prefetch_count=2)
    stuck, free = trial.inbox(lambda _: gate.wait()), trial.inbox()
    await busy.subscribe(topic, stuck, group=group)
    bodies = [b"%d" % number for number in range(20)]
    await trial.fill(busy, topic, bodies)
    await trial.until(lambda: busy.health().received == 2, "the window is filled")
    await idle.subscribe(topic, free, group=group)
    if trial.capabilities.takes_over:
        await free.wait(18)
    gate.set()
    await trial.until(lambda: len(stuck.done + free.done) == 20, "all come")
    expect_equal(sorted(stuck.bodies + free.bodies), sorted(bodies), "what came")
    return YES if trial.capabilities.takes_over else "no: shared out at publication"


@case()
async def slow_consumer(trial: Trial) -> str:
    """A callback that does not return stops no other subscription of its transport."""
    client, gate = await trial.client(prefetch_count=1), asyncio.Event()
    slow, quick = trial.inbox(lambda _: gate.wait()), trial.inbox()
    await client.subscribe(trial.topic("slow"), slow, group=trial.group("slow"))
    await client.subscribe(trial.topic("quick"), quick, group=trial.group("quick"))
    await trial.fill(client, trial.topic("slow"), [b"%d" % number for number in range(50)])
    await slow.wait(1)
    await trial.fill(client, trial.topic("quick"), [b"%d" % number for number in range(50)])
    await quick.wait(50)
    expect_equal(len(slow.got), 1, "calls of the slow one")
    gate.set()
    await slow.wait(50)
    return YES


@case()
async def publish_inside(trial: Trial) -> str:
    """A callback may publish and subscribe on its own transport."""
    client, inbox = await trial.client(prefetch_count=1), trial.inbox()

    async def answer(message: Delivery) -> None:
        await client.subscribe(trial.topic("answer"), inbox)
        await client.publish(trial.topic("answer"), b"answer")

    question = trial.inbox(answer)
    await client.subscribe(trial.topic("question"), question, group=trial.group())
    await client.publish(trial.topic("question"), b"question")
    await trial.until(lambda: question.done, "the callback ends")
    await inbox.wait(1)
    return YES
