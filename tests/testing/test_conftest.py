"""The rules of tests/conftest.py: what leaks, blocks or is left behind fails the test."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from praval import Spore, agent, astart_agents, configure, get_registry, start_agents
from praval.settings import current_settings

ROOT = Path(__file__).resolve().parents[2]

OFFENDERS = '''
"""Each test here breaks one rule and would pass otherwise."""
import asyncio, os, threading, time
from pathlib import Path
import pytest
from praval import Reef, agent, start_agents
from praval.testing import TestReef

async def test_a_handler_that_sleeps_on_the_loop():
    @agent("blocking")
    async def blocking(spore):
        time.sleep(0.001)

    async with TestReef(blocking) as reef:
        await reef.broadcast({})
        await reef.settle()

async def test_a_handler_that_reads_a_file_on_the_loop():
    @agent("blocking")
    async def blocking(spore):
        with open(__file__) as file:
            file.read()

    async with TestReef(blocking) as reef:
        await reef.broadcast({})
        await reef.settle()

def test_a_handler_that_outlives_the_test():
    @agent("slow")
    def slow(spore):
        time.sleep(10)

    start_agents(slow, initial_data={}, timeout=0.05)

async def test_fine():
    @agent("good")
    def good(spore):
        time.sleep(0.001)

    async with TestReef(good) as reef:
        await reef.broadcast({})
        await reef.settle()
        Path("a file").write_text("a test may do that")

def test_the_environment():
    assert not [name for name in os.environ if name.endswith("_API_KEY")]
    assert "PRAVAL_DEFAULT_MODEL" not in os.environ
    assert os.listdir() == ["home"]
'''


def test_what_breaks_a_rule_fails(tmp_path: Path) -> None:
    """Blocking calls and leftovers are errors although the test itself has passed."""
    (tmp_path / "conftest.py").write_bytes((ROOT / "tests" / "conftest.py").read_bytes())
    (tmp_path / "test_offenders.py").write_text(OFFENDERS)
    settings = ["-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "--no-header"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *settings, "--rootdir", str(tmp_path), str(tmp_path)],
        env={
            **os.environ,
            "PRAVAL_DEFAULT_MODEL": "leaked",
            "OPENAI_API_KEY": "leaked",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "transports")]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    errors = re.findall(r"^ERROR \S+::(\w+)", ran.stdout, re.MULTILINE)
    assert errors == [
        "test_a_handler_that_sleeps_on_the_loop",
        "test_a_handler_that_reads_a_file_on_the_loop",
        "test_a_handler_that_outlives_the_test",
    ], ran.stdout
    assert "5 passed, 3 errors" in ran.stdout
    assert "Left behind: thread praval-worker" in ran.stdout


@pytest.mark.parametrize("turn", [1, 2])
def test_settings_agents_and_the_default_reef_do_not_survive(turn: int) -> None:
    """The second turn finds nothing of the first."""
    assert get_registry().list_agents() == []
    assert current_settings().max_threads == 10
    configure(max_threads=3)

    # two functions of one name: a Reef that still has the first would refuse the second
    def first(spore: Spore) -> dict[str, int]:
        return {"turn": 1}

    def second(spore: Spore) -> dict[str, int]:
        return {"turn": 2}

    definition = agent("one")(first if turn == 1 else second)
    assert dict(start_agents(definition, initial_data={"type": "go"})) == {"turn": turn}


async def test_the_default_reef_of_a_test_ends_with_its_loop() -> None:
    """``astart_agents`` needs no closing: the fixture would complain."""

    @agent("one")
    async def one(spore: Spore) -> dict[str, int]:
        return {"x": 1}

    assert dict(await astart_agents(one, initial_data={})) == {"x": 1}


@pytest.mark.every_loop
async def test_every_loop_runs_on_each(request: pytest.FixtureRequest) -> None:
    """The name of the loop in the test's id is that of the loop that runs."""
    loop = asyncio.get_running_loop()
    kind = re.search(r"\[(\w+)\]", request.node.name)
    assert kind is not None
    module = type(loop).__module__
    if kind[1] == "uvloop":
        assert module == "uvloop"
    else:
        assert module.startswith("asyncio")
        assert (loop.get_task_factory() is not None) == (kind[1] == "eager")
