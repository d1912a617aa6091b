"""Answers piece by piece, and the time that a call has."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from typing import Any, Self

from praval.errors import ConfigurationError, ModelBudgetError, ProviderTimeoutError
from praval.providers.arguments import Prepared
from praval.providers.budgets import remaining_time
from praval.providers.conversation import flow
from praval.providers.messages import Response
from praval.sync import hop, owner_loop


class AnswerStream:
    """The pieces of an answer; made by :func:`praval.astream`. Iterate once."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared
        self._home = owner_loop.get()
        self._pieces: AsyncGenerator[str | Response, None] | None = None
        self._ends: float | None = None
        self._response: Response | None = None

    @property
    def response(self) -> Response:
        """The whole answer, with usage and cost.

        Raises:
            ConfigurationError: the stream is not at its end.
        """
        if self._response is None:
            raise ConfigurationError("The answer is complete when the stream is at its end.")
        return self._response

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        piece: str | None = await self._at_home(self._step())
        if piece is None:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """Stop, and close the connection."""
        if self._pieces is not None:
            await self._at_home(self._pieces.aclose())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _step(self) -> str | None:
        loop = asyncio.get_running_loop()
        if self._pieces is None:
            call = await self._prepared.found()
            if call.total is not None:
                self._ends = loop.time() + call.total
            opening = await asyncio.to_thread(call.opening)
            self._pieces = flow(call, opening)
        async with Deadline(self._prepared.timeout, self._ends):
            piece = await anext(self._pieces, None)
        if isinstance(piece, Response):
            self._response = piece
            return None
        return piece

    async def _at_home(self, work: Any) -> Any:
        home = self._home
        return await (hop(home, work) if home is not None and home.is_running() else work)


class Deadline:
    """Bounds some steps by the call's time-out and by what is left for the work it belongs to."""

    def __init__(self, seconds: float | None, ends: float | None) -> None:
        self._left = remaining_time()
        self._seconds = seconds
        own = math.inf if ends is None else ends
        work = math.inf
        if self._left is not None:
            work = asyncio.get_running_loop().time() + self._left
        self._by_work = work < own
        end = min(own, work)
        self._scope = asyncio.timeout_at(None if end == math.inf else end)

    async def __aenter__(self) -> None:
        if self._left is not None and self._left <= 0:
            raise ModelBudgetError("The time for this work is over: no more models are asked.")
        await self._scope.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            if self._by_work:
                raise ProviderTimeoutError(
                    "The time for this work was over before the model answered (the deadline of "
                    "its request or budget)."
                ) from None
            raise ProviderTimeoutError(
                f"The model did not answer within {self._seconds:g} s. Allow more with timeout=."
            ) from None
