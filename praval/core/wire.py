"""What ties a spore to a transport, on its way out and on its way in.

The ledger tells them when their delivery begins and ends. So the input of a handler is
acknowledged after the handler's end is in the journal, or, without one, after what the handler
emitted was confirmed by the broker.
"""

from __future__ import annotations

import asyncio
from typing import Any

from praval.core.delivery import INBOUND, Outcome, Reason, Receipt, Wire
from praval.errors import TransportError

RETURNED = (Reason.CLOSED, Reason.AGENT_REMOVED)
"""Why a delivery ends here without being over: somebody else, or the next start, shall have it."""


class Inbound(Wire):
    """A spore that came in for one agent, and what its acknowledgement waits for."""

    __slots__ = ("_ended", "_held", "inbox", "mark", "outcome", "reason", "refused", "since")

    journal_prefix = INBOUND

    def __init__(self, inbox: str | None, since: float) -> None:
        """Take a spore in.

        Args:
            inbox: the topic to which its receipt goes, if one is wanted.
            since: seconds on the loop's clock.
        """
        self.inbox = inbox
        self.since = since
        self.refused = False
        """Whether its sender has given it to another replica."""
        self.outcome: Outcome | None = None
        self.reason: Reason | None = None
        self.mark: asyncio.Future[Any] | None = None
        self._held = 1
        """What is still waited for: the end of the delivery, and unconfirmed emissions."""
        self._ended = asyncio.Event()

    @property
    def returned(self) -> bool:
        """See :class:`Wire`."""
        return self.reason in RETURNED

    @property
    def is_over(self) -> bool:
        """Whether nothing is waited for any more."""
        return self._ended.is_set()

    def lost(self, outcome: Outcome, reason: Reason, error: BaseException | None) -> None:
        """See :class:`Wire`."""
        self.reason = reason

    def settled(self, outcome: Outcome, mark: asyncio.Future[Any] | None) -> None:
        """See :class:`Wire`."""
        self.outcome, self.mark = outcome, mark
        self.release()

    def hold(self) -> None:
        """Do not acknowledge before one more :meth:`release`."""
        self._held += 1

    def release(self) -> None:
        """One thing less to wait for."""
        self._held -= 1
        if not self._held:
            self._ended.set()

    def leave_off(self) -> None:
        """If it has not ended, nobody sees to that any more: whoever waits is to give it back."""
        if not self._ended.is_set():
            self.reason = Reason.CLOSED
            self._ended.set()

    async def ended(self) -> None:
        """Wait until it may be acknowledged, or given back if it was ``returned``.

        Raises:
            JournalError: its end could not be written down.
        """
        await self._ended.wait()
        if self.mark is not None:
            await asyncio.shield(self.mark)


class Outward(Wire):
    """A spore that is to go out, and who waits for the broker's confirmation."""

    __slots__ = ("_cause", "_confirmed", "_explicit", "_receipt")

    def __init__(
        self,
        receipt: Receipt,
        confirmed: asyncio.Future[None] | None,
        cause: Inbound | None,
        *,
        explicit: bool,
    ) -> None:
        self._receipt = receipt
        self._confirmed = confirmed
        self._cause = cause
        """The handling that emitted it; its input is acknowledged later than this is confirmed."""
        self._explicit = explicit
        """Whether the publisher named the receiver, so that a wrong name is its error."""

    def begun(self) -> None:
        """See :class:`Wire`."""
        if self._cause is not None:
            self._cause.hold()

    def confirm(self) -> None:
        """The broker has it."""
        if self._confirmed is not None and not self._confirmed.done():
            self._confirmed.set_result(None)
        if self._cause is not None:
            cause, self._cause = self._cause, None
            cause.release()

    def lost(self, outcome: Outcome, reason: Reason, error: BaseException | None) -> None:
        """See :class:`Wire`."""
        self._receipt.recipients = 0
        if self._cause is not None and reason in RETURNED:
            self._cause.lost(outcome, reason, error)  # to be handled again, so as to emit it again
        if outcome is Outcome.DUPLICATE:
            return  # it is on its way under this id
        if reason is Reason.NO_RECIPIENT or (reason is Reason.UNKNOWN_AGENT and not self._explicit):
            return  # counted; nobody made a mistake that could be told here
        self._receipt.error = error or TransportError(
            f"Spore {self._receipt.id} did not reach a broker: {reason.value}."
        )

    def settled(self, outcome: Outcome, mark: asyncio.Future[Any] | None) -> None:
        """See :class:`Wire`."""
        self.confirm()
