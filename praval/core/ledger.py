"""The ledger of one Reef: every delivery begins and ends here, and is counted once.

:meth:`Ledger.settle` is the only place where a delivery ends; what ends otherwise than handled
passes :meth:`Ledger.lose` first, which says why, tells whoever waits, and keeps the dead letter.
Look there for lost messages: nothing else may drop one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from praval.core.delivery import (
    INBOUND,
    DeadLetter,
    Failure,
    Outcome,
    Posted,
    Reason,
    Tally,
    shown,
)
from praval.core.spore import Spore, decode_knowledge, read_wire, wire_bytes
from praval.errors import JournalError, RequestFailedError

if TYPE_CHECKING:
    from praval.core.journal import Journal
    from praval.core.runner import AgentRunner, Emission

log = logging.getLogger("praval.ledger")

_HANDLED = Outcome.HANDLED
BURIED = (Outcome.FAILED, Outcome.EXPIRED)
"""Outcomes that leave a dead letter."""

LossListener: TypeAlias = (
    "Callable[[Posted, AgentRunner | None, Outcome, Reason, BaseException | None], None]"
)


class Ledger(Tally):
    """Counts, dead letters and quiescence of one Reef; used on its loop only."""

    __slots__ = (
        "_broken", "_dead_rows", "_idle", "clock", "dead_letters", "deliver", "in_transit",
        "journal", "listeners", "loop",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        journal: Journal | None,
        dead_letters: int,
    ) -> None:
        super().__init__()
        self.deliver: Callable[[Posted, tuple[AgentRunner, ...]], None]
        """Hands over what a transactional handler emitted; set by the publisher."""
        self.loop = loop
        self.clock = clock
        self.journal = journal
        self.dead_letters: deque[DeadLetter] = deque(maxlen=dead_letters)
        self.in_transit = 0
        """Accepted deliveries that are not in a mailbox yet: no room there, or not journalled."""
        self.listeners: list[LossListener] = []
        """Called for every loss: open requests, error events."""
        self._dead_rows: dict[str, asyncio.Future[int]] = {}
        self._idle: list[asyncio.Future[None]] = []
        self._broken: BaseException | None = None

    # -- beginning -----------------------------------------------------------------------

    def accept(self, posted: Posted, deliveries: int) -> None:
        """So many deliveries of a spore begin."""
        self.deliveries += deliveries
        self.pending += deliveries
        if posted.wire is not None:
            posted.wire.begun()
        if posted.tree is not None and posted.tree.watch is not None:
            posted.tree.watch.accept(deliveries)

    def count(
        self,
        posted: Posted,
        outcome: Outcome,
        reason: Reason | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Count a delivery that ends as it begins: nobody's mailbox ever held it."""
        self.accept(posted, 1)
        if reason is not None:
            self.lose(posted, None, outcome, reason, error)
        self.settle(posted, None, outcome)

    def count_reply(self) -> None:
        """Count a reply that its asker gets right now."""
        self.deliveries += 1
        self.counts[_HANDLED] += 1

    def count_refused(self, reason: Reason, *, told: bool = False) -> None:
        """Count something that came in and is no spore; ``told``: it was logged with more words."""
        self.deliveries += 1
        self.counts[Outcome.REJECTED] += 1
        self.reasons[reason] += 1
        if not told:
            log.error("something came in that was refused: %s", reason.value)

    def count_duplicate(self, posted: Posted) -> None:
        """End an accepted delivery whose id was seen before."""
        self.lose(posted, None, Outcome.DUPLICATE, Reason.SAME_ID, None)
        self.settle(posted, None, Outcome.DUPLICATE)

    # -- ending --------------------------------------------------------------------------

    def settle(
        self,
        posted: Posted,
        runner: AgentRunner | None,
        outcome: Outcome,
        emitted: Sequence[Emission] = (),
    ) -> asyncio.Future[None] | None:
        """End a delivery. With a journal, return the future of its mark.

        ``emitted`` was emitted by a transactional handler: it is accepted with this mark.
        """
        for spore, runners in emitted:
            self.accept(spore, len(runners))
        if runner is None:
            self.counts[outcome] += 1
        self.pending -= 1
        watch = posted.tree.watch if posted.tree is not None else None
        if watch is not None:
            watch.settle(outcome)
        if not self.pending:
            self.became_idle()
        mark: asyncio.Future[None] | None = None
        wire = posted.wire
        if self.journal is None or runner is None or outcome in BURIED:
            for spore, runners in emitted:
                self.deliver(spore, runners)
        elif wire is None or not wire.returned:  # else it is not over: the broker has it
            mark = self._mark(self.journal, posted, runner, outcome, emitted)
        if wire is not None:
            buried = None if runner is None else self._dead_rows.get(_letter_id(posted, runner))
            wire.settled(outcome, mark or buried)
        return mark

    def lose(
        self,
        posted: Posted,
        runner: AgentRunner | None,
        outcome: Outcome,
        reason: Reason,
        error: BaseException | None,
    ) -> None:
        """Record why a delivery is about to end otherwise than handled."""
        self.reasons[reason] += 1
        name = runner.name if runner is not None else None
        # an unanswered request was logged where it failed; a chain of them would be told each time
        told = outcome is not Outcome.FAILED or isinstance(error, RequestFailedError)
        log.log(
            logging.ERROR if outcome is Outcome.FAILED else logging.DEBUG,
            "spore %s (%s) to agent %s: %s, %s%s",
            posted.header.id, posted.header.type, name, outcome.name.lower(), reason.value,
            f": {shown(error)}" if error is not None else "",
            exc_info=None if told else error,
        )  # fmt: skip
        if outcome in BURIED and runner is not None:
            self._bury(posted, runner, reason, error)
        if posted.wire is not None:
            posted.wire.lost(outcome, reason, error)
        watch = posted.tree.watch if posted.tree is not None else None
        if watch is not None and outcome not in (Outcome.FILTERED, Outcome.UNDELIVERABLE):
            watch.failures.append(Failure(name, posted.open(), outcome, reason, error))
        for listener in self.listeners:
            listener(posted, runner, outcome, reason, error)

    def _bury(
        self, posted: Posted, runner: AgentRunner, reason: Reason, error: BaseException | None
    ) -> None:
        letter = DeadLetter(
            id=_letter_id(posted, runner),
            spore=posted.open(),
            agent=runner.name,
            reason=reason,
            error=shown(error) if error is not None else reason.value,
            attempts=posted.attempt,
            at=self.clock(),
        )
        self._keep(letter)
        if self.journal is None:
            return
        with contextlib.suppress(JournalError):  # it is dead: the Reef is told when it next begins
            self._dead_rows[letter.id] = self.journal.bury(
                posted.journal_id,
                posted.journal_name(runner.name),
                reason.value,
                letter.error,
                posted.attempt,
            )

    def _keep(self, letter: DeadLetter) -> None:
        """Remember a dead letter; the oldest one makes room, and stays in the journal."""
        if len(self.dead_letters) == self.dead_letters.maxlen:
            self._dead_rows.pop(self.dead_letters[0].id, None)
        self.dead_letters.append(letter)

    def _mark(
        self,
        journal: Journal,
        posted: Posted,
        runner: AgentRunner,
        outcome: Outcome,
        emitted: Sequence[Emission],
    ) -> asyncio.Future[None]:
        rows = [
            (spore.header.id, wire_bytes(spore.header, spore.raw), tuple(r.name for r in runners))
            for spore, runners in emitted
        ]
        for spore, runners in emitted:
            for receiver in runners:
                receiver.accepted(spore)
        try:
            name = posted.journal_name(runner.name)
            mark = journal.settle(posted.journal_id, name, outcome.name.lower(), rows)
        except JournalError as error:  # it is dead: the Reef will be told when it next begins
            mark = self.loop.create_future()
            mark.set_exception(error)
            mark.exception()  # seen here; whoever awaits the mark sees it again

        def hand_over(done: asyncio.Future[None]) -> None:
            failed = done.cancelled() or done.exception() is not None
            for spore, runners in emitted:
                self.in_transit -= len(runners)
                if not failed:
                    self.deliver(spore, runners)
                    continue
                for receiver in runners:
                    receiver.lose(None, spore, Outcome.REJECTED, Reason.JOURNAL)

        if emitted:
            self.in_transit += sum(len(runners) for _, runners in emitted)
            mark.add_done_callback(hand_over)
        return mark

    def absorb(self, runner: AgentRunner) -> None:
        """Take over the counts of an agent that is gone."""
        self.counts[:] = [a + b for a, b in zip(self.counts, runner.counts, strict=True)]
        runner.counts = self.counts  # publishers that waited for it may end deliveries yet

    # -- dead letters --------------------------------------------------------------------

    async def restore(self, journal: Journal) -> None:
        """Take the dead letters over from the journal."""
        for entry in await journal.dead(self.dead_letters.maxlen or 0):
            row: asyncio.Future[int] = self.loop.create_future()
            row.set_result(entry.id)
            header, raw, _ = read_wire(entry.body, len(entry.body))
            agent = entry.agent.removeprefix(INBOUND)
            letter = DeadLetter(
                id=f"{entry.spore_id}:{agent}",
                spore=Spore(header, decode_knowledge(raw), entry.attempts),
                agent=agent,
                reason=Reason(entry.reason),
                error=entry.error,
                attempts=entry.attempts,
                at=entry.at,
            )
            self._keep(letter)
            self._dead_rows[letter.id] = row

    def find_dead(self, letter_id: str) -> DeadLetter | None:
        """Return a dead letter by its id."""
        return next((letter for letter in self.dead_letters if letter.id == letter_id), None)

    @contextlib.contextmanager
    def replaying(self, letter: DeadLetter) -> Iterator[None]:
        """Take a letter out, so that nobody else replays it; put it back if that fails."""
        self.dead_letters.remove(letter)
        try:
            yield
        except BaseException:
            self.dead_letters.append(letter)
            raise

    async def forget_dead(self, letter: DeadLetter) -> None:
        """Remove a replayed letter from the journal."""
        row = self._dead_rows.pop(letter.id, None)
        if row is not None and self.journal is not None:
            await self.journal.drop_dead(await row)

    def forget_dead_before(self, at: float) -> None:
        """Forget the dead letters buried before a time (UTC seconds)."""
        while self.dead_letters and self.dead_letters[0].at < at:
            self._dead_rows.pop(self.dead_letters.popleft().id, None)

    # -- quiescence ----------------------------------------------------------------------

    def became_idle(self) -> None:
        """Wake whoever waits for the last pending delivery."""
        waiters, self._idle = self._idle, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_idle(self) -> None:
        """Return when no delivery is pending."""
        while self.pending:
            if self._broken is not None:
                raise self._broken
            waiter: asyncio.Future[None] = self.loop.create_future()
            self._idle.append(waiter)
            await waiter

    def fail_waiters(self, error: BaseException) -> None:
        """The Reef is broken or closed: waiting would be in vain, now and later."""
        self._broken = error
        waiters, self._idle = self._idle, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)


def _letter_id(posted: Posted, runner: AgentRunner) -> str:
    return f"{posted.journal_id}:{runner.name}"
