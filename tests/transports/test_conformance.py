"""Every case of the conformance suite, on every transport, on a real broker."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from praval.testing.transports import CASES, TransportHarness, run_case
from tests.transports import matrix
from tests.transports.harnesses import HARNESSES, Mortals
from tests.transports.local_harness import LocalHarness


@pytest.fixture(scope="session")
def mortals() -> Iterator[Mortals]:
    mortals = Mortals()
    yield mortals
    mortals.close()


@pytest.fixture(scope="session")
def committed() -> dict[str, dict[str, str]]:
    """The verdicts in docs/transports.md."""
    return matrix.read()


@pytest.fixture
def harness(
    request: pytest.FixtureRequest, name: str, server: str | None, mortals: Mortals
) -> TransportHarness:
    """The harness of that name, over the server that all tests share."""
    if server is None:
        return LocalHarness()
    kind = HARNESSES[name]
    return kind(request.getfixturevalue(server), partial(mortals.get, kind.server_type))


# the fixtures of servers are parameters: so all are started side by side
NAMES = {"local": None, **{name: each.fixture for name, each in HARNESSES.items()}}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "server"), NAMES.items(), ids=NAMES)
async def test_transport(
    harness: TransportHarness, name: str, case: str, committed: dict[str, dict[str, str]]
) -> None:
    """The case's sentence holds, as far as the matrix in the documentation says."""
    result = await run_case(case, harness)
    print(result)
    if result.error is not None:
        raise result.error
    assert result.verdict == committed[name].get(case), "docs/transports.md: run `make matrix`"


def test_the_matrix_has_every_case() -> None:
    """Its rows and columns are the cases and harnesses, in their words."""
    assert matrix.is_current(), "docs/transports.md: run `make matrix`"
