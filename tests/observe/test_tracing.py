"""Tracing: one trace per causal tree, and nothing at all when it is off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from praval import Reef, Spore, agent
from praval.observe import Tracing


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """A tracer provider that keeps its spans, for this test only."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # OpenTelemetry lets its global be set once per process
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


async def test_the_spans_of_a_causal_tree_are_one_trace(exporter: InMemorySpanExporter) -> None:
    """What a handler returns is handled in a span whose parent is the handler's."""

    @agent("first", responds_to=["start"])
    async def first(spore: Spore) -> dict[str, str]:
        return {"type": "next"}

    @agent("second", responds_to=["next"])
    async def second(spore: Spore) -> None:
        return None

    async with Reef(first, second, interceptors=[Tracing()]) as reef:
        await reef.broadcast({"type": "start"})
        await reef.wait_idle(5)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"process first", "process second"}
    parent = spans["process second"].parent
    assert parent is not None
    assert parent.span_id == spans["process first"].context.span_id


async def test_an_emission_inside_a_handler_carries_its_span(
    exporter: InMemorySpanExporter,
) -> None:
    """A broadcast inside a handler is handled as a child of the handler's span."""

    @agent("first", responds_to=["start"])
    async def first(spore: Spore, reef: Reef) -> None:
        await reef.broadcast({"type": "next"})

    @agent("second", responds_to=["next"])
    async def second(spore: Spore) -> None:
        assert spore.headers["traceparent"]

    async with Reef(first, second, interceptors=[Tracing()]) as reef:
        await reef.broadcast({"type": "start"})
        await reef.wait_idle(5)
        assert reef.ledger().handled == 2
    spans = {span.name: span for span in exporter.get_finished_spans()}
    parent = spans["process second"].parent
    assert parent is not None
    assert parent.span_id == spans["process first"].context.span_id


async def test_without_a_provider_the_reef_leaves_it_out() -> None:
    """Tracing that is requested but off is no member of the chain."""
    async with Reef(interceptors=[Tracing()]) as reef:
        assert reef.interceptors == ()
