"""How a handler is called: injection, threads, conditions and interceptors, composed once.

The common case, a coroutine function whose first parameter is ``spore`` and into which nothing
else is injected, is called as it is.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from praval.core.agent import AgentDefinition, Handler
from praval.core.context import current_worker
from praval.core.delivery import Ending, Outcome, Reason
from praval.core.interceptor import Interceptor
from praval.core.spore import Spore
from praval.core.threads import WorkerThreads
from praval.errors import HandlerSignatureError

if TYPE_CHECKING:
    from praval.core.reef import Reef

Invoke = Callable[[Spore], Awaitable[Any]]


FILTERED = Ending(Outcome.FILTERED, Reason.CONDITION)
"""What an invocation returns when the agent's condition was false."""


def build_invoke(
    agent: AgentDefinition,
    reef: Reef,
    threads: WorkerThreads,
    interceptors: Sequence[Interceptor],
) -> Invoke:
    """Compose everything that stands between a worker and the handler.

    Raises:
        HandlerSignatureError: a parameter of the handler cannot be injected.
    """
    arguments = injection(agent, reef)
    invoke = _caller(agent, arguments, threads)
    for interceptor in reversed(interceptors):
        invoke = _around(interceptor, agent, invoke)
    if agent.options.timeout is not None:
        invoke = _in_time(agent.options.timeout, reef.loop, invoke)
    if agent.options.condition is not None:
        invoke = _conditional(agent.options.condition, invoke)
    return invoke


def injection(agent: AgentDefinition, reef: Reef) -> dict[str, Any]:
    """Return what is injected beside ``spore``: parameter name -> value.

    Raises:
        HandlerSignatureError: a parameter without a default that nobody provides, or one to
            inject that takes its value by position only.
    """
    makers: dict[str, Callable[[Reef], Any]] = {
        "reef": lambda reef: reef,
        "agent": lambda _: agent,
        **agent.injected,
    }
    arguments = {}
    for name, parameter in inspect.signature(agent.handler).parameters.items():
        if name == "spore" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY and (
            name in makers or parameter.default is parameter.empty
        ):
            raise HandlerSignatureError(
                f"The handler of agent {agent.name!r} takes {name!r} by position only, but all "
                "except spore is injected by name. Remove the '/' from its parameters."
            )
        if name in makers:
            arguments[name] = makers[name](reef)
        elif parameter.default is parameter.empty:
            raise HandlerSignatureError(
                f"The handler of agent {agent.name!r} wants {name!r}, which nothing provides "
                f"(known: spore, {', '.join(makers)}). Give it a default, or add the decorator "
                "that provides it."
            )
    return arguments


def _caller(agent: AgentDefinition, arguments: dict[str, Any], threads: WorkerThreads) -> Invoke:
    handler = agent.handler
    call = _given(handler, arguments)
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 - an object with an async __call__
    ):
        return call

    async def call_in_thread(spore: Spore) -> Any:
        value = await threads.run(call, spore)
        # a plain wrapper around a coroutine function returns what is to be awaited
        return await value if inspect.isawaitable(value) else value

    return call_in_thread


def _given(handler: Handler, arguments: dict[str, Any]) -> Callable[[Spore], Any]:
    """Return the handler as a function of the spore alone."""
    first = next(iter(inspect.signature(handler).parameters.values()))
    if first.name == "spore" and first.kind is not first.KEYWORD_ONLY:
        return functools.partial(handler, **arguments) if arguments else handler

    def by_name(spore: Spore) -> Any:
        return handler(spore=spore, **arguments)

    return by_name


def _in_time(seconds: float, loop: asyncio.AbstractEventLoop, invoke: Invoke) -> Invoke:
    async def call(spore: Spore) -> Any:
        worker = current_worker.get()
        assert worker is not None
        timer = loop.call_later(seconds, worker.interrupt, "timeout")
        try:
            value = await invoke(spore)
        finally:
            timer.cancel()
        if worker.interruption == "timeout":
            worker.outlive()
        return value

    return call


def _around(interceptor: Interceptor, agent: AgentDefinition, invoke: Invoke) -> Invoke:
    async def call(spore: Spore) -> Any:
        return await interceptor.handle(spore, agent, invoke)

    return call


def _conditional(condition: Callable[[Spore], bool], invoke: Invoke) -> Invoke:
    async def call(spore: Spore) -> Any:
        return await invoke(spore) if condition(spore) else FILTERED

    return call
