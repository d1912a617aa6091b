"""What the tests of models share: a clean registry, and a strict OpenAI-compatible server."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from openai_server import OpenAIServer

from praval.providers import registry
from praval.providers.accounts import forget_usage
from praval.providers.cache import clear_caches
from praval.providers.catalogue import forget_models
from praval.providers.history import forget_history
from praval.providers.prices import forget_prices

KEY = "sk-secret-4711"


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No registered provider, override or server address leaks into or out of a test."""
    for variable in os.environ:
        if variable.startswith(("OPENAI_", "ANTHROPIC_", "COHERE_", "CO_API")):
            monkeypatch.delenv(variable)
    assert not registry.registered_names()
    yield
    for name in registry.registered_names():
        registry.unregister_provider(name)
    registry.forget_configurations()
    forget_prices()
    forget_usage()
    forget_history()
    forget_models()
    clear_caches()
    assert not registry.is_overridden()


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def guarded_server() -> Iterator[OpenAIServer]:
    """A server that answers only to who has the key."""
    with OpenAIServer(KEY) as server:
        yield server


@pytest.fixture
def key() -> str:
    return KEY
