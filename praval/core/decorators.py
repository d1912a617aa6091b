"""``@agent`` and its relatives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from praval.core.agent import AgentDefinition, Condition, Handler, checked_options
from praval.core.registry import get_registry
from praval.errors import ConfigurationError, HandlerSignatureError

Decorator = Callable[[Handler], AgentDefinition]


def agent(
    name: str,
    responds_to: str | Iterable[str] | None = None,
    channel: str | None = None,
    auto_broadcast: bool = True,
    concurrent: bool | int = False,
    *,
    system_message: str | None = None,
    model: str | None = None,
    provider: str | Sequence[str] | None = None,
    tools: Sequence[Any] = (),
    retries: int = 0,
    backoff: float = 0.1,
    timeout: float | None = None,
    on_error: Literal["dead_letter", "raise"] = "dead_letter",
    transactional: bool = False,
    memory: bool = False,
    knowledge_base: str | None = None,
    _condition: Condition | None = None,
    _max_calls_per_minute: float | None = None,
) -> Decorator:
    """Make an agent of a function: ``async def`` runs on the loop, ``def`` on a worker thread.

    The function takes ``spore`` and, by name, whatever else it wants injected (``reef``,
    ``agent``). What it returns is a result: the reply to a request, otherwise broadcast if it is
    a dictionary with a ``"type"``. The decorated object can be called like the function.

    Args:
        name: unique in a Reef, 1 to 128 bytes.
        responds_to: message types to handle; None: all.
        channel: hear only this channel (and ``<name>_channel``); None: ``main``.
        auto_broadcast: broadcast results that have a type.
        concurrent: spores handled at once: False: one; True: no limit; or a number.
        system_message, model, provider: what ``chat()`` inside the handler uses; several providers
            are asked in turn until one answers.
        tools: what its model may have called: functions, ``@tool``s, their names, MCPServers.
        retries: further attempts after a failure.
        backoff: seconds before the first retry; doubled for each further one.
        timeout: seconds a handler may take; for a plain function with the wait for a thread.
        on_error: after the last attempt, keep a dead letter, or also raise to the caller.
        transactional: what the handler emits leaves only if it succeeds.
        memory, knowledge_base: accepted with a warning; memory is not in this version yet.

    Raises:
        AgentError: the name cannot be used.
        ConfigurationError: an argument has the wrong type or range.
        HandlerSignatureError: what is decorated is no function with a ``spore`` parameter, or the
            decorator was written without a name.

    Source: guide, "Decorator Parameters" and "Agent Creation".
    """
    if callable(name):
        label = getattr(name, "__name__", "name")
        raise HandlerSignatureError(
            f'@agent was written without a name. Write @agent("{label}") above the function.'
        )
    options = checked_options(
        name,
        responds_to=responds_to,
        channel=channel,
        auto_broadcast=auto_broadcast,
        concurrent=concurrent,
        retries=retries,
        backoff=backoff,
        timeout=timeout,
        on_error=on_error,
        transactional=transactional,
        condition=_condition,
        max_calls_per_minute=_max_calls_per_minute,
    )
    if memory or knowledge_base is not None:
        warnings.warn(
            f"Agent {name!r}: memory and knowledge_base are accepted, but memory is not in this "
            "version yet: they have no effect.",
            FutureWarning,
            stacklevel=2,
        )

    def decorate(handler: Handler) -> AgentDefinition:
        definition = AgentDefinition(
            name,
            handler,
            options,
            system_message=system_message,
            model=model,
            provider=provider,
            tools=tools,
        )
        get_registry().add(definition)
        return definition

    return decorate


def conditional_agent(name: str, condition: Condition, **options: Any) -> Decorator:
    """Like :func:`agent`, for spores for which ``condition(spore)`` is true.

    The condition is evaluated when the spore's turn comes; the others count as filtered. A
    condition that raises fails the delivery.

    Raises:
        ConfigurationError: the condition is not a plain function, or as for :func:`agent`.
    """
    if not callable(condition):
        raise ConfigurationError(
            f"Agent {name!r}: condition must be a function of the spore, not {condition!r}."
        )
    return agent(name, _condition=condition, **options)


def throttled_agent(name: str, max_calls_per_minute: float, **options: Any) -> Decorator:
    """Like :func:`agent`, but begins at most so many handlings in any 60 seconds.

    The others wait in the mailbox; none is dropped (but a spore's time to live goes on).

    Raises:
        ConfigurationError: the number is not above 0, or as for :func:`agent`.
    """
    return agent(name, _max_calls_per_minute=max_calls_per_minute, **options)
