"""Messages."""

from __future__ import annotations

import hashlib
import os

from praval.testing.transports.case import YES, case
from praval.testing.transports.trial import Trial, expect_equal

BODIES = [
    bytes(range(256)),
    b"",
    b"\0",
    b"\0" * 20,
    b"before\0after",
    b"\r\n\r\n\n",
    b"line\nline\r\n\0\n",
    "grüße 漢字 😀".encode(),
    b"\xff\xfe\x00\xd8",
    b"\x1f\x8b\x08 looks like gzip",
    os.urandom(3000),
]


@case()
async def binary(trial: Trial) -> str:
    """Any bytes arrive as they were sent: all 256 values, none, NUL, line ends."""
    client, inbox, topic = await trial.client(), trial.inbox(), trial.topic("binary")
    await client.subscribe(topic, inbox, group=trial.group())
    await trial.fill(client, topic, BODIES)
    await inbox.wait(len(BODIES))
    expect_equal(inbox.bodies, BODIES, "the bodies")
    return YES


@case(60.0)
async def ten_megabytes(trial: Trial) -> str:
    """A message of 10 MB arrives."""
    client, inbox, topic = await trial.client(), trial.inbox(), trial.topic("large")
    await client.subscribe(topic, inbox, group=trial.group())
    body = os.urandom(10_000_000)
    await client.publish(topic, body)
    await inbox.wait(1, 50.0)  # on Mosquitto it has taken more than 10 s, seldom and unexplained
    expect_equal(_digest(inbox.got[0]), _digest(body), "length and SHA-256")
    return YES


def _digest(body: bytes) -> tuple[int, str]:
    return len(body), hashlib.sha256(body).hexdigest()


HEADERS = {
    "plain": "text",
    "empty": "",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "colon": "a:b:c",
    "escapes": "back\\slash \\n \\c \\r",
    "lines": "one\ntwo\r\nthree",
    "spaces": "  around  ",
    "unicode": "grüße 漢字 😀",
    "größe: 名前\n\\": "a name of any text",
    "Case": "upper",
    "case": "lower",
    "number": "12",
    "true": "false",
    "content-length": "3",
    "content-type": "text/x-mine",
    "destination": "/queue/elsewhere",
    "message-id": "mine",
    "subscription": "mine",
    "receipt": "mine",
    "priority": "high",
    "expires": "never",
    "persistent": "maybe",
    "long": "x" * 5000,
}
"""Among them names that some protocol uses itself."""


@case()
async def headers(trial: Trial) -> str:
    """Headers arrive as they were sent, whatever text their names and values are."""
    client, inbox, topic = await trial.client(), trial.inbox(), trial.topic("headers")
    await client.subscribe(topic, inbox, group=trial.group())
    await client.publish(topic, b"with", headers=HEADERS)
    await client.publish(topic, b"without")
    await inbox.wait(2)
    found = inbox.got[0].headers
    different = {
        name: (found.get(name), HEADERS.get(name))
        for name in found.keys() | HEADERS.keys()
        if found.get(name) != HEADERS.get(name)
    }
    expect_equal(different, {}, "headers (found, sent) that differ")
    expect_equal(inbox.got[1].headers, {}, "the headers of a message without")
    return YES


@case()
async def compression(trial: Trial) -> str:
    """With `compression` large messages travel compressed, and every client can read them."""
    topic = trial.topic("compressed")
    packing, plain = await trial.client("packing", compression="gzip"), await trial.client("plain")
    inboxes = [trial.inbox(), trial.inbox()]
    for client, inbox in zip((packing, plain), inboxes, strict=True):
        await client.subscribe(topic, inbox)
    bodies = [b"short", b"long " * 2000, os.urandom(5000), bytes(2_000_000)]
    await trial.fill(packing, topic, bodies)
    await trial.fill(plain, topic, bodies)
    for inbox in inboxes:
        await inbox.wait(8)
        expect_equal(list(map(_digest, inbox.got)), list(map(_digest, bodies * 2)), "the bodies")
        expect_equal([each.headers for each in inbox.got], [{}] * 8, "their headers")
    return YES
