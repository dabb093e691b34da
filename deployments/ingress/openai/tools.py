"""Which tools does a client offer to the model?

A client's own tools are functions that it runs itself: the model is told of them, and its calls are given back. OpenAI
writes them in two ways, with the function's fields in a member of their own or beside the type; both are read here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, PlainValidator

from deployments.chat_request import ToolSpec
from deployments.ingress.fields import Json, Text
from deployments.ingress.openai.errors import Refused

TOOLS_MAX = 128
DESCRIPTION_CHARS_MAX = 10_000
_NAME = r"^[a-zA-Z0-9_-]{1,64}$"
#: Words of the parameter `tool_choice`, which no function can be called.
_CHOICES = ("none", "auto", "required")
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}

FunctionName = Annotated[str, Field(pattern=_NAME)]


class FunctionFields(BaseModel):
    """What a model is told of a function. Others of its fields, such as `strict`, are for other servers."""

    name: FunctionName
    description: Annotated[Text, Field(max_length=DESCRIPTION_CHARS_MAX)] | None = None
    parameters: Annotated[dict[str, Json], Field(max_length=64)] | None = None

    def spec(self) -> ToolSpec:
        parameters = NO_PARAMETERS if self.parameters is None else self.parameters
        return ToolSpec(name=self.name, description=self.description or "", parameters=parameters)


class FunctionTool(BaseModel):
    type: Literal["function"]
    function: FunctionFields


class NamedFunction(BaseModel):
    name: FunctionName


class FunctionChoice(BaseModel):
    """The one function that has to be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoiceWord = Literal["none", "auto", "required"]
Choice = TypeVar("Choice", bound=BaseModel)


def word_or(choice: type[Choice]) -> PlainValidator:
    """Validates a choice of tools, a word or more than one.

    Not a union of types, which would put its members' names into the name of the field that is at fault.
    """

    def checked_choice(value: Any) -> Any:
        if isinstance(value, dict | choice):
            return choice.model_validate(value)
        if value is None or value in _CHOICES:
            return value
        raise ValueError(f"must be one of {', '.join(_CHOICES)}, or name a tool")

    return PlainValidator(checked_choice, json_schema_input_type=ToolChoiceWord | choice | None)


def checked(specs: Sequence[ToolSpec], choice: str | None) -> tuple[tuple[ToolSpec, ...], str | None]:
    """The tools, and which is to be called, as a model is asked.

    `none` stays where there are none: the service may have tools of its own.

    Raises:
        Refused: they do not go together.
    """
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise Refused("tools: two have the same name", "tools")
    if any(name in _CHOICES for name in names):
        raise Refused(f"tools: a function can't be called {', '.join(_CHOICES)}", "tools")
    if not specs:
        if choice not in (None, "none", "auto"):
            raise Refused("tool_choice: there are no tools", "tool_choice")
        return (), "none" if choice == "none" else None
    if choice is not None and choice not in _CHOICES and choice not in names:
        raise Refused("tool_choice: there is no such tool", "tool_choice")
    return tuple(specs), choice
