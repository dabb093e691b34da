"""Do a turn's events always come to the same events of a response, and does OpenAI's package take them for its own?"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from actors.turn import TurnError, TurnEvent, Usage
from deployments.ingress.openai.response_events import ResponseEvents
from deployments.ingress.openai.response_shape import blank

NAME = "resp_" + "0" * 56
USAGE: Usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5, "estimated": False}
LOST: TurnError = {"code": "RunnerLost", "message": "lost", "retryable": True, "retry_after_s": 1.0}
SOURCE = {"document_id": "d1", "chunk_id": "d1:0", "title": "Fish", "text": "Fish.", "start": 0, "end": 5}
CREATED: tuple[str, Any] = ("turn.created", {})
TEXT: tuple[str, Any] = ("text.delta", {"text": "Why not?"})
CALL: tuple[str, Any] = ("tool.call", {"id": "c1", "name": "look_up", "arguments": '{"word": "fish"}'})
FOR_CLIENT: tuple[str, Any] = ("tool.call", {**CALL[1], "id": "c2", "for_client": True})
RESULT: tuple[str, Any] = ("tool.result", {"id": "c1", "name": "look_up", "result": {"found": "é"}})
FAILED_RESULT: tuple[str, Any] = ("tool.result", {"id": "c1", "name": "look_up", "error": "no such word"})
COMPLETED: tuple[str, Any] = ("turn.completed", {"finish_reason": "stop", "usage": USAGE})
REQUEST: dict[str, Any] = {
    "client": {
        "background": False,
        "in_conversation": False,
        "metadata": {"a": "b"},
        "previous_response_id": None,
        "query": "Why?",
        "shows_results": False,
        "store": True,
        "tool_choice": "auto",
        "tools": [],
        "user": None,
    },
    "max_tokens": None,
    "temperature": None,
}
_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def turn(*events: tuple[str, Any]) -> list[TurnEvent]:
    numbered: Any = [
        {"number": number, "type": event_type, "data": data} for number, (event_type, data) in enumerate(events, 1)
    ]
    return copy.deepcopy(numbered)


def response_events(**more: Any) -> ResponseEvents:
    return ResponseEvents(blank(NAME, "m", created_at=1.0, request=REQUEST), **{"queries": None, **more})


def told(events: Iterable[TurnEvent], **more: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The events, each as OpenAI's package has it, and the response at the end."""
    response = response_events(**more)
    found = [one for event in events for one in response.take(event)]
    for one in found:
        _EVENT.validate_python(one)
    Response.model_validate(response.response())
    return found, response.response()


def types_of(events: Iterable[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_an_answer_is_told_as_one_message_from_its_first_word_to_its_end() -> None:
    events, response = told(turn(CREATED, TEXT, ("text.delta", {"text": " Fish."}), COMPLETED))
    assert types_of(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(10))
    assert events[6]["text"] == "Why not? Fish."
    assert events[-1]["response"] == response
    assert Response.model_validate(response).output_text == "Why not? Fish."
    assert response["status"] == "completed"
    assert response["usage"]["total_tokens"] == 5
    assert response["metadata"] == {"a": "b"}


def test_a_response_that_waits_is_queued_first() -> None:
    events, response = told(turn(("turn.queued", {"position": 1}), CREATED))
    assert types_of(events) == ["created", "queued", "in_progress"]
    assert [event["response"]["status"] for event in events] == ["queued", "queued", "in_progress"]
    assert response["status"] == "in_progress"


def test_what_a_client_was_told_is_not_changed_by_what_comes_later() -> None:
    response = response_events()
    seen: list[dict[str, Any]] = []
    copies: list[dict[str, Any]] = []
    for event in turn(CREATED, TEXT, CALL, RESULT, TEXT, COMPLETED):
        new = response.take(event)
        seen += new
        copies += copy.deepcopy(new)
    assert seen == copies


def test_the_services_own_tools_are_shown_and_not_given_to_the_client() -> None:
    events, response = told(turn(CREATED, TEXT, CALL, RESULT, TEXT, COMPLETED))
    assert [item["type"] for item in response["output"]] == ["message", "mcp_call", "message"]
    call = response["output"][1]
    assert (call["name"], call["arguments"], call["status"]) == ("look_up", CALL[1]["arguments"], "completed")
    assert json.loads(call["output"]) == {"found": "é"}
    assert "mcp_call.completed" in types_of(events)
    assert len({item["id"] for item in response["output"]}) == 3


def test_a_tool_that_failed_or_never_answered_is_shown_as_failed() -> None:
    for ending in ([FAILED_RESULT, TEXT], []):
        events, response = told(turn(CREATED, CALL, *ending, ("turn.cancelled", {"usage": USAGE})))
        assert response["output"][0]["status"] == "failed"
        assert response["output"][0]["error"]["content"][0]["text"]
        assert "mcp_call.failed" in types_of(events)


def test_a_clients_tools_are_given_to_it() -> None:
    events, response = told(turn(CREATED, FOR_CLIENT, COMPLETED))
    (call,) = response["output"]
    assert (call["type"], call["call_id"], call["arguments"]) == ("function_call", "c2", CALL[1]["arguments"])
    assert types_of(events)[2:6] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]


def test_what_was_found_is_a_search_and_cited() -> None:
    events, response = told(turn(CREATED, ("sources", {"sources": [SOURCE]}), TEXT, COMPLETED), queries=["Why?"])
    search, message = response["output"]
    assert (search["type"], search["queries"], search["results"]) == ("file_search_call", ["Why?"], None)
    (citation,) = message["content"][0]["annotations"]
    assert (citation["type"], citation["file_id"], citation["filename"]) == ("file_citation", "d1", "Fish")
    assert "output_text.annotation.added" in types_of(events)
    _, unasked = told(turn(CREATED, ("sources", {"sources": []}), TEXT, COMPLETED))
    assert [item["type"] for item in unasked["output"]] == ["message"]
    _, in_full = told(
        turn(CREATED, ("sources", {"sources": [SOURCE]}), COMPLETED), queries=["Why?"], shows_results=True
    )
    (result,) = in_full["output"][0]["results"]
    assert (result["file_id"], result["text"]) == ("d1", "Fish.")
    assert "score" not in result


@pytest.mark.parametrize(
    ("ending", "status", "last"),
    [
        (("turn.completed", {"finish_reason": "length", "usage": USAGE}), "incomplete", "incomplete"),
        (("turn.completed", {"finish_reason": "content_filter", "usage": USAGE}), "incomplete", "incomplete"),
        (("turn.incomplete", {"reason": "runner_lost", "usage": None, "error": LOST}), "incomplete", "incomplete"),
        (("turn.cancelled", {"usage": USAGE}), "cancelled", "incomplete"),
        (("error", {**LOST, "usage": None}), "failed", "failed"),
    ],
)
def test_each_end_has_its_status_and_a_last_event_that_says_it(ending: tuple[str, Any], status: str, last: str) -> None:
    events, response = told(turn(CREATED, TEXT, ending))
    assert types_of(events)[-1] == last
    assert events[-1]["response"]["status"] == response["status"] == status
    kept = [item["content"][0]["text"] for item in response["output"]]
    assert kept == ([] if status == "failed" else ["Why not?"])
    assert all(item["status"] == "incomplete" for item in response["output"])
    assert (response["error"] is not None) == (ending[1].get("error") is not None or status == "failed")


def test_an_answer_without_a_word_is_a_message_without_text() -> None:
    _, response = told(turn(CREATED, COMPLETED))
    assert Response.model_validate(response).output_text == ""
    assert [item["type"] for item in response["output"]] == ["message"]


def test_a_turn_that_ends_before_it_began_is_told_from_its_creation() -> None:
    events, _ = told(turn(("turn.cancelled", {"usage": None})))
    assert types_of(events) == ["created", "incomplete"]


_STEPS = st.sampled_from(
    [TEXT, CALL, FOR_CLIENT, RESULT, FAILED_RESULT, ("sources", {"sources": [SOURCE]}), ("turn.retrying", {})]
)
_ENDS = st.sampled_from([COMPLETED, ("turn.cancelled", {"usage": USAGE}), ("error", {**LOST, "usage": None})])


@settings(deadline=None)
@given(st.lists(_STEPS, max_size=8), _ENDS, st.booleans())
def test_any_turn_is_told_in_the_same_numbers_each_time_and_opens_nothing_that_it_does_not_close(
    steps: list[tuple[str, Any]], end: tuple[str, Any], searches: bool
) -> None:
    events = turn(CREATED, *steps, end)
    more = {"queries": ["Why?"] if searches else None}
    first, response = told(events, **more)
    again, _ = told(events, **more)
    assert first == again
    assert [event["sequence_number"] for event in first] == list(range(len(first)))
    opened = [event["output_index"] for event in first if event["type"] == "response.output_item.added"]
    closed = [event["output_index"] for event in first if event["type"] == "response.output_item.done"]
    assert opened == list(range(len(opened)))
    assert sorted(closed) == opened
    text = "".join(event["delta"] for event in first if event["type"] == "response.output_text.delta")
    if response["status"] != "failed":
        assert Response.model_validate(response).output_text == text
