"""Can messages of a session be added together, listed either way, removed, and found by the turn they belong to?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors import ChatSession
from actors.message import NewMessage
from actors.runtime import RequestReused
from actors.runtime.namespace import Stub
from tests.unit.handles import EchoModel
from tests.unit.talk import Talk, question, talk_at

MESSAGES: list[NewMessage] = [{"role": "user", "content": word} for word in ("one", "two", "three")]


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    with talk_at(tmp_path) as talk:
        yield talk


async def new_session(talk: Talk) -> Stub[ChatSession]:
    return talk.sessions.get("acme", await talk.new_session())


async def numbers(
    session: Stub[ChatSession], limit: int = 10, after: int | None = None, *, newest: bool = False
) -> list[int]:
    return [message["id"] for message in (await session.listed(limit, after, newest_first=newest))["messages"]]


async def test_messages_are_added_together_and_once(talk: Talk) -> None:
    session = await new_session(talk)
    for _ in range(2):
        added = await session.extend.once("request")(MESSAGES)
        assert [message["content"] for message in added["messages"]] == ["one", "two", "three"]
        assert added["message_count"] == 3
    assert await numbers(session) == [1, 2, 3]
    with pytest.raises(RequestReused):
        await session.extend.once("request")(MESSAGES[:1])


async def test_of_too_many_messages_the_oldest_leave(talk: Talk) -> None:
    session = talk.objects.namespace(ChatSession).get("acme", talk.sessions.new_id())
    await session.create(messages_max=2)
    assert (await session.extend(MESSAGES))["message_count"] == 2
    assert await numbers(session) == [2, 3]


async def test_messages_are_listed_behind_any_of_them_in_either_order(talk: Talk) -> None:
    session = await new_session(talk)
    await session.extend(MESSAGES)
    assert await numbers(session, 2) == [1, 2]
    assert await numbers(session, 2, 2) == [3]
    assert await numbers(session, 2, newest=True) == [3, 2]
    assert await numbers(session, 2, 2, newest=True) == [1]
    assert (await session.listed(2))["has_more"]
    assert not (await session.listed(3))["has_more"]


async def test_a_message_that_was_removed_is_gone_for_good(talk: Talk) -> None:
    session = await new_session(talk)
    await session.extend(MESSAGES)
    for _ in range(2):
        assert (await session.remove(2))["message_count"] == 2
    assert await numbers(session) == [1, 3]
    assert (await session.extend(MESSAGES[:1]))["messages"][0]["id"] == 4


async def test_an_answer_that_called_tools_goes_with_their_results_and_no_others(talk: Talk) -> None:
    session = await new_session(talk)
    for turn_id in ("t1", "t2"):
        calls = [{"id": "c1", "name": "f", "arguments": "{}"}]
        await session.append("assistant", "", data={"turn_id": turn_id, "tool_calls": calls})
        await session.append("tool", "1", data={"turn_id": turn_id, "tool_call_id": "c1", "name": "f"})
    await session.remove(1)
    assert await numbers(session) == [3, 4]


async def test_a_turn_is_found_with_its_request_and_what_led_to_it(talk: Talk) -> None:
    chat = talk.replica(EchoModel("Because."))
    session_id = await talk.new_session()
    session = talk.sessions.get("acme", session_id)
    turn_id = "t" + "0" * 24
    await session.extend(MESSAGES[:1])
    asked = question(session_id=session_id, turn_id=turn_id, client={"a": 1}, instructions="Be brief.")
    await talk.answer(chat, replace(asked, leading=tuple(MESSAGES[1:])))
    answered = await session.answered(turn_id)
    assert answered["turn"]["status"] == "completed"
    assert answered["request"]["client"] == {"a": 1}
    assert answered["request"]["instructions"] == "Be brief."
    assert [message["content"] for message in answered["messages"]] == ["two", "three", "Why?", "Because."]


async def test_what_a_turns_client_wanted_to_find_again_can_be_forgotten(talk: Talk) -> None:
    chat = talk.replica(EchoModel("Because."))
    session_id = await talk.new_session()
    session = talk.sessions.get("acme", session_id)
    turns = [f"t{n}" + "0" * 23 for n in range(3)]
    for turn_id in turns[:2]:
        await talk.answer(chat, question(session_id=session_id, turn_id=turn_id, client={"a": 1}))
    await talk.answer(chat, question(session_id=session_id, turn_id=turns[2]))
    assert await session.disown(turns[0]) == 1
    assert "client" not in (await session.answered(turns[0]))["request"]
    assert await session.disown(turns[1]) == 0
