"""What a user gets from the wheel, and what ``import praval`` costs them."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import zipfile
from collections import defaultdict
from configparser import ConfigParser
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Packages that serve one extra each, and the parts of the standard library that open a database.
LAZY = {
    "aio_pika",
    "aioboto3",
    "aiomqtt",
    "asyncpg",
    "cryptography",
    "httpx",
    "nacl",
    "opentelemetry",
    "qdrant_client",
    "redis",
    "rich",
    "sqlite3",
    "stomp",
    "typer",
    "wordllama",
    "xllamacpp",
}

# Runs in a fresh interpreter. An event loop opens a socket pair, so it is seen as sockets; the
# start of a thread raises an audit event only from Python 3.12 on.
IMPORT_PROBE = """
import json, sys, threading
events = []
start = threading.Thread.start
def noted(thread):
    events.append(f"threading.{thread.name}")
    start(thread)
threading.Thread.start = noted
sys.addaudithook(lambda event, _: events.append(event))
import praval
seen = [e for e in events if e.startswith(("_thread.start", "threading.", "socket.", "sqlite3."))]
print(json.dumps({"file": praval.__file__, "modules": sorted(sys.modules), "events": seen}))
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as an installer would, without the network."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(target), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = target.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the wheel as an installer would."""
    target = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.fixture(scope="session")
def metadata(unpacked: Path) -> Message:
    """Read the metadata that the wheel declares."""
    (path,) = unpacked.glob("*.dist-info/METADATA")
    return email.message_from_string(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def imported(unpacked: Path) -> dict[str, Any]:
    """Import praval from the wheel in a fresh interpreter and report what that did."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_PROBE],
        cwd=unpacked,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    report: dict[str, Any] = json.loads(run.stdout)
    assert Path(report["file"]).is_relative_to(unpacked)
    return report


def files(package: Path) -> set[str]:
    """List the files of a package, without what the interpreter left there."""
    found = (path.relative_to(package) for path in package.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def test_wheel_installs_exactly_the_two_packages(unpacked: Path, metadata: Message) -> None:
    """Nothing but praval, praval_transports and the metadata lands in site-packages."""
    names = {path.name for path in unpacked.iterdir()}
    dist_info = f"praval_asyncio-{metadata['Version']}.dist-info"
    assert names == {"praval", "praval_transports", dist_info}


def test_wheel_holds_every_file_of_both_packages(unpacked: Path) -> None:
    """A module or a style sheet that is in the tree is in the wheel, and the other way round."""
    for package in (ROOT / "praval", ROOT / "transports" / "praval_transports"):
        assert files(unpacked / package.name) == files(package)


def test_wheel_announces_its_types(unpacked: Path) -> None:
    """Type checkers read the annotations of both packages."""
    assert (unpacked / "praval" / "py.typed").is_file()
    assert (unpacked / "praval_transports" / "py.typed").is_file()


def test_wheel_declares_one_command_and_no_plugins_of_its_own(unpacked: Path) -> None:
    """The console script is praval, and the plug-in groups are left to third parties."""
    (path,) = unpacked.glob("*.dist-info/entry_points.txt")
    declared = ConfigParser()
    declared.read_string(path.read_text(encoding="utf-8"))
    assert declared.sections() == ["console_scripts"]
    assert dict(declared["console_scripts"]) == {"praval": "praval.cli:main"}


def test_core_needs_three_small_libraries(metadata: Message) -> None:
    """Without an extra, only anyio, msgspec and python-dotenv are installed."""
    required = [str(value) for value in metadata.get_all("Requires-Dist", [])]
    core = {re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line}
    assert core == {"anyio", "msgspec", "python-dotenv"}


def test_all_is_every_extra_of_the_runtime(metadata: Message) -> None:
    """The extra `all` brings what each other one brings, the developers' two excepted."""
    by_extra = defaultdict[str, set[str]](set)
    for line in metadata.get_all("Requires-Dist", []):
        if extra := re.search(r"extra == [\"'](\w+)[\"']", str(line)):
            by_extra[extra[1]].add(str(line).partition(";")[0].strip())
    everything = by_extra.pop("all")
    runtime = [needed for extra, needed in by_extra.items() if extra not in {"bench", "dev"}]
    assert len(runtime) >= 11
    assert everything == set[str]().union(*runtime)


def test_import_loads_nothing_that_an_extra_or_a_database_needs(imported: dict[str, Any]) -> None:
    """A plain `import praval` leaves every optional package and sqlite3 alone."""
    assert {name.partition(".")[0] for name in imported["modules"]} & LAZY == set()


def test_import_starts_no_thread_loop_or_socket(imported: dict[str, Any]) -> None:
    """A plain `import praval` acts on nothing outside its own modules."""
    assert imported["events"] == []
