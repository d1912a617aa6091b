"""What a case works with: clients and names of its own, callbacks that collect, waiting."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

from praval.core.topics import encode_segment
from praval.core.transport import Delivery, Health, MessageTransport
from praval.errors import PravalError
from praval.testing.transports.harness import TransportHarness
from praval.testing.transports.network import Network

FAST = {
    "connect_timeout": 8.0,
    "confirm_timeout": 8.0,
    "publish_timeout": 15.0,
    "close_timeout": 5.0,
    "reconnect_delay": 0.02,
    "retry_delay": 0.01,
    "max_attempts": 3,
}
"""What each client's config says beside the harness's. Nothing waits for the long ones unless a
broker is ill."""

POLL = 0.004
"""Seconds between two looks at a condition."""


class NonconformityError(PravalError, AssertionError):
    """The transport does not do what the contract says."""


def expect(condition: object, what: str) -> None:
    """Raise NonconformityError unless the condition holds."""
    if not condition:
        raise NonconformityError(what)


def expect_equal(found: object, wanted: object, what: str) -> None:
    """Raise NonconformityError unless both are equal."""
    if found != wanted:
        raise NonconformityError(f"{what}: {_short(found)}, not {_short(wanted)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 400 else f"{text[:400]}..."


class Refusal:
    """The error that a block ended with."""

    error: BaseException


@contextlib.contextmanager
def refused(
    kind: type[Exception] | tuple[type[Exception], ...], *words: str, what: str = "this"
) -> Iterator[Refusal]:
    """Expect the block to raise such an error, whose message has one of the words.

    Args:
        kind: the error, or several.
        words: in any case; none: the message does not matter.
        what: what is refused, for the error below.

    Raises:
        NonconformityError: it raised another, or none.
    """
    refusal = Refusal()
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = " or ".join(each.__name__ for each in kinds)
    try:
        yield refusal
    except kinds as error:
        if words and not any(word.lower() in str(error).lower() for word in words):
            raise NonconformityError(
                f"{what}: the error does not say {words}: {error!r}"
            ) from error
        refusal.error = error
    except Exception as error:
        raise NonconformityError(f"{what}: {names} was expected, not {error!r}") from error
    else:
        raise NonconformityError(f"{what}: {names} was expected, and nothing was raised")


async def until(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Wait until the condition holds.

    Raises:
        NonconformityError: it does not in that time.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise NonconformityError(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(POLL)


class Inbox:
    """A callback that keeps what it gets; :meth:`Trial.inbox` makes them."""

    def __init__(self, react: Callable[[Delivery], object] | None, patience: float) -> None:
        self._react = react
        self._patience = patience
        self.got: list[Delivery] = []
        self.running = 0
        self.most = 0
        """Calls at once, at most."""
        self.done: list[Delivery] = []

    async def __call__(self, message: Delivery) -> None:
        """Keep it and react."""
        self.got.append(message)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            answer = None if self._react is None else self._react(message)
            if inspect.isawaitable(answer):
                await answer
            self.done.append(message)
        finally:
            self.running -= 1

    @property
    def bodies(self) -> list[bytes]:
        """What came, in order."""
        return [bytes(each) for each in self.got]

    @property
    def attempts(self) -> list[int]:
        """The attempt of each call."""
        return [each.attempt for each in self.got]

    async def wait(self, count: int, patience: float | None = None) -> None:
        """Wait for that many calls."""
        patience = patience or self._patience
        try:
            await until(lambda: len(self.got) >= count, "", patience)
        except NonconformityError:
            raise NonconformityError(
                f"{count} calls of a callback were expected, {len(self.got)} came in "
                f"{patience:g} s: {_short(self.bodies)}"
            ) from None


def in_callbacks(health: Health) -> int:
    """Messages that are neither acknowledged nor given back: in callbacks or fetched ahead."""
    return health.received - health.acknowledged - health.given_back


_trials = itertools.count()


class Trial:
    """One run of one case against one harness."""

    def __init__(self, harness: TransportHarness, case: str) -> None:
        self.harness = harness
        self.capabilities = harness.capabilities
        self.name = f"{case}-{os.getpid()}-{next(_trials)}"
        """Part of all names at the broker, so that no run meets another."""
        self._clients: list[MessageTransport] = []
        self._exits = contextlib.AsyncExitStack()

    # -- names -------------------------------------------------------------------------------

    def topic(self, *texts: str) -> str:
        """Return a topic under this trial's own first segment."""
        return ".".join([self.name, *map(encode_segment, texts)])

    def group(self, name: str = "group") -> str:
        """Return the name of a group that is this trial's own."""
        return f"{name}-{self.name}"

    @property
    def dead(self) -> str:
        """Its dead-letter topic; the group of the same name keeps what is published there."""
        return f"{self.name}.dead"

    # -- clients -----------------------------------------------------------------------------

    def config(self, name: str = "client", **changes: Any) -> dict[str, Any]:
        """Return a config for the client of that name; None takes a key away."""
        config = {
            **FAST,
            "client_id": f"{name}-{self.name}",
            "dead_letter_topic": self.dead,
            **self.harness.config(),
            **changes,
        }
        return {key: value for key, value in config.items() if value is not None}

    def new(self) -> MessageTransport:
        """Make a transport that is not initialised; it is closed when the trial ends."""
        transport = self.harness.transport()
        self._clients.append(transport)
        return transport

    async def client(self, name: str = "client", **changes: Any) -> MessageTransport:
        """Make a transport and connect it. Clients with a name each have a ``client_id``."""
        transport = self.new()
        await transport.initialize(self.config(name, **changes))
        expect_equal(transport.capabilities, self.capabilities, "what it says it can do")
        return transport

    async def network(self) -> Network:
        """Return a way to the broker that can be cut, until the trial ends."""
        return await self._exits.enter_async_context(self.harness.network())

    async def enter(self, context: contextlib.AbstractAsyncContextManager[Any]) -> Any:
        """Enter a context until the trial ends."""
        return await self._exits.enter_async_context(context)

    # -- what most cases do ------------------------------------------------------------------

    def inbox(self, react: Callable[[Delivery], object] | None = None) -> Inbox:
        """Make a callback that keeps what it gets.

        Args:
            react: called with each delivery; what it (or its coroutine) raises, the callback does.
        """
        return Inbox(react, self.harness.patience)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until the condition holds.

        Raises:
            NonconformityError: it does not within the harness's patience.
        """
        await until(condition, what, self.harness.patience)

    async def fill(self, transport: MessageTransport, topic: str, bodies: Iterable[bytes]) -> None:
        """Publish these one after the other."""
        for body in bodies:
            await transport.publish(topic, body)

    async def fill_topics(self, transport: MessageTransport, topics: Iterable[str]) -> None:
        """Publish on each of these, one after the other, its own name."""
        for topic in topics:
            await transport.publish(topic, topic.encode())

    async def offline_group(self, topics: str | Sequence[str], group: str, name: str) -> None:
        """Let there be a durable group whose only member, the client ``name``, is away."""
        member = await self.client(name)
        await member.subscribe(topics, self.inbox(), group=group)
        await member.close()

    async def nothing_more(
        self, publisher: MessageTransport, topic: str, inbox: Inbox, wanted: Sequence[bytes]
    ) -> None:
        """Expect that these came and nothing else: a last message shows that the rest is over.

        The last one has the lowest priority and comes after all that was published before on its
        topic; the others' are waited for, since nothing is promised across topics.
        """
        await inbox.wait(len(wanted))
        last = b"last of all"
        await publisher.publish(topic, last, priority=1)
        await self.until(lambda: last in inbox.bodies, f"a last message on {topic}")
        expect_equal(sorted(inbox.bodies[:-1]), sorted(wanted), "what came")

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[Trial]:
        """Run: close clients and networks at the end, and check that the counts add up."""
        try:
            yield self
            for client in self._clients:
                await self._close(client)
                health = client.health()
                expect(health.state in ("new", "closed"), f"closed, but state {health.state}")
                expect_equal(
                    health.received,
                    health.acknowledged + health.given_back,
                    f"received, of {health}, is not acknowledged + given back",
                )
        finally:
            for client in self._clients:
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    await self._close(client)
            await self._exits.aclose()

    async def _close(self, client: MessageTransport) -> None:
        try:
            async with asyncio.timeout(self.harness.patience):
                await client.close()
        except TimeoutError:
            raise NonconformityError(f"close() took {self.harness.patience:g} s") from None
