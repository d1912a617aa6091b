"""A journal under a key: nothing that was said can be read in its file."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from praval import Reef, Spore, agent
from praval.core import journal_box
from praval.core.journal import Journal
from praval.core.keys import Keyring
from praval.errors import JournalError
from tests.core.sealed_hosts import Root, reopened, stored

KEY = bytes(range(32))
CANARY = "canary-91be07"


def on_disk(file: Path) -> bytes:
    """All that SQLite keeps of a journal, its log included."""
    return b"".join(path.read_bytes() for path in file.parent.glob(f"{file.name}*"))


def days(file: Path) -> list[int]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        return [day for (day,) in db.execute("SELECT day FROM day_key ORDER BY day")]


def key_of(file: Path, day: int) -> bytes:
    """The encrypted key of a day, as the file has it."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        (wrapped,) = db.execute("SELECT wrapped FROM day_key WHERE day = ?", (day,)).fetchone()
    return bytes(wrapped)


@asynccontextmanager
async def opened(file: Path) -> AsyncIterator[Journal]:
    journal = await Journal.open(file, key=KEY)
    try:
        yield journal
    finally:
        await journal.aclose()


async def fill(journal: Journal) -> None:
    """One spore for one agent, one for two, one that is dead."""
    await journal.accept("one", f"{CANARY}-1".encode(), ["a"])
    await journal.accept("two", f"{CANARY}-2".encode(), ["a", "b"])
    await journal.accept("three", f"{CANARY}-3".encode(), ["b"])
    await journal.bury("three", "b", "handler raised", f"ValueError('{CANARY}')", 1)
    await journal.settle("one", "a", "handled", [("four", f"{CANARY}-4".encode(), ["a"])])


async def test_what_was_said_is_not_in_the_file_and_comes_out_again(tmp_path: Path) -> None:
    """Bodies, emissions and errors that quote them; not before, nor after a restart."""
    file = tmp_path / "j"
    journal = await Journal.open(file, key=KEY)
    await fill(journal)
    assert CANARY.encode() not in on_disk(file)
    await journal.aclose()
    assert CANARY.encode() not in on_disk(file)
    journal = await Journal.open(file, key=KEY)
    bodies = [entry.body.decode() for entry in await journal.unsettled("a")]
    assert bodies == [f"{CANARY}-2", f"{CANARY}-4"]
    (letter,) = await journal.dead()
    assert (letter.body.decode(), letter.error) == (f"{CANARY}-3", f"ValueError('{CANARY}')")
    await journal.aclose()


async def test_without_a_key_nothing_changes(tmp_path: Path) -> None:
    """The test above can fail: a plain journal has it all."""
    journal = await Journal.open(tmp_path / "j")
    await fill(journal)
    assert CANARY.encode() in on_disk(tmp_path / "j")
    await journal.aclose()


async def test_another_key_and_none_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    """The error says what a keyring in memory means."""
    file = tmp_path / "j"
    journal = await Journal.open(file, key=KEY)
    await fill(journal)
    await journal.aclose()
    with pytest.raises(JournalError, match="keys of another store"):
        await Journal.open(file, key=bytes(32))
    with pytest.raises(JournalError, match="is sealed"):
        await Journal.open(file)
    journal = await Journal.open(file, key=KEY)
    assert len(await journal.unsettled("a")) == 2
    await journal.aclose()


async def test_a_plain_journal_becomes_a_sealed_one_when_it_is_empty(tmp_path: Path) -> None:
    """Not before: what is in it could be read."""
    file = tmp_path / "j"
    journal = await Journal.open(file)
    await journal.accept("one", b"plain", ["a"])
    await journal.aclose()
    with pytest.raises(JournalError, match="not sealed"):
        await Journal.open(file, key=KEY)
    journal = await Journal.open(file)
    await journal.settle("one", "a", "handled")
    for number in range(200):
        await journal.accept(f"p{number}", f"{CANARY} {number}".encode() * 50, ["a"])
    for number in range(200):
        await journal.settle(f"p{number}", "a", "handled")
    await journal.aclose()
    assert CANARY.encode() in on_disk(file), "SQLite leaves it in pages that it does not use"
    journal = await Journal.open(file, key=KEY)
    assert CANARY.encode() not in on_disk(file)
    assert await journal.accept("one", b"again", ["a"]) == (), "the ids are remembered"
    assert await journal.accept("two", b"sealed", ["a"]) == ("a",)
    await journal.aclose()


async def test_a_row_that_was_changed_is_told(tmp_path: Path) -> None:
    """Whoever can write the file cannot change what a spore says unnoticed."""
    file = tmp_path / "j"
    journal = await Journal.open(file, key=KEY)
    await journal.accept("one", b"pay 10", ["a"])
    await journal.aclose()
    with closing(sqlite3.connect(file)) as db, db:
        content = bytearray(db.execute("SELECT content FROM delivery").fetchone()[0])
        content[-1] ^= 1
        db.execute("UPDATE delivery SET content = ?", (bytes(content),))
    journal = await Journal.open(file, key=KEY)
    with pytest.raises(JournalError, match="cannot be decrypted"):
        await journal.unsettled("a")
    await journal.aclose()


async def test_a_row_does_not_pass_for_another(tmp_path: Path) -> None:
    """Two spores of one day cannot be exchanged in the file; nor can what two agents share."""
    file = tmp_path / "j"
    async with opened(file) as journal:
        await journal.accept("one", b"pay alice", ["a"])
        await journal.accept("two", b"pay mallory", ["a"])
    with closing(sqlite3.connect(file)) as db, db:
        rows = dict(db.execute("SELECT spore, content FROM delivery").fetchall())
        db.execute("UPDATE delivery SET content = ? WHERE spore = 'one'", (rows["two"],))
    async with opened(file) as journal:
        with pytest.raises(JournalError, match="cannot be decrypted"):
            await journal.unsettled("a")


async def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    """Not by a library in words of its own."""
    with pytest.raises(JournalError, match="32 bytes, not 5"):
        await Journal.open(tmp_path / "j", key=b"short")


async def test_the_key_of_a_day_is_erased_with_the_last_row_that_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on nobody reads what was settled, the file and the keyring in hand."""
    file, now = tmp_path / "j", time.time()
    first = int(now) // journal_box.DAY

    class Clock:
        def time(self) -> float:
            return now

    monkeypatch.setattr(journal_box, "time", Clock())
    async with opened(file) as journal:
        await journal.accept("one", b"on the first day", ["a"])
        await journal.accept("dead", b"on the first day", ["b"])
        letter = await journal.bury("dead", "b", "handler raised", "no", 1)
        now += journal_box.DAY
        await journal.accept("two", b"on the second day", ["a"])
        now += journal_box.DAY
        await journal.accept("three", b"on the third day", ["a"])
    assert days(file) == [0, first, first + 1, first + 2]
    wrapped = key_of(file, first)
    async with opened(file) as journal:
        await journal.settle("two", "a", "handled")
        await journal.settle("one", "a", "handled")
        await journal.prune()
    assert days(file) == [0, first, first + 2], "the second is over; a dead letter needs the first"
    assert wrapped in on_disk(file)
    async with opened(file) as journal:
        await journal.drop_dead(letter)
        await journal.prune()
        assert wrapped not in on_disk(file)
    assert days(file) == [0, first + 2]
    async with opened(file) as journal:
        assert [entry.body for entry in await journal.unsettled("a")] == [b"on the third day"]


async def test_a_sealed_reef_keeps_a_sealed_journal(tmp_path: Path) -> None:
    """Outbox, intake and dead letters; with keys in a store it goes on after a restart."""
    file, root = tmp_path / "journal", Root()
    keyring = root.keyring("broken", "@host")
    store = await asyncio.to_thread(stored, tmp_path / "keys", keyring)

    @agent("broken")
    async def broken(spore: Spore) -> None:
        raise ValueError(spore.knowledge["secret"])

    for round_ in range(2):
        keys = await asyncio.to_thread(reopened, store)
        async with Reef(broken, security=keys, journal=file) as reef:
            await reef.send("broken", {"secret": CANARY})
            await reef.wait_idle(10)
            letters = reef.dead_letters()
            assert [letter.spore.knowledge["secret"] for letter in letters] == [CANARY] * (
                round_ + 1
            )
            assert CANARY.encode() not in on_disk(file)
    assert CANARY.encode() not in on_disk(file)
    with pytest.raises(JournalError, match="keys of another store"):
        async with Reef(broken, security=Keyring(), journal=file):
            pass
