"""Where a secure store keeps its two parts: a folder, PostgreSQL or Redis.

A vault knows bytes and entries, not keys: the keyring comes encrypted, and what the replay memory
has of contents are keyed digests. Replicas on several hosts share one on a server.

All calls block. Guide: "Key Management System".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

from praval.core.key_files import locked, private_folder, read_private, write_private
from praval.core.replay import Table
from praval.core.replay_tables import SQLiteTable
from praval.errors import ConfigurationError, KeyringError

KEYRING, REPLAY = "keyring", "replay.db"
Sync = Literal["normal", "full"]


class ClosableTable(Table, Protocol):
    """A table that holds a file or a connection."""

    def close(self) -> None:
        """Give it up."""
        ...


class Vault(Protocol):
    """See the module. Errors are KeyringError, of tables ReplayError; both name no secret."""

    def exists(self) -> bool:
        """Whether there is a store."""
        ...

    def create(self, box: bytes, instance: bytes) -> None:
        """Keep an encrypted keyring, and make the table of its instance; refuse if there is one."""
        ...

    def locked(self) -> AbstractContextManager[None]:
        """Keep others from reading and writing the keyring."""
        ...

    def read(self) -> bytes:
        """Return the encrypted keyring."""
        ...

    def write(self, box: bytes) -> None:
        """Replace the encrypted keyring; only in :meth:`locked`."""
        ...

    def open_table(self, sync: Sync) -> ClosableTable:
        """Open the table."""
        ...

    def renew_table(self, instance: bytes) -> None:
        """Make the table anew, empty, for another instance; only in :meth:`locked`."""
        ...

    def close(self) -> None:
        """Close connections; the next use makes new ones."""
        ...


class FolderVault:
    """Two files in a folder of mode 0700, which the processes of one host share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return str(self.folder)

    def exists(self) -> bool:
        """See :class:`Vault`, like all that follow."""
        return (self.folder / KEYRING).exists()

    def create(self, box: bytes, instance: bytes) -> None:
        """Make both files."""
        private_folder(self.folder)
        with locked(self.folder):
            for taken in (KEYRING, REPLAY):
                if os.path.lexists(self.folder / taken):
                    raise KeyringError(
                        f"There is a {taken} in {self.folder} already. Use it, or name another "
                        "folder."
                    )
            SQLiteTable.open(self.folder / REPLAY, instance=instance).close()
            write_private(self.folder / KEYRING, box, replace=False)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder."""
        with locked(self.folder):
            yield

    def read(self) -> bytes:
        """Read the file."""
        return read_private(self.folder / KEYRING)

    def write(self, box: bytes) -> None:
        """Write the file, whole or not at all."""
        write_private(self.folder / KEYRING, box)

    def open_table(self, sync: Sync) -> SQLiteTable:
        """Open the file."""
        return SQLiteTable.open(self.folder / REPLAY, sync=sync)

    def renew_table(self, instance: bytes) -> None:
        """Delete the file and make another."""
        for name in (REPLAY, f"{REPLAY}-wal", f"{REPLAY}-shm"):
            (self.folder / name).unlink(missing_ok=True)
        SQLiteTable.open(self.folder / REPLAY, instance=instance).close()

    def close(self) -> None:
        """There is nothing to close."""


def vault_for(where: str | os.PathLike[str], *, allow_plaintext: bool = False) -> Vault:
    """Return the vault of a folder, or of a URL: ``postgresql://...`` or ``rediss://...``.

    ``?store=name`` names one of several stores on a server; ``?ca_cert=file`` is who certifies it.

    Raises:
        ConfigurationError: the URL cannot be used, or asks for a connection without verified TLS
            and ``allow_plaintext`` is not set, or the driver is not installed.
    """
    if not (isinstance(where, str) and "://" in where):
        return FolderVault(Path(where))
    scheme = where.partition("://")[0].lower()
    if scheme in ("postgresql", "postgres"):
        _need("psycopg", "postgres")
        from praval.core.postgres_vault import PostgresVault

        return PostgresVault(where, allow_plaintext=allow_plaintext)
    if scheme in ("redis", "rediss"):
        _need("redis", "redis")
        from praval.core.redis_vault import RedisVault

        return RedisVault(where, allow_plaintext=allow_plaintext)
    raise ConfigurationError(
        f"There is no secure store of kind {scheme!r}: a folder, postgresql:// or rediss://."
    )


def _need(driver: str, extra: str) -> None:
    try:
        import_module(driver)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"A secure store on this server needs the package {driver!r}, which is not installed. "
            f'Install it with: pip install "praval-asyncio[{extra}]"'
        ) from error


def read_url(url: str) -> tuple[SplitResult, dict[str, str], str]:
    """Return the parts of a server's URL, its options, and the name of the store.

    What a driver would misread is refused here: it is mostly a password with a character that
    should have been encoded, and the driver would quote it in an error.

    Raises:
        ConfigurationError: it cannot be read; the text repeats nothing of it.
    """
    parts: SplitResult | None
    try:
        parts = urlsplit(url)
        _ = parts.port  # refused here if it is none
    except ValueError:
        parts = None
    if (
        parts is None
        or parts.fragment
        or parts.netloc.count("@") > 1
        or "@" in parts.path
        or re.search(r"%(?![0-9A-Fa-f]{2})", parts.netloc)
    ):
        raise ConfigurationError(
            "The URL of the secure store cannot be read: scheme://user:password@host:port/?store="
            "name. In a password, write what is neither letter nor digit as %XX."
        )
    options = dict(parse_qsl(parts.query))
    return parts, options, options.pop("store", "praval")


def written_url(parts: SplitResult, options: dict[str, str]) -> str:
    """Return the URL with these options instead of its own."""
    return parts._replace(query=urlencode(options, quote_via=quote)).geturl()


def said(error: Exception) -> str:
    """What a server or its driver said, in one line; it names no password."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
