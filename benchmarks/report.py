"""From measurements to the table, the machine's description, results.json and the README."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.budgets import BUDGETS, Budget, Verdict
from benchmarks.harness import Measurement
from benchmarks.workloads import WORKLOADS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
README = HERE / "README.md"
START, END = "<!-- results: start -->", "<!-- results: end -->"

_BUSY = 1.5
"""Load average, this program's own 1 included, above which others disturbed a workload."""

_PACKAGES = ("praval-asyncio", "pykka", "autogen-core", "uvloop", "opentelemetry-api")

Line = tuple[Budget, Verdict | None]


def machine() -> dict[str, str]:
    """Python, system and package versions; nothing that names the host or its paths."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        **versions,
    }


def judge(measurements: Mapping[str, Measurement]) -> list[Line]:
    """Each budget whose workload was measured; the verdict is None when a side is lacking."""
    return [
        (budget, budget.judge(measurements[budget.workload].runs))
        for budget in BUDGETS
        if budget.workload in measurements
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _judgement(verdict: Verdict) -> str:
    word = "met" if verdict.met else "**missed**"
    pairs = len(verdict.ratios)
    return word if verdict.agreeing == pairs else f"{word} ({verdict.agreeing} of {pairs} pairs)"


def budget_rows(lines: Sequence[Line]) -> list[list[str]]:
    """The budget table as cells, header first."""
    rows = [["", "Budget", "Threshold", "Measured", "Range of pairs", ""]]
    for budget, verdict in lines:
        row = [budget.number, budget.what, f"{budget.direction} {budget.threshold:g}"]
        if verdict is None:
            row += ["", "", "not measured"]
        else:
            spread = f"{_number(min(verdict.ratios))} to {_number(max(verdict.ratios))}"
            row += [_number(verdict.ratio), spread, _judgement(verdict)]
        rows.append(row)
    return rows


def figure_rows(measurements: Mapping[str, Measurement]) -> list[list[str]]:
    """Median of every figure of every contestant, header first."""
    rows = [["Workload", "What", "Contestant", "Median", "Unit", "Runs"]]
    for name, measurement in measurements.items():
        workload = WORKLOADS[name]
        for metric in workload.metrics:
            for contestant, runs in measurement.runs.items():
                values = [run[metric.name] for run in runs if run is not None]
                if not values:
                    continue
                middle = _number(median(values))
                unit = f"{metric.label} {metric.unit}".strip()
                rows.append([name, workload.title, contestant, middle, unit, str(len(values))])
    return rows


def plain(rows: Sequence[Sequence[str]]) -> str:
    """Cells as aligned text for a terminal."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def load() -> dict[str, Measurement]:
    """The measurements recorded by earlier full runs, in plan order."""
    if not RESULTS.exists():
        return {}
    stored: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())["workloads"]
    return {name: Measurement(**stored[name]) for name in WORKLOADS if name in stored}


def record(new: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """Replace the measured workloads in results.json; returns all that it now holds.

    A ratio never mixes runs: both its sides belong to one workload, which is replaced whole.
    """
    kept = {**load(), **new}
    merged = {name: kept[name] for name in WORKLOADS if name in kept}
    budgets = [
        {
            "number": budget.number,
            "what": budget.what,
            "direction": budget.direction,
            "threshold": budget.threshold,
            "ratio": verdict and round(verdict.ratio, 4),
            "ratios": verdict and [round(ratio, 4) for ratio in verdict.ratios],
            "met": verdict and verdict.met,
        }
        for budget, verdict in judge(merged)
    ]
    document = {
        "machine": machine(),
        "budgets": budgets,
        "workloads": {name: asdict(item) for name, item in merged.items()},
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    return merged


def _neighbours(measurements: Mapping[str, Measurement]) -> str:
    """What the load average says about other programs: the table is worth what this says."""
    disturbed = {n: m.load for n, m in measurements.items() if m.load > _BUSY}
    if not disturbed:
        return "Nothing else was running."
    worst = max(disturbed.values())
    return (
        f"**Other programs were running** (load average up to {worst:g}) during "
        f"{', '.join(disturbed)}: expect a wide range of pairs there, of W5 and W6 most."
    )


def write_readme(measurements: Mapping[str, Measurement]) -> None:
    """Replace what stands between the markers of README.md.

    Raises:
        ValueError: the markers are gone.
    """
    text = README.read_text()
    if START not in text or END not in text:
        raise ValueError(f"{README.name} must hold the lines {START!r} and {END!r}")
    head, _, rest = text.partition(START)
    tail = rest.partition(END)[2]
    facts = ", ".join(f"{key} {value}" for key, value in machine().items())
    body = "\n\n".join(
        [
            f"Machine: {facts}. {_neighbours(measurements)}",
            "### Budgets",
            markdown(budget_rows(judge(measurements))),
            "### Figures",
            "Medians. Compare them within one workload only.",
            markdown(figure_rows(measurements)),
        ]
    )
    README.write_text(f"{head}{START}\n\n{body}\n\n{END}{tail}")
