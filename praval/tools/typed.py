"""Types and JSON: one way for msgspec's types, dataclasses, and pydantic's models alike."""

from __future__ import annotations

from typing import Any

import msgspec

from praval.errors import ToolDefinitionError


def schema_of(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of a type, with what it refers to under ``$defs``.

    Raises:
        ToolDefinitionError: JSON cannot express the type.
    """
    if is_pydantic(kind):
        model: dict[str, Any] = kind.model_json_schema()
        return model
    try:
        (schema,), parts = msgspec.json.schema_components(
            [kind], schema_hook=_schema_hook, ref_template="#/$defs/{name}"
        )
    except (TypeError, NotImplementedError) as error:
        raise ToolDefinitionError(f"{kind!r} has no JSON schema: {error}") from None
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    if name in parts and not _mentions(parts, name):
        schema = parts.pop(name)
    return {**schema, "$defs": parts} if parts else schema


def read(text: str | bytes, kind: Any) -> Any:
    """Decode JSON as a type.

    Raises:
        ValueError: it is no JSON, or does not fit the type; the message says where.
    """
    if is_pydantic(kind):
        return kind.model_validate_json(text)
    return msgspec.json.decode(text, type=kind, dec_hook=_dec_hook, strict=False)


def written(value: Any) -> str:
    """Return a value as a model reads it: text as it is, everything else as JSON."""
    if value is None:
        return "done"
    if isinstance(value, str):
        return value[:]
    return msgspec.json.encode(value, enc_hook=_enc_hook).decode()


def is_pydantic(kind: Any) -> bool:
    """Whether it is a model class of pydantic, which is never imported for the question."""
    return isinstance(kind, type) and hasattr(kind, "model_validate_json")


def _schema_hook(kind: type) -> dict[str, Any]:
    if is_pydantic(kind):
        schema: dict[str, Any] = getattr(kind, "model_json_schema")()  # noqa: B009
        if "$defs" not in schema:
            return schema
    raise NotImplementedError(f"{kind!r} is no type that JSON can carry")


def _dec_hook(kind: type, value: Any) -> Any:
    if is_pydantic(kind):
        return getattr(kind, "model_validate")(value)  # noqa: B009
    raise NotImplementedError(f"{kind!r} is no type that JSON can carry")


def _enc_hook(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    return value[:] if isinstance(value, str) else str(value)


def _mentions(parts: dict[str, Any], name: str) -> bool:
    """Whether a schema refers to this one: then it must stay where it is."""
    return f'"#/$defs/{name}"' in msgspec.json.encode(parts).decode()
