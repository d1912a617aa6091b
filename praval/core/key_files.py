"""Files that hold secrets: private from the first byte, whole or not there, one writer at a time.

A folder has mode 0700 and a file 0600; what others could read or own is refused, and no link is
followed. A file is written beside its place, flushed to the disk and renamed.

Guide: "Key Management System" (key export for backup).
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from praval.errors import KeyringError, SealCode

LARGEST = 16_777_216
LOCK_PATIENCE = 10.0
"""Seconds to wait while another process uses the folder."""


def private_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter, or check that it is one.

    Raises:
        KeyringError: others may enter it or own it, or it cannot be made.
    """
    with _disk(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(os.lstat(folder), folder, "folder")


def make_private(file: Path) -> None:
    """Make an empty file that only its owner may use, or check that it is one.

    Raises:
        KeyringError: others may use it, it is a link, or it cannot be made.
    """
    with _disk(file):
        with suppress(FileExistsError):
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW
            os.close(os.open(file, flags, 0o600))
        _check_private(os.lstat(file), file, "file")


def write_private(file: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a secret to a file of a private folder, whole or not at all.

    Raises:
        KeyringError: the folder is not private, the file cannot be written, or, with
            ``replace=False``, it is there already.
    """
    private_folder(file.parent)
    with _disk(file):
        if replace and os.path.lexists(file):
            _check_private(os.lstat(file), file, "file")
        staged = file.parent / f".{file.name}.{secrets.token_hex(8)}"
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(staged, flags, 0o600), "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            if replace:
                staged.rename(file)
            else:
                os.link(staged, file, follow_symlinks=False)  # fails if there is one
        finally:
            staged.unlink(missing_ok=True)
        _sync(file.parent)


def read_private(file: Path) -> bytes:
    """Read a secret file.

    Raises:
        KeyringError: it is missing, a link, too large, or others may read, write or own it.
    """
    with _disk(file):
        _check_private(os.lstat(file.parent), file.parent, "folder")
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
            found = os.fstat(stream.fileno())
            _check_private(found, file, "file")
            if found.st_size > LARGEST:
                raise KeyringError(f"{file} is too large for a key file.", SealCode.TOO_LARGE)
            return stream.read(LARGEST)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a private folder alone, against other processes and other threads.

    Raises:
        KeyringError: another held it for `LOCK_PATIENCE` seconds.
    """
    import fcntl

    private_folder(folder)
    with _disk(folder):
        # The folder itself is locked: no file is left behind, and a dead process holds nothing.
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise KeyringError(
                        f"Another process has been using {folder} for {LOCK_PATIENCE:.0f} s. "
                        "Wait for it, or end it."
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _check_private(found: os.stat_result, path: Path, what: str) -> None:
    is_right = stat.S_ISDIR if what == "folder" else stat.S_ISREG
    if not is_right(found.st_mode):
        raise KeyringError(f"{path} is a link or something else, not a plain {what}.")
    if found.st_uid != os.geteuid():
        raise KeyringError(f"{path} belongs to another user: no keys are kept there.")
    if mode := stat.S_IMODE(found.st_mode) & 0o077:
        wanted = 700 if what == "folder" else 600
        raise KeyringError(
            f"{path} is open to others (mode ...{mode:02o}) and must not hold keys like that. "
            f"Run: chmod {wanted} {path}; if somebody may have read keys there, make new ones."
        )


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into errors of ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise KeyringError(f"{path} does not exist.") from error
    except OSError as error:
        raise KeyringError(f"{path} cannot be used: {error}.") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
