"""One plot: how far each budget is met or missed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.budgets import Verdict

_MET, _MISSED = "#2a7f62", "#b3422f"


def draw(verdicts: Sequence[Verdict], path: Path) -> bool:
    """Write an SVG of margin per budget on a log scale; False when matplotlib is not installed."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return False
    mpl.use("svg")
    # A fixed salt and no date: the same results draw the same file.
    mpl.rcParams["svg.hashsalt"] = "praval"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.36 * len(verdicts) + 1.4), layout="constrained")
    for row, verdict in enumerate(verdicts):
        ends = [verdict.budget.margin(ratio) for ratio in verdict.ratios]
        colour = _MET if verdict.met else _MISSED
        # Bars start at 1, the threshold: to the right is room left, to the left is debt.
        axes.barh(row, verdict.margin - 1, left=1, color=colour, height=0.6)
        axes.plot((min(ends), max(ends)), (row, row), color="black", linewidth=1)
        budget = verdict.budget
        axes.annotate(
            f"{verdict.ratio:.3g} ({budget.direction} {budget.threshold:g})",
            (1.01, row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
    axes.set_yticks(
        range(len(verdicts)), [f"{v.budget.number}  {v.budget.what}" for v in verdicts], fontsize=8
    )
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("times better than the budget (line: smallest and largest pair)")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True
