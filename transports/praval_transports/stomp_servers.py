"""Where STOMP servers differ: the protocol leaves destinations, groups and limits to them."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import ClassVar
from urllib.parse import unquote
from uuid import uuid4

import msgspec

from praval.core.topics import REST, Topic, dotted, has_wildcard
from praval.core.transport import Capabilities

Headers = dict[str, str]


class Server(ABC):
    """How topics, groups and limits are written for one server."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        tells_unroutable=False,
        durable_wildcards=True,
        broker_priority=True,
        survives_broker_kill=True,
        takes_over=True,
        drops_groups=False,
    )
    one_queue: ClassVar[bool] = False
    """All patterns of a subscription feed one queue, so that nothing arrives twice."""
    nack_requeues: ClassVar[bool] = False
    """What a NACK names is delivered again at once; elsewhere it is thrown away."""
    forgets_empty_queues: ClassVar[bool] = False
    """A group's queue that never held a message is gone after a restart."""
    untouched: ClassVar[Headers] = {}
    """What makes a subscription get no message, or as few as possible."""

    @abstractmethod
    def address(self, topic: Topic) -> Headers:
        """Return what a SEND says to publish on a topic."""

    @abstractmethod
    def subscriptions(
        self, patterns: Sequence[Topic], group: str | None, prefetch: int
    ) -> list[Headers]:
        """Return what the SUBSCRIBE for each pattern says.

        Args:
            patterns: what is heard.
            group: whose durable queue is shared; None: one that ends with the connection.
            prefetch: most unacknowledged messages of all together.
        """

    @abstractmethod
    def topic_of(self, headers: Mapping[str, str]) -> str:
        """Return the topic that a message was published on, with dots."""

    def expiry(self, ttl: float) -> Headers:
        """Return what lets the server drop a message after ``ttl`` seconds."""
        return {"expires": str(int((time.time() + ttl) * 1000))}

    @abstractmethod
    def queues_of(self, group: str) -> str:
        """Return how a group's queues are named, for whoever looks for them with other tools."""

    def deletion(self, group: str) -> Headers:
        """Return what an UNSUBSCRIBE says to delete a group's queue."""
        raise NotImplementedError


class ActiveMQ(Server):
    """ActiveMQ Classic: virtual topics. A group has a consumer queue for each pattern.

    The topic ``a.b`` is ``/topic/VirtualTopic.a.b``, a group's queue for it
    ``/queue/Consumer.<group>.VirtualTopic.a.b``. In both ``*`` stays and ``#`` is ``>``. For a
    pattern with these the consumer's name has the pattern, as in ``g~a/#``: by a queue's name with
    wildcards all queues are read that match, and of copies of a message one alone can be
    acknowledged. What a group hears by two subscriptions with different patterns it gets twice.

    For priorities the broker needs the policy ``prioritizedMessages="true"``; KahaDB then knows
    three: below, at and above the default.
    """

    forgets_empty_queues = True
    untouched: ClassVar[Headers] = {"selector": "1=0"}

    def address(self, topic: Topic) -> Headers:
        """See :class:`Server`."""
        return {"destination": _virtual_topic(topic)}

    def subscriptions(
        self, patterns: Sequence[Topic], group: str | None, prefetch: int
    ) -> list[Headers]:
        """See :class:`Server`."""
        names = [
            _virtual_topic(pattern) if group is None else _consumer_queue(group, pattern)
            for pattern in patterns
        ]
        limit = _share(prefetch, patterns)
        return [{"destination": name, "activemq.prefetchSize": limit} for name in names]

    def topic_of(self, headers: Mapping[str, str]) -> str:
        """See :class:`Server`."""
        where = headers.get("original-destination") or headers["destination"]
        return unquote(where.partition("VirtualTopic.")[2] or where)

    def queues_of(self, group: str) -> str:
        """See :class:`Server`."""
        name = _consumer(group)
        return f"Consumer.{name}.VirtualTopic.* and Consumer.{name}~*"


class RabbitMQ(Server):
    """RabbitMQ with its STOMP plugin: the topic exchange, and one queue for each group."""

    capabilities = msgspec.structs.replace(Server.capabilities, drops_groups=True)
    one_queue = True
    nack_requeues = True
    untouched: ClassVar[Headers] = {"prefetch-count": "1"}

    def address(self, topic: Topic) -> Headers:
        """See :class:`Server`."""
        return {"destination": f"/topic/{dotted(topic)}"}  # in it %2F is read as a slash

    def subscriptions(
        self, patterns: Sequence[Topic], group: str | None, prefetch: int
    ) -> list[Headers]:
        """See :class:`Server`."""
        own = str(group is None).lower()
        queue = {
            "x-queue-name": f"praval.own.{uuid4()}" if group is None else _group_queue(group),
            "durable": str(group is not None).lower(),
            "exclusive": own,
            "auto-delete": own,
            "x-max-priority": "9",
            "prefetch-count": _share(prefetch, patterns),
        }
        return [self.address(pattern) | queue for pattern in patterns]

    def topic_of(self, headers: Mapping[str, str]) -> str:
        """See :class:`Server`."""
        return unquote(headers["destination"].rpartition("/")[2]).replace("/", "%2F")

    def expiry(self, ttl: float) -> Headers:
        """See :class:`Server`."""
        return {"expiration": str(int(ttl * 1000))}

    def queues_of(self, group: str) -> str:
        """See :class:`Server`."""
        return _group_queue(group)

    def deletion(self, group: str) -> Headers:
        """See :class:`Server`."""
        return {"x-queue-name": _group_queue(group), "durable": "true"}


class Artemis(Server):
    """ActiveMQ Artemis: written after its manual and **never run**.

    A topic is a multicast address, a group's queue for it ``<topic>::<group>.<topic>``. The
    addresses must be set to keep such queues (``auto-delete-queues`` false). Artemis limits what
    is unacknowledged by bytes, so ``prefetch_count`` is not kept.
    """

    untouched: ClassVar[Headers] = {"selector": "1=0"}

    def address(self, topic: Topic) -> Headers:
        """See :class:`Server`."""
        return {"destination": dotted(topic), "destination-type": "MULTICAST"}

    def subscriptions(
        self, patterns: Sequence[Topic], group: str | None, prefetch: int
    ) -> list[Headers]:
        """See :class:`Server`."""
        names = map(dotted, patterns)
        return [
            {
                "destination": name if group is None else f"{name}::{group}.{name}",
                "subscription-type": "MULTICAST",
            }
            for name in names
        ]

    def topic_of(self, headers: Mapping[str, str]) -> str:
        """See :class:`Server`."""
        return headers["destination"].partition("::")[0]

    def queues_of(self, group: str) -> str:
        """See :class:`Server`."""
        return f"{group}.*"


SERVERS: Mapping[str, Server] = {
    "activemq": ActiveMQ(),
    "rabbitmq": RabbitMQ(),
    "artemis": Artemis(),
}

_READ_BY_ACTIVEMQ = re.compile("[%,?]")
"""In a destination a comma begins another one, a question mark options."""


def _quoted(text: str) -> str:
    return _READ_BY_ACTIVEMQ.sub(lambda found: f"%{ord(found[0]):02X}", text)


@lru_cache(4096)
def _virtual_topic(pattern: Topic) -> str:
    segments = (">" if segment == REST else _quoted(segment) for segment in pattern)
    return f"/topic/VirtualTopic.{'.'.join(segments)}"


def _consumer_queue(group: str, pattern: Topic) -> str:
    consumer = _consumer(group)
    if has_wildcard(pattern):
        consumer += "~" + "/".join(map(_quoted, pattern)).replace("*", "+")
    return _virtual_topic(pattern).replace("/topic/", f"/queue/Consumer.{consumer}.", 1)


def _consumer(group: str) -> str:
    return _quoted(group).replace(".", "%2E")  # it is one segment of the queue's name


def _group_queue(group: str) -> str:
    return f"praval.{group}"


def _share(prefetch: int, patterns: Sequence[Topic]) -> str:
    """Return what each pattern's subscription may hold: at least one message."""
    return str(max(1, prefetch // len(patterns)))
