"""Models: where answers come from (guide, "Provider Integration").

Built in are ``"local"`` (any GGUF file, on this machine) and ``"openai_compatible"``; your own is
a subclass of :class:`BaseProvider` given to :func:`register_provider`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from praval.errors import ProviderTimeoutError
from praval.providers.base import BaseProvider, Messages
from praval.providers.registry import (
    get_available_providers,
    get_provider,
    register_provider,
    unregister_provider,
)

if TYPE_CHECKING:
    from praval.providers.local import LocalProvider
    from praval.providers.openai_compatible import OpenAICompatibleProvider

__all__ = [
    "BaseProvider",
    "LocalProvider",
    "Messages",
    "OpenAICompatibleProvider",
    "ProviderTimeoutError",
    "get_available_providers",
    "get_provider",
    "register_provider",
    "unregister_provider",
]


def __getattr__(name: str) -> Any:
    if name == "LocalProvider":
        from praval.providers.local import LocalProvider

        return LocalProvider
    if name == "OpenAICompatibleProvider":
        from praval.providers.openai_compatible import OpenAICompatibleProvider

        return OpenAICompatibleProvider
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
