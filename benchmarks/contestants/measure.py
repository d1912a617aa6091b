"""Measuring devices that several contestants share: memory, imports, open-loop arrivals."""

from __future__ import annotations

import asyncio
import gc
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.workloads import Job, Payload, Sample, payload


async def settle() -> None:
    """Let every task that was just started reach its first suspension."""
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()


async def traced_bytes(build: Callable[[], Awaitable[object]], count: int) -> Sample:
    """Bytes per object that ``build`` leaves allocated, as tracemalloc counts them."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    keep = await build()
    await settle()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del keep
    return Sample(metrics={"bytes": (after - before) / count})


def resident_bytes() -> int:
    """Resident set size of this process in bytes (its peak where there is no /proc)."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def registered(build: Callable[[], Awaitable[object]], count: int) -> Sample:
    """CPU microseconds and resident bytes per object that ``build`` makes."""
    gc.collect()
    before, cpu = resident_bytes(), time.process_time()
    keep = await build()
    cpu = time.process_time() - cpu
    await settle()
    grown = resident_bytes() - before
    del keep
    return Sample(metrics={"cpu_us": cpu / count * 1e6, "rss": grown / count})


def import_cpu(module: str, job: Job) -> Sample:
    """CPU milliseconds of ``python -c "import module"``, the interpreter's own start included.

    The first import is not counted: it may have to write byte code.
    """
    command = [sys.executable, "-c", f"import {module}"]
    subprocess.run(command, check=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(job.n):
        subprocess.run(command, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Sample(metrics={"cpu_ms": used / job.n * 1e3})


class OpenLoop:
    """Arrivals at a fixed rate, whether or not the consumer keeps up.

    A latency runs from the moment the message was meant to be sent, so a publisher that was held
    up counts against the contestant (no coordinated omission).
    """

    def __init__(self, job: Job) -> None:
        self.interval = 1.0 / job.n
        self.count = int(job.n * job.seconds)
        self.latencies: list[float] = []
        self._start = 0.0

    def arrived(self, number: int) -> None:
        """Called by the handler with the message's ``id``."""
        self.latencies.append(time.perf_counter() - self._start - number * self.interval)

    async def run(self, send: Callable[[Payload], Awaitable[object]], *, poll: bool) -> None:
        """Send every message at its time, polling the clock or sleeping on a loop timer."""
        base = payload(0)
        now = time.perf_counter
        gc.collect()
        start = self._start = now() + 0.01
        for number in range(self.count):
            due = start + number * self.interval
            # An arrival is a point in time, not an event that somebody sets.
            while (left := due - now()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(0 if poll else left)
            await send({**base, "id": number})

    def sample(self) -> Sample:
        """Percentiles in microseconds.

        Raises:
            RuntimeError: a message never arrived, or arrived twice.
        """
        if len(self.latencies) != self.count:
            raise RuntimeError(f"{self.count} messages sent, {len(self.latencies)} arrived")
        ordered = sorted(self.latencies)
        return Sample(
            metrics={
                "p50": ordered[self.count // 2] * 1e6,
                "p99": ordered[self.count * 99 // 100] * 1e6,
            }
        )
