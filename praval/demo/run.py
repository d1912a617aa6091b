"""One job from start to report: the Reef, the signals, and what is left to say at the end."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from praval import Reef
from praval.core.delivery import STATES, DeadLetter, LedgerSnapshot
from praval.demo.editor import Circumstances
from praval.demo.progress import Screen, make_narrator
from praval.demo.sources import MAX_FILES
from praval.demo.team import make_team
from praval.errors import ConfigurationError
from praval.settings import Settings, current_settings, merge

CLOSING = 0.7
"""Seconds that a stopped job waits for its agents; a model in mid-sentence may take longer."""
WRITING = 60.0
"""Seconds for the editor to lay out and write the report."""
A_DAY = 86_400.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to read, where to write, which model to ask (None: the configured default)."""

    path: Path
    out: Path
    use_model: bool = True
    provider: str | None = None
    model: str | None = None
    speaker: str = ""
    """What the report calls the model."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a job ended."""

    stopped_by: int | None
    """The signal that stopped it."""
    written: dict[str, Any]
    """What the editor says it wrote: numbers of files, verified, refuted, by_model; partial."""
    ledger: LedgerSnapshot
    failures: list[DeadLetter]
    seconds: float


class StopSign:
    """Remembers the first signal; a second one ends the process at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.raised = asyncio.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM over; works wherever plain signal handlers do."""
        loop = asyncio.get_running_loop()

        def on_signal(number: int, frame: FrameType | None) -> None:
            signal.signal(number, signal.SIG_DFL)
            self.number = self.number or number
            loop.call_soon_threadsafe(self.raised.set)

        previous = {
            number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            if self.number is None:
                for number, handler in previous.items():
                    signal.signal(number, handler)


async def run(job: Job, screen: Screen) -> Outcome:
    """Do the job; a signal makes the report partial instead of ending it without one.

    Raises:
        ConfigurationError: the path cannot be read, or holds nothing to read.
        RequestError: the report could not be written.
    """
    began = time.monotonic()
    team = make_team(job.out, use_model=job.use_model, provider=job.provider, model=job.model)
    sign = StopSign()
    agents = (*team, make_narrator(screen))  # they share files: none may work elsewhere
    async with Reef(*agents, settings=_settings(), transport=False) as reef:
        with sign.watching():
            work = asyncio.ensure_future(_work(reef, job))
            stop = asyncio.ensure_future(sign.raised.wait())
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            unfinished = work.cancel()
            if not unfinished:
                work.result()  # raises what went wrong
            circumstances = Circumstances(
                stopped=unfinished,
                seconds=time.monotonic() - began,
                model=job.speaker,
                ledger=_counts(reef.ledger()),
            )
            reply = await reef.request(
                "editor",
                {"type": "hand_in", "circumstances": msgspec.to_builtins(circumstances)},
                timeout=WRITING,
            )
            closing = asyncio.ensure_future(reef.aclose(drain=sign.number is None))
            await asyncio.wait({closing}, timeout=CLOSING if sign.number else None)
    return Outcome(
        stopped_by=sign.number,
        written=reply.knowledge,
        ledger=reef.ledger(),
        failures=reef.dead_letters(),
        seconds=time.monotonic() - began,
    )


async def _work(reef: Reef, job: Job) -> None:
    order = {"type": "job", "path": str(job.path)}
    answer = await reef.request("librarian", order, timeout=A_DAY)
    if "problem" in answer.knowledge:
        raise ConfigurationError(answer.knowledge["problem"])
    await reef.wait_idle()


def _settings() -> Settings:
    """Room for every file at once, and no time to live: a slow model may need hours."""
    queueing = {"message_ttl": None, "channel_capacity": 10 * MAX_FILES}
    return merge(current_settings(), {"reef_config": queueing})


def _counts(ledger: LedgerSnapshot) -> dict[str, int]:
    states = {state: getattr(ledger, state) for state in (*STATES, "pending")}
    return {"deliveries": ledger.deliveries, **{s: n for s, n in states.items() if n}}
