"""``python -m benchmarks``: measure, print, record, judge."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import replace

from benchmarks import harness, plot, report
from benchmarks.harness import QUICK, Measurement, Options
from benchmarks.workloads import select

_CRASHED, _MISSED = 2, 1
_QUIET = 0.7
"""Load average above which other programs disturb the measurement."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure budgets 1-9 as ratios against asyncio floors, pykka and autogen-core.",
        epilog="Exit code: 2 if a contestant crashed, 1 with --check if a budget was missed or "
        "could not be measured, otherwise 0.",
    )
    parser.add_argument("--only", metavar="W1,W2", help="prefixes of the workloads to run")
    parser.add_argument("--pairs", type=int, metavar="N", help="rounds per workload (default 5)")
    parser.add_argument(
        "--quick", action="store_true", help="short, coarse, printed only: nothing is recorded"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when a budget is missed")
    parser.add_argument("--cpu", type=int, help="core to pin to (default: the last allowed)")
    return parser


def _options(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Options:
    options = QUICK if args.quick else Options()
    if args.pairs is None:
        return options
    if args.pairs < 1:
        parser.error("--pairs must be at least 1")
    return replace(options, pairs=args.pairs)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _trouble(measurements: Mapping[str, Measurement]) -> bool:
    """Say what did not run, each reason once; true when something crashed."""
    missing: dict[str, list[str]] = {}
    crashed: dict[str, list[str]] = {}
    for name, measurement in measurements.items():
        for contestant, package in measurement.missing.items():
            missing.setdefault(package, []).append(f"{name} {contestant}")
        for contestant, text in measurement.crashed.items():
            crashed.setdefault(text, []).append(f"{name} {contestant}")
    for package, places in missing.items():
        print(f"{package} is not installed, left out: {', '.join(places)}")
    for text, places in crashed.items():
        print(f"CRASHED: {', '.join(places)}\n{text}")
    return bool(crashed)


def main() -> int:
    parser = _parser()
    args = parser.parse_args()
    options = _options(args, parser)
    try:
        workloads = select(args.only)
    except ValueError as error:
        parser.error(str(error))
    if (others := harness.load_average()) > _QUIET:
        print(f"note: the load average is {others:.1f}; wall-clock figures (W5, W6) will be noisy")
    began = time.monotonic()
    measured: dict[str, Measurement] = {}
    with harness.pinned(args.cpu):
        for workload in workloads:
            measured[workload.name] = harness.measure(workload, options, _progress)
    _progress("")
    print(report.plain(report.figure_rows(measured)), end="\n\n")
    lines = report.judge(measured)
    print(report.plain(report.budget_rows(lines)).replace("**", ""), end="\n\n")
    crashed = _trouble(measured)
    if not args.quick:
        # What crashed half-way is shown above, and leaves the record as it was.
        everything = report.record({n: m for n, m in measured.items() if not m.crashed})
        report.write_readme(everything)
        verdicts = [verdict for _, verdict in report.judge(everything) if verdict]
        if not verdicts or not plot.draw(verdicts, report.HERE / "results.svg"):
            print("no plot: it needs matplotlib and at least one measured budget")
    print(f"{time.monotonic() - began:.0f} s")
    if crashed:
        return _CRASHED
    met = all(verdict is not None and verdict.met for _, verdict in lines)
    return _MISSED if args.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
