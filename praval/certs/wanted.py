"""Checks of what is asked for: names, hosts, times."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from praval.errors import CertificateError

MIN_DAYS, MAX_DAYS = 1 / 86_400, 36_500
MAX_NAME = 64
"""Bytes in a common name, by RFC 5280."""
MAX_SECRET = 1023
"""Bytes in a passphrase; OpenSSL takes no more."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
# Files of the authority itself, and endings that are files of another name.
_TAKEN = frozenset({"ca", "crl", "index"})
_ENDINGS = ("-key", "-truststore")


def check_name(name: str) -> str:
    """Return a name that can be a file's and a certificate's.

    Raises:
        CertificateError: it cannot.
    """
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise CertificateError(
            f"{name!r} cannot name a certificate: use at most {MAX_NAME} letters, digits, dots, "
            "dashes and underscores, the first of them a letter or digit."
        )
    if name.lower() in _TAKEN or name.lower().endswith(_ENDINGS):
        raise CertificateError(
            f"{name!r} cannot name a certificate: its files would be those of something else."
        )
    return name


def check_ca_name(name: str) -> str:
    """Return a name that an authority can have.

    Raises:
        CertificateError: it cannot.
    """
    if not name.strip() or not name.isprintable() or len(name.encode()) > MAX_NAME:
        raise CertificateError(
            f"{name!r} cannot name an authority: use 1 to {MAX_NAME} printable characters, or "
            "fewer where they are not ASCII."
        )
    return name


def check_hosts(hosts: Iterable[str]) -> tuple[str, ...]:
    """Return DNS names in lower case and IP addresses in their shortest form, each once.

    Raises:
        CertificateError: one of them is neither.
    """
    if isinstance(hosts, str):
        raise CertificateError(f"hosts is {hosts!r}: it must be a list of names.")
    return tuple(dict.fromkeys(_host(host) for host in hosts))


def _host(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    if address is not None and "%" not in host:
        return str(address)
    labels = host.lower().removeprefix("*.").split(".")
    if (
        len(host) > 253
        or not host.isascii()
        or not all(map(_LABEL.fullmatch, labels))
        or labels[-1].isdigit()
        or (host.startswith("*.") and len(labels) < 2)
    ):
        raise CertificateError(
            f"{host!r} is no host: give a DNS name such as 'broker.example.org' or "
            "'*.example.org' (in ASCII: xn--...), or an IP address, without port or scheme."
        )
    return host.lower()


def check_days(days: float) -> timedelta:
    """Return a span of time.

    Raises:
        CertificateError: it is shorter than a second, or longer than a century.
    """
    if not MIN_DAYS <= days <= MAX_DAYS:
        raise CertificateError(f"days is {days!r}: it must be above 0 and at most {MAX_DAYS:,}.")
    return timedelta(days=days)


def check_start(not_before: datetime) -> datetime:
    """Return a moment in whole seconds, which is what certificates can hold.

    Raises:
        CertificateError: it has no time zone, or a certificate cannot hold it.
    """
    if not_before.tzinfo is None:
        raise CertificateError("not_before has no time zone: use datetime.now(UTC), for instance.")
    if not 1950 <= not_before.year < 9000:
        raise CertificateError(f"not_before is {not_before}: no certificate can begin then.")
    return not_before.astimezone(UTC).replace(microsecond=0)


def check_secret(secret: str, what: str) -> bytes:
    """Return a passphrase or password as bytes.

    Raises:
        CertificateError: it is empty or too long.
    """
    encoded = secret.encode(errors="surrogateescape")  # as an environment variable has it
    if not 0 < len(encoded) <= MAX_SECRET:
        raise CertificateError(f"The {what} must have 1 to {MAX_SECRET:,} bytes.")
    return encoded
