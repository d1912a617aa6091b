"""Notes between the receivers of a spore and its sender: receipts, claims, and answers to claims.

A **receipt** says that an agent is done with a spore. It is sent when the end of the handling is
committed, and again while it does not arrive. One that gets lost all the same is made up for by the
sender, who sends the spore again.

A **claim** says that a replica of an agent has a spore, or is about to handle it. The sender, who
alone may have sent it more than once, grants it to one replica at a time and answers; the others
drop their copies. A grant is a lease: a replica that handles a spore for long renews it, and
meanwhile the sender does not send again. So replicas share the work without a store of their own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec

from praval.errors import (
    MalformedSporeError,
    PravalError,
    TransportConnectionError,
    TransportTimeoutError,
)

log = logging.getLogger("praval.receipts")

HEADER = "receipt-to"
"""Header of a message whose sender wants receipts: the topic of its inbox."""
RESENT = "resent"
"""Header of a message that may not be the only copy of its spore."""
KIND = "kind"
"""Header that tells notes in an inbox from replies."""
RECEIPTS, CLAIMS, ANSWERS = "receipts", "claims", "answers"
"""Values of that header."""
MOST = 500
"""Notes in one message."""
PATIENCE = 30.0
"""Seconds for which a note that must arrive is sent again, while there is a broker."""
FIRST_DELAY, SLOWEST = 0.05, 0.5
"""Seconds before it is sent for the second time; the wait doubles up to the other."""

Key = tuple[str, str]
"""Spore id and agent."""
T = TypeVar("T")


class Claims(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a replica has, or wants to handle."""

    replica: str
    keys: list[Key]
    answer_to: str | None = None
    """Topic of its inbox; None: it has these, and waits for no answer."""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """Whether a replica may handle a spore."""

    spore_id: str
    agent: str
    granted: bool


_receipts = msgspec.json.Decoder(list[Key])
_claims = msgspec.json.Decoder(Claims)
_answers = msgspec.json.Decoder(list[Answer])
encode: Callable[[object], bytes] = msgspec.json.Encoder().encode


def decode(data: bytes) -> list[Key]:
    """Read a message of receipts.

    Raises:
        MalformedSporeError: it is none.
    """
    return _decode(_receipts, data)


def decode_claims(data: bytes) -> Claims:
    """Read a message of claims.

    Raises:
        MalformedSporeError: it is none.
    """
    return _decode(_claims, data)


def decode_answers(data: bytes) -> list[Answer]:
    """Read a message of answers.

    Raises:
        MalformedSporeError: it is none.
    """
    return _decode(_answers, data)


def _decode(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise MalformedSporeError(f"These bytes are no notes of this kind: {error}.") from None


class NoteDesk(Generic[T]):
    """Sends notes; one message at a time to each inbox, with all that came up meanwhile."""

    def __init__(
        self, send: Callable[[str, list[T]], Awaitable[bool]], *, insists: bool = False
    ) -> None:
        """Make one.

        Args:
            send: sends notes to an inbox; returns whether anybody reads it.
            insists: keep trying when notes do not arrive, until there is a broker again, and then
                for ``PATIENCE`` seconds: a reader may be on its way back, too.
        """
        self._send = send
        self._insists = insists
        self._closing = False
        self._owed: dict[str, dict[T, None]] = {}
        """Inbox -> notes in order; what is said again before it is sent is sent once."""
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def owe(self, inbox: str, note: T) -> None:
        """Send a note soon."""
        self._owed.setdefault(inbox, {})[note] = None
        if inbox not in self._tasks:
            self._tasks[inbox] = asyncio.get_running_loop().create_task(self._pay(inbox))

    async def _pay(self, inbox: str) -> None:
        try:
            while inbox in self._owed:
                owed = list(self._owed.pop(inbox))
                for start in range(0, len(owed), MOST):
                    await self._deliver(inbox, owed[start : start + MOST])
        finally:
            del self._tasks[inbox]  # before anybody can owe another: no await in between

    async def _deliver(self, inbox: str, notes: list[T]) -> None:
        loop = asyncio.get_running_loop()
        deadline, delay = loop.time() + PATIENCE, FIRST_DELAY
        while True:
            try:
                if await self._send(inbox, notes):
                    return
                why = "nobody reads that inbox"
                if self._closing:
                    deadline = 0.0
            except (TransportConnectionError, TransportTimeoutError) as error:
                why, deadline = str(error), loop.time() + PATIENCE
            except PravalError as error:
                why = str(error)
            if not self._insists or loop.time() + delay > deadline:
                log.warning("%d notes to %s were not sent: %s", len(notes), inbox, why)
                return
            await asyncio.sleep(delay)
            delay = min(2 * delay, SLOWEST)

    async def aclose(self, seconds: float) -> None:
        """Send what is owed, ``seconds`` at most, and nothing again to who does not read it."""
        self._closing = True
        if tasks := list(self._tasks.values()):
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
