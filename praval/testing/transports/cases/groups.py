"""Groups and subscriptions."""

from __future__ import annotations

import asyncio

from praval.core.transport import Delivery
from praval.errors import ConfigurationError, TransportUnsupportedError
from praval.testing.transports.case import YES, case
from praval.testing.transports.trial import Trial, expect_equal, refused


@case()
async def shared_group(trial: Trial) -> str:
    """The members of a group share its messages: each goes to one of them."""
    topic, group, both = trial.topic("shared"), trial.group(), asyncio.Barrier(2)

    async def meet(message: Delivery) -> None:
        if message in (b"0", b"1"):  # one for each member, or nobody comes out of here
            await both.wait()

    inboxes, clients = [trial.inbox(meet), trial.inbox(meet)], []
    for name, inbox in zip(("one", "two"), inboxes, strict=True):
        client = await trial.client(name, prefetch_count=1)
        await client.subscribe(topic, inbox, group=group)
        clients.append(client)
    bodies = [b"%d" % number for number in range(40)]
    await trial.fill(clients[0], topic, bodies)
    await trial.until(lambda: sum(len(inbox.done) for inbox in inboxes) >= 40, "all are done")
    for client in clients:
        await client.close()
    expect_equal(sorted(inboxes[0].bodies + inboxes[1].bodies), sorted(bodies), "what came")
    return YES


@case()
async def copies(trial: Trial) -> str:
    """Each group, and each subscriber without one, gets a copy of its own."""
    topic, one = trial.topic("copies"), await trial.client("one")
    two, inboxes = await trial.client("two"), [trial.inbox() for _ in range(5)]
    await one.subscribe(topic, inboxes[0])
    await one.subscribe(topic, inboxes[1])
    await two.subscribe(topic, inboxes[2])
    await one.subscribe(topic, inboxes[3], group=trial.group("one"))
    await two.subscribe(topic, inboxes[4], group=trial.group("two"))
    bodies = [b"%d" % number for number in range(10)]
    await trial.fill(one, topic, bodies)
    for inbox in inboxes:
        await inbox.wait(10)
        expect_equal(inbox.bodies, bodies, "a copy")
    return YES


@case()
async def group_in_one_client(trial: Trial) -> str:
    """Several subscriptions of one client may be of one group, and share too."""
    topic, group, both = trial.topic("members"), trial.group(), asyncio.Barrier(2)
    client, inboxes = await trial.client(prefetch_count=1), [trial.inbox(), trial.inbox()]

    async def meet(message: Delivery) -> None:
        if message in (b"0", b"1"):
            await both.wait()

    inboxes = [trial.inbox(meet), trial.inbox(meet)]
    for inbox in inboxes:
        await client.subscribe(topic, inbox, group=group)
    bodies = [b"%d" % number for number in range(20)]
    await trial.fill(client, topic, bodies)
    await trial.until(lambda: sum(len(inbox.done) for inbox in inboxes) >= 20, "all are done")
    await client.close()
    expect_equal(sorted(inboxes[0].bodies + inboxes[1].bodies), sorted(bodies), "what came")
    return YES


@case()
async def late_subscriber(trial: Trial) -> str:
    """A subscriber without a group gets what is published from then on, until it ends."""
    client, topic = await trial.client(), trial.topic("late")
    await client.subscribe(topic, trial.inbox(), group=trial.group())
    await client.publish(topic, b"before")
    inbox = trial.inbox()
    handle = await client.subscribe(topic, inbox)
    assert handle is not None
    await client.publish(topic, b"during")
    await inbox.wait(1)
    await client.unsubscribe(handle)
    await client.publish(topic, b"between")
    again = trial.inbox()
    await client.subscribe(topic, again)
    await trial.nothing_more(client, topic, again, [])
    expect_equal(inbox.bodies, [b"during"], "what it got")
    return YES


@case()
async def offline_group(trial: Trial) -> str:
    """A group collects while none of its members is there."""
    topic, group = trial.topic("offline"), trial.group()
    worker, first, publisher = (
        await trial.client("worker"),
        trial.inbox(),
        await trial.client("publisher"),
    )
    await worker.subscribe(topic, first, group=group)
    await publisher.publish(topic, b"online")
    await trial.until(lambda: worker.health().acknowledged == 1, "it is acknowledged")
    await worker.close()
    bodies = [b"%d" % number for number in range(50)]
    await trial.fill(publisher, topic, bodies)
    worker, inbox = await trial.client("worker"), trial.inbox()
    await worker.subscribe(topic, inbox, group=group)
    await trial.nothing_more(publisher, topic, inbox, bodies)
    return YES


@case()
async def unsubscribe(trial: Trial) -> str:
    """`unsubscribe` with the handle ends that subscription, with the topic all to it."""
    client, topic, other = await trial.client(), trial.topic("topic"), trial.topic("other")
    inboxes = [trial.inbox() for _ in range(4)]
    handle = await client.subscribe(topic, inboxes[0])
    await client.subscribe(topic, inboxes[1])
    await client.subscribe(topic.replace(".", "/"), inboxes[2], group=trial.group())
    await client.subscribe([topic, other], inboxes[3])
    assert handle is not None
    await client.unsubscribe(handle)
    await client.publish(topic, b"one")
    for inbox in inboxes[1:]:
        await inbox.wait(1)
    with refused(ConfigurationError, "subscription"):
        await client.unsubscribe(handle)
    await client.unsubscribe(topic)
    await client.publish(topic, b"two")
    await trial.nothing_more(client, topic, inboxes[3], [b"one", b"two"])
    expect_equal([len(inbox.got) for inbox in inboxes], [0, 1, 1, 3], "the calls")
    with refused(ConfigurationError, "subscription"):
        await client.unsubscribe(topic)
    return YES


@case()
async def group_stays(trial: Trial) -> str:
    """A group goes on collecting when its last member has unsubscribed."""
    client, topic, group = await trial.client(), trial.topic("stays"), trial.group()
    handle = await client.subscribe(topic, trial.inbox(), group=group)
    assert handle is not None
    await client.unsubscribe(handle)
    await client.publish(topic, b"meanwhile")
    inbox = trial.inbox()
    await client.subscribe(topic, inbox, group=group)
    await trial.nothing_more(client, topic, inbox, [b"meanwhile"])
    return YES


@case()
async def drop_group(trial: Trial) -> str:
    """`drop_group` removes the group, with what it has collected."""
    client, topic, group = await trial.client(), trial.topic("dropped"), trial.group()
    gate = asyncio.Event()
    stuck = trial.inbox(lambda _: gate.wait())
    handle = await client.subscribe(topic, stuck, group=group)
    assert handle is not None
    bodies = [b"%d" % number for number in range(5)]
    await trial.fill(client, topic, bodies)
    await stuck.wait(1)
    dropping = asyncio.ensure_future(client.unsubscribe(handle, drop_group=True))
    asyncio.get_running_loop().call_soon(gate.set)
    dropped = trial.capabilities.drops_groups
    if dropped:
        await dropping
    else:
        with refused(TransportUnsupportedError, "the group"):
            await dropping
    await client.publish(topic, b"meanwhile")
    inbox = trial.inbox()
    await client.subscribe(topic, inbox, group=group)
    left = [] if dropped else [*(each for each in bodies if each not in stuck.done), b"meanwhile"]
    await trial.nothing_more(client, topic, inbox, left)
    return YES if dropped else "no: refused, the group stays"


@case()
async def unsubscribe_busy(trial: Trial) -> str:
    """What is in a callback when it is unsubscribed ends well; what waits is given back."""
    client, topic, group = await trial.client(), trial.topic("busy"), trial.group()
    gate = asyncio.Event()
    busy = trial.inbox(lambda _: gate.wait())
    handle = await client.subscribe(topic, busy, group=group)
    assert handle is not None
    await trial.fill(client, topic, [b"%d" % number for number in range(5)])
    await trial.until(lambda: client.health().received == 5, "all are fetched")
    leaving = asyncio.ensure_future(client.unsubscribe(handle))
    await trial.until(lambda: client.health().given_back == 4, "four are given back")
    gate.set()
    await leaving
    expect_equal((busy.done, client.health().acknowledged), ([b"0"], 1), "done, acknowledged")
    inbox = trial.inbox()
    await client.subscribe(topic, inbox, group=group)
    await trial.nothing_more(client, topic, inbox, [b"%d" % number for number in range(1, 5)])
    return YES


@case()
async def unsubscribe_inside(trial: Trial) -> str:
    """A callback may end its own subscription, and is acknowledged."""
    client, topic, group = await trial.client(), trial.topic("once"), trial.group()

    async def only_once(_: Delivery) -> None:
        await client.unsubscribe(topic)

    once, inbox = trial.inbox(only_once), trial.inbox()
    await client.subscribe(topic, once, group=group)
    await client.publish(topic, b"one")
    await trial.until(lambda: client.health().acknowledged == 1, "it is acknowledged")
    await client.publish(topic, b"two")
    await client.subscribe(topic, inbox, group=group)
    await trial.nothing_more(client, topic, inbox, [b"two"])
    expect_equal(once.done, [b"one"], "the calls")
    return YES
