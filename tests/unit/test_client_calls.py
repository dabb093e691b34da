"""Does a session keep the calls that its client is to run, and what came of them as a turn of its own?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import ChatSession, InvalidArgument, turn_claims
from actors.message import Message, NewMessage
from actors.runtime.namespace import Stub
from actors.turn import NewEvent
from tests.turns import USAGE, answered, asked, called, said
from tests.unit.talk import Talk, talk_at

RESULT_OF = {"id": "c1", "name": "look_up"}


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    with talk_at(tmp_path) as talk:
        yield talk


@pytest.fixture
async def session(talk: Talk) -> Stub[ChatSession]:
    return talk.sessions.get("acme", await talk.new_session())


async def ran(
    session: Stub[ChatSession], turn_id: str, message: str, *events: NewEvent, request: dict[str, Any] | None = None
) -> None:
    await session.begin(asked(turn_id, message, request=request), "runner")
    await session.finish(turn_id, 1, 0, events, "completed", finish_reason="stop", usage=USAGE)


def for_client(call_id: str) -> NewEvent:
    event = called(call_id, "look_up")
    return {**event, "data": {**event["data"], "for_client": True}}


async def messages_of(session: Stub[ChatSession]) -> list[Message]:
    messages: list[Message] = (await session.history())["messages"]
    return messages


async def test_a_call_waits_for_a_turn_with_its_result(session: Stub[ChatSession]) -> None:
    await ran(session, "t1", "why?", called("own"), for_client("c1"), answered("own", 1))
    assert [message["role"] for message in await messages_of(session)] == ["user", "assistant", "tool"]
    begun = await session.begin(asked("t2", "found, not as JSON", request={"result_of": RESULT_OF}), "runner")
    assert begun["claim"]["message"] == "found, not as JSON"
    result = (await messages_of(session))[-1]
    assert (result["id"], result["role"], result["content"]) == (
        begun["claim"]["message_id"],
        "tool",
        "found, not as JSON",
    )
    assert result["data"] == {"turn_id": "t2", "tool_call_id": "c1", "name": "look_up", "for_client": True}
    assert [message["id"] for message in begun["claim"]["history"]] == [1, 2, 3]


async def test_a_runner_gets_all_since_the_users_last_message(
    session: Stub[ChatSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_claims, "HISTORY_MESSAGES_MAX", 2)
    await session.extend([{"role": "user", "content": "before"}])
    await ran(session, "t0", "why?", for_client("c1"))
    for number in range(1, 4):
        await ran(session, f"t{number}", "found", for_client("c1"), request={"result_of": RESULT_OF})
    claim = (await session.begin(asked("t4", "found", request={"result_of": RESULT_OF}), "runner"))["claim"]
    assert [message["role"] for message in claim["history"]] == ["user", "assistant", *["tool", "assistant"] * 3]
    await session.finish("t4", 1, 0, said("So."), "completed", finish_reason="stop", usage=USAGE)
    claim = (await session.begin(asked("t5", "And?"), "runner"))["claim"]
    # Half a turn is of no use.
    assert (claim["history"], claim["older"]["turns"], claim["older"]["messages"]) == ([], 2, 11)


async def test_a_question_that_is_asked_again_takes_the_calls_and_their_results_back(
    session: Stub[ChatSession],
) -> None:
    await ran(session, "t1", "why?", for_client("c1"))
    await ran(session, "t2", "found", *said("So."), request={"result_of": RESULT_OF})
    await session.begin(asked("t3", None), "runner")
    await session.finish("t3", 1, 0, said("Because."), "completed", finish_reason="stop", usage=USAGE)
    assert [message["content"] for message in await messages_of(session)] == ["why?", "Because."]


async def test_a_result_that_no_answer_followed_gives_way_to_the_next(session: Stub[ChatSession]) -> None:
    await ran(session, "t1", "why?", called("own"), for_client("c1"), for_client("c2"), answered("own", 1))
    other: NewMessage = {"role": "tool", "content": "first", "data": {"tool_call_id": "c2", "for_client": True}}
    for turn_id in ("t2", "t3"):
        await session.begin(asked(turn_id, turn_id, leading=[other], request={"result_of": RESULT_OF}), "runner")
        assert [message["content"] for message in await messages_of(session)] == ["why?", "", "1", "first", turn_id]
        await session.finish(turn_id, 1, 0, [], "failed")
    await ran(session, "t4", "found", *said("So."), request={"result_of": RESULT_OF})
    # What was answered stays.
    await ran(session, "t5", "late", request={"result_of": RESULT_OF})
    contents = [message["content"] for message in await messages_of(session)]
    assert contents == ["why?", "", "1", "first", "found", "So.", "late", ""]


async def test_a_call_is_removed_with_its_result_and_no_other(session: Stub[ChatSession]) -> None:
    for number in (1, 3):
        await ran(session, f"t{number}", "why?", for_client("c1"))
        await ran(session, f"t{number + 1}", "found", *said("So."), request={"result_of": RESULT_OF})
    await session.remove(2)
    roles = [message["role"] for message in await messages_of(session)]
    assert roles == ["user", "assistant", "user", "assistant", "tool", "assistant"]


async def test_messages_are_added_with_what_belongs_to_them(session: Stub[ChatSession]) -> None:
    await session.extend([{"role": "tool", "content": "found", "data": {"tool_call_id": "c1"}}])
    assert (await messages_of(session))[0]["data"] == {"tool_call_id": "c1"}


async def test_a_copy_may_end_with_a_call_that_its_client_is_to_run_and_with_no_other(
    talk: Talk, session: Stub[ChatSession]
) -> None:
    await ran(session, "t1", "why?", called("own"), answered("own", 1), for_client("c1"))
    await ran(session, "t2", "found", *said("So."), request={"result_of": RESULT_OF})
    assert [message["role"] for message in await messages_of(session)][2:5] == ["tool", "assistant", "tool"]
    forked = await talk.sessions.fork("acme", session.id.name, before=5)
    assert forked["message_count"] == 4
    with pytest.raises(InvalidArgument):
        await talk.sessions.fork("acme", session.id.name, before=3)
