"""One MQTT 5 connection: aiomqtt's client, over a socket of ours.

aiomqtt binds paho to the loop, reads, and keeps the connection alive. What it does not do is here:
connecting can be cancelled, the broker's answer to a publication is told, messages are acknowledged
when that is asked for, what waits for the broker ends with the connection, and why that ended is
said. paho offers no other way to some of this than its own inner ones (``_paho`` below): a new
version of it must pass the tests.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any, cast

import aiomqtt
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
from praval_transports.mqtt_codec import Packed, Publication, read_publication
from praval_transports.mqtt_socket import open_socket

MOST = 65_535
"""Messages that may be unacknowledged at once, either way."""
TOGETHER = 16_000
"""Bytes of packets that make one write: a little less than a record of TLS."""
DISCONNECT = 0xE0
NO_MATCHING_SUBSCRIBERS = 0x10
KEEP_ALIVE = 0x8D
TAKEN_OVER = 0x8E
WHO_WE_ARE = {0x85, 0x86, 0x87, 0x8A, 0x8C}
"""Refusals of the client id, the password, the rights, the host, the way to log in."""


def make_properties(kind: int, **values: object) -> Properties:
    """Make the properties of a packet; None: leave one out."""
    properties = Properties(kind)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        if value is not None:
            setattr(properties, name, value)
    return properties


class Ear(logging.Logger):
    """Takes what paho logs. Nothing of it goes on, but the error that it only logs is kept."""

    heard: OSError | None = None

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Look for an error."""
        if level >= logging.ERROR:
            self.heard = next((each for each in args if isinstance(each, OSError)), self.heard)


class Connection(aiomqtt.Client):
    """One connection; once it has ended it stays so.

    Args:
        config: the transport's.
        client_id: its name at the broker; a second connection of that name ends the first.
        session_expiry: seconds that the broker keeps the session; 0: it ends with the connection,
            and begins anew.
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
        window: int = MOST,
        receive: Callable[[Publication], None] | None = None,
        ended: Callable[[Exception], None] | None = None,
    ) -> None:
        self._ear = Ear("mqtt")
        super().__init__(
            hostname="",  # the socket is made here
            username=config.username,
            password=config.password,
            identifier=client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            keepalive=config.keepalive,
            clean_start=session_expiry == 0,
            properties=make_properties(
                PacketTypes.CONNECT,
                SessionExpiryInterval=session_expiry,
                ReceiveMaximum=min(window, MOST),
            ),
            max_inflight_messages=0,  # paho would not take what the broker says when connected
            logger=self._ear,
        )
        self.leaving = False
        """Whether its end is meant."""
        self._said_good_bye = False
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.receive = receive
        self._notice = ended
        self._welcome: asyncio.Future[None] = self._loop.create_future()
        self._answers: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        """What waits for the broker, by packet identifier."""
        self._room = asyncio.Semaphore(0)
        """Publications that the broker takes before it has confirmed one."""
        self._largest = 0
        self._client.manual_ack_set(True)  # or ack() would do nothing
        self._paho = cast(Any, self._client)
        """The same, for what is not meant for others."""
        self._plain_queue = self._paho._packet_queue
        self._paho._packet_queue = self._enqueue
        self._paho._handle_publish = self._handle_publish
        self._disconnected.add_done_callback(self._failed)

    # -- life ----------------------------------------------------------------------------

    async def open(
        self, address: Address, tls: ssl.SSLContext | None, config: BrokerConfig
    ) -> None:
        """Connect and log in; errors of the socket and of TLS come out as they are.

        Raises:
            TransportLoginError: the broker refuses who we are.
            TransportConnectionError: it refuses us for another reason, or hung up.
        """
        self._hostname, self._port = address
        try:
            sock = await open_socket(address, tls, config)
            self._paho._create_socket_connection = lambda: sock
            self._client_connect()  # nothing that blocks is left in it
            await self._welcome
        except BaseException:
            self._welcome.cancel()  # or its error would be one that nobody has seen
            self.abort()
            raise

    def hang_up(self, session_expiry: int | None = None) -> None:
        """Say good-bye when all before it is sent; ``ended`` is done then.

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
        self._paho._sock_close()

    async def gone(self) -> None:
        """Wait until nothing of it runs any more; only after it has ended."""
        if self._misc_task is not None:
            await asyncio.wait([self._misc_task])

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

    def _failed(self, disconnected: asyncio.Future[None]) -> None:
        """Note what was raised while reading; aiomqtt keeps it in a future."""
        if not disconnected.cancelled() and (error := disconnected.exception()) is not None:
            self._end(error if isinstance(error, Exception) else _as_lost(error))

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

    async def hear(
        self, pattern: str, *, identifier: int | None = None, retained: bool = False
    ) -> None:
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
        error, why = self._ear.heard, "it hung up"
        if isinstance(error, ssl.SSLError):
            self._end(error)
            return
        if error is not None:
            why = error.strerror or repr(error)
        elif flags.is_disconnect_packet_from_server:
            why = reason_code.getName()
        elif reason_code.value == KEEP_ALIVE:
            why = "it has fallen silent (keepalive)"
        if reason_code.value == TAKEN_OVER:
            why += (
                f" by another one named {self.identifier!r}; each process needs its own client_id"
            )
        elif not self._welcome.done():
            why += (
                " before it answered the login. Perhaps it demands a client certificate, or "
                "refuses ours"
            )
        broker = Address(self._hostname, self._port)
        self._end(TransportConnectionError(f"{broker} ended the connection: {why}."))

    def _handle_publish(self) -> MQTTErrorCode:
        if self.receive is not None:
            packet = self._paho._in_packet
            self.receive(read_publication(packet["command"], packet["packet"]))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

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

    def _enqueue(self, command: int, packet: bytes, *rest: Any) -> MQTTErrorCode:
        """Queue a packet for paho: what is small and waits together is written together."""
        queue = self._paho._out_packet
        if queue and command != DISCONNECT and queue[-1]["pos"] == 0:
            last = queue[-1]
            if last["to_process"] + len(packet) < TOGETHER:
                last["packet"] += packet
                last["to_process"] += len(packet)
                return MQTTErrorCode.MQTT_ERR_SUCCESS
        # paho copies what is left of a packet at each write; a view of it is not copied
        part = bytearray(packet) if len(packet) < TOGETHER else memoryview(packet)
        return self._plain_queue(command, part, *rest)  # type: ignore[no-any-return]

    # aiomqtt lets the loop do these later, when the number may be another socket's

    def _on_socket_register_write(self, client: Paho, userdata: Any, sock: Any) -> None:
        self._loop.call_soon(self._write)

    def _on_socket_unregister_write(self, client: Paho, userdata: Any, sock: Any) -> None:
        self._loop.remove_writer(sock.fileno())

    def _write(self) -> None:
        self._client.loop_write()
        sock = self._client.socket()
        if sock is not None and self._client.want_write():
            self._loop.add_writer(sock.fileno(), self._client.loop_write)


def _as_lost(error: BaseException) -> TransportConnectionError:
    """Make one for each that waits: a traceback is one's own."""
    if isinstance(error, TransportConnectionError):
        return TransportConnectionError(str(error))
    return TransportConnectionError(f"The connection broke: {str(error) or type(error).__name__}.")
