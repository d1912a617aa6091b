"""Tools for testing: a Reef with virtual time and faults on purpose, models of tape, transports.

:func:`check_transport` says whether a transport keeps the contract; see
:mod:`praval.testing.transports`.
"""

from __future__ import annotations

from praval.testing.clock import VirtualClock
from praval.testing.faults import InjectedFault
from praval.testing.model_server import Dialect, Gate, ModelServer, Reply, Request
from praval.testing.models import (
    FunctionModel,
    ModelCall,
    RealModelError,
    ScriptedModel,
    ScriptExhaustedError,
    forbid_real_models,
    use_model,
)
from praval.testing.providers import CASES as PROVIDER_CASES
from praval.testing.providers import check_provider
from praval.testing.record import Attempt, Event
from praval.testing.reef import TestReef
from praval.testing.transports import TransportHarness, check_transport

__all__ = [
    "PROVIDER_CASES",
    "Attempt",
    "Dialect",
    "Event",
    "FunctionModel",
    "Gate",
    "InjectedFault",
    "ModelCall",
    "ModelServer",
    "RealModelError",
    "Reply",
    "Request",
    "ScriptExhaustedError",
    "ScriptedModel",
    "TestReef",
    "TransportHarness",
    "VirtualClock",
    "check_provider",
    "check_transport",
    "forbid_real_models",
    "use_model",
]
