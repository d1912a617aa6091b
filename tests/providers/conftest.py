"""What the tests of models share: a clean registry, and a strict OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai_server import OpenAIServer

from praval.providers import registry

KEY = "sk-secret-4711"


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No registered provider, override or server address leaks into or out of a test."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert not registry.registered_names()
    yield
    for name in registry.registered_names():
        registry.unregister_provider(name)
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
