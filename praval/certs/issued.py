"""A certificate that was issued, as its users see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    load_pem_private_key,
    pkcs12,
)

from praval.certs.folder import Entry, Kind, check_closed
from praval.certs.profiles import Key
from praval.certs.wanted import check_secret
from praval.errors import CertificateError

State = Literal["valid", "not yet valid", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class Issued:
    """One certificate; its files are those of the newest certificate of that name."""

    name: str
    kind: Kind
    hosts: tuple[str, ...]
    serial: int
    not_before: datetime
    not_after: datetime
    revoked_at: datetime | None
    replaced: bool
    """A newer one was issued under the name, and took its place in the files."""
    cert: Path
    key: Path

    @property
    def state(self) -> State:
        """What it is at this moment; revoked before all else."""
        now = datetime.now(UTC)
        if self.revoked_at is not None:
            return "revoked"
        if now > self.not_after:
            return "expired"
        return "valid" if now >= self.not_before else "not yet valid"

    def pkcs12(self, password: str) -> bytes:
        """Return key, certificate and the CA's certificate as one encrypted PKCS#12 file.

        Raises:
            CertificateError: the password is empty, the key or certificate is gone or damaged,
                or a newer certificate has replaced this one.
        """
        if self.replaced:
            raise CertificateError(
                f"The key of this certificate for {self.name!r} was replaced by a newer one."
            )
        key, certificate = load_key(self.key), load_certificate(self.cert)
        authority = load_certificate(self.cert.parent / "ca.pem")
        return pkcs12.serialize_key_and_certificates(
            self.name.encode(), key, certificate, [authority], encryption(password)
        )


def listed(folder: Path, entries: Sequence[Entry]) -> list[Issued]:
    """Return what the index tells, in its order."""
    newest = {entry.name: entry.serial for entry in entries}
    return [
        Issued(
            name=entry.name,
            kind=entry.kind,
            hosts=entry.hosts,
            serial=int(entry.serial, 16),
            not_before=entry.not_before,
            not_after=entry.not_after,
            revoked_at=entry.revoked_at,
            replaced=newest[entry.name] != entry.serial,
            cert=folder / f"{entry.name}.pem",
            key=folder / f"{entry.name}-key.pem",
        )
        for entry in entries
    ]


def encryption(password: str) -> BestAvailableEncryption:
    """Return how a store is encrypted.

    Raises:
        CertificateError: the password is empty or too long.
    """
    return BestAvailableEncryption(check_secret(password, "store's password"))


def load_certificate(path: Path) -> x509.Certificate:
    """Read a certificate (PEM).

    Raises:
        CertificateError: it is missing or damaged.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CertificateError(f"The certificate {path} cannot be read: {error}") from error


def load_key(path: Path, passphrase: str | None = None) -> Key:
    """Read a private key (PEM) that nobody else may read.

    Raises:
        CertificateError: it is missing, damaged, open to others, or the passphrase is wrong.
    """
    try:
        check_closed(path)
        data = path.read_bytes()
    except OSError as error:
        raise CertificateError(f"The private key {path} cannot be read: {error}") from error
    secret = None
    if encrypted(data):
        if not passphrase:
            raise CertificateError(
                f"{path} is encrypted: it needs its passphrase (PRAVAL_CA_PASSPHRASE)."
            )
        secret = check_secret(passphrase, "passphrase")
    try:
        key = load_pem_private_key(data, secret)
    except ValueError:  # from None: a parser's error may quote what it read
        why = "the passphrase is wrong, or the file is damaged" if secret else "it is damaged"
        raise CertificateError(f"The private key {path} cannot be read: {why}.") from None
    if not isinstance(key, Key):
        raise CertificateError(f"The private key {path} is none of Praval's (ECDSA, P-256).")
    return key


def encrypted(pem: bytes) -> bool:
    """Tell whether a private key in PEM is encrypted."""
    return b"ENCRYPTED PRIVATE KEY" in pem
