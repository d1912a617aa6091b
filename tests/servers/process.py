"""A private server as a process: its folder, its ports, its start, its end."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Self
from urllib.parse import quote

import psutil

from praval.certs import Issued
from tests.servers.machine import (
    UNPRIVILEGED,
    ServerError,
    alive,
    bound_to_parent,
    check_reachable,
    free_port,
    identity,
)
from tests.servers.pki import PKI, STORE_PASSWORD, shared_pki

ROOT = Path(__file__).resolve().parents[2]

START_TIMEOUT = 60.0
STOP_TIMEOUT = 15.0
PROBE_EVERY = 0.02
PROBE_TIMEOUT = 5.0

_starter = ThreadPoolExecutor(1, thread_name_prefix="server-starter")
"""The thread that starts every server. The kernel kills a server when the *thread* that started
it ends (pdeathsig), so this one lives as long as the process."""


def _load_configuration() -> ModuleType:
    spec = spec_from_file_location("praval_docker_configure", ROOT / "docker" / "configure.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


configuration = _load_configuration()
"""docker/configure.py: the tests' servers get the configuration that the containers get."""


class Server(ABC):
    """One private server on loopback ports, with TLS; subclasses say how it is started.

    It keeps its ports, its user and its data over stop, kill and start. Without a folder it
    makes one of its own; `close()`, or leaving the `with` block, stops it and deletes that. With
    `durable=True` what it confirmed survives `kill()` as far as this server can promise that.
    """

    kind: ClassVar[str]
    """The folder of its configuration under docker/."""
    scheme: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    host = "localhost"
    user = "praval"

    def __init__(
        self, folder: Path | None = None, *, durable: bool = False, pki: PKI | None = None
    ) -> None:
        self.pki = pki or shared_pki()
        self.durable = durable
        self.password = secrets.token_hex(12)
        self._own_folder = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix=f"praval-{self.kind}-"))
        self.etc_dir = self.folder / "etc"
        self.data_dir = self.folder / "data"
        self.log_file = self.folder / "log.txt"
        self.port = free_port()
        self.mutual_user = self.pki.client.name
        self._process: subprocess.Popen[bytes] | None = None
        self._prepared = False

    # -- what a subclass says ----------------------------------------------------------------

    @abstractmethod
    def values(self) -> Mapping[str, str]:
        """Return the values of the placeholders that only this server's templates have."""

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line that runs it in the foreground."""

    @abstractmethod
    def login(
        self, port: int | None = None, *, password: str | None = None, client: Issued | None = None
    ) -> None:
        """Log in over verified TLS, as its own user unless told otherwise, and leave.

        Raises `OSError`: `ssl.SSLError` or `ConnectionError` when it is refused.
        """

    def environment(self) -> Mapping[str, str]:
        return {}

    def prepare(self) -> None:  # noqa: B027  (most have nothing to do)
        """Do what has to be done once, before the first start."""

    # -- start and end -----------------------------------------------------------------------

    @property
    def url(self) -> str:
        return self.url_for(self.port)

    def url_for(self, port: int) -> str:
        """Return the URL of this server at another port, such as that of a front."""
        return f"{self.scheme}://{quote(self.user)}:{quote(self.password)}@{self.host}:{port}/"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and return when it answers; raise `ServerError` with its log otherwise."""
        if self.running:
            raise ServerError(f"{self.kind} is running already.")
        self.kill()  # if it has died by itself, there may be children
        if not self._prepared:
            self._make_folders()
            self.prepare()
            self._prepared = True
        self._process = _starter.submit(self._spawn).result()
        deadline = time.monotonic() + START_TIMEOUT
        try:
            self._wait_until_ready(deadline)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it as its operator would, and whatever it has left behind; idempotent."""
        if self._process is None:
            return
        family = self._family()
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(self.stop_signal)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT)
        self._end(family)

    def kill(self) -> None:
        """Kill it with SIGKILL, and whatever it has left behind; idempotent."""
        if self._process is not None:
            self._end(self._family())

    def pause(self) -> None:
        """Freeze the process (SIGSTOP): connections stay open and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def unpause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop it; if the folder is its own, at once, and delete that."""
        if self._own_folder:
            self.kill()
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self.stop()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def log_text(self) -> str:
        """Return everything that it has written to its log so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    # -- connections -------------------------------------------------------------------------

    def connect(self, port: int | None = None, *, client: Issued | None = None) -> ssl.SSLSocket:
        """Open a verified TLS connection to it."""
        raw = socket.create_connection((self.host, port or self.port), PROBE_TIMEOUT)
        try:
            return self.pki.client_context(client).wrap_socket(raw, server_hostname=self.host)
        except BaseException:
            raw.close()
            raise

    # -- inside ------------------------------------------------------------------------------

    def _make_folders(self) -> None:
        for folder in (self.folder, self.etc_dir, self.data_dir, self.folder / "tmp"):
            folder.mkdir(parents=True, exist_ok=True)
        certificates = {
            "ca.pem": self.pki.ca,
            "crl.pem": self.pki.crl,
            "server.pem": self.pki.server.cert,
            "server-key.pem": self.pki.server.key,
            "keystore.p12": self.pki.keystore,
            "truststore.p12": self.pki.truststore,
        }
        configuration.install(certificates, self.etc_dir)
        common = {
            "ADDRESS": "127.0.0.1",
            "PORT": str(self.port),
            "ETC": str(self.etc_dir),
            "DATA": str(self.data_dir),
            "USER": self.user,
            "PASSWORD": self.password,
            "CERTIFICATE_USER": self.mutual_user,
            "STORE_PASSWORD": STORE_PASSWORD,
        }
        configuration.render(self.kind, self.etc_dir, {**common, **self.values()})
        (self.etc_dir / "server-key.pem").chmod(0o600)
        self.own()

    def own(self) -> None:
        """Give all of the folder to the user that the server runs as."""
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.rglob("*")):
                shutil.chown(path, UNPRIVILEGED, -1)
            check_reachable(self.folder)

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                [*bound_to_parent(), *self.command()],
                cwd=self.folder,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "HOME": str(self.folder),
                    "TMPDIR": str(self.folder / "tmp"),
                    "LANG": "C.UTF-8",
                    **self.environment(),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **identity(),
            )

    def _wait_until_ready(self, deadline: float) -> None:
        while True:
            try:
                return self.login()
            except OSError as error:
                problem = error
            if not self.running:
                code = self._process.returncode if self._process else None
                raise ServerError(f"{self.kind} ended with code {code}:\n{self.log_text()[-4000:]}")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"{self.kind} did not answer within {START_TIMEOUT:g} s ({problem}):\n"
                    f"{self.log_text()[-4000:]}"
                )
            time.sleep(PROBE_EVERY)

    def _family(self) -> list[psutil.Process]:
        assert self._process is not None
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _end(self, family: Iterable[psutil.Process]) -> None:
        assert self._process is not None
        session = self._process.pid
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process = None
        left = [process for process in family if process.pid != session]
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getsid(process.pid) == session:
                    left.append(process)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        deadline = time.monotonic() + STOP_TIMEOUT
        while any(map(alive, left)) and time.monotonic() < deadline:
            time.sleep(PROBE_EVERY)


def start_all(servers: Iterable[Server]) -> None:
    """Start several servers at the same time; if one fails, stop the others and raise."""
    servers = list(servers)
    with ThreadPoolExecutor(max(1, len(servers))) as pool:
        starting = [pool.submit(server.start) for server in servers]
    errors = [error for future in starting if (error := future.exception())]
    if errors:
        for server in servers:
            server.kill()
        raise errors[0]
