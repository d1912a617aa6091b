"""The secure store: a keyring, encrypted, and its replay memory, in a folder or on a server.

The two belong together, under one instance id. A missing, foreign or older one of them is found
when the store is opened, and then nothing is opened with these keys until :meth:`KeyStore.recover`
made new prekeys and a floor: what was sealed before cannot be opened any more, so it cannot be
replayed either. Where they are kept: ``praval.core.key_vaults``.

All calls block; a Reef makes them on a thread.

Guide: "Key Management System".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

from praval.core.key_box import MODERATE, BoxKey, Cost, unlock
from praval.core.key_vaults import ClosableTable, Sync, Vault, vault_for
from praval.core.keys import Keyring
from praval.core.lifetimes import DEFAULT, Lifetimes
from praval.core.replay import Replay
from praval.errors import ReplayError


class KeyStore:
    """An open store; make one with :meth:`create` or :meth:`open`, close it with :meth:`close`."""

    def __init__(self, vault: Vault, keyring: Keyring, key: BoxKey, box: bytes = b"") -> None:
        self.vault, self.keyring, self._key = vault, keyring, key
        self._box = box
        """The encrypted keyring as it was read or written last."""
        self._stored = b""
        """A digest of the keyring in it."""
        self._table: ClosableTable | None = None

    def __repr__(self) -> str:
        return f"<KeyStore {self.vault!r} of {self.keyring!r}>"

    @classmethod
    def create(
        cls,
        where: str | os.PathLike[str],
        keyring: Keyring,
        passphrase: str,
        *,
        cost: Cost = MODERATE,
        allow_plaintext: bool = False,
    ) -> KeyStore:
        """Make a store for a keyring.

        Args:
            where: a folder, or a URL, see :func:`praval.core.key_vaults.vault_for`.
            keyring: the keys.
            passphrase: what they are encrypted under.
            cost: of trying a passphrase.
            allow_plaintext: permit a server without verified TLS.

        Raises:
            KeyringError: there is one already, the folder is not private, the server cannot be
                used, or the passphrase is empty.
            ConfigurationError: the URL cannot be used.
        """
        vault = vault_for(where, allow_plaintext=allow_plaintext)
        key = BoxKey.fresh(passphrase, random=os.urandom, cost=cost)
        store = cls(vault, keyring, key)
        secret = keyring.dump()
        store._box, store._stored = key.lock(secret, os.urandom), _digest(secret)
        with _closed_unless_good(vault):
            vault.create(store._box, keyring.instance)
        return store

    @classmethod
    def open(
        cls,
        where: str | os.PathLike[str],
        passphrase: str,
        *,
        now: int,
        lifetimes: Lifetimes = DEFAULT,
        trust_on_first_use: bool = False,
        require_status: bool = False,
        allow_plaintext: bool = False,
    ) -> KeyStore:
        """Open a store, in a folder or at a URL (see :meth:`create`).

        Raises:
            PassphraseError: the passphrase is wrong, or the keyring was changed.
            KeyringError: there is no store, others may read it, or the server cannot be used.
            ConfigurationError: the URL cannot be used.
        """
        vault = vault_for(where, allow_plaintext=allow_plaintext)
        with _closed_unless_good(vault):
            box = vault.read()
            secret, key = unlock(box, passphrase)
            keyring = Keyring(
                lifetimes=lifetimes,
                trust_on_first_use=trust_on_first_use,
                require_status=require_status,
            )
            keyring.restore(secret, now=now)
        store = cls(vault, keyring, key, box)
        store._stored = _digest(secret)
        return store

    @contextmanager
    def changing(self, now: int) -> Iterator[Keyring]:
        """Hold the store alone, with what other processes did to it; write it at the end.

        Every change of the keyring that is to last is made in such a block, or one process would
        undo another's rotation. What was erased from the keyring is gone from the store then, and
        what it has heard meanwhile (cards, revocations) is in it. If the block raises, or the store
        cannot be written, the keyring here is what it was before.

        Raises:
            KeyringError: the store cannot be read or written, or another process keeps it.
        """
        with self.keyring.whole():
            with self.vault.locked():
                box, stored = self.vault.read(), self._stored
                if box != self._box:
                    secret = self._key.unlock(box)
                    self.keyring.restore(secret, now=now)
                    stored = _digest(secret)
                yield self.keyring
                secret = self.keyring.dump()
                if _digest(secret) != stored:
                    box, stored = self._key.lock(secret, os.urandom), _digest(secret)
                    self.vault.write(box)
            self._box, self._stored = box, stored  # a server confirms at the end of the block

    def tick(self, now: int) -> list[bytes]:
        """Do what is due with the keys (`Keyring.tick`), once among all processes that share it.

        Returns the cards to be published.

        Raises:
            KeyringError: see :meth:`changing`.
        """
        with self.changing(now) as keyring:
            return keyring.tick(now)

    def replay(self, *, sync: Sync = "full") -> Replay:
        """Open the replay memory.

        Raises:
            ReplayError: it is missing, or belongs to another keyring: see :meth:`recover`.
            KeyringError: others may read it.
        """
        table = self.vault.open_table(sync)
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
        with self.vault.locked():
            self.vault.renew_table(self.keyring.instance)
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
        """Close the replay memory, if it is open, and connections to a server."""
        if self._table is not None:
            self._table.close()
            self._table = None
        self.vault.close()


def _digest(secret: bytes) -> bytes:
    return blake2b(secret, digest_size=32).digest()


@contextmanager
def _closed_unless_good(vault: Vault) -> Iterator[None]:
    try:
        yield
    except BaseException:
        vault.close()
        raise
