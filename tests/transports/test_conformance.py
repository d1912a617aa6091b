"""Every case of the conformance suite, on every transport, on a real broker."""

from __future__ import annotations

import pytest

from praval.testing.transports import CASES, run_case
from tests.transports.harnesses import LocalHarness

HARNESSES = {"local": LocalHarness}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", HARNESSES)
async def test_transport(name: str, case: str) -> None:
    """The case's sentence holds."""
    result = await run_case(case, HARNESSES[name]())
    print(result)
    if result.error is not None:
        raise result.error
