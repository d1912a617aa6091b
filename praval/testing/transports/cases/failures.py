"""Failures."""

from __future__ import annotations

import asyncio
import itertools

from praval.core.transport import Delivery, Refuse
from praval.testing.transports.case import YES, case
from praval.testing.transports.trial import Trial, expect, expect_equal


@case()
async def retries(trial: Trial) -> str:
    """A callback that raises is called again, the attempts are counted, a success ends it."""
    client, topic = await trial.client(), trial.topic("retries")

    def fail_twice(message: Delivery) -> None:
        if message.attempt < 3:
            raise ValueError("not yet")

    inbox = trial.inbox(fail_twice)
    await client.subscribe(topic, inbox, group=trial.group())
    await client.publish(topic, b"hard", headers={"a": "b"})
    await trial.until(lambda: client.health().acknowledged == 1, "it is acknowledged")
    expect_equal(inbox.attempts, [1, 2, 3], "the attempts")
    expect_equal(inbox.bodies, [b"hard"] * 3, "the bodies")
    expect_equal([each.headers for each in inbox.got], [{"a": "b"}] * 3, "the headers")
    health = client.health()
    counts = (health.received, health.retried, health.dead)
    expect_equal(counts, (1, 2, 0), "received, retried, dead")
    return YES


@case()
async def dead_letter(trial: Trial) -> str:
    """After `max_attempts` failures it is a dead letter, kept while nobody listens for it."""
    topic, group = trial.topic("dead letter"), trial.group()

    def fail(_: Delivery) -> None:
        raise KeyError("bug")

    client, inbox = await trial.client(), trial.inbox(fail)
    await client.subscribe(topic, inbox, group=group)
    await client.publish(topic, b"\0poison", headers={"a": "b"}, priority=9, ttl=3600)
    await trial.until(lambda: client.health().dead == 1, "it is a dead letter")
    await trial.until(lambda: client.health().acknowledged == 1, "it is acknowledged")
    expect_equal(inbox.attempts, [1, 2, 3], "the attempts")
    await client.close()
    client, letters = await trial.client(), trial.inbox()
    await client.subscribe(trial.dead, letters, group=trial.dead)
    await letters.wait(1)
    letter = letters.got[0]
    expect_equal((bytes(letter), letter.topic), (b"\0poison", trial.dead), "body and topic")
    expect_equal(letter.headers.get("a"), "b", "the header of its sender")
    expect_equal(letter.headers.get("praval-topic"), topic, "praval-topic")
    expect_equal(letter.headers.get("praval-group"), group, "praval-group")
    expect_equal(letter.headers.get("praval-attempts"), "3", "praval-attempts")
    reason = letter.headers.get("praval-reason", "")
    expect("KeyError" in reason, f"praval-reason is {reason!r}")
    await trial.nothing_more(client, trial.dead, letters, [b"\0poison"])
    return YES


@case()
async def refuse(trial: Trial) -> str:
    """`Refuse` makes a dead letter at once; who listens on the dead-letter topic gets it."""
    topic = trial.topic("refuse")

    def refuse(_: Delivery) -> None:
        raise Refuse("no such order")

    client, inbox, letters = await trial.client(), trial.inbox(refuse), trial.inbox()
    await client.subscribe(trial.dead, letters)
    await client.subscribe(topic, inbox, group=trial.group())
    await client.publish(topic, b"unwanted")
    await letters.wait(1)
    expect_equal(inbox.attempts, [1], "the attempts")
    headers = letters.got[0].headers
    found = (headers.get("praval-reason", ""), headers.get("praval-attempts"))
    expect("no such order" in found[0] and found[1] == "1", f"the reason and attempts: {found}")
    await trial.until(lambda: client.health().acknowledged == 2, "both are acknowledged")
    return YES


@case()
async def dead_letter_fails(trial: Trial) -> str:
    """A dead letter that its own callback refuses is kept, and does not go round in a circle."""
    topic, echo = trial.topic("fails"), trial.topic("echo")

    def refuse(_: Delivery) -> None:
        raise Refuse("no")

    client, letters, echoes = await trial.client(), trial.inbox(refuse), trial.inbox()
    await client.subscribe(trial.dead, letters, group=trial.dead)
    await client.subscribe(topic, refuse, group=trial.group())
    await client.subscribe(echo, echoes)
    await client.publish(topic, b"unwanted")
    await letters.wait(1)
    await trial.fill(client, echo, [b"%d" % number for number in range(20)])
    await echoes.wait(20)  # time enough to go round
    expect(len(letters.got) <= 2, f"it was delivered {len(letters.got)} times meanwhile")
    expect_equal(client.health().dead, 1, "dead letters")
    await client.close()
    client, again = await trial.client(), trial.inbox()
    await client.subscribe(trial.dead, again, group=trial.dead)
    await again.wait(1)
    expect_equal((again.bodies, again.got[0].headers["praval-topic"]), ([b"unwanted"], topic), "it")
    return YES


@case()
async def failure_is_private(trial: Trial) -> str:
    """A message that one group cannot handle is not delivered to another one again."""
    topic = trial.topic("private")

    def fail(_: Delivery) -> None:
        raise ValueError("mine")

    client, failing, good = await trial.client(), trial.inbox(fail), trial.inbox()
    await client.subscribe(topic, failing, group=trial.group("failing"))
    await client.subscribe(topic, good, group=trial.group("good"))
    await client.publish(topic, b"message")
    await trial.until(lambda: client.health().dead == 1, "it is a dead letter")
    await trial.nothing_more(client, topic, good, [b"message"])
    return YES


@case()
async def retry_delay(trial: Trial) -> str:
    """The wait before a retry is `retry_delay` at first, and doubles."""
    client = await trial.client(retry_delay=0.05, max_attempts=4)
    clock, topic = asyncio.get_running_loop().time, trial.topic("waits")
    calls: list[float] = []

    def fail(_: Delivery) -> None:
        calls.append(clock())
        raise ValueError("always")

    await client.subscribe(topic, fail, group=trial.group())
    await client.publish(topic, b"bad")
    await trial.until(lambda: client.health().dead == 1, "it is a dead letter")
    waits = [later - earlier for earlier, later in itertools.pairwise(calls)]
    expect(len(waits) == 3, f"{len(waits)} waits, not 3")
    for wait, least in zip(waits, (0.05, 0.1, 0.2), strict=True):
        expect(wait > 0.9 * least, f"a wait of {wait:.3f} s, not {least}")
    return YES


@case()
async def retry_waits(trial: Trial) -> str:
    """A message that waits for its retry holds up no other call, and not `close()`."""
    topic, group = trial.topic("waits"), trial.group()

    def fail(message: Delivery) -> None:
        if message == b"bad":
            raise ValueError("always")

    client, inbox = await trial.client(retry_delay=3600.0, close_timeout=3600.0), trial.inbox(fail)
    await client.subscribe(topic, inbox, group=group, concurrency=2)
    await trial.fill(client, topic, [b"bad", b"good", b"good"])
    await trial.until(lambda: len(inbox.done) == 2, "the others are done")
    expect_equal(sorted(inbox.bodies), [b"bad", b"good", b"good"], "the calls")
    await client.close()
    again, rest = await trial.client(), trial.inbox()
    await again.subscribe(topic, rest, group=group)
    await trial.nothing_more(again, topic, rest, [b"bad"])
    return YES
