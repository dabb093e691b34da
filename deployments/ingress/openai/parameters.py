"""What may stand in a request of OpenAI's API that this service has no use for?

What only tunes an answer is taken and ignored, so that clients which always send it work. What asks for another answer
than the service gives is refused, unless it says what is the case anyway.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
)
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_plain_validator_function

from deployments.ingress.fields import Json, Text, in_utf8

#: As any server's 64 bits can hold.
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
STOPS_MAX = 4
STOP_CHARS_MAX = 256


def _stops_of(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_STOP_SCHEMA = {"type": "string", "minLength": 1, "maxLength": STOP_CHARS_MAX}
#: What ends an answer before it is said: a string, or a few.
Stop = Annotated[
    list[Annotated[Text, Field(min_length=1, max_length=STOP_CHARS_MAX)]] | None,
    Field(max_length=STOPS_MAX),
    BeforeValidator(_stops_of),
    WithJsonSchema(
        {"anyOf": [_STOP_SCHEMA, {"type": "array", "maxItems": STOPS_MAX, "items": _STOP_SCHEMA}, {"type": "null"}]}
    ),
]
Ignored = Annotated[Json, Field(description="taken and ignored")]
#: What OpenAI says that metadata is; of it, a few names mean something here.
Metadata = Annotated[
    dict[Annotated[Text, Field(min_length=1, max_length=64)], Annotated[Text, Field(max_length=512)]],
    Field(max_length=16),
]
ModelName = Annotated[Text, Field(min_length=1, max_length=200)]


class Only:
    """Annotates a parameter that may be left out, null, or one of a few values; `reason` says why nothing else."""

    def __init__(self, reason: str, *allowed: Any) -> None:
        self._reason = reason
        self._allowed = (None, *allowed)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self._allowed), "description": f"nothing else: {self._reason}"}

    def _checked(self, value: Any) -> Any:
        # By type as well: True is 1 in Python.
        if any(type(value) is type(one) and value == one for one in self._allowed):
            return value
        raise ValueError(f"is not supported: {self._reason}")


def _text_of(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of parts")
    texts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS:
            raise ValueError(f"holds a part of the type {str(kind)[:40]!r}: only text is taken")
        if not isinstance(text, str):
            raise ValueError("holds a part without text")
        texts.append(text)
    return "\n".join(texts)


_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_PART_SCHEMA = {
    "type": "object",
    "properties": {"type": {"enum": list(_TEXT_PARTS[:3])}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
#: A message's content: a string, or parts that are text. Always a string once it is read.
Content = Annotated[
    str,
    PlainValidator(_text_of),
    AfterValidator(in_utf8),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _PART_SCHEMA}, {"type": "null"}]}),
]
