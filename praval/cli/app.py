"""The commands: each lives in a file of its own and is one line here."""

from __future__ import annotations

from typing import Annotated

import typer

import praval
from praval.cli import agents, approvals, audit, certs, demo, groups, keys, ping, run, send

app = typer.Typer(
    name="praval",
    help="Agents on an asyncio bus.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("run")(run.run)
app.command("ping")(ping.ping)
app.command("agents")(agents.agents)
app.command("send")(send.send)
app.add_typer(approvals.app, name="approvals")
app.add_typer(certs.app)
app.add_typer(keys.app)
app.add_typer(audit.app)
app.add_typer(groups.app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"praval-asyncio {praval.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Agents on an asyncio bus."""
