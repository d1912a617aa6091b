"""Where vendors' keys come from, and what to say when there is none."""

from __future__ import annotations

from collections.abc import Mapping

from praval.errors import NoModelError
from praval.settings import environment

KEYS: Mapping[str, tuple[str, ...]] = {
    "openai": ("OPENAI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
}
"""Provider -> environment variables that may hold its key; the first that is set counts."""


def key_of(name: str) -> str | None:
    """Return the key that the environment holds for a provider."""
    variables = environment()
    return next((key for each in KEYS[name] if (key := variables.get(each, "").strip())), None)


def require_key(name: str, given: str | None) -> str:
    """Return the given key, or the environment's.

    Raises:
        NoModelError: there is none; the message lists the ways to get a model.
    """
    key = given or key_of(name)
    if key:
        return key
    raise NoModelError(f"The provider {name!r} has no key. Ways to get a model:\n{ways(name)}")


def ways(first: str | None = None) -> str:
    """Return the ways to get a model, one per line, those of provider ``first`` first."""
    from praval.providers import local

    hosted = [
        f"- {name}: set {KEYS[name][0]} (in the environment or a .env file), or "
        f'configure_providers({{"{name}": {{"api_key": ...}}}})'
        for name in sorted(KEYS, key=lambda name: name != first)
    ]
    others = [
        f"- a model on this machine: {local.INSTALL_ENGINE} and {local.INSTALL_MODEL}, "
        'or any GGUF file: chat(..., provider="local", model="/path/to/model.gguf")',
        "- a server that speaks the OpenAI protocol: set OPENAI_BASE_URL (and OPENAI_API_KEY), "
        'then chat(..., provider="openai_compatible", model="...")',
        "- your own: praval.providers.register_provider(name, provider)",
    ]
    return "\n".join(hosted + others)
