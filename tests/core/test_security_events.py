"""Security events: all are counted, few are told, and nobody is named without a signature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from praval.core.security_events import ALERT_EVERY, REMEMBERED, SecurityEvent, SecurityEvents
from praval.errors import SealCode


class Desk:
    """Events and the alerts that came of them."""

    def __init__(self) -> None:
        self.alerts: list[Mapping[str, Any]] = []
        self.events = SecurityEvents(self.alerts.append)

    def report(self, code: SealCode, at: float = 0, sender: str | None = None, **more: Any) -> None:
        self.events.report(SecurityEvent(code, at, "what happened", sender), **more)


def test_of_many_events_of_one_kind_one_alert_tells_and_says_how_many() -> None:
    desk = Desk()
    for n in range(100):
        desk.report(SealCode.BAD_SIGNATURE, n * ALERT_EVERY / 50)
    assert [alert["count"] for alert in desk.alerts] == [1, 50]
    assert desk.events.counts["bad_signature"] == 100


def test_each_sender_and_each_code_has_alerts_of_its_own() -> None:
    desk = Desk()
    for sender in (None, "a", "b"):
        for code in (SealCode.REPLAY, SealCode.NOT_PERMITTED):
            desk.report(code, sender=sender)
            desk.report(code, sender=sender)
    assert len(desk.alerts) == 6


@pytest.mark.parametrize(
    ("code", "sender", "severity"),
    [
        (SealCode.REPLAY, "a", "high"),
        (SealCode.REVOKED, None, "high"),
        (SealCode.NOT_PERMITTED, "a", "medium"),
        (SealCode.MALFORMED, None, "low"),
    ],
)
def test_severity_follows_what_is_known(code: SealCode, sender: str | None, severity: str) -> None:
    desk = Desk()
    desk.report(code, sender=sender)
    (alert,) = desk.alerts
    assert (alert["severity"], alert["source"], alert["code"]) == (severity, sender, code.value)


def test_what_a_broker_does_in_its_work_is_counted_and_no_alarm() -> None:
    desk, heard = Desk(), list[SecurityEvent]()
    desk.events.listeners.append(heard.append)
    for code in (SealCode.DUPLICATE, SealCode.NOT_A_RECIPIENT, SealCode.EXPIRED):
        desk.report(code)
    desk.report(SealCode.UNKNOWN_SENDER, passing=True)
    assert desk.alerts == []
    assert len(heard) == 3  # what may be all right at the next attempt is nobody's business yet
    assert sum(desk.events.counts.values()) == 4


def test_memory_is_bounded_whatever_senders_come() -> None:
    desk = Desk()
    for n in range(2 * REMEMBERED):
        desk.report(SealCode.NOT_PERMITTED, sender=str(n))
    assert len(desk.events._told) == REMEMBERED
