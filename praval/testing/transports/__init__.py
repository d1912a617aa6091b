"""The conformance suite: a transport keeps the contract of :mod:`praval.core.transport`.

For authors of transports; needs no pytest. :func:`check_transport` runs all cases, and
:func:`run_case` one of :data:`CASES`. With pytest::

    @pytest.mark.parametrize("case", CASES)
    async def test_transport(case):
        result = await run_case(case, MyHarness())
        if result.error:
            raise result.error
"""

from __future__ import annotations

from praval.testing.transports import cases as _cases  # noqa: F401 - declares them
from praval.testing.transports.case import CASES, Case, Result, run_case
from praval.testing.transports.check import ConformanceError, Report, check_transport
from praval.testing.transports.harness import Broker, Mutual, Peer, TransportHarness
from praval.testing.transports.network import Network, Proxy
from praval.testing.transports.trial import NonconformityError

__all__ = [
    "CASES",
    "Broker",
    "Case",
    "ConformanceError",
    "Mutual",
    "Network",
    "NonconformityError",
    "Peer",
    "Proxy",
    "Report",
    "Result",
    "TransportHarness",
    "check_transport",
    "run_case",
]
