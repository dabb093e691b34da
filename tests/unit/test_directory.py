"""Does the directory list a tenant's sessions, newest first, and only those that are still there?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import ChatSession, Directory, InvalidArgument, LocalBackend, ObjectNotFound
from actors.directory import PAGE_MAX, Activity, SessionMetadata
from actors.runtime.clock import ManualClock
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from tests.unit.objects_fixtures import Hibernating

NOW = 1_000_000_000.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture(params=[LocalBackend, Hibernating], ids=["resident", "hibernating"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[LocalBackend]:
    backend = request.param(tmp_path, [ChatSession, Directory], settings=HostSettings(slots=4), clock=clock)
    yield backend
    backend.close()


@pytest.fixture
def directory(objects: LocalBackend) -> Stub[Directory]:
    return objects.namespace(Directory).get("acme", "directory")


def _session(session_id: str, *, user_id: str | None = None, expires_at: float | None = None) -> SessionMetadata:
    return {
        "id": session_id,
        "tenant": "acme",
        "user_id": user_id,
        "title": f"Title of {session_id}",
        "metadata": {"colour": "blue"},
        "created_at": NOW,
        "last_active_at": NOW,
        "expires_at": expires_at,
        "message_count": 0,
    }


def _activity(
    session_id: str, *, at: float = NOW + 5, message_count: int = 2, expires_at: float | None = None
) -> Activity:
    return {"id": session_id, "last_active_at": at, "expires_at": expires_at, "message_count": message_count}


async def _page(directory: Stub[Directory], **options: Any) -> tuple[list[str], bool]:
    page = await directory.page(**options)
    return [session["id"] for session in page["sessions"]], page["has_more"]


async def test_an_empty_directory_has_an_empty_page(directory: Stub[Directory]) -> None:
    assert await directory.page() == {"sessions": [], "has_more": False}


async def test_an_entry_is_what_the_session_said_of_itself(objects: LocalBackend, directory: Stub[Directory]) -> None:
    session = objects.namespace(ChatSession).get("acme", "s1")
    metadata = await session.create(user_id="u1", title="naïve 🐟\0", metadata={"half": "\ud83d"}, ttl_s=60)
    await directory.put(metadata)
    assert await directory.page() == {"sessions": [metadata], "has_more": False}


async def test_putting_again_replaces_the_entry(directory: Stub[Directory]) -> None:
    await directory.put(_session("s1"))
    renamed: SessionMetadata = {**_session("s1"), "title": None, "metadata": {}}
    await directory.put(renamed)
    assert await directory.page() == {"sessions": [renamed], "has_more": False}


async def test_sessions_come_newest_first_whatever_order_they_were_put_in(directory: Stub[Directory]) -> None:
    for session_id in ("s2", "s4", "s1", "s3"):
        await directory.put(_session(session_id))
    assert await _page(directory) == (["s4", "s3", "s2", "s1"], False)


async def test_activity_does_not_change_the_order(directory: Stub[Directory]) -> None:
    await directory.put(_session("s1"))
    await directory.put(_session("s2"))
    await directory.note_activity([_activity("s1")])
    assert await _page(directory) == (["s2", "s1"], False)


async def test_pages_follow_each_other_and_say_if_there_is_more(directory: Stub[Directory]) -> None:
    for number in range(1, 6):
        await directory.put(_session(f"s{number}"))
    expected: dict[tuple[int, str | None], tuple[list[str], bool]] = {
        (2, None): (["s5", "s4"], True),
        (2, "s4"): (["s3", "s2"], True),
        (2, "s2"): (["s1"], False),
        (2, "s3"): (["s2", "s1"], False),
        (2, "s1"): ([], False),
        (5, None): (["s5", "s4", "s3", "s2", "s1"], False),
        (4, None): (["s5", "s4", "s3", "s2"], True),
        (10**9, None): (["s5", "s4", "s3", "s2", "s1"], False),
        # A limit that asks for nothing gives one session, never all.
        (0, None): (["s5"], True),
        (-1, None): (["s5"], True),
    }
    assert {asked: await _page(directory, limit=asked[0], after=asked[1]) for asked in expected} == expected


async def test_a_page_can_start_behind_a_session_that_was_removed(directory: Stub[Directory]) -> None:
    for number in range(1, 5):
        await directory.put(_session(f"s{number}"))
    assert await _page(directory, limit=2) == (["s4", "s3"], True)
    assert await directory.remove("s3") is True
    assert await _page(directory, limit=2, after="s3") == (["s2", "s1"], False)


async def test_a_page_has_at_most_a_hundred_sessions(tmp_path: Path, clock: ManualClock) -> None:
    backend = LocalBackend(tmp_path, [Directory], settings=HostSettings(slots=4), clock=clock)
    directory = backend.namespace(Directory).get("acme", "directory")
    for number in range(PAGE_MAX + 1):
        await directory.put(_session(f"s{number:03d}"))
    ids, has_more = await _page(directory, limit=10**9)
    assert (len(ids), has_more) == (PAGE_MAX, True)
    backend.close()


async def test_a_user_sees_only_their_own_sessions(directory: Stub[Directory]) -> None:
    users = {"s1": "u1", "s2": "u2", "s3": None, "s4": "u1", "s5": "U1", "s6": "u1 "}
    for session_id, user_id in users.items():
        await directory.put(_session(session_id, user_id=user_id))
    assert await _page(directory, user_id="u1") == (["s4", "s1"], False)
    assert await _page(directory, user_id="u1", limit=1) == (["s4"], True)
    assert await _page(directory, user_id="u1", limit=1, after="s4") == (["s1"], False)
    assert await _page(directory, user_id="u%") == ([], False)
    assert await _page(directory, user_id="") == ([], False)
    assert (await _page(directory))[0] == ["s6", "s5", "s4", "s3", "s2", "s1"]


async def test_expired_sessions_are_left_out(directory: Stub[Directory], clock: ManualClock) -> None:
    await directory.put(_session("s1", expires_at=NOW + 10))
    await directory.put(_session("s2"))
    await directory.put(_session("s3", expires_at=NOW + 20))
    clock.advance(9.5)
    assert await _page(directory) == (["s3", "s2", "s1"], False)
    clock.advance(0.5)
    assert await _page(directory) == (["s3", "s2"], False)
    assert await _page(directory, limit=1, after="s3") == (["s2"], False)


async def test_a_session_is_listed_exactly_as_long_as_it_can_be_found(
    objects: LocalBackend, directory: Stub[Directory], clock: ManualClock
) -> None:
    session = objects.namespace(ChatSession).get("acme", "s1")
    await directory.put(await session.create(ttl_s=10))
    clock.advance(10)
    assert await _page(directory) == ([], False)
    with pytest.raises(ObjectNotFound):
        await session.metadata()


async def test_activity_updates_an_entry(directory: Stub[Directory]) -> None:
    await directory.put(_session("s1", expires_at=NOW + 10))
    await directory.put(_session("s2"))
    await directory.note_activity([_activity("s1", expires_at=NOW + 15, message_count=2)])
    updated: SessionMetadata = {
        **_session("s1"),
        "last_active_at": NOW + 5,
        "expires_at": NOW + 15,
        "message_count": 2,
    }
    assert (await directory.page())["sessions"] == [_session("s2"), updated]


async def test_many_activities_are_noted_at_once(directory: Stub[Directory]) -> None:
    for number in range(1, 4):
        await directory.put(_session(f"s{number}"))
    await directory.note_activity([_activity(f"s{number}", message_count=number) for number in range(1, 4)])
    await directory.note_activity([])
    assert [session["message_count"] for session in (await directory.page())["sessions"]] == [3, 2, 1]


async def test_activity_that_arrives_late_changes_nothing(directory: Stub[Directory]) -> None:
    await directory.put(_session("s1"))
    await directory.note_activity([_activity("s1", at=NOW + 5, message_count=4)])
    await directory.note_activity([_activity("s1", at=NOW + 4, message_count=2)])
    (entry,) = (await directory.page())["sessions"]
    assert (entry["last_active_at"], entry["message_count"]) == (NOW + 5, 4)


async def test_activity_never_brings_a_removed_session_back(directory: Stub[Directory]) -> None:
    await directory.put(_session("s1"))
    await directory.put(_session("s2"))
    await directory.remove("s1")
    await directory.note_activity([_activity("s1"), _activity("never there"), _activity("s2")])
    assert await _page(directory) == (["s2"], False)


async def test_remove_says_if_there_was_an_entry(directory: Stub[Directory]) -> None:
    await directory.put(_session("s1"))
    assert await directory.remove("s1") is True
    assert await directory.remove("s1") is False
    assert await _page(directory) == ([], False)


async def test_text_with_a_lone_surrogate_is_refused_and_changes_nothing(directory: Stub[Directory]) -> None:
    await directory.put(_session("s1"))
    calls = (
        directory.put(_session("s2", user_id="\ud800")),
        directory.note_activity([_activity("s1"), _activity("\ud800")]),
        directory.remove("\ud800"),
        directory.page(user_id="\ud800"),
        directory.page(after="\ud800"),
    )
    for call in calls:
        with pytest.raises(InvalidArgument, match="surrogates"):
            await call
    assert (await directory.page())["sessions"] == [_session("s1")]


async def test_a_count_beyond_64_bits_is_refused_and_changes_nothing(directory: Stub[Directory]) -> None:
    await directory.put(_session("s1"))
    with pytest.raises(InvalidArgument, match="64 bits"):
        await directory.note_activity([_activity("s1"), _activity("s1", message_count=2**63)])
    assert (await directory.page())["sessions"] == [_session("s1")]


async def test_directories_of_two_tenants_share_nothing(objects: LocalBackend) -> None:
    directories = objects.namespace(Directory)
    await directories.get("acme", "directory").put(_session("s1"))
    globex = directories.get("globex", "directory")
    assert await _page(globex) == ([], False)
    assert await globex.remove("s1") is False
    await globex.put(_session("s1"))
    assert (await globex.page())["sessions"][0]["tenant"] == "globex"
