"""One question: to the cache, to the providers in turn, each behind its guard; and what it cost.

Who is asked: the candidates, the first that answers. The next one is asked when one has failed for
good; not when the question itself is at fault or a budget is spent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

import msgspec

from praval.errors import (
    ConfigurationError,
    ModelBudgetError,
    NoModelError,
    ProviderError,
    ProviderTimeoutError,
)
from praval.providers import accounts, cache, prices, registry
from praval.providers.base import BaseProvider
from praval.providers.budgets import current_budget, remaining_time
from praval.providers.forms import checked, form_of, source_of, takes_schemas
from praval.providers.messages import ChatRequest, Response, in_words
from praval.providers.resilience import Guard
from praval.settings import Settings


class Candidate(NamedTuple):
    """A provider that may be asked, and the model to ask it for."""

    name: str
    found: registry.Found
    model: str | None = None


class Terms(NamedTuple):
    """How a question may be asked."""

    settings: Settings
    timeout: float | None
    """Seconds per request, as the caller wants it; None: the provider's or the settings'."""
    cached: bool


async def ask(request: ChatRequest, candidates: Sequence[Candidate], terms: Terms) -> Response:
    """Return the first candidate's answer.

    Raises:
        ModelBudgetError: a budget is spent.
        Exception: what the only candidate raised; of several, a ProviderError that tells of all.
    """
    failures: list[tuple[str, Exception]] = []
    for candidate in candidates:
        try:
            return await _ask(request, candidate, terms)
        except Exception as error:
            if len(candidates) == 1 or _is_final(error):
                raise
            failures.append((candidate.name, error))
    raise _all_failed(failures)


async def pieces(
    request: ChatRequest, candidates: Sequence[Candidate], terms: Terms
) -> AsyncGenerator[str | Response, None]:
    """Yield the answer's pieces and then the whole; once a piece is out, no other is asked.

    Raises:
        Exception: as :func:`ask`.
    """
    failures: list[tuple[str, Exception]] = []
    for candidate in candidates:
        begun = False
        stream = _stream(request, candidate, terms)
        try:
            async with contextlib.aclosing(stream):
                async for piece in stream:
                    begun = True
                    yield piece
            return
        except Exception as error:
            if begun or len(candidates) == 1 or _is_final(error):
                raise
            failures.append((candidate.name, error))
    raise _all_failed(failures)


def _is_final(error: Exception) -> bool:
    return isinstance(error, ModelBudgetError | ConfigurationError)


def _all_failed(failures: list[tuple[str, Exception]]) -> ProviderError:
    kind = NoModelError if all(isinstance(e, NoModelError) for _, e in failures) else ProviderError
    said = "\n".join(f"- {name}: {type(error).__name__}: {error}" for name, error in failures)
    failure = kind(f"None of {len(failures)} providers answered:\n{said}")
    failure.__cause__ = failures[-1][1]
    return failure


# ------------------------------------------------------------------------------ one provider


async def _ask(request: ChatRequest, candidate: Candidate, terms: Terms) -> Response:
    _check_budget()
    provider, request, limit = await _prepared(request, candidate, terms)
    store, key = await _place(provider, request, candidate, terms)
    if store is not None and (kept := await cache.find(store, key)) is not None:
        return kept.altered(provider=candidate.name)
    guard = registry.guard_of(candidate.name, candidate.found)
    attempt = 0
    while True:
        attempt += 1
        try:
            async with guard.attempt():
                answer = await _in_time(provider, limit, form_of(provider)(provider, request))
            break
        except Exception as error:  # noqa: BLE001 - raised there, unless it is tried again
            await asyncio.sleep(pause_after(error, attempt, guard, terms))
    response = await _entered(checked(provider, answer), candidate)
    if store is not None:
        await cache.keep(store, key, response, terms.settings.performance.cache_ttl)
    return response


async def _stream(
    request: ChatRequest, candidate: Candidate, terms: Terms
) -> AsyncGenerator[str | Response, None]:
    _check_budget()
    provider, request, limit = await _prepared(request, candidate, terms)
    store, key = await _place(provider, request, candidate, terms)
    if store is not None and (kept := await cache.find(store, key)) is not None:
        yield kept.text
        yield kept.altered(provider=candidate.name)
        return
    guard = registry.guard_of(candidate.name, candidate.found)
    attempt, begun = 0, False
    while True:
        attempt += 1
        try:
            async with guard.attempt():
                source = await source_of(provider, request)
                async with contextlib.aclosing(source):
                    while (piece := await _in_time(provider, limit, source.step())) is not None:
                        if isinstance(piece, Response):
                            response = await _entered(piece, candidate)
                            if store is not None:
                                ttl = terms.settings.performance.cache_ttl
                                await cache.keep(store, key, response, ttl)
                            piece = response
                        begun = True
                        yield piece
            return
        except Exception as error:
            if begun:  # what was delivered cannot be taken back
                raise
            await asyncio.sleep(pause_after(error, attempt, guard, terms))


def pause_after(error: Exception, attempt: int, guard: Guard, terms: Terms) -> float:
    """Return the seconds before the next attempt, if there is to be one; else raise the error."""
    retries = guard.limits.max_retries
    if retries is None:
        retries = terms.settings.performance.max_retries
    delay = guard.delay(error, attempt) if attempt <= retries else None
    left = remaining_time()
    if delay is None or (left is not None and delay >= left):
        raise error
    return delay


async def _prepared(
    request: ChatRequest, candidate: Candidate, terms: Terms
) -> tuple[BaseProvider, ChatRequest, float | None]:
    """Return the provider, the request with its model and time, and the seconds it may take."""
    provider = await registry.on_this_loop(candidate.found)
    configured = registry.timeout_of(candidate.name)
    limit = terms.timeout or configured or terms.settings.performance.timeout
    left = remaining_time()
    # the deadline around the whole call may end this too: a second clock, striking at the same
    # time, would cancel what the first has begun to close
    has_deadline = terms.timeout is not None or (left is not None and left <= limit)
    seconds = limit if left is None else max(0.001, min(limit, left))
    changes: dict[str, Any] = {
        "timeout": None if has_deadline and takes_schemas(provider) else seconds
    }
    if candidate.model is not None:
        changes["model"] = candidate.model
    if request.output is not None and not takes_schemas(provider):
        request = in_words(request, request.output)
    request = msgspec.structs.replace(request, **changes)
    return provider, request, None if has_deadline else seconds


async def _place(
    provider: BaseProvider, request: ChatRequest, candidate: Candidate, terms: Terms
) -> tuple[cache.Store | None, str]:
    if not terms.cached:
        return None, ""
    return await asyncio.to_thread(
        lambda: (
            cache.store_for(terms.settings),
            cache.key_of(candidate.name, provider, request),
        )
    )


def _check_budget() -> None:
    limit = current_budget()
    if limit is not None:
        limit.check()


async def _in_time(provider: BaseProvider, limit: float | None, work: Any) -> Any:
    # a provider that takes time-outs begins to count when it really asks
    scope = asyncio.timeout(None if provider.takes_timeout else limit)
    try:
        async with scope:
            return await work
    except TimeoutError as error:
        if not scope.expired() or isinstance(error, ProviderError):
            raise
        raise ProviderTimeoutError(
            f"{provider!r} did not answer within {limit:g} s. Allow more with timeout=, or "
            "PRAVAL_REQUEST_TIMEOUT."
        ) from None


async def _entered(response: Response, candidate: Candidate) -> Response:
    """Return the answer with its provider and price, after it was added to the sums."""
    if not prices.are_loaded():
        await asyncio.to_thread(prices.load_prices)
    return entered(response, candidate)


def entered(response: Response, candidate: Candidate) -> Response:
    """Do the same, blocking (it may read the user's table of prices)."""
    model = response.model or candidate.model
    cost = response.cost
    if cost is None and (price := prices.price_of(model)) is not None:
        cost = price.of(response.usage)
    response = response.altered(provider=candidate.name, model=model, cost=cost)
    accounts.note(response)
    if (limit := current_budget()) is not None:
        limit.charge(response.usage, response.cost)
    return response
