"""One host: ``python host.py desk|teller KEYS NAMESPACE``; obeys the lines on its standard input.

``pay N`` (the desk) orders N transfers, ``counts`` tells what was noticed. Each answer is a line of
JSON. It ends, and says what became of its deliveries, when its input does. What it logs goes to a
file beside its keys. The URL of the broker is in PRAVAL_TRANSPORT, the passphrase of the keys in
PRAVAL_KEYS_PASSPHRASE.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from typing import Any

import msgspec
import team

from praval import Reef
from praval.core.key_store import KeyStore


def say(**what: Any) -> None:
    """Print one answer."""
    print(msgspec.json.encode(what).decode(), flush=True)


async def obey(reef: Reef) -> None:
    """Do what the lines of the standard input say, until it ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        word, *rest = line.split()
        if word == "pay":
            say(paid=await team.pay(reef, int(rest[0])))
        else:
            noticed = reef.get_statistics()
            say(
                executed=team.executed,
                refused=noticed["security"]["refused"],
                known=noticed["duplicate"],
            )


async def main(role: str, store: KeyStore, namespace: str) -> None:
    """Run the host."""
    agents = [team.teller] if role == "teller" else []
    async with Reef(*agents, security=store, namespace=namespace) as reef:
        say(ready=role)
        await obey(reef)
    say(ledger=str(reef.ledger()))


if __name__ == "__main__":
    role, folder, namespace = sys.argv[1:]
    logging.basicConfig(filename=f"{folder}.log")
    passphrase = os.environ.pop("PRAVAL_KEYS_PASSPHRASE")
    keys = KeyStore.open(folder, passphrase, now=int(time.time() * 1000))
    asyncio.run(main(role, keys, namespace))
