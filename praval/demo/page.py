"""The report as one HTML file that needs nothing else: no script, no outside resource.

It is also well-formed XML, which is how the suite knows that no file name or sentence broke
out of its place. A content security policy in the page forbids what it does not need.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from praval.demo.drawing import Node, draw
from praval.demo.report import MARK, NOT_READ, FileEntry, Finding, Report, count, origin, who_wrote
from praval.demo.sources import printable

POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def to_html(report: Report) -> str:
    """Return the whole page."""
    ids = {file.name: f"f{n}" for n, file in enumerate(report.files)}
    style = (files("praval.demo") / "style.css").read_text("utf-8")
    title = f"{text(report.title)}: what its files are for"
    body = [
        f"<h1>{title}, and how they depend on each other</h1>",
        f'<p class="lead">Read from <code>{text(report.root)}</code>. '
        f"{text(who_wrote(report))}</p>",
        _partial(report),
        _cards(report),
        _figure(report, ids),
        _files(report, ids),
        _circles(report),
        _refuted(report.refuted),
        _list("Skipped", [(entry.name, entry.reason) for entry in report.skipped]),
        _list("Not read", [(name, "the run was stopped") for name in report.unread]),
        _list("Not checked", [(name, "the run was stopped") for name in report.unchecked]),
        _ledger(report),
    ]
    return (
        f'<!DOCTYPE html>\n<!-- {MARK} -->\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body>\n</html>\n"
    )


def text(foreign: str) -> str:
    """Return foreign text so that HTML shows it as it is."""
    return escape(printable(foreign))


def _partial(report: Report) -> str:
    if not report.partial:
        return ""
    return (
        '<p class="warning"><strong>Partial report.</strong> The run was stopped: '
        f"{count(len(report.unread), 'file')} not read, "
        f"{count(len(report.unchecked), 'file')} read but not checked.</p>"
    )


def _cards(report: Report) -> str:
    cards = [
        (report.read, "files read"),
        (len(report.verified), "dependencies verified"),
        (len(report.refuted), "proposals refuted"),
        (report.by_model, "summaries by the model"),
        (f"{report.seconds:.0f} s", "from start to report"),
    ]
    boxes = (
        f'<div class="card"><b>{number}</b><span>{name}</span></div>' for number, name in cards
    )
    return f'<div class="cards">{"".join(boxes)}</div>'


def _figure(report: Report, ids: dict[str, str]) -> str:
    nodes = [
        Node(ids[file.name], file.name, file.kind, file.summary.sentence if file.summary else "")
        for file in report.files
    ]
    keys = [
        ("strong", "depends on"),
        ("faint", "also depends on, by a shorter way than the one drawn"),
        ("circle", "closes a circle"),
        ("out", "what the box you point at depends on"),
        ("in", "what depends on it"),
    ]
    caption = "".join(f'<span class="key {look}"></span>{meaning}' for look, meaning in keys)
    return (
        f'<h2>The graph</h2>\n<figure><div class="frame">\n{draw(nodes, report.edges)}\n</div>'
        f"<figcaption>A file stands above what it depends on; the darker, the more files depend "
        f"on it.<br/>{caption}</figcaption></figure>"
    )


def _files(report: Report, ids: dict[str, str]) -> str:
    below: dict[str, list[Finding]] = defaultdict(list)
    for finding in report.verified:
        below[finding.source].append(finding)
    above = Counter(finding.target for finding in report.verified)
    rows = (_row(file, ids, below[file.name], above[file.name]) for file in report.files)
    return (
        "<h2>The files</h2>\n<table>\n<thead><tr><th>file</th><th>what it is for</th>"
        "<th>depends on</th><th>needed by</th></tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody>\n</table>"
    )


def _row(file: FileEntry, ids: dict[str, str], below: Sequence[Finding], above: int) -> str:
    look = "model" if file.summary and file.summary.origin == "model" else "extracted"
    about = [count(file.lines, "line")] if file.note != NOT_READ else []
    about += [text(file.note)] if file.note else []
    uses = ", ".join(
        f'<a class="file" href="#{ids[edge.target]}" title="{text(_evidence(edge))}">'
        f"{text(edge.target)}</a>"
        for edge in below
    )
    sentence = text(file.summary.sentence) if file.summary else ""
    return (
        f'<tr id="row-{ids[file.name]}"><td><span class="file">{text(file.name)}</span><br/>'
        f'<span class="soft">{"<br/>".join(about)}</span></td>'
        f'<td>{sentence} <span class="tag {look}">{text(origin(file))}</span></td>'
        f'<td>{uses}</td><td class="number">{above}</td></tr>'
    )


def _evidence(finding: Finding) -> str:
    return f"line {finding.line}: {finding.reason}" if finding.line else finding.reason


def _circles(report: Report) -> str:
    if not report.circles:
        return ""
    groups = "".join(
        f"<li>{', '.join(f'<code>{text(name)}</code>' for name in group)}</li>"
        for group in report.circles
    )
    closing = "".join(f"<li>{_edge(edge)}: {text(_evidence(edge))}</li>" for edge in report.closing)
    return (
        f"<h2>Circles</h2>\n<p>These files depend on each other:</p><ul>{groups}</ul>"
        f"<p>The circles are closed by:</p><ul>{closing}</ul>"
    )


def _refuted(findings: Sequence[Finding]) -> str:
    grouped: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        grouped[finding.source].append(finding)
    blocks = (
        f"<details><summary><code>{text(source)}</code> "
        f'<span class="soft">{count(len(group), "proposal")}</span></summary><ul>'
        + "".join(
            f"<li>{_edge(edge)}: proposed for <code>{text(edge.why)}</code>; "
            f"{text(_evidence(edge))}</li>"
            for edge in group
        )
        + "</ul></details>"
        for source, group in grouped.items()
    )
    lead = (
        "<p>The linker proposes whatever the text allows; these the skeptic did not find in the "
        "source.</p>"
        if findings
        else '<p class="soft">No proposal was refuted.</p>'
    )
    return f"<h2>Refuted</h2>\n{lead}\n" + "\n".join(blocks)


def _edge(finding: Finding) -> str:
    return f"<code>{text(finding.source)}</code> → <code>{text(finding.target)}</code>"


def _list(title: str, entries: Iterable[tuple[str, str]]) -> str:
    items = "".join(f"<li><code>{text(name)}</code>: {text(why)}</li>" for name, why in entries)
    return f"<h2>{title}</h2>\n<ul>{items}</ul>" if items else ""


def _ledger(report: Report) -> str:
    rows = "".join(
        f'<tr><td>{text(state)}</td><td class="number">{number:,}</td></tr>'
        for state, number in report.ledger.items()
    )
    verdict = (
        '<p class="good">Balanced: every delivery is accounted for.</p>'
        if report.balanced
        else '<p class="bad">Not balanced.</p>'
    )
    return (
        "<h2>The ledger</h2>\n<p>The agents that wrote this spoke only through spores. What "
        "became of each delivery, up to the writing of this page:</p>\n"
        f'<table style="width:auto"><tbody>{rows}</tbody></table>\n{verdict}'
    )
