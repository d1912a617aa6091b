"""Where a name becomes a class: built-in table, then entry points, then a helpful error.

Providers, transports and storage back ends are found the same way. A built-in is one line in
its kind's table; a third party registers by an entry point in the kind's group.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from praval.errors import ConfigurationError, UnknownNameError


def near(name: str, known: Iterable[str]) -> str:
    """Return ``' Did you mean "x"?'`` for the nearest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{match[0]}"?' if match else ""


def find(kind: str, name: str, builtin: Mapping[str, str], *, group: str) -> str | EntryPoint:
    """Return where the plug-in ``name`` is, without importing it; arguments as for :func:`load`.

    Raises:
        UnknownNameError: nobody registered that name.
    """
    target = builtin.get(name)
    if target is not None:
        return target
    for point in entry_points(group=group, name=name):
        return point
    known = sorted({*builtin, *(point.name for point in entry_points(group=group))})
    raise UnknownNameError(
        f"Unknown {kind} {name!r}; known: {', '.join(known) or 'none'}.{near(name, known)}"
    )


def load(kind: str, name: str, builtin: Mapping[str, str], *, group: str) -> Any:
    """Import the plug-in ``name``.

    Args:
        kind: what it is, for messages ("provider", "transport", ...).
        name: the name the user gave.
        builtin: name -> ``"module:attribute"``.
        group: entry point group in which third parties register.

    Raises:
        UnknownNameError: nobody registered that name.
        ConfigurationError: the plug-in exists but a package it needs is not installed.
    """
    target = find(kind, name, builtin, group=group)
    if isinstance(target, EntryPoint):
        return target.load()
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"The {kind} {name!r} needs the package {error.name!r}, which is not installed. "
            f'Install it with: pip install "praval-asyncio[{name}]"'
        ) from error
