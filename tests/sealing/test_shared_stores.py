"""One suite for all secure stores: a folder, PostgreSQL and Redis, the servers over TLS.

What is of files only is in test_key_store; the replay memory itself is in test_replay, which runs
on all tables, too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis

from praval.core import postgres_connection, redis_connection
from praval.core.key_box import CHEAP
from praval.core.key_store import KeyStore
from praval.core.key_vaults import vault_for
from praval.core.keys import Keyring
from praval.core.lifetimes import DAY
from praval.core.replay import Key
from praval.errors import ConfigurationError, KeyringError, PassphraseError, ReplayError, SealCode
from praval.secure_settings import SecureSporesSettings
from tests.sealing import stores
from tests.sealing.actors import NOW, a_root, host
from tests.servers import PostgreSQL, Redis, Server
from tests.servers.plugin import FreshServer

PASSPHRASE = "horse battery"
CANARY = b"canary-2c77"


@pytest.fixture(params=["folder", *stores.SERVERS])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place without a store."""
    if request.param == "folder":
        return str(tmp_path / "secure")
    server = request.getfixturevalue(stores.SERVERS[request.param])
    assert isinstance(server, Server)
    return stores.url(server)


@contextmanager
def client(where: str) -> Iterator[redis.Redis]:
    """What an administrator of the Redis server uses."""
    db = redis_connection.connect(redis_connection.place_of(where, allow_plaintext=False)[0])
    yield db
    db.close()


_stores: list[KeyStore] = []


@pytest.fixture(autouse=True)
def _all_closed() -> Iterator[None]:
    """Close what the tests have opened."""
    yield
    for store in _stores:
        store.close()
    _stores.clear()


def made(where: str, keyring: Keyring | None = None) -> KeyStore:
    _stores.append(KeyStore.create(where, keyring or host("bob"), PASSPHRASE, cost=CHEAP))
    return _stores[-1]


def opened(where: str, now: int = NOW) -> KeyStore:
    _stores.append(KeyStore.open(where, PASSPHRASE, now=now))
    return _stores[-1]


def test_a_store_gives_back_what_was_put_in(where: str) -> None:
    """Keys, cards, instance; to whoever knows the passphrase."""
    keyring = host("bob")
    made(where, keyring)
    again = opened(where).keyring
    assert again.names == ["bob"]
    assert again.card("bob") == keyring.card("bob")
    assert (again.instance, again.replay_key) == (keyring.instance, keyring.replay_key)
    assert again.journal_key == keyring.journal_key
    with pytest.raises(PassphraseError):
        KeyStore.open(where, "wrong", now=NOW)


def test_there_is_one_store_in_a_place(where: str) -> None:
    """A second one is refused, and the first is as it was."""
    made(where)
    with pytest.raises(KeyringError, match="already"):
        made(where, host("mallory"))
    assert opened(where).keyring.names == ["bob"]


def test_a_place_without_a_store_is_told(where: str) -> None:
    """With what to do."""
    with pytest.raises(KeyringError, match=r"no store|does not exist"):
        opened(where)


def test_of_many_replicas_one_rotates_and_all_have_the_keys(where: str) -> None:
    """Rotation is due for all at once; the lock of the store makes it one."""
    made(where)
    later = NOW + DAY + 1
    epochs: set[int] = set()
    cards: list[bytes] = []
    replicas = [opened(where) for _ in range(6)]
    threads = [threading.Thread(target=lambda r=r: cards.extend(r.tick(later))) for r in replicas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for replica in replicas:
        with replica.changing(later) as keyring:
            epochs.add(keyring.get("bob").epoch)
    assert len(cards) == 1
    assert len(epochs) == 1


def test_no_replica_undoes_what_another_one_did(where: str) -> None:
    """Each sees the other's changes before it makes its own."""
    made(where)
    first, second = opened(where), opened(where)
    with first.changing(NOW) as keyring:
        keyring.directory.roots.add(host("x").directory.roots.copy().pop())
        keyring.subscribe("bob", ["one"], now=NOW)
    with second.changing(NOW) as keyring:
        assert keyring.get("bob").subscriptions == ("one",)
        keyring.subscribe("bob", ["one", "two"], now=NOW)
    assert opened(where).keyring.get("bob").subscriptions == ("one", "two")


def test_a_change_that_fails_is_none(where: str) -> None:
    """What raises inside leaves the store as it was."""
    made(where)
    store = opened(where)

    def change() -> None:
        with store.changing(NOW) as keyring:
            keyring.subscribe("bob", ["one"], now=NOW)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change()
    assert opened(where).keyring.get("bob").subscriptions != ("one",)


def test_a_replay_memory_that_is_not_ours_stops_everything(where: str) -> None:
    """One that was lost or made anew; recovering makes new keys and a floor."""
    store = made(where)
    with store.vault.locked():
        store.vault.renew_table(bytes(16))
    with pytest.raises(ReplayError, match="another keyring"):
        opened(where).replay()
    lost = opened(where)
    before = lost.keyring.get("bob").prekeys
    lost.recover(now=NOW)
    replay = opened(where).replay()
    late = replay.begin(
        Key("bob", bytes(16), bytes(16)), b"old", created=NOW - 1, expires=NOW + 9, now=NOW
    )
    assert late.code is SealCode.EXPIRED
    assert not set(before) & set(opened(where).keyring.get("bob").prekeys)


# -- two processes ---------------------------------------------------------------------------------

WORKER = """
import sys, time
from praval.core.key_store import KeyStore
from praval.core.replay import Key
where, first, last, mode = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
now = lambda: int(time.time() * 1000)
store = KeyStore.open(where, "horse battery", now=now())
replay = store.replay(sync="normal")
replay.lease = 1000
for number in range(first, last):
    key, content = Key("bob", bytes(16), number.to_bytes(16, "big")), str(number).encode()
    begun = replay.begin(key, content, created=now(), expires=now() + 600000, now=now())
    print(number, begun.code.value if begun.code else "handled", begun.attempt, flush=True)
    if mode == "die":
        time.sleep(60)
    if begun.code is None:
        replay.commit(key, begun.fence)
store.close()
"""


def worker(where: str, first: int, last: int, mode: str = "commit") -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WORKER, where, str(first), str(last), mode]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str]) -> list[list[str]]:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return [line.split() for line in output.splitlines()]


def test_replicas_handle_each_spore_once_also_after_a_restart(where: str) -> None:
    """Two processes race for the same spores, then a third one comes."""
    made(where)
    racing = [worker(where, 0, 60) for _ in range(2)]
    said = [line for process in racing for line in lines(process)]
    handled = Counter(number for number, code, _ in said if code == "handled")
    assert handled == {str(number): 1 for number in range(60)}
    assert {code for _, code, _ in said} <= {"handled", "duplicate", "in_flight"}
    assert {code for _, code, _ in lines(worker(where, 0, 60))} == {"duplicate"}


def test_what_a_killed_replica_had_begun_another_one_takes_when_its_lease_is_over(
    where: str,
) -> None:
    """Neither lost nor taken too early; it is the second attempt."""
    made(where)
    dying = worker(where, 7, 8, "die")
    assert dying.stdout is not None
    assert dying.stdout.readline().split() == ["7", "handled", "1"]
    dying.kill()
    dying.communicate()
    assert [code for _, code, _ in lines(worker(where, 7, 8))] == ["in_flight"]
    deadline = time.monotonic() + 20
    while (said := lines(worker(where, 7, 8))) == [["7", "in_flight", "0"]]:
        assert time.monotonic() < deadline
    assert said == [["7", "handled", "2"]]


def test_who_lost_its_lease_cannot_commit(where: str) -> None:
    """The fencing number has risen meanwhile: nothing is acknowledged."""
    made(where)
    slow, quick = opened(where).replay(), opened(where).replay()
    slow.lease = quick.lease = 1000
    key = Key("bob", bytes(16), bytes(16))
    times = {"created": NOW, "expires": NOW + 60_000}
    old = slow.begin(key, b"x", now=NOW, **times)
    new = quick.begin(key, b"x", now=NOW + 1001, **times)
    assert (new.attempt, new.fence > old.fence) == (2, True)
    with pytest.raises(ReplayError, match=r"lease .* was lost"):
        slow.commit(key, old.fence)
    quick.commit(key, new.fence)
    assert slow.begin(key, b"x", now=NOW + 1002, **times).code is SealCode.DUPLICATE


def test_many_spores_in_one_transaction(where: str) -> None:
    """Begun and committed together, and forgotten when they have expired."""
    made(where)
    store = opened(where)
    replay = store.replay(sync="normal")
    keys = [Key("bob", bytes(16), number.to_bytes(16, "big")) for number in range(300)]
    with replay.batch():
        begun = [replay.begin(key, b"x", created=NOW, expires=NOW + 1000, now=NOW) for key in keys]
    with replay.batch():
        for key, each in zip(keys, begun, strict=True):
            replay.commit(key, each.fence)
    assert replay.purge(NOW + 2000) == 0
    assert replay.purge(NOW + 1000 + 3 * replay.skew + 1) == 300
    assert replay.purge(NOW + 1000 + 3 * replay.skew + 1) == 0


HOLDER = """
import sys, time
from praval.core import redis_connection
from praval.core.key_store import KeyStore
from praval.core.replay import Key
redis_connection.LOCKED = 2000
now = int(sys.argv[2])
store = KeyStore.open(sys.argv[1], "horse battery", now=now)
replay = store.replay()
with store.changing(now) as keyring, replay.batch():
    keyring.subscribe("bob", ["undone"], now=now)
    key = Key("bob", bytes(16), bytes(16))
    replay.begin(key, b"x", created=now, expires=now + 60000, now=now)
    print("inside", flush=True)
    time.sleep(60)
"""


def test_a_replica_that_is_killed_in_the_middle_of_a_change_hinders_nobody_for_long(
    where: str,
) -> None:
    """Its locks end, and nothing of what it was about to write is there."""
    made(where)
    dying = subprocess.Popen(
        [sys.executable, "-c", HOLDER, where, str(NOW)], stdout=subprocess.PIPE, text=True
    )
    assert dying.stdout is not None
    assert dying.stdout.readline() == "inside\n"
    dying.kill()
    dying.communicate()
    store = opened(where)
    with store.changing(NOW) as keyring:
        assert keyring.get("bob").subscriptions != ("undone",)
    begun = store.replay().begin(
        Key("bob", bytes(16), bytes(16)), b"x", created=NOW, expires=NOW + 60_000, now=NOW
    )
    assert (begun.code, begun.attempt) == (None, 1)


def test_locks_end_before_those_who_wait_for_them_give_up() -> None:
    """Or the death of one replica would be the failure of all."""
    assert redis_connection.PATIENCE * 1000 > redis_connection.LOCKED
    assert postgres_connection.STATEMENT > postgres_connection.IDLE
    assert postgres_connection.SILENCE > postgres_connection.STATEMENT


# -- servers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PostgreSQL, Redis])
def test_a_server_that_goes_away_is_told_and_found_again(
    fresh_server: FreshServer, kind: type[PostgreSQL | Redis]
) -> None:
    """Typed errors while it is away, nothing half-done, and no new start of ours."""
    server = fresh_server(kind, durable=True)
    where = stores.url(server)
    made(where)
    store = opened(where)
    replay = store.replay()
    key, times = Key("bob", bytes(16), bytes(16)), {"created": NOW, "expires": NOW + 60_000}
    begun = replay.begin(key, b"x", now=NOW, **times)
    server.kill()
    with pytest.raises(ReplayError, match="cannot be used") as lost:
        replay.commit(key, begun.fence)
    with pytest.raises(KeyringError, match="cannot be used") as away:
        store.tick(NOW)
    for error in (lost.value, away.value):
        assert server.password not in f"{error} {error.__cause__} {error.__cause__!r}"
    server.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            replay.commit(key, begun.fence)
            break
        except ReplayError:  # it is still starting
            time.sleep(0.1)
    assert replay.begin(key, b"x", now=NOW, **times).code is SealCode.DUPLICATE
    store.tick(NOW)


@pytest.mark.parametrize("kind", stores.SERVERS)
def test_a_server_sees_no_key_no_content_and_no_name_it_needs_not(
    request: pytest.FixtureRequest, kind: str
) -> None:
    """All that it holds of a store is searched."""
    server = request.getfixturevalue(stores.SERVERS[kind])
    where = stores.url(server, "searched")
    keyring = host("bob")
    store = made(where, keyring)
    replay = store.replay()
    key = Key("bob", bytes(16), bytes(range(16)))
    begun = replay.begin(key, CANARY, created=NOW, expires=NOW + 9, now=NOW)
    replay.commit(key, begun.fence)
    box = store.vault.read()
    secrets = [keyring.replay_key, keyring.journal_key, keyring.audit_key, CANARY]
    secrets += [keyring.get("bob").identity.reveal()]
    if isinstance(server, PostgreSQL):
        rows = server.psql("select * from praval_replay_entry; select * from praval_store")
        held = rows.encode() + box
        for secret in secrets:
            assert secret.hex() not in rows
    else:
        with client(where) as db:
            held = box + b"".join(
                db.dump(name) or b"" for name in db.scan_iter(match="{praval:searched}:*")
            )
    for secret in secrets:
        assert secret not in held


@pytest.mark.parametrize(
    "where",
    [
        "redis://host/", "rediss://host/?ssl_cert_reqs=none", "postgresql://host/db?sslmode=disable",
        "rediss://host/?ssl_check_hostname=false", "rediss://host/?ssl_check_hostname=0",
        "rediss://host/?ssl_check_hostname=No", "postgresql://host/db?sslmode=require",
        "mysql://host/",
    ],
)  # fmt: skip
def test_a_server_that_is_not_verified_is_refused(where: str) -> None:
    """Unless it is allowed in so many words."""
    with pytest.raises(ConfigurationError):
        vault_for(where)
    if not where.startswith("mysql"):
        vault_for(where, allow_plaintext=True)


@pytest.mark.parametrize(
    "where",
    [
        "postgresql://host/db?sslmode=verify-full&ssl=true", "postgresql://host/db?%73sl=true",
        "postgresql://host/db?sslmode=verify-full&requiressl=0",
        "rediss://host/?foo=1", "rediss://host/?db=x", "rediss://host/desk", "rediss://host/?db=-1",
        "rediss://host/?socket_timeout=abc", "rediss://host/?ssl_min_version=9",
        "redis://host/?ca_cert=ca.pem",
    ],
)  # fmt: skip
@pytest.mark.parametrize("allow_plaintext", [False, True])
def test_an_option_that_is_not_ours_is_refused_at_once(where: str, allow_plaintext: bool) -> None:
    """libpq lets some overrule sslmode, and redis-py raises what nobody expects."""
    with pytest.raises(ConfigurationError):
        vault_for(where, allow_plaintext=allow_plaintext)


@pytest.mark.parametrize(
    ("where", "driver", "extra"),
    [("postgresql://host/db", "psycopg", "postgres"), ("rediss://host/", "redis", "redis")],
)
def test_a_missing_driver_is_told_with_what_installs_it(
    where: str, driver: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drivers are extras."""
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(ConfigurationError, match=rf"praval-asyncio\[{extra}\]"):
        vault_for(where)


@pytest.mark.parametrize("kind", stores.SERVERS)
def test_a_server_of_another_authority_is_refused(
    request: pytest.FixtureRequest, kind: str
) -> None:
    """The certificate is verified, and so is the name."""
    server = request.getfixturevalue(stores.SERVERS[kind])
    trusted = stores.url(server)
    with pytest.raises(KeyringError, match=r"(?i)certificate"):
        made(trusted.partition("&ca_cert")[0].replace("?ca_cert", "?x"))


@pytest.mark.parametrize("kind", stores.SERVERS)
def test_no_password_shows(request: pytest.FixtureRequest, kind: str) -> None:
    """Not in the repr, not in the error of a wrong one."""
    server = request.getfixturevalue(stores.SERVERS[kind])
    store = made(stores.url(server))
    assert server.password not in f"{store!r} {store.vault!r}"
    wrong = stores.url(server).replace(server.password, "hunter2-wrong")
    with pytest.raises(KeyringError) as refused:
        made(wrong)
    assert "hunter2" not in f"{refused.value} {refused.value.__cause__!r}"


@pytest.mark.parametrize("scheme", ["postgresql", "rediss"])
@pytest.mark.parametrize(
    "password", ["hunter/2", "hunter@2", "hunter%zz2", "hunter#2", "hunter?2", "hunter[2"]
)  # fmt: skip
def test_a_password_that_breaks_its_url_is_not_repeated(scheme: str, password: str) -> None:
    """The driver would take it for a host or a port and quote it; so it never gets it."""
    url = f"{scheme}://praval:{password}@localhost:1/"
    with pytest.raises(ConfigurationError, match="cannot be read") as refused:
        vault_for(url)
    assert "hunter" not in f"{refused.value} {SecureSporesSettings(keys_path=url)!r}"
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize("scheme", ["postgresql", "rediss"])
def test_a_password_of_any_characters_can_be_encoded(scheme: str) -> None:
    """As %XX; the vault shows the host only."""
    password = quote("hunter/@%#?[: 2", safe="")
    assert "hunter" not in repr(vault_for(f"{scheme}://praval:{password}@localhost:1/"))


@pytest.mark.parametrize("kind", [PostgreSQL, Redis])
def test_a_server_that_says_nothing_is_given_up(
    fresh_server: FreshServer, kind: type[PostgreSQL | Redis], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs, its connections stay: there is an error in time, and all is well later."""
    monkeypatch.setattr(redis_connection, "SECONDS", 2)
    monkeypatch.setattr(redis_connection, "LOCKED", 2000)
    server = fresh_server(kind)
    where = stores.url(server)
    made(where)
    replay, times = opened(where).replay(), {"created": NOW, "expires": NOW + 60_000}
    key = Key("bob", bytes(16), bytes(16))
    begun = replay.begin(key, b"x", now=NOW, **times)
    with hanging(server), monkeypatch.context() as patch:
        patch.setattr(postgres_connection, "SILENCE", 1)
        with pytest.raises(ReplayError, match=r"(?i)not answered|timeout"):
            replay.commit(key, begun.fence)
    replay.commit(key, begun.fence)
    assert replay.begin(key, b"x", now=NOW, **times).code is SealCode.DUPLICATE


@contextmanager
def hanging(server: PostgreSQL | Redis) -> Iterator[None]:
    """Stop what serves the connections of a server, without closing them."""
    assert server.pid
    pids = [server.pid]
    if isinstance(server, PostgreSQL):
        asked = "select pid from pg_stat_activity where backend_type = 'client backend'"
        pids = [int(pid) for pid in server.psql(f"{asked} and pid <> pg_backend_pid()").split()]

    def tell(what: signal.Signals) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):  # its connection was closed a moment ago
                os.kill(pid, what)

    tell(signal.SIGSTOP)
    try:
        yield
    finally:
        tell(signal.SIGCONT)


@pytest.mark.parametrize("lost", ["a begin", "a commit"])
@pytest.mark.parametrize("kind", stores.SERVERS)
def test_a_memory_that_was_set_back_is_noticed_by_who_is_at_work(
    request: pytest.FixtureRequest, kind: str, lost: str
) -> None:
    """Even by one transaction: a restored server, or one that lost what it had confirmed."""
    server = request.getfixturevalue(stores.SERVERS[kind])
    store = f"restored-{kind}-{lost[2:]}"
    where = stores.url(server, store)
    made(where)
    replay, times = opened(where).replay(), {"created": NOW, "expires": NOW + 60_000}
    key = Key("bob", bytes(16), bytes(16))
    begun = replay.begin(key, b"x", now=NOW, **times)
    with set_back(server, store):
        if lost == "a commit":
            replay.commit(key, begun.fence)
        else:
            replay.begin(key._replace(spore=b"s" * 16), b"x", now=NOW, **times)
    with pytest.raises(ReplayError, match="was set back") as noticed:
        replay.begin(key, b"x", now=NOW + replay.lease, **times)
    assert noticed.value.code is SealCode.REPLAY


@contextmanager
def set_back(server: PostgreSQL | Redis, store: str) -> Iterator[None]:
    """Undo on the server what the block does to the numbers of a store."""
    if isinstance(server, PostgreSQL):
        of_store = f"praval_replay where store = '{store}'"
        numbers = "clock, fence, number"
        before = server.psql(f"select {numbers} from {of_store}").strip().replace("|", ", ")
        yield
        server.psql(f"update praval_replay set ({numbers}) = ({before}) where store = '{store}'")
        return
    with client(stores.url(server, store)) as db:
        fields: Any = db.hgetall(name := f"{{praval:{store}}}:replay")
        yield
        db.hset(name, mapping=fields)


def test_a_redis_that_throws_keys_away_is_refused(fresh_server: FreshServer) -> None:
    """What was handled must not be forgotten because the memory is full."""
    where = stores.url(fresh_server(Redis))
    made(where)
    with client(where) as db:
        db.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(ReplayError, match="maxmemory-policy allkeys-lru"):
            opened(where).replay()
        db.config_set("maxmemory-policy", "noeviction")
    opened(where).replay()


def test_a_redis_transaction_that_took_too_long_writes_nothing(
    redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process had the lock meanwhile."""
    monkeypatch.setattr(redis_connection, "LOCKED", 50)
    where = stores.url(redis_server)
    made(where)
    slow, quick = opened(where), opened(where)
    replay, other = slow.replay(), quick.replay()
    key, times = Key("bob", bytes(16), bytes(16)), {"created": NOW, "expires": NOW + 60_000}

    def take_long() -> None:
        with replay.batch():
            replay.begin(key, b"slow", now=NOW, **times)
            begun = other.begin(key, b"quick", now=NOW, **times)  # waits until the lock has ended
            other.commit(key, begun.fence)

    with pytest.raises(ReplayError, match="lock of the replay memory was lost"):
        take_long()
    assert replay.begin(key, b"quick", now=NOW, **times).code is SealCode.DUPLICATE

    def change() -> None:
        with slow.changing(NOW) as keyring:
            keyring.subscribe("bob", ["slow"], now=NOW)
            with quick.changing(NOW) as theirs:
                theirs.subscribe("bob", ["quick"], now=NOW)

    with pytest.raises(KeyringError, match=r"lock of .* was lost"):
        change()
    assert opened(where).keyring.get("bob").subscriptions == ("quick",)


@pytest.mark.parametrize("kind", stores.SERVERS)
def test_a_new_memory_takes_nothing_from_a_transaction_with_the_old_one(
    request: pytest.FixtureRequest, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits until that has ended; otherwise entries under the old keys would be in it."""
    where = stores.url(request.getfixturevalue(stores.SERVERS[kind]))
    made(where)
    new, old = opened(where), opened(where)
    replay, inside, renewed = old.replay(), threading.Event(), threading.Event()
    key = Key("bob", bytes(16), bytes(16))
    renew = new.vault.renew_table

    def renew_and_tell(instance: bytes) -> None:
        renew(instance)
        renewed.set()

    def work() -> None:
        with replay.batch():
            replay.begin(key, b"x", created=NOW, expires=NOW + 9, now=NOW)
            inside.set()
            renewed.wait(1)

    monkeypatch.setattr(new.vault, "renew_table", renew_and_tell)
    working = threading.Thread(target=work)
    working.start()
    inside.wait()
    new.recover(now=NOW + 1)
    working.join()
    begun = new.replay().begin(key, b"x", created=NOW + 2, expires=NOW + 9, now=NOW + 2)
    assert (begun.code, begun.attempt) == (None, 1)
    with pytest.raises(ReplayError, match="made anew"):
        replay.begin(key, b"x", created=NOW + 2, expires=NOW + 9, now=NOW + 2)


@pytest.mark.parametrize("when", ["written", "confirmed"])
def test_a_change_that_could_not_be_written_is_undone(
    where: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card that other replicas do not know must not be used, or they would stop for it."""
    made(where)
    store = opened(where)
    before, said, locked = store.keyring.dump(), store.keyring.card("bob"), store.vault.locked

    def fails(box: bytes) -> None:
        raise KeyringError("The server went away.")

    @contextmanager
    def fails_at_its_end() -> Iterator[None]:
        with locked():
            yield
            fails(b"")

    if when == "written":
        monkeypatch.setattr(store.vault, "write", fails)
    else:
        monkeypatch.setattr(store.vault, "locked", fails_at_its_end)

    def change() -> None:
        with store.changing(NOW + 5) as keyring:
            keyring.rotate("bob", now=NOW + 5)
            keyring.directory.roots.add(a_root("second").verify_key)

    with pytest.raises(KeyringError, match="went away"):
        change()
    assert store.keyring.dump() == before
    assert [known.data for known in store.keyring.directory.known(NOW)] == [said]
    monkeypatch.undo()
    store.tick(NOW + 6)  # takes what the server has: that was written after all, or not
    assert opened(where).keyring.dump() == store.keyring.dump()


def test_a_database_with_stricter_transactions_does_as_well(fresh_server: FreshServer) -> None:
    """Ours lock what they change; they must see what was written while they waited for it."""
    server = fresh_server(PostgreSQL)
    where = stores.url(server)
    made(where)
    server.psql("alter database postgres set default_transaction_isolation to 'serializable'")
    replays = [opened(where).replay() for _ in range(3)]
    times, failed = {"created": NOW, "expires": NOW + 60_000}, []

    def work(number: int) -> None:
        for spore in range(10):
            try:
                key = Key("bob", bytes(16), bytes([number, spore]) * 8)
                replays[number].begin(key, b"x", now=NOW, **times)
            except ReplayError as error:
                failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


# -- the command and the settings --------------------------------------------------------------


@pytest.mark.parametrize("kind", stores.SERVERS)
def test_the_command_makes_and_shows_keys_on_a_server(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path
) -> None:
    """By a variable, which others cannot see; nothing that it prints has the password."""
    server, name = request.getfixturevalue(stores.SERVERS[kind]), "by-command"
    environ = {
        **os.environ,
        "PRAVAL_KEYS_STORE": stores.url(server, name),
        "PRAVAL_KEYS_PASSPHRASE": PASSPHRASE,
        "PRAVAL_ROOT_PASSPHRASE": "root",
    }

    def keys(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "praval.cli", "keys", *arguments],
            env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert server.password not in done.stdout + done.stderr
        return f"{done.returncode} {done.stdout}{done.stderr}"

    assert keys("show").startswith("2 praval keys: There are no keys in that store")
    assert "made bob" in keys("init", "bob", "--root", str(tmp_path / "root"))
    assert "bob  agent id" in keys("show")
    assert "bob  agent id" in keys("show", "--store", stores.url(server, name))
    assert "rotated bob" in keys("rotate")
    assert "refused from now on" in keys("rotate", "--lost")
    begun = keys("init", "ann")
    assert "needs a certificate" in begun
    assert "--dir" not in begun
