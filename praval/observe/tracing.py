"""Traces of spores through OpenTelemetry.

A published spore carries the W3C ``traceparent`` of its publisher in its headers; handling it is
a span whose parent that is, so that a trace shows the causal tree, across hosts too. Without the
OpenTelemetry API, or without a tracer provider, the Reef leaves this interceptor out when it
starts: tracing that is off costs nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from praval.core.interceptor import Interceptor
from praval.core.spore import Spore

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from praval.core.agent import AgentDefinition


_last_handling: ContextVar[Context | None] = ContextVar("praval_last_handling", default=None)
"""Context of the last handling's span in this worker: what a handler returns is broadcast after
the span has ended, and belongs to it nevertheless."""


class Tracing(Interceptor):
    """Make a span of each handling: ``Reef(..., interceptors=[Tracing()])``."""

    def enabled(self) -> bool:
        """Say whether the OpenTelemetry API is installed and a real provider is set."""
        if find_spec("opentelemetry") is None:
            return False
        from opentelemetry import trace

        provider = trace.get_tracer_provider()
        return not isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider))

    def publish(self, spore: Spore) -> Spore:
        """Put the current trace context into the spore's headers."""
        from opentelemetry import trace
        from opentelemetry.propagate import inject

        headers = spore.headers
        inside = trace.get_current_span().get_span_context().is_valid
        inject(headers, context=None if inside else _last_handling.get())
        return spore.replace(headers=headers) if headers else spore

    async def handle(
        self, spore: Spore, agent: AgentDefinition, call_next: Callable[[Spore], Awaitable[Any]]
    ) -> Any:
        """Handle the spore inside a span, whose parent is the publisher's."""
        from opentelemetry import trace
        from opentelemetry.propagate import extract

        attributes: dict[str, str | int] = {
            "messaging.system": "praval",
            "messaging.operation.type": "process",
            "messaging.message.id": spore.id,
            "messaging.destination.name": spore.channel,
            "praval.agent": agent.name,
            "praval.type": spore.type or "",
            "praval.attempt": spore.attempt,
        }
        with trace.get_tracer("praval").start_as_current_span(
            f"process {agent.name}",
            context=extract(spore.headers),
            kind=trace.SpanKind.CONSUMER,
            attributes=attributes,
        ) as span:
            _last_handling.set(trace.set_span_in_context(span))
            return await call_next(spore)
