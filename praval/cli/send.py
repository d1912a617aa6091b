"""``praval send``: one spore, or one request, from the command line."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated, Any

import msgspec
import typer

from praval import Receipt, Spore
from praval.cli._connect import FAILED, NAMESPACE, Namespace, Transport, refusals, visitor
from praval.errors import ConfigurationError, TransportTimeoutError
from praval.settings import current_settings, merge


def send(
    what: Annotated[
        str,
        typer.Argument(
            metavar="TYPE|JSON|-",
            help="What to send: a type, a JSON object, or - for JSON from standard input.",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[JSON|-]", help="With a type: the rest of the knowledge.", show_default=False
        ),
    ] = None,
    *,
    to: Annotated[
        str | None, typer.Option(metavar="AGENT", help="The only receiver.", show_default=False)
    ] = None,
    channel: Annotated[
        str | None, typer.Option(help="Which channel; default: main.", show_default=False)
    ] = None,
    request: Annotated[
        bool, typer.Option("--request", help="Ask the agent, and print its reply as JSON.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds for the confirmation or the reply.", min=0.001)
    ] = 30.0,
    transport: Transport = None,
    namespace: Namespace = NAMESPACE,
) -> None:
    """Publish a spore, and say under which id the broker has it; or ask an agent."""
    with refusals("send"):
        knowledge = _knowledge(what, data)
        if request and to is None:
            raise ConfigurationError("--request asks one agent: say which with --to.")
        if request and channel is not None:
            raise ConfigurationError("--request goes to the agent's own channel: omit --channel.")
        if request:
            assert to is not None
            reply = asyncio.run(_ask(transport, namespace, knowledge, timeout, to))
            typer.echo(msgspec.json.encode(reply.knowledge).decode())
            return
        receipt = asyncio.run(
            _send(transport, namespace, knowledge, timeout, to=to, channel=channel)
        )
        if not receipt.recipients:
            print(
                f"praval send: nobody in namespace {namespace!r} hears channel "
                f"{channel or 'main'!r}; spore {receipt.id} is gone.",
                file=sys.stderr,
            )
            raise typer.Exit(FAILED)
        typer.echo(f"sent {receipt.id}")


def _knowledge(what: str, data: str | None) -> dict[str, Any]:
    is_json = what == "-" or what.lstrip().startswith(("{", "[", '"'))
    if data is None:
        return _read(what) if is_json else {"type": what}
    if is_json:
        raise ConfigurationError("Send a type and its JSON, or JSON that holds the type: not both.")
    knowledge = _read(data)
    if knowledge.setdefault("type", what) != what:
        raise ConfigurationError(f"The JSON's type is {knowledge['type']!r}, not {what!r}.")
    return knowledge


def _read(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(sys.stdin.read() if text == "-" else text)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ConfigurationError(f"This is no JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ConfigurationError('The JSON must be an object, such as {"type": "question"}.')
    return found


async def _ask(
    transport: str | None, namespace: str, knowledge: dict[str, Any], timeout: float, to: str
) -> Spore:
    async with visitor(transport, namespace) as reef:
        return await reef.request(to, knowledge, timeout)


async def _send(
    transport: str | None,
    namespace: str,
    knowledge: dict[str, Any],
    timeout: float,
    *,
    to: str | None,
    channel: str | None,
) -> Receipt:
    # a process that ends at once cannot wait for receipts, nor send anything again
    settings = merge(current_settings(), {"reef_config": {"receipt": "broker"}})
    async with visitor(transport, namespace, settings) as reef:
        try:
            async with asyncio.timeout(timeout):
                return await reef.broadcast(knowledge, channel, to)
        except TimeoutError:
            raise TransportTimeoutError(
                f"No broker confirmed the spore within {timeout:g} s; it may have been sent."
            ) from None
