"""``praval run --reload``: the team in a process of its own, and a new one after each change."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from praval.cli._connect import BY_SIGNAL
from praval.core.serve import SIGNALS
from praval.demo.progress import say
from praval.errors import ConfigurationError
from praval.settings import current_settings

PATIENCE = 20.0
"""Seconds beyond the drain time-out before a team that does not end is killed."""


def supervise(folder: Path) -> int:
    """Run this command without ``--reload`` whenever Python files below ``folder`` change.

    Returns the exit code of the last process, once a signal or the team itself has ended it.

    Raises:
        ConfigurationError: the package that watches files is not installed.
    """
    try:
        import watchfiles  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigurationError(
            '--reload needs the package watchfiles: pip install "praval-asyncio[cli]"'
        ) from None
    arguments = [each for each in sys.argv[1:] if each != "--reload"]
    command = [sys.executable, "-m", "praval.cli", *arguments, "--stop-at-eof"]
    return asyncio.run(_supervise(command, folder))


async def _supervise(command: Sequence[str], folder: Path) -> int:
    from watchfiles import PythonFilter, awatch

    loop = asyncio.get_running_loop()
    child = Child(command)
    for number in SIGNALS:
        loop.add_signal_handler(number, child.tell)
    _say(f"watching {folder}")
    starting = asyncio.create_task(child.start())  # it runs when the watch is set up
    async for changes in awatch(folder, watch_filter=PythonFilter(), stop_event=child.over):
        _say(f"{_names(changes, folder)} changed: starting again")
        await starting
        await child.end()
        starting = asyncio.create_task(child.start())
    await starting
    await child.end()
    return child.code if child.code >= 0 else BY_SIGNAL - child.code


def _names(changes: Iterable[tuple[object, str]], folder: Path) -> str:
    return ", ".join(sorted({os.path.relpath(path, folder) for _, path in changes}))


class Child:
    """The process that runs the team."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._ending = False
        self._watcher: asyncio.Task[None] | None = None
        self.over = asyncio.Event()
        """Set when nothing is to be started any more."""
        self.code = 0

    async def start(self) -> None:
        """Start it; it ends when this process does, however that happens."""
        if self.over.is_set():
            return
        # a session of its own: Ctrl-C is for this process, which passes it on once
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, start_new_session=True
        )
        self._ending = False
        self._watcher = asyncio.create_task(self._watch(self._process))

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        self.code = await process.wait()
        if self._ending:
            return
        if self.code == 0:
            self.over.set()
        else:
            _say(f"the team ended with exit code {self.code}: waiting for a change")

    def tell(self) -> None:
        """Take a signal: the first one ends it, later ones hurry it."""
        if self.over.is_set():
            self._terminate()
        self.over.set()

    def _terminate(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()

    async def end(self) -> None:
        """Let it drain, and wait until it has ended."""
        if self._process is None or self._watcher is None:
            return
        self._ending = True
        self._terminate()
        limit = current_settings().reef_config.drain_timeout + PATIENCE
        done, _ = await asyncio.wait([self._watcher], timeout=limit)
        if not done:
            _say(f"the team did not end within {limit:g} s: it is killed")
            self._process.kill()
            await self._watcher


def _say(line: str) -> None:
    say(f"praval run: {line}", sys.stderr)
