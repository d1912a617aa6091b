"""A story, word by word, from a model on this machine; then what it used.

Run: python examples/models_stream.py
"""

import asyncio

from praval import astream


async def main() -> None:
    stream = astream("Tell me about coral reefs in two sentences.", provider="local", max_tokens=60)
    async with stream as pieces:
        async for piece in pieces:
            print(piece, end="", flush=True)
    print(f"\n\n{stream.response.usage.output_tokens} tokens, ${stream.response.cost or 0:.2f}")


asyncio.run(main())
