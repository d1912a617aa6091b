"""A Reef for tests: virtual time, a complete record, faults on purpose, the same order each run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from praval.core.agent import Agent
from praval.core.delivery import Failure
from praval.core.interceptor import Interceptor
from praval.core.reef import Reef
from praval.core.spore import Spore, SporeType
from praval.errors import ConfigurationError, ReefError, UnknownAgentError
from praval.plugins import near
from praval.testing.clock import EPOCH, VirtualClock
from praval.testing.faults import Fault, Faults, InjectedFault
from praval.testing.record import Attempt, Event, Observer, Record, matching

if TYPE_CHECKING:
    from praval.core.journal import Journal

SETTLE_LIMIT = 400 * 86_400.0
"""Virtual seconds after which :meth:`TestReef.settle` gives up: more than a year."""
REAL_SETTLE_LIMIT = 30.0
"""The same without virtual time."""


class TestReef(Reef):
    """A Reef whose time is virtual, which records everything and injects faults by seed.

    ::

        async with TestReef(reader, editor, seed=7, failure=0.2) as reef:
            await reef.broadcast({"type": "question"})
            await reef.settle()
            assert reef.results("editor") == [{"text": "..."}]
            assert reef.ledger().balanced

    The same seed gives the same order of events. Plain handlers run in real threads: what they
    send is let in one by one, in the order in which they began. Out of reach are what handlers
    share behind the Reef's back, work on other loops, and when exactly a journal commits.

    Args:
        *agents: as for :class:`~praval.Reef`.
        seed: decides all that is drawn.
        failure: fraction of the attempts in which the handler is not called, but
            :class:`InjectedFault` raised in its place.
        delay: least and most seconds before a handler is called; they count for its ``timeout``.
        duplicate: fraction of the deliveries that come twice, as from an at-least-once
            transport: the second has the same id and ``attempt + 1`` and is a delivery of its own.
        virtual_time: the loop's time stands still while there is work and jumps otherwise; needs
            one of asyncio's own loops.
        interceptors, **options: as for :class:`~praval.Reef`.

    Raises:
        ConfigurationError: a fraction or a delay is out of range; on entering: the loop cannot
            have virtual time.
    """

    __test__ = False

    def __init__(
        self,
        *agents: Agent,
        seed: int | str = 0,
        failure: float = 0.0,
        delay: tuple[float, float] = (0.0, 0.0),
        duplicate: float = 0.0,
        virtual_time: bool = True,
        interceptors: Sequence[Interceptor] = (),
        **options: Any,
    ) -> None:
        self.record = Record()
        self._faults = Faults(
            self, self.record, seed=seed, failure=failure, delay=delay, duplicate=duplicate
        )
        self._virtual = virtual_time
        self._timeline: VirtualClock | None = None
        chain = (Observer(self.record), *interceptors, self._faults)
        super().__init__(*agents, interceptors=chain, **options)
        self.record.clock = self.clock

    # -- life ----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Make the loop's time virtual and start; errors are also those of the Reef."""
        if self._virtual and self._timeline is None:
            clock = VirtualClock.of(asyncio.get_running_loop()) or VirtualClock()
            self._timeline = clock.__enter__()
            clock.watch(self._threads_at_work)
            self.clock = self.record.clock = clock.time
        self.started_at = self.clock()
        try:
            return await super().__aenter__()
        except BaseException:
            if not self.running:
                self._leave_time()
            raise

    async def _start(self) -> None:
        self.books.listeners.append(self.record.lost)
        await super()._start()

    async def _open_journal(self) -> Journal | None:
        if self._timeline is None:
            return await super()._open_journal()
        with self._timeline.held():
            journal = await super()._open_journal()
        if journal is not None:
            self._hold_for(journal, self._timeline)
        return journal

    def _hold_for(self, journal: Journal, clock: VirtualClock) -> None:
        """Let no time pass while the journal's thread is writing."""
        enqueue, close = journal._enqueue, journal.aclose

        def watched_enqueue(work: Any) -> asyncio.Future[Any]:
            future = enqueue(work)
            clock.hold_for(future)
            return future

        async def watched_close() -> None:
            with clock.held():
                await close()

        journal._enqueue = watched_enqueue  # type: ignore[method-assign]
        journal.aclose = watched_close  # type: ignore[method-assign]

    async def _shut_down(self) -> None:
        try:
            await super()._shut_down()
        finally:
            self._leave_time()

    def _leave_time(self) -> None:
        if self._timeline is not None:
            clock, self._timeline = self._timeline, None
            clock.unwatch(self._threads_at_work)
            clock.__exit__(None, None, None)

    def _threads_at_work(self) -> int:
        threads = getattr(self, "threads", None)  # none before the Reef has been entered
        return 0 if threads is None else threads.going_on

    # -- time ----------------------------------------------------------------------------

    @property
    def timeline(self) -> VirtualClock:
        """The virtual clock, while the Reef is open.

        Raises:
            ReefError: it is not open, or was made with ``virtual_time=False``.
        """
        if self._timeline is None:
            raise ReefError(
                "This Reef has no virtual time: it is not open, or has virtual_time=False."
            )
        return self._timeline

    @property
    def elapsed(self) -> float:
        """Seconds since the Reef was entered, on its own clock, to the microsecond."""
        return round(self.clock() - self.started_at, 6)

    async def advance(self, seconds: float, *, hold: bool = True) -> None:
        """Let virtual time pass; see :meth:`VirtualClock.advance`.

        Raises:
            ReefError: there is no virtual time.
            ConfigurationError: the number of seconds is negative, or not finite.
        """
        await self.timeline.advance(seconds, hold=hold)

    async def settle(self, limit: float | None = None) -> None:
        """Wait until all is done that was accepted, however long that takes in virtual time.

        Args:
            limit: seconds; default: more than a year (without virtual time: 30).

        Raises:
            IdleTimeoutError: something is stuck: it waits for what nobody will do.
        """
        if self._timeline is None:
            await self.wait_idle(REAL_SETTLE_LIMIT if limit is None else limit)
            return
        await self.wait_idle(SETTLE_LIMIT if limit is None else limit)
        await self.timeline.rest()

    # -- faults --------------------------------------------------------------------------

    def fail_next(self, agent: str, error: Fault | None = None, times: int = 1) -> None:
        """Let the next attempts of an agent fail.

        Args:
            agent: its name.
            error: what is raised in place of the handler; default: an InjectedFault.
            times: how many attempts.

        Raises:
            UnknownAgentError: no such agent.
            ConfigurationError: ``times`` is not at least 1.
        """
        self._check(agent, times)
        fault = InjectedFault(f"injected into agent {agent!r}") if error is None else error
        self._faults.failures[agent].extend([fault] * times)

    def delay_next(self, agent: str, seconds: float, times: int = 1) -> None:
        """Let the next attempts of an agent begin late; errors as :meth:`fail_next`."""
        self._check(agent, times)
        if not seconds >= 0:
            raise ConfigurationError(f"A delay is 0 seconds or more, not {seconds!r}.")
        self._faults.delays[agent].extend([seconds] * times)

    def duplicate_next(self, agent: str, times: int = 1) -> None:
        """Let the next deliveries to an agent come twice; errors as :meth:`fail_next`."""
        self._check(agent, times)
        self._faults.duplicates[agent] += times

    def _check(self, agent: str, times: int) -> None:
        known = self._crew.names
        if agent not in known:
            raise UnknownAgentError(
                f"No agent {agent!r} in this Reef.{near(agent, known)} Known: "
                f"{', '.join(sorted(known)) or 'none'}."
            )
        if times < 1:
            raise ConfigurationError(f"times must be at least 1, not {times!r}.")

    # -- what happened -------------------------------------------------------------------

    @property
    def spores(self) -> list[Spore]:
        """Every spore that was published, replies too, in order."""
        return self.record.spores

    @property
    def attempts(self) -> list[Attempt]:
        """Every call of a handler (or what was injected in its place), in order of beginning."""
        return self.record.attempts

    @property
    def handled(self) -> list[Attempt]:
        """The attempts that returned, in order of ending."""
        return [
            event.what
            for event in self.record.history
            if event.kind == "ended"
            and isinstance(event.what, Attempt)
            and event.what.error is None
        ]

    @property
    def losses(self) -> list[Failure]:
        """Deliveries that ended otherwise than handled, and why."""
        return self.record.losses

    @property
    def history(self) -> list[Event]:
        """Publications, beginnings, endings and losses in one order."""
        return self.record.history

    def published(
        self,
        type: str | None = None,
        from_agent: str | None = None,
        *,
        to_agent: str | None = None,
        channel: str | None = None,
        spore_type: SporeType | None = None,
    ) -> list[Spore]:
        """Return the published spores of this description; None: any."""
        return matching(
            self.spores,
            type=type,
            from_agent=from_agent,
            to_agent=to_agent,
            channel=channel,
            spore_type=spore_type,
        )

    def results(self, agent: str) -> list[dict[str, Any]]:
        """Return an agent's results in order of completion, as a session reports them."""
        values = [each.result for each in self.handled if each.agent == agent]
        return [
            value if isinstance(value, dict) else {"result": value}
            for value in values
            if value is not None
        ]

    def transcript(self) -> list[str]:
        """Return all that happened as lines; two runs with one seed give the same lines."""
        return self.record.transcript(self.started_at)


__all__ = ["EPOCH", "InjectedFault", "TestReef"]
