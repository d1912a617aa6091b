"""Sessions: agents, an initial spore, and the wait until all that came of it is done.

``start_agents`` uses the default Reef, whose agents stay and go on listening. An
:class:`AgentSession` and a pipeline use a private Reef, which ends with them. All that it could
have to do with a broker is to leave groups there that nobody would ever read again: it has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from praval.core.agent import Agent, as_definition
from praval.core.context import open_handling
from praval.core.default import default_reef
from praval.core.delivery import Failure, LedgerSnapshot
from praval.core.reef import Reef
from praval.core.spore import Spore
from praval.core.tree import Result, Tree, Watch
from praval.errors import ConfigurationError, ReefError
from praval.settings import current_settings
from praval.sync import blocking, blocking_method, hop


class SessionResult(Mapping[str, Any]):
    """What came of a session: a mapping of the last result, and everything else beside it."""

    def __init__(
        self,
        results: Sequence[Result] = (),
        *,
        spores: Iterable[Spore] = (),
        errors: Iterable[Failure] = (),
        ledger: LedgerSnapshot | None = None,
        timed_out: bool = False,
    ) -> None:
        self._last = results[-1].value if results else {}
        self.by_agent: dict[str, list[dict[str, Any]]] = {}
        """Agent -> its results, in the order in which they were completed."""
        for result in results:
            self.by_agent.setdefault(result.agent, []).append(result.value)
        self.spores: list[Spore] = list(spores)
        """The spores of the tree, in order of publication (the last 10,000)."""
        self.errors: list[Failure] = list(errors)
        """Deliveries that failed, expired, or were rejected or cancelled (the last 10,000)."""
        self.ledger: LedgerSnapshot = ledger or LedgerSnapshot()
        """What became of the tree's deliveries; exact."""
        self.timed_out = timed_out
        """Whether the time was up before all was done: this is the partial result then."""

    @classmethod
    def of(cls, watch: Watch, *, timed_out: bool = False) -> SessionResult:
        """Read the result off a watch."""
        return cls(
            watch.results,
            spores=[posted.open() for posted in watch.posted],
            errors=watch.failures,
            ledger=watch.tally.snapshot(watch.tally.pending),
            timed_out=timed_out,
        )

    def __getitem__(self, key: str) -> Any:
        return self._last[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._last)

    def __len__(self) -> int:
        return len(self._last)

    def __repr__(self) -> str:
        late = ", timed out" if self.timed_out else ""
        return f"<SessionResult {self._last!r}, {len(self.errors)} errors{late}; {self.ledger}>"


async def run_tree(
    reef: Reef,
    data: Mapping[str, Any],
    *,
    channel: str = "main",
    timeout: float | None = None,
    max_iterations: int | None = None,
) -> SessionResult:
    """Publish a root spore and wait until its causal tree is finished.

    A time-out cancels what is left and gives the partial result. So does ``max_iterations``
    (handled spores), but lets the running handlers finish. Cancellation cancels the tree.

    Raises:
        Exception: that of an agent with ``on_error="raise"``.
        KnowledgeError, ...: the data cannot be sent (see ``Reef.broadcast``).
    """
    checked_limits(timeout, max_iterations)
    watch = Watch(max_iterations)
    # inside a handler: its own agent does not hear it, and so need not wait for itself
    worker = open_handling()
    sender = worker.runner.name if worker is not None and worker.runner.reef is reef else None
    posted = reef.publisher.compose(data, channel, target_of(data), sender=sender)
    tree = posted.tree = Tree(posted.header.id, watch)
    timed_out = False
    reef.trees[tree.root] = tree
    try:
        async with asyncio.timeout(timeout):
            await reef.publisher.publish(posted, explicit=False, soft=sender is not None)
            watch.posted.appendleft(posted)
            await watch.finished.wait()
    except TimeoutError:
        timed_out = True
        await _stop(reef, watch, posted.header.id)
    except BaseException:
        await _stop(reef, watch, posted.header.id)
        raise
    finally:
        del reef.trees[tree.root]
    if watch.raised is not None:
        raise watch.raised
    return SessionResult.of(watch, timed_out=timed_out)


async def _stop(reef: Reef, watch: Watch, root: str) -> None:
    """Cancel what is left of a tree; wait for its handlers' cleaning up, but not for ever."""
    watch.stopped = True
    reef.stop_tree(root, interrupt=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_GRACE):
            await watch.finished.wait()


STOP_GRACE = 2.0
"""Seconds that cancelled handlers get before a timed-out session returns without them."""


async def astart_agents(
    *agents: Agent,
    initial_data: Mapping[str, Any] | None = None,
    channel: str = "main",
    timeout: float | None = None,
    max_iterations: int | None = None,
) -> SessionResult:
    """Start agents in the default Reef, publish ``initial_data``, wait until all is done.

    Done means that every spore that came of the initial one is settled. The agents stay: later
    broadcasts reach them.

    Args:
        *agents: what to start.
        initial_data: the root spore's knowledge; None: only start.
        channel: takes the place of ``main`` in this session.
        timeout: seconds after which the rest is cancelled; the result is partial then.
        max_iterations: most spores handled.

    Raises:
        ConfigurationError: a limit is not above 0.
        DuplicateAgentError, HandlerSignatureError: an agent cannot be added.
        KnowledgeError, SporeTooLargeError: the data cannot be sent.

    Source: guide, "Orchestration Functions".
    """
    checked_limits(timeout, max_iterations)
    if not isinstance(channel, str) or not channel:
        raise ConfigurationError(f"channel must be a string that is not empty, not {channel!r}.")
    if not agents:
        raise ConfigurationError("start_agents() needs at least one agent.")
    definitions = [as_definition(agent) for agent in agents]
    reef = await default_reef()
    if initial_data is not None:
        reef.publisher.compose(initial_data, channel)  # what cannot be sent changes nothing
    reef.check(*definitions)
    for definition in definitions:
        await reef.add(definition, main=channel)
    if initial_data is None:
        return SessionResult()
    return await hop(
        reef.loop,
        run_tree(
            reef, initial_data, channel=channel, timeout=timeout, max_iterations=max_iterations
        ),
    )


start_agents = blocking(astart_agents)


class AgentSession:
    """A managed team in a Reef of its own, on the local bus (guide, "Advanced Orchestration").

    Args:
        session_id: default: a random one.
        timeout: seconds from :meth:`start` after which the rest is cancelled; None: no limit.
        max_agents: most agents; default: the setting ``max_concurrent_agents``.

    Raises:
        ConfigurationError: a limit is not above 0.
    """

    def __init__(
        self,
        session_id: str | None = None,
        timeout: float | None = None,
        max_agents: int | None = None,
    ) -> None:
        checked_limits(timeout, max_agents, name="max_agents")
        self.session_id = session_id or uuid.uuid4().hex
        self.timeout = timeout
        self.max_agents = max_agents or current_settings().max_concurrent_agents
        self._agents: dict[str, Agent] = {}
        self._reef: Reef | None = None
        self._run: asyncio.Task[SessionResult] | None = None

    def add_agent(self, agent: Agent) -> None:
        """Add an agent, before the session starts.

        Raises:
            ConfigurationError: there are ``max_agents`` already.
            DuplicateAgentError, HandlerSignatureError: it cannot be added.
            ReefError: the session was started.
        """
        if self._reef is not None:
            raise ReefError("This session was started: add agents before.")
        definition = as_definition(agent)
        if definition.name not in self._agents and len(self._agents) >= self.max_agents:
            raise ConfigurationError(
                f"This session has its max_agents={self.max_agents} already; raise it."
            )
        # refuses duplicates with its own words
        Reef(*self._agents.values(), definition, transport=False)
        self._agents[definition.name] = definition

    @property
    def reef(self) -> Reef:
        """The session's Reef.

        Raises:
            ReefError: the session was not started.
        """
        if self._reef is None:
            raise ReefError("This session was not started: call start() first.")
        return self._reef

    async def astart(
        self,
        initial_data: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        max_iterations: int | None = None,
    ) -> None:
        """Start the agents and publish ``initial_data``; :meth:`await_for_completion` waits.

        Raises:
            ReefError: it was started before, or has no agents.
            ConfigurationError: a limit is not above 0.
        """
        timeout = self.timeout if timeout is None else timeout
        checked_limits(timeout, max_iterations)
        if self._reef is not None:
            raise ReefError("This session was started before: make a new one.")
        if not self._agents:
            raise ReefError("This session has no agents: call add_agent() first.")
        reef = Reef(
            *self._agents.values(), namespace=self.session_id, journal=False, transport=False
        )
        self._reef = await reef.__aenter__()
        if initial_data is not None:
            self._run = asyncio.create_task(
                run_tree(self._reef, initial_data, timeout=timeout, max_iterations=max_iterations)
            )

    async def await_for_completion(self) -> SessionResult:
        """Wait until all is done, close the session's Reef, return the result.

        Raises:
            ReefError: the session was not started.
        """
        reef = self.reef
        return await hop(reef.loop, self._complete(reef))

    async def _complete(self, reef: Reef) -> SessionResult:
        try:
            return await self._run if self._run is not None else SessionResult()
        finally:
            await reef.aclose()

    async def aclose(self) -> None:
        """Cancel what is left and close; harmless if the session is over."""
        if self._reef is None:
            return
        await hop(self._reef.loop, self._cancel(self._reef))

    async def _cancel(self, reef: Reef) -> None:
        if self._run is not None and not self._run.done():
            self._run.cancel()
            await asyncio.wait([self._run])
        await reef.aclose(drain=False)

    start = blocking_method(astart)
    wait_for_completion = blocking_method(await_for_completion)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


def checked_limits(
    timeout: float | None, count: int | None, *, name: str = "max_iterations"
) -> None:
    """Check a time-out and a count.

    Raises:
        ConfigurationError: one of them is not above 0.
    """
    if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
        raise ConfigurationError(f"timeout must be a number of seconds above 0, not {timeout!r}.")
    if timeout is not None and math.isnan(timeout):
        raise ConfigurationError("timeout must be a number of seconds above 0, not NaN.")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ConfigurationError(f"{name} must be a whole number above 0, not {count!r}.")


def target_of(data: Mapping[str, Any]) -> str | None:
    """Return the recipient that the knowledge itself names."""
    target = data.get("target_agent") if isinstance(data, Mapping) else None
    return target if isinstance(target, str) else None
