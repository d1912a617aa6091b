"""Presence: which agents are at work on which hosts, as far as this Reef has heard.

Every Reef with a transport announces its agents on a channel of its namespace: when it starts,
when they change, every ``presence_interval`` seconds, when somebody asks, and when it closes. What
was not heard of for three intervals is taken for gone.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Set
from itertools import takewhile
from typing import TYPE_CHECKING

import msgspec

from praval.core.agent import SYSTEM_TYPES
from praval.core.spore import Header
from praval.errors import MalformedSporeError

if TYPE_CHECKING:
    from praval.core.reef import Reef
    from praval.core.runner import AgentRunner

MISSED = 3
"""Intervals without a word after which a host is taken for gone."""
MOST_HOSTS = 10_000
"""Most hosts that are remembered; announcements come from outside, so there must be a bound."""
MOST_ANSWERS = 4096
"""Most answers to "who hears this?" that are remembered."""


class AgentCard(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an agent hears."""

    name: str
    channels: tuple[str, ...]
    responds_to: tuple[str, ...] | None = None

    def hears(self, header: Header) -> bool:
        """Whether a spore with this header is for it."""
        if header.to_agent is not None:
            return header.to_agent == self.name
        if header.channel not in self.channels or header.from_agent == self.name:
            return False
        if self.responds_to is None:
            return header.type not in SYSTEM_TYPES
        return header.type in self.responds_to


class Announcement(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a Reef says of itself."""

    replica: str
    """Identifies the Reef; with a journal, over its restarts too."""
    host: str
    pid: int
    agents: tuple[AgentCard, ...] = ()
    asks: bool = False
    """Whether the others are to announce themselves."""
    leaves: bool = False


class AgentPresence(msgspec.Struct, frozen=True):
    """One agent on one host."""

    name: str
    host: str
    pid: int
    replica: str
    """Identifies its Reef."""
    channels: tuple[str, ...]
    responds_to: tuple[str, ...] | None
    last_seen: float
    """UTC seconds; when its Reef was last heard of."""


_decoder = msgspec.json.Decoder(Announcement)
encode: Callable[[Announcement], bytes] = msgspec.json.Encoder().encode


def decode(data: bytes) -> Announcement:
    """Read an announcement.

    Raises:
        MalformedSporeError: it is none.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise MalformedSporeError(f"These bytes are no announcement: {error}.") from None


class Presence:
    """The announcements that were heard and have not been missed since."""

    def __init__(self, interval: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = interval * MISSED
        self._clock = clock
        self._heard: dict[str, tuple[float, float, Announcement]] = {}
        """Replica -> monotonic and UTC seconds, and what it said; the longest silent first."""
        self._departed: dict[str, None] = {}
        """Replicas that left or fell silent, the latest last."""
        self._replicas: dict[str, set[str]] = {}
        """Agent -> replicas that have it, of those in ``_heard``."""
        self._receivers: dict[tuple[str | None, str, str | None, str | None], frozenset[str]] = {}
        """Answers of :meth:`receivers`, until somebody comes, goes or moves."""

    def hear(self, announcement: Announcement) -> None:
        """Take an announcement."""
        before = self._heard.pop(announcement.replica, None)
        if announcement.leaves:
            self._depart(announcement.replica)
        else:
            self._departed.pop(announcement.replica, None)
            if len(self._heard) >= MOST_HOSTS:
                del self._heard[next(iter(self._heard))]  # the one not heard of for longest
                before = None
            self._heard[announcement.replica] = (self._clock(), time.time(), announcement)
        if before is None or announcement.leaves or before[2].agents != announcement.agents:
            self._changed()

    def agents(self) -> list[AgentPresence]:
        """Return the agents of all hosts, by name, then host."""
        self._forget_silent()
        found = [
            AgentPresence(
                card.name, said.host, said.pid, said.replica, card.channels, card.responds_to, at
            )
            for _, at, said in self._heard.values()
            for card in said.agents
        ]
        return sorted(found, key=lambda each: (each.name, each.host, each.pid))

    def receivers(self, header: Header) -> frozenset[str]:
        """Return the names of the agents that are to receive a spore with this header."""
        self._forget_silent()
        question = (header.to_agent, header.channel, header.type, header.from_agent)
        found = self._receivers.get(question)
        if found is None:
            cards = (card for _, _, said in self._heard.values() for card in said.agents)
            found = frozenset(card.name for card in cards if card.hears(header))
            if len(self._receivers) >= MOST_ANSWERS:
                self._receivers.clear()
            self._receivers[question] = found
        return found

    def hosts_of(self, name: str) -> Set[str]:
        """Return the replicas that have an agent of this name."""
        self._forget_silent()
        return self._replicas.get(name, frozenset())

    def is_here(self, replica: str) -> bool:
        """Whether a Reef is at work."""
        self._forget_silent()
        return replica in self._heard

    def lacks(self, replica: str, name: str) -> bool:
        """Whether a replica is known to have no agent of this name at work (any more)."""
        self._forget_silent()
        if replica not in self._heard:
            return replica in self._departed
        return replica not in self._replicas.get(name, ())

    def names(self) -> Set[str]:
        """Return the names of all agents."""
        self._forget_silent()
        return self._replicas.keys()

    def _forget_silent(self) -> None:
        """Forget who was not heard of for too long."""
        oldest = self._clock() - self._patience
        silent = list(takewhile(lambda item: item[1][0] < oldest, self._heard.items()))
        for replica, _ in silent:
            del self._heard[replica]
            self._depart(replica)
        if silent:
            self._changed()

    def _depart(self, replica: str) -> None:
        self._departed[replica] = None
        if len(self._departed) > MOST_HOSTS:
            del self._departed[next(iter(self._departed))]

    def _changed(self) -> None:
        self._receivers.clear()
        self._replicas.clear()
        for replica, (_, _, said) in self._heard.items():
            for card in said.agents:
                self._replicas.setdefault(card.name, set()).add(replica)


def card_of(runner: AgentRunner) -> AgentCard:
    """Say what an agent at work hears."""
    types = runner.agent.options.responds_to
    return AgentCard(
        runner.name,
        tuple(dict.fromkeys(runner.channels)),
        None if types is None else tuple(sorted(types)),
    )


def announcement(
    reef: Reef, replica: str, *, asks: bool = False, leaves: bool = False
) -> Announcement:
    """Say what a Reef has to say of itself."""
    cards = tuple(map(card_of, reef.runners.values()))
    return Announcement(replica, socket.gethostname(), os.getpid(), cards, asks=asks, leaves=leaves)


def own_agents(reef: Reef) -> list[AgentPresence]:
    """Return the agents of a Reef without a transport."""
    alone = Presence(1.0)
    alone.hear(announcement(reef, ""))
    return alone.agents()
