"""What had to happen in a turn that has ended, for its messages to be what they are?

Its real events go some time after its end; its messages stay. Told again they are fewer, and numbered by themselves:
who has seen some of the real ones can't go on from there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from actors.message import Message
from actors.session_views import AnsweredTurn
from actors.turn import FINAL, FINAL_EVENT, EventType, TurnEvent, TurnInfo


def is_whole(answered: AnsweredTurn) -> bool:
    """The answer is among the messages, if there was one: it may have left, or been removed."""
    answer_id = answered["turn"]["answer_id"]
    return answer_id is None or any(message["id"] == answer_id for message in answered["messages"])


def retold(session_id: str, answered: AnsweredTurn) -> Iterator[TurnEvent]:
    """The events of a turn that has ended."""
    turn = answered["turn"]
    assert turn["status"] in FINAL
    names = {"turn_id": turn["id"], "session_id": session_id}
    told = list(_told(names, answered["messages"], turn))
    for number, (event_type, data) in enumerate(told, start=1):
        yield {"number": number, "type": event_type, "data": data}


def _told(names: dict[str, Any], messages: list[Message], turn: TurnInfo) -> Iterator[tuple[EventType, dict[str, Any]]]:
    asked = turn["message_id"]
    yield "turn.created", {**names, "message_id": asked}
    answer = [message for message in messages if asked is not None and message["id"] > asked]
    sources = next((data["sources"] for one in answer if "sources" in (data := one["data"] or {})), None)
    if sources is not None:
        yield "sources", {"sources": sources}
    for message in answer:
        data = message["data"] or {}
        if message["role"] == "tool":
            yield "tool.result", {"id": data["tool_call_id"], "name": data["name"], **_outcome(message["content"])}
            continue
        if message["content"]:
            yield "text.delta", {"text": message["content"]}
        for call in data.get("tool_calls", ()):
            yield "tool.call", call
    status = turn["status"]
    error = turn["error"] or {"code": "", "message": "the turn failed", "retryable": False, "retry_after_s": None}
    if status == "failed":
        yield FINAL_EVENT[status], {**names, **error, "usage": turn["usage"]}
        return
    end = {**names, "message_id": turn["answer_id"], "usage": turn["usage"]}
    if status == "completed":
        end["finish_reason"] = turn["finish_reason"]
    elif status == "incomplete":
        end |= {"reason": turn["finish_reason"] or "broken_off", "error": turn["error"]}
    yield FINAL_EVENT[status], end


def _outcome(content: str) -> dict[str, Any]:
    result = json.loads(content)
    return result if isinstance(result, dict) and result.keys() == {"error"} else {"result": result}
