"""A Reef with a journal: accepted spores survive the death of their process."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from praval import Outcome, Reason, Reef, Spore, agent, broadcast, configure
from praval.core.delivery import Receipt
from praval.errors import JournalLockedError
from praval.settings import Settings, merge
from praval.testing import TestReef

TEAM = Path(__file__).with_name("persistence_team.py")
SPORES = 10_000


def run_and_kill(journal: Path, log: Path, lines: int) -> bool:
    """Run the team; kill -9 it once its log has ``lines`` more lines. True: it finished first."""
    before = count_lines(log)
    process = subprocess.Popen([sys.executable, TEAM, journal, log, str(SPORES)])
    try:
        while process.poll() is None:
            if count_lines(log) - before >= lines:
                process.kill()
                break
            try:
                process.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
    finally:
        process.kill()
        process.wait()
    return process.returncode == 0


def count_lines(log: Path) -> int:
    """Number of complete lines written so far."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.timeout(180)
def test_kill_9_loses_nothing_and_repeats_nothing_after_its_commit(tmp_path: Path) -> None:
    """10,000 spores, the process killed five times: each handled, none again after its commit.

    A delivery is known to be committed when the same agent, which handles one at a time, has
    begun another one: the begin mark is written after the settled mark before it.
    """
    journal, log = tmp_path / "j.sqlite", tmp_path / "log"
    chance = random.Random(20)  # decides the moments of the kills
    kills = 0
    while kills < 5 and not run_and_kill(journal, log, chance.randrange(2_000, 9_000)):
        kills += 1
    assert kills >= 4, "the team finished before it could be killed often enough"
    subprocess.run([sys.executable, TEAM, journal, log, str(SPORES)], check=True, timeout=120)

    lines = [line.split() for line in log.read_text().splitlines()]
    accepted = {line[1] for line in lines if line[0] == "accepted"}
    assert len(accepted) == SPORES
    for name in ("plain", "slow", "source"):
        ended = {line[2] for line in lines if line[:2] == ["end", name]}
        assert accepted <= ended, f"{len(accepted - ended)} never handled by {name}"
    repeated = 0
    for name in ("plain", "slow", "source", "sink"):
        committed: set[str] = set()
        last = None
        for line in lines:
            if line[:2] != ["begin", name]:
                continue
            assert line[2] not in committed, f"{name} handled {line[2]} again after its commit"
            repeated += line[2] == last
            if last is not None and last != line[2]:
                committed.add(last)
            last = line[2]
    assert repeated <= kills * 4, "more repetitions than deliveries that a kill can interrupt"
    # transactional: of every job exactly one emission left, however often its handler ran
    made = Counter(line[1] for line in lines if line[0] == "made")
    emissions = {(line[1], line[2]) for line in lines if line[0] == "made"}
    assert accepted <= set(made)
    assert max(Counter(job for job, _ in emissions).values()) == 1


async def test_what_was_not_handled_waits_for_the_next_start(tmp_path: Path) -> None:
    """A Reef that closes in the middle keeps the rest, and the attempt goes on counting."""
    gate = asyncio.Event()
    seen: list[tuple[int, int]] = []

    @agent("worker", responds_to=["job"])
    async def worker(spore: Spore) -> None:
        await gate.wait()
        seen.append((spore.knowledge["n"], spore.attempt))

    path = tmp_path / "j.sqlite"
    async with TestReef(worker, journal=path) as reef:
        for n in range(3):
            await reef.broadcast({"type": "job", "n": n})
        await reef.timeline.rest()
        await reef.aclose(drain=False)
        ledger = reef.ledger()
        assert (ledger.pending, ledger.handled, ledger.balanced) == (3, 0, True)
    gate.set()
    async with TestReef(worker, journal=path) as reef:
        await reef.settle()
        assert seen == [(0, 2), (1, 1), (2, 1)]
        assert reef.ledger().handled == 3
    async with TestReef(worker, journal=path) as reef:
        assert reef.ledger().deliveries == 0


async def test_a_spore_that_keeps_killing_its_process_ends_as_a_dead_letter(tmp_path: Path) -> None:
    """Attempts are written before the handler runs, so they add up over restarts."""
    path = tmp_path / "j.sqlite"
    begun: list[int] = []

    @agent("fragile")
    async def fragile(spore: Spore) -> None:
        begun.append(spore.attempt)
        await asyncio.Event().wait()

    async with TestReef(fragile, journal=path) as reef:
        await reef.broadcast({"n": 1})
        await reef.timeline.rest()
        await reef.aclose(drain=False)
    for _ in range(5):
        async with TestReef(fragile, journal=path) as reef:
            await reef.timeline.rest()
            await reef.aclose(drain=False)
            letters = reef.dead_letters()
    assert begun == [1, 2, 3, 4]
    (letter,) = letters
    assert letter.reason is Reason.CRASH_LOOP


async def test_dead_letters_survive_and_can_be_replayed_once(tmp_path: Path) -> None:
    """A letter is there after a restart; its replay has a new id and removes it."""
    path = tmp_path / "j.sqlite"
    broken = True

    @agent("moody")
    async def moody(spore: Spore) -> dict[str, str]:
        if broken:
            raise ValueError("not today")
        return {"replayed": spore.headers["replay_of"]}

    async with TestReef(moody, journal=path) as reef:
        receipt = await reef.broadcast({"n": 1})
        await reef.settle()
    broken = False
    async with TestReef(moody, journal=path) as reef:
        (letter,) = reef.dead_letters()
        assert (letter.spore.id, letter.agent, letter.attempts) == (receipt.id, "moody", 1)
        assert "not today" in letter.error
        await reef.replay(letter.id)
        await reef.settle()
        assert reef.results("moody") == [{"replayed": receipt.id}]
        assert reef.dead_letters() == []
    async with TestReef(moody, journal=path) as reef:
        assert reef.dead_letters() == []


async def test_dead_letters_beyond_the_bound_stay_in_the_journal_alone(tmp_path: Path) -> None:
    """In memory the oldest make room; the next start finds the latest again."""

    @agent("broken")
    def broken(spore: Spore) -> None:
        raise ValueError(spore.knowledge["n"])

    settings = merge(Settings(), {"reef_config": {"dead_letters": 2}})
    for round_ in range(2):
        async with Reef(broken, journal=tmp_path / "j", settings=settings) as reef:
            for n in range(5):
                await reef.send("broken", {"n": n})
            await reef.wait_idle(10)
            letters = reef.dead_letters()
            assert [letter.spore.knowledge["n"] for letter in letters] == [3, 4], round_
            assert {letter.id for letter in letters} == set(reef.books._dead_rows)


async def test_a_worker_that_is_cancelled_leaves_the_mark_to_others(tmp_path: Path) -> None:
    """Whoever else waits until the journal has an end is not told that it never will."""

    @agent("worker")
    def worker(spore: Spore) -> None: ...

    async with Reef(worker, journal=tmp_path / "j") as reef:
        runner = reef.runners["worker"]
        mark = runner._settling = reef.loop.create_future()
        resting = asyncio.ensure_future(runner._rest())
        await asyncio.sleep(0)
        resting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await resting
        assert not mark.cancelled()


async def test_a_failed_transaction_emits_nothing(tmp_path: Path) -> None:
    """What a transactional handler emitted before it failed never leaves."""
    heard: list[str] = []

    @agent("listener", responds_to=["half"])
    async def listener(spore: Spore) -> None:
        heard.append(spore.id)

    @agent("teller", responds_to=["go"], transactional=True, retries=1)
    async def teller(spore: Spore) -> None:
        broadcast({"type": "half"})
        if spore.attempt == 1:
            raise ValueError("between two writes")

    for journal in (None, tmp_path / "j.sqlite"):
        heard.clear()
        async with TestReef(listener, teller, journal=journal) as reef:
            await reef.broadcast({"type": "go"})
            await reef.settle()
            assert len(heard) == 1
            assert reef.ledger().balanced


async def test_an_id_that_was_accepted_before_is_a_duplicate(tmp_path: Path) -> None:
    """Publishing a spore again, even after a restart, is counted and not handled."""
    path = tmp_path / "j.sqlite"
    handled: list[str] = []

    @agent("once")
    async def once(spore: Spore) -> None:
        handled.append(spore.id)

    async with TestReef(once, journal=path) as reef:
        spore = Spore.create({"n": 1}, created_at=reef.clock(), expires_at=reef.clock() + 60)
        await reef.publish(spore)
        await reef.publish(spore)
        await reef.settle()
        assert reef.ledger().duplicate == 1
    async with TestReef(once, journal=path) as reef:
        await reef.publish(spore)
        await reef.settle()
        assert (reef.ledger().duplicate, reef.ledger().handled) == (1, 0)
    assert handled == [spore.id]


async def test_emissions_are_accepted_when_their_receipt_says_so(tmp_path: Path) -> None:
    """Awaiting the receipt of a broadcast inside a handler waits for the journal's commit."""
    receipts: list[Receipt] = []

    @agent("first", responds_to=["go"])
    async def first(spore: Spore) -> None:
        receipts.append(await broadcast({"type": "next"}))

    @agent("second", responds_to=["next"])
    async def second(spore: Spore) -> None:
        return None

    async with TestReef(first, second, journal=tmp_path / "j.sqlite") as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        assert receipts[0].recipients == 1
        assert reef.ledger().handled == 2


async def test_persistence_is_a_setting(tmp_path: Path) -> None:
    """``enable_persistence`` keeps a journal per namespace under the data directory."""
    configure({"data_dir": str(tmp_path / "data"), "reef_config": {"enable_persistence": True}})
    async with Reef(namespace="desk"):
        assert (tmp_path / "data" / "journals" / "desk.sqlite").exists()
        with pytest.raises(JournalLockedError, match="desk"):
            await Reef(namespace="desk").__aenter__()


async def test_the_ledger_balances_with_a_journal_under_faults(tmp_path: Path) -> None:
    """Failures, retries and the journal together lose and invent nothing."""

    @agent("flaky", retries=2, backoff=1, concurrent=3)
    async def flaky(spore: Spore) -> dict[str, object]:
        return {"type": "done"} if spore.type != "done" else {"seen": True}

    async with TestReef(flaky, journal=tmp_path / "j.sqlite", seed=4, failure=0.4) as reef:
        for n in range(50):
            await reef.broadcast({"type": "job", "n": n})
        await reef.settle()
        ledger = reef.ledger()
        assert ledger.balanced
        assert ledger.pending == 0
        assert ledger.handled + ledger.failed == 50
        assert {loss.outcome for loss in reef.losses} <= {Outcome.FAILED, Outcome.UNDELIVERABLE}


async def test_what_a_start_hook_publishes_is_handled_once(tmp_path: Path) -> None:
    """Taking deliveries back from the journal leaves those alone that were accepted just now."""
    handled: list[str] = []

    @agent("hearer")
    async def hearer(spore: Spore) -> None:
        handled.append(spore.id)

    @agent("greeter", responds_to=["never"])
    async def greeter(spore: Spore) -> None:
        return None

    @greeter.on_start
    async def hello(reef: Reef) -> None:
        await reef.broadcast({"type": "hello"})

    async with Reef(hearer, greeter, journal=tmp_path / "j.sqlite") as reef:
        await reef.wait_idle(5)
        assert reef.ledger().balanced
    assert len(handled) == 1


async def test_a_handler_that_cancels_its_own_task_does_not_stop_its_agent(tmp_path: Path) -> None:
    """With a journal too: it is tried again, given up in the end, and the others are handled."""
    handled: list[int] = []

    @agent("odd")
    async def odd(spore: Spore) -> None:
        if spore.knowledge["n"] == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.Event().wait()
        handled.append(spore.knowledge["n"])

    async with TestReef(odd, journal=tmp_path / "j.sqlite") as reef:
        for n in range(3):
            await reef.broadcast({"n": n})
        await reef.settle()
        assert handled == [1, 2]
        assert (reef.ledger().cancelled, reef.ledger().balanced) == (1, True)


async def test_a_key_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Text that UTF-8 cannot carry is an error of the publisher's; nothing is half-accepted."""

    @agent("sink", responds_to=["x"])
    async def sink(spore: Spore) -> None:
        return None

    @agent("source", responds_to=["go"])
    async def source(spore: Spore) -> None:
        broadcast({"type": "x"}, key="\ud800")

    async with TestReef(sink, source, journal=tmp_path / "j.sqlite") as reef:
        await reef.broadcast({"type": "go"})
        await reef.settle()
        ledger = reef.ledger()
        assert (ledger.deliveries, ledger.failed, ledger.balanced) == (1, 1, True)
        assert "UTF-8" in reef.dead_letters()[0].error
