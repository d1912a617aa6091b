"""The directory: whose cards are believed, and what is remembered so that none is rolled back.

Pinned roots decide who may bear which name. For each identity the highest epoch counts; it and the
union of all revocations ever seen are kept (:meth:`Directory.dump`), so that neither a broker nor
a restart can bring an old card or a revoked certificate back. Sans-IO.

Guide: "Security Features" (public key infrastructure, trust chain establishment).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import msgspec

from praval.core.cards import Card, KnownCard, read_card
from praval.core.certificates import read_status, read_succession, verify_chain
from praval.core.envelope import Recipient
from praval.core.key_types import PublicKey, VerifyKey
from praval.core.signed import allows
from praval.errors import CardError, EnvelopeError, SealCode

MOST_CARDS = 10_000
"""Identities that are known at one time; only holders of certificates can fill it."""


_NEVER = (0, b"")


class _State(msgspec.Struct, forbid_unknown_fields=True):
    """What survives a restart. Byte strings are keys of mappings as hexadecimal."""

    epochs: dict[str, tuple[int, bytes]]
    cards: list[bytes]
    revoked: list[tuple[bytes, int]]
    statuses: dict[str, tuple[int, int]]
    pins: dict[str, bytes]


class Directory:
    """Cards, roots, pins and revocations; see the module. Times are UTC milliseconds."""

    def __init__(
        self,
        roots: Iterable[VerifyKey] = (),
        *,
        skew: int = 120_000,
        trust_on_first_use: bool = False,
        require_status: bool = False,
    ) -> None:
        """Start with nobody known.

        Args:
            roots: whose certificates count; pin at least two, so that one can be replaced.
            skew: how far clocks may be apart (ms).
            trust_on_first_use: believe a self-signed certificate for a name nobody has yet, and
                from then on only that identity.
            require_status: refuse whoever's issuer has no status list that is current.
        """
        self.roots = set(roots)
        self.skew = skew
        self._trust_on_first_use = trust_on_first_use
        self._require_status = require_status
        self._cards: dict[bytes, KnownCard] = {}
        self._names: dict[str, bytes] = {}
        self._epochs: dict[bytes, tuple[int, bytes]] = {}
        """Highest epoch of each identity, and a digest of the card that had it."""
        self._revoked: set[tuple[bytes, int]] = set()
        self._statuses: dict[bytes, tuple[int, int]] = {}
        self._pins: dict[str, bytes] = {}

    # -- hearing -------------------------------------------------------------------------

    def hear_card(self, data: bytes, now: int) -> KnownCard:
        """Believe a card, or refuse it; one that is known already is returned again.

        Raises:
            CardError: with the code of what is wrong with it; nothing else, whatever the bytes.
        """
        card = read_card(data)
        agent_id = VerifyKey(card.identity).agent_id
        chain = verify_chain(card.certificates, self.roots, now, self.skew)
        certificate = chain[0]
        if certificate.identity != card.identity or certificate.name != card.name:
            raise CardError(
                f"The card of {card.name!r} carries somebody else's certificate.",
                SealCode.NOT_PERMITTED,
            )
        # A self-signed agent is beside the PKI, unless its identity is itself a pinned root.
        by_root = (
            len(chain) > 1
            or not certificate.is_self_signed
            or VerifyKey(card.identity) in self.roots
        )
        self._check_times(card, min(each.expires for each in chain), now)
        issuers = tuple((each.issuer, each.serial) for each in chain)
        self._check_revocation(card.name, issuers, now)
        if not by_root:
            self._check_pin(card)
        known = KnownCard(
            card, data, certificate, issuers, agent_id,
            {key.id: key for key in map(VerifyKey, card.verify_keys)}, by_root,
        )  # fmt: skip
        return self._remember(known)

    def hear_status(self, data: bytes, now: int) -> None:
        """Take in a status list: what it revokes stays revoked, whatever later lists say.

        Raises:
            CardError: with the code of what is wrong with it.
        """
        status = read_status(data)
        if VerifyKey(status.issuer) not in self.roots and not self._is_issuer(status.issuer):
            raise CardError(
                "The status list is signed by nobody who is trusted here.", SealCode.UNKNOWN_SENDER
            )
        if status.issued > now + self.skew:
            raise CardError("The status list is of the future.", SealCode.NOT_YET_VALID)
        number, _ = self._statuses.get(status.issuer, (-1, 0))
        if status.number < number:
            raise CardError(
                f"The status list has number {status.number}; {number} was seen before.",
                SealCode.STALE_CARD,
            )
        self._statuses[status.issuer] = (status.number, status.expires)
        self._revoked.update((status.issuer, serial) for serial in status.serials)

    def hear_succession(self, by_old: bytes, by_new: bytes) -> None:
        """Let a pinned name change its identity; both have signed.

        Raises:
            CardError: with the code of what is wrong with it.
        """
        succession = read_succession(by_old, by_new)
        if self._pins.get(succession.name) != succession.old:
            raise CardError(
                f"The name {succession.name!r} is not pinned to the identity that hands it on.",
                SealCode.NOT_PERMITTED,
            )
        self._pins[succession.name] = succession.new
        self._cards.pop(VerifyKey(succession.old).agent_id, None)

    # -- looking up ----------------------------------------------------------------------

    def sender(self, agent_id: bytes, now: int) -> KnownCard:
        """Return who has that id, if it may be believed now.

        Raises:
            EnvelopeError: UNKNOWN_SENDER, STALE_CARD, REVOKED.
        """
        known = self._cards.get(agent_id)
        if known is None:
            raise EnvelopeError(
                f"Nobody known here has the id {agent_id.hex()}: its card has not come in yet.",
                SealCode.UNKNOWN_SENDER,
            )
        if known.card.expires + self.skew < now:
            raise EnvelopeError("The sender's card has expired.", SealCode.STALE_CARD)
        try:
            self._check_revocation(known.name, known.issuers, now)
        except CardError as error:
            raise EnvelopeError(str(error), error.code) from None
        return known

    def card(self, name: str, now: int) -> KnownCard:
        """Return the card under which an agent of that name can be reached now.

        Raises:
            CardError: UNKNOWN_SENDER, STALE_CARD, REVOKED.
        """
        agent_id = self._names.get(name)
        known = None if agent_id is None else self._cards.get(agent_id)
        if known is None:
            raise CardError(
                f"No card of {name!r} is known here. It is published by the host of {name!r}: "
                "is that running, and is its root pinned?",
                SealCode.UNKNOWN_SENDER,
            )
        if known.card.expires <= now:
            raise CardError(f"The card of {name!r} has expired.", SealCode.STALE_CARD)
        self._check_revocation(name, known.issuers, now)
        return known

    def recipients(self, topic: str, now: int) -> tuple[list[KnownCard], list[str]]:
        """Return whose cards subscribe to a topic and may read it, and who is out of reach.

        The second list has the names whose last card would count but has expired.
        """
        reached, missed = [], []
        for name, agent_id in self._names.items():
            known = self._cards.get(agent_id)
            if known is None or not allows(known.card.subscriptions, topic):
                continue
            if not known.certificate.rights.may_read(topic):
                continue
            try:
                reached.append(self.card(name, now))
            except CardError as error:
                if error.code is SealCode.STALE_CARD:
                    missed.append(name)
        return reached, missed

    def highest_epoch(self, agent_id: bytes) -> int:
        """Return the highest epoch ever seen of an identity; 0: none."""
        return self._epochs.get(agent_id, _NEVER)[0]

    def known(self, now: int) -> list[KnownCard]:
        """Return whoever has an unexpired card."""
        return [known for known in self._cards.values() if known.card.expires > now]

    def forget_expired(self, before: int) -> None:
        """Drop cards that expired before that time; their epochs stay known."""
        for agent_id, known in list(self._cards.items()):
            if known.card.expires < before:
                del self._cards[agent_id]

    # -- keeping -------------------------------------------------------------------------

    def dump(self) -> bytes:
        """Return what must survive a restart (no secrets); the same bytes for the same state."""
        return msgspec.json.encode(
            _State(
                {agent_id.hex(): seen for agent_id, seen in sorted(self._epochs.items())},
                sorted(known.data for known in self._cards.values()),
                sorted(self._revoked),
                {issuer.hex(): state for issuer, state in sorted(self._statuses.items())},
                dict(sorted(self._pins.items())),
            )
        )

    def restore(self, data: bytes, now: int) -> None:
        """Take back what :meth:`dump` returned; what has expired or is not trusted is left out.

        Raises:
            CardError: MALFORMED.
        """
        try:
            state = msgspec.json.decode(data, type=_State)
            epochs = {bytes.fromhex(key): seen for key, seen in state.epochs.items()}
            statuses = {bytes.fromhex(key): value for key, value in state.statuses.items()}
        except (msgspec.DecodeError, UnicodeError, ValueError, RecursionError):
            raise CardError("The stored directory cannot be read.") from None
        self._revoked.update(state.revoked)
        self._statuses.update(statuses)
        self._pins.update(state.pins)
        for each in state.cards:
            try:
                self.hear_card(each, now)
            except CardError:  # expired, or its root is not pinned any more: as if never heard
                continue
        for agent_id, seen in epochs.items():
            self._epochs[agent_id] = max(seen, self._epochs.get(agent_id, _NEVER))

    # -- judging -------------------------------------------------------------------------

    def _check_times(self, card: Card, certified_until: int, now: int) -> None:
        if card.issued > now + self.skew or card.epoch > now + self.skew:
            raise CardError(
                f"The card of {card.name!r} is of the future. Set the clocks of both hosts.",
                SealCode.NOT_YET_VALID,
            )
        if card.expires <= now:
            raise CardError(f"The card of {card.name!r} has expired.", SealCode.STALE_CARD)
        if card.expires > certified_until:
            raise CardError(
                f"The card of {card.name!r} outlives its certificate.", SealCode.NOT_PERMITTED
            )

    def _check_revocation(
        self, name: str, issuers: tuple[tuple[bytes, int], ...], now: int
    ) -> None:
        if not self._revoked.isdisjoint(issuers):
            raise CardError(f"A certificate of {name!r} is revoked.", SealCode.REVOKED)
        if self._require_status:
            for issuer, _ in issuers:
                if self._statuses.get(issuer, (0, -1))[1] <= now:
                    raise CardError(
                        f"No current status list says that {name!r} is not revoked. "
                        "Ask the root's owner to sign one: praval keys revoke",
                        SealCode.STALE_CARD,
                    )

    def _check_pin(self, card: Card) -> None:
        if not self._trust_on_first_use:
            raise CardError(
                f"Nobody vouches for the card of {card.name!r} but itself. Let a root certify it, "
                "or allow trust on first use.",
                SealCode.UNKNOWN_SENDER,
            )
        pinned = self._pins.get(card.name)
        if pinned is None and len(self._pins) >= MOST_CARDS:
            raise CardError(f"{MOST_CARDS} names are pinned already.", SealCode.RATE_LIMITED)
        if pinned not in (None, card.identity):
            raise CardError(
                f"The name {card.name!r} belongs to another identity here. If it was changed on "
                "purpose, it needs a succession signed by both.",
                SealCode.NOT_PERMITTED,
            )

    def _remember(self, known: KnownCard) -> KnownCard:
        card, agent_id = known.card, known.agent_id
        held = self._cards.get(agent_id)
        if held is not None and held.data == known.data:
            return held
        digest = blake2b(known.data, digest_size=16, person=b"psv1.card").digest()
        epoch, seen = self._epochs.get(agent_id, _NEVER)
        if card.epoch < epoch or (card.epoch == epoch and digest != seen):
            raise CardError(
                f"The card of {card.name!r} is older than one that was seen before, or another "
                "with the same epoch.",
                SealCode.STALE_CARD,
            )
        if held is None and len(self._cards) >= MOST_CARDS:
            raise CardError(f"{MOST_CARDS} cards are known already.", SealCode.RATE_LIMITED)
        self._cards[agent_id] = known
        self._epochs[agent_id] = (card.epoch, digest)
        self._take_name(known)
        return known

    def _take_name(self, known: KnownCard) -> None:
        """Give the name to the identity with the newest certificate, should two have one.

        Names are pinned whoever vouches: what a root certified once, nobody takes by coming first
        after its card has expired. Who was only trusted on first use falls silent at once when a
        root gives its name to another.
        """
        holder = self._cards.get(self._names.get(known.name, b""))
        if holder is None or holder.agent_id == known.agent_id or known.rank >= holder.rank:
            self._names[known.name] = known.agent_id
            self._pins[known.name] = known.card.identity
            if holder is not None and known.certified and not holder.certified:
                del self._cards[holder.agent_id]

    def _is_issuer(self, key: bytes) -> bool:
        return any(key in dict(known.issuers) for known in self._cards.values())


def recipient_of(known: KnownCard) -> Recipient:
    """Return to what a message for the owner of a card is sealed."""
    card = known.card
    return Recipient(known.agent_id, PublicKey(card.prekey), card.expires, card.max_ttl)
