"""``praval groups``: what brokers keep for agents, those that never come back too."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec
import typer
from rich.table import Table

from praval.cli._connect import FAILED, NAMESPACE, Namespace, Transport, broker, refusals
from praval.cli.agents import console
from praval.core.topics import decode_segment, join
from praval.core.transport import Group, MessageTransport
from praval.demo.sources import printable
from praval.errors import TopicError, TransportUnsupportedError

app = typer.Typer(
    name="groups",
    help="What a broker keeps for the agents of a namespace: show it, drop it.",
    no_args_is_help=True,
)


@app.command("list")
def list_(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[AGENT]...", help="Default: all, where the broker tells.", show_default=False
        ),
    ] = None,
    transport: Transport = None,
    namespace: Namespace = NAMESPACE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False,
) -> None:
    """Show which agents the broker keeps messages for, how many, and whether they are there."""
    with refusals("groups list"):
        found = asyncio.run(_look(transport, namespace, names or None))
        if as_json:
            typer.echo(msgspec.json.encode(found).decode())
        elif found:
            console().print(_table(found))
        elif not names:
            typer.echo(f"The broker keeps nothing for agents of namespace {namespace!r}.")
        if missing := set(names or ()) - {each.name for each in found}:
            _complain("list", f"no group {_quoted(missing)} in namespace {namespace!r}.")


@app.command()
def drop(
    name: Annotated[str, typer.Argument(metavar="AGENT", help="Whose group.")],
    transport: Transport = None,
    namespace: Namespace = NAMESPACE,
    client_id: Annotated[
        str | None,
        typer.Option(
            help="MQTT alone: the client whose session is dropped, in use or not; that of a Reef "
            "with a journal is praval-<replica>.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove an agent's group from the broker, with all messages that it has collected."""
    with refusals("groups drop"):
        if not yes:
            typer.echo(asyncio.run(_describe(transport, namespace, name)))
            typer.confirm("Drop it, with what it has collected?", abort=True)
        there_was = asyncio.run(_drop(transport, namespace, name, client_id))
        if there_was is False:
            _complain("drop", f"no group {name!r} in namespace {namespace!r}: nothing was dropped.")
        unsure = "" if there_was else ", if there was one: this broker does not tell"
        typer.echo(f"dropped the group {name!r} of namespace {namespace!r}{unsure}")


@asynccontextmanager
async def _connected(transport: str | None) -> AsyncIterator[MessageTransport]:
    opened = await broker(transport).connect(None)
    try:
        yield opened
    finally:
        await opened.close()


async def _look(transport: str | None, namespace: str, names: Sequence[str] | None) -> list[Group]:
    """Return the namespace's groups, by the names of their agents."""
    wanted = None if names is None else [join(namespace, name) for name in names]
    async with _connected(transport) as opened:
        found = await opened.groups(wanted)
    ours = ((_agent(each.name, namespace), each) for each in found)
    named = [msgspec.structs.replace(each, name=name) for name, each in ours if name is not None]
    return sorted(named, key=lambda each: each.name)


async def _drop(
    transport: str | None, namespace: str, name: str, client_id: str | None
) -> bool | None:
    async with _connected(transport) as opened:
        return await opened.drop_group(join(namespace, name), member=client_id)


async def _describe(transport: str | None, namespace: str, name: str) -> str:
    try:
        found = await _look(transport, namespace, [name])
    except TransportUnsupportedError:
        return f"What the group {name!r} has collected, and for whom, this broker does not tell."
    if not found:
        return f"There seems to be no group {name!r} in namespace {namespace!r}."
    [group] = found
    return (
        f"The group {name!r} of namespace {namespace!r} has messages: {_told(group.messages)}, "
        f"subscribers: {_told(group.members)}."
    )


def _agent(group: str, namespace: str) -> str | None:
    """Return the name of the agent whose group it is, or None."""
    ours, dot, rest = group.partition(".")
    try:
        return decode_segment(rest) if dot and ours == join(namespace) else None
    except TopicError:  # somebody else's
        return None


def _table(groups: Sequence[Group]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("agent", "subscribers", "messages"):
        table.add_column(column, overflow="fold")
    for each in groups:
        table.add_row(printable(each.name), _told(each.members), _told(each.messages))
    return table


def _told(number: int | None) -> str:
    return "?" if number is None else str(number)


def _quoted(names: set[str]) -> str:
    return ", ".join(map(repr, sorted(names)))


def _complain(command: str, what: str) -> None:
    print(f"praval groups {command}: {what}", file=sys.stderr)
    raise typer.Exit(FAILED)
