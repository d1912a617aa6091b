"""The attacker: whoever runs the broker, or has got into it. It has no keys of the hosts.

``python attacker.py NAMESPACE LOG ROOT``: writes all that passes the broker to the file LOG, and
does the attack that a line on its standard input names; each is answered with the number of
messages that it put on the broker. ROOT is the public key of the root, which is no secret.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from praval.core.envelope_body import encode_body
from praval.core.envelope_format import Message
from praval.core.key_types import VerifyKey
from praval.core.keys import Keyring
from praval.core.transport import Delivery, MessageTransport
from praval.core.transport_choice import Choice, choose
from praval.errors import PravalError
from praval.settings import current_settings

Put = tuple[str, bytes]
"""Topic and message."""
FLIPS = 2
"""Copies of each envelope, in each of which one bit is flipped."""


class Attacker:
    """Listens, and does what it can."""

    def __init__(self, namespace: str, log: Path, root: VerifyKey) -> None:
        self.transport: MessageTransport
        self._namespace, self._root = namespace, root
        self._log = log.open("ab")
        self._heard: list[Put] = []
        self._own: set[bytes] = set()

    async def listen(self) -> None:
        """Take part in everything that the broker carries."""
        settings = current_settings()
        choice = choose(settings.transport, settings.transport_security)
        assert isinstance(choice, Choice)
        self.transport = await choice.connect(None)
        await self.transport.subscribe(f"{self._namespace}.#", self._hear, concurrency=100)

    def _hear(self, delivery: Delivery) -> None:
        message = bytes(delivery)
        if message not in self._own:
            self._heard.append((delivery.topic, message))
            self._log.write(delivery.topic.encode() + b"\n" + message + b"\n")
            self._log.flush()

    async def attack(self, how: str) -> int:
        """Put something on the broker; return the number of messages."""
        messages = list(getattr(self, f"_{how}")())
        self._own.update(message for _, message in messages)
        for topic, message in messages:
            await self.transport.publish(topic, message)
        return len(messages)

    def _envelopes(self) -> list[Put]:
        return [put for put in self._heard if put[1].startswith(b"PSV1")]

    # -- attacks -------------------------------------------------------------------------

    def _replay(self) -> Iterator[Put]:
        """Send again, bit by bit, what was sent before: transfers, replies, receipts."""
        yield from self._envelopes()

    def _edit(self) -> Iterator[Put]:
        """Change one bit: an amount, a name, a time, a key."""
        chance = random.Random(1)
        for topic, message in self._envelopes():
            for _ in range(FLIPS):
                edited = bytearray(message)
                edited[chance.randrange(len(edited))] ^= 1 << chance.randrange(8)
                yield topic, bytes(edited)

    def _cut(self) -> Iterator[Put]:
        """Leave the end away, or put two halves together."""
        envelopes = self._envelopes()
        for (topic, message), (_, other) in itertools.pairwise(envelopes):
            yield topic, message[: len(message) // 2]
            yield topic, message[: len(message) // 2] + other[len(other) // 2 :]

    def _redirect(self) -> Iterator[Put]:
        """Bring what was meant for one to the other."""
        envelopes = self._envelopes()
        topics = {topic for topic, _ in envelopes}
        for topic, message in envelopes:
            for other in topics - {topic}:
                yield other, message

    def _plaintext(self) -> Iterator[Put]:
        """Order transfers as if nothing were sealed here."""
        order = {"type": "transfer", "id": "stolen", "amount": 10**6, "memo": ""}
        body = {
            "id": os.urandom(16).hex(),
            "created_at": time.time(),
            "type": "transfer",
            "channel": "teller_channel",
            "to_agent": "teller",
            "knowledge": order,
        }
        for content in (body, order, {}):
            yield f"{self._namespace}.teller_channel", msgspec.json.encode(content)

    def _impersonate(self) -> Iterator[Put]:
        """Certify keys of the desk's name with a root of its own, and order transfers."""
        now = int(time.time() * 1000)
        impostor = Keyring()
        impostor.directory.roots.add(self._root)  # to believe the teller's card
        impostor.add("@desk", now=now)
        keys = f"{self._namespace}.@keys"
        for topic, message in self._heard:
            if topic == keys:
                try:
                    impostor.hear(message, now)
                except PravalError:
                    continue  # not a card
        yield keys, impostor.card("@desk")
        for _ in range(5):
            order = msgspec.json.encode({"type": "transfer", "id": "stolen", "amount": 10**6})
            message = Message(
                id=os.urandom(16),
                created=now,
                expires=now + 60_000,
                from_name="@desk",
                to_name="teller",
                topic=f"{self._namespace}.teller_channel",
                body=encode_body("transfer", order),
            )
            yield message.topic, impostor.seal(message, now=now).envelopes[0]


async def main(namespace: str, log: str, root: str) -> None:
    """Obey the lines of the standard input, until it ends."""
    attacker = Attacker(namespace, Path(log), VerifyKey(bytes.fromhex(root)))
    await attacker.listen()
    print(msgspec.json.encode({"ready": "attacker"}).decode(), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        tried = await attacker.attack(line.strip())
        print(msgspec.json.encode({"tried": tried}).decode(), flush=True)
    await attacker.transport.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
