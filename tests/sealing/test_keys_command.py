"""``praval keys`` as its users run it."""

from __future__ import annotations

import os
import pty
import re
import select
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nacl import pwhash
from typer.testing import CliRunner

from praval.cli.app import app
from praval.core.directory import Directory
from praval.core.key_store import KeyStore
from praval.core.key_types import VerifyKey
from tests.sealing.actors import note

PRAVAL = [sys.executable, "-c", "from praval.cli import main; main()"]
PASSPHRASES = {
    "PRAVAL_KEYS_PASSPHRASE": "CANARY-keys", "PRAVAL_ROOT_PASSPHRASE": "CANARY-root",
    "PRAVAL_BACKUP_PASSPHRASE": "CANARY-backup",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a passphrase cost nothing; what it should cost is tested with the boxes."""
    real = pwhash.argon2id.kdf

    def quick(*arguments: bytes, opslimit: int, memlimit: int) -> bytes:
        assert (opslimit, memlimit) == (3, 268_435_456)
        return real(*arguments, opslimit=1, memlimit=8192)

    monkeypatch.setattr(pwhash.argon2id, "kdf", quick)


def praval(*arguments: str, code: int = 0, **environment: str) -> str:
    """Run `praval keys ...` in this folder; returns all it said, which holds no passphrase."""
    result = CliRunner(env={**PASSPHRASES, **environment}).invoke(app, ["keys", *arguments])
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit | None)
    assert "CANARY" not in result.output
    return result.output


def now() -> int:
    return time.time_ns() // 1_000_000


def store(folder: str = "keys") -> KeyStore:
    return KeyStore.open(folder, "CANARY-keys", now=now())


def test_with_the_root_at_hand_one_command_makes_an_agent() -> None:
    """And a second one another, under the same root; all files are private."""
    praval("init", "alice", "--root", "root")
    praval("init", "bob", "--root", "root")
    assert store().keyring.names == ["alice", "bob"]
    for folder in (Path("keys"), Path("root")):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for file in folder.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
            assert b"CANARY" not in file.read_bytes()
    said = praval("show")
    assert "forward-secrecy window: 4 d 4 min" in said
    assert said.count("in use") == 2
    assert "window: 4 h 4 min" in praval("show", "--strict")


def test_an_offline_root_certifies_by_files_that_are_carried() -> None:
    """Identity out, certificate back; what alice then publishes, a third host believes."""
    asked = praval("init", "alice", "--dir", "host")
    identity = re.search(r"--identity ([0-9a-f]{64})", asked)
    assert identity
    assert praval("init", "alice", "--dir", "host", code=2)  # the identity that waits is kept
    praval("root", "--dir", "offline")
    root = Path("offline/root.pub").read_text().strip()
    assert root in praval("root", "--dir", "offline")
    praval(
        "root", "--dir", "offline", "--certify", "alice", "--identity", identity[1],
        "--publish", "desk.#", "--type", "finding", "--days", "30",
    )  # fmt: skip
    refused = praval(
        "init", "alice", "--dir", "host", "--certificate", "alice-certificate.json", code=2
    )
    assert "no root that is pinned" in refused
    praval("trust", "offline/root.pub", "--dir", "host")
    praval("init", "alice", "--dir", "host", "--certificate", "alice-certificate.json")
    praval("card", "alice", "--dir", "host", "--out", "alice-card.json")
    known = Directory([VerifyKey(bytes.fromhex(root))])
    held = known.hear_card(Path("alice-card.json").read_bytes(), now())
    assert held.card.identity.hex() == identity[1]
    assert held.may_publish("desk.main")
    assert not held.may_publish("other.main")
    assert not list(Path("host").glob("*.pending"))


def test_a_revoked_name_is_refused_by_whoever_hears_the_list() -> None:
    """By name or by serial number; an unknown one is an error."""
    praval("init", "alice", "--root", "root")
    card = praval("card", "alice").strip().encode()
    known = Directory([VerifyKey(bytes.fromhex(Path("root/root.pub").read_text().strip()))])
    assert known.hear_card(card, now())
    assert "alice" in praval("root", "--dir", "root", "--list")
    assert "revoked alice" in praval("revoke", "alice", "--dir", "root")
    known.hear_status(Path("root/status.json").read_bytes(), now())
    assert known.recipients("x", now()) == ([], [])
    assert "revoked" in praval("root", "--dir", "root", "--list")
    assert "No certificate was issued for 'eve'" in praval("revoke", "eve", "--dir", "root", code=2)
    praval("revoke", "--dir", "root")
    known.hear_status(Path("root/status.json").read_bytes(), now())


def test_rotating_keeps_what_is_under_way_and_lost_closes_it() -> None:
    """The two kinds of new keys."""
    praval("init", "alice", "--root", "root")
    before = store().keyring.get("alice").prekeys[0].key
    assert "rotated alice" in praval("rotate", "alice")
    assert before in [each.key for each in store().keyring.get("alice").prekeys]
    praval("rotate", "--lost")
    assert before not in [each.key for each in store().keyring.get("alice").prekeys]
    found = store()
    assert found.replay()
    found.close()


def test_a_backup_makes_the_agent_again_on_another_host() -> None:
    """Under its own passphrase; the name must be right, and the root known."""
    praval("init", "alice", "--root", "root")
    identity = store().keyring.get("alice").identity
    praval("export", "alice", "backup/alice.key")
    assert identity.reveal() not in Path("backup/alice.key").read_bytes()
    assert "cannot be used" in praval("export", "alice", "backup/alice.key", code=2)
    praval("trust", "root/root.pub", "--dir", "other")
    assert "not of 'bob'" in praval("import", "bob", "backup/alice.key", "--dir", "other", code=2)
    praval("import", "alice", "backup/alice.key", "--dir", "other")
    again = store("other").keyring.get("alice")
    assert again.identity == identity
    assert again.epoch > store().keyring.get("alice").epoch - 1
    wrong = praval(
        "import", "alice", "backup/alice.key", "--dir", "other", code=1,
        PRAVAL_BACKUP_PASSPHRASE="wrong",
    )  # fmt: skip
    assert "passphrase is wrong" in wrong


def test_what_is_wrong_is_one_sentence_and_an_exit_code() -> None:
    """2: asked for something impossible; 1: it failed."""
    assert "Make some" in praval("show", code=2)
    assert "There is no root" in praval("revoke", "--dir", "root", code=2)
    praval("init", "alice", "--root", "root")
    assert "passphrase is wrong" in praval("show", code=1, PRAVAL_KEYS_PASSPHRASE="wrong")
    assert "there are keys of: alice" in praval("card", "bob", code=2)
    assert "64 hexadecimal digits" in praval("trust", "zz", code=2)
    assert "needs --identity" in praval("root", "--dir", "root", "--certify", "x", code=2)
    Path("keys").chmod(0o755)
    assert "chmod 700" in praval("show", code=2)
    assert "no terminal" in praval("init", "x", "--dir", "new", code=2, PRAVAL_KEYS_PASSPHRASE="")


def test_passphrases_are_asked_for_twice_and_not_shown() -> None:
    """On a terminal; two that differ are refused, and nothing is made."""
    leader, follower = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if "PASSPHRASE" not in key}
    running = subprocess.Popen(
        [*PRAVAL, "keys", "root"],
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True, env=environment,
    )  # fmt: skip
    os.close(follower)
    try:
        said = until(leader, ": ")
        os.write(leader, b"CANARY-one\n")
        said += until(leader, ": ")
        os.write(leader, b"CANARY-two\n")
        said += until(leader, "differ")
        assert running.wait(20) == 2
    finally:
        os.close(leader)
        running.kill()
        running.wait()
    assert "CANARY" not in said
    assert not Path("root/root.key").exists()


def until(leader: int, end: str) -> str:
    said = ""
    while end not in said:
        ready, _, _ = select.select([leader], [], [], 20)
        assert ready, said
        said += os.read(leader, 1024).decode()
    return said


def test_keys_that_the_command_made_seal_and_open() -> None:
    """What `praval keys` writes is what a Reef reads."""
    praval("init", "alice", "--root", "root")
    praval("init", "bob", "--root", "root")
    keyring, moment = store().keyring, now()
    (data,) = keyring.seal(note(to="bob", now=moment), now=moment).envelopes
    assert keyring.open("bob", data, now=moment, filters=("#",)).message.from_name == "alice"
