"""What is a tool, and how does a Python function become one?

Promise: a function's signature and docstring are all that a model is told, and pydantic checks what the model sends
against the signature before the function sees it. An argument that the function doesn't have is refused, so a model
can't reach what the service decides: whose data it is comes in the `ToolContext`, which is never the model's to fill.

    async def weather(context: ToolContext, place: str, days: Annotated[int, Field(ge=1, le=7)] = 1) -> dict[str, str]:
        \"\"\"The weather of a place, for the next days.\"\"\"

It does not run the function: `ToolBox` does, with limits.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind

from deployments.chat_request import ToolSpec

PROBLEMS_SHOWN = 5
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolContext:
    """For whom a tool runs. Given by the service, whatever the model asks for."""

    tenant: str
    session_id: str | None
    turn_id: str


class ToolError(Exception):
    """Why a tool gave no result, in words for the model. A tool may raise it; other exceptions are told nobody but the
    log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A function that a model may call."""

    spec: ToolSpec
    function: Callable[..., Any]
    arguments: type[BaseModel]

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.function)

    def parsed(self, arguments: str) -> dict[str, Any]:
        """What to call the function with, by the names of its parameters.

        Raises:
            ToolError: it is not JSON, or not what the function takes.
        """
        try:
            values = self.arguments.model_validate_json(arguments)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False, include_context=False)
            shown = [": ".join((".".join(map(str, one["loc"])) or "arguments", one["msg"])) for one in problems]
            raise ToolError("; ".join(shown[:PROBLEMS_SHOWN])) from None
        fields = type(values).model_fields
        return {field.alias or name: getattr(values, name) for name, field in fields.items()}


def tool_from(function: Callable[..., Any], *, name: str) -> Tool:
    """The tool that a function makes.

    Raises:
        ValueError: the function can't be one; the text says what it lacks.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("must be named by 1 to 64 of A-Z, a-z, 0-9, _ and -")
    if not inspect.isfunction(function):
        raise ValueError("is no function")
    description = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ").strip()
    if not description:
        raise ValueError("needs a docstring: its first paragraph is what the model is told of it")
    arguments = _arguments(function, name)
    try:
        schema = arguments.model_json_schema(schema_generator=_Schema)
    except (PydanticUserError, ValueError) as error:
        raise ValueError(f"takes what JSON can't hold: {_first_line(error)}") from None
    del schema["title"]
    spec = ToolSpec(name=name, description=description, parameters=schema)
    return Tool(spec=spec, function=function, arguments=arguments)


def _arguments(function: Callable[..., Any], name: str) -> type[BaseModel]:
    try:
        hints = get_type_hints(function, include_extras=True)
    except Exception as error:  # annotations are expressions, which may raise anything
        raise ValueError(f"has types that can't be found: {type(error).__name__}: {_first_line(error)}") from None
    parameters = list(inspect.signature(function).parameters.values())
    context = parameters.pop(0) if parameters else None
    if context is None or hints.get(context.name) is not ToolContext or context.kind is context.KEYWORD_ONLY:
        raise ValueError("needs a first parameter of the type ToolContext")
    fields: dict[str, Any] = {}
    for number, parameter in enumerate(parameters):
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"takes {parameter}: each argument needs a name")
        if parameter.name not in hints:
            raise ValueError(f"needs a type for its parameter {parameter.name}")
        # By alias, since pydantic has names of its own that a parameter may have too, such as `json` and `copy`.
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[f"argument_{number}"] = (hints[parameter.name], Field(default=default, alias=parameter.name))
    try:
        return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    except (PydanticUserError, TypeError, ValueError) as error:
        raise ValueError(f"takes what pydantic can't check: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


class _Schema(GenerateJsonSchema):
    """Without the titles that pydantic makes of names, which cost tokens and say nothing; strict about the rest."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        raise ValueError(detail)
