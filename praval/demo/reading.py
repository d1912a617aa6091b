"""The reader's craft: what a file says, as seen in its text.

Nothing here parses. The import statements, names, links and file names are those that a quick
eye would see, true or not; whether they mean anything is for the skeptic to find out
(:mod:`praval.demo.evidence`), who shares no code with this module.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from urllib.parse import unquote

import msgspec

from praval.demo.sources import Kind, Source

_DOTS = re.compile(r"from[\s\\]*((?:\.[\s\\]*)+)import\b")
_STATEMENT = re.compile(r"(?:^|[;:])[ \t\f]*(?=(?:from|import)\b)")
_CODE = re.compile(r"[^#;]*")
_WORD = re.compile(r"\w+")
_MARKDOWN_LINK = re.compile(
    r"""\]\(\s*(?:<([^>\n]+)>|([^\s)]+))      # [text](target) and [text](<target>)
      | ^[ ]{0,3}\[[^\]\n]{1,999}\]:\s*<?([^\s>]+)     # [label]: target
      | (?:href|src)\s*=\s*["']([^"']+)        # HTML inside Markdown
    """,
    re.VERBOSE | re.MULTILINE,
)


class Statement(msgspec.Struct, frozen=True):
    """What looks like an import statement."""

    line: int
    text: str
    words: list[str]
    dots: int
    """The leading dots of ``from ... import x``; 0 when a name follows them, or there are none."""


class Facts(msgspec.Struct, frozen=True):
    """What a reader reports about one file."""

    name: str
    kind: Kind
    lines: int
    note: str
    imports: list[Statement]
    links: list[str]
    file_names: list[str]
    words: list[str]


class Vocabulary:
    """The names worth noticing: what the catalogue's files are called.

    ``stems`` are the words by which a Python file is imported or spoken of; ``file_names`` the
    last parts of all paths, folded, each with the longest word in it: a text without the word
    need not be searched for the name.
    """

    def __init__(self, names: Iterable[str], package: Iterable[str] = ()) -> None:
        self.stems: set[str] = set(package)
        self.file_names: dict[str, str] = {}
        for name in names:
            self.stems.add(unicodedata.normalize("NFKC", stem(name, package)))
            file_name = fold(PurePosixPath(name).name)
            self.file_names[file_name] = max(_WORD.findall(file_name), key=len, default="")


def stem(name: str, package: Iterable[str] = ()) -> str:
    """Return the word a file goes by: ``a/b.py`` is ``b``, ``a/__init__.py`` is ``a``."""
    path = PurePosixPath(name)
    if path.stem == "__init__":
        return path.parent.name or next(iter(reversed([*package])), "")
    return path.stem


def observe(source: Source, text: str, note: str, vocabulary: Vocabulary) -> Facts:
    """Report what ``text`` mentions of the ``vocabulary``."""
    text = unicodedata.normalize("NFKC", text)  # as Python does with identifiers
    plain = _plain(text).casefold() if source.kind == "markdown" else text.casefold()
    return Facts(
        name=source.name,
        kind=source.kind,
        lines=text.count("\n") + bool(text and not text.endswith("\n")),
        note=note,
        imports=_telling_statements(text, vocabulary) if source.kind == "python" else [],
        links=_telling_links(text, vocabulary) if source.kind == "markdown" else [],
        file_names=_named(plain, vocabulary),
        words=sorted(vocabulary.stems.intersection(_WORD.findall(text))),
    )


def _named(folded: str, vocabulary: Vocabulary) -> list[str]:
    words = {"", *_WORD.findall(folded)}
    names = vocabulary.file_names.items()
    return sorted(name for name, word in names if word in words and name in folded)


def _telling_statements(text: str, vocabulary: Vocabulary) -> list[Statement]:
    """Keep the statements that say something new: few, however long the file is."""
    told: set[str | int] = {0}
    telling = []
    for statement in import_statements(text):
        news: set[str | int] = {statement.dots}
        news |= vocabulary.stems.intersection(statement.words)
        news -= told
        if news:
            told |= news
            telling.append(statement)
    return telling


def _telling_links(text: str, vocabulary: Vocabulary) -> list[str]:
    ends = ((link, fold(PurePosixPath(link).name)) for link in markdown_links(text))
    telling = {end: link for link, end in ends if end in vocabulary.file_names}
    return sorted(telling.values())


def import_statements(text: str) -> Iterator[Statement]:
    """Find everything that begins like an import statement, in prose and strings too.

    A statement in brackets or with backslashes goes on over several lines, up to the line on
    which another one begins: names cannot be keywords. The ``import`` of a ``from`` may stand
    at the beginning of a line too.
    """
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        for match in _STATEMENT.finditer(line):
            parts = [_code(line, match.end())]
            brackets = _brackets(parts[0])
            half = parts[0].startswith("from") and "import" not in parts[0]
            for index in range(number, len(lines)):
                if brackets <= 0 and not parts[-1].endswith("\\"):
                    break
                following = lines[index].partition("#")[0]
                begins = _STATEMENT.search(following)
                if begins and not (half and following.startswith("import", begins.end())):
                    break
                half = half and "import" not in following
                parts.append(_code(following))
                brackets += _brackets(parts[-1])
            yield _statement(number, "\n".join(parts))


def markdown_links(text: str) -> Iterator[str]:
    """Find the targets of links, images and HTML attributes, decoded, without ``#fragment``."""
    for match in _MARKDOWN_LINK.finditer(text):
        target = next(group for group in match.groups() if group)
        target = unquote(html.unescape(target)).partition("#")[0]
        if target and "://" not in target:
            yield target


def fold(file_name: str) -> str:
    """Return the form in which file names are compared: any case, any Unicode composition."""
    return unicodedata.normalize("NFKC", file_name).casefold()


def _code(line: str, start: int = 0) -> str:
    """Cut what can belong to one import statement: no comment, no next statement."""
    match = _CODE.match(line, start)
    return match[0].rstrip() if match else ""


def _brackets(line: str) -> int:
    return line.count("(") - line.count(")")


def _statement(line: int, text: str) -> Statement:
    dots = _DOTS.match(text)
    words = _WORD.findall(text)
    return Statement(
        line=line,
        text=" ".join(text.replace("\\\n", " ").split())[:120],
        words=sorted(set(words) - {"from", "import", "as"}),
        dots=dots[1].count(".") if dots else 0,
    )


def _plain(text: str) -> str:
    """Add the text once more with the escapes of Markdown, HTML and URLs undone."""
    return text + "\n" + unquote(html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)))
