"""Publishing: from a dictionary to deliveries in mailboxes.

A publisher outside handlers waits while a mailbox is full (or as ``overflow`` says). What a
handler emits never waits, so that agents in a circle cannot deadlock: it overflows softly up to
the hard capacity and is rejected beyond it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from praval.core.delivery import FEW, Outcome, Posted, Reason, Receipt, Wire, copier
from praval.core.routing import Receivers, Routes
from praval.core.runner import put_all
from praval.core.spore import (
    DEEP,
    DEFAULT_PRIORITY,
    MAX_DEPTH,
    YEAR_10000,
    Header,
    Spore,
    SporeType,
    decode_knowledge,
    depth,
    encode_knowledge,
    new_id,
    raw_encode,
    spore_type_of,
    wire_bytes,
)
from praval.core.tree import Tree
from praval.core.wire import Inbound, Outward
from praval.errors import (
    BudgetError,
    ConfigurationError,
    JournalError,
    KnowledgeError,
    MailboxFullError,
    ReefClosedError,
    UnknownAgentError,
)
from praval.plugins import near

if TYPE_CHECKING:
    from praval.core.interceptor import Interceptor
    from praval.core.journal import Journal
    from praval.core.ledger import Ledger
    from praval.core.runner import AgentRunner, Worker
    from praval.settings import Settings

FLOOR_OF_HARD_CAPACITY = 10_000


class Publisher:
    """Composes, routes and hands over the spores of one Reef; used on its loop only."""

    def __init__(
        self,
        routes: Routes,
        ledger: Ledger,
        settings: Settings,
        interceptors: Sequence[Interceptor],
        clock: Callable[[], float],
    ) -> None:
        reef = settings.reef_config
        self.max_size = settings.security.max_message_size
        self._routes = routes
        self._ledger = ledger
        ledger.deliver = self.put_held
        self._interceptors = interceptors
        self._clock = clock
        self._ttl = reef.message_ttl
        self._overflow = reef.overflow
        self._max_hops = reef.max_hops
        self._max_tree = reef.max_tree
        self._hard_capacity = reef.hard_capacity or max(
            10 * reef.channel_capacity, FLOOR_OF_HARD_CAPACITY
        )

    # -- composing -----------------------------------------------------------------------

    def compose(  # noqa: PLR0917 - by position, because it is on the hot path
        self,
        data: Mapping[str, Any],
        channel: str,
        to_agent: str | None = None,
        spore_type: SporeType = SporeType.KNOWLEDGE,
        priority: int = DEFAULT_PRIORITY,
        ttl: float | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        deadline: float | None = None,
        sender: str | None = None,
        parent: Posted | None = None,
    ) -> Posted:
        """Encode and address a spore.

        Raises:
            KnowledgeError, SporeTooLargeError: the data cannot be carried.
            ConfigurationError: an argument has a wrong type or range.
        """
        try:
            raw = raw_encode(data)
        except Exception:  # noqa: BLE001 - the slow form below says what is wrong where
            raw = b""
        # Most knowledge passes at one look; the slow form checks the rest, or refuses it.
        if (
            len(raw) > self.max_size
            or raw.find(b"null") >= 0
            or (len(raw) >= DEEP and depth(raw) > MAX_DEPTH)
            or not raw
            or data.__class__ is not dict
        ):
            raw = encode_knowledge(data, self.max_size)
        now = self._clock()
        kind = data.get("type")
        if kind.__class__ is not str:
            kind = spore_type_of(data)
        if channel.__class__ is not str or not channel.isascii() or to_agent is not None:
            _check_names(channel=channel, target_agent=to_agent)
        if ttl is None:
            ttl = self._ttl
        elif not (isinstance(ttl, (int, float)) and 0 < ttl < YEAR_10000):
            raise ConfigurationError(f"ttl must be a number of seconds above 0, not {ttl!r}.")
        expires_at = None if ttl is None else now + ttl
        if priority is not DEFAULT_PRIORITY and not (type(priority) is int and 1 <= priority <= 10):
            raise ConfigurationError(f"priority must be 1 to 10, not {priority!r}.")
        if deadline is not None:
            expires_at = deadline if expires_at is None else min(expires_at, deadline)
        # by position: in the order of Header's fields
        if parent is None and deadline is None and key is None and headers is None:
            header = Header(
                new_id(), now, expires_at, kind, channel, sender, to_agent, priority, spore_type
            )
        else:
            if key is not None or headers is not None:
                _check_names(key=key)
                _check_headers(headers)
            root = None if parent is None else parent.header.root or parent.header.id
            hops = 0 if parent is None else parent.header.hops + 1
            header = Header(
                new_id(), now, expires_at, kind, channel, sender, to_agent, priority, spore_type,
                None, None, root, hops, deadline, key, None if headers is None else dict(headers),
            )  # fmt: skip
        posted = Posted(header, raw)
        return self.intercept(posted) if self._interceptors else posted

    def adopt(self, spore: Spore) -> Posted:
        """Make a user's spore ready for publication, under its own id."""
        header = spore.header
        if header.expires_at is None and self._ttl is not None:
            spore = spore.replace(expires_at=self._clock() + self._ttl)
        raw = encode_knowledge(spore.knowledge, self.max_size)
        if header.type != (kind := spore_type_of(spore.knowledge)):
            raise KnowledgeError(
                f"The spore's type is {header.type!r}, but its knowledge says {kind!r}."
            )
        return self.intercept(Posted(spore.header, raw))

    def intercept(self, posted: Posted) -> Posted:
        """Pass a spore through the interceptors; what they raise refuses the publication."""
        for interceptor in self._interceptors:
            changed = interceptor.publish(Spore(posted.header, decode_knowledge(posted.raw)))
            raw = encode_knowledge(changed.knowledge, self.max_size)
            posted = Posted(changed.header, raw)
        return posted

    # -- from outside --------------------------------------------------------------------

    async def publish(self, posted: Posted, *, explicit: bool, soft: bool = False) -> Receipt:
        """Route a root spore and wait until it is accepted.

        Args:
            posted: the spore.
            explicit: the caller named the recipient, so a missing or full one is its error.
            soft: inside a handler: do not wait for room.

        Raises:
            UnknownAgentError, MailboxFullError: with ``explicit``.
        """
        receipt, left = self.offer(posted, explicit=explicit)
        if left and soft:
            self._hand_over_softly(posted, left, receipt)
            await receipt
        elif left:
            await self.hand_over_left(posted, left, receipt)
        if explicit and receipt.error is not None:
            raise receipt.error
        return receipt

    def offer(self, posted: Posted, *, explicit: bool) -> tuple[Receipt, Receivers]:
        """Route a spore and put it wherever there is room at once.

        Returns the receipt and the receivers that have not got it: for :meth:`hand_over_left`.
        """
        header, ledger = posted.header, self._ledger
        receivers = self._routes.receivers(header)
        number = len(receivers)
        receipt = Receipt(header.id, number)
        if self._routes.outbox is not None:
            self.tie(posted, receipt, explicit=explicit)
        ledger.published += 1
        if not number:
            self._nobody(posted, receipt, explicit=explicit)
            return receipt, receivers
        if number > FEW:
            posted.load = copier(posted.raw)
        ledger.deliveries += number
        ledger.pending += number
        if posted.tree is not None and posted.tree.watch is not None:
            posted.tree.watch.accept(number)
        return receipt, self._put_at_once(posted, receivers)

    def _put_at_once(self, posted: Posted, receivers: Receivers) -> Receivers:
        """Put an ordinary spore wherever there is room; return the receivers that are left."""
        header = posted.header
        if (
            header.priority != DEFAULT_PRIORITY
            or header.key is not None
            or header.to_agent is not None
            or self._ledger.journal is not None
            or self._routes.outbox is not None
        ):
            return receivers
        served = put_all(posted, receivers)
        return () if served == len(receivers) else receivers[served:]

    def hand_over_at_once(self, posted: Posted, runner: AgentRunner, *, soft: bool) -> bool:
        """Give a request to its agent if that takes no waiting; else do nothing."""
        if self._ledger.journal is not None:
            return False
        if soft:
            if runner.mailbox.size >= self._hard_capacity:
                return False
        elif not runner.has_room(posted):
            return False
        self._ledger.published += 1
        self._ledger.accept(posted, 1)
        self._put(posted, runner)
        return True

    async def hand_over(self, posted: Posted, runner: AgentRunner, *, soft: bool) -> None:
        """Give a request to its agent; ``soft``: from inside a handler, without waiting for room.

        Raises:
            MailboxFullError: there is no room.
        """
        receipt = Receipt(posted.header.id, 1)
        self._ledger.published += 1
        self._ledger.accept(posted, 1)
        if soft:
            self._hand_over_softly(posted, (runner,), receipt)
            await receipt
        else:
            await self.hand_over_left(posted, (runner,), receipt)
        if receipt.error is not None:
            raise receipt.error

    async def hand_over_left(self, posted: Posted, receivers: Receivers, receipt: Receipt) -> None:
        """Write it to the journal, if there is one, then wait for room in each mailbox."""
        left = list(receivers)
        self._ledger.in_transit += len(left)
        try:
            if self._ledger.journal is not None:
                fresh = await self._write(self._ledger.journal, posted, receivers)
                left = self._without_duplicates(posted, receivers, fresh, receipt)
            while left:
                runner = left[0]
                if (
                    self._is_filtered(posted, runner)  # takes no room, so waits for none
                    or runner.has_room(posted)
                    or await self._room(posted, runner, receipt)
                ):
                    self._put(posted, runner)
                del left[0]
                self._ledger.in_transit -= 1
        except BaseException as error:
            self._ledger.in_transit -= len(left)
            for runner in left:
                if isinstance(error, JournalError):
                    runner.lose(None, posted, Outcome.REJECTED, Reason.JOURNAL, error)
                else:
                    runner.lose(None, posted, Outcome.CANCELLED, Reason.PUBLISHER_CANCELLED)
            raise
        if posted.wire is not None and receipt.pending is not None:
            await receipt  # the broker's confirmation; a cancelled waiter cancels nothing

    async def _room(self, posted: Posted, runner: AgentRunner, receipt: Receipt) -> bool:
        """Make or await room in a full mailbox; False: the delivery has been settled instead."""
        if self._overflow == "reject":
            self._reject(posted, runner, receipt)
            return False
        if self._overflow == "drop_oldest":
            if (oldest := runner.take_oldest(posted)) is not None:
                runner.lose(None, oldest, Outcome.REJECTED, Reason.DROPPED_OLDEST)
            return True
        await runner.wait_for_room(posted)
        if runner.gone is not None:
            receipt.error = ReefClosedError(
                f"Agent {runner.name!r} takes nothing any more: {runner.gone.value}."
            )
        return True

    # -- from inside a handler -----------------------------------------------------------

    def emit(self, posted: Posted, parent: Worker | None, *, explicit: bool) -> Receipt:
        """Route what a handler emits; never waits. ``parent``: None for an orphaned task."""
        receipt = Receipt(posted.header.id)
        self._ledger.published += 1
        if (
            parent is not None
            and parent.posted is not None
            and (refusal := self.join_tree(posted, parent.posted))
        ):
            receipt.error = refusal
            return receipt
        receivers = self._routes.receivers(posted.header)
        receipt.recipients = len(receivers)
        if self._routes.outbox is not None:
            handled = None if parent is None or parent.posted is None else parent.posted.wire
            held = parent is not None and parent.runner.agent.options.transactional
            self.tie(posted, receipt, handled, explicit=explicit, awaited=not held)
        if len(receivers) > FEW:
            posted.load = copier(posted.raw)
        if not receivers:
            self._nobody(posted, receipt, explicit=explicit)
        elif parent is not None and parent.runner.agent.options.transactional:
            parent.held.append((posted, receivers))
        else:
            self._ledger.accept(posted, len(receivers))
            if left := self._put_at_once(posted, receivers):
                self._hand_over_softly(posted, left, receipt)
        return receipt

    def join_tree(self, posted: Posted, parent: Posted) -> BudgetError | None:
        """Make a spore a descendant of ``parent``; a refusal is counted, then returned."""
        tree = posted.tree = parent.tree = parent.tree or Tree(parent.header.id)
        head = posted.header
        if tree.watch is not None and tree.watch.stopped:
            error = BudgetError(f"The session of spore {head.root} is over.")
            return self._refuse(posted, Outcome.CANCELLED, Reason.STOPPED, error)
        if head.hops > self._max_hops:
            error = BudgetError(
                f"Spore {head.id} is {head.hops} hops from its root; the limit is "
                f"{self._max_hops}. Agents probably answer one another in a circle."
            )
            return self._refuse(posted, Outcome.REJECTED, Reason.HOP_LIMIT, error)
        if tree.spores >= self._max_tree:
            error = BudgetError(
                f"The causal tree of {head.root} has {tree.spores} spores, which is the limit. "
                "Agents probably multiply one another's spores; or raise reef_config.max_tree."
            )
            return self._refuse(posted, Outcome.REJECTED, Reason.TREE_BUDGET, error)
        tree.spores += 1
        if tree.watch is not None:
            tree.watch.posted.append(posted)
        return None

    def _refuse(
        self, posted: Posted, outcome: Outcome, reason: Reason, error: BudgetError
    ) -> BudgetError:
        self._ledger.count(posted, outcome, reason, error)
        return error

    def report(self, kind: str, data: Mapping[str, Any], cause: Posted | None) -> None:
        """Tell the agents that name this system event in ``responds_to``, wherever they listen."""
        receivers = tuple(
            runner
            for runner in self._routes.runners.values()
            if kind in (runner.agent.options.responds_to or ())
        )
        if not receivers:
            return
        posted = self.compose({"type": kind, **data}, "main", parent=cause)
        receipt = Receipt(posted.header.id, len(receivers))
        self._ledger.published += 1
        if cause is None or self.join_tree(posted, cause) is None:
            self._ledger.accept(posted, len(receivers))
            self._hand_over_softly(posted, receivers, receipt)

    def tie(
        self,
        posted: Posted,
        receipt: Receipt,
        handled: Wire | None = None,
        *,
        explicit: bool = False,
        awaited: bool = True,
    ) -> None:
        """Tie a spore to the transport that it is to leave by.

        Without a journal the broker's confirmation is what a publisher awaits (``awaited``), and
        what the acknowledgement of the spore that was ``handled`` meanwhile waits for.
        """
        posted.load = dict  # nobody here reads it: the outbox sends ``raw``
        confirmed = cause = None
        if self._ledger.journal is None:
            cause = handled if isinstance(handled, Inbound) else None
            confirmed = self._ledger.loop.create_future() if awaited else None
        receipt.pending = confirmed
        posted.wire = Outward(receipt, confirmed, cause, explicit=explicit)

    def send_reply(self, posted: Posted, asked: Posted) -> None:
        """Send the reply to a request that came over the transport."""
        outbox = self._routes.outbox
        assert outbox is not None
        receipt = Receipt(posted.header.id, 1)
        self.tie(posted, receipt, asked.wire, awaited=False)
        self._ledger.accept(posted, 1)
        self._hand_over_softly(posted, (outbox,), receipt)

    def redeliver(self, posted: Posted, runner: AgentRunner) -> None:
        """Deliver an accepted spore to one agent again, as an at-least-once transport does."""
        # a header of its own: it has to wait for its key like any other
        header = msgspec.structs.replace(posted.header)
        again = msgspec.structs.replace(posted, header=header, attempt=posted.attempt + 1)
        self._ledger.accept(again, 1)
        self._hand_over_softly(again, (runner,), Receipt(again.header.id, 1))

    def _hand_over_softly(self, posted: Posted, receivers: Receivers, receipt: Receipt) -> None:
        journal = self._ledger.journal
        if journal is None:
            self._put_softly(posted, receivers, receipt)
            return
        writing = self._write(journal, posted, receivers)
        receipt.pending = writing

        self._ledger.in_transit += len(receivers)

        def written(done: asyncio.Future[tuple[str, ...]]) -> None:
            error = ReefClosedError("closed") if done.cancelled() else done.exception()
            if error is None:
                fresh = self._without_duplicates(posted, receivers, done.result(), receipt)
                self._ledger.in_transit -= len(fresh)
                self._put_softly(posted, fresh, receipt)
                return
            self._ledger.in_transit -= len(receivers)
            for runner in receivers:
                runner.lose(None, posted, Outcome.REJECTED, Reason.JOURNAL, error)

        writing.add_done_callback(written)

    def put_held(self, posted: Posted, receivers: Receivers) -> None:
        """Hand over what a transactional handler emitted, now that it has been counted."""
        self._put_softly(posted, receivers, Receipt(posted.header.id, len(receivers)))

    def _put_softly(
        self, posted: Posted, receivers: Sequence[AgentRunner], receipt: Receipt
    ) -> None:
        for runner in receivers:
            if runner.mailbox.size < self._hard_capacity:
                self._put(posted, runner)
            else:
                self._reject(posted, runner, receipt)

    # -- both ----------------------------------------------------------------------------

    def _put(self, posted: Posted, runner: AgentRunner) -> None:
        if self._is_filtered(posted, runner):
            runner.lose(None, posted, Outcome.FILTERED, Reason.TYPE)
        else:
            runner.put(posted)

    def _is_filtered(self, posted: Posted, runner: AgentRunner) -> bool:
        """Whether the spore is addressed to an agent that does not respond to its type."""
        return posted.header.to_agent is not None and not runner.responds(posted.header)

    def _reject(self, posted: Posted, runner: AgentRunner, receipt: Receipt) -> None:
        error = MailboxFullError(runner.why_full(posted))
        receipt.rejected = (*receipt.rejected, runner.name)
        if posted.header.to_agent is not None:
            receipt.error = error
        receipt.recipients -= 1
        runner.lose(None, posted, Outcome.REJECTED, Reason.MAILBOX_FULL, error)

    def _nobody(self, posted: Posted, receipt: Receipt, *, explicit: bool) -> None:
        """Count a spore without recipient; only a recipient named by the caller is an error."""
        name = posted.header.to_agent
        if name is None:
            self._ledger.count(posted, Outcome.UNDELIVERABLE, Reason.NO_RECIPIENT)
            return
        self._ledger.count(posted, Outcome.UNDELIVERABLE, Reason.UNKNOWN_AGENT)
        if explicit:
            receipt.error = self.unknown_agent(name)

    def unknown_agent(self, name: str) -> UnknownAgentError:
        """Make the error for a recipient that does not exist."""
        known = list(self._routes.runners)
        return UnknownAgentError(
            f"No agent {name!r} in this Reef.{near(name, known)} Known: "
            f"{', '.join(sorted(known)) or 'none'}."
        )

    def _write(
        self, journal: Journal, posted: Posted, receivers: Receivers
    ) -> asyncio.Future[tuple[str, ...]]:
        for runner in receivers:
            runner.accepted(posted)
        return journal.accept(
            posted.header.id,
            wire_bytes(posted.header, posted.raw),
            [runner.name for runner in receivers],
        )

    def _without_duplicates(
        self, posted: Posted, receivers: Receivers, fresh: Sequence[str], receipt: Receipt
    ) -> list[AgentRunner]:
        """Settle the deliveries whose id the journal has seen; return the others' runners."""
        kept = []
        for runner in receivers:
            if runner.name in fresh:
                kept.append(runner)
            else:
                receipt.recipients -= 1
                self._ledger.in_transit -= 1
                self._ledger.count_duplicate(posted)
        return kept


def _check_names(**names: object) -> None:
    for argument, name in names.items():
        if name is not None and not isinstance(name, str):
            raise ConfigurationError(f"{argument} must be a string, not {name!r}.")
        if name is not None and not _is_text(name):
            raise ConfigurationError(f"{argument} must be text that UTF-8 can carry, not {name!r}.")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_headers(headers: object) -> None:
    if headers is not None and not (
        isinstance(headers, Mapping)
        and all(
            isinstance(text, str) and _is_text(text) for item in headers.items() for text in item
        )
    ):
        raise ConfigurationError(f"headers must map strings to strings, not be {headers!r}.")
