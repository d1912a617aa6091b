"""``praval ping``, ``agents`` and ``send``: what an operator asks a broker and the team on it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_brokers import PROTOCOLS, Broker, broker_of
from commands import PRAVAL, Running, environment, praval, write_module

from tests.servers import Redis, free_port
from tests.servers.plugin import FreshServer

TEAM = """
@agent("adder", responds_to=["add"])
async def adder(spore):
    if spore.knowledge["a"] is None:
        raise ValueError("nothing to add")
    return {"sum": spore.knowledge["a"] + spore.knowledge["b"], "text": "ß\\u2028"}

@agent("listener", channel="news")
async def listener(spore):
    say("heard", spore.type, spore.knowledge.get("text"), spore.from_agent)

team = [adder, listener]
"""


@pytest.fixture
def team(broker: Broker, tmp_path: Path) -> Iterator[Running]:
    """A team at work on each broker in turn."""
    write_module(tmp_path, TEAM)
    with Running("run", "team:team", *broker.options) as service:
        service.until("ready")
        yield service


# -- ping ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_ping_tells_the_broker_and_the_round_trip(
    request: pytest.FixtureRequest, name: str
) -> None:
    """The broker comes from the environment or from the option."""
    broker = broker_of(request, name)
    where = f"{broker.protocol} at localhost:{broker.server.port}: connected in "
    for ended in (praval("ping", **broker.environment), praval("ping", "--transport", broker.url)):
        assert ended.code == 0, ended.errors
        assert ended.output.startswith(where)
        assert ended.output.endswith(" ms\n")
        assert not ended.errors


def test_ping_shows_no_mutual_certificate_by_default(redis: Broker) -> None:
    """A broker that wants a client certificate refuses; with one in the URL it answers."""
    server, pki = redis.server, redis.server.pki
    assert isinstance(server, Redis)
    url = f"{server.url_for(server.mutual_port)}?ca_cert={pki.ca}"
    ended = praval("ping", PRAVAL_TRANSPORT=url)
    assert ended.code == 2, ended
    assert "certificate" in ended.errors
    ours = f"&client_cert={pki.client.cert}&client_key={pki.client.key}"
    ended = praval("ping", PRAVAL_TRANSPORT=url + ours)
    assert ended.code == 0, ended.errors


def test_ping_gives_up_in_time(fresh_server: FreshServer) -> None:
    """A broker that takes connections and says nothing is told as such."""
    server = fresh_server(Redis)
    server.pause()
    url = f"{server.url}?ca_cert={server.pki.ca}&connect_timeout=0.3"
    ended = praval("ping", "--timeout", 0.3, PRAVAL_TRANSPORT=url)
    assert ended.code == 1
    assert "within 0.3 s" in ended.errors


# -- what all of them do ---------------------------------------------------------------------

ALL = [
    ["ping"],
    ["agents"],
    ["send", "x"],
    ["send", "x", "--to", "y", "--request"],
    ["groups", "list", "x"],
    ["groups", "drop", "x"],
]


@pytest.mark.parametrize("command", ALL)
def test_without_a_broker_they_say_how_to_name_one(command: list[str]) -> None:
    """Nothing is assumed."""
    ended = praval(*command)
    assert ended.code == 2
    assert "Set PRAVAL_TRANSPORT, or use --transport" in ended.errors


@pytest.mark.parametrize("command", ALL)
def test_a_wrong_password_is_exit_code_2_and_no_broker_1(
    broker: Broker, command: list[str]
) -> None:
    """One line each, without the password."""
    wrong = broker.url.replace(broker.server.password, "open-sesame")
    gone = f"{broker.server.scheme}://u:open-sesame@localhost:{free_port()}"
    for url, code in ((wrong, 2), (gone, 1)):
        ended = praval(*command, "--transport", url)
        assert ended.code == code, ended
        assert ended.errors.splitlines()[-1].startswith(f"praval {command[0]}")
        assert "sesame" not in ended.errors
        assert "Traceback" not in ended.errors
        assert not ended.output


# -- agents ----------------------------------------------------------------------------------


def test_agents_lists_who_is_at_work(broker: Broker, team: Running) -> None:
    """Name, host, pid, channels, types; as a table and as JSON. Nobody sees who asked."""
    asked = praval("agents", *broker.options)
    assert asked.code == 0, asked.errors
    head, adder, listener = asked.output.splitlines()
    assert head.split() == ["agent", "host", "pid", "channels", "types", "last", "seen"]
    host, pid = os.uname().nodename, str(team.process.pid)
    assert adder.split()[:6] == ["adder", host, pid, "main,", "adder_channel", "add"]
    assert listener.split()[:6] == ["listener", host, pid, "news,", "listener_channel", "all"]
    assert listener.endswith(" s ago  ")

    found = json.loads(praval("agents", "--json", *broker.options).output)
    assert [(each["name"], each["pid"], each["responds_to"]) for each in found] == [
        ("adder", int(pid), ["add"]), ("listener", int(pid), None),
    ]  # fmt: skip


def test_agents_of_another_namespace_are_not_seen(broker: Broker, team: Running) -> None:
    """An empty answer is no failure."""
    command = ["agents", "--namespace", "elsewhere", "--wait", 0.3]
    ended = praval(*command, **broker.environment)
    assert ended.code == 0
    assert ended.output == "No host of namespace 'elsewhere' answered.\n"
    assert praval(*command, "--json", **broker.environment).output == "[]\n"


@pytest.mark.parametrize("form", ["--json", "--watch"])
def test_agents_watches_who_comes_and_goes(redis: Broker, tmp_path: Path, form: str) -> None:
    """In a pipe a new list follows each change; Ctrl-C ends it."""
    write_module(tmp_path, TEAM)
    with Running("agents", "--watch", form, *redis.options) as watch:
        watch.until("[]" if form == "--json" else "No host")
        with Running("run", "team:team", *redis.options) as service:
            service.until("ready")
            watch.until("listener")
            service.signal(signal.SIGTERM)
            service.end()
        watch.until("[]" if form == "--json" else "No host")
        watch.signal(signal.SIGINT)
        ended = watch.end()
    assert ended.code == 130
    assert not ended.errors


def test_agents_redraws_its_table_on_a_terminal(redis: Broker, tmp_path: Path) -> None:
    """The same lines again and again, not new ones."""
    write_module(tmp_path, TEAM)
    ours, theirs = pty.openpty()
    with (
        Running("run", "team:team", *redis.options) as service,
        subprocess.Popen(
            [*PRAVAL, "agents", "--watch", *redis.options],
            env=environment(TERM="xterm-256color"), stdin=theirs, stdout=theirs, stderr=theirs,
        ) as watch,
    ):  # fmt: skip
        service.until("ready")
        shown = b""
        while shown.count(b"listener_channel") < 3:
            shown += os.read(ours, 4096)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(30) == 130
    os.close(ours)
    os.close(theirs)
    assert b"\x1b[" in shown


def test_hostile_names_reach_the_terminal_escaped(redis: Broker, tmp_path: Path) -> None:
    """What hosts say of themselves is anybody's text."""
    write_module(tmp_path, "team = agent('\\x1b[2Jred\\x07')(lambda spore: None)\n")
    with Running("run", "team:team", *redis.options) as service:
        service.until("ready")
        listed = praval("agents", *redis.options).output
        ready = service.seen
    assert "\\x1b[2Jred\\x07" in listed
    assert "\x1b" not in listed + ready


# -- send ------------------------------------------------------------------------------------


def test_send_publishes_a_type_or_json(broker: Broker, team: Running) -> None:
    """On the main channel unless told otherwise; it prints the id under which it was sent."""
    for data, stdin, heard in (
        (["flash"], None, "heard flash None None"),
        (['{"type": "rain", "text": "cats"}'], None, "heard rain cats None"),
        (["-"], '{"text": "sun"}\n', "heard None sun None"),
        (["snow", '{"text": "flakes"}'], None, "heard snow flakes None"),
        (["hail", "-"], '{"text": "stones", "type": "hail"}', "heard hail stones None"),
    ):
        ended = praval("send", *data, "--channel", "news", *broker.options, stdin=stdin)
        assert ended.code == 0, ended.errors
        word, spore_id = ended.output.split()
        assert (word, len(spore_id)) == ("sent", 32)
        team.until(heard)
    assert praval("send", "hello", "--to", "listener", *broker.options).code == 0
    team.until("heard hello")


def test_send_asks_an_agent(broker: Broker, team: Running) -> None:
    """The reply is JSON on standard output, ready for a pipe."""
    data = '{"a": 2, "b": 40}'
    ended = praval("send", "add", "--to", "adder", "--request", data, *broker.options)
    assert ended.code == 0, ended.errors
    assert json.loads(ended.output) == {"sum": 42, "text": "ß\u2028"}


def test_send_tells_a_failure_in_a_sentence(broker: Broker, team: Running) -> None:
    """Exit code 1: the agent failed, or nobody is there."""
    for arguments, message in (
        (['{"type": "add", "a": null}', "--to", "adder", "--request"], "nothing to add"),
        (["add", "--to", "addr", "--request"], "No agent 'addr' on any host"),
        (["add", "--to", "addr"], "No agent 'addr' on any host"),
        (["flash", "--channel", "nowhere"], "nobody in namespace"),
    ):
        ended = praval("send", *arguments, *broker.options)
        assert ended.code == 1, ended
        assert message in ended.errors
        assert len(ended.errors.splitlines()) == 1
        assert not ended.output


def test_send_waits_no_longer_than_it_is_told(redis: Broker, tmp_path: Path) -> None:
    """The agent that was asked is at it, but the time is up."""
    write_module(
        tmp_path, "@agent('slow')\nasync def slow(spore):\n    await asyncio.sleep(1000)\n"
    )
    with Running("run", "team:slow", *redis.options) as service:
        service.until("ready")
        command = ["send", "x", "--to", "slow", "--request", "--timeout", 0.5]
        ended = praval(*command, *redis.options)
    assert ended.code == 1
    assert "did not answer within 0.5 s" in ended.errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (['{"type": '], "no JSON"),
        (["[1, 2]"], "must be an object"),
        (['"text"'], "must be an object"),
        (["-"], "no JSON"),
        (["x", "text"], "no JSON"),
        (["x", '{"type": "y"}'], "The JSON's type is 'y', not 'x'"),
        (['{"type": "x"}', '{"text": "y"}'], "not both"),
        (["x", "--request"], "say which with --to"),
        (["x", "--request", "--to", "a", "--channel", "news"], "omit --channel"),
        (["x", "--channel", "@presence"], "reserved"),
        (['{"type": 3}'], "type"),
        ([], "TYPE|JSON"),
    ],
)
def test_send_refuses_what_cannot_be_sent(
    redis: Broker, arguments: list[str], message: str
) -> None:
    """Exit code 2, before or instead of sending anything."""
    ended = praval("send", *arguments, *redis.options)
    assert ended.code == 2, ended
    assert message in ended.errors


def test_send_refuses_what_is_too_large(redis: Broker) -> None:
    """The limit is the settings'."""
    ended = praval("send", "-", *redis.options, stdin=f'{{"text": "{"x" * 1_048_577}"}}')
    assert ended.code == 2, ended
    assert "1048576" in ended.errors
