"""What is an item of a conversation: as clients send it, as sessions keep it, and as models are told?

Messages are items, and so are calls of a client's functions and what came of them. A session takes what came of a call
if the call is there and waits for it. A client may send back what it was given: items that only describe what the
service did are passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from actors.message import FOR_CLIENT, Message, NewMessage
from deployments.chat_request import ChatMessage, ToolCall
from deployments.ingress.fields import Text
from deployments.ingress.openai.errors import Refused
from deployments.ingress.openai.ids import Place, item_id
from deployments.ingress.openai.messages import CALL_ID_CHARS_MAX
from deployments.ingress.openai.parameters import Content

ITEMS_MAX = 1_000
#: What an answer tells of itself, and no model has to be told again.
_TOLD_ONLY = ("reasoning", "file_search_call", "mcp_call", "mcp_list_tools")


class NewItem(BaseModel):
    """An item as a client sends it. Which fields it needs depends on its type; others are ignored."""

    type: Literal[
        "message",
        "function_call",
        "function_call_output",
        "reasoning",
        "file_search_call",
        "mcp_call",
        "mcp_list_tools",
    ] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: Content = ""
    call_id: Annotated[Text, Field(min_length=1, max_length=CALL_ID_CHARS_MAX)] | None = None
    name: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    arguments: Text | None = None
    output: Content = ""


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


_ITEMS = {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "object"}}]}
NewItems = Annotated[list[NewItem], Field(min_length=1, max_length=ITEMS_MAX)]
#: Items, or the text of a single message of the user.
Input = Annotated[NewItems, BeforeValidator(_as_items), WithJsonSchema(_ITEMS)]


def _role(item: NewItem, where: str) -> Literal["system", "user", "assistant"]:
    if item.role is None:
        raise Refused(f"{where}.role: is required of a message", f"{where}.role", "missing_required_parameter")
    return "system" if item.role == "developer" else item.role


def for_session(items: Sequence[NewItem], field: str, chars_max: int) -> list[NewMessage]:
    """The messages as a session takes them, calls of one answer in one message; see `answering` for what is left.

    Raises:
        Refused: an item lacks something, or is too long.
    """
    taken: list[NewMessage] = []
    for number, item in enumerate(items):
        where = f"{field}.{number}"
        if item.type in _TOLD_ONLY:
            continue
        if item.type == "message":
            if not item.content or len(item.content) > chars_max:
                raise Refused(f"{where}.content: must have 1 to {chars_max} characters", f"{where}.content")
            taken.append({"role": _role(item, where), "content": item.content})
        elif item.type == "function_call_output":
            if len(item.output) > chars_max:
                raise Refused(f"{where}.output: has more than {chars_max} characters", f"{where}.output")
            data = {"tool_call_id": _call_id(item, where), FOR_CLIENT: True}
            taken.append({"role": "tool", "content": item.output, "data": data})
        else:
            call = _call(item, where)
            if len(call.arguments) > chars_max:
                raise Refused(f"{where}.arguments: has more than {chars_max} characters", f"{where}.arguments")
            if not taken or taken[-1]["role"] != "assistant":
                taken.append({"role": "assistant", "content": ""})
            calls = taken[-1].setdefault("data", {}).setdefault("tool_calls", [])
            calls.append({"id": call.id, "name": call.name, "arguments": call.arguments, FOR_CLIENT: True})
    return taken


def waiting(messages: Iterable[Message | NewMessage], before: Mapping[str, str] | None = None) -> dict[str, str]:
    """The names of the functions whose calls wait for what comes of them behind these messages, by the calls' ids."""
    calls = dict(before or {})
    for message in messages:
        data = message.get("data") or {}
        if message["role"] == "tool":
            calls.pop(data.get("tool_call_id", ""), None)
        else:
            calls = {call["id"]: call["name"] for call in data.get("tool_calls", ()) if call.get(FOR_CLIENT)}
    return calls


def answering(messages: Sequence[NewMessage], before: Mapping[str, str], field: str) -> list[NewMessage]:
    """The messages, each result with the name of its function.

    Args:
        before: the calls that wait for their results, by their ids.

    Raises:
        Refused: a result whose call does not wait for it.
    """
    named: list[NewMessage] = []
    calls = dict(before)
    for message in messages:
        if message["role"] == "tool":
            data = message["data"]
            name = calls.get(data["tool_call_id"])
            if name is None:
                problem = f"No tool call found for function call output with call_id {data['tool_call_id']}."
                raise Refused(problem, field)
            message = {**message, "data": {**data, "name": name}}
        calls = waiting([message], calls)
        named.append(message)
    return named


def _call_id(item: NewItem, where: str) -> str:
    if item.call_id is None:
        raise Refused(f"{where}.call_id: is required", f"{where}.call_id", "missing_required_parameter")
    return item.call_id


def _call(item: NewItem, where: str) -> ToolCall:
    call_id = _call_id(item, where)
    if item.name is None or item.arguments is None:
        raise Refused(f"{where}: a call needs a name and arguments", where, "missing_required_parameter")
    return ToolCall(id=call_id, name=item.name, arguments=item.arguments)


def for_model(items: Sequence[NewItem], instructions: str | None, system_prompt: str) -> tuple[ChatMessage, ...]:
    """The messages as a model is told them, calls of one answer in one message."""
    told: list[ChatMessage] = []
    for number, item in enumerate(items):
        where = f"input.{number}"
        if item.type in _TOLD_ONLY:
            continue
        if item.type == "message":
            told.append(ChatMessage(role=_role(item, where), content=item.content))
            continue
        if item.type == "function_call_output":
            told.append(ChatMessage(role="tool", content=item.output, tool_call_id=_call_id(item, where)))
            continue
        call = _call(item, where)
        last = told[-1] if told else None
        if last is not None and last.role == "assistant":
            told[-1] = ChatMessage(role="assistant", content=last.content, tool_calls=(*last.tool_calls, call))
        else:
            told.append(ChatMessage(role="assistant", content="", tool_calls=(call,)))
    if not told:
        raise Refused("input: holds nothing to be answered", "input")
    if instructions is not None:
        told.insert(0, ChatMessage(role="system", content=instructions))
    elif not any(message.role == "system" for message in told):
        told.insert(0, ChatMessage(role="system", content=system_prompt))
    return tuple(told)


def shown(session_id: str, message: Message) -> list[tuple[Place, dict[str, Any]]]:
    """The items that a message is, at least one, each with its place."""
    data = message["data"] or {}
    number = message["id"]
    if message["role"] == "tool":
        item = {
            "id": item_id("fco", session_id, number),
            "type": "function_call_output",
            "call_id": data.get("tool_call_id"),
            "output": message["content"],
            "status": "completed",
        }
        return [(Place(number, 0), item)]
    items: list[tuple[Place, dict[str, Any]]] = []
    calls = data.get("tool_calls", [])
    if message["content"] or not calls:
        items.append((Place(number, 0), _message(session_id, message)))
    for index, call in enumerate(calls, start=1):
        called = {
            "id": item_id("fc", session_id, number, index),
            "type": "function_call",
            "call_id": call["id"],
            "name": call["name"],
            "arguments": call["arguments"],
            "status": "completed",
        }
        items.append((Place(number, index), called))
    return items


def _message(session_id: str, message: Message) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "input_text", "text": message["content"]}
    if message["role"] == "assistant":
        part = {"type": "output_text", "text": message["content"], "annotations": [], "logprobs": []}
    return {
        "id": item_id("msg", session_id, message["id"]),
        "type": "message",
        "role": message["role"],
        "status": "completed",
        "content": [part],
    }


def listed(items: Iterable[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A page of items."""
    data = list(items)
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else "",
        "last_id": data[-1]["id"] if data else "",
        "has_more": has_more,
    }
