"""examples/distributed as a reader of it runs it: on each broker, by one argument."""

from __future__ import annotations

import os
import pty
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.servers import Server, free_port
from tests.servers.process import ROOT

MAIN = ROOT / "examples" / "distributed" / "main.py"
BROKERS = ["rabbitmq", "mosquitto", "activemq", "redis_server"]
FILES = 12
HOSTS = ["host 1 reader", "host 2 summariser", "host 3 summariser", "host 4 editor"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few files to summarise."""
    folder = tmp_path / "pages"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"m{number:02}.py").write_text(f'"""Does its part, number {number}."""\n')
    return folder


def url_of(request: pytest.FixtureRequest, name: str) -> str:
    server = request.getfixturevalue(name)
    assert isinstance(server, Server)
    return f"{server.url}?ca_cert={server.pki.ca}"


@contextmanager
def example(url: str, folder: Path, pace: float = 0.05) -> Iterator[subprocess.Popen[str]]:
    """Start the example; whatever the test does, it is not left behind."""
    options = ["--folder", str(folder), "--pace", str(pace)]
    with subprocess.Popen(
        [sys.executable, MAIN, url, *options, "--namespace", f"example-{secrets.token_hex(4)}"],
        text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], part: str) -> str:
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if part in line:
            return seen
    raise AssertionError(f"{part!r} did not come:\n{seen}")


def children(process: subprocess.Popen[str], agent: str = "") -> list[psutil.Process]:
    """The hosts, or those with one agent."""
    return [
        child
        for child in psutil.Process(process.pid).children()
        if any(f"team.py:{agent}" in word for word in child.cmdline())
    ]


def ledgers(output: str) -> dict[str, str]:
    """Host and agent -> its ledger."""
    found = re.findall(r"^(here|host \d) +(\w+) +(\d+ deliveries: .*)$", output, re.MULTILINE)
    return {f"{host} {agent}": ledger for host, agent, ledger in found}


@pytest.mark.parametrize("broker", BROKERS)
def test_each_file_is_summarised_exactly_once(
    request: pytest.FixtureRequest, broker: str, folder: Path
) -> None:
    """Two hosts of one name share the files, and every process accounts for its deliveries."""
    with example(url_of(request, broker), folder) as process:
        output, errors = process.communicate(timeout=90)
    assert process.returncode == 0, output + errors
    assert not errors
    done = re.findall(r"^host (\d) summariser +(m\d\d\.py): Does its part", output, re.MULTILINE)
    assert sorted(name for _, name in done) == [f"m{n:02}.py" for n in range(FILES)]
    assert {host for host, _ in done} == {"2", "3"}
    told = ledgers(output)
    assert list(told) == ["here observer", *HOSTS]
    assert all(ledger.endswith("(balanced)") for ledger in told.values())
    handled = [int(told[f"host {n} summariser"].split(" handled")[0].split()[-1]) for n in (2, 3)]
    assert sum(handled) == FILES
    assert output.splitlines()[-1].startswith(f"{FILES} files, each summarised exactly once")


def test_the_same_team_runs_in_one_process(folder: Path) -> None:
    """On the local transport, which needs no broker."""
    with example("local://here", folder) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    assert output.splitlines()[-1].startswith(f"{FILES} files, each summarised exactly once")


def test_ctrl_c_stops_all_hosts(request: pytest.FixtureRequest, folder: Path) -> None:
    """Each finishes what it is at and tells its ledger; nothing is left running."""
    with example(url_of(request, "redis_server"), folder, pace=0.5) as process:
        read_until(process, "summariser")
        hosts = children(process)
        assert len(hosts) == 4
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, output + errors
    told = ledgers(output)
    assert list(told) == HOSTS
    assert all(ledger.endswith("(balanced)") for ledger in told.values())
    assert not any(host.is_running() for host in hosts)


def test_a_killed_summariser_is_replaced_by_the_other(
    request: pytest.FixtureRequest, folder: Path
) -> None:
    """What it had not acknowledged is given to the one that is left; the report is complete."""
    with example(url_of(request, "rabbitmq"), folder, pace=0.2) as process:
        read_until(process, "host 3 summariser")
        children(process, "summariser")[1].kill()
        output, errors = process.communicate(timeout=90)
    assert f"host 4 editor       reported {FILES} files" in output, output + errors
    assert "host 3 summariser ended with exit code -9" in output
    assert "missing: [], failed hosts: ['host 3']" in output
    assert process.returncode == 1


def test_the_last_host_of_an_agent_is_missed(request: pytest.FixtureRequest, folder: Path) -> None:
    """Nobody waits for ever."""
    with example(url_of(request, "redis_server"), folder, pace=0.5) as process:
        read_until(process, "summariser")
        children(process, "editor")[0].kill()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "host 4 has ended, and no other host has an agent 'editor'" in errors


def test_a_killed_example_leaves_no_hosts(request: pytest.FixtureRequest, folder: Path) -> None:
    """They end when its end of their standard input is gone."""
    with example(url_of(request, "redis_server"), folder, pace=0.5) as process:
        read_until(process, "summariser")
        hosts = children(process)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while any(host.is_running() and host.status() != "zombie" for host in hosts):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [([], 2, "which broker?"), (["http://x"], 1, "begins with one of")],
)
def test_without_a_broker_it_says_so(arguments: list[str], code: int, message: str) -> None:
    """In a line, without a traceback."""
    done = subprocess.run(
        [sys.executable, MAIN, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broker_that_is_not_there_is_told(folder: Path) -> None:
    """By the hosts, each of which has tried; the password is not shown."""
    with example(f"rediss://u:sesame@localhost:{free_port()}", folder) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "No connection to localhost" in errors
    assert "did not get ready" in errors
    assert "sesame" not in output + errors


def test_on_a_terminal_there_is_a_live_table(folder: Path) -> None:
    """It is redrawn in place: who handled how many, and what last."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, MAIN, "local://here", "--folder", str(folder), "--pace", "0.05"],
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"},
        stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # Linux: the other end was closed
                break
            if not part:
                break
            shown += part
        os.close(ours)
        assert process.wait(60) == 0
    text = shown.decode()
    for part in ("host", "agent", "handled", "all agents", f"reported {FILES} files", "\x1b["):
        assert part in text
    assert "exactly once" in text
