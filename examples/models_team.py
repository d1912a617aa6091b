"""Two agents with one budget: a chain of providers, a tool, a conversation, and the bill.

Whichever provider of the chain is available answers; without any key it is the model on this
machine. The tool is offered to models that can call tools; the small local one may not.

Run: python examples/models_team.py
"""

import asyncio

from praval import Reef, achat, agent, broadcast, resilient_agent, tool
from praval.providers import Budgets, budget, usage

CHAIN = ["anthropic", "openai", "local"]


@tool
def depth_of(reef: str) -> int:
    """Tell how deep a reef lies, in metres.

    Args:
        reef: its name
    """
    return {"Apo": 34}.get(reef, 20)


@agent("researcher", responds_to=["question"], provider=CHAIN, tools=[depth_of])
@resilient_agent(max_retries=2)
async def researcher(spore):
    answer = await achat(spore.knowledge["text"], history=True, max_tokens=60, timeout=120)
    print(f"researcher ({answer.provider}): {answer}")
    broadcast({"type": "finding", "text": answer})


@agent("editor", responds_to=["finding"], provider=CHAIN)
async def editor(spore):
    text = spore.knowledge["text"]
    answer = await achat(f"Say this in five words: {text}", max_tokens=20, timeout=120)
    print(f"editor ({answer.provider}): {answer}")


async def main() -> None:
    async with Reef(researcher, editor, interceptors=[Budgets()]) as reef:
        with budget(tokens=5_000, seconds=300):
            await reef.broadcast({"type": "question", "text": "What is a coral reef?"})
        await reef.wait_idle(timeout=300)
    for name in ("researcher", "editor"):
        account = usage(agent=name)
        print(f"{name}: {account.calls} calls, {account.usage.total_tokens} tokens")


asyncio.run(main())
