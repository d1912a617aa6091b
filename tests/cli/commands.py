"""The command ``praval`` as its users run it: a process, its output, its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

PRAVAL = [sys.executable, "-m", "praval.cli"]
PATIENCE = 60.0


def environment(**more: str) -> Mapping[str, str]:
    """The surroundings of a user, with output that is not held back."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "160", **more}


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    output: str
    errors: str


def praval(*arguments: object, stdin: str | None = None, **more: str) -> Ended:
    """Run the command to its end."""
    done = subprocess.run(
        [*PRAVAL, *map(str, arguments)],
        env=environment(**more), capture_output=True, text=True, timeout=PATIENCE, check=False,
        input=stdin, stdin=subprocess.DEVNULL if stdin is None else None,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


class Running:
    """A command that goes on; whatever the test does, it is not left behind."""

    def __init__(self, *arguments: object, **more: str) -> None:
        self._errors = tempfile.NamedTemporaryFile()  # noqa: SIM115 - it is closed on exit
        self.seen = ""
        """What was read of its output."""
        self.process = subprocess.Popen(
            [*PRAVAL, *map(str, arguments)],
            env=environment(**more), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()

    def until(self, part: str) -> str:
        """Read its output up to the line that has this part, and return that line."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen += line
            if part in line:
                return line
        raise AssertionError(f"{part!r} did not come.\n{self.seen}\n{self.errors}")

    def shows(self, part: str) -> None:
        """Read its output until this part has come, if it has not yet."""
        if part not in self.seen:
            self.until(part)

    @property
    def errors(self) -> str:
        """What it has written to standard error so far."""
        return Path(self._errors.name).read_text()

    def complains(self, part: str) -> None:
        """Wait until standard error has this part."""
        wait_until(lambda: part in self.errors, f"{part!r} in {self.errors!r}")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> Ended:
        """Wait until it has ended by itself; the output is all of it."""
        assert self.process.stdout is not None
        self.seen += self.process.stdout.read()
        return Ended(self.process.wait(PATIENCE), self.seen, self.errors)


def wait_until(holds: Callable[[], object], what: str) -> None:
    """Poll until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"never happened: {what}")
        time.sleep(0.02)


def write_module(folder: Path, text: str, name: str = "team") -> None:
    """Write a team's module; its head is there already."""
    (folder / f"{name}.py").write_text(HEAD + text)


HEAD = """
import asyncio, logging, os, sys, threading, time
from praval import Reef, agent, broadcast


def say(*words):
    print(*words, flush=True)


"""
