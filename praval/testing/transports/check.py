"""Check a whole transport."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from praval.testing.transports.case import CASES, Case, Result, run_case
from praval.testing.transports.harness import TransportHarness


class Report:
    """What the cases found; as a string, one line per case."""

    def __init__(self, harness: str, results: Sequence[Result]) -> None:
        self.harness = harness
        self.results = tuple(results)

    @property
    def failures(self) -> list[Result]:
        """The cases that failed."""
        return [result for result in self.results if result.error is not None]

    @property
    def verdicts(self) -> dict[str, str]:
        """Case -> a few words, of those that did not fail."""
        return {
            result.case.name: result.verdict
            for result in self.results
            if result.verdict is not None
        }

    def __str__(self) -> str:
        return "\n".join(map(str, self.results))


class ConformanceError(ExceptionGroup[Exception]):
    """Some cases failed: one exception each, with the case's sentence as a note."""

    report: Report


async def check_transport(
    harness: TransportHarness, *, cases: Iterable[str | Case] | None = None
) -> Report:
    """Run the cases against a transport, one after the other.

    ::

        class MyHarness(TransportHarness):
            name = "mine"
            transport = MyTransport

            def config(self):
                return {"url": "mine+ssl://user:password@localhost:1234", "ca_cert": "ca.pem"}

        print(await check_transport(MyHarness()))

    Args:
        harness: how to reach a running broker.
        cases: some of ``CASES``, or their names; None: all.

    Raises:
        ConformanceError: some failed; its ``report`` has all results.
    """
    chosen = CASES.values() if cases is None else cases
    report = Report(harness.name, [await run_case(each, harness) for each in chosen])
    errors = []
    for result in report.failures:
        assert result.error is not None
        result.error.add_note(f"{result.case.name}: {result.case.sentence}")
        errors.append(result.error)
    if errors:
        failed = ConformanceError(
            f"{harness.name} fails {len(errors)} of {len(report.results)} cases", errors
        )
        failed.report = report
        raise failed
    return report
