"""Receipts: an agent tells the sender of a spore that it is done with it.

They are sent when the end of the handling is committed, many in one message when there are many.
A receipt that gets lost is made up for by the sender, who sends the spore again: the id is known
here, so it is not handled again, and the receipt is repeated.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec

from praval.errors import MalformedSporeError, PravalError

log = logging.getLogger("praval.receipts")

HEADER = "receipt-to"
"""Header of a message whose sender wants receipts: the topic of its inbox."""
KIND, RECEIPTS = "kind", "receipts"
"""Header, and its value, that tell receipts in an inbox from replies."""
MOST = 500
"""Receipts in one message."""

Receipts = list[tuple[str, str]]
"""Spore id and the name of the agent that is done with it."""

_decoder = msgspec.json.Decoder(Receipts)


def decode(data: bytes) -> Receipts:
    """Read a message of receipts.

    Raises:
        MalformedSporeError: it is none.
    """
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise MalformedSporeError(f"These bytes are no receipts: {error}.") from None


class ReceiptDesk:
    """Sends receipts; one message at a time to each inbox, with all that came up meanwhile."""

    def __init__(self, publish: Callable[[str, bytes], Awaitable[object]]) -> None:
        self._publish = publish
        self._owed: dict[str, Receipts] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def owe(self, inbox: str, spore_id: str, agent: str) -> None:
        """Send a receipt soon."""
        self._owed.setdefault(inbox, []).append((spore_id, agent))
        if inbox not in self._tasks:
            self._tasks[inbox] = asyncio.get_running_loop().create_task(self._pay(inbox))

    async def _pay(self, inbox: str) -> None:
        try:
            while owed := self._owed.pop(inbox, None):
                for start in range(0, len(owed), MOST):
                    await self._send(inbox, owed[start : start + MOST])
        finally:
            del self._tasks[inbox]  # before anybody can owe another: no await in between

    async def _send(self, inbox: str, receipts: Receipts) -> None:
        try:
            await self._publish(inbox, msgspec.json.encode(receipts))
        except PravalError as error:
            log.warning("%d receipts were not sent: %s", len(receipts), error)

    async def aclose(self, seconds: float) -> None:
        """Send what is owed, ``seconds`` at most."""
        if tasks := list(self._tasks.values()):
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
