"""Where a workload spends its CPU: ``python -m benchmarks.profile_reef W1x100``.

Two views, each of a run of its own. Samples (``SIGPROF``, on CPU time) barely slow the program
down, so their shares are true. The tracer (``cProfile``) triples the cost of small functions, but
counts calls exactly: calls per delivery show work that should happen once per message.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePath
from types import FrameType

from benchmarks.child import prepared, scaled
from benchmarks.workloads import WORKLOADS, Sample

_INTERVAL = 0.001
"""CPU seconds between samples; the system may round it up to its own tick."""


def _place(code_name: str, filename: str, line: int) -> str:
    path = PurePath(filename)
    return f"{path.parent.name}/{path.name}:{line} {code_name}"


class Sampler:
    """Counts, per function and per line, how often it was running when the timer fired."""

    def __init__(self) -> None:
        self.functions: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()

    def _tick(self, _signal: int, frame: FrameType | None) -> None:
        if frame is None:
            return
        code = frame.f_code
        self.functions[_place(code.co_qualname, code.co_filename, code.co_firstlineno)] += 1
        self.lines[_place(code.co_qualname, code.co_filename, frame.f_lineno)] += 1

    def run(self, work: Callable[[], Sample]) -> Sample:
        """Run ``work`` under the timer."""
        previous = signal.signal(signal.SIGPROF, self._tick)
        signal.setitimer(signal.ITIMER_PROF, _INTERVAL, _INTERVAL)
        try:
            return work()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, previous)


def _print_shares(title: str, counts: Counter[str], top: int) -> None:
    total = sum(counts.values()) or 1
    print(f"\n{title} ({total} samples)")
    for place, count in counts.most_common(top):
        print(f"  {count / total:6.1%}  {place}")


def _print_calls(profile: cProfile.Profile, units: int, top: int) -> None:
    stats: dict[tuple[str, int, str], Sequence[float]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = sum(entry[2] for entry in stats.values()) or 1.0
    print("\ncalls per unit, own time and share under the tracer")
    by_own_time = sorted(stats.items(), key=lambda item: item[1][2], reverse=True)
    for (filename, line, name), (_, calls, own, *_rest) in by_own_time[:top]:
        place = name if filename == "~" else _place(name, filename, line)
        print(f"  {calls / units:8.3f}  {own / units * 1e6:8.3f} us  {own / total:6.1%}  {place}")


def main() -> None:
    rated = [name for name, workload in WORKLOADS.items() if workload.n is None]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_reef")
    parser.add_argument("workload", choices=rated)
    parser.add_argument("--contestant", default="praval", help="also praval+uvloop, queue, ...")
    parser.add_argument("--top", type=int, default=25, help="lines per table")
    parser.add_argument("--target", type=float, default=2.0, help="CPU seconds to sample")
    args = parser.parse_args()

    workload = WORKLOADS[args.workload]
    run, job = prepared(workload, args.contestant)
    job, sample = scaled(run, job, args.target)
    each = sample.cpu / sample.units * 1e6
    print(f"{workload.name} {args.contestant}: {sample.units} units, {each:.3f} us of CPU each")

    sampler = Sampler()
    sampler.run(lambda: run(job))
    _print_shares("functions, own time", sampler.functions, args.top)
    _print_shares("lines", sampler.lines, args.top)

    # A tenth of the size: the tracer is slow, and counts need no long run.
    short = replace(job, n=max(1, job.n // 10))
    profile = cProfile.Profile()
    traced = profile.runcall(run, short)
    _print_calls(profile, traced.units, args.top)


if __name__ == "__main__":
    main()
