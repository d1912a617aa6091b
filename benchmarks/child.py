"""One measurement in a fresh process: ``python -m benchmarks.child WORKLOAD CONTESTANT``.

Prints one JSON object: ``{"metrics": {...}}``, or ``{"missing": "package"}`` when the contestant is
not installed. Any other failure is a traceback and a non-zero exit code.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import math
from collections.abc import Callable
from dataclasses import replace
from statistics import median

from benchmarks.contestants import load
from benchmarks.workloads import RATE, RELATIVE, WORKLOADS, Job, Program, Sample, Workload

_OPTIONAL = {"autogen_core", "opentelemetry", "praval", "pykka", "uvloop"}
"""Packages whose absence leaves a contestant out instead of failing the run."""

_FIRST_UNITS = 1_000
_LARGEST_STEP = 32
_SLICES = 16
"""Pairs of slices in a relative measurement."""


def split(contestant: str) -> tuple[str, frozenset[str]]:
    """``"praval+uvloop"`` -> ``("praval", {"uvloop"})``."""
    base, *modifiers = contestant.split("+")
    return base, frozenset(modifiers)


def runner(program: Program, modifiers: frozenset[str]) -> Callable[[Job], Sample]:
    """``program`` as a plain call; a coroutine gets a loop of its own each time."""
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if "uvloop" in modifiers:
        import uvloop

        loop_factory = uvloop.new_event_loop

    def run(job: Job) -> Sample:
        outcome = program(job)
        if isinstance(outcome, Sample):
            return outcome
        if not inspect.iscoroutine(outcome):
            raise TypeError(f"a program must return a Sample or a coroutine, not {outcome!r}")
        with asyncio.Runner(loop_factory=loop_factory) as loop:
            sample: Sample = loop.run(outcome)
            return sample

    return run


def scaled(run: Callable[[Job], Sample], job: Job, target: float) -> tuple[Job, Sample]:
    """Repeat with a growing ``n`` until one run takes at least 0.6 of ``target`` CPU seconds.

    The smaller runs before it warm caches, specialised byte code and lazy imports.
    """
    job = replace(job, n=max(8, _FIRST_UNITS // job.agents))
    while True:
        sample = run(job)
        if sample.cpu >= 0.6 * target:
            return job, sample
        step = min(_LARGEST_STEP, 1.1 * target / max(sample.cpu, 1e-6))
        job = replace(job, n=math.ceil(job.n * step))


def relative(
    run: Callable[[Job], Sample],
    job: Job,
    base: Callable[[Job], Sample],
    base_job: Job,
    target: float,
) -> float:
    """Rate of ``run`` over the rate of ``base``: the median of pairs of alternating slices."""
    job, _ = scaled(run, job, target / _SLICES)
    base_job = replace(base_job, n=job.n)
    ratios: list[float] = []
    for turn in range(_SLICES):
        if turn % 2:
            cpu, base_cpu = run(job).cpu, base(base_job).cpu
        else:
            base_cpu, cpu = base(base_job).cpu, run(job).cpu
        ratios.append(base_cpu / cpu)
    return median(ratios)


def measure(workload: Workload, contestant: str, target: float, seconds: float) -> dict[str, float]:
    """The metrics of one contestant on one workload, measured in this process."""
    run, job = prepared(workload, contestant, seconds)
    if workload.n is not None:
        return run(job).metrics
    if workload.against is not None:
        base, base_job = prepared(workload, workload.against, seconds)
        return {RELATIVE.name: relative(run, job, base, base_job, target)}
    _, sample = scaled(run, job, target)
    return {RATE.name: sample.units / sample.cpu}


def prepared(
    workload: Workload, contestant: str, seconds: float = 3.0
) -> tuple[Callable[[Job], Sample], Job]:
    """What to call, and the job to call it with; ``n`` is 0 when it is still to be scaled."""
    base, modifiers = split(contestant)
    job = Job(
        n=workload.n or 0,
        agents=workload.agents,
        flat=workload.flat,
        tracing="tracing" in modifiers,
        seconds=seconds,
    )
    return runner(load(base, workload.kind), modifiers), job


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.child", description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("contestant")
    parser.add_argument("--target", type=float, default=0.5, help="CPU seconds to measure")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of an open-loop run")
    args = parser.parse_args()
    try:
        metrics = measure(WORKLOADS[args.workload], args.contestant, args.target, args.seconds)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _OPTIONAL:
            raise
        print(json.dumps({"missing": error.name}))
        return
    print(json.dumps({"metrics": metrics}))


if __name__ == "__main__":
    main()
