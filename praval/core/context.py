"""Where am I? What code that runs inside a handler can find out about its surroundings.

Two context variables: the worker (set once per worker task) and the delivery (set for each).
A task that a handler starts inherits both. While the worker still handles that very delivery, the
task belongs to the handling; afterwards it is an orphan, which publishes without a parent.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from typing import TYPE_CHECKING

from praval.core.delivery import Posted

if TYPE_CHECKING:
    from praval.core.agent import AgentDefinition
    from praval.core.runner import Worker

current_worker: ContextVar[Worker | None] = ContextVar("current_worker", default=None)
current_posted: ContextVar[Posted | None] = ContextVar("current_posted", default=None)


def _reset_after_fork() -> None:
    """Forget the handler that forked: its Reef runs in the parent."""
    current_worker.set(None)
    current_posted.set(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def open_handling() -> Worker | None:
    """Return the worker that handles the current delivery right now; None outside handlers."""
    worker = current_worker.get()
    if worker is None or worker.posted is None or worker.posted is not current_posted.get():
        return None
    return worker


def current_agent() -> AgentDefinition | None:
    """Return the definition of the agent whose handler runs here; None outside handlers."""
    worker = current_worker.get()
    return None if worker is None else worker.runner.agent
