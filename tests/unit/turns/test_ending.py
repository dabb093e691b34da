"""Does a turn end once, and is its answer in the history, and nothing else?"""

from __future__ import annotations

from actors import (
    ChatSession,
    LocalBackend,
)
from actors.message import NO_RESULT
from actors.runtime.clock import ManualClock
from actors.runtime.namespace import Stub
from tests.turns import (
    ERROR,
    QUESTION,
    USAGE,
    answer,
    answered,
    begun,
    called,
    created,
    events_of,
    history_of,
    said,
    sources,
)


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
