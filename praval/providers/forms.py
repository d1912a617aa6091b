"""The forms that a provider may have, and how each is asked: on its loop, or in a thread."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable
from typing import Any

from praval.errors import ProviderError
from praval.providers import registry
from praval.providers.base import BaseProvider, plain_form
from praval.providers.messages import ChatRequest, Response, as_dicts, as_functions
from praval.sync import hop, in_thread

Form = Callable[[BaseProvider, ChatRequest], Any]


def form_of(provider: BaseProvider) -> Form:
    """Return how to ask the provider: typed, with messages as dicts, or blocking in a thread."""
    if callable(getattr(provider, "respond", None)):
        return _typed
    return _worded if callable(getattr(provider, "achat", None)) else _in_a_thread


async def _typed(provider: Any, request: ChatRequest) -> object:
    loop = await registry.claim(provider)
    return await hop(loop, provider.respond(request))


async def _worded(provider: Any, request: ChatRequest) -> object:
    messages, options = as_dicts(request.messages), options_for(provider, request)
    loop = await registry.claim(provider)
    return await hop(loop, provider.achat(messages, model=request.model, **options))


async def _in_a_thread(provider: Any, request: ChatRequest) -> object:
    return await in_thread(plainly, provider, request)


def plainly(provider: Any, request: ChatRequest) -> object:
    """Call the provider's blocking ``chat``, here."""
    options = options_for(provider, request)
    return plain_form(provider)(as_dicts(request.messages), model=request.model, **options)


def takes_schemas(provider: BaseProvider) -> bool:
    """Whether the provider is asked by a ChatRequest: others are told of a schema in words."""
    return callable(getattr(provider, "respond", None))


def options_for(provider: BaseProvider, request: ChatRequest) -> dict[str, Any]:
    """Return the keyword arguments for a provider's ``chat`` or ``achat``."""
    options = dict(request.options)
    for name in ("temperature", "max_tokens"):
        if (value := getattr(request, name)) is not None:
            options[name] = value
    if request.tools:
        options["tools"] = as_functions(request.tools)
    if provider.takes_timeout:
        options["timeout"] = request.timeout
    return options


class Source:
    """The pieces of one answer, step by step, on the loop to which the provider belongs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: Any) -> None:
        self._loop = loop
        self._stream = stream

    async def step(self) -> str | Response | None:
        """Return the next piece; None: there are no more."""
        piece: str | Response | None = await hop(self._loop, anext_or_none(self._stream))
        return piece

    async def aclose(self) -> None:
        """Stop, and close the connection."""
        await hop(self._loop, self._stream.aclose())


async def anext_or_none(stream: Any) -> Any:
    """Return the next item, or None at the end."""
    try:
        return await anext(stream)
    except StopAsyncIteration:
        return None


async def source_of(provider: Any, request: ChatRequest) -> Source:
    """Return the pieces of an answer; one, if the provider has no streams."""
    if callable(getattr(provider, "stream", None)):
        loop = await registry.claim(provider)
        return Source(loop, provider.stream(request))
    return Source(asyncio.get_running_loop(), _whole(provider, request))


async def _whole(
    provider: BaseProvider, request: ChatRequest
) -> AsyncGenerator[str | Response, None]:
    response = checked(provider, await form_of(provider)(provider, request))
    if response:
        yield response.text
    yield response


def checked(provider: BaseProvider, answer: object) -> Response:
    """Return what a provider answered as a Response.

    Raises:
        ProviderError: it is no text.
    """
    if isinstance(answer, Response):
        return answer
    if isinstance(answer, str):
        return Response(answer)
    if inspect.iscoroutine(answer):
        answer.close()  # or it would warn that it was never awaited
    raise ProviderError(
        f"{provider!r} must answer with a string, and returned {type(answer).__name__}."
    )
