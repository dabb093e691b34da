"""What of a session's history can a model be sent, and what belongs together?

Promise: a conversation in turns, each from a user's message to the next, oldest first. In each, every call of a tool is
followed by exactly one result: a call that was interrupted gets a result that says so, and a result without its call is
left out, since servers refuse both. Instructions from before the first turn are apart; whatever else stands there is
left out, since a conversation that begins with an answer confuses models.

It does not decide what fits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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
