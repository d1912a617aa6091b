"""What happened in a :class:`~praval.testing.TestReef`, in order."""

from __future__ import annotations

import copy
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from praval.core.delivery import Failure, Outcome, Posted, Reason
from praval.core.interceptor import Interceptor
from praval.core.spore import Spore, SporeType

if TYPE_CHECKING:
    from praval.core.agent import AgentDefinition
    from praval.core.runner import AgentRunner

Clock = Callable[[], float]
_ID = re.compile(r"\b[0-9a-f]{32}\b")


class Attempt(msgspec.Struct):
    """One call of a handler; times are the Reef's, in UTC seconds."""

    agent: str
    spore: Spore
    """As the handler got it, whatever it did to the knowledge."""
    began: float
    ended: float | None = None
    """None: it is still running."""
    result: Any = None
    """What the handler returned, as it was then."""
    error: BaseException | None = None
    """What it raised; a handler that was cancelled raised CancelledError."""


class Event(msgspec.Struct, frozen=True):
    """One entry of the history."""

    kind: Literal["published", "began", "ended", "lost"]
    at: float
    what: Spore | Attempt | Failure


class Record:
    """Everything that happened, as it happened."""

    def __init__(self) -> None:
        self.clock: Clock
        self.spores: list[Spore] = []
        self.attempts: list[Attempt] = []
        self.losses: list[Failure] = []
        self.history: list[Event] = []

    def published(self, spore: Spore) -> None:
        """Note a spore that is about to be routed."""
        kept = _snapshot(spore)
        self.spores.append(kept)
        self._note("published", kept)

    async def attempt(
        self, spore: Spore, agent: str, call_next: Callable[[Spore], Awaitable[Any]]
    ) -> Any:
        """Note a handling from beginning to end."""
        attempt = Attempt(agent, _snapshot(spore), self.clock())
        self.attempts.append(attempt)
        self._note("began", attempt)
        try:
            result = await call_next(spore)
            attempt.result = _copied(result)
            return result
        except BaseException as error:
            attempt.error = error
            raise
        finally:
            attempt.ended = self.clock()
            self._note("ended", attempt)

    def lost(
        self,
        posted: Posted,
        runner: AgentRunner | None,
        outcome: Outcome,
        reason: Reason,
        error: BaseException | None,
    ) -> None:
        """Note a delivery that ended otherwise than handled (a listener of the ledger)."""
        name = None if runner is None else runner.name
        failure = Failure(name, posted.open(), outcome, reason, error)
        self.losses.append(failure)
        self._note("lost", failure)

    def _note(self, kind: Any, what: Spore | Attempt | Failure) -> None:
        self.history.append(Event(kind, self.clock(), what))

    def transcript(self, start: float) -> list[str]:
        """Return the history as lines that can be compared between two runs.

        Times count from ``start``; ids are replaced by numbers in order of appearance.
        """
        numbers: dict[str, str] = {}

        def number(spore_id: str | None) -> str:
            if spore_id is None:
                return "-"
            return numbers.setdefault(spore_id, f"#{len(numbers) + 1}")

        def line(event: Event) -> str:
            what = event.what
            spore = what if isinstance(what, Spore) else what.spore
            head = f"{event.at - start:.6f} {event.kind} {number(spore.id)}"
            text = f"{head} {_details(event, number)}"
            return _ID.sub(lambda found: number(found.group()), text)

        return [line(event) for event in self.history]


class Observer(Interceptor):
    """The outermost interceptor: sees what becomes of each handling in the end."""

    def __init__(self, record: Record) -> None:
        self._record = record

    async def handle(
        self, spore: Spore, agent: AgentDefinition, call_next: Callable[[Spore], Awaitable[Any]]
    ) -> Any:
        """Record the handling."""
        return await self._record.attempt(spore, agent.name, call_next)


def matching(spores: list[Spore], **wanted: str | SporeType | None) -> list[Spore]:
    """Return the spores whose attributes equal what is wanted; None: anything."""
    named = {name: value for name, value in wanted.items() if value is not None}
    return [
        spore
        for spore in spores
        if all(getattr(spore, name) == value for name, value in named.items())
    ]


def _details(event: Event, number: Callable[[str | None], str]) -> str:
    what = event.what
    if isinstance(what, Spore):
        head = what.header
        return (
            f"{what.spore_type} {what.type} from {what.from_agent} to {what.to_agent} "
            f"on {what.channel} root {number(head.root)} answers {number(head.correlation_id)} "
            f"hops {what.hops} priority {what.priority} key {what.key} {_text(what.knowledge)}"
        )
    if isinstance(what, Failure):
        return f"{what.agent} {what.outcome.name.lower()}, {what.reason.value}: {what.error!r}"
    place = f"{what.agent} attempt {what.spore.attempt}"
    if event.kind == "began":
        return place
    return f"{place}: {what.error!r}" if what.error is not None else f"{place} -> {what.result!r}"


def _text(knowledge: dict[str, Any]) -> str:
    return msgspec.json.encode(knowledge).decode()


def _snapshot(spore: Spore) -> Spore:
    return Spore(spore.header, copy.deepcopy(spore.knowledge), spore.attempt)


def _copied(result: Any) -> Any:
    """Return the result as it is now; a handler may return the same dictionary again and again."""
    try:
        return copy.deepcopy(result)
    except (TypeError, copy.Error):  # it holds a lock, a socket: no JSON, the Reef will refuse it
        return result
