"""The outbox: the runner through which a Reef with a transport sends everything.

To the rest of the Reef it is one more agent: spores wait in its mailbox (so publishers feel its
back-pressure), its workers publish them, and the ledger counts how each ended: ``sent`` when the
broker has confirmed, ``delivered`` when every agent that was to receive it has sent a receipt.
With a journal it is the outbox of the textbooks: what was accepted goes out after a crash too.

Without a receipt in time a spore is sent again under the same id; receivers know ids, and of the
replicas of an agent only the one handles it to which it is granted (:meth:`Outbox.claim`). What
nobody confirmed in its time to live is a dead letter, whose reason says whether it may have been
handled.
While it waits for receipts, a spore holds its ``key``: the next of that key is not sent before.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING

from praval.core.agent import AgentDefinition, AgentOptions
from praval.core.backlog import Backlog
from praval.core.claims import LEASE
from praval.core.context import current_posted
from praval.core.delivery import OUTBOX, Ending, Outcome, Posted, Reason
from praval.core.receipts import Key
from praval.core.runner import AgentRunner, Worker
from praval.core.spore import Header, Spore
from praval.core.wire import Outward
from praval.errors import (
    CardError,
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
SLOWEST = 10.0
"""Longest wait, in seconds, before a spore is sent again."""
REMEMBERED = 100_000
"""Receipts that are remembered, so that a late copy of a spore is not handled elsewhere."""
NOT_YET_SENT = (
    TransportTimeoutError,
    TransportConnectionError,
    TransportClosedError,
    CardError,
)
"""Why a spore waits in the outbox; the last: there is no card of its receiver yet."""
SENT, DELIVERED = Ending(Outcome.SENT), Ending(Outcome.DELIVERED)
NOT_YET = Ending(None)


class Parcel:
    """What is known of a spore that takes more than one attempt, or receipts, to be done with."""

    __slots__ = ("claims", "confirmed", "delay", "missing", "number", "posted", "tried", "wanted")

    def __init__(self, posted: Posted, missing: set[str], delay: float, number: int) -> None:
        self.posted = posted
        self.missing = missing
        """Names of the agents whose receipt has not come."""
        self.wanted = bool(missing)
        """Whether it takes receipts, and not only the broker's word, to end it."""
        self.delay = delay
        """Seconds until it is sent again."""
        self.number = number
        """In order of acceptance."""
        self.tried = False
        """Whether it was given to a broker, who may have it."""
        self.confirmed = False
        """Whether a broker has confirmed it at least once."""
        self.claims: dict[str, tuple[str, float]] = {}
        """Agent -> the replica that has it, and until when that holds, on the loop's clock."""

    @property
    def is_delivered(self) -> bool:
        """Whether all receipts have come."""
        return self.wanted and not self.missing


class Outbox(AgentRunner):
    """See the module. Used on the Reef's loop only."""

    def __init__(self, reef: Reef, ledger: Ledger, bridge: Bridge) -> None:
        config = reef.settings.reef_config
        self._bridge = bridge
        self._resend_after = config.resend_after
        self.backlog = Backlog(config.unreceipted_capacity)
        self._parcels: dict[str, Parcel] = {}
        self._numbers = count()
        self._heard: dict[str, tuple[float, int]] = {}
        """Agent -> when its last receipt came, on the loop's clock, and its newest parcel."""
        self._receipted: OrderedDict[Key, None] = OrderedDict()
        self._reconnects = 0
        self._grace_until = -math.inf
        """No claim lapses before: without a broker, renewals and receipts could not come."""
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

    # -- room ----------------------------------------------------------------------------

    def put(self, posted: Posted) -> None:
        """See :class:`AgentRunner`."""
        if posted.header.id not in self._parcels:
            self._expect(posted)
        super().put(posted)

    def has_room(self, posted: Posted) -> bool:
        """See :class:`AgentRunner`; a receiver that is far behind leaves no room either."""
        return self.mailbox.has_room() and self._in_the_way(posted) is None

    async def wait_for_room(self, posted: Posted) -> None:
        """See :class:`AgentRunner`."""
        name = self._in_the_way(posted)
        while self.gone is None and name is not None:
            await self.backlog.wait(name, functools.partial(self._waits_for, posted, name))
            name = self._overloaded(posted)
        if self.gone is None and not self.mailbox.has_room():
            await super().wait_for_room(posted)

    def _waits_for(self, posted: Posted, name: str) -> bool:
        """Whether an agent is a receiver, still, whose receipts can come."""
        receivers = self._bridge.expected_receivers(posted)
        return name in receivers and not self._bridge.is_starting(name)

    def why_full(self, posted: Posted) -> str:
        """See :class:`AgentRunner`."""
        if (name := self._overloaded(posted)) is None:
            return super().why_full(posted)
        return (
            f"{self.backlog.missing[name]} spores wait for a receipt from agent {name!r}, the most "
            "that may: it is away, or too slow. Slow down, or raise "
            "reef_config.unreceipted_capacity."
        )

    def take_oldest(self, posted: Posted) -> Posted | None:
        """See :class:`AgentRunner`."""
        name = self._overloaded(posted)
        if name is None:
            return super().take_oldest(posted)
        for parcel in self._parcels.values():
            if name in parcel.missing and (timer := self.delayed.pop(parcel.posted, None)):
                timer.cancel()
                return parcel.posted
        return None

    def abandon(self, reason: Reason) -> None:
        """See :class:`AgentRunner`."""
        super().abandon(reason)
        self.backlog.release()

    def _overloaded(self, posted: Posted) -> str | None:
        """Return a receiver of which too many receipts are missing."""
        return self._first(posted, self.backlog.is_full)

    def _in_the_way(self, posted: Posted) -> str | None:
        """Return a receiver of which too many are missing, or for which other publishers wait."""
        return self._first(posted, self.backlog.is_shut)

    def _first(self, posted: Posted, holds: Callable[[str], bool]) -> str | None:
        for name in self._bridge.expected_receivers(posted):
            if holds(name) and not self._bridge.is_starting(name):
                return name  # else it may be its start hook that publishes
        return None

    def _expect(self, posted: Posted) -> Parcel | None:
        """Note whose receipts a spore takes; None: it takes none."""
        if not (missing := self._bridge.expected_receivers(posted)):
            return None
        return self._new_parcel(posted, set(missing))

    def _new_parcel(self, posted: Posted, missing: set[str]) -> Parcel:
        parcel = Parcel(posted, missing, self._resend_after, next(self._numbers))
        self._parcels[posted.header.id] = parcel
        self.backlog.more(missing)
        return parcel

    # -- sending -------------------------------------------------------------------------

    async def _carry(self, spore: Spore) -> Ending:
        """Publish the current spore once."""
        posted = current_posted.get()
        assert posted is not None
        parcel = self._parcels.get(spore.id) or self._expect(posted)
        if parcel is not None and parcel.is_delivered:
            return DELIVERED
        if parcel is not None and parcel.confirmed and (wait := self._under_way(parcel)):
            return self._later(posted, parcel, wait)
        resent = parcel is not None and parcel.tried
        if parcel is not None:
            parcel.tried = True
        try:
            routed = await self._bridge.publish(
                posted, receipt=parcel is not None and parcel.wanted, resent=resent
            )
        except NOT_YET_SENT as error:
            log.warning("spore %s is not sent yet: %s", spore.id, error)
            posted.last_error = error
            return self._again(posted, parcel)
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
        return self._again(posted, parcel) if parcel.missing else DELIVERED

    def _again(self, posted: Posted, parcel: Parcel | None) -> Ending:
        """Send it again after a while that grows, or end it when it expires."""
        if parcel is None:
            parcel = self._new_parcel(posted, set())
            parcel.tried = True
        delay, parcel.delay = parcel.delay, min(parcel.delay * 2, max(SLOWEST, self._resend_after))
        return self._later(posted, parcel, delay)

    def _later(self, posted: Posted, parcel: Parcel, delay: float) -> Ending:
        """Look at it again after so many seconds, or when it expires."""
        parcel.posted = posted
        if (expires_at := posted.header.expires_at) is not None:
            delay = min(delay, max(0.0, expires_at - self.reef.clock()))
        self.delayed[posted] = self.reef.loop.call_later(delay, self._requeue, posted)
        return NOT_YET

    def reachable(self, name: str) -> None:
        """An agent has a card: send what has waited for it."""
        for posted, timer in list(self.delayed.items()):
            if posted.header.to_agent == name and isinstance(posted.last_error, CardError):
                timer.cancel()
                self._requeue(posted)

    def _under_way(self, parcel: Parcel) -> float:
        """Return seconds for which those whose receipts are missing need no further copy."""
        now = self.reef.loop.time()
        return min(self._needs_none_for(name, parcel, now) for name in parcel.missing)

    def _needs_none_for(self, name: str, parcel: Parcel, now: float) -> float:
        if not self._bridge.is_present(name):
            return parcel.delay  # it waits at the broker for the agent to come back
        _, claimed_until = parcel.claims.get(name, ("", 0.0))
        if claimed_until > now:
            return claimed_until - now
        heard_at, newest = self._heard.get(name, (-math.inf, 0))
        if now - heard_at < self._resend_after and parcel.number > newest:
            return self._resend_after  # at work on what was sent before: its turn will come
        return 0.0

    def _unroutable(self, posted: Posted, parcel: Parcel | None) -> Ending:
        header = posted.header
        if self._bridge.awaited(header):
            return self._again(posted, parcel)
        if header.to_agent is None:
            return Ending(Outcome.UNDELIVERABLE, Reason.NO_RECIPIENT)
        error = self._bridge.unknown_agent(header.to_agent)
        return Ending(Outcome.UNDELIVERABLE, Reason.UNKNOWN_AGENT, error)

    # -- receipts and claims -------------------------------------------------------------

    def received(self, spore_id: str, agent: str) -> None:
        """Take a receipt: this agent is done with that spore."""
        parcel = self._parcels.get(spore_id)
        if parcel is None:
            return  # a second receipt, or one for a spore that has expired here
        self._receipted[spore_id, agent] = None
        if len(self._receipted) > REMEMBERED:
            self._receipted.popitem(last=False)
        if agent not in parcel.missing:
            return  # a second one, or of an agent that was not known when the spore was sent
        parcel.missing.discard(agent)
        self.backlog.less(agent)
        _, newest = self._heard.get(agent, (0.0, 0))
        self._heard[agent] = (self.reef.loop.time(), max(newest, parcel.number))
        if not parcel.missing and (timer := self.delayed.pop(parcel.posted, None)) is not None:
            timer.cancel()
            self._settle(None, parcel.posted, Outcome.DELIVERED)
        # else it is being sent again just now: the worker will see

    def claim(self, spore_id: str, agent: str, replica: str) -> bool:
        """Decide whether a replica of an agent may handle a spore; if so, for ``LEASE`` seconds."""
        if (spore_id, agent) in self._receipted:
            self.received(spore_id, agent)  # if it was published again: it is done with already
            return False
        parcel = self._parcels.get(spore_id)
        if parcel is None or not self._is_receiver(parcel, agent):
            return True  # an earlier process has sent it, or it has expired: the receiver judges
        now = self.reef.loop.time()
        reconnects = self._bridge.transport.health().reconnects
        if reconnects != self._reconnects:
            self._reconnects, self._grace_until = reconnects, now + LEASE
        holder, until = parcel.claims.get(agent, (replica, 0.0))
        until = max(until, self._grace_until)
        if holder != replica and until > now and not self._bridge.presence.lacks(holder, agent):
            return False
        parcel.claims[agent] = (replica, now + LEASE)
        return True

    def _is_receiver(self, parcel: Parcel, agent: str) -> bool:
        """Whether a receipt of this agent is waited for.

        It is from now on if the agent was not known when the spore was sent, or had no replicas:
        else nobody would send the spore again to a replica that was refused.
        """
        if agent not in parcel.missing:
            if not parcel.wanted or agent not in self._bridge.expected_receivers(parcel.posted):
                return False
            parcel.missing.add(agent)
            self.backlog.more((agent,))
        return True

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
        elif isinstance(posted.last_error, CardError):
            self.lose(worker, posted, Outcome.UNDELIVERABLE, Reason.NO_CARD, posted.last_error)
        else:
            cause = f" The last error: {posted.last_error}" if posted.last_error else ""
            error = ExpiredError(
                f"No broker has confirmed spore {posted.header.id} in its time to live.{cause}"
            )
            self.lose(worker, posted, Outcome.EXPIRED, Reason.NOT_SENT, error)

    def _settle(self, worker: Worker | None, posted: Posted, outcome: Outcome) -> None:
        parcel = self._parcels.get(posted.header.id)
        if parcel is not None and parcel.posted.header is posted.header:  # not one of the same id
            del self._parcels[posted.header.id]
            for name in parcel.missing:
                self.backlog.less(name)
        super()._settle(worker, posted, outcome)

    @property
    def unconfirmed(self) -> int:
        """Spores whose receipts are missing, or that no broker has taken yet."""
        return len(self._parcels)
