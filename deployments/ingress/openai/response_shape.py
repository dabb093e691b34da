"""What is a response, before anything has happened in it, and when all has?

A response is a turn whose request has a `client` part: what the client asked for and will want to see again.
"""

from __future__ import annotations

from typing import Any

from actors.session_views import AnsweredTurn
from actors.turn import TurnInfo
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
