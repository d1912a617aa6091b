"""What a sealed Reef notices: every refusal is an event, counted and told to whoever listens.

Agents that name ``security_alert`` in ``responds_to`` hear of what is worth a human's look, each
kind once in a while with the number of times it happened: whoever can reach the broker can cause
as many refusals as he likes. Nobody is named before a signature has proved who it was.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from praval.errors import SealCode

log = logging.getLogger("praval.security")

ALERT_EVERY = 10.0
"""Seconds between two alerts of one kind from one source."""
REMEMBERED = 1000
"""Kinds and sources that are remembered."""

ORDINARY = frozenset(
    {SealCode.IN_FLIGHT, SealCode.DUPLICATE, SealCode.NOT_A_RECIPIENT, SealCode.EXPIRED}
)
"""What a broker causes by doing its work; no alert."""
GRAVE = frozenset({SealCode.REPLAY, SealCode.REVOKED})


class SecurityEvent(msgspec.Struct, frozen=True):
    """One thing that was noticed: codes, names, ids and sizes, never content."""

    code: SealCode
    at: float
    """UTC seconds."""
    text: str
    sender: str | None = None
    """Who signed it; None: nobody is known to have."""
    receiver: str | None = None
    """The local agent that it concerns."""
    spore: str | None = None
    """Id of the spore, if it was authenticated."""
    size: int = 0
    """Bytes that came in."""
    grave: bool = False
    """Whether somebody should look at once."""

    @property
    def severity(self) -> str:
        """``"high"``, ``"medium"`` or ``"low"``."""
        if self.grave or self.code in GRAVE:
            return "high"
        return "medium" if self.sender is not None else "low"


Listener = Callable[[SecurityEvent], None]


class SecurityEvents:
    """The one place that all security events of a Reef pass."""

    def __init__(self, alert: Callable[[Mapping[str, Any]], None]) -> None:
        """Make one; ``alert`` publishes knowledge to the local agents that want alerts."""
        self.counts: Counter[str] = Counter()
        """Code -> events."""
        self.listeners: list[Listener] = []
        """Called with each event, on the loop: the audit log, tests."""
        self._alert = alert
        self._told: OrderedDict[tuple[str, str | None], tuple[float, int]] = OrderedDict()
        """Kind and source -> when it was told last, and how many came up since."""

    def report(self, event: SecurityEvent, *, passing: bool = False) -> None:
        """Count an event and tell of it; ``passing``: it may be all right at the next attempt."""
        self.counts[event.code.value] += 1
        if passing:
            return
        ordinary = event.code in ORDINARY and not event.grave
        level = logging.DEBUG if ordinary else logging.WARNING
        for listener in self.listeners:
            listener(event)
        if ordinary or (number := self._due(event)) is None:
            return
        log.log(level, "%s (%d times): %s", event.code.value, number, event.text)
        self._alert(
            {
                "alert": event.text,
                "severity": event.severity,
                "source": event.sender,
                "code": event.code.value,
                "agent": event.receiver,
                "count": number,
            }
        )

    def _due(self, event: SecurityEvent) -> int | None:
        """Return how often it happened, if it is to be told now."""
        kind = (event.code.value, event.sender)
        last, number = self._told.pop(kind, (-ALERT_EVERY, 0))
        due = event.at - last >= ALERT_EVERY
        self._told[kind] = (event.at, 0) if due else (last, number + 1)
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        return number + 1 if due else None
