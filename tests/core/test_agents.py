"""How a handler gets its spore: each way to declare the parameter works as it reads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from praval import Reef, Spore, agent


async def first(spore: Spore, limit: int = 10) -> Any:
    return {"got": spore.knowledge["n"], "limit": limit}


async def by_name(*, spore: Spore, limit: int = 10) -> Any:
    return {"got": spore.knowledge["n"], "limit": limit}


async def second(limit: int = 10, spore: Spore | None = None) -> Any:
    assert spore is not None
    return {"got": spore.knowledge["n"], "limit": limit}


async def by_position(spore: Spore, /, limit: int = 10) -> Any:
    return {"got": spore.knowledge["n"], "limit": limit}


async def behind_position(limit: int = 10, /, *, spore: Spore) -> Any:
    return {"got": spore.knowledge["n"], "limit": limit}


async def with_reef(reef: Reef, spore: Spore, limit: int = 10) -> Any:
    assert reef.running
    return {"got": spore.knowledge["n"], "limit": limit}


async def by_position_with_reef(spore: Spore, /, *, reef: Reef, limit: int = 10) -> Any:
    assert reef.running
    return {"got": spore.knowledge["n"], "limit": limit}


async def of_five(limit: int, spore: Spore) -> Any:
    return {"got": spore.knowledge["n"], "limit": limit + 5}


def plain_by_name(*, spore: Spore, limit: int = 10) -> Any:
    return {"got": spore.knowledge["n"], "limit": limit}


def plain_second(limit: int = 10, spore: Spore | None = None) -> Any:
    assert spore is not None
    return {"got": spore.knowledge["n"], "limit": limit}


def plain_by_position(spore: Spore, /, limit: int = 10) -> Any:
    return {"got": spore.knowledge["n"], "limit": limit}


def plain_by_position_with_reef(spore: Spore, /, reef: Reef, limit: int = 10) -> Any:
    assert reef.running
    return {"got": spore.knowledge["n"], "limit": limit}


class Counter:
    async def method(self, spore: Spore, limit: int = 10) -> Any:
        return {"got": spore.knowledge["n"], "limit": limit}

    async def __call__(self, limit: int = 10, *, spore: Spore) -> Any:
        return {"got": spore.knowledge["n"], "limit": limit}


HANDLERS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        first, by_name, second, by_position, behind_position, with_reef, by_position_with_reef,
        plain_by_name, plain_second, plain_by_position, plain_by_position_with_reef,
    )
}  # fmt: skip
HANDLERS |= {
    "partial by name": functools.partial(of_five, limit=5),
    "partial by position": functools.partial(of_five, 5),
    "method": Counter().method,
    "callable object": Counter(),
}


@pytest.mark.parametrize("handler", HANDLERS.values(), ids=HANDLERS)
async def test_the_spore_arrives_where_it_is_declared(handler: Callable[..., Any]) -> None:
    """First or later, by name or by position: ``spore`` gets it, the others their defaults."""
    async with Reef(agent("taker")(handler)) as reef:
        reply = await reef.request("taker", {"n": 7}, timeout=5)
    assert reply.knowledge == {"got": 7, "limit": 10}
