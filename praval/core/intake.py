"""What comes in before and after its signature is checked: how much, how often, what next.

Before the signature holds, an envelope is whoever's: it draws on one bucket per connection, is
remembered in a ring of fixed size, gets at most three delayed attempts and one card query per
agent id in ten seconds. After it, it draws on a bucket of its sender. Sans-IO; milliseconds.

Guide: "Production Security Configuration" (rate limiting).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from hashlib import blake2b
from typing import Any, Literal, NamedTuple

from praval.errors import EnvelopeError, SealCode

ATTEMPTS = 3
DELAY = 1000
"""Milliseconds before the first attempt; the next ones wait twice as long each."""
QUERY_EVERY = 10_000
REMEMBERED = 10_000
"""Senders, retried envelopes and queries that are remembered at one time, of each kind."""
RING = 1000


class Rate(NamedTuple):
    """So many at once, and so many a minute."""

    per_minute: float = 1000
    burst: int = 100


USUAL = Rate()


class Refusal(NamedTuple):
    """What is remembered of a refused envelope: nothing that it claims."""

    at: int
    code: SealCode
    size: int
    digest: str
    """The first 8 bytes of a hash, in hexadecimal."""


class Advice(NamedTuple):
    """What to do with a message."""

    what: Literal["acknowledge", "retry", "dead-letter"]
    delay: int = 0
    """Before the retry."""


class Bucket:
    """A token bucket."""

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate: Rate, now: int) -> None:
        self._rate, self._tokens, self._at = rate, float(rate.burst), now

    def take(self, now: int, tokens: int = 1) -> bool:
        """Take a token, if there is one (0: only look whether there is one)."""
        passed = max(now - self._at, 0)
        filled = self._tokens + passed * self._rate.per_minute / 60_000
        self._tokens, self._at = min(filled, self._rate.burst), max(now, self._at)
        if self._tokens < 1:
            return False
        self._tokens -= tokens
        return True


class Intake:
    """The intake of one connection."""

    def __init__(self, *, anybody: Rate = USUAL, sender: Rate = USUAL, now: int) -> None:
        """Begin with full buckets.

        Args:
            anybody: what may be refused of unauthenticated input before no more is looked at.
            sender: what each authenticated sender may send.
            now: UTC milliseconds.
        """
        self.refused: deque[Refusal] = deque(maxlen=RING)
        """The newest refusals."""
        self._anybody = Bucket(anybody, now)
        self._rate = sender
        self._senders: OrderedDict[bytes, Bucket] = OrderedDict()
        self._attempts: OrderedDict[bytes, int] = OrderedDict()
        self._queries: OrderedDict[bytes, int] = OrderedDict()

    def arrived(self, now: int) -> None:
        """Look whether anything may be looked at at all.

        Raises:
            EnvelopeError: RATE_LIMITED.
        """
        if not self._anybody.take(now, 0):
            raise EnvelopeError(
                "Too much was refused on this connection lately.", SealCode.RATE_LIMITED
            )

    def authenticated(self, sender: bytes, name: str, now: int) -> None:
        """Count an envelope whose signature holds.

        Raises:
            EnvelopeError: RATE_LIMITED.
        """
        bucket = self._senders.get(sender)
        if bucket is None:
            bucket = self._senders[sender] = Bucket(self._rate, now)
        self._senders.move_to_end(sender)
        _bound(self._senders)
        if not bucket.take(now):
            raise EnvelopeError(
                f"{name!r} sends more than message_security.rate_limiting allows.",
                SealCode.RATE_LIMITED,
                name,
            )

    def refuse(self, data: bytes, error: EnvelopeError, now: int) -> Advice:
        """Say what to do with a message that was refused."""
        digest = blake2b(data, digest_size=16).digest()
        code = error.code
        if code.acknowledged:
            return Advice("acknowledge")
        if error.sender is None and code not in (SealCode.RATE_LIMITED, SealCode.IN_FLIGHT):
            self._anybody.take(now)
            self.refused.append(Refusal(now, code, len(data), digest[:8].hex()))
        if code is SealCode.IN_FLIGHT:
            return Advice("retry", DELAY)  # its handler's end or its lease's ends this
        attempt = self._attempts.pop(digest, 0)
        if not code.retried or attempt >= ATTEMPTS:
            return Advice("dead-letter")
        self._attempts[digest] = attempt + 1
        _bound(self._attempts)
        return Advice("retry", DELAY << attempt)

    def may_query(self, agent_id: bytes, now: int) -> bool:
        """Whether to ask for the card of an unknown agent id now; counts as asked."""
        if now - self._queries.get(agent_id, -QUERY_EVERY) < QUERY_EVERY:
            return False
        self._queries.pop(agent_id, None)
        self._queries[agent_id] = now
        _bound(self._queries)
        return True


def _bound(table: OrderedDict[bytes, Any]) -> None:
    if len(table) > REMEMBERED:
        table.popitem(last=False)
