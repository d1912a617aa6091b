"""``praval groups``: what a broker keeps for agents that are not there, and how it goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_brokers import Broker, broker_of
from commands import Running, praval, write_module

from praval import Reef, Spore, agent
from praval.core.transport_choice import Choice


def leave_behind(broker: Broker, *names: str, journal: str | None = None) -> str:
    """Let agents be at work and go, and somebody send each of them a spore.

    Return the name of the Reef that had them.
    """

    def make(name: str):
        @agent(name)
        async def handler(spore: Spore) -> None: ...

        return handler

    async def run() -> str:
        where = {"transport": broker.url, "namespace": broker.namespace}
        async with Reef(*map(make, names), journal=journal or False, **where) as reef:
            assert reef.bridge is not None
            replica, choice = reef.bridge.replica, reef.transport_choice
        assert isinstance(choice, Choice)
        transport = await choice.connect(None)
        for name in names:
            await transport.publish(f"{broker.namespace}.{name}_channel", b"for nobody")
        await transport.close()
        return replica

    return asyncio.run(run())


@pytest.fixture
def answered() -> Callable[..., str]:
    def run(broker: Broker, *arguments: str, stdin: str | None = None) -> str:
        ended = praval("groups", *arguments, *broker.options, stdin=stdin)
        assert ended.code == 0, ended
        assert not ended.errors
        return ended.output

    return run


def test_list_shows_who_is_gone_and_who_is_there(
    broker: Broker, tmp_path: Path, answered: Callable[..., str]
) -> None:
    """As a table and as JSON; RabbitMQ tells of those that are named."""
    names = ["worker", "auditor"] if broker.protocol == "amqp" else []
    leave_behind(broker, "worker", "auditor")
    write_module(tmp_path, "team = agent('auditor')(lambda spore: None)\n")
    with Running("run", "team:team", *broker.options) as service:
        service.until("ready")
        head, auditor, worker = answered(broker, "list", *names).splitlines()
        assert head.split() == ["agent", "subscribers", "messages"]
        assert auditor.split()[:2] == ["auditor", "1"]
        assert worker.split() == ["worker", "0", "1"]
        found = json.loads(answered(broker, "list", "--json", "worker"))
        assert found == [{"name": "worker", "members": 0, "messages": 1}]


def test_a_group_that_is_not_there_is_told(broker: Broker) -> None:
    """Exit code 1; those that are there are shown all the same."""
    leave_behind(broker, "worker")
    ended = praval("groups", "list", "worker", "porter", *broker.options)
    assert (ended.code, "worker" in ended.output) == (1, True)
    assert ended.errors == (
        f"praval groups list: no group 'porter' in namespace {broker.namespace!r}.\n"
    )
    ended = praval("groups", "drop", "porter", "--yes", *broker.options)
    assert (ended.code, ended.output) == (1, "")
    assert "nothing was dropped" in ended.errors


def test_other_namespaces_are_not_shown(redis: Broker, answered: Callable[..., str]) -> None:
    """One that begins with the same letters neither."""
    leave_behind(redis._replace(namespace=f"{redis.namespace}2"), "worker")
    expected = f"The broker keeps nothing for agents of namespace {redis.namespace!r}.\n"
    assert answered(redis, "list") == expected
    assert answered(redis, "list", "--json") == "[]\n"


def test_drop_asks_first(broker: Broker, answered: Callable[..., str]) -> None:
    """It says what would be lost; anything but a yes leaves it."""
    leave_behind(broker, "worker")
    for stdin in ("n\n", ""):
        ended = praval("groups", "drop", "worker", *broker.options, stdin=stdin)
        assert ended.code == 1
        assert "has messages: 1, subscribers: 0." in ended.output
        assert "Drop it, with what it has collected? [y/N]" in ended.output
    assert "worker" in answered(broker, "list", "worker")
    said = answered(broker, "drop", "worker", stdin="y\n")
    assert said.endswith(f"dropped the group 'worker' of namespace {broker.namespace!r}\n")
    assert praval("groups", "list", "worker", *broker.options).code == 1


def test_drop_leaves_a_group_in_use(broker: Broker, tmp_path: Path) -> None:
    """Exit code 1, and a sentence; the agent goes on."""
    write_module(tmp_path, "team = agent('worker')(lambda spore: say('heard', spore.type))\n")
    with Running("run", "team:team", *broker.options) as service:
        service.until("ready")
        ended = praval("groups", "drop", "worker", "--yes", *broker.options)
        assert ended.code == 1
        assert "Somebody is subscribed as" in ended.errors
        assert praval("send", "hello", "--to", "worker", *broker.options).code == 0
        service.until("heard hello")


def test_on_mosquitto_drop_wants_the_client(
    request: pytest.FixtureRequest, tmp_path: Path, answered: Callable[..., str]
) -> None:
    """That of a Reef with a journal is named after its replica. What there is, nobody tells."""
    broker = broker_of(request, "mosquitto")
    replica = leave_behind(broker, "worker", journal=str(tmp_path / "journal.sqlite"))
    ended = praval("groups", "drop", "worker", "--yes", *broker.options)
    assert (ended.code, "say whose" in ended.errors) == (2, True)
    drop = ["drop", "worker", "--client-id", f"praval-{replica}"]
    said = answered(broker, *drop, stdin="y\n")
    assert said.startswith("What the group 'worker' has collected, and for whom, this broker does")
    assert "dropped the group" in said
    ended = praval("groups", *drop, "--yes", *broker.options)
    assert (ended.code, "nothing was dropped" in ended.errors) == (1, True)


def test_what_a_broker_cannot_do_is_exit_code_2(request: pytest.FixtureRequest) -> None:
    """With a word on what can."""
    for name, arguments, words in (
        ("activemq", ["list"], "own tools"),
        ("activemq", ["drop", "worker", "--yes"], "deletes no queue by STOMP"),
        ("mosquitto", ["list"], "which sessions they keep"),
        ("rabbitmq", ["list"], "rabbitmqctl list_queues"),
    ):
        ended = praval("groups", *arguments, *broker_of(request, name).options)
        assert ended.code == 2, ended
        assert words in ended.errors
        assert len(ended.errors.splitlines()) == 1
