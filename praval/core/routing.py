"""Who hears what: channels, types and names, resolved once and remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from praval.core.spore import Header

if TYPE_CHECKING:
    from praval.core.runner import AgentRunner

REMEMBERED = 4096
"""Most routes that are remembered; types come from outside, so there must be a bound."""

Receivers = tuple["AgentRunner", ...]


class Routes:
    """The runners of a Reef, by name and by what they hear."""

    def __init__(self) -> None:
        self.runners: dict[str, AgentRunner] = {}
        self._found: dict[tuple[str, str | None, str | None], Receivers] = {}
        self._by_channel: dict[str, list[AgentRunner]] = {}
        self.outbox: AgentRunner | None = None
        """Where everything goes first, if the Reef has a transport."""

    def add(self, runner: AgentRunner) -> None:
        """Let this agent hear."""
        self.runners[runner.name] = runner
        for channel in dict.fromkeys(runner.channels):  # it may have named its own
            self._by_channel.setdefault(channel, []).append(runner)
        self._found.clear()

    def remove(self, runner: AgentRunner) -> None:
        """Let this agent hear no more."""
        self.runners.pop(runner.name, None)
        for channel, listeners in list(self._by_channel.items()):
            if runner in listeners:
                listeners.remove(runner)
                if not listeners:
                    del self._by_channel[channel]
        self._found.clear()

    @property
    def channels(self) -> list[str]:
        """Channels that somebody hears."""
        return sorted(self._by_channel)

    def receivers(self, header: Header) -> Receivers:
        """Return who is to receive a spore; an agent never hears its own broadcast."""
        if self.outbox is not None:
            return (self.outbox,)
        if header.to_agent is not None:
            runner = self.runners.get(header.to_agent)
            return () if runner is None else (runner,)
        key = (header.channel, header.type, header.from_agent)
        found = self._found.get(key)
        if found is None:
            found = self._find(header)
            if len(self._found) >= REMEMBERED:
                self._found.clear()
            self._found[key] = found
        return found

    def _find(self, header: Header) -> Receivers:
        return tuple(
            runner
            for runner in self._by_channel.get(header.channel, ())
            if runner.name != header.from_agent and runner.responds(header)
        )
