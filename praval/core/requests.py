"""Requests: a spore to one agent, and the wait for its reply.

Agents that ask one another in a circle would wait for ever when each handles one spore at a
time. Before a handler waits, the wait-for graph is looked at: if no worker that could answer can
go on without this very answer, :class:`~praval.errors.RequestCycleError` is raised.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from praval.core.delivery import Outcome, Posted, Reason, shown
from praval.core.spore import (
    Header,
    Spore,
    SporeType,
    encode_knowledge,
    new_id,
    spore_type_of,
)
from praval.errors import (
    PravalError,
    RequestCycleError,
    RequestFailedError,
    RequestTimeoutError,
    UnknownAgentError,
)

if TYPE_CHECKING:
    from praval.core.ledger import Ledger
    from praval.core.publisher import Publisher
    from praval.core.runner import AgentRunner, Worker


log = logging.getLogger("praval.requests")

_RESPONSE = SporeType.RESPONSE
FAILURE = "praval-failure"
"""Header of a reply that says why there is none."""
MOST_OF_AN_ERROR = 2_000
"""Characters of an error that are told to an asker on another host."""


class Pending:
    """A request whose reply has not come."""

    __slots__ = ("asker", "future", "id", "runner", "timeout", "to")

    def __init__(
        self,
        header: Header,
        *,
        runner: AgentRunner | None,
        asker: Worker | None,
        future: asyncio.Future[Spore],
        timeout: float,
    ) -> None:
        self.id = header.id
        self.to = header.to_agent or ""
        """Name of the agent that is asked."""
        self.runner = runner
        """Who alone can answer; None: somebody on another host may."""
        self.asker = asker
        self.future = future
        self.timeout = timeout


class Requests:
    """The open requests of one Reef; used on its loop only."""

    def __init__(self, ledger: Ledger, publisher: Publisher) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._pending: dict[str, Pending] = {}
        self.inbox: str | None = None
        """The channel on which replies come in over the transport."""

    def __len__(self) -> int:
        return len(self._pending)

    async def ask(
        self,
        posted: Posted,
        runner: AgentRunner | None,
        asker: Worker | None,
        timeout: float,
        through: AgentRunner,
    ) -> Spore:
        """Send a request and wait for its reply.

        Args:
            posted: the request.
            runner: who alone can answer; None: somebody on another host may.
            asker: the worker whose handler asks; None: nobody's.
            timeout: seconds.
            through: whose mailbox takes it: the runner's own, or the outbox.

        Raises:
            UnknownAgentError: no host has such an agent.
            RequestTimeoutError: no reply within ``timeout`` seconds.
            RequestFailedError: the agent failed, refused it, or was gone.
            RequestCycleError: waiting for the reply would wait for ever.
        """
        loop = self._ledger.loop
        pending = Pending(
            posted.header,
            runner=runner,
            asker=asker,
            future=loop.create_future(),
            timeout=timeout,
        )
        if asker is not None:
            if (refusal := self._cycle(pending)) is not None:
                self._ledger.published += 1
                self._ledger.count(posted, Outcome.REJECTED, Reason.REQUEST_CYCLE, refusal)
                raise refusal
            asker.waiting_for.add(pending)
        self._pending[pending.id] = pending
        timer = loop.call_later(timeout, self._time_out, pending)
        try:
            soft = asker is not None
            if not self._publisher.hand_over_at_once(posted, through, soft=soft):
                try:
                    async with asyncio.timeout(timeout):
                        await self._publisher.hand_over(posted, through, soft=soft)
                except TimeoutError:
                    self._time_out(pending)  # no room in all that time
                except PravalError:
                    if not pending.future.done():
                        raise  # else the loss has been told already, with this as its cause
            return await pending.future
        finally:
            timer.cancel()
            self._pending.pop(pending.id, None)
            if asker is not None:
                asker.waiting_for.discard(pending)

    def reply(self, posted: Posted, runner: AgentRunner, result: Mapping[str, Any]) -> None:
        """Give the reply to whoever asked; if nobody waits any more, count it."""
        answer = self._compose(posted, runner.name, result)
        self._ledger.published += 1
        if (pending := self._waiting_for(posted)) is not None:
            self._ledger.count_reply()
            pending.future.set_result(answer.open())
        elif self._is_remote(posted) and not self._is_late(posted):
            self._publisher.send_reply(answer, posted)
        else:
            self._ledger.count(answer, Outcome.UNDELIVERABLE, Reason.LATE_REPLY)

    def _compose(
        self,
        posted: Posted,
        agent: str,
        result: Mapping[str, Any],
        headers: dict[str, str] | None = None,
    ) -> Posted:
        head = posted.header
        raw = encode_knowledge(result, self._publisher.max_size)
        header = Header(  # by position, in the order of Header's fields: this is a hot path
            new_id(), self._ledger.clock(), head.deadline if head.reply_to else None,
            spore_type_of(result), head.reply_to or head.channel, agent, self._asker(posted),
            head.priority, _RESPONSE, head.id, None, head.root or head.id, head.hops + 1,
            None, None, headers,
        )  # fmt: skip
        return self._publisher.intercept(Posted(header, raw))

    def asked(self, request_id: str | None) -> str | None:
        """Return whom an open request asks; None: nobody waits for its reply."""
        pending = self._pending.get(request_id or "")
        return None if pending is None else pending.to

    def _waiting_for(self, posted: Posted) -> Pending | None:
        pending = self._pending.get(posted.header.id)
        return None if pending is None or pending.future.done() else pending

    def _is_remote(self, posted: Posted) -> bool:
        """Whether this request came from another Reef, over the transport."""
        reply_to = posted.header.reply_to
        return posted.wire is not None and reply_to is not None and reply_to != self.inbox

    def _asker(self, posted: Posted) -> str | None:
        """Return who asked; to a sealed wire a process has a name, too."""
        asker = posted.header.from_agent
        if asker is None and posted.wire is not None and self._is_remote(posted):
            return posted.wire.sender
        return asker

    def _is_late(self, posted: Posted) -> bool:
        """Whether the asker's time is up."""
        deadline = posted.header.deadline
        return deadline is not None and deadline <= self._ledger.clock()

    def answered(self, answer: Posted) -> None:
        """Take the reply, good or bad, that came over the transport."""
        header = answer.header
        pending = self._pending.get(header.correlation_id or "")
        if pending is None or pending.future.done() or header.from_agent != pending.to:
            self._ledger.count(answer, Outcome.UNDELIVERABLE, Reason.LATE_REPLY)
            return
        self._ledger.count_reply()
        if (failure := (header.headers or {}).get(FAILURE)) is None:
            pending.future.set_result(answer.open())
        else:
            pending.future.set_exception(
                RequestFailedError(
                    f"Agent {pending.to!r} did not answer request {pending.id}: {failure}."
                )
            )

    def lost(self, posted: Posted, agent: str, reason: Reason, error: BaseException | None) -> None:
        """A request ended otherwise than handled: its asker must not wait."""
        pending = self._waiting_for(posted)
        if pending is None:
            returned = posted.wire is not None and posted.wire.returned
            if self._is_remote(posted) and not returned and not self._is_late(posted):
                self._refuse(posted, agent, reason, error)
            return
        runner = pending.runner
        if (
            runner is not None
            and runner.agent.options.on_error == "raise"
            and isinstance(error, Exception)
        ):
            pending.future.set_exception(error)
            return
        if isinstance(error, UnknownAgentError):
            pending.future.set_exception(error)
            return
        if reason in (Reason.TTL, Reason.NOT_SENT, Reason.NO_RECEIPT):
            self._time_out(pending)  # its deadline: the timer was only a little later
            return
        first = error  # quoting each failure in the next would double its quotes each time
        while isinstance(first, RequestFailedError) and first.__cause__ is not None:
            first = first.__cause__
        cause = f": {shown(first)}" if first is not None else ""
        failure = RequestFailedError(
            f"Agent {pending.to!r} did not answer request {pending.id}: {reason.value}{cause}."
        )
        failure.__cause__ = error
        pending.future.set_exception(failure)

    def _refuse(
        self, posted: Posted, agent: str, reason: Reason, error: BaseException | None
    ) -> None:
        """Tell the asker on another host that no reply will come."""
        text = reason.value if error is None else f"{reason.value}: {shown(error)}"
        text = text.encode(errors="backslashreplace").decode()[:MOST_OF_AN_ERROR]
        try:
            answer = self._compose(posted, agent, {}, {FAILURE: text})
        except Exception as refusal:  # noqa: BLE001 - an interceptor's; it must not break the Reef
            log.error("request %s: nobody tells its asker: %s", posted.header.id, shown(refusal))
            return
        self._ledger.published += 1
        self._publisher.send_reply(answer, posted)

    def close(self, error: Exception) -> None:
        """Fail every open request."""
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(error)

    def _time_out(self, pending: Pending) -> None:
        if not pending.future.done():
            pending.future.set_exception(
                RequestTimeoutError(
                    f"Agent {pending.to!r} did not answer within {pending.timeout} s. "
                    "Raise timeout=, or look at reef.get_statistics() for a backlog."
                )
            )

    # -- cycles --------------------------------------------------------------------------

    def _cycle(self, new: Pending) -> RequestCycleError | None:
        """Return an error if no worker that could answer ``new`` can go on without its reply."""
        asker = new.asker
        assert asker is not None
        if new.runner is None or _has_free_slot(new.runner):
            return None
        waits: dict[Worker, set[Pending]] = {asker: {new}}
        todo = [asker]
        while todo:
            for pending in waits[todo.pop()]:
                if pending.runner is None:
                    continue
                for worker in _at_it(pending) or pending.runner.workers:
                    if worker not in waits:
                        waits[worker] = set(worker.waiting_for)
                        todo.append(worker)
        going: set[Worker] = set()
        while more := {
            worker
            for worker, pendings in waits.items()
            if worker not in going and all(_can_come(pending, going) for pending in pendings)
        }:
            going |= more
        if asker not in going:
            names = " -> ".join(dict.fromkeys(worker.runner.name for worker in waits))
            return RequestCycleError(
                f"Agent {asker.runner.name!r} would wait for ever for {new.to!r}: all "
                f"that could answer wait for one another ({names}). Use concurrent=, or "
                "broadcast() instead of a request."
            )
        return None


def _has_free_slot(runner: AgentRunner) -> bool:
    return sum(1 for worker in runner.workers if worker.posted is not None) < runner.limit


def _at_it(pending: Pending) -> list[Worker]:
    """Return the workers that handle this request; none: it waits for a worker."""
    return [
        worker
        for worker in (pending.runner.workers if pending.runner is not None else ())
        if worker.posted is not None and worker.posted.header.id == pending.id
    ]


def _can_come(pending: Pending, going: set[Worker]) -> bool:
    """Whether a reply has come already, or some worker can give it."""
    if pending.runner is None or pending.future.done():
        return True  # it may come from another host; or its asker has not gone on yet
    if at_it := _at_it(pending):
        return not going.isdisjoint(at_it)
    return _has_free_slot(pending.runner) or not going.isdisjoint(pending.runner.workers)
