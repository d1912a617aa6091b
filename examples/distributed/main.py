"""The demo's team, spread over four processes, on any broker: ``python main.py amqps://...``.

Starts the hosts, gives the team a job, shows who handles what, stops the hosts, and checks that
each file was summarised exactly once. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import team
from board import Board
from hosts import Host, HostError

from praval import Reef, Spore, agent
from praval.demo.sources import asyncio_folder
from praval.errors import PravalError

AGENTS = ("reader", "summariser", "summariser", "editor")
"""One host each: two share the name, and so the work."""
MEETING = 30.0
"""Seconds until the hosts, each of which is ready, must be known here."""
LATE = 10.0
"""Seconds that what was said before the report may come after it."""


def main() -> int:
    """Return the exit code: 0 if each file was handled once, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    default = os.environ.get("PRAVAL_TRANSPORT")
    parser.add_argument(
        "transport", nargs="?", default=default, help="URL of the broker; default: PRAVAL_TRANSPORT"
    )
    parser.add_argument(
        "--folder", type=Path, default=asyncio_folder(), help="default: Python's own asyncio"
    )
    parser.add_argument("--pace", type=float, default=0.2, help="seconds for a summary")
    parser.add_argument("--namespace", default="distributed", help="default: distributed")
    options = parser.parse_args()
    if not options.transport:
        parser.error("which broker? Its URL is the one argument; README.md says how to get one")
    try:
        return asyncio.run(run(options))
    except (PravalError, HostError) as error:
        print(f"distributed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


async def run(options: argparse.Namespace) -> int:
    """Do one job; whatever happens, no host is left behind."""
    # a local transport does not leave its process: with one, all agents are in this
    agents = () if options.transport.startswith("local:") else AGENTS
    hosts = [Host(f"host {number}", name) for number, name in enumerate(agents, 1)]
    try:
        for host in hosts:
            await host.start(options.transport, options.namespace)
        for host in hosts:
            await host.ready()
        board = await work(options, hosts)
    finally:
        await stop(hosts)
        for host in hosts:
            if host.ledger is not None:
                print(f"{host.label} {host.agent:<11} {host.ledger}", flush=True)
    return tell(board, hosts)


async def work(options: argparse.Namespace, hosts: Sequence[Host]) -> Board:
    """Give the team its job, and show what it does until all of it is done."""
    job = secrets.token_hex(4)
    labels = {host.where: (host.label, host.agent) for host in hosts}
    board = Board(job, labels or {team.host(): ("here", "all agents")})

    @agent("observer", responds_to=["catalogue", "summary", "report"])
    async def observer(spore: Spore) -> None:
        board.hear(spore.knowledge)

    here = () if hosts else (team.reader, team.summariser, team.editor)
    order = {"type": "job", "id": job, "folder": str(options.folder), "pace": options.pace}
    async with Reef(
        observer, *here, transport=options.transport, namespace=options.namespace
    ) as reef:
        await meet(reef, hosts)
        with board.live if board.console.is_terminal else contextlib.nullcontext():
            await reef.send("reader", order)
            await until_reported(board, hosts)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(board.complete.wait(), LATE)
        await stop(hosts)  # what they have still to say is heard here
    print(f"here   observer    {reef.ledger()}", flush=True)
    return board


async def meet(reef: Reef, hosts: Sequence[Host]) -> None:
    """Wait until this process has heard of all agents.

    Raises:
        HostError: it has not, in all that time.
    """
    wanted = {(host.agent, host.where) for host in hosts}
    try:
        async with asyncio.timeout(MEETING):
            while not wanted <= {(e.name, f"{e.host}:{e.pid}") for e in reef.agents()}:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise HostError(f"not all hosts were heard of within {MEETING:g} s") from None


async def until_reported(board: Board, hosts: Sequence[Host]) -> None:
    """Wait for the report, as long as each agent has a host.

    Raises:
        HostError: the last host of an agent has ended.
    """
    reported = asyncio.create_task(board.reported.wait())
    living = {host.ended: host for host in hosts}
    try:
        while not reported.done():
            done, _ = await asyncio.wait({reported, *living}, return_when="FIRST_COMPLETED")
            for host in [living.pop(task) for task in living.keys() & done]:
                board.say(f"{host.label} {host.agent} ended with exit code {host.code}")
                if all(other.agent != host.agent for other in living.values()):
                    raise HostError(
                        f"{host.label} has ended, and no other host has an agent {host.agent!r}"
                    )
    finally:
        reported.cancel()


async def stop(hosts: Sequence[Host]) -> None:
    """End all hosts, and wait for them; harmless when they have ended."""
    await asyncio.gather(*(host.stop() for host in hosts))


def tell(board: Board, hosts: Sequence[Host]) -> int:
    """Check that nothing was left out or done twice, and return the exit code."""
    failed = [host.label for host in hosts if host.code != 0]
    twice = sorted(name for name, times in board.summaries.items() if times > 1)
    missing = sorted(set(board.files) - board.summaries.keys())
    if board.exactly_once and not failed:
        print(f"{len(board.files)} files, each summarised exactly once; all ledgers are balanced")
        return 0
    print(f"NOT AS IT SHOULD BE: twice: {twice}, missing: {missing}, failed hosts: {failed}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
