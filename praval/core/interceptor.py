"""Interceptors: code around every publication and every handling of one Reef."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from praval.core.spore import Spore

if TYPE_CHECKING:
    from praval.core.agent import AgentDefinition


class Interceptor:
    """Base of interceptors; override what you need.

    The first of the Reef's ``interceptors`` is the outermost.
    """

    def enabled(self) -> bool:
        """Say once, when the Reef starts, whether this interceptor is to be used at all."""
        return True

    def publish(self, spore: Spore) -> Spore:
        """See each spore before it is routed; return it, or another in its place.

        An exception refuses the publication and reaches the publisher.
        """
        return spore

    async def handle(
        self, spore: Spore, agent: AgentDefinition, call_next: Callable[[Spore], Awaitable[Any]]
    ) -> Any:
        """Stand around the handling of ``spore`` by ``agent``; return what ``call_next`` does."""
        return await call_next(spore)
