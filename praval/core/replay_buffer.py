"""The rows of a transaction on a server: read once, written together at its end.

A server is a network away, so what a transaction reads it remembers, and what it writes waits until
the transaction ends. That is sound because nobody else sees or changes the table meanwhile.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from praval.core.replay import Entry, Key
from praval.errors import ReplayError, SealCode

Peer = tuple[str, bytes]
"""Receiver, and agent id of the sender."""


class PeerState(NamedTuple):
    """What is kept of one sender at one receiver."""

    entries: int = 0
    floor: int = 0


class Writes(NamedTuple):
    """What a transaction has changed."""

    entries: dict[Key, Entry]
    gone: list[Key]
    peers: dict[Peer, PeerState]
    clock: int
    fence: int
    number: int
    """That of the transaction."""


class Server(Protocol):
    """The other side, inside one transaction."""

    def entry(self, key: Key) -> Entry | None:
        """Return an entry."""
        ...

    def peer(self, peer: Peer) -> PeerState:
        """Return what is kept of a sender."""
        ...

    def oldest(self, peer: Peer, number: int, before: int) -> list[tuple[bytes, int]]:
        """Return spore id and creation of the oldest committed entries created up to a time."""
        ...

    def expired(self, before: int, clock: int, number: int) -> list[Key]:
        """Return entries that nobody holds and that expired before a time."""
        ...

    def write(self, writes: Writes) -> None:
        """Take all changes so far."""
        ...


class Seen:
    """What this process has seen of a table, to notice that it is another one or was set back."""

    def __init__(self, place: str, instance: bytes | None) -> None:
        """Begin with the table's instance.

        Raises:
            ReplayError: it has none: the table is missing.
        """
        if instance is None:
            raise ReplayError(
                f"The replay memory in {place} is missing. Without it nobody can tell what was "
                "handled: praval keys rotate --lost makes a new one, with new keys.",
                SealCode.REPLAY,
            )
        self._place, self.instance, self._number = place, bytes(instance), 0

    def check(self, instance: bytes | None, number: int) -> None:
        """Compare what a transaction finds, and the number of the last one, with what was there.

        Raises:
            ReplayError: it is not the same table, or an older state of it.
        """
        if instance != self.instance:
            raise ReplayError(
                f"The replay memory in {self._place} was deleted or made anew by another process. "
                "Start again with the keys that belong to it.",
                SealCode.REPLAY,
            )
        if number < self._number:  # it only rises
            raise ReplayError(
                f"The replay memory in {self._place} was set back: the server was restored, or "
                "lost what it had confirmed. Nobody can tell what was handled since: "
                "praval keys rotate --lost makes a new one, with new keys.",
                SealCode.REPLAY,
            )

    def confirmed(self, number: int) -> None:
        """Remember the number of a transaction of ours that the server has confirmed."""
        self._number = number


class BufferedRows:
    """See the module and :class:`praval.core.replay.Rows`."""

    def __init__(self, server: Server, clock: int, fence: int, last: int) -> None:
        self._server = server
        self._clock, self._fence = clock, fence
        self.number = last + 1
        """That of this transaction: they are counted, so that none is lost unseen."""
        self._known: dict[Key, Entry | None] = {}
        self._peers: dict[Peer, PeerState] = {}
        self._put: dict[Key, Entry] = {}
        self._changed: set[Peer] = set()

    def get(self, key: Key) -> Entry | None:
        """Return an entry."""
        if key not in self._known:
            self._known[key] = self._server.entry(key)
        return self._known[key]

    def put(self, key: Key, entry: Entry) -> None:
        """Write an entry."""
        if self.get(key) is None:
            self._add(key[:2], 1)
        self._known[key] = self._put[key] = entry

    def count(self, receiver: str, sender: bytes) -> int:
        """Return how many entries there are of a peer."""
        return self._peer((receiver, sender)).entries

    def evict(self, receiver: str, sender: bytes, number: int, before: int) -> int | None:
        """Delete the oldest committed entries of a peer."""
        self.flush()
        found = self._server.oldest((receiver, sender), number, before)
        self._delete([Key(receiver, sender, spore) for spore, _ in found])
        return found[-1][1] if found else None

    def floor(self, receiver: str, sender: bytes) -> int:
        """Return a peer's floor."""
        return self._peer((receiver, sender)).floor

    def raise_floor(self, receiver: str, sender: bytes, floor: int) -> None:
        """Raise a peer's floor."""
        peer = (receiver, sender)
        known = self._peer(peer)
        self._peers[peer] = known._replace(floor=max(known.floor, floor))
        self._changed.add(peer)

    def clock(self) -> int:
        """Return the highest time."""
        return self._clock

    def set_clock(self, now: int) -> None:
        """Set the time."""
        self._clock = now

    def next_fence(self) -> int:
        """Return the next number."""
        self._fence += 1
        return self._fence

    def purge(self, before: int, number: int) -> int:
        """Delete expired entries."""
        self.flush()
        found = self._server.expired(before, self._clock, number)
        self._delete(found)
        return len(found)

    def flush(self) -> None:
        """Send what was changed so far, in this transaction."""
        self._write([])

    def _delete(self, keys: list[Key]) -> None:
        for key in keys:
            self._known[key] = None
            self._add(key[:2], -1)
        self._write(keys)

    def _write(self, gone: list[Key]) -> None:
        peers = {peer: self._peers[peer] for peer in self._changed}
        self._server.write(Writes(self._put, gone, peers, self._clock, self._fence, self.number))
        self._put, self._changed = {}, set()

    def _peer(self, peer: Peer) -> PeerState:
        if peer not in self._peers:
            self._peers[peer] = self._server.peer(peer)
        return self._peers[peer]

    def _add(self, peer: Peer, entries: int) -> None:
        known = self._peer(peer)
        self._peers[peer] = known._replace(entries=known.entries + entries)
        self._changed.add(peer)
