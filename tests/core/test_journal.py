"""The journal: what it promises to remember, and what it does when it cannot."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from praval.core.journal import DeadEntry, Entry, Journal
from praval.core.journal_store import PRUNE_CHUNK, SCHEMA_VERSION
from praval.errors import (
    ConfigurationError,
    JournalError,
    JournalLockedError,
    JournalSchemaError,
)


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[Journal]:
    journal = await Journal.open(path, **options)
    try:
        yield journal
    finally:
        await journal.aclose()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file to be made in a folder with nothing else in it."""
    folder = tmp_path / "journals"
    folder.mkdir()
    return folder / "reef.journal"


def run_sql(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    """Work on the closed file behind the journal's back; what the last statement returned."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        return [db.execute(statement).fetchall() for statement in statements][-1]
    finally:
        db.close()


async def rows(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    return await asyncio.to_thread(run_sql, path, *statements)


async def files(folder: Path) -> dict[str, bytes]:
    """Each file in a folder with its content."""
    return await asyncio.to_thread(lambda: {f.name: f.read_bytes() for f in folder.iterdir()})


def ids(entries: list[Entry]) -> list[str]:
    return [entry.spore_id for entry in entries]


# --------------------------------------------------------------------------- the life of a delivery


async def test_unsettled_deliveries_come_back_in_order_of_acceptance(path: Path) -> None:
    """Order is that of the calls, whatever the ids are, and survives a restart."""
    async with opened(path) as journal:
        for spore_id in ("c", "a", "b"):
            journal.accept(spore_id, spore_id.encode(), ["reader", "linker"])
        await journal.accept("z", b"z", ["linker"])
    async with opened(path) as journal:
        journal.accept("0", b"0", ["reader"])
        assert await journal.unsettled("reader") == [
            Entry("c", "reader", b"c", 0),
            Entry("a", "reader", b"a", 0),
            Entry("b", "reader", b"b", 0),
            Entry("0", "reader", b"0", 0),
        ]
        assert ids(await journal.unsettled("linker")) == ["c", "a", "b", "z"]
        assert await journal.unsettled("nobody") == []


async def test_a_delivery_is_new_once(path: Path) -> None:
    """An agent that has an id, open or settled, is left out; another agent is not."""
    async with opened(path) as journal:
        assert await journal.accept("a", b"1", ["x", "y", "x"]) == ("x", "y")
        await journal.settle("a", "x", "handled")
        assert await journal.accept("a", b"1", ["x", "y", "z"]) == ("z",)
        assert await journal.accept("a", b"1", ["x", "y", "z"]) == ()
    async with opened(path) as journal:
        assert await journal.accept("a", b"1", ["x", "y", "z"]) == ()
        assert ids(await journal.unsettled("z")) == ["a"]


@pytest.mark.every_loop
async def test_one_batch_sees_its_own_changes(path: Path) -> None:
    """Calls queued without awaiting take effect in order, though one transaction writes them."""
    async with opened(path) as journal:
        results: tuple[object, ...] = await asyncio.gather(
            journal.accept("a", b"1", ["x"]),
            journal.begin("a", "x", 1),
            journal.settle("a", "x", "handled", [("b", b"2", ["x"])]),
            journal.accept("a", b"1", ["x"]),
            journal.accept("b", b"2", ["x"]),
            journal.bury("b", "x", "failed", "boom", 0),
        )
        assert list(results) == [("x",), None, None, (), (), 1]
        assert await journal.unsettled("x") == []
        assert [letter.body for letter in await journal.dead()] == [b"2"]


async def test_a_body_is_kept_until_its_last_delivery_is_settled(path: Path) -> None:
    """A spore for many agents is stored once and dropped with the last of them."""
    async with opened(path) as journal:
        await journal.accept("a", b"shared", ["x", "y", "z"])
        await journal.settle("a", "y", "handled")
        await journal.settle("a", "z", "handled")
    assert await rows(path, "SELECT content FROM body") == [(b"shared",)]
    async with opened(path) as journal:
        await journal.accept("b", b"other", ["x", "y"])  # numbered after all that "a" was given
        await journal.settle("a", "x", "handled")
    assert await rows(path, "SELECT content FROM body") == [(b"other",)]


async def test_an_attempt_is_remembered_by_the_next_process(path: Path) -> None:
    """What was begun before a restart is counted after it."""
    async with opened(path) as journal:
        await journal.accept("a", b"1", ["x", "y"])
        await journal.begin("a", "x", 1)
        await journal.begin("a", "x", 2)
    async with opened(path) as journal:
        assert await journal.unsettled("x") == [Entry("a", "x", b"1", 2)]
        assert await journal.unsettled("y") == [Entry("a", "y", b"1", 0)]


@pytest.mark.parametrize("call", ["begin", "settle", "bury"])
@pytest.mark.parametrize("state", ["unknown", "settled", "buried"])
async def test_only_an_open_delivery_can_change(path: Path, call: str, state: str) -> None:
    """Whoever begins or ends a delivery that is not open has a bug, and is told."""
    arguments: dict[str, tuple[Any, ...]] = {
        "begin": ("a", "x", 1),
        "settle": ("a", "x", "handled", [("b", b"2", ["x"])]),
        "bury": ("a", "x", "failed", "", 1),
    }
    async with opened(path) as journal:
        if state != "unknown":
            await journal.accept("a", b"1", ["x"])
        if state == "settled":
            await journal.settle("a", "x", "handled")
        elif state == "buried":
            await journal.bury("a", "x", "failed", "", 1)
        before = await journal.counts()
        with pytest.raises(JournalError, match="'a' to agent 'x' is not open"):
            await getattr(journal, call)(*arguments[call])
        assert await journal.counts() == before
        assert await journal.unsettled("x") == []


async def test_emitted_spores_are_accepted_with_the_settlement(path: Path) -> None:
    """A transactional handler's spores are open once its own delivery is settled."""
    async with opened(path) as journal:
        await journal.accept("a", b"1", ["x"])
        await journal.accept("known", b"0", ["y"])
        await journal.settle(
            "a", "x", "handled", [("b", b"2", ["y", "z"]), ("known", b"0", ["y"]), ("c", b"3", [])]
        )
    async with opened(path) as journal:
        assert await journal.unsettled("x") == []
        assert ids(await journal.unsettled("y")) == ["known", "b"]
        assert await journal.unsettled("z") == [Entry("b", "z", b"2", 0)]
    assert await rows(path, "SELECT content FROM body") == [(b"2",)]
    assert await rows(path, "SELECT content FROM delivery WHERE agent = 'y'") == [(b"0",), (None,)]


async def test_emission_and_settlement_happen_together_or_not_at_all(path: Path) -> None:
    """If one emitted spore cannot be stored, the delivery stays open and no other is stored."""
    async with opened(path) as journal:
        await journal.accept("a", b"1", ["x"])
        with pytest.raises(JournalError, match="UnicodeEncodeError"):
            await journal.settle("a", "x", "handled", [("b", b"2", ["y"]), ("\ud800", b"", ["y"])])
        assert ids(await journal.unsettled("x")) == ["a"]
        assert await journal.unsettled("y") == []
        await journal.settle("a", "x", "handled", [("b", b"2", ["y"])])
        assert ids(await journal.unsettled("y")) == ["b"]


async def test_counts_name_the_outcomes_and_what_is_left(path: Path) -> None:
    """Settled deliveries are counted by outcome over the life of the file."""
    clock = Clock()
    async with opened(path, clock=clock, retention=1) as journal:
        assert await journal.counts() == {"unsettled": 0, "dead": 0}
        await journal.accept("a", b"1", ["v", "w", "x", "y", "z"])
        journal.settle("a", "v", "handled")
        journal.settle("a", "w", "handled")
        journal.settle("a", "x", "filtered")
        journal.bury("a", "y", "expired", "", 0)
        expected = {"handled": 2, "filtered": 1, "expired": 1, "unsettled": 1, "dead": 1}
        assert await journal.counts() == expected
        clock.now += 10
        assert await journal.prune() == 4
    async with opened(path) as journal:
        assert await journal.counts() == expected
        for name in ("unsettled", "dead"):
            with pytest.raises(JournalError, match="cannot be an outcome"):
                journal.settle("a", "z", name)
            with pytest.raises(JournalError, match="cannot be an outcome"):
                journal.bury("a", "z", name, "", 0)


# --------------------------------------------------------------------------- dead letters


async def test_a_buried_delivery_is_a_dead_letter_until_it_is_dropped(path: Path) -> None:
    """A dead letter keeps the body, the reason, the error and the time, also over a restart."""
    clock = Clock()
    async with opened(path, clock=clock) as journal:
        await journal.accept("a", b"body", ["x", "y"])
        clock.now = 2_000.5
        row_id = await journal.bury("a", "x", "failed", "ValueError: no", 3)
        await journal.settle("a", "y", "handled")
    async with opened(path) as journal:
        assert await journal.dead() == [
            DeadEntry(row_id, "a", "x", b"body", "failed", "ValueError: no", 3, 2_000.5)
        ]
        assert await journal.accept("a", b"body", ["x"]) == (), "it is settled: a duplicate"
        await journal.drop_dead(row_id)
        assert await journal.dead() == []
        with pytest.raises(JournalError, match=f"no dead letter {row_id}"):
            await journal.drop_dead(row_id)


async def test_the_newest_dead_letters_are_listed(path: Path) -> None:
    """`limit` cuts off the oldest; what is left stands in the order of burial."""
    async with opened(path) as journal:
        for n in range(5):
            journal.accept(str(n), b"", ["x"])
            journal.bury(str(n), "x", "failed", "", 1)
        assert [letter.spore_id for letter in await journal.dead(3)] == ["2", "3", "4"]
        assert await journal.dead(0) == []
        assert len(await journal.dead()) == 5


async def test_the_id_of_a_dead_letter_is_never_used_again(path: Path) -> None:
    """A stale id cannot drop another letter, not even after a restart."""
    async with opened(path) as journal:
        await journal.accept("a", b"", ["x", "y"])
        first = await journal.bury("a", "x", "failed", "", 1)
        await journal.drop_dead(first)
    async with opened(path) as journal:
        assert await journal.bury("a", "y", "failed", "", 1) > first


async def test_an_error_that_is_not_valid_unicode_can_be_buried(path: Path) -> None:
    """An exception that quotes an undecodable file name must not make its spore undying."""
    async with opened(path) as journal:
        await journal.accept("a", b"", ["x"])
        await journal.bury("a", "x", "failed", os.fsdecode(b"no file \xff"), 1)
        assert (await journal.dead())[0].error == "no file \\udcff"


# --------------------------------------------------------------------------- forgetting


async def test_prune_forgets_what_is_older_than_retention(path: Path) -> None:
    """An id is a duplicate for `retention` seconds after it was settled; open ones stay."""
    clock = Clock()
    async with opened(path, retention=60, clock=clock) as journal:
        await journal.accept("old", b"", ["x"])
        await journal.accept("young", b"", ["x"])
        await journal.accept("open", b"", ["x"])
        await journal.settle("old", "x", "handled")
        clock.now += 30
        await journal.settle("young", "x", "handled")
        clock.now += 30
        assert await journal.prune() == 0, "exactly `retention` old is not older"
        clock.now += 1
        assert await journal.prune() == 1
        assert await journal.accept("old", b"", ["x"]) == ("x",)
        assert await journal.accept("young", b"", ["x"]) == ()
        assert ids(await journal.unsettled("x")) == ["open", "old"]


async def test_a_long_prune_lets_others_pass_and_still_ends_at_close(path: Path) -> None:
    """Much is forgotten in pieces: what was queued meanwhile is done, and all is forgotten."""
    clock = Clock()
    count = 2 * PRUNE_CHUNK + 1
    journal = await Journal.open(path, retention=60, clock=clock)
    agents = [str(n) for n in range(count)]
    await journal.accept("a", b"", agents)
    await asyncio.gather(*(journal.settle("a", agent, "handled") for agent in agents))
    clock.now += 61
    order: list[str] = []
    pruned = journal.prune()
    pruned.add_done_callback(lambda _: order.append("pruned"))
    journal.accept("b", b"", ["x"]).add_done_callback(lambda _: order.append("accepted"))
    await journal.aclose()
    assert pruned.result() == count
    assert order == ["accepted", "pruned"]
    assert await rows(path, "SELECT count(*) FROM settled") == [(0,)]


# --------------------------------------------------------------------------- the file

HOLDER = """
import asyncio, sys
from praval.core.journal import Journal

async def main():
    journal = await Journal.open(sys.argv[1])
    await journal.accept("a", b"1", ["x"])
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await journal.aclose()

asyncio.run(main())
"""

TRIER = """
import asyncio, sys
from praval.core.journal import Journal
from praval.errors import JournalLockedError

async def main():
    try:
        journal = await Journal.open(sys.argv[1])
    except JournalLockedError:
        print("locked")
    else:
        await journal.aclose()
        print("free")

asyncio.run(main())
"""


@asynccontextmanager
async def child(script: str, *args: object) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *map(str, args), stdin=pipe, stdout=pipe
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def read_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


async def test_a_journal_held_by_another_process_is_refused_at_once(path: Path) -> None:
    """The error names the file; when the holder dies, even by kill -9, the file is free."""
    async with child(HOLDER, path) as holder:
        assert await read_line(holder) == "open"
        async with asyncio.timeout(3):
            with pytest.raises(JournalLockedError, match=str(path)):
                await Journal.open(path)
        holder.kill()
        await holder.wait()
    async with opened(path) as journal:
        assert ids(await journal.unsettled("x")) == ["a"]


async def test_a_journal_is_refused_twice_in_one_process_and_stays_held(path: Path) -> None:
    """A second Journal in the same process is refused, and the attempt does not lift the lock."""
    async with opened(path) as journal:
        await journal.accept("a", b"1", ["x"])
        with pytest.raises(JournalLockedError, match=str(path)):
            await Journal.open(path)
        async with child(TRIER, path) as trier:
            assert await read_line(trier) == "locked"
        assert await journal.accept("b", b"2", ["x"]) == ("x",)
    async with child(TRIER, path) as trier:
        assert await read_line(trier) == "free"


@pytest.mark.parametrize("mode", ["delete", "wal"])
async def test_an_sqlite_file_of_somebody_else_is_left_alone(path: Path, mode: str) -> None:
    """A foreign database is refused, unchanged to the byte, with no new file beside it."""
    await rows(path, f"PRAGMA journal_mode={mode}", "CREATE TABLE theirs (x)")
    before = await files(path.parent)
    with pytest.raises(JournalSchemaError, match="no journal of Praval"):
        await Journal.open(path)
    assert await files(path.parent) == before


async def test_a_live_foreign_database_keeps_its_log(path: Path) -> None:
    """What another program has not yet folded into its database is not touched either."""
    make = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=wal")
db.execute("CREATE TABLE theirs (x)")
db.execute("PRAGMA wal_checkpoint")
db.execute("INSERT INTO theirs VALUES (1)")
print("made", flush=True)
sys.stdin.read()
"""
    async with child(make, path) as other:
        assert await read_line(other) == "made"
        before = await files(path.parent)
        assert f"{path.name}-wal" in before
        with pytest.raises(JournalSchemaError):
            await Journal.open(path)
        assert await files(path.parent) == before


async def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    """Text is refused by name and stays as it was."""
    await asyncio.to_thread(path.write_text, "Dear diary, " * 1000)
    before = await files(path.parent)
    with pytest.raises(JournalSchemaError, match="no SQLite file"):
        await Journal.open(path)
    assert await files(path.parent) == before


async def test_a_journal_of_a_newer_schema_is_left_alone(path: Path) -> None:
    """An older Praval does not guess what a newer one wrote."""
    async with opened(path) as journal:
        await journal.accept("a", b"1", ["x"])
    await rows(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = await files(path.parent)
    with pytest.raises(JournalSchemaError, match=f"schema version {SCHEMA_VERSION + 1}"):
        await Journal.open(path)
    assert await files(path.parent) == before


async def test_a_path_that_cannot_be_a_file_is_an_error(tmp_path: Path) -> None:
    """A folder, or a path below a file, is refused with the path in the message."""
    with pytest.raises(JournalError, match=str(tmp_path)):
        await Journal.open(tmp_path)
    await asyncio.to_thread((tmp_path / "file").touch)
    with pytest.raises(JournalError, match="cannot be opened"):
        await Journal.open(tmp_path / "file" / "reef.journal")


async def test_options_are_checked_before_anything_is_made(path: Path) -> None:
    """A wrong option leaves no file."""
    with pytest.raises(ConfigurationError, match="sync"):
        await Journal.open(path, sync="fast")  # type: ignore[arg-type]
    for seconds in (-1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="retention"):
            await Journal.open(path, retention=seconds)
    assert await files(path.parent) == {}


def modes(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.rglob("*")}


async def test_what_is_made_is_private_to_its_user(tmp_path: Path) -> None:
    """Missing folders get 0700, the file and its log 0600; folders that were there are left."""
    there = tmp_path / "outer" / "there"
    before = os.umask(0)
    try:
        await asyncio.to_thread(there.mkdir, 0o755, parents=True)
        async with opened(there / "data" / "desk #1?" / "reef.journal") as journal:
            await journal.accept("a", b"1", ["x"])
            assert await asyncio.to_thread(modes, there.parent) == {
                "there": 0o755,
                "data": 0o700,
                "desk #1?": 0o700,
                "reef.journal": 0o600,
                "reef.journal-wal": 0o600,
            }
    finally:
        os.umask(before)


async def test_a_journal_has_one_random_replica_id(tmp_path: Path) -> None:
    """The id stays with the file and differs between files."""
    async with opened(tmp_path / "a") as first, opened(tmp_path / "b") as second:
        assert len(first.replica_id) == 32
        assert first.replica_id != second.replica_id
    async with opened(tmp_path / "a") as again:
        assert again.replica_id == first.replica_id


@pytest.mark.parametrize(("sync", "level"), [("normal", 1), ("full", 2)])
async def test_sync_sets_what_sqlite_flushes(path: Path, sync: str, level: int) -> None:
    """ "full" flushes the log at each commit (SQLite's level 2), "normal" does not (1)."""
    async with opened(path, sync=sync) as journal:
        pragma = "PRAGMA synchronous"
        seen = await journal._enqueue(lambda store: store._db.execute(pragma).fetchone()[0])
        assert seen == level


def test_sqlite_is_not_imported_until_a_journal_is_opened() -> None:
    """Who has no journal does not pay for one."""
    script = "import sys, praval.core.journal; sys.exit('sqlite3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# --------------------------------------------------------------------------- closing


@pytest.mark.every_loop
async def test_close_writes_what_is_queued(path: Path) -> None:
    """Work that nobody awaited is in the file, the log is folded in, the thread has ended."""
    journal = await Journal.open(path)
    futures = [journal.accept(str(n), b"", ["x"]) for n in range(5_000)]
    await journal.aclose()
    assert all(future.result() == ("x",) for future in futures)
    assert list(await files(path.parent)) == [path.name]
    assert "praval-journal" not in [thread.name for thread in threading.enumerate()]
    assert await rows(path, "SELECT count(*) FROM delivery") == [(5_000,)]


@pytest.mark.every_loop
async def test_close_can_be_called_again_and_together(path: Path) -> None:
    """Every caller returns when the journal is closed, also if another one was cancelled."""
    journal = await Journal.open(path)
    journal.accept("a", b"1", ["x"])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await journal.aclose()
    await asyncio.gather(journal.aclose(), journal.aclose())
    await journal.aclose()
    assert await rows(path, "SELECT spore FROM delivery") == [("a",)]


async def test_a_closed_journal_refuses_every_call(path: Path) -> None:
    """A call after `aclose` raises at once and says so."""
    journal = await Journal.open(path)
    await journal.aclose()
    for call in (
        lambda: journal.accept("a", b"", ["x"]),
        lambda: journal.begin("a", "x", 1),
        lambda: journal.settle("a", "x", "handled"),
        lambda: journal.bury("a", "x", "failed", "", 1),
        lambda: journal.drop_dead(1),
        journal.prune,
    ):
        with pytest.raises(JournalError, match="closed"):
            call()
    for read in (journal.unsettled("x"), journal.dead(), journal.counts()):
        with pytest.raises(JournalError, match="closed"):
            await read


async def writer_ended() -> None:
    for thread in threading.enumerate():
        if thread.name == "praval-journal":
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()


async def test_a_forgotten_journal_warns_and_gives_the_file_up(path: Path) -> None:
    """Collecting an unclosed journal writes what is queued and frees the file."""
    journal = await Journal.open(path)
    journal.accept("a", b"1", ["x"])
    with pytest.warns(ResourceWarning, match="unclosed <Journal"):
        del journal
    await writer_ended()
    async with opened(path) as journal:
        assert ids(await journal.unsettled("x")) == ["a"]


def test_a_journal_whose_loop_is_gone_still_writes_what_was_queued(path: Path) -> None:
    """The end of the loop does not undo what was asked before, and frees the file."""

    async def leave() -> Journal:
        journal = await Journal.open(path)
        for n in range(100):
            journal.accept(str(n), b"", ["x"])
        return journal

    async def look() -> int:
        await writer_ended()
        async with opened(path) as journal:
            return len(await journal.unsettled("x"))

    abandoned = asyncio.run(leave())
    assert asyncio.run(look()) == 100
    with pytest.warns(ResourceWarning, match="unclosed <Journal"):
        del abandoned


@pytest.mark.every_loop
async def test_an_opening_that_is_cancelled_leaves_the_file_free(path: Path) -> None:
    """Nobody is left holding a journal that nobody got."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await Journal.open(path)
    await writer_ended()
    async with opened(path) as journal:
        assert await journal.accept("a", b"1", ["x"]) == ("x",)


# --------------------------------------------------------------------------- failures


class Complaints:
    """What asyncio had to complain about on this loop."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.seen.append(context))


@pytest.mark.every_loop
async def test_a_bad_change_fails_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its neighbours in the batch are stored; the failure is logged once, even if unread."""
    complaints = Complaints()
    async with opened(path) as journal:
        with caplog.at_level(logging.ERROR, "praval.journal"):
            good = [journal.accept(str(n), b"", ["x"]) for n in range(50)]
            bad = journal.accept("\ud800", b"", ["x"])
            good += [journal.accept(str(n), b"", ["x"]) for n in range(50, 100)]
            assert await asyncio.gather(*good) == [("x",)] * 100
        assert bad.done()
        del bad
        gc.collect()
        assert len(await journal.unsettled("x")) == 100
    assert complaints.seen == []
    (record,) = caplog.records
    assert record.name == "praval.journal"
    assert "UnicodeEncodeError" in record.getMessage()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that is full at `size` bytes, as far as this process can write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_fails_only_what_does_not_fit(path: Path) -> None:
    """Nothing is half-done, small changes still pass, and all is well once there is room."""
    async with opened(path) as journal:
        await journal.accept("a", b"1", ["x"])
        with largest_file(1_000_000):
            results = await asyncio.gather(
                journal.begin("a", "x", 1),
                journal.settle("a", "x", "handled", [("huge", bytes(5_000_000), ["x"])]),
                journal.accept("b", b"2", ["x"]),
                journal.accept("huge", bytes(5_000_000), ["x", "y"]),
                return_exceptions=True,
            )
            assert results[0] is None
            assert isinstance(results[1], JournalError)
            assert "disk" in str(results[1])
            assert results[2] == ("x",)
            assert isinstance(results[3], JournalError)
            expected = [Entry("a", "x", b"1", 1), Entry("b", "x", b"2", 0)]
            assert await journal.unsettled("x") == expected
        assert await journal.accept("huge", bytes(5_000_000), ["x", "y"]) == ("x", "y")
        await journal.settle("a", "x", "handled")
    async with opened(path) as journal:
        assert ids(await journal.unsettled("x")) == ["b", "huge"]


class Fatal(BaseException):
    """Nothing that code is supposed to survive."""


class Poison(str):
    """A name that kills whoever looks it up, once the test has seen it taken and lets it."""

    def __init__(self, _: str) -> None:
        self.taken = threading.Event()
        self.act = threading.Event()

    def __hash__(self) -> int:
        self.taken.set()
        self.act.wait(10)
        raise Fatal("poison")


@pytest.mark.every_loop
async def test_nobody_waits_for_a_dead_writer(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When the thread dies, all that waits fails, and so does each later call, at once."""
    complaints = Complaints()
    journal = await Journal.open(path)
    await journal.accept("safe", b"1", ["x"])
    doomed: list[asyncio.Future[Any]]
    poison = Poison("p")
    doomed = [journal.accept(poison, b"", ["x"]), journal.accept("with it", b"", ["x"])]
    await asyncio.to_thread(poison.taken.wait, 10)
    doomed += [journal.accept("behind it", b"", ["x"]), asyncio.ensure_future(journal.counts())]
    poison.act.set()
    for future in doomed:
        with pytest.raises(JournalError, match=r"died \(Fatal: poison\)"):
            await future
    with pytest.raises(JournalError, match="died"):
        journal.accept("later", b"", ["x"])
    with pytest.raises(JournalError, match="died"):
        await journal.unsettled("x")
    await journal.aclose()
    assert "died" in caplog.text
    assert complaints.seen == []
    async with opened(path) as journal:
        assert ids(await journal.unsettled("x")) == ["safe"]


@pytest.mark.every_loop
async def test_a_cancelled_waiter_undoes_nothing(path: Path) -> None:
    """Cancelling a future, or the task that awaits it, leaves the change and its neighbours."""
    async with opened(path) as journal:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await journal.accept("a", b"1", ["x"])
        journal.accept("b", b"2", ["x"]).cancel()
        assert await journal.accept("c", b"3", ["x"]) == ("x",)
        assert ids(await journal.unsettled("x")) == ["a", "b", "c"]


# --------------------------------------------------------------------------- kill -9

WORKERS = """
import asyncio, os, sys
from praval.core.journal import Journal

def say(*words):
    os.write(1, (" ".join(words) + "\\n").encode())

async def work(journal, name):
    for entry in await journal.unsettled(name):
        await journal.begin(entry.spore_id, name, entry.attempt + 1)
        say("begun", entry.spore_id, name)
        await journal.settle(entry.spore_id, name, "handled")
        say("settled", entry.spore_id, name)
    n = 0
    while True:
        spore, n = f"{sys.argv[2]}-{name}-{n}", n + 1
        await journal.accept(spore, b"." * (n % 9000), [name])
        say("accepted", spore, name)
        await journal.begin(spore, name, 1)
        say("begun", spore, name)
        next_one = f"{spore}-child"
        await journal.settle(spore, name, "handled", [(next_one, b"child", [name])])
        say("settled", spore, name)
        say("accepted", next_one, name)
        if n % 3:
            await journal.bury(next_one, name, "failed", "as planned", 1)
            say("settled", next_one, name)

async def main():
    journal = await Journal.open(sys.argv[1])
    await asyncio.gather(*(work(journal, str(n)) for n in range(5)))

asyncio.run(main())
"""


async def run_until_killed(path: Path, round_: int, lines: int) -> list[tuple[str, ...]]:
    """Everything a child reported before SIGKILL met it, some time after that many lines."""
    async with child(WORKERS, path, round_) as process:
        assert process.stdout is not None
        said = [await process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += (await process.stdout.read()).splitlines(keepends=True)
        assert await process.wait() == -signal.SIGKILL
    return [tuple(line.decode().split()) for line in said if line.endswith(b"\n")]


async def test_kill_9_loses_nothing_that_was_reported(path: Path) -> None:
    """What was reported as accepted is there or settled; what was settled is never open again."""
    rng = random.Random(20)
    said: Counter[tuple[str, ...]] = Counter()
    for round_ in range(8):
        said.update(await run_until_killed(path, round_, rng.randrange(1, 2500)))
        async with opened(path) as journal:
            left = {
                (entry.spore_id, entry.agent): entry.attempt
                for n in range(5)
                for entry in await journal.unsettled(str(n))
            }
            counts = await journal.counts()
            reported = [words[1:] for words in said if words[0] == "accepted"]
            assert counts["unsettled"] == len(left)
            assert counts.get("failed", 0) == counts["dead"]
            assert counts["unsettled"] + counts["handled"] + counts.get("failed", 0) >= len(
                reported
            )
            for what, *delivery in said:
                spore_id, agent = delivery
                if what == "settled":
                    assert (spore_id, agent) not in left
                elif what == "begun" and (spore_id, agent) in left:
                    assert left[spore_id, agent] >= said["begun", spore_id, agent]
            again = await asyncio.gather(
                *(journal.accept(spore_id, b"", [agent]) for spore_id, agent in reported)
            )
            assert set(again) == {()}, "all that was reported is known"
    assert sum(words[0] == "settled" for words in said) > 1000


# --------------------------------------------------------------------------- against a model

SPORES = ["s1", "s2", "s3", "s4"]
AGENTS = ["x", "y", "z"]
spore = st.sampled_from(SPORES)
agent = st.sampled_from(AGENTS)
agents = st.lists(agent, max_size=4)
outcome = st.sampled_from(["handled", "filtered"])
emission = st.tuples(spore, st.binary(max_size=3), agents)
operation = st.one_of(
    st.tuples(st.just("accept"), spore, st.binary(max_size=3), agents),
    st.tuples(st.just("accept"), spore, st.binary(max_size=3), agents),
    st.tuples(st.just("begin"), spore, agent, st.integers(1, 9)),
    st.tuples(st.just("settle"), spore, agent, outcome, st.lists(emission, max_size=2)),
    st.tuples(st.just("bury"), spore, agent, outcome, st.text(max_size=3), st.integers(0, 9)),
    st.tuples(st.just("drop_dead"), st.integers(1, 4)),
    st.tuples(st.just("prune")),
    st.tuples(st.just("unstorable")),
    st.tuples(st.just("tick"), st.integers(1, 40)),
    st.tuples(st.just("check")),
    st.tuples(st.just("reopen")),
)
RETENTION = 60.0


class Refused:
    """Where the journal raises."""


class Model:
    """The journal's promise in a few lines; the same clock, no file."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.open: dict[tuple[str, str], Entry] = {}  # in order of acceptance
        self.settled: dict[tuple[str, str], float] = {}
        self.letters: list[DeadEntry] = []
        self.buried = 0
        self.totals: Counter[str] = Counter()

    def accept(self, spore_id: str, body: bytes, names: list[str]) -> object:
        new = [
            name
            for name in dict.fromkeys(names)
            if (spore_id, name) not in self.open and (spore_id, name) not in self.settled
        ]
        for name in new:
            self.open[spore_id, name] = Entry(spore_id, name, body, 0)
        return tuple(new)

    def begin(self, spore_id: str, name: str, attempt: int) -> object:
        if (spore_id, name) not in self.open:
            return Refused
        entry = self.open[spore_id, name]
        self.open[spore_id, name] = Entry(spore_id, name, entry.body, attempt)
        return None

    def settle(
        self, spore_id: str, name: str, how: str, emitted: list[tuple[str, bytes, list[str]]]
    ) -> object:
        if self.open.pop((spore_id, name), None) is None:
            return Refused
        self.settled[spore_id, name] = self.clock.now
        self.totals[how] += 1
        for args in emitted:
            self.accept(*args)
        return None

    def bury(self, spore_id: str, name: str, reason: str, error: str, attempts: int) -> object:
        entry = self.open.get((spore_id, name))
        if entry is None:
            return Refused
        self.settle(spore_id, name, reason, [])
        self.buried += 1
        tail = (reason, error, attempts, self.clock.now)
        self.letters.append(DeadEntry(self.buried, spore_id, name, entry.body, *tail))
        return self.buried

    def drop_dead(self, row_id: int) -> object:
        kept = [letter for letter in self.letters if letter.id != row_id]
        if len(kept) == len(self.letters):
            return Refused
        self.letters = kept
        return None

    def prune(self) -> object:
        limit = self.clock.now - RETENTION
        old = [key for key, at in self.settled.items() if at < limit]
        for key in old:
            del self.settled[key]
        return len(old)

    def counts(self) -> dict[str, int]:
        return {**self.totals, "unsettled": len(self.open), "dead": len(self.letters)}


async def compare(journal: Journal, model: Model, pending: list[tuple[Any, object]]) -> None:
    for future, expected in pending:
        if expected is Refused:
            with pytest.raises(JournalError):
                await future
        else:
            assert await future == expected
    pending.clear()
    for name in AGENTS:
        assert await journal.unsettled(name) == [e for e in model.open.values() if e.agent == name]
    assert await journal.dead() == model.letters
    assert await journal.counts() == model.counts()


async def play(operations: list[tuple[Any, ...]], path: Path) -> None:
    clock = Clock()
    model = Model(clock)
    journal = await Journal.open(path, retention=RETENTION, clock=clock)
    pending: list[tuple[Any, object]] = []
    for name, *args in operations:
        if name == "tick":
            clock.now += args[0]
        elif name == "check":
            await compare(journal, model, pending)
        elif name == "reopen":
            await journal.aclose()
            journal = await Journal.open(path, retention=RETENTION, clock=clock)
        elif name == "unstorable":
            pending.append((journal.accept("\ud800", b"", ["x"]), Refused))
        else:
            pending.append((getattr(journal, name)(*args), getattr(model, name)(*args)))
    await compare(journal, model, pending)
    for spore_id, name in list(model.open):
        journal.settle(spore_id, name, "handled")
    await journal.aclose()
    assert await rows(path, "SELECT count(*) FROM body") == [(0,)], (
        "no body outlives its deliveries"
    )


@settings(max_examples=80, deadline=None)
@given(st.lists(operation, max_size=30))
def test_the_journal_does_what_a_simple_model_does(operations: list[tuple[Any, ...]]) -> None:
    """Any sequence of calls, batched or awaited, with restarts in between, equals the model."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(operations, Path(folder) / "reef.journal"))
