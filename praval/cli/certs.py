"""``praval certs``: an authority's folder from the command line."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from praval.errors import CertificateError, CertificateFolderError

if TYPE_CHECKING:  # cryptography is loaded by the command that needs it, not by each `praval`
    from praval.certs import Authority, Issued

FAILED, REFUSED = 1, 2
PASSPHRASE, STORE_PASSWORD = "PRAVAL_CA_PASSPHRASE", "PRAVAL_STORE_PASSWORD"
SOON, CRL_SOON = timedelta(days=30), timedelta(days=7)
"""Before its end, what is going to expire is told; a revocation list lives no longer than that."""
SHORT = 8
"""Digits of a serial number that the table shows; `revoke` takes as few."""

app = typer.Typer(
    name="certs",
    help="Certificates for the team's own TLS: make an authority, issue, revoke, show.",
    no_args_is_help=True,
)

Dir = Annotated[Path, typer.Option("--dir", help="The folder of the authority.")]
HERE = Path("certs")


@app.command()
def init(
    folder: Dir = HERE,
    name: Annotated[str, typer.Option(help="The authority's name.")] = "Praval CA",
    days: Annotated[int, typer.Option(help="How long it can sign.")] = 3650,
    passphrase: Annotated[
        bool,
        typer.Option(
            "--passphrase", help=f"Encrypt the CA's key; asks, unless {PASSPHRASE} is set."
        ),
    ] = False,
) -> None:
    """Make an authority: ca.pem, ca-key.pem and an empty revocation list."""
    with _refusals():
        from praval.certs import Authority

        secret = os.environ.get(PASSPHRASE) or None
        if passphrase and secret is None:
            secret = _ask("Passphrase for the CA's key", PASSPHRASE, twice=True)
        authority = Authority.create(folder, name, days, passphrase=secret)
        _say(f"made {authority.name}, until {authority.expires:%Y-%m-%d}")
        _say(f"  {authority.ca_cert}  the certificate to trust: copy it to every host")
        _say(f"  {authority.ca_key}  its key{', encrypted' if secret else ''}: copy it nowhere")
        _say(f"  {authority.crl}  the revocation list: copy it to whoever checks certificates")


@app.command()
def issue(
    name: Annotated[str, typer.Argument(help="Its name: file names and common name.")],
    *,
    host: Annotated[
        list[str] | None,
        typer.Option(help="DNS name or IP address of the server; may be repeated."),
    ] = None,
    server: Annotated[bool, typer.Option("--server", help="For a server (the default).")] = False,
    client: Annotated[bool, typer.Option("--client", help="For a client.")] = False,
    days: Annotated[int, typer.Option(help="How long it is valid.")] = 365,
    force: Annotated[
        bool, typer.Option("--force", help="Even if the name has a valid one, which stays valid.")
    ] = False,
    folder: Dir = HERE,
) -> None:
    """Make a key and a certificate: NAME-key.pem and NAME.pem."""
    with _refusals():
        issued = _signing(folder).issue(
            name,
            hosts=host or (),
            kind="both" if server and client else "client" if client else "server",
            days=days,
            force=force,
        )
        _say(f"issued {_described(issued)}, until {issued.not_after:%Y-%m-%d}")
        _say(f"  {issued.cert}")
        _say(f"  {issued.key}")


@app.command()
def revoke(
    which: Annotated[
        str,
        typer.Argument(metavar="NAME|SERIAL", help="A serial number, or all of a name."),
    ],
    folder: Dir = HERE,
) -> None:
    """Revoke certificates and sign the revocation list anew."""
    with _refusals():
        authority = _signing(folder)
        for issued in authority.revoke(_named(authority, which)):
            _say(f"revoked {_described(issued)}, serial {issued.serial:040x}")
        _say(f"Servers hear of it when they load {authority.crl} again.")


@app.command()
def refresh(
    days: Annotated[int, typer.Option(help="How long the new list is valid.")] = 30,
    folder: Dir = HERE,
) -> None:
    """Sign the revocation list anew: peers refuse one that is past its time."""
    with _refusals():
        authority = _signing(folder)
        authority.refresh_crl(days)
        _say(f"signed {authority.crl}, until {authority.crl_expires:%Y-%m-%d}")


@app.command()
def java(
    name: Annotated[str, typer.Argument(help="Whose stores.")],
    folder: Dir = HERE,
) -> None:
    """Write NAME.p12 and NAME-truststore.p12 for a Java server.

    Their password is PRAVAL_STORE_PASSWORD, or is asked for.
    """
    with _refusals():
        from praval.certs import Authority

        authority = Authority.open(folder)
        authority.get(name)
        password = os.environ.get(STORE_PASSWORD) or _ask(
            "Password for the stores", STORE_PASSWORD, twice=True
        )
        for path in authority.java_stores(name, password):
            _say(f"wrote {path}")


@app.command()
def show(
    name: Annotated[
        str | None, typer.Argument(help="All that is known of one name.", show_default=False)
    ] = None,
    folder: Dir = HERE,
) -> None:
    """List what was issued, what it is worth, and what is going to expire."""
    with _refusals():
        from praval.certs import Authority

        authority = Authority.open(folder)
        if name is None:
            _show_all(authority)
        else:
            authority.get(name)
            for issued in authority.issued():
                if issued.name == name:
                    _show_one(issued)


def _show_all(authority: Authority) -> None:
    everything = authority.issued()
    _say(f"{authority.name} in {authority.folder}, ends {_when(authority.expires)}")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("name", "kind", "hosts", "serial", "expires", "state"):
        table.add_column(column, overflow="fold")
    for each in everything:
        table.add_row(
            each.name,
            each.kind,
            ", ".join(each.hosts),
            f"{each.serial:040x}"[:SHORT],
            _when(each.not_after),
            _state(each),
        )
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table if everything else "Nothing was issued yet.")
    for remark in _remarks(authority, everything):
        _say(remark)


def _remarks(authority: Authority, everything: list[Issued]) -> Iterator[str]:
    for each in everything:
        if each.state == "valid" and not each.replaced and _left(each.not_after) <= SOON:
            yield f"{each.name} expires {_when(each.not_after)}: issue it again (--force)."
    if _left(authority.expires) <= SOON:
        yield f"The CA ends {_when(authority.expires)}: make a new one in another folder."
    if (left := _left(authority.crl_expires)) <= CRL_SOON:
        ends = "ends" if left > timedelta() else "ended"
        yield (
            f"The revocation list {ends} {_when(authority.crl_expires)}, after which whoever "
            "checks it refuses everybody: praval certs refresh"
        )


def _show_one(issued: Issued) -> None:
    _say(_described(issued))
    for label, value in (
        ("state", _state(issued)),
        ("serial", f"{issued.serial:040x}"),
        ("valid from", f"{issued.not_before:%Y-%m-%d %H:%M:%S} UTC"),
        ("valid until", f"{issued.not_after:%Y-%m-%d %H:%M:%S} UTC ({_when(issued.not_after)})"),
        ("certificate", "replaced" if issued.replaced else issued.cert),
        ("key", "replaced" if issued.replaced else issued.key),
    ):
        _say(f"  {label:<11}  {value}")


def _described(issued: Issued) -> str:
    hosts = f" for {', '.join(issued.hosts)}" if issued.hosts else ""
    kind = "server and client" if issued.kind == "both" else issued.kind
    return f"{issued.name} ({kind}){hosts}"


def _state(issued: Issued) -> str:
    if issued.revoked_at is not None:
        return f"revoked {issued.revoked_at:%Y-%m-%d}"
    return f"{issued.state}, replaced" if issued.replaced else issued.state


def _left(moment: datetime) -> timedelta:
    return moment - datetime.now(UTC)


def _when(moment: datetime) -> str:
    hours = _left(moment) / timedelta(hours=1)
    amount = f"{abs(hours) / 24:.0f} days" if abs(hours) >= 48 else f"{abs(hours):.0f} h"
    return f"in {amount}" if hours > 0 else f"{amount} ago"


def _named(authority: Authority, which: str) -> str | int:
    """Find out whether a name or (the beginning of) a serial number was meant."""
    everything = authority.issued()
    if any(each.name == which for each in everything):
        return which
    digits = which.lower().removeprefix("0x").replace(":", "")
    found = [each.serial for each in everything if f"{each.serial:040x}".startswith(digits)]
    if len(digits) < SHORT or len(found) != 1:
        raise CertificateError(
            f"{which!r} is neither the name of a certificate nor the beginning of one serial "
            f"number ({SHORT} digits or more). See: praval certs show --dir {authority.folder}"
        )
    return found[0]


def _signing(folder: Path) -> Authority:
    """Open the authority with what its key needs."""
    from praval.certs import Authority

    authority = Authority.open(folder)
    if not authority.needs_passphrase:
        return authority
    secret = os.environ.get(PASSPHRASE) or _ask("Passphrase of the CA's key", PASSPHRASE)
    return Authority.open(folder, passphrase=secret)


def _ask(what: str, variable: str, *, twice: bool = False) -> str:
    if not sys.stdin.isatty():
        raise CertificateError(f"{what}: there is no terminal to ask on. Set {variable}.")
    try:
        secret = getpass.getpass(f"{what}: ")
        if twice and getpass.getpass("Once more: ") != secret:
            raise CertificateError("The two differ.")
    except EOFError:
        raise CertificateError(f"{what}: none was given.") from None
    return secret


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except CertificateError as error:
        print(f"praval certs: {error}", file=sys.stderr)
        code = FAILED if isinstance(error, CertificateFolderError) else REFUSED
        raise typer.Exit(code) from None


def _say(line: str) -> None:
    typer.echo(line)
