"""The two sides of the example, as users would write them: neither knows that it is sealed."""

from __future__ import annotations

import os
from typing import Any

from praval import Reef, Spore, agent

SECRET = "for the blue whale"
"""In the memo of each transfer; nobody but the teller is to read it."""

executed: list[str] = []
"""Ids of the transfers that were executed, in order. One that is here twice is money lost."""


@agent("teller", responds_to=["transfer"])
async def teller(spore: Spore) -> dict[str, Any]:
    """Execute a transfer."""
    executed.append(spore.knowledge["id"])
    return {"executed": spore.knowledge["id"], "amount": spore.knowledge["amount"]}


async def pay(reef: Reef, number: int) -> list[str]:
    """Order transfers, one after the other; return their ids as the teller confirmed them."""
    confirmed = []
    for _ in range(number):
        order = {"type": "transfer", "id": os.urandom(4).hex(), "amount": 1000, "memo": SECRET}
        reply = await reef.request("teller", order, timeout=20)
        confirmed.append(reply.knowledge["executed"])
    return confirmed
