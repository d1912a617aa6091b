"""The librarian's craft: which files a folder holds, and what text is in them.

A file is read when it is a regular file of at most :data:`MAX_BYTES` bytes that holds text.
Everything else is listed as skipped, with the reason.
"""

from __future__ import annotations

import codecs
import importlib.util
import io
import os
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from praval.errors import ConfigurationError

Kind = Literal["python", "markdown", "text"]

MAX_BYTES = 1_000_000
"""Larger files are skipped; also keeps what is said about a file far below a spore's limit."""
MAX_FILES = 1_000
"""Where the walk stops: a graph of more files cannot be read."""
MAX_SKIPPED = 1_000
"""Entries of the list of what was skipped; the rest is a number."""
SNIFF_BYTES = 4096

KINDS: dict[str, Kind] = {
    ".py": "python",
    ".pyi": "python",
    ".pyw": "python",
    ".md": "markdown",
    ".markdown": "markdown",
}


class Source(msgspec.Struct, frozen=True):
    """A file to read; ``name`` is its path below the root, with ``/`` on every system."""

    name: str
    kind: Kind
    size: int


class Skipped(msgspec.Struct, frozen=True):
    """A file or folder (its name ends in ``/``) that is not read."""

    name: str
    reason: str


class Catalogue(msgspec.Struct, frozen=True):
    """What the librarian found.

    ``title`` is what the report calls the whole: the package, the folder, or the only file.
    ``package`` is the dotted path of the root when the root is a Python package
    (``["xml", "dom"]``), otherwise empty.
    """

    title: str
    root: str
    sources: list[Source]
    skipped: list[Skipped]
    package: list[str]


def asyncio_folder() -> Path:
    """Return the folder of the running interpreter's own ``asyncio`` package.

    Raises:
        ConfigurationError: this Python ships without the source of its library.
    """
    spec = importlib.util.find_spec("asyncio")
    origin = spec.origin if spec else None
    if origin is None or not Path(origin).is_file():
        raise ConfigurationError(
            "This Python has no source of its asyncio package on disk. "
            "Name a folder instead: praval demo PATH."
        )
    return Path(origin).parent


def find_sources(path: Path, leave_out: Iterable[Path] = ()) -> Catalogue:
    """List the files to read in the folder ``path``, or the one file that it is.

    Args:
        path: a folder or a file; hidden or not, it was asked for.
        leave_out: files that are the job's own results.

    Raises:
        ConfigurationError: the path does not exist, cannot be opened, or holds nothing to read.
    """
    try:
        path = path.resolve(strict=True)
        is_folder = path.is_dir()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise ConfigurationError(f"Cannot read {printable(str(path))}: {_why(error)}.") from None
    root = path if is_folder else path.parent
    try:
        found = list(_entries(path, leave_out) if is_folder else [_entry(path, path.name)])
    except OSError as error:
        raise ConfigurationError(f"Cannot read {printable(str(path))}: {_why(error)}.") from None
    sources = sorted((f for f in found if isinstance(f, Source)), key=lambda s: s.name)
    skipped = sorted((f for f in found if isinstance(f, Skipped)), key=lambda s: s.name)
    if not sources:
        raise ConfigurationError(_nothing(path, is_folder, skipped))
    if len(skipped) > MAX_SKIPPED:
        rest = Skipped("...", f"and {len(skipped) - MAX_SKIPPED} more")
        skipped = [*skipped[:MAX_SKIPPED], rest]
    package = _package(root)
    title = ".".join(package) or root.name or str(root)
    return Catalogue(title if is_folder else path.name, str(root), sources, skipped, package)


def read_source(path: Path) -> bytes:
    """Return the bytes of a file, at most :data:`MAX_BYTES`, even if it grew since the walk.

    Raises:
        OSError: the file is gone, or may not be read.
    """
    with path.open("rb") as file:
        return file.read(MAX_BYTES)


def decode(data: bytes, kind: Kind) -> tuple[str, str]:
    """Return the text, with newlines as line ends, and a note ("" when nothing was remarkable).

    Python files are decoded as Python would (byte order mark, coding line); what cannot be
    decoded is read as Latin-1, which never fails.
    """
    text, note = _decoded(data, kind)
    return text.replace("\r\n", "\n").replace("\r", "\n"), note


def printable(text: str) -> str:
    """Return ``text`` with every character that does not print (controls, bidi) escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode("ascii")
        for c in text
    )


def _decoded(data: bytes, kind: Kind) -> tuple[str, str]:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace"), "UTF-16"
    encoding = "utf-8-sig"
    if kind == "python":
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        except SyntaxError:
            encoding = "latin-1"
    try:
        note = "" if encoding.startswith("utf-8") else encoding
        return data.decode(encoding), note
    except (ValueError, LookupError):  # wrong bytes, or a coding line that names no text encoding
        return data.decode("latin-1"), "not UTF-8: read as Latin-1"


def _entries(folder: Path, leave_out: Iterable[Path]) -> Iterator[Source | Skipped]:
    """Walk depth first, in the order of names, until :data:`MAX_FILES` files are found."""
    ours = {Path(path) for path in leave_out}
    stack = [(folder, "")]
    count = 0
    while stack:
        here, prefix = stack.pop()
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            if here == folder:
                raise
            yield Skipped(prefix, f"cannot be opened: {_why(error)}")
            continue
        below = []
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                reason = _folder_skipped(entry)
                if reason:
                    yield Skipped(printable(name) + "/", reason)
                else:
                    below.append((Path(entry.path), name + "/"))
                continue
            if count == MAX_FILES:
                yield Skipped(printable(name), f"over the limit of {MAX_FILES} files: from here on")
                return
            result = (
                Skipped(printable(name), "written by an earlier run")
                if Path(entry.path) in ours
                else _hidden(name, entry.name) or _entry(Path(entry.path), name)
            )
            count += isinstance(result, Source)
            yield result
        stack += reversed(below)


def _folder_skipped(entry: os.DirEntry[str]) -> str:
    if entry.name.startswith("."):
        return "hidden"
    if entry.name in {"__pycache__", "node_modules"}:
        return "made by a tool"
    if os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
        return "a virtual environment"
    return ""


def _hidden(name: str, own_name: str) -> Skipped | None:
    return Skipped(printable(name), "hidden") if own_name.startswith(".") else None


def _entry(path: Path, name: str) -> Source | Skipped:
    try:
        reason, size = _unreadable(path, name), path.stat().st_size
    except OSError as error:
        reason, size = f"cannot be read: {_why(error)}", 0
    if reason:
        return Skipped(printable(name), reason)
    return Source(name, KINDS.get(path.suffix.lower(), "text"), size)


def _unreadable(path: Path, name: str) -> str:
    """Say why a file is not read, or ""; OSError means that it cannot be."""
    if path.is_symlink():
        return "a symbolic link"
    if not path.is_file():  # a pipe would block whoever opens it
        return "not a regular file"
    if path.stat().st_size > MAX_BYTES:
        return f"larger than {MAX_BYTES // 1_000_000} MB"
    with path.open("rb") as file:
        binary = _is_binary(file.read(SNIFF_BYTES))
    if binary:
        return "binary"
    return "" if name.isprintable() or _encodable(name) else "its name is not valid UTF-8"


def _encodable(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _is_binary(head: bytes) -> bool:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    controls = sum(byte < 32 and byte not in b"\t\n\v\f\r\b\x1b" for byte in head)
    return b"\0" in head or controls * 20 > len(head)


def _package(root: Path) -> list[str]:
    parts: list[str] = []
    while (root / "__init__.py").is_file() and root.name:
        parts.insert(0, root.name)
        root = root.parent
    return parts


def _nothing(path: Path, is_folder: bool, skipped: list[Skipped]) -> str:
    shown = printable(str(path))
    if not is_folder:
        return f"Cannot read {shown}: {skipped[0].reason}. Name a text, Markdown or Python file."
    why = "it is empty" if not skipped else f"{len(skipped)} entries were skipped"
    first = "".join(f"\n  {s.name}: {s.reason}" for s in skipped[:5])
    return f"There is no text, Markdown or Python file to read in {shown}: {why}.{first}"


def _why(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()
