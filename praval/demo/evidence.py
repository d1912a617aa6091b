"""The skeptic's craft: whether the source bears a dependency out.

* Python: an import in the syntax tree leads to the other file (:mod:`praval.demo.imports`).
* Markdown: a link or image, as CommonMark defines it, has that file as its target.
* Text: the file's exact name stands there as a word, and can mean no other file.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import msgspec
from markdown_it import MarkdownIt

from praval.demo.imports import MODULE_SUFFIXES, Shelf, Unparsable
from praval.demo.sources import Catalogue, Source, decode, read_source


class Verdict(msgspec.Struct, frozen=True):
    """What became of a proposal; ``line`` is 0 when no line can be named."""

    target: str
    verified: bool
    line: int
    reason: str


Judge = Callable[[str], Verdict]
"""Says for one target whether the file under discussion depends on it."""


class Skeptic:
    """Checks proposals against the sources of one catalogue, which it reads for itself."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._root = Path(catalogue.root)
        self._sources = {source.name: source for source in catalogue.sources}
        self._names = frozenset(self._sources)
        self._shelf = Shelf(self._names, catalogue.package, PurePosixPath(catalogue.root).name)
        self._same_name = Counter(PurePosixPath(name).name for name in self._names)

    def check(self, name: str, targets: Iterable[str]) -> list[Verdict]:
        """Read the file ``name`` and judge for each target whether the file depends on it."""
        source = self._sources[name]
        try:
            data = read_source(self._root / name)
        except OSError as error:
            reason = f"the source cannot be read any more: {error.strerror}"
            return [Verdict(target, False, 0, reason) for target in targets]
        return self.judge(source, data, targets)

    def judge(self, source: Source, data: bytes, targets: Iterable[str]) -> list[Verdict]:
        """Judge for each target whether ``source``, whose bytes are ``data``, depends on it."""
        text, _ = decode(data, source.kind)
        if source.kind == "python":
            judge = self._python_judge(source.name, data, text)
        elif source.kind == "markdown":
            judge = self._markdown_judge(source.name, text)
        else:
            judge = self._text_judge(source.name, text)
        return [judge(target) for target in targets]

    def _python_judge(self, name: str, data: bytes, text: str) -> Judge:
        try:
            imports = self._shelf.imports(name, data)
        except Unparsable as error:
            reason = f"nothing it imports can be confirmed: {error}"
            return lambda target: Verdict(target, False, 0, reason)
        first = {edge.target: edge for edge in sorted(imports, key=lambda e: e.line, reverse=True)}

        def judge(target: str) -> Verdict:
            if target in first:
                return Verdict(target, True, first[target].line, first[target].text)
            path = PurePosixPath(target)
            if path.suffix not in MODULE_SUFFIXES:
                return Verdict(target, False, _line_of(text, path.name), "named, not imported")
            if path.stem == "__init__":
                return Verdict(target, False, 0, "nothing is imported from the package's own file")
            reason = f"{path.stem} is named, but no import leads to this file"
            return Verdict(target, False, _line_of(text, path.stem), reason)

        return judge

    def _markdown_judge(self, name: str, text: str) -> Judge:
        proofs: dict[str, tuple[int, str]] = {}
        for line, link in markdown_targets(text):
            target = self._resolve(posixpath.dirname(name), link)
            if target in self._names and target != name:
                proofs.setdefault(target, (line, f"links to {unquote(link)[:120]}"))

        def judge(target: str) -> Verdict:
            if target in proofs:
                return Verdict(target, True, *proofs[target])
            line = _line_of(text, PurePosixPath(target).name)
            return Verdict(target, False, line, "named, but no link leads to this file")

        return judge

    def _resolve(self, folder: str, link: str) -> str:
        """Name the file that a link in a file of ``folder`` leads to; "" for what is outside."""
        try:
            parts = urlsplit(link)
        except ValueError:
            return ""
        if parts.scheme or parts.netloc or not parts.path:
            return ""
        path = unquote(parts.path)
        root = self._root.as_posix()
        place = root if path.startswith("/") else posixpath.join(root, folder)
        target = posixpath.normpath(posixpath.join(place, path.lstrip("/")))
        return target.removeprefix(root.rstrip("/") + "/")

    def _text_judge(self, name: str, text: str) -> Judge:
        folder = posixpath.dirname(name)

        def judge(target: str) -> Verdict:
            own = PurePosixPath(target).name
            forms = [posixpath.relpath(target, folder or "."), target]
            if posixpath.dirname(target) == folder or self._same_name[own] == 1:
                forms.append(own)
            for form in forms:
                line = _line_of_name(text, form)
                if line:
                    return Verdict(target, True, line, f"names {form}")
            line = _line_of_name(text, own)
            if line:
                reason = f"{own} may mean any of {self._same_name[own]} files"
                return Verdict(target, False, line, reason)
            line = _line_of(text, PurePosixPath(own).stem)
            return Verdict(target, False, line, "its exact file name is not there")

        return judge


def markdown_targets(text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, target) of each link and image, decoded; code and foreign URLs are none."""
    for block in MarkdownIt("commonmark").enable("table").parse(text):
        line = block.map[0] + 1 if block.map else 0
        for token in [block, *(block.children or [])]:
            if token.type in {"html_block", "html_inline"}:
                yield from ((line, target) for target in _html_targets(token.content))
            elif token.type in {"softbreak", "hardbreak"}:
                line += 1
            target = token.attrGet("href") or token.attrGet("src")
            if isinstance(target, str):
                yield line, target


class _Attributes(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {"a": "href", "img": "src"}.get(tag)
        self.targets += [value for key, value in attrs if key == wanted and value]


def _html_targets(fragment: str) -> Sequence[str]:
    parser = _Attributes()
    parser.feed(fragment)
    return parser.targets


def _line_of_name(text: str, name: str) -> int:
    """Find the first line on which ``name`` stands as a whole path or file name; 0 if none."""
    pattern = rf"(?<![\w/.\-])(?:\./)?{re.escape(name)}(?![\w/\-]|\.\w)"
    match = re.search(pattern, text)
    return text.count("\n", 0, match.start()) + 1 if match else 0


def _line_of(text: str, word: str) -> int:
    """Find the first line that holds ``word`` at all; 0 if none does."""
    position = text.find(word)
    return text.count("\n", 0, position) + 1 if position >= 0 else 0
