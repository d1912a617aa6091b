"""The registry: agents find one another by name.

Definitions register when they are decorated; the last of a name wins, because notebooks run
cells again. What an agent is doing is asked of the Reefs it runs in.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from praval.core.agent import Agent, AgentDefinition, as_definition
from praval.errors import UnknownAgentError
from praval.plugins import near

if TYPE_CHECKING:
    from praval.core.reef import Reef
    from praval.core.runner import AgentRunner


class Registry:
    """The known agents of this process; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._agents: dict[str, Agent] = {}
        self._reefs: weakref.WeakSet[Reef] = weakref.WeakSet()

    def add(self, agent: Agent, name: str | None = None) -> None:
        """Register an agent, under another name if one is given; the last one wins."""
        with self._lock:
            self._agents[name or agent.name] = agent

    def joined(self, reef: Reef) -> None:
        """A Reef has started: its agents are active."""
        with self._lock:
            self._reefs.add(reef)

    def get_agent(self, name: str) -> Agent:
        """Return the agent of this name.

        Raises:
            UnknownAgentError: nobody registered it; the near name is suggested.
        """
        with self._lock:
            found = self._agents.get(name)
            known = sorted(self._agents)
        if found is None:
            raise UnknownAgentError(
                f"No agent {name!r} is registered.{near(name, known)} Known: "
                f"{', '.join(known) or 'none'}."
            )
        return found

    def list_agents(self) -> list[dict[str, Any]]:
        """Return what :func:`get_agent_info` says of every agent, in order of registration."""
        with self._lock:
            names = list(self._agents)
        return [self.info(name) for name in names]

    def unregister_agent(self, name: str) -> None:
        """Forget an agent; Reefs in which it runs go on.

        Raises:
            UnknownAgentError: nobody registered it.
        """
        self.get_agent(name)
        with self._lock:
            self._agents.pop(name, None)

    def info(self, name: str) -> dict[str, Any]:
        """Return name, status ("active" in some Reef, else "registered"), last_seen and more."""
        agent = self.get_agent(name)
        runners = list(self._runners(name))
        seen = [runner.last_seen for runner in runners if runner.last_seen is not None]
        options = agent.options if isinstance(agent, AgentDefinition) else None
        types = options.responds_to if options else None
        return {
            "name": name,
            "status": "active" if runners else "registered",
            "last_seen": datetime.fromtimestamp(max(seen), UTC).isoformat() if seen else None,
            "responds_to": sorted(types) if types is not None else None,
            "channels": sorted({channel for runner in runners for channel in runner.channels}),
            "pending": sum(runner.pending for runner in runners),
        }

    def get_status(self) -> dict[str, Any]:
        """Return ``total_agents``, ``active_agents`` and ``channels`` (guide, "Registry")."""
        with self._lock:
            names = list(self._agents)
        active = [name for name in names if any(True for _ in self._runners(name))]
        channels = {channel for reef in self._running() for channel in reef.channels}
        return {
            "total_agents": len(names),
            "active_agents": len(active),
            "channels": sorted(channels),
        }

    def clear(self) -> None:
        """Forget every agent (for tests)."""
        with self._lock:
            self._agents.clear()

    def _running(self) -> list[Reef]:
        with self._lock:
            reefs = list(self._reefs)
        return [reef for reef in reefs if reef.running]

    def _runners(self, name: str) -> Iterator[AgentRunner]:
        for reef in self._running():
            runner = reef.runners.get(name)
            if runner is not None:
                yield runner


class _Holder:
    registry: Registry | None = None
    lock = threading.Lock()


def get_registry() -> Registry:
    """Return the process's registry; it is made when first asked for."""
    with _Holder.lock:
        if _Holder.registry is None:
            _Holder.registry = Registry()
        return _Holder.registry


def register_agent(agent: Any, name: str | None = None) -> Agent:
    """Register an agent, or make one of a plain function; the last one of a name wins.

    Raises:
        HandlerSignatureError: neither an agent nor a function with a ``spore`` parameter.
    """
    if not isinstance(agent, Agent):
        label = name or str(getattr(agent, "__name__", ""))
        agent = AgentDefinition(label, agent) if callable(agent) else as_definition(agent)
    get_registry().add(agent, name)
    registered: Agent = agent
    return registered


def get_agent_info(name: str) -> dict[str, Any]:
    """Return ``name``, ``status``, ``last_seen`` and more about a registered agent.

    Raises:
        UnknownAgentError: nobody registered it.
    """
    return get_registry().info(name)
