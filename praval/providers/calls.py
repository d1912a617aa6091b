"""``chat``, ``achat`` and ``astream``: a question to a model, from any code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, TypeVar, overload

import msgspec

from praval.providers import registry
from praval.providers.arguments import History, Prepared, prepared
from praval.providers.asking import entered, pause_after
from praval.providers.base import BaseProvider, plain_form
from praval.providers.budgets import current_budget, remaining_time
from praval.providers.choice import Names
from praval.providers.conversation import Call, hold, remember
from praval.providers.forms import checked, plainly
from praval.providers.messages import ImageSource, Response
from praval.providers.streams import AnswerStream, Deadline
from praval.sync import background_loop, hop, owner_loop, refuse_on_loop, run_on
from praval.tools.tool import granted_to

T = TypeVar("T")


@overload
async def achat(
    message: str,
    *,
    returns: type[T],
    system: str | None = ...,
    model: str | None = ...,
    provider: Names | None = ...,
    temperature: float | None = ...,
    max_tokens: int | None = ...,
    timeout: float | None = ...,
    history: History = ...,
    images: Sequence[ImageSource] = ...,
    tools: Sequence[Any] | None = ...,
    cache: bool | None = ...,
    **options: Any,
) -> T: ...
@overload
async def achat(
    message: str,
    *,
    returns: None = ...,
    system: str | None = ...,
    model: str | None = ...,
    provider: Names | None = ...,
    temperature: float | None = ...,
    max_tokens: int | None = ...,
    timeout: float | None = ...,
    history: History = ...,
    images: Sequence[ImageSource] = ...,
    tools: Sequence[Any] | None = ...,
    cache: bool | None = ...,
    **options: Any,
) -> Response: ...
async def achat(
    message: str,
    *,
    returns: Any = None,
    system: str | None = None,
    model: str | None = None,
    provider: Names | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    timeout: float | None = None,
    history: History = None,
    images: Sequence[ImageSource] = (),
    tools: Sequence[Any] | None = None,
    cache: bool | None = None,
    **options: Any,
) -> Any:
    """Ask a model and return its answer: a string that also knows its usage and cost.

    Inside a handler, the agent's ``system_message``, ``model``, ``provider`` and ``tools`` apply.

    Args:
        message: the question; not blank.
        returns: the type that the answer is to have (a dataclass, a struct of msgspec, a model of
            pydantic, ``list[int]``, ...); a value of it is returned. An answer that does not fit
            is sent back once, with what is wrong.
        system: the instruction under which the model answers.
        model: a model's name; with ``provider="local"``, the path of a ``.gguf`` file.
        provider: a registered, configured or built-in provider ("openai", "anthropic", "cohere",
            "openai_compatible", "local"), or several: the next is asked when one fails. An entry
            ``"openai:gpt-6-sol"`` names a model too.
        temperature: 0 or more; the higher, the freer.
        max_tokens: longest answer, 1 or more.
        timeout: seconds for the whole call, tools and waiting for a free model included. Without
            it, each request to a model has the configured time-out (``PRAVAL_REQUEST_TIMEOUT``,
            30 s).
        history: the turns before the question; or True for the conversation of the spore being
            handled, or the name of a conversation: these go on with each call.
        images: pictures to the question: addresses, paths, bytes.
        tools: what the model may have called: functions, ``@tool``s, their names, MCPServers;
            None: the agent's.
        cache: whether an answer that is kept will do; None: ``performance.enable_caching``.
        options: further options, handed to the provider as they are.

    Raises:
        ConfigurationError: an argument cannot be used (UnknownNameError: no such provider).
        NoModelError: no provider is available; the message lists the ways to get one.
        ProviderError: the model could not be reached, refused, or answered no text.
        ProviderTimeoutError: no answer in time (also a TimeoutError).
        ModelBudgetError: the budget of this work is spent.
        StructuredOutputError: the answer does not fit ``returns``.
        ToolError: a tool cannot be offered, or the model calls tools again and again.
        Exception: what a provider of your own raises reaches you as it is.
    """
    wish = prepared(
        message, returns, system, model, provider, temperature, max_tokens, timeout, history,
        images, tools, cache, options,
    )  # fmt: skip
    home = owner_loop.get()
    if home is not None and home.is_running():
        return await hop(home, _answer(wish))
    return await _answer(wish)


@overload
def chat(
    message: str,
    *,
    returns: type[T],
    system: str | None = ...,
    model: str | None = ...,
    provider: Names | None = ...,
    temperature: float | None = ...,
    max_tokens: int | None = ...,
    timeout: float | None = ...,
    history: History = ...,
    images: Sequence[ImageSource] = ...,
    tools: Sequence[Any] | None = ...,
    cache: bool | None = ...,
    **options: Any,
) -> T: ...
@overload
def chat(
    message: str,
    *,
    returns: None = ...,
    system: str | None = ...,
    model: str | None = ...,
    provider: Names | None = ...,
    temperature: float | None = ...,
    max_tokens: int | None = ...,
    timeout: float | None = ...,
    history: History = ...,
    images: Sequence[ImageSource] = ...,
    tools: Sequence[Any] | None = ...,
    cache: bool | None = ...,
    **options: Any,
) -> Response: ...
def chat(
    message: str,
    *,
    returns: Any = None,
    system: str | None = None,
    model: str | None = None,
    provider: Names | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    timeout: float | None = None,
    history: History = None,
    images: Sequence[ImageSource] = (),
    tools: Sequence[Any] | None = None,
    cache: bool | None = None,
    **options: Any,
) -> Any:
    """Blocking form of :func:`achat`, for plain functions and scripts.

    A provider with a plain ``chat`` runs in the calling thread, where nothing can interrupt it;
    with ``timeout=`` it runs in a worker thread, which is left behind when the time is up.

    Raises:
        BlockingCallError: called on an event loop: write ``await achat(...)``.
        PravalError: as :func:`achat`.
    """
    refuse_on_loop("chat", "achat")
    wish = prepared(
        message, returns, system, model, provider, temperature, max_tokens, timeout, history,
        images, tools, cache, options,
    )  # fmt: skip
    call = wish.call()
    if _is_simple(call):
        return _answer_here(call)
    return run_on(owner_loop.get() or background_loop(), _answer(wish, call))


def astream(
    message: str,
    *,
    system: str | None = None,
    model: str | None = None,
    provider: Names | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
    timeout: float | None = None,
    history: History = None,
    images: Sequence[ImageSource] = (),
    tools: Sequence[Any] | None = None,
    cache: bool | None = None,
    **options: Any,
) -> AnswerStream:
    """Ask a model and get its answer piece by piece, as it is made.

    ::

        async with astream("Tell me a story.") as pieces:
            async for piece in pieces:
                print(piece, end="")
        print(pieces.response.usage)

    Arguments and errors are those of :func:`achat`, without ``returns``. Leaving the block early
    closes the connection. ``timeout`` is for the whole; without it the configured time-out is for
    the beginning and then for each piece.
    """
    return AnswerStream(
        prepared(
            message, None, system, model, provider, temperature, max_tokens, timeout, history,
            images, tools, cache, options,
        )
    )  # fmt: skip


async def _answer(wish: Prepared, call: Call | None = None) -> Any:
    ends = None
    if wish.timeout is not None:
        ends = asyncio.get_running_loop().time() + wish.timeout
    async with Deadline(wish.timeout, ends):
        call = call or await wish.found()
        opening = await asyncio.to_thread(call.opening) if call.images else call.opening()
        return await hold(call, opening)


def _is_simple(call: Call) -> bool:
    """Whether the answer may be fetched in the calling thread: one plain provider, no more."""
    (candidate, *others) = call.candidates
    found = candidate.found
    if others or not isinstance(found, BaseProvider) or plain_form(found) is None:
        return False
    limits = registry.guard_of(candidate.name, found).limits
    return not (
        call.tools
        or (call.granted and call.agent is not None and granted_to(call.agent))
        or call.wanted
        or call.terms.cached
        or (call.total is not None and not found.takes_timeout)
        or remaining_time() is not None
        or limits.requests_per_minute
        or limits.max_concurrency
    )


def _answer_here(call: Call) -> Response:
    (candidate,) = call.candidates
    if (limit := current_budget()) is not None:
        limit.check()
    timeout = call.total or registry.timeout_of(candidate.name)
    request = msgspec.structs.replace(
        call.request,
        messages=call.opening(),
        model=candidate.model,
        timeout=timeout or call.terms.settings.performance.timeout,
    )
    assert isinstance(candidate.found, BaseProvider)
    guard = registry.guard_of(candidate.name, candidate.found)
    attempt = 0
    while True:
        attempt += 1
        try:
            with guard.watched():
                answer = plainly(candidate.found, request)
            break
        except Exception as error:  # noqa: BLE001 - raised there, unless it is tried again
            time.sleep(pause_after(error, attempt, guard, call.terms))
    response = entered(checked(candidate.found, answer), candidate)
    remember(call, response)
    return response
