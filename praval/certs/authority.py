"""The authority: it issues, revokes and tells, and keeps all of it in one folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12
from cryptography.x509.oid import NameOID

from praval.certs.folder import Change, Entry, Folder, Kind
from praval.certs.issued import Issued, encrypted, encryption, listed, load_certificate, load_key
from praval.certs.profiles import (
    USAGES,
    Key,
    ca_certificate,
    key_pem,
    leaf_certificate,
    new_key,
    revocation_list,
)
from praval.certs.wanted import (
    check_ca_name,
    check_days,
    check_hosts,
    check_name,
    check_secret,
    check_start,
)
from praval.errors import CertificateError

CA_CERT, CA_KEY, CRL = "ca.pem", "ca-key.pem", "crl.pem"
CA_DAYS, LEAF_DAYS, CRL_DAYS = 3650, 365, 30
SKEW = timedelta(minutes=5)
"""How far the clocks of other hosts may be behind: what is signed now began that long ago."""


class Authority:
    """A certificate authority in a folder; make one with `create`, use it with `open`.

    Several processes may use one folder: each change is made alone and whole, and a process
    killed in the middle of one leaves the folder as it was before or after it. The CA's key is
    read for signing only and never kept.

    Methods raise `CertificateError` for what cannot be done, and its subclass
    `CertificateFolderError` where the disk is the reason.
    """

    def __init__(self, folder: Folder, passphrase: str | None) -> None:
        self._folder = folder
        self._passphrase = passphrase

    def __repr__(self) -> str:
        return f"<Authority in {self._folder.path}>"

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        name: str = "Praval CA",
        days: float = CA_DAYS,
        *,
        passphrase: str | None = None,
    ) -> Authority:
        """Make an authority in ``folder`` (made with mode 0700 if missing), with an empty CRL.

        ``passphrase`` encrypts the CA's key.
        """
        check_ca_name(name)
        now = _now()
        expires = (now + check_days(days)).replace(microsecond=0)
        secret = None if passphrase is None else check_secret(passphrase, "passphrase")
        authority = cls(Folder(Path(folder)), passphrase)
        authority._folder.make()
        with authority._folder.changing(first=True) as change:
            for taken in (CA_CERT, CA_KEY, CRL, "index.json"):
                if os.path.lexists(authority.folder / taken):
                    raise CertificateError(
                        f"There is a {taken} in {folder} already. Use that authority, or name "
                        "another folder for a new one."
                    )
            key = new_key()
            ca = ca_certificate(
                key,
                name=name,
                serial=x509.random_serial_number(),
                not_before=now - SKEW,
                not_after=expires,
            )
            if not os.path.lexists(authority.folder / ".gitignore"):
                change.write(".gitignore", b"# Keys never go into git.\n*\n")
            change.write(CA_KEY, key_pem(key, secret), secret=True)
            change.write(CA_CERT, ca.public_bytes(Encoding.PEM))
            _sign_crl(change, ca, key, check_days(CRL_DAYS))
        return authority

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, passphrase: str | None = None) -> Authority:
        """Use the authority in ``folder``; the passphrase is needed for signing only."""
        authority = cls(Folder(Path(folder)), passphrase)
        authority._folder.read()
        return authority

    # -- what there is ---------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self._folder.path

    @property
    def ca_cert(self) -> Path:
        """The certificate that others trust (PEM)."""
        return self.folder / CA_CERT

    @property
    def ca_key(self) -> Path:
        """The CA's private key (PEM); it belongs on no other host."""
        return self.folder / CA_KEY

    @property
    def crl(self) -> Path:
        """The certificate revocation list (PEM)."""
        return self.folder / CRL

    @property
    def name(self) -> str:
        """The name in the CA's certificate."""
        return _common_name(load_certificate(self.ca_cert))

    @property
    def expires(self) -> datetime:
        """When the CA's certificate ends, and with it every certificate it signed."""
        return load_certificate(self.ca_cert).not_valid_after_utc

    @property
    def crl_expires(self) -> datetime:
        """When the revocation list must have been signed anew."""
        return self._folder.read().crl_expires

    @property
    def needs_passphrase(self) -> bool:
        """Whether the CA's key is encrypted."""
        try:
            return encrypted(self.ca_key.read_bytes())
        except OSError as error:
            raise CertificateError(f"The CA's key cannot be read: {error}") from error

    def issued(self) -> list[Issued]:
        """List every certificate that was ever issued, the oldest first."""
        return listed(self.folder, self._folder.read().issued)

    def get(self, name: str) -> Issued:
        """Return the newest certificate of that name."""
        for each in self.issued():
            if each.name == name and not each.replaced:
                return each
        known = ", ".join(sorted({each.name for each in self.issued()})) or "none yet"
        raise CertificateError(f"No certificate was issued for {name!r}. There are: {known}.")

    # -- what it does ----------------------------------------------------------------------

    def issue(
        self,
        name: str,
        *,
        hosts: Iterable[str] = (),
        kind: Kind = "server",
        days: float = LEAF_DAYS,
        not_before: datetime | None = None,
        force: bool = False,
    ) -> Issued:
        """Make a key and a certificate: ``NAME-key.pem`` (0600) and ``NAME.pem``.

        ``hosts`` are the DNS names and IP addresses under which a server is reached; a client
        needs none. The common name is ``name``. It is valid for ``days`` from ``not_before``
        (aware; default: now), so a start in the past makes one that has expired.

        A name with a valid certificate is refused unless ``force``; the older certificate then
        stays valid, since it may still be in use, until it expires or `revoke` is given its
        serial number.
        """
        check_name(name)
        hosts = check_hosts(hosts)
        if kind not in USAGES:
            raise CertificateError(f"kind is {kind!r}: it must be one of {', '.join(USAGES)}.")
        if kind != "client" and not hosts:
            raise CertificateError(
                f"{name!r} is to be a server: name the hosts under which it is reached, "
                "for instance localhost and 127.0.0.1 (--host)."
            )
        start = _now() if not_before is None else check_start(not_before)
        end = (start + check_days(days)).replace(microsecond=0)
        begin = start - SKEW if not_before is None else start
        with self._folder.changing() as change:
            self._check_free(name, change, force)
            ca, ca_key = self._signer()
            if name == _common_name(ca):  # a verifier would take it for self-signed
                raise CertificateError(f"{name!r} is the name of the CA. Choose another name.")
            if end > ca.not_valid_after_utc:
                raise CertificateError(
                    f"The CA's certificate ends on {ca.not_valid_after_utc:%Y-%m-%d}, before this "
                    "one would. Ask for fewer days, or make a new authority."
                )
            key, serial = new_key(), x509.random_serial_number()
            leaf = leaf_certificate(
                ca, ca_key, key,
                name=name, kind=kind, hosts=hosts,
                serial=serial, not_before=begin, not_after=end,
            )  # fmt: skip
            change.write(f"{name}-key.pem", key_pem(key), secret=True)
            change.write(f"{name}.pem", leaf.public_bytes(Encoding.PEM))
            entry = Entry(name, kind, hosts, f"{serial:x}", begin, end)
            entries = (*change.index.issued, entry)
            change.index = msgspec.structs.replace(change.index, issued=entries)
        return listed(self.folder, entries)[-1]

    def revoke(self, which: str | int) -> list[Issued]:
        """Revoke every certificate of a name, or the one with a serial number; sign the CRL.

        Returns those that were revoked by this call. A server hears of it when it loads the
        new ``crl.pem``.
        """
        with self._folder.changing() as change:
            chosen = [
                entry
                for entry in change.index.issued
                if which in (entry.name, int(entry.serial, 16))
            ]
            if not chosen:
                raise CertificateError(f"No certificate was issued for {_shown(which)}.")
            fresh = {entry.serial for entry in chosen if entry.revoked_at is None}
            if not fresh:
                raise CertificateError(f"What was issued for {_shown(which)} is revoked already.")
            now = _now()
            entries = tuple(
                msgspec.structs.replace(entry, revoked_at=now) if entry.serial in fresh else entry
                for entry in change.index.issued
            )
            change.index = msgspec.structs.replace(change.index, issued=entries)
            _sign_crl(change, *self._signer(), check_days(CRL_DAYS))
        return [each for each in listed(self.folder, entries) if f"{each.serial:x}" in fresh]

    def refresh_crl(self, days: float = CRL_DAYS) -> None:
        """Sign the revocation list anew; a peer that checks it refuses one past its time."""
        span = check_days(days)
        with self._folder.changing() as change:
            _sign_crl(change, *self._signer(), span)

    def java_stores(self, name: str, password: str) -> tuple[Path, Path]:
        """Write ``NAME.p12`` and ``NAME-truststore.p12`` (both 0600), as Java servers want them.

        The password must be given to the server as well; it is not kept here.
        """
        keystore, truststore = f"{name}.p12", f"{name}-truststore.p12"
        with self._folder.changing() as change:
            trusted = pkcs12.PKCS12Certificate(load_certificate(self.ca_cert), b"ca")
            change.write(keystore, self.get(name).pkcs12(password), secret=True)
            change.write(
                truststore,
                pkcs12.serialize_java_truststore([trusted], encryption(password)),
                secret=True,
            )
        return self.folder / keystore, self.folder / truststore

    # -- inside ----------------------------------------------------------------------------

    def _check_free(self, name: str, change: Change, force: bool) -> None:
        same = [
            each
            for each in listed(self.folder, change.index.issued)
            if each.name.lower() == name.lower() and not each.replaced
        ]
        if not same:
            for path in (self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"):
                if os.path.lexists(path):
                    raise CertificateError(
                        f"{path} is in the way, and none of this authority's. Move it."
                    )
        for each in same:
            if each.name != name:
                raise CertificateError(
                    f"{name!r} differs from {each.name!r} in nothing but case, which some disks "
                    "do not tell apart. Choose another name."
                )
            if each.state in ("valid", "not yet valid") and not force:
                raise CertificateError(
                    f"{name!r} has a certificate that is valid until {each.not_after:%Y-%m-%d}. "
                    "Revoke it, or use force (--force) to issue another beside it."
                )

    def _signer(self) -> tuple[x509.Certificate, Key]:
        ca, key = load_certificate(self.ca_cert), load_key(self.ca_key, self._passphrase)
        if key.public_key() != ca.public_key():
            raise CertificateError(f"{self.ca_key} is not the key of {self.ca_cert}.")
        return ca, key


def _sign_crl(change: Change, ca: x509.Certificate, ca_key: Key, span: timedelta) -> None:
    number, now = change.index.crl_number + 1, _now()
    expires = (now + span).replace(microsecond=0)
    revoked = [
        (int(entry.serial, 16), entry.revoked_at)
        for entry in change.index.issued
        if entry.revoked_at is not None
    ]
    crl = revocation_list(
        ca, ca_key, revoked=revoked, number=number, this_update=now - SKEW, next_update=expires
    )
    change.write(CRL, crl.public_bytes(Encoding.PEM))
    change.index = msgspec.structs.replace(change.index, crl_number=number, crl_expires=expires)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _common_name(certificate: x509.Certificate) -> str:
    (attribute,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attribute.value)


def _shown(which: str | int) -> str:
    return repr(which) if isinstance(which, str) else f"serial number {which:x}"
