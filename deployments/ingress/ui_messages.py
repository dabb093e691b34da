"""What do messages look like in the AI SDK, on their way in and out?

`useChat` sends the whole conversation as its user sees it. The session is right about what was said, so that of all of
it the last message counts alone: what is asked, under which id, and whether it is asked for the first time.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from actors import InvalidArgument
from actors.message import FOR_CLIENT, Message
from deployments.ingress.fields import AnswerOptions, Text
from deployments.ingress.ui_stream import arguments_of, error_text, source_part

ID_CHARS_MAX = 256
#: A body's bytes are limited as well.
MESSAGES_MAX = 10_000
PARTS_MAX = 1_000
#: How a message is called that was not asked by `useChat`.
_STORED = re.compile(r"msg_([1-9][0-9]{0,15})")

Id = Annotated[Text, Field(min_length=1, max_length=ID_CHARS_MAX)]


class _Loose(BaseModel):
    """What clients of other versions add is theirs."""

    model_config = ConfigDict(extra="ignore")


class UIPart(_Loose):
    type: Annotated[str, Field(max_length=ID_CHARS_MAX)]
    text: Text | None = None


class UIMessage(_Loose):
    id: Id
    role: Literal["system", "user", "assistant"]
    parts: Annotated[list[UIPart], Field(max_length=PARTS_MAX)]


class UIChat(AnswerOptions):
    """What `useChat` sends."""

    id: Id
    messages: Annotated[list[UIMessage], Field(min_length=1, max_length=MESSAGES_MAX)] = Field(
        description="of which the last, the user's, counts alone: what was said before is in the session"
    )
    trigger: Literal["submit-message", "regenerate-message"] = "submit-message"
    message_id: Id | None = Field(default=None, alias="messageId")

    @property
    def question(self) -> UIMessage:
        """The message that is to be answered.

        Raises:
            InvalidArgument: it is none of the user's.
        """
        last = self.messages[-1]
        if last.role != "user":
            raise InvalidArgument("messages", last.role, "must end with a message of the user")
        return last

    @property
    def is_again(self) -> bool:
        """What is asked was asked before: it is answered anew, or has been edited."""
        return self.trigger == "regenerate-message" or self.message_id == self.messages[-1].id


def text_of(message: UIMessage) -> str:
    """
    Raises:
        InvalidArgument: there is none, or something else with it.
    """
    other = next((part.type for part in message.parts if part.type != "text"), None)
    if other is not None:
        raise InvalidArgument("messages", other, "must end with a message of text alone")
    text = "".join(part.text or "" for part in message.parts)
    if not text:
        raise InvalidArgument("messages", "", "must end with a message that is not empty")
    return text


def turn_key(message_id: str) -> str:
    """The key of the turn that answers a message of `useChat`, and the beginning of those that answer it again."""
    return "ui_" + hashlib.sha256(message_id.encode()).hexdigest()


def stored_id(message_id: str) -> int | None:
    """The number of a message that is called as `ui_messages` calls it."""
    stored = _STORED.fullmatch(message_id)
    return int(stored.group(1)) if stored else None


def ui_messages(session_id: str, history: Sequence[Message]) -> list[dict[str, Any]]:
    """Stored messages as `useChat` is to be given them; those of one answer are one."""
    messages: list[dict[str, Any]] = []
    outcomes = dict(_outcomes(history))
    # What another client's tools gave is shown with the calls, and begins no answer.
    for _, grouped in groupby((one for one in history if not (one["data"] or {}).get(FOR_CLIENT)), _belonging):
        group = list(grouped)
        first, last = group[0], group[-1]
        data = last["data"] or {}
        turn_id = data.get("turn_id")
        is_answer = first["role"] in ("assistant", "tool")
        metadata = {"session_id": session_id, "message_id": last["id"]}
        metadata |= {name: data[name] for name in ("turn_id", "usage", "finish_reason") if name in data}
        messages.append(
            {
                # In the stream, an answer is called as its turn.
                "id": turn_id if turn_id and is_answer else f"msg_{first['id']}",
                "role": "assistant" if is_answer else first["role"],
                "metadata": metadata,
                "parts": list(_answer_parts(group, data, outcomes)) if is_answer else [_text_part(first["content"])],
            }
        )
    return messages


def _belonging(message: Message) -> tuple[str, int]:
    turn_id = (message["data"] or {}).get("turn_id")
    is_answer = message["role"] in ("assistant", "tool")
    return (turn_id, 0) if turn_id and is_answer else ("", message["id"])


def _outcomes(history: Iterable[Message]) -> Iterator[tuple[tuple[int, str], Any]]:
    """What came of calls, by the message that called and the call's id."""
    callers: dict[str, int] = {}
    for message in history:
        data = message["data"] or {}
        if message["role"] == "assistant":
            callers = {call["id"]: message["id"] for call in data.get("tool_calls") or ()}
        elif message["role"] == "tool" and (call_id := data.get("tool_call_id")) in callers:
            outcome = message["content"] if data.get(FOR_CLIENT) else json.loads(message["content"])
            yield (callers.pop(call_id), call_id), outcome


def _answer_parts(
    group: list[Message], data: dict[str, Any], outcomes: Mapping[tuple[int, str], Any]
) -> Iterator[dict[str, Any]]:
    sources = data.get("sources") or []
    for number, message in enumerate(one for one in group if one["role"] == "assistant"):
        yield {"type": "step-start"}
        if number == 0:
            yield from (source_part(source) for source in sources)
        if message["content"]:
            yield _text_part(message["content"])
        for call in (message["data"] or {}).get("tool_calls") or ():
            yield _call_part(call, (message["id"], call["id"]), outcomes)


def _call_part(call: dict[str, Any], place: tuple[int, str], outcomes: Mapping[tuple[int, str], Any]) -> dict[str, Any]:
    part = {
        "type": "dynamic-tool",
        "toolName": call["name"],
        "toolCallId": call["id"],
        "input": arguments_of(call),
        **({} if call.get(FOR_CLIENT) else {"providerExecuted": True}),
    }
    if place not in outcomes:
        return {**part, "state": "input-available"}
    outcome = outcomes[place]
    if isinstance(outcome, dict) and outcome.keys() == {"error"}:
        return {**part, "state": "output-error", "errorText": error_text(outcome["error"])}
    return {**part, "state": "output-available", "output": outcome}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "state": "done"}
