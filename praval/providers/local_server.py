"""Processes that serve local models: one per model and set-up, started on first use.

The engine gets a process of its own because, inside ours, loading a model holds the interpreter
lock (no event loop would turn meanwhile) and ending the program during a generation crashes. The
process ends with ours, however ours ends: it waits for the end of its standard input.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from praval.errors import ProviderError

START_TIMEOUT = 300.0
"""Seconds that loading a model may take; a large file from a slow disk takes minutes."""


@dataclass(frozen=True)
class Setup:
    """What to serve, and how; two calls with equal set-ups share one process."""

    model: Path
    context: int
    """Tokens of prompt and answer together, for each request."""
    slots: int
    """Requests that are worked on at once."""
    threads: int | None
    """Threads that compute; None: the engine's choice, one per physical core."""


class LocalServer:
    """A running process that serves one model on a loopback port, to who has its key."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, key: str) -> None:
        self.process = process
        self.url = url
        self.key = key

    def exit_code(self, patience: float = 0) -> int | None:
        """Return None if the process still runs after ``patience`` seconds (blocks meanwhile).

        A negative code is the number of the signal that ended it.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(patience)
        return None

    def __repr__(self) -> str:
        return f"<LocalServer {self.url} pid {self.process.pid}>"


class _Servers:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.started: dict[Setup, Future[LocalServer]] = {}
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.closing = False


_servers = _Servers()


def server(setup: Setup) -> Future[LocalServer]:
    """Return the process that serves ``setup``, as a future, starting it if there is none.

    The future cannot be cancelled: others may wait for the same process. It fails with
    ProviderError if the model cannot be loaded; then the next call tries again.
    """
    with _servers.lock:
        future = _servers.started.get(setup)
        if future is None or _is_over(future):
            future = Future()
            future.set_running_or_notify_cancel()
            threading.Thread(
                target=_start, args=(setup, future), name="praval-local-start", daemon=True
            ).start()
            _servers.started[setup] = future
        return future


def stop_all() -> None:
    """End all processes; called when the program ends."""
    with _servers.lock:
        _servers.started.clear()
        processes, _servers.processes = _servers.processes, set()
    for process in processes:
        _stop(process)


def _is_over(future: Future[LocalServer]) -> bool:
    return future.done() and future.result().exit_code() is not None


def _start(setup: Setup, future: Future[LocalServer]) -> None:
    try:
        future.set_result(_launch(setup))
    except BaseException as error:  # noqa: BLE001 - carried to those who wait, whatever it is
        with _servers.lock:
            _servers.started.pop(setup, None)
        future.set_exception(error)


def _launch(setup: Setup) -> LocalServer:
    key = secrets.token_urlsafe(32)
    config = {
        "path": [str(Path(entry).absolute()) for entry in sys.path],
        "model": str(setup.model),
        "context": setup.context,
        "slots": setup.slots,
        "threads": setup.threads or _allowed_threads(),
        "key": key,
    }
    with tempfile.TemporaryFile() as log:
        process = _spawn(log)
        watchdog = threading.Timer(START_TIMEOUT, process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            answer = _exchange(process, config)
            if "url" in answer:
                return LocalServer(process, answer["url"], key)
            _stop(process)
        except BaseException:
            _stop(process)
            raise
        finally:
            watchdog.cancel()
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines()[-3:]
    reason = answer.get("error", "its process ended")
    raise ProviderError(
        f"The local model {setup.model} could not be loaded: {reason} {' / '.join(said)} "
        "Is it a whole GGUF file, and is there memory enough for it?"
    )


def _spawn(log: IO[bytes]) -> subprocess.Popen[bytes]:
    worker = Path(__file__).with_name("local_worker.py")
    with _servers.lock:
        if _servers.closing:
            raise ProviderError("The program ends: no local model is started any more.")
        process = subprocess.Popen(
            [sys.executable, "-I", str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # threads that wait for one another sleep: spinning, as is the default, makes answers
            # ten times slower as soon as anything else wants the cores
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
            start_new_session=True,  # Ctrl-C is for the program, which then ends this one
        )
        _servers.processes.add(process)
        return process


def _exchange(process: subprocess.Popen[bytes], config: dict[str, object]) -> dict[str, str]:
    """Send the one line and read the other; an empty answer means that the process ended."""
    assert process.stdin is not None  # both are pipes, see _spawn
    assert process.stdout is not None
    with process.stdout as stdout, contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(config).encode() + b"\n")
        process.stdin.flush()
        line = stdout.readline()
        if line:
            answer: dict[str, str] = json.loads(line)
            return answer
    return {}


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # it has nothing to save
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    process.wait()
    with _servers.lock:
        _servers.processes.discard(process)


def _allowed_threads() -> int | None:
    """Return how many cores this process may use, if that is fewer than the machine has."""
    total = os.cpu_count() or 1
    allowed = total
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        # a container's share of time: threads beyond it wait for one another, spinning
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed if allowed < total else None


def _at_exit() -> None:
    with _servers.lock:
        _servers.closing = True
    stop_all()


def _forget_after_fork() -> None:
    # the processes belong to the parent; a child that kept its end of a pipe would keep them alive
    global _servers
    parents, _servers = _servers, _Servers()
    for process in parents.processes:
        process.returncode = 0
        if process.stdin is not None:
            process.stdin.close()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
