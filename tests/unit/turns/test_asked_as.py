"""Is the message found that was asked with a key, as it stands in the history now?"""

from __future__ import annotations

import pytest

from actors import ChatSession, ObjectNotFound
from actors.runtime.namespace import Stub
from actors.turn import FinalStatus
from tests.turns import asked

KEY = "ui_" + "a" * 64


async def _begin(session: Stub[ChatSession], number: int, key: str | None, replace: int | None = None) -> str:
    turn_id = f"t{number:024x}"
    await session.begin(asked(turn_id, f"question {number}", key=key, replace=replace), "runner")
    return turn_id


async def _end(session: Stub[ChatSession], turn_id: str, status: FinalStatus = "completed") -> None:
    await session.finish(turn_id, 1, 0, [], status, finish_reason="stop")


async def test_the_newest_message_that_was_asked_as_it_is_found(session: Stub[ChatSession]) -> None:
    assert await session.asked_as(KEY) is None
    await _end(session, await _begin(session, 1, KEY))
    assert await session.asked_as(KEY) == 1
    await _end(session, await _begin(session, 2, f"{KEY}-again", replace=1))
    replaced = await session.asked_as(KEY)
    history = (await session.history())["messages"]
    assert [(message["id"], message["content"]) for message in history][:1] == [(replaced, "question 2")]


async def test_other_keys_are_other_messages(session: Stub[ChatSession]) -> None:
    for number, key in enumerate((None, f"{KEY}b", KEY[:-1], f"{KEY}.x", f"{KEY},x", "ui_" + "b" * 64), start=1):
        await _end(session, await _begin(session, number, key))
    assert await session.asked_as(KEY) is None


async def test_while_a_message_gives_way_the_one_in_its_place_is_found_and_after_a_failure_the_old_one(
    session: Stub[ChatSession],
) -> None:
    await _end(session, await _begin(session, 1, KEY))
    running = await _begin(session, 2, f"{KEY}-2", replace=1)
    during = await session.asked_as(KEY)
    assert during not in (None, 1)
    await _end(session, running, "failed")
    assert await session.asked_as(KEY) == 1


async def test_a_message_that_is_gone_is_not_found(session: Stub[ChatSession]) -> None:
    await _end(session, await _begin(session, 1, KEY))
    await session.clear()
    assert await session.asked_as(KEY) is None
    await session.delete()
    with pytest.raises(ObjectNotFound):
        await session.asked_as(KEY)
