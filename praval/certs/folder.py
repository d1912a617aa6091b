"""The folder of an authority: one writer at a time, and all files of a change or none.

A change is collected in memory. Its files are staged beside their places, under names with the
number of the change; the index, which holds that number, is renamed into place last, and that
is the commit. `_settle` then moves the staged files in, or removes those of a change that was
never committed. The next visitor does the same for a process that died: there is one way, and
it is taken each time.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from praval.errors import CertificateError, CertificateFolderError

INDEX = "index.json"
LOCK_PATIENCE = 10.0
"""Seconds to wait while another process changes the folder."""
SHIPPED = frozenset({"README.md", ".gitignore"})
"""What may lie in a folder that is still nobody's, and is closed to others when taken."""

_STAGED = re.compile(r"\.(\d+)\.(.+)")

Kind = Literal["server", "client", "both"]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One certificate that was signed."""

    name: str
    kind: Kind
    hosts: tuple[str, ...]
    serial: str
    """Hexadecimal."""
    not_before: datetime
    not_after: datetime
    revoked_at: datetime | None = None


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an authority remembers; `index.json`."""

    change: int = 0
    """Number of the change that wrote this."""
    crl_number: int = 0
    crl_expires: datetime = datetime.fromtimestamp(0, UTC)
    issued: tuple[Entry, ...] = ()
    version: Literal[1] = 1


@dataclass
class Change:
    """The next index and the files that come with it; nothing is on disk yet."""

    index: Index
    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)

    def write(self, name: str, data: bytes, *, secret: bool = False) -> None:
        """Add a file; a secret one is readable by its owner alone."""
        self.files[name] = (data, 0o600 if secret else 0o644)


class Folder:
    """Files and index of one authority."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Index:
        """Return the index as it was committed last.

        Raises:
            CertificateError: there is no authority here.
            CertificateFolderError: the folder or its index cannot be read.
        """
        if not self.path.is_dir():
            raise _no_authority(self.path)
        with _disk(self.path):
            if any(_STAGED.fullmatch(name) for name in os.listdir(self.path)):
                with self._locked():
                    self._settle()
            return self._load()

    def make(self) -> None:
        """Make the folder (0700), or close one to others in which there is nothing yet."""
        with _disk(self.path):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.path.stat()
            if found.st_uid == os.geteuid() and set(os.listdir(self.path)) <= SHIPPED:
                self.path.chmod(0o700)

    @contextmanager
    def changing(self, *, first: bool = False) -> Iterator[Change]:
        """Hold the folder alone; commit the change if the block ends without an exception.

        Raises:
            CertificateError: there is no authority here (or, with ``first``, there is one), or
                others may enter the folder.
            CertificateFolderError: it cannot be read, written, or had alone.
        """
        if not self.path.is_dir():
            raise _no_authority(self.path)
        with _disk(self.path), self._locked():
            self._settle()
            change = Change(Index() if first else self._load())
            number = change.index.change + 1
            _check_private(self.path)
            yield change
            index = msgspec.structs.replace(change.index, change=number)
            try:
                for name, (data, mode) in change.files.items():
                    _write(self.path / f".{number}.{name}", data, mode)
                staged = self.path / f".{number}.{INDEX}"
                _write(staged, msgspec.json.format(msgspec.json.encode(index)), 0o644)
                _sync(self.path)  # the index must not reach the disk before what it commits,
                staged.rename(self.path / INDEX)
                _sync(self.path)  # nor after what follows from it
            finally:
                self._settle()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # The folder itself is locked: no file is left behind, and a dead process holds nothing.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            deadline = time.monotonic() + LOCK_PATIENCE
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise CertificateFolderError(
                            f"Another process has been changing {self.path} for "
                            f"{LOCK_PATIENCE:.0f} s. Wait for it, or end it."
                        ) from None
                    time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    def _load(self) -> Index:
        try:
            data = (self.path / INDEX).read_bytes()
        except FileNotFoundError:
            raise _no_authority(self.path) from None
        try:
            return msgspec.json.decode(data, type=Index)
        except msgspec.DecodeError as error:
            raise CertificateFolderError(
                f"{self.path / INDEX} is damaged, or of another version of Praval: {error}"
            ) from error

    def _settle(self) -> None:
        staged = [found for found in map(_STAGED.fullmatch, os.listdir(self.path)) if found]
        if staged:
            committed = self._load().change if (self.path / INDEX).exists() else 0
            for found in staged:
                if int(found[1]) == committed:
                    (self.path / found[0]).rename(self.path / found[2])
                else:
                    (self.path / found[0]).unlink()
            _sync(self.path)


def check_closed(path: Path) -> None:
    """Refuse a file with a key that others may read.

    Raises:
        CertificateError: they may.
    """
    if mode := stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise CertificateError(
            f"{path} holds a private key and is open to others (mode ...{mode:02o}). "
            f"Run: chmod 600 {path}; and if somebody may have read it, make new keys."
        )


def _check_private(path: Path) -> None:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise CertificateError(
            f"Others may enter {path}, and private keys must not lie there. Use a folder that is "
            f"for certificates alone, and close it: chmod 700 {path}"
        )


def _no_authority(path: Path) -> CertificateError:
    return CertificateError(
        f"There is no certificate authority in {path}. "
        f"Make one with: praval certs init --dir {path}"
    )


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into errors of ours."""
    try:
        yield
    except OSError as error:
        raise CertificateFolderError(f"{path} cannot be used: {error}") from error


def _write(path: Path, data: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with open(os.open(path, flags, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
