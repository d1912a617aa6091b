"""The thread that calls the replay memory: many calls in one transaction, each with its own end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from praval.core.replay import Key, Replay
from praval.core.replay_tables import SQLiteTable
from praval.core.replay_writer import ReplayWriter
from praval.errors import ReplayError, SealCode

NOW = 1_800_000_000_000
INSTANCE = bytes(16)


class Watched(Replay):
    """A replay memory that counts its transactions, and whose next one can be made to fail."""

    transactions = 0
    broken = False
    lost: ReplayError | None = None

    @contextmanager
    def batch(self) -> Iterator[None]:
        self.transactions += 1
        with super().batch():
            yield
            if self.broken:
                raise OSError("disk full")
            if self.lost is not None:
                raise self.lost


@asynccontextmanager
async def opened(path: Path, lease: float = 60) -> AsyncIterator[tuple[ReplayWriter, Watched]]:
    writer, made = ReplayWriter(lease), list[Watched]()
    table = await asyncio.to_thread(SQLiteTable.open, path / "replay.db", instance=INSTANCE)

    def make() -> Replay:
        made.append(Watched(table, instance=INSTANCE, key=bytes(32)))
        return made[0]

    await writer.open(make, table.close)
    try:
        yield writer, made[0]
    finally:
        await writer.aclose()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (path := tmp_path / "keys").mkdir(mode=0o700)
    return path


def begin(number: int, now: int = NOW) -> Any:
    key = Key("a", b"s" * 16, number.to_bytes(16, "big"))
    return lambda replay: replay.begin(
        key, b"content", created=NOW, expires=NOW + 3_600_000, now=now
    )


async def test_calls_that_wait_together_share_a_transaction(folder: Path) -> None:
    async with opened(folder) as (writer, replay):
        begun = await asyncio.gather(*(writer.call(begin(n)) for n in range(1, 200)))
        assert {each.code for each in begun} == {None}
        assert replay.transactions < 50


async def test_a_call_that_is_refused_spoils_no_other(folder: Path) -> None:
    async with opened(folder) as (writer, _):
        one, bad, two = (
            writer.call(begin(1)),
            writer.call(lambda replay: replay.commit(Key("a", b"s" * 16, bytes(16)), 7)),
            writer.call(begin(2)),
        )
        assert (await one).code is (await two).code is None
        with pytest.raises(ReplayError, match="lost"):
            await bad


async def test_when_a_transaction_fails_each_of_its_callers_is_told(folder: Path) -> None:
    async with opened(folder) as (writer, replay):
        replay.broken = True
        results = await asyncio.gather(
            *map(writer.call, map(begin, (1, 2))), return_exceptions=True
        )
        assert [str(each) for each in results] == [
            "The replay memory could not be written: disk full."
        ] * 2
        replay.broken = False
        assert (await writer.call(begin(1))).code is None  # nothing had remained of it


async def test_what_was_queued_is_written_before_it_is_closed(folder: Path) -> None:
    async with opened(folder) as (writer, _):
        left = writer.call(begin(1))
        left.cancel()
        await writer.aclose()
        with pytest.raises(ReplayError, match="closed"):
            await writer.call(begin(2))
    async with opened(folder) as (writer, _):
        assert (await writer.call(begin(1))).code is SealCode.IN_FLIGHT


async def test_the_lease_is_the_one_that_was_asked_for(folder: Path) -> None:
    async with opened(folder, lease=0.5) as (writer, _):
        await writer.call(begin(1))
        assert (await writer.call(begin(1, NOW + 499))).code is SealCode.IN_FLIGHT
        assert (await writer.call(begin(1, NOW + 500))).attempt == 2


async def test_a_memory_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    def make() -> Replay:
        raise ReplayError("it belongs to other keys")

    writer = ReplayWriter(60)
    with pytest.raises(ReplayError, match="other keys"):
        await writer.open(make, lambda: None)
    await writer.aclose()


async def test_why_the_memory_cannot_be_used_is_told_with_its_code(folder: Path) -> None:
    """A memory that was set back is no disk that is full: the one is for a human to look at."""
    async with opened(folder) as (writer, replay):
        replay.lost = ReplayError("It was set back.", SealCode.REPLAY)
        with pytest.raises(ReplayError, match="could not be written: It was set back") as told:
            await writer.call(begin(1))
        assert told.value.code is SealCode.REPLAY
        replay.lost, replay.broken = None, True
        with pytest.raises(ReplayError, match="disk full") as told:
            await writer.call(begin(1))
        assert told.value.code is SealCode.RATE_LIMITED
        replay.broken = False
