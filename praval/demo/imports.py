"""What a Python file really imports: its syntax tree, resolved as the import system would.

Only what the tree holds counts: imports at the top, inside functions, in ``if TYPE_CHECKING``
and in ``try``; nothing in strings and comments. ``from package import name`` means the file of
the submodule ``name`` if there is one, else the package's own ``__init__.py``. Nothing is
imported or executed.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

Place = tuple[str, ...]
"""A folder, as its path below the folder that holds the outermost package (or the root)."""

PACKAGE_FILES = ("__init__.py", "__init__.pyi")
MODULE_SUFFIXES = (".py", ".pyi")
LONGEST_STATEMENT = 120
HOLDERS = (ast.stmt, ast.excepthandler, ast.match_case)


class Import(NamedTuple):
    """One import of one file."""

    target: str
    line: int
    text: str


class Unparsable(Exception):
    """Python itself cannot read the file; the message says where and why."""


class _Module(NamedTuple):
    """Where a dotted name leads: its file, and the folder its submodules are in."""

    folder: Place | None
    file: str | None


class Shelf:
    """The catalogue's Python files, laid out as the import system would find them.

    Args:
        names: the files' names, paths below the root.
        package: the root's dotted path when it is a package, else empty.
        root_name: the name of the root folder.
    """

    def __init__(self, names: Iterable[str], package: Sequence[str], root_name: str) -> None:
        self._anchor: Place = tuple(package) or (root_name,)
        self._root_is_package = bool(package)
        self._files: dict[Place, str] = {}
        self._folders: set[Place] = {self._anchor[:n] for n in range(len(self._anchor) + 1)}
        for name in names:
            path = self._anchor + PurePosixPath(name).parts
            self._files[path] = name
            self._folders.update(path[:n] for n in range(len(self._anchor), len(path)))

    def imports(self, name: str, source: bytes) -> list[Import]:
        """Return each import in the file ``name`` that leads to a file of the shelf.

        Raises:
            Unparsable: ``source`` is not Python of the running version.
        """
        found = (
            Import(target, node.lineno, _shortened(ast.unparse(node)))
            for node in statements(parse(source))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for target in self._targets(name, node)
        )
        return [edge for edge in found if edge.target != name]

    def _targets(self, name: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        folder = self._anchor + PurePosixPath(name).parts[:-1]
        if isinstance(node, ast.Import):
            for alias in node.names:
                module = self._absolute(folder, alias.name.split("."))
                if module and module.file:
                    yield module.file
            return
        dotted = node.module.split(".") if node.module else []
        if node.level:
            module = self._find(self._parent(folder, node.level - 1), dotted)
        else:
            module = self._absolute(folder, dotted)
        for alias in node.names if module else ():
            target = self._member(module, alias.name)
            if target:
                yield target

    def _member(self, module: _Module | None, name: str) -> str | None:
        if module is None:
            return None
        submodule = self._find(module.folder, [name]) if module.folder is not None else None
        return submodule.file if submodule and submodule.file else module.file

    def _parent(self, folder: Place, steps: int) -> Place | None:
        """Go up within the outermost package; what is above it, no relative import reaches.

        A folder without ``__init__.py`` may be a package too: then the root is the limit.
        """
        top = 1 if self._root_is_package else len(self._anchor)
        for _ in range(steps):
            leaves_package = folder[:-1] == self._anchor and self._is_package(folder)
            if len(folder) == top or (leaves_package and not self._root_is_package):
                return None
            folder = folder[:-1]
        return folder

    def _absolute(self, folder: Place, dotted: Sequence[str]) -> _Module | None:
        """Try each folder that would be on ``sys.path``; a file beats a bare folder."""
        modules = [self._find(base, dotted) for base in self._path(folder)]
        with_file = (module for module in modules if module and module.file)
        return next(with_file, None) or next((module for module in modules if module), None)

    def _path(self, folder: Place) -> list[Place]:
        """List what ``sys.path`` would hold: around the importer's package, and around the root.

        The importer's own folder is on it only for scripts: when no folder above is a package.
        """
        packages = [n for n in range(1, len(folder) + 1) if self._is_package(folder[:n])]
        around = folder[: packages[0] - 1] if packages else folder
        if self._root_is_package:
            return [around, ()]
        return [around, self._anchor, (*self._anchor, "src"), ()]

    def _is_package(self, folder: Place) -> bool:
        if self._root_is_package and 0 < len(folder) <= len(self._anchor):
            return True
        return any((*folder, file) in self._files for file in PACKAGE_FILES)

    def _find(self, base: Place | None, dotted: Sequence[str]) -> _Module | None:
        if base is None:
            return None
        module = _Module(base, self._package_file(base))
        for part in dotted:
            if module.folder is None:  # a plain module has no submodules
                return None
            inside = (*module.folder, part)
            package = self._package_file(inside)
            plain = (self._files.get((*module.folder, part + s)) for s in MODULE_SUFFIXES)
            file = package or next(filter(None, plain), None)
            if file is None and inside not in self._folders:
                return None
            module = _Module(None if file and not package else inside, file)
        return module

    def _package_file(self, folder: Place) -> str | None:
        candidates = (self._files.get((*folder, file)) for file in PACKAGE_FILES)
        return next(filter(None, candidates), None)


def _shortened(statement: str) -> str:
    return statement if len(statement) <= LONGEST_STATEMENT else statement[:LONGEST_STATEMENT] + "…"


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """Yield every statement however deep, without looking into expressions, which hold none."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.stmt):
            yield node
        waiting += (child for child in ast.iter_child_nodes(node) if isinstance(child, HOLDERS))


def parse(source: bytes) -> ast.Module:
    """Parse a file's bytes as Python does (coding line and byte order mark included).

    Raises:
        Unparsable: it is not Python of the running version.
    """
    try:
        with warnings.catch_warnings():  # its questionable escapes are not our concern
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except SyntaxError as error:
        where = f" on line {error.lineno}" if error.lineno else ""
        raise Unparsable(f"it is not valid Python ({error.msg}{where})") from None
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes, too deeply nested
        raise Unparsable(f"Python cannot parse it ({str(error) or type(error).__name__})") from None
