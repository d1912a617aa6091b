"""A team, as a user would write it: nothing in it knows what carries its spores."""

from __future__ import annotations

from typing import Any

from praval import Spore, agent, broadcast

DIGESTED: list[tuple[str, int]] = []
"""Page and number of words, in the order in which the editor got them."""
AUDITED: list[str] = []


@agent("reader", responds_to=["page"], concurrent=4)
async def reader(spore: Spore) -> None:
    """Count the words of a page."""
    words = len(spore.knowledge["text"].split())
    broadcast({"type": "digest", "page": spore.knowledge["page"], "words": words})


@agent("editor", responds_to=["digest"])
def editor(spore: Spore) -> None:
    """Collect the digests; a plain function, on a thread."""
    DIGESTED.append((spore.knowledge["page"], spore.knowledge["words"]))


@agent("auditor", responds_to=["page", "digest"])
async def auditor(spore: Spore) -> None:
    """Hear everything."""
    AUDITED.append(spore.id)


@agent("clerk")
async def clerk(spore: Spore) -> dict[str, Any]:
    """Answer requests."""
    if spore.knowledge.get("fail"):
        raise ValueError("out of ink")
    return {"echo": spore.knowledge["say"]}
