"""``praval demo``: the options, what is printed at the end, and the exit code."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from praval.core.delivery import STATES
from praval.demo.editor import HTML_NAME, MARKDOWN_NAME, check_out
from praval.demo.progress import say, screen
from praval.demo.report import count
from praval.demo.run import Job, Outcome, run
from praval.demo.sources import asyncio_folder, printable
from praval.demo.voice import introduce
from praval.errors import ConfigurationError, NoModelError, PravalError

FAILED, REFUSED, BY_SIGNAL = 1, 2, 128


def demo(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A folder or file of text, Markdown or Python; default: Python's own asyncio.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder to write the report into.")] = Path(),
    no_model: Annotated[
        bool, typer.Option("--no-model", help="Summarise by quoting; ask no model.")
    ] = False,
    provider: Annotated[
        str | None, typer.Option(help="Whose model to ask, e.g. local.", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which model.", show_default=False)] = None,
) -> None:
    """Let a team of agents read files and report what they are for and how they depend.

    Writes report.md and report.html. Ctrl-C writes what is known so far.
    """
    _prepare_streams()
    try:
        if no_model and (provider or model):
            raise ConfigurationError("--no-model excludes --provider and --model: choose one.")
        check_out(out)
        job = Job(
            path=path or asyncio_folder(),
            out=out,
            use_model=not no_model,
            provider=provider,
            model=model,
            speaker="" if no_model else introduce(provider, model),
        )
        outcome = _run(job)
    except (ConfigurationError, NoModelError) as error:
        _fail(error, REFUSED)
    except PravalError as error:
        _fail(error, FAILED)
    except KeyboardInterrupt:  # before the team began: there is nothing to write down
        raise typer.Exit(BY_SIGNAL + signal.SIGINT) from None
    _tell(job, outcome)
    if outcome.stopped_by:
        # A thread in the middle of a model's answer cannot be ended, and would be waited for.
        sys.stdout.flush()
        os._exit(BY_SIGNAL + outcome.stopped_by)
    if outcome.failures or not outcome.ledger.balanced:
        raise typer.Exit(FAILED)


def _run(job: Job) -> Outcome:
    runner = asyncio.Runner()
    try:
        with screen() as shown_on:
            outcome = runner.run(run(job, shown_on))
    except BaseException:
        runner.close()
        raise
    if not outcome.stopped_by:  # closing waits for threads
        runner.close()
    return outcome


def _prepare_streams() -> None:
    """Keep tracebacks and characters that a terminal cannot show from spoiling the output."""
    logging.getLogger("praval").addHandler(logging.NullHandler())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _tell(job: Job, outcome: Outcome) -> None:
    written = outcome.written
    where = printable(str(job.out.resolve()))
    how = "PARTIAL report (stopped)" if written["partial"] else "report"
    say(
        f"editor     {how}: {count(written['files'], 'file')}, {written['by_model']} summarised by "
        f"the model, {written['verified']} dependencies verified, {written['refuted']} refuted; "
        f"{outcome.seconds:.1f} s",
        sys.stdout,
    )
    for name in (MARKDOWN_NAME, HTML_NAME):
        say(f"editor     wrote {where}{os.sep}{name}", sys.stdout)
    for letter in outcome.failures:
        say(
            f"FAILED     {letter.agent} on {letter.spore.type}: {printable(letter.error)}",
            sys.stdout,
        )
    _tell_ledger(outcome)


def _tell_ledger(outcome: Outcome) -> None:
    ledger = outcome.ledger
    table = Table(title="The ledger", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("became")
    table.add_column("deliveries", justify="right")
    states = {state: getattr(ledger, state) for state in (*STATES, "pending")}
    for state, number in states.items():
        if number or state == "handled":
            table.add_row(state, f"{number:,}")
    table.add_section()
    table.add_row("together", f"{sum(states.values()):,}")
    with io.StringIO() as text:
        Console(file=text, width=60).print(table)
        say("\n" + text.getvalue().rstrip(), sys.stdout)
    verdict = "balanced" if ledger.balanced else "NOT BALANCED"
    say(
        f"{verdict}: {count(ledger.published, 'spore')}, "
        f"{count(ledger.deliveries, 'delivery', 'deliveries')}, each accounted for"
        if ledger.balanced
        else f"{verdict}: {ledger}",
        sys.stdout,
    )


def _fail(error: PravalError, code: int) -> NoReturn:
    print(f"praval demo: {error}", file=sys.stderr)
    raise typer.Exit(code)
