"""A question until its final answer: rounds of tool calls, a wanted type, and the history.

What an agent may call: the tools of the call, else those of its agent, and those that it has
without naming them. Each round's calls are made side by side; a failure is told to the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from praval.core.context import current_posted
from praval.core.spore import new_id
from praval.errors import ToolDefinitionError, ToolRoundsError
from praval.providers import history
from praval.providers.asking import Candidate, Terms, ask, pieces
from praval.providers.messages import (
    ChatRequest,
    Image,
    ImageSource,
    Message,
    Response,
    ToolSpec,
    Usage,
)
from praval.providers.structured import Wanted
from praval.tools.approvals import Approvals
from praval.tools.execute import Callee, Gate, call_all
from praval.tools.tool import as_tool, granted_to

MAX_ROUNDS = 20
"""Rounds of tool calls in one chat call; a model that wants more runs in a circle."""
ONCE = "once/"
"""How the scope of a call begins that nothing could ever resume."""


@dataclass(frozen=True)
class Call:
    """A chat call, its arguments checked."""

    question: str
    system: str | None
    before: tuple[Message, ...]
    """Turns that the caller gave as history."""
    request: ChatRequest
    """Everything but the messages and the tools."""
    candidates: tuple[Candidate, ...]
    terms: Terms
    agent: str | None = None
    images: Sequence[ImageSource] = ()
    tools: Sequence[Any] = ()
    granted: bool = True
    """Whether the agent also has the tools that it has without naming them."""
    history_key: history.Key | None = None
    wanted: Wanted | None = None
    total: float | None = None
    """Seconds for the whole call."""

    def opening(self) -> tuple[Message, ...]:
        """Return the messages to begin with. Reads images from files: not on an event loop."""
        images = tuple(map(Image.of, self.images))
        system = (Message("system", self.system),) if self.system else ()
        kept = history.turns_of(self.history_key) if self.history_key else ()
        return (*system, *self.before, *kept, Message("user", self.question, images))


@dataclass(frozen=True)
class _Desk:
    """What the rounds of one call share."""

    tools: Mapping[str, Callee]
    specs: tuple[ToolSpec, ...]
    approvals: Approvals | None
    scope: str
    agent: str | None


async def hold(call: Call, opening: tuple[Message, ...]) -> Any:
    """Return the final answer: a Response, or a value of the wanted type.

    Raises:
        ToolRoundsError: the model calls tools again and again.
        StructuredOutputError: the answer does not fit the wanted type.
        Exception: see :func:`praval.providers.asking.ask`.
    """
    desk = await _desk(call, opening)
    begun = await _resumed(desk) or opening
    rounds = [each async for each in _rounds(call, desk, begun)]
    spent = [response for _, response in rounds]
    messages, response = rounds[-1]
    value: Any = None
    if call.wanted is not None:
        response, value = await _fitting(call, desk, messages, response, spent)
    await _finish(call, desk, response)
    return value if call.wanted is not None else _summed(response, spent)


async def _rounds(
    call: Call, desk: _Desk, messages: tuple[Message, ...]
) -> AsyncGenerator[tuple[tuple[Message, ...], Response], None]:
    """Ask, call what is wanted, ask again; yield each answer with the messages before it."""
    while True:
        if not messages[-1].tool_calls:
            request = _request(call, desk, messages)
            response = await ask(request, call.candidates, call.terms)
            yield messages, response
            if not response.tool_calls or not desk.tools:
                return
            messages = (*messages, response.as_message())
        messages = await _with_results(desk, messages)


async def _fitting(
    call: Call,
    desk: _Desk,
    messages: tuple[Message, ...],
    response: Response,
    spent: list[Response],
) -> tuple[Response, Any]:
    """Return the answer and its value, after one repair if it needs that."""
    wanted = call.wanted
    assert wanted is not None
    try:
        return response, wanted.read(response.text)
    except ValueError as error:
        repair = (*messages, response.as_message(), wanted.complaint(error))
    response = await ask(_request(call, desk, repair), call.candidates, call.terms)
    spent.append(response)
    try:
        return response, wanted.read(response.text)
    except ValueError as error:
        raise wanted.failure(response, error) from None


async def flow(call: Call, opening: tuple[Message, ...]) -> AsyncGenerator[str | Response, None]:
    """Yield the text of all rounds as it arrives and, last, the final answer."""
    desk = await _desk(call, opening)
    messages = await _resumed(desk) or opening
    spent: list[Response] = []
    while True:
        if not messages[-1].tool_calls:
            request = _request(call, desk, messages)
            source = pieces(request, call.candidates, call.terms)
            async with contextlib.aclosing(source):
                async for piece in source:
                    if isinstance(piece, Response):
                        spent.append(piece)
                    else:
                        yield piece
            response = spent[-1]
            if not response.tool_calls or not desk.tools:
                break
            messages = (*messages, response.as_message())
        messages = await _with_results(desk, messages)
    await _finish(call, desk, response)
    yield _summed(response, spent)


# ------------------------------------------------------------------------------- the parts


def _request(call: Call, desk: _Desk, messages: tuple[Message, ...]) -> ChatRequest:
    return msgspec.structs.replace(call.request, messages=messages, tools=desk.specs)


async def _desk(call: Call, opening: tuple[Message, ...]) -> _Desk:
    tools = await _opened(call)
    specs = tuple(ToolSpec(each.name, each.description, each.parameters) for each in tools.values())
    guarded = any(each.requires_approval for each in tools.values())
    scope = _scope(call, opening, list(tools)) if guarded else ""
    return _Desk(tools, specs, Approvals() if guarded else None, scope, call.agent)


async def _opened(call: Call) -> dict[str, Callee]:
    """Return the tools by name, those of servers fetched.

    Raises:
        ToolDefinitionError: one is no tool, belongs to another agent, or two share a name.
    """
    found: dict[str, Callee] = {}
    given = list(call.tools)
    if call.agent is not None and call.granted:
        given += [each for each in granted_to(call.agent) if each not in given]
    for each in given:
        several: Any = getattr(each, "tools", None)  # an MCPServer's method
        tools: list[Callee] = (
            list(await several()) if inspect.ismethod(several) else [as_tool(each, call.agent)]
        )
        for one in tools:
            if found.setdefault(one.name, one) is not one:
                raise ToolDefinitionError(
                    f"Two tools are called {one.name!r}: rename one, or give one server a prefix=."
                )
    return found


def _scope(call: Call, opening: tuple[Message, ...], tools: list[str]) -> str:
    """Return what names this very conversation, also after a restart, if anything can."""
    posted = current_posted.get()
    digest = hashlib.sha256(msgspec.json.encode((opening, tools))).hexdigest()[:16]
    if posted is not None:
        return f"spore/{posted.header.id}/{call.agent}/{digest}"
    if call.history_key is not None:
        return f"conversation/{'/'.join(call.history_key)}/{digest}"
    return f"{ONCE}{new_id()}"


async def _resumed(desk: _Desk) -> tuple[Message, ...] | None:
    """Return the conversation that was paused for a human's answer, if there is one."""
    kept = None if desk.approvals is None else await desk.approvals.resume(desk.scope)
    return None if kept is None else msgspec.json.decode(kept, type=tuple[Message, ...])


async def _with_results(desk: _Desk, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Make the calls that the last message asks for; return the messages with their results."""
    calls = messages[-1].tool_calls
    turn = sum(1 for each in messages if each.tool_calls)
    if turn > MAX_ROUNDS:
        raise ToolRoundsError(
            f"The model called tools in {MAX_ROUNDS} rounds and wants to go on; the last was "
            f"{calls[0].name}. It probably runs in a circle."
        )
    gate = None
    if desk.approvals is not None:
        conversation = msgspec.json.encode(messages)
        gate = Gate(desk.approvals, desk.scope, desk.agent, turn, conversation)
    try:
        results = await call_all(desk.tools, [(each.name, each.arguments) for each in calls], gate)
    except BaseException:
        if gate is not None and gate.scope.startswith(ONCE):
            await gate.approvals.withdraw(gate.scope)
        raise
    return (
        *messages,
        *(
            Message("tool", result.content, tool_call_id=each.id, is_error=result.is_error)
            for each, result in zip(calls, results, strict=True)
        ),
    )


async def _finish(call: Call, desk: _Desk, response: Response) -> None:
    if desk.approvals is not None and await desk.approvals.resume(desk.scope) is not None:
        is_spore = desk.scope.startswith("spore/")
        await desk.approvals.finish(desk.scope, keep_answers=is_spore)
    if call.history_key is not None:
        remember(call, response)


def remember(call: Call, response: Response) -> None:
    """Add question and answer to the conversation that the call goes on with."""
    if call.history_key is not None:
        history.add(
            call.history_key, Message("user", call.question), Message("assistant", response.text)
        )


def _summed(response: Response, spent: list[Response]) -> Response:
    """Return the last answer with the usage and the cost of all of them."""
    if len(spent) == 1:
        return response
    usage = sum((each.usage for each in spent), Usage())
    costs = [each.cost for each in spent if each.cost is not None]
    cost = sum(costs) if len(costs) == len(spent) else None
    return response.altered(usage=usage, cost=cost, tool_calls=())
