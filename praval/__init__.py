"""Praval: an asyncio-native agent runtime with pluggable transports.

Agents are functions with a decorator; they exchange spores over a Reef::

    from praval import Reef, agent

    @agent("greeter", responds_to=["greeting"])
    async def greeter(spore):
        return {"text": f"Hello {spore.knowledge['name']}"}

    async with Reef(greeter) as reef:
        reply = await reef.request("greeter", {"type": "greeting", "name": "Ada"})

Importing this package starts nothing and loads no broker client, provider or database driver.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from praval.core.agent import Agent, AgentDefinition
from praval.core.decorators import agent, conditional_agent, throttled_agent
from praval.core.default import abroadcast, broadcast, get_reef
from praval.core.delivery import DeadLetter, Failure, LedgerSnapshot, Outcome, Reason, Receipt
from praval.core.interceptor import Interceptor
from praval.core.pipeline import Pipeline, agent_pipeline
from praval.core.reef import Reef
from praval.core.registry import Registry, get_agent_info, get_registry, register_agent
from praval.core.session import AgentSession, SessionResult, astart_agents, start_agents
from praval.core.spore import Spore, SporeType
from praval.errors import PravalError
from praval.settings import Settings, configure

if TYPE_CHECKING:
    from praval.providers.calls import achat, chat

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "AgentDefinition",
    "AgentSession",
    "DeadLetter",
    "Failure",
    "Interceptor",
    "LedgerSnapshot",
    "Outcome",
    "Pipeline",
    "PravalError",
    "Reason",
    "Receipt",
    "Reef",
    "Registry",
    "SessionResult",
    "Settings",
    "Spore",
    "SporeType",
    "__version__",
    "abroadcast",
    "achat",
    "agent",
    "agent_pipeline",
    "astart_agents",
    "broadcast",
    "chat",
    "conditional_agent",
    "configure",
    "get_agent_info",
    "get_reef",
    "get_registry",
    "register_agent",
    "start_agents",
    "throttled_agent",
]


def __getattr__(name: str) -> Any:
    """Load the model calls on first use: most of what they need is not needed without them."""
    if name in ("achat", "chat"):
        from praval.providers import calls

        return getattr(calls, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
