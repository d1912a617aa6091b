"""One team, unchanged, on the local transport, RabbitMQ, Mosquitto, ActiveMQ and Redis.

Each host is a Reef of its own with connections of its own, over TLS with verified certificates.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import pytest

from praval import Reef, Spore, agent, astart_agents, configure
from praval.errors import RequestFailedError, RequestTimeoutError, UnknownAgentError
from praval.settings import Settings, merge
from tests.core.hosts import until
from tests.servers import Server
from tests.transports import teams

_numbers = count()

TRANSPORTS: dict[str, str | None] = {
    "local": None,
    "amqp": "rabbitmq",
    "mqtt": "mosquitto",
    "stomp": "activemq",
    "stomp-rabbitmq": "rabbitmq",
    "redis": "redis_server",
}
"""What carries the spores -> the fixture of its server."""

Config = dict[str, Any]


@pytest.fixture(params=TRANSPORTS)
def config(request: pytest.FixtureRequest) -> Config:
    """The transport's config. Nothing else differs between the runs of a test."""
    name: str = request.param
    fixture = TRANSPORTS[name]
    if fixture is None:
        return {"protocol": "local", "host": f"bus{next(_numbers)}"}
    server: Server = request.getfixturevalue(fixture)
    protocol = name.partition("-")[0]
    config: Config = {
        "protocol": protocol,
        "url": server.url,
        "ca_cert": str(server.pki.authority.ca_cert),
    }
    if name == "stomp-rabbitmq":
        port = server.stomp_port  # type: ignore[attr-defined]
        config |= {"url": server.url_for(port).replace("amqps", "stomp+ssl"), "server": "rabbitmq"}
    return config


@pytest.fixture
def namespace() -> str:
    """A namespace of this test's own, and a team that has handled nothing."""
    teams.DIGESTED.clear()
    teams.AUDITED.clear()
    return f"n{next(_numbers)}"


def patient() -> Settings:
    """Settings with receipts, which are wanted again soon."""
    return merge(Settings(), {"reef_config": {"receipt": "receiver", "resend_after": 1}})


@pytest.mark.every_loop
async def test_a_team_over_three_hosts_handles_every_page_once(
    config: Config, namespace: str
) -> None:
    """Two hosts share the reading, a third edits, one audits; each spore is accounted for."""
    pages = [{"type": "page", "page": f"p{n}", "text": "w " * (n % 7)} for n in range(60)]
    async with (
        Reef(teams.reader, teams.auditor, transport=config, namespace=namespace) as first,
        Reef(teams.reader, transport=config, namespace=namespace) as second,
        Reef(teams.editor, transport=config, namespace=namespace) as third,
    ):
        await asyncio.gather(*(third.broadcast(page) for page in pages))
        await until(lambda: len(teams.DIGESTED) == 60, "all pages were digested")
        await until(lambda: len(teams.AUDITED) == 120, "pages and digests were audited")
        for reef in (first, second, third):
            await reef.wait_idle(20)
            assert reef.ledger().balanced, reef.ledger()
            assert reef.ledger().failed == 0
    assert sorted(teams.DIGESTED) == sorted((p["page"], len(p["text"].split())) for p in pages)
    assert len(set(teams.AUDITED)) == 120
    assert first.runners["reader"].counts[0] > 0
    assert second.runners["reader"].counts[0] > 0


async def test_requests_find_their_replies_and_failures_their_askers(
    config: Config, namespace: str
) -> None:
    """Each host gets the replies to its own requests; an exception on another host is told."""
    async with (
        Reef(teams.clerk, transport=config, namespace=namespace),
        Reef(transport=config, namespace=namespace) as here,
        Reef(transport=config, namespace=namespace) as there,
    ):
        replies = await asyncio.gather(
            *(reef.request("clerk", {"say": n}, 15) for n in range(20) for reef in (here, there))
        )
        assert [reply.knowledge["echo"] for reply in replies[::2]] == list(range(20))
        with pytest.raises(RequestFailedError, match="out of ink"):
            await here.request("clerk", {"say": 1, "fail": True}, 15)


async def test_a_name_that_no_host_has(config: Config, namespace: str) -> None:
    """It is told at once where the broker tells, else by the request's time-out."""
    async with Reef(transport=config, namespace=namespace) as reef:
        tells = reef.bridge is not None and reef.bridge.transport.capabilities.tells_unroutable
        expected = UnknownAgentError if tells else RequestTimeoutError
        with pytest.raises(expected):
            await reef.request("ghost", {}, 15 if tells else 0.5)


async def test_every_host_sees_the_agents_of_all(config: Config, namespace: str) -> None:
    """Presence: who came, and who left."""
    async with Reef(teams.editor, transport=config, namespace=namespace) as here:
        async with Reef(teams.clerk, transport=config, namespace=namespace) as there:
            for reef in (here, there):
                await until(
                    lambda reef=reef: [each.name for each in reef.agents()] == ["clerk", "editor"],
                    "both are known",
                )
        await until(lambda: [each.name for each in here.agents()] == ["editor"], "who left is gone")


async def test_an_agent_that_is_away_finds_what_came_meanwhile(
    config: Config, namespace: str
) -> None:
    """Its group is durable: it collects, and each spore is handled once."""
    config = {**config, "client_id": f"away-{namespace}"}
    async with Reef(transport=config | {"client_id": None}, namespace=namespace) as sender:
        async with Reef(teams.editor, transport=config, namespace=namespace):
            await sender.send("editor", {"type": "digest", "page": "a", "words": 1})
            await until(lambda: teams.DIGESTED == [("a", 1)], "it hears")
        for page in "bcd":
            await sender.send("editor", {"type": "digest", "page": page, "words": 2})
        async with Reef(teams.editor, transport=config, namespace=namespace):
            await until(lambda: len(teams.DIGESTED) == 4, "it found what came meanwhile")
        assert [page for page, _ in teams.DIGESTED] == ["a", "b", "c", "d"]


async def test_delivered_means_that_the_receivers_said_so(config: Config, namespace: str) -> None:
    """Receipts travel on every transport."""
    async with (
        Reef(teams.editor, teams.auditor, transport=config, namespace=namespace),
        Reef(transport=config, namespace=namespace, settings=patient()) as sender,
    ):
        await until(lambda: len(sender.agents()) == 2, "the receivers are known")
        for n in range(20):
            await sender.broadcast({"type": "digest", "page": f"p{n}", "words": n})
        await sender.wait_idle(20)
        assert sender.ledger().delivered == 20
        assert len(teams.DIGESTED) == 20
        assert len(teams.AUDITED) == 20


async def test_a_spore_means_the_same_on_the_other_side(config: Config, namespace: str) -> None:
    """Type, knowledge, headers, key, priority and times; a megabyte, and every alphabet."""
    got: list[Spore] = []

    @agent("keeper")
    async def keeper(spore: Spore) -> None:
        got.append(spore)

    knowledge = {
        "type": "t",
        "text": "naïve 名 \x00\n",
        "n": [1.5, None, {"a": []}],
        "b": "x" * 900_000,
    }
    async with (
        Reef(keeper, transport=config, namespace=namespace),
        Reef(transport=config, namespace=namespace) as sender,
    ):
        await sender.send(
            "keeper", knowledge, priority=9, key="k/1", headers={"ключ": "värde\n"}, ttl=99
        )
        await until(lambda: got, "it came")
    (spore,) = got
    assert spore.knowledge == knowledge
    assert (spore.priority, spore.key, spore.headers) == (9, "k/1", {"ключ": "värde\n"})
    assert spore.expires_at == pytest.approx(spore.created_at + 99)


async def test_replicas_share_slow_work_and_none_of_it_is_done_twice(
    config: Config, namespace: str
) -> None:
    """Handlers slower than the sender's patience, and a backlog longer than it; an odd number."""
    handled: list[int] = []

    @agent("worker", concurrent=2)
    async def worker(spore: Spore) -> None:
        handled.append(spore.knowledge["n"])
        await asyncio.sleep(1.5 if spore.knowledge["n"] == 0 else 0.4)  # the time of the work

    async with (
        Reef(worker, transport=config, namespace=namespace) as first,
        Reef(worker, transport=config, namespace=namespace) as second,
        Reef(transport=config, namespace=namespace, settings=patient()) as sender,
    ):
        for reef in (first, second, sender):
            await until(lambda reef=reef: len(reef.agents()) == 2, "both replicas are known")
        await asyncio.gather(*(sender.send("worker", {"n": n}) for n in range(21)))
        await sender.wait_idle(20)
        assert sender.ledger().delivered == 21
        assert sorted(handled) == list(range(21))
        for reef in (first, second):
            assert reef.ledger().balanced
            assert reef.ledger().handled > 0


async def test_an_expired_spore_is_counted_where_it_arrives(config: Config, namespace: str) -> None:
    """The receiver judges the time to live at the moment of handling."""
    gate = asyncio.Event()
    handled: list[Any] = []

    @agent("slow")
    async def slow(spore: Spore) -> None:
        handled.append(spore.knowledge["n"])
        await gate.wait()

    async with (
        Reef(slow, transport=config, namespace=namespace) as reef,
        Reef(transport=config, namespace=namespace) as sender,
    ):
        await sender.send("slow", {"n": 1})
        await until(lambda: handled == [1], "the first is at work")
        await sender.send("slow", {"n": 2}, ttl=0.2)
        await asyncio.sleep(0.25)  # real time has to pass: the clock of the broker's host
        gate.set()
        await until(lambda: reef.ledger().expired == 1, "the second expired")
    assert handled == [1]


async def test_start_agents_runs_over_a_transport(config: Config, namespace: str) -> None:
    """The script of the first page, with the transport in the settings."""

    @agent("counter", responds_to=["text"])
    async def counter(spore: Spore) -> dict[str, Any]:
        return {"type": "counted", "words": len(spore.knowledge["text"].split())}

    @agent("judge", responds_to=["counted"])
    def judge(spore: Spore) -> dict[str, Any]:
        return {"verdict": "long" if spore.knowledge["words"] > 5 else "short"}

    if "url" not in config:
        configure(transport=f"local://{config['host']}")
    else:
        extra = f"&server={config['server']}" if "server" in config else ""
        configure(transport=f"{config['url']}?ca_cert={config['ca_cert']}{extra}")
    data = {"type": "text", "text": "to be or not to be"}
    result = await astart_agents(counter, judge, initial_data=data, timeout=20)
    assert result["verdict"] == "long"
    assert result.ledger.balanced
