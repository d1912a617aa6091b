"""The Reef: an event-loop bus that dispatches spores to coroutine agents.

A Reef belongs to the loop on which it was entered. Its methods may be awaited from any loop:
they travel to their own and back. Several Reefs live side by side in one process.

It is put together from small parts: :class:`~praval.core.routing.Routes` (who hears what),
:class:`~praval.core.publisher.Publisher` (into mailboxes), one
:class:`~praval.core.runner.AgentRunner` per agent (out of them), a
:class:`~praval.core.ledger.Ledger` (what became of each delivery) and
:class:`~praval.core.requests.Requests` (who waits for a reply).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import msgspec

from praval.core import losses
from praval.core.agent import Agent
from praval.core.context import current_worker, open_handling
from praval.core.crew import DONE, Crew
from praval.core.delivery import OUTBOX, DeadLetter, LedgerSnapshot, Receipt
from praval.core.interceptor import Interceptor
from praval.core.ledger import Ledger
from praval.core.publisher import Publisher
from praval.core.registry import get_registry
from praval.core.requests import Requests
from praval.core.routing import Routes
from praval.core.runner import AgentRunner
from praval.core.spore import DEFAULT_PRIORITY, Spore, SporeType, new_id
from praval.core.threads import WorkerThreads
from praval.core.transport_choice import Choice, Target, choose
from praval.errors import (
    ConfigurationError,
    IdleTimeoutError,
    JournalError,
    KnowledgeError,
    ReefClosedError,
    ReefError,
    UnknownAgentError,
)
from praval.settings import Settings, current_settings
from praval.sync import blocking_method, hop, owner_loop, run_on, worker_threads

if TYPE_CHECKING:
    from praval.core.bridge import Bridge
    from praval.core.journal import Journal
    from praval.core.key_keeper import Security
    from praval.core.presence import AgentPresence
    from praval.core.transport import MessageTransport
    from praval.core.tree import Tree

log = logging.getLogger("praval.reef")
T = TypeVar("T")
_KNOWLEDGE = SporeType.KNOWLEDGE
State = Literal["new", "running", "closing", "closed"]
NOT_ENTERED = "was not entered yet: use `async with Reef(...) as reef:`"


class Reef:
    """Agents and the bus between them.

    ::

        async with Reef(researcher, editor) as reef:
            await reef.broadcast({"type": "question", "text": "..."})
            answer = await reef.request("researcher", {"type": "question"}, timeout=5)

    Leaving the block lets accepted work finish (``reef_config.drain_timeout`` seconds at most)
    and cancels what is left; leaving it by an exception cancels at once.

    Args:
        *agents: definitions (``@agent``) or :class:`~praval.Agent` instances.
        journal: path of a file in which accepted spores survive a crash; True: one named after
            the namespace under the data directory; None: as ``reef_config.enable_persistence``.
        namespace: separates Reefs that share a broker or a data directory.
        settings: default: the process's, as of now.
        interceptors: stand around every publication and every handling, the first outermost.
        transport: carries the spores to other hosts: a URL (``amqps://``, ``mqtts://``,
            ``stomp+ssl://``, ``rediss://``, ``local://``), a config with its ``"protocol"``, or
            an open MessageTransport, which stays its owner's to close. None: as ``transport`` in
            the settings, else the local bus alone. False: the local bus alone, whatever the
            settings say.
        security: seals every spore: a :class:`~praval.core.keys.Keyring` (``Keyring()``: fresh
            identities in memory), or an open :class:`~praval.core.key_store.KeyStore`, which
            replicas share. Without a transport the spores travel sealed inside this process.
            None: as ``secure_spores`` in the settings.

    Raises:
        DuplicateAgentError, HandlerSignatureError, ConfigurationError: see :meth:`add`.
        UnknownNameError, ConfigurationError: the transport cannot be used.
    """

    _state: State = "new"  # for __del__, also when __init__ has raised

    def __init__(
        self,
        *agents: Agent,
        transport: Target | None = None,
        security: Security | None = None,
        journal: str | os.PathLike[str] | bool | None = None,
        namespace: str = "praval",
        settings: Settings | None = None,
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        self.settings = current_settings() if settings is None else settings
        if not isinstance(self.settings, Settings):
            raise ConfigurationError("settings must be a Settings; see praval.settings.merge().")
        self.security = security
        if security is not None:
            _check_security(security)
        if not isinstance(namespace, str) or not namespace:
            raise ConfigurationError(f"namespace must be a string, not {namespace!r}.")
        self.namespace = namespace
        if transport is None:
            transport = self.settings.transport
        is_private = transport is False
        self._opens_keys = (
            security is None and not is_private and self.settings.secure_spores.enabled
        )
        """Whether to seal with the keys that the settings name."""
        if security is not None or self._opens_keys:
            transport = transport or f"local://sealed-{new_id()}"  # a bus of its own
        elif self.settings.audit.enabled and not is_private:
            raise ConfigurationError(
                "audit.enabled needs security=, or secure_spores.enabled: the keys that seal "
                "spores sign the audit log."
            )
        self.transport_choice = choose(transport, self.settings.transport_security)
        """What carries the spores to other hosts: how to connect it, or an open one."""
        self.bridge: Bridge | None = None
        self.interceptors = tuple(each for each in interceptors if each.enabled())
        self.clock: Callable[[], float] = time.time
        self.journal: Journal | None = None
        self.journal_path = _journal_path(journal, namespace, self.settings)
        self._failure: BaseException | None = None
        self._stop = asyncio.Event()
        self._closed = asyncio.Event()
        self.entered_by: asyncio.Task[Any] | None = None
        self._housekeeping: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._thread = 0
        self.trees: dict[str, Tree] = {}
        """Causal trees that sessions wait for, by their root's id."""
        self._routes = Routes()
        self._crew = Crew(self, self._routes)
        for candidate in agents:
            self.add(candidate)

    # -- life ----------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open the journal and start the agents, start hooks included.

        Raises:
            ReefError: it was entered before.
            SealError, ConfigurationError: the keys that the settings name cannot be opened.
            JournalError: the journal cannot be opened.
            TransportError: the broker cannot be used (see ``MessageTransport.initialize``).
            HandlerSignatureError: a handler wants what nothing provides.
        """
        if self._state != "new":
            raise ReefError("A Reef can be entered once: make a new one.")
        self.loop = asyncio.get_running_loop()
        self._thread = get_ident()
        self.entered_by = asyncio.current_task()
        self.threads = WorkerThreads(self.settings.max_threads, self.loop)
        self._context = contextvars.copy_context()
        self._context.run(self._mark_context)
        limits = self.settings.reef_config
        if self._opens_keys:
            self.security = await self._configured_keys()
        self.journal = await self._open_journal()
        try:
            transport = await self._open_transport()
        except BaseException:
            if self.journal is not None:
                await self.journal.aclose()
            raise
        self.books = Ledger(self.loop, self.clock, self.journal, limits.dead_letters)
        self.publisher = Publisher(
            self._routes, self.books, self.settings, self.interceptors, self.clock
        )
        self.requests = Requests(self.books, self.publisher)
        self.books.listeners.append(losses.listener(self))
        if transport is not None:
            self._cross(transport)
        self._state = "running"
        try:
            await self._start()
        except BaseException:
            await self.aclose(drain=False)
            raise
        get_registry().joined(self)
        return self

    async def _start(self) -> None:
        if self.journal is not None:
            await self.books.restore(self.journal)
            self._housekeeping = self.loop.create_task(self._keep_house(self.journal))
        if self.bridge is not None:
            await self.bridge.start()
        await self._crew.start()
        if self.bridge is not None:
            await self.bridge.announce()

    async def _configured_keys(self) -> Security:
        from praval.core.configured_keys import open_configured

        return await asyncio.to_thread(open_configured, self.settings, int(self.clock() * 1000))

    async def _open_transport(self) -> MessageTransport | None:
        if not isinstance(self.transport_choice, Choice):
            return self.transport_choice
        replica = None if self.journal is None else self.journal.replica_id
        return await self.transport_choice.connect(replica)

    def _cross(self, transport: MessageTransport) -> None:
        """Send all that is published over a transport, and hear what comes over it."""
        if self.security is None:
            from praval.core.bridge import Bridge

            self.bridge = Bridge(self, transport)
        else:
            from praval.core.sealed_bridge import SealedBridge

            self.bridge = SealedBridge(self, transport, self.security)
        self._routes.outbox = self.bridge.outbox
        self.requests.inbox = self.bridge.inbox.channel

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        await self.aclose(drain=error is None)

    async def aclose(self, *, drain: bool = True) -> None:
        """Close: refuse new spores, let accepted work finish, cancel the rest, stop the agents.

        With a journal, what was not handled stays there for the next start. Closing twice is
        harmless.

        Args:
            drain: wait ``reef_config.drain_timeout`` seconds at most for accepted work.

        Raises:
            ReefError: called from inside a handler (use :meth:`stop` there).
        """
        if self._state == "new":
            self._state = "closed"
        if self._state == "closed":
            return
        if self._elsewhere():
            return await hop(self.loop, self.aclose(drain=drain))
        worker = open_handling()
        if worker is not None and worker.runner.reef is self:
            raise ReefError("A handler cannot close its own Reef: call reef.stop() instead.")
        if self._state == "closing":
            await self._closed.wait()
            return
        self._state = "closing"
        if self.bridge is not None:
            self._leaving = self.loop.create_task(
                self.bridge.stop_intake(), context=self.fresh_context()
            )
        try:
            if drain and self._failure is None:
                await self._drain(self.settings.reef_config.drain_timeout)
        finally:
            # a cancelled closer leaves; the closing itself goes on to its end
            closing = self.loop.create_task(self._shut_down(), context=self.fresh_context())
            await asyncio.shield(closing)

    def hurry(self) -> None:
        """End the draining of a closing Reef at once."""
        self.books.fail_waiters(TimeoutError("told to hurry"))

    async def _drain(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.books.wait_idle()
        except TimeoutError:
            log.warning("%d deliveries were not done when the draining ended", self.pending)

    async def _shut_down(self) -> None:
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        self.requests.close(ReefClosedError("The Reef was closed before the reply came."))
        try:
            await self._crew.stop()
            if self.bridge is not None:
                await self._leave(self.bridge)
        finally:
            self.threads.close()
            try:
                if self.journal is not None:
                    await self.journal.aclose()
            finally:
                self._state = "closed"
                self._closed.set()
                self.books.fail_waiters(ReefClosedError("The Reef was closed."))

    async def _leave(self, bridge: Bridge) -> None:
        """Leave the transport; close it if this Reef has opened it."""
        try:
            if self._leaving is not None:
                await self._leaving
            await bridge.close()
        finally:
            if isinstance(self.transport_choice, Choice):
                await bridge.transport.close()

    async def serve(self) -> None:
        """Run until SIGTERM, SIGINT or :meth:`stop`, then close (see :meth:`aclose`).

        The task that entered the Reef is cancelled then, unless it is the one that serves.
        """
        from praval.core.serve import serve

        await serve(self)

    def stop(self) -> None:
        """Ask :meth:`serve` to close the Reef; may be called from a handler or any thread."""
        if get_ident() == self._thread:
            self._stop.set()
        else:
            self.loop.call_soon_threadsafe(self._stop.set)

    async def stopped(self) -> None:
        """Wait until somebody called :meth:`stop`."""
        await self._stop.wait()

    # -- agents --------------------------------------------------------------------------

    def add(self, candidate: Agent, *, main: str = "main") -> Awaitable[None]:
        """Add an agent, before or after the Reef is entered.

        Awaiting what it returns waits until the agent hears its channels (and its start hooks
        have run). The same definition, or the same function defined again, replaces the old one.

        Args:
            candidate: the agent.
            main: the channel it hears if its definition names none.

        Raises:
            DuplicateAgentError: another agent has this name.
            HandlerSignatureError: not an agent, or a parameter nobody provides.
        """
        if self._state != "new":
            self._must_run()
            if get_ident() != self._thread:
                run_on(self.loop, _call(lambda: self._crew.add(candidate, main)))
                return DONE
        return self._crew.add(candidate, main)

    def check(self, *candidates: Agent) -> None:
        """Raise what :meth:`add` would raise for these agents, without adding any.

        Raises:
            DuplicateAgentError: two of them, or one of them and another agent, share a name.
            HandlerSignatureError: not an agent, or a parameter nobody provides.
        """
        self._crew.check(*candidates)

    async def remove(self, name: str) -> None:
        """Remove an agent: what waits for it is cancelled, what it is handling may finish.

        Raises:
            UnknownAgentError: there is none of this name.
        """
        if self._elsewhere():
            return await hop(self.loop, self.remove(name))
        worker = open_handling()
        if worker is not None and worker.runner is self.runners.get(name):
            raise ReefError("A handler cannot remove its own agent: it would wait for itself.")
        await self._crew.remove(name)

    # -- publishing ----------------------------------------------------------------------

    async def broadcast(
        self,
        data: Mapping[str, Any],
        channel: str | None = None,
        target_agent: str | None = None,
        *,
        priority: int = DEFAULT_PRIORITY,
        ttl: float | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Receipt:
        """Publish knowledge; returns when it is accepted (outside handlers: waits for room).

        Args:
            data: the knowledge; ``"type"`` in it is what ``responds_to`` filters on,
                ``"target_agent"`` in it addresses one agent.
            channel: default: ``main`` (inside a handler: the main channel of its session).
            target_agent: the only receiver.
            priority: 1 to 10, 10 first.
            ttl: seconds to live; default: ``reef_config.message_ttl``.
            key: spores with one key are handled strictly in order by each agent.
            headers: strings that travel along.

        Raises:
            KnowledgeError, SporeTooLargeError, ConfigurationError: it cannot be sent.
            UnknownAgentError: ``target_agent`` does not exist.
            MailboxFullError: ``target_agent`` has no room (policy "reject").
            ReefClosedError: the Reef is not running.
        """
        if get_ident() != self._thread:
            self._must_run()
            return await hop(
                self.loop,
                self.broadcast(data, channel, target_agent, priority=priority, ttl=ttl, key=key,
                               headers=headers),
            )  # fmt: skip
        worker = current_worker.get()
        if worker is not None and worker.runner.reef is self:
            return await self.emit(
                data, worker.runner, channel, target_agent, priority=priority, ttl=ttl, key=key,
                headers=headers,
            )  # fmt: skip
        if self._state != "running" or self._failure is not None:
            self._must_run()
        publisher, explicit = self.publisher, target_agent is not None
        to_agent = target_agent if explicit else _addressee(data)
        posted = publisher.compose(
            data, channel or "main", to_agent, _KNOWLEDGE, priority, ttl, key, headers
        )
        receipt, left = publisher.offer(posted, explicit=explicit)
        if left:
            await publisher.hand_over_left(posted, left, receipt)
        if explicit and receipt.error is not None:
            raise receipt.error
        return receipt

    async def send(self, to: str, data: Mapping[str, Any], **options: Any) -> Receipt:
        """Publish knowledge to one agent; options and errors are those of :meth:`broadcast`."""
        if not isinstance(to, str):
            raise UnknownAgentError(f"send() needs the name of an agent, not {to!r}.")
        return await self.broadcast(data, target_agent=to, **options)

    async def publish(self, spore: Spore) -> Receipt:
        """Publish a spore under its own id; errors are those of :meth:`broadcast`.

        With a journal, an id that was accepted before is counted as a duplicate, not handled.
        """
        if self._elsewhere():
            self._must_run()
            return await hop(self.loop, self.publish(spore))
        self._must_run()
        if not isinstance(spore, Spore):
            raise KnowledgeError(
                f"publish() takes a Spore, not {type(spore).__name__}: broadcast() takes knowledge."
            )
        posted = self.publisher.adopt(spore)
        explicit = spore.header.to_agent is not None
        worker = open_handling()
        if worker is not None and worker.runner.reef is self:
            return await self.publisher.emit(posted, worker, explicit=explicit)
        return await self.publisher.publish(posted, explicit=explicit)

    async def request(
        self, to: str, data: Mapping[str, Any], timeout: float | None = None, **options: Any
    ) -> Spore:
        """Ask one agent and wait for its reply, a spore whose knowledge is what it returned.

        Args:
            to: the agent.
            data: the knowledge.
            timeout: seconds; default: ``performance.timeout``. It is the request's deadline
                too: an agent that gets to it later does not handle it.
            **options: ``priority``, ``key``, ``headers`` as in :meth:`broadcast`.

        Raises:
            UnknownAgentError: there is no such agent.
            RequestTimeoutError, RequestFailedError, RequestCycleError: there is no reply.
        """
        if self._elsewhere():
            self._must_run()
            return await hop(self.loop, self.request(to, data, timeout, **options))
        self._must_run()
        timeout = self.settings.performance.timeout if timeout is None else timeout
        if not (isinstance(timeout, (int, float)) and timeout > 0):
            raise ConfigurationError(f"timeout must be above 0 seconds, not {timeout!r}.")
        asker = open_handling()
        if asker is not None and asker.runner.reef is not self:
            asker = None
        parent = asker.posted if asker else None
        posted = self.publisher.compose(
            data,
            f"{to}_channel",
            to_agent=to,
            spore_type=SporeType.REQUEST,
            deadline=self.clock() + timeout,
            sender=asker.runner.name if asker else None,
            parent=parent,
            **options,
        )
        runner = self._routes.runners.get(to)
        through: AgentRunner | None = runner
        if self.bridge is not None:
            header = msgspec.structs.replace(posted.header, reply_to=self.bridge.inbox.channel)
            posted = msgspec.structs.replace(posted, header=header)
            through = self.bridge.outbox
            if runner is not None and not self.bridge.only_here(to):
                runner = None  # somebody else may answer
        if through is None:
            await self.publisher.publish(posted, explicit=True)
            raise self.publisher.unknown_agent(to)
        if parent is not None and (refusal := self.publisher.join_tree(posted, parent)):
            self.books.published += 1
            raise refusal
        return await self.requests.ask(posted, runner, asker, timeout, through)

    def emit(
        self,
        data: Mapping[str, Any],
        sender: AgentRunner,
        channel: str | None = None,
        target_agent: str | None = None,
        **options: Any,
    ) -> Receipt:
        """Publish from inside a handler of this Reef, on its loop: never waits.

        This is what ``broadcast()`` inside handlers calls. A task that outlives its handler comes
        here too, perhaps after the Reef was closed.
        """
        if self._state != "running" or self._failure is not None:
            self._must_run()
        parent = open_handling()
        to_agent = target_agent if target_agent is not None else _addressee(data)
        posted = self.publisher.compose(
            data, channel or sender.main, to_agent, sender=sender.name,
            parent=None if parent is None else parent.posted, **options,
        )  # fmt: skip
        return self.publisher.emit(posted, parent, explicit=target_agent is not None)

    # -- waiting and looking -------------------------------------------------------------

    async def wait_idle(self, timeout: float | None = None) -> None:
        """Wait until no delivery is pending: nothing waits, runs, or will be retried.

        Raises:
            IdleTimeoutError: work was left after ``timeout`` seconds.
            ReefError: the Reef broke down or was closed meanwhile.
            ConfigurationError: the time-out is negative, or no number.
        """
        if timeout is not None and not (isinstance(timeout, (int, float)) and timeout >= 0):
            raise ConfigurationError(f"timeout must be 0 seconds or more, not {timeout!r}.")
        if self._elsewhere():
            return await hop(self.loop, self.wait_idle(timeout))
        try:
            async with asyncio.timeout(timeout):
                await self.books.wait_idle()
        except TimeoutError:
            raise IdleTimeoutError(
                f"{self.pending} deliveries were still pending after {timeout} s; see "
                "reef.get_statistics()."
            ) from None

    @property
    def pending(self) -> int:
        """Deliveries that wait, are being handled, or will be retried, counted where they are."""
        if not self._thread:
            return 0
        at_work = sum(runner.pending for runner in self._crew.at_work)
        return at_work + self.books.in_transit

    @property
    def running(self) -> bool:
        """Whether it takes spores."""
        return self._state == "running" and self._failure is None

    def ledger(self) -> LedgerSnapshot:
        """Return what became of all deliveries so far."""
        parts = [self.books.counts, *(runner.counts for runner in self._crew.at_work)]
        counts = [sum(column) for column in zip(*parts, strict=True)]
        return self.books.snapshot(self.pending, counts)

    def dead_letters(self) -> list[DeadLetter]:
        """Return the last dead letters, oldest first (``reef_config.dead_letters`` of them)."""
        return list(self.books.dead_letters) if self._thread else []

    async def replay(self, letter_id: str) -> Receipt:
        """Publish a dead letter again, to the same agent, under a new id.

        The new spore has the header ``replay_of``. The letter is gone once it is accepted.

        Raises:
            UnknownAgentError: no such letter, or its agent is gone.
            ReefError: it is a reply, for which nobody waits any more.
        """
        if self._elsewhere():
            return await hop(self.loop, self.replay(letter_id))
        self._must_run()
        letter = self.books.find_dead(letter_id)
        if letter is None:
            raise UnknownAgentError(f"No dead letter {letter_id!r}; see reef.dead_letters().")
        header = letter.spore.header
        if header.spore_type is SporeType.RESPONSE:
            raise ReefError(f"{letter_id!r} is a reply: whoever asked waits no more. Ask again.")
        posted = self.publisher.compose(
            letter.spore.knowledge,
            header.channel,
            to_agent=header.to_agent if letter.agent == OUTBOX else letter.agent,
            priority=header.priority,
            key=header.key,
            headers={**(header.headers or {}), "replay_of": header.id},
            sender=header.from_agent,
        )
        with self.books.replaying(letter):
            soft = open_handling() is not None  # a handler must not wait for room
            receipt = await self.publisher.publish(posted, explicit=True, soft=soft)
        await self.books.forget_dead(letter)
        return receipt

    def get_statistics(self) -> dict[str, Any]:
        """Return counts of the Reef and of each agent (guide, "Registry Functions")."""
        from praval.core.statistics import statistics

        return statistics(self)

    def health_check(self) -> dict[str, Any]:
        """Return whether the Reef works: ``{"status": "healthy" | "failed" | "closed", ...}``."""
        status = "failed" if self._failure else "healthy" if self.running else "closed"
        health: dict[str, Any] = {
            "status": status,
            "error": repr(self._failure) if self._failure else None,
            "agents": len(self._routes.runners),
            "pending": self.pending,
        }
        if self.bridge is not None:
            health["transport"] = msgspec.to_builtins(self.bridge.transport.health())
        return health

    @property
    def channels(self) -> list[str]:
        """Channels that somebody hears."""
        return self._routes.channels

    @property
    def runners(self) -> Mapping[str, AgentRunner]:
        """The agents at work, by name."""
        return self._routes.runners

    def agents(self) -> list[AgentPresence]:
        """Return the agents at work on all hosts, as far as they have been heard of.

        Without a transport: those of this Reef.
        """
        if self.bridge is not None:
            return self.bridge.presence.agents()
        from praval.core.presence import own_agents

        return own_agents(self)

    def clear_channel(self, channel: str) -> int:
        """Cancel what waits and came on this channel; return how many deliveries that were."""
        if get_ident() != self._thread:
            return run_on(self.loop, _call(lambda: self.clear_channel(channel)))
        return sum(runner.clear(channel) for runner in self._crew.at_work)

    async def abroadcast_to_channel(self, channel: str, data: Mapping[str, Any]) -> Receipt:
        """Publish knowledge on a channel; errors are those of :meth:`broadcast`."""
        return await self.broadcast(data, channel)

    broadcast_to_channel = blocking_method(abroadcast_to_channel)

    async def await_for_completion(self, timeout: float | None = None) -> None:
        """Wait until no delivery is pending; see :meth:`wait_idle`."""
        await self.wait_idle(timeout)

    wait_for_completion = blocking_method(await_for_completion)

    async def ashutdown(self) -> None:
        """Close the Reef; see :meth:`aclose`."""
        await self.aclose()

    shutdown = blocking_method(ashutdown)

    # -- for its parts -------------------------------------------------------------------

    def fresh_context(self) -> contextvars.Context:
        """Return the context in which the Reef was entered, for a new worker."""
        return self._context.copy()

    def fail(self, error: BaseException) -> None:
        """Give up: the journal died, or the machinery has a bug. Nothing is accepted any more.

        Whoever serves the Reef closes it.
        """
        if self._failure is None and self._state == "running":
            log.critical("the Reef cannot go on: %r", error, exc_info=error)
            self._failure = error
            self._stop.set()
            broken = ReefError(f"The Reef broke down: {error!r}.")
            self.books.fail_waiters(broken)
            self.requests.close(broken)
            for tree in self.trees.values():
                if tree.watch is not None:
                    tree.watch.give_up(broken)

    def stop_tree(self, root: str, *, interrupt: bool = True) -> None:
        """Give up what belongs to one causal tree: what waits, and on request what runs."""
        for runner in self._crew.at_work:
            runner.stop_tree(root, interrupt=interrupt)

    def _mark_context(self) -> None:
        current_worker.set(None)
        owner_loop.set(self.loop)
        worker_threads.set(self.threads)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Say of a part that is made on entering why it is not there."""
            if name in ("books", "loop", "publisher", "requests", "threads"):
                raise _NotEntered(f"The Reef {NOT_ENTERED}.")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _elsewhere(self) -> bool:
        """Whether this code runs on another loop than the Reef's."""
        return asyncio.get_running_loop() is not getattr(self, "loop", None)

    def _must_run(self) -> None:
        if self._failure is not None:
            raise ReefError(
                f"The Reef broke down: {self._failure!r}. Close it and start a new one."
            ) from self._failure
        if self._state != "running" and not (self._state == "closing" and open_handling()):
            how = {"new": NOT_ENTERED}
            raise ReefClosedError(f"The Reef {how.get(self._state, f'is {self._state}')}.")

    async def _open_journal(self) -> Journal | None:
        if self.journal_path is None:
            return None
        from praval.core.journal import Journal

        limits = self.settings.reef_config
        return await Journal.open(
            self.journal_path,
            sync=limits.journal_sync,
            retention=2 * (limits.message_ttl or 43_200.0),
            clock=self.clock,
            key=_journal_key(self.security),
        )

    async def _keep_house(self, journal: Journal) -> None:
        limits = self.settings.reef_config
        while True:
            await asyncio.sleep(limits.cleanup_interval)
            try:
                if limits.message_retention is not None:
                    oldest = self.clock() - limits.message_retention
                    self.books.forget_dead_before(oldest)
                    await journal.drop_dead_before(oldest)
                await journal.prune()
            except JournalError as error:  # one failure; the next round may do better
                log.error("the journal could not forget old ids: %s", error)

    def __del__(self) -> None:
        if self._state in ("running", "closing") and not self.loop.is_closed():
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<Reef {self.namespace!r} {self._state}, {len(self._routes.runners)} agents>"


class _NotEntered(ReefClosedError, AttributeError):
    """Also an AttributeError, so that ``getattr`` with a default works."""


def _addressee(data: Any) -> str | None:
    """Return the recipient that the knowledge itself names."""
    if data.__class__ is not dict and not isinstance(data, Mapping):
        return None  # composing refuses it, with better words
    target = data.get("target_agent")
    if target is None or isinstance(target, str):
        return target
    raise ConfigurationError(f"target_agent must be a string, not {target!r}.")


def _journal_path(
    journal: str | os.PathLike[str] | bool | None, namespace: str, settings: Settings
) -> Path | None:
    if journal is None:
        journal = settings.reef_config.enable_persistence
    if journal is True:
        if Path(namespace).name != namespace:
            raise ConfigurationError(
                f"The journal of namespace {namespace!r} would lie outside the data directory: "
                "choose a namespace without path separators, or give journal= a path."
            )
        return settings.data_path / "journals" / f"{namespace}.sqlite"
    if journal is not False and not isinstance(journal, str | os.PathLike):
        raise ConfigurationError(f"journal must be a path, True, False or None, not {journal!r}.")
    return Path(journal) if journal else None


def _journal_key(security: Security | None) -> bytes | None:
    if security is None:
        return None
    from praval.core.keys import Keyring

    keyring = security if isinstance(security, Keyring) else security.keyring
    return keyring.journal_key


def _check_security(security: Security) -> None:
    # here: it needs the package of the extra "secure"
    from praval.core.key_keeper import check_security

    check_security(security)


async def _call(function: Callable[[], T]) -> T:
    return function()
