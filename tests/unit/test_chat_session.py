"""Does a session keep what was said, in order and within its limits, whether or not it hibernates between calls?"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import ChatSession, Directory, InvalidArgument, LocalBackend, ObjectNotFound
from actors.directory import DIRECTORY_NAME
from actors.runtime.clock import ManualClock
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from tests.unit.objects_fixtures import Hibernating, ring

SLOTS = 4


@pytest.fixture(params=[LocalBackend, Hibernating], ids=["resident", "hibernating"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[LocalBackend]:
    backend = request.param(tmp_path, [ChatSession, Directory], settings=HostSettings(slots=SLOTS), clock=clock)
    yield backend
    backend.close()


@pytest.fixture
def session(objects: LocalBackend) -> Stub[ChatSession]:
    return objects.namespace(ChatSession).get("acme", "s1")


async def _say(session: Stub[ChatSession], count: int) -> None:
    for number in range(1, count + 1):
        await session.append("user", f"message {number}")


def _ids(history: Any) -> list[int]:
    return [message["id"] for message in history["messages"]]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("metadata", ()),
        ("update", ({"title": "New"},)),
        ("append", ("user", "hello")),
        ("history", ()),
        ("clear", ()),
    ],
)
async def test_a_session_that_was_never_created_is_not_found(
    session: Stub[ChatSession], tmp_path: Path, objects: LocalBackend, method: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(ObjectNotFound) as raised:
        await getattr(session, method)(*arguments)
    assert raised.value.object_key == "ChatSession/acme:s1"
    objects.host.evict(session.id)
    assert not session.id.path(tmp_path / "objects", SLOTS).exists()


async def test_create_returns_what_it_was_given(session: Stub[ChatSession], clock: ManualClock) -> None:
    created = await session.create(user_id="u1", title="Rays", metadata={"colour": "blue"}, ttl_s=60)
    assert created == {
        "id": "s1",
        "tenant": "acme",
        "user_id": "u1",
        "title": "Rays",
        "metadata": {"colour": "blue"},
        "created_at": clock.now(),
        "last_active_at": clock.now(),
        "expires_at": clock.now() + 60,
        "message_count": 0,
    }
    assert await session.metadata() == created


async def test_create_leaves_an_existing_session_as_it_is(session: Stub[ChatSession], clock: ManualClock) -> None:
    await session.create(user_id="u1", title="First", ttl_s=60)
    await _say(session, 2)
    before = await session.metadata()
    clock.advance(1)
    assert await session.create(user_id="u2", title="Second", metadata={"a": "b"}) == before


async def test_create_after_expiry_makes_an_empty_session_whose_numbers_go_on(
    session: Stub[ChatSession], clock: ManualClock
) -> None:
    await session.create(title="Old", ttl_s=10)
    await _say(session, 3)
    clock.advance(10)
    created = await session.create(title="New")
    assert (created["title"], created["created_at"], created["expires_at"]) == ("New", clock.now(), None)
    assert await session.history() == {"messages": [], "has_more": False}
    assert (await session.append("user", "again"))["id"] == 4


@pytest.mark.parametrize("ttl_s", [0, -1, math.nan, math.inf])
async def test_a_time_to_live_that_is_no_time_is_refused(session: Stub[ChatSession], ttl_s: float) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await session.create(ttl_s=ttl_s)
    assert raised.value.field == "ttl_s"
    with pytest.raises(ObjectNotFound):
        await session.metadata()


@pytest.mark.parametrize("messages_max", [0, -1])
async def test_a_session_that_could_hold_no_message_is_refused(session: Stub[ChatSession], messages_max: int) -> None:
    with pytest.raises(InvalidArgument) as raised:
        await session.create(messages_max=messages_max)
    assert raised.value.field == "messages_max"


async def test_messages_come_back_as_they_were_appended(session: Stub[ChatSession], clock: ManualClock) -> None:
    await session.create()
    first = await session.append("user", "hello", tokens=1)
    clock.advance(2)
    second = await session.append("assistant", "hi", data={"sources": [{"id": "c1", "score": 0.5}]})
    assert (first["id"], first["message_count"]) == (1, 1)
    assert second == {
        "id": 2,
        "created_at": clock.now(),
        "message_count": 2,
        "last_active_at": clock.now(),
        "expires_at": None,
    }
    assert await session.history() == {
        "messages": [
            {
                "id": 1,
                "role": "user",
                "content": "hello",
                "tokens": 1,
                "data": None,
                "created_at": clock.now() - 2,
            },
            {
                "id": 2,
                "role": "assistant",
                "content": "hi",
                "tokens": None,
                "data": {"sources": [{"id": "c1", "score": 0.5}]},
                "created_at": clock.now(),
            },
        ],
        "has_more": False,
    }


async def test_an_append_is_seen_in_the_metadata(session: Stub[ChatSession], clock: ManualClock) -> None:
    await session.create(ttl_s=60)
    clock.advance(5)
    appended = await session.append("user", "hello")
    metadata = await session.metadata()
    assert metadata["created_at"] == clock.now() - 5
    for field in ("last_active_at", "expires_at", "message_count"):
        assert metadata[field] == appended[field]


async def test_history_pages_backwards_and_says_if_there_is_more(session: Stub[ChatSession]) -> None:
    await session.create()
    await _say(session, 5)
    expected: dict[tuple[int, int | None], tuple[list[int], bool]] = {
        (3, None): ([3, 4, 5], True),
        (4, None): ([2, 3, 4, 5], True),
        (5, None): ([1, 2, 3, 4, 5], False),
        (50, None): ([1, 2, 3, 4, 5], False),
        (2, 4): ([2, 3], True),
        (2, 3): ([1, 2], False),
        (2, 1): ([], False),
        (2, 0): ([], False),
        (2, -1): ([], False),
        (2, 99): ([4, 5], True),
        # A limit that asks for nothing gives one message, never all.
        (0, None): ([5], True),
        (-1, None): ([5], True),
    }
    pages = {asked: await session.history(*asked) for asked in expected}
    assert {asked: (_ids(page), page["has_more"]) for asked, page in pages.items()} == expected


async def test_paging_to_the_start_meets_each_message_once(session: Stub[ChatSession]) -> None:
    await session.create()
    await _say(session, 11)
    met: list[int] = []
    before: int | None = None
    while True:
        page = await session.history(limit=3, before=before)
        met = _ids(page) + met
        if not page["has_more"]:
            break
        before = met[0]
    assert met == list(range(1, 12))


async def test_a_page_has_at_most_a_thousand_messages(session: Stub[ChatSession]) -> None:
    await session.create(messages_max=2000)
    await asyncio.gather(*(session.append("user", "x") for _ in range(1001)))
    page = await session.history(limit=10**9)
    assert (_ids(page), page["has_more"]) == (list(range(2, 1002)), True)


@pytest.mark.parametrize("before", [2**63, -(2**63) - 1])
async def test_a_page_before_a_number_that_no_message_can_have_is_refused(
    session: Stub[ChatSession], before: int
) -> None:
    await session.create()
    with pytest.raises(InvalidArgument, match="64 bits"):
        await session.history(before=before)


async def test_the_oldest_leave_when_there_are_too_many(session: Stub[ChatSession]) -> None:
    await session.create(messages_max=3)
    for number in range(1, 8):
        appended = await session.append("user", f"message {number}")
        assert (appended["id"], appended["message_count"]) == (number, min(number, 3))
    history = await session.history()
    assert (_ids(history), history["has_more"]) == ([5, 6, 7], False)
    assert (await session.metadata())["message_count"] == 3


async def test_a_session_of_one_message_keeps_the_newest(session: Stub[ChatSession]) -> None:
    await session.create(messages_max=1)
    await _say(session, 3)
    assert [message["content"] for message in (await session.history())["messages"]] == ["message 3"]


async def test_clear_removes_messages_and_keeps_the_session(session: Stub[ChatSession]) -> None:
    await session.create(title="Rays", metadata={"a": "b"})
    await _say(session, 3)
    before = await session.metadata()
    assert await session.clear() == {**before, "message_count": 0}
    assert await session.history() == {"messages": [], "has_more": False}


async def test_message_numbers_are_never_given_again_after_clear(session: Stub[ChatSession]) -> None:
    await session.create(messages_max=2)
    await _say(session, 3)
    await session.clear()
    assert (await session.append("user", "after"))["id"] == 4
    await session.clear()
    await _say(session, 3)
    assert _ids(await session.history()) == [6, 7]


async def test_an_expired_session_is_not_found(session: Stub[ChatSession], clock: ManualClock) -> None:
    await session.create(ttl_s=10)
    clock.advance(9.5)
    assert (await session.metadata())["expires_at"] == clock.now() + 0.5
    clock.advance(0.5)
    for call in (session.metadata(), session.history(), session.append("user", "x"), session.clear()):
        with pytest.raises(ObjectNotFound):
            await call
    with pytest.raises(ObjectNotFound):
        await session.update({"title": "x"})


async def test_activity_puts_expiry_off(session: Stub[ChatSession], clock: ManualClock) -> None:
    await session.create(ttl_s=10)
    for _ in range(5):
        clock.advance(9)
        assert (await session.append("user", "still here"))["expires_at"] == clock.now() + 10
    clock.advance(10)
    with pytest.raises(ObjectNotFound):
        await session.metadata()


async def test_reading_does_not_put_expiry_off(session: Stub[ChatSession], clock: ManualClock) -> None:
    await session.create(ttl_s=10)
    clock.advance(9)
    await session.history()
    await session.metadata()
    clock.advance(1)
    with pytest.raises(ObjectNotFound):
        await session.metadata()


async def test_a_session_without_time_to_live_never_expires(session: Stub[ChatSession], clock: ManualClock) -> None:
    await session.create()
    clock.advance(100 * 365 * 86_400)
    assert (await session.metadata())["expires_at"] is None


async def test_update_changes_only_what_it_names(session: Stub[ChatSession]) -> None:
    await session.create(user_id="u1", title="Old", metadata={"a": "b"})
    assert (await session.update({"title": "New"}))["metadata"] == {"a": "b"}
    updated = await session.update({"metadata": {"c": "d"}})
    assert (updated["title"], updated["metadata"], updated["user_id"]) == ("New", {"c": "d"}, "u1")
    assert await session.update({}) == updated
    assert await session.metadata() == updated


async def test_update_clears_with_none(session: Stub[ChatSession]) -> None:
    await session.create(title="Old", metadata={"a": "b"})
    updated = await session.update({"title": None, "metadata": None})
    assert (updated["title"], updated["metadata"]) == (None, {})


async def test_delete_leaves_no_file(session: Stub[ChatSession], tmp_path: Path) -> None:
    await session.create()
    await _say(session, 2)
    path = session.id.path(tmp_path / "objects", SLOTS)
    assert path.exists()
    assert await session.delete() is True
    assert [file.name for file in path.parent.iterdir()] == []
    with pytest.raises(ObjectNotFound):
        await session.metadata()


async def test_delete_says_if_there_was_nothing(session: Stub[ChatSession], tmp_path: Path) -> None:
    assert await session.delete() is False
    await session.create()
    assert await session.delete() is True
    assert await session.delete() is False
    assert not session.id.path(tmp_path / "objects", SLOTS).exists()


async def test_a_session_made_after_delete_knows_nothing_of_the_first(session: Stub[ChatSession]) -> None:
    await session.create(title="First", user_id="u1")
    await _say(session, 3)
    await session.delete()
    created = await session.create()
    assert (created["title"], created["user_id"], created["message_count"]) == (None, None, 0)
    assert await session.history() == {"messages": [], "has_more": False}


async def test_an_expired_session_removes_itself_and_its_entry(
    objects: LocalBackend, session: Stub[ChatSession], clock: ManualClock, tmp_path: Path
) -> None:
    directory = objects.namespace(Directory).get("acme", DIRECTORY_NAME)
    await directory.put(await session.create(ttl_s=10))
    clock.advance(9.9)
    assert await ring(objects, clock) == 0
    clock.advance(0.2)
    assert await ring(objects, clock) == 1
    assert list((tmp_path / "objects" / "ChatSession").rglob("acme:s1*")) == []
    assert await directory.remove("s1") is False


async def test_a_session_that_was_used_lives_on_and_its_entry_says_so(
    objects: LocalBackend, session: Stub[ChatSession], clock: ManualClock
) -> None:
    directory = objects.namespace(Directory).get("acme", DIRECTORY_NAME)
    await directory.put(await session.create(ttl_s=10))
    clock.advance(8)
    await session.append("user", "still here")
    clock.advance(2.1)
    assert await ring(objects, clock) == 1
    assert (await directory.page())["sessions"] == [await session.metadata()]
    clock.advance(7.9)
    assert await ring(objects, clock) == 1
    with pytest.raises(ObjectNotFound):
        await session.metadata()


async def test_a_session_that_was_made_anew_after_it_expired_is_not_ended_by_the_old_alarm(
    objects: LocalBackend, session: Stub[ChatSession], clock: ManualClock
) -> None:
    await session.create(ttl_s=10)
    clock.advance(20)
    await session.create(ttl_s=100)
    assert await ring(objects, clock) == 1
    assert (await session.metadata())["expires_at"] == clock.now() + 100


@pytest.mark.parametrize(
    "text",
    [
        "",
        "naïve 日本語 🐟 \u200d\u202e",
        "a\0b\0",
        "\r\n\t\x07\x1b[31m",
        "'; DROP TABLE message; --",
        "\ufffe\U0010ffff",
    ],
)
async def test_any_text_comes_back_unchanged(session: Stub[ChatSession], text: str) -> None:
    await session.create(user_id=text, title=text, metadata={text: text})
    await session.append(text, text, data={text: [text]})
    metadata = await session.metadata()
    assert (metadata["user_id"], metadata["title"], metadata["metadata"]) == (text, text, {text: text})
    (message,) = (await session.history())["messages"]
    assert (message["role"], message["content"], message["data"]) == (text, text, {text: [text]})


async def test_a_message_of_megabytes_comes_back_unchanged(session: Stub[ChatSession]) -> None:
    content = "🐟 ray " * 500_000
    await session.create()
    await session.append("user", content)
    (message,) = (await session.history())["messages"]
    assert message["content"] == content


async def test_text_with_a_lone_surrogate_is_refused_and_changes_nothing(session: Stub[ChatSession]) -> None:
    await session.create(title="Old")
    await session.append("user", "hello")
    before = await session.metadata()
    for call in (session.append("user", "half \ud83d"), session.update({"title": "\udc00"})):
        with pytest.raises(InvalidArgument, match="surrogates") as raised:
            await call
        assert raised.value.value.isascii()
    assert await session.metadata() == before
    assert (await session.append("user", "next"))["id"] == 2


async def test_a_lone_surrogate_in_metadata_and_data_survives(session: Stub[ChatSession]) -> None:
    await session.create(metadata={"half": "\ud83d"})
    await session.append("user", "x", data={"half": "\ud83d"})
    assert (await session.metadata())["metadata"] == {"half": "\ud83d"}
    assert (await session.history())["messages"][0]["data"] == {"half": "\ud83d"}


async def test_a_token_count_beyond_64_bits_is_refused(session: Stub[ChatSession]) -> None:
    await session.create()
    with pytest.raises(InvalidArgument, match="64 bits"):
        await session.append("user", "x", tokens=2**63)
    assert (await session.append("user", "x", tokens=2**63 - 1))["id"] == 1


async def test_sessions_of_two_tenants_share_a_name_and_nothing_else(objects: LocalBackend) -> None:
    sessions = objects.namespace(ChatSession)
    acme, globex = sessions.get("acme", "s1"), sessions.get("globex", "s1")
    await acme.create(title="Acme's")
    with pytest.raises(ObjectNotFound):
        await globex.metadata()
    await globex.create(title="Globex's")
    await acme.append("user", "secret")
    assert (await globex.history())["messages"] == []
    await globex.delete()
    assert (await acme.metadata())["message_count"] == 1


async def test_fifty_appends_at_once_are_all_kept_once_in_the_order_acknowledged(session: Stub[ChatSession]) -> None:
    await session.create()
    acknowledged: list[tuple[int, str]] = []

    async def append(content: str) -> None:
        appended = await session.append("user", content)
        acknowledged.append((appended["id"], content))

    await asyncio.gather(*(append(f"from client {client}") for client in range(50)))
    assert [message_id for message_id, _ in acknowledged] == list(range(1, 51))
    history = await session.history()
    assert [(message["id"], message["content"]) for message in history["messages"]] == acknowledged
    assert len({message["content"] for message in history["messages"]}) == 50
    assert (await session.metadata())["message_count"] == 50


async def test_a_session_outlives_its_process(tmp_path: Path, clock: ManualClock) -> None:
    settings = HostSettings(slots=SLOTS)
    first = LocalBackend(tmp_path, [ChatSession], settings=settings, clock=clock)
    stub = first.namespace(ChatSession).get("acme", "s1")
    await stub.create(title="Kept")
    await _say(stub, 3)
    before = await stub.metadata(), await stub.history()
    first.close()
    second = LocalBackend(tmp_path, [ChatSession], settings=settings, clock=clock)
    stub = second.namespace(ChatSession).get("acme", "s1")
    assert (await stub.metadata(), await stub.history()) == before
    second.close()
