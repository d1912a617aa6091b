"""The receiver's side of claims: it asks before it handles what others may handle too.

See ``praval.core.receipts`` for what is said, ``praval.core.outbox`` for who decides.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from praval.core.receipts import CLAIMS, Answer, Claims, Key, NoteDesk, encode
from praval.core.transport import GiveBack
from praval.core.wire import Inbound

log = logging.getLogger("praval.claims")

RENEWAL = 1.0
"""Seconds between two claims for a spore that is being handled."""
LEASE = 5.0
"""Seconds for which a claim holds. Longer than several renewals: some may get lost."""
ANSWER_WITHIN = 1.0
"""Seconds without an answer after which a claim is made again."""
ASKS = 30
"""Claims without an answer after which a spore is handled all the same: better twice than never."""


class ClaimDesk:
    """Claims spores from their senders, and renews the claims. Used on the Reef's loop only."""

    def __init__(
        self,
        replica: str,
        inbox: str,
        send: Callable[[str, str, bytes], Awaitable[bool]],
        is_here: Callable[[str], bool],
    ) -> None:
        """Make one.

        Args:
            replica: who claims.
            inbox: the topic to which answers go.
            send: publishes to an inbox, with a kind.
            is_here: whether whoever reads an inbox is at work.
        """
        self._replica = replica
        self._inbox = inbox
        self._send = send
        self._is_here = is_here
        self._asked: dict[Key, asyncio.Future[bool]] = {}
        self._questions = NoteDesk(self._ask)
        self._renewals: asyncio.Task[None] | None = None

    def start(self, at_work: Mapping[Key, Inbound]) -> None:
        """Renew the claims for what is ``at_work``, from time to time."""
        self._renewals = asyncio.create_task(self._keep_renewing(at_work), name="praval:claims")

    async def may_handle(self, inbox: str, key: Key, wanted: Callable[[], bool]) -> bool:
        """Ask the sender of a spore whether to handle it; without any answer: yes.

        Raises:
            GiveBack: its agent takes nothing any more, it is not ``wanted``.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._asked[key] = future
        try:
            for _ in range(ASKS):
                self._questions.owe(inbox, key)
                await asyncio.wait([future], timeout=ANSWER_WITHIN)
                if future.done():
                    return future.result()
                if not wanted():
                    raise GiveBack
                if not self._is_here(inbox):
                    break
        finally:
            if self._asked.get(key) is future:
                del self._asked[key]
        log.warning("no answer to the claim for spore %s: agent %s handles it", *key)
        return True

    def answered(self, answer: Answer) -> None:
        """Take an answer."""
        future = self._asked.get((answer.spore_id, answer.agent))
        if future is not None and not future.done():
            future.set_result(answer.granted)

    async def aclose(self, seconds: float) -> None:
        """End; wait ``seconds`` at most."""
        if self._renewals is not None:
            self._renewals.cancel()
            await asyncio.wait([self._renewals])
        await self._questions.aclose(seconds)

    async def _ask(self, inbox: str, keys: list[Key]) -> bool:
        sent = await self._send(inbox, CLAIMS, encode(Claims(self._replica, keys, self._inbox)))
        if not sent and not self._is_here(inbox):
            for spore_id, name in keys:  # its sender has left: nobody will answer
                self.answered(Answer(spore_id, name, granted=True))
        return sent

    async def _keep_renewing(self, at_work: Mapping[Key, Inbound]) -> None:
        clock = asyncio.get_running_loop().time
        renewals = NoteDesk(self._renew)
        try:
            while True:
                await asyncio.sleep(RENEWAL)
                for key, inbound in at_work.items():
                    if inbound.since > clock() - RENEWAL:
                        break  # as are those after it
                    if inbound.inbox is not None and not inbound.is_over:
                        renewals.owe(inbound.inbox, key)
        finally:
            await renewals.aclose(0)

    async def _renew(self, inbox: str, keys: list[Key]) -> bool:
        return await self._send(inbox, CLAIMS, encode(Claims(self._replica, keys)))
