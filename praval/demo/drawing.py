"""The graph as inline SVG: no script, no outside resource; colours come from the page's style.

Resting on a box (or focusing it) brings out its edges: what it depends on, what depends on it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import PurePosixPath
from typing import NamedTuple

from praval.demo.graph import Edge
from praval.demo.layout import BOX_HEIGHT, Box, Layout, Point, arrange
from praval.demo.sources import printable

CHARACTER = 7.3
SMALL_CHARACTER = 5.8
LONGEST_LABEL = 30
WIDEST_FITTED = 1600.0
"""A wider drawing is not shrunk to the page, where nobody could read it: it is scrolled."""


Way = tuple[Point, Edge]
"""Where an edge goes from a box, and which edge it is, unless it shares the way: ("", "")."""


class Node(NamedTuple):
    """A file in the drawing; ``id`` is a word that is unique on the page."""

    id: str
    name: str
    kind: str
    summary: str


def draw(nodes: Sequence[Node], edges: Iterable[Edge]) -> str:
    """Return the ``<svg>`` element, with the rules that bring out edges in a ``<style>``."""
    edges = sorted(set(edges))
    names = [node.name for node in nodes]
    layout = arrange({name: _width(name) for name in names}, edges)
    ids = {node.name: node.id for node in nodes}
    ports = _ports(layout)
    lines = []
    looks = dict.fromkeys(layout.strong, "strong") | dict.fromkeys(layout.upward, "circle")
    for edge in sorted(edges, key=lambda e: (looks.get(e, ""), e)):
        a, b = edge
        look = looks.get(edge, "faint")
        points = _points(edge, layout, ports)
        lines.append(
            f'<path class="edge {look} o-{ids[a]} i-{ids[b]}" d="{_curve(points)}" '
            f'marker-end="url(#{"tip-circle" if look == "circle" else "tip"})"/>'
        )
    weight = Counter(b for _, b in edges)
    heaviest = max(weight.values(), default=1)
    boxes = [_box(n, layout.boxes[n.name], weight[n.name] / heaviest) for n in nodes]
    note = ""
    if 0 < layout.loners_from < layout.height:
        note = (
            f'<text class="note" x="24" y="{layout.loners_from:.0f}">no dependencies found</text>'
        )
    return "\n".join(
        [
            f'<svg class="graph{" wide" if layout.width > WIDEST_FITTED else ""}" '
            f'viewBox="0 0 {layout.width:.0f} {layout.height:.0f}" '
            f'width="{layout.width:.0f}" height="{layout.height:.0f}" '
            f'role="img" aria-label="{len(nodes)} files and {len(edges)} dependencies" '
            'xmlns="http://www.w3.org/2000/svg">',
            f"<style>{''.join(_rules(node.id) for node in nodes)}</style>",
            f"<defs>{_tip('tip')}{_tip('tip-circle')}</defs>",
            *lines,
            note,
            *boxes,
            "</svg>",
        ]
    )


def label(name: str) -> tuple[str, str]:
    """Return what stands in a box: the file's own name, and above it the folder ("" for none)."""
    path = PurePosixPath(name)
    folder = "" if str(path.parent) == "." else f"{path.parent}/"
    return _shortened(printable(path.name)), _shortened(printable(folder))


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_LABEL:
        return text
    half = LONGEST_LABEL // 2
    return f"{text[: half - 1]}…{text[-half:]}"


def _width(name: str) -> float:
    own, folder = label(name)
    return max(len(own) * CHARACTER, len(folder) * SMALL_CHARACTER, 40.0) + 20.0


def _points(edge: Edge, layout: Layout, ports: Mapping[tuple[Edge, str], float]) -> list[Point]:
    a, b = edge
    start, end = layout.boxes[a], layout.boxes[b]
    half = BOX_HEIGHT / 2 if start.y < end.y else -BOX_HEIGHT / 2
    first = (ports.get((edge, a), start.x), start.y + half)
    last = (ports.get((edge, b), end.x), end.y - half * 1.12)  # room for the tip
    bends = []
    for x, y in layout.routes.get(edge, ()):
        bends += [(x, y - half), (x, y + half)]
    return [first, *bends, last]


def _ports(layout: Layout) -> dict[tuple[Edge, str], float]:
    """Spread the ends of the prominent edges along the sides of the boxes, in the order they go.

    Edges that arrive by the same bend arrive at the same point.
    """
    sides: dict[tuple[str, bool], dict[Way, list[Edge]]] = defaultdict(dict)
    for edge in sorted(layout.strong | layout.upward):
        route = layout.routes[edge]
        for name, other, near in ((*edge, route[:1]), (*edge[::-1], route[-1:])):
            box = layout.boxes[other]
            way: Way = (near[0], ("", "")) if near else ((box.x, box.y), edge)
            below = layout.boxes[name].y < box.y
            sides[name, below].setdefault(way, []).append(edge)
    ports = {}
    for (name, _), ways in sides.items():
        box = layout.boxes[name]
        step = min(14.0, box.width * 0.7 / len(ways))
        for n, way in enumerate(sorted(ways)):
            for edge in ways[way]:
                ports[edge, name] = box.x + (n - (len(ways) - 1) / 2) * step
    return ports


def _curve(points: Sequence[Point]) -> str:
    """Lead a line through ``points`` that is vertical at each of them."""
    (x0, y0), *rest = points
    path = [f"M{x0:.1f} {y0:.1f}"]
    for x, y in rest:
        if abs(x - x0) < 0.05:
            path.append(f"V{y:.1f}")
        else:
            middle = (y0 + y) / 2
            path.append(f"C{x0:.1f} {middle:.1f} {x:.1f} {middle:.1f} {x:.1f} {y:.1f}")
        x0, y0 = x, y
    return "".join(path)


def _box(node: Node, box: Box, weight: float) -> str:
    own, folder = label(node.name)
    left, top = box.x - box.width / 2, box.y - BOX_HEIGHT / 2
    tint = round(4 + 44 * weight)
    title = printable(f"{node.name}: {node.summary}" if node.summary else node.name)
    small = f'<text class="folder" x="{box.x:.1f}" y="{top + 14:.1f}">{escape(folder)}</text>'
    return (
        f'<a id="{node.id}" class="node {node.kind}" href="#row-{node.id}">'
        f"<title>{escape(title)}</title>"
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{box.width:.1f}" height="{BOX_HEIGHT}" '
        f'rx="7" style="--tint:{tint}%"/>{small if folder else ""}'
        f'<text x="{box.x:.1f}" y="{box.y + (11 if folder else 4.2):.1f}">{escape(own)}</text></a>'
    )


def _rules(identity: str) -> str:
    here = f".graph:has(#{identity}:is(:hover,:focus))"
    return f"{here} .o-{identity}{{--on:var(--out)}}{here} .i-{identity}{{--on:var(--in)}}"


def _tip(identity: str) -> str:
    return (
        f'<marker id="{identity}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="6.5" '
        'markerHeight="6.5" orient="auto" markerUnits="userSpaceOnUse">'
        '<path d="M0 0.8L7 4L0 7.2z"/></marker>'
    )
