"""JSON schemas as vendors want them for their strict modes."""

from __future__ import annotations

from typing import Any


def closed(schema: Any) -> Any:
    """Return the schema with every object closed (``additionalProperties: false``)."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {
        key: value if key in ("enum", "const", "default", "examples") else closed(value)
        for key, value in schema.items()
    }
    if isinstance(copy.get("properties"), dict):
        copy.setdefault("additionalProperties", False)
    return copy


def is_strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes it: objects are closed, all their properties required."""
    if isinstance(schema, list):
        return all(map(is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if "default" in schema:
        return False
    properties = schema.get("properties")
    if schema.get("type") == "object" and not isinstance(properties, dict):
        return False  # a mapping of any keys
    if isinstance(properties, dict) and (
        schema.get("additionalProperties") is not False
        or set(schema.get("required", ())) != set(properties)
    ):
        return False
    return all(is_strict(value) for key, value in schema.items() if key not in ("enum", "const"))
