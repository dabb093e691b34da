"""Do messages of the AI SDK mean what they should, and are stored ones shown as they were streamed?"""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from actors import InvalidArgument
from actors.message import Message, drafts_of
from actors.turn import CONTENT
from deployments.ingress.ui_messages import UIChat, stored_id, text_of, turn_key, ui_messages
from tests.turn_events import SESSION_ID, SOURCE, TURN_ID, USAGE, WITH_TOOLS


def _chat(**change: Any) -> UIChat:
    asked = {"id": "m2", "role": "user", "parts": [{"type": "text", "text": "Why?", "state": "done"}], "metadata": {}}
    body = {"id": "c", "trigger": "submit-message", "messages": [asked]}
    return UIChat.model_validate(body | change)


def _user(*parts: dict[str, Any], role: str = "user") -> dict[str, Any]:
    return {"id": "m2", "role": role, "parts": list(parts)}


def test_of_a_whole_conversation_the_last_message_counts() -> None:
    before = [
        {"id": "m1", "role": "user", "parts": [{"type": "file", "url": "data:,x"}]},
        {"id": "a1", "role": "assistant", "parts": [{"type": "dynamic-tool", "input": {}}]},
    ]
    asked = _user({"type": "text", "text": "a"}, {"type": "text", "text": "b"})
    chat = _chat(messages=[*before, asked])
    assert (chat.question.id, text_of(chat.question), chat.is_again) == ("m2", "ab", False)


@pytest.mark.parametrize(
    ("change", "is_again"),
    [
        ({}, False),
        ({"messageId": "m2"}, True),
        ({"messageId": "a1"}, False),
        ({"trigger": "regenerate-message"}, True),
        ({"trigger": "regenerate-message", "messageId": "a1"}, True),
    ],
)
def test_a_message_is_asked_again_when_it_is_edited_or_its_answer_is_to_be_another(
    change: dict[str, Any], is_again: bool
) -> None:
    assert _chat(**change).is_again is is_again


@pytest.mark.parametrize(
    "asked",
    [
        _user(),
        _user({"type": "text", "text": ""}),
        _user({"type": "text"}),
        _user({"type": "text", "text": "see"}, {"type": "file", "url": "data:,x"}),
    ],
)
def test_a_message_that_is_not_text_can_not_be_asked(asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument) as raised:
        text_of(_chat(messages=[asked]).question)
    assert raised.value.field == "messages"


@pytest.mark.parametrize("role", ["assistant", "system"])
def test_a_conversation_that_ends_with_another_than_the_user_can_not_be_answered(role: str) -> None:
    with pytest.raises(InvalidArgument):
        _ = _chat(messages=[_user({"type": "text", "text": "x"}, role=role)]).question


@pytest.mark.parametrize("change", [{"sesion_id": "s"}, {"trigger": "x"}, {"messages": []}, {"id": "\ud83d"}])
def test_what_is_not_known_of_a_chat_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _chat(**change)


def test_keys_differ_as_their_messages_do_and_none_begins_as_another() -> None:
    keys = [turn_key(message_id) for message_id in ("a", "b", "a-b", "")]
    assert len(set(keys)) == 4
    assert not [(one, other) for one in keys for other in keys if one != other and one.startswith(other)]


@pytest.mark.parametrize(
    ("message_id", "number"),
    [("msg_1", 1), ("msg_12", 12), ("msg_0", None), ("msg_1 ", None), ("msg_", None), ("1", None), ("msg_²", None)],
)
def test_a_loaded_message_is_known_by_its_number(message_id: str, number: int | None) -> None:
    assert stored_id(message_id) == number


def _stored() -> list[Message]:
    """What is kept of the turn with tools."""
    drafts = drafts_of((event_type, data) for event_type, data in WITH_TOOLS if event_type in CONTENT)
    closing = {"sources": [SOURCE], "finish_reason": "stop", "usage": USAGE}
    answers = [
        _message(number, draft.role, draft.content, {**draft.data, "turn_id": TURN_ID})
        for number, draft in enumerate(drafts, start=2)
    ]
    answers[-1]["data"] = {**(answers[-1]["data"] or {}), **closing}
    return [_message(1, "user", "What is a?", {"turn_id": TURN_ID}), *answers]


def _message(number: int, role: str, content: str, data: dict[str, Any] | None = None) -> Message:
    return {"id": number, "role": role, "content": content, "tokens": None, "data": data, "created_at": 0.0}


def test_a_turn_is_shown_as_one_answer_with_all_that_happened_in_it() -> None:
    question, answer = ui_messages(SESSION_ID, _stored())
    assert (question["id"], question["role"]) == ("msg_1", "user")
    assert question["parts"] == [{"type": "text", "text": "What is a?", "state": "done"}]
    assert (answer["id"], answer["role"]) == (TURN_ID, "assistant")
    assert answer["metadata"] == {
        "session_id": SESSION_ID,
        "message_id": 5,
        "turn_id": TURN_ID,
        "usage": USAGE,
        "finish_reason": "stop",
    }
    shown = [(part["type"], part.get("text") or part.get("toolName")) for part in answer["parts"]]
    assert shown == [
        ("step-start", None),
        ("source-document", None),
        ("text", "Let me look."),
        ("dynamic-tool", "kv_get"),
        ("dynamic-tool", "vector_search"),
        ("step-start", None),
        ("text", "One."),
    ]
    kept, failed = answer["parts"][3:5]
    assert (kept["state"], kept["input"], kept["output"]) == ("output-available", {"key": "a"}, {"value": 1})
    assert (failed["state"], failed["errorText"]) == ("output-error", "the arguments are no JSON")


def test_messages_without_a_turn_stand_by_themselves() -> None:
    history = [
        _message(3, "system", "Be brief."),
        _message(4, "assistant", "Yes."),
        _message(5, "assistant", "Also."),
        _message(6, "assistant", "One.", {"turn_id": "t1"}),
        _message(7, "assistant", "Two.", {"turn_id": "t2"}),
    ]
    shown = [(message["id"], message["role"]) for message in ui_messages(SESSION_ID, history)]
    assert shown == [
        ("msg_3", "system"),
        ("msg_4", "assistant"),
        ("msg_5", "assistant"),
        ("t1", "assistant"),
        ("t2", "assistant"),
    ]


def test_a_result_whose_call_is_gone_is_no_part() -> None:
    (answer,) = ui_messages(SESSION_ID, [one for one in _stored() if one["id"] not in (1, 2)])
    assert [part["type"] for part in answer["parts"]] == ["step-start", "source-document", "text"]


def test_what_another_client_was_to_run_is_shown_with_what_came_of_it_as_text() -> None:
    calls = [{"id": "c1", "name": "look_up", "arguments": "{}", "for_client": True}]
    called = _message(2, "assistant", "", {"turn_id": "t1", "tool_calls": calls})
    result = _message(
        3, "tool", "no JSON", {"turn_id": "t2", "tool_call_id": "c1", "name": "look_up", "for_client": True}
    )
    answer = _message(4, "assistant", "So.", {"turn_id": "t2"})
    first, second = ui_messages(SESSION_ID, [called, result, answer])
    assert first["parts"][-1] == {
        "type": "dynamic-tool",
        "toolName": "look_up",
        "toolCallId": "c1",
        "input": {},
        "state": "output-available",
        "output": "no JSON",
    }
    assert second["parts"] == [{"type": "step-start"}, {"type": "text", "text": "So.", "state": "done"}]
    (pending,) = ui_messages(SESSION_ID, [called])
    assert (pending["parts"][-1]["state"], "output" in pending["parts"][-1]) == ("input-available", False)
