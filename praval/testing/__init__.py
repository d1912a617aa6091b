"""Tools for testing agents: a Reef with virtual time and faults on purpose, and models of tape."""

from __future__ import annotations

from praval.testing.clock import VirtualClock
from praval.testing.faults import InjectedFault
from praval.testing.record import Attempt, Event
from praval.testing.reef import TestReef

__all__ = ["Attempt", "Event", "InjectedFault", "TestReef", "VirtualClock"]
