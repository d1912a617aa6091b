"""What travels on the reserved channel of keys: cards, status lists, and queries for cards.

Cards and status lists prove themselves, so anybody may pass them on and anybody may answer a
query with the unexpired cards that it holds. A query is unsigned: it may be asked by whoever can
reach the broker, and learns what is public. Sans-IO.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, NamedTuple

import msgspec

from praval.core.cards import KnownCard
from praval.core.keys import Keyring
from praval.core.signed import LIMIT, Name, malformed, read_signed
from praval.errors import CardError, SealCode

AgentId = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]


class Query(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose cards are wanted; of nobody in particular: of all."""

    ids: Annotated[tuple[AgentId, ...], msgspec.Meta(max_length=64)]
    kind: Literal["query"]
    names: Annotated[tuple[Name, ...], msgspec.Meta(max_length=32)]


class Heard(NamedTuple):
    """What one message on the channel was."""

    kind: Literal["card", "status", "query"]
    card: KnownCard | None = None
    """The card, if it was one and is believed."""
    answers: tuple[bytes, ...] = ()
    """What to publish, if it was a query: cards that we hold."""


def query(*, names: Iterable[str] = (), ids: Iterable[bytes] = ()) -> bytes:
    """Make a query; at most 32 names and 64 ids."""
    return msgspec.json.encode(Query(tuple(ids), "query", tuple(names)))


def hear(keyring: Keyring, data: bytes, now: int) -> Heard:
    """Take in a message of the channel.

    Raises:
        CardError: with a code; nothing else, whatever the bytes are, but
        ReplayError: see :meth:`Keyring.hear`.
    """
    if data.startswith(b'{"ids":'):
        return Heard("query", answers=_answers(keyring, _read(data), now))
    kind = read_signed(data).kind
    if kind == "card":
        return Heard("card", keyring.hear(data, now))
    if kind == "status":
        keyring.directory.hear_status(data, now)
        return Heard("status")
    raise malformed(f"a {kind!r} does not belong on the channel of keys")


def _answers(keyring: Keyring, wanted: Query, now: int) -> tuple[bytes, ...]:
    everybody = not wanted.ids and not wanted.names
    return tuple(
        known.data
        for known in keyring.directory.known(now)
        if everybody or known.agent_id in wanted.ids or known.name in wanted.names
    )


def _read(data: bytes) -> Query:
    if len(data) > LIMIT:
        raise CardError("A query is too large.", SealCode.TOO_LARGE)
    try:
        found = msgspec.json.decode(data, type=Query)
        if msgspec.json.encode(found) == data:
            return found
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass  # as wrong as what is not canonical
    raise malformed("it is no query for cards")
