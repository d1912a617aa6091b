"""What was used: summed per agent, per session and per spore, for this process."""

from __future__ import annotations

import collections

import msgspec

from praval.core.context import current_agent, current_posted
from praval.core.session import SessionResult
from praval.core.spore import Spore
from praval.errors import ConfigurationError
from praval.providers.messages import Response, Usage
from praval.sync import forkable_lock

KEPT = 10_000
"""Sums that are remembered; those that were not touched for longest are forgotten first."""


class Account(msgspec.Struct, frozen=True):
    """The sum of some model calls."""

    calls: int = 0
    usage: Usage = Usage()
    cost: float = 0.0
    """US dollars, of the calls whose price is known."""
    unpriced: int = 0
    """Calls whose price is not known."""

    def plus(self, response: Response) -> Account:
        """Return the sum with one more call."""
        return Account(
            self.calls + 1,
            self.usage + response.usage,
            self.cost + (response.cost or 0.0),
            self.unpriced + (response.cost is None),
        )


_sums: collections.OrderedDict[tuple[str, str], Account] = collections.OrderedDict()
_lock = forkable_lock()


def note(response: Response) -> None:
    """Add a call to the sums of the agent, the session and the spore that it was made for."""
    keys = [("all", "")]
    agent, posted = current_agent(), current_posted.get()
    if agent is not None:
        keys.append(("agent", agent.name))
    if posted is not None:
        header = posted.header
        keys += [("spore", header.id), ("session", header.root or header.id)]
    with _lock:
        for key in keys:
            _sums[key] = _sums.pop(key, Account()).plus(response)
        while len(_sums) > KEPT:
            _sums.popitem(last=False)


def usage(
    *,
    agent: str | None = None,
    session: SessionResult | Spore | str | None = None,
    spore: Spore | str | None = None,
) -> Account:
    """Return what was used: by one agent, in one session, for one spore, or by all calls.

    Args:
        agent: an agent's name.
        session: what ``start_agents`` returned, any spore of that session, or its root's id.
        spore: a spore or its id: the calls of its handlers, not of what they emitted.

    Raises:
        ConfigurationError: more than one was named.
    """
    named = [key for key in (_key("agent", agent), _session(session), _spore(spore)) if key]
    if len(named) > 1:
        raise ConfigurationError("usage() sums by one of agent=, session= and spore=.")
    with _lock:
        return _sums.get(named[0] if named else ("all", ""), Account())


def forget_usage() -> None:
    """Begin all sums anew."""
    with _lock:
        _sums.clear()


def _key(kind: str, name: str | None) -> tuple[str, str] | None:
    return None if name is None else (kind, name)


def _session(session: SessionResult | Spore | str | None) -> tuple[str, str] | None:
    if isinstance(session, SessionResult):
        session = next(iter(session.spores), "")
    if isinstance(session, Spore):
        session = session.header.root or session.header.id
    return _key("session", session)


def _spore(spore: Spore | str | None) -> tuple[str, str] | None:
    return _key("spore", spore.header.id if isinstance(spore, Spore) else spore)
