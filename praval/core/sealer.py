"""Between spores and envelopes: what a Reef seals, opens, and believes of receipts.

A header's fields travel in the envelope's own header, where every one of them is authenticated; the
few that it has no place for are in the sealed body. Times become whole milliseconds. Nothing here
waits; ``praval.core.sealed_bridge`` does.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

from praval.core.delivery import Posted
from praval.core.envelope import Opened
from praval.core.envelope_body import LENGTHS, Fields, decode_body, encode_body
from praval.core.envelope_format import NO_ID, RECEIPT, RESPONSE, Message, parse
from praval.core.intake import Advice, Intake, Rate
from praval.core.key_keeper import PROCESS
from praval.core.keys import Keyring, Sealed
from praval.core.sealed_receipts import (
    LIFE,
    ReceiptLedger,
    Settled,
    Told,
    check_reply,
    receipt,
)
from praval.core.security_events import SecurityEvent, SecurityEvents
from praval.core.spore import HEADER_ROOM, MAX_DEPTH, Header, SporeType
from praval.core.topics import decode_segment
from praval.errors import EnvelopeError, KnowledgeError, SealCode
from praval.settings import SecuritySettings

SPORES = frozenset({1, 2, 4, 5})
"""Spore types that an agent takes."""
NOTES = frozenset({RESPONSE, RECEIPT})
"""Those that an inbox takes."""
ENVELOPE_ROOM = HEADER_ROOM + 131_072
"""Bytes that an envelope may take beyond its knowledge: header, 1,024 stanzas, fields."""
UNLIMITED = Rate(1e15, 1_000_000_000)

_REPLICA = re.compile("[0-9a-f]{32}")
_NUMBERS = {kind: number for number, kind in enumerate(SporeType, 1)}
_TYPES = dict(enumerate(SporeType, 1))


class Arrival(NamedTuple):
    """A spore that came in sealed."""

    opened: Opened
    content: bytes
    """The digest of what stays the same when it is sealed again."""
    header: Header
    raw: bytes
    """The encoded knowledge."""
    inbox: str | None
    """Topic to which its sender wants the receipt."""

    def posted(self, attempt: int) -> Posted:
        """Make a delivery of it."""
        return Posted(self.header, self.raw, attempt=attempt)


class Sealer:
    """See the module. Used on the Reef's loop only."""

    def __init__(
        self,
        keyring: Keyring,
        inboxes: str,
        settings: SecuritySettings,
        events: SecurityEvents,
        clock: Callable[[], float],
    ) -> None:
        """Make one.

        Args:
            keyring: whose keys seal and open.
            inboxes: beginning of the topics of all inboxes of the namespace.
            settings: limits.
            events: where refusals are reported.
            clock: UTC seconds.
        """
        self.process = PROCESS
        """The name under which this process speaks outside agents; set when it is known."""
        self.keyring = keyring
        self.events = events
        self.receipts = ReceiptLedger()
        self.told: Counter[str] = Counter()
        """What receipts said, and how many never came: ``outcome_unknown``."""
        self._inboxes = inboxes
        self._max_size = settings.max_message_size
        self._allowed = None if settings.allow_peers is None else frozenset(settings.allow_peers)
        self._denied = frozenset(settings.deny_peers)
        self._clock = clock
        rate = settings.messages_per_minute
        self.intake = Intake(
            anybody=Rate(settings.refusals_per_minute, settings.burst_size),
            sender=UNLIMITED if rate is None else Rate(rate, settings.burst_size),
            now=self.now(),
        )

    def now(self) -> int:
        """Return the time in UTC milliseconds."""
        return int(self._clock() * 1000)

    # -- out -----------------------------------------------------------------------------

    def message(self, header: Header, raw: bytes, topic: str, inbox: str | None) -> Message:
        """Write a spore as what is sealed; the same bytes each time.

        Raises:
            KnowledgeError: its id is not 128 bits in hexadecimal.
            EnvelopeError: a field is too long.
        """
        created = int(header.created_at * 1000)
        life = self.keyring.lifetimes.max_ttl
        if header.expires_at is not None:
            life = max(round((header.expires_at - header.created_at) * 1000), 1)
        fields = Fields(
            channel=None if header.channel == _channel_of(topic) else header.channel,
            data_references=tuple(header.data_references),
            deadline=None if header.deadline is None else round(header.deadline * 1000),
            headers=header.headers,
            hops=header.hops,
            inbox=inbox,
            key=header.key,
            root=header.root,
        )
        return Message(
            id=_id_bytes(header.id),
            created=created,
            expires=created + life,
            from_name=header.from_agent or self.process,
            topic=topic,
            body=encode_body(header.type, raw, fields),
            to_name=header.to_agent or "",
            spore_type=_NUMBERS[header.spore_type],
            priority=header.priority,
            reply_to=NO_ID if header.correlation_id is None else _id_bytes(header.correlation_id),
        )

    def seal(self, message: Message, *, awaited: bool) -> Sealed:
        """Seal a message; with ``awaited``, expect the receipts of all it is sealed to.

        Raises:
            CardError: its receiver has no card that is good now.
            EnvelopeError, KeyringError: it cannot be sealed at all.
        """
        done = self.keyring.seal(message, now=self.now())
        if awaited:
            sender = self.keyring.get(message.from_name).agent_id
            self.receipts.expect(message, sender, done.names)
        return done

    # -- in ------------------------------------------------------------------------------

    def open(self, name: str, data: bytes, filters: Collection[str]) -> Arrival:
        """Open a spore for one of our agents.

        Raises:
            EnvelopeError: with a code; it is to be given to :meth:`refuse`.
        """
        now = self.now()
        self.intake.arrived(now)
        opened = self.keyring.open(
            name, data, now=now, filters=filters, kinds=SPORES, max_size=self._envelope_limit
        )
        self._admit(opened, now)
        return self._arrival(opened)

    def open_note(self, data: bytes, inbox: str) -> Arrival | list[Settled]:
        """Open what came to our inbox: a reply, or a receipt with what it says that is news.

        Raises:
            EnvelopeError: with a code; it is to be given to :meth:`refuse`.
        """
        now = self.now()
        self.intake.arrived(now)
        name = parse(data, self._envelope_limit).to_name
        if name not in self.keyring.names:
            raise EnvelopeError("The envelope is for nobody here.", SealCode.NOT_FOR_ME)
        opened = self.keyring.open(
            name, data, now=now, filters=(inbox,), kinds=NOTES, max_size=self._envelope_limit
        )
        self._check_peer(opened.message.from_name)
        if opened.message.spore_type == RESPONSE:
            return self._arrival(opened)
        return self._settled(opened)

    def check_reply(self, arrival: Arrival, asked: str | None) -> None:
        """Refuse a reply to an open request of another name than the one that was asked.

        Raises:
            EnvelopeError: NOT_PERMITTED.
        """
        if asked is not None:
            message = arrival.opened.message
            check_reply(arrival.opened, {message.reply_to: asked})

    @property
    def _envelope_limit(self) -> int:
        return self._max_size + ENVELOPE_ROOM

    def _admit(self, opened: Opened, now: int) -> None:
        name = opened.message.from_name
        self._check_peer(name)
        self.intake.authenticated(opened.sender, name, now)

    def _check_peer(self, name: str) -> None:
        if name in self._denied or (self._allowed is not None and name not in self._allowed):
            raise EnvelopeError(
                f"The settings of this Reef do not let {name!r} in (security.allow_peers, "
                "security.deny_peers).",
                SealCode.NOT_PERMITTED,
                name,
            )

    def _arrival(self, opened: Opened) -> Arrival:
        message = opened.message
        try:
            kind, _, fields = decode_body(message.body, MAX_DEPTH)
            raw = _knowledge(message.body)
            if len(raw) > self._max_size:
                raise EnvelopeError(
                    f"The knowledge takes {len(raw)} bytes; the limit is {self._max_size}.",
                    SealCode.TOO_LARGE,
                )
            inbox = fields.inbox
            if inbox is not None and not self._is_inbox(inbox):
                raise EnvelopeError("The envelope names an inbox that is none.")
            header = _header(message, kind, fields)
        except EnvelopeError as error:
            error.sender = message.from_name
            raise
        return Arrival(opened, opened.content(), header, raw, inbox)

    def _is_inbox(self, topic: str) -> bool:
        replica = topic.removeprefix(self._inboxes)
        return topic.startswith(self._inboxes) and _REPLICA.fullmatch(replica) is not None

    # -- receipts ------------------------------------------------------------------------

    def receipt(self, told: Sequence[Told], to: str, inbox: str, receiver: str) -> Message:
        """Make the receipt for spores of one sender that were committed.

        Raises:
            CardError: the sender has no card that is good now.
        """
        now = self.now()
        life = min(LIFE, self.keyring.directory.card(to, now).card.max_ttl)
        return receipt(
            told, to=to, topic=inbox, receiver=receiver, now=now, random=os.urandom, life=life
        )

    def take_own(self, message: Message, sender: bytes) -> list[Settled]:
        """Take a receipt that one of our agents gives to another of our names.

        Raises:
            EnvelopeError: see :meth:`ReceiptLedger.hear`.
        """
        return self._settled(Opened(message, None, sender))

    def is_ours(self, opened: Opened) -> bool:
        """Whether one of our names has sealed it."""
        name = opened.message.from_name
        return name in self.keyring.names and self.keyring.get(name).agent_id == opened.sender

    def count_overdue(self) -> None:
        """Give up on receipts whose spores have expired."""
        overdue = self.receipts.overdue(self.now(), self.keyring.lifetimes.skew)
        self.told["outcome_unknown"] += len(overdue)

    def _settled(self, opened: Opened) -> list[Settled]:
        news = self.receipts.hear(opened)
        for settled in news:
            self.told[settled.outcome] += 1
        return news

    # -- refusing ------------------------------------------------------------------------

    def refuse(self, data: bytes, error: EnvelopeError, receiver: str | None) -> Advice:
        """Count a refusal, tell of it, and say what to do with the message."""
        now = self.now()
        advice = self.intake.refuse(data, error, now)
        event = SecurityEvent(
            error.code, now / 1000, str(error), error.sender, receiver, size=len(data)
        )
        passing = advice.what == "retry" and error.code is not SealCode.RATE_LIMITED
        self.events.report(event, passing=passing)
        return advice


def _id_bytes(spore_id: str) -> bytes:
    try:
        found = bytes.fromhex(spore_id)
    except ValueError:
        found = b""
    if len(found) != 16 or found == NO_ID or found.hex() != spore_id:
        raise KnowledgeError(
            f"The id {spore_id!r} cannot be sealed: with security= an id has 32 hexadecimal digits "
            "in lower case, as those have that Praval makes."
        )
    return found


@lru_cache(maxsize=4096)
def _channel_of(topic: str) -> str:
    return decode_segment(topic.rpartition(".")[2])


def _knowledge(body: bytes) -> bytes:
    name, more = LENGTHS.unpack_from(body)
    return body[LENGTHS.size + name + more :]


def _header(message: Message, kind: str | None, fields: Fields) -> Header:
    request, inbox = message.spore_type == _NUMBERS[SporeType.REQUEST], fields.inbox
    return Header(
        id=message.id.hex(),
        created_at=message.created / 1000,
        expires_at=message.expires / 1000,
        type=kind,
        channel=_channel_of(message.topic) if fields.channel is None else fields.channel,
        from_agent=_agent(message.from_name),
        to_agent=_agent(message.to_name),
        priority=message.priority,
        spore_type=_TYPES[message.spore_type],
        correlation_id=None if message.reply_to == NO_ID else message.reply_to.hex(),
        reply_to=_channel_of(inbox) if request and inbox is not None else None,
        root=fields.root,
        hops=fields.hops,
        deadline=None if fields.deadline is None else fields.deadline / 1000,
        key=fields.key,
        headers=fields.headers,
        data_references=fields.data_references,
    )


def _agent(name: str) -> str | None:
    """Return the name of an agent; a process is none."""
    return None if not name or name.startswith(PROCESS) else name
