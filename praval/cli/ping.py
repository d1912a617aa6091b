"""``praval ping``: whether a broker lets us in, and carries a message there and back."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Annotated

import typer

from praval.cli._connect import Transport, broker, refusals
from praval.core.topics import join
from praval.core.transport import Delivery, MessageTransport
from praval.core.transport_choice import Choice
from praval.errors import TransportTimeoutError


def ping(
    transport: Transport = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds for the way there and back.", min=0.001)
    ] = 10.0,
) -> None:
    """Connect to the broker, send a message to a topic of its own, and hear it."""
    with refusals("ping"):
        where, connected, there_and_back = asyncio.run(_ping(broker(transport), timeout))
        typer.echo(
            f"{where}: connected in {connected * 1000:.0f} ms, "
            f"there and back in {there_and_back * 1000:.1f} ms"
        )


async def _ping(choice: Choice, timeout: float) -> tuple[str, float, float]:
    """Return where the broker is, and the seconds that connecting and the round trip took."""
    began = time.perf_counter()
    transport = await choice.connect(None)
    try:
        connected = time.perf_counter() - began
        seconds = await _round_trip(transport, timeout)
        health = transport.health()
        return f"{choice.protocol} at {health.broker or 'an unnamed place'}", connected, seconds
    finally:
        await transport.close()


async def _round_trip(transport: MessageTransport, timeout: float) -> float:
    token = secrets.token_hex(8)
    topic = join("praval", f"@ping-{token}")
    heard: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def hear(delivery: Delivery) -> None:
        if not heard.done():
            heard.set_result(time.perf_counter())

    try:
        async with asyncio.timeout(timeout):
            await transport.subscribe(topic, hear)
            sent = time.perf_counter()
            await transport.publish(topic, token.encode(), ttl=timeout)
            return await heard - sent
    except TransportTimeoutError:
        raise
    except TimeoutError:
        raise TransportTimeoutError(
            f"The broker let us in, but a message did not come back within {timeout:g} s."
        ) from None
