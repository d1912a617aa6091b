"""The response cache: the same question to the same model is asked, and paid, once.

The key covers everything that changes the answer: provider, address, model, every turn and
picture, tools, wanted type, and all options. Answers that were cut off are not kept.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from praval.errors import ConfigurationError
from praval.providers.base import BaseProvider
from praval.providers.messages import ChatRequest, Response, ToolCall, Usage
from praval.settings import Settings
from praval.sync import forkable_lock

T = TypeVar("T")
log = logging.getLogger("praval.providers")

MAX_ENTRIES = 1_000
"""Answers that the cache in memory keeps; those not used for longest go first."""
FILE = "responses.sqlite"
PREFIX = "praval:response:"
"""How the keys in Redis begin."""
REDIS_TIMEOUT = 5.0
"""Seconds after which the model is asked rather than waited for Redis."""


class _Kept(msgspec.Struct, omit_defaults=True):
    text: str
    usage: Usage
    cost: float | None = None
    model: str | None = None
    finish_reason: str = "stop"
    tool_calls: tuple[ToolCall, ...] = ()
    raw: Any = None
    raw_of: str | None = None


class Store(Protocol):
    """Where answers are kept, as bytes under a key."""

    async def get(self, key: str) -> bytes | None:
        """Return what is kept and not too old."""

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep a value for ``ttl`` seconds."""


class MemoryStore:
    """Keeps answers in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._entries: collections.OrderedDict[str, tuple[float, bytes]] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._clock = clock

    async def get(self, key: str) -> bytes | None:
        """Return what is kept and not too old."""
        with self._lock:
            until, value = self._entries.get(key, (0.0, b""))
            if until <= self._clock():
                self._entries.pop(key, None)
                return None
            self._entries.move_to_end(key)
            return value

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep a value for ``ttl`` seconds."""
        with self._lock:
            self._entries[key] = (self._clock() + ttl, value)
            self._entries.move_to_end(key)
            while len(self._entries) > MAX_ENTRIES:
                self._entries.popitem(last=False)


class SqliteStore:
    """Keeps answers in a file, which processes may share."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock

    async def get(self, key: str) -> bytes | None:
        """Return what is kept and not too old."""

        def read(db: sqlite3.Connection) -> bytes | None:
            query = "SELECT value FROM responses WHERE key = ? AND until > ?"
            row = db.execute(query, (key, self._clock())).fetchone()
            return None if row is None else bytes(row[0])

        return await asyncio.to_thread(self._do, read)

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep a value for ``ttl`` seconds."""

        def write(db: sqlite3.Connection) -> None:
            now = self._clock()
            db.execute("DELETE FROM responses WHERE until <= ?", (now,))
            db.execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?)", (key, now + ttl, value))

        await asyncio.to_thread(self._do, write)

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._opened() as db:
            return work(db)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, timeout=10.0)
        try:
            self.path.chmod(0o600)  # questions and answers may be confidential
            # no WAL: two that switch to it at once do not wait for one another
            db.execute(
                "CREATE TABLE IF NOT EXISTS responses "
                "(key TEXT PRIMARY KEY, until REAL NOT NULL, value BLOB NOT NULL)"
            )
            with db:
                yield db
        finally:
            db.close()


class RedisStore:
    """Keeps answers in Redis, for all processes that use it.

    The blocking client, in worker threads: its connections serve all loops of the process.
    """

    def __init__(self, url: str) -> None:
        try:
            import redis
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "The response cache in Redis needs the package 'redis'. Install it with: "
                'pip install "praval-asyncio[storage]"'
            ) from error
        self._client: Any = redis.Redis.from_url(
            url, socket_timeout=REDIS_TIMEOUT, socket_connect_timeout=REDIS_TIMEOUT
        )

    async def get(self, key: str) -> bytes | None:
        """Return what is kept."""
        value: bytes | None = await asyncio.to_thread(self._client.get, f"{PREFIX}{key}")
        return value

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep a value for ``ttl`` seconds."""
        until = max(1, int(ttl * 1000))
        await asyncio.to_thread(self._client.set, f"{PREFIX}{key}", value, px=until)


_stores: dict[str, Store] = {}
_lock = forkable_lock()


def store_for(settings: Settings) -> Store:
    """Return the store that the settings name (``performance.cache``); may import a package.

    Raises:
        ConfigurationError: they name none.
    """
    name = settings.performance.cache
    path = settings.data_path / FILE
    key = f"{name} {path}"
    with _lock:
        if key not in _stores:
            _stores[key] = _made(name, path)
        return _stores[key]


def clear_caches() -> None:
    """Forget the stores of this process, and what those in memory keep."""
    with _lock:
        _stores.clear()


def _made(name: str, path: Path) -> Store:
    if name == "memory":
        return MemoryStore()
    if name == "sqlite":
        return SqliteStore(path)
    if name.startswith(("redis://", "rediss://", "unix://")):
        return RedisStore(name)
    raise ConfigurationError(
        'performance.cache is "memory", "sqlite" or the address of a Redis server.'
    )


def key_of(name: str, provider: BaseProvider, request: ChatRequest) -> str:
    """Return the key of a question to a provider.

    Raises:
        ConfigurationError: an option cannot be written as JSON.
    """
    asked = msgspec.structs.replace(request, timeout=None)
    try:
        text = msgspec.json.encode((name, provider.fingerprint(), asked), order="sorted")
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"The options of a model call must be JSON: {error}") from None
    return hashlib.sha256(text).hexdigest()


async def find(store: Store, key: str) -> Response | None:
    """Return the kept answer, marked as cached: it used nothing and cost nothing."""
    try:
        value = await store.get(key)
    except Exception as error:  # noqa: BLE001 - of whatever store: the model can still be asked
        log.warning("the response cache cannot be read: %r", error)
        return None
    if value is None:
        return None
    try:
        kept = msgspec.json.decode(value, type=_Kept)
    except msgspec.DecodeError:  # written by another version
        return None
    return Response(
        kept.text,
        cost=0.0,
        model=kept.model,
        finish_reason=kept.finish_reason,
        tool_calls=kept.tool_calls,
        cached=True,
        raw=kept.raw,
        raw_of=kept.raw_of,
    )


async def keep(store: Store, key: str, response: Response, ttl: float) -> None:
    """Keep an answer that is complete."""
    if response.finish_reason not in ("stop", "tool_calls"):
        return
    fields = {name: getattr(response, name) for name in _Kept.__struct_fields__}
    fields["text"] = response.text
    try:
        await store.set(key, msgspec.json.encode(_Kept(**fields)), ttl)
    except Exception as error:  # noqa: BLE001 - of whatever store: the answer is there
        log.warning("the response cache cannot be written: %r", error)
