"""Guide, "Provider-Specific Configuration"."""
# prints: openai: gpt-4-turbo
# prints: anthropic: claude-3-opus-20240229
# prints: cohere: command-nightly
# prints: 0.7 2000 your_org_id

import _vendors

from praval import chat

# OpenAI configuration
openai_config = {
    "api_key": "openai-key",
    "organization": "your_org_id",
    "base_url": _vendors.openai.url,
    "timeout": 60,
    "max_retries": 3,
    "default_model": "gpt-4-turbo",
    "temperature": 0.7,
    "max_tokens": 2000,
}

# Anthropic configuration
anthropic_config = {
    "api_key": "anthropic-key",
    "base_url": _vendors.anthropic.url,
    "timeout": 60,
    "max_retries": 3,
    "default_model": "claude-3-opus-20240229",
    "max_tokens": 4000,
}

# Cohere configuration
cohere_config = {
    "api_key": "cohere-key",
    "base_url": _vendors.cohere.url,
    "timeout": 60,
    "default_model": "command-nightly",
    "temperature": 0.7,
    "max_tokens": 2000,
}

# Apply provider configurations
from praval.providers import configure_providers

configure_providers({
    "openai": openai_config,
    "anthropic": anthropic_config,
    "cohere": cohere_config
})  # fmt: skip

for name in ("openai", "anthropic", "cohere"):
    print(chat("Hello", provider=name))
request = _vendors.openai.requests[0]
sent = request.json
print(sent["temperature"], sent["max_completion_tokens"], request.headers["openai-organization"])
