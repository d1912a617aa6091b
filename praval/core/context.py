"""Where am I? What code that runs inside a handler can find out about its surroundings.

Two context variables: the worker (set once per worker task) and the delivery (set for each).
A task that a handler starts inherits both. While the worker still handles that very delivery, the
task belongs to the handling; afterwards it is an orphan, which publishes without a parent.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from praval.core.delivery import Posted

if TYPE_CHECKING:
    from praval.core.agent import AgentDefinition
    from praval.core.runner import Worker

current_worker: ContextVar[Worker | None] = ContextVar("current_worker", default=None)
current_posted: ContextVar[Posted | None] = ContextVar("current_posted", default=None)


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
