"""The memory against replay: redelivery is not an attack, and nothing is handled twice."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from praval.core.replay import Begun, Key, Replay, Rows
from praval.core.replay_tables import MemoryTable, SQLiteTable
from praval.errors import KeyringError, ReplayError, SealCode
from tests.sealing import stores
from tests.sealing.actors import NOW, code_of

INSTANCE, SECRET = b"i" * 16, b"k" * 32
SKEW, LEASE = 120_000, 300_000
KEY = Key("bob", b"alice-alice-alic", b"s" * 16)
CONTENT, OTHER = b"c" * 32, b"o" * 32

Make = Callable[..., Replay]


@pytest.fixture(params=["memory", "sqlite", "postgres", "redis"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Make replay memories over one table; each is a replica, or a restart."""
    tables: list[Any] = []
    shared = MemoryTable(INSTANCE)
    vault = stores.vault(request, request.param) if request.param in stores.SERVERS else None
    if vault is not None:
        vault.create(b"box", INSTANCE)

    def make(**options: Any) -> Replay:
        table: Any = shared
        if request.param == "sqlite":
            table = SQLiteTable.open(tmp_path / "s" / "replay.db", instance=INSTANCE, sync="normal")
        elif vault is not None:
            table = vault.open_table("full")
        if table is not shared:
            tables.append(table)
        return Replay(table, instance=INSTANCE, key=SECRET, skew=SKEW, lease=LEASE, **options)

    yield make
    for table in tables:
        table.close()


def begin(
    replay: Replay, key: Key = KEY, content: bytes = CONTENT, now: int = NOW, **at: int
) -> Begun:
    times = {"created": NOW, "expires": NOW + 60_000, **at}
    return replay.begin(key, content, now=now, **times)


# -- one spore ---------------------------------------------------------------------------------


def test_a_redelivery_while_it_is_handled_is_neither_handled_nor_acknowledged(make: Make) -> None:
    """IN_FLIGHT, here and at another replica; it may be retried."""
    one, two = make(), make()
    assert begin(one) == Begun(None, 1, 1)
    for replica in (one, two):
        assert begin(replica).code is SealCode.IN_FLIGHT
    assert SealCode.IN_FLIGHT.retried
    assert not SealCode.IN_FLIGHT.acknowledged


def test_a_failed_handling_is_begun_again_at_once(make: Make) -> None:
    """Released: the next delivery is attempt 2, under a higher fence."""
    one, two = make(), make()
    lease = begin(one)
    assert one.release(KEY, lease.fence)
    assert begin(two) == Begun(None, 2, 2)
    assert not one.release(KEY, lease.fence)


def test_an_unacknowledged_duplicate_is_handled_after_its_handler_died(make: Make) -> None:
    """The lease ends by itself; redelivery is not replay."""
    one, two = make(), make()
    begin(one)
    assert begin(two, now=NOW + LEASE - 1).code is SealCode.IN_FLIGHT
    assert begin(two, now=NOW + LEASE) == Begun(None, 2, 2)


def test_who_lost_its_lease_cannot_commit(make: Make) -> None:
    """The fence tells: the late handler acknowledges nothing, the other one's commit counts."""
    one, two = make(), make()
    old = begin(one)
    new = begin(two, now=NOW + LEASE)
    with pytest.raises(ReplayError, match="lease"):
        one.commit(KEY, old.fence)
    two.commit(KEY, new.fence)
    with pytest.raises(ReplayError):
        two.commit(KEY, new.fence)


def test_a_long_handling_can_renew_its_lease(make: Make) -> None:
    """Then nobody else begins it."""
    one, two = make(), make()
    lease = begin(one)
    one.renew(KEY, lease.fence, now=NOW + LEASE - 1)
    assert begin(two, now=NOW + 2 * LEASE - 2).code is SealCode.IN_FLIGHT
    assert begin(two, now=NOW + 2 * LEASE).code is None
    with pytest.raises(ReplayError):
        one.renew(KEY, lease.fence, now=NOW + 2 * LEASE)


@pytest.mark.parametrize("outcome", ["handled", "dead"])
def test_a_committed_spore_is_a_duplicate_and_another_content_a_replay(
    make: Make, outcome: Any
) -> None:
    """Also for another replica, and after a restart."""
    one = make()
    one.commit(KEY, begin(one).fence, outcome)
    for replica in (one, make()):
        assert begin(replica) == Begun(SealCode.DUPLICATE, outcome=outcome)
        assert begin(replica, content=OTHER).code is SealCode.REPLAY
    assert SealCode.DUPLICATE.acknowledged
    assert not SealCode.REPLAY.acknowledged


@pytest.mark.parametrize("ended", ["leased", "released", "lapsed"])
def test_an_id_is_bound_to_its_first_content(make: Make, ended: str) -> None:
    """Other content under the same id is refused, whatever became of the first."""
    one = make()
    lease = begin(one)
    if ended == "released":
        one.release(KEY, lease.fence)
    later = NOW + (LEASE if ended == "lapsed" else 0)
    assert begin(one, content=OTHER, now=later).code is SealCode.REPLAY


def test_receivers_senders_and_ids_are_apart(make: Make) -> None:
    """The same spore at two agents is handled by both; an id belongs to its sender."""
    one = make()
    keys = [KEY, KEY._replace(receiver="carol"), KEY._replace(sender=b"e" * 16),
            KEY._replace(spore=b"t" * 16)]  # fmt: skip
    assert [begin(one, key).code for key in keys] == [None] * 4


def test_the_table_tells_nothing_of_the_content(tmp_path: Path) -> None:
    """It holds a keyed digest: without the keyring no guess can be checked."""
    table = SQLiteTable.open(tmp_path / "s" / "replay.db", instance=INSTANCE)
    with closing(table):
        begin(Replay(table, instance=INSTANCE, key=SECRET))
        begin(Replay(table, instance=INSTANCE, key=b"x" * 32), KEY._replace(receiver="carol"))
    digests = rows(tmp_path / "s" / "replay.db", "SELECT content FROM entry")
    assert len({digest for (digest,) in digests}) == 2
    assert (CONTENT,) not in digests


def test_many_calls_can_share_one_transaction(make: Make) -> None:
    """Each gets its own answer; one that is refused spoils nothing of the others."""
    one = make()
    with one.batch():
        leases = [begin(one, numbered(n)) for n in range(50)]
        with pytest.raises(ReplayError):
            one.commit(numbered(0), 99)
        for number, lease in enumerate(leases):
            one.commit(numbered(number), lease.fence)
    two = make()
    codes = {begin(two, numbered(number)).code for number in range(50)}
    assert codes == {SealCode.DUPLICATE}


def test_a_batch_that_dies_leaves_nothing(tmp_path: Path) -> None:
    """Nobody was told anything yet."""
    with closing(SQLiteTable.open(tmp_path / "s" / "replay.db", instance=INSTANCE)) as table:
        replay = Replay(table, instance=INSTANCE, key=SECRET)

        def dies() -> None:
            with replay.batch():
                assert begin(replay).code is None
                raise Crash

        with pytest.raises(Crash):
            dies()
        assert begin(replay).code is None


# -- bounded memory ------------------------------------------------------------------------------


def test_entries_live_until_expiry_and_three_skews(make: Make) -> None:
    """As long as the envelope could be accepted by any clock there is."""
    one = make()
    one.commit(KEY, begin(one).fence)
    end = NOW + 60_000 + 3 * SKEW
    assert one.purge(end) == 0
    assert begin(one, now=end).code is SealCode.DUPLICATE
    assert one.purge(end + 1) == 1
    assert begin(one, now=end + 1).code is SealCode.EXPIRED


def test_what_is_being_handled_is_not_forgotten(make: Make) -> None:
    """A handler may outlast the spore."""
    one = make()
    lease = begin(one, expires=NOW + 1)
    one.renew(KEY, lease.fence, now=NOW + LEASE)
    assert one.purge(NOW + 3 * SKEW + 2) == 0
    one.commit(KEY, lease.fence)


def numbered(number: int, sender: bytes = KEY.sender) -> Key:
    return Key("bob", sender, number.to_bytes(16, "big"))


def test_a_full_quota_makes_room_by_a_floor_below_which_nothing_is_accepted(make: Make) -> None:
    """A replay of what had to be forgotten is refused, not handled."""
    one = make(quota=10)
    late = NOW + 10 * SKEW
    for number in range(25):
        at = NOW + number * 1000
        lease = begin(one, numbered(number), created=at, expires=late + SKEW, now=late)
        assert lease.code is None, number
        one.commit(numbered(number), lease.fence)
    again = [
        begin(one, numbered(n), created=NOW + n * 1000, expires=late + SKEW, now=late).code
        for n in range(25)
    ]
    assert again == [SealCode.EXPIRED] * 15 + [SealCode.DUPLICATE] * 10
    fresh = begin(one, numbered(99), created=NOW + 5000, expires=late + SKEW, now=late)
    assert fresh.code is SealCode.EXPIRED


def test_the_floor_stays_a_skew_below_the_clock_and_one_sender_cannot_hurt_another(
    make: Make,
) -> None:
    """A flood is limited; what others send now is accepted."""
    one = make(quota=5)
    codes = []
    for number in range(8):
        lease = begin(one, numbered(number), created=NOW, now=NOW)
        codes.append(lease.code)
        if lease.code is None:
            one.commit(numbered(number), lease.fence)
    assert codes == [None] * 5 + [SealCode.RATE_LIMITED] * 3
    assert begin(one, numbered(1, b"m" * 16)).code is None


def test_what_is_not_committed_is_never_evicted(make: Make) -> None:
    """Or it could be handled twice."""
    one = make(quota=3)
    for number in range(3):
        begin(one, numbered(number), now=NOW + 2 * SKEW, expires=NOW + 9 * SKEW)
    late = begin(one, numbered(9), created=NOW + 1, now=NOW + 2 * SKEW, expires=NOW + 9 * SKEW)
    assert late.code is SealCode.RATE_LIMITED


# -- clocks ---------------------------------------------------------------------------------------


def test_the_clock_never_goes_back(make: Make) -> None:
    """A lease that ended stays ended, and what is expired stays so, also after a restart."""
    one = make()
    begin(one)
    begin(one, numbered(1), now=NOW + LEASE)
    assert begin(make(), now=NOW).code is None  # the first lease is over: the clock said so


@pytest.mark.parametrize("jump", [SKEW + 1, -SKEW - 1, 400 * 86_400_000])
def test_a_clock_that_jumps_stops_everything_until_somebody_looked(make: Make, jump: int) -> None:
    """Nothing is begun or purged; afterwards what was created before is refused."""
    one = make()
    one.check_clock(NOW, 0)
    one.check_clock(NOW + 50_000, 50_000 + SKEW)
    begin(one)
    with pytest.raises(ReplayError, match="clock"):
        one.check_clock(NOW + 60_000 + jump, 60_000)
    for call in (lambda: begin(one), lambda: one.purge(NOW), lambda: one.check_clock(NOW, 0)):
        with pytest.raises(ReplayError, match="clock"):
            call()
    one.trust_clock(NOW + 70_000, 70_000)
    one.check_clock(NOW + 80_000, 80_000)
    late = NOW + 80_000
    assert begin(one, numbered(5), created=NOW + 70_000, now=late).code is SealCode.EXPIRED
    fresh = begin(one, numbered(6), created=NOW + 70_001, expires=NOW + 200_000, now=late)
    assert fresh.code is None


def test_a_clock_that_was_set_back_while_nobody_ran_is_noticed_at_the_start(make: Make) -> None:
    """What was recorded is ahead of the wall."""
    begin(make(), now=NOW)
    with pytest.raises(ReplayError, match="clock"):
        make().check_clock(NOW - SKEW - 1, 0)
    make().check_clock(NOW - SKEW, 0)


# -- the table itself ------------------------------------------------------------------------------


def rows(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as db:
        found = db.execute(sql).fetchall()
        db.commit()
        return found


def test_nothing_is_handled_twice_across_a_hundred_restarts(tmp_path: Path) -> None:
    """Each time the table is opened anew, all that came before is replayed at it."""
    path = tmp_path / "s" / "replay.db"
    seen: list[Key] = []
    for restart in range(120):
        table = SQLiteTable.open(path, instance=INSTANCE, sync="normal")
        with closing(table):
            replay = Replay(table, instance=INSTANCE, key=SECRET)
            for key in seen[-40:] + seen[:5]:
                assert begin(replay, key).code is SealCode.DUPLICATE
                assert begin(replay, key, OTHER).code is SealCode.REPLAY
            key = numbered(restart)
            replay.commit(key, begin(replay, key).fence)
            seen.append(key)
    assert rows(path, "SELECT count(*), max(fence) FROM entry") == [(120, 120)]


def test_a_deleted_or_foreign_table_is_noticed(tmp_path: Path) -> None:
    """It is neither made anew in silence nor used."""
    path = tmp_path / "s" / "replay.db"
    SQLiteTable.open(path, instance=INSTANCE).close()
    path.unlink()
    with pytest.raises(ReplayError, match="missing"):
        SQLiteTable.open(path)
    with closing(SQLiteTable.open(path, instance=b"another instance")) as table:  # noqa: SIM117
        with pytest.raises(ReplayError, match="another keyring"):
            Replay(table, instance=INSTANCE, key=SECRET)


@pytest.mark.parametrize("content", [b"", b"junk" * 1000], ids=["empty", "junk"])
def test_a_file_that_is_no_table_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """The error is ours, and says so."""
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    path = folder / "replay.db"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ReplayError):
        SQLiteTable.open(path)
    assert path.read_bytes()[:4] == content[:4]


def test_a_table_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """Mode 0600 in a folder 0700, or nothing."""
    path = tmp_path / "s" / "replay.db"
    SQLiteTable.open(path, instance=INSTANCE).close()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(KeyringError, match="chmod 600"):
        SQLiteTable.open(path)


def test_a_failure_in_the_middle_of_a_transaction_leaves_nothing(tmp_path: Path) -> None:
    """A crash between any two statements is a crash before the first."""
    path = tmp_path / "s" / "replay.db"
    for crash_at in itertools.count():
        table = SQLiteTable.open(path, instance=INSTANCE, sync="normal")
        with closing(table):
            replay = Replay(Crashing(table, crash_at), instance=INSTANCE, key=SECRET)
            try:
                lease = begin(replay)
                replay.commit(KEY, lease.fence)
                break
            except Crash:
                pass
        count = rows(path, "SELECT count(*) FROM entry WHERE outcome IS NOT NULL")[0][0]
        assert count == 0
        rows(path, "UPDATE entry SET leased_until = 0")
    assert crash_at > 8


class Crash(BaseException):
    """The process dies here."""


class Crashing:
    """A table whose process dies at a chosen step."""

    def __init__(self, table: SQLiteTable | MemoryTable, at: int) -> None:
        self._table, self._left = table, at
        self.instance = table.instance

    def transaction(self) -> AbstractContextManager[Rows]:
        return self._transaction()

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._table.transaction() as found:
            yield _CrashingRows(found, self)
            self.step()  # before the commit

    def step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Crash


class _CrashingRows:
    def __init__(self, found: Any, table: Crashing) -> None:
        self._rows, self._table = found, table

    def __getattr__(self, name: str) -> Any:
        self._table.step()
        return getattr(self._rows, name)


# -- a model ---------------------------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """Two replicas, a broker that redelivers and replays, handlers that fail, crashes, restarts.

    What holds throughout: a handler's effect is committed at most once per id, and only for the
    first content of that id; what was committed is never begun again.
    """

    SPORES = st.integers(0, 4)

    @initialize()
    def start(self) -> None:
        self.table = MemoryTable(INSTANCE)
        self.replicas = [self.replica(), self.replica()]
        self.now = NOW
        self.running: list[tuple[int, int, int, bytes]] = []  # replica, spore, fence, content
        self.committed: dict[int, bytes] = {}
        self.first: dict[int, bytes] = {}
        self.fences: set[int] = set()

    def replica(self) -> Replay:
        return Replay(self.table, instance=INSTANCE, key=SECRET, skew=SKEW, lease=LEASE, quota=4)

    @rule(spore=SPORES, content=st.sampled_from([CONTENT, OTHER]), which=st.integers(0, 1))
    def deliver(self, spore: int, content: bytes, which: int) -> None:
        expires = NOW + 40 * SKEW
        begun = begin(
            self.replicas[which], numbered(spore), content,
            created=NOW + spore * 1000, expires=expires, now=self.now,
        )  # fmt: skip
        if begun.code is None:
            assert spore not in self.committed
            assert self.first.setdefault(spore, content) == content
            assert begun.fence not in self.fences
            self.fences.add(begun.fence)
            self.running.append((which, spore, begun.fence, content))
        elif begun.code is SealCode.DUPLICATE:
            assert self.committed[spore] == content
        elif begun.code is SealCode.REPLAY:
            assert self.first[spore] != content
        elif begun.code is SealCode.IN_FLIGHT:
            assert any(each[1] == spore for each in self.running) or spore in self.crashed

    crashed: set[int] = set()  # noqa: RUF012 - made anew by the first crash

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 20))
    def finish(self, index: int) -> None:
        which, spore, fence, content = self.running.pop(index % len(self.running))
        try:
            self.replicas[which].commit(numbered(spore), fence)
        except ReplayError:
            assert self.lost(spore, fence)
        else:
            assert spore not in self.committed
            self.committed[spore] = content

    def lost(self, spore: int, fence: int) -> bool:
        """Whether another lease came after this one, or the entry is gone."""
        entry = self.table.entries.get(numbered(spore))
        return entry is None or entry.fence != fence or entry.outcome is not None

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 20))
    def fail(self, index: int) -> None:
        which, spore, fence, _ = self.running.pop(index % len(self.running))
        self.replicas[which].release(numbered(spore), fence)

    @rule(which=st.integers(0, 1))
    def crash(self, which: int) -> None:
        self.crashed = self.crashed | {each[1] for each in self.running if each[0] == which}
        self.running = [each for each in self.running if each[0] != which]
        self.replicas[which] = self.replica()

    @rule(passed=st.sampled_from([1, 1000, SKEW, LEASE, 10 * SKEW]))
    def wait(self, passed: int) -> None:
        self.now += passed

    @rule(which=st.integers(0, 1))
    def purge(self, which: int) -> None:
        self.replicas[which].purge(self.now)

    @rule(back=st.sampled_from([1, SKEW]), which=st.integers(0, 1))
    def clock_goes_back(self, back: int, which: int) -> None:
        """Within the skew: nobody notices, and nothing may come of it."""
        self.replicas[which].purge(self.now - back)

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "table"):
            assert len(self.table.entries) <= 4
            assert self.table.count("bob", KEY.sender) == len(self.table.entries)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


def test_without_its_memory_the_model_fails() -> None:
    """The model can find what it looks for: a table that forgets is caught."""

    class Forgetful(Model):
        @rule()
        def forget(self) -> None:
            self.table.entries.clear()
            self.table._counts.clear()

    case = Forgetful.TestCase
    case.settings = settings(max_examples=300, stateful_step_count=40, database=None)
    with pytest.raises((AssertionError, ExceptionGroup)):
        case().runTest()


def test_a_lost_table_raises_the_floor_for_everybody(make: Make) -> None:
    """Reset: whatever was created before now is refused, whoever sent it."""
    one = make()
    one.reset(NOW)
    assert begin(one).code is SealCode.EXPIRED
    assert begin(one, numbered(1, b"z" * 16)).code is SealCode.EXPIRED
    assert begin(one, created=NOW + 1).code is None
    assert code_of(lambda: one.purge(NOW)) == "ok"
