"""The editor's craft: collecting what the others say, and writing it down, finished or not."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from praval.demo.markdown import to_markdown
from praval.demo.page import to_html
from praval.demo.reading import Facts
from praval.demo.report import MARK, NOT_READ, FileEntry, Finding, Report
from praval.demo.sources import Catalogue, Skipped, Source
from praval.demo.summaries import Summary
from praval.errors import ConfigurationError

MARKDOWN_NAME = "report.md"
HTML_NAME = "report.html"


class Circumstances(msgspec.Struct, frozen=True):
    """What the editor cannot know by itself when the report is handed in."""

    stopped: bool
    seconds: float
    model: str
    ledger: dict[str, int]


class Editor:
    """Owns everything that was found out so far."""

    def __init__(self) -> None:
        self._catalogue = Catalogue("nothing", "", [], [], [])
        self._facts: dict[str, Facts] = {}
        self._summaries: dict[str, Summary] = {}
        self._verified: dict[str, list[Finding]] = {}
        self._refuted: dict[str, list[Finding]] = {}
        self._unreadable: dict[str, str] = {}
        self._no_model = ""

    def take(self, kind: str | None, knowledge: dict[str, Any]) -> None:
        """Note down the knowledge of a spore of type ``kind``."""
        if kind == "catalogue":
            self._catalogue = msgspec.convert(knowledge["catalogue"], Catalogue)
        elif kind == "facts":
            facts = msgspec.convert(knowledge["facts"], Facts)
            self._facts[facts.name] = facts
        elif kind == "summary":
            self._summaries[knowledge["name"]] = msgspec.convert(knowledge["summary"], Summary)
        elif kind == "verdicts":
            name = knowledge["source"]
            self._verified[name] = msgspec.convert(knowledge["verified"], list[Finding])
            self._refuted[name] = msgspec.convert(knowledge["refuted"], list[Finding])
        elif kind == "unreadable":
            self._unreadable[knowledge["name"]] = knowledge["why"]
        elif kind == "no_model":
            self._no_model = knowledge["why"]

    def report(self, circumstances: Circumstances) -> Report:
        """Put everything together, in the order of names; what is missing makes it partial."""
        names = [source.name for source in self._catalogue.sources]
        read = [name for name in names if name in self._facts]
        unread = [n for n in names if n not in self._facts and n not in self._unreadable]
        unchecked = [name for name in read if name not in self._verified]
        silent = [name for name in read if name not in self._summaries]
        unreadable = [Skipped(name, f"cannot be read: {why}") for name, why in
                      self._unreadable.items()]  # fmt: skip
        verified = [finding for name in read for finding in self._verified.get(name, ())]
        needed = {finding.target for finding in verified} - {*read}
        return Report(
            title=self._catalogue.title,
            root=self._catalogue.root,
            partial=circumstances.stopped or bool(unread or unchecked or silent),
            files=[self._entry(s) for s in self._catalogue.sources if s.name in {*read, *needed}],
            verified=verified,
            refuted=[finding for name in read for finding in self._refuted.get(name, ())],
            skipped=sorted([*self._catalogue.skipped, *unreadable], key=lambda s: s.name),
            unread=unread,
            unchecked=unchecked,
            model=circumstances.model,
            no_model=self._no_model,
            seconds=circumstances.seconds,
            ledger=circumstances.ledger,
        )

    def _entry(self, source: Source) -> FileEntry:
        facts = self._facts.get(source.name)
        if facts is None:
            return FileEntry(source.name, source.kind, 0, NOT_READ, None)
        summary = self._summaries.get(source.name)
        return FileEntry(source.name, source.kind, facts.lines, facts.note, summary)


def check_out(folder: Path) -> None:
    """Make the folder for the report, and see that both files can be written into it.

    Raises:
        ConfigurationError: they cannot, or a file there is not one of ours.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigurationError(
            f"Cannot write into {folder}: {reason}. Choose another folder with --out."
        ) from None
    for name in (MARKDOWN_NAME, HTML_NAME):
        if not _is_ours(folder / name):
            raise ConfigurationError(
                f"{folder / name} was not written by praval demo, and is not overwritten. "
                "Choose another folder with --out, or move the file."
            )


def write_report(report: Report, folder: Path) -> dict[str, Any]:
    """Write both files, each all at once, and return what was written.

    Raises:
        OSError: a file cannot be written.
    """
    for name, content in (
        (MARKDOWN_NAME, to_markdown(report)),
        (HTML_NAME, to_html(report)),
    ):
        partial = folder / f".{name}.{os.getpid()}"
        try:
            partial.write_text(content, encoding="utf-8", newline="\n")
            partial.replace(folder / name)
        finally:
            partial.unlink(missing_ok=True)
    return {
        "files": report.read,
        "verified": len(report.verified),
        "refuted": len(report.refuted),
        "by_model": report.by_model,
        "partial": report.partial,
    }


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return MARK.encode() in file.read(200)
    except FileNotFoundError:
        return True
    except OSError:
        return False
