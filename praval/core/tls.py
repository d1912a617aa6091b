"""TLS for transports: one way to a context, and one to say which check failed.

Guide: "TLS/SSL Security by Default". The keys are those of its ``tls_config``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from pathlib import Path
from typing import Literal

import msgspec

from praval.errors import ConfigurationError, TransportTLSError

log = logging.getLogger("praval.tls")


class TLSConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How the other side of a connection is checked, and how this side shows who it is."""

    ca_cert: str | None = None
    """File of the certificates that are trusted; None: the system's."""
    client_cert: str | None = None
    """File of this side's certificate (and its chain)."""
    client_key: str | None = None
    """File of its private key."""
    verify_certs: bool = True
    check_hostname: bool = True
    ssl_version: Literal["TLSv1.2", "TLSv1.3"] | None = None
    """The oldest version that is spoken; None: 1.2, and 1.3 wherever the other side can."""
    require_client_cert: bool = False
    """Refuse to connect without ``client_cert``: mutual TLS is meant."""
    crl_check: bool = False
    """Refuse certificates that a revocation list names, and to go on without a valid list."""
    crl: str | None = None
    """File of the revocation list; None: it is in the ``ca_cert`` file."""


def client_context(config: TLSConfig) -> ssl.SSLContext:
    """Make a context for connections to a broker.

    Reads files, so call it in a thread when on a loop.

    Raises:
        ConfigurationError: a file cannot be read or used, or the keys contradict one another.
    """
    if config.client_key is not None and config.client_cert is None:
        raise ConfigurationError("client_key needs client_cert: the certificate of that key.")
    if config.require_client_cert and config.client_cert is None:
        raise ConfigurationError(
            "require_client_cert asks for mutual TLS: set client_cert and client_key."
        )
    if config.crl is not None and not config.crl_check:
        raise ConfigurationError("crl is given, but crl_check is off: set crl_check to True.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    older = config.ssl_version != "TLSv1.3"
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if older else ssl.TLSVersion.TLSv1_3
    _trust(context, config)
    if config.client_cert is not None:
        _show_identity(context, config.client_cert, config.client_key)
    if not config.verify_certs:
        if config.crl_check:
            raise ConfigurationError("crl_check needs verify_certs.")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        log.warning("verify_certs is off: anybody can pretend to be the broker")
    elif not config.check_hostname:
        context.check_hostname = False
        log.warning("check_hostname is off: any certificate of a trusted authority will do")
    return context


def _trust(context: ssl.SSLContext, config: TLSConfig) -> None:
    if config.ca_cert is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load(context, "ca_cert", config.ca_cert)
    if not config.crl_check:
        return
    context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    if config.crl is not None:
        _load(context, "crl", config.crl)
    if not context.cert_store_stats()["crl"]:
        raise ConfigurationError(
            "crl_check is on, but there is no revocation list: name its file with crl, or append "
            "it to the ca_cert file."
        )


def _load(context: ssl.SSLContext, key: str, path: str) -> None:
    try:
        context.load_verify_locations(cafile=Path(path).expanduser())
    except OSError as error:  # ssl.SSLError is one
        raise _unusable(key, path, error) from error


def _show_identity(context: ssl.SSLContext, cert: str, key: str | None) -> None:
    path = None if key is None else Path(key).expanduser()
    try:
        # an empty password: a key with a passphrase is refused instead of asked about
        context.load_cert_chain(Path(cert).expanduser(), path, password="")
    except OSError as error:
        names = cert if key is None else f"{cert} and {key}"
        raise _unusable("client_cert, client_key", names, error) from error


def _unusable(key: str, path: str, error: OSError) -> ConfigurationError:
    reason = error.strerror or str(error)
    if isinstance(error, ssl.SSLError):
        reason = error.reason or reason
    return ConfigurationError(
        f"{key}: {path} cannot be used: {reason}. It must be a readable PEM file"
        f"{', and key and certificate must belong together' if 'client' in key else ''}."
    )


HUNG_UP = (
    "it hung up. Perhaps it does not speak TLS on this port, refuses the versions of it that are "
    "spoken here, demands a client certificate, or refuses ours"
)
"""What an end without an alert may mean; a reset can overtake the alert."""

REASONS = {
    # alerts come first: in OpenSSL's words they are much like the findings of our own checks
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it demands a client certificate",
    "ALERT_CERTIFICATE_REVOKED": "it says that our client certificate was revoked",
    "ALERT_CERTIFICATE_EXPIRED": "it says that our client certificate has expired",
    "ALERT_UNKNOWN_CA": "it does not trust the authority of our client certificate",
    "ALERT_BAD_CERTIFICATE": "it refuses our client certificate",
    "ALERT_CERTIFICATE_UNKNOWN": "it refuses our client certificate",
    "ALERT_HANDSHAKE_FAILURE": "it refuses the handshake; perhaps it demands a client certificate",
    "certificate has expired": "its certificate has expired",
    "certificate is not yet valid": "its certificate is not valid yet",
    "certificate revoked": "its certificate was revoked",
    "unable to get certificate CRL": "there is no revocation list of its certificate's authority",
    "CRL has expired": "the revocation list is out of date",
    "Hostname mismatch": "its certificate is for another host",
    "IP address mismatch": "its certificate is for another address",
    "self-signed certificate": "its certificate is of an authority that is not trusted",
    "unable to get local issuer certificate": "its certificate is of an authority that is not "
    "trusted",
    "WRONG_VERSION_NUMBER": "it does not speak TLS on this port",
    "EOF occurred in violation of protocol": HUNG_UP,
    "UNSUPPORTED_PROTOCOL": "it speaks only versions of TLS that are refused here",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it refuses the versions of TLS that are spoken here",
}
"""What OpenSSL says -> what it means; the first that is found in the error is told."""


def explain(error: BaseException, broker: str) -> TransportTLSError | None:
    """Return what a failed connection means, if TLS is the reason; looks at its causes too."""
    seen: BaseException | None = error
    known = set()  # libraries raise errors whose causes go round in a circle
    while seen is not None and id(seen) not in known:
        known.add(id(seen))
        if isinstance(seen, ConnectionResetError) and not seen.args:  # only asyncio's TLS says so
            return TransportTLSError(
                f"No TLS connection to {broker}: {HUNG_UP}. Nothing was sent to it."
            )
        if isinstance(seen, ssl.SSLError):
            # only those that OpenSSL raises have these attributes
            parts = (getattr(seen, name, None) for name in ("verify_message", "reason"))
            said = " ".join([*filter(None, parts), str(seen)])
            why = next((text for key, text in REASONS.items() if key in said), None)
            return TransportTLSError(
                f"No TLS connection to {broker}: {why or said.strip()}. Nothing was sent to it."
            )
        seen = seen.__cause__ or seen.__context__
    return None


def cut(transport: asyncio.WriteTransport) -> None:
    """End a connection at once, TLS or not, ended already or not.

    Pythons before 3.11.4 raise AttributeError when a TLS transport is aborted that has ended.
    """
    with contextlib.suppress(AttributeError):
        transport.abort()
