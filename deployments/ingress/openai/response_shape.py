"""What is a response, before anything has happened in it, and when all has?

A response is a turn whose request has a `client` part: what the client asked for and will want to see again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from actors.message import Message
from actors.session_views import AnsweredTurn
from actors.turn import FINAL, FINAL_EVENT, EventType, TurnEvent, TurnInfo
from deployments.ingress.openai import formats
from deployments.ingress.openai.ids import conversation_id, response_id
from deployments.ingress.openai.response_events import ResponseEvents


def blank(
    name: str, model: str, *, created_at: float, request: dict[str, Any], conversation: str | None = None
) -> dict[str, Any]:
    """A response in which nothing has happened.

    Args:
        name: its id.
        created_at: seconds since 1970.
        request: how it is to be answered, as a turn's request says it.
        conversation: the id of the conversation that it was asked in by name.
    """
    client, options = request["client"], request.get("options", {})
    return {
        "id": name,
        "object": "response",
        "created_at": created_at,
        "completed_at": None,
        "status": "in_progress",
        "background": client["background"],
        "conversation": None if conversation is None else {"id": conversation},
        "error": None,
        "incomplete_details": None,
        "instructions": request.get("instructions"),
        "max_output_tokens": request["max_tokens"],
        "max_tool_calls": None,
        "metadata": client["metadata"],
        "model": model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": client["previous_response_id"],
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": client["store"],
        "temperature": request["temperature"],
        "text": {"format": formats.shown(options.get("response_format"))},
        "tool_choice": client["tool_choice"],
        "tools": client["tools"],
        "top_p": options.get("top_p"),
        "truncation": "auto",
        "usage": None,
        "user": client["user"],
    }


def begun(session_id: str, model: str, answered: AnsweredTurn) -> ResponseEvents:
    """The response of a turn, ready to take the turn's events."""
    turn, request = answered["turn"], answered["request"]
    client = request["client"]
    response = blank(
        response_id(session_id, turn["id"]),
        model,
        created_at=turn["created_at"],
        request=request,
        conversation=conversation_id(session_id) if client["in_conversation"] else None,
    )
    return ResponseEvents(
        response,
        # Where a function's output is answered, what was looked for is not in the request.
        queries=[query for query in [client["query"]] if query] if request["retrieve"] else None,
        shows_results=client["shows_results"],
    )


def ended(response: dict[str, Any], turn: TurnInfo) -> dict[str, Any]:
    """The response with the time of its end, which no event tells."""
    return {**response, "completed_at": turn["ended_at"] if response["status"] == "completed" else None}


def events_of(answered: AnsweredTurn) -> Iterator[TurnEvent]:
    """What had to happen for a turn that has ended to leave these messages; its real events may be gone."""
    turn = answered["turn"]
    assert turn["status"] in FINAL
    told = list(_told(answered["messages"], turn))
    for number, (event_type, data) in enumerate(told, start=1):
        yield {"number": number, "type": event_type, "data": data}


def _told(messages: list[Message], turn: TurnInfo) -> Iterator[tuple[EventType, dict[str, Any]]]:
    yield "turn.created", {}
    asked = turn["message_id"]
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
    error = turn["error"] or {"code": "", "message": "the response failed", "retryable": False, "retry_after_s": None}
    if status == "failed":
        yield FINAL_EVENT[status], {**error, "usage": turn["usage"]}
    else:
        end = {"usage": turn["usage"], "error": turn["error"], "finish_reason": turn["finish_reason"]}
        yield FINAL_EVENT[status], end


def _outcome(content: str) -> dict[str, Any]:
    result = json.loads(content)
    return result if isinstance(result, dict) and result.keys() == {"error"} else {"result": result}
