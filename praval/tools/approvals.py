"""Questions to a human: may this tool be called? Kept in a SQLite file until they are answered.

A tool with ``requires_approval=True`` waits until somebody answers, here or in another process
(``praval approvals``). The question and the conversation so far are written before the wait, so a
process that dies in between goes on where it was: the spore that its journal delivers again finds
its conversation, the question, and perhaps the answer. A call that was made is not made twice. One
that was cut off while it ran may have been made or not: the human is asked again, and told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from praval.errors import ApprovalError
from praval.plugins import near
from praval.settings import current_settings

T = TypeVar("T")
State = Literal["pending", "approved", "denied", "begun", "done", "failed", "withdrawn"]
""""begun": approved, and being called; "done" and "failed": called since; "withdrawn": nobody
waited any more."""
CUT_OFF = "It was approved and begun before, and cut off: it may have been made already."

FILE = "approvals.sqlite"
POLL = 0.25
"""Seconds between two looks at the file: the answer usually comes from another process."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS approvals (
    id TEXT PRIMARY KEY,
    place TEXT NOT NULL UNIQUE,
    scope TEXT NOT NULL,
    agent TEXT,
    tool TEXT NOT NULL,
    arguments TEXT NOT NULL,
    created_at REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending',
    decided_at REAL,
    decided_by TEXT,
    note TEXT,
    result TEXT
);
CREATE TABLE IF NOT EXISTS paused (
    scope TEXT PRIMARY KEY,
    conversation BLOB NOT NULL,
    created_at REAL NOT NULL
);
"""
_COLUMNS = "id, agent, tool, arguments, created_at, state, decided_at, decided_by, note, result"


class Approval(msgspec.Struct, frozen=True):
    """A question to a human; times are seconds since the epoch."""

    id: str
    agent: str | None
    tool: str
    arguments: str
    """JSON, as the model wrote it."""
    created_at: float
    state: State = "pending"
    decided_at: float | None = None
    decided_by: str | None = None
    note: str | None = None
    """The human's; of a pending question: what to know before it is answered."""
    result: str | None = None
    """What the approved call returned."""


class Approvals:
    """The questions in one file; any number of processes may use it at once.

    Args:
        path: default: ``approvals.sqlite`` under ``PRAVAL_DATA_DIR``.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else current_settings().data_path / FILE

    # -- for humans ----------------------------------------------------------------------

    async def pending(self) -> list[Approval]:
        """Return the questions that wait for an answer, oldest first."""
        return await self._do(
            lambda db: _rows(db, "WHERE state = 'pending' ORDER BY created_at, id")
        )

    async def get(self, id: str) -> Approval:
        """Return a question.

        Raises:
            ApprovalError: there is none with this id.
        """
        return await self._do(lambda db: self._find(db, id))

    async def approve(self, id: str, *, by: str = "", note: str = "") -> Approval:
        """Allow the call.

        Raises:
            ApprovalError: there is no such question, or it was answered.
        """
        return await self._do(lambda db: self._decide(db, id, "approved", by, note))

    async def deny(self, id: str, *, by: str = "", note: str = "") -> Approval:
        """Forbid the call; the model is told so, with the note.

        Raises:
            ApprovalError: there is no such question, or it was answered.
        """
        return await self._do(lambda db: self._decide(db, id, "denied", by, note))

    # -- for the calls that wait ---------------------------------------------------------

    async def resume(self, scope: str) -> bytes | None:
        """Return the conversation that was paused in this scope, if any."""

        def read(db: sqlite3.Connection) -> bytes | None:
            query = "SELECT conversation FROM paused WHERE scope = ?"
            row = db.execute(query, (scope,)).fetchone()
            return None if row is None else bytes(row[0])

        return await self._do(read) if await asyncio.to_thread(self.path.exists) else None

    async def pause(
        self, scope: str, conversation: bytes, calls: list[tuple[str, str | None, str, str]]
    ) -> list[Approval]:
        """Write a conversation and its questions in one step; return the questions.

        Args:
            scope: what is paused: one chat call of one handling.
            conversation: where it goes on.
            calls: per question its place in the conversation, agent, tool and arguments.
        """

        def write(db: sqlite3.Connection) -> list[Approval]:
            now = time.time()
            db.execute("INSERT OR REPLACE INTO paused VALUES (?, ?, ?)", (scope, conversation, now))
            found = []
            for where, agent, tool, arguments in calls:
                place = f"{scope}:{where}"
                db.execute(
                    "DELETE FROM approvals WHERE place = ? AND (tool, arguments) <> (?, ?)",
                    (place, tool, arguments),
                )
                db.execute(
                    "INSERT OR IGNORE INTO approvals (id, place, scope, agent, tool, arguments, "
                    "created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (secrets.token_hex(4), place, scope, agent, tool, arguments, now),
                )
                found += _rows(db, "WHERE place = ?", place)
            return found

        return await self._do(write)

    async def decided(self, id: str) -> Approval:
        """Wait until the question is answered; return it with the answer."""
        # the answer comes from another process, which can set no event here
        while (approval := await self.get(id)).state == "pending":  # noqa: ASYNC110
            await asyncio.sleep(POLL)
        return approval

    async def begin(self, id: str) -> bool:
        """Write that the approved call is being made; False: it was begun before, and cut off.

        Then the question is asked again, with a note that says so.
        """

        def write(db: sqlite3.Connection) -> bool:
            query = "UPDATE approvals SET state = 'begun' WHERE id = ? AND state = 'approved'"
            if db.execute(query, (id,)).rowcount:
                return True
            db.execute(
                "UPDATE approvals SET state = 'pending', note = ? WHERE id = ? AND state = 'begun'",
                (CUT_OFF, id),
            )
            return False

        return await self._do(write)

    async def record(self, id: str, result: str, *, failed: bool) -> None:
        """Write what the approved call returned: it must not be made again."""
        state = "failed" if failed else "done"
        await self._do(
            lambda db: db.execute(
                "UPDATE approvals SET state = ?, result = ? WHERE id = ?", (state, result, id)
            )
        )

    async def finish(self, scope: str, *, keep_answers: bool) -> None:
        """Forget the paused conversation: it came to its end. Its questions stay readable.

        Args:
            scope: what was paused.
            keep_answers: the same calls in the same scope are not asked for, nor made, again (the
                scope is a spore, whose handler may be retried); otherwise they are.
        """

        def forget(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM paused WHERE scope = ?", (scope,))
            if not keep_answers:
                db.execute("UPDATE approvals SET place = id WHERE scope = ?", (scope,))

        await self._do(forget)

    async def withdraw(self, scope: str) -> None:
        """Take back what was asked in a scope that nobody will come back to."""

        def forget(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM paused WHERE scope = ?", (scope,))
            db.execute(
                "UPDATE approvals SET state = 'withdrawn' WHERE scope = ? AND state = 'pending'",
                (scope,),
            )

        await self._do(forget)

    # -- inside --------------------------------------------------------------------------

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            with _opened(self.path) as db:
                return work(db)

        return await asyncio.to_thread(run)

    def _find(self, db: sqlite3.Connection, id: str) -> Approval:
        found = _rows(db, "WHERE id = ?", id)
        if not found:
            known = [row[0] for row in db.execute("SELECT id FROM approvals")]
            raise ApprovalError(f"No question {id!r} in {self.path}.{near(id, known)}")
        return found[0]

    def _decide(
        self, db: sqlite3.Connection, id: str, state: State, by: str, note: str
    ) -> Approval:
        changed = db.execute(
            "UPDATE approvals SET state = ?, decided_at = ?, decided_by = ?, note = ? "
            "WHERE id = ? AND state = 'pending'",
            (state, time.time(), by, note, id),
        )
        approval = self._find(db, id)
        if approval.state == "withdrawn":
            raise ApprovalError(f"Nobody waits for the answer to {id!r} any more.")
        if not changed.rowcount:
            who = f" by {approval.decided_by}" if approval.decided_by else ""
            raise ApprovalError(f"The question {id!r} was answered already{who}: {approval.state}.")
        return approval


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the file for one step, which is written as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=10.0, isolation_level=None)
    try:
        path.chmod(0o600)  # arguments and results may be confidential
        # no WAL: two that switch to it at once do not wait for one another
        db.executescript(_SCHEMA)
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
    finally:
        db.close()


def _rows(db: sqlite3.Connection, where: str, *values: Any) -> list[Approval]:
    query = f"SELECT {_COLUMNS} FROM approvals {where}"
    return [Approval(*row) for row in db.execute(query, values)]
