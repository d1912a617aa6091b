"""AMQP's part of the config, one logged-in connection, and what the errors of aiormq mean."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import quote, unquote, urlsplit

import aio_pika
import aiormq
import msgspec
from aio_pika.abc import ConnectionParameter
from aio_pika.connection import make_url
from pamqp.common import FieldTable
from yarl import URL

from praval.errors import (
    ConfigurationError,
    SporeTooLargeError,
    TransportConnectionError,
    TransportError,
    TransportLoginError,
    TransportTLSError,
    TransportUnsupportedError,
)
from praval_transports.amqp_wire import Wire
from praval_transports.config import Address, BrokerConfig
from praval_transports.message import Outgoing

NAME = r"^[A-Za-z0-9-_.:@#,/+ ]+$"
"""What pamqp accepts as the name of an exchange or a queue."""
LONGEST_NAME = 255
"""Bytes of a queue's name."""
LONGEST_HEADER = 128
"""Bytes of a header's name; pamqp would cut what is longer."""
MOST_HEADERS = 64 * 1024
"""Bytes of all headers: they travel in one frame, and RabbitMQ's frames take 128 KiB."""


class AMQPConfig(BrokerConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Login is by ``username`` and ``password``, or by ``client_cert`` without a password."""

    exchange_name: Annotated[str, msgspec.Meta(pattern=NAME, max_length=120)] = "praval"
    virtual_host: str | None = None
    """None: the path of ``url``; without one, ``/``."""
    prefetch_count: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 100
    keepalive: Annotated[int, msgspec.Meta(ge=1, le=65534)] = 30
    """AMQP's heartbeat in seconds; a connection that is silent three times as long is dead."""

    def __post_init__(self) -> None:
        if not self.by_certificate and not (self.username and self.password):
            raise ValueError("it needs username and password to log in, or client_cert instead")

    @property
    def by_certificate(self) -> bool:
        """Whether the broker is to know us by our certificate (EXTERNAL)."""
        return self.client_cert is not None and not self.password

    @property
    def vhost(self) -> str:
        """The virtual host that is meant."""
        if self.virtual_host is not None:
            return self.virtual_host
        return unquote(urlsplit(self.url or "").path[1:]) or "/"

    def queue_of(self, group: str) -> str:
        """Return the name of a group's queue; no two exchanges and groups have the same.

        What pamqp does not allow in it is written like in a URL, with ``+`` for ``%``.

        Raises:
            ConfigurationError: it would be too long.
        """
        safe = quote(group, safe="").replace("%", "+").replace("~", "+7E")
        name = f"{self.exchange_name}:{safe}"
        if len(name) > LONGEST_NAME:
            raise ConfigurationError(
                f"The queue of group {group[:40]!r}... has a name of {len(name)} bytes; "
                f"{LONGEST_NAME} is the limit. Shorten the group, or exchange_name."
            )
        return name

    def url_for(self, address: Address) -> URL:
        """Make the URL from which aiormq takes the login, the virtual host and the heartbeat."""
        return make_url(
            host=address.host,
            port=address.port,
            login=self.username or "",
            password=self.password or "",
            virtualhost=self.vhost,
            ssl=self.encrypted,
            heartbeat=self.keepalive,
            auth="EXTERNAL" if self.by_certificate else "PLAIN",
        )


class Connection(aio_pika.Connection):
    """aio-pika's (not robust) connection over a :class:`Wire`."""

    PARAMETERS = (
        *aio_pika.Connection.PARAMETERS,
        ConnectionParameter("transport_factory", parser=lambda wire: wire, is_kwarg=True),
    )

    def __init__(
        self, config: AMQPConfig, address: Address, tls: ssl.SSLContext | None, role: str
    ) -> None:
        self._config = config
        self._wire = Wire(address, tls, config)
        named: FieldTable = {}
        if config.client_id is not None:
            named["connection_name"] = f"{config.client_id} {role}"
        super().__init__(
            config.url_for(address), client_properties=named, transport_factory=self._wire
        )

    @property
    def core(self) -> aiormq.abc.AbstractConnection:
        """The connection of aiormq, once it is open."""
        assert self.transport is not None
        return self.transport.connection

    def cut(self) -> None:
        """End it without a word to the broker."""
        self._wire.cut()

    async def log_in(self) -> None:
        """Connect.

        Raises:
            TransportLoginError: the broker refuses the user, the certificate, or the virtual host.
            TransportTLSError: it has probably refused the certificate.
            TransportConnectionError: it does not speak AMQP 0-9-1.
            OSError: of the socket and of TLS, as they are.
        """
        address, config = self._wire.address, self._config
        try:
            await self.connect()
        except aiormq.ProbableAuthenticationError as error:
            who = "client certificate" if config.by_certificate else "user or password"
            raise TransportLoginError(f"{address} refuses our {who}: {said(error)}") from error
        except aiormq.AuthenticationError as error:
            raise TransportLoginError(f"{address} has no login of our kind: {error!r}") from error
        except aiormq.InvalidFrameError as error:
            if "Connection.Close " not in str(error):
                raise _not_amqp(address, error) from error
            raise TransportLoginError(  # the one answer that aiormq does not tell
                f"{address} does not let us into the virtual host {config.vhost!r}: it does not "
                "exist, or the user has no right to it."
            ) from error
        except aiormq.AMQPConnectionError as error:
            if self._wire.tls is not None:
                await self._wire.hear_why()
                raise TransportTLSError(
                    f"{address} hung up after the TLS handshake: {said(error)}. Perhaps it "
                    "refuses our client certificate, or demands one."
                ) from error
            raise
        except OSError:
            raise
        except Exception as error:  # aiormq takes what it gets for AMQP: this can be anything
            raise _not_amqp(address, error) from error


def _not_amqp(address: Address, error: Exception) -> TransportConnectionError:
    return TransportConnectionError(f"{address} does not speak AMQP 0-9-1: {said(error)}")


def said(error: BaseException | None) -> str:
    """Return what the broker, or aiormq, gives as the reason."""
    return str(error.args[-1]) if error is not None and error.args else type(error).__name__


def failure(error: BaseException) -> TransportError:
    """Say what an error of aiormq means."""
    match error:
        case aiormq.ChannelAccessRefused():
            return TransportUnsupportedError(f"The user has no right to do that: {said(error)}.")
        case ValueError() | TypeError():
            return TransportUnsupportedError(f"AMQP cannot carry that: {said(error)}.")
        case aiormq.DeliveryError():
            return TransportError(
                "The broker did not take the message: a queue is full, or not available."
            )
        case _:
            return closed(error)


def closed(error: BaseException | None) -> TransportConnectionError:
    """Say why a connection or a channel has ended."""
    if isinstance(error, aiormq.ChannelInvalidStateError):
        return TransportConnectionError("The channel is closed.")
    return TransportConnectionError(f"The broker hung up: {said(error)}.")


def refusal(error: aiormq.AMQPError, message: Outgoing) -> Exception:
    """Say what the refusal that closed a channel means for one message that was on it.

    The broker does not say which it refused, and all on that channel fail with the same words.
    """
    words = said(error)
    match error:
        case aiormq.ChannelPreconditionFailed() if f" {len(message.body)} " in words:
            return SporeTooLargeError(f"The broker refuses the message: {words}.")
        case aiormq.ChannelAccessRefused() if (
            "topic '" not in words or f"topic '{message.dotted}'" in words
        ):
            return failure(error)
        case _:
            return closed(error)


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise ConfigurationError if AMQP cannot carry them."""
    size = 0
    for name, text in headers.items():
        size += 8 + 4 * (len(name) + len(text))  # at most
        if len(name) > LONGEST_HEADER // 4 and len(name.encode()) > LONGEST_HEADER:
            raise ConfigurationError(
                f"The header name {name[:40]!r}... takes more than the {LONGEST_HEADER} bytes that "
                "AMQP has for it."
            )
    if size > MOST_HEADERS:
        size = sum(8 + len(name.encode()) + len(text.encode()) for name, text in headers.items())
    if size > MOST_HEADERS:
        raise ConfigurationError(
            f"The headers take {size} bytes; {MOST_HEADERS} travel in a frame. Put it in the body."
        )
