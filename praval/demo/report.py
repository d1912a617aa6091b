"""What a run found out, complete or not; :mod:`.markdown` and :mod:`.page` write it down."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from praval.demo.graph import Edge, cycles, upward
from praval.demo.sources import Kind, Skipped
from praval.demo.summaries import Summary

MARK = "Written by praval demo"
"""Stands at the top of each report; a file without it is never overwritten."""


NOT_READ = "not read"
"""The note of a file that is listed because others depend on it."""


class FileEntry(msgspec.Struct, frozen=True):
    """One file that was read, or that a read one depends on.

    ``summary`` is None when the run ended before it had one.
    """

    name: str
    kind: Kind
    lines: int
    note: str
    summary: Summary | None


class Finding(msgspec.Struct, frozen=True):
    """An edge that was checked: why it was proposed, and what the source says (``line`` or 0)."""

    source: str
    target: str
    why: str
    line: int
    reason: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the editor knows, in the order of names."""

    title: str
    root: str
    partial: bool
    files: Sequence[FileEntry]
    verified: Sequence[Finding]
    refuted: Sequence[Finding]
    skipped: Sequence[Skipped]
    unread: Sequence[str]
    """Files that a stopped run did not get to."""
    unchecked: Sequence[str]
    """Files that were read, but whose dependencies were not checked before the end."""
    model: str
    """Which model was asked, e.g. ``local``; "" when none was."""
    no_model: str
    """Why there was no model; "" when there was one, or none was wanted."""
    seconds: float
    ledger: dict[str, int]
    """Deliveries by what became of them, up to the writing of the report."""

    @property
    def edges(self) -> list[Edge]:
        """The verified dependencies as (source, target)."""
        return [(finding.source, finding.target) for finding in self.verified]

    @property
    def read(self) -> int:
        """How many files were read."""
        return sum(file.note != NOT_READ for file in self.files)

    @property
    def circles(self) -> list[list[str]]:
        """Groups of files that depend on each other in a circle."""
        return cycles([file.name for file in self.files], self.edges)

    @property
    def closing(self) -> list[Finding]:
        """The dependencies without which there would be no circle."""
        against = upward([file.name for file in self.files], self.edges)
        return [finding for finding in self.verified if (finding.source, finding.target) in against]

    @property
    def by_model(self) -> int:
        """How many summaries are the model's."""
        return sum(
            file.summary is not None and file.summary.origin == "model" for file in self.files
        )

    @property
    def balanced(self) -> bool:
        """Whether each delivery so far ended in one counted state, or is counted as pending."""
        states = sum(number for state, number in self.ledger.items() if state != "deliveries")
        return states == self.ledger.get("deliveries", 0)


def who_wrote(report: Report) -> str:
    """Say in one sentence where the summaries come from."""
    written = sum(file.summary is not None for file in report.files)
    if not report.by_model:
        why = "No model was available" if report.no_model else "No model spoke"
        return f"{why}: every summary is a sentence taken from the file."
    if report.by_model == written:
        return f"All summaries are the words of the model ({report.model})."
    return (
        f"{report.by_model} of {written} summaries are the words of the model ({report.model}), "
        "the others are taken from the files."
    )


def origin(file: FileEntry) -> str:
    """Mark a summary: whose words it is, or why there is none."""
    summary = file.summary
    if summary is None:
        return NOT_READ if file.note == NOT_READ else "not summarised"
    if summary.origin == "model":
        return "model"
    return f"extracted: {summary.note}" if summary.note else "extracted"


def count(number: int, noun: str, plural: str = "") -> str:
    """Return e.g. ``1 file``, ``1,024 files``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
