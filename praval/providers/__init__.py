"""Models: where answers come from (guide, "Provider Integration").

Built in are ``"openai"``, ``"anthropic"``, ``"cohere"``, ``"openai_compatible"`` (any server that
speaks OpenAI's chat completions) and ``"local"`` (any GGUF file, on this machine); your own is a
subclass of :class:`BaseProvider` given to :func:`register_provider`, or an entry point of the group
``praval.providers``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from praval.errors import ProviderTimeoutError
from praval.providers.base import BaseProvider, Messages
from praval.providers.messages import ChatRequest, Image, Message, Response, ToolCall, Usage
from praval.providers.registry import (
    configure_providers,
    get_available_providers,
    get_provider,
    register_provider,
    unregister_provider,
)
from praval.providers.resilience import Limits

if TYPE_CHECKING:
    from praval.providers.accounts import Account, usage
    from praval.providers.anthropic import AnthropicProvider
    from praval.providers.budgets import Budget, Budgets, budget
    from praval.providers.catalogue import Choice, ModelCard, add_model, select_best_provider
    from praval.providers.cohere import CohereProvider
    from praval.providers.local import LocalProvider
    from praval.providers.openai import OpenAIProvider
    from praval.providers.openai_compatible import OpenAICompatibleProvider
    from praval.providers.prices import set_price

__all__ = [
    "Account",
    "AnthropicProvider",
    "BaseProvider",
    "Budget",
    "Budgets",
    "ChatRequest",
    "Choice",
    "CohereProvider",
    "Image",
    "Limits",
    "LocalProvider",
    "Message",
    "Messages",
    "ModelCard",
    "OpenAICompatibleProvider",
    "OpenAIProvider",
    "ProviderTimeoutError",
    "Response",
    "ToolCall",
    "Usage",
    "add_model",
    "budget",
    "configure_providers",
    "get_available_providers",
    "get_provider",
    "register_provider",
    "select_best_provider",
    "set_price",
    "unregister_provider",
    "usage",
]

_LAZY = {
    "Account": "accounts",
    "AnthropicProvider": "anthropic",
    "Budget": "budgets",
    "Budgets": "budgets",
    "Choice": "catalogue",
    "CohereProvider": "cohere",
    "LocalProvider": "local",
    "ModelCard": "catalogue",
    "OpenAICompatibleProvider": "openai_compatible",
    "OpenAIProvider": "openai",
    "add_model": "catalogue",
    "budget": "budgets",
    "select_best_provider": "catalogue",
    "set_price": "prices",
    "usage": "accounts",
}
"""Name -> module that is loaded on first use."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"praval.providers.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
