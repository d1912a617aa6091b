"""What is measured: the payload, the workloads, and the types every contestant shares.

This module imports neither praval nor a peer, so that the parent process stays light and a child
loads only the contestant it measures.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

CAPACITY = 1000
"""Bound of every queue in the floors: praval's default mailbox is bounded too."""

STAGES = 5
"""Stages of the W3 pipeline, the one that only reads included."""

_SENTENCE = (
    "A callback that blocks the event loop delays every other callback, "
    "which is why long work belongs on a worker thread or in a process."
)
_SOURCE = "library/asyncio/base_events.py"
_TAGS = ["asyncio", "event loop", "scheduling", "threads"]

Payload = dict[str, object]


def payload(number: int, *, flat: bool = False) -> Payload:
    """A message of six keys, about 300 bytes as JSON: flat scalars and one nested list.

    With ``flat`` the list is joined into one string, which leaves nothing nested to copy or decode.
    """
    return {
        "type": "stage-1",
        "id": number,
        "text": _SENTENCE,
        "source": _SOURCE,
        "score": 0.875,
        "tags": ", ".join(_TAGS) if flat else list(_TAGS),
    }


def messages(count: int, *, flat: bool = False) -> list[Payload]:
    """``count`` messages over 256 different dicts, made before the clock starts."""
    pool = [payload(i, flat=flat) for i in range(min(count, 256))]
    return [pool[i % len(pool)] for i in range(count)]


class Tally:
    """What the handlers read, added up: proof that every delivery reached a handler."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0

    def expect(self, deliveries: int) -> None:
        """Check the number of handled deliveries.

        Raises:
            RuntimeError: a contestant lost or repeated a delivery, so its rate means nothing.
        """
        expected = deliveries * len(_SENTENCE)
        if self.total != expected:
            seen = self.total / len(_SENTENCE)
            raise RuntimeError(f"{deliveries} deliveries expected, {seen:g} reached a handler")


@dataclass(frozen=True, slots=True)
class Job:
    """One request to a contestant's program."""

    n: int
    """Messages to publish (or agents to register, for the memory workloads)."""
    agents: int = 1
    flat: bool = False
    tracing: bool = False
    """praval only: ask for the tracing interceptor, with no tracer provider configured."""
    seconds: float = 3.0
    """Length of an open-loop run."""


@dataclass(slots=True)
class Sample:
    """What one program measured."""

    units: int = 0
    """Deliveries, requests or items finished within the clock."""
    cpu: float = 0.0
    """CPU seconds of the process, all its threads."""
    wall: float = 0.0
    """Wall-clock seconds."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Figures other than a rate, by metric name."""


Program = Callable[[Job], "Awaitable[Sample] | Sample"]
Programs = Mapping[str, Mapping[str, Program]]
"""Contestant name -> workload kind -> program."""


@contextmanager
def clock(units: int) -> Iterator[Sample]:
    """Time the body in CPU and wall seconds into the yielded sample."""
    sample = Sample(units=units)
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    yield sample
    sample.cpu = time.process_time() - cpu
    sample.wall = time.perf_counter() - wall


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of a workload and its unit."""

    name: str
    unit: str
    label: str = ""
    """Printed before the unit, where the unit alone does not say what it is."""


RATE = Metric("rate", "/s of CPU")
RELATIVE = Metric("relative", "of the rate without hooks")


@dataclass(frozen=True, slots=True)
class Workload:
    """One line of the measurement plan: which contestants do what, and what is read off.

    A contestant is a name of ``PROGRAMS`` in ``benchmarks.contestants``; ``+uvloop`` runs it on
    uvloop, ``+tracing`` with praval's tracing interceptor.
    """

    name: str
    kind: str
    title: str
    contestants: tuple[str, ...]
    metrics: tuple[Metric, ...] = (RATE,)
    agents: int = 1
    flat: bool = False
    n: int | None = None
    """Fixed size; None lets the child scale it to the wanted measuring time."""
    rounds: float = 1.0
    """Multiplies the number of pairs, for a ratio that must be known finely."""
    against: str | None = None
    """Measure the rate relative to this contestant, in alternating slices of one process.

    Two processes of the very same code differ by a tenth, which hides a difference of 5 %.
    """


_FLOORS = ("direct", "queue")
_PEERS = ("pykka", "autogen-core")
_AGENTS = 10_000
_LATENCY = (Metric("p50", "us", "p50"), Metric("p99", "us", "p99"))

_WORKLOADS = (
    Workload("W1x1", "W1", "one publisher, 1 agent", (*_FLOORS, "praval", *_PEERS)),
    Workload("W1x10", "W1", "one publisher, 10 agents", (*_FLOORS, "praval", *_PEERS), agents=10),
    Workload(
        "W1x100", "W1", "one publisher, 100 agents", (*_FLOORS, "praval", *_PEERS), agents=100
    ),
    Workload("W1x1-flat", "W1", "as W1x1, flat payload", (*_FLOORS, "praval"), flat=True),
    Workload(
        "W1x100-flat",
        "W1",
        "as W1x100, flat payload",
        (*_FLOORS, "praval"),
        agents=100,
        flat=True,
    ),
    Workload(
        "W2",
        "W2",
        "sequential request and reply",
        (
            "direct",
            "queue",
            "queue+uvloop",
            "praval",
            "praval+uvloop",
            *_PEERS,
        ),
    ),
    Workload("W3", "W3", f"pipeline of {STAGES} stages, items", (*_FLOORS, "praval", *_PEERS)),
    Workload(
        "W4-idle",
        "W4-idle",
        "one of 10,000 idle agents",
        ("queue", "praval"),
        (Metric("bytes", "B"),),
        n=_AGENTS,
    ),
    Workload(
        "W4-used",
        "W4-used",
        "the same after one delivery each",
        ("queue", "praval"),
        (Metric("bytes", "B"),),
        n=_AGENTS,
    ),
    Workload(
        "W4-register",
        "W4-register",
        "declare and register one of 10,000 agents",
        ("queue", "praval"),
        (Metric("cpu_us", "us of CPU"), Metric("rss", "B of RSS")),
        n=_AGENTS,
    ),
    Workload(
        "W4-import",
        "W4-import",
        "python -c 'import x'",
        ("asyncio", "praval"),
        (Metric("cpu_ms", "ms of CPU"),),
        n=8,
    ),
    Workload(
        "W5",
        "W5",
        "1,000 handlers that sleep 50 ms at once",
        ("gather", "praval", "autogen-core"),
        (Metric("wall_ms", "ms"),),
        n=CAPACITY,
    ),
    Workload(
        "W6",
        "W6",
        "open loop at 10,000/s, publisher polls the clock",
        ("queue", "praval"),
        _LATENCY,
        n=10_000,
        rounds=2.0,
    ),
    Workload(
        "W6-timer",
        "W6-timer",
        "open loop at 10,000/s, publisher sleeps on a loop timer",
        ("queue", "praval"),
        _LATENCY,
        n=10_000,
        rounds=2.0,
    ),
    Workload(
        "W9x1",
        "W1",
        "as W1x1, tracing installed but off",
        ("praval+tracing",),
        (RELATIVE,),
        rounds=3.0,
        against="praval",
    ),
    Workload(
        "W9x100",
        "W1",
        "as W1x100, tracing installed but off",
        ("praval+tracing",),
        (RELATIVE,),
        agents=100,
        rounds=3.0,
        against="praval",
    ),
)

WORKLOADS: Mapping[str, Workload] = {workload.name: workload for workload in _WORKLOADS}


def select(only: str | None) -> list[Workload]:
    """The workloads of a comma-separated list, or all; ``W1`` stands for all whose name begins so.

    Raises:
        ValueError: a name that is neither a workload nor the beginning of one.
    """
    if not only:
        return list(WORKLOADS.values())
    chosen: set[str] = set()
    for wanted in filter(None, (part.strip() for part in only.split(","))):
        found = {wanted} & WORKLOADS.keys() or {n for n in WORKLOADS if n.startswith(wanted)}
        if not found:
            raise ValueError(f"unknown workload {wanted!r}; known: {', '.join(WORKLOADS)}")
        chosen |= found
    return [workload for name, workload in WORKLOADS.items() if name in chosen]
