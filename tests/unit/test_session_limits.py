"""Do turns count as use of a session, and their messages towards what it keeps?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import ChatSession, Directory, LocalBackend, ObjectNotFound, TokenUsage, TurnQueue
from actors.runtime.clock import ManualClock
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.turn import Claim, NewEvent, NewTurn, Usage
from tests.turns import asked
from tests.unit.objects_fixtures import Hibernating, ring

USAGE: Usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7, "estimated": False}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000_000_000.0)


@pytest.fixture(params=[LocalBackend, Hibernating], ids=["resident", "hibernating"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[LocalBackend]:
    classes = [ChatSession, Directory, TurnQueue, TokenUsage]
    backend = request.param(tmp_path, classes, settings=HostSettings(slots=4), clock=clock)
    yield backend
    backend.close()


@pytest.fixture
def session(objects: LocalBackend) -> Stub[ChatSession]:
    return objects.namespace(ChatSession).get("acme", "s1")


def _new(number: int, message: str = "Why?") -> NewTurn:
    return asked(f"t{number:024x}", message)


async def _begun(session: Stub[ChatSession], number: int) -> Claim:
    claim: Claim | None = (await session.begin(_new(number), "runner"))["claim"]
    assert claim is not None
    return claim


async def _answered(session: Stub[ChatSession], number: int, *events: NewEvent) -> None:
    claim = await _begun(session, number)
    told: list[NewEvent] = [*events, {"type": "text.delta", "data": {"text": f"answer {number}"}}]
    await session.finish(claim["turn_id"], claim["attempt"], 0, told, "completed", finish_reason="stop", usage=USAGE)


def _tool(name: str) -> list[NewEvent]:
    return [
        {"type": "tool.call", "data": {"id": name, "name": "kv_get", "arguments": "{}"}},
        {"type": "tool.result", "data": {"id": name, "name": "kv_get", "result": 1}},
    ]


async def test_a_turn_that_begins_and_one_that_ends_put_expiry_off(
    session: Stub[ChatSession], clock: ManualClock
) -> None:
    await session.create(ttl_s=10)
    for number in range(1, 4):
        clock.advance(9)
        claim = await _begun(session, number)
        assert (await session.metadata())["expires_at"] == clock.now() + 10
        clock.advance(9)
        ended = await session.finish(claim["turn_id"], claim["attempt"], 0, [], "completed", finish_reason="stop")
        assert ended["expires_at"] == clock.now() + 10
    clock.advance(10)
    with pytest.raises(ObjectNotFound):
        await session.metadata()


async def test_a_session_does_not_expire_under_a_runner_that_attends_to_it(
    session: Stub[ChatSession], clock: ManualClock, objects: LocalBackend
) -> None:
    await session.create(ttl_s=10)
    claim = await _begun(session, 1)
    for _ in range(10):
        clock.advance(3)
        assert await session.attend(claim["turn_id"], claim["attempt"])
        await ring(objects, clock)
    ended = await session.finish(claim["turn_id"], claim["attempt"], 0, [], "completed", finish_reason="stop")
    assert ended["turn"]["status"] == "completed"


async def test_following_a_turn_does_not_put_expiry_off(session: Stub[ChatSession], clock: ManualClock) -> None:
    await session.create(ttl_s=10)
    await _answered(session, 1)
    clock.advance(9)
    await session.events("t" + f"{1:024x}")
    await session.turns()
    await session.usage()
    await session.transcript()
    clock.advance(1)
    with pytest.raises(ObjectNotFound):
        await session.usage()


async def test_questions_answers_and_tools_messages_all_count(session: Stub[ChatSession]) -> None:
    await session.create(messages_max=6)
    await _answered(session, 1)
    await _answered(session, 2, *_tool("a"))
    # Question, call, result and answer, and the first two.
    messages = (await session.history())["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user", "assistant", "tool", "assistant"]
    assert (await session.metadata())["message_count"] == 6
    await _answered(session, 3)
    messages = (await session.history())["messages"]
    assert [message["id"] for message in messages] == [3, 4, 5, 6, 7, 8]
    await session.append("user", "by itself")
    messages = (await session.history())["messages"]
    assert [message["id"] for message in messages] == [4, 5, 6, 7, 8, 9]
    assert (await session.metadata())["message_count"] == 6


async def test_a_turn_of_more_messages_than_are_kept_leaves_its_newest(session: Stub[ChatSession]) -> None:
    await session.create(messages_max=3)
    await _answered(session, 1, *_tool("a"), *_tool("b"), *_tool("c"))
    messages = (await session.history())["messages"]
    assert [message["id"] for message in messages] == [6, 7, 8]
    assert messages[-1]["content"] == "answer 1"
    assert (await session.metadata())["message_count"] == 3
