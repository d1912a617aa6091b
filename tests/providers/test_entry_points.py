"""Third parties' providers, and what importing Praval does not load."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from praval import achat, plugins
from praval.providers import BaseProvider, configure_providers


class Foreign(BaseProvider):
    """As a distribution of its own would have it."""

    def __init__(self, greeting: str = "hello", model: str | None = None) -> None:
        self.greeting = greeting

    def chat(self, messages: Any, model: str | None = None) -> str:
        return f"{self.greeting} {messages[-1]['content']}"


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("foreign", f"{__name__}:Foreign", "praval.providers")

    def entry_points(**wanted: str) -> list[EntryPoint]:
        return [point] if wanted.get("name", "foreign") == "foreign" else []

    monkeypatch.setattr(plugins, "entry_points", entry_points)


async def test_a_provider_is_found_by_its_entry_point() -> None:
    """Nobody has to register it, and it can be configured like any other."""
    assert await achat("you", provider="foreign") == "hello you"
    configure_providers({"foreign": {"greeting": "good day", "max_retries": 1}})
    assert await achat("you", provider="foreign") == "good day you"


def test_importing_praval_loads_no_model_machinery() -> None:
    """Neither HTTP nor MCP nor the providers; importing the providers loads no client."""
    code = (
        "import sys, praval\n"
        "heavy = ('httpx', 'mcp', 'pydantic', 'sqlite3', 'redis', 'jsonschema')\n"
        "assert not {m.split('.')[0] for m in sys.modules} & set(heavy)\n"
        "rooms = ('praval.providers', 'praval.tools')\n"
        "assert not [m for m in sys.modules if m.startswith(rooms)]\n"
        "from praval import achat, tool\n"
        "import praval.providers.openai, praval.providers.anthropic, praval.providers.cohere\n"
        "assert not {m.split('.')[0] for m in sys.modules} & {'httpx', 'mcp', 'pydantic'}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
