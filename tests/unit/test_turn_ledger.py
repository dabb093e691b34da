"""Is a turn begun once, run by one, told in order, ended once, and its answer in the history, and nothing else?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import ChatSession, InvalidArgument, LocalBackend, ObjectConflict, ObjectNotFound, TokenUsage, turn_ledger
from actors.message import NO_RESULT
from actors.runtime import ObjectOverloaded, RequestReused
from actors.runtime.clock import ManualClock
from actors.runtime.host import HostSettings
from actors.runtime.namespace import Stub
from actors.token_usage import USAGE_NAME
from actors.turn import NewEvent, OnConflict, TurnError
from tests.turns import (
    CLASSES,
    QUESTION,
    USAGE,
    answer,
    answered,
    asked,
    begun,
    called,
    created,
    events_of,
    history_of,
    said,
    sources,
    types_of,
)
from tests.unit.objects_fixtures import Hibernating, refusing, ring

ERROR: TurnError = {"code": "ModelTimeout", "message": "no answer", "retryable": True, "retry_after_s": 2.0}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=[LocalBackend, Hibernating], ids=["resident", "hibernating"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[LocalBackend]:
    backend = request.param(tmp_path, CLASSES, settings=HostSettings(slots=4), clock=clock, keeps_time=False)
    yield backend
    backend.close()


@pytest.fixture
async def session(objects: LocalBackend) -> Stub[ChatSession]:
    session = objects.namespace(ChatSession).get("acme", "s1")
    await session.create()
    return session


async def _settled() -> None:
    """Whoever was called has got as far as it can."""
    for _ in range(50):
        await asyncio.sleep(0)


# -- beginning


async def test_a_turn_is_a_row_and_a_question_before_anything_runs(
    session: Stub[ChatSession], clock: ManualClock
) -> None:
    found = await session.begin(asked("t1", request={"top_k": 3}), "r1")
    assert found["claim"] == {
        "turn_id": "t1",
        "attempt": 1,
        "last_event": 0,
        "is_created": False,
        "message_id": 1,
        "message": QUESTION,
        "request": {"top_k": 3},
        "history": [],
    }
    turn = await session.turn("t1")
    assert turn == found["turn"]
    assert (turn["status"], turn["message_id"], turn["started_at"]) == ("in_progress", 1, clock.now())
    assert await history_of(session) == [("user", QUESTION)]


async def test_turns_need_a_session(objects: LocalBackend, session: Stub[ChatSession]) -> None:
    other = objects.namespace(ChatSession).get("acme", "other")
    for call in (other.begin(asked("t1"), "r"), other.turn("t1"), other.claim("t1", "r"), other.events("t1")):
        with pytest.raises(ObjectNotFound):
            await call


async def test_a_turn_that_was_never_begun_is_not_found(session: Stub[ChatSession]) -> None:
    for call in (
        session.turn("t1"),
        session.events("t1", 0, 1.0),
        session.claim("t1", "r", 1.0),
        session.attend("t1", 1, 1.0),
        session.cancel("t1"),
        session.record("t1", 1, 0, said("x")),
        session.turns(10, "t1"),
    ):
        with pytest.raises(ObjectNotFound):
            await call


async def test_history_is_what_was_said_before_the_question(session: Stub[ChatSession]) -> None:
    await answer(session, "t1")
    await session.append("system", "be brief")
    found = await session.begin(asked("t2", "and then?"), "r2")
    said_before = [(message["role"], message["content"]) for message in found["claim"]["history"]]
    assert said_before == [("user", QUESTION), ("assistant", "because"), ("system", "be brief")]


async def test_the_same_request_joins_its_turn(session: Stub[ChatSession]) -> None:
    first = await session.begin(asked("t1", key="k"), "r1")
    again = await session.begin(asked("t2", key="k"), "r2")
    assert (first["joined"], again["joined"], again["claim"]) == (False, True, None)
    assert again["turn"]["id"] == "t1"
    assert await history_of(session) == [("user", QUESTION)]


async def test_ten_requests_at_once_with_one_key_are_one_turn(session: Stub[ChatSession]) -> None:
    found = await asyncio.gather(*(session.begin(asked(f"t{n}", key="k"), f"r{n}") for n in range(10)))
    assert {each["turn"]["id"] for each in found} == {"t0"}
    assert [each["claim"] is not None for each in found] == [True] + [False] * 9
    assert len((await session.turns())["turns"]) == 1


async def test_a_repeated_call_of_the_one_who_began_has_the_claim_again(session: Stub[ChatSession]) -> None:
    first = await session.begin(asked("t1", key="k"), "r1")
    again = await session.begin(asked("t1", key="k"), "r1")
    assert again == {**first, "joined": True}
    assert (await session.begin(asked("t1", key="k"), "another"))["claim"] is None


async def test_a_turn_that_has_ended_is_joined_and_not_run_again(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1", key="k")
    await session.finish("t1", attempt, 0, said("x"), "completed")
    again = await session.begin(asked("t1", key="k"), "r9")
    assert (again["turn"]["status"], again["claim"], again["joined"]) == ("completed", None, True)
    assert await history_of(session) == [("user", QUESTION), ("assistant", "x")]


@pytest.mark.parametrize(
    "changed",
    [{"message": "what?"}, {"message": None, "replace": 1}, {"request": {"top_k": 4}}],
)
async def test_a_key_with_another_request_is_refused(session: Stub[ChatSession], changed: dict[str, Any]) -> None:
    await begun(session, "t1", key="k")
    for turn_id in ("t1", "t2"):
        with pytest.raises(RequestReused):
            await session.begin(asked(turn_id, **{"key": "k", **changed}), "r")
    assert len((await session.turns())["turns"]) == 1


async def test_turns_without_a_key_are_all_their_own(session: Stub[ChatSession]) -> None:
    await answer(session, "t1")
    await answer(session, "t2")
    assert len((await session.turns())["turns"]) == 2


async def test_a_question_that_can_not_be_stored_begins_nothing(session: Stub[ChatSession]) -> None:
    with pytest.raises(InvalidArgument):
        await session.begin(asked("t1", "half \ud83d"), "r")
    assert (await session.turns())["turns"] == []
    await answer(session, "t2")


# -- another question while an answer is under way


async def test_a_second_question_waits_and_is_told_its_place(session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    for place in (1, 2):
        found = await session.begin(asked(f"q{place}", f"{place}?"), "r")
        assert (found["turn"]["status"], found["claim"]) == ("queued", None)
        (event,) = await events_of(session, f"q{place}")
        assert (event["type"], event["data"]) == (
            "turn.queued",
            {"turn_id": f"q{place}", "session_id": "s1", "position": place},
        )
    assert await history_of(session) == [("user", QUESTION)]


async def test_more_than_may_wait_are_refused(session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    for turn_id in ("t2", "t3"):
        await session.begin(asked(turn_id), "r")
    with pytest.raises(ObjectConflict):
        await session.begin(asked("t4"), "r")
    assert [turn["id"] for turn in (await session.turns())["turns"]] == ["t3", "t2", "t1"]


async def test_one_that_may_not_wait_is_refused(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    with pytest.raises(ObjectConflict):
        await session.begin(asked("t2", on_conflict="reject"), "r")
    await session.finish("t1", attempt, 0, [], "completed")
    assert (await session.begin(asked("t2", on_conflict="reject"), "r"))["claim"] is not None


async def test_one_that_interrupts_keeps_what_was_written(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.begin(asked("waiting", "never asked"), "r")
    await session.record("t1", attempt, 0, said("half an "))
    found = await session.begin(asked("t2", "stop, what?", on_conflict="interrupt"), "r2")
    assert (found["turn"]["status"], (await session.turn("waiting"))["status"]) == ("queued", "cancelled")
    assert await session.attend("t1", attempt) is False
    assert await session.record("t1", attempt, 1, said("answer")) is False
    await session.finish("t1", attempt, 2, [], "cancelled", usage=USAGE)
    assert (await session.claim("t2", "r2"))["claim"]["history"][-1]["content"] == "half an answer"
    assert await history_of(session) == [("user", QUESTION), ("assistant", "half an answer"), ("user", "stop, what?")]


async def test_one_that_rolls_back_leaves_nothing_of_what_was_under_way(session: Stub[ChatSession]) -> None:
    await answer(session, "t0", "first")
    attempt = await begun(session, "t1", "second?")
    await session.begin(asked("waiting", "third?"), "r")
    await session.record("t1", attempt, 0, said("half"))
    await session.begin(asked("t2", "instead?", on_conflict="rollback"), "r2")
    # Its runner did not hear of it before it was done.
    ended = await session.finish("t1", attempt, 1, [], "completed", finish_reason="stop", usage=USAGE)
    assert (ended["turn"]["status"], ended["turn"]["answer_id"], ended["turn"]["finish_reason"]) == (
        "cancelled",
        None,
        None,
    )
    assert ended["turn"]["usage"] == USAGE
    assert (await session.turn("waiting"))["status"] == "cancelled"
    assert (await session.claim("t2", "r2"))["claim"]["message"] == "instead?"
    assert await history_of(session) == [("user", QUESTION), ("assistant", "first"), ("user", "instead?")]


@pytest.mark.parametrize("on_conflict", ["enqueue", "reject", "interrupt", "rollback"])
async def test_nothing_is_in_the_way_of_the_only_one(session: Stub[ChatSession], on_conflict: OnConflict) -> None:
    found = await session.begin(asked("t1", on_conflict=on_conflict), "r")
    assert found["claim"] is not None
    assert await events_of(session, "t1") == []


# -- claiming


async def test_turns_are_claimed_in_the_order_in_which_they_came(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    for turn_id in ("t2", "t3"):
        await session.begin(asked(turn_id), f"runner of {turn_id}")
    assert [(await session.claim(turn_id, "r"))["claim"] for turn_id in ("t2", "t3")] == [None, None]
    await session.finish("t1", attempt, 0, [], "completed")
    assert (await session.claim("t3", "r"))["claim"] is None
    claiming = await session.claim("t2", "r")
    assert claiming["claim"]["attempt"] == 1
    assert claiming["turn"]["status"] == "in_progress"


async def test_a_turn_is_one_runners_at_a_time(session: Stub[ChatSession]) -> None:
    await session.begin(asked("t1"), "r1")
    assert (await session.claim("t1", "r2"))["claim"] is None
    assert (await session.claim("t1", "r1"))["claim"]["attempt"] == 1


async def test_those_who_wait_claim_as_soon_as_their_time_comes(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    for turn_id in ("t2", "t3"):
        await session.begin(asked(turn_id), "r")
    second, third = (asyncio.ensure_future(session.claim(turn_id, turn_id, 15.0)) for turn_id in ("t2", "t3"))
    await _settled()
    # They keep nobody out.
    await session.record("t1", attempt, 0, said("x"))
    await session.append("system", "beside")
    assert not second.done()
    await session.finish("t1", attempt, 1, [], "completed")
    claim = (await asyncio.wait_for(second, 5))["claim"]
    assert not third.done()
    await session.finish("t2", claim["attempt"], claim["last_event"], [], "failed", error=ERROR)
    assert (await asyncio.wait_for(third, 5))["claim"] is not None


async def test_one_whose_time_does_not_come_may_ask_again(session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    await session.begin(asked("t2"), "r")
    claiming = await session.claim("t2", "r", 0.02)
    assert (claiming["turn"]["status"], claiming["claim"]) == ("queued", None)


async def test_a_waiting_turn_that_is_cancelled_is_waited_for_no_more(session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    await session.begin(asked("t2"), "r")
    waiting = asyncio.ensure_future(session.claim("t2", "r", 15.0))
    await _settled()
    await session.cancel("t2")
    claiming = await asyncio.wait_for(waiting, 5)
    assert (claiming["turn"]["status"], claiming["claim"]) == ("cancelled", None)


# -- telling


async def test_events_are_numbered_from_one(session: Stub[ChatSession], clock: ManualClock) -> None:
    attempt = await begun(session, "t1")
    assert await session.record("t1", attempt, 0, [created(), sources("a")]) is True
    assert await session.record("t1", attempt, 2, said("x")) is True
    assert await session.events("t1") == {
        "events": [
            {"number": 1, "type": "turn.created", "data": {}},
            {"number": 2, "type": "sources", "data": {"sources": [{"id": "a"}]}},
            {"number": 3, "type": "text.delta", "data": {"text": "x"}},
        ],
        "is_over": False,
    }
    assert (await session.turn("t1"))["last_event"] == 3


async def test_what_is_told_again_is_told_once(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    for _ in range(3):
        assert await session.record("t1", attempt, 0, said("a", "b")) is True
    await session.record("t1", attempt, 1, said("b", "c"))
    assert [event["data"]["text"] for event in await events_of(session, "t1")] == ["a", "b", "c"]


@pytest.mark.parametrize("after", [-1, 2, 2**70])
async def test_a_gap_is_refused(session: Stub[ChatSession], after: int) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("a"))
    with pytest.raises(InvalidArgument):
        await session.record("t1", attempt, after, said("b"))
    with pytest.raises(InvalidArgument):
        await session.finish("t1", attempt, after, said("b"), "completed")
    assert len(await events_of(session, "t1")) == 1


@pytest.mark.parametrize(
    "event",
    [
        {"type": "turn.completed", "data": {}},
        {"type": "turn.retrying", "data": {}},
        {"type": "rubbish", "data": {}},
        {"type": "text.delta", "data": {}},
        {"type": "text.delta", "data": {"text": None}},
        {"type": "tool.call", "data": {"id": "a", "name": "x"}},
        {"type": "tool.result", "data": {"name": "x", "result": 1}},
        {"type": "sources", "data": {}},
    ],
)
async def test_an_event_of_which_no_answer_could_be_made_is_refused(
    session: Stub[ChatSession], event: NewEvent
) -> None:
    attempt = await begun(session, "t1")
    with pytest.raises(InvalidArgument):
        await session.record("t1", attempt, 0, [*said("a"), event])
    assert await events_of(session, "t1") == []


async def test_a_runner_whose_turn_is_anothers_tells_nothing(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, [created()])
    assert await session.release("t1", attempt, "ModelUnavailable") is True
    claim = (await session.claim("t1", "r2"))["claim"]
    assert (claim["attempt"], claim["last_event"], claim["is_created"]) == (attempt + 1, 2, True)
    assert await session.record("t1", attempt, 2, said("stale")) is False
    assert await session.attend("t1", attempt) is False
    assert await session.release("t1", attempt, "ModelUnavailable") is False
    ended = await session.finish("t1", attempt, 2, said("stale"), "completed")
    assert ended["turn"]["status"] == "in_progress"
    await session.finish("t1", claim["attempt"], 2, said("fresh"), "completed")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "fresh")]
    assert await types_of(session, "t1") == ["turn.created", "turn.retrying", "text.delta", "turn.completed"]


async def test_a_model_that_writes_for_ever_is_stopped(
    session: Stub[ChatSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_ledger, "TURN_CHARS_MAX", 100)
    attempt = await begun(session, "t1")
    assert await session.record("t1", attempt, 0, said("a" * 50)) is True
    assert await session.record("t1", attempt, 1, said("b" * 50)) is False
    assert await session.record("t1", attempt, 2, said("c")) is False
    ended = await session.finish("t1", attempt, 2, [], "cancelled", usage=USAGE)
    assert (ended["turn"]["status"], ended["turn"]["finish_reason"]) == ("incomplete", "length")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "a" * 50 + "b" * 50)]


# -- ending


async def test_the_answer_its_sources_and_usage_come_with_the_end(
    session: Stub[ChatSession], clock: ManualClock
) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, [created(), sources("a"), *said("be")])
    clock.advance(3)
    ended = await session.finish("t1", attempt, 3, said("cause"), "completed", finish_reason="stop", usage=USAGE)
    assert ended == {
        "turn": {
            "id": "t1",
            "status": "completed",
            "created_at": clock.now() - 3,
            "started_at": clock.now() - 3,
            "ended_at": clock.now(),
            "message_id": 1,
            "answer_id": 2,
            "attempt": 1,
            "last_event": 5,
            "cancel_requested": False,
            "finish_reason": "stop",
            "usage": USAGE,
            "error": None,
        },
        "message_count": 2,
        "last_active_at": clock.now(),
        "expires_at": None,
    }
    message = (await session.history())["messages"][-1]
    assert (message["role"], message["content"], message["tokens"]) == ("assistant", "because", 5)
    assert message["data"] == {
        "turn_id": "t1",
        "sources": [{"id": "a"}],
        "finish_reason": "stop",
        "usage": USAGE,
    }
    assert (await events_of(session, "t1"))[-1] == {
        "number": 5,
        "type": "turn.completed",
        "data": {"turn_id": "t1", "session_id": "s1", "message_id": 2, "usage": USAGE, "finish_reason": "stop"},
    }
    assert await session.usage() == {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


async def test_a_turn_ends_once(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    first = await session.finish("t1", attempt, 0, said("x"), "completed", usage=USAGE)
    for status in ("completed", "failed", "cancelled"):
        assert await session.finish("t1", attempt, 0, said("x"), status, usage=USAGE, error=ERROR) == first
    assert await session.cancel("t1") == first["turn"]
    assert await session.record("t1", attempt, 2, said("y")) is False
    assert await session.release("t1", attempt, "x") is False
    assert len(await events_of(session, "t1")) == 2
    assert await history_of(session) == [("user", QUESTION), ("assistant", "x")]
    assert (await session.usage())["total_tokens"] == 15


async def test_a_failed_turn_leaves_its_question_alone(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("not kept"))
    ended = await session.finish("t1", attempt, 1, [], "failed", error=ERROR)
    assert (ended["turn"]["answer_id"], ended["turn"]["error"]) == (None, ERROR)
    assert (await events_of(session, "t1"))[-1]["data"] == {
        "turn_id": "t1",
        "session_id": "s1",
        **ERROR,
        "usage": None,
    }
    assert await history_of(session) == [("user", QUESTION)]


async def test_a_turn_that_failed_without_saying_why_says_something(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    ended = await session.finish("t1", attempt, 0, [], "failed")
    told = (await events_of(session, "t1"))[-1]["data"]
    assert ended["turn"]["error"] is not None
    assert told["code"] == ended["turn"]["error"]["code"]


async def test_an_incomplete_answer_is_kept_and_says_so(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    ended = await session.finish("t1", attempt, 0, said("half"), "incomplete", error=ERROR)
    assert await history_of(session) == [("user", QUESTION), ("assistant", "half")]
    message = (await session.history())["messages"][-1]
    assert message["data"] == {"turn_id": "t1", "finish_reason": "incomplete"}
    assert (await events_of(session, "t1"))[-1]["data"] == {
        "turn_id": "t1",
        "session_id": "s1",
        "message_id": ended["turn"]["answer_id"],
        "usage": None,
        "reason": "broken_off",
        "error": ERROR,
    }


async def test_a_model_with_nothing_to_say_has_answered(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.finish("t1", attempt, 0, [], "completed")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "")]


async def test_calls_of_tools_are_in_the_history_with_their_results(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    events = [*said("hm"), called("a"), answered("a", 1), *said("one")]
    ended = await session.finish("t1", attempt, 0, events, "completed", usage=USAGE)
    assert await history_of(session) == [("user", QUESTION), ("assistant", "hm"), ("tool", "1"), ("assistant", "one")]
    messages = (await session.history())["messages"]
    assert all(message["data"]["turn_id"] == "t1" for message in messages if message["data"])
    assert [message["tokens"] for message in messages] == [None, None, None, 5]
    assert ended["turn"]["answer_id"] == 4


async def test_an_answer_that_ended_among_its_tools_is_what_called_them(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    events = [called("a"), called("b"), answered("a", 1)]
    ended = await session.finish("t1", attempt, 0, events, "cancelled", usage=USAGE)
    assert await history_of(session) == [("user", QUESTION), ("assistant", ""), ("tool", "1"), ("tool", NO_RESULT)]
    assert ended["turn"]["answer_id"] == 2
    assert (await session.history())["messages"][1]["data"]["finish_reason"] == "cancelled"


async def test_halves_of_characters_do_not_keep_a_turn_from_ending(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("\ud83d"))
    await session.finish("t1", attempt, 1, said("\ude00"), "completed")
    assert (await history_of(session))[-1] == ("assistant", "😀")


async def test_sources_of_an_attempt_that_came_to_nothing_are_not_the_answers(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, [created(), sources("old")])
    await session.release("t1", attempt, "ModelUnavailable")
    claim = (await session.claim("t1", "r2"))["claim"]
    await session.finish("t1", claim["attempt"], claim["last_event"], said("x"), "completed")
    assert "sources" not in (await session.history())["messages"][-1]["data"]


async def test_the_oldest_messages_leave_for_an_answer(objects: LocalBackend) -> None:
    session = objects.namespace(ChatSession).get("acme", "small")
    await session.create(messages_max=3)
    await answer(session, "t1", "1")
    await answer(session, "t2", "2")
    assert await history_of(session) == [("assistant", "1"), ("user", QUESTION), ("assistant", "2")]


async def test_a_question_that_left_while_its_turn_ran_is_still_answered(objects: LocalBackend) -> None:
    session = objects.namespace(ChatSession).get("acme", "tiny")
    await session.create(messages_max=1)
    attempt = await begun(session, "t1")
    await session.append("system", "it takes the place")
    await session.release("t1", attempt, "ModelUnavailable")
    claim = (await session.claim("t1", "r2"))["claim"]
    assert claim["message"] == QUESTION
    await session.finish("t1", claim["attempt"], claim["last_event"], said("x"), "completed")
    assert await history_of(session) == [("assistant", "x")]


# -- stopping


async def test_a_turn_that_waits_is_cancelled_at_once(session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    await session.begin(asked("t2"), "r")
    assert (await session.cancel("t2"))["status"] == "cancelled"
    assert (await session.cancel("t2"))["status"] == "cancelled"
    assert await types_of(session, "t2") == ["turn.queued", "turn.cancelled"]
    assert (await session.claim("t2", "r"))["claim"] is None
    assert await history_of(session) == [("user", QUESTION)]


async def test_the_runner_of_a_turn_that_is_cancelled_is_told_at_once(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    attending = asyncio.ensure_future(session.attend("t1", attempt, 15.0))
    await _settled()
    await session.record("t1", attempt, 0, said("half"))
    await _settled()
    assert not attending.done()
    turn = await session.cancel("t1")
    assert (turn["status"], turn["cancel_requested"]) == ("in_progress", True)
    assert await asyncio.wait_for(attending, 2) is False
    await session.finish("t1", attempt, 1, [], "cancelled", usage=USAGE)
    assert (await session.turn("t1"))["status"] == "cancelled"
    assert await history_of(session) == [("user", QUESTION), ("assistant", "half")]
    assert (await session.usage())["total_tokens"] == 15


async def test_a_turn_that_came_to_its_end_before_it_heard_is_completed(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.cancel("t1")
    ended = await session.finish("t1", attempt, 0, said("all"), "completed", finish_reason="stop")
    assert ended["turn"]["status"] == "completed"


async def test_one_that_is_given_back_when_it_was_to_stop_has_stopped(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.cancel("t1")
    assert await session.release("t1", attempt, "ModelUnavailable") is True
    assert (await session.turn("t1"))["status"] == "cancelled"


async def test_an_answer_that_was_told_is_not_begun_again(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("half"))
    assert await session.release("t1", attempt, "ModelUnavailable") is True
    turn = await session.turn("t1")
    assert (turn["status"], turn["finish_reason"]) == ("incomplete", "ModelUnavailable")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "half")]


async def test_a_turn_is_not_given_back_for_ever(session: Stub[ChatSession]) -> None:
    for attempt in (1, 2):
        assert (await session.begin(asked("t1", attempts_max=2), f"r{attempt}"))["claim"]["attempt"] == attempt
        assert await session.release("t1", attempt, "ModelUnavailable") is True
    turn = await session.turn("t1")
    assert (turn["status"], turn["error"]["code"]) == ("failed", "ModelUnavailable")


# -- once more


async def test_the_last_question_is_answered_again(session: Stub[ChatSession]) -> None:
    await answer(session, "t1", "first")
    attempt = await begun(session, "t2", None)
    assert await history_of(session) == [("user", QUESTION)]
    await session.finish("t2", attempt, 0, said("second"), "completed")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "second")]
    # There is one copy of each, and nothing hidden is left to come back.
    await answer(session, "t3")
    assert len(await history_of(session)) == 4


async def test_a_question_is_edited_and_what_followed_it_gives_way(session: Stub[ChatSession]) -> None:
    for number in (1, 2, 3):
        await answer(session, f"t{number}", f"{number}", f"{number}?")
    found = await session.begin(asked("t4", "other?", replace=3), "r")
    assert [message["content"] for message in found["claim"]["history"]] == ["1?", "1"]
    assert found["claim"]["message"] == "other?"
    await session.finish("t4", 1, 0, said("another"), "completed")
    expected = [("user", "1?"), ("assistant", "1"), ("user", "other?"), ("assistant", "another")]
    assert await history_of(session) == expected


async def test_a_question_further_up_is_asked_again_as_it_was(session: Stub[ChatSession]) -> None:
    for number in (1, 2):
        await answer(session, f"t{number}", f"{number}", f"{number}?")
    attempt = await begun(session, "t3", None, replace=1)
    await session.finish("t3", attempt, 0, said("again"), "completed")
    assert await history_of(session) == [("user", "1?"), ("assistant", "again")]


@pytest.mark.parametrize("status", ["failed", "cancelled", "incomplete"])
@pytest.mark.parametrize("message", [None, "other?"])
async def test_what_gave_way_comes_back_when_nothing_came_of_it(
    session: Stub[ChatSession], message: str | None, status: Any
) -> None:
    await answer(session, "t1", "first")
    before = (await session.history())["messages"]
    attempt = await begun(session, "t2", message, replace=1)
    await session.append("system", "meanwhile")
    await session.finish("t2", attempt, 0, [created()], status, error=ERROR)
    after = (await session.history())["messages"]
    assert after[:2] == before
    assert [message["content"] for message in after[2:]] == ["meanwhile"]
    assert (await session.metadata())["message_count"] == 3


async def test_what_gave_way_stays_away_where_something_came_of_it(session: Stub[ChatSession]) -> None:
    await answer(session, "t1", "first")
    attempt = await begun(session, "t2", None)
    await session.finish("t2", attempt, 0, said("half"), "cancelled")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "half")]


async def test_what_gave_way_comes_back_when_its_turn_is_rolled_back(session: Stub[ChatSession]) -> None:
    await answer(session, "t1", "first")
    attempt = await begun(session, "t2", None)
    await session.record("t2", attempt, 0, said("half"))
    await session.begin(asked("t3", "third?", on_conflict="rollback"), "r3")
    await session.finish("t2", attempt, 1, [], "cancelled")
    await session.claim("t3", "r3")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "first"), ("user", "third?")]


async def test_one_that_is_asked_again_waits_for_the_answer_that_it_replaces(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.begin(asked("t2", None), "r2")
    await session.finish("t1", attempt, 0, said("first"), "completed")
    claim = (await session.claim("t2", "r2"))["claim"]
    assert (claim["message"], claim["history"]) == (QUESTION, [])
    await session.finish("t2", claim["attempt"], claim["last_event"], said("second"), "completed")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "second")]


async def test_there_must_be_a_question_to_answer_again(session: Stub[ChatSession]) -> None:
    await session.append("assistant", "hello")
    for new in (asked("t1", None), asked("t1", "x?", replace=1), asked("t1", "x?", replace=9)):
        with pytest.raises(InvalidArgument):
            await session.begin(new, "r")


async def test_a_question_that_went_while_its_successor_waited_fails_it(session: Stub[ChatSession]) -> None:
    await answer(session, "t1", "first")
    attempt = await begun(session, "t2", "other?", replace=1)
    await session.begin(asked("t3", "third?", replace=1), "r3")  # its own may come to nothing yet
    await session.begin(asked("t4", "fourth?"), "r4")
    await session.finish("t2", attempt, 0, said("x"), "completed")
    claiming = await session.claim("t3", "r3")
    assert (claiming["turn"]["status"], claiming["claim"]) == ("failed", None)
    assert claiming["turn"]["error"]["retryable"] is False
    assert (await session.claim("t4", "r4"))["claim"] is not None
    assert await history_of(session) == [("user", "other?"), ("assistant", "x"), ("user", "fourth?")]


async def test_the_only_question_may_be_rolled_back_by_the_one_that_repeats_it(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.begin(asked("t2", None, on_conflict="rollback"), "r2")
    await session.finish("t1", attempt, 0, [], "cancelled")
    assert (await session.claim("t2", "r2"))["turn"]["status"] == "failed"
    assert await history_of(session) == []


async def test_hidden_messages_count_for_nothing(objects: LocalBackend) -> None:
    session = objects.namespace(ChatSession).get("acme", "small")
    await session.create(messages_max=4)
    await answer(session, "t1", "1", "1?")
    await answer(session, "t2", "2", "2?")
    attempt = await begun(session, "t3", "new?", replace=1)
    for number in range(4):
        await session.append("system", f"{number}")
    assert await history_of(session) == [("system", f"{number}") for number in range(4)]
    await session.finish("t3", attempt, 0, [], "failed", error=ERROR)
    # What comes back is older than all the rest.
    assert await history_of(session) == [("system", f"{number}") for number in range(4)]


# -- following


async def test_readers_that_wait_get_the_next_event_at_once_however_many(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("a"))
    readers = [asyncio.ensure_future(session.events("t1", 1, 15.0)) for _ in range(30)]
    behind = await session.events("t1", 0, 15.0)
    assert [event["number"] for event in behind["events"]] == [1]
    await _settled()
    assert not any(reader.done() for reader in readers)
    await session.record("t1", attempt, 1, said("b"))
    pages = await asyncio.wait_for(asyncio.gather(*readers), 5)
    assert all([event["data"]["text"] for event in page["events"]] == ["b"] for page in pages)


async def test_a_reader_hears_of_the_end_at_once(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    reader = asyncio.ensure_future(session.events("t1", 0, 15.0))
    await _settled()
    await session.finish("t1", attempt, 0, [], "failed", error=ERROR)
    page = await asyncio.wait_for(reader, 5)
    assert ([event["type"] for event in page["events"]], page["is_over"]) == (["error"], True)
    assert await session.events("t1", 1, 15.0) == {"events": [], "is_over": True}
    assert await session.events("t1", 99, 15.0) == {"events": [], "is_over": True}


async def test_a_reader_waits_no_longer_than_it_asks(session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    for wait_s in (0.02, 0.0, -1.0, float("nan")):
        assert await session.events("t1", 0, wait_s) == {"events": [], "is_over": False}


async def test_a_reader_of_one_turn_is_not_answered_for_another(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    await session.begin(asked("t2"), "r")
    reader = asyncio.ensure_future(session.events("t2", 1, 15.0))
    await _settled()
    await session.record("t1", attempt, 0, said("a"))
    await _settled()
    assert not reader.done()
    await session.cancel("t2")
    assert [event["type"] for event in (await asyncio.wait_for(reader, 5))["events"]] == ["turn.cancelled"]


async def test_readers_see_each_event_once_while_it_is_written(session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")

    async def follow() -> str:
        text, after = "", 0
        while True:
            page = await session.events("t1", after, 15.0)
            for event in page["events"]:
                assert event["number"] == after + 1
                after = event["number"]
                text += event["data"].get("text", "")
            if page["is_over"]:
                return text

    readers = [asyncio.ensure_future(follow()) for _ in range(5)]
    for number in range(40):
        await session.record("t1", attempt, number, said(f"{number} "))
    await session.finish("t1", attempt, 40, [], "completed")
    texts = await asyncio.wait_for(asyncio.gather(*readers), 20)
    stored = (await history_of(session))[-1][1]
    assert set(texts) == {stored}


async def test_pages_are_bounded_by_number_and_size(
    session: Stub[ChatSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_ledger, "EVENT_PAGE_MAX", 4)
    monkeypatch.setattr(turn_ledger, "EVENT_PAGE_CHARS_MAX", 100)
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said(*"abcdef", "x" * 200, "y" * 200, "z"))
    await session.finish("t1", attempt, 9, [], "completed")
    pages, after = [], 0
    while True:
        page = await session.events("t1", after)
        pages.append([event["number"] for event in page["events"]])
        after = pages[-1][-1]
        if page["is_over"]:
            break
    assert pages == [[1, 2, 3, 4], [5, 6], [7], [8], [9], [10]]


async def test_readers_write_nothing(objects: LocalBackend, session: Stub[ChatSession]) -> None:
    attempt = await begun(session, "t1")
    before = await session.metadata()
    reader = asyncio.ensure_future(session.events("t1", 0, 15.0))
    await _settled()
    activation = objects.host.activation_of(session.id)
    assert activation is not None
    assert activation.instance is not None
    changed = activation.instance.storage.rows_changed
    await session.events("t1", 0, 0.02)
    assert await session.metadata() == before
    assert activation.instance.storage.rows_changed == changed
    await session.record("t1", attempt, 0, said("x"))
    await reader


async def test_a_waiting_reader_looks_only_when_there_is_news(
    objects: LocalBackend, session: Stub[ChatSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = await begun(session, "t1")
    looks: list[int] = []
    has_news = turn_ledger.TurnLedger.has_news

    def look(self: turn_ledger.TurnLedger, turn_id: str, after: int) -> bool:
        looks.append(after)
        return has_news(self, turn_id, after)

    monkeypatch.setattr(turn_ledger.TurnLedger, "has_news", look)
    reader = asyncio.ensure_future(session.events("t1", 0, 15.0))
    await _settled()
    await session.append("system", "no news of a turn")
    await session.history()
    await _settled()
    assert looks == [0]
    await session.record("t1", attempt, 0, said("x"))
    await reader
    assert looks == [0, 0]


async def test_turns_are_listed_newest_first(session: Stub[ChatSession]) -> None:
    for number in range(5):
        await answer(session, f"t{number}")
    expected: dict[tuple[int, str | None], tuple[list[str], bool]] = {
        (2, None): (["t4", "t3"], True),
        (2, "t3"): (["t2", "t1"], True),
        (2, "t2"): (["t1", "t0"], False),
        (5, None): (["t4", "t3", "t2", "t1", "t0"], False),
        (0, None): (["t4"], True),
        (-3, "t4"): (["t3"], True),
        (1000, "t0"): ([], False),
    }
    pages = {given: await session.turns(*given) for given in expected}
    found = {given: ([turn["id"] for turn in page["turns"]], page["has_more"]) for given, page in pages.items()}
    assert found == expected


async def test_a_page_of_turns_is_bounded(session: Stub[ChatSession], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_ledger, "TURN_PAGE_MAX", 2)
    for number in range(3):
        await answer(session, f"t{number}")
    page = await session.turns(1000)
    assert (len(page["turns"]), page["has_more"]) == (2, True)


# -- the session goes while a turn runs


async def _waiting(session: Stub[ChatSession]) -> tuple[int, list[asyncio.Future[Any]]]:
    """A turn that runs, one that waits, and those who wait for both."""
    attempt = await begun(session, "t1")
    await session.record("t1", attempt, 0, said("half"))
    await session.begin(asked("t2"), "r2")
    waiting: list[asyncio.Future[Any]] = [
        asyncio.ensure_future(session.events("t1", 1, 15.0)),
        asyncio.ensure_future(session.attend("t1", attempt, 15.0)),
        asyncio.ensure_future(session.claim("t2", "r2", 15.0)),
    ]
    await _settled()
    assert not any(each.done() for each in waiting)
    return attempt, waiting


async def _all_not_found(session: Stub[ChatSession], attempt: int) -> None:
    for call in (
        session.events("t1", 1),
        session.attend("t1", attempt),
        session.record("t1", attempt, 1, said("x")),
        session.finish("t1", attempt, 1, [], "completed"),
        session.claim("t2", "r2"),
        session.cancel("t1"),
    ):
        with pytest.raises(ObjectNotFound):
            await call


async def test_a_session_that_is_deleted_takes_its_turns_along(session: Stub[ChatSession]) -> None:
    attempt, waiting = await _waiting(session)
    assert await asyncio.wait_for(session.delete(), 5) is True
    for each in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5):
        assert isinstance(each, ObjectNotFound), each
    await _all_not_found(session, attempt)
    await session.create()
    await _all_not_found(session, attempt)
    await answer(session, "t3")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "because")]


async def test_a_session_that_is_made_anew_after_it_expired_knows_no_old_turn(
    objects: LocalBackend, clock: ManualClock
) -> None:
    session = objects.namespace(ChatSession).get("acme", "s2")
    await session.create(ttl_s=60)
    attempt, waiting = await _waiting(session)
    clock.advance(60)
    await _all_not_found(session, attempt)
    await session.create()
    for each in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5):
        assert isinstance(each, ObjectNotFound), each
    await _all_not_found(session, attempt)
    assert (await session.turns())["turns"] == []
    assert await history_of(session) == []


async def test_a_session_that_expires_takes_its_turns_along(objects: LocalBackend, clock: ManualClock) -> None:
    session = objects.namespace(ChatSession).get("acme", "s2")
    await session.create(ttl_s=5)
    attempt, waiting = await _waiting(session)
    clock.advance(5)
    await ring(objects, clock)
    for each in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5):
        assert isinstance(each, ObjectNotFound), each
    await _all_not_found(session, attempt)


async def test_a_session_does_not_expire_under_its_runner(objects: LocalBackend, clock: ManualClock) -> None:
    session = objects.namespace(ChatSession).get("acme", "s2")
    await session.create(ttl_s=5)
    clock.advance(4)
    attempt = await begun(session, "t1")
    for number in range(3):
        clock.advance(4)
        await ring(objects, clock)
        assert await session.record("t1", attempt, number, said("x")) is True
    clock.advance(4)
    assert await session.attend("t1", attempt) is True
    clock.advance(4)
    await session.finish("t1", attempt, 3, [], "completed")
    assert (await session.metadata())["expires_at"] == clock.now() + 5


async def test_a_session_that_is_cleared_ends_its_turns_and_keeps_nothing_of_them(
    session: Stub[ChatSession],
) -> None:
    await answer(session, "t0", "old")
    attempt, waiting = await _waiting(session)
    reader, attending, claiming = waiting
    cleared = await session.clear()
    assert cleared["message_count"] == 0
    assert await session.clear() == cleared
    assert await types_of(session, "t2") == ["turn.queued", "turn.cancelled"]
    assert await asyncio.wait_for(attending, 5) is False
    assert (await asyncio.wait_for(claiming, 5))["turn"]["status"] == "cancelled"
    await session.finish("t1", attempt, 1, said("late"), "completed", usage=USAGE)
    assert (await asyncio.wait_for(reader, 5))["is_over"] is True
    assert await history_of(session) == []
    # What was told before is not told any more.
    assert await session.events("t0") == {"events": [], "is_over": True}
    await answer(session, "t3")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "because")]


async def test_a_cleared_session_does_not_bring_back_what_had_given_way(session: Stub[ChatSession]) -> None:
    await answer(session, "t0", "old")
    attempt = await begun(session, "t1", None)
    await session.clear()
    await session.finish("t1", attempt, 0, [], "failed", error=ERROR)
    assert await history_of(session) == []


async def test_what_was_used_is_counted_before_a_session_is_deleted(
    objects: LocalBackend, session: Stub[ChatSession]
) -> None:
    await answer(session, "t1")
    await session.delete()
    (day,) = await objects.namespace(TokenUsage).get("acme", USAGE_NAME).days("2000-01-01", "2100-01-01")
    assert (day["turns"], day["input_tokens"], day["output_tokens"]) == (1, 10, 5)


async def test_a_session_stays_while_what_it_used_can_not_be_counted(
    objects: LocalBackend, session: Stub[ChatSession]
) -> None:
    await answer(session, "t1")
    with refusing(objects, TokenUsage, "add"), pytest.raises(ObjectOverloaded):
        await session.delete()
    assert await history_of(session) == [("user", QUESTION), ("assistant", "because")]
    assert await session.delete() is True


async def test_rows_of_old_turns_go_and_their_keys_with_them(
    session: Stub[ChatSession], objects: LocalBackend, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_ledger, "ENDED_KEPT_MIN", 2)
    for number in range(4):
        attempt = await begun(session, f"t{number}", key=f"k{number}")
        await session.finish(f"t{number}", attempt, 0, [], "completed")
    clock.advance(turn_ledger.ENDED_KEPT_S + 1)
    await ring(objects, clock)
    await answer(session, "t4")
    assert [turn["id"] for turn in (await session.turns())["turns"]] == ["t4", "t3", "t2", "t1"]
    assert (await session.begin(asked("again1", key="k1"), "r"))["joined"] is True
    assert (await session.begin(asked("again0", key="k0"), "r"))["joined"] is False
