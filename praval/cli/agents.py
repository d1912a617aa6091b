"""``praval agents``: who is at work, on all hosts of a namespace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from praval import Reef
from praval.cli._connect import NAMESPACE, Namespace, Transport, refusals, visitor
from praval.core.presence import AgentPresence
from praval.demo.sources import printable

EVERY = 0.5
"""Seconds between two looks of ``--watch``."""
WITHOUT_TERMINAL = 160
"""Columns of the table in a pipe."""


def agents(
    transport: Transport = None,
    namespace: Namespace = NAMESPACE,
    wait: Annotated[float, typer.Option(help="Seconds that hosts have to answer.", min=0.0)] = 1.0,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array a line.")] = False,
) -> None:
    """Ask all hosts which agents they have, and show the answers."""
    with refusals("agents"):
        asyncio.run(_agents(transport, namespace, wait, watch=watch, as_json=as_json))


async def _agents(
    transport: str | None, namespace: str, wait: float, *, watch: bool, as_json: bool
) -> None:
    async with visitor(transport, namespace) as reef:
        await asyncio.sleep(wait)
        if not watch:
            _print(reef.agents(), namespace, as_json=as_json)
        elif console().is_terminal and not as_json:
            await _redraw(reef)
        else:
            await _follow(reef, as_json=as_json)


async def _redraw(reef: Reef) -> None:
    """Keep one table up to date."""
    with Live(console=console(), auto_refresh=False) as live:
        while True:
            live.update(_table(reef.agents(), reef.namespace), refresh=True)
            await asyncio.sleep(EVERY)


async def _follow(reef: Reef, *, as_json: bool) -> None:
    """Print who is there, again each time that somebody came or went."""
    known: set[tuple[str, str]] | None = None
    while True:
        present = reef.agents()
        names = {(each.replica, each.name) for each in present}
        if names != known:
            known = names
            _print(present, reef.namespace, as_json=as_json)
        await asyncio.sleep(EVERY)


def _print(present: Sequence[AgentPresence], namespace: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(present).decode())
    else:
        console().print(_table(present, namespace))


def console() -> Console:
    """Return one that cuts no table in a pipe, and reads no markup in what others wrote."""
    made = Console(markup=False, highlight=False)
    if not made.is_terminal:
        made.width = WITHOUT_TERMINAL
    return made


def _table(present: Sequence[AgentPresence], namespace: str) -> Table | Text:
    if not present:
        return Text(f"No host of namespace {namespace!r} answered.")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("agent", "host", "pid", "channels", "types", "last seen"):
        table.add_column(column, overflow="fold")
    now = time.time()
    for each in present:
        types = "all" if each.responds_to is None else ", ".join(each.responds_to)
        cells = (
            each.name,
            each.host,
            str(each.pid),
            ", ".join(each.channels),
            types,
            f"{max(0.0, now - each.last_seen):.1f} s ago",
        )
        table.add_row(*map(printable, cells))  # they come from outside
    return table
