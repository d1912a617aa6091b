"""What is shown: who handled what, live on a terminal, line by line elsewhere."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from praval.demo.sources import printable


class Board:
    """Hears what the team says about one job, and shows it."""

    def __init__(self, job: str, labels: Mapping[str, tuple[str, str]]) -> None:
        """Show a job.

        Args:
            job: its id; what is said of others is not ours.
            labels: where a process runs -> what it is called here, and its agent.
        """
        self._job = job
        self._labels = labels
        self._handled: Counter[str] = Counter()
        self._last: dict[str, str] = {}
        self.files: list[str] = []
        """The files of the job, once the reader has told them."""
        self.summaries: Counter[str] = Counter()
        """How often each file was summarised."""
        self.reported = asyncio.Event()
        self.complete = asyncio.Event()
        """The report has come, and so has everything that it is made of."""
        self.console = Console(markup=False, highlight=False)
        self.live = Live(
            console=self.console,
            get_renderable=self._draw,
            refresh_per_second=8,
            auto_refresh=self.console.is_terminal,
        )

    def hear(self, said: Mapping[str, Any]) -> None:
        """Take what somebody said."""
        if said["job"] != self._job:
            return
        by, line = said["by"], printable(self._take(said))
        self._handled[by] += 1
        self._last[by] = line
        self.say(f"{' '.join(self._labels.get(by, (by,))):<18}  {line}")
        if self.reported.is_set() and self.summaries.keys() >= set(self.files):
            self.complete.set()

    def say(self, line: str) -> None:
        """Print a line, if there is no live table that shows it."""
        if not self.console.is_terminal:
            print(line, flush=True)

    def _take(self, said: Mapping[str, Any]) -> str:
        if said["type"] == "catalogue":
            self.files = said["files"]
            return f"found {len(self.files)} files"
        if said["type"] == "summary":
            self.summaries[said["name"]] += 1
            return f"{said['name']}: {said['sentence']}"
        self.reported.set()
        return f"reported {len(said['lines'])} files"

    @property
    def exactly_once(self) -> bool:
        """Whether each file of the job was summarised, and none twice."""
        return bool(self.files) and self.summaries == Counter(self.files)

    def _draw(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
        for column in ("host", "agent", "process"):
            table.add_column(column, no_wrap=True)
        table.add_column("handled", justify="right")
        table.add_column("last", ratio=1, no_wrap=True, overflow="ellipsis")
        for where in {**self._labels, **self._handled}:
            label, agent = self._labels.get(where, ("another", "?"))
            last = self._last.get(where, "waiting")
            table.add_row(label, agent, where, str(self._handled[where]), last)
        return table
