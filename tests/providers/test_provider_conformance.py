"""Every provider before a strict server of its vendor: one contract, case by case."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from dialects import Anthropic, Cohere, Compatible, OpenAIChat, OpenAIResponses

from praval.providers import (
    AnthropicProvider,
    BaseProvider,
    CohereProvider,
    OpenAICompatibleProvider,
    OpenAIProvider,
)
from praval.testing import PROVIDER_CASES, Dialect, check_provider

Maker = Callable[[str, str], BaseProvider]

PROVIDERS: dict[str, tuple[Maker, Dialect]] = {
    "openai": (lambda url, key: OpenAIProvider(key, url), OpenAIChat()),
    "openai responses": (
        lambda url, key: OpenAIProvider(key, url, api="responses"),
        OpenAIResponses(),
    ),
    "anthropic": (lambda url, key: AnthropicProvider(key, url), Anthropic()),
    "anthropic thinking": (lambda url, key: AnthropicProvider(key, url), Anthropic(thinks=True)),
    "cohere": (lambda url, key: CohereProvider(key, url), Cohere()),
    "compatible": (
        lambda url, key: OpenAICompatibleProvider(url, key, model="tiny"),
        Compatible(),
    ),
}


@pytest.mark.parametrize("case", PROVIDER_CASES)
@pytest.mark.parametrize("name", PROVIDERS)
async def test_the_contract_holds(name: str, case: str) -> None:
    """The cases, with what each demands, are in praval/testing/providers.py."""
    make, dialect = PROVIDERS[name]
    assert await check_provider(make, dialect, only=[case]) == [case]
