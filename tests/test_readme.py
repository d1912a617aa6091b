"""README.md: each of its Python blocks runs as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
MODELS = [block for block in BLOCKS if "@tool" in block]
PLAIN = [
    block
    for block in BLOCKS
    if not any(mark in block for mark in ("def test_", "BaseProvider", "@tool"))
]
PROVIDER = [block for block in BLOCKS if "BaseProvider" in block]
TESTS = [block for block in BLOCKS if "def test_" in block]


def run(folder: Path, *arguments: str, **environment: str) -> str:
    """Run Python in an empty folder, warnings being errors; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    return done.stdout


def promised(block: str) -> list[str]:
    """Return what the comments behind ``print`` calls say that they print."""
    return re.findall(r"^ *print\(.*\)  # (.+)$", block, re.M)


def test_the_blocks_are_found() -> None:
    """Four scripts, one with models, one provider, one test: a new block needs a test here."""
    assert [len(blocks) for blocks in (PLAIN, MODELS, PROVIDER, TESTS)] == [4, 1, 1, 1]


@pytest.mark.parametrize("block", PLAIN, ids=["start_agents", "reef", "hosts", "sealed"])
def test_a_script_prints_what_its_comments_say(block: str, tmp_path: Path) -> None:
    """Pasted into a file it runs, ends by itself, and prints that and nothing else."""
    (tmp_path / "script.py").write_text(block, encoding="utf-8")
    assert promised(block), "the block does not say what it prints"
    assert run(tmp_path, "script.py").splitlines() == promised(block)


def test_the_agent_with_a_tool_and_a_wanted_type_works(tmp_path: Path) -> None:
    """With a script in the place of the models."""
    script = (
        f"{MODELS[0]}\n"
        "from praval import start_agents\n"
        "from praval.providers import Response, ToolCall\n"
        "from praval.testing import ScriptedModel, use_model\n"
        "wish = Response(tool_calls=[ToolCall('1', 'depth_of', '{\"reef\": \"Apo\"}')])\n"
        'with use_model(ScriptedModel([wish, \'{"title": "Apo", "metres": 34}\'])) as model:\n'
        "    print(dict(start_agents(writer, initial_data={})))\n"
        "    print(model.calls[1].messages[-1]['content'])\n"
    )
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    assert run(tmp_path, "script.py") == "{'title': 'Apo', 'metres': 34}\n34\n"


def test_the_provider_is_selected_as_described(tmp_path: Path) -> None:
    """By ``provider=``, by the agent that names it, and by PRAVAL_DEFAULT_PROVIDER."""
    text = README.read_text(encoding="utf-8")
    assert '`chat("...", provider="mine")`' in text
    assert "`PRAVAL_DEFAULT_PROVIDER=mine`" in text
    script = (
        f"{PROVIDER[0]}\n"
        "from praval import agent, chat, start_agents\n"
        "@agent('name', provider='mine')\n"
        "def named(spore):\n"
        "    return {'said': chat('...')}\n"
    )
    ask = {
        "named.py": "print(chat('...', provider='mine'))\n",
        "agent.py": "print(start_agents(named, initial_data={})['said'])\n",
        "default.py": "print(chat('...'))\n",
    }
    for name, line in ask.items():
        (tmp_path / name).write_text(script + line, encoding="utf-8")
    assert run(tmp_path, "named.py") == "an answer\n"
    assert run(tmp_path, "agent.py") == "an answer\n"
    assert run(tmp_path, "default.py", PRAVAL_DEFAULT_PROVIDER="mine") == "an answer\n"


def test_the_test_passes_in_auto_mode(tmp_path: Path) -> None:
    """With the one option that the text names, pytest finds and passes it."""
    assert '`asyncio_mode = "auto"`' in README.read_text(encoding="utf-8")
    options = "[pytest]\nasyncio_mode = auto\nfilterwarnings = error\n"
    # some versions of pytest-asyncio warn if this is left to its default
    options += "asyncio_default_fixture_loop_scope = function\n"
    (tmp_path / "pytest.ini").write_text(options, encoding="utf-8")
    (tmp_path / "test_editor.py").write_text(TESTS[0], encoding="utf-8")
    assert "1 passed" in run(tmp_path, "-m", "pytest", "-p", "no:cacheprovider")
