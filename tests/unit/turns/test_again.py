"""What becomes of a question that is answered again, or gives way to another?"""

from __future__ import annotations

from typing import Any

import pytest

from actors import (
    ChatSession,
    InvalidArgument,
    LocalBackend,
)
from actors.runtime.namespace import Stub
from tests.turns import (
    ERROR,
    QUESTION,
    answer,
    asked,
    begun,
    created,
    history_of,
    said,
)


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
