"""What of a session's history can a model be sent, and what belongs together?

Promise: a conversation in turns, each from a user's message to the next, oldest first. In each, every call of a tool is
followed by exactly one result: a call that was interrupted gets a result that says so, and a result without its call is
left out, since servers refuse both. Instructions from before the first turn are apart; whatever else stands there is
left out, since a conversation that begins with an answer confuses models.

It does not decide what fits.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from actors import InvalidArgument
from actors.message import Message
from deployments.chat_request import ChatMessage, ToolCall

INTERRUPTED = json.dumps({"error": "the call was interrupted"})


class PastTurn(NamedTuple):
    """What was said between a user's message and the next, and how many stored messages that were."""

    messages: tuple[ChatMessage, ...]
    stored: int


class Conversation(NamedTuple):
    """A history in turns, with the instructions before them, and how many stored messages can't be sent at all."""

    instructions: tuple[ChatMessage, ...]
    turns: tuple[PastTurn, ...]
    left_out: int


def conversation_of(history: Sequence[Message]) -> Conversation:
    first = next((index for index, message in enumerate(history) if message["role"] == "user"), len(history))
    instructions = [
        ChatMessage(role="system", content=message["content"])
        for message in history[:first]
        if message["role"] == "system"
    ]
    turns: list[list[Message]] = []
    for message in history[first:]:
        if message["role"] == "user":
            turns.append([])
        turns[-1].append(message)
    return Conversation(
        tuple(instructions),
        tuple(PastTurn(tuple(_sendable(turn)), len(turn)) for turn in turns),
        first - len(instructions),
    )


class Answered(NamedTuple):
    """What was said before the user's last message, that message, and all that followed."""

    before: Conversation
    asked: ChatMessage
    since: tuple[ChatMessage, ...]


def answered_with(history: Sequence[Message], call_id: str, result: str) -> Answered:
    """The history with what a client's tool gave.

    Raises:
        InvalidArgument: the history does not end with calls of which this is one that has no result yet.
    """
    data = {"tool_call_id": call_id}
    message: Message = {"id": 0, "role": "tool", "content": result, "tokens": None, "data": data, "created_at": 0.0}
    instructions, turns, left_out = conversation_of([*history, message])
    last = turns[-1].messages if turns else ()
    results = itertools.takewhile(lambda message: message.role == "tool", reversed(last))
    if ChatMessage(role="tool", content=result, tool_call_id=call_id) not in results:
        raise InvalidArgument("input", call_id, "is the id of no call that waits for its result")
    return Answered(Conversation(instructions, turns[:-1], left_out), last[0], last[1:])


def _sendable(turn: Sequence[Message]) -> Iterator[ChatMessage]:
    unanswered: dict[str, ToolCall] = {}
    for message in turn:
        role, content, data = message["role"], message["content"], message["data"] or {}
        if role == "tool":
            if unanswered.pop(call_id := data.get("tool_call_id", ""), None) is not None:
                yield ChatMessage(role="tool", content=content, tool_call_id=call_id)
            continue
        yield from _interrupted(unanswered)
        if role == "system":
            yield ChatMessage(role="system", content=content)
        elif role == "user":
            yield ChatMessage(role="user", content=content)
        elif role == "assistant":
            calls = _calls(data)
            unanswered = {call.id: call for call in calls}
            yield ChatMessage(role="assistant", content=content, tool_calls=calls)
    yield from _interrupted(unanswered)


def _interrupted(unanswered: dict[str, ToolCall]) -> Iterator[ChatMessage]:
    while unanswered:
        call_id = next(iter(unanswered))
        del unanswered[call_id]
        yield ChatMessage(role="tool", content=INTERRUPTED, tool_call_id=call_id)


def _calls(data: dict[str, Any]) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(id=call["id"], name=call["name"], arguments=call["arguments"]) for call in data.get("tool_calls", ())
    )
