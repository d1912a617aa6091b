"""SECURE_PRAVAL_CONFIG at work: keys that the settings name, the audit log, backups, retention."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from praval import Reef, Spore, agent, configure
from praval.core.audit_chain import AuditKeys, Verifier
from praval.core.audit_log import files_of
from praval.core.key_box import unlock
from praval.core.keys import Keyring
from praval.core.stored_keys import read_backup
from praval.errors import ConfigurationError, KeyringError, PassphraseError
from tests.core.hosts import listener, until
from tests.core.sealed_hosts import CANARY, Root, brisk, outsider, stored


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that one root has certified for a host and its agent."""
    monkeypatch.setenv("PRAVAL_KEYS_PASSPHRASE", "secret")
    return stored(tmp_path / "keys", Root().keyring("worker", "@host"))


def audited(folder: Path, secret: bytes) -> list[dict[str, Any]]:
    """All records of a log that is as it was written."""
    found, log = [], AuditKeys(secret)
    verifier = Verifier(log.verify_key)
    for file in files_of(folder):
        for _, line in verifier.read(file.read_bytes(), is_last=True):
            if line.kind != b"c" and (record := line.record(log)) is not None:
                found.append(record)
    return found


async def test_with_secure_spores_enabled_every_reef_seals(url: str, keys: Path) -> None:
    """The keys are those of the settings; nothing else has to be said."""
    heard: list[Any] = []
    configure({"secure_spores": {"enabled": True, "keys_path": str(keys)}})
    async with outsider(url) as broker, Reef(listener("worker", heard), transport=url) as reef:
        await reef.send("worker", {"n": CANARY})
        await until(lambda: heard, "handled")
        assert broker.on("worker_channel")
        assert CANARY.encode() not in b"".join(data for _, data in broker.heard)
        assert reef.get_statistics()["security"]["process"] == "@host"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda patch: patch.delenv("PRAVAL_KEYS_PASSPHRASE"), ConfigurationError),
        (lambda patch: patch.setenv("PRAVAL_KEYS_PASSPHRASE", "wrong"), PassphraseError),
        (lambda patch: configure(secure_spores={"keys_path": "/nowhere"}), KeyringError),
        (lambda patch: configure(secure_spores={"key_backup_enabled": True}), ConfigurationError),
    ],
)
async def test_keys_that_cannot_be_opened_stop_the_start(
    keys: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], object],
    error: type[Exception],
) -> None:
    """Nobody starts unsealed because a passphrase was missing."""
    configure({"secure_spores": {"enabled": True, "keys_path": str(keys)}})
    change(monkeypatch)
    with pytest.raises(error) as caught:
        async with Reef(listener("worker", [])):
            pass
    assert "secret" not in str(caught.value)


async def test_backups_have_the_identity_and_no_prekeys(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a passphrase of their own, in private files."""
    monkeypatch.setenv("PRAVAL_BACKUP_PASSPHRASE", "other secret")
    folder = tmp_path / "backups"
    secure = {"enabled": True, "keys_path": str(keys), "key_backup_enabled": True}
    configure({"secure_spores": {**secure, "key_backup_path": str(folder)}})
    for _ in range(2):  # the second start writes them again
        async with Reef(listener("worker", [])):
            pass
    files = await asyncio.to_thread(lambda: sorted(folder.iterdir()))
    assert [bytes.fromhex(file.stem).decode() for file in files] == ["@host", "worker"]
    box = await asyncio.to_thread(files[1].read_bytes)
    secret, _ = await asyncio.to_thread(unlock, box, "other secret")
    assert read_backup(secret, "worker").name == "worker"


@pytest.mark.parametrize("encrypted", [False, True])
async def test_the_audit_log_has_every_message_and_no_content(
    url: str, tmp_path: Path, encrypted: bool
) -> None:
    """Sent, received, how it ended, and what was refused; digests tell equal contents."""
    log = {"enabled": True, "log_all_messages": True, "log_path": str(tmp_path / "audit")}
    configure({"audit": {**log, "encryption_at_rest": encrypted}})
    keyring, heard = Keyring(), list[Any]()

    @agent("broken")
    async def broken(spore: Spore) -> None:
        raise ValueError(CANARY)

    worker = listener("worker", heard)
    async with (
        outsider(url) as attacker,
        Reef(worker, broken, transport=url, security=keyring, namespace="a/b") as reef,
    ):
        for _ in range(2):
            await reef.send("worker", {"n": CANARY})
        await reef.send("broken", {"n": CANARY})
        await until(lambda: len(heard) == 2, "handled")
        await attacker.publish("a%2Fb.worker_channel", CANARY.encode())
        await until(lambda: reef.ledger().rejected, "refused")
        await reef.wait_idle(5)
    (folder,) = await asyncio.to_thread(lambda: list((tmp_path / "audit").iterdir()))
    records = await asyncio.to_thread(audited, folder, keyring.audit_key)
    events = [record["event"] for record in records]
    assert events[0] == "opened"
    assert [events.count(each) for each in ("sent", "received", "handled", "dead")] == [3, 3, 2, 1]
    (refused,) = [record for record in records if record["event"] == "refused"]
    assert (refused["code"], refused["sender"], refused["size"]) == ("malformed", None, len(CANARY))
    sent = [record for record in records if record["event"] == "sent"]
    assert [record["receiver"] for record in sent] == ["worker", "worker", "broken"]
    assert len({record["spore"] for record in sent}) == 3
    raw = await asyncio.to_thread(lambda: b"".join(f.read_bytes() for f in files_of(folder)))
    assert CANARY.encode() not in raw
    assert (b"worker_channel" in raw) is not encrypted


async def test_the_audit_log_has_the_end_of_a_spore_once(url: str, tmp_path: Path) -> None:
    """However many copies of it wait for that."""
    log = {"enabled": True, "log_all_messages": True, "log_path": str(tmp_path / "audit")}
    configure({"audit": log})
    keyring, started, gate = Keyring(), asyncio.Event(), asyncio.Event()

    @agent("worker")
    async def worker(spore: Spore) -> None:
        started.set()
        await gate.wait()

    async with (
        outsider(url) as attacker,
        Reef(worker, transport=url, security=keyring) as reef,
    ):
        await reef.send("worker", {"n": 1})
        await started.wait()
        await until(lambda: attacker.on("worker_channel"), "it was overheard")
        for _ in range(3):
            await attacker.publish("praval.worker_channel", attacker.on("worker_channel")[0])
        await until(lambda: reef.ledger().duplicate == 3, "the copies wait")
        gate.set()
        await reef.wait_idle(5)
    records = await asyncio.to_thread(audited, tmp_path / "audit" / "praval", keyring.audit_key)
    events = [record["event"] for record in records]
    assert (events.count("received"), events.count("handled")) == (1, 1)


async def test_without_log_all_messages_only_what_was_noticed_is_written(
    url: str, tmp_path: Path
) -> None:
    """The log of a busy Reef stays short."""
    configure({"audit": {"enabled": True, "log_path": str(tmp_path / "audit")}})
    keyring, heard = Keyring(), list[Any]()
    async with Reef(listener("worker", heard), transport=url, security=keyring) as reef:
        await reef.send("worker", {"n": 1})
        await until(lambda: heard, "handled")
    records = await asyncio.to_thread(audited, tmp_path / "audit" / "praval", keyring.audit_key)
    assert [record["event"] for record in records] == ["opened"]


async def test_an_audit_log_needs_keys() -> None:
    """It would be signed by nobody; private Reefs, which no wire leaves, have none."""
    configure({"audit": {"enabled": True}})
    with pytest.raises(ConfigurationError, match=r"audit\.enabled needs security="):
        Reef()
    async with Reef(transport=False):
        pass


async def test_alerts_can_be_turned_off(url: str) -> None:
    """Then nobody is told, and all is counted as before."""
    configure({"monitoring": {"security_alerts": False}})
    heard: list[Any] = []
    guard = listener("guard", heard, responds_to=["security_alert"])
    async with (
        outsider(url) as attacker,
        Reef(guard, transport=url, security=Keyring()) as reef,
    ):
        await attacker.publish("praval.guard_channel", b"junk")
        await until(lambda: reef.ledger().rejected, "refused")
        await reef.wait_idle(5)
    assert not heard


async def test_dead_letters_are_forgotten_after_the_message_retention(tmp_path: Path) -> None:
    """From the journal, too: what is retained is what the settings say."""
    configure({
        "message_security": {"message_retention": 0.2},
        "reef_config": {"cleanup_interval": 0.05},
    })  # fmt: skip

    @agent("broken")
    async def broken(spore: Spore) -> None:
        raise ValueError("no")

    async with Reef(broken, journal=tmp_path / "j", settings=None) as reef:
        await reef.send("broken", {})
        await until(reef.dead_letters, "it is a dead letter")
        await until(lambda: not reef.dead_letters(), "it is forgotten")
        assert reef.journal is not None
        assert (await reef.journal.counts())["dead"] == 0
    assert brisk().reef_config.message_retention is None
