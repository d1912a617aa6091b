"""Decorators around handlers: retries, a cache, measurements, a look inside.

They are the guide's, for plain and async handlers alike. Each may stand below ``@agent`` or above
it, and several may be combined: below, the handler is wrapped and then made an agent; above, the
agent's handler is wrapped in place. Inside an agent prefer ``@agent(retries=...)`` to
``resilient_agent`` where a retry need not happen at once: it keeps no worker busy while it waits.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import hashlib
import inspect
import logging
import math
import threading
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from praval.core.agent import Agent, AgentDefinition, checked_handler
from praval.core.context import current_agent
from praval.core.default import broadcast
from praval.core.spore import Spore
from praval.errors import ConfigurationError, HandlerSignatureError
from praval.settings import current_settings

F = TypeVar("F", bound=Callable[..., Any])
Around = Callable[[Spore, Callable[[], Awaitable[Any]]], Awaitable[Any]]
AroundPlain = Callable[[Spore, Callable[[], Any]], Any]

log = logging.getLogger("praval.agents")

MAX_CACHED = 1_000
"""Results that one ``cached_agent`` keeps; those not used for longest go first."""


def resilient_agent(max_retries: int = 3, backoff_delay: float = 1.0) -> Callable[[F], F]:
    """Call the handler again when it raises, waiting longer each time.

    The last failure is raised, so that the Reef counts it and tells the agents that respond to
    ``agent_error`` (guide, "Robust Error Handling").

    Args:
        max_retries: attempts in all, 1 or more.
        backoff_delay: seconds before the second attempt; doubled for each further one.

    Raises:
        ConfigurationError: a number is out of range.
    """
    if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 1:
        raise ConfigurationError("resilient_agent: max_retries must be 1 or more.")
    if (
        not (isinstance(backoff_delay, int | float) and math.isfinite(backoff_delay))
        or backoff_delay < 0
    ):
        raise ConfigurationError("resilient_agent: backoff_delay must be seconds of at least 0.")

    def decorate(target: F) -> F:
        name = _name_of(target)

        def delay(error: Exception, attempt: int) -> float:
            if attempt >= max_retries:
                with contextlib.suppress(AttributeError):  # an error with slots
                    error.attempts_made = attempt  # type: ignore[attr-defined]
                log.error("%s failed after %d attempts: %s", name, attempt, error)
                raise error
            seconds = backoff_delay * 2 ** (attempt - 1)
            log.warning("%s failed (attempt %d), again in %g s: %s", name, attempt, seconds, error)
            return float(seconds)

        async def around(spore: Spore, call: Callable[[], Awaitable[Any]]) -> Any:
            for attempt in range(1, max_retries + 1):
                try:
                    return await call()
                except Exception as error:  # noqa: BLE001 - the last one is raised by delay()
                    await asyncio.sleep(delay(error, attempt))
            raise AssertionError("the last attempt returns or raises")

        def around_plain(spore: Spore, call: Callable[[], Any]) -> Any:
            for attempt in range(1, max_retries + 1):
                try:
                    return call()
                except Exception as error:  # noqa: BLE001 - the last one is raised by delay()
                    time.sleep(delay(error, attempt))
            raise AssertionError("the last attempt returns or raises")

        return _wrapped(target, around, around_plain)

    return decorate


def cached_agent(cache_duration: float = 3600.0) -> Callable[[F], F]:
    """Keep the handler's result per knowledge, and give it again without calling the handler.

    What the handler would broadcast or store is not done again. Each receiver gets a result of its
    own. Results that JSON cannot carry are not kept (guide, "Caching Strategies").

    Args:
        cache_duration: seconds for which a result is given again.

    Raises:
        ConfigurationError: the duration is not above 0.
    """
    if not isinstance(cache_duration, int | float) or not cache_duration > 0:
        raise ConfigurationError("cached_agent: cache_duration must be seconds above 0.")

    def decorate(target: F) -> F:
        kept: collections.OrderedDict[str, tuple[float, bytes]] = collections.OrderedDict()
        lock = threading.Lock()

        def find(key: str) -> bytes | None:
            with lock:
                until, result = kept.get(key, (0.0, b""))
                if until <= time.monotonic():
                    kept.pop(key, None)
                    return None
                kept.move_to_end(key)
                return result

        def keep(key: str, result: Any) -> Any:
            try:
                encoded = msgspec.json.encode(result, enc_hook=_text)
            except (TypeError, ValueError, RecursionError):
                return result
            with lock:
                kept[key] = (time.monotonic() + cache_duration, encoded)
                while len(kept) > MAX_CACHED:
                    kept.popitem(last=False)
            return result

        async def around(spore: Spore, call: Callable[[], Awaitable[Any]]) -> Any:
            key = _key(spore)
            found = find(key)
            return msgspec.json.decode(found) if found is not None else keep(key, await call())

        def around_plain(spore: Spore, call: Callable[[], Any]) -> Any:
            key = _key(spore)
            found = find(key)
            return msgspec.json.decode(found) if found is not None else keep(key, call())

        return _wrapped(target, around, around_plain)

    return decorate


def monitor_agent_performance(target: F) -> F:
    """Measure each handling, and broadcast it as ``agent_metrics`` (guide, "Monitoring").

    The message has ``agent_name``, ``execution_time`` (seconds), ``status`` ("success" or
    "error"), ``timestamp`` and, of a failure, ``error``.
    """

    def report(began: float, error: BaseException | None) -> None:
        seconds = time.perf_counter() - began
        agent = current_agent()
        name = _name_of(target) if agent is None else agent.name
        metrics: dict[str, Any] = {
            "type": "agent_metrics",
            "agent_name": name,
            "execution_time": seconds,
            "status": "success" if error is None else "error",
            "timestamp": time.time(),
        }
        if error is None:
            log.info("agent %s took %.3f s", name, seconds)
        else:
            log.error("agent %s failed after %.3f s: %s", name, seconds, error)
            metrics["error"] = str(error)
        if agent is not None:  # called directly, for instance by a test, it tells nobody
            broadcast(metrics)

    return _observed(
        target, lambda spore: time.perf_counter(), lambda began, _, e: report(began, e)
    )


def debug_agent(target: F) -> F:
    """Log what the handler gets and returns, at DEBUG, while debugging is on (guide, "Debug Mode").

    On: ``PRAVAL_DEBUG=true`` or ``configure({"debug": True})``. Knowledge may be confidential:
    it is logged.
    """
    name = _name_of(target)

    def begin(spore: Spore) -> float:
        if current_settings().debug:
            log.debug(
                "%s begins: spore %s from %s on %s: %s",
                name, spore.id, spore.from_agent, spore.channel, spore.knowledge,
            )  # fmt: skip
        return time.perf_counter()

    def end(began: float, result: Any, error: BaseException | None) -> None:
        if not current_settings().debug:
            return
        seconds = time.perf_counter() - began
        if error is None:
            log.debug("%s returned after %.3f s: %r", name, seconds, result)
        else:
            trace = "".join(traceback.format_exception(error))
            log.debug("%s failed after %.3f s: %s\n%s", name, seconds, error, trace)

    return _observed(target, begin, end)


# ------------------------------------------------------------------------------------ inside


def _observed(
    target: F,
    begin: Callable[[Spore], float],
    end: Callable[[float, Any, BaseException | None], None],
) -> F:
    """Wrap a handler so that ``end`` hears how it ended; cancellation is not reported."""

    async def around(spore: Spore, call: Callable[[], Awaitable[Any]]) -> Any:
        began = begin(spore)
        try:
            result = await call()
        except Exception as error:
            end(began, None, error)
            raise
        end(began, result, None)
        return result

    def around_plain(spore: Spore, call: Callable[[], Any]) -> Any:
        began = begin(spore)
        try:
            result = call()
        except Exception as error:
            end(began, None, error)
            raise
        end(began, result, None)
        return result

    return _wrapped(target, around, around_plain)


def _wrapped(target: F, around: Around, around_plain: AroundPlain) -> F:
    """Wrap a handler; of an agent, wrap its handler in place and return the agent."""
    if isinstance(target, AgentDefinition):
        target.handler = checked_handler(target.name, _around(target.handler, around, around_plain))
        return target  # pyright: ignore[reportReturnType] - F, narrowed
    if isinstance(target, Agent) or not callable(target):
        raise HandlerSignatureError(
            f"{target!r} cannot be wrapped: put this decorator on a function or an @agent."
        )
    return _around(target, around, around_plain)  # type: ignore[return-value]


def _around(
    handler: Callable[..., Any], around: Around, around_plain: AroundPlain
) -> Callable[..., Any]:
    called = getattr(handler, "__call__", None)  # noqa: B004 - an object with an async __call__
    if inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(called):

        @functools.wraps(handler)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await around(_spore(args, kwargs), lambda: handler(*args, **kwargs))

        return wrapper

    @functools.wraps(handler)
    def plain_wrapper(*args: Any, **kwargs: Any) -> Any:
        return around_plain(_spore(args, kwargs), lambda: handler(*args, **kwargs))

    return plain_wrapper


def _spore(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Spore:
    """Return the spore among the arguments: the first, unless all are given by name."""
    spore: Spore = kwargs["spore"] if "spore" in kwargs else args[0]
    return spore


def _name_of(target: Any) -> str:
    if isinstance(target, AgentDefinition):
        return target.name
    return str(getattr(target, "__name__", target))


def _key(spore: Spore) -> str:
    encoded = msgspec.json.encode(spore.knowledge, order="sorted")
    return hashlib.sha256(encoded).hexdigest()


def _text(value: object) -> str:
    if isinstance(value, str):
        return str(value[:])
    raise TypeError(f"{type(value).__name__} is nothing that JSON can carry")
