"""``@tool``: a function with a name, a meaning and a schema, made of its hints and docstring."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import re
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar, get_type_hints, overload

import msgspec

from praval.errors import ToolDefinitionError
from praval.plugins import near
from praval.sync import forkable_lock, in_thread
from praval.tools.docstrings import described
from praval.tools.typed import read, schema_of, written

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT = 60.0
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class Tool:
    """A function that a model may have called. Call it yourself like the function.

    Made by :func:`tool`; ``parameters`` is the JSON schema of its arguments.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        timeout: float | None = TIMEOUT,
        requires_approval: bool = False,
        shared: bool = False,
        owner: str | None = None,
    ) -> None:
        self.function = function
        self.name = checked_name(name or str(getattr(function, "__name__", "")))
        if timeout is not None and not (
            isinstance(timeout, int | float) and math.isfinite(timeout) and timeout > 0
        ):
            raise ToolDefinitionError(f"Tool {self.name!r}: timeout must be seconds above 0.")
        if shared and owner is not None:
            raise ToolDefinitionError(
                f"Tool {self.name!r} cannot be shared by all agents and owned by {owner!r}."
            )
        meaning, meanings = described(function)
        self.description = description or meaning or self.name.replace("_", " ")
        self.timeout: float | None = timeout
        self.requires_approval = requires_approval
        self.shared = shared
        self.owner = owner
        self._arguments = _struct(self.name, function, meanings)
        self.parameters: dict[str, Any] = schema_of(self._arguments)
        self.parameters.pop("title", None)
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself."""
        return self.function(*args, **kwargs)

    async def run(self, arguments: str) -> str:
        """Call the function with arguments as JSON; return its result as a model reads it.

        A plain function runs in a worker thread.

        Raises:
            ValueError: the arguments do not fit; nothing was called.
            Exception: what the function raises.
        """
        given = read(arguments or "{}", self._arguments)
        values = {name: getattr(given, name) for name in given.__struct_fields__}
        if inspect.iscoroutinefunction(self.function):
            return written(await self.function(**values))
        value = await in_thread(functools.partial(self.function, **values))
        return written(await value if inspect.isawaitable(value) else value)

    def __repr__(self) -> str:
        return f"<Tool {self.name!r}>"


@overload
def tool(function: Callable[P, T], /) -> Callable[P, T]: ...
@overload
def tool(
    name: str | None = None,
    *,
    description: str | None = None,
    timeout: float | None = TIMEOUT,
    requires_approval: bool = False,
    shared: bool = False,
    owner: str | None = None,
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def tool(
    name: Any = None,
    *,
    description: str | None = None,
    timeout: float | None = TIMEOUT,
    requires_approval: bool = False,
    shared: bool = False,
    owner: str | None = None,
) -> Any:
    """Make a tool of a function, plain or async: ``@tool`` or ``@tool("name", ...)``.

    The arguments' schema comes from the type hints, the words for the model from the docstring
    (its ``Args:`` describe the arguments). The decorated object can be called like the function.

    Args:
        name: 1 to 64 of ``a-z A-Z 0-9 _ -``; default: the function's.
        description: what it is for; default: the docstring without its sections.
        timeout: seconds one call may take; None: no limit.
        requires_approval: a human must agree before each call (``praval approvals``).
        shared: every agent has it, without naming it.
        owner: the one agent that has it, without naming it, and nobody else.

    Raises:
        ToolDefinitionError: a name or a parameter that no model could use.
    """

    def decorate(function: Callable[..., Any]) -> Tool:
        made = Tool(
            function,
            name=name if isinstance(name, str) else None,
            description=description,
            timeout=timeout,
            requires_approval=requires_approval,
            shared=shared,
            owner=owner,
        )
        with _lock:
            _tools[made.name] = made
        return made

    if name is not None and not isinstance(name, str):
        return decorate(name)
    return decorate


_tools: dict[str, Tool] = {}
_lock = forkable_lock()


def get_tool(name: str) -> Tool:
    """Return the tool that was declared with this name last.

    Raises:
        ToolDefinitionError: there is none.
    """
    with _lock:
        found = _tools.get(name)
        known = sorted(_tools)
    if found is None:
        raise ToolDefinitionError(
            f"No tool {name!r}; known: {', '.join(known) or 'none'}.{near(name, known)}"
        )
    return found


def granted_to(agent: str) -> list[Tool]:
    """Return the tools that an agent has without naming them: shared ones, and its own."""
    with _lock:
        return [each for each in _tools.values() if each.shared or each.owner == agent]


def clear_tools() -> None:
    """Forget all declared tools (for tests and notebooks)."""
    with _lock:
        _tools.clear()


def as_tool(candidate: Any, agent: str | None) -> Tool:
    """Return the tool behind a name, a tool or a plain function.

    Raises:
        ToolDefinitionError: it is none, or belongs to another agent.
    """
    found = get_tool(candidate) if isinstance(candidate, str) else candidate
    if not isinstance(found, Tool):
        if not callable(found) or inspect.isclass(found):
            raise ToolDefinitionError(
                f"{found!r} is no tool: pass a function, a @tool, its name, or an MCPServer."
            )
        found = Tool(found)
    if found.owner is not None and found.owner != agent:
        raise ToolDefinitionError(f"The tool {found.name!r} belongs to agent {found.owner!r}.")
    return found


def checked_name(name: str) -> str:
    """Return a name that every vendor's models can call.

    Raises:
        ToolDefinitionError: it is none.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ToolDefinitionError(
            f"A tool's name must be 1 to 64 of a-z, A-Z, 0-9, _ and -, not {name!r}: "
            '@tool("a_name").'
        )
    return name


def _struct(name: str, function: Callable[..., Any], meanings: Any) -> type[msgspec.Struct]:
    """Make the type of a function's arguments."""
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ToolDefinitionError(f"Tool {name!r} has a hint that is unknown: {error}.") from None
    fields: list[Any] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ToolDefinitionError(
                f"Tool {name!r} has '{parameter}': each argument needs a name of its own."
            )
        kind = hints.get(parameter.name, Any)
        if meaning := meanings.get(parameter.name):
            kind = Annotated[kind, msgspec.Meta(description=meaning)]
        if parameter.default is parameter.empty:
            fields.append((parameter.name, kind))
        else:
            fields.append((parameter.name, kind, _default(parameter.default)))
    return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)


def _default(value: Any) -> Any:
    """Return a default as a field takes it: mutable ones are made anew for each call."""
    if isinstance(value, list | dict | set | bytearray):
        return msgspec.field(default_factory=lambda: copy.copy(value))
    return value
