"""Tools for testing agents: a Reef with virtual time and faults on purpose, and models of tape."""

from __future__ import annotations

from praval.testing.clock import VirtualClock
from praval.testing.faults import InjectedFault
from praval.testing.models import (
    FunctionModel,
    ModelCall,
    RealModelError,
    ScriptedModel,
    ScriptExhaustedError,
    forbid_real_models,
    use_model,
)
from praval.testing.record import Attempt, Event
from praval.testing.reef import TestReef

__all__ = [
    "Attempt",
    "Event",
    "FunctionModel",
    "InjectedFault",
    "ModelCall",
    "RealModelError",
    "ScriptExhaustedError",
    "ScriptedModel",
    "TestReef",
    "VirtualClock",
    "forbid_real_models",
    "use_model",
]
