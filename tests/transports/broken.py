"""Transports that break the contract, each in one way: the cases of the suite must notice.

They are the local transport with a fault. More of them are in `broken_life`, and those with a wrong
idea of TLS in `broken_tls`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from praval.core.topics import REST, parse_topic
from praval.core.transport import Callback, Confirmation, MessageTransport, Subscription
from praval.errors import (
    TopicError,
)
from praval_transports.dispatch import Listening
from praval_transports.link import Link
from praval_transports.local import LocalIncoming
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


@breaks("dead_letter_fails")
class BuriesTheDead(NetworkedLocal):
    async def _listen(self, link: Link, listening: Listening) -> None:
        async def bury(incoming: Incoming) -> None:
            headers = {**incoming.headers, "again": "1"}
            topic = parse_topic(self.config.dead_letter_topic)
            await self.bury(Outgoing(topic, incoming.body, 5, None, headers))
            await incoming.acknowledge()
            self.counts.acknowledged += 1

        listening._set_aside = lambda incoming: listening._start(bury(incoming))  # type: ignore[method-assign]
        await super()._listen(link, listening)


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
