"""Presence from cards: who can be reached, as far as unexpired cards say.

A card tells what an agent hears, and nothing of hosts: those are nobody's business on a broker that
is not trusted. An agent whose host is away for a while is here still; the broker keeps its spores.
"""

from __future__ import annotations

import contextlib
from collections.abc import Set
from typing import TYPE_CHECKING

from praval.core.key_keeper import PROCESS, KeyKeeper
from praval.core.presence import AgentPresence, Presence, announcement
from praval.core.spore import Header
from praval.core.topics import decode_segment, join
from praval.errors import CardError, TopicError

if TYPE_CHECKING:
    from praval.core.reef import Reef

MOST_ANSWERS = 4096


class CardPresence(Presence):
    """See the module."""

    def __init__(self, reef: Reef, keeper: KeyKeeper, replica: str) -> None:
        super().__init__(1.0)
        self._reef = reef
        self._keeper = keeper
        self._replica = replica
        self._answers: dict[tuple[str, str | None], frozenset[str]] = {}

    def changed(self) -> None:
        """Cards came, or may have expired."""
        self._answers.clear()

    def agents(self) -> list[AgentPresence]:
        """See :class:`Presence`."""
        reef = self._reef
        here = Presence(1.0)
        here.hear(announcement(reef, self._replica))
        found = here.agents()
        for known in self._keeper.keyring.directory.known(self._now()):
            if known.name.startswith(PROCESS) or known.name in reef.runners:
                continue
            channels = tuple(filter(None, map(self._channel, known.card.subscriptions)))
            if channels:
                seen = known.card.issued / 1000
                replica = known.agent_id.hex()
                found.append(AgentPresence(known.name, "", 0, replica, channels, None, seen))
        return sorted(found, key=lambda each: (each.name, each.host, each.pid))

    def receivers(self, header: Header) -> frozenset[str]:
        """See :class:`Presence`; types are in no card, so all that hear the channel count."""
        if header.to_agent is not None:
            return frozenset((header.to_agent,)) & self.names()
        question = (header.channel, header.from_agent)
        found = self._answers.get(question)
        if found is None:
            topic = join(self._reef.namespace, header.channel)
            reached, _ = self._keeper.keyring.directory.recipients(topic, self._now())
            found = frozenset(each.name for each in reached) - {header.from_agent or ""}
            if len(self._answers) >= MOST_ANSWERS:
                self._answers.clear()
            self._answers[question] = found
        return found

    def hosts_of(self, name: str) -> Set[str]:
        """See :class:`Presence`: who that is, if it can be reached at all."""
        hosts = set()
        if name in self._reef.runners:
            hosts.add(self._replica)
        if name not in self._keeper.keyring.names or self._keeper.is_shared:
            with contextlib.suppress(CardError):  # nobody can seal to it now
                hosts.add(self._keeper.keyring.directory.card(name, self._now()).agent_id.hex())
        return hosts

    def is_here(self, replica: str) -> bool:
        """See :class:`Presence`; no card tells, so whoever asked is taken to wait still."""
        return True

    def lacks(self, replica: str, name: str) -> bool:
        """See :class:`Presence`."""
        return False

    def names(self) -> Set[str]:
        """See :class:`Presence`."""
        known = self._keeper.keyring.directory.known(self._now())
        return {each.name for each in known if not each.name.startswith(PROCESS)}

    def _now(self) -> int:
        return int(self._reef.clock() * 1000)

    def _channel(self, topic: str) -> str | None:
        """Return the channel of this namespace that a subscription hears, if it does."""
        namespace, _, channel = topic.rpartition(".")
        try:
            return decode_segment(channel) if namespace == join(self._reef.namespace) else None
        except TopicError:
            return None
