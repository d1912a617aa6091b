"""Who is asked: by name, as a chain, or the first that is available.

The ``provider=`` of the call, else the one of the agent whose handler runs here, else the
configured default, else one that serves the wanted model, else the first that is available. A
named model goes with the provider it was named for: an agent's ``model`` is not used when the call
names another provider.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from praval.errors import NoModelError
from praval.providers import registry
from praval.providers.asking import Candidate
from praval.providers.keys import ways

Names: TypeAlias = str | Sequence[str]
Named: TypeAlias = tuple[Names | None, str | None]
"""A provider, or a chain of them, and a model."""

FAMILIES = (
    ("openai", ("gpt-", "chatgpt-", "o1", "o3", "o4")),
    ("anthropic", ("claude-",)),
    ("cohere", ("command",)),
    ("local", (".gguf",)),
)
"""Provider -> how the names of its models begin (or end, for files)."""


def candidates(wanted: Sequence[Named]) -> tuple[Candidate, ...]:
    """Return who may be asked, in order; looks for files if no provider was named.

    Args:
        wanted: provider and model, from the call to the settings.

    Raises:
        NoModelError: nobody is named, and nobody is available.
    """
    names, model = provider_and_model(wanted)
    if names is None:
        return (_resolved(None, model),)
    if isinstance(names, str):
        return (_resolved(names, model),)
    # the model was named with the chain: it is meant for the first, unless it is another's
    first = _family(model) if model else None
    return tuple(
        _resolved(name, model if (name == first if first in names else number == 0) else None)
        for number, name in enumerate(names)
    )


def is_named(wanted: Sequence[Named]) -> bool:
    """Whether finding the candidates needs no look at the disk."""
    return provider_and_model(wanted)[0] is not None or registry.is_overridden()


def provider_and_model(wanted: Sequence[Named]) -> Named:
    """Return the first provider, and the first model that was named for that provider.

    ``wanted`` goes from the call to the settings. A model named without a provider is meant for
    the next provider in this order, or for any if none follows.
    """

    def named_from(index: int) -> Names | None:
        return next((provider for provider, _ in wanted[index:] if provider), None)

    chosen = named_from(0)
    for index, (_, model) in enumerate(wanted):
        if model and named_from(index) in (chosen, None):
            return chosen, model
    return chosen, None


def _resolved(name: str | None, model: str | None) -> Candidate:
    """Return the candidate; a name may be ``provider:model``."""
    if name is not None and ":" in name and not registry.is_registered(name):
        name, _, model = name.partition(":")
    model = model or getattr(name, "model", None)  # what select_best_provider chose
    label = name or ""

    def first_available() -> registry.Found:
        nonlocal label
        label = _first_available(model)
        return registry.find(label)

    found = registry.resolve(name, first_available)
    return Candidate(label or type(found).__name__, found, model)


def _family(model: str) -> str | None:
    lower = model.lower()
    return next(
        (
            name
            for name, marks in FAMILIES
            if any(lower.startswith(mark) or lower.endswith(mark) for mark in marks)
        ),
        None,
    )


def _first_available(model: str | None) -> str:
    registered = registry.registered_names()
    if registered:
        return registered[0]
    available = registry.get_available_providers()
    if model is not None:
        family = _family(model)
        if family in available:
            return str(family)
        # any model may be served under an address of one's own
        if family != "local" and "openai_compatible" in available:
            return "openai_compatible"
        raise NoModelError(
            f"No provider serves the model {model!r}. Ways to get one:\n{ways(family)}\n"
            f"{_local_state(model)}"
        )
    if available:
        return available[0]
    raise NoModelError(
        f"chat() has no model to ask. Ways to get one:\n{ways()}\n{_local_state(None)}"
    )


def _local_state(model: str | None) -> str:
    from praval.providers import local

    lacking = local.why_unusable(model if model and model.lower().endswith(".gguf") else None)
    return f"A local model: {lacking or 'usable, if you name no other model'}."
