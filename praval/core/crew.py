"""The crew: the agents at work in one Reef; how they come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import TYPE_CHECKING, Any

from praval.core.agent import Agent, AgentDefinition, as_definition, call_hook
from praval.core.delivery import Reason
from praval.core.invoke import injection
from praval.core.routing import Routes
from praval.core.runner import AgentRunner
from praval.errors import DuplicateAgentError

if TYPE_CHECKING:
    from praval.core.reef import Reef

CANCEL_GRACE = 5.0
"""Seconds that a cancelled handler may take to clean up before the Reef goes on without it."""


class _Done:
    """An awaitable that is finished."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


DONE = _Done()


def _to_its_end(work: Coroutine[Any, Any, None]) -> Awaitable[None]:
    """Start it; whoever awaits it may be cancelled, it goes on."""
    return asyncio.shield(asyncio.ensure_future(work))


def _refuse_other(agent: AgentDefinition, known: AgentDefinition | None) -> None:
    """Raise if the name is taken by something else than this agent, or it defined again."""
    if known is not None and known is not agent and not known.same_source(agent):
        raise DuplicateAgentError(
            f"This Reef has an agent {agent.name!r} already, made by "
            f"{'.'.join(known.origin)}. Choose another name, or remove the other first."
        )


class Crew:
    """Starts, replaces, removes and stops the runners of one Reef; used on its loop only."""

    def __init__(self, reef: Reef, routes: Routes) -> None:
        self._reef = reef
        self._routes = routes
        self._waiting: dict[str, tuple[AgentDefinition, str]] | None = {}
        """Agents added before the Reef was entered; None: it was entered."""
        self._leaving: list[AgentRunner] = []
        """Removed ones that are finishing what they handle: they still count."""

    def check(self, *candidates: Agent) -> None:
        """Raise if one of these cannot be added, or not beside the others; add none."""
        checked: dict[str, AgentDefinition] = {}
        for agent in map(as_definition, candidates):
            present = self._routes.runners.get(agent.name)
            _refuse_other(agent, checked.get(agent.name) or (present.agent if present else None))
            injection(agent, self._reef)
            checked[agent.name] = agent

    def add(self, candidate: Agent, main: str) -> Awaitable[None]:
        """Add an agent, or replace the same one; see ``Reef.add``."""
        agent = as_definition(candidate)
        present = self._routes.runners.get(agent.name)
        waiting = (self._waiting or {}).get(agent.name)
        known = present.agent if present else waiting[0] if waiting else None
        _refuse_other(agent, known)
        if any(runner.name == agent.name and runner.workers for runner in self._leaving):
            raise DuplicateAgentError(
                f"Agent {agent.name!r} was removed but is still finishing: await remove() first."
            )
        if self._waiting is not None:
            self._waiting[agent.name] = (agent, main)
            return DONE
        if present is not None:
            present.bind(agent)  # first: a definition that cannot be used changes nothing
            self._routes.remove(present)
            present.main = main
            self._routes.add(present)
            hooks = () if agent is known else agent.start_hooks
            if not hooks and self._reef.bridge is None:
                return DONE
            return _to_its_end(self._renew(present, hooks))
        runner = AgentRunner(agent, self._reef, self._reef.books, main)
        self._routes.add(runner)
        return _to_its_end(self._welcome(runner))

    @property
    def names(self) -> list[str]:
        """Names of the agents, started or not."""
        return [*(self._waiting or ()), *self._routes.runners]

    @property
    def at_work(self) -> list[AgentRunner]:
        """All runners whose deliveries are not in the books of the Reef yet."""
        outbox = self._routes.outbox
        return [*self._routes.runners.values(), *self._leaving, *([outbox] if outbox else ())]

    async def start(self) -> None:
        """Start the agents that were added so far."""
        waiting, self._waiting = self._waiting or {}, None
        runners = [
            AgentRunner(agent, self._reef, self._reef.books, main)
            for agent, main in waiting.values()
        ]
        for runner in runners:
            self._routes.add(runner)
        if self._reef.bridge is not None:
            await self._reef.bridge.attach_all()
        for runner in runners:
            await self._run_hooks(runner.agent.start_hooks)
            self._admit(runner)  # the hooks of those after it may ask it something
        for runner in runners:
            await self._recover(runner)

    async def _welcome(self, runner: AgentRunner) -> None:
        if self._reef.bridge is not None:
            await self._reef.bridge.attach(runner)
        try:
            await self._run_hooks(runner.agent.start_hooks)
            await self._recover(runner)
        finally:
            self._admit(runner)

    def _admit(self, runner: AgentRunner) -> None:
        if self._reef.bridge is not None:
            self._reef.bridge.admit(runner)

    async def _renew(self, runner: AgentRunner, hooks: Sequence[Callable[..., Any]]) -> None:
        await self._run_hooks(hooks)
        if self._reef.bridge is not None:
            await self._reef.bridge.attach(runner)
            self._reef.bridge.admit(runner)

    async def _recover(self, runner: AgentRunner) -> None:
        if self._reef.journal is not None:
            await runner.recover(self._reef.journal)

    async def remove(self, name: str) -> None:
        """Remove an agent; see ``Reef.remove``."""
        runner = self._routes.runners.get(name)
        if runner is None:
            raise self._reef.publisher.unknown_agent(name)
        self._routes.remove(runner)
        self._leaving.append(runner)
        bridge = self._reef.bridge
        detaching = None if bridge is None else asyncio.ensure_future(bridge.dismiss(runner))
        try:
            runner.abandon(Reason.AGENT_REMOVED)
            await runner.retire(self._reef.settings.reef_config.drain_timeout)
        finally:
            await runner.cancel_workers(CANCEL_GRACE)
            if detaching is not None:
                await detaching
            if not runner.workers:  # else it goes on counting there
                self._leaving.remove(runner)
                self._reef.books.absorb(runner)
        await self._run_hooks(runner.agent.stop_hooks)

    async def stop(self) -> None:
        """Cancel all that is left and stop the agents."""
        runners = list(self._routes.runners.values())
        for runner in self.at_work:
            runner.abandon(Reason.CLOSED)
        await asyncio.gather(*(runner.cancel_workers(CANCEL_GRACE) for runner in self.at_work))
        for runner in runners:
            await self._run_hooks(runner.agent.stop_hooks)

    async def _run_hooks(self, hooks: Sequence[Callable[..., Any]]) -> None:
        for hook in hooks:
            context = self._reef.fresh_context()
            await self._reef.loop.create_task(call_hook(hook, self._reef), context=context)
