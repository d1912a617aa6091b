"""Guide, "Provider Selection Logic", and the providers' part of "System health check"."""
# prints: ['openai', 'anthropic', 'cohere']
# prints: openai: gpt-6.1-terra
# prints: Provider openai failed: OverloadedError
# prints: anthropic: claude-haiku-5-5
# prints: {'openai': 'error', 'anthropic': 'healthy', 'cohere': 'healthy'}

import _vendors

from praval import chat, configure
from praval.providers import get_available_providers, select_best_provider

configure({"performance": {"max_retries": 0}})

# Automatic provider selection
available_providers = get_available_providers()
print([name for name in available_providers if name in ("openai", "anthropic", "cohere")])

# Smart provider selection
best_provider = select_best_provider(
    task_type="reasoning",
    required_context_length=8000,
    preferred_speed="fast",
    budget_constraints="medium",
)
print(chat("Hello", provider=best_provider))

# Provider fallback chain
provider_chain = ["openai", "anthropic", "cohere"]


def robust_chat(message, **kwargs):
    """Chat with automatic provider fallback."""
    last_error = None

    for provider in provider_chain:
        try:
            return chat(message, provider=provider, **kwargs)
        except Exception as e:
            last_error = e
            print(f"Provider {provider} failed: {type(e).__name__}")
            continue

    raise Exception(f"All providers failed. Last error: {last_error}")


def overloaded(request):
    from praval.testing import Reply

    return Reply([_vendors.openai.dialect.error(529, "Overloaded")], 529)


_vendors.openai._refused = overloaded
print(robust_chat("Hello"))


def check_provider_health():
    """Check health of LLM providers."""
    providers = ["openai", "anthropic", "cohere"]
    health = {}

    for provider in providers:
        try:
            # Simple test call
            test_response = chat("Test", provider=provider)
            health[provider] = {"status": "healthy", "test": "passed"}
        except Exception as e:
            health[provider] = {"status": "error", "error": str(e)}

    return health


print({name: entry["status"] for name, entry in check_provider_health().items()})
