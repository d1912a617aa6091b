"""``praval audit``: whether an audit log is as it was written, and what is in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from praval.errors import AuditError, SealError

if TYPE_CHECKING:  # PyNaCl is loaded by the command that needs it, not by each `praval`
    from praval.core.audit_chain import AuditKeys, Line, Verifier
    from praval.core.key_types import VerifyKey

FAILED, REFUSED = 1, 2

app = typer.Typer(
    name="audit", help="The audit log: check it, and look into it.", no_args_is_help=True
)

Folder = Annotated[Path, typer.Argument(help="The folder of the log.")]
Keys = Annotated[
    str | None,
    typer.Option("--keys", help="The secure store that signed it: a folder, or a URL."),
]


@app.command()
def verify(
    folder: Folder,
    key: Annotated[
        str | None, typer.Option(help="The audit key that `praval keys show` prints.")
    ] = None,
    keys: Keys = None,
    seen: Annotated[
        str | None, typer.Option(help="The last checkpoint that was seen earlier: LINES:HASH.")
    ] = None,
) -> None:
    """Check that no line was changed, taken out, put in or moved; exit code 1 if one was.

    Without a key only the chain is checked, which whoever can write the file can make anew. What
    comes after the last checkpoint is not signed yet. A log that was cut at an older checkpoint is
    found with --seen, which takes what an earlier run printed.
    """
    from praval.core.audit_chain import Verifier

    wanted = _parsed(seen)
    verifier = Verifier(_verify_key(key, keys))
    try:
        for _ in _lines(folder, verifier):
            pass
    except AuditError as error:
        print(f"NOT AS IT WAS WRITTEN: {error}", file=sys.stderr)
        raise typer.Exit(FAILED) from None
    if not verifier.checkpoints:
        print(f"NOT AS IT WAS WRITTEN: there is no line in {folder}", file=sys.stderr)
        raise typer.Exit(FAILED)
    _tell(verifier, is_signed=key is not None or keys is not None)
    if wanted is not None and verifier.checkpoints.get(wanted[0]) != wanted[1]:
        print("NOT AS IT WAS WRITTEN: the checkpoint that was seen is not there", file=sys.stderr)
        raise typer.Exit(FAILED)


@app.command()
def show(
    folder: Folder,
    keys: Keys = None,
    event: Annotated[str | None, typer.Option(help="Only events of this name.")] = None,
) -> None:
    """Print the records, one JSON object a line; encrypted ones with the --keys only."""
    from praval.core.audit_chain import CHECKPOINT, Verifier

    secrets = None if keys is None else _audit_keys(keys)
    hidden = 0
    try:
        for line in _lines(folder, Verifier(None if secrets is None else secrets.verify_key)):
            if line.kind == CHECKPOINT:
                continue
            record = line.record(secrets)
            if record is None:
                hidden += 1
            elif event is None or record.get("event") == event:
                record["at"] = datetime.fromtimestamp(record["at"] / 1000, UTC).isoformat()
                print(msgspec.json.encode(record).decode())
    except AuditError as error:
        print(f"NOT AS IT WAS WRITTEN: {error}", file=sys.stderr)
        raise typer.Exit(FAILED) from None
    if hidden:
        print(f"{hidden} records are encrypted: give --keys", file=sys.stderr)


def _lines(folder: Path, verifier: Verifier) -> Iterator[Line]:
    from praval.core.audit_log import files_of

    files = files_of(folder)
    if not files:
        print(f"There is no audit log in {folder}.", file=sys.stderr)
        raise typer.Exit(REFUSED)
    for file in files:
        try:
            for _, line in verifier.read(file.read_bytes(), is_last=file == files[-1]):
                yield line
        except AuditError as error:
            raise AuditError(f"{file.name}, {error}") from None


def _tell(verifier: Verifier, *, is_signed: bool) -> None:
    if verifier.first:
        print(f"{verifier.first} older lines are gone")
    count = verifier.lines - verifier.first
    print(f"{count} lines, each as it was written{'' if is_signed else ', if the chain is'}")
    if not is_signed:
        print("signatures were not checked: give --key or --keys")
    if unsigned := verifier.lines - verifier.signed - 1:
        print(f"the last {unsigned} are not signed yet")
    if verifier.torn:
        print(f"{verifier.torn} bytes at the end are half a line: its process died")
    print(f"last checkpoint: {verifier.signed}:{verifier.checkpoints[verifier.signed]}")


def _parsed(seen: str | None) -> tuple[int, str] | None:
    if seen is None:
        return None
    lines, colon, hashed = seen.partition(":")
    if not (lines.isdecimal() and colon and hashed):
        print("--seen takes LINES:HASH, as an earlier run printed it.", file=sys.stderr)
        raise typer.Exit(REFUSED)
    return int(lines), hashed


def _verify_key(key: str | None, keys: str | None) -> VerifyKey | None:
    from praval.core.key_types import VerifyKey

    if keys is not None:
        return _audit_keys(keys).verify_key
    if key is None:
        return None
    try:
        return VerifyKey(bytes.fromhex(key))
    except (ValueError, SealError):
        print("--key takes 64 hexadecimal digits: see `praval keys show`.", file=sys.stderr)
        raise typer.Exit(REFUSED) from None


def _audit_keys(where: str) -> AuditKeys:
    from praval.cli.keys import opened
    from praval.core.audit_chain import AuditKeys

    return AuditKeys(opened(where).keyring.audit_key)
