"""The guide's snippets run as plain scripts: no sleeps, no changes to their calls.

Each script under ``scripts`` keeps the calls, names and argument shapes of one snippet of the
user's specification and says, in comments at its top, what it prints.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted(Path(__file__).with_name("scripts").glob("[!_]*.py"))


def expected(script: Path) -> tuple[list[str], bool]:
    """Return the lines a script is to print, and whether their order does not matter."""
    lines = script.read_text().splitlines()
    printed = [line.removeprefix("# prints: ") for line in lines if line.startswith("# prints: ")]
    return printed, "# sorted" in lines


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_snippet_runs_as_printed(script: Path, tmp_path: Path) -> None:
    """A plain script, warnings being errors, prints what it should and ends by itself."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", script],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(script.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines, unordered = expected(script)
    printed = run.stdout.splitlines()
    assert lines, "the script does not say what it prints"
    assert (sorted(printed) if unordered else printed) == lines
    assert not run.stderr
