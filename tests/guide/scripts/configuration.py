"""Guide, "Programmatic Configuration": keys that are built count, the others warn."""
# prints: 5000 20 60
# prints: warned: performance.batch_size

import re
import warnings

from praval import configure
from praval.settings import current_settings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    configure(
        {
            "default_provider": "openai",
            "default_model": "gpt-4-turbo",
            "max_concurrent_agents": 20,
            "log_level": "DEBUG",
            "reef_config": {
                "channel_capacity": 5000,
                "message_ttl": 7200,
                "cleanup_interval": 3600,
                "enable_persistence": True,
            },
            "performance": {
                "enable_caching": True,
                "max_retries": 5,
                "timeout": 60,
                "batch_size": 10,
            },
            "security": {"max_message_size": 10000},
        }
    )
settings = current_settings()
print(
    settings.reef_config.channel_capacity,
    settings.max_concurrent_agents,
    int(settings.performance.timeout),
)
keys = [re.findall(r"'([^']*)'", str(warning.message))[0] for warning in caught]
print(f"warned: {', '.join(keys)}")
