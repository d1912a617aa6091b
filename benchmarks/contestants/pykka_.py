"""pykka: actors on threads, unbounded inboxes, messages passed by reference."""

from __future__ import annotations

import threading
from typing import Any

import pykka

from benchmarks.workloads import STAGES, Job, Programs, Sample, Tally, clock, messages

_TOTAL = "total"


class _Reader(pykka.ThreadingActor):
    """Adds up what it reads on its own: actors share nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._tally = Tally()

    def on_receive(self, message: Any) -> Any:
        if message is _TOTAL:
            return self._tally.total
        self._tally.total += len(message["text"])
        return None


class _Answerer(pykka.ThreadingActor):
    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def on_receive(self, message: Any) -> Any:
        self._tally.total += len(message["text"])
        return {"type": "answer", "id": message["id"]}


class _Stage(pykka.ThreadingActor):
    def __init__(self, number: int, following: pykka.ActorRef[Any]) -> None:
        super().__init__()
        self._type = f"stage-{number + 1}"
        self._following = following

    def on_receive(self, message: Any) -> Any:
        self._following.tell({**message, "type": self._type})


class _Last(pykka.ThreadingActor):
    def __init__(self, tally: Tally, count: int, done: threading.Event) -> None:
        super().__init__()
        self._tally, self._left, self._done = tally, count, done

    def on_receive(self, message: Any) -> Any:
        self._tally.total += len(message["text"])
        self._left -= 1
        if not self._left:
            self._done.set()


def w1(job: Job) -> Sample:
    actors = [_Reader.start() for _ in range(job.agents)]
    work = messages(job.n, flat=job.flat)
    tally = Tally()
    with clock(job.n * job.agents) as sample:
        for message in work:
            for actor in actors:
                actor.tell(message)
        for actor in actors:
            tally.total += actor.ask(_TOTAL, block=True)
    pykka.ActorRegistry.stop_all()
    tally.expect(sample.units)
    return sample


def w2(job: Job) -> Sample:
    tally = Tally()
    actor = _Answerer.start(tally)
    work = messages(job.n)
    with clock(job.n) as sample:
        for message in work:
            actor.ask(message, block=True, timeout=5)["id"]
    pykka.ActorRegistry.stop_all()
    tally.expect(job.n)
    return sample


def w3(job: Job) -> Sample:
    tally, done = Tally(), threading.Event()
    first: pykka.ActorRef[Any] = _Last.start(tally, job.n, done)
    for number in range(STAGES - 1, 0, -1):
        first = _Stage.start(number, first)
    work = messages(job.n)
    with clock(job.n) as sample:
        for message in work:
            first.tell(message)
        done.wait()
    pykka.ActorRegistry.stop_all()
    tally.expect(job.n)
    return sample


PROGRAMS: Programs = {"pykka": {"W1": w1, "W2": w2, "W3": w3}}
