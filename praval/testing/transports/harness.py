"""What the author of a transport writes to have it checked."""

from __future__ import annotations

import asyncio
import enum
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

from praval.core.transport import SCHEMES, Capabilities, MessageTransport
from praval.testing.transports.network import Network, Proxy


class Peer(enum.Enum):
    """A broker whose certificate, or way to speak, a client has to look at."""

    TRUSTED = "shows a good certificate"
    EXPIRED = "shows an expired certificate"
    WRONG_HOST = "shows a certificate for another host"
    REVOKED = "shows a revoked certificate"
    FOREIGN = "shows a certificate of an authority that the client does not trust"
    TLS_1_2 = "speaks TLS 1.2 at most"
    PLAINTEXT = "speaks no TLS on that port"


class Mutual(NamedTuple):
    """A broker that demands client certificates; all are changes to the config."""

    broker: Mapping[str, Any]
    """How to get there (without a client certificate)."""
    good: Mapping[str, Any]
    foreign: Mapping[str, Any]
    expired: Mapping[str, Any]
    revoked: Mapping[str, Any]
    checks_revocation: bool = True
    """Whether this broker can refuse a revoked certificate at all."""


class Broker(ABC):
    """A broker of one's own, configured to keep what it has confirmed; runs when it is had."""

    may_lose: ClassVar[int] = 0
    """How many of 200 confirmed messages a kill -9 may cost: the documented bound, where
    ``capabilities.survives_broker_kill`` is False."""
    verdict: ClassVar[str] = "yes"
    """That bound in words, for the matrix."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """As :meth:`TransportHarness.config`; valid before and after a kill."""

    @abstractmethod
    async def kill(self) -> None:
        """Kill it with SIGKILL."""

    @abstractmethod
    async def start(self) -> None:
        """Start it again, on the data it had; return when it answers."""


class TransportHarness(ABC):
    """Says how to reach a running broker; everything else has a default.

    The suite makes names of its own for each case, so a broker that others use as well will do;
    but it leaves its durable groups there: better give it one, or a virtual host, of its own. For
    the negative cases it puts proxies with certificates of its own before the broker, which needs
    the extra ``[certs]``.
    """

    name: ClassVar[str]
    """What reports call it."""
    transport: type[MessageTransport]
    """The class under test."""
    has_network: ClassVar[bool] = True
    """Whether there are connections, TLS and logins to check."""
    patience: ClassVar[float] = 10.0
    """Seconds that what has to happen may take on a busy machine."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do as :meth:`config` configures it: by default what its class says."""
        return self.transport.capabilities

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return a config as a user writes it: address, ``ca_cert``, credentials.

        Over TLS, verified, with a user that may do everything. Each client gets a fresh one, with
        a ``client_id`` and short time-outs added.
        """

    @property
    def secrets(self) -> list[str]:
        """What must never be logged: by default the password of the config."""
        config = self.config()
        found = (config.get("password"), urlsplit(config.get("url", "")).password)
        return [secret for secret in found if secret]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the broker; by default those of the config."""
        config = self.config()
        url = urlsplit(config.get("url", ""))
        host, port = config.get("host", url.hostname), config.get("port", url.port)
        assert host
        assert port, "give the config a port"
        return host, port

    @property
    def plaintext_url(self) -> str:
        """The config's URL without TLS; by default with the protocol's other scheme."""
        scheme = next(
            scheme
            for scheme, (protocol, encrypted) in SCHEMES.items()
            if protocol == self.transport.protocol and not encrypted
        )
        url = urlsplit(self.config().get("url", ""))
        plain: str = url._replace(scheme=scheme, netloc=url.netloc or "localhost").geturl()
        return plain

    def network(self) -> AbstractAsyncContextManager[Network]:
        """Return a way to the broker that can be cut."""
        return Proxy(*self.address)

    @asynccontextmanager
    async def peer(self, kind: Peer) -> AsyncIterator[Mapping[str, Any]]:
        """Let there be such a broker; yield the changes to the config that lead to it."""
        shows, trust = await asyncio.to_thread(self._show, kind)
        upstream = await asyncio.to_thread(self._upstream)
        async with Proxy(*self.address, shows=shows, upstream=upstream) as proxy:
            yield {**proxy.changes, **trust}

    @asynccontextmanager
    async def mutual(self) -> AsyncIterator[Mutual]:
        """Let there be a broker that demands client certificates.

        Override it where the broker itself can; the default is a proxy that does.
        """
        context, trust, shown = await asyncio.to_thread(self._demand)
        upstream = await asyncio.to_thread(self._upstream)
        async with Proxy(*self.address, shows=context, upstream=upstream) as proxy:
            good, foreign, expired, revoked = shown
            yield Mutual({**proxy.changes, **trust}, good, foreign, expired, revoked)

    def broker(self) -> AbstractAsyncContextManager[Broker] | None:
        """Return a broker that may be killed; None: there is no way to have one."""
        return None

    # -- in a thread: these read and write files ---------------------------------------------

    def _show(self, kind: Peer) -> tuple[ssl.SSLContext | None, dict[str, Any]]:
        from praval.testing.transports.certificates import certificates

        ours = certificates()
        shown = {
            Peer.EXPIRED: ours.expired,
            Peer.WRONG_HOST: ours.elsewhere,
            Peer.REVOKED: ours.revoked,
            Peer.FOREIGN: ours.foreign,
        }.get(kind, ours.server)
        trust = {"ca_cert": ours.ca, "crl": ours.crl, "crl_check": True}
        if kind is Peer.PLAINTEXT:
            return None, trust
        newest = ssl.TLSVersion.TLSv1_2 if kind is Peer.TLS_1_2 else ssl.TLSVersion.TLSv1_3
        return ours.context(shown, newest=newest), trust

    def _demand(self) -> tuple[ssl.SSLContext, dict[str, Any], list[Mapping[str, Any]]]:
        from praval.testing.transports.certificates import certificates

        ours = certificates()
        shown: list[Mapping[str, Any]] = [
            {"client_cert": str(each.cert), "client_key": str(each.key)} for each in ours.clients
        ]
        return ours.context(ours.server, demands_client=True), {"ca_cert": ours.ca}, shown

    def _upstream(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.config().get("ca_cert"))
