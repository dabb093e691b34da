"""Is a turn told to the AI SDK part by part, with an end to whatever it begins?"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from actors import ObjectReset
from actors.turn import TurnEvent
from deployments.ingress.ui_stream import CUT_OFF, UIMessageStream, ui_streamed
from tests.turn_events import (
    BEGUN,
    CANCELLED,
    FAILED,
    INCOMPLETE,
    NAMES,
    SESSION_ID,
    TURN_ID,
    USAGE,
    WITH_TOOLS,
    Event,
    numbered,
)


def _parts(events: list[Event]) -> list[dict[str, Any]]:
    stream = UIMessageStream(SESSION_ID, TURN_ID)
    return [part for event in numbered(events) for part in stream.parts(event)]


def _kinds(events: list[Event]) -> list[str]:
    return [part["type"] for part in _parts(events)]


def test_a_turn_with_tools_is_told_step_by_step() -> None:
    parts = _parts(WITH_TOOLS)
    by_service = {"providerExecuted": True, "dynamic": True}
    more = {"document_id": "moons", "text": "Io is a moon.", "start": 0, "end": 13}
    refused = "the arguments are no JSON"
    assert parts == [
        {"type": "start", "messageId": TURN_ID, "messageMetadata": NAMES},
        {"type": "start-step"},
        {
            "type": "source-document",
            "sourceId": "moons:0",
            "mediaType": "text/plain",
            "title": "Moons",
            "providerMetadata": {"mobula": more},
        },
        {"type": "text-start", "id": "text-1"},
        {"type": "text-delta", "id": "text-1", "delta": "Let me "},
        {"type": "text-delta", "id": "text-1", "delta": "look."},
        {"type": "text-end", "id": "text-1"},
        {
            "type": "tool-input-available",
            "toolCallId": "c1",
            "toolName": "kv_get",
            "input": {"key": "a"},
            **by_service,
        },
        {
            "type": "tool-input-available",
            "toolCallId": "c2",
            "toolName": "vector_search",
            "input": "no JSON",
            **by_service,
        },
        {"type": "tool-output-available", "toolCallId": "c1", "output": {"value": 1}, **by_service},
        {"type": "tool-output-error", "toolCallId": "c2", "errorText": refused, **by_service},
        {"type": "finish-step"},
        {"type": "start-step"},
        {"type": "text-start", "id": "text-2"},
        {"type": "text-delta", "id": "text-2", "delta": "One."},
        {"type": "text-end", "id": "text-2"},
        {"type": "finish-step"},
        {
            "type": "finish",
            "finishReason": "stop",
            "messageMetadata": {"message_id": 5, "usage": USAGE, "finish_reason": "stop"},
        },
    ]


@pytest.mark.parametrize(
    ("last", "ends"),
    [
        (CANCELLED, ["message-metadata", "abort"]),
        (INCOMPLETE, ["message-metadata", "error"]),
        (FAILED, ["error"]),
    ],
)
@pytest.mark.parametrize("length", range(len(WITH_TOOLS)))
def test_what_is_begun_is_ended_wherever_the_turn_breaks_off(last: Event, ends: list[str], length: int) -> None:
    parts = _parts([*WITH_TOOLS[:length], last])
    kinds = [part["type"] for part in parts]
    assert kinds[0] == "start"
    assert kinds[-len(ends) :] == ends
    assert kinds.count("start-step") == kinds.count("finish-step")
    assert kinds.count("text-start") == kinds.count("text-end")
    called = [part["toolCallId"] for part in parts if part["type"] == "tool-input-available"]
    answered = [part["toolCallId"] for part in parts if part["type"].startswith("tool-output")]
    assert sorted(called) == sorted(answered)
    if ends[-1] == "error":
        assert parts[-1]["errorText"] == ("busy" if last is FAILED else "it was lost")


def test_a_call_that_another_client_is_to_run_is_told_and_not_answered() -> None:
    call: Event = ("tool.call", {"id": "c3", "name": "look_up", "arguments": "{}", "for_client": True})
    parts = _parts([*WITH_TOOLS[:2], call, WITH_TOOLS[-1]])
    told = {"type": "tool-input-available", "toolCallId": "c3", "toolName": "look_up", "input": {}, "dynamic": True}
    assert told in parts
    assert [part for part in parts if part["type"].startswith("tool-output")] == []


def test_an_answer_that_broke_off_without_an_error_says_so() -> None:
    parts = _parts([*BEGUN, ("turn.incomplete", {**INCOMPLETE[1], "error": None})])
    assert parts[-1] == {"type": "error", "errorText": "the answer broke off"}


def test_a_turn_that_was_begun_again_tells_each_source_once() -> None:
    again: list[Event] = [
        *BEGUN,
        ("turn.retrying", {"attempt": 2, "reason": "runner_lost"}),
        *BEGUN[2:],
        *WITH_TOOLS[3:],
    ]
    assert _kinds(again) == _kinds(WITH_TOOLS)


def test_the_same_events_make_the_same_stream() -> None:
    assert _parts(WITH_TOOLS) == _parts(WITH_TOOLS)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content-filter"),
        ("tool_calls", "tool-calls"),
        ("weather", "other"),
        (None, "other"),
    ],
)
def test_an_ending_is_called_what_the_sdk_calls_it(reason: str | None, told: str) -> None:
    last: Event = ("turn.completed", {**NAMES, "message_id": 2, "finish_reason": reason, "usage": USAGE})
    assert _parts([*BEGUN, last])[-1]["finishReason"] == told


def test_a_result_of_a_call_that_was_never_told_is_left_out() -> None:
    stray: Event = ("tool.result", {"id": "c9", "name": "kv_get", "result": 1})
    assert _kinds([*BEGUN, stray, *WITH_TOOLS[3:]]) == _kinds(WITH_TOOLS)


async def _lines(events: AsyncIterator[TurnEvent]) -> list[str]:
    response: Any = ui_streamed(events, SESSION_ID, TURN_ID, location="/somewhere")
    assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert response.headers["content-location"] == "/somewhere"
    sent = [event.encode().decode() async for event in response.body_iterator]
    return [line for event in sent for line in event.splitlines() if line]


async def _of(events: list[TurnEvent], error: Exception | None = None) -> AsyncIterator[TurnEvent]:
    for event in events:
        yield event
    if error is not None:
        raise error


async def test_no_text_leaves_its_line_and_done_is_the_last() -> None:
    text = "\r\n\ndata: [DONE]\n\nevent: error\u2028 \ud83d"
    events = [*BEGUN, ("text.delta", {"text": text}), WITH_TOOLS[-1]]
    lines = await _lines(_of(numbered(events)))
    assert {line[:6] for line in lines} == {"data: "}
    assert lines[-1] == "data: [DONE]"
    assert [part["delta"] for part in _told(lines) if part["type"] == "text-delta"] == [text]


async def test_a_stream_that_loses_its_session_says_that_it_is_not_whole() -> None:
    lost = ObjectReset("ChatSession/acme:s", "its host was lost")
    lines = await _lines(_of(numbered(WITH_TOOLS[:4]), lost))
    assert list(_told(lines))[-1] == {"type": "error", "errorText": CUT_OFF}
    assert lines[-1] == "data: [DONE]"


def _told(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines[:-1]:
        yield json.loads(line.removeprefix("data: "))
