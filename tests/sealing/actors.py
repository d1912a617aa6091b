"""Two hosts that trust one root, and the randomness of a world that can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from praval.core.certificates import Rights, certify
from praval.core.envelope import Opened
from praval.core.envelope_body import encode_body
from praval.core.envelope_format import Message
from praval.core.key_types import SigningKey
from praval.core.keys import Keyring
from praval.core.lifetimes import DAY, DEFAULT, Lifetimes
from praval.errors import SealError

NOW = 1_800_000_000_000
"""A moment in 2027, UTC ms."""
TOPIC = "desk.main"
EVERYWHERE = ("#",)


class Dice:
    """Bytes that nobody could guess, but for the seed."""

    def __init__(self, seed: str) -> None:
        self._seed, self._count = seed.encode(), 0

    def __call__(self, size: int) -> bytes:
        out = b""
        while len(out) < size:
            self._count += 1
            out += blake2b(self._seed + self._count.to_bytes(8, "big")).digest()
        return out[:size]


def a_root(seed: str = "root") -> SigningKey:
    return SigningKey(Dice(seed)(32))


def certified(
    name: str,
    identity: SigningKey,
    root: SigningKey,
    now: int = NOW,
    *,
    rights: Rights | None = None,
    lasts: int = 90 * DAY,
    serial: int = 1,
) -> bytes:
    return certify(
        name, identity.verify_key, root,
        not_before=now, expires=now + lasts, serial=serial, rights=rights,
    )  # fmt: skip


def host(
    *names: str,
    root: SigningKey | None = None,
    now: int = NOW,
    seed: str | None = None,
    lifetimes: Lifetimes = DEFAULT,
    rights: Rights | None = None,
    hears: tuple[str, ...] = (TOPIC,),
    **options: Any,
) -> Keyring:
    """A keyring whose names one root certifies."""
    root = root or a_root()
    dice = Dice(seed or "/".join(names))
    keyring = Keyring([root.verify_key], lifetimes=lifetimes, random=dice, **options)
    for name in names:
        identity = SigningKey(dice(32))
        chain = (certified(name, identity, root, now, rights=rights),)
        subscriptions = (*hears, f"desk.{name}_channel", f"desk.@inbox-{name}")
        keyring.add(
            name, now=now, subscriptions=subscriptions, identity=identity, certificates=chain
        )
    return keyring


def acquaint(*hosts: Keyring, now: int = NOW) -> None:
    """Carry each host's cards to all others."""
    for giver in hosts:
        for name in giver.names:
            for taker in hosts:
                if taker is not giver:
                    taker.hear(giver.card(name), now)


def note(
    sender: str = "alice",
    to: str = "",
    *,
    now: int = NOW,
    ttl: int = 60_000,
    topic: str | None = None,
    knowledge: bytes = b'{"n":1}',
    kind: str | None = None,
    number: int = 1,
    **fields: Any,
) -> Message:
    """A small message."""
    return Message(
        id=number.to_bytes(16, "big"),
        created=now,
        expires=now + ttl,
        from_name=sender,
        topic=topic or (f"desk.{to}_channel" if to else TOPIC),
        body=encode_body(kind, knowledge),
        to_name=to,
        **fields,
    )


def code_of(call: Callable[[], object]) -> str:
    """Return how a call ended: "ok", or the code of its refusal. Anything untyped is raised."""
    try:
        call()
    except SealError as error:
        return error.code.value
    return "ok"


def opens(keyring: Keyring, name: str, data: bytes, now: int = NOW, **options: Any) -> Opened:
    return keyring.open(name, data, now=now, filters=options.pop("filters", EVERYWHERE), **options)
