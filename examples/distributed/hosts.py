"""The hosts of the example: processes that run ``praval run``, as they would on other machines."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

TEAM = Path(__file__).with_name("team.py")
STARTING = 60.0
"""Seconds until a host must be ready."""


class HostError(Exception):
    """A host did not get ready, or all that had one agent are gone."""


class Host:
    """One process with one agent."""

    def __init__(self, label: str, agent: str) -> None:
        self.label = label
        self.agent = agent
        self.ledger: str | None = None
        """What became of its deliveries, once it has ended; None if it was killed."""
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()

    async def start(self, url: str, namespace: str) -> None:
        """Start the process."""
        command = ["run", f"{TEAM}:{self.agent}", "--namespace", namespace, "--stop-at-eof"]
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "praval.cli", *command, "--log-level", "warning"),
            env={**os.environ, "PRAVAL_TRANSPORT": url},  # others can see command lines
            stdin=asyncio.subprocess.PIPE,  # it ends when we do, even if we are killed
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us; we tell it once
        )
        self.where = f"{socket.gethostname()}:{self._process.pid}"
        self.ended = asyncio.create_task(self._follow(self._process))
        """Done when the process has ended."""

    async def ready(self) -> None:
        """Wait until its agent is at work.

        Raises:
            HostError: it ended instead, or took too long; it has said why on standard error.
        """
        waiting = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait(
                {waiting, self.ended}, timeout=STARTING, return_when="FIRST_COMPLETED"
            )
        finally:
            waiting.cancel()
        if not self._ready.is_set():
            raise HostError(f"{self.label} ({self.agent}) did not get ready")

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            text = line.decode().strip()
            if text.startswith("ready: "):
                self._ready.set()
            elif text.startswith("ledger: "):
                self.ledger = text.removeprefix("ledger: ")
        await process.wait()

    @property
    def code(self) -> int | None:
        """The exit code of its process, once it has ended."""
        return None if self._process is None else self._process.returncode

    async def stop(self) -> None:
        """Let it finish what it is at, and wait until it has ended."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
        await self.ended
