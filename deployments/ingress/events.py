"""How do a turn's events reach a client: as server-sent events, or gathered into one JSON?"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any, get_args

from pydantic_core import to_json
from sse_starlette import EventSourceResponse, ServerSentEvent

from actors import DurableError, ObjectNotFound
from actors.turn import EventType, TurnEvent
from deployments.turn_runner import as_raised

logger = logging.getLogger("mobula.ingress")

#: A comment line that often keeps proxies from closing a stream while the model thinks.
PING_EVERY_S = 15
#: One event, for the documentation; its data is JSON as well.
SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": list(get_args(EventType))},
        "data": {"type": "string"},
    },
    "required": ["id", "event", "data"],
}


def streamed(events: AsyncIterator[TurnEvent], *, location: str) -> EventSourceResponse:
    """A stream that can be taken up again at `location`, from the last id that was seen."""
    headers = {"X-Accel-Buffering": "no", "Content-Location": location}
    return EventSourceResponse(_sse(events), ping=PING_EVERY_S, headers=headers)


async def _sse(events: AsyncIterator[TurnEvent]) -> AsyncIterator[ServerSentEvent]:
    try:
        async for event in events:
            # Text stands in the data alone, as JSON, which has no line ends: it can't become a field or another event.
            yield ServerSentEvent(data=to_json(event["data"]).decode(), event=event["type"], id=str(event["number"]))
    except DurableError as error:
        # The turn has not ended: a stream that ends before its last event is to be taken up again.
        logger.warning("a stream was cut off: %s", error)


async def gathered(events: AsyncIterator[TurnEvent]) -> dict[str, Any]:
    """The answer as a whole.

    Raises:
        ModelUnavailable, ModelRefused, BudgetExceeded: there is none.
        ObjectNotFound: the session has gone.
    """
    answer: dict[str, Any] = {"text": "", "sources": [], "finish_reason": None}
    text: list[str] = []
    async for event in events:
        data = event["data"]
        match event["type"]:
            case "text.delta":
                text.append(data["text"])
            case "sources":
                answer["sources"] = data["sources"]
            case "turn.completed":
                answer |= {**data, "status": "completed"}
            case "turn.cancelled":
                answer |= {**data, "status": "cancelled", "finish_reason": "cancelled"}
            case "turn.incomplete":
                answer |= {**data, "status": "incomplete", "finish_reason": data["reason"]}
            case "error" if data["code"] == ObjectNotFound.__name__:
                raise ObjectNotFound(f"ChatSession/{data['session_id']}")
            case "error":
                raise as_raised(data)
    answer["text"] = "".join(text)
    return answer
