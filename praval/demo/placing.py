"""The order and the columns of a layered drawing: few crossings, straight lines.

Works on rows of cells and the links between neighbouring rows; knows nothing of files.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

COLUMN_GAP = 22.0
BEND_WIDTH = 10.0
BEND_GAP = 4.0
"""Between two edges that pass a row side by side."""

Cell = tuple[str, str, int]
"""(name, "", 0) is a box; (source, target, row) is where an edge passes a row,
or, with source "", where all edges to the target do."""
Link = tuple[Cell, Cell]
"""The upper cell and the lower one."""


def order(rows: list[list[Cell]], links: Sequence[Link]) -> None:
    """Sort each row by the mean place of its neighbours, up and down, and keep the best."""
    above, below = _neighbours(links)
    sweeps = 24 if len(links) < 1500 else 6
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(sweeps):
        downwards = sweep % 2 == 0
        neighbours = above if downwards else below
        for fixed, row in _steps(rows, downwards):
            row.sort(key=_means(row, fixed, neighbours).__getitem__)
        count = _crossings(rows, below)
        if count < fewest:
            best, fewest = [list(row) for row in rows], count
    rows[:] = best


def _means(
    row: Sequence[Cell], fixed: Sequence[Cell], neighbours: Mapping[Cell, list[Cell]]
) -> dict[Cell, float]:
    """Average the places of each cell's neighbours; a cell without any keeps its own place."""
    place = {cell: float(n) for n, cell in enumerate(fixed)}
    scale = max(1, len(fixed) - 1) / max(1, len(row) - 1)
    means = {cell: n * scale for n, cell in enumerate(row)}
    for cell in row:
        near = [place[other] for other in neighbours[cell]]
        if near:
            means[cell] = sum(near) / len(near)
    return means


def _crossings(rows: Sequence[Sequence[Cell]], below: Mapping[Cell, list[Cell]]) -> int:
    total = 0
    for n, row in enumerate(rows[:-1]):
        place = {cell: position for position, cell in enumerate(rows[n + 1])}
        seen: list[int] = []
        for cell in row:
            ends = sorted(place[other] for other in below[cell])
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def columns(
    rows: Sequence[list[Cell]],
    links: Sequence[Link],
    widths: Mapping[str, float],
) -> dict[Cell, float]:
    """Pull each cell towards its neighbours, as far as the order and the widths allow."""

    def wide(cell: Cell) -> float:
        return BEND_WIDTH if cell[1] else widths[cell[0]]

    above, below = _neighbours(links)
    offsets = [_offsets(row, wide) for row in rows]
    x = {
        cell: offset - own[-1] / 2
        for row, own in zip(rows, offsets, strict=True)
        for cell, offset in zip(row, own, strict=True)
    }
    for sweep in range(16):
        downwards = sweep % 2 == 0
        neighbours = above if downwards else below
        directed = list(zip(rows, offsets, strict=True))
        for row, own in (directed if downwards else directed[::-1])[1:]:
            wanted, weights = [], []
            for cell in row:
                near = neighbours[cell] or [cell]
                pull = [8.0 if cell[1] and other[1] else 1.0 for other in near]
                places = [x[other] for other in near]
                wanted.append(sum(map(float.__mul__, pull, places)) / sum(pull))
                weights.append(sum(pull) if neighbours[cell] else 0.1)
            x.update(zip(row, _spread(wanted, weights, own), strict=True))
    left = min((x[cell] - wide(cell) / 2 for cell in x), default=0.0)
    return {cell: value - left for cell, value in x.items()}


def _offsets(row: Sequence[Cell], wide: Callable[[Cell], float]) -> list[float]:
    """Return how far from the first cell of a row each must stand at least."""
    offsets = [0.0]
    for left, right in pairwise(row):
        gap = BEND_GAP if left[1] and right[1] else COLUMN_GAP
        offsets.append(offsets[-1] + (wide(left) + wide(right)) / 2 + gap)
    return offsets


def _spread(
    wanted: Sequence[float], weights: Sequence[float], offsets: Sequence[float]
) -> list[float]:
    """Return the places nearest to those wanted (least squares) that keep order and distance.

    With the distances taken off this is isotonic regression: neighbours in the wrong order
    are pooled at their weighted mean.
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, number of cells
    for value, weight, offset in zip(wanted, weights, offsets, strict=False):
        pool = (value - offset, weight, 1)
        while pools and pools[-1][0] >= pool[0]:
            mean, total, count = pools.pop()
            together = total + pool[1]
            pool = ((mean * total + pool[0] * pool[1]) / together, together, count + pool[2])
        pools.append(pool)
    placed = [mean for mean, _, count in pools for _ in range(count)]
    return [place + offset for place, offset in zip(placed, offsets, strict=False)]


def _steps(rows: Sequence[list[Cell]], downwards: bool) -> Iterable[tuple[list[Cell], list[Cell]]]:
    """Pair each row with the one before it, in the direction of the sweep."""
    directed = list(rows) if downwards else list(reversed(rows))
    return pairwise(directed)


def _neighbours(
    links: Iterable[Link],
) -> tuple[Mapping[Cell, list[Cell]], Mapping[Cell, list[Cell]]]:
    above: dict[Cell, list[Cell]] = defaultdict(list)
    below: dict[Cell, list[Cell]] = defaultdict(list)
    for upper, lower in links:
        above[lower].append(upper)
        below[upper].append(lower)
    return above, below
