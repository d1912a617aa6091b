"""How a provider is asked when it falters: retries, limits, and a circuit that opens.

A :class:`Guard` stands before one provider, for all loops and threads of the process. It waits
for a free place and for the rate, repeats what passed without harm, and after several failures in
a row leaves the provider alone for a while. Only what certainly was not worked on is repeated: a
refusal with a status that says so, or a connection that never came about. A time-out or a
connection that broke off is not: the provider may have answered, and billed, already.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated

import msgspec

from praval.errors import (
    CircuitOpenError,
    ConfigurationError,
    OverloadedError,
    ProviderConnectionError,
    ProviderStatusError,
    ProviderTimeoutError,
)

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses after which the same request may succeed."""
FIRST_DELAY = 0.5
LONGEST_DELAY = 8.0
LONGEST_WISH = 60.0
"""Seconds of ``Retry-After`` that are waited for; a longer wish is handed to the caller."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a provider is spared, and what is tried; all of the process together."""

    requests_per_minute: Annotated[float, msgspec.Meta(gt=0)] | None = None
    max_concurrency: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Requests under way at once."""
    max_retries: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Further attempts after one that failed in passing; None: ``performance.max_retries``."""
    failures: Annotated[int, msgspec.Meta(ge=1)] = 5
    """Failures in a row after which the provider is left alone."""
    pause: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """Seconds for which it is; then one request tries whether it works again."""


def checked_limits(limits: Limits) -> Limits:
    """Return the limits if their values are in range.

    Raises:
        ConfigurationError: one is not.
    """
    try:
        return msgspec.convert(msgspec.structs.asdict(limits), Limits)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"Bad limits: {error}.") from None


class Guard:
    """Stands before one provider."""

    def __init__(
        self,
        name: str,
        limits: Limits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.limits = limits or Limits()
        self.clock = clock
        self.chance = chance
        self.places = Places(self.limits.max_concurrency)
        self.rate = Rate(self.limits.requests_per_minute, clock)
        self.circuit = Circuit(name, self.limits.failures, self.limits.pause, clock)

    @contextlib.asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Stand around one request: wait for its turn, and learn from how it ends.

        Raises:
            CircuitOpenError: the provider is being left alone.
        """
        with self.watched():
            async with self.places.place():
                await self.rate.turn()
                yield

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Do the same for a request that waits for no turn.

        Raises:
            CircuitOpenError: the provider is being left alone.
        """
        self.circuit.enter()
        try:
            yield
        except (asyncio.CancelledError, KeyboardInterrupt):
            self.circuit.forget()
            raise
        except BaseException as error:
            self.circuit.report(ok=not is_failure(error))
            raise
        self.circuit.report(ok=True)

    def delay(self, error: Exception, attempt: int) -> float | None:
        """Return how long to wait before the next attempt; None: there must be none.

        Args:
            error: what the last attempt ended with.
            attempt: 1 for the first.
        """
        if not is_passing(error):
            return None
        jitter = 0.5 + self.chance() / 2
        own = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (attempt - 1)) * jitter
        wish = error.retry_after if isinstance(error, ProviderStatusError) else None
        if wish is None:
            return own
        # all who were told the same come back one after the other
        return None if wish > LONGEST_WISH else wish + FIRST_DELAY * self.chance()


def is_passing(error: BaseException) -> bool:
    """Whether the same request may be sent again, and may succeed."""
    if isinstance(error, ProviderStatusError):
        return error.status in PASSING
    return isinstance(error, ProviderConnectionError) and not error.sent


def is_failure(error: BaseException) -> bool:
    """Whether the provider is to blame: such errors open the circuit."""
    return isinstance(error, OverloadedError | ProviderConnectionError | ProviderTimeoutError)


class Circuit:
    """Counts failures in a row; open, it refuses until a pause is over, then lets one try."""

    def __init__(self, name: str, failures: int, pause: float, clock: Callable[[], float]) -> None:
        self.name = name
        self.failures = failures
        self.pause = pause
        self.clock = clock
        self.lock = threading.Lock()
        self.count = 0
        self.open_until: float | None = None
        self.trying = False

    @property
    def state(self) -> str:
        """Return "closed" (all well), "open", or "half-open" (the next request is a trial)."""
        if self.open_until is None:
            return "closed"
        return "open" if self.clock() < self.open_until else "half-open"

    def enter(self) -> None:
        """Let a request pass.

        Raises:
            CircuitOpenError: it may not.
        """
        with self.lock:
            if self.open_until is None:
                return
            left = self.open_until - self.clock()
            if left <= 0 and not self.trying:
                self.trying = True
                return
        raise CircuitOpenError(
            f"The provider {self.name!r} failed {self.failures} times in a row and is left alone "
            f"for {max(0.0, left):.0f} s more. Name further providers as fallback, or wait."
        )

    def report(self, *, ok: bool) -> None:
        """Learn how a request ended."""
        with self.lock:
            self.trying = False
            if ok:
                self.count, self.open_until = 0, None
                return
            self.count += 1
            if self.count >= self.failures:
                self.open_until = self.clock() + self.pause

    def forget(self) -> None:
        """A request ended without telling anything: it was cancelled."""
        with self.lock:
            self.trying = False


class Rate:
    """Spreads requests over time: each gets the next free moment, in order of arrival."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self.clock = clock
        self.lock = threading.Lock()
        self.begun: collections.deque[float] = collections.deque()

    async def turn(self) -> None:
        """Wait until one more request fits into the last 60 seconds."""
        if self.per_minute is None:
            return
        await asyncio.sleep(self._reserve(self.per_minute))

    def _reserve(self, per_minute: float) -> float:
        """Book the next moment and return how many seconds away it is."""
        number = max(1, int(per_minute))
        window = 60.0 * number / per_minute
        with self.lock:
            now = self.clock()
            moment = now
            if len(self.begun) >= number:
                moment = max(now, self.begun.popleft() + window)
            self.begun.append(moment)
        return moment - now


class Places:
    """A number of places, for tasks of all loops; who comes first is served first."""

    def __init__(self, number: int | None) -> None:
        self.free = number
        self.lock = threading.Lock()
        self.waiting: collections.deque[asyncio.Future[None]] = collections.deque()

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Have a place, waiting for it if all are taken."""
        if self.free is None:
            yield
            return
        await self._take()
        try:
            yield
        finally:
            self._give()

    async def _take(self) -> None:
        with self.lock:
            assert self.free is not None
            if self.free > 0:
                self.free -= 1
                return
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            with self.lock:
                if turn in self.waiting:
                    self.waiting.remove(turn)
                    raise
            self._give()  # the place was on its way to us
            raise

    def _give(self) -> None:
        while True:
            with self.lock:
                if not self.waiting:
                    assert self.free is not None
                    self.free += 1
                    return
                turn = self.waiting.popleft()
            with contextlib.suppress(RuntimeError):  # its loop has closed: the next one
                turn.get_loop().call_soon_threadsafe(_wake, turn)
                return


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
