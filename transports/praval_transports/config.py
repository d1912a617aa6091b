"""What the configurations of all brokers have in common.

Every key is honoured or refused by name: a transport lists in ``refused`` what its client library
cannot do, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from praval.core.tls import TLSConfig
from praval.core.topics import parse_topic
from praval.core.transport import SCHEMES
from praval.errors import ConfigurationError, TopicError, UnknownNameError

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Address(NamedTuple):
    """Where a broker listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class BrokerConfig(TLSConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of the guide, and a few more; times in seconds, sizes in bytes."""

    url: str | None = None
    """``amqps://user:password@host:port/...?key=value``; what other keys say as well, they say
    louder."""
    host: str | None = None
    port: Port | None = None
    username: str | None = None
    password: str | None = None
    brokers: tuple[str, ...] = ()
    """``host:port`` of each, instead of ``host`` and ``port``."""
    load_balancing: Literal["failover", "round_robin", "random"] = "failover"
    """Which broker is tried first: always the first of the list; the one after the last that was
    connected to; any."""
    failover_timeout: Seconds = 30.0
    """How long one publication or subscription waits for a connection to some broker."""
    reconnect_delay: Seconds = 0.5
    """Wait before the second round of attempts to reconnect; doubles up to 60 times itself."""
    connect_timeout: Seconds = 10.0
    """For one attempt, TLS and login included."""
    publish_timeout: Seconds = 30.0
    """For one publication, with all that is tried again."""
    confirm_timeout: Seconds = 10.0
    """How long the broker may take to confirm before the connection counts as dead."""
    close_timeout: Seconds = 10.0
    """How long running callbacks may finish when the transport closes."""
    allow_plaintext: bool = False
    """Accept a URL without TLS; passwords and messages are then readable on the way."""
    client_id: str | None = None
    """Name of this connection at the broker."""
    prefetch_count: Count = 100
    """Messages that a subscription holds unacknowledged."""
    connection_pool_size: Count = 1
    """Connections that publish."""
    compression: Literal["gzip"] | None = None
    """Compress messages over 1 KiB. Compressing before sealing tells lengths; do it knowingly."""
    keepalive: Annotated[int, msgspec.Meta(ge=1)] = 30
    """Seconds between signs of life on an idle connection."""
    tcp_nodelay: bool = True
    buffer_size: Count | None = None
    """Of the socket, each way; None: the system's."""
    max_attempts: Count = 5
    """Calls of a failing callback before its message is a dead letter."""
    retry_delay: Annotated[float, msgspec.Meta(ge=0)] = 0.2
    """Wait before the second call; doubles each time."""
    dead_letter_topic: str = "dead"
    """The broker keeps what is published there for the group of the same name."""
    max_message_size: Count = 64 * 1024 * 1024

    @property
    def addresses(self) -> list[Address]:
        """The brokers, in the order in which they were given."""
        assert self.port is not None
        if self.brokers:
            return [_address(broker, self.port) for broker in self.brokers]
        return [Address(self.host or "localhost", self.port)]

    @property
    def encrypted(self) -> bool:
        """Whether connections use TLS: always, unless a plaintext URL was allowed."""
        return self.url is None or SCHEMES[urlsplit(self.url).scheme][1]

    def __repr__(self) -> str:
        """The brokers and nothing that could hold a secret."""
        return f"<{type(self).__name__} {', '.join(map(str, self.addresses))}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same, in place of all fields."""
        return [("brokers", list(map(str, self.addresses)))]


C = TypeVar("C", bound=BrokerConfig)


def read_config(
    kind: type[C],
    config: Mapping[str, Any],
    *,
    protocol: str,
    ports: tuple[int, int],
    refused: Mapping[str, str],
) -> C:
    """Check a configuration and fill in what its URL says.

    Args:
        kind: the protocol's keys.
        config: what the user gave.
        protocol: for messages, and to check the URL's scheme.
        ports: the protocol's usual ports with and without TLS.
        refused: key -> why this transport cannot honour it.

    Raises:
        UnknownNameError: a key does not exist; the message suggests the near name.
        ConfigurationError: a key is refused, a value cannot be used, or TLS is off by the URL
            and ``allow_plaintext`` is not set.
    """
    if not isinstance(config, Mapping):
        raise ConfigurationError(f"A transport's config is a mapping, not {type(config).__name__}.")
    merged = _from_url(config.get("url"), protocol)
    merged |= {key: said for key, said in config.items() if said is not None or key not in merged}
    for key, said in merged.items():
        if key in refused and said is not None:
            raise ConfigurationError(f"The {protocol} transport cannot honour {key!r}: "
                                     f"{refused[key]}")  # fmt: skip
        if key not in kind.__struct_fields__:
            from praval.plugins import near

            known = [name for name in kind.__struct_fields__ if name not in refused]
            raise UnknownNameError(
                f"Unknown key {key!r} in the {protocol} transport's config."
                f"{near(str(key), known)} Known: {', '.join(sorted(known))}."
            )
    read = _converted(kind, merged, protocol)
    if not read.encrypted and not read.allow_plaintext:
        raise ConfigurationError(
            f"The {protocol} URL has no TLS: passwords and messages could be read on the way. Use "
            "the scheme with TLS, or set allow_plaintext to True if that is what you want."
        )
    if read.port is None:
        read = msgspec.structs.replace(read, port=ports[0] if read.encrypted else ports[1])
    _ = read.addresses  # a broker that cannot be read is an error now
    try:
        parse_topic(read.dead_letter_topic)
    except TopicError as error:
        raise ConfigurationError(f"dead_letter_topic: {error}") from None
    return read


def _converted(kind: type[C], merged: dict[str, Any], protocol: str) -> C:
    try:
        return msgspec.convert(merged, kind, strict=False)
    except msgspec.ValidationError as error:
        reason = str(error).replace("`$.", "`")
        raise ConfigurationError(
            f"Bad value in the {protocol} transport's config: {reason}."
        ) from (None)


def _from_url(url: object, protocol: str) -> dict[str, Any]:
    if url is None:
        return {}
    if not isinstance(url, str):
        raise ConfigurationError(f"url must be a string, not {type(url).__name__}.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # which may show a part of the password
        raise ConfigurationError(
            f"The {protocol} transport's URL cannot be read. It is scheme://user:password@host:port/"
            "..., with / ? # [ ] @ % percent-encoded in user and password."
        ) from None
    if SCHEMES.get(parts.scheme, ("",))[0] != protocol:
        wanted = " or ".join(f"{s}://" for s, (name, _) in SCHEMES.items() if name == protocol)
        raise ConfigurationError(
            f"The {protocol} transport's URL begins with {wanted}, not with {parts.scheme!r}."
        )
    found: dict[str, Any] = {"host": parts.hostname, "port": port}
    found |= parse_qsl(parts.query, keep_blank_values=True)
    if parts.username:
        found["username"] = unquote(parts.username)
    if parts.password:
        found["password"] = unquote(parts.password)
    return {key: value for key, value in found.items() if value is not None}


def _address(text: str, default_port: int) -> Address:
    try:
        parts = urlsplit(f"//{text}")
        if not parts.hostname or parts.path or parts.query or "@" in text:
            raise ValueError
        return Address(parts.hostname, parts.port or default_port)
    except ValueError:
        shown = "an entry with a password" if "@" in text else repr(text)
        raise ConfigurationError(
            f"brokers: {shown} is no address. It is host:port, or [host]:port for IPv6; user and "
            "password are keys of their own."
        ) from None
