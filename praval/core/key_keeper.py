"""The keys of a Reef: a keyring in memory, or in a store that replicas share.

A store blocks (files, locks, a database), so its keyring is changed on a thread, and nobody uses
it on the loop meanwhile: :meth:`KeyKeeper.ready` waits for that. One in memory changes at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

from praval.core.keys import Keyring
from praval.core.replay import Replay
from praval.core.replay_tables import MemoryTable
from praval.core.replay_writer import DirectCaller, ReplayCaller, ReplayWriter
from praval.errors import ConfigurationError, KeyringError

T = TypeVar("T")

PROCESS = "@"
"""Beginning of the name of a process, which speaks outside agents; no agent's name begins so."""


class SecureStore(Protocol):
    """Where a keyring and its replay memory are kept, for one Reef at a time per object.

    See :class:`praval.core.key_store.KeyStore`. All calls block, and may be made on any thread.
    """

    @property
    def keyring(self) -> Keyring:
        """The keyring as it was read or written last."""
        ...

    def changing(self, now: int) -> AbstractContextManager[Keyring]:
        """Hold the store alone; read what others did to it before, write it after."""
        ...

    def replay(self) -> Replay:
        """Open the replay memory."""
        ...

    def close(self) -> None:
        """Close the replay memory."""
        ...


Security: TypeAlias = Keyring | SecureStore
"""What ``Reef(security=...)`` takes."""

_tables: WeakKeyDictionary[Keyring, MemoryTable] = WeakKeyDictionary()
"""Replay memory of keyrings in memory: Reefs that share the keys share it, too."""
_in_use: set[int] = set()
"""Stores whose replay memory is open in a Reef, by identity."""


def check_security(security: object) -> None:
    """Refuse what cannot keep keys.

    Raises:
        ConfigurationError: it is neither a keyring nor a store.
    """
    if not isinstance(security, Keyring) and not isinstance(
        getattr(security, "keyring", None), Keyring
    ):
        raise ConfigurationError(
            "security must be a Keyring (praval.core.keys) or an open store of one (KeyStore.open "
            f"in praval.core.key_store), not {type(security).__name__}."
        )


class KeyKeeper:
    """See the module. Used on the Reef's loop only."""

    def __init__(self, security: Security) -> None:
        self._store = None if isinstance(security, Keyring) else security
        self.keyring = security if isinstance(security, Keyring) else security.keyring
        self._changes = asyncio.Lock()
        self._free = asyncio.Event()
        self._free.set()

    @property
    def is_shared(self) -> bool:
        """Whether other processes may use these keys, too."""
        return self._store is not None

    async def ready(self) -> None:
        """Wait until nobody changes the keyring; use it before the next ``await``."""
        while not self._free.is_set():
            await self._free.wait()

    async def change(self, work: Callable[[Keyring], T], now: int) -> T:
        """Change the keyring; with a store, what was done is durable when this returns.

        Raises:
            KeyringError, CardError, ReplayError: as the store and the work do.
        """
        store = self._store
        if store is None:
            return work(self.keyring)

        def on_thread() -> T:
            with store.changing(now) as keyring:
                return work(keyring)

        async with self._changes:
            self._free.clear()
            changing = asyncio.get_running_loop().run_in_executor(None, on_thread)
            # a cancelled waiter goes away; the keyring is free when the thread has ended
            changing.add_done_callback(lambda _: self._free.set())
            try:
                return await asyncio.shield(changing)
            finally:
                if not changing.done():  # nobody else begins before that thread has ended
                    await asyncio.wait([changing])

    async def refresh(self, now: int) -> None:
        """Read what other processes did to the store."""
        if self._store is not None:
            await self.change(lambda keyring: None, now)

    def replay_caller(self, lease: float) -> ReplayCaller:
        """Return what calls the replay memory that belongs to the keys; see :meth:`open_replay`."""
        return DirectCaller(lease) if self._store is None else ReplayWriter(lease)

    def open_replay(self) -> Replay:
        """Open the replay memory; blocks.

        Raises:
            ReplayError, KeyringError: it cannot be used with these keys.
        """
        if self._store is not None:
            if id(self._store) in _in_use:
                raise KeyringError(
                    "This key store is at work in another Reef. Open it once more for this one: "
                    "replicas share the folder, not the object."
                )
            replay = self._store.replay()
            _in_use.add(id(self._store))
            return replay
        keyring = self.keyring
        table = _tables.setdefault(keyring, MemoryTable(keyring.instance))
        return Replay(
            table,
            instance=keyring.instance,
            key=keyring.replay_key,
            skew=keyring.lifetimes.skew,
        )

    def close_replay(self) -> None:
        """Close it; blocks."""
        if self._store is not None:
            _in_use.discard(id(self._store))
            self._store.close()


def process_name(keyring: Keyring) -> str:
    """Return the name under which the process speaks: the keyring's own, or a fresh one."""
    own = [name for name in keyring.names if name.startswith(PROCESS)]
    return own[0] if own else f"{PROCESS}reef-{os.urandom(8).hex()}"
