"""What a Reef can tell about itself in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from praval.core.delivery import STATES

if TYPE_CHECKING:
    from praval.core.bridge import Bridge
    from praval.core.reef import Reef
    from praval.core.runner import AgentRunner


def statistics(reef: Reef) -> dict[str, Any]:
    """Return counts of the Reef and of each agent, as plain dictionaries."""
    ledger = reef.ledger()
    return {
        "namespace": reef.namespace,
        "running": reef.running,
        "published": ledger.published,
        "deliveries": ledger.deliveries,
        "pending": ledger.pending,
        **{state: getattr(ledger, state) for state in STATES},
        "balanced": ledger.balanced,
        "reasons": ledger.reasons,
        "channels": reef.channels,
        "open_requests": len(reef.requests),
        "dead_letters": len(reef.dead_letters()),
        "busy_threads": reef.threads.busy,
        **({} if reef.bridge is None else _wire(reef.bridge)),
        "agents": {name: _agent(runner) for name, runner in reef.runners.items()},
    }


def _wire(bridge: Bridge) -> dict[str, Any]:
    security = bridge.security()
    sealed = {} if security is None else {"security": security}
    return {"outbox": _outbox(bridge), **sealed}


def _outbox(bridge: Bridge) -> dict[str, Any]:
    outbox = bridge.outbox
    return {
        **dict(zip(STATES, outbox.counts, strict=True)),
        "pending": outbox.pending,
        "unconfirmed": outbox.unconfirmed,
    }


def _agent(runner: AgentRunner) -> dict[str, Any]:
    return {
        **dict(zip(STATES, runner.counts, strict=True)),
        "pending": runner.pending,
        "waiting": runner.mailbox.size,
        "workers": len(runner.workers),
        "channels": list(runner.channels),
        "last_seen": runner.last_seen,
    }
