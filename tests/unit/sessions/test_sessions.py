"""Do sessions and their listing stay together, and what does a crash between the two leave?"""

from __future__ import annotations

from pathlib import Path

import pytest

from actors import ObjectNotFound, ObjectOverloaded
from actors.directory import ENTRIES_KEPT_EXPIRED_S
from actors.runtime.clock import ManualClock
from deployments.activity import ActivityLog
from deployments.sessions import Sessions
from tests.unit.handles import FailingObjects, tenant
from tests.unit.objects_fixtures import ring

CRASH = ObjectOverloaded("ChatSession/acme:s", "the process ended here", 1.0)
UNKNOWN = "s" + "0" * 32


async def _listed(sessions: Sessions, name: str = "acme") -> list[str]:
    page = await sessions.page(name, limit=100, after=None, user_id=None)
    return [session["id"] for session in page["sessions"]]


async def test_a_session_is_what_was_asked_for_and_listed_as_it_is(sessions: Sessions) -> None:
    created = await sessions.create("acme", user_id="ann", title="Fish", metadata={"colour": "blue"})
    assert created["user_id"] == "ann"
    assert created["title"] == "Fish"
    assert created["metadata"] == {"colour": "blue"}
    assert created["message_count"] == 0
    assert await sessions.metadata("acme", created["id"]) == created
    page = await sessions.page("acme", limit=10, after=None, user_id=None)
    assert page == {"sessions": [created], "has_more": False}


async def test_ids_sort_by_age_and_are_not_guessable(sessions: Sessions, clock: ManualClock) -> None:
    ids = []
    for _ in range(5):
        ids.append((await sessions.create("acme"))["id"])
        clock.advance(0.001)
    assert ids == sorted(ids)
    assert len({session_id[13:] for session_id in ids}) == 5
    assert await _listed(sessions) == ids[::-1]


async def test_the_tenants_defaults_hold_where_nothing_is_asked_for(sessions: Sessions, clock: ManualClock) -> None:
    default = await sessions.create("brief")
    own = await sessions.create("brief", ttl_s=10)
    assert default["expires_at"] == clock.now() + 60
    assert own["expires_at"] == clock.now() + 10
    for number in range(5):
        await sessions.append("brief", default["id"], "user", str(number))
    history = await sessions.history("brief", default["id"], limit=10, before=None)
    assert [message["content"] for message in history["messages"]] == ["1", "2", "3", "4"]


async def test_messages_show_in_the_listing_at_once_to_who_wrote_them(sessions: Sessions, clock: ManualClock) -> None:
    session_id = (await sessions.create("brief"))["id"]
    clock.advance(5)
    await sessions.append("brief", session_id, "user", "hello")
    page = await sessions.page("brief", limit=10, after=None, user_id=None)
    assert page["sessions"] == [await sessions.metadata("brief", session_id)]
    assert page["sessions"][0]["message_count"] == 1


async def test_changes_show_in_the_listing(sessions: Sessions) -> None:
    session_id = (await sessions.create("acme", title="Old", metadata={"a": "b"}))["id"]
    changed = await sessions.update("acme", session_id, {"title": None})
    assert (changed["title"], changed["metadata"]) == (None, {"a": "b"})
    page = await sessions.page("acme", limit=10, after=None, user_id=None)
    assert page["sessions"] == [changed]


async def test_a_deleted_session_is_gone_from_everywhere(
    sessions: Sessions, objects: FailingObjects, tmp_path: Path
) -> None:
    session_id = (await sessions.create("acme"))["id"]
    await sessions.append("acme", session_id, "user", "a secret")
    await sessions.delete("acme", session_id)
    assert await _listed(sessions) == []
    assert list((tmp_path / "objects" / "ChatSession").rglob("*.sqlite*")) == []
    with pytest.raises(ObjectNotFound):
        await sessions.metadata("acme", session_id)
    with pytest.raises(ObjectNotFound):
        await sessions.delete("acme", session_id)


@pytest.mark.parametrize("session_id", ["", "s", UNKNOWN, UNKNOWN.upper(), UNKNOWN + "\n", "../../etc", "s" * 10_000])
async def test_a_session_that_is_not_there_is_not_found_and_not_made(
    sessions: Sessions, tmp_path: Path, session_id: str
) -> None:
    with pytest.raises(ObjectNotFound):
        await sessions.metadata("acme", session_id)
    with pytest.raises(ObjectNotFound):
        await sessions.append("acme", session_id, "user", "hello")
    with pytest.raises(ObjectNotFound):
        await sessions.history("acme", session_id, limit=10, before=None)
    with pytest.raises(ObjectNotFound):
        await sessions.update("acme", session_id, {"title": "Mine"})
    with pytest.raises(ObjectNotFound):
        await sessions.delete("acme", session_id)
    assert await _listed(sessions) == []


async def test_another_tenants_session_is_not_found(sessions: Sessions) -> None:
    session_id = (await sessions.create("acme"))["id"]
    with pytest.raises(ObjectNotFound):
        await sessions.metadata("demo", session_id)
    with pytest.raises(ObjectNotFound):
        await sessions.delete("demo", session_id)
    assert await _listed(sessions, "demo") == []
    assert await _listed(sessions) == [session_id]


async def test_the_entry_is_made_before_the_session_and_removed_after_it(
    sessions: Sessions, objects: FailingObjects
) -> None:
    session_id = (await sessions.create("acme"))["id"]
    await sessions.delete("acme", session_id)
    assert objects.calls == [
        ("Directory", "put"),
        ("ChatSession", "create"),
        ("Directory", "put"),  # as the session says of itself
        ("ChatSession", "delete"),
        ("Directory", "remove"),
    ]


async def test_a_crash_before_the_session_was_made_leaves_an_entry_that_can_be_deleted(
    sessions: Sessions, objects: FailingObjects
) -> None:
    objects.failing["ChatSession", "create"] = [CRASH]
    with pytest.raises(ObjectOverloaded):
        await sessions.create("acme", title="Half")
    (session_id,) = await _listed(sessions)
    with pytest.raises(ObjectNotFound):
        await sessions.metadata("acme", session_id)
    await sessions.delete("acme", session_id)
    assert await _listed(sessions) == []


async def test_an_entry_left_by_a_crash_expires_as_its_session_would_have(
    sessions: Sessions, objects: FailingObjects, clock: ManualClock
) -> None:
    objects.failing["ChatSession", "create"] = [CRASH]
    with pytest.raises(ObjectOverloaded):
        await sessions.create("brief")
    assert len(await _listed(sessions, "brief")) == 1
    clock.advance(60)
    assert await _listed(sessions, "brief") == []
    clock.advance(ENTRIES_KEPT_EXPIRED_S + 1)
    assert await ring(objects, clock) == 1
    clock.set_wall(clock.now() - ENTRIES_KEPT_EXPIRED_S - 60)  # when it would be listed if it were there
    assert await _listed(sessions, "brief") == []


async def test_a_crash_in_the_middle_of_deleting_leaves_an_entry_that_can_be_deleted(
    sessions: Sessions, objects: FailingObjects
) -> None:
    session_id = (await sessions.create("acme"))["id"]
    objects.failing["Directory", "remove"] = [CRASH]
    with pytest.raises(ObjectOverloaded):
        await sessions.delete("acme", session_id)
    assert await _listed(sessions) == [session_id]
    await sessions.delete("acme", session_id)
    assert await _listed(sessions) == []


async def test_a_session_that_expired_is_gone_from_disk_and_from_the_listing(
    sessions: Sessions, objects: FailingObjects, clock: ManualClock, tmp_path: Path
) -> None:
    session_id = (await sessions.create("brief"))["id"]
    await sessions.append("brief", session_id, "user", "a secret")
    clock.advance(60)
    with pytest.raises(ObjectNotFound):
        await sessions.metadata("brief", session_id)
    assert await _listed(sessions, "brief") == []
    assert list((tmp_path / "objects" / "ChatSession").rglob("*.sqlite"))
    assert await ring(objects, clock) == 1
    assert list((tmp_path / "objects" / "ChatSession").rglob(f"*{session_id}*")) == []


async def test_a_session_that_was_used_since_its_entry_is_listed_again(
    sessions: Sessions, objects: FailingObjects, clock: ManualClock
) -> None:
    session_id = (await sessions.create("brief"))["id"]
    clock.advance(50)
    # Used through another process, whose news is not here yet.
    elsewhere = Sessions(objects, {"brief": tenant("brief")}, ActivityLog(objects), clock.now)
    await elsewhere.append("brief", session_id, "user", "still here")
    clock.advance(20)
    assert await ring(objects, clock) == 1
    assert await _listed(sessions, "brief") == [session_id]
    page = await sessions.page("brief", limit=10, after=None, user_id=None)
    assert page["sessions"] == [await sessions.metadata("brief", session_id)]


async def test_a_page_is_of_the_users_own_sessions_where_a_user_is_named(sessions: Sessions) -> None:
    mine = (await sessions.create("acme", user_id="ann"))["id"]
    await sessions.create("acme", user_id="bob")
    page = await sessions.page("acme", limit=10, after=None, user_id="ann")
    assert [session["id"] for session in page["sessions"]] == [mine]
