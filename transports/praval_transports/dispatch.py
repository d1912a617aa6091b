"""From a link to callbacks: order, concurrency, retries, dead letters, acknowledgement.

Every message that a link hands over ends in one of these: acknowledged, published as a dead letter
and acknowledged, or given back to the broker. :meth:`Listening._handle` is the one place.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import logging
from collections.abc import Coroutine, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from praval.core.topics import decode_segment, has_wildcard, join, parse_topic
from praval.core.transport import Callback, Delivery, GiveBack, Refuse, Subscription
from praval.errors import (
    ConfigurationError,
    MalformedSporeError,
    SporeTooLargeError,
    TopicError,
    TransportConnectionError,
    TransportError,
)
from praval_transports.config import BrokerConfig
from praval_transports.message import (
    RESERVED,
    Counts,
    Incoming,
    Outgoing,
    is_expired,
    priority_of,
    unpack,
)

if TYPE_CHECKING:
    from praval_transports.link import Link

log = logging.getLogger("praval.transport")

ASIDE = 60
"""First waits (``retry_delay``) until a dead letter that failed in its own callback is given back,
but not less than a second: it has nowhere else to go, and must not go round in a circle."""
POLITE = 3.0
"""Seconds that a broker has for what is polite when a subscription ends: that we leave, and what we
give back. The end of the connection tells it the same."""
CANCEL_GRACE = 5.0
"""Seconds that a cancelled callback may take to clean up."""


class Death(NamedTuple):
    """Why a message becomes a dead letter."""

    reason: str
    attempts: int


class Owner(Protocol):
    """What a subscription needs of its transport."""

    counts: Counts

    @property
    def settings(self) -> BrokerConfig:
        """Its configuration."""
        ...

    async def bury(self, message: Outgoing) -> None:
        """Publish a dead letter."""


class Listening(Subscription):
    """A subscription at work. Used on the transport's loop only."""

    def __init__(
        self,
        owner: Owner,
        topic: str | Sequence[str],
        callback: Callback,
        group: str | None,
        concurrency: int,
    ) -> None:
        topics = [topic] if isinstance(topic, str) else list(topic)
        if not topics:
            raise ConfigurationError("A subscription needs a topic.")
        super().__init__(topics, None if group is None else checked_group(group))
        if not callable(callback):
            raise ConfigurationError(f"The callback must be a function, not {callback!r}.")
        if type(concurrency) is not int or concurrency < 1:
            raise ConfigurationError(f"concurrency must be 1 or more, not {concurrency!r}.")
        self.concurrency = concurrency
        self.link: Link | None = None
        """The link that delivers to it."""
        self._owner = owner
        self._callback = callback
        self._waiting: list[tuple[int, int, Incoming]] = []
        """By priority, then arrival."""
        self._arrivals = count()
        self._workers: set[asyncio.Task[None]] = set()
        self._aside: list[Incoming] = []
        """Dead letters that failed here."""
        self._stopping = asyncio.Event()
        self._left = False
        self._losses = 0
        """Links lost so far: what came over an earlier one is on its way again."""

    @property
    def has_wildcard(self) -> bool:
        """Whether one of its patterns can match more than one topic."""
        return any(map(has_wildcard, self.patterns))

    def receive(self, incoming: Incoming) -> None:
        """Take a message from the link. Never blocks: the broker's prefetch is the bound."""
        self._owner.counts.received += 1
        heapq.heappush(self._waiting, (-priority_of(incoming), next(self._arrivals), incoming))
        if self._left:  # it was on its way meanwhile
            self._start(self._return())
        elif len(self._workers) < self.concurrency and not self._stopping.is_set():
            self._start(self._work())

    def forget(self) -> None:
        """The link is lost: what waits will be delivered again."""
        self._losses += 1
        self._owner.counts.given_back += len(self._waiting) + len(self._aside)
        self._waiting.clear()
        self._aside.clear()

    def stop(self) -> None:
        """Start no call any more, and wait for no retry; call it before the link leaves."""
        self._stopping.set()

    async def finish(self, seconds: float, caller: asyncio.Task[Any] | None = None) -> None:
        """Give back what waits, let running callbacks end within ``seconds``, cancel the rest.

        Call it when the link has left, or what is given back comes in again. The ``caller`` may
        be one of those callbacks: nobody waits for that one.
        """
        self.stop()
        self._left = True
        await self._return()
        await self._return_aside()
        if workers := self._workers - {caller}:
            _, late = await asyncio.wait(workers, timeout=seconds)
            for worker in late:
                worker.cancel()
            if late and (await asyncio.wait(late, timeout=CANCEL_GRACE))[1]:
                log.error("a callback of %r did not end after it was cancelled", self)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            finally:
                # here, and not in a callback: receive() must not count on a worker that has ended
                self._workers.discard(worker)

        # a loop whose tasks are eager would run it before it is known
        worker = asyncio.Task(run(), loop=asyncio.get_running_loop())
        self._workers.add(worker)

    async def _work(self) -> None:
        while self._waiting and not self._stopping.is_set():
            await self._handle(heapq.heappop(self._waiting)[2])

    async def _return(self) -> None:
        while self._waiting:
            await self._give_back(heapq.heappop(self._waiting)[2])

    async def _return_aside(self) -> None:
        while self._aside:
            await self._give_back(self._aside.pop())

    def _set_aside(self, incoming: Incoming) -> None:
        log.error("a dead letter failed, too: it comes again later, or with the next subscription")
        self._aside.append(incoming)
        if len(self._aside) == 1:
            wait = max(1.0, ASIDE * self._owner.settings.retry_delay)
            asyncio.get_running_loop().call_later(wait, self._release)

    def _release(self) -> None:
        if self._aside:
            self._start(self._return_aside())

    async def _handle(self, incoming: Incoming) -> None:
        """See one message to its end."""
        counts, config = self._owner.counts, self._owner.settings
        attempt = 2 if incoming.redelivered else 1
        try:
            if is_expired(incoming):
                counts.expired += 1
            elif (death := await self._attempts(incoming, attempt)) is not None:
                if "praval-topic" in incoming.headers:
                    return self._set_aside(incoming)
                await self._owner.bury(self._dead_letter(incoming, death, config))
            await incoming.acknowledge()
        except (GiveBack, TransportError) as why:
            if not isinstance(why, GiveBack):
                # at the loss of a link, which was told, it is the rule, for each that was fetched
                lost = self.link is None or self.link.lost.done()
                level = logging.DEBUG if lost else logging.WARNING
                log.log(level, "a message on %s stays unacknowledged: %s", incoming.topic, why)
            await self._give_back(incoming)
        except asyncio.CancelledError:
            await self._give_back(incoming)
            raise
        else:
            counts.acknowledged += 1

    async def _attempts(self, incoming: Incoming, attempt: int) -> Death | None:
        """Call the callback until it succeeds; return why it never will, or None."""
        config, losses = self._owner.settings, self._losses
        try:
            body = await unpack(incoming, config.max_message_size)
        except (MalformedSporeError, SporeTooLargeError) as error:
            return Death(str(error), 0)
        headers = incoming.headers
        if "praval-topic" not in headers:  # a dead letter keeps them: they say what became of it
            headers = {k: v for k, v in headers.items() if not k.startswith(RESERVED)}
        last = attempt + config.max_attempts - 1
        while True:
            try:
                answer = self._callback(Delivery(body, incoming.topic, dict(headers), attempt))
                if inspect.isawaitable(answer):
                    await answer
                return None
            except GiveBack:
                raise
            except Refuse as refusal:
                return Death(f"refused: {refusal}", attempt)
            except Exception as error:
                if attempt >= last:
                    log.error("%r failed %d times: dead letter", self, attempt, exc_info=error)
                    name = type(error).__name__
                    return Death(f"failed {attempt} times, the last time with {name}", attempt)
                log.warning("%r failed (attempt %d of %d): %r", self, attempt, last, error)
            self._owner.counts.retried += 1
            delay = config.retry_delay * 2 ** (attempt - last + config.max_attempts - 1)
            attempt += 1
            if await self._ends_within(delay) or self._losses != losses:
                raise GiveBack  # nobody waits for retries at the end; or it is on its way again

    async def _ends_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stopping.wait()
        except TimeoutError:
            return False

    def _dead_letter(self, incoming: Incoming, death: Death, config: BrokerConfig) -> Outgoing:
        headers = {
            **incoming.headers,
            "praval-topic": incoming.topic,
            "praval-group": self.group or "",
            "praval-reason": death.reason[:1000],
            "praval-attempts": str(death.attempts),
        }
        headers.pop("praval-expires", None)
        topic = parse_topic(config.dead_letter_topic)
        return Outgoing(topic, incoming.body, priority_of(incoming), None, headers)

    async def _give_back(self, incoming: Incoming) -> None:
        self._owner.counts.given_back += 1
        try:
            async with asyncio.timeout(POLITE if self._left else None):
                await incoming.give_back()
        except TransportError as error:  # the broker gives it back to itself, then
            log.debug("could not give back: %s", error)
        except TimeoutError:
            if self.link is not None:  # with it all comes back
                self.link.lose(TransportConnectionError(f"No answer for {POLITE} s to the end."))


def checked_group(group: str) -> str:
    """Return a group's name as brokers get it.

    Raises:
        ConfigurationError, TopicError: it cannot be one.
    """
    if not isinstance(group, str) or not group:
        raise ConfigurationError(f"group must be a string that is not empty, not {group!r}.")
    return join(*group.split("."))


def group_named(encoded: str) -> str:
    """Undo :func:`checked_group`, but for what never came from it."""
    try:
        return ".".join(map(decode_segment, encoded.split(".")))
    except TopicError:
        return encoded
