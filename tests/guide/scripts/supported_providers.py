"""Guide, "Supported Providers" and "Communication Functions"."""
# prints: openai: gpt-4-turbo
# prints: anthropic: claude-3-opus-20240229
# prints: cohere: command-nightly
# prints: openai: gpt-4-turbo
# prints: anthropic: gpt-4-turbo

import asyncio

import _vendors

from praval import achat, chat

response = chat("Hello", provider="openai", model="gpt-4-turbo")
print(response)
response = chat("Hello", provider="anthropic", model="claude-3-opus-20240229")
print(response)
response = chat("Hello", provider="cohere", model="command-nightly")
print(response)

# Synchronous LLM interaction
response = chat(
    message="Your message here",
    model="gpt-4-turbo",
    provider="openai",
    temperature=0.7,
    max_tokens=1000,
)
print(response)


async def main():
    # Asynchronous LLM interaction
    response = await achat(
        message="Your message here",
        model="gpt-4-turbo",
        provider="anthropic",
    )
    print(response)


asyncio.run(main())
sent = _vendors.openai.requests[-1].json
assert (sent["temperature"], sent["max_completion_tokens"]) == (0.7, 1000)
