"""Transports that connect too easily, or do not say why they do not: Redis with a fault."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from praval.errors import TransportConnectionError, TransportError
from praval_transports.config import Address
from praval_transports.link import Link
from praval_transports.redis import RedisTransport
from tests.transports.broken import breaks


@breaks(
    "wrong_host", "expired_certificate", "revoked_certificate", "unknown_authority", "checks_off",
    "tls_1_3_only",
)  # fmt: skip
class TrustsAnybody(RedisTransport):
    async def connect(self, address: Address, tls: ssl.SSLContext | None) -> Link:
        if tls is not None:
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
            tls.minimum_version = ssl.TLSVersion.TLSv1_2
        return await super().connect(address, tls)


@breaks(
    "good_certificate", "tls_1_2", "client_certificate", "client_certificate_revoked",
    "plaintext_url",
)  # fmt: skip
class TrustsNobody(RedisTransport):
    async def _connect(self, address: Address) -> Link:
        raise TransportConnectionError("No.")


@breaks(
    "wrong_password", "plaintext_port", "client_certificate_missing",
    "client_certificate_foreign", "client_certificate_expired",
)  # fmt: skip
class DoesNotSayWhy(RedisTransport):
    async def _connect(self, address: Address) -> Link:
        try:
            return await super()._connect(address)
        except TransportError as error:
            raise TransportConnectionError(f"No connection to {address}.") from error


@breaks("plaintext_port", "plaintext_url")
class Downgrades(RedisTransport):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        await super().initialize({**config, "allow_plaintext": True})

    async def _connect(self, address: Address) -> Link:
        try:
            return await super()._connect(address)
        except TransportError:
            return await self.connect(address, None)


@breaks("revocation_list_missing")
class NeedsNoList(RedisTransport):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        await super().initialize({**config, "crl_check": "crl" in config})


@breaks("silent_connect")
class WaitsForEver(RedisTransport):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        await super().initialize({**config, "connect_timeout": 3600})


@breaks("keepalive")
class NeverLooks(RedisTransport):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        await super().initialize({**config, "keepalive": 3600})


@breaks("failover")
class KnowsOneBroker(RedisTransport):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        brokers = config.get("brokers", [])[:1]
        await super().initialize({**config, "brokers": brokers})


@breaks("no_secret_logged")
class ShowsThePassword(RedisTransport):
    def __repr__(self) -> str:
        return f"<ShowsThePassword {self.config.password}>"
