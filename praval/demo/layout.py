"""Where the boxes and lines of the graph go: a layered drawing, after Sugiyama.

Files stand in rows, each above everything it depends on. Only the edges of the skeleton
(:func:`praval.demo.graph.skeleton`) shape the drawing and are led around the boxes; the others
run straight behind them. No random numbers: the same graph is always drawn the same way.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from praval.demo.graph import Edge, skeleton, successors, upward
from praval.demo.placing import COLUMN_GAP, Cell, Link, columns, order

BOX_HEIGHT = 38.0
ROW_GAP = 54.0
MARGIN = 24.0

Point = tuple[float, float]


class Box(NamedTuple):
    """A file's place; x and y are its centre."""

    x: float
    y: float
    width: float


class Layout(NamedTuple):
    """A drawing of ``width`` x ``height``; ``routes`` are the points that edges pass in between."""

    width: float
    height: float
    boxes: dict[str, Box]
    routes: dict[Edge, list[Point]]
    upward: set[Edge]
    """Edges that close a circle; they lead up."""
    strong: set[Edge]
    """Edges that lead down and that no longer way round replaces."""
    loners_from: float
    """Where the rows of files without any edge begin; equals ``height`` when there are none."""


def arrange(widths: Mapping[str, float], edges: Iterable[Edge]) -> Layout:
    """Place a box of the given width for each file, so that edges lead downwards.

    Edges of a circle that must lead upwards are routed all the same.
    """
    edges = sorted(set(edges))
    names = sorted(widths)
    touched = {name for edge in edges for name in edge}
    linked = [name for name in names if name in touched]
    against = upward(linked, edges)
    downward = sorted({(b, a) if (a, b) in against else (a, b) for a, b in edges})
    needed = skeleton(linked, downward)
    shaping = needed | {(b, a) for a, b in against}
    level = _levels(linked, downward)
    rows, links = _rows(linked, shaping, against, level)
    order(rows, links)
    x = columns(rows, links, widths)
    y = [MARGIN + BOX_HEIGHT / 2 + n * (BOX_HEIGHT + ROW_GAP) for n in range(len(rows))]
    top = max(level.values(), default=-1)
    boxes = {
        name: Box(x[(name, "", 0)] + MARGIN, y[top - level[name]], widths[name]) for name in linked
    }
    width = max((box.x + box.width / 2 for box in boxes.values()), default=0.0) + MARGIN
    routes = {}
    for a, b in edges:
        down = (b, a) if (a, b) in against else (a, b)
        if down in shaping:
            between = range(top - level[down[0]] + 1, top - level[down[1]])
            points = [(x[_bend(*down, row, against)] + MARGIN, y[row]) for row in between]
            width = max([width, *(point[0] + MARGIN for point in points)])
            routes[(a, b)] = points if down == (a, b) else points[::-1]
    loners_from = len(rows) * (BOX_HEIGHT + ROW_GAP) - (ROW_GAP if rows else 0) + 2 * MARGIN
    width = max(width, 640.0)
    loners, height = _shelve([n for n in names if n not in touched], widths, width, loners_from)
    strong = needed.intersection(edges) - against
    return Layout(width, height, boxes | loners, routes, against, strong, loners_from)


def _levels(names: Sequence[str], downward: Sequence[Edge]) -> dict[str, int]:
    """Count rows from below; a full row sends the next file one row up."""
    room = max(6, math.ceil(1.4 * math.sqrt(len(names))))
    below = successors(downward)
    level: dict[str, int] = {}
    used: dict[int, int] = defaultdict(int)
    for name in _bottom_up(names, below):
        row = max((level[target] + 1 for target in below[name]), default=0)
        while used[row] >= room:
            row += 1
        level[name] = row
        used[row] += 1
    return level


def _bottom_up(names: Sequence[str], below: Mapping[str, list[str]]) -> list[str]:
    """List every file after all that it depends on, the least dependent first."""
    depth: dict[str, int] = {}
    for root in names:
        stack = [root]
        while stack:
            name = stack[-1]
            missing = [target for target in below[name] if target not in depth]
            if missing:
                stack += missing
            else:
                depth[name] = max((depth[target] + 1 for target in below[name]), default=0)
                stack.pop()
    return sorted(names, key=lambda name: (depth[name], name))


def _rows(
    names: Sequence[str], shaping: Iterable[Edge], against: set[Edge], level: Mapping[str, int]
) -> tuple[list[list[Cell]], list[Link]]:
    """Lay out rows from the top, with a cell for each row that an edge passes.

    Edges that lead down to the same file share their cells, like roads that join. To begin
    with, what passes a row passes in its middle.
    """
    top = max(level.values(), default=-1)
    boxes: list[list[Cell]] = [[] for _ in range(top + 1)]
    bends: list[dict[Cell, None]] = [{} for _ in range(top + 1)]
    for name in names:
        boxes[top - level[name]].append((name, "", 0))
    links: dict[Link, None] = {}
    for a, b in sorted(shaping):
        upper: Cell = (a, "", 0)
        for row in range(top - level[a] + 1, top - level[b]):
            bend = _bend(a, b, row, against)
            bends[row][bend] = None
            links[upper, bend] = None
            upper = bend
        links[upper, (b, "", 0)] = None
    rows = [
        [*box[: len(box) // 2], *bend, *box[len(box) // 2 :]]
        for box, bend in zip(boxes, bends, strict=True)
    ]
    return rows, list(links)


def _bend(a: str, b: str, row: int, against: set[Edge]) -> Cell:
    return (a if (b, a) in against else "", b, row)


def _shelve(
    names: Sequence[str], widths: Mapping[str, float], width: float, top: float
) -> tuple[dict[str, Box], float]:
    """Fill rows from left to right with the files that no edge touches."""
    boxes: dict[str, Box] = {}
    left, y = MARGIN, top + MARGIN + BOX_HEIGHT / 2
    for name in names:
        if left > MARGIN and left + widths[name] > width - MARGIN:
            left, y = MARGIN, y + BOX_HEIGHT + COLUMN_GAP / 2
        boxes[name] = Box(left + widths[name] / 2, y, widths[name])
        left += widths[name] + COLUMN_GAP / 2
    return boxes, y + BOX_HEIGHT / 2 + MARGIN if boxes else top
