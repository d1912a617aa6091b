"""Dependencies of Markdown and text: links that lead somewhere, file names that stand there."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from demo_library import examine, refuted, verified, write_files
from hypothesis import given, settings
from hypothesis import strategies as st

from praval.demo.evidence import Skeptic, markdown_targets
from praval.demo.sources import Catalogue, Source, find_sources

SIZE = 200_000
LINKS = {
    "inline": "See [b](b.md).",
    "with a fragment": "See [b](b.md#part).",
    "with a title": 'See [b](b.md "The B").',
    "in angle brackets": "See [b](<b.md>).",
    "by reference": "See [the other][1].\n\n[1]: b.md\n",
    "collapsed": "See [b][].\n\n[b]: ./b.md 'title'\n",
    "an image": "![b](b.md)",
    "nested": "[![x](https://example.org/x.png)](b.md)",
    "in HTML": 'See <a href="b.md">b</a>.',
    "an HTML block": '<p>\n<img src="b.md">\n</p>',
    "from the root": "[b](/b.md)",
    "around a corner": "[b](../here/b.md)",
    "percent-encoded": "[b](%62.md)",
    "escaped": "[b](b\\.md)",
    "with an entity": "[b](b&period;md)",
    "in a table": "| a |\n|---|\n| [b](b.md) |\n",
    "in a list": "- one\n  - [b](b.md)\n",
}
MENTIONS = {
    "a word": "The name b and the file b.md are here.",
    "in code": "`[b](b.md)`",
    "in a fence": "```\n[b](b.md)\n```",
    "indented": "text\n\n    [b](b.md)\n",
    "another host": "[b](https://example.org/b.md)",
    "another scheme": "[b](ftp:b.md)",
    "escaped brackets": "\\[b\\](b.md)",
    "another folder": "[b](sub/b.md)",
    "too far up": "[b](../b.md)",
    "in a comment": "<!-- [b](b.md) -->",
    "a reference without a definition": "[b][1] b.md",
    "only the fragment": "[b](#b.md)",
}


@pytest.mark.parametrize("text", LINKS.values(), ids=LINKS.keys())
def test_a_markdown_link_is_a_dependency(tmp_path: Path, text: str) -> None:
    """In each of Markdown's spellings, the link is proposed and verified."""
    root = write_files(tmp_path / "here", {"a.md": text, "b.md": "# B\n"})
    assert verified(examine(root)[1]) == {("a.md", "b.md")}


@pytest.mark.parametrize("text", MENTIONS.values(), ids=MENTIONS.keys())
def test_a_mention_in_markdown_is_proposed_but_refuted(tmp_path: Path, text: str) -> None:
    """What is no link, or leads elsewhere, is listed with the reason."""
    root = write_files(tmp_path / "here", {"a.md": text, "b.md": "# B\n"})
    assert refuted(examine(root)[1]) == {("a.md", "b.md"): "named, but no link leads to this file"}


def test_markdown_links_resolve_from_their_own_folder(tmp_path: Path) -> None:
    """Relative targets start where the document is; the evidence names the line."""
    write_files(
        tmp_path,
        {
            "docs/a.md": "# A\n\ntext\n[up](../README.md) and\n[code](../src/x.py) and [b](b.md)",
            "docs/b.md": "",
            "b.md": "",
            "README.md": "",
            "src/x.py": "",
        },
    )
    verdicts = examine(tmp_path)[1]
    assert verified(verdicts) == {
        ("docs/a.md", "README.md"),
        ("docs/a.md", "src/x.py"),
        ("docs/a.md", "docs/b.md"),
    }
    lines = {v.target: v.line for v in verdicts["docs/a.md"] if v.verified}
    assert lines == {"README.md": 4, "src/x.py": 5, "docs/b.md": 5}


@pytest.mark.parametrize(
    ("text", "stands"),
    [
        ("see b.txt", True),
        ("see b.txt.", True),
        ("(b.txt), [b.txt]", True),
        ("see ./b.txt", True),
        ('"b.txt"', True),
        ("b.txt", True),
        ("see B.TXT", False),
        ("see ab.txt", False),
        ("see b.txt.bak", False),
        ("see b.txtx", False),
        ("see b-b.txt", False),
        ("see other/b.txt", False),
        ("see b.txt/x", False),
        ("the b of a", False),
    ],
)
def test_text_depends_on_a_file_whose_exact_name_stands_there(
    tmp_path: Path, text: str, stands: bool
) -> None:
    """The name must be a word of its own, in its own case, with no other path before it."""
    write_files(tmp_path, {"a.txt": f"first\n{text}\n", "b.txt": ""})
    verdicts = examine(tmp_path)[1]
    assert (("a.txt", "b.txt") in verified(verdicts)) is stands
    if stands:
        assert verdicts["a.txt"][0].line == 2


def test_a_name_that_may_mean_several_files_is_refuted(tmp_path: Path) -> None:
    """Without a path, a name means the neighbour; without a neighbour, it must be unique."""
    write_files(
        tmp_path,
        {
            "x/notes.txt": "see data.csv",
            "x/data.csv": "",
            "y/data.csv": "",
            "top.txt": "see data.csv",
            "exact.txt": "see y/data.csv",
            "y/own.txt": "see only.csv",
            "z/only.csv": "",
        },
    )
    verdicts = examine(tmp_path)[1]
    assert verified(verdicts) == {
        ("x/notes.txt", "x/data.csv"),
        ("exact.txt", "y/data.csv"),
        ("y/own.txt", "z/only.csv"),
    }
    assert refuted(verdicts)["top.txt", "x/data.csv"] == "data.csv may mean any of 2 files"


def test_a_file_name_with_spaces_is_a_name(tmp_path: Path) -> None:
    """Names are compared as wholes, not word by word."""
    write_files(tmp_path, {"a.txt": "see my notes.txt", "my notes.txt": "", "notes.txt": "x"})
    assert ("a.txt", "my notes.txt") in verified(examine(tmp_path)[1])


def test_python_depends_on_what_it_imports_only(tmp_path: Path) -> None:
    """A document named in a comment is no dependency of the code."""
    write_files(tmp_path, {"a.py": "# see notes.md\n", "notes.md": "[code](a.py)"})
    verdicts = examine(tmp_path)[1]
    assert verified(verdicts) == {("notes.md", "a.py")}
    assert refuted(verdicts) == {("a.py", "notes.md"): "named, not imported"}


def test_a_source_that_is_gone_confirms_nothing(tmp_path: Path) -> None:
    """The skeptic reads for itself; a file that vanished since refutes all."""
    write_files(tmp_path, {"a.py": "import b", "b.py": ""})
    skeptic = Skeptic(find_sources(tmp_path))
    (tmp_path / "a.py").unlink()
    (verdict,) = skeptic.check("a.py", ["b.py"])
    assert not verdict.verified
    assert "cannot be read any more: No such file" in verdict.reason


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20),
        unique=True, max_size=4,
    ),
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=200),
)  # fmt: skip
def test_the_linker_proposes_every_name_that_stands_in_a_text(names: list[str], text: str) -> None:
    """Whatever a file is called, its exact name as a word is enough to be proposed."""
    files = {f"{name}.txt": "" for name in names if name.isprintable()}
    content = text + "\n" + "\n".join(f"({name})" for name in files)
    with TemporaryDirectory() as folder:
        root = write_files(Path(folder), {**files, "a.b.c": "x" + content})
        proposals, verdicts = examine(root)
        hidden = {name for name in files if name.startswith(".")}
        mentioned = {v.target for v in verdicts["a.b.c"] if v.verified}
        assert mentioned == files.keys() - hidden
        assert mentioned <= {p.target for p in proposals["a.b.c"]}


@pytest.mark.parametrize(
    "text", ["[" * 2000, "](" * 2000, "<a " * 2000, "```\n" * 2000, "![a](" * 500, "<!--" * 2000]
)
def test_hostile_markdown_is_read_in_reasonable_time(text: str) -> None:
    """The parser that finds links does not choke on repetitions (the suite's time-out is short)."""
    assert list(markdown_targets(text * 10)) == []


def test_hostile_python_is_read_in_linear_time(tmp_path: Path) -> None:
    """A long file of half statements is read before the suite's time-out, with all its names."""
    openings = ["from x import (", "a; import (", "from \\", "import a, \\", ";import b" * 50]
    files = {f"{n}.py": ((opening + "\n") * SIZE)[:SIZE] for n, opening in
             enumerate(openings)}  # fmt: skip
    write_files(tmp_path, {**files, "b.py": ""})
    proposals, _ = examine(tmp_path)
    assert [p.target for p in proposals["4.py"]] == ["b.py"]


def test_the_judgement_needs_only_bytes() -> None:
    """What the skeptic says of given bytes does not depend on the disk."""
    sources = [Source("a.md", "markdown", 1), Source("b.md", "markdown", 1)]
    skeptic = Skeptic(Catalogue("t", "/nowhere", sources, [], []))
    (verdict,) = skeptic.judge(sources[0], b"[b](b.md)", ["b.md"])
    assert (verdict.verified, verdict.line, verdict.reason) == (True, 1, "links to b.md")
