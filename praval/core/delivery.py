"""Deliveries: one spore on its way to one agent, and what became of it.

The unit of the ledger is the delivery. Each ends in exactly one :class:`Outcome`; a spore that
nobody receives is one delivery too. Where deliveries end: ``praval.core.ledger``.
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from praval.core.spore import Header, Spore, decode_knowledge

if TYPE_CHECKING:
    from praval.core.tree import Tree


class Outcome(enum.IntEnum):
    """How a delivery ended."""

    HANDLED = 0
    FAILED = 1
    EXPIRED = 2
    FILTERED = 3
    REJECTED = 4
    UNDELIVERABLE = 5
    DUPLICATE = 6
    CANCELLED = 7
    SENT = 8
    """A broker has confirmed it; what becomes of it is counted where it is received."""
    DELIVERED = 9
    """Every agent that was to receive it says so."""


class Reason(enum.StrEnum):
    """Why a delivery ended otherwise than handled."""

    HANDLER_RAISED = "handler raised"
    HANDLER_TIMEOUT = "handler timed out"
    CRASH_LOOP = "its process died each time"
    TTL = "time to live was over"
    CONDITION = "condition was false"
    TYPE = "agent does not respond to this type"
    MAILBOX_FULL = "mailbox full"
    DROPPED_OLDEST = "dropped for a newer one"
    TREE_BUDGET = "causal tree spent its spores"
    HOP_LIMIT = "chain too long"
    NO_RECIPIENT = "nobody listens"
    UNKNOWN_AGENT = "no such agent"
    JOURNAL = "journal could not be written"
    LATE_REPLY = "nobody waits for this reply any more"
    SAME_ID = "id seen before"
    ELSEWHERE = "another replica has it"
    STOPPED = "its session was over"
    CLEARED = "channel cleared"
    AGENT_REMOVED = "agent removed"
    CLOSED = "reef closed"
    PUBLISHER_CANCELLED = "publisher was cancelled while waiting for room"
    HANDLER_CANCELLED = "handler was cancelled"
    REQUEST_CYCLE = "asker would wait for ever"
    NOT_SENT = "no broker confirmed it in its time to live"
    NO_RECEIPT = "no receipt in its time to live; it may have been handled"
    TRANSPORT = "transport refused it"
    MALFORMED = "not a spore"
    MISROUTED = "addressed to another agent"
    NO_CARD = "nobody to seal it to: no card that is good now"
    SEALED = "sealed, and refused"


OUTBOX = "@outbox"
"""Name of the receiver to which everything goes first that leaves by a transport."""
INBOUND = "@in:"
"""What the journal puts in front of the name of an agent that got a spore from a transport."""


class Ending(NamedTuple):
    """What an invocation returns when its delivery ends otherwise than handled."""

    outcome: Outcome | None
    """None: it has not ended yet; whoever keeps it will end it."""
    reason: Reason | None = None
    error: BaseException | None = None


class Wire:
    """A spore's tie to a transport; the ledger tells it what becomes of the delivery."""

    __slots__ = ()

    journal_prefix = ""
    """In front of the receiver's name in the journal."""

    def journal_id(self, spore_id: str) -> str:
        """Return what the journal calls the spore."""
        return spore_id

    @property
    def sender(self) -> str | None:
        """The name that has signed it, if it was sealed."""
        return None

    @property
    def returned(self) -> bool:
        """Whether the broker gets it back, to be handled at another time or place."""
        return False

    def begun(self) -> None:
        """The delivery has begun."""

    def lost(self, outcome: Outcome, reason: Reason, error: BaseException | None) -> None:
        """It is about to end otherwise than handled."""

    def settled(self, outcome: Outcome, mark: asyncio.Future[Any] | None) -> None:
        """It has ended; ``mark``: done when the journal has it."""


class Posted(msgspec.Struct, eq=False):
    """An accepted spore on its way. One object serves all receivers of a broadcast."""

    header: Header
    raw: bytes
    """The encoded knowledge."""
    load: Callable[[], dict[str, Any]] | None = None
    """Makes a fresh copy of the knowledge, if there is a cheaper way than decoding ``raw``."""
    tree: Tree | None = None
    attempt: int = 1
    last_error: BaseException | None = None
    """What the attempt before this one raised."""
    wire: Wire | None = None
    """Its tie to a transport, if it came from one or goes to one."""

    @property
    def journal_id(self) -> str:
        """What the journal calls the spore."""
        return self.header.id if self.wire is None else self.wire.journal_id(self.header.id)

    def journal_name(self, receiver: str) -> str:
        """Return the name under which the journal keeps its delivery to a receiver."""
        return receiver if self.wire is None else self.wire.journal_prefix + receiver

    def open(self) -> Spore:
        """Make the spore as one receiver sees it."""
        return Spore(self.header, decode_knowledge(self.raw), self.attempt)


FEW = 3
"""Receivers for which decoding for each costs less than making a copier."""


def copier(raw: bytes) -> Callable[[], dict[str, Any]]:
    """Decode knowledge once; return a maker of copies, for the many receivers of a broadcast."""
    return _copier(decode_knowledge(raw))


def _copier(template: Any) -> Callable[[], Any]:
    """Return a maker of deep copies of some decoded JSON; it knows where the containers are."""
    slots: Iterable[tuple[Any, Any]]
    slots = template.items() if isinstance(template, dict) else enumerate(template)
    inner = [(slot, _copier(item)) for slot, item in slots if isinstance(item, (dict, list))]
    if not inner:
        make: Callable[[], Any] = template.copy
        return make

    def copy() -> Any:
        fresh = template.copy()
        for slot, copy_item in inner:
            fresh[slot] = copy_item()
        return fresh

    return copy


class DeadLetter(msgspec.Struct, frozen=True):
    """A delivery that failed or expired, kept so that it can be looked at and replayed."""

    id: str
    """Names this dead letter in ``reef.replay(id)``."""
    spore: Spore
    agent: str
    reason: Reason
    error: str
    attempts: int
    at: float
    """UTC seconds since the epoch."""


def shown(error: BaseException) -> str:
    """Return the error's ``repr``, which is a user's code and may fail itself."""
    try:
        return repr(error)
    except Exception:  # noqa: BLE001 - see above
        return f"<{type(error).__name__}, which cannot be shown>"


class Failure(msgspec.Struct, frozen=True):
    """A loss as a session reports it in ``.errors``."""

    agent: str | None
    spore: Spore
    outcome: Outcome
    reason: Reason
    error: BaseException | None = None

    def __str__(self) -> str:
        cause = f": {shown(self.error)}" if self.error is not None else ""
        return f"{self.agent or 'nobody'} <- {self.spore.type!r}: {self.reason.value}{cause}"


class Receipt(msgspec.Struct):
    """What became of a publication. Awaiting it waits until it is accepted, and returns it.

    Awaiting raises the error if the spore could not be accepted at all (an unknown recipient, a
    spent budget, a full mailbox of the only recipient).
    """

    id: str
    """Id of the spore."""
    recipients: int = 0
    """Number of agents that accepted it; on a transport 1, or 0 if it reached nobody."""
    rejected: tuple[str, ...] = ()
    """Agents whose mailbox had no room."""
    error: BaseException | None = None
    pending: Any = None
    """The future of an acceptance that is still on its way (journal, broker), else None."""

    def __await__(self) -> Generator[Any, None, Receipt]:
        if self.pending is not None:
            # a cancelled waiter must not cancel what others wait for
            yield from asyncio.shield(self.pending).__await__()
        if self.error is not None:
            raise self.error
        return self


class LedgerSnapshot(msgspec.Struct, frozen=True):
    """The ledger at one moment; all fields count deliveries, ``published`` counts spores."""

    handled: int = 0
    failed: int = 0
    expired: int = 0
    filtered: int = 0
    rejected: int = 0
    undeliverable: int = 0
    duplicate: int = 0
    cancelled: int = 0
    sent: int = 0
    delivered: int = 0
    pending: int = 0
    deliveries: int = 0
    published: int = 0
    reasons: dict[str, int] = msgspec.field(default_factory=dict)
    """Reason -> deliveries that ended otherwise than handled."""

    @property
    def settled(self) -> int:
        """Deliveries that have ended."""
        return sum(getattr(self, outcome.name.lower()) for outcome in Outcome)

    @property
    def balanced(self) -> bool:
        """Whether every delivery is pending or ended in exactly one state."""
        return self.deliveries == self.settled + self.pending

    def __str__(self) -> str:
        states = {name: getattr(self, name) for name in (*STATES, "pending")}
        parts = ", ".join(f"{count} {name}" for name, count in states.items() if count)
        verdict = "balanced" if self.balanced else "NOT BALANCED"
        return f"{self.deliveries} deliveries: {parts or 'none'} ({verdict})"


STATES = tuple(outcome.name.lower() for outcome in Outcome)


class Tally:
    """Counts of deliveries."""

    __slots__ = ("counts", "deliveries", "pending", "published", "reasons")

    def __init__(self) -> None:
        self.counts = [0] * len(Outcome)
        self.deliveries = 0
        self.pending = 0
        self.published = 0
        self.reasons: Counter[Reason] = Counter()

    def snapshot(self, pending: int, counts: Sequence[int] | None = None) -> LedgerSnapshot:
        """Return the counts, with ``pending`` as counted where the deliveries wait."""
        return LedgerSnapshot(
            **dict(zip(STATES, counts or self.counts, strict=True)),
            pending=pending,
            deliveries=self.deliveries,
            published=self.published,
            reasons={reason.value: number for reason, number in self.reasons.items()},
        )
