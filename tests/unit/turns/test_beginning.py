"""Is a turn begun once, and what becomes of another question while an answer is under way?"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors import (
    ChatSession,
    InvalidArgument,
    LocalBackend,
    ObjectConflict,
    ObjectNotFound,
)
from actors.message import NewMessage
from actors.runtime import RequestReused
from actors.runtime.clock import ManualClock
from actors.runtime.namespace import Stub
from actors.turn import OnConflict
from tests.turns import (
    QUESTION,
    USAGE,
    answer,
    asked,
    begun,
    events_of,
    history_of,
    said,
)

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
        "told": None,
        "history": [],
        "older": None,
    }
    turn = await session.turn("t1")
    assert turn == found["turn"]
    assert (turn["status"], turn["message_id"], turn["started_at"]) == ("in_progress", 1, clock.now())
    assert await history_of(session) == [("user", QUESTION)]


async def test_a_session_can_be_made_with_its_first_turn_or_not_at_all(objects: LocalBackend) -> None:
    sessions = objects.namespace(ChatSession)
    opened = await sessions.get("acme", "with").open(asked("t1"), "r1", user_id="ann")
    assert opened["session"]["user_id"] == "ann"
    assert opened["begun"]["turn"]["status"] == "in_progress"
    assert await history_of(sessions.get("acme", "with")) == [("user", QUESTION)]

    with pytest.raises(InvalidArgument):
        await sessions.get("acme", "without").open(asked("t1", None), "r1", user_id="ann")
    with pytest.raises(ObjectNotFound):
        await sessions.get("acme", "without").metadata()


async def test_a_session_that_is_made_with_the_same_turn_twice_has_it_once(objects: LocalBackend) -> None:
    session = objects.namespace(ChatSession).get("acme", "s")
    first = await session.open(asked("t1"), "r1")
    again = await session.open(asked("t1"), "r2")
    assert again["begun"]["joined"]
    assert again["session"]["created_at"] == first["session"]["created_at"]
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


async def test_what_leads_to_a_question_comes_into_the_history_with_it(session: Stub[ChatSession]) -> None:
    leading: list[NewMessage] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hm"}]
    await begun(session, "t1")
    await session.begin(asked("t2", "and then?", leading=leading), "r2")
    assert await history_of(session) == [("user", QUESTION)]
    await session.finish("t1", 1, 0, said("because"), "completed")
    claim = (await session.claim("t2", "r2"))["claim"]
    assert claim is not None
    assert [message["content"] for message in claim["history"]] == [QUESTION, "because", "be brief", "hm"]
    found = await session.answered("t2")
    assert [message["content"] for message in found["messages"]] == ["be brief", "hm", "and then?"]
    with pytest.raises(RequestReused):
        await session.begin(asked("t2", "and then?"), "r2")
    # It goes with the question.
    await session.begin(asked("t3", "no", on_conflict="rollback"), "r3")
    await session.finish("t2", claim["attempt"], 1, said("x"), "completed")
    assert await history_of(session) == [("user", QUESTION), ("assistant", "because")]


async def test_what_can_not_be_stored_in_front_of_a_question_begins_nothing(session: Stub[ChatSession]) -> None:
    await begun(session, "t1")
    with pytest.raises(Exception, match="surrogates"):
        await session.begin(asked("t2", leading=[{"role": "user", "content": "\ud83d"}]), "r2")
    assert len((await session.turns())["turns"]) == 1


async def test_a_turn_that_follows_another_is_refused_where_a_third_has_begun_since(
    session: Stub[ChatSession],
) -> None:
    await answer(session, "t1")
    found = await asyncio.gather(
        *(session.begin(asked(f"t{n}", follows="t1"), f"r{n}") for n in (2, 3)), return_exceptions=True
    )
    assert [isinstance(each, ObjectConflict) for each in found] == [False, True]
    # The one that was first is the same when it comes again, whatever has begun meanwhile.
    await session.finish("t2", 1, 0, said("x"), "completed")
    await answer(session, "t4")
    assert (await session.begin(asked("t2", follows="t1"), "r2"))["joined"] is True
    assert [turn["id"] for turn in (await session.turns())["turns"]] == ["t4", "t2", "t1"]


async def test_nothing_can_follow_a_turn_that_is_not_there(session: Stub[ChatSession]) -> None:
    with pytest.raises(ObjectConflict):
        await session.begin(asked("t1", follows="t0"), "r1")
    assert await history_of(session) == []


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
