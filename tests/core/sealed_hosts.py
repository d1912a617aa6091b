"""Hosts that trust one root, and whoever listens to and speaks on their bus without any key."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from praval.core.certificates import Rights
from praval.core.key_box import CHEAP
from praval.core.key_store import KeyStore
from praval.core.key_types import SigningKey
from praval.core.keys import Keyring
from praval.core.lifetimes import DEFAULT, Lifetimes
from praval.core.transport import Delivery
from praval.settings import Settings, merge
from praval_transports.local import LocalTransport
from tests.sealing.actors import certified

CANARY = "canary-6b1f0e"


def now() -> int:
    return int(time.time() * 1000)


class Root:
    """A root that certifies names for any keyring."""

    def __init__(self) -> None:
        self.key = SigningKey(os.urandom(32))
        self.serials: dict[str, int] = {}

    def keyring(
        self,
        *names: str,
        rights: Rights | None = None,
        lifetimes: Lifetimes = DEFAULT,
    ) -> Keyring:
        """A keyring with keys of these names; one with ``@`` is the process's."""
        keyring = Keyring([self.key.verify_key], lifetimes=lifetimes)
        for name in names:
            identity = SigningKey(os.urandom(32))
            serial = self.serials[name] = len(self.serials) + 1
            chain = (
                certified(name, identity, self.key, now() - 1000, serial=serial, rights=rights),
            )
            keyring.add(name, now=now(), identity=identity, certificates=chain)
        return keyring


Where = TypeVar("Where", Path, str)
"""A folder, or the URL of a store on a server."""


def stored(where: Where, keyring: Keyring) -> Where:
    """Put a keyring into a store; returns where it is."""
    KeyStore.create(where, keyring, "secret", cost=CHEAP).close()
    return where


def reopened(where: Path | str, lifetimes: Lifetimes = DEFAULT) -> KeyStore:
    """Open a store as another process would."""
    return KeyStore.open(where, "secret", now=now(), lifetimes=lifetimes)


def brisk(**security: Any) -> Settings:
    """Settings with short waits."""
    changes = {"reef_config": {"resend_after": 0.05}, "security": {"lease": 1.0, **security}}
    return merge(Settings(), changes)


class Outsider(LocalTransport):
    """A client of the bus that has no keys: it hears all, and may publish anything."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, bytes]] = []

    def on(self, channel: str) -> list[bytes]:
        """What was published on a channel of the default namespace."""
        return [data for topic, data in self.heard if topic == f"praval.{channel}"]

    async def _note(self, delivery: Delivery) -> None:
        self.heard.append((delivery.topic, bytes(delivery)))


@asynccontextmanager
async def outsider(url: str) -> AsyncIterator[Outsider]:
    transport = Outsider()
    await transport.initialize({"url": url})
    await transport.subscribe("#", transport._note)
    try:
        yield transport
    finally:
        await transport.close()
