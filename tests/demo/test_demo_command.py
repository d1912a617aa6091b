"""``praval demo`` as its users run it: a process, its output, its exit code, its files."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from demo_library import write_files

PRAVAL = [sys.executable, "-c", "from praval.cli import main; main()"]
MODELS = """
import asyncio, itertools, time
from praval.cli import main
from praval.errors import NoModelError
from praval.providers import register_provider
from praval.providers.base import BaseProvider
from praval.testing import FunctionModel

number = itertools.count(1)  # two questions are answered, then all four readers wait

def busy():
    asked = next(number)
    if asked == 6:
        print("all readers wait", flush=True)
    return asked > 2

async def awaits(messages):
    if busy():
        await asyncio.sleep(3600)
    return "It does its part."

class Blocks(BaseProvider):
    def chat(self, messages, model=None, **options):
        if busy():
            time.sleep(3600)
        return "It does its part."

def is_gone(messages):
    raise NoModelError("There is none: install one.")

register_provider("gone", FunctionModel(is_gone))
register_provider("awaits", FunctionModel(awaits))
register_provider("blocks", Blocks())
main()
"""


def environment() -> Mapping[str, str]:
    """The surroundings of a user: no key, no setting, and output that is not held back."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}


def praval(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*PRAVAL, *map(str, arguments)],
        cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@contextmanager
def started(*command: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a command; whatever the test does, it is not left behind."""
    with subprocess.Popen(
        command, cwd=cwd, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], part: str) -> str:
    """Read lines of output up to the one that holds ``part``."""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if part in line:
            return seen
    raise AssertionError(f"{part!r} did not come; the output was:\n{seen}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine files that depend on each other in a row."""
    return write_files(
        tmp_path / "src", {f"m{n}.py": f'"""Module {n}."""\nimport m{n + 1}\n' for n in range(9)}
    )


def test_it_reads_asyncio_by_default_and_writes_into_the_current_folder(tmp_path: Path) -> None:
    """Without arguments: Python's asyncio, two files, a balanced ledger, exit code 0."""
    done = praval("demo", "--no-model", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "asyncio: what its files are for" in (tmp_path / "report.md").read_text()
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert "base_events.py: Base implementation of event loop. [extracted]" in done.stdout
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith("librarian  found ")
    assert lines[-1].startswith("balanced: ")


def test_the_ledger_that_is_printed_adds_up(folder: Path, tmp_path: Path) -> None:
    """The states together are the deliveries, and the last line says so."""
    done = praval("demo", folder, "--no-model", cwd=tmp_path)
    table = done.stdout.partition("The ledger")[2].splitlines()[2:]
    counts = {w[0]: int(w[1].replace(",", "")) for w in map(str.split, table[:-1]) if len(w) == 2}
    together = counts.pop("together")
    assert counts["handled"] == sum(counts.values()) == together
    assert f"{together} deliveries, each accounted for" in table[-1]


def test_out_names_another_folder(folder: Path, tmp_path: Path) -> None:
    """It is made if need be; a second run replaces the reports of the first."""
    for _ in range(2):
        done = praval("demo", folder, "--no-model", "--out", "deep/er", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "deep" / "er").iterdir()) == [
        "report.html", "report.md",
    ]  # fmt: skip


def test_its_own_reports_are_not_read(folder: Path) -> None:
    """Run inside the folder twice, it finds the same files."""
    outputs = [praval("demo", ".", "--no-model", cwd=folder).stdout for _ in range(2)]
    assert "found 9 files, skipped 0" in outputs[0]
    assert "found 9 files, skipped 2" in outputs[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "no such file or directory"),
        (["empty"], "it is empty"),
        (["src", "--out", "src/m1.py"], "Cannot write into src/m1.py"),
        (["src", "--out", "theirs"], "was not written by praval demo"),
        (["picture.png"], "binary"),
        (["src", "--no-model", "--provider", "local"], "--no-model excludes"),
        (["src", "--provider", "lokal"], 'Did you mean "local"?'),
        (["src", "--provider", "anthropic"], "ANTHROPIC_API_KEY"),
        (["src", "extra"], "extra"),
        (["--nosuch"], "--nosuch"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line_with_exit_code_2(
    folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    """No traceback, no report, and the message says what to change."""
    write_files(tmp_path, {"picture.png": b"\x89PNG\0", "theirs/report.html": "<p>mine</p>"})
    (tmp_path / "empty").mkdir()
    done = praval("demo", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not list(tmp_path.glob("report.*"))


@pytest.mark.parametrize("provider", ["awaits", "blocks"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_a_signal_leaves_a_partial_report(
    folder: Path, tmp_path: Path, provider: str, number: int, code: int
) -> None:
    """While the model is busy for an hour, whichever way: within 2 s, with what was read."""
    command = [sys.executable, "-c", MODELS, "demo", str(folder), "--provider", provider]
    with started(*command, cwd=tmp_path) as process:
        read_until(process, "all readers wait")
        process.send_signal(number)
        began = time.monotonic()
        assert process.stdout is not None
        rest = process.stdout.read()
        assert process.wait(10) == code
        assert time.monotonic() - began < 2
    assert "PARTIAL report" in rest
    assert "balanced" in rest.splitlines()[-1]
    assert "Traceback" not in rest
    report = (tmp_path / "report.md").read_text()
    assert "**Partial report:** the run was stopped." in report
    assert report.count("It does its part. *[model]*") == 2
    assert report.count("*[not summarised]*") == 4
    assert "`m8.py`: not read" in report
    assert "Partial report" in (tmp_path / "report.html").read_text()


def test_a_signal_while_a_big_folder_is_read(tmp_path: Path) -> None:
    """Nothing waits for a model there; the report holds part of the files and says which not."""
    body = "\n".join(f"def function_{n}(): return {n}" for n in range(2000))
    write_files(
        tmp_path / "big", {f"m{n:03}.py": f"import m{n + 1:03}\n{body}" for n in range(300)}
    )
    with started(*PRAVAL, "demo", "big", "--no-model", cwd=tmp_path) as process:
        read_until(process, " 10/300")
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        rest = process.stdout.read()
        assert process.wait(10) == 130
    assert "PARTIAL report" in rest
    report = (tmp_path / "report.md").read_text()
    assert "## Not done" in report
    assert "`m299.py`: not read" in report


def test_a_reader_that_goes_away_does_not_cost_the_report(folder: Path, tmp_path: Path) -> None:
    """``praval demo | head -1``: the report is written all the same."""
    with started(*PRAVAL, "demo", str(folder), "--no-model", cwd=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 0
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("options", "notice"),
    [(["--no-model"], ""), (["--provider", "gone"], "There is none: install one.")],
)
def test_on_a_terminal_there_is_a_live_bar(
    folder: Path, tmp_path: Path, options: list[str], notice: str
) -> None:
    """Each agent has its line, the bar moves; the ledger, and a lack of models, stay there."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", MODELS, "demo", str(folder), *options],
        cwd=tmp_path, env={**environment(), "TERM": "xterm-256color"},
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
        assert process.wait(30) == 0
    text = shown.decode()
    for part in ("librarian", "readers", "linker", "skeptic", "files", "/9", "balanced"):
        assert part in text
    assert "\x1b[" in text
    assert text.count("There is none: install one.") == bool(notice)


def test_hostile_names_reach_the_terminal_escaped(tmp_path: Path) -> None:
    """A file name cannot send control sequences to whoever runs the demo."""
    write_files(tmp_path / "src", {"\x1b[2Jred\x07.txt": "x", "[bold]b.txt": "y"})
    done = praval("demo", "src", "--no-model", cwd=tmp_path)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "\\x1b[2Jred\\x07.txt" in done.stdout
    assert "[bold]b.txt" in done.stdout


def test_version_and_help(tmp_path: Path) -> None:
    """``--version`` names the distribution; ``--help`` names the command."""
    import praval as package

    assert praval("--version", cwd=tmp_path).stdout == f"praval-asyncio {package.__version__}\n"
    assert "demo" in praval("--help", cwd=tmp_path).stdout
    assert "--no-model" in praval("demo", "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize("missing", ["typer", "rich", "markdown_it"])
def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path, missing: str) -> None:
    """One line instead of a traceback."""
    code = f"import sys; sys.modules[{missing!r}] = None; from praval.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert 'pip install "praval-asyncio[cli]"' in done.stderr
    assert "Traceback" not in done.stderr
