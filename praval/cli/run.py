"""``praval run``: a team as a service, until a signal drains it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from praval import Agent, Reef
from praval.cli._connect import BY_SIGNAL, FAILED, Transport, refusals
from praval.cli._target import Options, Target
from praval.core.delivery import Reason
from praval.core.serve import SIGNALS
from praval.demo.progress import say
from praval.demo.sources import printable
from praval.errors import ConfigurationError
from praval.settings import LogLevel, current_settings

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:ATTRIBUTE",
            help="Or path/to/file.py:attribute. A Reef, an agent, a list of agents, or a function "
            "that returns one; the attribute defaults to reef.",
        ),
    ],
    *,
    transport: Transport = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            help="Separates teams that share a broker; default: praval.", show_default=False
        ),
    ] = None,
    journal: Annotated[
        bool, typer.Option("--journal", help="Keep a journal under the data directory.")
    ] = False,
    journal_at: Annotated[
        str | None, typer.Option(metavar="PATH", help="Keep one there.", show_default=False)
    ] = None,
    drain: Annotated[
        float | None,
        typer.Option(
            help="Seconds that accepted work may take when the team is told to end.",
            min=0.001, show_default=False,
        ),
    ] = None,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            help="For the records of praval and the team; default: INFO.",
            case_sensitive=False, show_default=False,
        ),
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start again when its code changes (development).")
    ] = False,
    stop_at_eof: Annotated[
        bool, typer.Option("--stop-at-eof", help="End when standard input does, too: for parents.")
    ] = False,
) -> None:  # fmt: skip
    """Run a team as a service; SIGTERM or Ctrl-C lets it finish its work and ends with 0.

    A second signal ends it at once. 1: something failed or was lost. 2: it cannot be run so.
    """
    options = Options(
        transport=transport, namespace=namespace, journal=journal_at or journal or None, drain=drain
    )
    with refusals("run"):
        where = Target.read(target)
        options.apply()
        if reload:
            from praval.cli._reload import supervise

            raise typer.Exit(supervise(where.folder()))
        signal.signal(signal.SIGTERM, _end_at_once)
        made = where.load()
        if callable(made) and not isinstance(made, Agent):
            made = _called(made)
        _log(where, log_level)
        _serve(made, options, stop_at_eof=stop_at_eof)


def _called(function: Callable[..., Any]) -> Any:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"The target {function!r} cannot be called without arguments: {error}."
        ) from None
    return function()


def _serve(made: Any, options: Options, *, stop_at_eof: bool) -> NoReturn:
    runner = asyncio.Runner()
    try:
        reef = runner.run(_life(made, options, stop_at_eof=stop_at_eof))
    except BaseException:
        runner.close()
        raise
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # whatever is left now can be ended at once
    code = _tell(reef)
    if _cut_off(reef):
        # a thread in the middle of a handler cannot be ended, and would be waited for
        sys.stdout.flush()
        os._exit(code)
    runner.close()
    raise typer.Exit(code)


async def _life(made: Any, options: Options, *, stop_at_eof: bool) -> Reef:
    """Enter the Reef, serve, and return it closed; a signal before it is ready ends it at once."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    told: list[int] = []

    def give_up(number: int) -> None:
        assert task is not None
        told.append(number)
        task.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, give_up, number)
    try:
        if inspect.isawaitable(made):
            made = await made
        async with options.reef(made) as reef:
            if stop_at_eof:
                threading.Thread(target=_stop_at_eof, args=(reef,), daemon=True).start()
            if reef.running:  # else it broke down at once
                loop.call_soon(_announce, reef)  # by then serve() has taken the signals over
                await reef.serve()
            return reef
    except asyncio.CancelledError:
        if not told:
            raise
        raise typer.Exit(BY_SIGNAL + told[0]) from None


def _announce(reef: Reef) -> None:
    names = printable(", ".join(sorted(reef.runners))) or "no agents"
    where = "the local bus alone: no transport is set"
    if reef.bridge is not None:
        transport = reef.bridge.transport
        where = f"{transport.protocol} at {transport.health().broker or 'an unnamed place'}"
    say(f"ready: {names} on {where}; namespace {reef.namespace}, pid {os.getpid()}", sys.stdout)


def _tell(reef: Reef) -> int:
    """Say how it went; return the exit code."""
    ledger, health = reef.ledger(), reef.health_check()
    say(f"ledger: {ledger}", sys.stdout)
    lost = _lost(reef)
    if lost:
        logging.getLogger("praval.cli").error(
            "%d deliveries were lost: they were not done when the draining ended. --drain gives "
            "them longer, --journal keeps them for the next start",
            lost,
        )
    return FAILED if lost or not ledger.balanced or health["error"] else 0


def _cut_off(reef: Reef) -> int:
    """Count what was not done when the Reef closed, wherever it is now."""
    ledger = reef.ledger()
    return ledger.reasons.get(Reason.CLOSED.value, 0) + ledger.pending


def _lost(reef: Reef) -> int:
    """Count what was accepted, and is neither done nor with a broker or in a journal."""
    if reef.bridge is not None:  # the broker has what came in
        return int(reef.get_statistics()["outbox"]["cancelled"])
    return reef.ledger().reasons.get(Reason.CLOSED.value, 0)


def _log(where: Target, level: LogLevel | None) -> None:
    """Show the records of praval and of the team, and the warnings of all others."""
    settings = current_settings()
    wanted = level or settings.log_level or ("DEBUG" if settings.debug else "INFO")
    logging.basicConfig(format=FORMAT, level=logging.WARNING)
    for name in ("praval", where.package):
        logging.getLogger(name).setLevel(wanted)


def _stop_at_eof(reef: Reef) -> None:
    with contextlib.suppress(OSError):  # closed, or none at all
        while os.read(0, 65536):
            pass
    reef.stop()


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """The first process of a container is not ended by a signal that it does not handle."""
    raise SystemExit(BY_SIGNAL + number)
