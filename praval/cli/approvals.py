"""``praval approvals``: answer what agents ask before they call a guarded tool."""

from __future__ import annotations

import asyncio
import getpass
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from praval.errors import ApprovalError
from praval.tools.approvals import Approval, Approvals

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Allow or forbid calls of guarded tools.")

File = Annotated[
    Path | None,
    typer.Option("--file", help="Default: approvals.sqlite under PRAVAL_DATA_DIR."),
]
Id = Annotated[str, typer.Argument(help="As `praval approvals list` shows it.")]
Note = Annotated[str, typer.Option("--note", help="Kept; of a denial, told to the model.")]


@app.command("list")
def list_(file: File = None) -> None:
    """List the calls that wait for an answer."""
    waiting = _done(Approvals(file).pending())
    if not waiting:
        typer.echo("Nothing waits for an answer.")
        return
    table = Table("id", "agent", "tool", "arguments", "waits for", "note")
    for each in waiting:
        seconds = f"{time.time() - each.created_at:.0f} s"
        words = (each.agent or "", each.tool, each.arguments)
        cells = [escape(_visible(word)) for word in words]
        table.add_row(each.id, *cells, seconds, each.note or "")
    Console().print(table)


@app.command()
def approve(id: Id, note: Note = "", file: File = None) -> None:
    """Allow a call."""
    _tell(_done(Approvals(file).approve(id, by=_user(), note=note)))


@app.command()
def deny(id: Id, note: Note = "", file: File = None) -> None:
    """Forbid a call."""
    _tell(_done(Approvals(file).deny(id, by=_user(), note=note)))


def _tell(approval: Approval) -> None:
    typer.echo(_visible(f"{approval.state}: {approval.tool} {approval.arguments}"))


def _visible(text: str) -> str:
    """Return text as it is, not as it wants to look: a model wrote it, and may want a yes."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def _done(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except ApprovalError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""
