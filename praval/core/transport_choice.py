"""Which transport a Reef is to use: from a URL, a config or the settings to a connected one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from praval.core.transport import SCHEMES, MessageTransport, TransportFactory, read_url
from praval.errors import ConfigurationError
from praval.settings import TransportSecuritySettings

Target: TypeAlias = str | Mapping[str, Any] | MessageTransport | Literal[False]
"""What ``Reef(transport=...)`` takes: a URL, a config with its ``"protocol"``, an open one, or
False: none at all."""


class Choice:
    """A transport that is not connected yet, and its config."""

    def __init__(self, protocol: str, config: dict[str, Any]) -> None:
        self.protocol = protocol
        self._config = config

    async def connect(self, replica: str | None) -> MessageTransport:
        """Make and initialise the transport; errors are those of ``initialize``.

        ``replica`` is what a Reef is called over its restarts: the broker is to know it again.
        """
        # in a thread: a client library may have to be imported, which would hold the loop up
        transport = await asyncio.to_thread(TransportFactory.create_transport, self.protocol)
        config = self._config
        if replica is not None and transport.takes_client_id:
            config = {"client_id": f"praval-{replica}", **config}
        try:
            await transport.initialize(config)
        except BaseException:
            await transport.close()
            raise
        return transport

    def __eq__(self, other: object) -> bool:
        """Whether the other one connects to the same broker in the same way."""
        return isinstance(other, Choice) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # a config is a dict

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.protocol}>"  # a config may hold a password


def choose(
    target: Target | None, security: TransportSecuritySettings
) -> Choice | MessageTransport | None:
    """Return what to connect, the open transport that was given, or None: the local bus alone.

    Raises:
        ConfigurationError: it is none of these, or contradicts the settings.
        UnknownNameError: there is no such protocol.
    """
    if target is None or target is False:
        return None
    if isinstance(target, MessageTransport):
        return target
    if isinstance(target, str):
        protocol, config = read_url(target)
    elif isinstance(target, Mapping):
        config = dict(target)
        protocol = config.pop("protocol", None) or _protocol_of(config.get("url"))
    else:
        raise ConfigurationError(
            f"transport must be a URL, a config, a MessageTransport or False, not {target!r}."
        )
    TransportFactory.check_protocol(protocol)
    return Choice(str(protocol), {**_secured(str(protocol), config, security), **config})


def _protocol_of(url: object) -> str:
    if not isinstance(url, str):
        raise ConfigurationError(
            'A transport\'s config needs "url", or "protocol" ("amqp", "mqtt", "stomp", ...).'
        )
    return read_url(url)[0]


def _secured(
    protocol: str, config: Mapping[str, Any], security: TransportSecuritySettings
) -> dict[str, Any]:
    """Return the keys that the section ``transport_security`` of the settings stands for."""
    if protocol not in {name for name, _ in SCHEMES.values()} - {"local"}:
        return {}
    url = config.get("url")
    plain = isinstance(url, str) and not SCHEMES.get(urlsplit(url).scheme, ("", True))[1]
    if plain:
        if security.enforce_tls:
            raise ConfigurationError(
                "The transport's URL has no TLS, but transport_security.enforce_tls is on."
            )
        return {}
    keys: dict[str, Any] = {"verify_certs": security.verify_certificates}
    if security.min_tls_version is not None:
        keys["ssl_version"] = f"TLSv{security.min_tls_version}"
    if security.mutual_tls:
        keys["require_client_cert"] = True
    if security.crl_check:
        keys["crl_check"] = True
    if security.certificate_path is not None:
        keys |= _files(Path(security.certificate_path).expanduser(), security)
    return keys


def _files(folder: Path, security: TransportSecuritySettings) -> dict[str, str]:
    """Find what ``praval certs`` writes: ca.pem, client.pem, client-key.pem, crl.pem."""
    if not (folder / "ca.pem").is_file():
        raise ConfigurationError(
            f"transport_security.certificate_path: there is no ca.pem in {folder}. "
            "`praval certs init` makes one."
        )
    found = {"ca_cert": str(folder / "ca.pem")}
    if (folder / "client.pem").is_file():
        found["client_cert"] = str(folder / "client.pem")
        found["client_key"] = str(folder / "client-key.pem")
    if security.crl_check and (folder / "crl.pem").is_file():
        found["crl"] = str(folder / "crl.pem")
    return found
