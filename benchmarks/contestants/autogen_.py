"""autogen-core: its single-threaded runtime with default settings and a typed message.

The runtime serialises every message for its event log whether or not anybody listens. The message
is therefore a pydantic model of the same six fields: measured 1.3 to 1.7 times faster than the
dataclass of its documentation. The runtime's queue is unbounded.
"""

from __future__ import annotations

import asyncio
from statistics import median

from autogen_core import (
    AgentId,
    MessageContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    TopicId,
    TypeSubscription,
    message_handler,
)
from pydantic import BaseModel

from benchmarks.workloads import STAGES, Job, Programs, Sample, Tally, clock, messages


class Finding(BaseModel):
    type: str
    id: int
    text: str
    source: str
    score: float
    tags: list[str]


class Answer(BaseModel):
    type: str
    id: int


class _Reader(RoutedAgent):
    def __init__(self, tally: Tally, pause: float = 0.0) -> None:
        super().__init__("reader")
        self._tally, self._pause = tally, pause

    @message_handler
    async def read(self, message: Finding, ctx: MessageContext) -> None:
        self._tally.total += len(message.text)
        if self._pause:
            await asyncio.sleep(self._pause)


class _Answerer(RoutedAgent):
    def __init__(self, tally: Tally) -> None:
        super().__init__("answerer")
        self._tally = tally

    @message_handler
    async def answer(self, message: Finding, ctx: MessageContext) -> Answer:
        self._tally.total += len(message.text)
        return Answer(type="answer", id=message.id)


class _Stage(RoutedAgent):
    def __init__(self, number: int) -> None:
        super().__init__("stage")
        self._following = f"stage-{number + 1}"

    @message_handler
    async def step(self, message: Finding, ctx: MessageContext) -> None:
        following = message.model_copy(update={"type": self._following})
        await self.publish_message(following, TopicId(self._following, "default"))


def _findings(count: int) -> list[Finding]:
    return [Finding(**message) for message in messages(count)]  # type: ignore[arg-type]


async def _warm(runtime: SingleThreadedAgentRuntime, tally: Tally) -> None:
    """One message down the whole path: agents are only made when the first one reaches them."""
    runtime.start()
    await runtime.publish_message(_findings(1)[0], TopicId("stage-1", "default"))
    await runtime.stop_when_idle()
    tally.total = 0
    runtime.start()


async def _readers(job: Job, tally: Tally, pause: float = 0.0) -> SingleThreadedAgentRuntime:
    runtime = SingleThreadedAgentRuntime()
    for number in range(job.agents):
        name = f"reader-{number}"
        await _Reader.register(runtime, name, lambda: _Reader(tally, pause))
        await runtime.add_subscription(TypeSubscription("stage-1", name))
    await _warm(runtime, tally)
    return runtime


async def _publish(runtime: SingleThreadedAgentRuntime, work: list[Finding]) -> None:
    topic = TopicId("stage-1", "default")
    for message in work:
        await runtime.publish_message(message, topic)
    await runtime.stop_when_idle()


async def w1(job: Job) -> Sample:
    tally = Tally()
    runtime = await _readers(job, tally)
    work = _findings(job.n)
    with clock(job.n * job.agents) as sample:
        await _publish(runtime, work)
    tally.expect(sample.units)
    return sample


async def w2(job: Job) -> Sample:
    tally = Tally()
    runtime = SingleThreadedAgentRuntime()
    await _Answerer.register(runtime, "answerer", lambda: _Answerer(tally))
    runtime.start()
    recipient = AgentId("answerer", "default")
    work = _findings(job.n)
    await runtime.send_message(work[0], recipient)
    tally.total = 0
    with clock(job.n) as sample:
        for message in work:
            (await runtime.send_message(message, recipient)).id  # noqa: B018 (reads the reply)
    await runtime.stop()
    tally.expect(job.n)
    return sample


async def w3(job: Job) -> Sample:
    tally = Tally()
    runtime = SingleThreadedAgentRuntime()
    for number in range(1, STAGES):
        name = f"stage-{number}"
        await _Stage.register(runtime, name, lambda number=number: _Stage(number))  # type: ignore[misc]
        await runtime.add_subscription(TypeSubscription(name, name))
    await _Reader.register(runtime, "last", lambda: _Reader(tally))
    await runtime.add_subscription(TypeSubscription(f"stage-{STAGES}", "last"))
    await _warm(runtime, tally)
    work = _findings(job.n)
    with clock(job.n) as sample:
        await _publish(runtime, work)
    tally.expect(job.n)
    return sample


async def w5(job: Job) -> Sample:
    tally = Tally()
    runtime = await _readers(job, tally, pause=0.05)
    work = _findings(job.n)
    walls: list[float] = []
    for _ in range(6):
        with clock(job.n) as sample:
            await _publish(runtime, work)
        walls.append(sample.wall)
        runtime.start()
    await runtime.stop()
    tally.expect(6 * job.n)
    return Sample(metrics={"wall_ms": median(walls[1:]) * 1e3})


PROGRAMS: Programs = {"autogen-core": {"W1": w1, "W2": w2, "W3": w3, "W5": w5}}
