"""Presence from cards: who can be reached, and who is at work.

A card tells what an agent hears, and is good for days: what is sealed to it waits at the broker
while its host is away. A Reef says the cards of its agents again every ``presence_interval``, with
its replica's id beside them; whose card was not said by its own host for three intervals is taken
for away, and nobody waits for its receipts. That id is a hint of whoever published, signed by
nobody: it decides about resends and back-pressure, and about nothing that a broker could not do by
itself.
"""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

from praval.core.key_keeper import PROCESS, KeyKeeper
from praval.core.presence import AgentPresence, Presence, announcement
from praval.core.spore import Header
from praval.core.topics import decode_segment, join
from praval.errors import TopicError

if TYPE_CHECKING:
    from praval.core.reef import Reef

MOST_ANSWERS = 4096
MOST_REPLICAS = 100
"""Replicas of one name that are remembered."""


class CardPresence(Presence):
    """See the module."""

    def __init__(self, reef: Reef, keeper: KeyKeeper, replica: str) -> None:
        super().__init__(reef.settings.reef_config.presence_interval)
        self._reef = reef
        self._keeper = keeper
        self._replica = replica
        self._alive: dict[str, dict[str, float]] = {}
        """Name -> replica -> when its card was said there, on a monotonic clock."""
        self._answers: dict[tuple[str, str | None], frozenset[str]] = {}

    def changed(self) -> None:
        """Cards came, or may have expired."""
        self._answers.clear()

    def said(self, name: str, replica: str) -> None:
        """The host of a name says its card; what it says was believed."""
        replicas = self._alive.setdefault(name, {})
        if replicas.pop(replica, None) is None:
            self._answers.clear()
        replicas[replica] = self._clock()
        if len(replicas) > MOST_REPLICAS:
            del replicas[next(iter(replicas))]  # the one not heard of for longest

    def left(self, name: str, replica: str) -> None:
        """The host of a name says that it leaves."""
        if self._alive.get(name, {}).pop(replica, None) is not None:
            self._answers.clear()

    def agents(self) -> list[AgentPresence]:
        """See :class:`Presence`."""
        reef = self._reef
        here = Presence(1.0)
        here.hear(announcement(reef, self._replica))
        found = here.agents()
        for known in self._keeper.keyring.directory.known(self._now()):
            channels = tuple(filter(None, map(self._channel, known.card.subscriptions)))
            if known.name.startswith(PROCESS) or not channels:
                continue
            for replica in self.hosts_of(known.name) - {self._replica}:
                seen = self._reef.clock() - (self._clock() - self._alive[known.name][replica])
                found.append(AgentPresence(known.name, "", 0, replica, channels, None, seen))
        return sorted(found, key=lambda each: (each.name, each.host, each.pid))

    def receivers(self, header: Header) -> frozenset[str]:
        """See :class:`Presence`; types are in no card, so all that hear the channel count."""
        if header.to_agent is not None:
            return frozenset((header.to_agent,)) if self.hosts_of(header.to_agent) else frozenset()
        question = (header.channel, header.from_agent)
        found = self._answers.get(question)
        if found is None:
            topic = join(self._reef.namespace, header.channel)
            reached, _ = self._keeper.keyring.directory.recipients(topic, self._now())
            names = {each.name for each in reached} - {header.from_agent or ""}
            found = frozenset(filter(self.hosts_of, names))
            if len(self._answers) >= MOST_ANSWERS:
                self._answers.clear()
            self._answers[question] = found
        return found

    def hosts_of(self, name: str) -> Set[str]:
        """See :class:`Presence`."""
        oldest = self._clock() - self._patience
        hosts = {replica for replica, at in self._alive.get(name, {}).items() if at >= oldest}
        return hosts | {self._replica} if name in self._reef.runners else hosts

    def is_here(self, replica: str) -> bool:
        """See :class:`Presence`."""
        return any(replica in self.hosts_of(name) for name in self._alive)

    def lacks(self, replica: str, name: str) -> bool:
        """See :class:`Presence`."""
        return replica not in self.hosts_of(name)

    def names(self) -> Set[str]:
        """See :class:`Presence`; whoever can be reached, at work or not."""
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
