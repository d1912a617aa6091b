"""The keys of Reefs that are given none: opened as the settings say, and backed up if they say so.

Everything here blocks. Guide: "Production Security Configuration" (cryptographic settings).
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from praval.core.key_box import BoxKey
from praval.core.key_files import write_private
from praval.core.key_store import KeyStore
from praval.core.lifetimes import DEFAULT
from praval.core.stored_keys import backup
from praval.errors import ConfigurationError
from praval.settings import Settings

PASSPHRASE, BACKUP_PASSPHRASE = "PRAVAL_KEYS_PASSPHRASE", "PRAVAL_BACKUP_PASSPHRASE"


def open_configured(settings: Settings, now: int) -> KeyStore:
    """Open the store of ``secure_spores.keys_path``, and write the backups that are wanted.

    Raises:
        ConfigurationError: a passphrase, or the path for backups, is missing.
        KeyringError, PassphraseError: the store cannot be opened, or a backup not be written.
    """
    wanted = settings.secure_spores
    passphrase = _passphrase(PASSPHRASE, "secure_spores.enabled: the passphrase of the keys")
    rotation = round(wanted.key_rotation_interval * 1000)
    lifetimes = msgspec.structs.replace(DEFAULT, rotation=rotation)
    store = KeyStore.open(settings.keys_store, passphrase, now=now, lifetimes=lifetimes)
    if wanted.key_backup_enabled:
        _back_up(store, wanted.key_backup_path)
    return store


def _back_up(store: KeyStore, path: str | None) -> None:
    if path is None:
        raise ConfigurationError(
            "secure_spores.key_backup_enabled needs key_backup_path: a folder for the backups, on "
            "another disk."
        )
    folder = Path(path).expanduser()
    passphrase = _passphrase(BACKUP_PASSPHRASE, "secure_spores.key_backup_enabled")
    key = BoxKey.fresh(passphrase, random=os.urandom)
    for name in store.keyring.names:
        box = key.lock(backup(store.keyring.get(name)), os.urandom)
        write_private(folder / f"{name.encode().hex()}.backup", box)


def _passphrase(variable: str, what: str) -> str:
    passphrase = os.environ.get(variable, "")
    if not passphrase:
        raise ConfigurationError(f"{what} is taken from the variable {variable}, which is not set.")
    return passphrase
