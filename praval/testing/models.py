"""Models for tests: answers from a list or from a function, and a ban on real ones."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self

from praval.errors import ConfigurationError, PravalError, ProviderError
from praval.providers.base import BaseProvider, Messages
from praval.providers.registry import Found, add_check, add_override


class ScriptExhaustedError(PravalError, AssertionError):
    """A scripted model was asked more often than it has answers."""


class RealModelError(PravalError, AssertionError):
    """A test would have asked a real model, which ``forbid_real_models`` bans."""


@dataclass(frozen=True)
class ModelCall:
    """One call that a test model got."""

    messages: Messages
    model: str | None
    options: dict[str, Any]

    @property
    def prompt(self) -> str:
        """The text of the last message: what ``chat`` was asked."""
        return str(self.messages[-1]["content"])


class FunctionModel(BaseProvider):
    """A model that answers what ``function(messages)`` returns, or what awaiting that gives.

    The function runs on the event loop of the call. ``calls`` holds every call, in order.
    """

    any_loop: ClassVar[bool] = True

    def __init__(self, function: Callable[[Messages], str | Awaitable[str]]) -> None:
        self.function = function
        self.calls: list[ModelCall] = []

    async def achat(self, messages: Messages, model: str | None = None, **options: Any) -> str:
        """Record the call and return the function's answer; its exceptions pass through."""
        copies = [dict(message) for message in messages]
        self.calls.append(ModelCall(copies, model, options))
        answer = self.function(messages)
        return await answer if inspect.isawaitable(answer) else answer


class ScriptedModel(FunctionModel):
    """A model that gives the answers of a list, in order; an exception in the list is raised.

    Args:
        answers: what the first, second, ... call gets.
        repeat_last: give the last answer again and again instead of running out.

    Raises:
        ConfigurationError: an answer is neither text nor an exception, or there is none to repeat.
        ScriptExhaustedError: (by a call) there are no answers left.
    """

    def __init__(
        self, answers: Iterable[str | BaseException], *, repeat_last: bool = False
    ) -> None:
        if isinstance(answers, str):
            raise ConfigurationError("ScriptedModel takes a list of answers, not one string.")
        self.answers = list(answers)
        for answer in self.answers:
            if not isinstance(answer, str | BaseException):
                raise ConfigurationError(
                    f"An answer must be text or an exception, not {type(answer).__name__}."
                )
        if repeat_last and not self.answers:
            raise ConfigurationError("ScriptedModel has no last answer to repeat.")
        self.repeat_last = repeat_last
        self._given = 0
        self._lock = threading.Lock()  # calls may come from several loops
        super().__init__(self._next)

    def _next(self, messages: Messages) -> str:
        with self._lock:
            number = self._given
            self._given += 1
        if number >= len(self.answers):
            if not self.repeat_last:
                asked = str(messages[-1]["content"])
                raise ScriptExhaustedError(
                    f"The scripted model has {len(self.answers)} answers and was asked "
                    f"{number + 1} times; the last question was {asked!r:.200}."
                )
            number = -1
        answer = self.answers[number]
        if isinstance(answer, BaseException):
            raise answer
        return answer


@contextmanager
def use_model(model: BaseProvider) -> Iterator[BaseProvider]:
    """Let ``model`` answer every chat call of this process inside the ``with`` block.

    That includes calls that name a provider, and calls from other threads and loops. Blocks may
    be nested: the innermost wins.

    Raises:
        ProviderError: ``model`` is no provider.
    """
    if not isinstance(model, BaseProvider):
        raise ProviderError(
            f"use_model() takes a provider, for instance ScriptedModel([...]), not {model!r:.60}."
        )

    remove = add_override(model)
    try:
        yield model
    finally:
        remove()


class forbid_real_models:
    """Make every call to a model that is not of this module raise RealModelError.

    From the call on, for good (in a ``conftest.py``), or until the end of a ``with`` block.
    ``use_model`` works as before.
    """

    def __init__(self) -> None:
        self._remove = add_check(_refuse_real)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()


def _refuse_real(found: Found) -> None:
    if not isinstance(found, FunctionModel):
        raise RealModelError(
            f"This test would ask the real model provider {found!r}; real ones are forbidden "
            "here. Wrap the call in `with use_model(ScriptedModel([...])):`."
        )
