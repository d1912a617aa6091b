"""Answers of a type of one's own: the model on this machine is held to the type's schema.

Run: python examples/models_structured.py
"""

import asyncio
from dataclasses import dataclass
from typing import Literal

from praval import Reef, achat, agent


@dataclass
class Review:
    mood: Literal["good", "bad"]
    words: int


@agent("critic", responds_to=["review"], provider="local")
async def critic(spore):
    review = await achat(
        f"Is this review good or bad? {spore.knowledge['text']}",
        returns=Review,
        temperature=0,
        max_tokens=60,
    )
    return {"mood": review.mood}


async def main() -> None:
    async with Reef(critic) as reef:
        for text in ("I loved every page.", "Dull and far too long."):
            answer = await reef.request("critic", {"type": "review", "text": text}, timeout=120)
            print(f"{text} -> {answer.knowledge['mood']}")


asyncio.run(main())
