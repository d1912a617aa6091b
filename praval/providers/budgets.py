"""Budgets of tokens, money and time that travel with the work they are meant for.

::

    with budget(tokens=20_000, cost=0.50, seconds=60):
        result = start_agents(researcher, writer, initial_data={...})

A model call inside the block, or inside a handler of a spore that came of it, is refused once the
budget is spent, and gets no more time than is left. To let a budget follow its spores, give the
Reef the interceptor: ``Reef(..., interceptors=[Budgets()])``. It travels in the header
``praval-budget``. Within one process all branches share one account. Each host has an account of
its own, which learns from every spore that arrives what was spent elsewhere until that spore left;
what branches on different hosts spend side by side is not added up.

A request's own deadline (``reef.request(..., timeout=5)``) holds for the model calls of its handler
without any of this.
"""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import msgspec

from praval.core.context import current_posted
from praval.core.interceptor import Interceptor
from praval.core.spore import Spore, new_id
from praval.errors import ConfigurationError, ModelBudgetError
from praval.providers.messages import Usage
from praval.sync import forkable_lock

if TYPE_CHECKING:
    from praval.core.agent import AgentDefinition
    from praval.core.delivery import Posted

HEADER = "praval-budget"
KEPT = 10_000
"""Budgets whose accounts are remembered; the oldest are forgotten first."""


class _Wire(msgspec.Struct, omit_defaults=True):
    """A budget as it travels."""

    id: str
    tokens: int | None = None
    cost: float | None = None
    deadline: float | None = None
    used_tokens: int = 0
    used_cost: float = 0.0
    inside: _Wire | None = None


class Budget:
    """What some work may use, and what it has used."""

    def __init__(
        self,
        tokens: int | None = None,
        cost: float | None = None,
        deadline: float | None = None,
        *,
        id: str | None = None,
    ) -> None:
        self.id = id or new_id()
        self.tokens = tokens
        """Input and output together."""
        self.cost = cost
        """US dollars; calls whose price is unknown are not counted."""
        self.deadline = deadline
        """Seconds since the epoch."""
        self.used_tokens = 0
        self.used_cost = 0.0
        self.inside: Budget | None = None
        """The budget of which this one is a part: it is charged too."""
        self.made_for: Posted | None = None
        """The handling in which the block was entered."""
        self._lock = threading.Lock()

    def check(self) -> None:
        """Refuse a call if nothing is left.

        Raises:
            ModelBudgetError: the tokens, the money or the time is spent.
        """
        if self.tokens is not None and self.used_tokens >= self.tokens:
            raise ModelBudgetError(
                f"The budget of {self.tokens} tokens is spent ({self.used_tokens} used)."
            )
        if self.cost is not None and self.used_cost >= self.cost:
            raise ModelBudgetError(
                f"The budget of ${self.cost:g} is spent (${self.used_cost:.4g} used)."
            )
        if self.deadline is not None and time.time() >= self.deadline:
            raise ModelBudgetError("The time for this work is over: no more models are asked.")
        if self.inside is not None:
            self.inside.check()

    def charge(self, usage: Usage, cost: float | None) -> None:
        """Add what a call has used."""
        with self._lock:
            self.used_tokens += usage.total_tokens
            self.used_cost += cost or 0.0
        if self.inside is not None:
            self.inside.charge(usage, cost)

    @property
    def ends(self) -> float | None:
        """The earliest deadline, seconds since the epoch."""
        inner, outer = self.deadline, self.inside.ends if self.inside else None
        return min((end for end in (inner, outer) if end is not None), default=None)

    def learn(self, used_tokens: int, used_cost: float) -> None:
        """Take note of what was used elsewhere; what both sides know of is not added twice."""
        with self._lock:
            self.used_tokens = max(self.used_tokens, used_tokens)
            self.used_cost = max(self.used_cost, used_cost)

    def header(self) -> str:
        """Return the budget as it travels in a spore's header."""
        return msgspec.json.encode(self._wire()).decode()

    def _wire(self) -> _Wire:
        return _Wire(
            self.id,
            self.tokens,
            self.cost,
            self.deadline,
            self.used_tokens,
            self.used_cost,
            None if self.inside is None else self.inside._wire(),
        )

    def __repr__(self) -> str:
        return (
            f"<Budget {self.used_tokens} of {self.tokens} tokens, "
            f"${self.used_cost:.4g} of {self.cost}>"
        )


_given: ContextVar[Budget | None] = ContextVar("praval_budget", default=None)
_known: collections.OrderedDict[str, Budget] = collections.OrderedDict()
_known_lock = forkable_lock()


@contextlib.contextmanager
def budget(
    *, tokens: int | None = None, cost: float | None = None, seconds: float | None = None
) -> Iterator[Budget]:
    """Limit the model calls of a block, and of the spores that are published in it.

    Args:
        tokens: input and output together. The call that exceeds it is still answered; the next is
            refused.
        cost: US dollars, as far as prices are known.
        seconds: from now on.

    Raises:
        ConfigurationError: a limit is not above 0, or there is none.
    """
    limits = {"tokens": tokens, "cost": cost, "seconds": seconds}
    given = {name: value for name, value in limits.items() if value is not None}
    if not given or not all(
        isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        for value in given.values()
    ):
        raise ConfigurationError(f"A budget is made of numbers above 0, not of {given}.")
    made = Budget(tokens, cost, None if seconds is None else time.time() + seconds)
    made.inside, made.made_for = current_budget(), current_posted.get()
    _remember(made)
    token = _given.set(made)
    try:
        yield made
    finally:
        _given.reset(token)


def current_budget() -> Budget | None:
    """Return the budget that holds here: of a block in this handler, of its spore, or around."""
    posted, given = current_posted.get(), _given.get()
    if given is not None and given.made_for is posted:
        return given
    headers = None if posted is None else posted.header.headers
    if headers and HEADER in headers:
        return _arrived(headers[HEADER])
    return given


def remaining_time() -> float | None:
    """Return the seconds that are left, by budget and by the spore's deadline; None: no limit."""
    posted, limit = current_posted.get(), current_budget()
    ends = [
        end
        for end in (
            posted.header.deadline if posted else None,
            limit.ends if limit else None,
        )
        if end is not None
    ]
    return min(ends) - time.time() if ends else None


class Budgets(Interceptor):
    """Lets budgets travel with spores: ``Reef(..., interceptors=[Budgets()])``."""

    def publish(self, spore: Spore) -> Spore:
        """Put the budget that holds here into the spore's headers."""
        limit = current_budget()
        if limit is None:
            return spore
        return spore.replace(headers={**spore.headers, HEADER: limit.header()})

    async def handle(
        self, spore: Spore, agent: AgentDefinition, call_next: Callable[[Spore], Awaitable[Any]]
    ) -> Any:
        """Handle the spore, after taking note of what its budget has spent elsewhere."""
        if (text := spore.headers.get(HEADER)) is not None:
            _arrived(text)
        return await call_next(spore)


def _arrived(text: str) -> Budget | None:
    """Return the account of a budget that came in a header; one from elsewhere gets a new one."""
    try:
        return _account(msgspec.json.decode(text, type=_Wire))
    except (msgspec.DecodeError, RecursionError):
        return None  # not ours: headers of others survive, whatever is in them


def _account(wire: _Wire) -> Budget:
    with _known_lock:
        limit = _known.get(wire.id)
    if limit is None:
        limit = Budget(wire.tokens, wire.cost, wire.deadline, id=wire.id)
        limit.inside = None if wire.inside is None else _account(wire.inside)
        limit = _remember(limit)
    elif wire.inside is not None:
        _account(wire.inside)
    limit.learn(wire.used_tokens, wire.used_cost)
    return limit


def _remember(limit: Budget) -> Budget:
    with _known_lock:
        kept = _known.setdefault(limit.id, limit)
        while len(_known) > KEPT:
            _known.popitem(last=False)
        return kept
