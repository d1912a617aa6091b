"""What a model provider is: the base class, and the check that an object is one."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, ClassVar

from praval.errors import ConfigurationError

Messages = list[dict[str, Any]]
"""A conversation: dicts with the keys ``role`` ("system", "user", ...) and ``content``."""


class BaseProvider:
    """A source of models (guide, "Custom Provider Integration").

    A subclass defines one of these, and needs no ``super().__init__()``::

        def chat(self, messages, model=None, **kwargs) -> str           # may block
        async def achat(self, messages, model=None, **kwargs) -> str    # must not block

    ``messages`` is a list of ``{"role": ..., "content": ...}``. ``kwargs`` holds exactly the
    options that the caller of :func:`praval.chat` gave: ``temperature``, ``max_tokens``, others.
    A plain ``chat`` never runs on an event loop: it runs in the thread that called
    :func:`praval.chat`, or in a worker thread under :func:`praval.achat`; several threads may be
    in it at once. An ``achat`` always runs on one loop at a time. Define both if you have both.
    Exceptions that either raises reach the caller as they are.
    """

    takes_timeout: ClassVar[bool] = False
    """True: calls get ``timeout=`` (seconds for one request, from the call or the settings)."""

    any_loop: ClassVar[bool] = False
    """True: ``achat`` keeps nothing that belongs to one event loop: it may run on any."""

    _bound_loop: asyncio.AbstractEventLoop | None = None
    """The loop that uses this provider's ``achat`` now; kept by the registry."""

    def get_available_models(self) -> list[str]:
        """Return the names of known models; empty if the provider cannot tell."""
        return []

    async def aclose(self) -> None:
        """Release what is bound to the running event loop, for instance connections.

        Called when the loop on which ``achat`` was used ends. A later call, on another loop,
        must work again.
        """


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
    plain, asynchronous = getattr(provider, "chat", None), getattr(provider, "achat", None)
    if not callable(plain) and not callable(asynchronous):
        raise ConfigurationError(
            f"The provider {name!r} cannot answer: {kind} needs a method "
            "chat(self, messages, model=None, **kwargs), or an async achat with these arguments."
        )
    if inspect.iscoroutinefunction(plain):
        raise ConfigurationError(f"{kind}.chat is a coroutine function: call it achat.")
    if callable(asynchronous) and not inspect.iscoroutinefunction(asynchronous):
        raise ConfigurationError(f"{kind}.achat must be an `async def`; a plain one is `chat`.")
    return provider
