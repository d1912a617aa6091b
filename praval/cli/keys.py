"""``praval keys``: identities, prekeys, cards and roots from the command line."""

from __future__ import annotations

import asyncio
import getpass
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from praval.cli._connect import NAMESPACE, Namespace, Transport, broker, refusals
from praval.core.topics import join
from praval.errors import ConfigurationError, PassphraseError, SealError

if TYPE_CHECKING:  # PyNaCl is loaded by the command that needs it, not by each `praval`
    from praval.core.certificates import Rights
    from praval.core.key_store import KeyStore
    from praval.core.key_types import VerifyKey
    from praval.core.lifetimes import Lifetimes
    from praval.core.principal import Principal
    from praval.core.root_keys import Root

FAILED, REFUSED = 1, 2
KEYS, ROOT, BACKUP = "PRAVAL_KEYS_PASSPHRASE", "PRAVAL_ROOT_PASSPHRASE", "PRAVAL_BACKUP_PASSPHRASE"
PENDING = ".pending"
"""Ending of the file with an identity that waits for its certificate."""

app = typer.Typer(
    name="keys",
    help="Keys for sealed spores: make, show, rotate, back up, certify, revoke.",
    no_args_is_help=True,
)

Dir = Annotated[
    str,
    typer.Option(
        "--store",
        "--dir",
        envvar="PRAVAL_KEYS_STORE",
        help="The secure store: a folder, or the URL of a server, postgresql://... or rediss://...",
    ),
]
RootDir = Annotated[Path, typer.Option("--dir", help="The folder of the root.")]
HERE, ROOT_HERE = "keys", Path("root")
Strict = Annotated[bool, typer.Option("--strict", help="The short lifetimes (1 h, 2 h, 1 h).")]
Name = Annotated[str, typer.Argument(help="The agent's name.")]


@app.command()
def init(
    name: Name,
    folder: Dir = HERE,
    root_folder: Annotated[
        Path | None, typer.Option("--root", help="The root that certifies it, if it is at hand.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="The certificate that the root's owner sent.")
    ] = None,
    strict: Strict = False,
) -> None:
    """Make keys for an agent.

    With the root at hand this is one step. Otherwise the first call makes the identity and says
    what to ask the root's owner for; the second one (--certificate) finishes. The same renews a
    certificate.
    """
    with _refusals():
        if root_folder is not None:
            _init_with_root(name, folder, root_folder, strict)
        elif certificate is not None:
            _finish(name, folder, certificate, strict)
        else:
            _begin(name, folder, strict)


@app.command()
def show(folder: Dir = HERE, strict: Strict = False) -> None:
    """Show the keys of each agent, and how long what is sealed to them stays readable."""
    with _refusals():
        from praval.core.audit_chain import AuditKeys
        from praval.core.lifetimes import shown

        store = _open(folder, strict)
        times = store.keyring.lifetimes
        for name in store.keyring.names:
            _show(store.keyring.get(name), times)
        for name, error in store.keyring.failed.items():
            _say(f"{name} has no card: {error}")
        for key in store.keyring.directory.roots:
            _say(f"root {bytes(key).hex()}")
        _say(f"audit key {bytes(AuditKeys(store.keyring.audit_key).verify_key).hex()}")
        _say(
            f"forward-secrecy window: {shown(times.window)} (rotation {shown(times.rotation)}, "
            f"card {shown(times.card)}, spore {shown(times.max_ttl)}, skew {shown(times.skew)})"
        )


@app.command()
def card(
    name: Name,
    folder: Dir = HERE,
    out: Annotated[Path | None, typer.Option(help="Write it to this file.")] = None,
    strict: Strict = False,
) -> None:
    """Print the current card of an agent: public, and its own proof."""
    with _refusals():
        store = _open(folder, strict)
        store.tick(_now())
        data = store.keyring.card(name)
        if out is None:
            _say(data.decode())
        else:
            out.write_bytes(data)
            _say(f"wrote {out}")


@app.command()
def rotate(
    name: Annotated[str | None, typer.Argument(help="Whose keys; default: all.")] = None,
    folder: Dir = HERE,
    lost: Annotated[
        bool,
        typer.Option(
            "--lost",
            help="After a theft, a restored backup or a lost replay memory: throw all prekeys "
            "away and refuse what was sealed before.",
        ),
    ] = False,
    strict: Strict = False,
) -> None:
    """Replace prekeys and signing keys; old ones open what is under way, unless --lost."""
    with _refusals():
        store = _open(folder, strict)
        if lost:
            store.recover(now=_now())
            store.close()
            _say("all prekeys are new, and what was sealed before is refused from now on")
            return
        with store.changing(_now()) as keyring:
            for each in [name] if name else keyring.names:
                keyring.rotate(each, now=_now())
                _say(f"rotated {each}, epoch {keyring.get(each).epoch}")


@app.command()
def trust(
    key: Annotated[str, typer.Argument(help="A root's public key: 64 digits, or its root.pub.")],
    folder: Dir = HERE,
) -> None:
    """Pin a root: names that it certifies are believed. Pin at least two."""
    with _refusals():
        store = _open(folder) if _exists(folder) else _create(folder)
        with store.changing(_now()) as keyring:
            keyring.directory.roots.add(_verify_key(key))
        _say(f"pinned; {len(store.keyring.directory.roots)} roots are trusted in {store.vault!r}")


@app.command()
def export(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The backup to write.")],
    folder: Dir = HERE,
) -> None:
    """Write an encrypted backup of an identity; it has no prekeys, so it opens no old spores."""
    with _refusals():
        from praval.core.key_box import BoxKey
        from praval.core.key_files import write_private
        from praval.core.stored_keys import backup

        secret = backup(_open(folder).keyring.get(name))
        passphrase = _ask("Passphrase for the backup", BACKUP, twice=True)
        box = BoxKey.fresh(passphrase, random=os.urandom).lock(secret, os.urandom)
        write_private(file.absolute(), box, replace=False)
        _say(f"wrote {file}: keep it, and its passphrase, in two places")


@app.command("import")
def import_(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The backup to read.")],
    folder: Dir = HERE,
) -> None:
    """Be an agent again from its backup, with new prekeys; its store must know the root."""
    with _refusals():
        from praval.core.key_box import unlock
        from praval.core.key_files import read_private
        from praval.core.key_types import SigningKey
        from praval.core.stored_keys import read_backup

        box = read_private(file.absolute())
        secret = unlock(box, _ask("Passphrase of the backup", BACKUP))[0]
        found = read_backup(secret, name)
        with _open(folder).changing(_now()) as keyring:
            keyring.add(
                name,
                now=_now(),
                epoch=found.epoch,
                identity=SigningKey(found.identity),
                certificates=tuple(found.certificates),
            )
        _say(f"{name} is here again, with new prekeys. Its card must be published.")


@app.command()
def root(
    folder: RootDir = ROOT_HERE,
    *,
    certify: Annotated[str | None, typer.Option(help="Certify this name.")] = None,
    identity: Annotated[str | None, typer.Option(help="Its identity key: 64 digits.")] = None,
    out: Annotated[Path | None, typer.Option(help="The certificate's file.")] = None,
    days: Annotated[int, typer.Option(help="How long it is valid; at most 90.")] = 90,
    publish: Annotated[
        list[str] | None, typer.Option(help="Topics it may publish on; may be repeated.")
    ] = None,
    read: Annotated[
        list[str] | None, typer.Option(help="Topics it may read; may be repeated.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--type", help="Types it may send; may be repeated.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List what was certified.")] = False,
) -> None:
    """Make a root, show it, or certify with it. Keep its folder off every host that runs agents."""
    with _refusals():
        from praval.core.root_keys import KEY, PUBLIC, has_root

        if not has_root(folder):
            made = _new_root(folder)
            _say(f"made a root: {bytes(made.verify_key).hex()}")
            _say(f"  {folder / KEY}  its key, encrypted: keep it off every host that runs agents")
            _say(f"  {folder / PUBLIC}  to be pinned everywhere: praval keys trust")
        elif certify is None and not listed:
            _say(f"root {(folder / PUBLIC).read_text().strip()}")
        if certify is not None:
            if identity is None:
                raise _refused("--certify needs --identity, which `praval keys init` printed.")
            rights = _rights(publish, read, kind)
            data = _open_root(folder).certify(
                certify, _verify_key(identity), now=_now(), days=days, rights=rights
            )
            target = out or Path(f"{certify}-certificate.json")
            target.write_bytes(data)
            _say(f"wrote {target}: send it to {certify}'s host")
        if listed:
            for each in _open_root(folder).issued():
                state = "revoked" if each.revoked else f"until {_date(each.expires)}"
                _say(f"{each.name}  {each.serial}  {state}")


@app.command()
def revoke(
    which: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|SERIAL]...", help="None: sign anew.")
    ] = None,
    folder: RootDir = ROOT_HERE,
    days: Annotated[int, typer.Option(help="How long the list is current.")] = 30,
) -> None:
    """Revoke certificates and sign the status list anew, which every host must hear of."""
    with _refusals():
        from praval.core.root_keys import STATUS

        names = [int(each) if each.isdigit() else each for each in which or ()]
        for each in _open_root(folder).revoke(names, now=_now(), days=days):
            _say(f"revoked {each.name}, serial {each.serial}")
        _say(f"signed {folder / STATUS}, current for {days} days. Tell all hosts:")
        _say(f"  praval keys publish {folder / STATUS} --namespace NAMESPACE")


@app.command()
def publish(
    file: Annotated[Path, typer.Argument(help="A status list (status.json), or a card.")],
    transport: Transport = None,
    namespace: Namespace = NAMESPACE,
) -> None:
    """Tell all hosts of a namespace what a root or an agent has signed; it proves itself.

    Hosts that run keep it, and tell those that start later. It takes no keys to publish it.
    """
    with refusals("keys publish"), _refusals():
        from praval.core.signed import read_signed

        data = file.read_bytes()
        if (kind := read_signed(data).kind) not in ("status", "card"):
            raise _refused(f"{file} is a {kind}: only status lists and cards are published.")
        asyncio.run(_publish(transport, namespace, data))
        _say(f"published the {kind} to namespace {namespace!r}")


async def _publish(transport: str | None, namespace: str, data: bytes) -> None:
    open_transport = await broker(transport).connect(None)
    try:
        await open_transport.publish(join(namespace, "@keys"), data)
    finally:
        await open_transport.close()


# -- steps of init -----------------------------------------------------------------------------


def _init_with_root(name: str, where: str, root_folder: Path, strict: bool) -> None:
    from praval.core.key_types import SigningKey
    from praval.core.root_keys import has_root

    authority = _open_root(root_folder) if has_root(root_folder) else _new_root(root_folder)
    store = _open(where, strict) if _exists(where) else _create(where, strict)
    with store.changing(_now()) as keyring:
        keyring.directory.roots.add(authority.verify_key)
        known = name in keyring.names
        identity = keyring.get(name).identity if known else SigningKey(os.urandom(32))
        chain = (authority.certify(name, identity.verify_key, now=_now()),)
        if known:
            keyring.install(name, chain, now=_now())
        else:
            keyring.add(name, now=_now(), identity=identity, certificates=chain)
    agent_id = store.keyring.get(name).agent_id.hex()
    _say(f"{'renewed the certificate of' if known else 'made'} {name}, agent id {agent_id}")


def _begin(name: str, where: str, strict: bool) -> None:
    from praval.core.certificates import check_name
    from praval.core.key_files import write_private
    from praval.core.key_types import SigningKey

    check_name(name)
    store = _open(where, strict) if _exists(where) else _create(where, strict)
    if name in store.keyring.names:
        identity = store.keyring.get(name).identity
    else:
        identity = SigningKey(os.urandom(32))
        write_private(_pending(where, name), store.encrypt(identity.reveal()), replace=False)
    digits = bytes(identity.verify_key).hex()
    _say(f"{name} needs a certificate. Ask the root's owner to run")
    _say(f"  praval keys root --certify {name} --identity {digits}")
    _say("Pin the root here (praval keys trust), and then run")
    option = "" if "://" in where else f" --dir {where}"  # a URL may hold a password
    _say(f"  praval keys init {name} --certificate {name}-certificate.json{option}")


def _finish(name: str, where: str, certificate: Path, strict: bool) -> None:
    from praval.core.key_files import read_private
    from praval.core.key_types import SigningKey

    store = _open(where, strict)
    chain, pending = (certificate.read_bytes(),), _pending(where, name)
    with store.changing(_now()) as keyring:
        if name in keyring.names:
            keyring.install(name, chain, now=_now())
        else:
            identity = SigningKey(store.decrypt(read_private(pending)))
            keyring.add(name, now=_now(), identity=identity, certificates=chain)
    pending.unlink(missing_ok=True)
    _say(f"made {name}, agent id {store.keyring.get(name).agent_id.hex()}")


# -- helpers -----------------------------------------------------------------------------------


def _show(keys: Principal, times: Lifetimes) -> None:
    from praval.core.certificates import read_certificate
    from praval.core.principal import erase_at

    _say(f"{keys.name}  agent id {keys.agent_id.hex()}, epoch {keys.epoch}")
    _say(f"  identity     {bytes(keys.identity.verify_key).hex()}")
    _say(f"  certificate  until {_date(read_certificate(keys.certificates[0]).expires)}")
    _say(f"  card         until {_date(keys.card_expires)}")
    for each in keys.prekeys:
        end = erase_at(each, times)
        state = "in use" if end is None else f"replaced, erased {_date(end)}"
        _say(f"  prekey       {bytes(each.key.public).hex()[:16]}... {state}")


def _pending(where: str, name: str) -> Path:
    folder = Path(HERE if "://" in where else where)
    return folder / f"{name.encode().hex()}{PENDING}"


def _exists(where: str) -> bool:
    from praval.core.key_vaults import vault_for

    vault = vault_for(where)
    try:
        return vault.exists()
    finally:
        vault.close()


def _open(where: str, strict: bool = False) -> KeyStore:
    from praval.core.key_store import KeyStore

    if not _exists(where):
        shown = "that store" if "://" in where else where
        raise _refused(f"There are no keys in {shown}. Make some: praval keys init NAME")
    passphrase = _ask("Passphrase of the keys", KEYS)
    return KeyStore.open(where, passphrase, now=_now(), lifetimes=_lifetimes(strict))


def _create(where: str, strict: bool = False) -> KeyStore:
    from praval.core.key_store import KeyStore
    from praval.core.keys import Keyring

    passphrase = _ask("Passphrase for the keys", KEYS, twice=True)
    keyring = Keyring(throw_away_root=False, lifetimes=_lifetimes(strict))
    return KeyStore.create(where, keyring, passphrase)


def _new_root(folder: Path) -> Root:
    from praval.core.root_keys import Root

    return Root.create(folder, _ask("Passphrase for the root", ROOT, twice=True))


def _open_root(folder: Path) -> Root:
    from praval.core.root_keys import Root, has_root

    if not has_root(folder):
        raise _refused(f"There is no root in {folder}. Make one: praval keys root --dir {folder}")
    return Root.open(folder, _ask("Passphrase of the root", ROOT))


def _lifetimes(strict: bool) -> Lifetimes:
    from praval.core.lifetimes import DEFAULT, STRICT

    return STRICT if strict else DEFAULT


def _rights(publish: list[str] | None, read: list[str] | None, kinds: list[str] | None) -> Rights:
    from praval.core.certificates import ANY, Rights

    return Rights(
        publish=tuple(publish or ("#",)), read=tuple(read or ("#",)), types=tuple(kinds or (ANY,))
    )


def _verify_key(text: str) -> VerifyKey:
    from praval.core.key_types import VerifyKey

    path = Path(text)
    if len(text) != 64 and path.is_file():
        text = path.read_text(errors="replace").strip()
    try:
        return VerifyKey(bytes.fromhex(text))
    except (ValueError, SealError):
        raise _refused("That is no key: give 64 hexadecimal digits, or a file with them.") from None


def _ask(what: str, variable: str, *, twice: bool = False) -> str:
    secret = os.environ.get(variable)
    if secret:
        return secret
    if not sys.stdin.isatty():
        raise _refused(f"{what}: there is no terminal to ask on. Set {variable}.")
    try:
        secret = getpass.getpass(f"{what}: ")
        if twice and getpass.getpass("Once more: ") != secret:
            raise _refused("The two differ.")
    except EOFError:
        raise _refused(f"{what}: none was given.") from None
    return secret


def _refused(message: str) -> SealError:
    return SealError(message)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (SealError, ConfigurationError, OSError) as error:
        print(f"praval keys: {error}", file=sys.stderr)
        failed = isinstance(error, OSError | PassphraseError)
        raise typer.Exit(FAILED if failed else REFUSED) from None


def _now() -> int:
    return time.time_ns() // 1_000_000


def _date(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M} UTC"


def _say(line: str) -> None:
    typer.echo(line)


def opened(where: str) -> KeyStore:
    """Open a store for another command, with its passphrase; ends the process if that fails."""
    with _refusals():
        return _open(where)
