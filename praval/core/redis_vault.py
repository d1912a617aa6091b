"""A vault in Redis, for replicas on several hosts.

Everything of a store is under ``{praval:<store>}:``. Who changes something holds a lock with a
deadline, and the script that writes looks whether it is still held: a process that was too slow
writes nothing. Turn ``appendonly`` on; ``appendfsync always`` also survives a power failure, while
with ``everysec`` what was handled in the last second may be handled again then. A Redis that lost
or was given back its data is noticed: the table's instance or the cards do not fit any more.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec

from praval.core.key_vaults import Sync
from praval.core.replay import Entry, Key
from praval.core.replay_buffer import BufferedRows, Peer, PeerState, Writes
from praval.errors import ConfigurationError, KeyringError, ReplayError, SealCode

if TYPE_CHECKING:
    import redis

SECONDS = 10.0
"""Seconds for a connection, an answer or a lock."""
LOCKED = 30_000
"""Milliseconds for which a lock holds: that of a dead process ends then."""
POLL = 0.002, 0.05
"""Seconds between two looks at a lock that another holds: the first, the longest."""
SCAN = 200
"""Expired entries that are looked at together."""
SCHEMA_VERSION = b"1"

_entry = msgspec.msgpack.Decoder(Entry)
_peer = msgspec.msgpack.Decoder(tuple[int, int])
_encode = msgspec.msgpack.Encoder().encode

_CREATE = """
if redis.call('exists', KEYS[1]) == 1 then return 0 end
redis.call('hset', KEYS[1], 'version', ARGV[1], 'keyring', ARGV[2])
redis.call('del', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('hset', KEYS[2], 'instance', ARGV[3], 'clock', 0, 'fence', 0)
return 1
"""
_UNLOCK = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end"
_WRITE_KEYRING = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('hset', KEYS[2], 'keyring', ARGV[2])
return 1
"""
_RENEW = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('del', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
redis.call('hset', KEYS[2], 'instance', ARGV[2], 'clock', 0, 'fence', 0)
return 1
"""
# lock, meta, entries, expiries, peers, then one sorted set of what is committed for each peer
_WRITE = """
if redis.call('get', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('hset', KEYS[2], 'clock', ARGV[2], 'fence', ARGV[3])
local n = 4
for _ = 1, tonumber(ARGV[n]) do
    local done = KEYS[5 + tonumber(ARGV[n + 1])]
    redis.call('hset', KEYS[3], ARGV[n + 2], ARGV[n + 3])
    redis.call('zadd', KEYS[4], ARGV[n + 4], ARGV[n + 2])
    if ARGV[n + 5] ~= '' then redis.call('zadd', done, ARGV[n + 5], ARGV[n + 2]) end
    n = n + 5
end
n = n + 1
for _ = 1, tonumber(ARGV[n]) do
    redis.call('hdel', KEYS[3], ARGV[n + 2])
    redis.call('zrem', KEYS[4], ARGV[n + 2])
    redis.call('zrem', KEYS[5 + tonumber(ARGV[n + 1])], ARGV[n + 2])
    n = n + 2
end
n = n + 1
for _ = 1, tonumber(ARGV[n]) do
    redis.call('hset', KEYS[5], ARGV[n + 1], ARGV[n + 2])
    n = n + 2
end
return 1
"""


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
        self._url, self.name = _url(url, allow_plaintext=allow_plaintext)
        self._names = _Names(self.name)
        self._redis: redis.Redis | None = None
        self._token = ""
        """Of the lock, while it is held."""
        self._shown = f"Redis at {urlsplit(url).hostname}, store {self.name!r}"

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
                _CREATE, 5, names.store, names.meta, names.entries, names.expiries, names.peers,
                SCHEMA_VERSION, box, instance,
            )  # fmt: skip
        if not made:
            raise KeyringError(
                f"There is a store already in {self!r}. Use it, or name another (?store=)."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the store."""
        if self._token:  # inside of another block
            yield
            return
        with self._using() as db:
            self._token = _lock(db, self._names.store_lock)
            try:
                yield
            finally:
                token, self._token = self._token, ""
                _unlock(db, self._names.store_lock, token)

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
            self._must(db.eval(_WRITE_KEYRING, 2, names.store_lock, names.store, self._token, box))

    def open_table(self, sync: Sync) -> RedisTable:
        """Open the table, on connections of its own."""
        return RedisTable(self._url, self._names)

    def renew_table(self, instance: bytes) -> None:
        """Delete all entries, and begin under another instance."""
        names = self._names
        with self._using() as db:
            for key in db.scan_iter(match=_escaped(names.done(("", b""))[:-1]) + "*"):
                db.delete(key)
            self._must(
                db.eval(
                    _RENEW, 5, names.store_lock, names.meta, names.entries, names.expiries,
                    names.peers, self._token, instance,
                )
            )  # fmt: skip

    def close(self) -> None:
        """Close the connections."""
        db, self._redis = self._redis, None
        if db is not None:
            db.close()

    def _must(self, answer: object) -> None:
        if not answer:
            raise KeyringError(
                f"The lock of {self!r} was lost: this took longer than {LOCKED // 1000} s, or "
                "nobody had taken it. Nothing was written."
            )

    @contextmanager
    def _using(self) -> Iterator[redis.Redis]:
        import redis

        try:
            if self._redis is None:
                self._redis = _connect(self._url)
            yield self._redis
        except redis.RedisError as error:
            raise KeyringError(f"{self!r} cannot be used: {_said(error)}.") from error


class RedisTable:
    """The replay memory of one store; see :class:`praval.core.replay.Table`."""

    def __init__(self, url: str, names: _Names) -> None:
        """Open it.

        Raises:
            ReplayError: it is missing, or the server cannot be reached.
        """
        self._names = names
        self._redis = _connect(url)
        self._lock = threading.Lock()
        try:
            with _as_replay_error():
                instance: Any = self._redis.hget(names.meta, "instance")
        except BaseException:
            self.close()
            raise
        if instance is None:
            self.close()
            raise ReplayError(
                "The replay memory in Redis is missing. Without it nobody can tell what was "
                "handled: praval keys rotate --lost makes a new one, with new keys.",
                SealCode.REPLAY,
            )
        self.instance = bytes(instance)

    @contextmanager
    def transaction(self) -> Iterator[BufferedRows]:
        """See :class:`praval.core.replay.Table`.

        Raises:
            ReplayError: the server cannot be used, or this took so long that another has begun;
                nothing of the transaction remains.
        """
        with self._lock, _as_replay_error():
            token = _lock(self._redis, self._names.lock)
            try:
                meta: Any = self._redis.hmget(self._names.meta, ["instance", "clock", "fence"])
                if meta[0] != self.instance:
                    raise ReplayError(
                        "The replay memory in Redis was deleted or made anew by another process. "
                        "Start again with the keys that belong to it.",
                        SealCode.REPLAY,
                    )
                rows = BufferedRows(
                    _Rows(self._redis, self._names, token), int(meta[1]), int(meta[2])
                )
                yield rows
                rows.flush()
            finally:
                _unlock(self._redis, self._names.lock, token)

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

        arguments: list[Any] = [self._token, writes.clock, writes.fence, len(writes.entries)]
        for key, entry in writes.entries.items():
            created = "" if entry.outcome is None else entry.created
            arguments += [numbered(key), _packed(key), _encode(entry), entry.expires, created]
        arguments.append(len(writes.gone))
        for key in writes.gone:
            arguments += [numbered(key), _packed(key)]
        arguments.append(len(writes.peers))
        for peer, state in writes.peers.items():
            arguments += [_packed(peer), _encode(tuple(state))]
        if not self._db.eval(_WRITE, len(keys), *keys, *arguments):
            raise ReplayError(
                f"The lock of the replay memory was lost: a transaction took longer than "
                f"{LOCKED // 1000} s. Nothing of it was written, and nothing acknowledged.",
                SealCode.RATE_LIMITED,
            )


@contextmanager
def _as_replay_error() -> Iterator[None]:
    import redis

    try:
        yield
    except redis.RedisError as error:
        raise ReplayError(
            f"The replay memory in Redis cannot be used: {_said(error)}. Nothing was acknowledged.",
            SealCode.RATE_LIMITED,
        ) from error


def _lock(db: redis.Redis, name: str) -> str:
    """Take a lock, and return what proves that it is ours."""
    import redis

    token, wait = secrets.token_hex(16), POLL[0]
    deadline = time.monotonic() + SECONDS
    while not db.set(name, token, nx=True, px=LOCKED):
        if time.monotonic() > deadline:
            raise redis.RedisError(f"another process has held the lock for {SECONDS:g} s")
        time.sleep(wait)
        wait = min(2 * wait, POLL[1])
    return token


def _unlock(db: redis.Redis, name: str, token: str) -> None:
    import redis

    with suppress(redis.RedisError):  # it ends by itself
        db.eval(_UNLOCK, 1, name, token)


def _connect(url: str) -> redis.Redis:
    import redis

    return redis.Redis.from_url(
        url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS, health_check_interval=15
    )


def _url(url: str, *, allow_plaintext: bool) -> tuple[str, str]:
    """Return what the client is told, and the name of the store."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    store = options.pop("store", "praval")
    if "ca_cert" in options:
        options["ssl_ca_certs"] = options.pop("ca_cert")
    if parts.scheme != "rediss" and not allow_plaintext:
        raise ConfigurationError(
            "redis:// is not encrypted: use rediss://, or allow plaintext in so many words "
            "(allow_plaintext=True)."
        )
    weak = options.get("ssl_cert_reqs", "required") != "required"
    if (weak or options.get("ssl_check_hostname", "true").lower() == "false") and (
        not allow_plaintext
    ):
        raise ConfigurationError("The certificate of the Redis server must be verified.")
    return parts._replace(query=urlencode(options)).geturl(), store


def _packed(key: Key | Peer) -> bytes:
    """Write a key or a peer: the receiver, whose name holds no zero byte, then the ids."""
    return key[0].encode() + b"\0" + b"".join(key[1:])


def _unpacked(data: bytes) -> Key:
    return Key(data[:-33].decode(), data[-32:-16], data[-16:])


def _escaped(pattern: str) -> str:
    return "".join(f"\\{each}" if each in "[]*?\\" else each for each in pattern)


def _said(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
