"""A turn in which everything happens that can, for tests of what is made of its events."""

from __future__ import annotations

from typing import Any

from actors.turn import EventType, TurnEvent

Event = tuple[EventType, dict[str, Any]]

SESSION_ID = "s" + "0" * 32
TURN_ID = "t" + "0" * 24
NAMES = {"session_id": SESSION_ID, "turn_id": TURN_ID}
USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7, "estimated": False}
SOURCE = {
    "document_id": "moons",
    "chunk_id": "moons:0",
    "title": "Moons",
    "text": "Io is a moon.",
    "start": 0,
    "end": 13,
}
CALL = {"id": "c1", "name": "kv_get", "arguments": '{"key": "a"}'}

BEGUN: list[Event] = [
    ("turn.queued", {**NAMES, "position": 1}),
    ("turn.created", {**NAMES, "message_id": 1}),
    ("sources", {"sources": [SOURCE]}),
]
WITH_TOOLS: list[Event] = [
    *BEGUN,
    ("text.delta", {"text": "Let me "}),
    ("text.delta", {"text": "look."}),
    ("tool.call", CALL),
    ("tool.call", {"id": "c2", "name": "vector_search", "arguments": "no JSON"}),
    ("tool.result", {"id": "c1", "name": "kv_get", "result": {"value": 1}}),
    ("tool.result", {"id": "c2", "name": "vector_search", "error": "the arguments are no JSON"}),
    ("text.delta", {"text": "One."}),
    ("turn.completed", {**NAMES, "message_id": 5, "finish_reason": "stop", "usage": USAGE}),
]
INCOMPLETE: Event = (
    "turn.incomplete",
    {**NAMES, "message_id": 3, "reason": "runner_lost", "usage": None, "error": {"message": "it was lost"}},
)
CANCELLED: Event = ("turn.cancelled", {**NAMES, "message_id": None, "usage": None})
FAILED: Event = (
    "error",
    {**NAMES, "code": "ModelUnavailable", "message": "busy", "retryable": True, "retry_after_s": 1.0, "usage": None},
)


def numbered(events: list[Event]) -> list[TurnEvent]:
    return [
        {"number": number, "type": event_type, "data": data}
        for number, (event_type, data) in enumerate(events, start=1)
    ]
