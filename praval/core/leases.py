"""The leases of a Reef on the sealed spores that are at work in it."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable

from praval.core.replay import Begun, Key, Replay
from praval.core.replay_writer import ReplayCaller
from praval.core.sealed_wire import SealedInbound
from praval.core.sealer import Arrival
from praval.errors import ReplayError

log = logging.getLogger("praval.replay")


class Leases:
    """Takes them, keeps them while a handler runs, gives them up. Used on the Reef's loop only."""

    def __init__(
        self,
        memory: ReplayCaller,
        renewal: float,
        now: Callable[[], int],
        committed: Callable[[SealedInbound], None],
    ) -> None:
        """Make one.

        Args:
            memory: where they are written.
            renewal: seconds after which they are renewed, a part of what they last.
            now: UTC milliseconds.
            committed: called with each spore that is done with, whoever waits for it or not.
        """
        self.at_work: dict[Key, SealedInbound] = {}
        """What is ours."""
        self._memory = memory
        self._renewal = renewal
        self._now = now
        self._committed = committed
        self._rounds: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Renew from time to time; a process that dies does not, so another may begin again."""
        self._rounds = asyncio.create_task(self._keep_renewing(), name="praval:leases")

    async def aclose(self) -> None:
        """End. Idempotent."""
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.wait([self._rounds])

    async def begin(self, key: Key, arrival: Arrival) -> Begun:
        """Try to take a lease.

        Raises:
            ReplayError: the memory cannot be written, or its clock cannot be trusted.
        """
        message, now = arrival.opened.message, self._now()
        beginning = self._memory.call(
            lambda replay: replay.begin(
                key, arrival.content, created=message.created, expires=message.expires, now=now
            )
        )
        if beginning.done():  # a memory that does not block
            return beginning.result()
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(functools.partial(self._left_behind, key))
            raise

    def hold(self, key: Key, arrival: Arrival, fence: int) -> SealedInbound:
        """Keep a lease that was taken, until the spore is done with or given up."""
        inbound = self.at_work[key] = SealedInbound(
            arrival,
            asyncio.get_running_loop().time(),
            key=key,
            fence=fence,
            writer=self._memory,
            over=self._over,
        )
        return inbound

    def _over(self, key: Key) -> None:
        inbound = self.at_work.pop(key, None)
        if inbound is not None and inbound.is_committed:
            self._committed(inbound)

    def _left_behind(self, key: Key, beginning: asyncio.Future[Begun]) -> None:
        """A lease was taken that nobody here went on with."""
        if not beginning.cancelled() and beginning.exception() is None:
            begun = beginning.result()
            if begun.code is None:
                self._memory.call(lambda replay: replay.release(key, begun.fence))

    async def _keep_renewing(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._renewal)
            oldest, now = clock() - self._renewal / 2, self._now()
            for key, inbound in list(self.at_work.items()):
                if inbound.since < oldest:
                    self._memory.call(
                        functools.partial(_renew, key=key, fence=inbound.fence, now=now)
                    )


def _renew(replay: Replay, key: Key, fence: int, now: int) -> None:
    try:
        replay.renew(key, fence, now=now)
    except ReplayError as error:
        log.warning("a spore that is at work may be handled elsewhere, too: %s", error)
