"""Is a fork the beginning of its original, whole or not there at all?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import actors.message_log
from actors import InvalidArgument, ObjectNotFound, ObjectOverloaded
from actors.runtime.call import unpack
from actors.runtime.clock import ManualClock
from actors.session_copy import FINISHED_WITHIN_S
from actors.turn import NewEvent
from deployments.sessions import Sessions
from tests.turns import asked
from tests.unit.handles import FailingObjects
from tests.unit.objects_fixtures import ring

CRASH = ObjectOverloaded("ChatSession/acme:s", "the process ended here", 1.0)


async def _said(sessions: Sessions, name: str = "acme", count: int = 5, **fields: Any) -> str:
    session_id = (await sessions.create(name, **fields))["id"]
    for number in range(1, count + 1):
        await sessions.append(name, session_id, "user", f"message {number}")
    return session_id


async def _messages(sessions: Sessions, session_id: str, name: str = "acme") -> list[tuple[int, str]]:
    history = await sessions.history(name, session_id, limit=1000, before=None)
    return [(message["id"], message["content"]) for message in history["messages"]]


async def _listed(sessions: Sessions, name: str = "acme") -> list[str]:
    page = await sessions.page(name, limit=100, after=None, user_id=None)
    return [session["id"] for session in page["sessions"]]


async def test_a_fork_has_what_was_said_before_a_message_numbered_from_one(
    sessions: Sessions, clock: ManualClock
) -> None:
    original = await _said(sessions, title="T", user_id="ann", metadata={"k": "v"}, ttl_s=90)
    await sessions.get("acme", original).clear()
    for number in range(6, 10):
        await sessions.append("acme", original, "user", f"message {number}")
    before = await _messages(sessions, original)
    clock.advance(5)
    fork = await sessions.fork("acme", original, before=8)
    assert fork["id"] != original
    assert (fork["title"], fork["user_id"], fork["metadata"]) == ("T", "ann", {"k": "v"})
    assert (fork["created_at"], fork["expires_at"], fork["message_count"]) == (clock.now(), clock.now() + 90, 2)
    assert await _messages(sessions, fork["id"]) == [(1, "message 6"), (2, "message 7")]
    assert await _messages(sessions, original) == before
    page = await sessions.page("acme", limit=1, after=None, user_id=None)
    assert page["sessions"] == [fork] == [await sessions.metadata("acme", fork["id"])]


@pytest.mark.parametrize(("before", "count"), [(None, 5), (1, 0), (6, 5), (2**53, 5)])
async def test_without_a_message_to_stop_at_all_is_copied(sessions: Sessions, before: int | None, count: int) -> None:
    original = await _said(sessions)
    fork = await sessions.fork("acme", original, before=before)
    assert await _messages(sessions, fork["id"]) == (await _messages(sessions, original))[:count]


async def test_a_message_is_copied_with_all_that_belongs_to_it(sessions: Sessions, clock: ManualClock) -> None:
    original = await _said(sessions, count=0)
    stub = sessions.get("acme", original)
    await stub.append("assistant", "naïve 🐟\0", tokens=7, data={"half": "\ud83d", "sources": []})
    clock.advance(9)
    fork = await sessions.fork("acme", original, before=None)
    assert await sessions.get("acme", fork["id"]).history() == await stub.history()


async def test_the_two_go_their_own_ways(sessions: Sessions) -> None:
    original = await _said(sessions, "brief", 3)
    fork = (await sessions.fork("brief", original, before=None))["id"]
    await sessions.delete("brief", original)
    for number in range(4, 7):
        await sessions.append("brief", fork, "user", f"message {number}")
    # The limit on messages is taken over.
    said = [(3, "message 3"), (4, "message 4"), (5, "message 5"), (6, "message 6")]
    assert await _messages(sessions, fork, "brief") == said


async def test_a_long_session_is_copied_in_pages_that_end_by_their_size(
    sessions: Sessions, objects: FailingObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = await _said(sessions, count=450)
    fork = await sessions.fork("acme", original, before=None)
    assert await _messages(sessions, fork["id"]) == await _messages(sessions, original)
    assert objects.calls.count(("ChatSession", "add_copies")) == 3
    monkeypatch.setattr(actors.message_log, "TRANSCRIPT_PAGE_CHARS", 30)
    again = await sessions.fork("acme", original, before=8)
    assert len(await _messages(sessions, again["id"])) == 7
    assert objects.calls.count(("ChatSession", "add_copies")) == 3 + 2


@pytest.mark.parametrize("method", ["begin_copy", "transcript", "add_copies", "end_copy"])
@pytest.mark.parametrize("after", [False, True], ids=["before it ran", "after it ran"])
async def test_a_crash_leaves_nothing_that_looks_whole_and_the_next_attempt_finishes_it(
    sessions: Sessions, objects: FailingObjects, monkeypatch: pytest.MonkeyPatch, method: str, after: bool
) -> None:
    monkeypatch.setattr(actors.message_log, "TRANSCRIPT_PAGE_MAX", 2)
    original = await _said(sessions, title="T")
    new_id = sessions.new_id()
    failing = objects.failing_after if after else objects.failing
    failing["ChatSession", method] = [CRASH]
    with pytest.raises(ObjectOverloaded):
        await sessions.fork("acme", original, before=None, new_session_id=new_id)
    is_whole = (method, after) == ("end_copy", True)
    for reading in ("metadata", "history", "turns", "usage", "clear", "origin", "transcript"):
        if not is_whole:
            with pytest.raises(ObjectNotFound):
                await getattr(sessions.get("acme", new_id), reading)()
    # What was said meanwhile is not part of what was to be copied.
    await sessions.append("acme", original, "user", "later")
    begun = method != "begin_copy" or after
    for _ in range(2):
        fork = await sessions.fork("acme", original, before=None, new_session_id=new_id)
        assert fork["id"] == new_id
        expected = [(number, f"message {number}") for number in range(1, 6)] + ([] if begun else [(6, "later")])
        assert await _messages(sessions, new_id) == expected
        assert fork["message_count"] == len(expected)
    assert set(await _listed(sessions)) == {original, new_id}


async def test_a_page_that_two_attempts_bring_is_taken_once_and_none_is_left_out(sessions: Sessions) -> None:
    original, new_id = await _said(sessions), sessions.new_id()
    fork = sessions.get("acme", new_id)
    await fork.begin_copy(await sessions.get("acme", original).origin())
    messages = (await sessions.get("acme", original).transcript())["messages"]
    for after, page in ((0, messages[:2]), (0, messages[:2]), (3, messages[3:]), (2, messages[2:]), (2, messages[2:])):
        await fork.add_copies(after, page)
    await fork.end_copy()
    await fork.add_copies(5, messages)
    assert await _messages(sessions, new_id) == await _messages(sessions, original)
    assert (await fork.metadata())["message_count"] == 5


async def test_a_fork_that_nobody_finishes_goes_with_its_entry(
    sessions: Sessions, objects: FailingObjects, clock: ManualClock, tmp_path: Path
) -> None:
    original = await _said(sessions)
    new_id = sessions.new_id()
    objects.failing["ChatSession", "end_copy"] = [CRASH]
    with pytest.raises(ObjectOverloaded):
        await sessions.fork("acme", original, before=None, new_session_id=new_id)
    assert list((tmp_path / "objects" / "ChatSession").rglob(f"*{new_id}*"))
    clock.advance(FINISHED_WITHIN_S)
    assert await _listed(sessions) == [original]
    await ring(objects, clock)
    assert list((tmp_path / "objects" / "ChatSession").rglob(f"*{new_id}*")) == []


async def test_an_alarm_that_comes_early_leaves_a_copy_under_way_alone(
    sessions: Sessions, objects: FailingObjects
) -> None:
    original = await _said(sessions)
    new_id = sessions.new_id()
    objects.failing["ChatSession", "add_copies"] = [CRASH]
    with pytest.raises(ObjectOverloaded):
        await sessions.fork("acme", original, before=None, new_session_id=new_id)
    assert unpack(await objects.host.fire_alarm(sessions.get("acme", new_id).id, forced=True).wait()) == 1
    fork = await sessions.fork("acme", original, before=None, new_session_id=new_id)
    assert fork["message_count"] == 5


async def test_what_is_not_there_or_anothers_can_not_be_forked(sessions: Sessions) -> None:
    original = await _said(sessions)
    for name, session_id in (("demo", original), ("acme", "s" + "0" * 32), ("acme", "../x")):
        with pytest.raises(ObjectNotFound):
            await sessions.fork(name, session_id, before=None)
    assert await _listed(sessions, "demo") == []
    assert await _listed(sessions) == [original]


async def test_a_session_that_is_there_is_not_made_a_copy(sessions: Sessions) -> None:
    original, other = await _said(sessions), await _said(sessions, count=1)
    await sessions.fork("acme", original, before=None, new_session_id=other)
    assert await _messages(sessions, other) == [(1, "message 1")]


async def test_a_tools_call_and_its_result_are_not_parted_and_turns_stay_where_they_ran(sessions: Sessions) -> None:
    original = (await sessions.create("acme"))["id"]
    stub = sessions.get("acme", original)
    new = asked("t" + "0" * 24, "What is there?")
    await stub.begin(new, "runner")
    events: list[NewEvent] = [
        {"type": "tool.call", "data": {"id": "c1", "name": "kv_get", "arguments": "{}"}},
        {"type": "tool.result", "data": {"id": "c1", "name": "kv_get", "result": 1}},
        {"type": "text.delta", "data": {"text": "One."}},
    ]
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7, "estimated": False}
    await stub.finish(new["turn_id"], 1, 0, events, "completed", finish_reason="stop", usage=usage)
    roles = [message["role"] for message in (await stub.history())["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"]
    with pytest.raises(InvalidArgument) as raised:
        await sessions.fork("acme", original, before=3)
    assert raised.value.field == "before"
    fork = sessions.get("acme", (await sessions.fork("acme", original, before=4))["id"])
    copied = (await fork.history())["messages"]
    assert copied == (await stub.history())["messages"][:3]
    assert await fork.turns() == {"turns": [], "has_more": False}
    assert await fork.usage() == {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
