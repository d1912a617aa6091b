"""What the tests of tools share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from praval.providers import BaseProvider, ChatRequest, Response, ToolCall, Usage
from praval.providers import registry as providers
from praval.tools import clear_tools

Turn = str | Sequence[tuple[str, str]]


class Caller(BaseProvider):
    """A model that wants, turn by turn, tools called (name and JSON arguments), or says something.

    ``requests`` holds what it was asked. The last turn is repeated.
    """

    any_loop = True

    def __init__(self, *turns: Turn) -> None:
        self.turns = list(turns)
        self.requests: list[ChatRequest] = []

    async def respond(self, request: ChatRequest) -> Response:
        self.requests.append(request)
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        if isinstance(turn, str):
            return Response(turn, usage=Usage(3, 2), model="caller")
        calls = [
            ToolCall(f"call_{number}", name, arguments)
            for number, (name, arguments) in enumerate(turn)
        ]
        return Response(usage=Usage(3, 2), tool_calls=calls, finish_reason="tool_calls")

    @property
    def results(self) -> list[tuple[str, bool]]:
        """What the last question told of calls: content, and whether it is a failure."""
        return [
            (each.content, each.is_error)
            for each in self.requests[-1].messages
            if each.role == "tool"
        ]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    clear_tools()
    for name in providers.registered_names():
        providers.unregister_provider(name)
    providers.forget_configurations()


@pytest.fixture
def caller() -> Any:
    """Make a model of turns, registered as "caller"."""

    def make(*turns: Turn) -> Caller:
        model = Caller(*turns)
        providers.register_provider("caller", model)
        return model

    return make
