"""A runner is an agent at work in one Reef: its mailbox and its workers.

Workers are persistent tasks. One is started with the first spore; another only when every
worker is really suspended inside a handler while spores wait, up to the agent's concurrency.
Nothing on the path of an ordinary delivery makes a task, a timer or a span.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from praval.core.agent import SYSTEM_TYPES, AgentDefinition
from praval.core.context import current_posted, current_worker
from praval.core.delivery import Ending, Outcome, Posted, Reason, shown
from praval.core.invoke import Invoke, build_invoke
from praval.core.mailbox import Mailbox
from praval.core.spore import Header, Spore, SporeType, decode_knowledge, read_wire
from praval.errors import CrashLoopError, ExpiredError, HandlerTimeoutError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from praval.core.journal import Entry, Journal
    from praval.core.ledger import Ledger
    from praval.core.reef import Reef
    from praval.core.requests import Pending
    from praval.core.tree import Watch

log = logging.getLogger("praval.runner")

STREAK = 128
"""Deliveries a worker handles before it lets the loop do something else."""
KEPT_IDLE = 8
"""Idle workers that a concurrent agent keeps for its next burst."""
CRASHES = 3
"""Attempts, beyond its retries, that a delivery gets when its process died while handling it."""

_HANDLED = Outcome.HANDLED
_REQUEST = SporeType.REQUEST
Interruption = Literal["timeout", "stop", "close"]
Emission: TypeAlias = "tuple[Posted, tuple[AgentRunner, ...]]"
"""A spore and who is to receive it."""


def put_all(posted: Posted, receivers: Sequence[AgentRunner]) -> int:
    """Put an ordinary spore into the mailboxes of its receivers, up to the first without room.

    Returns how many have got it. This is the hot path of a broadcast.
    """
    for served, runner in enumerate(receivers):
        mailbox = runner.mailbox
        if mailbox.special or mailbox.crowded or len(mailbox.fifo) >= mailbox.capacity:
            return served
        mailbox.fifo.append(posted)
        if runner.asleep:
            runner.stir()
    return len(receivers)


class Worker:
    """One task of a runner, and what it is doing."""

    __slots__ = (
        "cancels", "gated", "held", "interruption", "posted", "runner", "task", "waiting_for",
    )  # fmt: skip

    def __init__(self, runner: AgentRunner) -> None:
        self.runner = runner
        self.task: asyncio.Task[None]
        self.gated: Posted | None = None
        """The delivery that waits for the throttle or the journal."""
        self.posted: Posted | None = None
        """The delivery that it is handling."""
        self.interruption: Interruption | None = None
        self.cancels = 0
        """Cancellations asked for since the last handler that survived them."""
        self.waiting_for: set[Pending] = set()
        """Requests whose replies this handling waits for."""
        self.held: list[Emission] = []
        """What a transactional handler emitted so far."""

    def interrupt(self, why: Interruption) -> None:
        """Cancel the handler (not the worker, unless the Reef closes)."""
        self.interruption = why
        self.cancels += 1
        self.task.cancel(f"praval: {why}")

    def outlive(self) -> None:
        """The handler caught its cancellation and came to an end of its own."""
        if self.interruption != "close":
            self.interruption = None
            for _ in range(self.cancels):
                self.task.uncancel()
            self.cancels = 0


class AgentRunner:
    """An agent at work in one Reef. Everything here runs on the Reef's loop."""

    def __init__(self, agent: AgentDefinition, reef: Reef, ledger: Ledger, main: str) -> None:
        self.reef = reef
        self.ledger = ledger
        self.main = main
        self.mailbox = Mailbox(reef.settings.reef_config.channel_capacity)
        self.counts = [0] * len(Outcome)
        self.workers: dict[Worker, None] = {}
        """In order of starting, so that whatever is done to all of them has an order."""
        self.delayed: dict[Posted, asyncio.TimerHandle] = {}
        self.last_seen: float | None = None
        self.gone: Reason | None = None
        """Why this agent takes nothing any more: it was removed, or the Reef closed."""
        self.asleep = True
        """Whether a spore put into the mailbox needs :meth:`stir` to be noticed."""
        self._idle: list[asyncio.Future[None]] = []
        self._fresh: set[str] | None = None if reef.journal is None else set()
        self._probing = False
        self._starts: deque[float] = deque()
        self._settling: asyncio.Future[None] | None = None
        self.bind(agent)

    def bind(self, agent: AgentDefinition) -> None:
        """Use this definition from the next delivery on.

        Raises:
            HandlerSignatureError: it cannot be used; the old one stays.
        """
        invoke = self._compose(agent)
        self.agent = agent
        self.invoke = invoke
        self.limit = agent.options.concurrency
        self._elastic = self.limit > 1
        self.asleep = True
        self._gated = (
            agent.options.max_calls_per_minute is not None or self.reef.journal is not None
        )
        self._careful = (
            agent.options.transactional
            or self.reef.journal is not None
            or self.reef.bridge is not None
        )
        """Whether ending a handled delivery takes more than counting it."""

    def _compose(self, agent: AgentDefinition) -> Invoke:
        """Make what a worker calls."""
        return build_invoke(agent, self.reef, self.reef.threads, self.reef.interceptors)

    @property
    def name(self) -> str:
        """The agent's name."""
        return self.agent.name

    def responds(self, header: Header) -> bool:
        """Whether the agent's ``responds_to`` admits a spore of this type."""
        types = self.agent.options.responds_to
        if types is None:
            return header.type not in SYSTEM_TYPES
        return header.type in types

    @property
    def _most_attempts(self) -> float:
        return self.agent.options.retries + 1 + CRASHES

    def _may_start(self, watch: Watch) -> bool:
        """Ask whoever waits for a tree for leave to handle one of its deliveries."""
        return watch.start()

    def accepted(self, posted: Posted) -> None:
        """Remember that this process holds a delivery, until the journal's have been taken back."""
        if self._fresh is not None:
            self._fresh.add(posted.header.id)

    @property
    def channels(self) -> tuple[str, str]:
        """The channels it hears: its own, or the session's main one, and its private one."""
        return self.agent.options.channel or self.main, f"{self.name}_channel"

    @property
    def pending(self) -> int:
        """Deliveries that wait, are being handled, or will be retried."""
        taken = sum(1 for worker in self.workers if worker.posted or worker.gated)
        return self.mailbox.size + taken + len(self.delayed)

    # -- accepting -----------------------------------------------------------------------

    def put(self, posted: Posted) -> None:
        """Accept a delivery that has been counted."""
        if self.gone is None:
            self.mailbox.put(posted)
            self.stir()
        elif self._stays(posted, self.gone):
            self.mailbox.put(posted)
        else:
            self.lose(None, posted, Outcome.CANCELLED, self.gone)

    def has_room(self, posted: Posted) -> bool:
        """Whether a publisher may put a spore now, without passing others that wait."""
        return self.mailbox.has_room()

    async def wait_for_room(self, posted: Posted) -> None:
        """Wait until there is room for a spore, or the agent is gone."""
        mailbox = self.mailbox
        await mailbox.wait_for_room()
        while mailbox.size >= mailbox.capacity and self.gone is None:
            await mailbox.wait_for_room()

    def why_full(self, posted: Posted) -> str:
        """Say why there is no room for a spore, and what to do."""
        return (
            f"The mailbox of agent {self.name!r} is full ({self.mailbox.size} spores). Slow "
            "down, give it concurrent=, or raise reef_config.channel_capacity."
        )

    def take_oldest(self, posted: Posted) -> Posted | None:
        """Remove what has waited for longest, to make room for a spore; its caller settles it."""
        return self.mailbox.take_oldest()

    def stir(self) -> None:
        """See to it that somebody takes what was put into the mailbox."""
        if self._idle:
            self._idle.pop().set_result(None)
        elif not self.workers:
            self._start_worker()
        elif len(self.workers) < self.limit and not self._probing:
            self._probe_soon()
        self.asleep = bool(self._idle) or self.limit > 1

    def _start_worker(self) -> None:
        worker = Worker(self)
        self.workers[worker] = None
        worker.task = self.reef.loop.create_task(
            self._work(worker), name=f"praval:{self.name}", context=self.reef.fresh_context()
        )
        worker.task.add_done_callback(self._worker_ended)

    def _worker_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            if self.mailbox.ready and self.gone is None:
                # a handler cancelled its own task, or this worker was one too many: what waits
                # is not to wait for ever
                self.stir()
            return
        # Only a bug of ours or a dead journal can get here; what waits must not wait in silence.
        self.reef.fail(error)

    def _probe_soon(self) -> None:
        """Look again when every worker that can go on has gone on."""
        self._probing = True
        self.reef.loop.call_soon(self._probe)

    def _probe(self) -> None:
        """Start workers if spores wait while all there are hang inside their handlers.

        This runs between two steps of the loop, so a worker inside its handler is suspended there.
        """
        self._probing = False
        if not self.mailbox.ready or len(self.workers) >= self.limit:
            return
        if any(worker.posted is None for worker in self.workers):
            return  # it will take the next one, and look again then
        wanted = min(len(self.workers), self.mailbox.ready, self.limit - len(self.workers))
        for _ in range(int(wanted)):
            self._start_worker()

    # -- working -------------------------------------------------------------------------

    async def _work(self, worker: Worker) -> None:  # noqa: PLR0912, PLR0915 - see below
        """Take spores and handle them, one after the other. The hot path: every line counts."""
        current_worker.set(worker)
        mailbox, clock, counts, ledger = self.mailbox, self.reef.clock, self.counts, self.ledger
        fifo, low_mark, set_posted = mailbox.fifo, mailbox.low_mark, current_posted.set
        popleft = fifo.popleft
        try:
            while True:
                for _ in range(STREAK):
                    if fifo and not mailbox.special:
                        posted = popleft()
                        if mailbox.crowded and len(fifo) <= low_mark:
                            mailbox.admit()
                    elif (taken := mailbox.pop()) is not None:
                        posted = taken
                    elif await self._rest():
                        continue
                    else:
                        return
                    if self._gated:
                        await self._pass_gates(worker, posted)
                    worker.posted = posted
                    header = posted.header
                    expires_at = header.expires_at
                    if expires_at is not None and expires_at <= clock():
                        self._expire(worker, posted)
                        continue
                    tree = posted.tree
                    if (
                        tree is not None
                        and tree.watch is not None
                        and not self._may_start(tree.watch)
                    ):
                        self.lose(worker, posted, Outcome.CANCELLED, Reason.STOPPED)
                        continue
                    load = posted.load
                    knowledge = decode_knowledge(posted.raw) if load is None else load()
                    set_posted(posted)
                    if self._elastic and not self._probing:
                        self._probe_soon()
                    try:
                        value = await self.invoke(Spore(header, knowledge, posted.attempt))
                        if value is not None or header.spore_type is _REQUEST:
                            self._finish(posted, value)
                    except BaseException as error:  # noqa: BLE001 - every ending is counted there
                        self._fail(worker, posted, error)
                        continue
                    ended = value.__class__ is Ending
                    if posted.tree is None and not ended and not self._careful:
                        # what _settle does, for a delivery that nobody follows
                        if header.key is not None:
                            mailbox.finished(header.key, header)
                        worker.posted = None
                        counts[_HANDLED] += 1
                        ledger.pending -= 1
                        if not ledger.pending:
                            ledger.became_idle()
                    elif isinstance(value, Ending):
                        self._end(worker, posted, value)
                    else:
                        self._settle(worker, posted, _HANDLED)
                await asyncio.sleep(0)
        finally:
            self.workers.pop(worker, None)
            self.asleep = True

    async def _rest(self) -> bool:
        """Wait for a spore; False: there are idle workers enough, this one ends."""
        self.last_seen = self.reef.clock()
        if self._settling is not None:
            settling, self._settling = self._settling, None
            await asyncio.shield(settling)  # others wait for that mark, too
        if self.mailbox.ready:
            return True
        if self.gone or len(self._idle) >= KEPT_IDLE or len(self.workers) > self.limit:
            return False
        future: asyncio.Future[None] = self.reef.loop.create_future()
        self._idle.append(future)
        self.asleep = True
        try:
            await future
        finally:
            if future in self._idle:
                self._idle.remove(future)
        return len(self.workers) <= self.limit  # fewer may be wanted since

    async def _pass_gates(self, worker: Worker, posted: Posted) -> None:
        """Wait for the throttle, then write the attempt down before it begins."""
        worker.gated = posted
        try:
            if worker.interruption == "close":
                raise asyncio.CancelledError  # the last handler caught it; the worker must not
            if self.agent.options.max_calls_per_minute is not None:
                await self._throttle(self.agent.options.max_calls_per_minute)
            journal = self.reef.journal
            if journal is not None:
                # the mark of the one before was written first: one commit serves both
                name = posted.journal_name(self.name)
                await journal.begin(posted.journal_id, name, posted.attempt)
        except BaseException:
            if self.gone is None or self._stays(posted, self.gone):
                self.mailbox.put_back(posted)  # it never began: it still waits
            else:
                self.lose(None, posted, Outcome.CANCELLED, self.gone)
            raise
        finally:
            worker.gated = None

    async def _throttle(self, per_minute: float) -> None:
        """Wait until fewer than ``per_minute`` handlings began in the last 60 seconds."""
        burst = max(1, int(per_minute))
        window = 60.0 * burst / per_minute
        while len(self._starts) >= burst:
            wait = self._starts[0] + window - self.reef.loop.time()
            if wait <= 0:
                self._starts.popleft()
            else:
                await asyncio.sleep(wait)
        self._starts.append(self.reef.loop.time())

    # -- ending --------------------------------------------------------------------------

    def _finish(self, posted: Posted, value: Any) -> None:
        """Turn what the handler returned into a reply, a result, a broadcast."""
        if value.__class__ is Ending:
            return
        result = value if isinstance(value, dict) else {"result": value}
        if posted.header.spore_type is _REQUEST:
            self.reef.requests.reply(posted, self, result)
        else:
            self._result(posted, result)

    def _result(self, posted: Posted, result: Mapping[str, Any]) -> None:
        watch = posted.tree.watch if posted.tree else None
        if self.agent.options.auto_broadcast and result.get("type") is not None:
            self.reef.emit(result, self)
        if watch is not None:
            watch.add_result(self.name, dict(result))

    def _end(self, worker: Worker, posted: Posted, ending: Ending) -> None:
        """The invocation says how the delivery ends, or that it has not ended yet."""
        if ending.outcome is None:
            worker.posted = None
        elif ending.reason is None:
            self._settle(worker, posted, ending.outcome)
        else:
            self.lose(worker, posted, ending.outcome, ending.reason, ending.error)

    def _expire(self, worker: Worker, posted: Posted) -> None:
        error = ExpiredError(f"Spore {posted.header.id} waited longer than its time to live.")
        self.lose(worker, posted, Outcome.EXPIRED, Reason.TTL, error)

    def _fail(self, worker: Worker, posted: Posted, error: BaseException) -> None:
        """The handler raised: retry, bury, or pass a cancellation on."""
        worker.held = []
        why = worker.interruption
        if why is not None:
            worker.outlive()
        if isinstance(error, asyncio.CancelledError):
            if why == "close" or (why is None and worker.task.cancelling()):
                self._close_down(worker, posted)
                raise error
            if why is None:
                self.lose(worker, posted, Outcome.CANCELLED, Reason.HANDLER_CANCELLED, error)
                return
            if why == "stop":
                self.lose(worker, posted, Outcome.CANCELLED, Reason.STOPPED)
                return
            limit = self.agent.options.timeout
            error = HandlerTimeoutError(
                f"Agent {self.name!r} took longer than its timeout of {limit} s for spore "
                f"{posted.header.id}. Raise timeout=, or make the handler faster."
            )
        late = isinstance(error, HandlerTimeoutError)
        reason = Reason.HANDLER_TIMEOUT if late else Reason.HANDLER_RAISED
        fatal = not isinstance(error, Exception)
        if posted.attempt <= self.agent.options.retries and not fatal:
            if self.gone is None:
                self._retry(worker, posted, error)
                return
            if posted.wire is not None and posted.wire.journal_prefix:
                self._close_down(worker, posted)  # whoever gets it from the broker may retry
                return
        self.lose(worker, posted, Outcome.FAILED, reason, error)
        if fatal:
            raise error

    def _close_down(self, worker: Worker, posted: Posted) -> None:
        """The Reef closes under a running handler: with a journal, the delivery stays there."""
        reason = self.gone or Reason.CLOSED
        if self.gone is None:  # its task was cancelled by somebody else, perhaps by itself
            posted = msgspec.structs.replace(posted, attempt=posted.attempt + 1)
        if self._stays(posted, reason) and posted.attempt <= self._most_attempts:
            worker.posted = None
            self.mailbox.put_back(posted)
        else:
            self.lose(worker, posted, Outcome.CANCELLED, reason)

    def _retry(self, worker: Worker, posted: Posted, error: BaseException) -> None:
        log.warning(
            "agent %s failed at spore %s (attempt %d of %d), will retry: %s",
            self.name, posted.header.id, posted.attempt, self.agent.options.retries + 1,
            shown(error),
        )  # fmt: skip
        again = msgspec.structs.replace(posted, attempt=posted.attempt + 1, last_error=error)
        delay = self.agent.options.backoff * 2 ** (posted.attempt - 1)
        worker.posted = None
        self.delayed[again] = self.reef.loop.call_later(delay, self._requeue, again)

    def _requeue(self, posted: Posted) -> None:
        del self.delayed[posted]
        self.mailbox.put_back(posted)
        self.stir()

    def lose(
        self,
        worker: Worker | None,
        posted: Posted,
        outcome: Outcome,
        reason: Reason,
        error: BaseException | None = None,
    ) -> None:
        """Settle one of this agent's deliveries that ends otherwise than handled."""
        if error is None:
            error = posted.last_error  # a retry that never came must not hide why it was due
        self.ledger.lose(posted, self, outcome, reason, error)
        self._settle(worker, posted, outcome)

    def _settle(self, worker: Worker | None, posted: Posted, outcome: Outcome) -> None:
        """The one place where an accepted delivery of an agent ends."""
        held: list[Emission] = []
        if worker is not None:
            held, worker.held = worker.held, []
            if worker.waiting_for:
                worker.waiting_for = set()  # requests of tasks that outlive their handler
            if worker.interruption is not None:
                worker.outlive()
            worker.posted = None
        key = posted.header.key
        if key is not None and self.mailbox.finished(key, posted.header) and worker is None:
            self.stir()  # nobody is on the way to the next spore of this key
        self.counts[outcome] += 1
        settling = self.ledger.settle(posted, self, outcome, held)
        if settling is not None:
            self._settling = settling

    # -- stopping ------------------------------------------------------------------------

    def stop_tree(self, root: str, *, interrupt: bool) -> None:
        """Give up what belongs to one causal tree: what waits, and on request what runs."""

        def mine(posted: Posted) -> bool:
            return posted.tree is not None and posted.tree.root == root

        for posted in [*self.mailbox.discard(mine), *self._cancel_delayed(mine)]:
            self.lose(None, posted, Outcome.CANCELLED, Reason.STOPPED)
        for worker in self.workers:
            if interrupt and worker.posted is not None and mine(worker.posted):
                worker.interrupt("stop")

    def clear(self, channel: str) -> int:
        """Give up what waits and came on this channel; return how many."""
        cleared = self.mailbox.discard(lambda posted: posted.header.channel == channel)
        for posted in cleared:
            self.lose(None, posted, Outcome.CANCELLED, Reason.CLEARED)
        return len(cleared)

    def abandon(self, reason: Reason) -> None:
        """Take nothing more and give up what waits; with a journal it stays there instead."""
        self.gone = reason
        self.mailbox.close()
        waiting = [*self.mailbox.discard(lambda _: True), *self._cancel_delayed(lambda _: True)]
        for posted in waiting:
            if self._stays(posted, reason):
                self.mailbox.put_back(posted)
            else:
                self.lose(None, posted, Outcome.CANCELLED, reason)

    def _stays(self, posted: Posted, reason: Reason) -> bool:
        """Whether what cannot be handled now stays in the journal for the next start."""
        if self.reef.journal is None or reason is not Reason.CLOSED:
            return False
        if posted.wire is not None and posted.wire.journal_prefix:
            return False  # it stays with the broker
        if posted.tree is not None and posted.tree.watch is not None:
            posted.tree.watch.finished.set()  # as far as this run is concerned
        return True

    def _cancel_delayed(self, mine: Any) -> list[Posted]:
        gone = [posted for posted in self.delayed if mine(posted)]
        for posted in gone:
            self.delayed.pop(posted).cancel()
        return gone

    async def cancel_workers(self, grace: float) -> None:
        """Cancel the workers and wait for them, ``grace`` seconds at most."""
        tasks = [worker.task for worker in self.workers]
        for worker in tuple(self.workers):
            worker.interrupt("close")
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=grace)
            for task in stubborn:
                log.error("%s did not end %s s after it was cancelled", task.get_name(), grace)

    async def retire(self, seconds: float) -> None:
        """Let the workers end after what they are handling; wait ``seconds`` at most."""
        for future in self._idle:
            future.set_result(None)
        self._idle.clear()
        if tasks := [worker.task for worker in self.workers]:
            await asyncio.wait(tasks, timeout=seconds)

    async def recover(self, journal: Journal) -> None:
        """Take back from the journal what was accepted for this agent and never settled."""
        entries = await journal.unsettled(self.name)
        fresh, self._fresh = self._fresh or (), None
        for entry in entries:
            if entry.spore_id in fresh:
                continue
            posted = revive(entry)
            self.ledger.accept(posted, 1)
            self.take_back(posted)

    def take_back(self, posted: Posted) -> None:
        """Go on with a delivery of an earlier process; one that keeps killing it is buried."""
        if posted.attempt > self._most_attempts:
            error = CrashLoopError(
                f"Spore {posted.header.id} was begun {posted.attempt - 1} times by agent "
                f"{self.name!r}, whose process or task died each time."
            )
            self.lose(None, posted, Outcome.FAILED, Reason.CRASH_LOOP, error)
        else:
            self.put(posted)


def revive(entry: Entry) -> Posted:
    """Make a delivery of a journal entry; the attempt is the next one."""
    header, raw, _ = read_wire(entry.body, len(entry.body))
    return Posted(header, raw, attempt=entry.attempt + 1)
