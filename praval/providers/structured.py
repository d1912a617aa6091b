"""Answers of a wanted type: the schema that is asked for, the check, and the complaint."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from praval.errors import ConfigurationError, StructuredOutputError, ToolDefinitionError
from praval.providers.messages import Message, OutputSchema, Response
from praval.tools.typed import read, schema_of

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.S | re.I)
QUOTED = 300


class Wanted:
    """A type that an answer is to have.

    Raises:
        ConfigurationError: JSON cannot express the type.
    """

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self.name = re.sub(r"[^a-zA-Z0-9_-]", "_", getattr(kind, "__name__", "answer"))[:64]
        try:
            schema = schema_of(kind)
            self.wrapped = schema.get("type") != "object" or "properties" not in schema
            if self.wrapped:  # vendors want an object
                self._type = msgspec.defstruct(self.name, [("value", kind)])
                schema = schema_of(self._type)
            else:
                self._type = kind
        except ToolDefinitionError as error:
            raise ConfigurationError(f"returns={kind!r} cannot be asked for: {error}") from None
        schema.pop("title", None)
        self.output = OutputSchema(self.name, schema)

    def read(self, text: str) -> Any:
        """Return the value in an answer.

        Raises:
            ValueError: there is none that fits; the message says what is wrong where.
        """
        value = read(_json_in(text), self._type)
        return value.value if self.wrapped else value

    def complaint(self, error: ValueError) -> Message:
        """Return what the model is told about an answer that does not fit."""
        schema = msgspec.json.encode(self.output.schema).decode()
        return Message(
            "user",
            f"That answer does not fit: {error}. Give it again, corrected: only JSON that fits "
            f"this schema: {schema}",
        )

    def failure(self, response: Response, error: ValueError) -> StructuredOutputError:
        """Return the error for an answer that does not fit after its repair."""
        quoted = response.text[:QUOTED] + ("..." if len(response) > QUOTED else "")
        cut = " It was cut off: allow more with max_tokens=." * (response.finish_reason == "length")
        return StructuredOutputError(
            f"The model {response.model} of {response.provider} gave no {self.name}, not even when "
            f"it was told what is wrong ({error}): {quoted!r}.{cut}"
        )


def _json_in(text: str) -> str:
    """Return the JSON in an answer, out of its code fence if it has one."""
    fenced = _FENCE.search(text)
    return (fenced[1] if fenced else text).strip()
