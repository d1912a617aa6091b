"""Where a secure store keeps its two parts: a folder, PostgreSQL or Redis.

A vault knows bytes and entries, not keys: the keyring comes encrypted, and what the replay memory
has of contents are keyed digests. Replicas on several hosts share one on a server.

All calls block. Guide: "Key Management System".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import urlsplit

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
            and ``allow_plaintext`` is not set.
    """
    scheme = urlsplit(where).scheme if isinstance(where, str) and "://" in where else ""
    if not scheme:
        return FolderVault(Path(where))
    if scheme in ("postgresql", "postgres"):
        from praval.core.postgres_vault import PostgresVault

        return PostgresVault(str(where), allow_plaintext=allow_plaintext)
    if scheme in ("redis", "rediss"):
        from praval.core.redis_vault import RedisVault

        return RedisVault(str(where), allow_plaintext=allow_plaintext)
    raise ConfigurationError(
        f"There is no secure store of kind {scheme!r}: a folder, postgresql:// or rediss://."
    )
