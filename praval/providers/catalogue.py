"""Which provider for which task: a table that you can extend, and a choice that explains itself."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Literal, Self

import msgspec

from praval.errors import ConfigurationError, NoModelError
from praval.plugins import near
from praval.providers.keys import ways
from praval.providers.prices import price_of
from praval.providers.registry import get_available_providers

Speed = Literal["fast", "balanced", "slow"]
_SPEEDS: Mapping[str, int] = {"slow": 1, "balanced": 2, "medium": 2, "fast": 3}
_BUDGETS: Mapping[str, float] = {"low": 1.0, "medium": 15.0, "high": float("inf")}
"""Word -> most US dollars per million tokens of output."""


class ModelCard(msgspec.Struct, frozen=True):
    """What is known of a model."""

    provider: str
    model: str
    context: int
    """Tokens of prompt and answer together."""
    quality: int
    """1 (small) to 5 (the best there is)."""
    speed: Speed
    strengths: tuple[str, ...] = ()
    """Types of task for which it is made."""
    output_price: float | None = None
    """US dollars per million tokens; None: as the price table says."""


_HARD = ("reasoning", "analysis", "coding")
_LIGHT = ("chat", "summarization", "extraction", "classification")

BUILTIN = (
    ModelCard("openai", "gpt-6-sol", 272_000, 5, "slow", (*_HARD, "vision", "creative")),
    ModelCard("openai", "gpt-6.1-terra", 272_000, 4, "balanced", (*_HARD, "vision")),
    ModelCard("openai", "gpt-6-luna", 272_000, 2, "fast", (*_LIGHT, "vision")),
    ModelCard("openai", "gpt-4-turbo", 128_000, 3, "balanced", ("chat", "creative", "vision")),
    ModelCard("anthropic", "claude-opus-5-5", 200_000, 5, "slow", (*_HARD, "creative", "vision")),
    ModelCard("anthropic", "claude-sonnet-5-5", 200_000, 4, "balanced", (*_HARD, "creative")),
    ModelCard("anthropic", "claude-haiku-5-5", 200_000, 2, "fast", (*_LIGHT, "vision")),
    ModelCard("cohere", "command-a-03-2025", 256_000, 3, "balanced", (*_LIGHT, "translation")),
    ModelCard("cohere", "command-r7b-12-2024", 128_000, 1, "fast", _LIGHT),
    ModelCard("local", "", 2_048, 1, "balanced", ("private", "chat"), output_price=0.0),
)


class _Catalogue:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.own: list[ModelCard] = []


_catalogue = _Catalogue()


class Choice(str):
    """The name of a provider, as chosen: ``chat(..., provider=choice)`` asks its ``model``."""

    model: str | None
    explanation: str
    """Why this one, and why none of the others, one per line."""

    def __new__(cls, provider: str, model: str | None, explanation: str) -> Self:  # noqa: D102
        self = super().__new__(cls, provider)
        self.model = model
        self.explanation = explanation
        return self


def add_model(card: ModelCard) -> None:
    """Add a model to the table, or replace the one of this provider and name."""
    with _catalogue.lock:
        _catalogue.own = [each for each in _catalogue.own if _names(each) != _names(card)]
        _catalogue.own.append(card)


def forget_models() -> None:
    """Forget what :func:`add_model` added."""
    with _catalogue.lock:
        _catalogue.own.clear()


def cards() -> list[ModelCard]:
    """Return the table: yours before the built-in ones."""
    with _catalogue.lock:
        own = list(_catalogue.own)
    taken = {_names(each) for each in own}
    return own + [each for each in BUILTIN if _names(each) not in taken]


def select_best_provider(
    task_type: str | None = None,
    required_context_length: int | None = None,
    preferred_speed: str | None = None,
    budget_constraints: str | float | None = None,
) -> Choice:
    """Return the available provider that fits best; its ``explanation`` says why.

    Too small a context, or too high a price, excludes a model. Of the others the one that is made
    for the task and as fast as wanted is chosen, then the better one, then the cheaper one. Looks
    for files: not on an event loop.

    Args:
        task_type: for instance "reasoning", "coding", "creative", "summarization", "chat".
        required_context_length: tokens of prompt and answer together.
        preferred_speed: "fast", "balanced" (or "medium"), "slow".
        budget_constraints: "low", "medium", "high", or US dollars per million tokens of output.

    Raises:
        NoModelError: no provider is available, or none fits; the message says why.
        ConfigurationError: an argument has a value that is not known.
    """
    table = cards()
    _check(table, task_type, preferred_speed, required_context_length)
    limit = _limit(budget_constraints)
    available = get_available_providers()
    if not available:
        raise NoModelError(f"There is no provider to choose. Ways to get one:\n{ways()}")
    said: list[str] = []
    fitting: list[tuple[tuple[float, ...], ModelCard]] = []
    for card in table:
        name = f"{card.provider} {card.model}".strip()
        if card.provider not in available:
            said.append(f"- {name}: no key, or not installed")
        elif required_context_length is not None and card.context < required_context_length:
            said.append(f"- {name}: context of {card.context} tokens is too short")
        elif (price := _price(card)) > limit:
            said.append(f"- {name}: ${price:g} per million tokens of output is too much")
        else:
            fitting.append((_score(card, task_type, preferred_speed, available), card))
    known = {card.provider for card in table}
    for name in available:
        if name not in known:
            said.append(f"- {name}: no card (add_model(ModelCard({name!r}, ...)))")
    if not fitting:
        raise NoModelError("No available provider fits:\n" + "\n".join(said))
    fitting.sort(key=lambda each: each[0], reverse=True)
    best = fitting[0][1]
    others = [f"- {card.provider} {card.model}: {_words(card)}" for _, card in fitting[1:]]
    explanation = (
        f"{best.provider} {best.model}: {_words(best)}; asked for: task {task_type}, context "
        f"{required_context_length}, speed {preferred_speed}, budget {budget_constraints}."
    )
    return Choice(best.provider, best.model or None, "\n".join((explanation, *others, *said)))


def _names(card: ModelCard) -> tuple[str, str]:
    return card.provider, card.model


def _price(card: ModelCard) -> float:
    if card.output_price is not None:
        return card.output_price
    price = price_of(card.model)
    return float("inf") if price is None else price.output


def _score(
    card: ModelCard, task: str | None, speed: str | None, available: list[str]
) -> tuple[float, ...]:
    """Return what is compared, the most important first."""
    suits = 0 if task is None else task in card.strengths
    away = 0 if speed is None else abs(_SPEEDS[card.speed] - _SPEEDS[speed])
    return (suits * 2 - away, card.quality, -_price(card), -available.index(card.provider))


def _words(card: ModelCard) -> str:
    strengths = ", ".join(card.strengths) or "nothing in particular"
    return (
        f"quality {card.quality}, {card.speed}, context {card.context}, ${_price(card):g} per "
        f"million tokens of output, made for {strengths}"
    )


def _limit(budget: str | float | None) -> float:
    if budget is None:
        return float("inf")
    if isinstance(budget, str):
        if budget not in _BUDGETS:
            raise ConfigurationError(
                f'budget_constraints is "low", "medium", "high" or dollars, not {budget!r}.'
            )
        return _BUDGETS[budget]
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget >= 0:
        raise ConfigurationError("budget_constraints must be dollars of at least 0.")
    return float(budget)


def _check(
    table: list[ModelCard], task: str | None, speed: str | None, context: int | None
) -> None:
    tasks = sorted({each for card in table for each in card.strengths})
    if task is not None and task not in tasks:
        raise ConfigurationError(
            f"Unknown task_type {task!r}.{near(str(task), tasks)} Known: {', '.join(tasks)}."
        )
    if speed is not None and speed not in _SPEEDS:
        raise ConfigurationError(f"preferred_speed is one of {', '.join(_SPEEDS)}, not {speed!r}.")
    if context is not None and (not isinstance(context, int) or context < 1):
        raise ConfigurationError("required_context_length must be tokens, 1 or more.")
