"""Scale: bounded memory, and a cost per delivery that does not grow with what is around it.

Costs are compared as ratios of the least of several rounds, in one process, with wide margins:
what is looked for is growth with a size, not a number of microseconds.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from praval import AgentDefinition, Reef, Spore, agent
from praval.settings import ReefSettings, Settings

MILLION = """
    import asyncio, resource
    from praval import Reef, agent

    handled = 0

    @agent("slow")
    async def slow(spore):
        global handled
        handled += 1
        if handled % 50 == 0:
            await asyncio.sleep(0)  # slower than its publisher, who must wait

    def peak():
        try:  # ru_maxrss would begin with the size of the process that started this one
            with open("/proc/self/status") as status:
                line = next(line for line in status if line.startswith("VmHWM"))
            return int(line.split()[1]) // 1024
        except FileNotFoundError:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    async def main():
        async with Reef(slow) as reef:
            for n in range(50_000):
                await reef.broadcast({"type": "item", "n": n})
            before = peak()
            for n in range(950_000):
                await reef.broadcast({"type": "item", "n": n})
            await reef.wait_idle(60)
            ledger = reef.ledger()
            print(ledger.handled, ledger.balanced, peak() - before, peak())

    asyncio.run(main())
    """


def test_a_million_spores_to_a_slow_agent_take_no_more_memory(tmp_path: Path) -> None:
    """After the first 50,000, the process does not grow: publishers wait, nothing is kept."""
    script = tmp_path / "million.py"
    script.write_text(textwrap.dedent(MILLION))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=110, check=True
    )
    handled, balanced, growth, peak = done.stdout.split()
    assert (handled, balanced) == ("1000000", "True")
    assert int(growth) < 16, f"grew by {growth} MiB"
    assert int(peak) < 200, f"{peak} MiB in all"


# -- costs ---------------------------------------------------------------------------------------


async def least(work: Callable[[], Awaitable[None]], rounds: int = 5) -> float:
    """Return the processor seconds of the cheapest round."""
    costs = []
    for _ in range(rounds):
        began = time.process_time()
        await work()
        costs.append(time.process_time() - began)
    return min(costs)


def listener(name: str, **options: object) -> AgentDefinition:
    @agent(name, **options)  # type: ignore[arg-type]
    async def listen(spore: Spore) -> None:
        return None

    return listen


def publishing(reef: Reef, spores: int, channel: str = "main") -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        for n in range(spores):
            await reef.broadcast({"type": "item", "n": n}, channel)
        await reef.wait_idle(60)

    return work


async def test_the_cost_of_a_delivery_does_not_grow_with_the_number_of_agents() -> None:
    """2 agents that hear it, with 2,000 beside them that do not, on the same channel."""
    two = [listener(f"hears{n}", responds_to=["item"]) for n in range(2)]
    others = [listener(f"deaf{n}", responds_to=["other"]) for n in range(2000)]
    async with Reef(*two) as few, Reef(*two, *others) as many:
        base = await least(publishing(few, 2000))
        assert await least(publishing(many, 2000)) < 3 * base


async def test_the_cost_of_a_delivery_does_not_grow_with_the_number_of_channels() -> None:
    """One channel, or one of 2,000."""
    channels = [listener(f"a{n}", channel=f"c{n}") for n in range(2000)]
    async with Reef(listener("one", channel="c7")) as few, Reef(*channels) as many:
        base = await least(publishing(few, 3000, "c7"))
        assert await least(publishing(many, 3000, "c7")) < 3 * base


async def test_the_cost_of_a_delivery_does_not_grow_with_the_messages_sent_before() -> None:
    """The first thousands cost what those after 100,000 do; the types may all be different."""
    async with Reef(listener("a")) as reef:
        base = await least(publishing(reef, 2000))
        for n in range(100_000):
            await reef.broadcast({"type": f"t{n % 20_000}"})
        await reef.wait_idle(60)
        assert await least(publishing(reef, 2000)) < 3 * base


async def test_the_cost_of_a_delivery_does_not_grow_with_the_backlog() -> None:
    """Also with priorities and keys, for which a mailbox keeps more than a queue."""
    settings = Settings(reef_config=ReefSettings(channel_capacity=100_000))
    go = asyncio.Event()

    @agent("a", responds_to=["item", "gate"])
    async def gated(spore: Spore) -> None:
        if spore.type == "gate":
            await go.wait()

    async def cost(spores: int) -> float:
        async with Reef(gated, settings=settings) as reef:
            go.clear()
            await reef.broadcast({"type": "gate"}, priority=10)
            began = time.process_time()
            for n in range(spores):
                await reef.broadcast(
                    {"type": "item"}, priority=1 + n % 10, key=f"k{n % 100}" if n % 2 else None
                )
            go.set()
            await reef.wait_idle(60)
            return (time.process_time() - began) / spores

    base = min([await cost(2000) for _ in range(4)])
    assert min([await cost(40_000) for _ in range(2)]) < 4 * base


async def test_many_agents_hear_a_broadcast_at_a_linear_cost() -> None:
    """1,000 receivers cost no more than ten times what 100 do, with margin."""

    async def cost(receivers: int, spores: int) -> float:
        async with Reef(*[listener(f"a{n}") for n in range(receivers)]) as reef:
            return await least(publishing(reef, spores), 3) / (receivers * spores)

    assert await cost(1000, 20) < 4 * await cost(100, 200)
