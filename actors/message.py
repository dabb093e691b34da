"""What is one message of a conversation, and what do the events of a turn come to in messages?"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NotRequired

from typing_extensions import TypedDict

#: What a model is told of a tool whose result never came.
NO_RESULT = json.dumps({"error": "the turn ended before the tool had answered"})
#: Marks calls of tools that are not the service's to run, and what came of them.
FOR_CLIENT = "for_client"


class Message(TypedDict):
    """One message. `tokens` is None where nobody counted; `data` is what belongs to it, such as sources.

    An answer that called tools has `data["tool_calls"]`, each with id, name and arguments; the message of role `tool`
    that follows for each has `data["tool_call_id"]` and `data["name"]`, and its content is JSON. Where a call has
    `for_client`, it is for a client to run: its result, which has `for_client` too, is any text, and comes with another
    turn if it comes at all.
    """

    id: int
    role: str
    content: str
    tokens: int | None
    data: dict[str, Any] | None
    created_at: float


class NewMessage(TypedDict):
    """A message that has no number yet."""

    role: str
    content: str
    data: NotRequired[dict[str, Any]]


def instructions_in(messages: Iterable[NewMessage]) -> list[str]:
    """What the system says in the first messages of a conversation before the user says anything."""
    before = itertools.takewhile(lambda message: message["role"] != "user", messages)
    return [message["content"] for message in before if message["role"] == "system"]


class Draft(NamedTuple):
    """A message that is not stored yet."""

    role: str
    content: str
    data: dict[str, Any]


def drafts_of(events: Iterable[tuple[str, dict[str, Any]]]) -> list[Draft]:
    """The messages that a turn's events come to.

    Each call of a tool is followed by its result, if need be an error, but for those that a client is to run.
    """
    drafts: list[Draft] = []
    text: list[str] = []
    calls: list[dict[str, Any]] = []
    results: dict[str, dict[str, Any]] = {}

    def end_step() -> None:
        if text or calls:
            drafts.append(Draft("assistant", whole("".join(text)), {"tool_calls": list(calls)} if calls else {}))
        for call in calls:
            if call.get(FOR_CLIENT):
                continue
            result = results.get(call["id"])
            content = NO_RESULT if result is None else whole(json.dumps(_outcome(result), ensure_ascii=False))
            drafts.append(Draft("tool", content, {"tool_call_id": call["id"], "name": call["name"]}))
        text.clear()
        calls.clear()
        results.clear()

    for event_type, data in events:
        # Whatever comes after results is another step of the model.
        if results and event_type in ("text.delta", "tool.call"):
            end_step()
        if event_type == "text.delta":
            text.append(data["text"])
        elif event_type == "tool.call":
            marks = {FOR_CLIENT: True} if data.get(FOR_CLIENT) else {}
            calls.append({**{name: data[name] for name in ("id", "name", "arguments")}, **marks})
        elif event_type == "tool.result":
            results[data["id"]] = data
    end_step()
    return drafts


def ends_as_answer(drafts: Sequence[Draft]) -> bool:
    """Whether the messages end as an answer does: with text, or with calls that somebody else is to run."""
    last = next((draft for draft in reversed(drafts) if draft.role == "assistant"), None)
    if last is None:
        return False
    return last is drafts[-1] or any(call.get(FOR_CLIENT) for call in last.data.get("tool_calls", ()))


def whole(text: str) -> str:
    """The text without halves of surrogate pairs, which can't be stored: some models' servers send one at a time."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _outcome(result: dict[str, Any]) -> Any:
    return {"error": result["error"]} if "error" in result else result.get("result")
