"""The two reports: complete, escaped, and, for HTML, in need of nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from praval.demo.editor import Circumstances, Editor, check_out, write_report
from praval.demo.markdown import code, plain, to_markdown
from praval.demo.page import to_html
from praval.demo.reading import Facts
from praval.demo.report import FileEntry, Finding, Report
from praval.demo.sources import Catalogue, Skipped, Source, printable
from praval.demo.summaries import Summary
from praval.errors import ConfigurationError

REPORT = Report(
    title="lib",
    root="/src/lib",
    partial=False,
    files=[
        FileEntry("a.py", "python", 10, "", Summary("It does one thing.", "model")),
        FileEntry("b.py", "python", 1, "iso-8859-1", Summary("Defines b.", "extracted")),
        FileEntry("sub/c.md", "markdown", 3, "",
                  Summary("A text.", "extracted", "the model failed: x")),
    ],
    verified=[
        Finding("a.py", "b.py", "line 1: import b", 1, "import b"),
        Finding("b.py", "a.py", "line 2: import a", 2, "import a"),
        Finding("sub/c.md", "a.py", "a link to a.py", 3, "links to ../a.py"),
    ],
    refuted=[Finding("a.py", "sub/c.md", "the file name c.md", 4, "named, not imported")],
    skipped=[Skipped(".git/", "hidden")],
    unread=[],
    unchecked=[],
    model="local",
    no_model="",
    seconds=12.4,
    ledger={"deliveries": 30, "handled": 29, "pending": 1},
)  # fmt: skip

HOSTILE = [
    "<script>alert(1)</script>.py",
    '"><img src=x onerror=alert(1)>.md',
    "'; DROP TABLE--.txt",
    "a`b``c.txt",
    "![x](http://evil.example/x.png)",
    "[x](javascript:alert(1))",
    "|pipe|\n# heading\n- item",
    "</title></style></svg>",
    "]]><!--",
    "\x1b[31mred\x00\u202egnp.exe",
    "\ud800 lone",
    "&amp; &lt; &#x41; &nosuch;",
    "*bold* _em_ ~~gone~~ $x$ <br> \\",
    "  padded  ",
]
foreign = st.sampled_from(HOSTILE) | st.text(st.characters(codec=None), min_size=1, max_size=40)


def elements(page: str) -> Iterator[ElementTree.Element]:
    """Parse the page as XML: whatever is not well-formed raises."""
    return ElementTree.fromstring(page).iter()


def local(element: ElementTree.Element) -> str:
    """The tag without its namespace."""
    return element.tag.rpartition("}")[2]


def with_foreign_text(names: list[str], sentence: str) -> Report:
    """A report in which every foreign string is one of those given."""
    names = list(dict.fromkeys(names))
    first, last = names[0], names[-1]
    edges = [Finding(first, last, sentence, 1, sentence)] if first != last else []
    return msgspec.structs.replace(
        REPORT,
        title=first,
        root=last,
        partial=True,
        files=[
            FileEntry(n, "text", 1, sentence, Summary(sentence, "extracted", sentence))
            for n in names
        ],
        verified=edges,
        refuted=edges,
        skipped=[Skipped(first, sentence)],
        unread=[last],
        unchecked=[first],
        model=sentence,
        no_model="",
    )


def test_the_page_holds_everything() -> None:
    """Each file, edge, reason, skipped entry and count is on the page and in the Markdown."""
    for text in (to_html(REPORT), to_markdown(REPORT)):
        for part in (
            "It does one thing.", "Defines b.", "sub/c.md", "import b", "iso-8859-1", "hidden",
            "named, not imported", "the model failed: x", "extracted", "model", ".git/", "29",
            "Balanced",
        ):  # fmt: skip
            assert part in text, part
        assert "Partial" not in text


def test_a_circle_is_shown_with_what_closes_it() -> None:
    """Files that depend on each other are listed, and the edge that leads back."""
    assert REPORT.circles == [["a.py", "b.py"]]
    assert len(REPORT.closing) == 1
    assert "Circles" in to_html(REPORT)
    assert "They are closed by" in to_markdown(REPORT)


def test_a_partial_report_says_so_and_what_is_missing() -> None:
    """Both forms are marked, and name what was not done."""
    report = msgspec.structs.replace(REPORT, partial=True, unread=["d.py"], unchecked=["b.py"])
    for text in (to_html(report), to_markdown(report)):
        assert "Partial report" in text
        assert "1 file not read" in text.replace("\n", " ")
        assert "d.py" in text


def test_a_partial_report_draws_what_was_not_read_but_is_depended_on() -> None:
    """A verified edge may lead to a file that the run did not get to."""
    editor = Editor()
    sources = [Source(name, "python", 1) for name in ("a.py", "b.py", "c.py")]
    catalogue = Catalogue("lib", "/lib", sources, [], [])
    facts = Facts("a.py", "python", 1, "", [], [], [], [])
    edge = Finding("a.py", "b.py", "line 1: import b", 1, "import b")
    editor.take("catalogue", {"catalogue": msgspec.to_builtins(catalogue)})
    editor.take("facts", {"facts": msgspec.to_builtins(facts)})
    editor.take("verdicts", msgspec.to_builtins({"source": "a.py", "verified": [edge],
                                                 "refuted": []}))  # fmt: skip
    report = editor.report(Circumstances(True, 1.0, "", {}))
    assert [(file.name, file.note) for file in report.files] == [("a.py", ""), ("b.py", "not read")]
    assert report.read == 1
    assert list(report.unread) == ["b.py", "c.py"]
    assert "1 file read" in to_markdown(report)
    assert {"a.py", "b.py"} <= set(ElementTree.fromstring(to_html(report)).itertext())


def test_the_ledger_balances_or_the_report_says_no() -> None:
    """Deliveries that are neither settled nor pending are not hidden."""
    assert REPORT.balanced
    lost = msgspec.structs.replace(REPORT, ledger={"deliveries": 30, "handled": 29})
    assert not lost.balanced
    assert "Not balanced" in to_html(lost)
    assert "Not balanced" in to_markdown(lost)


def test_the_graph_is_drawn_with_every_file_and_edge() -> None:
    """One box and label per file, one line per verified edge, none for refuted ones."""
    svg = next(e for e in elements(to_html(REPORT)) if local(e) == "svg")
    labels = {text for e in svg.iter() if local(e) == "text" for text in e.itertext()}
    assert {"a.py", "b.py", "c.md", "sub/"} <= labels
    assert sum("edge" in e.get("class", "") for e in svg.iter()) == len(REPORT.verified)


def test_the_page_needs_nothing_else() -> None:
    """No script, no address of anything outside; every reference leads into the page itself."""
    page = to_html(REPORT)
    found = list(elements(page))
    assert not {local(e) for e in found} & {"script", "link", "iframe", "img", "object", "base"}
    ids = {e.get("id") for e in found}
    for element in found:
        for name, value in element.attrib.items():
            assert not name.startswith("on")
            if name in {"href", "src"}:
                assert value.startswith("#")
                assert value[1:] in ids
    assert set(re.findall(r"url\(([^)]*)\)", page)) <= {"#tip", "#tip-circle"}
    assert "@import" not in page
    addresses = re.findall(r"https?://[^\s\"'<]+", page)
    assert set(addresses) == {"http://www.w3.org/2000/svg"}  # a name, which nothing fetches
    assert "default-src 'none'" in page


@settings(deadline=None, max_examples=40)
@given(st.lists(foreign, min_size=1, max_size=4), foreign)
def test_no_foreign_text_breaks_out_of_the_page(names: list[str], sentence: str) -> None:
    """Hostile names and sentences stay text: the same elements as for harmless ones."""
    hostile = to_html(with_foreign_text(names, sentence))
    distinct = len(dict.fromkeys(names))
    harmless = to_html(with_foreign_text([f"n{i}" for i in range(distinct)], "word"))
    outline = [local(e) for e in elements(hostile) if local(e) not in {"br", "text"}]
    assert sorted(outline) == sorted(
        local(e) for e in elements(harmless) if local(e) not in {"br", "text"}
    )
    hostile.encode()


@settings(deadline=None)
@given(st.lists(foreign, min_size=1, max_size=4), foreign)
def test_no_foreign_text_breaks_out_of_the_markdown(names: list[str], sentence: str) -> None:
    """Hostile text makes no link, image, HTML, heading or list item of its own."""
    tokens = MarkdownIt("commonmark").parse(to_markdown(with_foreign_text(names, sentence)))
    inline = [child.type for token in tokens for child in token.children or []]
    assert not {"link_open", "image", "html_inline"} & set(inline)
    blocks = [token for token in tokens if token.type in {"html_block", "heading_open", "fence"}]
    expected = to_markdown(with_foreign_text([f"n{i}" for i in range(len(set(names)))], "word"))
    assert [(t.type, t.tag) for t in blocks] == [
        (t.type, t.tag)
        for t in MarkdownIt("commonmark").parse(expected)
        if t.type in {"html_block", "heading_open", "fence"}
    ]


@given(foreign)
def test_code_spans_hold_any_text(text: str) -> None:
    """Whatever backticks and blanks it has, the span shows exactly the text."""
    (token,) = (t for t in MarkdownIt("commonmark").parse(f"x {code(text)} y") if t.children)
    spans = [child.content for child in token.children or [] if child.type == "code_inline"]
    assert spans == [printable(text)] or not printable(text).strip()


@given(foreign)
def test_plain_text_shows_as_it_is(text: str) -> None:
    """Markdown renders escaped text back to the text, on one line."""
    (token,) = (t for t in MarkdownIt("commonmark").parse(f"x {plain(text)} y") if t.children)
    shown = "".join(child.content for child in token.children or [])
    assert shown.split() == f"x {printable(' '.join(text.split()))} y".split()


def test_both_files_are_written_and_replaced(tmp_path: Path) -> None:
    """A second run replaces the reports of the first, and leaves nothing else behind."""
    out = tmp_path / "out"
    for _ in range(2):
        check_out(out)
        written = write_report(REPORT, out)
        assert written == {
            "files": 3, "verified": 3, "refuted": 1, "by_model": 1, "partial": False,
        }  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.md"]


def test_a_foreign_report_is_never_overwritten(tmp_path: Path) -> None:
    """Somebody's own report.md stays as it is."""
    (tmp_path / "report.md").write_text("# My quarterly report\n")
    with pytest.raises(ConfigurationError, match="was not written by praval demo"):
        check_out(tmp_path)
    assert (tmp_path / "report.md").read_text() == "# My quarterly report\n"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A file in the place of the folder, or below a file, is said before the work begins."""
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(ConfigurationError, match=r"Cannot write into .* --out"):
            check_out(out)


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    """``--out`` may name a folder that does not exist yet."""
    check_out(tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep").is_dir()
