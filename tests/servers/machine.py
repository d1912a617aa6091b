"""What a server needs of the machine: a program, a port, a user, and to end with its parent."""

from __future__ import annotations

import os
import random
import shutil
import socket
import threading
from pathlib import Path
from typing import TypedDict

import psutil


class ServerError(Exception):
    """A server could not be started."""


# -- ports -----------------------------------------------------------------------------------

_taken: set[int] = set()
_taken_lock = threading.Lock()


def free_port() -> int:
    """Return a loopback port that is free and was not given out before by this process.

    Below the ephemeral range: a port from it may become the source port of somebody's
    connection while its server is down.
    """
    with _taken_lock:
        while True:
            port = random.randint(15_000, 32_000)
            if port in _taken:
                continue
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            _taken.add(port)
            return port


# -- who runs it -----------------------------------------------------------------------------

UNPRIVILEGED = "nobody"
"""The user of the servers when the tests run as root: several of them refuse root."""


class Identity(TypedDict, total=False):
    """Parameters of `subprocess.Popen`."""

    user: str
    extra_groups: list[str | int]


def identity() -> Identity:
    """Return as whom a server runs: as itself, unless that is root."""
    return {"user": UNPRIVILEGED, "extra_groups": []} if os.geteuid() == 0 else {}


def bound_to_parent() -> list[str]:
    """Return what makes the kernel kill the server when this process dies (Linux)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def check_reachable(folder: Path) -> None:
    for parent in folder.resolve().parents:
        if not parent.stat().st_mode & 0o001:
            raise ServerError(
                f"The user {UNPRIVILEGED!r} cannot enter {parent}, in which {folder} is. Servers "
                "do not run as root: leave the folder out, or name one that others may enter."
            )


def missing(kind: str, what: str) -> str:
    return (
        f"{kind} cannot be started: {what} is missing. Run `sh scripts/install-servers.sh` as "
        "root: it installs (Debian, Ubuntu) rabbitmq-server, mosquitto, activemq, redis-server "
        "and postgresql."
    )


def require(kind: str, path: str | os.PathLike[str]) -> str:
    """Return the path as text if there is such a file; raise `ServerError` otherwise."""
    if not Path(path).exists():
        raise ServerError(missing(kind, os.fspath(path)))
    return os.fspath(path)


def find(kind: str, program: str, *folders: str) -> str:
    """Return the path of a program in the folders, or on PATH."""
    path = os.pathsep.join((*folders, os.environ.get("PATH", os.defpath)))
    found = shutil.which(program, path=path)
    if found is None:
        raise ServerError(missing(kind, f"the program {program}"))
    return found


def alive(process: psutil.Process) -> bool:
    """Tell whether it can still hold a port or a file; a zombie waits for init and holds none."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
