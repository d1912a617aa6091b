"""Connections to Redis on which every wait ends, and locks that end with a dead process."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from praval.core.key_vaults import read_url, written_url
from praval.core.redis_scripts import UNLOCK
from praval.errors import ConfigurationError, ReplayError, SealCode

if TYPE_CHECKING:
    import redis

SECONDS = 10.0
"""Seconds for a connection or an answer."""
LOCKED = 10_000
"""Milliseconds for which a lock holds: that of a dead process ends then."""
PATIENCE = LOCKED / 1000 + 5
"""Seconds to wait for a lock: longer than a dead process can hold it."""
TLS = {
    *("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_password"),
    *("ssl_cert_reqs", "ssl_check_hostname"),
}
"""Options of rediss:// that are handed on; the client raises all sorts of errors for others."""
POLL = 0.002, 0.05
"""Seconds between two looks at a lock that another holds: the first, the longest."""


def lock(db: redis.Redis, name: str) -> str:
    """Take a lock, and return what proves that it is ours.

    Raises:
        redis.RedisError: another process has it for too long, or the server cannot be used.
    """
    import redis

    token, wait = secrets.token_hex(16), POLL[0]
    deadline = time.monotonic() + PATIENCE
    while not db.set(name, token, nx=True, px=LOCKED):
        if time.monotonic() > deadline:
            raise redis.RedisError(f"another process has held the lock for {PATIENCE:g} s")
        time.sleep(wait)
        wait = min(2 * wait, POLL[1])
    return token


def unlock(db: redis.Redis, name: str, token: str) -> None:
    """Give a lock back, if it is still ours."""
    import redis

    with suppress(redis.RedisError):  # it ends by itself
        db.eval(UNLOCK, 1, name, token)


def connect(url: str) -> redis.Redis:
    """Return a client; it connects when it is used."""
    import redis

    return redis.Redis.from_url(
        url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS, health_check_interval=15
    )


def refuse_forgetful(db: redis.Redis, shown: str) -> None:
    """Refuse a server that may throw away entries when its memory is full.

    Raises:
        ReplayError: it may.
    """
    import redis

    with suppress(redis.ResponseError):  # a user who may not ask
        info: Any = db.info("memory")
        policy = str(info.get("maxmemory_policy", ""))
        if policy.startswith("allkeys"):
            raise ReplayError(
                f"{shown} throws keys away when its memory is full, and with them the memory of "
                f"what was handled (maxmemory-policy {policy}). Set it to noeviction.",
                SealCode.REPLAY,
            )


def place_of(url: str, *, allow_plaintext: bool) -> tuple[str, str, str]:
    """Return what the client is told, the name of the store, and what may be shown of both.

    Raises:
        ConfigurationError: the URL cannot be read, has an option or a database that cannot be,
            or asks for less than verified TLS without ``allow_plaintext``.
    """
    parts, options, store = read_url(url)
    if parts.hostname is None:
        raise ConfigurationError("The URL of a secure store in Redis must name a host.")
    if "ca_cert" in options:
        options["ssl_ca_certs"] = options.pop("ca_cert")
    if not allow_plaintext:
        if parts.scheme != "rediss":
            raise ConfigurationError(
                "redis:// is not encrypted: use rediss://, or allow plaintext in so many words "
                "(allow_plaintext=True)."
            )
        for option, verified in (("ssl_cert_reqs", "required"), ("ssl_check_hostname", "true")):
            if options.get(option, verified).lower() != verified:
                raise ConfigurationError(
                    f"The certificate of the Redis server must be verified: leave {option} out."
                )
    known = {"db", *(TLS if parts.scheme == "rediss" else ())}
    if unknown := options.keys() - known:
        raise ConfigurationError(
            f"A secure store at {parts.scheme}:// has no option {min(unknown)!r}; there are: "
            f"{', '.join(sorted({'store', *known}))}."
        )
    database = options.get("db", parts.path.strip("/") or "0")
    if not (database.isascii() and database.isdecimal()):
        raise ConfigurationError(
            "A database of Redis is a number: rediss://host/0. The store's name is given by "
            "?store=name."
        )
    return written_url(parts, options), store, f"Redis at {parts.hostname}, store {store!r}"
