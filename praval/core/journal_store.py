"""The SQLite file behind a journal: its schema, its lock, one transaction per batch of changes.

Everything here blocks; `praval.core.journal_writer` runs it on its thread and nowhere else.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from praval.core.journal_changes import Accept, Change, DeadEntry, Delta, Entry, Key, Row, Settle
from praval.errors import JournalError, JournalLockedError, JournalSchemaError

if TYPE_CHECKING:
    import sqlite3

    from praval.core.journal_box import JournalBox

APPLICATION_ID = 0x50525641  # "PRVA": how the header of an SQLite file says whose it is
SCHEMA_VERSION = 1
PRUNE_CHUNK = 5_000  # rows that one prune transaction deletes, some ten milliseconds of work
_LOOKUP_CHUNK = 500  # ids in one duplicate look-up; SQLite allows at least 999 parameters

# A body lies in its delivery, or, if one acceptance was for several agents, once in `body`: for the
# deliveries numbered from its own number to `last`. `delivery` holds only what is unsettled, so it
# stays small and needs no index; what grows is `settled`, the memory of ids. `dead.id` is never
# used twice (AUTOINCREMENT), so that a stale id cannot drop somebody else's letter.
_SCHEMA = (
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
    """CREATE TABLE body (
        number INTEGER PRIMARY KEY, last INTEGER NOT NULL, content BLOB NOT NULL)""",
    """CREATE TABLE delivery (
        number INTEGER PRIMARY KEY, spore TEXT NOT NULL, agent TEXT NOT NULL,
        attempt INTEGER NOT NULL, body INTEGER, content BLOB)""",
    """CREATE TABLE settled (
        spore TEXT NOT NULL, agent TEXT NOT NULL, at REAL NOT NULL,
        PRIMARY KEY (spore, agent)) WITHOUT ROWID""",
    "CREATE INDEX settled_at ON settled (at)",
    """CREATE TABLE dead (
        id INTEGER PRIMARY KEY AUTOINCREMENT, spore TEXT NOT NULL, agent TEXT NOT NULL,
        content BLOB NOT NULL, reason TEXT NOT NULL, error TEXT NOT NULL,
        attempts INTEGER NOT NULL, at REAL NOT NULL)""",
    "CREATE TABLE total (outcome TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE replica (id TEXT NOT NULL)",
)

_HAS_KEYS = "SELECT count(*) FROM sqlite_master WHERE name = 'day_key'"
_PUT_BODY = "INSERT INTO body VALUES (?, ?, ?)"
_PUT_DELIVERY = "INSERT INTO delivery VALUES (?, ?, ?, 0, ?, ?)"
_SET_ATTEMPT = "UPDATE delivery SET attempt = ? WHERE number = ?"
_CONTENT = "coalesce(content, (SELECT content FROM body WHERE body.number = delivery.body))"
_PUT_DEAD = (
    f"INSERT INTO dead SELECT ?, ?, ?, {_CONTENT}, ?, ?, ?, ? FROM delivery WHERE number = ?"
)
_END_DELIVERY = "DELETE FROM delivery WHERE number = ?"
_RELEASE_BODY = """DELETE FROM body WHERE number = ? AND NOT EXISTS (
    SELECT 1 FROM delivery WHERE delivery.number BETWEEN body.number AND body.last)"""
_PUT_SETTLED = "INSERT INTO settled VALUES (?, ?, ?)"
_ADD_TOTAL = """INSERT INTO total VALUES (?, ?)
    ON CONFLICT (outcome) DO UPDATE SET count = count + excluded.count"""


class Store:
    """An open journal file, held exclusively until `close`."""

    def __init__(self, db: sqlite3.Connection, box: JournalBox | None = None) -> None:
        self._db = db
        self._box = box
        rows = db.execute("SELECT spore, agent, number, body FROM delivery")
        self._unsettled: dict[Key, Row] = {(spore, agent): (n, b) for spore, agent, n, b in rows}
        # Not only past the last delivery: a number inside the range of a body that is still there
        # would keep that body for ever.
        self._number = 1 + max(
            self._scalar("SELECT ifnull(max(number), 0) FROM delivery"),
            self._scalar("SELECT ifnull((SELECT last FROM body ORDER BY number DESC LIMIT 1), 0)"),
        )
        self._dead_id = 1 + self._scalar("SELECT ifnull(max(seq), 0) FROM sqlite_sequence")
        self.replica_id: str = db.execute("SELECT id FROM replica").fetchone()[0]

    def write(self, changes: Sequence[Change]) -> list[object]:
        """Commit `changes` in one transaction and return what each caller is told.

        A change that makes no sense gets a `JournalError` in its place and changes nothing. Any
        exception means that the transaction was rolled back and nothing of the batch remains.
        """
        db, box = self._db, self._box
        today = 0 if box is None else box.ready()
        db.execute("BEGIN")
        try:
            delta = Delta(self._unsettled, self._settled(changes), self._number, self._dead_id)
            answers = [delta.apply(change) for change in changes]
            if box is not None:
                _seal(delta, box, today)
            for sql, rows in (
                (_PUT_BODY, delta.bodies),
                (_PUT_DELIVERY, delta.deliveries),
                (_SET_ATTEMPT, delta.attempts),
                (_PUT_DEAD, delta.dead),
                (_END_DELIVERY, delta.ended),
                (_RELEASE_BODY, delta.released),
                (_PUT_SETTLED, delta.settled),
                (_ADD_TOTAL, delta.totals.items()),
            ):
                if rows:
                    db.executemany(sql, rows)
            db.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        self._keep(delta)
        return answers

    def _keep(self, delta: Delta) -> None:
        self._number, self._dead_id = delta.number, delta.dead_id
        for key, row in delta.changed.items():
            if row is None:
                self._unsettled.pop(key, None)
            else:
                self._unsettled[key] = row

    def _settled(self, changes: Sequence[Change]) -> set[Key]:
        """Look up which deliveries of the spores that this batch brings are settled already."""
        ids: list[str] = []
        for change in changes:
            if isinstance(change, Accept):
                ids.append(change.spore_id)
            elif isinstance(change, Settle):
                ids.extend(emission[0] for emission in change.emitted)
        found: set[Key] = set()
        for start in range(0, len(ids), _LOOKUP_CHUNK):
            chunk = ids[start : start + _LOOKUP_CHUNK]
            marks = ",".join("?" * len(chunk))
            sql = f"SELECT spore, agent FROM settled WHERE spore IN ({marks})"
            found.update(self._db.execute(sql, chunk))
        return found

    def unsettled(self, agent: str) -> list[Entry]:
        """List what is not settled for `agent`, in order of acceptance."""
        rows = self._db.execute(
            f"SELECT spore, agent, {_CONTENT}, attempt FROM delivery WHERE agent = ?"
            " ORDER BY number",
            (agent,),
        )
        return [
            Entry(spore, who, self._read(spore, body), attempt)
            for spore, who, body, attempt in rows
        ]

    def dead(self, limit: int) -> list[DeadEntry]:
        """List the newest `limit` dead letters, the oldest of them first."""
        rows = self._db.execute("SELECT * FROM dead ORDER BY id DESC LIMIT ?", (max(limit, 0),))
        letters = [
            DeadEntry(
                number, spore, agent, self._read(spore, body), why, self._text(spore, error), *etc
            )
            for number, spore, agent, body, why, error, *etc in rows
        ]
        return letters[::-1]

    def _read(self, spore_id: str, content: bytes) -> bytes:
        return content if self._box is None else self._box.open(spore_id, content)

    def _text(self, spore_id: str, error: str | bytes) -> str:
        return error if isinstance(error, str) else self._read(spore_id, error).decode()

    def drop_dead(self, row_id: int) -> None:
        """Delete one dead letter; `JournalError` if there is none with that id."""
        if not self._db.execute("DELETE FROM dead WHERE id = ?", (row_id,)).rowcount:
            raise JournalError(
                f"There is no dead letter {row_id}: it was dropped already, or never existed. "
                "List the dead letters for the ids there are."
            )

    def drop_dead_before(self, at: float) -> int:
        """Delete the dead letters that were buried before that time; how many there were."""
        return self._db.execute("DELETE FROM dead WHERE at < ?", (at,)).rowcount

    def prune(self, before: float) -> int:
        """Forget up to `PRUNE_CHUNK` ids settled before that time; how many were forgotten."""
        forgotten = self._db.execute(
            "DELETE FROM settled WHERE (spore, agent) IN"
            " (SELECT spore, agent FROM settled WHERE at < ? ORDER BY at LIMIT ?)",
            (before, PRUNE_CHUNK),
        ).rowcount
        if self._box is not None and forgotten < PRUNE_CHUNK:
            self._box.erase()
        return forgotten

    def counts(self) -> dict[str, int]:
        """Settled deliveries by outcome, then what is unsettled and dead now."""
        counts: dict[str, int] = dict(self._db.execute("SELECT outcome, count FROM total"))
        counts["unsettled"] = len(self._unsettled)
        counts["dead"] = self._scalar("SELECT count(*) FROM dead")
        return counts

    def close(self) -> None:
        """Write the log back into the file and give it up."""
        self._db.close()

    def _scalar(self, sql: str) -> int:
        value: int = self._db.execute(sql).fetchone()[0]
        return value

    def _roll_back(self) -> None:
        if self._db.in_transaction:  # SQLite has done it by itself when the disk is full
            self._db.execute("ROLLBACK")


def _seal(delta: Delta, box: JournalBox, day: int) -> None:
    """Encrypt what a batch writes of spores and of errors, which may quote them."""
    owners = {shared: spore for _, spore, _, shared, _ in delta.deliveries if shared is not None}
    delta.bodies = [
        (number, last, box.seal(owners[number], body, day)) for number, last, body in delta.bodies
    ]
    delta.deliveries = [
        (number, spore, agent, shared, None if body is None else box.seal(spore, body, day))
        for number, spore, agent, shared, body in delta.deliveries
    ]
    delta.dead = [
        (letter, spore, agent, why, box.seal(spore, str(error).encode(), day), attempts, at, number)
        for letter, spore, agent, why, error, attempts, at, number in delta.dead
    ]


def open_store(
    path: str | os.PathLike[str], *, sync: Literal["normal", "full"], key: bytes | None = None
) -> Store:
    """Open or create the journal at `path` and lock it; the errors are those of `Journal.open`."""
    import sqlite3

    file = Path(os.path.abspath(path))
    db: sqlite3.Connection | None = None
    try:
        _make_private(file)
        _refuse_foreign(file)
        db = sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=0, isolation_level=None)
        # The lock on the file lasts as long as the connection and dies with the process.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            _check_schema(db, file)
        else:
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute("INSERT INTO replica VALUES (?)", (secrets.token_hex(16),))
        box = _box(db, key)
        db.execute("COMMIT")
        _tune(db, file, sync)
        if box is not None:
            db.execute("PRAGMA secure_delete = ON")  # a key that is dropped is overwritten
            if box.is_new:
                _clean(db)
            box.erase()
        return Store(db, box)
    except BaseException as exc:
        if db is not None:
            db.close()
        if isinstance(exc, sqlite3.Error | OSError):
            _explain(exc, file)
        raise


def _box(db: sqlite3.Connection, key: bytes | None) -> JournalBox | None:
    """Return what seals the file, if it is sealed."""
    if key is None and not db.execute(_HAS_KEYS).fetchone()[0]:
        return None
    from praval.core.journal_box import box_for  # it needs the package of the extra "secure"

    return box_for(db, key)


def _tune(db: sqlite3.Connection, file: Path, sync: Literal["normal", "full"]) -> None:
    if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise JournalError(
            f"The journal {file} cannot use a write-ahead log: its file system does not allow it. "
            "Put the journal on a local disk."
        )
    db.execute(f"PRAGMA synchronous = {'FULL' if sync == 'full' else 'NORMAL'}")
    # Bodies that are dropped are overwritten where that costs no extra writing.
    db.execute("PRAGMA secure_delete = FAST")
    db.execute("PRAGMA cache_size = -16000")  # KiB
    # The log is folded into the file every 4,000 pages (16 MB), each time with a disk flush.
    db.execute("PRAGMA wal_autocheckpoint = 4000")
    db.execute("PRAGMA journal_size_limit = 67108864")  # bytes a burst may leave in the log


def _clean(db: sqlite3.Connection) -> None:
    """Leave nothing of what was in the file, and was dropped, before it was sealed."""
    db.execute("VACUUM")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _make_private(file: Path) -> None:
    for folder in reversed([file.parent, *file.parent.parents]):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileExistsError):
        # SQLite gives its log the mode of the file, so this protects both.
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _refuse_foreign(file: Path) -> None:
    """Look at an existing file without locking it, replaying its log or leaving files beside it.

    SQLite must do the reading: a plain open and close here would drop the lock that another
    journal of this process holds on the file (POSIX record locks belong to the process).
    """
    import sqlite3

    if not file.stat().st_size:
        return
    db = sqlite3.connect(f"{file.as_uri()}?immutable=1", uri=True, isolation_level=None)
    try:
        _check_schema(db, file)
    finally:
        db.close()


def _check_schema(db: sqlite3.Connection, file: Path) -> None:
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise JournalSchemaError(
            f"{file} is an SQLite file, but no journal of Praval. It was left as it is: "
            "give the journal another path."
        )
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise JournalSchemaError(
            f"The journal {file} has schema version {version}, this Praval knows version "
            f"{SCHEMA_VERSION}. It was left as it is: use the Praval that wrote it or another path."
        )


def _explain(exc: sqlite3.Error | OSError, file: Path) -> NoReturn:
    import sqlite3

    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF  # without the extended part
    if code == sqlite3.SQLITE_BUSY:
        raise JournalLockedError(
            f"The journal {file} is held by another live process, or by a Journal of this one "
            "that was not closed. Stop that process, close that Journal, or use another path."
        ) from exc
    if code == sqlite3.SQLITE_NOTADB:
        raise JournalSchemaError(
            f"{file} is no SQLite file. It was left as it is: give the journal another path."
        ) from exc
    raise JournalError(
        f"The journal {file} cannot be opened: {exc}. "
        "Check that the path is a file this user may read and write, on a disk with room."
    ) from exc
