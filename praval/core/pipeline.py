"""Pipelines: agents in a row, each getting what the one before returned."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from praval.core.agent import Agent, AgentDefinition, as_definition
from praval.core.reef import Reef
from praval.core.session import SessionResult, checked_limits
from praval.core.spore import Spore
from praval.core.tree import Result
from praval.errors import ConfigurationError
from praval.sync import blocking_method


class Pipeline:
    """Stages in a row, on a private Reef of the local bus. Made by :func:`agent_pipeline`."""

    def __init__(self, stages: list[AgentDefinition], pipeline_id: str) -> None:
        self.stages = stages
        self.pipeline_id = pipeline_id

    async def arun(self, data: Mapping[str, Any], timeout: float | None = None) -> SessionResult:
        """Give ``data`` to the first stage, its result to the second, and so on.

        Stages are asked one after the other by position: ``responds_to`` does not matter. A
        result that is no dictionary becomes ``{"result": ...}``.

        Args:
            data: knowledge for the first stage.
            timeout: seconds for the whole run; default: none but each request's own.

        Returns:
            A mapping of the last stage's result.

        Raises:
            RequestFailedError: a stage failed; its exception is the cause.
            RequestTimeoutError: the time was up.
            KnowledgeError: the data, or a result, cannot be sent.
        """
        checked_limits(timeout, None)
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        results: list[Result] = []
        spores: list[Spore] = []
        async with Reef(
            *self.stages, namespace=self.pipeline_id, journal=False, transport=False
        ) as reef:
            for stage in self.stages:
                left = None if end is None else max(end - loop.time(), 1e-3)
                reply = await reef.request(stage.name, data, left)
                spores.append(reply)
                data = reply.knowledge
                results.append(Result(stage.name, reply.knowledge))
            ledger = reef.ledger()
        return SessionResult(results, spores=spores, ledger=ledger)

    run = blocking_method(arun)


def agent_pipeline(*stages: Agent, pipeline_id: str | None = None) -> Pipeline:
    """Put agents in a row (guide, "Agent Pipelines").

    Raises:
        ConfigurationError: no stage.
        HandlerSignatureError: a stage is no agent.
        DuplicateAgentError: two different stages have one name.
    """
    if not stages:
        raise ConfigurationError("agent_pipeline() needs at least one stage.")
    definitions = [_positional(as_definition(stage)) for stage in stages]
    Reef(*definitions, transport=False)  # refuses duplicates with its own words
    return Pipeline(definitions, pipeline_id or "pipeline")


def _positional(stage: AgentDefinition) -> AgentDefinition:
    """Return the stage as it is asked in a pipeline: for any type."""
    copy = AgentDefinition(
        stage.name,
        stage.handler,
        msgspec.structs.replace(stage.options, responds_to=None),
        system_message=stage.system_message,
        model=stage.model,
        provider=stage.provider,
    )
    copy.injected, copy.start_hooks = stage.injected, stage.start_hooks
    copy.stop_hooks = stage.stop_hooks
    return copy
