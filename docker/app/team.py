"""The team that the compose file runs until PRAVAL_APP and PRAVAL_REEF name yours.

Where it listens is in the environment: PRAVAL_TRANSPORT.
"""

from __future__ import annotations

from praval import Reef, Spore, agent


@agent("greeter", responds_to=["greeting"])
async def greeter(spore: Spore) -> dict[str, str]:
    """Answer a greeting."""
    return {"type": "answer", "text": f"Hello, {spore.knowledge.get('name', 'stranger')}."}


reef = Reef(greeter, journal=True)
