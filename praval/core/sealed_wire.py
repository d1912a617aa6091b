"""What ties a sealed spore that came in to its lease in the replay memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from praval.core.delivery import Outcome
from praval.core.replay import Key
from praval.core.replay import Outcome as Committed
from praval.core.replay_writer import ReplayCaller
from praval.core.sealer import Arrival
from praval.core.wire import Inbound
from praval.errors import JournalError, PravalError

DEAD = (Outcome.FAILED, Outcome.EXPIRED, Outcome.REJECTED, Outcome.CANCELLED)


def journal_id(key: Key) -> str:
    """Return what the journal calls a spore of a sender."""
    return f"{key.sender.hex()}-{key.spore.hex()}"


class SealedInbound(Inbound):
    """A sealed spore at work for one agent: its end is committed, whoever waits for it or not.

    First the mark in the journal, then the commit, then it has :meth:`ended`: a crash between two
    of them has the spore come again, and the journal or the replay memory knows it.
    """

    __slots__ = ("_failure", "_over", "_writer", "arrival", "fence", "is_committed", "key")

    def __init__(
        self,
        arrival: Arrival,
        since: float,
        *,
        key: Key,
        fence: int,
        writer: ReplayCaller,
        over: Callable[[Key], object],
    ) -> None:
        """Take a spore in whose lease was taken; ``over`` is called when it is ours no more."""
        super().__init__(arrival.inbox, since)
        self.arrival = arrival
        self.key = key
        self.fence = fence
        self._writer = writer
        self._over = over
        self._failure: BaseException | None = None
        self.is_committed = False
        """Whether its end is in the replay memory."""

    @property
    def sender(self) -> str:
        """The name that has sealed it: an agent's, or a process's."""
        return self.arrival.opened.message.from_name

    @property
    def committed(self) -> Committed:
        """What is told to its sender."""
        return "dead" if self.outcome in DEAD else "handled"

    def journal_id(self, spore_id: str) -> str:
        """See :class:`Inbound`; of its sender's, for others may use the same id on purpose."""
        return journal_id(self.key)

    def release(self) -> None:
        """See :class:`Inbound`."""
        self._held -= 1
        if self._held:
            return
        if self.mark is None:
            self._write()
        else:
            self.mark.add_done_callback(self._marked)

    def give_up(self) -> None:
        """Nobody handles it here: whoever gets it next may begin at once."""
        self._writer.call(lambda replay: replay.release(self.key, self.fence))
        self.leave_off()

    def leave_off(self) -> None:
        """See :class:`Inbound`."""
        super().leave_off()
        self._over(self.key)

    async def ended(self) -> None:
        """See :class:`Inbound`.

        Raises:
            JournalError, ReplayError: its end could not be written down.
        """
        await super().ended()
        if self._failure is not None:
            raise self._failure

    def _marked(self, mark: asyncio.Future[Any]) -> None:
        if mark.cancelled() or mark.exception() is not None:
            self._failure = JournalError("The end of a spore could not be written down.")
            self.give_up()
        else:
            self._write()

    def _write(self) -> None:
        key, fence = self.key, self.fence
        if self.returned:
            self._writer.call(lambda replay: replay.release(key, fence))
            self._end()
            return
        outcome = self.committed
        commit = self._writer.call(lambda replay: replay.commit(key, fence, outcome))
        if commit.done():  # a memory that does not block
            self._committed(commit)
        else:
            commit.add_done_callback(self._committed)

    def _committed(self, commit: asyncio.Future[None]) -> None:
        error = commit.exception()
        if isinstance(error, PravalError):
            self._failure = error
        self.is_committed = error is None
        self._end()

    def _end(self) -> None:
        self._ended.set()
        self._over(self.key)
