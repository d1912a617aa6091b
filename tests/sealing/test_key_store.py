"""The secure store: private files, and a keyring and a replay memory that belong together."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from praval.core import key_files
from praval.core.key_box import CHEAP
from praval.core.key_files import locked, make_private, private_folder, read_private, write_private
from praval.core.key_store import KeyStore
from praval.core.key_vaults import KEYRING, REPLAY
from praval.core.keys import Keyring
from praval.core.lifetimes import DAY
from praval.core.replay import Key
from praval.core.replay_tables import SQLiteTable
from praval.errors import KeyringError, PassphraseError, ReplayError, SealCode
from tests.sealing.actors import NOW, a_root, acquaint, certified, code_of, host, note, opens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "secure"


def a_store(folder: Path, keyring: Keyring | None = None) -> KeyStore:
    return KeyStore.create(folder, keyring or host("bob"), "horse", cost=CHEAP)


def reopened(folder: Path, now: int = NOW) -> KeyStore:
    return KeyStore.open(folder, "horse", now=now)


# -- files ----------------------------------------------------------------------------------------


def test_key_files_are_their_owners_alone(folder: Path) -> None:
    """0700 and 0600, whatever the umask is."""
    old = os.umask(0)
    try:
        a_store(folder)
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in (KEYRING, REPLAY):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o601])
def test_a_key_file_that_is_open_to_others_is_refused(folder: Path, mode: int) -> None:
    """The message says what to run."""
    a_store(folder)
    (folder / KEYRING).chmod(mode)
    with pytest.raises(KeyringError, match="chmod 600"):
        reopened(folder)
    with pytest.raises(KeyringError, match="chmod 600"):
        write_private(folder / KEYRING, b"x")


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777])
def test_a_folder_that_is_open_to_others_is_refused(folder: Path, mode: int) -> None:
    """Who may write there can exchange the file."""
    store = a_store(folder)
    folder.chmod(mode)
    for call in (lambda: reopened(folder), lambda: store.tick(NOW), store.replay):
        with pytest.raises(KeyringError, match="chmod 700"):
            call()


def test_no_link_is_followed(folder: Path, tmp_path: Path) -> None:
    """Neither to a file nor to a folder."""
    private_folder(folder)
    real = tmp_path / "real"
    write_private(folder / "real", b"secret")
    (folder / "link").symlink_to(folder / "real")
    for call in (
        lambda: read_private(folder / "link"),
        lambda: write_private(folder / "link", b"x"),
        lambda: make_private(folder / "link"),
    ):
        with pytest.raises(KeyringError):
            call()
    real.symlink_to(folder)
    with pytest.raises(KeyringError):
        write_private(real / "x", b"x")
    assert read_private(folder / "real") == b"secret"


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_plain_file_is_refused_and_not_waited_for(folder: Path, kind: str) -> None:
    """A FIFO would block whoever opens it."""
    private_folder(folder)
    if kind == "fifo":
        os.mkfifo(folder / "x", 0o600)
    else:
        (folder / "x").mkdir(mode=0o700)
    with pytest.raises(KeyringError):
        read_private(folder / "x")


def test_the_file_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not ours to trust."""
    write_private(folder / "x", b"secret")
    monkeypatch.setattr(key_files.os, "geteuid", lambda: 12345)
    with pytest.raises(KeyringError, match="another user"):
        read_private(folder / "x")


def test_a_file_that_is_missing_or_too_large_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By typed errors."""
    private_folder(folder)
    with pytest.raises(KeyringError, match="does not exist"):
        read_private(folder / "x")
    write_private(folder / "x", b"12345")
    monkeypatch.setattr(key_files, "LARGEST", 4)
    assert code_of(lambda: read_private(folder / "x")) == SealCode.TOO_LARGE


KILLED = """
import os, sys
from pathlib import Path
from praval.core import key_files
target, step = Path(sys.argv[1]), int(sys.argv[2])
count = 0
def dies(original):
    def call(*arguments, **options):
        global count
        count += 1
        if count == step:
            os._exit(9)
        return original(*arguments, **options)
    return call
for name in ("open", "fsync", "rename", "close"):
    setattr(os, name, dies(getattr(os, name)))
key_files.write_private(target, b"new" * 1000)
os._exit(0)
"""


def test_a_process_that_dies_while_writing_leaves_the_old_file_or_the_new_one(
    folder: Path,
) -> None:
    """At each system call in turn; and the next writer is not hindered."""
    target = folder / "keyring"
    write_private(target, b"old")
    codes = []
    for step in range(1, 20):
        run = subprocess.run(
            [sys.executable, "-c", KILLED, str(target), str(step)], check=False, timeout=30
        )
        codes.append(run.returncode)
        assert read_private(target) in (b"old", b"new" * 1000)
        if run.returncode == 0:
            break
    assert codes[-1] == 0
    assert codes.count(9) >= 4
    write_private(target, b"newer")
    assert read_private(target) == b"newer"


def test_one_process_changes_a_store_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits, and then says who keeps it waiting."""
    monkeypatch.setattr(key_files, "LOCK_PATIENCE", 0.05)
    with locked(folder):  # noqa: SIM117
        with pytest.raises(KeyringError, match="Another process"), locked(folder):
            pass
    with locked(folder):
        pass


# -- the store -------------------------------------------------------------------------------------


def test_a_store_gives_back_what_was_put_in(folder: Path) -> None:
    """The keyring under its passphrase, and the memory that belongs to it."""
    bob = host("bob")
    a_store(folder, bob)
    store = reopened(folder)
    assert store.keyring.dump() == bob.dump()
    replay = store.replay()
    assert replay.begin(Key("bob", b"a" * 16, b"s" * 16), b"c", created=NOW, expires=NOW + 1,
                        now=NOW).code is None  # fmt: skip
    store.close()
    with pytest.raises(PassphraseError):
        KeyStore.open(folder, "cow", now=NOW)
    with pytest.raises(KeyringError, match="already"):
        a_store(folder)


def test_no_secret_lies_on_the_disk_in_plain(folder: Path) -> None:
    """Neither a key, nor what a key is called in hexadecimal or base64."""
    bob = host("bob")
    store = a_store(folder, bob)
    store.replay().reset(NOW)
    keys = bob.get("bob")
    disk = b"".join(each.read_bytes() for each in folder.iterdir())
    for secret in (keys.identity, keys.signers[0].key, keys.prekeys[0].key):
        raw = secret.reveal()
        assert raw not in disk
        assert raw.hex().encode() not in disk
    assert bob.replay_key not in disk
    store.close()


def test_an_erased_prekey_is_gone_from_the_disk(folder: Path) -> None:
    """The file is written without it; only the passphrase's owner could have read it anyway."""
    store = a_store(folder)
    old = store.keyring.get("bob").prekeys[0].key
    with store.changing(NOW) as keyring:
        keyring.rotate("bob", now=NOW)
    end = NOW + store.keyring.lifetimes.card + store.keyring.lifetimes.grace
    store.tick(end)
    assert old not in [each.key for each in reopened(folder, end).keyring.get("bob").prekeys]


def test_two_processes_of_one_host_rotate_once(folder: Path) -> None:
    """Whoever comes second reads what the first one did, under the lock."""
    a_store(folder)
    one, two = reopened(folder), reopened(folder)
    late = NOW + one.keyring.lifetimes.rotation
    assert len(one.tick(late)) == 1
    assert two.tick(late) == []
    assert one.keyring.get("bob").prekeys[0].key == two.keyring.get("bob").prekeys[0].key
    assert one.tick(late) == []


def test_no_process_undoes_what_another_one_did(folder: Path) -> None:
    """A new subscription here, a rotation there, a root pinned by the command: all of them stay."""
    a_store(folder)
    one, two = reopened(folder), reopened(folder)
    with one.changing(NOW) as keyring:
        keyring.rotate("bob", now=NOW + 1)
    with two.changing(NOW) as keyring:
        keyring.subscribe("bob", ["desk.new"], now=NOW + 2)
        keyring.directory.roots.add(a_root("second").verify_key)
    with one.changing(NOW):
        pass
    for each in (one, reopened(folder)):
        keys = each.keyring.get("bob")
        assert keys.subscriptions == ("desk.new",)
        assert len(keys.prekeys) == 2
        assert len(each.keyring.directory.roots) == 2


def test_a_store_whose_certificate_has_ended_opens_and_takes_a_new_one(folder: Path) -> None:
    """Nothing is sealed meanwhile, other names go on, and old prekeys are erased all the same."""
    bob = host("bob", "carol")
    a_store(folder, bob)
    late = NOW + 91 * DAY
    store = reopened(folder, late)
    assert set(store.keyring.failed) == {"bob", "carol"}
    chain = (certified("bob", store.keyring.get("bob").identity, a_root(), late),)
    with store.changing(late) as keyring:
        keyring.install("bob", chain, now=late)
        keyring.tick(late)
    assert set(store.keyring.failed) == {"carol"}
    assert store.keyring.directory.card("bob", late)


def test_replicas_that_share_a_store_handle_each_spore_once(folder: Path) -> None:
    """Redelivered to the other one: in flight, then a duplicate; replayed: refused."""
    alice, bob = host("alice"), host("bob")
    acquaint(alice, bob)
    a_store(folder, bob)
    stores = [reopened(folder), reopened(folder)]
    memories = [store.replay(sync="normal") for store in stores]
    (data,) = alice.seal(note(to="bob"), now=NOW).envelopes
    for number in range(4):
        which = number % 2
        opened = opens(stores[which].keyring, "bob", data)
        message = opened.message
        key = Key("bob", opened.sender, message.id)
        begun = memories[which].begin(
            key, opened.content(), created=message.created, expires=message.expires, now=NOW
        )
        if number == 0:
            fence = begun.fence
        elif number == 1:
            assert begun.code is SealCode.IN_FLIGHT
            memories[0].commit(key, fence)
        else:
            assert begun.code is SealCode.DUPLICATE
    for store in stores:
        store.close()


@pytest.mark.parametrize("lost", ["deleted", "emptied", "of another store"])
def test_a_replay_memory_that_is_not_ours_stops_everything(
    folder: Path, tmp_path: Path, lost: str
) -> None:
    """Until the keys are new; then what was sealed before is closed for good."""
    alice, bob = host("alice"), host("bob")
    acquaint(alice, bob)
    a_store(folder, bob)
    (data,) = alice.seal(note(to="bob"), now=NOW).envelopes
    (folder / REPLAY).unlink()
    for name in ("-wal", "-shm"):
        (folder / (REPLAY + name)).unlink(missing_ok=True)
    if lost == "emptied":
        make_private(folder / REPLAY)
    elif lost == "of another store":
        a_store(tmp_path / "other", host("bob", seed="other"))
        shutil.copy(tmp_path / "other" / REPLAY, folder / REPLAY)
        (folder / REPLAY).chmod(0o600)
    store = reopened(folder)
    with pytest.raises(ReplayError, match="--lost"):
        store.replay()
    (card,) = store.recover(now=NOW)
    assert code_of(lambda: opens(store.keyring, "bob", data)) == SealCode.NO_KEY
    alice.hear(card, NOW)
    (fresh,) = alice.seal(note(to="bob", now=NOW + 1), now=NOW + 1).envelopes
    opened = opens(store.keyring, "bob", fresh, NOW + 1)
    key = Key("bob", opened.sender, opened.message.id)
    memory = store.replay()
    assert memory.begin(key, b"c", created=NOW + 1, expires=NOW + 9, now=NOW + 1).code is None
    floor = memory.begin(key._replace(spore=b"x" * 16), b"c", created=NOW, expires=NOW + 9,
                         now=NOW + 1)  # fmt: skip
    assert floor.code is SealCode.EXPIRED
    store.close()
    reopened(folder).replay()


def test_a_restored_backup_of_the_whole_folder_is_noticed_by_its_own_cards(
    folder: Path, tmp_path: Path
) -> None:
    """Keyring and memory fit each other, but the world has seen a later card of ours."""
    store = a_store(folder)
    shutil.copytree(folder, tmp_path / "backup")
    later = store.keyring.rotate("bob", now=NOW + 1000)
    restored = reopened(tmp_path / "backup", NOW + 2000)
    with pytest.raises(ReplayError, match="restored backup"):
        restored.keyring.hear(later, NOW + 2000)
    (card,) = restored.recover(now=NOW + 2000)
    alice = host("alice")
    alice.hear(later, NOW + 2000)
    assert alice.hear(card, NOW + 2000).card.epoch == NOW + 2000
    restored.close()


def test_a_crash_while_recovering_is_found_at_the_next_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New keys with the old memory do not fit: recover again."""
    store = a_store(folder)

    class Crash(BaseException):
        """The process dies here."""

    def dies(*_: object, **__: object) -> None:
        raise Crash

    monkeypatch.setattr(SQLiteTable, "open", dies)
    with pytest.raises(Crash):
        store.recover(now=NOW)
    monkeypatch.undo()
    again = reopened(folder)
    with pytest.raises(ReplayError, match="--lost"):
        again.replay()
    assert again.recover(now=NOW + 1)
    again.close()
