"""Circles, the skeleton of a graph, and where its boxes and lines go."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from praval.demo.graph import Edge, components, cycles, skeleton, upward
from praval.demo.layout import BOX_HEIGHT, MARGIN, arrange

NODES = [f"n{i}" for i in range(9)]
graphs = st.sets(
    st.tuples(st.sampled_from(NODES), st.sampled_from(NODES)).filter(lambda e: e[0] != e[1])
)


def reach(edges: Iterable[Edge]) -> set[Edge]:
    """All (a, b) such that a way leads from a to b: the slow, obvious closure."""
    closed = set(edges)
    while more := {(a, d) for a, b in closed for c, d in closed if b == c} - closed:
        closed |= more
    return closed


@given(graphs)
def test_components_are_the_mutually_reachable(edges: set[Edge]) -> None:
    """Two files are in one component exactly when each reaches the other; lower ones come first."""
    found = components(NODES, edges)
    assert sorted(itertools.chain.from_iterable(found)) == NODES
    ways = reach(edges)
    number = {node: n for n, group in enumerate(found) for node in group}
    for a, b in itertools.permutations(NODES, 2):
        assert (number[a] == number[b]) == ((a, b) in ways and (b, a) in ways)
    assert all(number[a] >= number[b] for a, b in edges)
    assert cycles(NODES, edges) == sorted(group for group in found if len(group) > 1)


@given(graphs)
def test_without_the_upward_edges_there_is_no_circle_and_none_is_needless(edges: set[Edge]) -> None:
    """The set is sufficient, and putting any one of it back closes a circle."""
    against = upward(NODES, edges)
    rest = edges - against
    assert against <= edges
    assert not any(a == b for a, b in reach(rest))
    for a, b in against:
        assert (b, a) in reach(rest)


@given(graphs)
def test_the_skeleton_reaches_as_far_with_as_few(edges: set[Edge]) -> None:
    """On a graph without circles: same reach, and no edge of it can go."""
    rest = edges - upward(NODES, edges)
    needed = skeleton(NODES, rest)
    assert needed <= rest
    assert reach(needed) == reach(rest)
    for edge in needed:
        assert edge not in reach(needed - {edge})


def test_a_long_chain_is_no_problem() -> None:
    """A chain of files far longer than Python's recursion limit."""
    names = [f"{n:05}" for n in range(2000)]
    chain = list(itertools.pairwise(names))
    assert len(components(names, chain)) == 2000
    assert upward(names, [*chain, (names[-1], names[0])]) != set()
    assert cycles(names, [*chain, (names[-1], names[0])]) == [names]


@settings(deadline=None)
@given(graphs, st.lists(st.floats(40, 260), min_size=9, max_size=9))
def test_boxes_do_not_overlap_and_edges_lead_down(edges: set[Edge], sizes: list[float]) -> None:
    """Every box is inside the drawing, apart from all others; only upward edges lead up."""
    widths = dict(zip(NODES, sizes, strict=True))
    layout = arrange(widths, edges)
    assert layout.boxes.keys() == widths.keys()
    for box in layout.boxes.values():
        assert box.x - box.width / 2 >= MARGIN - 0.01
        assert box.x + box.width / 2 <= layout.width - MARGIN + 0.01
        assert BOX_HEIGHT / 2 <= box.y <= layout.height - BOX_HEIGHT / 2
    for a, b in itertools.combinations(layout.boxes.values(), 2):
        assert abs(a.y - b.y) >= BOX_HEIGHT or abs(a.x - b.x) >= (a.width + b.width) / 2 - 0.01
    for a, b in edges:
        assert (layout.boxes[a].y > layout.boxes[b].y) == ((a, b) in layout.upward)


@settings(deadline=None)
@given(graphs)
def test_prominent_edges_pass_no_box(edges: set[Edge]) -> None:
    """Where a led edge passes a row it keeps clear of the boxes in it."""
    layout = arrange(dict.fromkeys(NODES, 80.0), edges)
    for edge in layout.strong | layout.upward:
        for x, y in layout.routes[edge]:
            for box in layout.boxes.values():
                assert abs(box.y - y) > 1 or abs(box.x - x) >= box.width / 2


@given(graphs, st.integers())
def test_the_same_graph_is_drawn_the_same_way(edges: set[Edge], seed: int) -> None:
    """The order in which edges and files arrive does not matter."""
    shuffled, names = sorted(edges), list(NODES)
    random.Random(seed).shuffle(shuffled)
    random.Random(seed).shuffle(names)
    assert arrange(dict.fromkeys(names, 60.0), shuffled) == arrange(
        dict.fromkeys(NODES, 60.0), edges
    )


@pytest.mark.parametrize("count", [0, 1, 40])
def test_files_without_edges_stand_in_rows_of_their_own(count: int) -> None:
    """No edge at all is a drawing too."""
    layout = arrange({f"f{n}": 100.0 for n in range(count)}, [])
    assert len(layout.boxes) == count
    assert layout.width <= 1000
    assert (layout.loners_from < layout.height) is (count > 0)


def test_a_star_of_many_files_does_not_become_one_endless_row() -> None:
    """A hundred tests of one module are spread over rows."""
    edges = {(f"test_{n}.py", "core.py") for n in range(100)}
    layout = arrange(dict.fromkeys([*(a for a, _ in edges), "core.py"], 100.0), edges)
    assert layout.width < 3000
