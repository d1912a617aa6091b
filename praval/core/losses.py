"""Who is told when a delivery ends otherwise than handled."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from praval.core.delivery import Outcome, Posted, Reason, shown
from praval.core.spore import SporeType

if TYPE_CHECKING:
    from praval.core.ledger import LossListener
    from praval.core.reef import Reef
    from praval.core.runner import AgentRunner

log = logging.getLogger("praval.losses")


def _text(error: BaseException | None) -> str:
    """Return what the error says; that is a user's code and may fail itself."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - see above
        return shown(error) if error is not None else ""


def listener(reef: Reef) -> LossListener:
    """Return what a Reef does at each loss: free the asker, end the session, tell the agents."""

    def told(
        posted: Posted,
        runner: AgentRunner | None,
        outcome: Outcome,
        reason: Reason,
        error: BaseException | None,
    ) -> None:
        if runner is None:
            return
        if posted.header.spore_type is SporeType.REQUEST:
            reef.requests.lost(posted, runner.name, reason, error)
        if outcome is Outcome.FAILED:
            _end_session(reef, posted, runner, error)
            _tell_agents(reef, posted, runner, error)

    return told


def _end_session(
    reef: Reef, posted: Posted, runner: AgentRunner, error: BaseException | None
) -> None:
    """End the session of an agent with ``on_error="raise"``."""
    watch = posted.tree.watch if posted.tree is not None else None
    if watch is None or runner.agent.options.on_error != "raise" or watch.raised is not None:
        return
    watch.raised = error
    watch.stopped = True
    reef.loop.call_soon(reef.stop_tree, posted.header.root or posted.header.id)


def _tell_agents(
    reef: Reef, posted: Posted, runner: AgentRunner, error: BaseException | None
) -> None:
    """Report to the agents that respond to ``agent_error``; their own failures are not reported."""
    if posted.header.type == "agent_error":
        return
    try:
        report = {
            "agent_name": runner.name,
            "error": _text(error),
            # a handler that tries again by itself says how often it did
            "attempts": getattr(error, "attempts_made", posted.attempt),
            "spore_data": posted.open().knowledge,
        }
        reef.publisher.report("agent_error", report, posted)
    except Exception as refusal:  # noqa: BLE001 - no text of an error may break the Reef
        log.error("no agent_error for spore %s: %s", posted.header.id, shown(refusal))
