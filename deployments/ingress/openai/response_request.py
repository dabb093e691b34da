"""What does a client ask for in POST /v1/responses?"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from deployments.chat_request import ModelOptions
from deployments.ingress.fields import Body, Text, TopP
from deployments.ingress.openai.errors import Refused
from deployments.ingress.openai.formats import ResponseFormat
from deployments.ingress.openai.items import Input
from deployments.ingress.openai.models import ALIAS
from deployments.ingress.openai.parameters import Ignored, Metadata, ModelName, Only
from deployments.ingress.openai.tools import TOOLS_MAX, FunctionFields, FunctionName, ToolChoiceWord, word_or

INSTRUCTIONS_CHARS_MAX = 100_000
ID_CHARS_MAX = 80
#: What a client may call the tenant's documents, where OpenAI has stores of files with ids.
STORE = "default"
FILE_SEARCH_RESULTS = "file_search_call.results"


class FunctionTool(FunctionFields):
    type: Literal["function"]


class FileSearchTool(BaseModel):
    """Has the tenant's documents searched before the model answers. There is one store of them."""

    type: Literal["file_search"]
    vector_store_ids: list[Literal["default"]] = Field(default_factory=list, max_length=1)
    max_num_results: Annotated[int, Field(ge=1, le=50)] | None = None
    filters: Annotated[Any, Only("documents are not filtered here; use /search")] = None
    ranking_options: Ignored = None


Tool = Annotated[FunctionTool | FileSearchTool, Field(discriminator="type")]


class ToolChoice(BaseModel):
    """The one tool that has to be used."""

    type: Literal["function", "file_search"]
    name: FunctionName | None = None


class TextOptions(BaseModel):
    format: ResponseFormat | None = None
    verbosity: Ignored = None


def _id_of(value: Any) -> Any:
    return value["id"] if isinstance(value, dict) and value.keys() == {"id"} else value


_ID = {"type": "string", "maxLength": ID_CHARS_MAX}
_CONVERSATION = {"anyOf": [_ID, {"type": "object", "properties": {"id": _ID}, "required": ["id"]}, {"type": "null"}]}
Conversation = Annotated[
    Annotated[str, Field(max_length=ID_CHARS_MAX)] | None, BeforeValidator(_id_of), WithJsonSchema(_CONVERSATION)
]


class NewResponse(Body):
    input: Input
    model: ModelName = ALIAS
    instructions: Annotated[Text, Field(max_length=INSTRUCTIONS_CHARS_MAX)] | None = None
    conversation: Conversation = None
    previous_response_id: Annotated[str, Field(max_length=ID_CHARS_MAX)] | None = None
    store: bool | None = None
    stream: bool | None = None
    background: bool | None = None
    metadata: Metadata | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: TopP | None = None
    tools: Annotated[list[Tool], Field(max_length=TOOLS_MAX)] | None = None
    tool_choice: Annotated[ToolChoiceWord | ToolChoice | None, word_or(ToolChoice)] = None
    include: Annotated[list[Annotated[Text, Field(max_length=100)]], Field(max_length=20)] | None = Field(
        default=None, description=f"`{FILE_SEARCH_RESULTS}`; others are ignored"
    )
    text: TextOptions | None = None
    user: Annotated[Text, Field(max_length=256)] | None = None

    truncation: Annotated[Any, Only("what does not fit of a conversation is left out", "auto")] = None
    top_logprobs: Annotated[Any, Only("an answer is text", 0)] = None
    prompt: Annotated[Any, Only("there are no templates")] = None
    context_management: Annotated[Any, Only("what does not fit is left out, oldest first")] = None
    max_tool_calls: Annotated[Any, Only("the tenant's own limit counts")] = None
    moderation: Annotated[Any, Only("nothing is moderated")] = None

    parallel_tool_calls: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    reasoning: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    stream_options: Ignored = None

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    @property
    def options(self) -> ModelOptions:
        form = None if self.text is None else self.text.format
        return ModelOptions(top_p=self.top_p, response_format=None if form is None else form.asked())

    @property
    def functions(self) -> list[FunctionTool]:
        return [tool for tool in self.tools or () if isinstance(tool, FunctionTool)]

    @property
    def file_search(self) -> FileSearchTool | None:
        """The search, unless the client offers it and then chooses no tool."""
        if self.tool_choice == "none":
            return None
        return next((tool for tool in self.tools or () if isinstance(tool, FileSearchTool)), None)

    @property
    def function_choice(self) -> str | None:
        """Which function is to be called, as a model is asked."""
        if not isinstance(self.tool_choice, ToolChoice):
            return self.tool_choice
        return self.tool_choice.name if self.tool_choice.type == "function" else None

    def require_consistent(self) -> None:
        """
        Raises:
            Refused: parameters that do not go together.
        """
        if self.conversation is not None and self.previous_response_id is not None:
            raise Refused("conversation and previous_response_id do not go together", "previous_response_id")
        choice = self.tool_choice
        if (
            isinstance(choice, ToolChoice)
            and (self.file_search if choice.type == "file_search" else choice.name) is None
        ):
            raise Refused("tool_choice: there is no such tool", "tool_choice")
        if not self.is_stored:
            for name in ("conversation", "previous_response_id", "background"):
                if getattr(self, name):
                    raise Refused(f"{name}: goes with a response that is stored: leave out store=false", name)

    def request(self, query: str) -> dict[str, Any]:
        """The part of a turn's request that whoever looks at the response wants to see again."""
        choice = self.tool_choice
        return {
            "background": bool(self.background),
            "in_conversation": self.conversation is not None,
            "metadata": self.metadata or {},
            "previous_response_id": self.previous_response_id,
            "query": query,
            "shows_results": FILE_SEARCH_RESULTS in (self.include or ()),
            "store": self.is_stored,
            "tool_choice": choice.model_dump(exclude_none=True) if isinstance(choice, ToolChoice) else choice or "auto",
            "tools": [tool.model_dump(exclude_none=True) for tool in self.tools or ()],
            "user": self.user,
        }
