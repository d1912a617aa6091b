"""praval with its production defaults: bounded mailboxes, isolated knowledge, ledger on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.contestants.measure import OpenLoop, import_cpu, registered, traced_bytes
from benchmarks.workloads import STAGES, Job, Programs, Sample, Tally, clock, messages, payload
from praval import Reef, Spore, agent

_WAIT = 120.0
"""Seconds a drained Reef is waited for before the run counts as hung."""


def _interceptors(job: Job) -> Sequence[Any]:
    if not job.tracing:
        return ()
    from praval.observe.tracing import Tracing

    return (Tracing(),)


def _reader(name: str, tally: Tally) -> Any:
    @agent(name, responds_to=["stage-1"])
    async def read(spore: Spore) -> None:
        tally.total += len(spore.knowledge["text"])

    return read


def _sleeper(tally: Tally, limit: int) -> Any:
    @agent("sleeper", responds_to=["stage-1"], concurrent=limit)
    async def sleep(spore: Spore) -> None:
        tally.total += len(spore.knowledge["text"])
        await asyncio.sleep(0.05)

    return sleep


def _stage(number: int) -> Any:
    @agent(f"stage-{number}", responds_to=[f"stage-{number}"])
    async def step(spore: Spore) -> dict[str, Any]:
        return {**spore.knowledge, "type": f"stage-{number + 1}"}

    return step


def _last(tally: Tally) -> Any:
    @agent("last", responds_to=[f"stage-{STAGES}"])
    async def read(spore: Spore) -> None:
        tally.total += len(spore.knowledge["text"])

    return read


async def _warm(reef: Reef, tally: Tally) -> None:
    await reef.broadcast(payload(0))
    await reef.wait_idle(timeout=_WAIT)
    tally.total = 0


def _check(reef: Reef, tally: Tally, deliveries: int) -> None:
    """Every delivery reached a handler, and the ledger says the same."""
    tally.expect(deliveries)
    ledger = reef.ledger()
    if not ledger.balanced or ledger.handled < deliveries:
        raise RuntimeError(f"{deliveries} deliveries expected, the ledger holds {ledger}")


async def _flood(reef: Reef, tally: Tally, job: Job, deliveries: int) -> Sample:
    await _warm(reef, tally)
    work = messages(job.n, flat=job.flat)
    with clock(deliveries) as sample:
        for message in work:
            await reef.broadcast(message)
        await reef.wait_idle(timeout=_WAIT)
    return sample


async def w1(job: Job) -> Sample:
    tally = Tally()
    readers = [_reader(f"reader-{i}", tally) for i in range(job.agents)]
    async with Reef(*readers, interceptors=_interceptors(job)) as reef:
        sample = await _flood(reef, tally, job, job.n * job.agents)
        _check(reef, tally, sample.units)
    return sample


async def w2(job: Job) -> Sample:
    tally = Tally()

    @agent("answerer", responds_to=["stage-1"])
    async def answer(spore: Spore) -> dict[str, Any]:
        knowledge = spore.knowledge
        tally.total += len(knowledge["text"])
        return {"type": "answer", "id": knowledge["id"]}

    async with Reef(answer) as reef:
        work = messages(job.n)
        await reef.request("answerer", work[0], timeout=5)
        tally.total = 0
        with clock(job.n) as sample:
            for message in work:
                (await reef.request("answerer", message, timeout=5)).knowledge["id"]
        _check(reef, tally, job.n)
    return sample


async def w3(job: Job) -> Sample:
    tally = Tally()
    stages = [_stage(number) for number in range(1, STAGES)]
    async with Reef(*stages, _last(tally)) as reef:
        sample = await _flood(reef, tally, job, job.n)
        _check(reef, tally, job.n)
    return sample


async def _nothing(spore: Spore) -> None:
    spore.knowledge["text"]


async def _idle(count: int, *, used: bool = False) -> Reef:
    """Declare, register and start: the whole cost of having an agent, its definition included.

    The process ends with the Reef open; closing it is not what is measured.
    """
    definitions = [agent(f"agent-{i}", responds_to=["stage-1"])(_nothing) for i in range(count)]
    reef = Reef(*definitions)
    await reef.__aenter__()
    if used:
        await reef.broadcast(payload(0))
        await reef.wait_idle(timeout=_WAIT)
    return reef


async def idle(job: Job) -> Sample:
    return await traced_bytes(lambda: _idle(job.n), job.n)


async def used(job: Job) -> Sample:
    return await traced_bytes(lambda: _idle(job.n, used=True), job.n)


async def register(job: Job) -> Sample:
    return await registered(lambda: _idle(job.n), job.n)


def imports(job: Job) -> Sample:
    return import_cpu("praval", job)


async def w5(job: Job) -> Sample:
    tally = Tally()
    rounds = 6
    async with Reef(_sleeper(tally, job.n)) as reef:
        walls: list[float] = []
        work = messages(job.n)
        for _ in range(rounds):
            with clock(job.n) as sample:
                for message in work:
                    await reef.broadcast(message)
                await reef.wait_idle(timeout=_WAIT)
            walls.append(sample.wall)
        _check(reef, tally, rounds * job.n)
    return Sample(metrics={"wall_ms": median(walls[1:]) * 1e3})


async def _latency(job: Job, *, poll: bool) -> Sample:
    arrivals = OpenLoop(job)

    @agent("listener", responds_to=["stage-1"])
    async def note(spore: Spore) -> None:
        arrivals.arrived(spore.knowledge["id"])

    async with Reef(note) as reef:
        await arrivals.run(reef.broadcast, poll=poll)
        await reef.wait_idle(timeout=_WAIT)
    return arrivals.sample()


async def w6(job: Job) -> Sample:
    return await _latency(job, poll=True)


async def w6_timer(job: Job) -> Sample:
    return await _latency(job, poll=False)


PROGRAMS: Programs = {
    "praval": {
        "W1": w1,
        "W2": w2,
        "W3": w3,
        "W4-idle": idle,
        "W4-used": used,
        "W4-register": register,
        "W4-import": imports,
        "W5": w5,
        "W6": w6,
        "W6-timer": w6_timer,
    }
}
