"""The commands that README names for sealed spores, one after the other, on a real broker."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.cli.commands import Running, praval
from tests.servers import Redis

TEAM = """
from praval import agent

@agent("clerk")
async def clerk(spore):
    return {"heard": spore.knowledge["text"]}
"""
SECRETS = {"PRAVAL_KEYS_PASSPHRASE": "keys canary", "PRAVAL_ROOT_PASSPHRASE": "root canary"}


def test_a_sealed_team_runs_from_the_command_line(redis_server: Redis, tmp_path: Path) -> None:
    """Root, keys, run, a sealed request, the agents; who does not seal gets no answer."""
    file, keys, root = tmp_path / "team.py", tmp_path / "keys", tmp_path / "root"
    file.write_text(TEAM)
    assert praval("keys", "root", "--dir", root, **SECRETS).code == 0
    for name in ("clerk", "@host1"):
        made = praval("keys", "init", name, "--root", root, "--dir", keys, **SECRETS)
        assert (made.code, made.errors) == (0, "")
    broker = {"PRAVAL_TRANSPORT": f"{redis_server.url}?ca_cert={redis_server.pki.ca}"}
    sealed = {
        "PRAVAL_ENABLE_SECURE_SPORES": "true", "PRAVAL_KEYS_STORE": str(keys), **SECRETS, **broker,
    }  # fmt: skip
    ask = ("send", "question", '{"text": "hi"}', "--to", "clerk", "--request", "--timeout")
    space = ("--namespace", "sealed-cli")
    with Running("run", f"{file}:clerk", *space, **sealed) as team:
        team.until("ready: clerk")
        answer = praval(*ask, 30, *space, **sealed)
        assert json.loads(answer.output) == {"heard": "hi"}, answer.errors
        assert "clerk" in praval("agents", *space, **sealed).output
        assert praval(*ask, 1, *space, **broker).code == 1
        team.complains("malformed (1 times)")
        team.signal(signal.SIGTERM)
        ended = team.end()
    assert ended.code == 0
    assert "1 handled, 1 rejected" in ended.output
    assert "(balanced)" in ended.output
    assert not any(secret in ended.output + ended.errors for secret in SECRETS.values())


@pytest.mark.parametrize(
    "more", [{}, {"PRAVAL_KEYS_PASSPHRASE": "canary-7"}], ids=["no passphrase", "no server"]
)
def test_keys_that_cannot_be_opened_stop_it_and_show_no_password(
    tmp_path: Path, more: dict[str, str]
) -> None:
    """Nor a part of the URL that holds one."""
    file = tmp_path / "team.py"
    file.write_text(TEAM)
    done = praval(
        "run", f"{file}:clerk",
        PRAVAL_ENABLE_SECURE_SPORES="true",
        PRAVAL_KEYS_STORE="rediss://user:hunter2@localhost:1/",
        PRAVAL_TRANSPORT="local://here",
        **more,
    )  # fmt: skip
    assert done.code in (1, 2)
    assert done.errors.startswith("praval run: ")
    assert "hunter2" not in done.output + done.errors
    assert "canary-7" not in done.output + done.errors
