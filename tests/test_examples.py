"""The examples run as they are, with the model on this machine and without a key."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("models_*.py"))

SAYS = {
    "models_stream": ["tokens, $0.00"],
    "models_structured": ["I loved every page. -> ", "Dull and far too long. -> "],
    "models_team": ["researcher (local): ", "editor (local): ", "editor: 1 calls"],
}
"""Example -> what it prints among other things."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_runs(example: Path, tmp_path: Path) -> None:
    """To its end, without warnings."""
    keys = ("_API_KEY", "_BASE_URL", "_AUTH_TOKEN")
    run = subprocess.run(
        [sys.executable, "-W", "error", example],
        cwd=tmp_path,
        env={name: text for name, text in os.environ.items() if not name.endswith(keys)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    for said in SAYS[example.stem]:
        assert said in run.stdout


def test_every_example_has_its_line() -> None:
    """Whoever adds an example says what it prints."""
    assert {path.stem for path in EXAMPLES} == set(SAYS)
