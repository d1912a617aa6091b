"""The linker's craft: which file may depend on which, by what the readers saw.

The linker is generous. Every edge that is true must be among its proposals, so it proposes
whatever the text allows; the skeptic throws out what the source does not bear out. A name that
is imported may be any file of that name; a name that is merely mentioned, only a neighbour.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

import msgspec

from praval.demo.reading import Facts, fold, stem

SHORT_NAME = 3
"""A name with fewer letters is no mention: every text has an ``a``."""


class Proposal(msgspec.Struct, frozen=True):
    """An edge that may be true: the file under discussion depends on ``target``."""

    target: str
    why: str


class Linker:
    """Knows what all files are called; ``package`` is the dotted path of a root package."""

    def __init__(self, names: Iterable[str], package: Sequence[str] = ()) -> None:
        self._names = frozenset(names)
        self._by_file_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        self._packages: dict[str, str] = {}
        for name in sorted(self._names):
            path = PurePosixPath(name)
            self._by_file_name[fold(path.name)].append(name)
            self._by_stem[unicodedata.normalize("NFKC", stem(name, package))].append(name)
            if path.stem == "__init__":
                self._packages.setdefault(str(path.parent), name)

    def propose(self, facts: Facts) -> list[Proposal]:
        """Return at most one proposal per file, with the best reason for it."""
        found: dict[str, str] = {}
        for target, why in self._candidates(facts):
            if target != facts.name:
                found.setdefault(target, why)
        return [Proposal(target, found[target]) for target in sorted(found)]

    def _candidates(self, facts: Facts) -> Iterator[tuple[str, str]]:
        """Candidates with reasons, the strongest reasons first."""
        yield from self._imported(facts)
        for link in facts.links:
            for target in self._by_file_name.get(fold(PurePosixPath(link).name), ()):
                yield target, f"a link to {link[:120]}"
        for file_name in facts.file_names:
            for target in self._by_file_name.get(file_name, ()):
                yield target, f"the file name {file_name}"
        folder = PurePosixPath(facts.name).parent
        for word in facts.words:
            if len(word) >= SHORT_NAME:
                for target in self._by_stem.get(word, ()):
                    if PurePosixPath(target).parent == folder:
                        yield target, f"the name {word}"

    def _imported(self, facts: Facts) -> Iterator[tuple[str, str]]:
        for statement in facts.imports:
            why = f"line {statement.line}: {statement.text}"
            for word in statement.words:
                for target in self._by_stem.get(word, ()):
                    if target.endswith((".py", ".pyi", ".pyw")):
                        yield target, why
            if statement.dots:
                folder = PurePosixPath(facts.name)
                for _ in range(statement.dots):
                    folder = folder.parent
                package = self._packages.get(str(folder))
                if package:
                    yield package, why
