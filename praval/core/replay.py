"""The memory of what was handled: a state machine over an abstract table. Sans-IO.

::

             begin                    commit
    unknown ───────> leased (fence n) ───────> committed: the same content is DUPLICATE, other is
                       │    ^                              REPLAY, until expires + 3 skew
               release │    │ begin (fence n+1)
               or time v    │
                       open ┘

A broker's redelivery is no attack: while a lease lives it is IN_FLIGHT, after it the spore is
begun again, and only what was committed is refused. A *fencing number* rises with each lease, so
that whoever lost its lease cannot commit any more. The id is bound to its content by the first
`begin`: other content under the same id is REPLAY, whatever became of the first.

Memory is bounded per sender. When a sender's quota is full, its oldest committed entries make room,
and its *floor* rises to the newest of them: what was created at the floor or before and is not in
the table is refused, for nobody can tell any more. The floor stays ``skew`` below the clock; where
that leaves no room, the sender is RATE_LIMITED.

The clock never goes back, restarts included. `Replay.check_clock` compares the wall clock with a
monotonic one; after a jump nothing is begun, purged, rotated or erased until somebody looked.

Guide: "Security Features" (replay attack prevention).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import blake2b
from typing import Literal, NamedTuple, Protocol

import msgspec

from praval.errors import ReplayError, SealCode

QUOTA = 100_000
"""Entries of one sender at one receiver."""
LEASE = 60_000
"""Milliseconds until what a dead process had begun may be begun again; the living renew in time."""
PURGE_CHUNK = 1000
EVERYBODY = ("", b"")
"""Receiver and sender of the floor that holds for all: no name is empty."""

Outcome = Literal["handled", "dead"]


class Key(NamedTuple):
    """One spore at one receiver."""

    receiver: str
    sender: bytes
    """Agent id."""
    spore: bytes


class Entry(msgspec.Struct, frozen=True):
    """What is known of one spore. Milliseconds."""

    content: bytes
    """Keyed digest."""
    created: int
    expires: int
    fence: int
    """Number of the last lease."""
    leased_until: int
    """0: nobody has it."""
    attempt: int
    outcome: Outcome | None = None
    """Not None: committed."""


class Begun(NamedTuple):
    """What is to be done with a spore that came in."""

    code: SealCode | None
    """None: handle it. IN_FLIGHT: neither handle nor acknowledge. DUPLICATE: acknowledge, repeat
    the receipt. REPLAY: alarm. EXPIRED: below the floor. RATE_LIMITED: later."""
    fence: int = 0
    attempt: int = 0
    outcome: Outcome | None = None
    """Of a DUPLICATE."""


class Rows(Protocol):
    """The table inside one transaction, which nobody else sees or changes meanwhile."""

    def get(self, key: Key) -> Entry | None:
        """Return an entry."""
        ...

    def put(self, key: Key, entry: Entry) -> None:
        """Write an entry."""
        ...

    def count(self, receiver: str, sender: bytes) -> int:
        """Return how many entries a sender has at a receiver."""
        ...

    def evict(self, receiver: str, sender: bytes, number: int, before: int) -> int | None:
        """Delete up to ``number`` committed entries, the oldest first, created before a time.

        Returns the newest creation time among those deleted; None: there were none.
        """
        ...

    def floor(self, receiver: str, sender: bytes) -> int:
        """Return a sender's floor at a receiver; 0: it has none."""
        ...

    def raise_floor(self, receiver: str, sender: bytes, floor: int) -> None:
        """Set it, unless it is higher already."""
        ...

    def clock(self) -> int:
        """Return the highest time that was ever set."""
        ...

    def set_clock(self, now: int) -> None:
        """Set it."""
        ...

    def next_fence(self) -> int:
        """Return a number that is higher than any before."""
        ...

    def purge(self, before: int, number: int) -> int:
        """Delete up to ``number`` entries that nobody holds and that expired before a time.

        Returns how many.
        """
        ...


class Table(Protocol):
    """Where entries are kept, under one instance id."""

    @property
    def instance(self) -> bytes:
        """Names the keyring that it belongs to."""
        ...

    def transaction(self) -> AbstractContextManager[Rows]:
        """Begin a transaction; it is committed at the end of the block, durably."""
        ...


class Replay:
    """See the module. Calls block as long as the table does; times are UTC milliseconds."""

    def __init__(
        self,
        table: Table,
        *,
        instance: bytes,
        key: bytes,
        skew: int = 120_000,
        lease: int = LEASE,
        quota: int = QUOTA,
    ) -> None:
        """Use a table.

        Args:
            table: the entries.
            instance: that of the keyring.
            key: secret of the keyring, under which contents are digested.
            skew: how far clocks may be apart (ms).
            lease: how long a handling may take (ms) before the spore is begun again.
            quota: most entries of one sender at one receiver.

        Raises:
            ReplayError: the table belongs to another keyring: a store was deleted, copied or
                restored. See :meth:`reset`.
        """
        if table.instance != instance:
            raise ReplayError(
                "The replay memory belongs to another keyring: one of the two was deleted, "
                "copied or restored. Nothing is opened until its keys are new: "
                "praval keys rotate --lost",
                SealCode.REPLAY,
            )
        self._table, self._key = table, key
        self.skew, self.lease, self.quota = skew, lease, quota
        self._anchor: tuple[int, int] | None = None
        self._jumped = False
        self._batch: Rows | None = None

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Let all calls in the block be one transaction: one flush of the disk serves many.

        For a thread that writes what many tasks have queued. A call that raises leaves nothing of
        its own; what the others did counts when the block has ended, and not before.
        """
        with self._table.transaction() as rows:
            self._batch = rows
            try:
                yield
            finally:
                self._batch = None

    # -- a spore -------------------------------------------------------------------------

    def begin(self, key: Key, content: bytes, *, created: int, expires: int, now: int) -> Begun:
        """Take a lease on a spore whose envelope was opened, or learn why not.

        Raises:
            ReplayError: the clock is not to be trusted.
        """
        self._refuse_jump()
        with self._transaction() as rows:
            clock = self._tick(rows, now)
            entry = rows.get(key)
            digest = self._digest(key, content)
            if entry is not None:
                return self._again(rows, key, entry, digest, clock)
            floor = max(rows.floor(key.receiver, key.sender), rows.floor(*EVERYBODY))
            if created <= floor or expires + 3 * self.skew < clock:
                return Begun(SealCode.EXPIRED)
            if not self._has_room(rows, key, clock):
                return Begun(SealCode.RATE_LIMITED)
            fence = rows.next_fence()
            rows.put(key, Entry(digest, created, expires, fence, clock + self.lease, 1))
            return Begun(None, fence, 1)

    def renew(self, key: Key, fence: int, *, now: int) -> None:
        """Keep a lease for one more time; for handlers that take longer.

        Raises:
            ReplayError: it was lost.
        """
        with self._transaction() as rows:
            entry = self._held(rows, key, fence)
            until = self._tick(rows, now) + self.lease
            rows.put(key, msgspec.structs.replace(entry, leased_until=until))

    def commit(self, key: Key, fence: int, outcome: Outcome = "handled") -> None:
        """Write down that a spore is done with: it will never be begun again.

        Raises:
            ReplayError: the lease was lost to another; acknowledge nothing.
        """
        with self._transaction() as rows:
            entry = self._held(rows, key, fence)
            rows.put(key, msgspec.structs.replace(entry, leased_until=0, outcome=outcome))

    def release(self, key: Key, fence: int) -> bool:
        """Give a lease back: the next delivery begins it at once. False: it was lost already."""
        with self._transaction() as rows:
            entry = rows.get(key)
            if entry is None or entry.fence != fence or entry.outcome is not None:
                return False
            rows.put(key, msgspec.structs.replace(entry, leased_until=0))
            return True

    # -- upkeep --------------------------------------------------------------------------

    def purge(self, now: int) -> int:
        """Forget up to `PURGE_CHUNK` entries that nobody could replay any more; how many.

        Raises:
            ReplayError: the clock is not to be trusted.
        """
        self._refuse_jump()
        with self._transaction() as rows:
            return rows.purge(self._tick(rows, now) - 3 * self.skew, PURGE_CHUNK)

    def check_clock(self, wall: int, monotonic: int) -> None:
        """Compare the two clocks with each other since the first call; call it every few seconds.

        Args:
            wall: UTC milliseconds.
            monotonic: milliseconds of a clock that nobody sets and that runs during sleep
                (``CLOCK_BOOTTIME``).

        Raises:
            ReplayError: they differ by more than the skew, now or at an earlier call.
        """
        if self._anchor is None:
            self._anchor = wall, monotonic
            with self._transaction() as rows:
                self._jumped = wall < rows.clock() - self.skew
        elapsed = (wall - self._anchor[0]) - (monotonic - self._anchor[1])
        if abs(elapsed) > self.skew:
            self._jumped = True
        self._refuse_jump()

    def trust_clock(self, wall: int, monotonic: int, *, floor: bool = True) -> None:
        """Go on after a jump that somebody has looked at: the clock is right now.

        Args:
            wall: UTC milliseconds.
            monotonic: see :meth:`check_clock`.
            floor: refuse whatever was created before now, since entries may be missing.
        """
        self._anchor, self._jumped = (wall, monotonic), False
        with self._transaction() as rows:
            rows.set_clock(wall)
            if floor:
                rows.raise_floor(*EVERYBODY, wall)

    def reset(self, now: int) -> None:
        """Refuse whatever was created before now: after a lost table or a restored backup."""
        with self._transaction() as rows:
            rows.raise_floor(*EVERYBODY, now)
            self._tick(rows, now)

    # -- inside --------------------------------------------------------------------------

    def _transaction(self) -> AbstractContextManager[Rows]:
        return self._table.transaction() if self._batch is None else nullcontext(self._batch)

    def _again(self, rows: Rows, key: Key, entry: Entry, digest: bytes, clock: int) -> Begun:
        if entry.content != digest:
            return Begun(SealCode.REPLAY)
        if entry.outcome is not None:
            return Begun(SealCode.DUPLICATE, outcome=entry.outcome)
        if clock < entry.leased_until:
            return Begun(SealCode.IN_FLIGHT)
        fence, attempt = rows.next_fence(), entry.attempt + 1
        rows.put(
            key,
            msgspec.structs.replace(
                entry, fence=fence, leased_until=clock + self.lease, attempt=attempt
            ),
        )
        return Begun(None, fence, attempt)

    def _has_room(self, rows: Rows, key: Key, clock: int) -> bool:
        if rows.count(key.receiver, key.sender) < self.quota:
            return True
        some = max(self.quota // 100, 1)
        newest = rows.evict(key.receiver, key.sender, some, clock - self.skew)
        if newest is None:
            return False
        rows.raise_floor(key.receiver, key.sender, newest)
        return True

    def _held(self, rows: Rows, key: Key, fence: int) -> Entry:
        entry = rows.get(key)
        if entry is None or entry.fence != fence or entry.outcome is not None:
            raise ReplayError(
                f"The lease on spore {key.spore.hex()} was lost: another process has begun or "
                "ended it. Do not acknowledge it; give handlers of this length a longer lease.",
                SealCode.IN_FLIGHT,
            )
        return entry

    def _tick(self, rows: Rows, now: int) -> int:
        """Return the time, which never goes back."""
        clock = rows.clock()
        if now > clock:
            rows.set_clock(now)
            return now
        return clock

    def _refuse_jump(self) -> None:
        if self._jumped:
            raise ReplayError(
                "The clock of this host jumped, or runs behind what was recorded before. Nothing "
                "is opened, rotated or erased until it is right and somebody says so "
                "(trust_clock).",
                SealCode.NOT_YET_VALID,
            )

    def _digest(self, key: Key, content: bytes) -> bytes:
        joined = key.sender + key.spore + content
        return blake2b(joined, digest_size=32, key=self._key, person=b"psv1.replay").digest()
