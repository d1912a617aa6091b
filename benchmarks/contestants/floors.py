"""The floors: what asyncio alone costs for the same job, with the same handler."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from statistics import median
from typing import Any

from benchmarks.contestants.measure import OpenLoop, import_cpu, registered, traced_bytes
from benchmarks.workloads import (
    CAPACITY,
    STAGES,
    Job,
    Payload,
    Programs,
    Sample,
    Tally,
    clock,
    messages,
    payload,
)

Handler = Callable[[Payload], Awaitable[Any]]
Mailbox = asyncio.Queue[Payload | None]


def _reader(tally: Tally) -> Callable[[Payload], Coroutine[Any, Any, None]]:
    async def read(knowledge: Payload) -> None:
        tally.total += len(knowledge["text"])  # type: ignore[arg-type]

    return read


def _answerer(tally: Tally) -> Callable[[Payload], Coroutine[Any, Any, Payload]]:
    async def answer(knowledge: Payload) -> Payload:
        tally.total += len(knowledge["text"])  # type: ignore[arg-type]
        return {"type": "answer", "id": knowledge["id"]}

    return answer


def _stage(number: int) -> Callable[[Payload], Coroutine[Any, Any, Payload]]:
    async def stage(knowledge: Payload) -> Payload:
        return {**knowledge, "type": f"stage-{number + 1}"}

    return stage


async def direct_w1(job: Job) -> Sample:
    tally = Tally()
    handlers = [_reader(tally) for _ in range(job.agents)]
    work = messages(job.n, flat=job.flat)
    with clock(job.n * job.agents) as sample:
        for message in work:
            for handler in handlers:
                await handler(message)
    tally.expect(sample.units)
    return sample


async def direct_w2(job: Job) -> Sample:
    tally = Tally()
    answer = _answerer(tally)
    work = messages(job.n)
    with clock(job.n) as sample:
        for message in work:
            (await answer(message))["id"]
    tally.expect(job.n)
    return sample


async def direct_w3(job: Job) -> Sample:
    tally = Tally()
    stages: list[Handler] = [_stage(i) for i in range(1, STAGES)]
    last = _reader(tally)
    work = messages(job.n)
    with clock(job.n) as sample:
        for message in work:
            item = message
            for stage in stages:
                item = await stage(item)
            await last(item)
    tally.expect(job.n)
    return sample


async def _consume(mailbox: Mailbox, handler: Handler) -> None:
    """A worker in its cheapest form: None ends it, no join() accounting."""
    while (message := await mailbox.get()) is not None:
        await handler(message)


async def queue_w1(job: Job) -> Sample:
    tally = Tally()
    mailboxes: list[Mailbox] = [asyncio.Queue(CAPACITY) for _ in range(job.agents)]
    workers = [asyncio.create_task(_consume(box, _reader(tally))) for box in mailboxes]
    work = messages(job.n, flat=job.flat)
    await asyncio.sleep(0)
    with clock(job.n * job.agents) as sample:
        for message in work:
            for mailbox in mailboxes:
                await mailbox.put(message)
        for mailbox in mailboxes:
            await mailbox.put(None)
        await asyncio.gather(*workers)
    tally.expect(sample.units)
    return sample


Request = tuple[Payload, "asyncio.Future[Payload]"]


async def queue_w2(job: Job) -> Sample:
    """Queue, future and time-out: a request made by hand."""
    tally = Tally()
    answer = _answerer(tally)
    mailbox: asyncio.Queue[Request] = asyncio.Queue(CAPACITY)

    async def serve() -> None:
        while True:
            message, reply = await mailbox.get()
            reply.set_result(await answer(message))

    server = asyncio.create_task(serve())
    loop = asyncio.get_running_loop()
    work = messages(job.n)
    await asyncio.sleep(0)
    with clock(job.n) as sample:
        for message in work:
            reply: asyncio.Future[Payload] = loop.create_future()
            await mailbox.put((message, reply))
            async with asyncio.timeout(5):
                (await reply)["id"]
    server.cancel()
    tally.expect(job.n)
    return sample


async def queue_w3(job: Job) -> Sample:
    tally = Tally()
    mailboxes: list[Mailbox] = [asyncio.Queue(CAPACITY) for _ in range(STAGES)]

    async def run(number: int) -> None:
        inbox, outbox, stage = mailboxes[number - 1], mailboxes[number], _stage(number)
        while (message := await inbox.get()) is not None:
            await outbox.put(await stage(message))
        await outbox.put(None)

    tasks = [asyncio.create_task(run(i)) for i in range(1, STAGES)]
    tasks.append(asyncio.create_task(_consume(mailboxes[-1], _reader(tally))))
    work = messages(job.n)
    await asyncio.sleep(0)
    with clock(job.n) as sample:
        for message in work:
            await mailboxes[0].put(message)
        await mailboxes[0].put(None)
        await asyncio.gather(*tasks)
    tally.expect(job.n)
    return sample


async def _idle(count: int, *, used: bool = False) -> object:
    read = _reader(Tally())
    mailboxes: list[Mailbox] = [asyncio.Queue(CAPACITY) for _ in range(count)]
    tasks = [asyncio.create_task(_consume(box, read)) for box in mailboxes]
    await asyncio.sleep(0)
    if used:
        message = payload(0)
        for mailbox in mailboxes:
            await mailbox.put(message)
    return mailboxes, tasks


async def queue_idle(job: Job) -> Sample:
    return await traced_bytes(lambda: _idle(job.n), job.n)


async def queue_used(job: Job) -> Sample:
    return await traced_bytes(lambda: _idle(job.n, used=True), job.n)


async def queue_register(job: Job) -> Sample:
    return await registered(lambda: _idle(job.n), job.n)


def asyncio_import(job: Job) -> Sample:
    return import_cpu("asyncio", job)


async def gather_w5(job: Job) -> Sample:
    tally = Tally()

    async def sleeper(knowledge: Payload) -> None:
        tally.total += len(knowledge["text"])  # type: ignore[arg-type]
        await asyncio.sleep(0.05)

    work = messages(job.n)
    walls: list[float] = []
    for _ in range(6):
        with clock(job.n) as sample:
            await asyncio.gather(*(sleeper(message) for message in work))
        walls.append(sample.wall)
    tally.expect(6 * job.n)
    return Sample(metrics={"wall_ms": median(walls[1:]) * 1e3})


async def _latency(job: Job, *, poll: bool) -> Sample:
    arrivals = OpenLoop(job)
    mailbox: Mailbox = asyncio.Queue(CAPACITY)

    async def note(knowledge: Payload) -> None:
        arrivals.arrived(knowledge["id"])  # type: ignore[arg-type]

    worker = asyncio.create_task(_consume(mailbox, note))
    await arrivals.run(mailbox.put, poll=poll)
    await mailbox.put(None)
    await worker
    return arrivals.sample()


async def queue_w6(job: Job) -> Sample:
    return await _latency(job, poll=True)


async def queue_w6_timer(job: Job) -> Sample:
    return await _latency(job, poll=False)


PROGRAMS: Programs = {
    "direct": {"W1": direct_w1, "W2": direct_w2, "W3": direct_w3},
    "queue": {
        "W1": queue_w1,
        "W2": queue_w2,
        "W3": queue_w3,
        "W4-idle": queue_idle,
        "W4-used": queue_used,
        "W4-register": queue_register,
        "W6": queue_w6,
        "W6-timer": queue_w6_timer,
    },
    "asyncio": {"W4-import": asyncio_import},
    "gather": {"W5": gather_w5},
}
