"""Which providers there are, and which event loop each of them works on.

A provider that the user registered is one object. Its ``achat`` belongs to the first loop that
uses it, for as long as that loop runs; calls from other loops are carried there. A built-in one
is made on first use, once per loop. When a loop ends, the providers that worked on it are closed.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from praval.plugins import load
from praval.providers.base import BaseProvider, checked_provider
from praval.providers.configuration import ProviderConfig, checked_config
from praval.providers.resilience import Guard, Limits, checked_limits

BUILTIN: Mapping[str, str] = {
    "openai": "praval.providers.openai:OpenAIProvider",
    "anthropic": "praval.providers.anthropic:AnthropicProvider",
    "cohere": "praval.providers.cohere:CohereProvider",
    "openai_compatible": "praval.providers.openai_compatible:OpenAICompatibleProvider",
    "local": "praval.providers.local:LocalProvider",
}
"""Name -> class, which can be made without arguments, in order of preference. A further provider
is one line here."""

T = TypeVar("T")

GROUP = "praval.providers"

Found = BaseProvider | str
"""A registered provider, or the name of one that is made once per event loop."""
Check = Callable[[Found], None]
"""Raises if the chosen provider must not be used."""


class _Registry:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.registered: dict[str, BaseProvider] = {}
        self.overrides: list[tuple[BaseProvider, Guard]] = []
        self.checks: list[Check] = []
        self.configs: dict[str, ProviderConfig] = {}
        self.guards: dict[str, Guard] = {}
        self.loops: dict[asyncio.AbstractEventLoop, _LoopProviders] = {}


class _LoopProviders:
    """The providers that work on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.made: dict[str, BaseProvider] = {}
        self.closing = AsyncExitStack()
        self.keeper = self._until_loop_ends()

    async def _until_loop_ends(self) -> AsyncGenerator[None, None]:
        # asyncio.run() and the background loop close suspended generators when they end: the
        # one moment that all loops have, in which connections can still be closed properly
        async with self.closing:
            try:
                yield
            finally:
                with _registry.lock:
                    _registry.loops.pop(self.loop, None)

    async def release(self, provider: BaseProvider) -> None:
        if provider._bound_loop is self.loop:  # and not yet at work on another
            provider._bound_loop = None
            await provider.aclose()


_registry = _Registry()


def register_provider(
    name: str, provider_instance: BaseProvider, *, limits: Limits | None = None
) -> None:
    """Make ``provider_instance`` answer calls with ``provider=name`` (the last one wins).

    Args:
        name: not empty.
        provider_instance: shared by all loops and threads.
        limits: rate, concurrency, retries and circuit of this provider.

    Raises:
        ConfigurationError: it is no instance of a BaseProvider subclass with ``chat``, ``achat``
            or ``respond``, or a limit is out of range.
    """
    provider = checked_provider(name, provider_instance)
    guard = Guard(name, None if limits is None else checked_limits(limits))
    with _registry.lock:
        _registry.registered[name] = provider
        _registry.guards[name] = guard


def unregister_provider(name: str) -> None:
    """Forget a registered provider; a built-in one of that name is found again."""
    with _registry.lock:
        _registry.registered.pop(name, None)
        _registry.guards.pop(name, None)


def configure_providers(configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Configure providers by name, all or nothing (guide, "Provider-Specific Configuration").

    Each mapping may have the keys of the guide (``api_key``, ``base_url``, ``organization``,
    ``timeout``, ``max_retries``, ``default_model``, ``temperature``, ``max_tokens``), the other
    arguments of the provider's class, ``requests_per_minute``, ``max_concurrency``, ``failures``
    and ``pause`` (see :class:`Limits`), and ``type``: the provider that a new name is made of. It
    replaces what was configured for that name, and holds for calls that begin later.

    Raises:
        UnknownNameError: no such provider, or no such key (the near one is suggested).
        ConfigurationError: a value has the wrong type or range.
    """
    checked = {
        name: checked_config(
            name, config, lambda kind: load("provider", kind, BUILTIN, group=GROUP)
        )
        for name, config in configs.items()
    }
    with _registry.lock:
        for name, config in checked.items():
            _registry.configs[name] = config
            _registry.guards[name] = Guard(name, config.limits)
            for providers in _registry.loops.values():
                # calls under way keep the old one; the end of their loop closes it
                providers.made.pop(name, None)


def forget_configurations() -> None:
    """Forget what :func:`configure_providers` was told, and what circuits and rates remember."""
    with _registry.lock:
        for providers in _registry.loops.values():
            providers.made.clear()
        _registry.configs.clear()
        _registry.guards.clear()


def registered_names() -> list[str]:
    """Return the names given to register_provider, oldest first."""
    with _registry.lock:
        return list(_registry.registered)


def is_registered(name: str) -> bool:
    """Whether a provider was registered or configured under this name."""
    with _registry.lock:
        return name in _registry.registered or name in _registry.configs


def guard_of(name: str, found: Found) -> Guard:
    """Return what stands before a provider; one that answers for all others has its own."""
    with _registry.lock:
        for provider, guard in _registry.overrides:
            if provider is found:
                return guard
        if name not in _registry.guards:
            _registry.guards[name] = Guard(name)
        return _registry.guards[name]


def timeout_of(name: str) -> float | None:
    """Return the seconds that a request to this provider is configured to take, if it is."""
    with _registry.lock:
        config = _registry.configs.get(name)
    return None if config is None else config.timeout


def get_available_providers() -> list[str]:
    """Return the providers that a call can use now: registered ones, then built-in ones.

    A hosted one is available when there is a key for it. Looks for installed packages and model
    files on the disk.
    """
    with _registry.lock:
        configs = dict(_registry.configs)
    names = registered_names()
    for name in dict.fromkeys((*BUILTIN, *configs)):
        config = configs.get(name)
        kind = name if config is None else config.kind
        # an address or a key of one's own is all that a configured one needs
        if (config and {"api_key", "base_url"} & set(config.arguments)) or _class_of(
            kind
        ).available():
            names.append(name)
    return list(dict.fromkeys(names))


def get_provider(name: str) -> BaseProvider:
    """Return the provider that is registered as ``name``, or a new built-in one.

    Raises:
        UnknownNameError: nobody has that name.
        NoModelError: there is no key for it.
        ConfigurationError: a package or a variable that the provider needs is missing.
    """
    found = find(name)
    return found if isinstance(found, BaseProvider) else _made(found)


def find(name: str) -> Found:
    """Return the registered provider, or the name of one that is made per loop."""
    with _registry.lock:
        return _registry.registered.get(name, name)


def resolve(name: str | None, otherwise: Callable[[], Found]) -> Found:
    """Return what answers calls for ``name``; ``otherwise`` chooses when no name was given."""
    with _registry.lock:
        if _registry.overrides:
            return _registry.overrides[-1][0]
        checks = list(_registry.checks)
    found = otherwise() if name is None else find(name)
    for check in checks:
        check(found)
    return found


def is_overridden() -> bool:
    """Return whether one provider answers all calls at the moment."""
    return bool(_registry.overrides)


def add_override(provider: BaseProvider) -> Callable[[], None]:
    """Let ``provider`` answer all calls of this process; return what ends that."""
    return _added(_registry.overrides, (provider, Guard(type(provider).__name__)))


def add_check(check: Check) -> Callable[[], None]:
    """Ask ``check`` about every provider that is chosen; return what ends that."""
    return _added(_registry.checks, check)


def _added(entries: list[T], entry: T) -> Callable[[], None]:
    with _registry.lock:
        entries.append(entry)

    def remove() -> None:
        with _registry.lock:
            for index in reversed(range(len(entries))):
                if entries[index] is entry:  # the innermost of equal ones
                    del entries[index]
                    break

    return remove


async def on_this_loop(found: Found) -> BaseProvider:
    """Return the provider itself: for a name, the running loop's own one, made if needed.

    Raises:
        UnknownNameError: nobody has that name.
        ConfigurationError: a package or a variable that the provider needs is missing.
    """
    if isinstance(found, BaseProvider):
        return found
    providers = await _providers_of(asyncio.get_running_loop())
    provider = providers.made.get(found)
    if provider is None:
        made = await asyncio.to_thread(_made, found)
        provider = providers.made.setdefault(found, made)
    return provider


async def claim(provider: BaseProvider) -> asyncio.AbstractEventLoop:
    """Return the loop on which ``provider.achat`` must run: the running one, if it is free."""
    loop = asyncio.get_running_loop()
    if provider.any_loop:
        return loop
    with _registry.lock:
        owner = provider._bound_loop
        if owner is not None and (owner is loop or owner.is_running()):
            return owner
        provider._bound_loop = loop
    providers = await _providers_of(loop)
    providers.closing.push_async_callback(providers.release, provider)
    return loop


async def _providers_of(loop: asyncio.AbstractEventLoop) -> _LoopProviders:
    with _registry.lock:
        providers = _registry.loops.get(loop)
        if providers is not None:
            return providers
        for other in [other for other in _registry.loops if other.is_closed()]:
            del _registry.loops[other]  # closed without shutdown_asyncgens()
        providers = _registry.loops[loop] = _LoopProviders(loop)
    await anext(providers.keeper)  # it yields at once
    return providers


def _class_of(name: str) -> type[BaseProvider]:
    kind: type[BaseProvider] = load("provider", name, BUILTIN, group=GROUP)
    return kind


def _made(name: str) -> BaseProvider:
    with _registry.lock:
        config = _registry.configs.get(name)
    if config is None:
        return checked_provider(name, _class_of(name)())
    return checked_provider(name, _class_of(config.kind)(**config.arguments))


def _reset_after_fork() -> None:
    # the parent's loops do not run in the child, and its lock may be held by a thread left behind
    _registry.lock = threading.Lock()
    _registry.loops.clear()
    for provider in _registry.registered.values():
        provider._bound_loop = None
    for name, guard in _registry.guards.items():
        _registry.guards[name] = Guard(name, guard.limits)  # nobody gives the places back


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
