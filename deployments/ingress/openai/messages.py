"""What does a client of /v1/chat/completions say to the model?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from actors.message import FOR_CLIENT, NewMessage
from deployments.chat_request import ChatMessage, ToolCall
from deployments.ingress.fields import Text
from deployments.ingress.openai.errors import Refused
from deployments.ingress.openai.parameters import Content
from deployments.ingress.openai.tools import TOOLS_MAX

MESSAGES_MAX = 2_000
CALL_ID_CHARS_MAX = 256

CallId = Annotated[Text, Field(min_length=1, max_length=CALL_ID_CHARS_MAX)]


class CalledFunction(BaseModel):
    name: Annotated[Text, Field(min_length=1, max_length=256)]
    arguments: Text


class FunctionCall(BaseModel):
    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(BaseModel):
    """What clients send back of an answer beside its text and its calls, such as annotations, is ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = ""
    tool_calls: Annotated[list[FunctionCall], Field(max_length=TOOLS_MAX)] | None = None
    tool_call_id: CallId | None = None


Messages = Annotated[list[Message], Field(min_length=1, max_length=MESSAGES_MAX)]


def for_model(messages: Sequence[Message], system_prompt: str) -> tuple[ChatMessage, ...]:
    """The messages as a model is told them. The tenant's instructions count where the client gives none.

    Raises:
        Refused: they are no conversation.
    """
    told = [_for_model(number, message) for number, message in enumerate(messages)]
    if not any(message.role == "system" for message in told):
        told.insert(0, ChatMessage(role="system", content=system_prompt))
    return tuple(told)


def for_session(messages: Sequence[Message], chars_max: int) -> list[NewMessage]:
    """What a session does not know of a conversation: the user's last message, or the results at the end.

    Results right in front of the user's message are among it; whether it knows those is to be seen.

    Raises:
        Refused: the last message is another, or one of them can't be taken.
    """
    taken: list[NewMessage] = []
    for number, message in reversed(list(enumerate(messages))):
        if message.role != "tool" and (taken or message.role != "user"):
            break
        field = f"messages.{number}.content"
        if len(message.content) > chars_max or (message.role == "user" and not message.content):
            raise Refused(f"{field}: must have {int(message.role == 'user')} to {chars_max} characters", field)
        _require_tied(number, message)
        data = {"tool_call_id": message.tool_call_id, FOR_CLIENT: True}
        result: NewMessage = {"role": message.role, "content": message.content, "data": data}
        taken.append(result if message.role == "tool" else {"role": message.role, "content": message.content})
    if not taken:
        problem = "messages: the last one must be of the user, or the result of a tool, to be asked in a session"
        raise Refused(problem, "messages")
    return taken[::-1]


def _for_model(number: int, message: Message) -> ChatMessage:
    _require_tied(number, message)
    return ChatMessage(
        role="system" if message.role == "developer" else message.role,
        content=message.content,
        tool_calls=tuple(
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in message.tool_calls or ()
        ),
        tool_call_id=message.tool_call_id,
    )


def _require_tied(number: int, message: Message) -> None:
    """A result names its call, and calls are an assistant's."""
    if message.tool_calls and message.role != "assistant":
        raise Refused(f"messages.{number}.tool_calls: only an assistant calls tools", f"messages.{number}.tool_calls")
    if (message.tool_call_id is not None) != (message.role == "tool"):
        name = f"messages.{number}.tool_call_id"
        raise Refused(f"{name}: belongs to a message of the role 'tool', and to each of them", name)
