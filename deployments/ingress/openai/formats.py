"""In which form does a client want an answer?

As text, as any JSON, or as JSON by a schema. It is for the model's server to keep to it: nothing is checked here but
that the wish is one. OpenAI writes it in two ways, with the schema in a member of its own or beside the type; both are
read here, and the first is what servers are sent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from deployments.ingress.fields import Json, Text
from deployments.ingress.openai.tools import DESCRIPTION_CHARS_MAX, FunctionName

PARTS_MAX = 64


class PlainFormat(BaseModel):
    type: Literal["text", "json_object"]

    def asked(self) -> dict[str, Any] | None:
        """What a server is sent; None where that is what it does anyway."""
        return None if self.type == "text" else {"type": self.type}


class SchemaFields(BaseModel):
    name: FunctionName
    description: Annotated[Text, Field(max_length=DESCRIPTION_CHARS_MAX)] | None = None
    json_schema: Annotated[dict[str, Json], Field(max_length=PARTS_MAX, alias="schema")]
    strict: bool | None = None

    def fields(self) -> dict[str, Any]:
        return self.model_dump(by_alias=True, exclude_none=True, exclude={"type"})


class NestedSchemaFormat(BaseModel):
    """As completions have it."""

    type: Literal["json_schema"]
    json_schema: SchemaFields

    def asked(self) -> dict[str, Any] | None:
        return {"type": self.type, "json_schema": self.json_schema.fields()}


class FlatSchemaFormat(SchemaFields):
    """As responses have it."""

    type: Literal["json_schema"]

    def asked(self) -> dict[str, Any] | None:
        return {"type": self.type, "json_schema": self.fields()}


CompletionFormat = Annotated[PlainFormat | NestedSchemaFormat, Field(discriminator="type")]
ResponseFormat = Annotated[PlainFormat | FlatSchemaFormat, Field(discriminator="type")]


def shown(asked: dict[str, Any] | None) -> dict[str, Any]:
    """What a server was sent, as responses have it."""
    if asked is None:
        return {"type": "text"}
    return {"type": asked["type"], **asked.get("json_schema", {})}
