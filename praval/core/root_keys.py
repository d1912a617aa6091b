"""A root: the key that certifies names, in a folder that belongs on no host that runs agents.

::

    <folder>/root.key      the signing key under a passphrase
    <folder>/root.pub      its public half in hexadecimal: what others pin
    <folder>/issued.json   what it certified, so that it can be revoked by name
    <folder>/status.json   the signed status list, to be published

All calls block. The command is ``praval keys root``.

Guide: "Security Features" (public key infrastructure, trust chain establishment).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec

from praval.core.certificates import Rights, certify, sign_status
from praval.core.key_box import MODERATE, BoxKey, Cost, unlock
from praval.core.key_files import locked, private_folder, read_private, write_private
from praval.core.key_types import SigningKey, VerifyKey
from praval.core.lifetimes import DAY
from praval.errors import KeyringError, SealCode

KEY, PUBLIC, ISSUED, STATUS = "root.key", "root.pub", "issued.json", "status.json"
BACKDATED = 5 * 60_000
"""Milliseconds by which the clocks of other hosts may be behind."""


class Issued(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One certificate that was signed."""

    name: str
    identity: str
    """Hexadecimal."""
    serial: int
    expires: int
    """UTC milliseconds."""
    revoked: bool = False


class _Index(msgspec.Struct, forbid_unknown_fields=True):
    number: int = 0
    issued: list[Issued] = []


class Root:
    """An open root; make one with :meth:`create` or :meth:`open`."""

    def __init__(self, folder: Path, key: SigningKey) -> None:
        self.folder, self._key = folder, key

    def __repr__(self) -> str:
        return f"<Root {bytes(self.verify_key).hex()} in {self.folder}>"

    @classmethod
    def create(
        cls, folder: str | os.PathLike[str], passphrase: str, *, cost: Cost = MODERATE
    ) -> Root:
        """Make a root in a folder.

        Raises:
            KeyringError: there is one, the folder is not private, or the passphrase is empty.
        """
        path = Path(folder)
        private_folder(path)
        with locked(path):
            root = cls(path, SigningKey(os.urandom(32)))
            box_key = BoxKey.fresh(passphrase, random=os.urandom, cost=cost)
            box = box_key.lock(root._key.reveal(), os.urandom)
            write_private(path / KEY, box, replace=False)
            write_private(path / PUBLIC, bytes(root.verify_key).hex().encode() + b"\n")
        return root

    @classmethod
    def open(cls, folder: str | os.PathLike[str], passphrase: str) -> Root:
        """Open a root.

        Raises:
            PassphraseError: the passphrase is wrong, or the file was changed.
            KeyringError: there is no root, or others may read it.
        """
        path = Path(folder)
        return cls(path, SigningKey(unlock(read_private(path / KEY), passphrase)[0]))

    @property
    def verify_key(self) -> VerifyKey:
        """What others pin."""
        return self._key.verify_key

    def certify(
        self,
        name: str,
        identity: VerifyKey,
        *,
        now: int,
        days: int = 90,
        rights: Rights | None = None,
    ) -> bytes:
        """Sign a certificate, valid from five minutes ago for ``days`` days.

        Raises:
            CardError: a name, a time or a right that cannot be.
            KeyringError: the folder cannot be used.
        """
        serial, begin = secrets.randbits(52), now - BACKDATED
        data = certify(
            name, identity, self._key,
            not_before=begin, expires=begin + days * DAY, serial=serial, rights=rights,
        )  # fmt: skip
        with locked(self.folder):
            index = self._index()
            issued = Issued(name, bytes(identity).hex(), serial, begin + days * DAY)
            self._write(_Index(index.number, [*index.issued, issued]))
        return data

    def revoke(self, names: Sequence[str | int], *, now: int, days: int = 30) -> list[Issued]:
        """Revoke all certificates of some names, or some serial numbers, and sign the list.

        With no names the list is signed anew: it must not get older than it says. Returns what
        this call revoked; the list is in ``status.json``.

        Raises:
            KeyringError: nothing was issued under one of them.
        """
        with locked(self.folder):
            index = self._index()
            unknown = [
                each for each in names if not any(each in (i.name, i.serial) for i in index.issued)
            ]
            if unknown:
                raise KeyringError(
                    f"No certificate was issued for {unknown[0]!r}. See: praval keys root --list"
                )
            chosen = [
                each for each in index.issued
                if not each.revoked and (each.name in names or each.serial in names)
            ]  # fmt: skip
            issued = [
                msgspec.structs.replace(each, revoked=each.revoked or each in chosen)
                for each in index.issued
            ]
            # A serial may leave the list when its certificate has ended: receivers keep the union.
            serials = [each.serial for each in issued if each.revoked and each.expires > now]
            number = index.number + 1
            status = sign_status(
                self._key, number=number, issued=now, expires=now + days * DAY, serials=serials
            )
            self._write(_Index(number, issued))
            write_private(self.folder / STATUS, status)
        return chosen

    def issued(self) -> list[Issued]:
        """List every certificate that was signed, the oldest first."""
        return self._index().issued

    def _index(self) -> _Index:
        if not (self.folder / ISSUED).exists():
            return _Index()
        try:
            return msgspec.json.decode(read_private(self.folder / ISSUED), type=_Index)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise KeyringError(
                f"{self.folder / ISSUED} cannot be read.", SealCode.MALFORMED
            ) from None

    def _write(self, index: _Index) -> None:
        write_private(self.folder / ISSUED, msgspec.json.format(msgspec.json.encode(index)))


def has_root(folder: Path) -> bool:
    """Whether there is a root's key in a folder."""
    return (folder / KEY).exists()
