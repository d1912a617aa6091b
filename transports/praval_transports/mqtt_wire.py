"""aiomqtt's client, mended where it or paho below it would not do.

aiomqtt binds paho to the loop, reads, and keeps the connection alive. paho offers no other way to
what is changed here than its own inner ones (``_paho``): a new version must pass the tests.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import aiomqtt
from paho.mqtt.client import Client as Paho
from paho.mqtt.enums import MQTTErrorCode

from praval_transports.mqtt_codec import Publication, read_publication

TOGETHER = 16_000
"""Bytes of packets that make one write: a little less than a record of TLS."""
DISCONNECT = 0xE0
"""First byte of the packet after which paho closes the socket at once."""
OTHER = 0x00
"""First byte of a packet that means nothing to paho."""


class Ear(logging.Logger):
    """Takes what paho logs. Nothing of it goes on, but the error that it only logs is kept."""

    heard: OSError | None = None

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Look for an error."""
        if level >= logging.ERROR:
            self.heard = next((each for each in args if isinstance(each, OSError)), self.heard)


class Wire(aiomqtt.Client, ABC):
    """Reads and writes packets on a socket that it is given.

    Args:
        receive: called with each message.
        options: those of aiomqtt's client.
    """

    def __init__(self, receive: Callable[[Publication], None] | None, **options: Any) -> None:
        self.receive = receive
        self._ear = Ear("mqtt")
        super().__init__(
            protocol=aiomqtt.ProtocolVersion.V5,
            max_inflight_messages=0,  # whoever publishes knows what the broker takes; paho does not
            logger=self._ear,
            **options,
        )
        self._client.manual_ack_set(True)  # or ack() would do nothing
        self._paho = cast(Any, self._client)
        """The same, for what is not meant for others."""
        self._plain_queue = self._paho._packet_queue
        self._paho._packet_queue = self._enqueue
        self._paho._handle_publish = self._handle_publish
        self._disconnected.add_done_callback(self._failed)

    @abstractmethod
    def _end(self, error: Exception) -> None:
        """Note that the connection is of no use any more."""

    def _start(self, sock: socket.socket) -> None:
        """Introduce us to the broker, over a connected socket."""
        self._paho._create_socket_connection = lambda: sock
        self._client_connect()  # what blocks in it is done by now

    def _stop(self) -> None:
        """Close the socket. Not to be called by what paho calls: it would wait for itself."""
        self._paho._sock_close()

    async def gone(self) -> None:
        """Wait until nothing of it runs any more; only after it was stopped."""
        if self._misc_task is not None:
            await asyncio.wait([self._misc_task])

    def _failed(self, disconnected: asyncio.Future[None]) -> None:
        """Tell what was raised while reading; aiomqtt keeps it in a future."""
        if not disconnected.cancelled() and (error := disconnected.exception()) is not None:
            self._end(error if isinstance(error, Exception) else ConnectionAbortedError())

    def _handle_publish(self) -> MQTTErrorCode:
        """Take a message in; paho would make many objects of it, and acknowledge nothing."""
        if self.receive is not None:
            packet = self._paho._in_packet
            self.receive(read_publication(packet["command"], packet["packet"]))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _enqueue(self, command: int, packet: bytes, *rest: Any) -> MQTTErrorCode:
        """Queue a packet for paho: what is small and waits together is written together."""
        if command == DISCONNECT:
            command = OTHER  # the broker closes it, when it has read that
        queue = self._paho._out_packet
        if queue and queue[-1]["pos"] == 0:
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
