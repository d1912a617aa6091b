"""Settings: environment variables, a ``.env`` file, and ``configure()``.

Sources, later ones win: defaults, ``.env`` in the working directory, the environment,
``configure()``. A :class:`Settings` is frozen: a Reef keeps the one it was built with.
Names are those of the guide, chapter "Configuration Options".
"""

from __future__ import annotations

import logging
import os
import re
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from praval.errors import ConfigurationError, UnknownNameError
from praval.plugins import near
from praval.secure_settings import (
    AuditSettings,
    MonitoringSettings,
    SecureSporesSettings,
    translated,
)

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class ReefSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a Reef queues and keeps spores; times in seconds, sizes in spores."""

    channel_capacity: Count = 1000
    """Spores that wait in one agent's mailbox before publishers wait (or are refused)."""
    hard_capacity: Count | None = None
    """Where even emissions from handlers are rejected; None: ten times the capacity, >= 10,000.

    Not below ``channel_capacity``."""
    overflow: Literal["wait", "reject", "drop_oldest"] = "wait"
    """What happens to a publisher outside handlers when a mailbox is full."""
    message_ttl: Positive | None = 3600.0
    """Time to live of a spore that names none; None: for ever."""
    max_hops: Count = 1000
    """Longest chain of spores in which each was emitted while handling the one before."""
    max_tree: Count = 100_000
    """Most spores in one causal tree (a root spore and all that came of it)."""
    drain_timeout: Positive = 10.0
    """How long a closing Reef lets accepted work finish before it cancels what is left."""
    enable_persistence: bool = False
    """Keep a journal under the data directory for Reefs that do not name one."""
    journal_sync: Literal["normal", "full"] = "normal"
    """"normal" survives a killed process; "full" also a power cut, at an fsync per commit."""
    cleanup_interval: Positive = 1800.0
    """How often the journal forgets settled ids that are older than twice the TTL."""
    dead_letters: Count = 1000
    """Dead letters kept in memory when there is no journal."""
    message_retention: Positive | None = None
    """Seconds after which a journal forgets dead letters; None: it keeps them."""
    receipt: Literal["broker", "receiver"] | None = None
    """What ends a spore that left by a transport: the broker's confirmation, or receipts of all
    its receivers. Until then it stays in the outbox, which dies with its process unless there is
    a journal. None: "receiver" where a broker's word is not enough (MQTT) and for agents with
    replicas on other hosts, who share out by the sender what came twice; else "broker"."""
    resend_after: Positive = 5.0
    """Seconds without a receipt after which a spore is sent again; the wait doubles up to 10.

    Not while a receiver says that it has the spore, or works on what was sent before it."""
    unreceipted_capacity: Count = 500
    """Spores of which the receipt of one agent may be missing before publishers to it wait (or as
    ``overflow`` says). What handlers emit does not wait. Keep it, times the hosts that send, below
    what a broker keeps for an absent agent (Mosquitto: ``max_queued_messages``)."""
    presence_interval: Positive = 10.0
    """How often a Reef with a transport says which agents it has."""


class PerformanceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Time-outs and retries of model calls; times in seconds."""

    timeout: Positive = 30.0
    max_retries: NotNegative = 3
    """Further attempts of a request that a provider refused in passing."""
    enable_caching: bool = False
    """Keep answers of models, and give them again for the same question."""
    cache_ttl: Positive = 3600.0
    cache: str = "memory"
    """Where answers are kept: "memory", "sqlite" (a file under the data directory), or the address
    of a Redis server."""
    batch_size: Count = 10

    def __repr__(self) -> str:
        """Everything but the password that the cache's address may hold."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        shown["cache"] = re.sub(r"//[^/@]*@", "//***@", self.cache)
        return f"PerformanceSettings({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


class SecuritySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits on what is accepted; sizes in bytes of encoded knowledge."""

    max_message_size: Count = 1_048_576
    enable_content_filtering: bool = False
    rate_limit_requests: Count | None = None
    messages_per_minute: Positive | None = None
    """What one peer may send to a Reef with ``security=``; None: no limit."""
    burst_size: Count = 100
    """How many of them at once."""
    refusals_per_minute: Positive = 1000.0
    """Messages that nobody is known to have signed, after which no more is looked at for a while;
    ``burst_size`` of them at once."""
    allow_peers: tuple[str, ...] | None = None
    """Names from which a Reef with ``security=`` accepts spores; None: all that are certified."""
    deny_peers: tuple[str, ...] = ()
    """Names from which it accepts none."""
    lease: Positive = 60.0
    """Seconds until a sealed spore is begun again whose process has died; a live one renews."""


class TransportSecuritySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """TLS of the transports; a transport's own config says it louder."""

    enforce_tls: bool = False
    """Refuse plaintext URLs even with ``allow_plaintext``. A MessageTransport that is given open
    is not looked at: whoever opened it chose."""
    min_tls_version: Literal["1.2", "1.3"] | None = None
    verify_certificates: bool = True
    certificate_path: str | None = None
    """Folder with ca.pem, client.pem, client-key.pem, crl.pem, as ``praval certs`` writes them."""
    mutual_tls: bool = False
    """Refuse to connect without a client certificate."""
    crl_check: bool = False
    """Refuse revoked certificates."""


class MemorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where and how long agents remember."""

    qdrant_url: str | None = None
    qdrant_api_key: str | None = None
    collection_name: str = "praval_memories"
    short_term_max_entries: Count = 1000
    short_term_retention_hours: Positive = 24.0

    def __repr__(self) -> str:
        return f"MemorySettings(collection_name={self.collection_name!r}, ...)"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of one process or one Reef."""

    default_provider: str | None = None
    default_model: str | None = None
    log_level: LogLevel | None = None
    """Level of the ``praval`` logger; None: left alone, unless ``debug`` is set."""
    max_threads: Count = 10
    """Plain handlers that run at once."""
    max_concurrent_agents: Count = 20
    """Most agents in one AgentSession that names no ``max_agents``."""
    data_dir: str = "~/.local/share/praval"
    debug: bool = False
    """Log at ``DEBUG``, unless ``log_level`` says otherwise. Handlers for the records are the
    application's, for instance ``logging.basicConfig()``."""
    transport: str | None = None
    reef_config: ReefSettings = ReefSettings()
    performance: PerformanceSettings = PerformanceSettings()
    security: SecuritySettings = SecuritySettings()
    memory_config: MemorySettings = MemorySettings()
    transport_security: TransportSecuritySettings = TransportSecuritySettings()
    secure_spores: SecureSporesSettings = SecureSporesSettings()
    audit: AuditSettings = AuditSettings()
    monitoring: MonitoringSettings = MonitoringSettings()

    def __repr__(self) -> str:
        """Everything but the password that a transport's URL may hold."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        if self.transport is not None:
            shown["transport"] = re.sub(r"//[^/@]*@", "//***@", self.transport)
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def data_path(self) -> Path:
        """The data directory with ``~`` expanded; it may not exist yet."""
        return Path(self.data_dir).expanduser()

    @property
    def keys_store(self) -> str:
        """The secure store of the keys for sealed spores: a folder, or a URL."""
        path = self.secure_spores.keys_path
        if path is not None and "://" in path:
            return path
        return str(self.data_path / "keys" if path is None else Path(path).expanduser())

    @property
    def audit_path(self) -> Path:
        """The folder of the audit logs."""
        path = self.audit.log_path
        return self.data_path / "audit" if path is None else Path(path).expanduser()


ENVIRONMENT: Mapping[str, str] = {
    "PRAVAL_DEFAULT_PROVIDER": "default_provider",
    "PRAVAL_DEFAULT_MODEL": "default_model",
    "PRAVAL_LOG_LEVEL": "log_level",
    "PRAVAL_MAX_THREADS": "max_threads",
    "PRAVAL_DATA_DIR": "data_dir",
    "PRAVAL_DEBUG": "debug",
    "PRAVAL_TRANSPORT": "transport",
    "PRAVAL_ENABLE_SECURE_SPORES": "secure_spores.enabled",
    "PRAVAL_KEYS_STORE": "secure_spores.keys_path",
    "PRAVAL_TLS_CERT_DIR": "transport_security.certificate_path",
    "PRAVAL_REEF_CAPACITY": "reef_config.channel_capacity",
    "PRAVAL_MESSAGE_TTL": "reef_config.message_ttl",
    "PRAVAL_CLEANUP_INTERVAL": "reef_config.cleanup_interval",
    "PRAVAL_ENABLE_CACHING": "performance.enable_caching",
    "PRAVAL_CACHE_TTL": "performance.cache_ttl",
    "PRAVAL_CACHE": "performance.cache",
    "PRAVAL_MAX_RETRIES": "performance.max_retries",
    "PRAVAL_REQUEST_TIMEOUT": "performance.timeout",
    "QDRANT_URL": "memory_config.qdrant_url",
    "QDRANT_API_KEY": "memory_config.qdrant_api_key",
    "PRAVAL_COLLECTION_NAME": "memory_config.collection_name",
    "SHORT_TERM_MAX_ENTRIES": "memory_config.short_term_max_entries",
    "SHORT_TERM_RETENTION_HOURS": "memory_config.short_term_retention_hours",
}
"""Environment variable -> setting. API keys are read by their providers, never kept here."""

READ_ELSEWHERE = (
    "PRAVAL_PRICES",
    "PRAVAL_KEYS_PASSPHRASE",
    "PRAVAL_ROOT_PASSPHRASE",
    "PRAVAL_BACKUP_PASSPHRASE",
)
"""Variables that are no settings: a file with prices of models, secrets of ``praval keys``."""

NOT_BUILT = {
    "performance.batch_size": "batched model calls",
    "security.enable_content_filtering": "content filtering",
    "security.rate_limit_requests": "rate limits",
    "memory_config": "agent memory",
    "monitoring.metrics_enabled": "metrics",
    "monitoring.health_check_interval": "metrics",
    "monitoring.performance_monitoring": "metrics",
}
"""Keys of the guide that are accepted with a warning until their feature exists."""


def from_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """Read settings from ``environ`` (default: the process's, over a ``.env`` file).

    A variable whose feature is not built yet is accepted with a FutureWarning, as by
    :func:`configure`.

    Raises:
        ConfigurationError: a variable has a value that cannot be used; the message names it.
    """
    if environ is None:
        environ = environment()
    tree: dict[str, Any] = {}
    for variable, path in ENVIRONMENT.items():
        text = environ.get(variable, "").strip()
        if text:
            value = text.upper() if path == "log_level" else text
            _convert(_nested(path, value), source=variable)
            _set(tree, path, value)
            if feature := _feature_not_built(path):
                _warn_no_effect(variable, feature, stacklevel=3)
    for variable in environ:
        if variable.startswith("PRAVAL_") and variable not in (*ENVIRONMENT, *READ_ELSEWHERE):
            hint = near(variable, ENVIRONMENT)
            if hint:
                warnings.warn(f"Unknown environment variable {variable}.{hint}", stacklevel=2)
    return _convert(tree, source="the environment")


def merge(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return ``settings`` with ``changes`` merged in (nested mappings merge too).

    Raises:
        UnknownNameError: a key does not exist; the near name is suggested.
        ConfigurationError: a value has the wrong type or range.
    """
    if not isinstance(changes, Mapping):
        raise ConfigurationError(f"configure() takes a mapping, not {type(changes).__name__}.")
    changes = translated(changes)
    _check_keys(settings, changes, path="")
    tree = _merged(msgspec.to_builtins(settings), changes)
    merged = _convert(tree, source="configure()", strict=True)
    _warn_not_built(changes)
    return merged


class _Current:
    """The process's settings, read on first use and replaced as a whole by ``configure``."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.value: Settings | None = None
        self.environ: Mapping[str, str] | None = None


_current = _Current()


def current_settings() -> Settings:
    """Return the settings that the next Reef and the next model call will use."""
    with _current.lock:
        if _current.value is None:
            _current.value = _applied(from_environment())
        return _current.value


def environment() -> Mapping[str, str]:
    """Return the environment over the ``.env`` file, which is read once.

    This is where providers look for their API keys.
    """
    with _current.lock:
        if _current.environ is None:
            _current.environ = _dotenv()
        return {**_current.environ, **os.environ}


def configure(changes: Mapping[str, Any] | None = None, /, **keys: Any) -> Settings:
    """Merge ``changes`` into the settings, all or nothing, for Reefs built later.

    Keys are those of the guide ("Programmatic Configuration"). Returns the new settings.

    Raises:
        UnknownNameError: a key does not exist; the message suggests the near name.
        ConfigurationError: a value has the wrong type or range; nothing is changed.
    """
    if changes is not None and not isinstance(changes, Mapping):
        raise ConfigurationError(f"configure() takes a mapping, not {type(changes).__name__}.")
    with _current.lock:
        merged = merge(current_settings(), {**(changes or {}), **keys})
        _current.value = _applied(merged)
        return merged


def reset_settings() -> None:
    """Forget ``configure()`` calls; the next use reads the environment again (for tests)."""
    with _current.lock:
        _current.value = _current.environ = None


def _applied(settings: Settings) -> Settings:
    level = settings.log_level or ("DEBUG" if settings.debug else None)
    if level is not None:
        logging.getLogger("praval").setLevel(level)
    return settings


def _dotenv() -> dict[str, str]:
    path = Path(".env")
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    return {key: value for key, value in dotenv_values(path).items() if value is not None}


def _nested(path: str, value: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    _set(tree, path, value)
    return tree


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = value


def _merged(base: Any, changes: Any) -> Any:
    if isinstance(base, dict) and isinstance(changes, Mapping):
        return {
            **base,
            **{k: _merged(base[k], v) if k in base else v for k, v in changes.items()},
        }
    return changes


def _convert(tree: Any, *, source: str, strict: bool = False) -> Settings:
    try:
        settings = msgspec.convert(tree, Settings, strict=strict)
    except msgspec.ValidationError as error:
        reason = re.sub(r"\$\.?", "", str(error))
        raise ConfigurationError(f"Bad value in {source}: {reason}.") from None
    limits = settings.reef_config
    if limits.hard_capacity is not None and limits.hard_capacity < limits.channel_capacity:
        raise ConfigurationError(
            f"Bad value in {source}: reef_config.hard_capacity ({limits.hard_capacity}) is below "
            f"reef_config.channel_capacity ({limits.channel_capacity}). Raise the one or lower "
            "the other."
        )
    return settings


def _check_keys(settings: msgspec.Struct, changes: Mapping[Any, Any], path: str) -> None:
    for key, value in changes.items():
        if key not in settings.__struct_fields__:
            fields = [*settings.__struct_fields__, *([] if path else ["message_security"])]
            where = f" in {path.rstrip('.')!r}" if path else ""
            raise UnknownNameError(
                f"Unknown setting {key!r}{where}.{near(str(key), fields)} "
                f"Known: {', '.join(sorted(fields))}."
            )
        section = getattr(settings, key)
        if isinstance(section, msgspec.Struct) and isinstance(value, Mapping):
            _check_keys(section, value, f"{path}{key}.")


def _warn_not_built(changes: Mapping[str, Any]) -> None:
    for path, feature in NOT_BUILT.items():
        section, _, key = path.partition(".")
        value = changes.get(section)
        if value is not None and (not key or (isinstance(value, Mapping) and key in value)):
            _warn_no_effect(f"The setting {path!r}", feature, stacklevel=5)


def _feature_not_built(path: str) -> str | None:
    return NOT_BUILT.get(path) or NOT_BUILT.get(path.partition(".")[0])


def _warn_no_effect(what: str, feature: str, stacklevel: int) -> None:
    warnings.warn(
        f"{what} is accepted, but this version does not have {feature} yet: it has no effect.",
        FutureWarning,
        stacklevel=stacklevel,
    )
