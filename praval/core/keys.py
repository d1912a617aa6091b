"""The keyring: all keys of a process, and everything a Reef asks of them. Sans-IO.

Bytes in, bytes out; the time (UTC milliseconds) is an argument and randomness a function, so that
every life of a key can be replayed. Nothing here blocks or waits: the owner calls :meth:`tick` now
and then, publishes the cards it returns, and stores :meth:`dump` (``praval.core.key_store``).

Guide: "Key Management System".
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from praval.core import principal
from praval.core.cards import KnownCard, read_card
from praval.core.certificates import Rights, certify, read_certificate, verify_chain
from praval.core.directory import Directory, recipient_of
from praval.core.envelope import Opened, Random, Receiver, Sender, open_envelope, seal_all
from praval.core.envelope_format import MAX_SIZE, RECEIPT, RESPONSE, Message
from praval.core.key_types import SigningKey, VerifyKey
from praval.core.lifetimes import DAY, DEFAULT, Lifetimes
from praval.core.principal import Principal
from praval.core.signed import pattern
from praval.core.stored_keys import StoredKeyring, stored_principal, taken_principal
from praval.errors import CardError, EnvelopeError, KeyringError, ReplayError, SealCode

CERTIFIED = 30 * DAY
"""How long a certificate of the throw-away root is valid."""


class Sealed(NamedTuple):
    """What became of one message."""

    envelopes: list[bytes]
    """To be published; more than one for more than 1,024 recipients."""
    names: list[str]
    """To whom it is sealed."""
    missed: list[str]
    """Who should get it, but has no card that is good now."""


class Keyring:
    """See the module.

    ``Keyring()`` alone makes fresh identities in memory under a throw-away root: good for tests
    and for a single process. Others trust it only if they are given its ``root``.
    """

    def __init__(
        self,
        roots: Iterable[VerifyKey] = (),
        *,
        lifetimes: Lifetimes = DEFAULT,
        random: Random = os.urandom,
        trust_on_first_use: bool = False,
        require_status: bool = False,
        throw_away_root: bool | None = None,
    ) -> None:
        """Start without keys.

        Args:
            roots: whose certificates count.
            lifetimes: how long everything lives.
            random: gives unpredictable bytes.
            trust_on_first_use: see :class:`Directory`; own agents may then be self-signed.
            require_status: see :class:`Directory`.
            throw_away_root: whether it has a root of its own that certifies what is added;
                default: if there is no other root and no trust on first use.
        """
        self.lifetimes = lifetimes
        self.instance = random(16)
        """Names this keyring and the replay memory that belongs to it."""
        self.replay_key = random(32)
        self._journal_key: bytes | None = None
        self._audit_key: bytes | None = None
        self._random = random
        roots = set(roots)
        if throw_away_root is None:
            throw_away_root = not roots and not trust_on_first_use
        self._root = SigningKey(random(32)) if throw_away_root else None
        if self._root is not None:
            roots.add(self._root.verify_key)
        self._self_signed = trust_on_first_use
        self.directory = Directory(
            roots,
            skew=lifetimes.skew,
            trust_on_first_use=trust_on_first_use,
            require_status=require_status,
        )
        self.failed: dict[str, CardError] = {}
        """Names that cannot have a card now (their certificate has ended), and why."""
        self._principals: dict[str, Principal] = {}
        self._receivers: dict[tuple[str, tuple[str, ...], frozenset[int]], Receiver] = {}

    @property
    def journal_key(self) -> bytes:
        """What encrypts a journal (``praval.core.journal_box``); made when it is first wanted."""
        if self._journal_key is None:
            self._journal_key = self._random(32)
        return self._journal_key

    @property
    def audit_key(self) -> bytes:
        """What signs and encrypts the audit log; made when it is first wanted."""
        if self._audit_key is None:
            self._audit_key = self._random(32)
        return self._audit_key

    @property
    def root(self) -> VerifyKey | None:
        """The throw-away root's key, if this keyring has one."""
        return None if self._root is None else self._root.verify_key

    @property
    def names(self) -> list[str]:
        """The names that have keys here."""
        return sorted(self._principals)

    def __repr__(self) -> str:
        return f"<Keyring {self.instance.hex()} of {', '.join(self.names) or 'nobody'}>"

    # -- own keys ------------------------------------------------------------------------

    def add(
        self,
        name: str,
        *,
        now: int,
        subscriptions: Iterable[str] = (),
        identity: SigningKey | None = None,
        certificates: tuple[bytes, ...] = (),
        rights: Rights | None = None,
        epoch: int = 0,
    ) -> Principal:
        """Make keys for a name, which must not have any.

        Args:
            name: 1 to 128 bytes.
            now: UTC milliseconds.
            subscriptions: patterns of the topics it hears.
            identity: its identity; default: a fresh one.
            certificates: the chain of its certificate; default: the throw-away root's signature,
                or its own with trust on first use.
            rights: what the throw-away root grants; default: everything.
            epoch: that of the last card it is known to have issued, from a backup.

        Raises:
            KeyringError: the name has keys, or nobody certifies it.
            CardError: the certificates are no good.
        """
        if name in self._principals:
            raise KeyringError(f"{name!r} has keys already. Rotate them, or take another name.")
        identity = identity or SigningKey(self._random(32))
        chain = certificates or (self._certified(name, identity, rights, now),)
        self._check_chain(name, identity, chain, now)
        made = principal.create(name, identity, chain, now=now, random=self._random)
        made = msgspec.structs.replace(made, epoch=epoch)
        return self._publish(made, now, tuple(dict.fromkeys(subscriptions)))

    def get(self, name: str) -> Principal:
        """Return the keys of a name.

        Raises:
            KeyringError: it has none here.
        """
        try:
            return self._principals[name]
        except KeyError:
            known = ", ".join(self.names) or "nobody"
            raise KeyringError(
                f"There are no keys of {name!r} here; there are keys of: {known}."
            ) from None

    def card(self, name: str) -> bytes:
        """Return the current card of a name, ready to be published."""
        return self.get(name).card

    def subscribe(self, name: str, subscriptions: Iterable[str], *, now: int) -> bytes:
        """Say in a card which topics a name hears; returns its card, a new one if need be."""
        patterns = tuple(dict.fromkeys(subscriptions))
        keys = self.get(name)
        if patterns != keys.subscriptions:
            keys = self._publish(keys, now, patterns)
        return keys.card

    def install(self, name: str, certificates: tuple[bytes, ...], *, now: int) -> bytes:
        """Use a new certificate for a name; returns its new card.

        Raises:
            CardError: the chain is no good, or for another name or identity.
        """
        keys = self.get(name)
        self._check_chain(name, keys.identity, certificates, now)
        return self._publish(msgspec.structs.replace(keys, certificates=certificates), now).card

    def rotate(self, name: str, *, now: int) -> bytes:
        """Replace prekey and signing key; returns the card to be published at once."""
        keys = principal.rotated(self.get(name), self.lifetimes, now=now, random=self._random)
        return self._keep(keys, now).card

    def renew_prekeys(self, name: str, *, now: int) -> bytes:
        """Throw all prekeys away at once, after a theft, a restored backup or a lost replay table.

        What was sealed to them and is still under way cannot be opened any more: that is the
        purpose. Returns the card to be published at once.
        """
        rotated = principal.rotated(self.get(name), self.lifetimes, now=now, random=self._random)
        return self._keep(msgspec.structs.replace(rotated, prekeys=rotated.prekeys[:1]), now).card

    def tick(self, now: int) -> list[bytes]:
        """Do what is due: erase, rotate, renew; returns the cards that are to be published.

        A name whose certificate has ended is put into ``failed`` and hinders no other.
        """
        before = {name: keys.card for name, keys in self._principals.items()}
        self.directory.forget_expired(now - self.lifetimes.grace)
        for name, keys in list(self._principals.items()):
            due = principal.due(keys, self.lifetimes, now)
            if due.erase:
                self._put(principal.erased(keys, self.lifetimes, now))
            try:
                self._recertify(name, now)
                if due.rotate:
                    self.rotate(name, now=now)
                elif due.renew:
                    self._publish(self.get(name), now)
            except CardError as error:
                self.failed[name] = error
        return [keys.card for name, keys in self._principals.items() if keys.card != before[name]]

    # -- others' keys --------------------------------------------------------------------

    def hear(self, data: bytes, now: int) -> KnownCard:
        """Take in a card that came over a transport.

        Raises:
            CardError: it is not believed.
            ReplayError: it speaks for one of our names and we did not issue it: another store
                has the same identity, or ours is a restored backup. Stop consuming for that name.
        """
        card = read_card(data)
        own = self._principals.get(card.name)
        if own is None or bytes(own.identity.verify_key) != card.identity:
            return self.directory.hear_card(data, now)
        if card.epoch > own.epoch or (card.epoch == own.epoch and data != own.card):
            raise ReplayError(
                f"A card of {card.name!r} is under way that was not issued here: another process "
                "uses the same identity with another store, or this store is a restored backup. "
                "Stop one of the two, then run: praval keys rotate --lost",
                SealCode.STALE_CARD,
            )
        return self.directory.sender(own.agent_id, now)

    # -- sealing and opening -------------------------------------------------------------

    def seal(self, message: Message, *, now: int) -> Sealed:
        """Seal a message of one of our names to its receiver, or to all who hear its topic.

        Raises:
            CardError: the receiver has no card that is good now (UNKNOWN_SENDER, STALE_CARD: wait
                for one).
            EnvelopeError: NOT_PERMITTED, MALFORMED, TOO_LARGE.
            KeyringError: the sender has no keys here.
        """
        keys = self.get(message.from_name)
        own = self.directory.sender(keys.agent_id, now)
        if message.spore_type not in (RESPONSE, RECEIPT) and not own.may_publish(message.topic):
            raise EnvelopeError(
                f"{message.from_name!r} has no right to publish on {message.topic!r}.",
                SealCode.NOT_PERMITTED,
            )
        missed: list[str] = []
        if message.to_name:
            known = [self.directory.card(message.to_name, now)]
        else:
            known, missed = self.directory.recipients(message.topic, now)
            known = [each for each in known if each.agent_id != keys.agent_id]
        sender = Sender(keys.agent_id, keys.signers[0].key)
        recipients = [recipient_of(each) for each in known]
        envelopes = seal_all(message, sender, recipients, now=now, random=self._random)
        return Sealed(envelopes, [each.name for each in known], missed)

    def open(
        self,
        name: str,
        data: bytes,
        *,
        now: int,
        filters: Collection[str],
        kinds: Collection[int] = range(1, RECEIPT + 1),
        max_size: int = MAX_SIZE,
    ) -> Opened:
        """Open what came in for one of our names.

        Args:
            name: who receives.
            data: the envelope.
            now: UTC milliseconds.
            filters: the patterns that the local subscription was made with; never what a broker
                says about the message.
            kinds: the spore types that are expected here.
            max_size: most bytes.

        Raises:
            EnvelopeError: with a code; nothing else, whatever the bytes are.
            KeyringError: the name has no keys here.
        """
        receiver = self._receiver(name, tuple(filters), frozenset(kinds))
        return open_envelope(data, receiver, self.directory, now=now, max_size=max_size)

    # -- keeping -------------------------------------------------------------------------

    def dump(self) -> bytes:
        """Return everything, secrets included, to be encrypted at once."""
        return msgspec.json.encode(
            StoredKeyring(
                self.instance,
                self.replay_key,
                self.journal_key,
                self.audit_key,
                None if self._root is None else self._root.reveal(),
                sorted(bytes(root) for root in self.directory.roots),
                [stored_principal(self._principals[name]) for name in self.names],
                self.directory.dump(),
            )
        )

    def restore(self, data: bytes, *, now: int) -> None:
        """Become what was dumped.

        What has ended meanwhile is renewed, see :meth:`tick`.

        Raises:
            KeyringError: MALFORMED.
        """
        try:
            stored = msgspec.json.decode(data, type=StoredKeyring)
            principals = [taken_principal(each) for each in stored.principals]
            roots = set(map(VerifyKey, stored.roots))
            self._root = None if stored.root is None else SigningKey(stored.root)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise KeyringError("The stored keyring cannot be read.", SealCode.MALFORMED) from None
        self.instance, self.replay_key = stored.instance, stored.replay_key
        self._journal_key, self._audit_key = stored.journal_key, stored.audit_key
        self.directory.roots = roots
        self.directory.restore(stored.directory, now)
        for keys in principals:
            self._put(keys)
        if any(keys.card_expires <= now for keys in principals):
            self.tick(now)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Undo all that a block did to the keyring, if it raises.

        Cards that nobody has stored must not be published: others of the store would take them for
        those of another store.
        """
        parts: tuple[object, ...] = (self, self.directory)
        before = [
            {
                name: value.copy() if isinstance(value, dict | set) else value
                for name, value in vars(part).items()
            }
            for part in parts
        ]
        try:
            yield
        except BaseException:
            for part, state in zip(parts, before, strict=True):
                vars(part).update(state)
            raise

    # -- inside --------------------------------------------------------------------------

    def _publish(
        self, keys: Principal, now: int, subscriptions: tuple[str, ...] | None = None
    ) -> Principal:
        above = self.directory.highest_epoch(keys.agent_id)
        keys = principal.with_card(
            keys, self.lifetimes, now=now, subscriptions=subscriptions, above=above
        )
        return self._keep(keys, now)

    def _keep(self, keys: Principal, now: int) -> Principal:
        """Believe our own new card first: if we do not, nobody will, and nothing has changed."""
        self.directory.hear_card(keys.card, now)
        self._put(keys)
        self.failed.pop(keys.name, None)
        return keys

    def _put(self, keys: Principal) -> None:
        self._principals[keys.name] = keys
        self._receivers.clear()

    def _receiver(self, name: str, filters: tuple[str, ...], kinds: frozenset[int]) -> Receiver:
        key = (name, filters, kinds)
        receiver = self._receivers.get(key)
        if receiver is None:
            keys = self.get(name)
            receiver = self._receivers[key] = Receiver(
                name,
                keys.agent_id,
                keys.opening_keys(),
                tuple(map(pattern, filters)),
                kinds,
                self.lifetimes.max_ttl,
                self.lifetimes.skew,
            )
        return receiver

    def _certified(self, name: str, identity: SigningKey, rights: Rights | None, now: int) -> bytes:
        issuer = identity if self._self_signed else self._root
        if issuer is None:
            raise KeyringError(
                f"{name!r} needs a certificate that one of the pinned roots signed. "
                f"Ask for one: praval keys root --certify {name}"
            )
        serial = int.from_bytes(self._random(6), "big")
        return certify(
            name,
            identity.verify_key,
            issuer,
            not_before=max(now - self.lifetimes.skew, 0),
            expires=now + CERTIFIED,
            serial=serial,
            rights=rights,
        )

    def _recertify(self, name: str, now: int) -> None:
        """Let the throw-away root sign again what would end within the life of two cards."""
        keys = self.get(name)
        certificate = read_certificate(keys.certificates[0])
        ours = certificate.is_self_signed or (
            self._root is not None and certificate.issuer == bytes(self._root.verify_key)
        )
        if ours and certificate.expires - now < 2 * self.lifetimes.card:
            again = (self._certified(name, keys.identity, certificate.rights, now),)
            self._publish(msgspec.structs.replace(keys, certificates=again), now)

    def _check_chain(
        self, name: str, identity: SigningKey, chain: tuple[bytes, ...], now: int
    ) -> None:
        certificate = verify_chain(chain, self.directory.roots, now, self.lifetimes.skew)[0]
        if certificate.name != name or certificate.identity != bytes(identity.verify_key):
            raise CardError(
                f"The certificate is that of {certificate.name!r}, or of another identity than "
                f"the one of {name!r} here.",
                SealCode.NOT_PERMITTED,
            )
