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

from importlib import import_module
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
    from praval.core.wrappers import (
        cached_agent,
        debug_agent,
        monitor_agent_performance,
        resilient_agent,
    )
    from praval.providers.calls import achat, astream, chat
    from praval.providers.messages import Response
    from praval.tools.tool import tool

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
    "Response",
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
    "astream",
    "broadcast",
    "cached_agent",
    "chat",
    "conditional_agent",
    "configure",
    "debug_agent",
    "get_agent_info",
    "get_reef",
    "get_registry",
    "monitor_agent_performance",
    "register_agent",
    "resilient_agent",
    "start_agents",
    "throttled_agent",
    "tool",
]

_LAZY = {
    "Response": "praval.providers.messages",
    "achat": "praval.providers.calls",
    "astream": "praval.providers.calls",
    "cached_agent": "praval.core.wrappers",
    "chat": "praval.providers.calls",
    "debug_agent": "praval.core.wrappers",
    "monitor_agent_performance": "praval.core.wrappers",
    "resilient_agent": "praval.core.wrappers",
    "tool": "praval.tools.tool",
}
"""Name -> module that is loaded on first use: most of it is not needed without models."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
