"""Publishing."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

from praval.core.transport import Confirmation
from praval.errors import ConfigurationError, SporeTooLargeError, TopicError
from praval.testing.transports.case import YES, case
from praval.testing.transports.trial import Trial, expect, expect_equal, refused


@case()
async def confirm(trial: Trial) -> str:
    """`publish` returns when the broker has the message, also for many at once, and counts it."""
    topic, group = trial.topic("confirmed"), trial.group()
    await trial.offline_group(topic, group, "worker")
    publisher = await trial.client("publisher")
    bodies = [b"%d" % number for number in range(200)]
    answers = await asyncio.gather(*(publisher.publish(topic, body) for body in bodies))
    expect(all(isinstance(answer, Confirmation | None) for answer in answers), f"{answers[0]!r}")
    expect_equal(publisher.health().published, len(bodies), "published")
    worker, inbox = await trial.client("worker"), trial.inbox()
    await worker.subscribe(topic, inbox, group=group)
    await trial.nothing_more(publisher, topic, inbox, bodies)
    return YES


@case()
async def nobody_listens(trial: Trial) -> str:
    """What is published where nobody listens is no error, and nobody gets it later."""
    client, topic = await trial.client(), trial.topic("nobody")
    await client.publish(topic, b"unheard")
    private, shared = trial.inbox(), trial.inbox()
    await client.subscribe(topic, private)
    await client.subscribe(topic, shared, group=trial.group())
    await trial.nothing_more(client, topic, private, [])
    await shared.wait(1)
    expect_equal(shared.bodies, private.bodies, "what the group got")
    return YES


@case()
async def unroutable(trial: Trial) -> str:
    """`publish` says whether somebody will get the message."""
    group, private, nobody = trial.topic("group"), trial.topic("private"), trial.topic("nobody")
    await trial.offline_group(group, trial.group(), "worker")
    client = await trial.client()
    await client.subscribe(private, trial.inbox())
    answers = [await client.publish(topic, b"?") for topic in (group, private, nobody)]
    routed = [None if answer is None else answer.routed for answer in answers]
    if trial.capabilities.tells_unroutable:
        expect_equal(routed, [True, True, False], "routed to a group, a subscriber, nobody")
        return YES
    expect_equal(routed, [None, None, None], "routed to a group, a subscriber, nobody")
    return "no: routed is None"


@case()
async def time_to_live(trial: Trial) -> str:
    """A message whose time to live is over is not delivered, and the receiver counts it."""
    topic, group = trial.topic("ttl"), trial.group()
    await trial.offline_group(topic, group, "worker")
    publisher = await trial.client("publisher")
    await publisher.publish(topic, b"stale", ttl=0.05)
    over = time.time() + 0.05
    await publisher.publish(topic, b"fresh", ttl=3600)
    await trial.until(lambda: time.time() > over, "time passes")
    worker, inbox = await trial.client("worker"), trial.inbox()
    await worker.subscribe(topic, inbox, group=group)
    await trial.nothing_more(publisher, topic, inbox, [b"fresh"])
    health = worker.health()
    expect_equal((health.received, health.expired), (3, 1), "received and expired")
    return YES


@case()
async def priority(trial: Trial) -> str:
    """Of what waits, the highest priority (10) comes first, and equals in their order."""
    topic, group, gate = trial.topic("priority"), trial.group(), asyncio.Event()
    worker = await trial.client("worker")
    inbox = trial.inbox(lambda _: gate.wait())
    await worker.subscribe(topic, inbox, group=group)
    await worker.publish(topic, b"first of all")
    await inbox.wait(1)
    priorities = [5, 1, 10, 3, 10, 2, 8, 5, 9, 4, 7, 6]
    bodies = [b"%d %d" % (each, number) for number, each in enumerate(priorities)]

    async def publish() -> None:
        for body, each in zip(bodies, priorities, strict=True):
            await worker.publish(topic, body, priority=each)

    wanted = sorted(bodies, key=lambda body: -int(body.split()[0]))
    await publish()
    await trial.until(lambda: worker.health().received == len(bodies) + 1, "all are fetched")
    gate.set()
    await inbox.wait(len(bodies) + 1)
    expect_equal(inbox.bodies[1:], wanted, "the order of what was fetched ahead")
    if not trial.capabilities.broker_priority:
        return "among the messages fetched ahead"
    await worker.close()
    worker, again = await trial.client("worker", prefetch_count=1), trial.inbox()
    topic, group = trial.topic("at the broker"), trial.group("other")
    await trial.offline_group(topic, group, "late")
    await publish()
    late = await trial.client("late", prefetch_count=1)
    await late.subscribe(topic, again, group=group)
    await again.wait(len(bodies))
    expect_equal(again.bodies, wanted, "the order of what waited at the broker")
    return YES


REFUSED: list[tuple[type[Exception], dict[str, Any]]] = [
    (TopicError, {"topic": ""}),
    (TopicError, {"topic": "a..b"}),
    (TopicError, {"topic": "a.*"}),
    (TopicError, {"topic": "a.#"}),
    (TopicError, {"topic": "a/b.c"}),
    (TopicError, {"topic": "a b"}),
    (TopicError, {"topic": 42}),
    (TopicError, {"topic": "\ud800"}),
    (ConfigurationError, {"message": "text"}),
    (ConfigurationError, {"message": None}),
    (ConfigurationError, {"priority": 0}),
    (ConfigurationError, {"priority": 11}),
    (ConfigurationError, {"priority": 5.5}),
    (ConfigurationError, {"ttl": 0}),
    (ConfigurationError, {"ttl": -1.0}),
    (ConfigurationError, {"ttl": math.inf}),
    (ConfigurationError, {"ttl": math.nan}),
    (ConfigurationError, {"ttl": "soon"}),
    (ConfigurationError, {"headers": {"name": 1}}),
    (ConfigurationError, {"headers": {"": "empty"}}),
    (ConfigurationError, {"headers": {"praval-topic": "reserved"}}),
    (ConfigurationError, {"headers": {"name": "nul \0"}}),
    (ConfigurationError, {"headers": {"name": "\ud800"}}),
]


@case()
async def arguments(trial: Trial) -> str:
    """What cannot be published is refused with an error that says why, and nothing is sent."""
    client, inbox, topic = await trial.client(), trial.inbox(), trial.topic("arguments")
    await client.subscribe(topic, inbox)
    for kind, wrong in REFUSED:
        given: dict[str, Any] = {"topic": topic, "message": b"", **wrong}
        with refused(kind, what=repr(wrong)):
            await client.publish(given.pop("topic"), given.pop("message"), **given)
    expect_equal(client.health().published, 0, "published")
    await trial.nothing_more(client, topic, inbox, [])
    return YES


@case()
async def size_limit(trial: Trial) -> str:
    """A message over `max_message_size` is refused, and a dead letter where one comes in."""
    topic, group = trial.topic("size"), trial.group()
    worker, inbox = await trial.client("worker", max_message_size=1000), trial.inbox()
    await worker.subscribe(topic, inbox, group=group)
    with refused(SporeTooLargeError, "1001 bytes"):
        await worker.publish(topic, bytes(1001))
    await worker.publish(topic, bytes(1000))
    publisher, letters = await trial.client("publisher"), trial.inbox()
    await publisher.publish(topic, bytes(1001))
    await trial.nothing_more(publisher, topic, inbox, [bytes(1000)])
    expect_equal(worker.health().dead, 1, "dead letters")
    await publisher.subscribe(trial.dead, letters, group=trial.dead)
    await letters.wait(1)
    found = (len(letters.got[0]), letters.got[0].headers.get("praval-attempts"))
    expect_equal(found, (1001, "0"), "its length and attempts")
    return YES
