"""Calling what a model asked for: side by side, in time, and failures told to the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from praval.plugins import near
from praval.tools.approvals import Approval, Approvals

log = logging.getLogger("praval.tools")


class Callee(Protocol):
    """What can be called for a model: a :class:`~praval.tools.Tool`, or one of a server's."""

    name: str
    description: str
    parameters: dict[str, Any]
    timeout: float | None
    requires_approval: bool

    async def run(self, arguments: str) -> str:
        """Call it with JSON and return what the model is to read."""
        ...


class ToolResult(NamedTuple):
    """What a model reads of a call."""

    content: str
    is_error: bool = False


@dataclass(frozen=True)
class Gate:
    """Where calls that need a human's consent are asked for."""

    approvals: Approvals
    scope: str
    """What is paused: one chat call of one handling."""
    agent: str | None
    turn: int
    """Which round of tool calls of that conversation this is."""
    conversation: bytes
    """The conversation up to and with the model's wish for these calls."""


async def call_all(
    tools: Mapping[str, Callee], calls: Sequence[tuple[str, str]], gate: Gate | None
) -> list[ToolResult]:
    """Make the calls (name and arguments) side by side; results in the order of the calls.

    Args:
        tools: what can be called, by name.
        calls: what is to be.
        gate: where a human's consent is asked for; None: no tool here needs it.
    """
    questions = await _asked(tools, calls, gate) if gate is not None else {}
    return await asyncio.gather(
        *(
            _call(tools.get(name), name, arguments, tools)
            if gate is None or number not in questions
            else _call_if_allowed(tools[name], arguments, gate, questions[number])
            for number, (name, arguments) in enumerate(calls)
        )
    )


async def _asked(
    tools: Mapping[str, Callee], calls: Sequence[tuple[str, str]], gate: Gate
) -> dict[int, Approval]:
    """Write the questions for the calls that need consent; return them by number of the call."""
    guarded = [
        (number, name, arguments)
        for number, (name, arguments) in enumerate(calls)
        if name in tools and tools[name].requires_approval
    ]
    if not guarded:
        return {}
    asked = await gate.approvals.pause(
        gate.scope,
        gate.conversation,
        [(f"{gate.turn}.{number}", gate.agent, name, args) for number, name, args in guarded],
    )
    for each in asked:
        if each.state == "pending":
            log.warning(
                "agent %s wants to call %s; answer with: praval approvals approve %s",
                each.agent, each.tool, each.id,
            )  # fmt: skip
    return {number: each for (number, _, _), each in zip(guarded, asked, strict=True)}


async def _call(
    tool: Callee | None, name: str, arguments: str, tools: Mapping[str, Callee]
) -> ToolResult:
    if tool is None:
        return ToolResult(f"There is no tool {name!r}.{near(name, tools)}", is_error=True)
    return await call_one(tool, arguments)


async def _call_if_allowed(
    tool: Callee, arguments: str, gate: Gate, question: Approval
) -> ToolResult:
    answer = await gate.approvals.decided(question.id)
    while answer.state in ("approved", "begun") and not await gate.approvals.begin(question.id):
        log.warning("the call %s was cut off before; it is asked for again", question.id)
        answer = await gate.approvals.decided(question.id)
    if answer.state == "denied":
        why = f" {answer.note}" if answer.note else ""
        return ToolResult(f"A human refused this call.{why}", is_error=True)
    if answer.state != "approved":  # called before this process began
        return ToolResult(answer.result or "", is_error=answer.state == "failed")
    result = await call_one(tool, arguments)
    await gate.approvals.record(question.id, result.content, failed=result.is_error)
    return result


async def call_one(tool: Callee, arguments: str) -> ToolResult:
    """Make one call; whatever the tool raises becomes a result that says so."""
    scope = asyncio.timeout(tool.timeout)
    try:
        async with scope:
            return ToolResult(_sendable(await tool.run(arguments)))
    except TimeoutError as error:
        if scope.expired():
            return ToolResult(f"{tool.name} took longer than {tool.timeout} s.", is_error=True)
        return _failed(tool, error)
    except Exception as error:  # noqa: BLE001 - a tool's failure is news for the model
        return _failed(tool, error)


def _failed(tool: Callee, error: Exception) -> ToolResult:
    log.info("the tool %s failed: %r", tool.name, error)
    return ToolResult(_sendable(f"{type(error).__name__}: {error}"), is_error=True)


def _sendable(text: str) -> str:
    """Replace what JSON cannot carry: halves of characters, as in names of files of old."""
    return text.encode(errors="replace").decode()
