"""examples/secure_deployment as a reader of it runs it: on each broker, by one argument."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.servers import Server
from tests.servers.process import ROOT

MAIN = ROOT / "examples" / "secure_deployment" / "main.py"
BROKERS = ["rabbitmq", "mosquitto", "activemq", "redis_server"]


def url_of(request: pytest.FixtureRequest, name: str) -> str:
    server = request.getfixturevalue(name)
    assert isinstance(server, Server)
    return f"{server.url}?ca_cert={server.pki.ca}"


@pytest.mark.parametrize("broker", BROKERS)
def test_nothing_comes_of_what_the_attacker_tries(
    request: pytest.FixtureRequest, broker: str, tmp_path: Path
) -> None:
    """Each transfer is executed once, none of the attacker's, and nothing is readable."""
    done = subprocess.run(
        [sys.executable, MAIN, url_of(request, broker), "--folder", tmp_path / "kept"],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 transfers, each executed exactly once; the attacker's: none" in done.stdout
    attacks = re.findall(
        r"^attacker .*: (\d+) messages\n +executed: (\d+); (.*)$", done.stdout, re.M
    )
    assert len(attacks) == 6
    for tried, executed, noticed in attacks:
        assert int(tried) > 0
        assert int(executed) == 0
        assert noticed != "ignored"
    assert "known already" in attacks[0][2], "what was handled is not handled again"
    assert "bad_signature" in attacks[1][2]
    assert "not_for_me" in attacks[3][2]
    assert "unknown_sender" in attacks[5][2]
    assert done.stdout.count("(balanced)") == 2
    log = (tmp_path / "kept" / "broker.log").read_bytes()
    assert b"teller_channel" in log, "the attacker did see what went by"
    assert b"PSV1" in log
    assert b"blue whale" not in log
    assert b"blue whale" not in b"".join(
        path.read_bytes() for path in (tmp_path / "kept").rglob("*") if path.is_file()
    )


def test_ctrl_c_leaves_no_process_behind(request: pytest.FixtureRequest) -> None:
    """It ends all three, with the exit code of an interrupt."""
    with subprocess.Popen(
        [sys.executable, MAIN, url_of(request, "mosquitto")], text=True, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("desk"):
                break
        children = psutil.Process(process.pid).children()
        assert len(children) == 3
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "which broker"), (["local://here"], "need a broker")]
)
def test_it_says_what_it_needs(arguments: list[str], message: str) -> None:
    """Without a broker there is nothing to show."""
    done = subprocess.run(
        [sys.executable, MAIN, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
