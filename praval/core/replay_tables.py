"""Tables for the replay memory: in memory, and in an SQLite file that a host's processes share.

Guide: "Security Features" (replay attack prevention).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from praval.core.key_files import make_private, private_folder
from praval.core.replay import Entry, Key
from praval.errors import ReplayError, SealCode

if TYPE_CHECKING:
    import sqlite3

APPLICATION_ID = 0x50525652  # "PRVR"
SCHEMA_VERSION = 1
PATIENCE = 10.0
"""Seconds to wait for another process's transaction."""

_SCHEMA = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
    """CREATE TABLE entry (
        receiver TEXT NOT NULL, sender BLOB NOT NULL, spore BLOB NOT NULL,
        content BLOB NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL,
        fence INTEGER NOT NULL, leased_until INTEGER NOT NULL, attempt INTEGER NOT NULL,
        outcome TEXT, PRIMARY KEY (receiver, sender, spore)) WITHOUT ROWID""",
    "CREATE INDEX entry_expires ON entry (expires)",
    "CREATE INDEX entry_created ON entry (receiver, sender, created)",
    """CREATE TABLE sender (
        receiver TEXT NOT NULL, sender BLOB NOT NULL, entries INTEGER NOT NULL,
        floor INTEGER NOT NULL, PRIMARY KEY (receiver, sender)) WITHOUT ROWID""",
    "CREATE TABLE meta (instance BLOB NOT NULL, clock INTEGER NOT NULL, fence INTEGER NOT NULL)",
)
_FIELDS = "content, created, expires, fence, leased_until, attempt, outcome"
_ONE = "receiver = ? AND sender = ? AND spore = ?"
_PEER = "receiver = ? AND sender = ?"


class MemoryTable:
    """A table that ends with the process: for tests, and for keys that end with it too."""

    def __init__(self, instance: bytes) -> None:
        self.instance = instance
        self._lock = threading.Lock()
        self.entries: dict[Key, Entry] = {}
        self._floors: dict[tuple[str, bytes], int] = {}
        self._counts: dict[tuple[str, bytes], int] = {}
        self._clock = self._fence = 0

    @contextmanager
    def transaction(self) -> Iterator[MemoryTable]:
        """See :class:`praval.core.replay.Table`."""
        with self._lock:
            yield self

    def get(self, key: Key) -> Entry | None:
        """See :class:`praval.core.replay.Rows`, like all that follow."""
        return self.entries.get(key)

    def put(self, key: Key, entry: Entry) -> None:
        """Write an entry."""
        if key not in self.entries:
            peer = key[:2]
            self._counts[peer] = self._counts.get(peer, 0) + 1
        self.entries[key] = entry

    def count(self, receiver: str, sender: bytes) -> int:
        """Return how many entries there are of a peer."""
        return self._counts.get((receiver, sender), 0)

    def evict(self, receiver: str, sender: bytes, number: int, before: int) -> int | None:
        """Delete the oldest committed entries of a peer."""
        found = sorted(
            (entry.created, key)
            for key, entry in self.entries.items()
            if key[:2] == (receiver, sender) and entry.outcome and entry.created <= before
        )[:number]
        for _, key in found:
            self._drop(key)
        return found[-1][0] if found else None

    def floor(self, receiver: str, sender: bytes) -> int:
        """Return a peer's floor."""
        return self._floors.get((receiver, sender), 0)

    def raise_floor(self, receiver: str, sender: bytes, floor: int) -> None:
        """Raise a peer's floor."""
        self._floors[receiver, sender] = max(floor, self.floor(receiver, sender))

    def clock(self) -> int:
        """Return the highest time."""
        return self._clock

    def set_clock(self, now: int) -> None:
        """Set the time."""
        self._clock = now

    def next_fence(self) -> int:
        """Return the next number."""
        self._fence += 1
        return self._fence

    def purge(self, before: int, number: int) -> int:
        """Delete expired entries."""
        found = [
            key
            for key, entry in self.entries.items()
            if entry.expires < before and entry.leased_until <= self._clock
        ][:number]
        for key in found:
            self._drop(key)
        return len(found)

    def _drop(self, key: Key) -> None:
        del self.entries[key]
        self._counts[key[:2]] -= 1


class SQLiteTable:
    """A table in a file, 0600 in a folder 0700; several processes of one host may use it."""

    def __init__(self, db: sqlite3.Connection, instance: bytes) -> None:
        self._db = db
        self.instance = instance
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        instance: bytes | None = None,
        sync: Literal["normal", "full"] = "full",
    ) -> SQLiteTable:
        """Open a table; with ``instance``, make it if it is missing.

        ``sync="full"`` survives a power failure, ``"normal"`` the death of the process: after a
        power failure what was handled last could be replayed.

        Raises:
            ReplayError: it is missing, or no table of ours, or cannot be opened.
            KeyringError: others may read it.
        """
        import sqlite3

        file = Path(os.path.abspath(path))
        try:
            if instance is None and not (file.exists() and file.stat().st_size):
                raise ReplayError(
                    f"The replay memory {file} is missing or empty. Without it nobody can tell "
                    "what was handled: praval keys rotate --lost makes a new one, with new keys.",
                    SealCode.REPLAY,
                )
            private_folder(file.parent)
            make_private(file)
            db = sqlite3.connect(
                f"{file.as_uri()}?mode=rw",
                uri=True,
                timeout=PATIENCE,
                isolation_level=None,
                check_same_thread=False,
            )
        except (sqlite3.Error, OSError) as error:
            raise ReplayError(f"The replay memory {file} cannot be opened: {error}.") from error
        try:
            return cls(db, _prepare(db, file, instance, sync))
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.Error):
                raise ReplayError(
                    f"The replay memory {file} cannot be used: {error}. It was left as it is."
                ) from error
            raise

    @contextmanager
    def transaction(self) -> Iterator[_Rows]:
        """See :class:`praval.core.replay.Table`.

        Raises:
            ReplayError: the file cannot be written; nothing of the transaction remains.
        """
        import sqlite3

        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield _Rows(self._db)
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise ReplayError(
                    f"The replay memory cannot be written: {error}. Nothing was acknowledged.",
                    SealCode.RATE_LIMITED,
                ) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()


class _Rows:
    """The SQL of one transaction; see :class:`praval.core.replay.Rows`."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def get(self, key: Key) -> Entry | None:
        row = self._db.execute(f"SELECT {_FIELDS} FROM entry WHERE {_ONE}", key).fetchone()
        return None if row is None else Entry(*row)

    def put(self, key: Key, entry: Entry) -> None:
        values = (
            entry.content, entry.created, entry.expires, entry.fence, entry.leased_until,
            entry.attempt, entry.outcome,
        )  # fmt: skip
        updated = self._db.execute(
            f"UPDATE entry SET ({_FIELDS}) = (?, ?, ?, ?, ?, ?, ?) WHERE {_ONE}", (*values, *key)
        ).rowcount
        if not updated:
            self._db.execute(f"INSERT INTO entry VALUES ({', '.join('?' * 10)})", (*key, *values))
            self._add(key.receiver, key.sender, 1)

    def count(self, receiver: str, sender: bytes) -> int:
        return self._one(f"SELECT entries FROM sender WHERE {_PEER}", receiver, sender)

    def evict(self, receiver: str, sender: bytes, number: int, before: int) -> int | None:
        found = self._db.execute(
            f"SELECT spore, created FROM entry WHERE {_PEER} AND outcome IS NOT NULL"
            " AND created <= ? ORDER BY created LIMIT ?",
            (receiver, sender, before, number),
        ).fetchall()
        self._db.executemany(
            f"DELETE FROM entry WHERE {_ONE}", [(receiver, sender, spore) for spore, _ in found]
        )
        self._add(receiver, sender, -len(found))
        return found[-1][1] if found else None

    def floor(self, receiver: str, sender: bytes) -> int:
        return self._one(f"SELECT floor FROM sender WHERE {_PEER}", receiver, sender)

    def raise_floor(self, receiver: str, sender: bytes, floor: int) -> None:
        self._add(receiver, sender, 0)
        self._db.execute(
            f"UPDATE sender SET floor = max(floor, ?) WHERE {_PEER}", (floor, receiver, sender)
        )

    def clock(self) -> int:
        return self._one("SELECT clock FROM meta")

    def set_clock(self, now: int) -> None:
        self._db.execute("UPDATE meta SET clock = ?", (now,))

    def next_fence(self) -> int:
        self._db.execute("UPDATE meta SET fence = fence + 1")
        return self._one("SELECT fence FROM meta")

    def purge(self, before: int, number: int) -> int:
        found = self._db.execute(
            "SELECT receiver, sender, spore FROM entry WHERE expires < ? AND leased_until <="
            " (SELECT clock FROM meta) ORDER BY expires LIMIT ?",
            (before, number),
        ).fetchall()
        for row in found:
            self._db.execute(f"DELETE FROM entry WHERE {_ONE}", row)
            self._add(row[0], row[1], -1)
        return len(found)

    def _add(self, receiver: str, sender: bytes, entries: int) -> None:
        self._db.execute(
            "INSERT INTO sender VALUES (?, ?, ?, 0)"
            " ON CONFLICT DO UPDATE SET entries = entries + excluded.entries",
            (receiver, sender, entries),
        )

    def _one(self, sql: str, *values: Any) -> int:
        row = self._db.execute(sql, values).fetchone()
        return 0 if row is None else int(row[0])


def _prepare(
    db: sqlite3.Connection, file: Path, instance: bytes | None, sync: Literal["normal", "full"]
) -> bytes:
    """Check what is in the file, or fill a new one; return its instance id."""
    if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise ReplayError(f"The replay memory {file} must lie on a local disk.")
    db.execute(f"PRAGMA synchronous = {'FULL' if sync == 'full' else 'NORMAL'}")
    db.execute("BEGIN IMMEDIATE")
    if instance and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute("INSERT INTO meta VALUES (?, 0, 0)", (instance,))
    db.execute("COMMIT")
    if (
        db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID
        or db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION
    ):
        raise ReplayError(
            f"{file} is no replay memory, or one of another version of Praval. It was left as it "
            "is: use another path."
        )
    found: bytes = db.execute("SELECT instance FROM meta").fetchone()[0]
    return found
