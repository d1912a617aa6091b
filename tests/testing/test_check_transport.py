"""The conformance suite of transports: it is usable without pytest, and it can fail."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from praval.core.transport import MessageTransport
from praval.errors import TransportTLSError
from praval.testing import check_transport
from praval.testing.transports import CASES, ConformanceError, Result, TransportHarness, run_case
from praval_transports.local import LocalTransport
from praval_transports.redis import RedisTransport
from tests.servers import Redis
from tests.transports import broken_life, broken_tls
from tests.transports.broken import BROKEN, SwallowsErrors
from tests.transports.harnesses import RedisHarness
from tests.transports.local_harness import LocalHarness

assert broken_life  # both add to BROKEN
assert broken_tls

Kind = type[MessageTransport]
ROOT = Path(__file__).parents[2]


# -- the interface ---------------------------------------------------------------------------


async def test_the_report_has_a_line_per_case() -> None:
    """A transport that conforms is reported case by case, in words."""
    report = await check_transport(LocalHarness(), cases=["confirm", CASES["keepalive"]])
    assert report.verdicts == {"confirm": "yes", "keepalive": "no network"}
    assert not report.failures
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines] == ["confirm", "keepalive"]


async def test_what_fails_is_raised_together() -> None:
    """One exception per case, which says what was expected; all results are in the report."""
    with pytest.raises(ConformanceError, match="local fails 2 of 3 cases") as caught:
        await check_transport(BrokenHarness(SwallowsErrors), cases=["confirm", "retries", "refuse"])
    notes = [error.__notes__[-1] for error in caught.value.exceptions]
    assert notes == [f"{name}: {CASES[name].sentence}" for name in ("retries", "refuse")]
    assert caught.value.report.verdicts == {"confirm": "yes"}
    assert "FAILED: " in str(caught.value.report)


async def test_each_case_runs_by_itself() -> None:
    """By name, for a test framework that wants one test per case."""
    result = await run_case("order", LocalHarness())
    assert (result.verdict, result.error) == ("yes", None)


def test_a_harness_needs_two_things() -> None:
    """The class under test and a config; the rest has a default."""

    class Minimal(TransportHarness):
        name = "minimal"
        transport = LocalTransport

        def config(self) -> dict[str, Any]:
            return {"url": "local://user:s3cret@somewhere:1234/"}

    minimal = Minimal()
    assert (minimal.address, minimal.secrets) == (("somewhere", 1234), ["s3cret"])
    assert minimal.capabilities.takes_over
    assert minimal.broker() is None


def test_it_needs_no_pytest() -> None:
    """Authors of transports may have another framework, or none."""
    script = """
import asyncio, sys
sys.modules["pytest"] = None
from praval.testing import check_transport
from tests.transports.local_harness import LocalHarness
print(asyncio.run(check_transport(LocalHarness(), cases=["confirm", "order"])))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["confirm", "order"]


class PlainHarness(RedisHarness):
    """Leaves it to the suite to demand client certificates."""

    mutual = TransportHarness.mutual


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("client_certificate")])
async def test_the_suite_can_demand_client_certificates(case: str, redis_server: Redis) -> None:
    """Where the author's broker cannot: by a proxy before it, which looks at revocation too."""
    result = await run_case(case, PlainHarness(redis_server, lambda: redis_server))
    if result.error is not None:
        raise result.error
    assert result.verdict == "yes"


# -- it can fail -----------------------------------------------------------------------------


class BrokenHarness(LocalHarness):
    """Reaches a broken transport, and does not wait long for it."""

    patience = 0.3

    def __init__(self, transport: Kind) -> None:
        self.transport = transport

    def config(self) -> dict[str, Any]:
        return {**super().config(), **HURRY}


HURRY = {"publish_timeout": 1.0, "confirm_timeout": 0.5, "close_timeout": 0.5}


class BrokenRedis(RedisHarness):
    """Reaches Redis with a broken transport."""

    patience = 2.0

    def __init__(self, server: Redis, transport: Kind) -> None:
        super().__init__(server, lambda: server)
        self.transport = transport


def pairs(base: Kind) -> list[Any]:
    return [
        pytest.param(kind, case, id=f"{kind.__name__}-{case}")
        for kind, cases in BROKEN.items()
        for case in cases
        if issubclass(kind, base)
    ]


async def run_hurried(case: str, harness: TransportHarness, seconds: float) -> Result:
    return await run_case(dataclasses.replace(CASES[case], seconds=seconds), harness)


@pytest.mark.parametrize(("kind", "case"), pairs(LocalTransport))
async def test_a_broken_transport_fails(kind: Kind, case: str) -> None:
    """The case notices that the transport does not do what its sentence says."""
    result = await run_hurried(case, BrokenHarness(kind), 2.0)
    print(result)
    assert result.error is not None


@pytest.mark.parametrize(("kind", "case"), pairs(RedisTransport))
async def test_an_insecure_transport_fails(kind: Kind, case: str, redis_server: Redis) -> None:
    """The case notices who connects to anybody, and who does not say why it does not."""
    result = await run_hurried(case, BrokenRedis(redis_server, kind), 4.0)
    print(result)
    assert result.error is not None
    assert not isinstance(result.error, TransportTLSError), "the harness is broken, too"


def test_every_case_can_fail() -> None:
    """There is a broken transport for each."""
    assert {case for cases in BROKEN.values() for case in cases} == set(CASES)
