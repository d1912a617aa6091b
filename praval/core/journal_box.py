"""What a sealed journal encrypts: bodies and errors, under a key of their day.

Each day has a random key, kept in the file under the key of the keyring, and erased with the last
row that needs it. So who gets the file and the keyring reads what is waiting or buried, and nothing
that was settled on days of which nothing is left. Ids, names of agents, times and counts are not
encrypted.

A sealed value is 4 bytes day (since 1970), 24 bytes nonce, XSalsa20-Poly1305 of the spore's id, a
zero byte and the value, so that no row can take another's place. Everything here blocks, like
`praval.core.journal_store`, of whose file it has the table `day_key`.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from praval.core.key_types import KEY_SIZE, decrypt, encrypt
from praval.errors import JournalError

if TYPE_CHECKING:
    import sqlite3

DAY = 86_400
CHECK = 0
"""The "day" whose key only shows that the keyring's key is the right one."""
SCHEMA = "CREATE TABLE day_key (day INTEGER PRIMARY KEY, wrapped BLOB NOT NULL)"
_IN_USE = """
    SELECT substr(content, 1, 4) FROM delivery WHERE content IS NOT NULL
    UNION SELECT substr(content, 1, 4) FROM body
    UNION SELECT substr(content, 1, 4) FROM dead"""


class JournalBox:
    """The day keys of one open journal."""

    def __init__(self, db: sqlite3.Connection, key: bytes) -> None:
        """Read the keys of a sealed file.

        Raises:
            JournalError: it was sealed under another key.
        """
        self._db = db
        self._key = key
        self._days: dict[int, bytes] = {}
        for day, wrapped in db.execute("SELECT day, wrapped FROM day_key"):
            day_key = decrypt(wrapped[24:], wrapped[:24], key)
            if day_key is None:
                raise JournalError(
                    "The journal was sealed under the keys of another store. A keyring in memory "
                    "(Keyring()) lasts as long as its process, and so does what it seals: keep "
                    "the keys in a KeyStore, or give the journal another path."
                )
            self._days[day] = day_key
        self.is_new = CHECK not in self._days
        """Whether the file is sealed from now on only."""
        if self.is_new:
            self._add(CHECK)

    def __repr__(self) -> str:
        return f"<JournalBox of {len(self._days) - 1} days, secret>"

    def ready(self) -> int:
        """Return today, for which there is a key now; call it outside of transactions."""
        today = int(time.time()) // DAY
        if today not in self._days:
            self._add(today)
        return today

    def seal(self, spore_id: str, data: bytes, day: int) -> bytes:
        """Encrypt a value of a spore under the key of a day that is :meth:`ready`."""
        nonce = os.urandom(24)
        bound = spore_id.encode() + b"\0" + data
        return day.to_bytes(4, "big") + nonce + encrypt(bound, nonce, self._days[day])

    def open(self, spore_id: str, sealed: bytes) -> bytes:
        """Decrypt a value of a spore.

        Raises:
            JournalError: it was changed, is another spore's, or its key is gone.
        """
        day_key = self._days.get(int.from_bytes(sealed[:4], "big"))
        bound = None if day_key is None else decrypt(sealed[28:], sealed[4:28], day_key)
        owner, _, data = (bound or b"").partition(b"\0")
        if bound is None or owner != spore_id.encode():
            raise JournalError("A row of the journal cannot be decrypted: the file was changed.")
        return data

    def erase(self) -> None:
        """Erase the keys of days of which nothing is left, from the file and from memory."""
        used = {int.from_bytes(first, "big") for (first,) in self._db.execute(_IN_USE)}
        gone = self._days.keys() - used - {CHECK, int(time.time()) // DAY}
        if not gone:
            return
        self._db.executemany("DELETE FROM day_key WHERE day = ?", [(day,) for day in gone])
        for day in gone:
            del self._days[day]
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # not in the log either

    def _add(self, day: int) -> None:
        day_key, nonce = os.urandom(32), os.urandom(24)
        wrapped = nonce + encrypt(day_key, nonce, self._key)
        self._db.execute("INSERT INTO day_key VALUES (?, ?)", (day, wrapped))
        self._days[day] = day_key


def box_for(db: sqlite3.Connection, key: bytes | None) -> JournalBox | None:
    """Return the box of a journal; inside the transaction that opens the file.

    Raises:
        JournalError: it is sealed and there is no key, or the wrong one; or it is to be sealed,
            and has rows that are not.
    """
    sealed = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'day_key'").fetchone()[0]
    if key is None:
        if sealed:
            raise JournalError(
                "The journal is sealed: open it with the security= of the Reef that wrote it."
            )
        return None
    if len(key) != KEY_SIZE:
        raise JournalError(f"The key of a journal has {KEY_SIZE} bytes, not {len(key)}.")
    if not sealed:
        if db.execute(f"SELECT count(*) FROM ({_IN_USE})").fetchone()[0]:
            raise JournalError(
                "The journal has spores that are not sealed. Run a Reef without security= until "
                "it is empty and its dead letters are replayed, or give the journal another path."
            )
        db.execute(SCHEMA)
    return JournalBox(db, key)
