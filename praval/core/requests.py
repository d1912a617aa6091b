"""Requests: a spore to one agent, and the wait for its reply.

Agents that ask one another in a circle would wait for ever when each handles one spore at a
time. Before a handler waits, the wait-for graph is looked at: if no worker that could answer can
go on without this very answer, :class:`~praval.errors.RequestCycleError` is raised.
"""

from __future__ import annotations

import asyncio
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
from praval.errors import PravalError, RequestCycleError, RequestFailedError, RequestTimeoutError

if TYPE_CHECKING:
    from praval.core.ledger import Ledger
    from praval.core.publisher import Publisher
    from praval.core.runner import AgentRunner, Worker


_RESPONSE = SporeType.RESPONSE


class Pending:
    """A request whose reply has not come."""

    __slots__ = ("asker", "future", "id", "runner", "timeout")

    def __init__(
        self,
        request_id: str,
        runner: AgentRunner,
        asker: Worker | None,
        future: asyncio.Future[Spore],
        timeout: float,
    ) -> None:
        self.id = request_id
        self.runner = runner
        self.asker = asker
        self.future = future
        self.timeout = timeout


class Requests:
    """The open requests of one Reef; used on its loop only."""

    def __init__(self, ledger: Ledger, publisher: Publisher) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._pending: dict[str, Pending] = {}

    def __len__(self) -> int:
        return len(self._pending)

    async def ask(
        self, posted: Posted, runner: AgentRunner, asker: Worker | None, timeout: float
    ) -> Spore:
        """Send a request and wait for its reply.

        Raises:
            RequestTimeoutError: no reply within ``timeout`` seconds.
            RequestFailedError: the agent failed, refused it, or was gone.
            RequestCycleError: waiting for the reply would wait for ever.
        """
        loop = self._ledger.loop
        pending = Pending(posted.header.id, runner, asker, loop.create_future(), timeout)
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
            if not self._publisher.hand_over_at_once(posted, runner, soft=soft):
                try:
                    async with asyncio.timeout(timeout):
                        await self._publisher.hand_over(posted, runner, soft=soft)
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
        head = posted.header
        raw = encode_knowledge(result, self._publisher.max_size)
        header = Header(  # by position, in the order of Header's fields: this is a hot path
            new_id(), self._ledger.clock(), None, spore_type_of(result),
            head.reply_to or head.channel, runner.name, head.from_agent, head.priority,
            _RESPONSE, head.id, None, head.root or head.id, head.hops + 1,
        )  # fmt: skip
        answer = self._publisher.intercept(Posted(header, raw))
        self._ledger.published += 1
        pending = self._pending.get(head.id)
        if pending is None or pending.future.done():
            self._ledger.count(answer, Outcome.UNDELIVERABLE, Reason.LATE_REPLY)
        else:
            self._ledger.count_reply()
            pending.future.set_result(answer.open())

    def lost(self, posted: Posted, agent: str, reason: Reason, error: BaseException | None) -> None:
        """A request ended otherwise than handled: its asker must not wait."""
        pending = self._pending.get(posted.header.id)
        if pending is None or pending.future.done():
            return
        if pending.runner.agent.options.on_error == "raise" and isinstance(error, Exception):
            pending.future.set_exception(error)
            return
        if reason is Reason.TTL:  # its deadline: the timer was only a little later
            self._time_out(pending)
            return
        first = error  # quoting each failure in the next would double its quotes each time
        while isinstance(first, RequestFailedError) and first.__cause__ is not None:
            first = first.__cause__
        cause = f": {shown(first)}" if first is not None else ""
        failure = RequestFailedError(
            f"Agent {agent!r} did not answer request {posted.header.id}: {reason.value}{cause}."
        )
        failure.__cause__ = error
        pending.future.set_exception(failure)

    def close(self, error: Exception) -> None:
        """Fail every open request."""
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(error)

    def _time_out(self, pending: Pending) -> None:
        if not pending.future.done():
            pending.future.set_exception(
                RequestTimeoutError(
                    f"Agent {pending.runner.name!r} did not answer within {pending.timeout} s. "
                    "Raise timeout=, or look at reef.get_statistics() for a backlog."
                )
            )

    # -- cycles --------------------------------------------------------------------------

    def _cycle(self, new: Pending) -> RequestCycleError | None:
        """Return an error if no worker that could answer ``new`` can go on without its reply."""
        asker = new.asker
        assert asker is not None
        if _has_free_slot(new.runner):
            return None
        waits: dict[Worker, set[Pending]] = {asker: {new}}
        todo = [asker]
        while todo:
            for pending in waits[todo.pop()]:
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
                f"Agent {asker.runner.name!r} would wait for ever for {new.runner.name!r}: all "
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
        for worker in pending.runner.workers
        if worker.posted is not None and worker.posted.header.id == pending.id
    ]


def _can_come(pending: Pending, going: set[Worker]) -> bool:
    """Whether a reply has come already, or some worker can give it."""
    if pending.future.done():
        return True  # its asker has not gone on yet
    if at_it := _at_it(pending):
        return not going.isdisjoint(at_it)
    return _has_free_slot(pending.runner) or not going.isdisjoint(pending.runner.workers)
