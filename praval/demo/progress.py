"""What the user sees while the team works: a narrator that hears every spore, and a screen.

On a terminal the screen is redrawn in place; elsewhere it is one plain line per event.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from praval import AgentDefinition, Spore, agent
from praval.demo.report import count
from praval.demo.sources import printable

HEARD = ["catalogue", "file", "facts", "summary", "proposals", "verdicts", "unreadable", "no_model"]


class Tidings:
    """What the narrator knows: who is at what, in numbers and names."""

    def __init__(self) -> None:
        self.title = ""
        self.total = 0
        self.skipped = 0
        self.done = 0
        self.in_hand: list[str] = []
        self.proposed = 0
        self.verified = 0
        self.refuted = 0

    def take(self, kind: str | None, knowledge: dict[str, Any]) -> tuple[str, str] | None:
        """Note a spore; return (agent, what it did) when that is worth a line of its own."""
        if kind == "catalogue":
            found = knowledge["catalogue"]
            self.total, self.skipped = len(found["sources"]), len(found["skipped"])
            return "librarian", self.librarian
        if kind == "facts":
            self.in_hand.append(knowledge["facts"]["name"])
        elif kind == "summary":
            summary = knowledge["summary"]
            mark = "model" if summary["origin"] == "model" else summary["note"] or "extracted"
            return "reader", f"{self._finished(knowledge['name'])}: {summary['sentence']} [{mark}]"
        elif kind == "unreadable":
            return "reader", f"{self._finished(knowledge['name'])}: unreadable, {knowledge['why']}"
        elif kind == "proposals":
            self.proposed += len(knowledge["proposals"])
        elif kind == "verdicts":
            self.verified += len(knowledge["verified"])
            self.refuted += len(knowledge["refuted"])
        elif kind == "no_model":
            return "reader", f"NO MODEL, summaries are extracted from here on: {knowledge['why']}"
        return None

    @property
    def librarian(self) -> str:
        """What the librarian did."""
        if not self.total:
            return "looking for files"
        return f"found {count(self.total, 'file')}, skipped {self.skipped:,}"

    @property
    def skeptic(self) -> str:
        """What the skeptic did."""
        return f"verified {self.verified:,}, refuted {self.refuted:,}"

    def _finished(self, name: str) -> str:
        self.done += 1
        if name in self.in_hand:
            self.in_hand.remove(name)
        width = len(str(self.total))
        return f"{self.done:{width}}/{self.total} {printable(name)}"


class Screen(Protocol):
    """Where the narrator shows things."""

    def show(self, tidings: Tidings, line: tuple[str, str] | None) -> None:
        """Show the state of things, and a line if something notable happened."""


def say(line: str, stream: TextIO) -> None:
    """Print a line; when nobody reads any more (``praval demo | head``), print into the void."""
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class PlainScreen:
    """One line per event, for pipes and logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, tidings: Tidings, line: tuple[str, str] | None) -> None:
        """Print the line, if there is one."""
        if line:
            say(f"{line[0]:<10} {line[1]}", self._stream)


class LiveScreen:
    """A bar and a line per agent, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("files", total=None)
        self._tidings = Tidings()
        self._last = ""
        self.live = Live(
            console=console, get_renderable=self._draw, refresh_per_second=8, transient=True
        )

    def show(self, tidings: Tidings, line: tuple[str, str] | None) -> None:
        """Update what is drawn; notices about the model are printed above it."""
        self._tidings = tidings
        self._bar.update(self._task, completed=tidings.done, total=tidings.total or None)
        if line and line[1].startswith("NO MODEL"):
            self.live.console.print(Text(line[1], style="yellow"))
        elif line and line[0] == "reader":
            self._last = line[1]

    def _draw(self) -> Group:
        now = self._tidings
        rows = Table.grid(padding=(0, 2), expand=True)
        rows.add_column(style="bold cyan", no_wrap=True)
        rows.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        reading = ", ".join(printable(name) for name in now.in_hand) or "waiting"
        rows.add_row("librarian", Text(now.librarian))
        rows.add_row("readers", Text(reading))
        rows.add_row(
            "linker", Text(f"proposed {count(now.proposed, 'dependency', 'dependencies')}")
        )
        rows.add_row("skeptic", Text(now.skeptic))
        rows.add_row("editor", Text("collecting" if now.done < now.total else "writing"))
        return Group(
            rows, Text(self._last, style="dim", no_wrap=True, overflow="ellipsis"), self._bar
        )


@contextmanager
def screen() -> Iterator[Screen]:
    """Show things on the terminal, or line by line when standard output is none."""
    console = Console()
    if not console.is_terminal:
        yield PlainScreen(sys.stdout)
        return
    drawn = LiveScreen(console)
    with drawn.live:
        yield drawn


def make_narrator(shown_on: Screen) -> AgentDefinition:
    """Return the agent that tells the user what the others say."""
    tidings = Tidings()

    @agent("narrator", responds_to=HEARD)
    async def narrator(spore: Spore) -> None:
        """Show what was just said."""
        shown_on.show(tidings, tidings.take(spore.type, spore.knowledge))

    return narrator
