"""Transports that break the contract, each in one way: the cases of the suite must notice.

They are the local transport with a fault; those with a wrong idea of TLS are in `broken_tls`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import msgspec

from praval.core.topics import REST
from praval.core.transport import Callback, Confirmation, Health, MessageTransport, Subscription
from praval.errors import (
    ConfigurationError,
    TopicError,
    TransportClosedError,
    TransportConnectionError,
)
from praval_transports.base import Link
from praval_transports.config import Address
from praval_transports.dispatch import Listening
from praval_transports.local import LocalConfig, LocalIncoming, LocalLink, LocalTransport
from praval_transports.message import Incoming, Outgoing
from tests.transports.local_harness import NetworkedLocal

BROKEN: dict[type[MessageTransport], tuple[str, ...]] = {}
"""Transport -> the cases that it must fail."""

K = TypeVar("K", bound=type[MessageTransport])


def breaks(*cases: str) -> Callable[[K], K]:
    """Note the cases that a transport must fail."""

    def note(kind: K) -> K:
        BROKEN[kind] = cases
        return kind

    return note


class Configured(NetworkedLocal):
    """Does not do what its config says."""

    changes: ClassVar[dict[str, Any]] = {}

    async def initialize(self, config: Mapping[str, Any]) -> None:
        await super().initialize({**config, **self.changes})


class Tampering(NetworkedLocal):
    """Changes what comes in."""

    def tamper(self, incoming: Incoming) -> Incoming:
        return incoming

    async def _listen(self, link: Link, listening: Listening) -> None:
        receive = type(listening).receive
        listening.receive = lambda incoming: receive(  # type: ignore[method-assign]
            listening, self.tamper(incoming)
        )
        await super()._listen(link, listening)


class Wrapping(NetworkedLocal):
    """Changes how callbacks are called."""

    def wrap(self, topic: str | Sequence[str], callback: Callback) -> Callback:
        return callback

    async def subscribe(
        self, topic: str | Sequence[str], callback: Callback, **more: Any
    ) -> Subscription:
        return await super().subscribe(topic, self.wrap(topic, callback), **more)


# -- publishing ------------------------------------------------------------------------------


@breaks("confirm", "nothing_lost")
class LosesSome(NetworkedLocal):
    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        if message == b"7":
            return Confirmation(True)
        return await super().publish(topic, message, **more)


@breaks("silent_publish", "no_broker", "publish_meanwhile")
class DoesNotWait(NetworkedLocal):
    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        task = asyncio.ensure_future(super().publish(topic, message, **more))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return Confirmation(True)


@breaks("nobody_listens", "late_subscriber")
class KeepsTheUnheard(NetworkedLocal):
    unheard: ClassVar[list[tuple[str, bytes]]] = []

    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        self.unheard.append((topic, message))
        return await super().publish(topic, message, **more)

    async def subscribe(
        self, topic: str | Sequence[str], callback: Callback, **more: Any
    ) -> Subscription:
        handle = await super().subscribe(topic, callback, **more)
        for unheard, message in self.unheard:
            if unheard == topic:
                await super().publish(unheard, message)
        return handle


@breaks("unroutable")
class AlwaysRouted(NetworkedLocal):
    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        await super().publish(topic, message, **more)
        return Confirmation(True)


@breaks("time_to_live", "priority")
class HasNoLanes(NetworkedLocal):
    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        return await super().publish(topic, message, headers=more.get("headers"))


@breaks("arguments")
class TakesAnything(NetworkedLocal):
    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        body = message if isinstance(message, bytes) else str(message).encode()
        return await super().publish(topic, body, **more)


@breaks("size_limit")
class HasNoLimit(Configured):
    changes: ClassVar[dict[str, Any]] = {"max_message_size": 100_000_000}


# -- delivery --------------------------------------------------------------------------------


@breaks("callback")
class HandsOverBytes(Wrapping):
    def wrap(self, topic: str | Sequence[str], callback: Callback) -> Callback:
        return lambda message: callback(bytes(message))  # type: ignore[arg-type]


@breaks("order")
class AllAtOnce(NetworkedLocal):
    async def subscribe(
        self, topic: str | Sequence[str], callback: Callback, **more: Any
    ) -> Subscription:
        return await super().subscribe(topic, callback, **{**more, "concurrency": 50})


@breaks("concurrency")
class OneByOne(NetworkedLocal):
    async def subscribe(
        self, topic: str | Sequence[str], callback: Callback, **more: Any
    ) -> Subscription:
        return await super().subscribe(topic, callback, **{**more, "concurrency": 1})


class Acknowledged(Incoming):
    """A message that the broker has forgotten."""

    def __init__(self, inner: Incoming) -> None:
        super().__init__(inner.topic, inner.body, inner.headers, inner.redelivered)

    async def acknowledge(self) -> None:
        pass

    async def give_back(self) -> None:
        pass


@breaks(
    "ack_after_success", "callbacks_survive", "give_back", "close_late", "unsubscribe_busy",
    "retry_waits",
)  # fmt: skip
class AcknowledgesEarly(Tampering):
    def tamper(self, incoming: Incoming) -> Incoming:
        assert isinstance(incoming, LocalIncoming)
        incoming._member.done(incoming._stored)
        return Acknowledged(incoming)


@breaks("window", "busy_member")
class FetchesAll(Configured):
    changes: ClassVar[dict[str, Any]] = {"prefetch_count": 10_000}


@breaks("slow_consumer", "publish_inside")
class HasOneLock(Wrapping):
    def __init__(self) -> None:
        super().__init__()
        self.lock = asyncio.Lock()

    def wrap(self, topic: str | Sequence[str], callback: Callback) -> Callback:
        async def locked(message: Any) -> None:
            async with self.lock:
                await callback(message)  # type: ignore[misc]

        return locked

    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        async with self.lock:
            return await super().publish(topic, message, **more)


# -- failures --------------------------------------------------------------------------------


@breaks("retries", "dead_letter", "refuse", "order")
class SwallowsErrors(Wrapping):
    def wrap(self, topic: str | Sequence[str], callback: Callback) -> Callback:
        async def swallow(message: Any) -> None:
            with contextlib.suppress(Exception):
                await callback(message)  # type: ignore[misc]

        return swallow


@breaks("dead_letter", "refuse", "size_limit")
class DropsOnFailure(NetworkedLocal):
    async def bury(self, message: Outgoing) -> None:
        self.counts.dead += 1


@breaks("failure_is_private", "retries")
class PublishesAgain(Wrapping):
    def wrap(self, topic: str | Sequence[str], callback: Callback) -> Callback:
        async def again(message: Any) -> None:
            try:
                await callback(message)  # type: ignore[misc]
            except ValueError:
                if "again" in message.headers:
                    raise
                await self.publish(message.topic, message, headers={"again": "1"})

        return again


@breaks("retry_delay")
class RetriesAtOnce(Configured):
    changes: ClassVar[dict[str, Any]] = {"retry_delay": 0}


# -- messages and topics ---------------------------------------------------------------------


@breaks("binary", "ten_megabytes")
class CarriesText(NetworkedLocal):
    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        if isinstance(message, bytes):
            message = message.decode(errors="replace").encode()
        return await super().publish(topic, message, **more)


@breaks("headers")
class StripsHeaders(Tampering):
    def tamper(self, incoming: Incoming) -> Incoming:
        incoming.headers = {name: text.strip() for name, text in incoming.headers.items()}
        return incoming


@breaks("compression")
class DoesNotUnpack(Tampering):
    def tamper(self, incoming: Incoming) -> Incoming:
        incoming.headers.pop("praval-encoding", None)
        return incoming


@breaks("wildcards", "group_wildcards")
class HearsTooMuch(NetworkedLocal):
    async def _listen(self, link: Link, listening: Listening) -> None:
        listening.patterns = tuple(
            (*pattern[:-1], REST) if pattern[-1] == "*" else pattern
            for pattern in listening.patterns
        )
        await super()._listen(link, listening)


@breaks("overlapping")
class HearsEachPattern(NetworkedLocal):
    async def subscribe(
        self, topic: str | Sequence[str], callback: Callback, **more: Any
    ) -> Subscription:
        topics = [topic] if isinstance(topic, str) else topic
        return [await super(HearsEachPattern, self).subscribe(t, callback, **more) for t in topics][
            -1
        ]


@breaks("several_topics")
class HearsTheFirst(NetworkedLocal):
    async def subscribe(
        self, topic: str | Sequence[str], callback: Callback, **more: Any
    ) -> Subscription:
        topic = topic if isinstance(topic, str) else topic[0]
        return await super().subscribe(topic, callback, **more)


@breaks("any_text")
class LowersTopics(Tampering):
    def tamper(self, incoming: Incoming) -> Incoming:
        incoming.topic = incoming.topic.lower()
        return incoming


@breaks("longest_topic")
class ShortTopics(NetworkedLocal):
    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        if isinstance(topic, str) and len(topic) > 200:
            raise TopicError("too long for me")
        return await super().publish(topic, message, **more)


@breaks("bad_patterns", "longest_topic")
class IgnoresBadPatterns(NetworkedLocal):
    async def subscribe(
        self, topic: str | Sequence[str], callback: Callback, **more: Any
    ) -> Subscription:
        with contextlib.suppress(TopicError):
            return await super().subscribe(topic, callback, **more)
        return Subscription(["nothing"], None)


# -- groups ----------------------------------------------------------------------------------


@breaks("shared_group", "offline_group", "group_stays", "ack_after_success", "group_in_one_client")
class IgnoresGroups(NetworkedLocal):
    async def subscribe(
        self, topic: str | Sequence[str], callback: Callback, **more: Any
    ) -> Subscription:
        return await super().subscribe(topic, callback, **{**more, "group": None})


@breaks("copies", "late_subscriber")
class HasOneGroup(NetworkedLocal):
    async def subscribe(
        self, topic: str | Sequence[str], callback: Callback, **more: Any
    ) -> Subscription:
        group = f"group of {topic if isinstance(topic, str) else topic[0]}"
        return await super().subscribe(topic, callback, **{**more, "group": group})


@breaks("unsubscribe", "late_subscriber", "cancel_unsubscribe", "unsubscribe_inside")
class NeverLeaves(NetworkedLocal):
    async def unsubscribe(self, target: str | Subscription, **more: Any) -> None:
        pass


@breaks("group_stays", "unsubscribe_busy")
class DropsGroups(NetworkedLocal):
    async def unsubscribe(self, target: str | Subscription, **more: Any) -> None:
        await super().unsubscribe(target, **{**more, "drop_group": True})


@breaks("drop_group")
class KeepsGroups(NetworkedLocal):
    async def unsubscribe(self, target: str | Subscription, **more: Any) -> None:
        await super().unsubscribe(target, **{**more, "drop_group": False})


@breaks("unsubscribe_inside")
class WaitsForItself(NetworkedLocal):
    async def unsubscribe(self, target: str | Subscription, **more: Any) -> None:
        await asyncio.ensure_future(super().unsubscribe(target, **more))


# -- connections -----------------------------------------------------------------------------


@breaks("reconnect", "nothing_lost", "callbacks_survive", "broker_killed")
class ForgetsSubscriptions(NetworkedLocal):
    async def _listen_again(self, link: Link) -> None:
        pass


@breaks("publish_meanwhile", "no_broker")
class GivesUp(NetworkedLocal):
    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        if self.health().state == "connecting":
            raise TransportConnectionError("There is no connection.")
        return await super().publish(topic, message, **more)


@breaks("ack_after_success", "callbacks_survive")
class DropsWhatItHolds(NetworkedLocal):
    async def _discard(self, link: Link) -> None:
        assert isinstance(link, LocalLink)
        for member in link._members.values():
            member._held.clear()
        await super()._discard(link)


@breaks("failover", "guide_keys")
class IgnoresBrokers(NetworkedLocal):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        if config.get("compression"):
            raise ConfigurationError("No.")
        await super().initialize({key: config[key] for key in config if key != "brokers"})


@breaks("broker_killed")
class SaysItSurvives(NetworkedLocal):
    capabilities = msgspec.structs.replace(LocalTransport.capabilities, survives_broker_kill=True)


# -- cancelling and closing ------------------------------------------------------------------


@breaks("cancel_initialize")
class LeavesATask(NetworkedLocal):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        task = asyncio.ensure_future(asyncio.sleep(5))
        await super().initialize(config)
        task.cancel()


@breaks("cancel_publish")
class BreaksWhenCancelled(NetworkedLocal):
    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        try:
            return await super().publish(topic, message, **more)
        except asyncio.CancelledError:
            assert self._link is not None
            self._link.lose(TransportConnectionError("cancelled"))
            raise


@breaks("cancel_subscribe")
class LeavesAConsumer(NetworkedLocal):
    async def _withdraw(self, listening: Listening) -> None:
        pass


@breaks("cancel_unsubscribe")
class LeavesByHalves(NetworkedLocal):
    async def unsubscribe(self, target: str | Subscription, **more: Any) -> None:
        assert isinstance(target, str)
        leaving = [each for each in self._listenings if ".".join(each.patterns[0]) == target]
        if not leaving:
            raise ConfigurationError("There is no such subscription.")
        self._listenings.remove(leaving[0])
        await asyncio.sleep(0)
        assert self._link is not None
        await self._link.leave(leaving[0], drop_group=False)


@breaks("cancel_close")
class ClosesByHalves(NetworkedLocal):
    async def close(self) -> None:
        if self.health().state == "closing":
            return
        self._state = "closing" if self._supervisor else self._state
        await asyncio.sleep(0)
        await super().close()


@breaks("close_busy")
class ClosesAtOnce(Configured):
    changes: ClassVar[dict[str, Any]] = {"close_timeout": 1e-6}


@breaks("close_late", "close_silent")
class ClosesInTheEnd(Configured):
    changes: ClassVar[dict[str, Any]] = {"close_timeout": 3600}


@breaks("close_twice")
class ClosesOnce(NetworkedLocal):
    async def close(self) -> None:
        if self.health().state in ("new", "closed"):
            raise TransportClosedError("It is not open.")
        await super().close()


@breaks("not_open")
class OpensByItself(NetworkedLocal):
    async def publish(self, topic: str, message: bytes, **more: Any) -> Confirmation:
        if self.health().state == "new":
            await self.initialize({})
        return await super().publish(topic, message, **more)


# -- configuration and health ----------------------------------------------------------------


@breaks("no_secret_logged")
class LogsItsConfig(NetworkedLocal):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        logging.getLogger("praval.transport").debug("connecting with %s", config)
        await super().initialize(config)


@breaks("unknown_key")
class IgnoresUnknownKeys(NetworkedLocal):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        known = LocalConfig.__struct_fields__
        await super().initialize({key: config[key] for key in config if key in known})


@breaks("wrong_values")
class CorrectsValues(NetworkedLocal):
    async def initialize(self, config: Mapping[str, Any]) -> None:
        await super().initialize({**config, "max_attempts": config["max_attempts"] or 1})


@breaks("wrong_password", "plaintext_url", "wrong_host")
class HasCredentials(NetworkedLocal):
    """The bus has no logins and no TLS: what happens instead is checked too."""

    async def initialize(self, config: Mapping[str, Any]) -> None:
        if "username" in config:
            raise ConfigurationError("Who are you?")
        tls = ("client_cert", "client_key")
        await super().initialize({key: config[key] for key in config if key not in tls})


@breaks("client_names")
class HasOneName(NetworkedLocal):
    links: ClassVar[list[Link]] = []

    async def connect(self, address: Address, tls: Any) -> Link:
        link = await super().connect(address, tls)
        if self.config.client_id is None:
            while self.links:
                self.links.pop().lose(TransportConnectionError("Another one has that name."))
            self.links.append(link)
        return link


@breaks("health")
class CountsBadly(NetworkedLocal):
    def health(self) -> Health:
        return msgspec.structs.replace(super().health(), retried=0)


@breaks("given_back_counts", "health")
class CountsReturnsTwice(NetworkedLocal):
    def health(self) -> Health:
        health = super().health()
        return msgspec.structs.replace(health, given_back=2 * health.given_back)
