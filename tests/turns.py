"""What do tests of a session's turns ask, tell and look at?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from actors import ChatSession, Directory, TokenUsage, TurnQueue
from actors.message import NewMessage
from actors.runtime.namespace import Stub
from actors.turn import FINAL, NewEvent, NewTurn, OnConflict, TurnError, TurnEvent, TurnLimits, Usage

CLASSES = (ChatSession, Directory, TokenUsage, TurnQueue)
LIMITS: TurnLimits = {
    "queue_max": 2,
    "attempts_max": 3,
    "continues": False,
    "events_kept_s": 600.0,
    "broken_events_kept_s": 3600.0,
}
USAGE: Usage = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15, "estimated": False}
ERROR: TurnError = {"code": "ModelTimeout", "message": "no answer", "retryable": True, "retry_after_s": 2.0}
FINAL_EVENTS = {"turn.completed", "turn.incomplete", "turn.cancelled", "error"}
QUESTION = "why?"


def asked(
    turn_id: str,
    message: str | None = QUESTION,
    *,
    leading: Sequence[NewMessage] = (),
    replace: int | None = None,
    follows: str | None = None,
    key: str | None = None,
    on_conflict: OnConflict = "enqueue",
    request: dict[str, Any] | None = None,
    queue_max: int = LIMITS["queue_max"],
    attempts_max: int = LIMITS["attempts_max"],
    continues: bool = LIMITS["continues"],
) -> NewTurn:
    return {
        "turn_id": turn_id,
        "message": message,
        "leading": leading,
        "replace": replace,
        "follows": follows,
        "model": "m",
        "request": request or {},
        "key": key,
        "on_conflict": on_conflict,
        "limits": {**LIMITS, "queue_max": queue_max, "attempts_max": attempts_max, "continues": continues},
    }


def said(*texts: str) -> list[NewEvent]:
    return [{"type": "text.delta", "data": {"text": text}} for text in texts]


def created() -> NewEvent:
    return {"type": "turn.created", "data": {}}


def sources(*names: str) -> NewEvent:
    return {"type": "sources", "data": {"sources": [{"id": name} for name in names]}}


def called(call_id: str, name: str = "search", arguments: str = "{}") -> NewEvent:
    return {"type": "tool.call", "data": {"id": call_id, "name": name, "arguments": arguments}}


def answered(call_id: str, result: Any) -> NewEvent:
    return {"type": "tool.result", "data": {"id": call_id, "name": "search", "result": result}}


async def begun(session: Stub[ChatSession], turn_id: str, message: str | None = QUESTION, **options: Any) -> int:
    """Begins a turn that is to run at once, by a runner of its own name. Returns its attempt."""
    found = await session.begin(asked(turn_id, message, **options), f"runner of {turn_id}")
    assert found["claim"] is not None
    return int(found["claim"]["attempt"])


async def answer(session: Stub[ChatSession], turn_id: str, text: str = "because", message: str = QUESTION) -> None:
    """A turn from its beginning to its end."""
    attempt = await begun(session, turn_id, message)
    await session.finish(turn_id, attempt, 0, said(text), "completed", finish_reason="stop", usage=USAGE)


async def events_of(session: Stub[ChatSession], turn_id: str, after: int = 0) -> list[TurnEvent]:
    """All of them; they are as every reader relies on them to be."""
    events: list[TurnEvent] = []
    read_to = after
    while True:
        page = await session.events(turn_id, read_to)
        events += page["events"]
        if page["is_over"] or not page["events"]:
            break
        read_to = events[-1]["number"]
    assert [event["number"] for event in events] == list(range(after + 1, after + 1 + len(events)))
    finals = [event["type"] for event in events if event["type"] in FINAL_EVENTS]
    is_over = (await session.turn(turn_id))["status"] in FINAL
    assert is_over == page["is_over"]
    if events:
        assert len(finals) == is_over
        assert (events[-1]["type"] in FINAL_EVENTS) == is_over
    return events


async def types_of(session: Stub[ChatSession], turn_id: str) -> list[str]:
    return [event["type"] for event in await events_of(session, turn_id)]


async def history_of(session: Stub[ChatSession]) -> list[tuple[str, str]]:
    """Roles and texts; the number of messages is what the listing shows."""
    messages = (await session.history(1000))["messages"]
    assert (await session.metadata())["message_count"] == len(messages)
    return [(message["role"], message["content"]) for message in messages]


async def settled() -> None:
    """Whoever was called has got as far as it can."""
    for _ in range(50):
        await asyncio.sleep(0)
