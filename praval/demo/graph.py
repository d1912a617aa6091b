"""The dependency graph: which files depend on each other in a circle, which edges say most.

Nodes are names, edges are pairs (source, target): the source depends on the target. Everything
is in the order of names, so the same edges always give the same answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

Edge = tuple[str, str]


def components(nodes: Sequence[str], edges: Iterable[Edge]) -> list[list[str]]:
    """Return the strongly connected components, those that depend on nothing else first.

    Tarjan's algorithm, with a stack of its own: a chain of a thousand files is no problem.
    """
    below = successors(edges)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    open_nodes: list[str] = []
    found: list[list[str]] = []
    closed: set[str] = set()
    for root in nodes:
        if root in index:
            continue
        index[root] = low[root] = len(index)
        open_nodes.append(root)
        work = [(root, iter(below[root]))]
        while work:
            node, rest = work[-1]
            target = next(rest, None)
            if target is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    cut = open_nodes.index(node)
                    found.append(sorted(open_nodes[cut:]))
                    closed.update(open_nodes[cut:])
                    del open_nodes[cut:]
            elif target not in index:
                index[target] = low[target] = len(index)
                open_nodes.append(target)
                work.append((target, iter(below[target])))
            elif target not in closed:
                low[node] = min(low[node], index[target])
    return found


def cycles(nodes: Sequence[str], edges: Iterable[Edge]) -> list[list[str]]:
    """Return the groups of two or more files that depend on each other in a circle."""
    return sorted(group for group in components(nodes, edges) if len(group) > 1)


def upward(nodes: Sequence[str], edges: Iterable[Edge]) -> set[Edge]:
    """Return a small set of edges without which there is no circle left.

    Inside each component the files are put in a row, those that depend on much and that little
    depends on first (after Eades, Lin and Smyth). Of the edges against that row, those stay
    that still close a circle when all others are in place.
    """
    edges = sorted(set(edges))
    against: list[Edge] = []
    for members in (set(group) for group in components(nodes, edges) if len(group) > 1):
        own = [(a, b) for a, b in edges if a in members and b in members]
        rank = {node: n for n, node in enumerate(_row(members, own))}
        against += [(a, b) for a, b in own if rank[a] > rank[b]]
    below = {a: set(targets) for a, targets in successors(set(edges) - set(against)).items()}
    closing = set()
    for a, b in against:
        if _leads(below, b, a):
            closing.add((a, b))
        else:
            below.setdefault(a, set()).add(b)
    return closing


def skeleton(nodes: Sequence[str], edges: Iterable[Edge]) -> set[Edge]:
    """Return the edges that no longer way round replaces (the transitive reduction).

    Edges inside a circle all belong to it.
    """
    edges = sorted(set(edges))
    groups = components(nodes, edges)
    number = {node: n for n, group in enumerate(groups) for node in group}
    below: dict[int, set[int]] = defaultdict(set)
    for a, b in edges:
        if number[a] != number[b]:
            below[number[a]].add(number[b])
    reach: list[int] = []  # bit sets; a component only reaches those before it
    needed: set[tuple[int, int]] = set()
    for n in range(len(groups)):
        seen = 0
        for target in sorted(below[n], reverse=True):
            if not seen >> target & 1:
                needed.add((n, target))
                seen |= reach[target]
        reach.append(seen | 1 << n)
    return {(a, b) for a, b in edges if number[a] == number[b] or (number[a], number[b]) in needed}


def successors(edges: Iterable[Edge]) -> Mapping[str, list[str]]:
    """Return what each node points at, in the order of names; an unknown node at nothing."""
    below: dict[str, list[str]] = defaultdict(list)
    for a, b in sorted(edges):
        below[a].append(b)
    return below


def _leads(below: Mapping[str, set[str]], start: str, goal: str) -> bool:
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        if node == goal:
            return True
        new = below.get(node, set()) - seen
        seen |= new
        waiting += new
    return False


def _row(members: set[str], own: Sequence[Edge]) -> list[str]:
    """Order a component so that few edges lead backwards; sinks go last, sources first."""
    out: dict[str, set[str]] = {node: set() for node in sorted(members)}
    into: dict[str, set[str]] = {node: set() for node in out}
    for a, b in own:
        out[a].add(b)
        into[b].add(a)
    first: list[str] = []
    last: list[str] = []
    while out:
        sink = next((node for node in out if not out[node]), None)
        source = next((node for node in out if not into[node]), None)
        node = sink or source or max(out, key=lambda n: len(out[n]) - len(into[n]))
        (last if node == sink else first).append(node)
        for other in out.pop(node):
            into[other].discard(node)
        for other in into.pop(node):
            if other in out:
                out[other].discard(node)
    return first + last[::-1]
