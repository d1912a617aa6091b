"""What all transports over a connection share, so that a protocol's file is only its protocol.

A :class:`~praval_transports.link.Link` is one live connection to one broker. It is made, used
until it is lost, and thrown away: nothing of it is repaired. A :class:`BrokerTransport` owns the
link: it connects (:mod:`praval_transports.brokers`), notices that it is lost, connects anew,
subscribes again, and sends again what was not confirmed. What comes in is in
:mod:`praval_transports.dispatch`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from praval.core.tls import HUNG_UP, client_context, explain
from praval.core.topics import parse_topic
from praval.core.transport import (
    Callback,
    Confirmation,
    Group,
    Health,
    MessageTransport,
    Subscription,
)
from praval.errors import (
    ConfigurationError,
    TransportClosedError,
    TransportConnectionError,
    TransportError,
    TransportTimeoutError,
)
from praval_transports.brokers import SLOWEST, Brokers
from praval_transports.config import Address, BrokerConfig, read_config
from praval_transports.dispatch import POLITE, Listening, checked_group, group_named
from praval_transports.link import Link
from praval_transports.message import Counts, Outgoing, pack

log = logging.getLogger("praval.transport")

C = TypeVar("C", bound=BrokerConfig)
T = TypeVar("T")


class BrokerTransport(MessageTransport, Generic[C]):
    """A transport over links; a protocol adds its config, its ports and :meth:`connect`."""

    takes_client_id = True
    config_type: ClassVar[type[BrokerConfig]]
    ports: ClassVar[tuple[int, int]]
    """The usual ports with and without TLS."""
    refused: ClassVar[Mapping[str, str]] = {}
    """Key of the config -> why this transport cannot honour it."""

    has_member_parts: ClassVar[bool] = False
    """Whether the broker keeps a group's messages for each member by itself."""

    config: C

    def __init__(self) -> None:
        self.counts = Counts()
        self._state: str = "new"
        self._link: Link | None = None
        self._brokers: Brokers
        self._error: Exception | None = None
        self._changed: asyncio.Future[None]
        self._listenings: list[Listening] = []
        self._parting: list[Listening] = []
        """Subscriptions that are being ended."""
        self._listen_lock = asyncio.Lock()
        self._supervisor: asyncio.Task[None] | None = None
        self._leaving: asyncio.Future[None] | None = None
        self._started: set[asyncio.Task[None]] = set()

    @property
    def settings(self) -> BrokerConfig:
        """The configuration, once it is initialised."""
        return self.config

    @abstractmethod
    async def connect(self, address: Address, tls: ssl.SSLContext | None) -> Link:
        """Connect and log in.

        Any exception will do: OSError, ssl.SSLError and TimeoutError are explained here; raise
        TransportLoginError when the broker refuses who we are. On cancellation (it is given
        ``connect_timeout``) nothing may stay behind.
        """

    # -- life ----------------------------------------------------------------------------

    async def initialize(self, config: Mapping[str, Any]) -> None:
        """See :meth:`MessageTransport.initialize`."""
        if self._state != "new":
            raise ConfigurationError("A transport is initialised once: make a new one.")
        read = read_config(
            self.config_type,
            config,
            protocol=self.protocol,
            ports=self.ports,
            refused=self.refused,
        )
        self.config = read  # type: ignore[assignment]  # config_type is that of C
        self._tls = await asyncio.to_thread(client_context, read) if read.encrypted else None
        self._brokers = Brokers(read, self._connect)
        self._state = "connecting"
        self._changed = asyncio.get_running_loop().create_future()
        try:
            self._use(await self._brokers.any())
        except BaseException:
            self._state = "new"
            raise
        self._supervisor = asyncio.create_task(self._supervise(), name=f"praval:{self.protocol}")
        self._supervisor.add_done_callback(self._supervisor_ended)

    async def close(self) -> None:
        """See :meth:`MessageTransport.close`."""
        if self._leaving is not None:
            await asyncio.shield(self._leaving)
            return
        if self._supervisor is None:
            self._state = "closed"
            return
        self._state = "closing"
        # a cancelled closer leaves; the closing itself goes on to its end
        self._leaving = asyncio.ensure_future(self._close())
        await asyncio.shield(self._leaving)

    async def _close(self) -> None:
        link, patience = self._link, self.config.close_timeout
        for listening in self._listenings:
            listening.stop()
        if link is not None:
            with contextlib.suppress(TransportError):
                await self._part(link, self._listenings, min(POLITE, patience))
        await asyncio.gather(
            *(each.finish(patience) for each in (*self._listenings, *self._parting))
        )
        self._state = "closed"
        self._wake()
        assert self._supervisor is not None
        self._supervisor.cancel()
        await asyncio.wait([self._supervisor])
        if self._link is not None:
            await self._discard(self._link)
            self._link = None
        if self._started:  # they see that it is closed
            await asyncio.wait(self._started)

    # -- the link ------------------------------------------------------------------------

    async def _supervise(self) -> None:
        """Replace the link each time it is lost."""
        loop, shortest = asyncio.get_running_loop(), self.config.reconnect_delay
        delay = shortest
        while True:
            assert self._link is not None
            since = loop.time()
            error = await asyncio.shield(self._link.lost)
            lived = loop.time() - since
            link, self._link, self._error = self._link, None, error
            log.warning("%s: lost %s: %s", self.protocol, self._brokers.address, error)
            for listening in self._listenings:
                listening.forget()
            await asyncio.shield(self._start(self._discard(link)))  # to its end, also if we close
            if lived > delay:
                delay = shortest
            else:  # lost as soon as it is made: what loses it may do so again, and again
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, SLOWEST * shortest)
            fresh = await self._brokers.sooner_or_later(self._not_yet)
            self.counts.reconnects += 1
            try:
                await self._listen_again(fresh)
            except BaseException:
                await self._discard(fresh)
                raise
            log.info("%s: connected to %s again", self.protocol, self._brokers.address)
            self._use(fresh)

    def _not_yet(self, error: TransportError, delay: float) -> None:
        self._error = error
        log.warning("%s: %s Trying again in about %.1f s.", self.protocol, error, delay)

    def _supervisor_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("%r cannot go on", self, exc_info=error)  # only a bug gets here
            self._error = TransportConnectionError(f"The transport broke down: {error!r}.")
            self._state = "closed"
            self._wake()

    async def _listen_again(self, link: Link) -> None:
        async with self._listen_lock:
            for listening in filter(self._is_wanted, list(self._listenings)):
                try:
                    async with asyncio.timeout(self.config.confirm_timeout):
                        await link.listen(listening)
                        if not self._is_wanted(listening):  # any more
                            await link.leave(listening, drop_group=False)
                except (TransportError, OSError, TimeoutError) as error:
                    link.lose(error)  # the next round will do better, or say so
                    return
                listening.link = link

    def _is_wanted(self, listening: Listening) -> bool:
        return self._state == "connected" and listening in self._listenings

    async def _connect(self, address: Address) -> Link:
        limit = self.config.connect_timeout
        try:
            async with asyncio.timeout(limit):
                return await self.connect(address, self._tls)
        except TransportError:
            raise
        except TimeoutError as error:
            raise TransportConnectionError(
                f"{address} did not let us in within {limit} s (connect_timeout)."
            ) from error
        except OSError as error:
            if (tls := explain(error, str(address))) is not None:
                raise tls from error
            why = error.strerror or str(error) or type(error).__name__
            if self._tls is not None and isinstance(error, (ConnectionResetError, BrokenPipeError)):
                why = f"{HUNG_UP} ({why})"
            raise TransportConnectionError(f"No connection to {address}: {why}.") from error

    def _use(self, link: Link) -> None:
        self._link, self._error = link, None
        if self._state == "connecting":
            self._state = "connected"
        self._wake()

    def _wake(self) -> None:
        """Tell whoever waits for a link to look again."""
        changed, self._changed = self._changed, asyncio.get_running_loop().create_future()
        changed.set_result(None)

    async def _discard(self, link: Link) -> None:
        with contextlib.suppress(TransportError, OSError, TimeoutError):
            async with asyncio.timeout(self.config.close_timeout):
                await link.close()

    async def _usable(self, limit: float) -> Link:
        """Wait for a link, ``limit`` seconds at most.

        Raises:
            TransportTimeoutError: there was none in that time.
            TransportClosedError: the transport was closed.
        """
        self._must_be_open()
        if (link := self._link) is not None and not link.lost.done():
            return link
        try:
            async with asyncio.timeout(limit):
                while (link := self._link) is None or link.lost.done():
                    await asyncio.shield(self._changed)
                    self._must_be_open()
                return link
        except TimeoutError:
            raise TransportTimeoutError(
                f"No connection to a broker for {limit:.1f} s (failover_timeout). The last error: "
                f"{self._error}"
            ) from self._error

    def _must_be_open(self) -> None:
        if self._state in ("new", "closed"):
            how = "was not initialised yet" if self._state == "new" else "is closed"
            raise TransportClosedError(f"The {self.protocol} transport {how}.")

    # -- publishing ----------------------------------------------------------------------

    async def publish(
        self,
        topic: str,
        message: bytes,
        *,
        priority: int = 5,
        ttl: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Confirmation:
        """See :meth:`MessageTransport.publish`."""
        self._must_be_open()
        packed = await pack(parse_topic(topic), message, priority, ttl, headers, self.config)
        routed = await self._insist("published", lambda link: link.send(packed))
        self.counts.published += 1
        return Confirmation(routed)

    async def _insist(self, what: str, act: Callable[[Link], Awaitable[T]]) -> T:
        """Do something over a link, over the next if that one is lost meanwhile."""
        loop, config = asyncio.get_running_loop(), self.config
        deadline = loop.time() + config.publish_timeout
        while True:
            left = deadline - loop.time()
            if left <= 0:
                raise TransportTimeoutError(
                    f"The broker did not say within {config.publish_timeout} s (publish_timeout) "
                    f"that it has {what}. It may have, or not. The last error: {self._error}"
                ) from self._error
            link = await self._usable(min(left, config.failover_timeout))
            try:
                async with asyncio.timeout(min(left, config.confirm_timeout)):
                    return await act(link)
            except TransportConnectionError as error:
                self._error = error
                link.lose(error)
            except OSError as error:  # TimeoutError is one: a broker that is silent is gone
                self._error = TransportConnectionError(
                    f"{self._brokers.address} did not answer: {str(error) or 'confirm_timeout'}."
                )
                if await link.blocked():
                    self._error = TransportConnectionError(
                        f"{self._broker} takes no messages for now: it is short of memory or disk."
                    )
                else:
                    link.lose(self._error)

    # -- subscribing ---------------------------------------------------------------------

    async def subscribe(
        self,
        topic: str | Sequence[str],
        callback: Callback,
        *,
        group: str | None = None,
        concurrency: int = 1,
    ) -> Subscription:
        """See :meth:`MessageTransport.subscribe`."""
        self._must_be_open()
        if self._state == "closing":
            raise TransportClosedError(f"The {self.protocol} transport is closing.")
        listening = Listening(self, topic, callback, group, concurrency)
        self.check(listening)
        self._listenings.append(listening)
        try:
            await asyncio.shield(
                self._start(self._insist("subscribed", lambda link: self._listen(link, listening)))
            )
        except BaseException:
            self._listenings.remove(listening)
            self._start(self._withdraw(listening))
            raise
        return listening

    def check(self, listening: Listening) -> None:
        """Raise TransportUnsupportedError if the protocol cannot serve this subscription."""

    async def _listen(self, link: Link, listening: Listening) -> None:
        async with self._listen_lock:
            if listening.link is not link and listening in self._listenings:
                await link.listen(listening)
                listening.link = link

    async def _withdraw(self, listening: Listening) -> None:
        """Undo what of a cancelled subscription the broker knows: it would take messages."""
        async with self._listen_lock:
            link = self._link
            if link is None or link is not listening.link:
                return
            try:
                async with asyncio.timeout(self.config.confirm_timeout):
                    await link.leave(listening, drop_group=False)
            except (TransportError, OSError) as error:
                link.lose(error)
            await listening.finish(0)

    async def _part(self, link: Link, listenings: Sequence[Listening], seconds: float) -> None:
        """Tell the broker that these hear no more, ``seconds`` at most.

        To one that does not answer soon the end of the connection tells it, and that what was not
        acknowledged is to come again.
        """
        try:
            async with asyncio.timeout(seconds), self._listen_lock:
                for listening in listenings:
                    await link.leave(listening, drop_group=False)
        except (TransportConnectionError, OSError) as error:  # TimeoutError is one
            link.lose(TransportConnectionError(f"No farewell: {str(error) or 'no answer'}."))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do it to its end, also when whoever awaits it (shielded) is cancelled.

        What a broker is told of a subscription is told whole and in order: half of it would be a
        consumer that takes messages and hands them to nobody.
        """
        task = asyncio.create_task(work)
        self._started.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._started.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("%s: %s", self.protocol, error)  # in case that nobody awaits it

    async def unsubscribe(
        self,
        target: str | Subscription,
        *,
        drop_group: bool = False,
        patience: float | None = None,
    ) -> None:
        """See :meth:`MessageTransport.unsubscribe`."""
        self._must_be_open()
        if isinstance(target, Subscription):
            found = [each for each in self._listenings if each is target]
        else:
            wanted = Subscription([target], None).patterns
            found = [each for each in self._listenings if each.patterns == wanted]
        if not found:
            raise ConfigurationError(f"There is no subscription {target!r} in this transport.")
        for listening in found:
            self._listenings.remove(listening)
            listening.stop()
            limit = self.config.close_timeout if patience is None else patience
            caller = asyncio.current_task()
            await asyncio.shield(self._start(self._end(listening, drop_group, limit, caller)))

    async def _end(
        self,
        listening: Listening,
        drop_group: bool,
        patience: float,
        caller: asyncio.Task[Any] | None,
    ) -> None:
        async def drop(link: Link) -> None:
            async with self._listen_lock:
                await link.leave(listening, drop_group=True)

        self._parting.append(listening)
        try:
            if drop_group:
                await self._insist("dropped the group", drop)
            elif (link := self._link) is not None and not link.lost.done():
                await self._part(link, [listening], min(POLITE, self.config.confirm_timeout))
        finally:
            try:
                await listening.finish(patience, caller)
            finally:
                self._parting.remove(listening)

    async def bury(self, message: Outgoing) -> None:
        """Publish a dead letter; errors are those of :meth:`publish`."""
        await self._insist("kept the dead letter", lambda link: link.bury(message))
        self.counts.dead += 1

    # -- groups --------------------------------------------------------------------------

    async def groups(self, names: Sequence[str] | None = None) -> list[Group]:
        """See :meth:`MessageTransport.groups`."""
        self._must_be_open()
        wanted = None if names is None else [checked_group(name) for name in names]
        found = await self._insist("told of its groups", lambda link: link.groups(wanted))
        return [msgspec.structs.replace(each, name=group_named(each.name)) for each in found]

    async def drop_group(self, name: str, *, member: str | None = None) -> bool | None:
        """See :meth:`MessageTransport.drop_group`."""
        self._must_be_open()
        group = checked_group(name)
        if member is not None and not self.has_member_parts:
            raise ConfigurationError(
                f"A group belongs to all its members on {self.protocol}: name none of them."
            )
        return await self._insist("dropped the group", lambda link: link.drop(group, member))

    # -- looking -------------------------------------------------------------------------

    def health(self) -> Health:
        """See :meth:`MessageTransport.health`."""
        state = self._state
        if state == "connected" and (self._link is None or self._link.lost.done()):
            state = "connecting"
        counts = {name: getattr(self.counts, name) for name in self.counts.__struct_fields__}
        return Health(
            state,  # type: ignore[arg-type]
            broker=self._broker,
            error=None if self._error is None else str(self._error),
            **counts,
        )

    @property
    def _broker(self) -> str | None:
        address = self._brokers.address if hasattr(self, "_brokers") else None
        return None if address is None else str(address)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._state} {self._broker or ''}>"
