"""``chat``, ``achat`` and ``astream``: a question to a model, from any code."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Self, TypeVar, overload

import msgspec

from praval.core.context import current_agent
from praval.errors import ConfigurationError, ModelBudgetError, ProviderTimeoutError
from praval.providers import history as histories
from praval.providers import registry
from praval.providers.asking import Terms, checked, entered, plainly
from praval.providers.base import BaseProvider, plain_form
from praval.providers.budgets import current_budget, remaining_time
from praval.providers.choice import Named, Names, candidates, is_named
from praval.providers.conversation import Call, flow, hold, remember
from praval.providers.messages import ChatRequest, ImageSource, Message, Response
from praval.providers.structured import Wanted
from praval.settings import current_settings
from praval.sync import background_loop, hop, owner_loop, refuse_on_loop, run_on
from praval.tools.tool import granted_to

T = TypeVar("T")
History = bool | str | Sequence[Message | Mapping[str, Any]] | None


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
    prepared = _prepared(
        message, returns, system, model, provider, temperature, max_tokens, timeout, history,
        images, tools, cache, options,
    )  # fmt: skip
    home = owner_loop.get()
    if home is not None and home.is_running():
        return await hop(home, _answer(prepared))
    return await _answer(prepared)


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
    prepared = _prepared(
        message, returns, system, model, provider, temperature, max_tokens, timeout, history,
        images, tools, cache, options,
    )  # fmt: skip
    call = prepared.call()
    if _is_simple(call):
        return _answer_here(call)
    return run_on(owner_loop.get() or background_loop(), _answer(prepared, call))


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
        _prepared(
            message, None, system, model, provider, temperature, max_tokens, timeout, history,
            images, tools, cache, options,
        )
    )  # fmt: skip


class AnswerStream:
    """The pieces of an answer; made by :func:`astream`. Iterate once."""

    def __init__(self, prepared: _Prepared) -> None:
        self._prepared = prepared
        self._home = owner_loop.get()
        self._pieces: AsyncGenerator[str | Response, None] | None = None
        self._ends: float | None = None
        self._response: Response | None = None

    @property
    def response(self) -> Response:
        """The whole answer, with usage and cost.

        Raises:
            ConfigurationError: the stream is not at its end.
        """
        if self._response is None:
            raise ConfigurationError("The answer is complete when the stream is at its end.")
        return self._response

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        piece: str | None = await self._at_home(self._step())
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Stop, and close the connection."""
        if self._pieces is not None:
            await self._at_home(self._pieces.aclose())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _step(self) -> str | None:
        loop = asyncio.get_running_loop()
        if self._pieces is None:
            call = await _found(self._prepared)
            if call.total is not None:
                self._ends = loop.time() + call.total
            opening = await asyncio.to_thread(call.opening)
            self._pieces = flow(call, opening)
        async with _Deadline(self._prepared.timeout, self._ends):
            piece = await anext(self._pieces, None)
        if isinstance(piece, Response):
            self._response = piece
            return None
        return piece

    async def _at_home(self, work: Any) -> Any:
        home = self._home
        return await (hop(home, work) if home is not None and home.is_running() else work)


class _Prepared:
    """A chat call whose arguments are checked; whom to ask is not known yet."""

    def __init__(self, wanted: list[Named], fields: dict[str, Any], timeout: float | None) -> None:
        self.wanted = wanted
        self.fields = fields
        self.timeout = timeout

    def call(self) -> Call:
        """Find out whom to ask; may look for files."""
        return Call(candidates=candidates(self.wanted), **self.fields)


async def _found(prepared: _Prepared) -> Call:
    if is_named(prepared.wanted):
        return prepared.call()
    return await asyncio.to_thread(prepared.call)


async def _answer(prepared: _Prepared, call: Call | None = None) -> Any:
    ends = None
    if prepared.timeout is not None:
        ends = asyncio.get_running_loop().time() + prepared.timeout
    async with _Deadline(prepared.timeout, ends):
        call = call or await _found(prepared)
        opening = await asyncio.to_thread(call.opening) if call.images else call.opening()
        return await hold(call, opening)


class _Deadline:
    """Bounds some steps by the call's time-out and by what is left for the work it belongs to."""

    def __init__(self, seconds: float | None, ends: float | None) -> None:
        self._left = remaining_time()
        self._seconds = seconds
        own = math.inf if ends is None else ends
        work = math.inf
        if self._left is not None:
            work = asyncio.get_running_loop().time() + self._left
        self._by_work = work < own
        end = min(own, work)
        self._scope = asyncio.timeout_at(None if end == math.inf else end)

    async def __aenter__(self) -> None:
        if self._left is not None and self._left <= 0:
            raise ModelBudgetError("The time for this work is over: no more models are asked.")
        await self._scope.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            if self._by_work:
                raise ProviderTimeoutError(
                    "The time for this work was over before the model answered (the deadline of "
                    "its request or budget)."
                ) from None
            raise ProviderTimeoutError(
                f"The model did not answer within {self._seconds:g} s. Allow more with timeout=."
            ) from None


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
    answer = checked(candidate.found, plainly(candidate.found, request))
    response = entered(answer, candidate)
    remember(call, response)
    return response


# ------------------------------------------------------------------------- what the caller wants


def _prepared(  # noqa: PLR0917 - exactly the arguments of the three functions above
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
) -> _Prepared:
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
    return _Prepared(wanted, fields, timeout)


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
