"""A vault in Redis, for replicas on several hosts.

Everything of a store is under ``{praval:<store>}:``. Who changes something holds a lock with a
deadline, and the script that writes looks whether it is still held: a process that was too slow
writes nothing more. Turn ``appendonly`` on; ``appendfsync always`` also survives a power failure,
while with ``everysec`` what was handled in the last second may be handled again then. A Redis that
lost or was given back its data is noticed: by whoever is at work, since numbers fall; later, since
the table's instance or the cards do not fit any more. One that may throw keys away to make room
(``maxmemory-policy allkeys-...``) is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from praval.core import redis_connection, redis_scripts
from praval.core.key_vaults import Sync, said
from praval.core.redis_connection import connect, lock, place_of, refuse_forgetful, unlock
from praval.core.replay import Entry, Key
from praval.core.replay_buffer import BufferedRows, Peer, PeerState, Seen, Writes
from praval.errors import KeyringError, ReplayError, SealCode

if TYPE_CHECKING:
    import redis

SCAN = 200
"""Expired entries that are looked at together."""
SCHEMA_VERSION = b"1"
META = ["instance", "clock", "fence", "number"]

_entry = msgspec.msgpack.Decoder(Entry)
_peer = msgspec.msgpack.Decoder(tuple[int, int])
_encode = msgspec.msgpack.Encoder().encode


class _Names:
    """The keys of one store."""

    def __init__(self, store: str) -> None:
        self._prefix = f"{{praval:{store}}}:"
        self.store, self.store_lock = self._of("store"), self._of("store-lock")
        self.meta, self.lock = self._of("replay"), self._of("replay-lock")
        self.entries, self.expiries = self._of("entries"), self._of("expiries")
        self.peers = self._of("peers")

    def done(self, peer: Peer) -> str:
        """Key of the sorted set of what is committed of a peer, by creation."""
        return self._of(f"done:{peer[1].hex()}:{peer[0]}")

    def _of(self, what: str) -> str:
        return self._prefix + what


class RedisVault:
    """See the module and :class:`praval.core.key_vaults.Vault`."""

    def __init__(self, url: str, *, allow_plaintext: bool) -> None:
        self._url, self.name, self._shown = place_of(url, allow_plaintext=allow_plaintext)
        self._names = _Names(self.name)
        self._redis: redis.Redis | None = None
        self._token = ""
        """Of the lock, while it is held."""
        self._holder = threading.RLock()
        """So that another thread is not taken for the one that holds the lock."""

    def __repr__(self) -> str:
        return self._shown

    def exists(self) -> bool:
        """See :class:`Vault`, like all that follow."""
        with self._using() as db:
            return bool(db.exists(self._names.store))

    def create(self, box: bytes, instance: bytes) -> None:
        """Write the keyring, and begin an empty table."""
        names = self._names
        with self._using() as db:
            made = db.eval(
                redis_scripts.CREATE, 5, names.store, names.meta, names.entries, names.expiries,
                names.peers, SCHEMA_VERSION, box, instance,
            )  # fmt: skip
        if not made:
            raise KeyringError(
                f"There is a store already in {self!r}. Use it, or name another (?store=)."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the store."""
        with self._holder, self._using() as db:
            if self._token:  # inside of another block
                yield
                return
            self._token = lock(db, self._names.store_lock)
            try:
                yield
            finally:
                token, self._token = self._token, ""
                unlock(db, self._names.store_lock, token)

    def read(self) -> bytes:
        """Read the keyring."""
        with self._using() as db:
            found: Any = db.hmget(self._names.store, ["version", "keyring"])
        version, box = found
        if box is None:
            raise KeyringError(f"There is no store in {self!r}: make one with praval keys init.")
        if version != SCHEMA_VERSION:
            raise KeyringError(f"The store in {self!r} is one of another version of Praval.")
        return bytes(box)

    def write(self, box: bytes) -> None:
        """Write the keyring, if the lock is still ours."""
        names = self._names
        with self._using() as db:
            self._must(
                db.eval(
                    redis_scripts.WRITE_KEYRING, 2, names.store_lock, names.store, self._token, box
                )
            )

    def open_table(self, sync: Sync) -> RedisTable:
        """Open the table, on connections of its own."""
        return RedisTable(self._url, self._names, self._shown)

    def renew_table(self, instance: bytes) -> None:
        """Delete all entries, and begin under another instance, when no transaction is open."""
        names = self._names
        with self._using() as db:
            token = lock(db, names.lock)
            try:
                for key in db.scan_iter(match=_escaped(names.done(("", b""))[:-1]) + "*"):
                    db.delete(key)
                self._must(
                    db.eval(
                        redis_scripts.RENEW, 6, names.store_lock, names.lock, names.meta,
                        names.entries, names.expiries, names.peers, self._token, token, instance,
                    )
                )  # fmt: skip
            finally:
                unlock(db, names.lock, token)

    def close(self) -> None:
        """Close the connections."""
        db, self._redis = self._redis, None
        if db is not None:
            db.close()

    def _must(self, answer: object) -> None:
        if not answer:
            raise KeyringError(
                f"The lock of {self!r} was lost: this took longer than "
                f"{redis_connection.LOCKED // 1000} s, or nobody had taken it. Nothing was written."
            )

    @contextmanager
    def _using(self) -> Iterator[redis.Redis]:
        import redis

        try:
            if self._redis is None:
                self._redis = connect(self._url)
            yield self._redis
        except redis.RedisError as error:
            raise KeyringError(f"{self!r} cannot be used: {said(error)}.") from error


class RedisTable:
    """The replay memory of one store; see :class:`praval.core.replay.Table`."""

    def __init__(self, url: str, names: _Names, shown: str) -> None:
        """Open it.

        Raises:
            ReplayError: it is missing, or may be thrown away, or the server cannot be reached.
        """
        self._names = names
        self._redis = connect(url)
        self._lock = threading.Lock()
        try:
            with _as_replay_error():
                refuse_forgetful(self._redis, shown)
                instance: Any = self._redis.hget(names.meta, "instance")
            self._seen = Seen(shown, instance)
        except BaseException:
            self.close()
            raise
        self.instance = self._seen.instance

    @contextmanager
    def transaction(self) -> Iterator[BufferedRows]:
        """See :class:`praval.core.replay.Table`.

        Raises:
            ReplayError: the server cannot be used, or this took so long that another has begun.
                Nothing remains, but what came before entries were deleted: a lease that nobody
                knows of, which runs out, or a commit that was right and is not acknowledged.
        """
        with self._lock, _as_replay_error():
            token = lock(self._redis, self._names.lock)
            try:
                meta: Any = self._redis.hmget(self._names.meta, META)
                clock, fence, last = (int(each or 0) for each in meta[1:])
                self._seen.check(meta[0], last)
                rows = BufferedRows(_Rows(self._redis, self._names, token), clock, fence, last)
                yield rows
                rows.flush()
                self._seen.confirmed(rows.number)
            finally:
                unlock(self._redis, self._names.lock, token)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


class _Rows:
    """The commands of one transaction; see :class:`praval.core.replay_buffer.Server`."""

    def __init__(self, db: redis.Redis, names: _Names, token: str) -> None:
        self._db, self._names, self._token = db, names, token

    def entry(self, key: Key) -> Entry | None:
        data: Any = self._db.hget(self._names.entries, _packed(key))
        return None if data is None else _entry.decode(data)

    def peer(self, peer: Peer) -> PeerState:
        data: Any = self._db.hget(self._names.peers, _packed(peer))
        return PeerState() if data is None else PeerState(*_peer.decode(data))

    def oldest(self, peer: Peer, number: int, before: int) -> list[tuple[bytes, int]]:
        found: Any = self._db.zrangebyscore(
            self._names.done(peer), "-inf", before, start=0, num=number, withscores=True
        )
        return [(_unpacked(data).spore, int(created)) for data, created in found]

    def expired(self, before: int, clock: int, number: int) -> list[Key]:
        keys: list[Key] = []
        start = 0
        while len(keys) < number:
            found: Any = self._db.zrangebyscore(
                self._names.expiries, "-inf", f"({before}", start=start, num=SCAN
            )
            if not found:
                break
            start += len(found)
            entries: Any = self._db.hmget(self._names.entries, found)
            keys += [
                _unpacked(data)
                for data, entry in zip(found, entries, strict=True)
                if entry is None or _entry.decode(entry).leased_until <= clock
            ]
        return keys[:number]

    def write(self, writes: Writes) -> None:
        names = self._names
        sets: dict[Peer, int] = {}
        keys = [names.lock, names.meta, names.entries, names.expiries, names.peers]

        def numbered(key: Key) -> int:
            """Number of the sorted set of a key's peer, after the first five keys."""
            peer = key[:2]
            if peer not in sets:
                keys.append(names.done(peer))
                sets[peer] = len(sets) + 1
            return sets[peer]

        arguments: list[Any] = [self._token, writes.clock, writes.fence, writes.number]
        arguments.append(len(writes.entries))
        for key, entry in writes.entries.items():
            created = "" if entry.outcome is None else entry.created
            arguments += [numbered(key), _packed(key), _encode(entry), entry.expires, created]
        arguments.append(len(writes.gone))
        for key in writes.gone:
            arguments += [numbered(key), _packed(key)]
        arguments.append(len(writes.peers))
        for peer, state in writes.peers.items():
            arguments += [_packed(peer), _encode(tuple(state))]
        if not self._db.eval(redis_scripts.WRITE, len(keys), *keys, *arguments):
            raise ReplayError(
                "The lock of the replay memory was lost: a transaction took longer than "
                f"{redis_connection.LOCKED // 1000} s. Nothing more of it was written, and nothing "
                "acknowledged.",
                SealCode.RATE_LIMITED,
            )


@contextmanager
def _as_replay_error() -> Iterator[None]:
    import redis

    try:
        yield
    except redis.RedisError as error:
        raise ReplayError(
            f"The replay memory in Redis cannot be used: {said(error)}. Nothing was acknowledged.",
            SealCode.RATE_LIMITED,
        ) from error


def _packed(key: Key | Peer) -> bytes:
    """Write a key or a peer: the receiver, whose name holds no zero byte, then the ids."""
    return key[0].encode() + b"\0" + b"".join(key[1:])


def _unpacked(data: bytes) -> Key:
    return Key(data[:-33].decode(), data[-32:-16], data[-16:])


def _escaped(pattern: str) -> str:
    return "".join(f"\\{each}" if each in "[]*?\\" else each for each in pattern)
