"""The outbox: the runner through which a Reef with a transport sends everything.

To the rest of the Reef it is one more agent: spores wait in its mailbox (so publishers feel its
back-pressure), its workers publish them, and the ledger counts how each ended: ``sent`` when the
broker has confirmed, ``delivered`` when every agent that was to receive it has sent a receipt.
With a journal it is the outbox of the textbooks: what was accepted goes out after a crash too.

Without a receipt in time a spore is sent again under the same id; receivers know ids. What nobody
confirmed in its time to live is a dead letter, whose reason says whether it may have been handled.
While it waits for receipts, a spore holds its ``key``: the next of that key is not sent before.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from praval.core.agent import AgentDefinition, AgentOptions
from praval.core.context import current_posted
from praval.core.delivery import OUTBOX, Ending, Outcome, Posted, Reason
from praval.core.runner import AgentRunner, Worker
from praval.core.spore import Header, Spore
from praval.core.wire import Outward
from praval.errors import (
    ExpiredError,
    PravalError,
    TransportClosedError,
    TransportConnectionError,
    TransportTimeoutError,
)

if TYPE_CHECKING:
    from praval.core.bridge import Bridge
    from praval.core.invoke import Invoke
    from praval.core.ledger import Ledger
    from praval.core.reef import Reef
    from praval.core.tree import Watch

log = logging.getLogger("praval.outbox")

WINDOW = 256
"""Publications on their way to the broker at once."""
SLOWEST = 60.0
"""Longest wait, in seconds, before a spore is sent again."""
SENT, DELIVERED = Ending(Outcome.SENT), Ending(Outcome.DELIVERED)
NOT_YET = Ending(None)


class Parcel:
    """What is known of a spore that was not done with at the first attempt."""

    __slots__ = ("confirmed", "delay", "missing", "posted", "wanted")

    def __init__(self, posted: Posted, missing: set[str], delay: float) -> None:
        self.posted = posted
        self.missing = missing
        """Names of the agents whose receipt has not come."""
        self.wanted = bool(missing)
        """Whether it takes receipts, and not only the broker's word, to end it."""
        self.delay = delay
        """Seconds until it is sent again."""
        self.confirmed = False
        """Whether a broker has confirmed it at least once."""

    @property
    def is_delivered(self) -> bool:
        """Whether all receipts have come."""
        return self.wanted and not self.missing


class Outbox(AgentRunner):
    """See the module. Used on the Reef's loop only."""

    def __init__(self, reef: Reef, ledger: Ledger, bridge: Bridge, resend_after: float) -> None:
        self._bridge = bridge
        self._resend_after = resend_after
        self._parcels: dict[str, Parcel] = {}
        definition = AgentDefinition("outbox", self._carry, AgentOptions(concurrency=WINDOW))
        definition.name = OUTBOX  # no agent of a user's can be called so
        super().__init__(definition, reef, ledger, "main")

    def bind(self, agent: AgentDefinition) -> None:
        """See :class:`AgentRunner`; an attempt to publish needs no mark in the journal."""
        super().bind(agent)
        self._gated = False

    def _compose(self, agent: AgentDefinition) -> Invoke:
        return self._carry

    def responds(self, header: Header) -> bool:
        """See :class:`AgentRunner`."""
        return True

    @property
    def _most_attempts(self) -> float:
        return math.inf

    def _may_start(self, watch: Watch) -> bool:
        return not watch.stopped  # what is sent is handled, and counted, where it arrives

    # -- sending -------------------------------------------------------------------------

    async def _carry(self, spore: Spore) -> Ending:
        """Publish the current spore once."""
        posted = current_posted.get()
        assert posted is not None
        parcel = self._parcels.get(spore.id)
        if parcel is None:
            missing = self._bridge.expected_receivers(posted)
            if missing:
                parcel = self._parcels[spore.id] = Parcel(posted, missing, self._resend_after)
        elif parcel.is_delivered:
            return DELIVERED
        elif parcel.confirmed and not self._bridge.somebody_of(parcel.missing):
            return self._later(posted, parcel)  # it waits at the broker for them to come back
        try:
            routed = await self._bridge.publish(
                posted, receipt=parcel is not None and parcel.wanted
            )
        except (TransportTimeoutError, TransportConnectionError, TransportClosedError) as error:
            log.warning("spore %s is not sent yet: %s", spore.id, error)
            posted.last_error = error
            return self._later(posted, parcel)
        except PravalError as error:
            log.error("spore %s cannot be sent: %s", spore.id, error)
            return Ending(Outcome.REJECTED, Reason.TRANSPORT, error)
        if routed is False and not (parcel and parcel.confirmed):
            return self._unroutable(posted, parcel)
        return self._confirmed(posted, parcel)

    def _confirmed(self, posted: Posted, parcel: Parcel | None) -> Ending:
        if isinstance(posted.wire, Outward):
            posted.wire.confirm()
        if parcel is None or not parcel.wanted:
            return SENT
        parcel.confirmed = True
        return self._later(posted, parcel) if parcel.missing else DELIVERED

    def _later(self, posted: Posted, parcel: Parcel | None) -> Ending:
        """Keep it and send it again after a while, or when it expires."""
        if parcel is None:
            parcel = self._parcels[posted.header.id] = Parcel(posted, set(), self._resend_after)
        delay, parcel.delay = parcel.delay, min(parcel.delay * 2, SLOWEST)
        if (expires_at := posted.header.expires_at) is not None:
            delay = min(delay, max(0.0, expires_at - self.reef.clock()))
        self.delayed[posted] = self.reef.loop.call_later(delay, self._requeue, posted)
        return NOT_YET

    def _unroutable(self, posted: Posted, parcel: Parcel | None) -> Ending:
        header = posted.header
        if self._bridge.awaited(header):
            return self._later(posted, parcel)
        if header.to_agent is None:
            return Ending(Outcome.UNDELIVERABLE, Reason.NO_RECIPIENT)
        error = self._bridge.unknown_agent(header.to_agent)
        return Ending(Outcome.UNDELIVERABLE, Reason.UNKNOWN_AGENT, error)

    # -- receipts ------------------------------------------------------------------------

    def received(self, spore_id: str, agent: str) -> None:
        """Take a receipt: this agent is done with that spore."""
        parcel = self._parcels.get(spore_id)
        if parcel is None or agent not in parcel.missing:
            return  # a second receipt, or one for a spore that has expired here
        parcel.missing.discard(agent)
        if not parcel.missing and (timer := self.delayed.pop(parcel.posted, None)) is not None:
            timer.cancel()
            self._settle(None, parcel.posted, Outcome.DELIVERED)
        # else it is being sent again just now: the worker will see

    # -- ending --------------------------------------------------------------------------

    def _expire(self, worker: Worker, posted: Posted) -> None:
        parcel = self._parcels.get(posted.header.id)
        if parcel is not None and parcel.is_delivered:
            self._settle(worker, posted, Outcome.DELIVERED)
        elif parcel is not None and parcel.confirmed:
            error = ExpiredError(
                f"The broker has confirmed spore {posted.header.id}, but no receipt came from "
                f"{', '.join(sorted(parcel.missing))} in its time to live. It may be handled."
            )
            self.lose(worker, posted, Outcome.EXPIRED, Reason.NO_RECEIPT, error)
        else:
            cause = f" The last error: {posted.last_error}" if posted.last_error else ""
            error = ExpiredError(
                f"No broker has confirmed spore {posted.header.id} in its time to live.{cause}"
            )
            self.lose(worker, posted, Outcome.EXPIRED, Reason.NOT_SENT, error)

    def _settle(self, worker: Worker | None, posted: Posted, outcome: Outcome) -> None:
        self._parcels.pop(posted.header.id, None)
        super()._settle(worker, posted, outcome)

    @property
    def unconfirmed(self) -> int:
        """Spores whose receipts are missing, or that no broker has taken yet."""
        return len(self._parcels)
