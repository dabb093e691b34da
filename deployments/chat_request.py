"""What is asked of a language model, and what comes back piece by piece?

Promise: plain frozen values that travel between processes and name no client library, so that whoever asks a model
needs to import nothing but this.

A key is never in here: a request names the environment variable that holds it, and only the process that talks to the
model reads that variable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

#: Where a server has not counted, as in `Finished`.
CHARS_PER_TOKEN = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolSpec:
    """What a model is told of a tool. `parameters` is the JSON schema of an object: its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A tool that the model wants run, and an event of an answer.

    `arguments` is the text that the model wrote: JSON if all is well, which nobody has checked. `id` is unique among
    the calls of the answer and of the messages that it answers.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatMessage:
    """One message of a conversation.

    An assistant's message may hold `tool_calls`; each is answered by a message of the role `tool` that follows, with
    the call's id in `tool_call_id` and its result in `content`.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant calls tools")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("the result of a tool, and nothing else, names its call")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """How the answer is to be made, in the words of the protocol. `None` leaves it to the server.

    Attributes:
        stop: The answer ends before any of these.
        response_format: As the protocol has it: `json_object`, or `json_schema` with the schema.
        user: The client's own name for whoever asks it, by which a server may know who misuses it.
    """

    top_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: Sequence[str] | None = None
    response_format: Mapping[str, Any] | None = None
    user: str | None = None

    def given(self) -> dict[str, Any]:
        """Those that are not left to the server, by their names."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRequest:
    """One question to a model.

    Attributes:
        messages: The conversation so far, oldest first.
        max_tokens: The most tokens that the answer may have.
        timeout_s: How long the whole answer may take, from the request to its last piece.
        temperature: `None` leaves it to the server.
        base_url: The OpenAI-compatible server, with its version path (`https://host/v1`); `None` is the embedded model.
        model: The server's name for the model; `None` only where the server has but one.
        api_key_env: The environment variable that holds the server's key; `None` sends no key.
        tools: What the model may call.
        tool_choice: `auto`, `none`, `required`, or the name of the tool that has to be called; `None` leaves it to the
            server, which means `auto` everywhere.
        continues: The last message is the beginning of the answer, which is to go on from there. Not every server can.
        options: What else the server is asked for.
    """

    messages: tuple[ChatMessage, ...]
    max_tokens: int
    timeout_s: float
    temperature: float | None = None
    base_url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str | None = None
    continues: bool = False
    options: ModelOptions = ModelOptions()

    def __post_init__(self) -> None:
        if self.continues and (not self.messages or self.messages[-1].role != "assistant"):
            raise ValueError("there is no answer to go on from")
        if self.tool_choice is not None and not self.tools:
            raise ValueError("tool_choice needs tools")
        if not self.messages:
            raise ValueError("a request needs a message")
        if self.max_tokens < 1 or not self.timeout_s > 0:
            raise ValueError("max_tokens and timeout_s must be positive")

    def estimated_input_tokens(self) -> int:
        """Of what is said, where nobody has counted, as in `Finished`."""
        chars = sum(len(message.content) for message in self.messages)
        return -(-chars // CHARS_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class Accepted:
    """The server has taken the request, and reads it. Mostly the first event of an answer; not all models tell it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextDelta:
    """The next piece of the answer; never empty."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The answer's end, always the last event of an answer that did not fail.

    `finish_reason` is the server's: `stop`, `length`, `content_filter` and the like, and `tool_calls` where it ended to
    have tools run. `estimated` says that the server counted no tokens: then every piece counts as one, and the input as
    four characters a token.
    """

    finish_reason: str
    input_tokens: int
    output_tokens: int
    estimated: bool


ModelEvent: TypeAlias = Accepted | TextDelta | ToolCall | Finished
