"""Does a tenant's listing learn what happened in its sessions, in batches, and is losing the news harmless?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import ChatSession, Directory, InvalidArgument, ObjectOverloaded
from actors.directory import DIRECTORY_NAME
from actors.runtime.call import Call, Reply
from actors.runtime.object_id import ObjectId
from actors.session_views import Appended
from deployments.activity import GATHERED_MAX, ActivityLog
from deployments.sessions import Sessions
from tests.unit.handles import FailingObjects, tenant

NOTE = ("Directory", "note_activity")


class Listening(FailingObjects):
    """Says when a directory was told."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir, classes=[ChatSession, Directory])
        self.told = asyncio.Event()

    async def send(self, object_id: ObjectId, call: Call) -> Reply:
        try:
            return await super().send(object_id, call)
        finally:
            if call[3] == "note_activity":
                self.told.set()


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[Listening]:
    objects = Listening(tmp_path)
    yield objects
    objects.close()


@pytest.fixture
def activity(objects: Listening) -> ActivityLog:
    return ActivityLog(objects)


def _appended(message_count: int, *, at: float = 1_000_000_000.0) -> Appended:
    return {
        "id": message_count,
        "created_at": at,
        "message_count": message_count,
        "last_active_at": at,
        "expires_at": None,
    }


async def _enter(objects: Listening, *session_ids: str, tenant_name: str = "acme") -> None:
    for session_id in session_ids:
        metadata = await objects.namespace(ChatSession).get(tenant_name, session_id).create()
        await objects.namespace(Directory).get(tenant_name, DIRECTORY_NAME).put(metadata)


async def _counts(objects: Listening, tenant_name: str = "acme") -> dict[str, int]:
    page = await objects.namespace(Directory).get(tenant_name, DIRECTORY_NAME).page(limit=100)
    return {session["id"]: session["message_count"] for session in page["sessions"]}


async def test_the_listing_is_told_a_moment_later_without_being_asked(
    objects: Listening, activity: ActivityLog
) -> None:
    await _enter(objects, "s1")
    activity.note("acme", "s1", _appended(3))
    assert NOTE not in objects.calls
    async with asyncio.timeout(10):
        await objects.told.wait()
    assert await _counts(objects) == {"s1": 3}


async def test_much_news_is_told_in_one_call_a_tenant(objects: Listening, activity: ActivityLog) -> None:
    await _enter(objects, "s1", "s2")
    await _enter(objects, "s1", tenant_name="demo")
    for message_count in range(1, 101):
        activity.note("acme", "s1", _appended(message_count))
        activity.note("acme", "s2", _appended(2 * message_count))
        activity.note("demo", "s1", _appended(7))
    await activity.tell("acme")
    await activity.tell("demo")
    assert objects.calls.count(NOTE) == 2
    assert await _counts(objects) == {"s1": 100, "s2": 200}
    assert await _counts(objects, "demo") == {"s1": 7}


async def test_telling_without_news_calls_nobody(objects: Listening, activity: ActivityLog) -> None:
    await activity.tell("acme")
    activity.note("acme", "s1", _appended(1))
    await activity.tell("acme")
    await activity.tell("acme")
    assert objects.calls.count(NOTE) == 1


async def test_waiting_news_is_bounded_and_what_waits_already_stays_current(
    objects: Listening, activity: ActivityLog
) -> None:
    await _enter(objects, "s0", "late")
    for number in range(GATHERED_MAX):
        activity.note("acme", f"s{number}", _appended(1))
    activity.note("acme", "late", _appended(9))
    activity.note("acme", "s0", _appended(2))
    await activity.tell("acme")
    assert await _counts(objects) == {"s0": 2, "late": 0}


async def test_a_directory_that_is_down_costs_news_and_the_next_message_tells_all(
    objects: Listening, activity: ActivityLog, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = Sessions(objects, {"acme": tenant()}, activity, lambda: 1_000_000_000.0)
    session_id = (await sessions.create("acme"))["id"]
    objects.failing[NOTE] = [ObjectOverloaded("Directory/acme:sessions", "too much", 1.0)]
    with caplog.at_level(logging.WARNING, "mobula.activity"):
        await sessions.append("acme", session_id, "user", "one")
        async with asyncio.timeout(10):
            await objects.told.wait()
    assert await _counts(objects) == {session_id: 0}
    assert (await sessions.metadata("acme", session_id))["message_count"] == 1

    objects.told.clear()
    await sessions.append("acme", session_id, "user", "two")
    async with asyncio.timeout(10):
        await objects.told.wait()
    assert await _counts(objects) == {session_id: 2}
    assert "tenant=acme listing lags behind" in caplog.text


async def test_one_tenants_broken_directory_keeps_no_other_from_being_told(
    objects: Listening, activity: ActivityLog
) -> None:
    await _enter(objects, "s1", tenant_name="demo")
    objects.failing[NOTE] = [InvalidArgument("any", "", "wrong")]
    activity.note("acme", "s1", _appended(1))
    activity.note("demo", "s1", _appended(4))
    async with asyncio.timeout(10):
        while objects.calls.count(NOTE) < 2:
            objects.told.clear()
            await objects.told.wait()
    assert await _counts(objects, "demo") == {"s1": 4}
