"""An agent with a guarded tool, as a process that can be killed: see test_approvals.py.

Prints a line for each question to its model and each call of its tool; ends when all is done.
"""

from __future__ import annotations

import asyncio
import sys

from praval import Reef, achat, agent, tool
from praval.providers import BaseProvider, ChatRequest, Response, ToolCall, register_provider


class Model(BaseProvider):
    async def respond(self, request: ChatRequest) -> Response:
        results = [each.content for each in request.messages if each.role == "tool"]
        print(f"model {results}", flush=True)
        if results:
            return Response(f"The clerk said: {results[0]}")
        call = ToolCall("call_1", "pay", '{"amount": 5}')
        return Response(tool_calls=[call], finish_reason="tool_calls")


register_provider("model", Model())


@tool(requires_approval=True)
def pay(amount: int) -> str:
    """Pay."""
    print(f"paid {amount}", flush=True)
    return f"{amount} paid"


@agent("clerk", provider="model", tools=[pay])
async def clerk(spore):
    print(f"answer {await achat('Pay the bill.')}", flush=True)


async def main(journal: str, first: bool) -> None:
    async with Reef(clerk, journal=journal) as reef:
        if first:
            await reef.broadcast({"type": "bill"})
        await reef.wait_idle(60)


asyncio.run(main(sys.argv[1], sys.argv[2] == "first"))
