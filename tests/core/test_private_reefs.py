"""What is in one process alone has nothing to do with a broker, whatever the settings say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from praval import AgentSession, Reef, Spore, agent, agent_pipeline, configure
from praval.core.keys import Keyring
from praval.core.transport_choice import Choice
from praval.errors import ConfigurationError, TransportError
from tests.servers import Redis, free_port
from tests.servers.plugin import FreshServer


@agent("doubler", responds_to=["number"])
async def doubler(spore: Spore) -> dict[str, Any]:
    return {"n": 2 * spore.knowledge["n"]}


async def in_a_session() -> int:
    session = AgentSession(session_id="desk", timeout=30)
    session.add_agent(doubler)
    await session.astart({"type": "number", "n": 21})
    return int((await session.await_for_completion())["n"])


async def in_a_pipeline() -> int:
    result = await agent_pipeline(doubler, pipeline_id="line").arun({"n": 21})
    return int(result["n"])


async def in_a_reef(**options: Any) -> int:
    async with Reef(doubler, **options) as reef:
        reply = await reef.request("doubler", {"type": "number", "n": 21}, timeout=30)
        return int(reply.knowledge["n"])


def in_a_local_reef() -> Awaitable[int]:
    return in_a_reef(transport=False)


def in_a_sealed_local_reef() -> Awaitable[int]:
    return in_a_reef(transport=False, security=Keyring())


PRIVATE = [in_a_session, in_a_pipeline, in_a_local_reef, in_a_sealed_local_reef]


async def test_private_reefs_leave_nothing_on_the_broker_of_the_settings(
    fresh_server: FreshServer,
) -> None:
    """They do not even connect; a Reef that takes the settings does, and leaves its groups."""
    server = fresh_server(Redis)
    configure({"transport": f"{server.url}?ca_cert={server.pki.ca}"})
    with redis.from_url(server.url, ssl_ca_certs=str(server.pki.ca)) as admin:

        def connections() -> int:
            return int(admin.info("stats")["total_connections_received"])

        before = await asyncio.to_thread(connections)
        for work in PRIVATE:
            assert await work() == 42
        assert await asyncio.to_thread(connections) == before
        assert await asyncio.to_thread(admin.dbsize) == 0
        assert await in_a_reef() == 42
        assert b"praval:praval.doubler_channel" in await asyncio.to_thread(admin.keys)


@pytest.mark.parametrize("work", PRIVATE)
async def test_private_reefs_need_no_broker(work: Callable[[], Awaitable[int]]) -> None:
    """One that is not there does not matter, nor does a transport that is no URL at all."""
    configure({"transport": f"rediss://localhost:{free_port()}"})
    assert await work() == 42
    with pytest.raises(TransportError):
        await in_a_reef()
    configure({"transport": "carrier-pigeon://localhost"})
    assert await work() == 42
    with pytest.raises(ConfigurationError, match="carrier-pigeon"):
        Reef()


def test_false_is_the_only_word_for_no_transport() -> None:
    """None leaves it to the settings."""
    configure({"transport": "rediss://localhost"})
    assert isinstance(Reef().transport_choice, Choice)
    assert Reef(transport=False).transport_choice is None
    wrong: Any
    for wrong in (True, 0):
        with pytest.raises(ConfigurationError, match="a MessageTransport or False"):
            Reef(transport=wrong)
