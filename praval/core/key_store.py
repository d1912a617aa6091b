"""The secure store of one host: a folder with the keyring, encrypted, and its replay memory.

::

    <folder>/keyring     the keyring under a passphrase (argon2id, XSalsa20-Poly1305)
    <folder>/replay.db   what was handled; it carries the instance id of the keyring

The two belong together. A missing, foreign or older one of them is found when the store is opened,
and then nothing is opened with these keys until :meth:`KeyStore.recover` made new prekeys and a
floor: what was sealed before cannot be opened any more, so it cannot be replayed either.

All calls block; a Reef makes them on a thread.

Guide: "Key Management System".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from praval.core.key_box import MODERATE, BoxKey, Cost, unlock
from praval.core.key_files import locked, private_folder, read_private, write_private
from praval.core.keys import Keyring
from praval.core.lifetimes import DEFAULT, Lifetimes
from praval.core.replay import Replay
from praval.core.replay_tables import SQLiteTable
from praval.errors import KeyringError, ReplayError

KEYRING, REPLAY = "keyring", "replay.db"


class KeyStore:
    """An open store; make one with :meth:`create` or :meth:`open`, close it with :meth:`close`."""

    def __init__(self, folder: Path, keyring: Keyring, key: BoxKey, box: bytes = b"") -> None:
        self.folder, self.keyring, self._key = folder, keyring, key
        self._box = box
        """The file as it was read or written last."""
        self._stored = b""
        """A digest of the keyring in it."""
        self._table: SQLiteTable | None = None

    def __repr__(self) -> str:
        return f"<KeyStore {self.folder} of {self.keyring!r}>"

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        keyring: Keyring,
        passphrase: str,
        *,
        cost: Cost = MODERATE,
    ) -> KeyStore:
        """Make a store for a keyring.

        Raises:
            KeyringError: there is one in that folder, the folder is not private, or the
                passphrase is empty.
        """
        path = Path(folder)
        private_folder(path)
        with locked(path):
            for taken in (KEYRING, REPLAY):
                if os.path.lexists(path / taken):
                    raise KeyringError(
                        f"There is a {taken} in {path} already. Use it, or name another folder."
                    )
            key = BoxKey.fresh(passphrase, random=os.urandom, cost=cost)
            store = cls(path, keyring, key)
            table = SQLiteTable.open(path / REPLAY, instance=keyring.instance)
            table.close()
            store._box = key.lock(keyring.dump(), os.urandom)
            write_private(path / KEYRING, store._box, replace=False)
        return store

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        passphrase: str,
        *,
        now: int,
        lifetimes: Lifetimes = DEFAULT,
        trust_on_first_use: bool = False,
        require_status: bool = False,
    ) -> KeyStore:
        """Open a store.

        Raises:
            PassphraseError: the passphrase is wrong, or the keyring was changed.
            KeyringError: there is no store, or others may read it.
        """
        path = Path(folder)
        box = read_private(path / KEYRING)
        secret, key = unlock(box, passphrase)
        keyring = Keyring(
            lifetimes=lifetimes,
            trust_on_first_use=trust_on_first_use,
            require_status=require_status,
        )
        keyring.restore(secret, now=now)
        store = cls(path, keyring, key, box)
        store._stored = _digest(secret)
        return store

    @contextmanager
    def changing(self, now: int) -> Iterator[Keyring]:
        """Hold the store alone, with what other processes did to it; write it at the end.

        Every change of the keyring that is to last is made in such a block, or one process would
        undo another's rotation. What was erased from the keyring is gone from the file then, and
        what it has heard meanwhile (cards, revocations) is in it.

        Raises:
            KeyringError: the store cannot be read or written, or another process keeps it.
        """
        with locked(self.folder):
            if (box := read_private(self.folder / KEYRING)) != self._box:
                secret = self._key.unlock(box)
                self.keyring.restore(secret, now=now)
                self._box, self._stored = box, _digest(secret)
            yield self.keyring
            secret = self.keyring.dump()
            if _digest(secret) != self._stored:
                self._box = self._key.lock(secret, os.urandom)
                write_private(self.folder / KEYRING, self._box)
                self._stored = _digest(secret)

    def tick(self, now: int) -> list[bytes]:
        """Do what is due with the keys (`Keyring.tick`), once among all processes of the host.

        Returns the cards to be published.

        Raises:
            KeyringError: see :meth:`changing`.
        """
        with self.changing(now) as keyring:
            return keyring.tick(now)

    def replay(self, *, sync: Literal["normal", "full"] = "full") -> Replay:
        """Open the replay memory.

        Raises:
            ReplayError: it is missing, or belongs to another keyring: see :meth:`recover`.
            KeyringError: others may read it.
        """
        table = SQLiteTable.open(self.folder / REPLAY, sync=sync)
        try:
            replay = Replay(
                table,
                instance=self.keyring.instance,
                key=self.keyring.replay_key,
                skew=self.keyring.lifetimes.skew,
            )
        except ReplayError:
            table.close()
            raise
        self.close()
        self._table = table
        return replay

    def recover(self, *, now: int) -> list[bytes]:
        """Begin anew after a lost table, a restored backup or a theft of keys.

        All prekeys are thrown away, the table is made anew under a new instance id, and whatever
        was created before now is refused. Returns the new cards, to be published at once.

        Raises:
            KeyringError, ReplayError: the store cannot be written.
        """
        self.close()
        # First the keys: a crash between the two leaves a mismatch, which is found and told.
        with self.changing(now) as keyring:
            cards = [keyring.renew_prekeys(name, now=now) for name in keyring.names]
            keyring.instance, keyring.replay_key = os.urandom(16), os.urandom(32)
        with locked(self.folder):
            for name in (REPLAY, f"{REPLAY}-wal", f"{REPLAY}-shm"):
                (self.folder / name).unlink(missing_ok=True)
            table = SQLiteTable.open(self.folder / REPLAY, instance=self.keyring.instance)
            table.close()
        self.replay().reset(now)
        return cards

    def encrypt(self, secret: bytes) -> bytes:
        """Lock another secret under the store's passphrase."""
        return self._key.lock(secret, os.urandom)

    def decrypt(self, box: bytes) -> bytes:
        """Undo :meth:`encrypt`.

        Raises:
            KeyringError: it is no box of this store.
        """
        return self._key.unlock(box)

    def close(self) -> None:
        """Close the replay memory, if it is open."""
        if self._table is not None:
            self._table.close()
            self._table = None


def _digest(secret: bytes) -> bytes:
    return blake2b(secret, digest_size=32).digest()
