"""What holds for every test: nothing leaks in, nothing is left behind, nothing blocks a loop."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import blockbuster.blockbuster as detector
import hypothesis
import pytest

from praval.core import default
from praval.core.registry import get_registry
from praval.settings import ENVIRONMENT, reset_settings
from praval.sync import background_loop, has_background_loop, run_on

pytest_plugins = ["tests.servers.plugin"]

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

THREADS = ("praval-worker", "praval-journal", "praval-replay")
PATIENCE = 2.0
"""Real seconds that a thread which was told to end may take for it."""


# -- loops -----------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    # the same examples each run: a failure can be repeated, and CI does not fail by chance
    hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
    hypothesis.settings.load_profile("repeatable")
    config.addinivalue_line(
        "markers",
        "every_loop: run this async test on asyncio's loop, on uvloop, and with eager tasks",
    )


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory]:
    """Give an async test asyncio's loop; one that is marked ``every_loop``, each there is."""
    factories: dict[str, LoopFactory] = {"asyncio": asyncio.new_event_loop}
    if item.get_closest_marker("every_loop") is not None:
        if sys.platform != "win32":
            import uvloop

            factories["uvloop"] = uvloop.new_event_loop
        if sys.version_info >= (3, 12):
            factories["eager"] = _eager_loop
    return factories


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    return loop


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make what a test has logged fit for the way from a worker process to the others."""
    report = yield
    report.sections = [
        (title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections
    ]
    return report


# -- blocking calls --------------------------------------------------------------------------


class BlockingCalls:
    """Blocking calls that Praval, or a handler it called, made on a running loop."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def add(self, call: str) -> None:
        """Note a call, with who made it."""
        stack = "".join(traceback.format_stack(sys._getframe(3), limit=12))
        self._found.append(f"{call}\n{stack}")

    def forgive(self) -> list[str]:
        """Forget those so far and return them: the test has provoked them."""
        found, self._found = self._found, []
        return found


@pytest.fixture(scope="session")
def _detector() -> Iterator[BlockingCalls]:
    """Let blocking calls on a loop raise where they are made, for the whole run.

    A Reef counts that exception as a handler's failure, so the calls are noted as well.
    """
    calls = BlockingCalls()

    class Noted(detector.BlockingError):
        def __init__(self, func: str) -> None:
            super().__init__(func)
            calls.add(str(self))

    # only what has Praval in its stack: a test may read the files it checks
    guard = detector.BlockBuster(["praval", "praval_transports"])
    for name, places in ALLOWED.items():
        for file, functions in places:
            guard.functions[name].can_block_in(file, functions)
    original, detector.BlockingError = detector.BlockingError, Noted  # type: ignore[misc]
    guard.activate()
    yield calls
    guard.deactivate()
    detector.BlockingError = original  # type: ignore[misc]


ALLOWED: Mapping[str, list[tuple[str, set[str]]]] = {
    # the settings read .env once, when the first Reef of the process is made
    "os.stat": [("praval/settings.py", {"_dotenv"})],
    "io.TextIOWrapper.read": [("praval/settings.py", {"_dotenv"})],
    # where a log record goes is the application's choice; here it is pytest's /dev/null
    "io.TextIOWrapper.write": [("logging/__init__.py", {"emit"})],
    "io.BufferedWriter.write": [("logging/__init__.py", {"flush"})],
}


@pytest.fixture(autouse=True)
def blocking_calls(_detector: BlockingCalls) -> Iterator[BlockingCalls]:
    """Fail the test if something blocked a loop; ``forgive()`` what is meant to."""
    _detector.forgive()
    yield _detector
    if found := _detector.forgive():
        pytest.fail("Blocked the event loop:\n\n" + "\n".join(found), pytrace=False)


# -- isolation -------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start each test in an empty folder, without settings, agents, keys of the developer's."""
    for variable in os.environ:
        if variable.startswith("PRAVAL_") or variable.endswith("_API_KEY"):
            monkeypatch.delenv(variable)
    for variable in ENVIRONMENT:
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("PRAVAL_DATA_DIR", str(tmp_path / "home" / "praval"))
    monkeypatch.chdir(tmp_path)
    reset_settings()
    yield
    reset_settings()
    get_registry().clear()


@pytest.fixture(autouse=True)
def _nothing_left(_isolated: None) -> Iterator[None]:
    """Close the default Reef of plain scripts; fail if a Reef or a thread outlives the test."""
    before = set(threading.enumerate())
    yield
    if has_background_loop():
        run_on(background_loop(), _close_default())
    left = [repr(entry.reef) for entry in default._defaults.values()]
    deadline = time.monotonic() + PATIENCE
    for thread in threading.enumerate():
        if thread not in before and thread.name in THREADS:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                left.append(f"thread {thread.name}")
    if left:
        pytest.fail(f"Left behind: {', '.join(left)}", pytrace=False)


async def _close_default() -> None:
    entry = default._defaults.get(asyncio.get_running_loop())
    if entry is not None and entry.lifetime is not None:
        await entry.lifetime.aclose()
