"""What the librarian finds, and what text a file holds."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from demo_library import write_files
from hypothesis import given
from hypothesis import strategies as st

from praval.demo import sources
from praval.demo.sources import asyncio_folder, decode, find_sources, printable, read_source
from praval.errors import ConfigurationError


def test_the_default_is_the_running_interpreters_asyncio() -> None:
    """The librarian finds the very package that this interpreter imports."""
    assert asyncio_folder() == Path(asyncio.__file__).parent


def test_kinds_and_names_of_what_is_found(tmp_path: Path) -> None:
    """Files are listed by path below the root, in order, with their kind."""
    write_files(
        tmp_path,
        {"b.py": "", "a/c.md": "x", "a/d.MARKDOWN": "", "LICENSE": "x", "z.pyi": "", "n.rst": ""},
    )
    found = find_sources(tmp_path)
    assert [(s.name, s.kind) for s in found.sources] == [
        ("LICENSE", "text"),
        ("a/c.md", "markdown"),
        ("a/d.MARKDOWN", "markdown"),
        ("b.py", "python"),
        ("n.rst", "text"),
        ("z.pyi", "python"),
    ]
    assert found.skipped == []


def test_what_is_not_read_is_listed_with_its_reason(tmp_path: Path) -> None:
    """Hidden, tool-made, binary, large and special entries are skipped, each with its reason."""
    write_files(
        tmp_path,
        {
            "kept.txt": "text",
            ".git/config": "x",
            ".env": "SECRET=1",
            "env/pyvenv.cfg": "home = /usr",
            "env/lib/a.py": "",
            "__pycache__/a.pyc": b"\0",
            "picture.png": b"\x89PNG\r\n\x1a\n\0\0\0",
            "noise.bin": bytes(range(1, 32)) * 50,
            "large.txt": "x" * (sources.MAX_BYTES + 1),
            "just.txt": "x" * sources.MAX_BYTES,
        },
    )
    (tmp_path / "link.txt").symlink_to("kept.txt")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "pipe")
    found = find_sources(tmp_path)
    assert [source.name for source in found.sources] == ["just.txt", "kept.txt"]
    assert {entry.name: entry.reason for entry in found.skipped} == {
        ".env": "hidden",
        ".git/": "hidden",
        "__pycache__/": "made by a tool",
        "env/": "a virtual environment",
        "large.txt": "larger than 1 MB",
        "link.txt": "a symbolic link",
        "loop": "a symbolic link",
        "noise.bin": "binary",
        "picture.png": "binary",
        "pipe": "not a regular file",
    }


def test_what_was_asked_for_by_name_is_read_though_hidden(tmp_path: Path) -> None:
    """A hidden folder or file is skipped inside a folder, not when it is the path itself."""
    write_files(tmp_path, {".notes/a.txt": "x", ".b.txt": "x"})
    assert [s.name for s in find_sources(tmp_path / ".notes").sources] == ["a.txt"]
    assert [s.name for s in find_sources(tmp_path / ".b.txt").sources] == [".b.txt"]


def test_reports_of_earlier_runs_are_left_out(tmp_path: Path) -> None:
    """The job does not read its own results."""
    write_files(tmp_path, {"a.txt": "x", "report.md": "x", "sub/report.md": "x"})
    found = find_sources(tmp_path, [tmp_path / "report.md"])
    assert [s.name for s in found.sources] == ["a.txt", "sub/report.md"]
    assert found.skipped[0].reason == "written by an earlier run"


def test_the_walk_stops_at_its_limit_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of too many files is read up to the limit, never without a word."""
    monkeypatch.setattr(sources, "MAX_FILES", 3)
    write_files(tmp_path, {f"{n}.txt": "x" for n in range(5)})
    found = find_sources(tmp_path)
    assert [s.name for s in found.sources] == ["0.txt", "1.txt", "2.txt"]
    assert found.skipped[0].name == "3.txt"
    assert "over the limit of 3 files" in found.skipped[0].reason


def test_the_list_of_what_was_skipped_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand pictures are a number, not a thousand lines."""
    monkeypatch.setattr(sources, "MAX_SKIPPED", 2)
    write_files(tmp_path, {"a.txt": "x", **{f"{n}.png": b"\0" for n in range(5)}})
    skipped = find_sources(tmp_path).skipped
    assert [(s.name, s.reason) for s in skipped[-1:]] == [("...", "and 3 more")]
    assert len(skipped) == 3


def test_a_name_that_is_not_utf8_is_skipped(tmp_path: Path) -> None:
    """Such a name cannot be written in a report, so the file is listed, escaped."""
    write_files(tmp_path, {"a.txt": "x"})
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt"))).write_text("x")
    found = find_sources(tmp_path)
    assert [s.name for s in found.sources] == ["a.txt"]
    assert found.skipped[0].reason == "its name is not valid UTF-8"
    found.skipped[0].name.encode()


@pytest.mark.parametrize(
    ("files", "path", "message"),
    [
        ({}, "missing", "no such file or directory"),
        ({"empty/.keep": ""}, "empty", "1 entries were skipped"),
        ({"a.bin": b"\0\1"}, "a.bin", "binary"),
        ({"big.txt": "x" * 1_000_001}, "big.txt", "larger than 1 MB"),
    ],
)
def test_a_path_without_anything_to_read_is_refused(
    tmp_path: Path, files: dict[str, str], path: str, message: str
) -> None:
    """The error names the path and says why."""
    write_files(tmp_path, files)
    with pytest.raises(ConfigurationError, match=message) as refused:
        find_sources(tmp_path / path)
    assert str(tmp_path / path) in str(refused.value)


def test_an_empty_folder_is_called_empty(tmp_path: Path) -> None:
    """Nothing was skipped there, and the message does not say so."""
    with pytest.raises(ConfigurationError, match="it is empty"):
        find_sources(tmp_path)


def test_the_dotted_path_of_a_package_reaches_above_the_root(tmp_path: Path) -> None:
    """A package inside packages knows by what name it is imported."""
    write_files(tmp_path, {"outer/__init__.py": "", "outer/inner/__init__.py": ""})
    assert find_sources(tmp_path / "outer" / "inner").package == ["outer", "inner"]
    assert find_sources(tmp_path / "outer" / "inner").title == "outer.inner"
    assert find_sources(tmp_path).package == []


def test_a_file_that_grew_is_read_up_to_the_limit(tmp_path: Path) -> None:
    """What is said about a file stays small, whatever happens to it after the walk."""
    path = tmp_path / "log.txt"
    path.write_bytes(b"x" * (sources.MAX_BYTES + 10))
    assert len(read_source(path)) == sources.MAX_BYTES


@pytest.mark.parametrize(
    ("data", "text", "note"),
    [
        (b"\xef\xbb\xbfx = 1", "x = 1", ""),
        (
            b"# -*- coding: latin-1 -*-\ns = '\xe9'",
            "# -*- coding: latin-1 -*-\ns = 'é'",
            "iso-8859-1",
        ),
        (b"# coding: no-such-thing\nx", "# coding: no-such-thing\nx", "latin-1"),
        (b"# coding: hex\nx", "# coding: hex\nx", "not UTF-8: read as Latin-1"),
        (b"x\n\n\ns = '\xe9'", "x\n\n\ns = 'é'", "not UTF-8: read as Latin-1"),
        ("é".encode("utf-16"), "é", "UTF-16"),
        (b"a\r\nb\rc\n", "a\nb\nc\n", ""),
        (b"", "", ""),
    ],
)
def test_python_is_decoded_as_python_would(data: bytes, text: str, note: str) -> None:
    """Marks and coding lines are obeyed; the rest is read as Latin-1 with a note."""
    assert decode(data, "python") == (text, note)


@given(st.binary())
def test_decoding_never_fails(data: bytes) -> None:
    """Any bytes give some text, for each kind."""
    for kind in ("python", "markdown", "text"):
        text, _ = decode(data, kind)  # type: ignore[arg-type]
        assert "\r" not in text


@given(st.text(st.characters(codec=None)))
def test_printable_text_prints(text: str) -> None:
    """Controls, direction marks and lone surrogates are escaped; the rest stays."""
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()
    assert shown == text or not text.isprintable()
