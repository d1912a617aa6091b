"""Sealed spores on a broker that is the enemy's: ``python main.py amqps://...``.

Makes a root and the keys of two hosts, starts the hosts and an attacker who sees and may publish
everything, has money transferred, lets the attacker do what it can, and tells what came of it.
See README.md beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import team

from praval.core.key_store import KeyStore
from praval.core.key_types import SigningKey
from praval.core.keys import Keyring
from praval.core.root_keys import Root
from praval.errors import PravalError

HERE = Path(__file__).parent
ANSWER = 60.0
"""Seconds until a process must have answered."""
SETTLED, QUIET = 30.0, 0.4
"""Seconds until the hosts must have looked at what the attacker sent, and for which they notice
nothing more."""
ATTACKS = {
    "replay": "sent all of it again, bit by bit",
    "edit": "flipped one bit of a copy, twice for each",
    "cut": "cut it, and put halves of two together",
    "redirect": "brought to each host what was meant for the other",
    "plaintext": "ordered transfers without sealing",
    "impersonate": "made keys of the desk's name and a root of its own",
}
"""What the attacker does -> in words."""


class ProcessError(Exception):
    """One of the processes ended, or did not answer."""


class Noticed(NamedTuple):
    """What the hosts have noticed."""

    executed: int
    """Transfers."""
    known: int
    """Spores that were handled before: told so again, and not handled."""
    refused: Counter[str]
    """Why -> how often; a message that is tried again counts each time."""

    def since(self, before: Noticed) -> Noticed:
        """Return what came up since then."""
        return Noticed(
            self.executed - before.executed,
            self.known - before.known,
            self.refused - before.refused,
        )


class Process:
    """A process that obeys lines and answers each with a line of JSON."""

    def __init__(self, label: str) -> None:
        self.label = label
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, script: str, *arguments: str, url: str, passphrase: str = "") -> None:
        """Start it, and wait until it is ready."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, HERE / script, *arguments),
            # others can see command lines
            env={**os.environ, "PRAVAL_TRANSPORT": url, "PRAVAL_KEYS_PASSPHRASE": passphrase},
            stdin=asyncio.subprocess.PIPE,  # it ends when we do, even if we are killed
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us
        )
        await self.answer()

    async def ask(self, line: str) -> dict[str, Any]:
        """Have it do something."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        return await self.answer()

    async def answer(self) -> dict[str, Any]:
        """Read its next answer.

        Raises:
            ProcessError: none comes.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), ANSWER)
        except TimeoutError:
            raise ProcessError(f"the {self.label} does not answer") from None
        if not line:
            raise ProcessError(f"the {self.label} ended; see above")
        answer: dict[str, Any] = msgspec.json.decode(line)
        return answer

    async def stop(self) -> None:
        """End its input, and wait until it has ended; harmless when it has."""
        if self._process is not None and self._process.returncode is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), ANSWER)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


def make_keys(folder: Path, passphrase: str) -> Root:
    """Make a root, and for each host a store with keys that the root has certified.

    ``praval keys root`` and ``praval keys init`` do the same by hand, so that the root's key never
    leaves the machine that it was made on.
    """
    now = int(time.time() * 1000)
    root = Root.create(folder / "root", passphrase)
    for host, name in (("desk", "@desk"), ("teller", "teller")):
        identity = SigningKey(os.urandom(32))
        certificate = root.certify(name, identity.verify_key, now=now)
        keyring = Keyring([root.verify_key])
        keyring.add(name, now=now, identity=identity, certificates=(certificate,))
        KeyStore.create(folder / host, keyring, passphrase).close()
    return root


async def run(url: str, folder: Path) -> int:
    """Play it; whatever happens, no process is left behind."""
    passphrase, namespace = secrets.token_urlsafe(16), f"secure-{secrets.token_hex(4)}"
    root = await asyncio.to_thread(make_keys, folder, passphrase)
    public, log = bytes(root.verify_key).hex(), folder / "broker.log"
    print(f"root        {public[:16]}..., certifies the desk and the teller", flush=True)
    desk, teller, attacker = map(Process, ("desk", "teller", "attacker"))
    hosts = (teller, desk)
    try:
        await attacker.start("attacker.py", namespace, str(log), public, url=url)
        for host in hosts:
            keys = str(folder / host.label)
            await host.start("host.py", host.label, keys, namespace, url=url, passphrase=passphrase)
        paid = await pay(desk, 10)
        for how in ATTACKS:
            show(how, *await attack(attacker, how, hosts))
        paid += await pay(desk, 10)
        executed = (await teller.ask("counts"))["executed"]
        for host in hosts:
            await asyncio.gather(host.stop(), tell(host))
        return judge(paid, executed, log)
    finally:
        await asyncio.gather(*(each.stop() for each in (desk, teller, attacker)))


async def pay(desk: Process, number: int) -> list[str]:
    """Have the desk order transfers; return the ids that the teller has confirmed to it."""
    paid: list[str] = (await desk.ask(f"pay {number}"))["paid"]
    print(f"desk        ordered {number} transfers, {len(paid)} were confirmed", flush=True)
    return paid


async def attack(attacker: Process, how: str, hosts: Sequence[Process]) -> tuple[int, Noticed]:
    """Let the attacker do something; return how many messages that were, and what came of them."""
    before = await notice(hosts)
    tried: int = (await attacker.ask(how))["tried"]
    deadline, last, now = time.monotonic() + SETTLED, before, await notice(hosts)
    while (now != last or now == before) and time.monotonic() < deadline:
        await asyncio.sleep(QUIET)
        last, now = now, await notice(hosts)
    return tried, now.since(before)


async def notice(hosts: Sequence[Process]) -> Noticed:
    """Ask the hosts what they have noticed so far."""
    answers = [await host.ask("counts") for host in hosts]
    return Noticed(
        executed=sum(len(each["executed"]) for each in answers),
        known=sum(each["known"] for each in answers),
        refused=sum((Counter(each["refused"]) for each in answers), Counter()),
    )


def show(how: str, tried: int, noticed: Noticed) -> None:
    """Print what came of an attack."""
    codes = [f"{number} {code}" for code, number in noticed.refused.most_common()]
    if noticed.known:
        codes.insert(0, f"{noticed.known} known already")
    print(f"attacker    {ATTACKS[how]}: {tried} messages")
    print(
        f"              executed: {noticed.executed}; {', '.join(codes) or 'ignored'}", flush=True
    )


async def tell(host: Process) -> None:
    """Print what became of a host's deliveries."""
    print(f"{host.label:<11} {(await host.answer())['ledger']}", flush=True)


def judge(paid: list[str], executed: list[str], log: Path) -> int:
    """Say whether all was as it should be; return the exit code."""
    seen = log.read_bytes()
    readable = team.SECRET.encode() in seen or b"amount" in seen
    print(f"broker      carried {len(seen)} bytes; the memo is {'' if readable else 'not '}in them")
    if sorted(paid) == sorted(executed) and not readable:
        print(f"{len(paid)} transfers, each executed exactly once; the attacker's: none")
        return 0
    print(f"NOT AS IT SHOULD BE: {len(paid)} paid, {len(executed)} executed, readable: {readable}")
    return 1


@contextlib.contextmanager
def kept(folder: Path | None) -> Iterator[Path]:
    """Make the folder for keys and logs; without a name it is gone at the end."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="praval-secure-") as name:
            yield Path(name)
    else:
        folder.mkdir(mode=0o700, parents=True)
        yield folder


def main() -> int:
    """Return the exit code: 0 if nothing came of the attacks, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    default = os.environ.get("PRAVAL_TRANSPORT")
    parser.add_argument(
        "transport", nargs="?", default=default, help="URL of the broker; default: PRAVAL_TRANSPORT"
    )
    parser.add_argument("--folder", type=Path, help="keep keys and logs there; it must be new")
    options = parser.parse_args()
    if not options.transport:
        parser.error("which broker? Its URL is the one argument; README.md says how to get one")
    if options.transport.startswith("local:"):
        parser.error("the processes need a broker between them; a local bus does not leave its own")
    try:
        with kept(options.folder) as folder:
            return asyncio.run(run(options.transport, folder))
    except (PravalError, ProcessError, OSError) as error:
        print(f"secure_deployment: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
