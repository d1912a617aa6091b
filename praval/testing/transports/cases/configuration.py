"""Configuration and health."""

from __future__ import annotations

import asyncio
from typing import Any

from praval.core.transport import Delivery, GiveBack, Refuse
from praval.errors import ConfigurationError, UnknownNameError
from praval.testing.transports.case import YES, case
from praval.testing.transports.trial import Trial, expect, expect_equal, in_callbacks, refused


@case()
async def unknown_key(trial: Trial) -> str:
    """An unknown key of the config is refused; the error names the near one."""
    with refused(UnknownNameError, '"prefetch_count"'):
        await trial.client(prefetch_cuont=5)
    return YES


WRONG: list[dict[str, Any]] = [
    {"prefetch_count": 0},
    {"prefetch_count": "many"},
    {"connect_timeout": 0},
    {"connect_timeout": -1},
    {"retry_delay": -1},
    {"max_attempts": 0},
    {"compression": "zip"},
    {"dead_letter_topic": "a.*"},
    {"dead_letter_topic": ""},
    {"max_message_size": -5},
    {"url": "gopher://localhost/"},
    {"port": 70_000},
    {"load_balancing": "best"},
    {"ca_cert": "/nowhere/ca.pem"},
    {"ssl_version": "SSLv3"},
    {"client_key": "key.pem"},
    {"require_client_cert": True},
]

NETWORK = ("port", "ca_cert", "require_client_cert")
"""Keys that say nothing where there is no network."""


@case()
async def wrong_values(trial: Trial) -> str:
    """A value that cannot be used is refused before anything is connected, by the key's name."""
    for wrong in WRONG:
        (key,) = wrong
        if key in NETWORK and not trial.harness.has_network:
            continue
        words = ("begins with",) if key == "url" else (key,)
        with refused(ConfigurationError, *words, what=repr(wrong)):
            await trial.client(**wrong)
    return YES


GUIDE: dict[str, Any] = {
    "connection_pool_size": 4,
    "prefetch_count": 1000,
    "compression": "gzip",
    "keepalive": 30,
    "tcp_nodelay": True,
    "buffer_size": 65536,
    "load_balancing": "round_robin",
    "failover_timeout": 30,
    "reconnect_delay": 5,
    "verify_certs": True,
    "check_hostname": True,
    "ssl_version": "TLSv1.3",
}


@case()
async def guide_keys(trial: Trial) -> str:
    """Each key of the guide's configurations is honoured, or refused by name with the reason."""
    host, port = trial.harness.address if trial.harness.has_network else ("one", 1)
    keys, without = {**GUIDE, "brokers": [f"{host}:{port}"]}, []
    topic, inbox = trial.topic("guide"), trial.inbox()
    while True:
        try:
            client = await trial.client(**keys)
        except ConfigurationError as error:
            named = [key for key in keys if repr(key) in str(error)]
            expect(len(named) == 1, f"the error names no key: {error}")
            reason = str(error).partition(": ")[2]
            expect(len(reason) > 10, f"the error gives no reason: {error}")
            without.append(named[0])
            del keys[named[0]]
        else:
            break
    await client.subscribe(topic, inbox)
    await asyncio.gather(*(client.publish(topic, b"%d" % number) for number in range(20)))
    await inbox.wait(20)
    return f"without {', '.join(sorted(without))}" if without else YES


@case()
async def client_names(trial: Trial) -> str:
    """Two clients without a `client_id` do not disturb each other."""
    clients = [await trial.client(client_id=None) for _ in range(2)]
    topic, inboxes = trial.topic("anonymous"), [trial.inbox(), trial.inbox()]
    for client, inbox in zip(clients, inboxes, strict=True):
        await client.subscribe(topic, inbox)
    for client in clients:
        await client.publish(topic, b"!")
    for inbox in inboxes:
        await inbox.wait(2)
    expect_equal([client.health().reconnects for client in clients], [0, 0], "reconnections")
    return YES


@case()
async def health(trial: Trial) -> str:
    """`health()` counts what became of each message, and the counts add up."""
    topic, gate = trial.topic("health"), asyncio.Event()
    seen: set[bytes] = set()

    async def act(message: Delivery) -> None:
        known = bytes(message) in seen
        seen.add(bytes(message))
        if message == b"refused":
            raise Refuse
        if message == b"fails" or (message == b"fails once" and not known):
            raise ValueError("bug")
        if message == b"waits":
            await gate.wait()

    client, inbox = await trial.client("client", prefetch_count=50), trial.inbox(act)
    expect_equal(client.health().state, "connected", "the state")
    expect(client.health().broker, "health() does not name the broker")
    await client.subscribe(topic, inbox, group=trial.group(), concurrency=3)
    await trial.fill(client, topic, [b"good", b"fails once", b"refused", b"fails", b"good"])
    await trial.until(lambda: client.health().acknowledged == 5, "five are done")
    await trial.fill(client, topic, [b"waits"] * 5)
    await trial.until(lambda: client.health().received == 10, "five more are fetched")
    await trial.until(lambda: inbox.running == 3, "three wait in callbacks")
    now = client.health()
    counts = (now.published, now.received, now.acknowledged, now.given_back)
    expect_equal(counts, (10, 10, 5, 0), "published, received, acknowledged, given back")
    expect_equal((now.retried, now.dead, now.expired), (3, 2, 0), "retried, dead, expired")
    closing = asyncio.ensure_future(client.close())
    await trial.until(lambda: client.health().given_back == 2, "what waits is given back")
    gate.set()
    await closing
    now = client.health()
    expect_equal((now.acknowledged, now.given_back), (8, 2), "acknowledged, given back")
    return YES


@case()
async def given_back_counts(trial: Trial) -> str:
    """What comes again is counted again: received is acknowledged + given back + in callbacks."""
    topic, network = trial.topic("counts"), await trial.network()
    client = await trial.client(**network.changes)

    async def give_back_once(message: Delivery) -> None:
        if message.attempt == 1:
            raise GiveBack

    inbox = trial.inbox(give_back_once)
    await client.subscribe(topic, inbox, group=trial.group())
    await trial.fill(client, topic, [b"%d" % number for number in range(5)])
    await trial.until(lambda: client.health().given_back >= 5, "all are given back")
    await network.cut()  # so that they come again where the broker cannot at once
    await trial.until(lambda: len({*inbox.done}) == 5, "all are handled")
    await trial.until(lambda: in_callbacks(client.health()) == 0, f"it adds up: {client.health()}")
    return YES
