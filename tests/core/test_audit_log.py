"""The audit log: what was written cannot be changed unnoticed, nor read without the key."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from praval.core import audit_log
from praval.core.audit_chain import AuditKeys, Verifier
from praval.core.audit_log import AuditLog, files_of
from praval.core.auditor import Auditor
from praval.core.key_box import CHEAP
from praval.core.key_store import KeyStore
from praval.core.keys import Keyring
from praval.errors import AuditError, KeyringError
from praval.secure_settings import AuditSettings
from praval.settings import Settings

SECRET = bytes(range(32))
KEYS = AuditKeys(SECRET)
DAY = 86_400.0


def wait_for(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"never happened: {what}")
        time.sleep(0.005)


def write(folder: Path, number: int, first: int = 0, **options: Any) -> None:
    """Write so many records and close."""
    log = AuditLog.open(folder, SECRET, **options)
    for n in range(first, first + number):
        log.record("test", number=n)
    log.close()


def check(folder: Path, key: AuditKeys | None = KEYS) -> Verifier:
    verifier = Verifier(None if key is None else key.verify_key)
    files = files_of(folder)
    for file in files:
        for _ in verifier.read(file.read_bytes(), is_last=file == files[-1]):
            pass
    return verifier


def records(folder: Path, keys: AuditKeys | None = KEYS) -> list[Any]:
    found, verifier = [], Verifier(KEYS.verify_key)
    for file in files_of(folder):
        for _, line in verifier.read(file.read_bytes(), is_last=True):
            if line.kind != b"c":
                record = line.record(keys)
                found.append(None if record is None else record.get("number", record["event"]))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def log_file(folder: Path) -> Path:
    """A log of twelve records."""
    write(folder, 12)
    return files_of(folder)[0]


def test_what_was_written_is_there_in_order_and_signed(folder: Path) -> None:
    """Over restarts, and from many threads."""
    write(folder, 5)
    write(folder, 5, first=5)
    assert records(folder) == ["opened", *range(5), "opened", *range(5, 10)]
    found = check(folder)
    assert found.lines == found.signed + 1, "the last line is a checkpoint"
    log = AuditLog.open(folder, SECRET)
    threads = [threading.Thread(target=log.record, args=("many",)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert records(folder).count("many") == 20
    assert check(folder).torn == 0
    assert os.stat(files_of(folder)[0]).st_mode & 0o077 == 0


def test_every_byte_that_is_changed_is_noticed(log_file: Path) -> None:
    """Each bit of each byte: hashes, records, checkpoints, signatures, ends of lines."""
    data = log_file.read_bytes()
    chance = random.Random(3)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << chance.randrange(8)
        log_file.write_bytes(changed)
        if position == len(data) - 1:  # the last end of line: half a line, which is told
            assert check(log_file.parent).torn
        else:
            with pytest.raises(AuditError, match="line"):
                check(log_file.parent)


def test_lines_that_are_gone_doubled_moved_or_foreign_are_noticed(
    log_file: Path, tmp_path: Path
) -> None:
    """Whatever whole lines somebody leaves out, repeats, exchanges, or brings from another log."""
    lines = log_file.read_bytes().splitlines(keepends=True)
    write(tmp_path / "other", 12)
    other = files_of(tmp_path / "other")[0].read_bytes().splitlines(keepends=True)
    forged = []
    for n in range(len(lines) - 1):
        forged += [
            lines[:n] + lines[n + 1 :],
            lines[: n + 1] + lines[n:],
            [*lines[:n], lines[n + 1], lines[n], *lines[n + 2 :]],
            lines[: n + 1] + other[n + 1 :],
        ]
    for each in forged:
        log_file.write_bytes(b"".join(each))
        with pytest.raises(AuditError):
            check(log_file.parent)


def test_a_chain_that_was_made_anew_lacks_the_signature(folder: Path, log_file: Path) -> None:
    """Hashes anybody can compute; without the key one can only look whether they fit."""
    log_file.unlink()
    log = AuditLog.open(folder, bytes(32))
    log.record("nothing happened")
    log.close()
    assert check(folder, None).lines
    with pytest.raises(AuditError, match="signature is wrong"):
        check(folder)


def test_a_log_that_was_cut_is_found_by_who_has_seen_more(folder: Path, log_file: Path) -> None:
    """At an older checkpoint a cut leaves a good log: a later checkpoint, kept elsewhere, tells."""
    seen = check(folder)
    lines = log_file.read_bytes().splitlines(keepends=True)
    cut = next(n for n, line in enumerate(lines) if n > 1 and line[65:66] == b"c") + 1
    log_file.write_bytes(b"".join(lines[:cut]))
    assert seen.signed not in check(folder).checkpoints
    log_file.write_bytes(b"".join(lines[: cut + 3]))
    assert check(folder).signed < seen.signed, "what is not signed shows as such"


def test_half_a_line_is_no_tampering_and_the_log_goes_on(folder: Path, log_file: Path) -> None:
    """A process that dies while it writes leaves one; it is told, and what was whole is kept."""
    data = log_file.read_bytes()
    for cut in range(1, 100):
        log_file.write_bytes(data[:-cut])
        assert check(folder).torn >= 0
    log_file.write_bytes(data[:-10])
    torn = check(folder).torn
    assert torn
    write(folder, 1, first=99)
    assert records(folder) == ["opened", *range(12), "torn", "opened", 99]
    assert check(folder).torn == 0


def test_a_killed_process_leaves_a_log_that_is_good_to_its_end(folder: Path) -> None:
    """kill -9 in the middle of writing, five times, in one log."""
    script = (
        "import sys; from praval.core.audit_log import AuditLog\n"
        f"log = AuditLog.open(sys.argv[1], bytes.fromhex({SECRET.hex()!r}))\n"
        "n = 0\n"
        "while True:\n"
        "    log.record('test', number=n); n += 1\n"
        "    if n % 500 == 0: print(n, flush=True)\n"
    )
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.communicate()
        check(folder)
    write(folder, 1)
    found = records(folder)
    assert found.count("opened") == 6
    numbers = [each for each in found if isinstance(each, int)]
    assert all(b in (a + 1, 0) for a, b in itertools.pairwise(numbers))


def test_an_encrypted_log_is_read_with_its_key_only(folder: Path) -> None:
    """But anybody can check the chain, and who has the public key the signatures."""
    log = AuditLog.open(folder, SECRET, encrypted=True)
    log.record("refused", sender="canary-name", number=7)
    log.close()
    assert b"canary-name" not in files_of(folder)[0].read_bytes()
    assert records(folder, None) == [None, None]
    assert records(folder) == ["opened", 7]
    with pytest.raises(AuditError, match="another log"):
        records(folder, AuditKeys(bytes(32)))


def test_each_day_has_a_file_and_the_oldest_are_forgotten(folder: Path) -> None:
    """The chain goes on from file to file; what is missing at the beginning is told."""
    now = [1_800_000_000.0]
    for day in range(5):
        write(folder, 2, first=day * 2, clock=lambda: now[0], retention_days=3)
        now[0] += DAY
    assert len(files_of(folder)) == 4
    found = check(folder)
    assert found.first == 7, "the first day: two checkpoints more than records"
    assert records(folder)[-1] == 9
    for gone in files_of(folder)[1:-1]:
        data = gone.read_bytes()
        gone.unlink()
        with pytest.raises(AuditError, match="lines are missing"):
            check(folder)
        gone.write_bytes(data)
    now[0] -= 3 * DAY
    write(folder, 1, first=100, clock=lambda: now[0], retention_days=3)
    assert records(folder)[-1] == 100, "a clock that goes back writes into the latest file"
    check(folder)


@pytest.mark.parametrize("left", [b"", b"0123"])
def test_a_process_that_dies_while_a_day_begins_leaves_a_good_log(
    folder: Path, log_file: Path, left: bytes
) -> None:
    """The new file has no line yet, or half a checkpoint: the chain goes on from the day before."""
    log_file.rename(log_file.with_name("2000-01-01.log"))
    begun = log_file.with_name("2000-01-02.log")
    begun.write_bytes(left)
    begun.chmod(0o600)
    assert check(folder).torn == len(left)
    write(folder, 1, first=99, retention_days=36_500)
    torn = ["torn"] if left else []
    assert records(folder) == ["opened", *range(12), *torn, "opened", 99]
    assert len(files_of(folder)) == 3
    assert check(folder).first == 0


def test_a_log_whose_first_line_was_never_written_begins_again(folder: Path) -> None:
    """Its process died after it had made the file."""
    now = 1_800_000_000.0
    folder.mkdir(mode=0o700)
    (folder / f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d}.log").touch(mode=0o600)
    write(folder, 1, clock=lambda: now)
    assert records(folder) == ["opened", 0]
    check(folder)


@pytest.mark.parametrize("refused", ["pwrite", "open"])
def test_a_disk_that_refuses_the_file_of_a_new_day_is_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    """Whether there is no room for the file or none for its first line."""
    monkeypatch.setattr(audit_log, "AGAIN", 0.01)
    now, failures, real = [1_800_000_000.0], [3], getattr(os, refused)
    log = AuditLog.open(folder, SECRET, clock=lambda: now[0])
    today = f"{datetime.fromtimestamp(now[0] + DAY, UTC):%Y-%m-%d}"

    def full(what: Any, *arguments: Any) -> int:
        is_new = (folder / f"{today}.log").exists() or today in str(what)
        if is_new and failures[0]:
            failures[0] -= 1
            raise OSError(28, "No space left on device")
        return int(real(what, *arguments))

    monkeypatch.setattr(os, refused, full)
    now[0] += DAY
    log.record("test", number=1)
    wait_for(lambda: not failures[0], "it was tried again")
    log.close()
    assert records(folder) == ["opened", 1]
    assert len(files_of(folder)) == 2
    check(folder)
    assert "No space left" in caplog.text


def test_a_log_that_cannot_be_continued_says_what_to_do(log_file: Path) -> None:
    """Nothing is written behind what is no log."""
    log_file.write_bytes(b"something else\n")
    with pytest.raises(AuditError, match=r"cannot be continued.*move the folder away"):
        AuditLog.open(log_file.parent, SECRET)
    assert log_file.read_bytes() == b"something else\n"


def test_what_comes_after_the_end_is_counted(folder: Path) -> None:
    """From many threads while it closes: each record is in the log or in the count."""
    log, total = AuditLog.open(folder, SECRET), 8 * 2000

    def write_many() -> None:
        for n in range(2000):
            log.record("test", number=n)

    threads = [threading.Thread(target=write_many) for _ in range(8)]
    for thread in threads:
        thread.start()
    log.close()
    for thread in threads:
        thread.join()
    assert len(records(folder)) - 1 + log.dropped == total


async def test_a_start_that_is_cancelled_leaves_the_log_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread is opening it when its Reef gives up."""
    settings = Settings(audit=AuditSettings(enabled=True, log_path=str(tmp_path)))
    gate, begun, opened = threading.Event(), threading.Event(), AuditLog.open

    def slow(*arguments: Any, **options: Any) -> AuditLog:
        begun.set()
        gate.wait(10)
        return opened(*arguments, **options)

    monkeypatch.setattr(AuditLog, "open", slow)
    starting = asyncio.create_task(Auditor.open(settings, "desk", SECRET))
    await asyncio.to_thread(begun.wait, 10)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    gate.set()
    deadline = time.monotonic() + 10
    while True:
        await asyncio.sleep(0.01)
        await asyncio.to_thread(wait_for, lambda: files_of(tmp_path / "desk"), "opened")
        try:
            auditor = await Auditor.open(settings, "desk", SECRET)
            break
        except AuditError:
            assert time.monotonic() < deadline, "it was never given back"
    await auditor.aclose()
    assert await asyncio.to_thread(records, tmp_path / "desk") == ["opened", "opened"]


def test_a_log_has_one_writer(folder: Path) -> None:
    """Two chains in one file would be none."""
    log = AuditLog.open(folder, SECRET)
    with pytest.raises(AuditError, match=r"Another process.*audit\.log_path"):
        AuditLog.open(folder, SECRET)
    log.close()
    write(folder, 1)


def test_a_folder_that_is_open_to_others_is_refused(folder: Path) -> None:
    """Names and times are nobody else's."""
    folder.mkdir(mode=0o755)
    with pytest.raises(KeyringError, match="chmod 700"):
        AuditLog.open(folder, SECRET)


def test_what_finds_no_room_is_counted_and_the_count_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is too slow costs records, never the loop; and not in silence."""
    monkeypatch.setattr(audit_log, "MOST_WAITING", 5)
    gate, pwrite = threading.Event(), os.pwrite

    def slow(*arguments: Any) -> int:
        gate.wait(10)
        return pwrite(*arguments)

    log = AuditLog.open(folder, SECRET)
    monkeypatch.setattr(os, "pwrite", slow)
    for n in range(50):
        log.record("test", number=n)
    assert log.dropped > 30
    gate.set()
    wait_for(lambda: log._queue.qsize() == 0, "the rest was written")
    log.record("after")
    log.close()
    assert "dropped" in records(folder)
    assert records(folder)[-1] in ("after", "dropped")


def test_a_disk_that_refuses_is_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of a batch may be on it by then: it is taken back, and nothing is there twice."""
    monkeypatch.setattr(audit_log, "AGAIN", 0.01)
    log = AuditLog.open(folder, SECRET)
    failures, pwrite = [3], os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if failures[0]:
            failures[0] -= 1
            pwrite(descriptor, data[: len(data) // 2], offset)
            raise OSError(28, "No space left on device")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    for n in range(10):
        log.record("test", number=n)
    wait_for(lambda: not failures[0], "it was tried again")
    log.close()
    assert records(folder) == ["opened", *range(10)]
    assert check(folder).torn == 0
    assert "No space left" in caplog.text


# -- the command -----------------------------------------------------------------------------


def audit(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "praval.cli", "audit", *map(str, arguments)],
        env={**os.environ, "PRAVAL_KEYS_PASSPHRASE": "secret"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_command_verifies_and_shows(tmp_path: Path, folder: Path) -> None:
    """With the keys, with the public key alone, and after somebody was at it."""
    keyring = Keyring()
    KeyStore.create(tmp_path / "keys", keyring, "secret", cost=CHEAP).close()
    log = AuditLog.open(folder, keyring.audit_key, encrypted=True)
    log.record("refused", sender="mallory")
    log.close()
    good = audit("verify", folder, "--keys", tmp_path / "keys")
    assert good.returncode == 0, good.stderr
    assert "5 lines, each as it was written" in good.stdout
    seen = re.findall(r"last checkpoint: (\d+:[0-9a-f]{64})", good.stdout)[0]
    key = bytes(AuditKeys(keyring.audit_key).verify_key).hex()
    assert audit("verify", folder, "--key", key, "--seen", seen).returncode == 0
    assert "signatures were not checked" in audit("verify", folder).stdout
    shown = audit("show", folder, "--keys", tmp_path / "keys", "--event", "refused")
    assert '"sender":"mallory"' in shown.stdout
    assert len(shown.stdout.splitlines()) == 1
    assert "2 records are encrypted" in audit("show", folder).stderr
    missing = audit("verify", folder, "--key", key, "--seen", f"99:{'0' * 64}")
    assert (missing.returncode, missing.stderr[:22]) == (1, "NOT AS IT WAS WRITTEN:")
    file = files_of(folder)[0]
    file.write_bytes(file.read_bytes().replace(b" e", b" f", 1))
    bad = audit("verify", folder, "--key", key)
    assert bad.returncode == 1
    assert f"{file.name}, line 2:" in bad.stderr
    file.write_bytes(b"")
    emptied = audit("verify", folder, "--key", key)
    assert emptied.returncode == 1
    assert "there is no line" in emptied.stderr


@pytest.mark.parametrize(
    "arguments", [("verify", "none"), ("verify", "none", "--key", "xyz"), ("show", "none")]
)
def test_the_command_says_what_it_cannot_use(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """No folder, or no key."""
    done = audit(*arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr
