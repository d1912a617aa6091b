"""What ``configure_providers`` is told about one provider, checked."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from praval.errors import ConfigurationError, NoModelError, UnknownNameError
from praval.plugins import near
from praval.providers.base import BaseProvider
from praval.providers.resilience import Limits, checked_limits

RENAMED = {"default_model": "model"}
"""Keys of the guide -> arguments of the classes."""
OURS = ("type", "timeout", *Limits.__struct_fields__)


class ProviderConfig(msgspec.Struct, frozen=True):
    """How a named provider is made, and what it is spared."""

    kind: str
    """The built-in or third-party provider that it is made of."""
    arguments: dict[str, Any]
    limits: Limits
    timeout: float | None = None

    def __repr__(self) -> str:
        """Everything but values: one of them is a key."""
        return f"ProviderConfig({self.kind!r}, {', '.join(self.arguments)})"


def checked_config(
    name: str, config: object, class_of: Callable[[str], Callable[..., BaseProvider]]
) -> ProviderConfig:
    """Return the configuration if its provider can be made of it.

    Raises:
        UnknownNameError: no such provider, or no such key.
        ConfigurationError: a value has the wrong type or range.
    """
    if not isinstance(config, Mapping):
        raise ConfigurationError(
            f"The configuration of provider {name!r} must be a mapping, not "
            f"{type(config).__name__}."
        )
    kind = config.get("type", name)
    make = class_of(kind)
    accepted = inspect.signature(make).parameters
    known = [*OURS, *RENAMED, *accepted]
    for key in config:
        if key not in known:
            raise UnknownNameError(
                f"Unknown key {key!r} for provider {name!r}.{near(str(key), known)} "
                f"Known: {', '.join(sorted(set(known)))}."
            )
    timeout = config.get("timeout")
    if timeout is not None and not (
        isinstance(timeout, int | float) and math.isfinite(timeout) and timeout > 0
    ):
        raise ConfigurationError(f"The timeout of provider {name!r} must be seconds above 0.")
    limits = checked_limits(
        Limits(**{key: config[key] for key in Limits.__struct_fields__ if key in config})
    )
    arguments: dict[str, Any] = {
        RENAMED.get(str(key), str(key)): value
        for key, value in config.items()
        if key not in OURS and value is not None
    }
    with contextlib.suppress(NoModelError):  # a key may come later; calls will say so
        make(**arguments)  # whatever else is wrong is said now; nothing is connected
    return ProviderConfig(kind, arguments, limits, timeout)
