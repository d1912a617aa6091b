"""What the caller of ``chat``, ``achat`` or ``astream`` wants, checked."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from praval.core.context import current_agent
from praval.errors import ConfigurationError
from praval.providers import history as histories
from praval.providers.asking import Terms
from praval.providers.choice import Named, Names, candidates, is_named
from praval.providers.conversation import Call
from praval.providers.messages import ChatRequest, ImageSource, Message
from praval.providers.structured import Wanted
from praval.settings import current_settings

History = bool | str | Sequence[Message | Mapping[str, Any]] | None


class Prepared:
    """A chat call whose arguments are checked; whom to ask is not known yet."""

    def __init__(self, wanted: list[Named], fields: dict[str, Any], timeout: float | None) -> None:
        self.wanted = wanted
        self.fields = fields
        self.timeout = timeout

    def call(self) -> Call:
        """Find out whom to ask; may look for files."""
        return Call(candidates=candidates(self.wanted), **self.fields)

    async def found(self) -> Call:
        """Find out whom to ask, looking for files in a thread."""
        if is_named(self.wanted):
            return self.call()
        return await asyncio.to_thread(self.call)


def prepared(  # noqa: PLR0917 - exactly the arguments of the three functions above
    message: object,
    returns: Any,
    system: str | None,
    model: str | None,
    provider: Names | None,
    temperature: float | None,
    max_tokens: int | None,
    timeout: float | None,
    history: History,
    images: Sequence[ImageSource],
    tools: Sequence[Any] | None,
    cache: bool | None,
    options: dict[str, Any],
) -> Prepared:
    """Check the arguments.

    Raises:
        ConfigurationError: one cannot be used; the message names it.
    """
    _check_numbers(temperature, max_tokens, timeout)
    _check_texts(message, system, model, provider)
    if isinstance(images, str | bytes) or not isinstance(images, Sequence):
        raise ConfigurationError("images must be a list.")
    if isinstance(tools, str) or not isinstance(tools, Sequence | None):
        raise ConfigurationError("tools must be a list.")
    agent, settings = current_agent(), current_settings()
    wanted: list[Named] = [
        (provider, model),
        (settings.default_provider, settings.default_model),
    ]
    if agent is not None:
        system = agent.system_message if system is None else system
        wanted.insert(1, (agent.provider, agent.model))
    performance = settings.performance
    before: tuple[Message, ...] = ()
    key = None
    if isinstance(history, bool | str):
        key = histories.key_of(history) if history else None
    elif history is not None:
        before = tuple(map(Message.of, history))
    given = () if agent is None else agent.tools
    fields: dict[str, Any] = {
        "question": message,
        "system": system,
        "before": before,
        "request": ChatRequest(
            messages=(), temperature=temperature, max_tokens=max_tokens, options=options
        ),
        "terms": Terms(settings, timeout, performance.enable_caching if cache is None else cache),
        "agent": None if agent is None else agent.name,
        "images": tuple(images),
        "tools": tuple(given if tools is None else tools),
        "granted": tools is None,
        "history_key": key,
        "wanted": None if returns is None else Wanted(returns),
        "total": timeout,
    }
    if returns is not None:
        fields["request"] = msgspec.structs.replace(
            fields["request"], output=fields["wanted"].output
        )
    return Prepared(wanted, fields, timeout)


def _check_texts(message: object, system: object, model: object, provider: object) -> None:
    if not isinstance(message, str) or not message.strip():
        raise ConfigurationError(f"message must be a non-empty string, not {_shown(message)}.")
    if not isinstance(provider, str) and isinstance(provider, Sequence):
        if not provider or not all(isinstance(name, str) and name.strip() for name in provider):
            raise ConfigurationError("provider must be a name, or a list of names.")
        provider = None
    for name, value in {"system": system, "model": model, "provider": provider}.items():
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise ConfigurationError(f"{name} must be a non-empty string, not {_shown(value)}.")


def _check_numbers(temperature: object, max_tokens: object, timeout: object) -> None:
    if temperature is not None and not (_is_number(temperature) and temperature >= 0):  # type: ignore[operator]
        raise ConfigurationError(f"temperature must be 0 or more, not {_shown(temperature)}.")
    if max_tokens is not None and not (
        isinstance(max_tokens, int) and not isinstance(max_tokens, bool) and max_tokens >= 1
    ):
        raise ConfigurationError(f"max_tokens must be 1 or more, not {_shown(max_tokens)}.")
    if timeout is not None and not (_is_number(timeout) and timeout > 0):  # type: ignore[operator]
        raise ConfigurationError(f"timeout must be seconds above 0, not {_shown(timeout)}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    return f"{value!r:.60}" if isinstance(value, str | int | float) else type(value).__name__
