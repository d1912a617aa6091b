"""Agents: what they are called, what they listen to, and the function that handles a spore.

An agent is a definition. It can be called like the function it decorates, and it can run in
several Reefs; whatever changes while it runs belongs to a Reef's runner.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import msgspec

from praval.core.spore import Spore
from praval.errors import (
    AgentError,
    ConfigurationError,
    FeatureUnavailableError,
    HandlerSignatureError,
)
from praval.sync import refuse_on_loop

if TYPE_CHECKING:
    from praval.core.reef import Reef
    from praval.providers.messages import Response
    from praval.providers.streams import AnswerStream

T = TypeVar("T")
Handler = Callable[..., Any]
Condition = Callable[[Spore], bool]
Hook = TypeVar("Hook", bound=Callable[..., Any])

SYSTEM_TYPES = frozenset({"agent_error", "security_alert"})
"""Types that the runtime emits; only agents that name one in ``responds_to`` hear it."""

LATER_METHODS = {
    "remember": "memory",
    "recall": "memory",
    "forget": "memory",
    "send_lightweight_knowledge": "storage",
}
"""Methods of the guide whose feature this version does not have."""


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent listens and is run; the arguments of ``@agent``."""

    responds_to: frozenset[str] | None = None
    channel: str | None = None
    auto_broadcast: bool = True
    concurrency: float = 1
    """Spores handled at once; ``math.inf``: no limit."""
    retries: int = 0
    backoff: float = 0.1
    timeout: float | None = None
    on_error: Literal["dead_letter", "raise"] = "dead_letter"
    transactional: bool = False
    condition: Condition | None = None
    max_calls_per_minute: float | None = None


class Agent:
    """An agent made of a name and an identity (guide, "Agent Creation").

    As it is, it can ``chat``; in a Reef it answers each spore with what its model says to the
    spore's ``message``. Subclasses override :meth:`handle`.

    Raises:
        AgentError: the name cannot be used.
    """

    def __init__(
        self,
        name: str,
        system_message: str | None = None,
        model: str | None = None,
        provider: str | Sequence[str] | None = None,
        tools: Sequence[Any] = (),
    ) -> None:
        self.name = checked_name(name)
        self.system_message = system_message
        self.model = model
        self.provider = provider
        self.tools = _checked_tools(name, tools)
        """What its model may have called: functions, ``@tool``s, their names, MCPServers."""

    @overload
    async def achat(self, message: str, *, returns: type[T], **options: Any) -> T: ...
    @overload
    async def achat(self, message: str, *, returns: None = None, **options: Any) -> Response: ...
    async def achat(self, message: str, *, returns: Any = None, **options: Any) -> Any:
        """Ask the agent's model; see :func:`praval.achat` for options and errors."""
        from praval.providers.calls import achat

        return await achat(message, **{**self._identity(), **options, "returns": returns})

    @overload
    def chat(self, message: str, *, returns: type[T], **options: Any) -> T: ...
    @overload
    def chat(self, message: str, *, returns: None = None, **options: Any) -> Response: ...
    def chat(self, message: str, *, returns: Any = None, **options: Any) -> Any:
        """Blocking form of :meth:`achat`."""
        from praval.providers.calls import chat

        refuse_on_loop("chat", "achat")
        return chat(message, **{**self._identity(), **options, "returns": returns})

    def astream(self, message: str, **options: Any) -> AnswerStream:
        """Ask the agent's model and get its answer piece by piece; see :func:`praval.astream`."""
        from praval.providers.calls import astream

        return astream(message, **{**self._identity(), **options})

    async def handle(self, spore: Spore) -> Any:
        """Answer a spore; what it returns is a result (DESIGN: "Return values")."""
        message = spore.knowledge.get("message") or msgspec.json.encode(spore.knowledge).decode()
        return {"response": await self.achat(str(message))}

    def _identity(self) -> dict[str, Any]:
        return {
            "system": self.system_message,
            "model": self.model,
            "provider": self.provider,
            "tools": self.tools or None,
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


class AgentDefinition(Agent):
    """A decorated handler. Call it like the function itself, for instance in a unit test."""

    def __init__(
        self,
        name: str,
        handler: Handler,
        options: AgentOptions | None = None,
        *,
        system_message: str | None = None,
        model: str | None = None,
        provider: str | Sequence[str] | None = None,
        tools: Sequence[Any] = (),
    ) -> None:
        super().__init__(name, system_message, model, provider, tools)
        self.handler = checked_handler(name, handler)
        self.options = options or AgentOptions()
        self.injected: dict[str, Callable[[Reef], Any]] = {}
        """Parameter name -> maker of its value, for decorators that add resources."""
        self.start_hooks: list[Callable[..., Any]] = []
        self.stop_hooks: list[Callable[..., Any]] = []
        functools.update_wrapper(self, handler, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the handler itself: no Reef, no ledger, nothing broadcast automatically."""
        return self.handler(*args, **kwargs)

    def on_start(self, hook: Hook) -> Hook:
        """Register a function (plain or async) to run when a Reef starts this agent.

        Over a transport the agent is not called before. The hook may send to any agent; an answer
        it gets only from one that has started: of this Reef, those that were named before.
        """
        self.start_hooks.append(hook)
        return hook

    def on_stop(self, hook: Hook) -> Hook:
        """Register a function (plain or async) to run when a Reef has stopped this agent."""
        self.stop_hooks.append(hook)
        return hook

    def same_source(self, other: AgentDefinition) -> bool:
        """Whether ``other`` is this definition made again (a notebook cell run twice)."""
        return self.origin == other.origin

    @property
    def origin(self) -> tuple[str, str]:
        """Module and qualified name of the handler."""
        return (
            getattr(self.handler, "__module__", ""),
            getattr(self.handler, "__qualname__", repr(self.handler)),
        )

    def __getattr__(self, name: str) -> Any:
        if name in LATER_METHODS:
            raise FeatureUnavailableError(
                f"{self.name}.{name}() needs praval.{LATER_METHODS[name]}, which this version "
                "does not have yet."
            )
        raise AttributeError(f"{type(self).__name__} {self.name!r} has no attribute {name!r}")


def _checked_tools(name: str, tools: Sequence[Any]) -> tuple[Any, ...]:
    if isinstance(tools, str | bytes) or not isinstance(tools, Sequence):
        raise ConfigurationError(f"Agent {name!r}: tools must be a list, not {tools!r}.")
    for each in tools:
        if not (isinstance(each, str) or callable(each) or hasattr(each, "tools")):
            raise ConfigurationError(
                f"Agent {name!r}: {each!r} is no tool; pass functions, @tools, their names or "
                "MCPServers."
            )
    return tuple(tools)


def checked_name(name: str) -> str:
    """Return a valid agent name.

    Raises:
        AgentError: not a string of 1 to 128 bytes of UTF-8, or a reserved one.
    """
    if not isinstance(name, str) or not name.strip():
        raise AgentError(f"An agent's name must be a string that is not empty, not {name!r}.")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise AgentError(
            f"The agent name {name!r} has half of a surrogate pair, which UTF-8 cannot write: "
            "remove it."
        ) from None
    if size > 128:
        raise AgentError(f"The agent name {name[:20]!r}... is longer than 128 bytes.")
    if name == "praval" or name.startswith(("praval.", "@")):
        raise AgentError(f"The agent name {name!r} is reserved: choose one without that start.")
    return name


def checked_handler(name: str, handler: Handler) -> Handler:
    """Return a handler that can be called with a spore.

    Raises:
        HandlerSignatureError: not a function, a generator, or without a ``spore`` parameter
            that can be given one spore.
    """
    if inspect.isclass(handler) or not callable(handler):
        raise HandlerSignatureError(
            f"Agent {name!r} needs a function or coroutine function, not {handler!r}."
        )
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise HandlerSignatureError(
            f"Agent {name!r} has a generator as its handler: return one value, and broadcast() "
            "the others."
        )
    try:
        parameters = inspect.signature(handler).parameters
    except ValueError as error:  # a builtin that does not tell its parameters
        raise HandlerSignatureError(
            f"The handler of agent {name!r} cannot be used: {error}. Write: def handler(spore): ..."
        ) from None
    spore = parameters.get("spore")
    if spore is None:
        raise HandlerSignatureError(
            f"The handler of agent {name!r} has no parameter named 'spore' (it has "
            f"{', '.join(parameters) or 'none'}). Write: def handler(spore): ..."
        )
    if spore.kind in (spore.VAR_POSITIONAL, spore.VAR_KEYWORD):
        raise HandlerSignatureError(
            f"The handler of agent {name!r} has '{spore}', which collects arguments: it is given "
            "one spore. Write: def handler(spore): ..."
        )
    if spore.kind is spore.POSITIONAL_ONLY and next(iter(parameters)) != "spore":
        raise HandlerSignatureError(
            f"The handler of agent {name!r} takes 'spore' by position only, behind other "
            "parameters. Make it the first one, or remove the '/'."
        )
    return handler


def checked_options(
    name: str,
    *,
    responds_to: str | Iterable[str] | None,
    channel: str | None,
    auto_broadcast: bool,
    concurrent: bool | int,
    retries: int,
    backoff: float,
    timeout: float | None,
    on_error: str,
    transactional: bool,
    condition: Condition | None,
    max_calls_per_minute: float | None,
) -> AgentOptions:
    """Check the arguments of ``@agent`` and make options of them.

    Raises:
        ConfigurationError: a value has the wrong type or range; the message names it.
    """

    def refuse(problem: str) -> ConfigurationError:
        return ConfigurationError(f"Agent {name!r}: {problem}.")

    types = [responds_to] if isinstance(responds_to, str) else responds_to
    if types is not None:
        types = list(types) if isinstance(types, Iterable) else [types]
        if not all(isinstance(kind, str) for kind in types):
            raise refuse(f"responds_to must be a list of strings, not {responds_to!r}")
    if channel is not None and (not isinstance(channel, str) or not channel):
        raise refuse(f"channel must be a string that is not empty, not {channel!r}")
    if not isinstance(concurrent, int) or (concurrent is not False and concurrent < 1):
        raise refuse(f"concurrent must be True, False or a number above 0, not {concurrent!r}")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise refuse(f"retries must be a whole number of at least 0, not {retries!r}")
    if not _is_number(backoff) or backoff < 0:
        raise refuse(f"backoff must be a number of seconds of at least 0, not {backoff!r}")
    if timeout is not None and (not _is_number(timeout) or timeout <= 0):
        raise refuse(f"timeout must be a number of seconds above 0, not {timeout!r}")
    if on_error not in ("dead_letter", "raise"):
        raise refuse(f'on_error must be "dead_letter" or "raise", not {on_error!r}')
    for option, value in (("auto_broadcast", auto_broadcast), ("transactional", transactional)):
        if not isinstance(value, bool):
            raise refuse(f"{option} must be True or False, not {value!r}")
    if condition is not None and not _answers_at_once(condition):
        raise refuse(
            f"condition must be a plain function of the spore, not {condition!r}; what an async "
            "function or a generator returns would count as true for every spore"
        )
    if max_calls_per_minute is not None and (
        not _is_number(max_calls_per_minute) or max_calls_per_minute <= 0
    ):
        raise refuse(f"max_calls_per_minute must be above 0, not {max_calls_per_minute!r}")
    return AgentOptions(
        responds_to=None if types is None else frozenset(types),
        channel=channel,
        auto_broadcast=auto_broadcast,
        concurrency=1 if concurrent is False else math.inf if concurrent is True else concurrent,
        retries=retries,
        backoff=backoff,
        timeout=timeout,
        on_error="raise" if on_error == "raise" else "dead_letter",
        transactional=transactional,
        condition=condition,
        max_calls_per_minute=max_calls_per_minute,
    )


def as_definition(candidate: object) -> AgentDefinition:
    """Return the definition behind whatever a user passes as an agent.

    Raises:
        HandlerSignatureError: it is no agent.
    """
    if isinstance(candidate, AgentDefinition):
        return candidate
    if isinstance(candidate, Agent):
        return AgentDefinition(
            candidate.name,
            candidate.handle,
            system_message=candidate.system_message,
            model=candidate.model,
            provider=candidate.provider,
            tools=candidate.tools,
        )
    hint = "decorate it with @agent(name)" if callable(candidate) else "pass agents one by one"
    raise HandlerSignatureError(f"{candidate!r} is not an agent: {hint}.")


def _answers_at_once(condition: object) -> bool:
    kinds = (
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    )
    called = getattr(condition, "__call__", None)  # noqa: B004 - an object with an async __call__
    return callable(condition) and not any(
        kind(each) for kind in kinds for each in (condition, called)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


async def call_hook(hook: Callable[..., Any], reef: Reef) -> None:
    """Run a start or stop hook, with the Reef if it takes an argument."""
    from praval.sync import in_thread

    args = (reef,) if inspect.signature(hook).parameters else ()
    if inspect.iscoroutinefunction(hook):
        await hook(*args)
        return
    value = await in_thread(hook, *args)
    if isinstance(value, Awaitable):
        await value
