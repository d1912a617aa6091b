"""Fresh processes on one core, contestants interleaved, order reversed every other round."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.workloads import Workload

ROOT = Path(__file__).resolve().parent.parent
_CHILD_TIMEOUT = 180.0
"""Seconds after which one child counts as hung."""
_TAIL = 12
"""Lines of a crashed child's standard error that are shown."""


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure."""

    pairs: int = 5
    target: float = 0.5
    """CPU seconds of measured work per process."""
    seconds: float = 3.0
    """Length of an open-loop run."""


QUICK = Options(pairs=2, target=0.15, seconds=1.0)


@dataclass(slots=True)
class Measurement:
    """Everything one workload gave: per contestant one result per round, in round order."""

    workload: str
    runs: dict[str, list[dict[str, float] | None]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Contestant -> package that is not installed."""
    crashed: dict[str, str] = field(default_factory=dict)
    """Contestant -> the end of its standard error."""
    load: float = 0.0
    """Load average of the minute before it ended; this program's own part is about 1."""


@contextmanager
def pinned(cpu: int | None = None) -> Iterator[None]:
    """Pin this process, and with it every child, to one core: the last allowed, or ``cpu``.

    Does nothing where the system has no affinity call (macOS, Windows).
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed) if cpu is None else cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def load_average() -> float:
    """Processes that wanted to run in the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def run_child(
    workload: Workload, contestant: str, options: Options, seed: int
) -> dict[str, dict[str, float]] | dict[str, str]:
    """One fresh process: ``{"metrics": ...}``, ``{"missing": package}`` or ``{"crashed": text}``.

    The hash seed is the round's number: the same for both sides of a pair, different between pairs.
    """
    command = [sys.executable, "-m", "benchmarks.child", workload.name, contestant]
    command += ["--target", str(options.target), "--seconds", str(options.seconds)]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    # Byte code must be cached, or every import would be timed with its compilation.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_CHILD_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"crashed": f"hung: no result after {_CHILD_TIMEOUT:.0f} s"}
    if done.returncode != 0 or not done.stdout.strip():
        return {
            "crashed": "\n".join(done.stderr.splitlines()[-_TAIL:])
            or f"exit code {done.returncode}"
        }
    answer: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(
    workload: Workload, options: Options, progress: Callable[[str], None] = lambda _: None
) -> Measurement:
    """Run every contestant once per round; a missing or crashed one is left out of later rounds."""
    result = Measurement(workload.name, runs={name: [] for name in workload.contestants})
    for turn in range(max(1, round(options.pairs * workload.rounds))):
        order = workload.contestants if turn % 2 == 0 else workload.contestants[::-1]
        for name in order:
            if name in result.missing or name in result.crashed:
                continue
            progress(f"{workload.name} round {turn + 1}: {name}")
            answer = run_child(workload, name, options, seed=turn + 1)
            metrics = answer.get("metrics")
            if isinstance(metrics, dict):
                result.runs[name].append({key: _tidy(value) for key, value in metrics.items()})
                continue
            result.runs[name].append(None)
            kept = result.missing if "missing" in answer else result.crashed
            kept[name] = str(answer.get("missing") or answer.get("crashed"))
    result.load = round(load_average(), 1)
    return result


def _tidy(value: float) -> float:
    """Five significant digits: more is noise in a file under version control."""
    return float(f"{value:.5g}")
