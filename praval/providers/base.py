"""What a model provider is: the base class, and the check that an object is one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any, ClassVar, TypeAlias

from praval.errors import ConfigurationError
from praval.providers.messages import ChatRequest, Message, Response

Messages = list[dict[str, Any]]
"""A conversation: dicts with the keys ``role`` ("system", "user", ...) and ``content``."""

Pieces: TypeAlias = "AsyncIterator[str | Response]"
"""A streamed answer: its text in pieces and, last, the whole as one :class:`Response`."""


class BaseProvider:
    """A source of models (guide, "Custom Provider Integration").

    A subclass defines one of these, and needs no ``super().__init__()``::

        def chat(self, messages, model=None, **kwargs) -> str           # may block
        async def achat(self, messages, model=None, **kwargs) -> str    # must not block
        async def respond(self, request: ChatRequest) -> Response       # must not block

    ``messages`` is a list of ``{"role": ..., "content": ...}``. ``kwargs`` holds exactly the
    options that the caller of :func:`praval.chat` gave: ``temperature``, ``max_tokens``, others;
    and ``tools``, in the shape of OpenAI's functions, if there are any. A plain ``chat`` never runs
    on an event loop: it runs in the thread that called :func:`praval.chat`, or in a worker thread
    under :func:`praval.achat`; several threads may be in it at once. An ``achat`` or ``respond``
    always runs on one loop at a time. Define a plain and an async one if you have both.

    Each may return a :class:`~praval.providers.Response` instead of a string, to tell of usage or
    to call tools. An async generator ``stream(self, request)`` yields the pieces of an answer and
    then the whole; without it :func:`praval.astream` gives the answer in one piece.

    Exceptions that a provider raises reach the caller as they are. A ``ProviderError`` of the
    kinds that pass (no connection, 429, 5xx) is retried first.
    """

    takes_timeout: ClassVar[bool] = False
    """True: calls get ``timeout=`` (seconds for one request, from the call or the settings)."""

    any_loop: ClassVar[bool] = False
    """True: ``achat`` keeps nothing that belongs to one event loop: it may run on any."""

    _bound_loop: asyncio.AbstractEventLoop | None = None
    """The loop that uses this provider's async methods now; kept by the registry."""

    @classmethod
    def available(cls) -> bool:
        """Whether a call that names no provider may use this one (built-in ones: is there a key?).

        May look for files: not on an event loop.
        """
        return True

    def get_available_models(self) -> list[str]:
        """Return the names of known models; empty if the provider cannot tell."""
        return []

    def fingerprint(self) -> str:
        """Return what tells this provider's answers from another's, for the response cache."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    async def aclose(self) -> None:
        """Release what is bound to the running event loop, for instance connections.

        Called when the loop on which the provider was used ends. A later call, on another loop,
        must work again.
        """


class RequestProvider(BaseProvider):
    """Base of providers that answer a :class:`ChatRequest`; they can be asked directly too."""

    async def respond(self, request: ChatRequest) -> Response:
        """Return the model's answer."""
        raise NotImplementedError

    async def achat(
        self,
        messages: Messages,
        model: str | None = None,
        *,
        timeout: float | None = None,
        **options: Any,
    ) -> Response:
        """Return the model's answer; ``options`` go into the request as they are.

        Raises:
            ProviderError: no connection, an error status, or an answer that is none.
            ConfigurationError: no model was named, or an option cannot be written as JSON.
        """
        request = ChatRequest(
            messages=tuple(map(Message.of, messages)),
            model=model,
            temperature=options.pop("temperature", None),
            max_tokens=options.pop("max_tokens", None),
            timeout=timeout,
            options=options,
        )
        return await self.respond(request)


def plain_form(provider: BaseProvider) -> Any:
    """Return the provider's blocking ``chat``, or None."""
    return getattr(provider, "chat", None)


def has_async_form(provider: BaseProvider) -> bool:
    """Whether the provider has ``achat`` or ``respond``."""
    return any(callable(getattr(provider, name, None)) for name in ("respond", "achat"))


def checked_provider(name: object, provider: object) -> BaseProvider:
    """Return ``provider`` if it can be registered as ``name``.

    Raises:
        ConfigurationError: the name is no text, the object is no provider, or its ``chat`` is
            a coroutine function (which must be called ``achat``).
    """
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError(f"A provider's name must be a non-empty string, not {name!r}.")
    if isinstance(provider, type):
        raise ConfigurationError(
            f"register_provider({name!r}, ...) takes an instance, and got the class "
            f"{provider.__name__}: create it first, {provider.__name__}(...)."
        )
    kind = type(provider).__name__
    if not isinstance(provider, BaseProvider):
        raise ConfigurationError(
            f"The provider {name!r} must be an instance of a subclass of BaseProvider, not {kind}."
        )
    plain = plain_form(provider)
    if not callable(plain) and not has_async_form(provider):
        raise ConfigurationError(
            f"The provider {name!r} cannot answer: {kind} needs a method "
            "chat(self, messages, model=None, **kwargs), or an async achat with these arguments."
        )
    if inspect.iscoroutinefunction(plain):
        raise ConfigurationError(f"{kind}.chat is a coroutine function: call it achat.")
    for method in ("achat", "respond"):
        each = getattr(provider, method, None)
        if callable(each) and not inspect.iscoroutinefunction(each):
            raise ConfigurationError(
                f"{kind}.{method} must be an `async def`; a plain one is `chat`."
            )
    return provider
