"""Conversations that go on: the last turns of each, for this process.

``chat(..., history=True)`` inside a handler goes on with the conversation of the spore's
correlation id (without one: of its causal tree), ``history="name"`` with the one of that name.
Each agent has its own. Only questions and answers are kept; what tools said in between is not.
"""

from __future__ import annotations

import collections

from praval.core.context import current_agent, current_posted
from praval.errors import ConfigurationError
from praval.providers.messages import Message
from praval.sync import forkable_lock

MAX_TURNS = 40
"""Turns kept of one conversation (a question and its answer are two)."""
MAX_CONVERSATIONS = 1_000
"""Conversations kept; those not used for longest are forgotten first."""

Key = tuple[str, str]

_kept: collections.OrderedDict[Key, collections.deque[Message]] = collections.OrderedDict()
_lock = forkable_lock()


def key_of(history: bool | str) -> Key:
    """Return which conversation is meant.

    Raises:
        ConfigurationError: ``history=True`` where no spore is handled.
    """
    agent, posted = current_agent(), current_posted.get()
    name = "" if agent is None else agent.name
    if isinstance(history, str):
        return name, history
    if posted is None:
        raise ConfigurationError(
            "history=True means the conversation of the spore being handled, and there is none "
            'here: name one, history="a name".'
        )
    header = posted.header
    return name, f"@{header.correlation_id or header.root or header.id}"


def turns_of(key: Key) -> tuple[Message, ...]:
    """Return the turns so far, oldest first."""
    with _lock:
        return tuple(_kept.get(key, ()))


def add(key: Key, question: Message, answer: Message) -> None:
    """Add a question and its answer."""
    with _lock:
        turns = _kept.pop(key, None) or collections.deque(maxlen=MAX_TURNS)
        turns.extend((question, answer))
        _kept[key] = turns
        while len(_kept) > MAX_CONVERSATIONS:
            _kept.popitem(last=False)


def forget_history(name: str | None = None) -> None:
    """Forget the conversations of this name, of all agents; None: all conversations."""
    with _lock:
        for key in [key for key in _kept if name is None or key[1] == name]:
            del _kept[key]
