"""What a docstring says of a function and of its parameters (Google's and Sphinx's styles)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping

_SECTION = re.compile(r"(args|arguments|parameters|params)\s*:\s*", re.I)
_GOOGLE = re.compile(r"(\*{0,2}\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)")
_SPHINX = re.compile(r":param\s+(?:[^:]*\s)?(\w+)\s*:\s*(.*)")
_ANY_SECTION = re.compile(r"[A-Z]\w+\s*:\s*|:\w+.*:.*")


def described(function: object) -> tuple[str, Mapping[str, str]]:
    """Return what the function is for, and parameter -> what it means."""
    lines = (inspect.getdoc(function) or "").splitlines()
    summary: list[str] = []
    meanings: dict[str, str] = {}
    current: str | None = None
    inside = False
    for line in lines:
        if (found := _SPHINX.match(line.strip())) is not None:
            current, meanings[found[1]] = found[1], found[2]
            inside = True
        elif _SECTION.fullmatch(line.strip()):
            inside, current = True, None
        elif line and not line[0].isspace() and _ANY_SECTION.fullmatch(line):
            inside, current = False, None
            if meanings:
                break
        elif inside and line.strip():
            found = _GOOGLE.match(line.strip())
            deeper = current is not None and len(line) - len(line.lstrip()) > 4
            if found is not None and not deeper:
                current, meanings[found[1]] = found[1], found[2]
            elif current is not None:
                meanings[current] = f"{meanings[current]} {line.strip()}".strip()
        elif not inside and not meanings:
            summary.append(line)
    return "\n".join(summary).strip(), meanings
