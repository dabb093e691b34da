"""Do a turn's events come to the messages that a model can be shown again?"""

from __future__ import annotations

import json

import pytest

from actors.message import NO_RESULT, Draft, drafts_of, ends_as_answer
from actors.turn import NewEvent
from tests.turns import answered, called, said


def _drafts(*events: NewEvent) -> list[Draft]:
    return drafts_of((event["type"], event["data"]) for event in events)


def test_nothing_told_is_no_message() -> None:
    assert _drafts() == []


def test_pieces_of_text_are_one_answer() -> None:
    assert _drafts(*said("Ro", "", "bin")) == [Draft("assistant", "Robin", {})]


def test_a_call_is_followed_by_its_result_and_the_next_step() -> None:
    call = {"id": "a", "name": "search", "arguments": '{"q": 1}'}
    drafts = _drafts(*said("Let me see."), called("a", arguments='{"q": 1}'), answered("a", ["ä"]), *said("It is."))
    assert drafts == [
        Draft("assistant", "Let me see.", {"tool_calls": [call]}),
        Draft("tool", '["ä"]', {"tool_call_id": "a", "name": "search"}),
        Draft("assistant", "It is.", {}),
    ]


def test_calls_of_one_step_are_answered_in_their_order() -> None:
    drafts = _drafts(called("a"), called("b"), answered("b", 2), answered("a", 1))
    assert [(draft.role, draft.content, draft.data.get("tool_call_id")) for draft in drafts] == [
        ("assistant", "", None),
        ("tool", "1", "a"),
        ("tool", "2", "b"),
    ]


def test_a_call_that_follows_a_result_is_another_step() -> None:
    drafts = _drafts(called("a"), answered("a", 1), called("a"), answered("a", 2))
    assert [(draft.role, draft.content) for draft in drafts] == [
        ("assistant", ""),
        ("tool", "1"),
        ("assistant", ""),
        ("tool", "2"),
    ]


def test_a_call_without_a_result_has_an_error_for_one() -> None:
    drafts = _drafts(called("a"), called("b"), answered("b", 2))
    assert [draft.content for draft in drafts] == ["", NO_RESULT, "2"]
    assert "error" in json.loads(NO_RESULT)


def test_a_tool_that_failed_tells_its_error() -> None:
    failed: NewEvent = {"type": "tool.result", "data": {"id": "a", "name": "search", "error": "no such tool"}}
    assert json.loads(_drafts(called("a"), failed)[1].content) == {"error": "no such tool"}


def test_a_tool_that_returns_nothing_returns_null() -> None:
    assert _drafts(called("a"), answered("a", None))[1].content == "null"


def test_a_result_that_nobody_asked_for_is_no_message() -> None:
    assert _drafts(answered("a", 1), *said("text")) == [Draft("assistant", "text", {})]


def test_steps_do_not_share_their_calls() -> None:
    first, _, second, _ = _drafts(called("a"), answered("a", 1), called("b"), answered("b", 2))
    assert [[call["id"] for call in draft.data["tool_calls"]] for draft in (first, second)] == [["a"], ["b"]]


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        (("\ud83d", "\ude00!"), "😀!"),
        (("a\ud83d", "b"), "a\N{REPLACEMENT CHARACTER}b"),
        (("\ude00", "é😀\0"), "\N{REPLACEMENT CHARACTER}é😀\0"),
    ],
)
def test_halves_of_characters_are_joined_or_replaced(pieces: tuple[str, ...], whole: str) -> None:
    assert _drafts(*said(*pieces)) == [Draft("assistant", whole, {})]


def test_halves_of_characters_in_a_result_can_be_stored() -> None:
    content = _drafts(called("a"), answered("a", "x\ud83d"))[1].content
    assert json.loads(content) == "x\N{REPLACEMENT CHARACTER}"


def test_a_call_that_a_client_is_to_run_has_no_result_yet() -> None:
    for_client = called("b")
    for_client["data"]["for_client"] = True
    drafts = _drafts(called("a"), for_client, answered("a", 1))
    assert [(draft.role, draft.data.get("tool_call_id")) for draft in drafts] == [("assistant", None), ("tool", "a")]
    assert [call.get("for_client") for call in drafts[0].data["tool_calls"]] == [None, True]
    assert ends_as_answer(drafts)


@pytest.mark.parametrize(
    ("events", "is_whole"),
    [([], False), ([called("a"), answered("a", 1)], False), ([called("a"), answered("a", 1), *said("One.")], True)],
)
def test_an_answer_ends_with_its_text_where_no_client_is_to_go_on(events: list[NewEvent], is_whole: bool) -> None:
    assert ends_as_answer(_drafts(*events)) is is_whole
