"""What the guide's scripts need to run without a real model: each answer echoes its question."""

from __future__ import annotations

from praval import configure
from praval.providers import register_provider
from praval.testing import FunctionModel


def echo(messages: list[dict[str, str]]) -> str:
    """Answer with the first line of the question that is not empty."""
    lines = [line.strip() for line in messages[-1]["content"].splitlines() if line.strip()]
    return f"<{lines[0]}>"


register_provider("echo", FunctionModel(echo))
configure({"default_provider": "echo"})
