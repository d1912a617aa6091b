"""Connections to PostgreSQL, on which every wait ends.

A replica that dies inside a transaction hinders the others until the server ends that transaction,
and they wait longer than that. A server that says nothing is left, whatever it was asked.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from praval.core.key_vaults import read_url, written_url
from praval.errors import ConfigurationError

if TYPE_CHECKING:
    import psycopg

CONNECT = 10
"""Seconds for a connection."""
IDLE = 10
"""Seconds that a process may say nothing inside a transaction."""
STATEMENT = IDLE + 5
"""Seconds for a statement, and for the lock that it waits for."""
SILENCE = STATEMENT + 5
"""Seconds until a server that does not answer is given up."""
OVERRULING = ("ssl", "requiressl")
"""Options that libpq takes for an sslmode, whatever sslmode itself says."""


class Place:
    """A store in a database: what libpq is told, and what may be shown of it."""

    def __init__(self, conninfo: str, store: str, shown: str) -> None:
        self.conninfo, self.store, self._shown = conninfo, store, shown

    def __repr__(self) -> str:
        return self._shown

    @classmethod
    def of(cls, url: str, *, allow_plaintext: bool) -> Self:
        """Read a URL.

        Raises:
            ConfigurationError: it cannot be read, or asks for less than verified TLS without
                ``allow_plaintext``.
        """
        parts, options, store = read_url(url)
        if "ca_cert" in options:
            options["sslrootcert"] = options.pop("ca_cert")
        for option in OVERRULING:
            if option in options:
                raise ConfigurationError(f"{option}= overrules sslmode=: leave it out.")
        mode = options.setdefault("sslmode", "prefer" if allow_plaintext else "verify-full")
        if mode != "verify-full" and not allow_plaintext:
            raise ConfigurationError(
                f"sslmode={mode} does not verify whose server it is: leave it out, or allow "
                "plaintext in so many words (allow_plaintext=True)."
            )
        options.setdefault("connect_timeout", str(CONNECT))
        options.setdefault("tcp_user_timeout", str(CONNECT * 1000))
        host = options.get("host", parts.hostname)
        return cls(written_url(parts, options), store, f"PostgreSQL at {host}, store {store!r}")


class Connection:
    """A connection that is made when it is needed, and made again when it was lost."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._db: psycopg.Connection[Any] | None = None
        self._lock = threading.RLock()

    @contextmanager
    def transaction(self) -> Iterator[psycopg.Connection[Any]]:
        """Begin a transaction, or go on in the one that this thread is in."""
        with self._lock:
            db = self._opened()
            try:
                if db.info.transaction_status:  # inside of another block
                    yield db
                else:
                    with db.transaction():
                        yield db
            finally:
                if db.broken or db.closed:
                    self.close()

    def _opened(self) -> psycopg.Connection[Any]:
        import psycopg

        if self._db is not None and self._is_dead(self._db):
            self.close()
        if self._db is None:
            db = self._db = _impatient().connect(self._place.conninfo, autocommit=True)
            # Each statement sees what others wrote while it waited for its lock.
            db.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            for name, seconds in (
                ("lock_timeout", STATEMENT),
                ("statement_timeout", STATEMENT),
                ("idle_in_transaction_session_timeout", IDLE),
            ):
                db.execute("SELECT set_config(%s, %s, false)", (name, f"{seconds}s"))
        return self._db

    @staticmethod
    def _is_dead(db: psycopg.Connection[Any]) -> bool:
        """Whether the server has hung up, as far as can be seen without asking it."""
        import psycopg

        if db.closed or db.broken:
            return True
        if db.info.transaction_status:
            return False
        try:
            db.pgconn.consume_input()
        except psycopg.Error:
            return True
        return db.pgconn.status != psycopg.pq.ConnStatus.OK

    def close(self) -> None:
        """Close it; the next use makes another."""
        with self._lock:
            db, self._db = self._db, None
            if db is not None:
                import psycopg

                with suppress(psycopg.Error):
                    db.close()


@cache
def _impatient() -> type[psycopg.Connection[Any]]:
    """Return the class of connections that do not wait for ever; the driver is loaded here."""
    import psycopg

    class Impatient(psycopg.Connection[Any]):
        """A connection that is closed when the server has not answered for `SILENCE` seconds."""

        def wait(
            self, gen: Any, interval: float = 0.1, timeout: float | None = None
        ) -> Any:  # of a generator; the type of its result
            try:
                return super().wait(gen, interval, SILENCE if timeout is None else timeout)
            except psycopg.OperationalError:
                # What the server said ends the statement; otherwise it is still under way.
                if self.info.transaction_status is not psycopg.pq.TransactionStatus.ACTIVE:
                    raise
                self.close()
            raise psycopg.OperationalError(
                f"the server has not answered for {SILENCE} s; the connection was given up"
            )

    return Impatient
