"""Does a client's own name for a conversation lead to one session, whoever comes first?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import ChatSession, Directory, KeyValue, ObjectNotFound
from actors.runtime.clock import ManualClock
from deployments.activity import ActivityLog
from deployments.chats import KEPT_S, REFRESHED_AFTER_S, Chats
from deployments.sessions import Sessions
from tests.unit.handles import FailingObjects, tenant

CHAT = "aBc-123 🐟"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000_000_000.0)


@pytest.fixture
def objects(tmp_path: Path, clock: ManualClock) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, clock, classes=[ChatSession, Directory, KeyValue])
    yield objects
    objects.close()


@pytest.fixture
def sessions(objects: FailingObjects, clock: ManualClock) -> Sessions:
    tenants = {"acme": tenant("acme"), "demo": tenant("demo")}
    return Sessions(objects, tenants, ActivityLog(objects), clock.now)


@pytest.fixture
def chats(objects: FailingObjects, sessions: Sessions, clock: ManualClock) -> Chats:
    return Chats(objects, sessions, clock.now)


async def _listed(sessions: Sessions, name: str = "acme") -> list[str]:
    page = await sessions.page(name, limit=100, after=None, user_id=None)
    return [session["id"] for session in page["sessions"]]


async def test_a_chat_has_no_session_until_it_is_made_and_the_same_from_then_on(
    chats: Chats, sessions: Sessions
) -> None:
    assert await chats.find("acme", CHAT) is None
    assert await _listed(sessions) == []
    made = await chats.make("acme", CHAT, user_id="ann")
    assert await chats.find("acme", CHAT) == made
    assert (await sessions.metadata("acme", made))["user_id"] == "ann"
    assert await chats.find("acme", CHAT + "4") is None
    assert await chats.find("demo", CHAT) is None


async def test_of_many_who_come_first_all_get_one_session_and_no_other_is_left(
    chats: Chats, sessions: Sessions
) -> None:
    made = await asyncio.gather(*[chats.make("acme", CHAT, user_id=None) for _ in range(10)])
    assert len(set(made)) == 1
    assert await _listed(sessions) == [made[0]]


async def test_a_session_that_has_gone_gives_way_to_one_new_one(chats: Chats, sessions: Sessions) -> None:
    first = await chats.make("acme", CHAT, user_id=None)
    await sessions.delete("acme", first)
    again = await asyncio.gather(*[chats.make("acme", CHAT, user_id=None, instead_of=first) for _ in range(3)])
    assert len(set(again)) == 1
    assert await chats.find("acme", CHAT) == again[0] != first
    assert await _listed(sessions) == [again[0]]


async def test_a_sessions_own_id_is_that_session_and_none_is_made_for_it(chats: Chats, sessions: Sessions) -> None:
    session_id = (await sessions.create("acme"))["id"]
    assert await chats.find("acme", session_id) == session_id
    with pytest.raises(ObjectNotFound):
        await chats.make("acme", session_id, user_id=None, instead_of=session_id)
    assert await _listed(sessions) == [session_id]


async def test_a_chat_is_remembered_for_as_long_as_it_is_used(
    chats: Chats, clock: ManualClock, objects: FailingObjects
) -> None:
    made = await chats.make("acme", CHAT, user_id=None)
    idle = await chats.make("acme", "idle", user_id=None)
    for _ in range(int(2 * KEPT_S / REFRESHED_AFTER_S)):
        clock.advance(REFRESHED_AFTER_S + 1)
        assert await chats.find("acme", CHAT) == made
    assert await chats.find("acme", "idle") is None
    assert await chats.make("acme", "idle", user_id=None, instead_of=idle) != idle


async def test_a_chat_in_use_is_not_written_each_time(
    chats: Chats, clock: ManualClock, objects: FailingObjects
) -> None:
    await chats.make("acme", CHAT, user_id=None)
    objects.calls.clear()
    for _ in range(3):
        clock.advance(3_600)
        await chats.find("acme", CHAT)
    assert objects.calls == [("KeyValue", "get")] * 3
