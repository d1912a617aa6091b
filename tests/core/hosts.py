"""Hosts in one process: what the tests of a Reef with a transport are made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from praval import Spore, agent
from praval.core.agent import AgentDefinition
from praval.core.transport import Confirmation
from praval.settings import Settings, merge
from praval_transports import local
from praval_transports.local import LocalTransport

PATIENCE = 30.0
"""Seconds after which what never came is a failure."""


def quick(**changes: Any) -> Settings:
    """Settings with short waits."""
    return merge(Settings(), {"reef_config": {"resend_after": 0.02, **changes}})


async def until(holds: Callable[[], object], what: str) -> None:
    """Wait until something is true."""
    try:
        async with asyncio.timeout(PATIENCE):
            while not holds():  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.002)
    except TimeoutError:
        pytest.fail(f"never happened: {what}")


def unacknowledged(url: str, group: str) -> int:
    """Messages that the broker has handed to members of a group and not heard of since."""
    bus = local._buses[asyncio.get_running_loop()][url.removeprefix("local://")]
    return sum(len(member._held) for member in bus.groups[group]._members)


def listener(name: str, heard: list[Any], **options: Any) -> AgentDefinition:
    """An agent that notes which number it got."""

    @agent(name, **options)
    async def handler(spore: Spore) -> None:
        heard.append((name, spore.knowledge.get("n")))

    return handler


class Broken(LocalTransport):
    """A local transport whose publishing can be held up, lost or made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.open.set()
        self.lose: Callable[[str], bool] = lambda topic: False
        self.error: Exception | None = None

    async def publish(self, topic: str, message: bytes, **options: Any) -> Confirmation:
        await self.open.wait()
        if self.error is not None:
            raise self.error
        if self.lose(topic):
            return Confirmation(True)
        return await super().publish(topic, message, **options)


@asynccontextmanager
async def broken(url: str) -> AsyncIterator[Broken]:
    transport = Broken()
    await transport.initialize({"url": url})
    try:
        yield transport
    finally:
        await transport.close()
