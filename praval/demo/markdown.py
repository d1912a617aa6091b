"""The report as Markdown. File names and contents are foreign text: all of it is escaped."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from praval.demo.report import MARK, NOT_READ, FileEntry, Finding, Report, count, origin, who_wrote
from praval.demo.sources import printable

_SPECIAL = re.compile(r"([\\`*\[\]<>&#|~!$]|(?<![^\W_])_|_(?![^\W_]))")


def to_markdown(report: Report) -> str:
    """Return the whole report."""
    return "\n".join(_lines(report)) + "\n"


def plain(text: str) -> str:
    """Return ``text`` so that Markdown shows it as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", printable(" ".join(text.split())))


def code(text: str) -> str:
    """Return ``text`` as a code span, whatever backticks it holds."""
    text = printable(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _lines(report: Report) -> Iterator[str]:
    yield f"<!-- {MARK} -->"
    yield f"# {plain(report.title)}: what its files are for, and how they depend on each other"
    yield ""
    yield (
        f"{count(report.read, 'file')} read in {report.seconds:.0f} s; "
        f"{count(len(report.verified), 'dependency', 'dependencies')} verified against the "
        f"source, {count(len(report.refuted), 'proposal')} refuted. {plain(who_wrote(report))}"
    )
    if report.partial:
        yield ""
        yield (
            f"**Partial report:** the run was stopped. {count(len(report.unread), 'file')} not "
            f"read, {count(len(report.unchecked), 'file')} read but not checked."
        )
    yield from _section("Files", (_file(file) for file in report.files))
    yield from _section("Dependencies", _dependencies(report.verified), empty="None was found.")
    if report.circles:
        yield from _section("Circles", _circles(report))
    yield from _section("Refuted", _refuted(report.refuted), empty="No proposal was refuted.")
    skipped = (f"- {code(entry.name)}: {plain(entry.reason)}" for entry in report.skipped)
    yield from _section("Skipped", skipped, empty="Nothing was skipped.")
    if report.unread or report.unchecked:
        rest = [f"- {code(name)}: not read" for name in report.unread]
        rest += [f"- {code(name)}: dependencies not checked" for name in report.unchecked]
        yield from _section("Not done", rest)
    yield from _section("Ledger", _ledger(report))


def _section(title: str, lines: Iterable[str], empty: str = "") -> Iterator[str]:
    yield from ("", f"## {title}", "")
    some = False
    for line in lines:
        some = True
        yield line
    if not some and empty:
        yield empty


def _file(file: FileEntry) -> str:
    sentence = plain(file.summary.sentence) if file.summary else ""
    note = f", {plain(file.note)}" if file.note else ""
    about = f" ({count(file.lines, 'line')}{note})" if file.note != NOT_READ else ""
    return f"- {code(file.name)}{about}: {sentence} *[{plain(origin(file))}]*"


def _dependencies(findings: Iterable[Finding]) -> Iterator[str]:
    grouped: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        grouped[finding.source].append(finding)
    for source, group in grouped.items():
        yield f"- {code(source)} depends on"
        for finding in group:
            yield f"  - {code(finding.target)} ({_where(finding)}{code(finding.reason)})"


def _circles(report: Report) -> Iterator[str]:
    for group in report.circles:
        yield f"- {', '.join(code(name) for name in group)}"
    yield ""
    yield "They are closed by:"
    yield ""
    for edge in report.closing:
        yield f"- {code(edge.source)} → {code(edge.target)} ({_where(edge)}{code(edge.reason)})"


def _refuted(findings: Iterable[Finding]) -> Iterator[str]:
    for finding in findings:
        yield (
            f"- {code(finding.source)} → {code(finding.target)}: proposed for "
            f"{code(finding.why)}; {_where(finding)}{plain(finding.reason)}"
        )


def _where(finding: Finding) -> str:
    return f"line {finding.line}: " if finding.line else ""


def _ledger(report: Report) -> Iterator[str]:
    yield "| deliveries | spores |"
    yield "|---|---:|"
    for state, number in report.ledger.items():
        yield f"| {plain(state)} | {number:,} |"
    yield ""
    yield "Balanced: every delivery is accounted for." if report.balanced else "Not balanced."
