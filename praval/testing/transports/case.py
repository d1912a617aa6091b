"""Cases: what the contract of transports says, one sentence and one function each."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from praval.testing.transports.harness import TransportHarness
from praval.testing.transports.trial import NonconformityError, Trial, until

Run: TypeAlias = Callable[[Trial], Awaitable[str]]
"""A case's function: raises if the transport does not conform, else returns its verdict."""

YES = "yes"
"""The verdict of a transport that does what the case's sentence says, without reservation."""
NO_NETWORK = "no network"
"""The verdict where there are no connections, TLS and logins."""


@dataclass(frozen=True)
class Case:
    """One thing that a transport must do."""

    name: str
    section: str
    """The first sentence of its module."""
    sentence: str
    """What holds: the row of the matrix."""
    run: Run
    seconds: float
    """It fails if it takes longer."""

    def __repr__(self) -> str:
        return f"<Case {self.name}>"


CASES: dict[str, Case] = {}
"""By name, in the order of the matrix; filled by importing ``praval.testing.transports``."""


def case(seconds: float = 30.0) -> Callable[[Run], Run]:
    """Make a case of an async function that takes a :class:`Trial`; its name is the function's.

    A case never skips: where :class:`Capabilities` (or the harness) says that something cannot
    be done, it asserts what happens instead, and its verdict says so in a few words.
    """

    def declare(function: Run) -> Run:
        name = function.__name__
        module = inspect.getdoc(sys.modules[function.__module__]) or ""
        sentence = " ".join((inspect.getdoc(function) or "").split())
        assert name not in CASES, f"two cases are named {name}"
        assert sentence.endswith("."), f"the case {name} needs a sentence"
        CASES[name] = Case(name, module.partition("\n")[0].rstrip("."), sentence, function, seconds)
        return function

    return declare


class Result(NamedTuple):
    """How one case ended."""

    case: Case
    verdict: str | None
    """A few words; None: it failed."""
    error: Exception | None
    seconds: float

    def __str__(self) -> str:
        said = self.verdict if self.error is None else f"FAILED: {self.error}"
        return f"{self.case.name:<24} {self.seconds:5.2f} s  {said}"


async def run_case(case: Case | str, harness: TransportHarness) -> Result:
    """Run one case; what it raises is in the result."""
    if isinstance(case, str):
        case = CASES[case]
    clock = asyncio.get_running_loop().time
    began = clock()
    verdict: str | None = None
    error: Exception | None = None
    try:
        async with (
            asyncio.timeout(case.seconds),
            _nothing_left(harness.patience),
            Trial(harness, case.name)() as trial,
        ):
            verdict = await case.run(trial)
    except TimeoutError as late:
        error = NonconformityError(f"it did not end within {case.seconds:g} s")
        error.__cause__ = late
    except Exception as failure:  # noqa: BLE001 - whatever a transport raises is its result
        error = failure
    return Result(case, None if error else verdict, error, clock() - began)


@contextlib.asynccontextmanager
async def _nothing_left(patience: float) -> AsyncIterator[None]:
    """Expect that no task, thread or socket outlives the block for long."""
    tasks, threads, sockets = asyncio.all_tasks(), set(threading.enumerate()), _sockets()
    yield

    def left() -> list[str]:
        found = [repr(task) for task in asyncio.all_tasks() - tasks if not task.done()]
        # the loop's own threads, to which it hands blocking calls, stay for the next one
        found += [
            thread.name
            for thread in set(threading.enumerate()) - threads
            if not thread.name.startswith("asyncio_")
        ]
        if (more := _sockets() - sockets) > 0:
            found.append(f"{more} sockets")
        return found

    try:
        await until(lambda: not left(), "nothing is left behind", patience)
    except NonconformityError:
        raise NonconformityError(f"left behind after close(): {', '.join(left())}") from None


def _sockets() -> int:
    """Count the open sockets among the first file descriptors."""
    found = 0
    for number in range(1024):
        with contextlib.suppress(OSError):
            found += stat.S_ISSOCK(os.fstat(number).st_mode)
    return found
