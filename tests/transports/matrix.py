"""The capability matrix in docs/transports.md: what the conformance suite found, case by case.

`make matrix` (python -m tests.transports.matrix) starts the brokers, runs the whole suite against
each transport and writes the block anew; test_conformance.py fails where the block is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from praval.testing.transports import CASES, TransportHarness, check_transport
from tests.servers import Server, start_all
from tests.transports.harnesses import HARNESSES, Mortals
from tests.transports.local_harness import LocalHarness

FILE = Path(__file__).parents[2] / "docs" / "transports.md"
BEGIN, END = "<!-- matrix: make matrix -->", "<!-- /matrix -->"

COLUMNS = {"local": LocalHarness.name, **{name: each.name for name, each in HARNESSES.items()}}
"""Name in the ids of the tests -> title."""

Verdicts = Mapping[str, Mapping[str, str]]
"""Column -> case -> verdict."""


def render(verdicts: Verdicts) -> str:
    """Return the table, a heading for each module of cases."""
    lines = []
    for section, cases in itertools.groupby(CASES.values(), lambda case: case.section):
        lines += ["", f"### {section}", ""]
        lines.append(_row("", *COLUMNS.values()))
        lines.append(_row(*["---"] * (len(COLUMNS) + 1)))
        for case in cases:
            found = (verdicts[column][case.name] for column in COLUMNS)
            lines.append(_row(f"{case.sentence} <sub>{case.name}</sub>", *found))
    return "\n".join([*lines, ""])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def read() -> dict[str, dict[str, str]]:
    """Return the verdicts of the committed matrix."""
    found: dict[str, dict[str, str]] = {column: {} for column in COLUMNS}
    for line in _block().splitlines():
        first, *cells = (cell.strip() for cell in line.strip("| ").split(" | "))
        if first.endswith("</sub>"):
            case = first.removesuffix("</sub>").rpartition("<sub>")[2]
            for column, cell in zip(COLUMNS, cells, strict=True):
                found[column][case] = cell
    return found


def _block() -> str:
    return FILE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def is_current() -> bool:
    """Whether the committed table is what `render` makes of its verdicts."""
    try:
        return render(read()) == _block()
    except KeyError:
        return False


def write(verdicts: Verdicts) -> None:
    """Put the table into the document."""
    before, _, rest = FILE.read_text(encoding="utf-8").partition(BEGIN)
    FILE.write_text(before + BEGIN + render(verdicts) + END + rest.partition(END)[2], "utf-8")


def main() -> None:
    """Run everything, print a line per case, and write the matrix; fail if a case fails."""
    harnesses: dict[str, TransportHarness] = {"local": LocalHarness()}
    servers: dict[str, Server] = {each.fixture: each.server_type() for each in HARNESSES.values()}
    with contextlib.ExitStack() as ends:
        mortals = Mortals()
        ends.callback(mortals.close)
        for server in servers.values():
            ends.callback(server.close)
        start_all(servers.values())
        for name, kind in HARNESSES.items():
            harnesses[name] = kind(servers[kind.fixture], partial(mortals.get, kind.server_type))
        verdicts = {}
        for name, harness in harnesses.items():
            report = asyncio.run(check_transport(harness))
            print(f"\n{harness.name}\n{report}", flush=True)
            verdicts[name] = report.verdicts
    write(verdicts)


if __name__ == "__main__":
    sys.exit(main())
