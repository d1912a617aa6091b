"""A vault in PostgreSQL, for replicas on several hosts.

The tables are ``praval_store``, ``praval_replay``, ``praval_replay_entry`` and
``praval_replay_sender``; the user needs the right to make them once. A transaction of the replay
memory holds the row of its store, so that there is one at a time. What was committed is on the
server's disk, as far as its ``synchronous_commit`` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from praval.core.key_vaults import Sync, said
from praval.core.postgres_connection import Connection, Place
from praval.core.replay import Entry, Key
from praval.core.replay_buffer import BufferedRows, Peer, PeerState, Seen, Writes
from praval.errors import KeyringError, ReplayError, SealCode

if TYPE_CHECKING:
    import psycopg

SCHEMA_VERSION = 1
MAKING = 0x70727661  # "prva": an advisory lock, so that tables are made by one process
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS praval_store (
        name text PRIMARY KEY, version integer NOT NULL, keyring bytea NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS praval_replay (
        store text PRIMARY KEY, instance bytea NOT NULL, clock bigint NOT NULL,
        fence bigint NOT NULL, number bigint NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS praval_replay_entry (
        store text NOT NULL REFERENCES praval_replay ON DELETE CASCADE,
        receiver text NOT NULL, sender bytea NOT NULL, spore bytea NOT NULL,
        content bytea NOT NULL, created bigint NOT NULL, expires bigint NOT NULL,
        fence bigint NOT NULL, leased_until bigint NOT NULL, attempt integer NOT NULL,
        outcome text, PRIMARY KEY (store, receiver, sender, spore))""",
    """CREATE INDEX IF NOT EXISTS praval_replay_entry_expires
        ON praval_replay_entry (store, expires)""",
    """CREATE INDEX IF NOT EXISTS praval_replay_entry_created
        ON praval_replay_entry (store, receiver, sender, created)""",
    """CREATE TABLE IF NOT EXISTS praval_replay_sender (
        store text NOT NULL REFERENCES praval_replay ON DELETE CASCADE,
        receiver text NOT NULL, sender bytea NOT NULL, entries bigint NOT NULL,
        floor bigint NOT NULL, PRIMARY KEY (store, receiver, sender))""",
)
_FIELDS = "content, created, expires, fence, leased_until, attempt, outcome"
_PEER = "store = %s AND receiver = %s AND sender = %s"
_PUT = f"""INSERT INTO praval_replay_entry (store, receiver, sender, spore, {_FIELDS})
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (store, receiver, sender, spore) DO UPDATE SET
    ({_FIELDS}) = (EXCLUDED.content, EXCLUDED.created, EXCLUDED.expires, EXCLUDED.fence,
    EXCLUDED.leased_until, EXCLUDED.attempt, EXCLUDED.outcome)"""
_PUT_PEER = """INSERT INTO praval_replay_sender VALUES (%s, %s, %s, %s, %s)
    ON CONFLICT (store, receiver, sender) DO UPDATE SET
    (entries, floor) = (EXCLUDED.entries, EXCLUDED.floor)"""


class PostgresVault:
    """See the module and :class:`praval.core.key_vaults.Vault`."""

    def __init__(self, url: str, *, allow_plaintext: bool) -> None:
        self._place = Place.of(url, allow_plaintext=allow_plaintext)
        self.name = self._place.store
        self._connection = Connection(self._place)

    def __repr__(self) -> str:
        return repr(self._place)

    def exists(self) -> bool:
        """See :class:`Vault`, like all that follow."""
        return self._row() is not None

    def create(self, box: bytes, instance: bytes) -> None:
        """Make the tables, and the row of the store."""
        with self._using() as db:
            db.execute("SELECT pg_advisory_xact_lock(%s)", (MAKING,))
            for statement in _SCHEMA:
                db.execute(statement)
            made = db.execute(
                "INSERT INTO praval_store VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (self.name, SCHEMA_VERSION, box),
            ).rowcount
            if not made:
                raise KeyringError(
                    f"There is a store already in {self!r}. Use it, or name another (?store=)."
                )
            self._make_table(db, instance)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the row of the store."""
        with self._using() as db:
            db.execute("SELECT 1 FROM praval_store WHERE name = %s FOR UPDATE", (self.name,))
            yield

    def read(self) -> bytes:
        """Read the row."""
        row = self._row()
        if row is None:
            raise KeyringError(f"There is no store in {self!r}: make one with praval keys init.")
        if row[0] != SCHEMA_VERSION:
            raise KeyringError(f"The store in {self!r} is one of another version of Praval.")
        return bytes(row[1])

    def _row(self) -> Any:
        with self._using() as db:
            if db.execute("SELECT to_regclass('praval_store')").fetchone() == (None,):
                return None
            return db.execute(
                "SELECT version, keyring FROM praval_store WHERE name = %s", (self.name,)
            ).fetchone()

    def write(self, box: bytes) -> None:
        """Write the row."""
        with self._using() as db:
            db.execute("UPDATE praval_store SET keyring = %s WHERE name = %s", (box, self.name))

    def open_table(self, sync: Sync) -> PostgresTable:
        """Open the table, on a connection of its own."""
        return PostgresTable(self._place)

    def renew_table(self, instance: bytes) -> None:
        """Delete all entries, and begin under another instance."""
        with self._using() as db:
            db.execute("DELETE FROM praval_replay WHERE store = %s", (self.name,))
            self._make_table(db, instance)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _make_table(self, db: psycopg.Connection[Any], instance: bytes) -> None:
        db.execute(
            "INSERT INTO praval_replay VALUES (%s, %s, 0, 0, 0)"
            " ON CONFLICT (store) DO UPDATE SET instance = EXCLUDED.instance",
            (self.name, instance),
        )

    @contextmanager
    def _using(self) -> Iterator[psycopg.Connection[Any]]:
        """Use the connection in the transaction that is open, or in one of this block."""
        import psycopg

        try:
            with self._connection.transaction() as db:
                yield db
        except psycopg.Error as error:
            raise KeyringError(f"{self!r} cannot be used: {said(error)}.") from error


class PostgresTable:
    """The replay memory of one store; see :class:`praval.core.replay.Table`."""

    def __init__(self, place: Place) -> None:
        """Open it.

        Raises:
            ReplayError: it is missing, or the server cannot be reached.
        """
        self._store = place.store
        self._connection = Connection(place)
        try:
            with self._using() as db:
                row = db.execute(
                    "SELECT instance FROM praval_replay WHERE store = %s", (self._store,)
                ).fetchone()
            self._seen = Seen(repr(place), row and row[0])
        except BaseException:
            self.close()
            raise
        self.instance = self._seen.instance

    @contextmanager
    def transaction(self) -> Iterator[BufferedRows]:
        """See :class:`praval.core.replay.Table`.

        Raises:
            ReplayError: the server cannot be used; nothing of the transaction remains.
        """
        with self._using() as db:
            row = db.execute(
                "SELECT instance, clock, fence, number FROM praval_replay WHERE store = %s"
                " FOR UPDATE",
                (self._store,),
            ).fetchone()
            instance, clock, fence, last = row or (None, 0, 0, 0)
            self._seen.check(instance, last)
            rows = BufferedRows(_Rows(db, self._store), clock, fence, last)
            yield rows
            rows.flush()
        self._seen.confirmed(rows.number)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def _using(self) -> Iterator[psycopg.Connection[Any]]:
        import psycopg

        try:
            with self._connection.transaction() as db:
                yield db
        except psycopg.Error as error:
            raise ReplayError(
                f"The replay memory in PostgreSQL cannot be used: {said(error)}. Nothing was "
                "acknowledged.",
                SealCode.RATE_LIMITED,
            ) from error


class _Rows:
    """The SQL of one transaction; see :class:`praval.core.replay_buffer.Server`."""

    def __init__(self, db: psycopg.Connection[Any], store: str) -> None:
        self._db, self._store = db, store

    def entry(self, key: Key) -> Entry | None:
        row = self._db.execute(
            f"SELECT {_FIELDS} FROM praval_replay_entry WHERE {_PEER} AND spore = %s",
            (self._store, *key),
        ).fetchone()
        return None if row is None else Entry(bytes(row[0]), *row[1:])

    def peer(self, peer: Peer) -> PeerState:
        row = self._db.execute(
            f"SELECT entries, floor FROM praval_replay_sender WHERE {_PEER}", (self._store, *peer)
        ).fetchone()
        return PeerState() if row is None else PeerState(*row)

    def oldest(self, peer: Peer, number: int, before: int) -> list[tuple[bytes, int]]:
        rows = self._db.execute(
            f"SELECT spore, created FROM praval_replay_entry WHERE {_PEER} AND outcome IS NOT NULL"
            " AND created <= %s ORDER BY created LIMIT %s",
            (self._store, *peer, before, number),
        )
        return [(bytes(spore), created) for spore, created in rows]

    def expired(self, before: int, clock: int, number: int) -> list[Key]:
        rows = self._db.execute(
            "SELECT receiver, sender, spore FROM praval_replay_entry WHERE store = %s AND"
            " expires < %s AND leased_until <= %s ORDER BY expires LIMIT %s",
            (self._store, before, clock, number),
        )
        return [Key(receiver, bytes(sender), bytes(spore)) for receiver, sender, spore in rows]

    def write(self, writes: Writes) -> None:
        with self._db.cursor() as cursor:
            if writes.entries:
                rows = [
                    (
                        self._store, *key, entry.content, entry.created, entry.expires,
                        entry.fence, entry.leased_until, entry.attempt, entry.outcome,
                    )
                    for key, entry in writes.entries.items()
                ]  # fmt: skip
                cursor.executemany(_PUT, rows)
            if writes.gone:
                cursor.executemany(
                    f"DELETE FROM praval_replay_entry WHERE {_PEER} AND spore = %s",
                    [(self._store, *key) for key in writes.gone],
                )
            if writes.peers:
                peers = [(self._store, *peer, *state) for peer, state in writes.peers.items()]
                cursor.executemany(_PUT_PEER, peers)
            cursor.execute(
                "UPDATE praval_replay SET (clock, fence, number) = (%s, %s, %s) WHERE store = %s",
                (writes.clock, writes.fence, writes.number, self._store),
            )
