"""Certificates: who may bear a name, and what it may do, signed by a root or an issuer.

A root (an Ed25519 key that every host pins and no host has) signs certificates of agents, or of
issuers, which then sign those of agents: one level, and what an issuer grants lies within what it
was granted. Status lists revoke certificates by serial number; a succession carries a name that
was trusted on first use over to a new identity. Sans-IO.

Guide: "Security Features" (agent authentication, trust chain).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Literal

import msgspec

from praval.core.key_types import SigningKey, VerifyKey
from praval.core.signed import (
    Key32,
    Name,
    Patterns,
    Payload,
    Whole,
    allows,
    covers,
    malformed,
    pattern,
    read,
    sign,
)
from praval.errors import CardError, SealCode

LONGEST = 90 * 86_400_000
"""Most milliseconds that a certificate is valid."""
ANY = "*"
LOCAL_TYPES = frozenset({"agent_error", "security_alert"})
"""Types that no wildcard grants: what they say is about the local host, unless named."""

Types = Annotated[
    tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=128)], ...],
    msgspec.Meta(max_length=64),
]


class Rights(Payload, frozen=True):
    """What a certificate grants. Channels are patterns of topics (``desk.main``, ``desk.#``)."""

    names: Types = ()
    """An issuer's: the names it may certify; a final ``*`` stands for any ending."""
    publish: Patterns = ("#",)
    read: Patterns = ("#",)
    types: Types = (ANY,)
    """Message types it may send; ``*``: all but `LOCAL_TYPES`."""

    def may_send(self, kind: str | None) -> bool:
        """Whether it may send spores of this type."""
        if kind in self.types:
            return True
        return ANY in self.types and kind not in LOCAL_TYPES

    def may_publish(self, topic: str) -> bool:
        """Whether it may publish on this topic."""
        return allows(self.publish, topic)

    def may_read(self, topic: str) -> bool:
        """Whether spores on this topic may be sealed to it."""
        return allows(self.read, topic)

    def includes(self, other: Rights) -> bool:
        """Whether the other grants nothing that this one does not."""
        types = all(
            kind in self.types or (ANY in self.types and kind not in LOCAL_TYPES)
            for kind in other.types
        )
        return types and covers(self.publish, other.publish) and covers(self.read, other.read)

    def may_certify(self, name: str) -> bool:
        """Whether an issuer with these rights may give this name."""
        return any(
            name.startswith(each[:-1]) if each.endswith(ANY) else name == each
            for each in self.names
        )


class Certificate(Payload, frozen=True):
    """A name for an identity. Times are UTC milliseconds."""

    expires: Whole
    identity: Key32
    issuer: Key32
    """Verify key of the root or issuer that signed it; the identity itself: self-signed."""
    kind: Literal["agent", "issuer"]
    name: Name
    not_before: Whole
    rights: Rights
    serial: Whole

    @property
    def is_self_signed(self) -> bool:
        """Whether nobody vouches for it but itself: good for trust on first use only."""
        return self.identity == self.issuer


class Status(Payload, frozen=True):
    """Which certificates of one issuer are revoked."""

    expires: Whole
    issued: Whole
    issuer: Key32
    number: Whole
    """Never goes down."""
    serials: Annotated[tuple[Whole, ...], msgspec.Meta(max_length=400)]


class Succession(Payload, frozen=True):
    """A pinned name's change of identity, to be signed by the old and by the new one."""

    at: Whole
    name: Name
    new: Key32
    old: Key32


def certify(
    name: str,
    identity: VerifyKey,
    issuer: SigningKey,
    *,
    not_before: int,
    expires: int,
    serial: int,
    rights: Rights | None = None,
    kind: Literal["agent", "issuer"] = "agent",
) -> bytes:
    """Sign a certificate; its name is in bytes 1 to 128.

    Raises:
        CardError: MALFORMED, for a name, a time or a right that cannot be.
    """
    certificate = Certificate(
        expires=expires,
        identity=bytes(identity),
        issuer=bytes(issuer.verify_key),
        kind=kind,
        name=name,
        not_before=not_before,
        rights=rights or Rights(),
        serial=serial,
    )
    data = sign("certificate", certificate, issuer)
    read_certificate(data)  # what others would refuse is refused here
    return data


def read_certificate(data: bytes) -> Certificate:
    """Read a certificate and check its signature against the key it names as its issuer's.

    That key is nobody's yet: see :func:`verify_chain`.

    Raises:
        CardError: MALFORMED, TOO_LARGE, BAD_SIGNATURE.
    """
    certificate, signed = read(data, "certificate", Certificate)
    _check_sense(certificate)
    if not signed.is_by(VerifyKey(certificate.issuer)):
        raise CardError("The certificate's signature is wrong.", SealCode.BAD_SIGNATURE)
    return certificate


def verify_chain(
    chain: Sequence[bytes], roots: Collection[VerifyKey], now: int, skew: int
) -> tuple[Certificate, ...]:
    """Check a chain (the agent's certificate, then perhaps its issuer's) up to a pinned root.

    A chain of one self-signed certificate is returned as well: whether that is good enough is
    the directory's decision.

    Raises:
        CardError: MALFORMED, BAD_SIGNATURE, UNKNOWN_SENDER (no pinned root), NOT_PERMITTED (an
            issuer granted more than it has), EXPIRED, NOT_YET_VALID.
    """
    if not 1 <= len(chain) <= 2:
        raise malformed("a chain has one or two certificates")
    certificates = tuple(map(read_certificate, chain))
    agent, top = certificates[0], certificates[-1]
    if agent.kind != "agent":
        raise malformed("the first certificate of a chain is an agent's")
    for each in certificates:
        if each.expires + skew < now:
            raise CardError(f"The certificate of {each.name!r} has expired.", SealCode.EXPIRED)
        if each.not_before > now + skew:
            raise CardError(
                f"The certificate of {each.name!r} is not valid yet.", SealCode.NOT_YET_VALID
            )
    if top is not agent:
        _check_nesting(agent, top)
    if agent.is_self_signed and len(chain) == 1:
        return certificates
    if VerifyKey(top.issuer) not in roots:
        raise CardError(
            f"The certificate of {agent.name!r} leads to no root that is pinned here. "
            "Pin it, if you know whose it is: praval keys trust",
            SealCode.UNKNOWN_SENDER,
        )
    return certificates


def _check_nesting(agent: Certificate, issuer: Certificate) -> None:
    if issuer.kind != "issuer" or agent.issuer != issuer.identity:
        raise CardError(
            "The second certificate of the chain is not that of the first one's issuer.",
            SealCode.BAD_SIGNATURE,
        )
    inside = issuer.not_before <= agent.not_before and agent.expires <= issuer.expires
    if not (
        inside and issuer.rights.may_certify(agent.name) and issuer.rights.includes(agent.rights)
    ):
        raise CardError(
            f"The issuer {issuer.name!r} granted a name, rights or a time that it has not itself.",
            SealCode.NOT_PERMITTED,
        )


def _check_sense(certificate: Certificate) -> None:
    check_name(certificate.name)
    if not certificate.not_before < certificate.expires:
        raise malformed("the certificate ends before it begins")
    if certificate.expires - certificate.not_before > LONGEST:
        raise malformed("the certificate is valid for more than 90 days")
    if certificate.kind == "agent" and certificate.rights.names:
        raise malformed("an agent's certificate lets it certify others")
    for each in (*certificate.rights.publish, *certificate.rights.read):
        pattern(each)


def check_name(name: str) -> None:
    """Refuse a name that no envelope can carry.

    Raises:
        CardError: MALFORMED.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise malformed("a name is no UTF-8") from None
    if not 1 <= size <= 128:
        raise malformed("a name takes 1 to 128 bytes")


# -- revoking and succeeding -------------------------------------------------------------------


def sign_status(
    issuer: SigningKey, *, number: int, issued: int, expires: int, serials: Sequence[int]
) -> bytes:
    """Sign the list of serial numbers that are revoked.

    Raises:
        CardError: TOO_LARGE.
    """
    status = Status(
        expires=expires,
        issued=issued,
        issuer=bytes(issuer.verify_key),
        number=number,
        serials=tuple(sorted(set(serials))),
    )
    return sign("status", status, issuer)


def read_status(data: bytes) -> Status:
    """Read a status list and check that its issuer signed it.

    Raises:
        CardError: MALFORMED, TOO_LARGE, BAD_SIGNATURE.
    """
    status, signed = read(data, "status", Status)
    if not signed.is_by(VerifyKey(status.issuer)):
        raise CardError("The status list's signature is wrong.", SealCode.BAD_SIGNATURE)
    return status


def sign_succession(name: str, old: SigningKey, new: SigningKey, at: int) -> tuple[bytes, bytes]:
    """Sign a change of identity, as both."""
    succession = Succession(at=at, name=name, new=bytes(new.verify_key), old=bytes(old.verify_key))
    return sign("succession", succession, old), sign("succession", succession, new)


def read_succession(by_old: bytes, by_new: bytes) -> Succession:
    """Read a change of identity and check both signatures.

    Raises:
        CardError: MALFORMED, TOO_LARGE, BAD_SIGNATURE.
    """
    succession, old = read(by_old, "succession", Succession)
    again, new = read(by_new, "succession", Succession)
    if succession != again:
        raise malformed("the two halves of the succession differ")
    if not (old.is_by(VerifyKey(succession.old)) and new.is_by(VerifyKey(succession.new))):
        raise CardError("A signature of the succession is wrong.", SealCode.BAD_SIGNATURE)
    return succession
