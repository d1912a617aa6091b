"""One MQTT 5 connection: what is asked of the broker, and what it answers.

Connecting can be cancelled, the broker's answer to a publication is told, messages are acknowledged
when that is asked for, what waits for the broker ends with the connection, and why that ended is
said.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from paho.mqtt.client import Client as Paho
from paho.mqtt.client import ConnectFlags, DisconnectFlags
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from praval.errors import (
    TransportConnectionError,
    TransportLoginError,
    TransportUnsupportedError,
)
from praval_transports.config import Address, BrokerConfig
from praval_transports.mqtt_codec import Packed, Publication, make_properties
from praval_transports.mqtt_socket import open_socket
from praval_transports.mqtt_wire import Wire

MOST = 65_535
"""Messages that may be unacknowledged at once, either way."""
NO_MATCHING_SUBSCRIBERS = 0x10
KEEP_ALIVE = 0x8D
WHO_WE_ARE = {0x85, 0x86, 0x87, 0x8A, 0x8C}
"""Refusals of the client id, the password, the rights, the host, the way to log in."""


class Connection(Wire):
    """One connection; once it has ended it stays so.

    Args:
        config: the transport's.
        client_id: its name at the broker; a second connection of that name ends the first.
        session_expiry: seconds that the broker keeps the session; 0: it ends with the connection,
            and begins anew unless it ``resumes``.
        resumes: take over the session that there is.
        window: messages that may come in before one is acknowledged.
        receive: called with each message.
        ended: called when the connection has ended without :meth:`hang_up`.
    """

    def __init__(
        self,
        config: BrokerConfig,
        client_id: str,
        *,
        session_expiry: int = 0,
        resumes: bool = False,
        window: int = MOST,
        receive: Callable[[Publication], None] | None = None,
        ended: Callable[[Exception], None] | None = None,
    ) -> None:
        super().__init__(
            receive,
            hostname="",  # the socket is made here
            username=config.username,
            password=config.password,
            identifier=client_id,
            keepalive=config.keepalive,
            clean_start=session_expiry == 0 and not resumes,
            properties=make_properties(
                PacketTypes.CONNECT,
                SessionExpiryInterval=session_expiry,
                ReceiveMaximum=min(window, MOST),
            ),
        )
        self._config = config
        self.leaving = False
        """Whether its end is meant."""
        self.resumed = False
        """Whether the broker had the session."""
        self._said_good_bye = False
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._notice = ended
        self._welcome: asyncio.Future[None] = self._loop.create_future()
        self._answers: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        """What waits for the broker, by packet identifier."""
        self._room = asyncio.Semaphore(0)
        """Publications that the broker takes before it has confirmed one."""
        self._largest = 0

    # -- life ----------------------------------------------------------------------------

    async def open(self, address: Address, tls: ssl.SSLContext | None) -> None:
        """Connect and log in; errors of the socket and of TLS come out as they are.

        Raises:
            TransportLoginError: the broker refuses who we are.
            TransportConnectionError: it refuses us for another reason, or hung up.
        """
        self._hostname, self._port = address
        sock = None
        try:
            sock = await open_socket(address, tls, self._config)
            if not self.ended.done():  # it may be aborted meanwhile
                self._start(sock)
            await self._welcome
        except BaseException:
            self._welcome.cancel()  # or its error would be one that nobody has seen
            self.abort()
            if sock is not None:
                sock.close()
            raise

    def hang_up(self, session_expiry: int | None = None) -> None:
        """Say good-bye after all that waits to be sent; ``ended`` is done when the broker has it.

        Args:
            session_expiry: seconds that the broker keeps the session; None: as agreed.
        """
        if not self._welcome.done():
            self.abort()
        elif not (self.ended.done() or self._said_good_bye):
            self.leaving = self._said_good_bye = True
            self._client.disconnect(
                properties=make_properties(
                    PacketTypes.DISCONNECT, SessionExpiryInterval=session_expiry
                )
            )

    def abort(self) -> None:
        """End it now. Not to be called by what paho calls: it would wait for itself."""
        self.leaving = True
        self._end(TransportConnectionError("The connection was closed."))
        self._stop()

    def _end(self, error: Exception) -> None:
        if self.ended.done():
            return
        self.ended.set_result(None)
        if not self._welcome.done():
            self._welcome.set_exception(error)
            return  # nobody had it yet
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(_as_lost(error))
        self._answers.clear()
        self._room.release()
        if self._notice is not None and not self.leaving:
            self._notice(_as_lost(error))

    # -- what is awaited -----------------------------------------------------------------

    async def send(
        self, topic: str, body: bytes, properties: Packed, *, retain: bool = False
    ) -> bool:
        """Publish; return, once the broker has it, whether a subscription matched.

        Raises:
            TransportUnsupportedError: the broker refuses the message.
            TransportConnectionError: the connection ended before the broker answered.
        """
        size = len(body) + len(topic.encode()) + len(properties.packed) + 16
        if size > self._largest:
            raise TransportUnsupportedError(
                f"The message takes {size} bytes; the broker takes {self._largest} at most."
            )
        await self._room.acquire()
        try:
            info = self._client.publish(topic, body, 1, retain, properties)
            [reason] = await self._answer(info.rc, info.mid)
        except TransportConnectionError:
            self._room.release()  # the next one finds that out, too
            raise
        if reason.is_failure:
            raise TransportUnsupportedError(
                f"The broker refuses a message on {topic!r}: {reason.getName()}."
            )
        return reason.value != NO_MATCHING_SUBSCRIBERS

    async def hear(self, pattern: str, identifier: int, *, retained: bool = False) -> None:
        """Subscribe; ``identifier`` comes with each message, ``retained`` ones come too.

        Raises:
            TransportUnsupportedError: the broker refuses the subscription.
            TransportConnectionError: the connection ended before the broker answered.
        """
        options = SubscribeOptions(
            1, retainHandling=0 if retained else SubscribeOptions.RETAIN_DO_NOT_SEND
        )
        properties = make_properties(PacketTypes.SUBSCRIBE, SubscriptionIdentifier=identifier)
        said = self._client.subscribe(pattern, options=options, properties=properties)
        [reason] = await self._answer(*said)
        if reason.is_failure:
            raise TransportUnsupportedError(
                f"The broker refuses a subscription to {pattern!r}: {reason.getName()}."
            )

    async def unhear(self, patterns: list[str]) -> None:
        """End subscriptions. Raises TransportConnectionError if the connection ended before."""
        await self._answer(*self._client.unsubscribe(patterns))

    async def _answer(self, code: MQTTErrorCode, packet: int | None) -> list[ReasonCode]:
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or packet is None or self.ended.done():
            raise TransportConnectionError("The connection to the broker has ended.")
        answer: asyncio.Future[list[ReasonCode]] = self._loop.create_future()
        self._answers[packet] = answer
        return await answer

    def acknowledge(self, packet: int) -> None:
        """Acknowledge a message that came in."""
        self._client.ack(packet, 1)

    # -- what paho calls -----------------------------------------------------------------

    def _on_connect(
        self,
        client: Paho,
        userdata: Any,
        flags: ConnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        if self._welcome.done():
            return
        if not reason_code.is_failure:
            self.resumed = flags.session_present
            self._room = asyncio.Semaphore(getattr(properties, "ReceiveMaximum", MOST))
            self._largest = getattr(properties, "MaximumPacketSize", 2**28)
            self._welcome.set_result(None)
            return
        kind = TransportConnectionError
        if reason_code.value in WHO_WE_ARE:
            kind = TransportLoginError
        said = getattr(properties, "ReasonString", "")
        self._welcome.set_exception(
            kind(
                f"{self._hostname}:{self._port} refuses the login of client {self.identifier!r}: "
                f"{reason_code.getName()}{said and f' ({said})'}. Check username, password, "
                "client certificate and client_id."
            )
        )

    def _on_disconnect(
        self,
        client: Paho,
        userdata: Any,
        flags: DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        error, why = self._ear.heard, "it hung up. Perhaps another process has this client id"
        if isinstance(error, ssl.SSLError):
            self._end(error)
            return
        if error is not None:
            why = error.strerror or repr(error)
        elif flags.is_disconnect_packet_from_server:
            why = reason_code.getName()
        elif reason_code.value == KEEP_ALIVE:
            why = "it has fallen silent (keepalive)"
        if not self._welcome.done():
            why = (
                "it hung up before it answered the login. Perhaps it demands a client certificate, "
                "or refuses ours"
            )
        broker = Address(self._hostname, self._port)
        self._end(
            TransportConnectionError(
                f"{broker} has ended the connection {self.identifier!r}: {why}."
            )
        )

    def _on_publish(
        self,
        client: Paho,
        userdata: Any,
        mid: int,
        reason_code: ReasonCode,
        properties: Properties,
    ) -> None:
        self._room.release()  # now, and not when a publication is cancelled
        self._on_subscribe(client, userdata, mid, [reason_code])

    def _on_subscribe(
        self,
        client: Paho,
        userdata: Any,
        mid: int,
        reason_codes: list[ReasonCode],
        properties: Properties | None = None,
    ) -> None:
        answer = self._answers.pop(mid, None)
        if answer is not None and not answer.done():
            answer.set_result(reason_codes)

    _on_unsubscribe = _on_subscribe


def _as_lost(error: BaseException) -> TransportConnectionError:
    """Make one for each that waits: a traceback is one's own."""
    if isinstance(error, TransportConnectionError):
        return TransportConnectionError(str(error))
    return TransportConnectionError(f"The connection broke: {str(error) or type(error).__name__}.")
