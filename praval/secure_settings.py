"""The settings of sealed spores, the audit log and monitoring.

Guide: "Production Security Configuration".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from praval.errors import ConfigurationError, UnknownNameError
from praval.plugins import near

Positive = Annotated[float, msgspec.Meta(gt=0)]


class SecureSporesSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keys for Reefs that are given none with ``security=``."""

    enabled: bool = False
    """Seal every spore, with the keys of ``keys_path``; their passphrase is that of the variable
    PRAVAL_KEYS_PASSPHRASE."""
    keys_path: str | None = None
    """The store that ``praval keys init`` has made: a folder (default: ``keys`` in the data
    directory), or the URL of one that replicas share, ``postgresql://...`` or ``rediss://...``."""
    key_rotation_interval: Positive = 86_400.0
    """Seconds for which a prekey and a signing key are in use."""
    signature_algorithm: Literal["ed25519"] = "ed25519"
    encryption_algorithm: Literal["curve25519_xsalsa20_poly1305"] = "curve25519_xsalsa20_poly1305"
    key_backup_enabled: bool = False
    """Write a backup of each identity when a Reef opens the keys, encrypted under the passphrase
    of PRAVAL_BACKUP_PASSPHRASE. It has no prekeys: what was sealed before stays sealed."""
    key_backup_path: str | None = None
    """The folder of these backups; it should be on another disk."""

    def __repr__(self) -> str:
        """Everything but the password that the URL of a store may hold."""
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        if self.keys_path is not None:
            shown["keys_path"] = re.sub(r"://.*", "://***", self.keys_path, flags=re.S)
        return f"SecureSporesSettings({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


class AuditSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The audit log of Reefs with ``security=``."""

    enabled: bool = False
    log_all_messages: bool = False
    """Also write down each spore that is sent, received and ended: names, ids, sizes, digests."""
    log_path: str | None = None
    """Each namespace has a folder in this one; default: ``audit`` in the data directory."""
    retention_days: Annotated[float, msgspec.Meta(gt=0, le=36_500)] = 365.0
    """Days after which a file is deleted."""
    encryption_at_rest: bool = False


class MonitoringSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is told of a Reef while it runs."""

    metrics_enabled: bool = False
    health_check_interval: Positive | None = None
    performance_monitoring: bool = False
    security_alerts: bool = True
    """Tell agents that respond to ``security_alert`` what was refused."""


MESSAGE_SECURITY: Mapping[str, tuple[str, str]] = {
    "max_message_size": ("security", "max_message_size"),
    "message_retention": ("reef_config", "message_retention"),
    "rate_limiting.messages_per_minute": ("security", "messages_per_minute"),
    "rate_limiting.burst_size": ("security", "burst_size"),
}
"""Keys of the guide's section ``message_security`` -> section and name that they have here."""


def translated(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes of settings with the section ``message_security`` under its own names.

    Raises:
        UnknownNameError: a key of that section does not exist.
        ConfigurationError: replay protection is to be turned off.
    """
    given = changes.get("message_security")
    if given is None:
        return dict(changes)
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"message_security must be a mapping, not {given!r}.")
    rest = {key: value for key, value in changes.items() if key != "message_security"}
    flat = dict(given)
    if isinstance(limits := flat.pop("rate_limiting", {}), Mapping):
        flat |= {f"rate_limiting.{key}": value for key, value in limits.items()}
    else:
        raise ConfigurationError("message_security.rate_limiting must be a mapping.")
    if flat.pop("replay_protection", True) is not True:
        raise ConfigurationError(
            "message_security.replay_protection cannot be turned off: without it whoever runs the "
            "broker has a spore handled as often as he likes. Leave the key out."
        )
    for key, value in flat.items():
        if key not in MESSAGE_SECURITY:
            known = [*MESSAGE_SECURITY, "replay_protection"]
            raise UnknownNameError(
                f"Unknown setting {key!r} in 'message_security'.{near(key, known)} "
                f"Known: {', '.join(sorted(known))}."
            )
        section, name = MESSAGE_SECURITY[key]
        inner = rest.get(section, {})
        if isinstance(inner, Mapping):  # else its own check refuses it
            rest[section] = {**inner, name: value}
    return rest
