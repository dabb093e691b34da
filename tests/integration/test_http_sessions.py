"""Does the HTTP interface keep sessions as it says?"""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from tests.integration.calls import contents, eventually, new_session, ok, refused_fields, say, unique
from tests.integration.conftest import Service


def ids_of(client: httpx.Client, **query: Any) -> list[str]:
    return [session["id"] for session in ok(client.get("/chat/sessions", params=query))["sessions"]]


def id_of(session: str) -> str:
    return session.rpartition("/")[2]


def test_a_session_is_created_read_listed_changed_and_deleted(demo: httpx.Client) -> None:
    session = ok(demo.post("/chat/sessions", json={"title": "first", "metadata": {"colour": "blue"}}), 201)
    path = f"/chat/sessions/{session['id']}"
    assert ok(demo.get(path)) == session
    assert session["id"] in ids_of(demo)
    assert ok(demo.patch(path, json={"title": "second"}))["title"] == "second"
    assert demo.delete(path).status_code == 204
    assert demo.get(path).status_code == 404
    assert demo.delete(path).status_code == 404
    assert session["id"] not in ids_of(demo)


def test_a_session_says_all_that_is_known_of_it(demo: httpx.Client) -> None:
    before_s = time.time()
    asked = {"title": "T", "user_id": "u", "metadata": {"k": "v"}, "ttl_s": 3600}
    session = ok(demo.post("/chat/sessions", json=asked), 201)
    assert before_s - 1 < session["created_at"] == session["last_active_at"] < time.time() + 1
    assert session["expires_at"] == pytest.approx(session["created_at"] + 3600)
    known = {"tenant": "demo", "title": "T", "user_id": "u", "metadata": {"k": "v"}, "message_count": 0}
    assert known.items() <= session.items()
    assert set(session) == {*known, "id", "created_at", "last_active_at", "expires_at"}


def test_a_session_needs_no_body(demo: httpx.Client) -> None:
    session = ok(demo.post("/chat/sessions"), 201)
    assert (session["title"], session["user_id"], session["metadata"], session["expires_at"]) == (None, None, {}, None)


def test_sessions_are_listed_newest_first_in_pages_that_neither_repeat_nor_miss_one(demo: httpx.Client) -> None:
    user = unique("pages")
    made = [id_of(new_session(demo, user_id=user)) for _ in range(7)]
    listed: list[str] = []
    while True:
        query: dict[str, Any] = {"user_id": user, "limit": 3} | ({"after": listed[-1]} if listed else {})
        page = ok(demo.get("/chat/sessions", params=query))
        listed += [session["id"] for session in page["sessions"]]
        if not page["has_more"]:
            break
        assert len(page["sessions"]) == 3
    # Those of one millisecond have no order between them.
    assert sorted(listed) == sorted(made)
    assert listed == sorted(listed, reverse=True)


def test_a_page_can_start_behind_a_session_that_was_deleted(demo: httpx.Client) -> None:
    user = unique("gone")
    oldest, middle, newest = sorted(id_of(new_session(demo, user_id=user)) for _ in range(3))
    assert demo.delete(f"/chat/sessions/{middle}").status_code == 204
    assert ids_of(demo, user_id=user, after=middle) == [oldest]
    assert ids_of(demo, user_id=user) == [newest, oldest]


def test_only_the_sessions_of_a_user_are_listed_when_asked_for(demo: httpx.Client) -> None:
    mine, yours = unique("mine"), unique("yours")
    session = id_of(new_session(demo, user_id=mine))
    new_session(demo, user_id=yours)
    assert ids_of(demo, user_id=mine) == [session]
    assert ids_of(demo, user_id=unique("nobody")) == []


def test_sessions_are_found_by_a_part_of_their_title_in_any_case(demo: httpx.Client, acme: httpx.Client) -> None:
    word = unique("Äpfel 100%_")
    user = unique("searches")
    mine = id_of(new_session(demo, title=f"Über {word} und Birnen", user_id=user))
    other = id_of(new_session(demo, title=f"über {word.upper()}"))
    new_session(demo, title=f"{word[:-1]}, nearly")
    new_session(acme, title=word)
    assert ids_of(demo, q=f"ÜBER {word.lower()}") == sorted([mine, other], reverse=True)
    assert ids_of(demo, q=word, user_id=user) == [mine]
    assert ids_of(demo, q=word, limit=1, after=max(mine, other)) == [min(mine, other)]
    page = ok(demo.get("/chat/sessions", params={"q": word, "limit": 1}))
    assert (len(page["sessions"]), page["has_more"]) == (1, True)
    assert ids_of(demo, q=word.replace("_", "?")) == []
    assert set(refused_fields(demo.get("/chat/sessions", params={"q": ""}))) == {"q"}
    assert set(refused_fields(demo.get("/chat/sessions", params={"q": "x" * 301}))) == {"q"}


def test_an_answer_puts_expiry_off(demo: httpx.Client) -> None:
    session = new_session(demo, ttl_s=3600)
    before = ok(demo.get(session))["expires_at"]
    asked = {"message": "Say one.", "session_id": id_of(session), "stream": False, "max_tokens": 1, "retrieve": False}
    ok(demo.post("/chat", json=asked))
    assert ok(demo.get(session))["expires_at"] > before


def test_the_listing_shows_what_was_said_a_moment_ago(demo: httpx.Client) -> None:
    user = unique("active")
    session = new_session(demo, user_id=user)
    say(demo, session, "one")
    say(demo, session, "two")

    def listed_now() -> dict[str, Any]:
        (listed,) = ok(demo.get("/chat/sessions", params={"user_id": user}))["sessions"]
        return dict(listed)

    # The replica that lists it need not be the one that was told, which passes it on a few times a second.
    eventually(lambda: listed_now()["message_count"] == 2)
    listed = listed_now()
    assert listed == ok(demo.get(session))
    assert listed["last_active_at"] > listed["created_at"]


def test_a_change_leaves_alone_what_it_does_not_name_and_null_clears(demo: httpx.Client) -> None:
    session = new_session(demo, title="kept", metadata={"a": "1"}, user_id="u")
    assert ok(demo.patch(session, json={"metadata": {"b": "2"}}))["title"] == "kept"
    assert ok(demo.get(session))["metadata"] == {"b": "2"}
    cleared = ok(demo.patch(session, json={"title": None, "metadata": None}))
    assert (cleared["title"], cleared["metadata"], cleared["user_id"]) == (None, {}, "u")
    assert ok(demo.patch(session, json={})) == cleared
    assert ok(demo.get(session)) == cleared


def test_a_change_shows_in_the_listing(demo: httpx.Client) -> None:
    user = unique("renamed")
    session = new_session(demo, user_id=user, title="before")
    ok(demo.patch(session, json={"title": "after"}))
    assert [one["title"] for one in ok(demo.get("/chat/sessions", params={"user_id": user}))["sessions"]] == ["after"]


@pytest.mark.parametrize("key", ["sk-demo", "sk-acme"])
def test_a_session_expires_and_is_then_gone_from_the_listing_and_from_disk(service: Service, key: str) -> None:
    with service.client(key) as client:
        user = unique("expires")
        session = new_session(client, user_id=user, ttl_s=0.5)
        say(client, session, "soon gone")
        assert service.files_of(id_of(session))
        eventually(lambda: client.get(session).status_code == 404)
        assert client.get(f"{session}/messages").status_code == 404
        assert client.patch(session, json={"title": "x"}).status_code == 404
        assert client.post(f"{session}/messages", json={"role": "user", "content": "x"}).status_code == 404
        assert ids_of(client, user_id=user) == []
        # A dedicated object's lock is there for as long as its host.
        eventually(lambda: not service.files_of(id_of(session)))


def test_what_is_used_does_not_expire(demo: httpx.Client) -> None:
    session = new_session(demo, ttl_s=3600)
    before = ok(demo.get(session))["expires_at"]
    say(demo, session, "still here")
    assert ok(demo.get(session))["expires_at"] > before


@pytest.mark.parametrize("key", ["sk-demo", "sk-acme"])
def test_a_deleted_session_leaves_nothing_on_disk(service: Service, key: str) -> None:
    with service.client(key) as client:
        session = new_session(client, title="secret")
        say(client, session, "secret")
        assert service.files_of(id_of(session))
        assert client.delete(session).status_code == 204
        assert [file for file in service.files_of(id_of(session)) if file.suffix not in (".lock", ".running")] == []
        # A dedicated object's lock is there for as long as its host.
        eventually(lambda: not service.files_of(id_of(session)))


@pytest.mark.parametrize("key", ["sk-demo", "sk-acme"])
def test_history_is_read_in_pages_from_the_newest_back(service: Service, key: str) -> None:
    with service.client(key) as client:
        session = new_session(client)
        numbers = [say(client, session, f"message {number}") for number in range(1, 8)]
        assert numbers == list(range(1, 8))
        newest = ok(client.get(f"{session}/messages", params={"limit": 3}))
        assert [message["id"] for message in newest["messages"]] == [5, 6, 7]
        assert newest["has_more"] is True
        older = ok(client.get(f"{session}/messages", params={"limit": 3, "before": 5}))
        assert [message["id"] for message in older["messages"]] == [2, 3, 4]
        oldest = ok(client.get(f"{session}/messages", params={"limit": 3, "before": 2}))
        assert [message["content"] for message in oldest["messages"]] == ["message 1"]
        assert oldest["has_more"] is False
        assert contents(client, session) == [f"message {number}" for number in range(1, 8)]


def test_a_message_is_kept_as_it_was_sent(demo: httpx.Client) -> None:
    session = new_session(demo)
    text = "tab\t nul\x00 line\r\n end 👩‍👩‍👧 \u202e right to left, ' OR 1=1; -- </script>"
    for role in ("system", "user", "assistant"):
        say(demo, session, text, role)
    messages = ok(demo.get(f"{session}/messages"))["messages"]
    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", text),
        ("user", text),
        ("assistant", text),
    ]
    assert all(message["tokens"] is None and message["data"] is None for message in messages)


def test_of_too_many_messages_the_oldest_leave(service: Service) -> None:
    with service.client("sk-small") as small:
        small.headers["x-client"] = unique("oldest")
        session = new_session(small)
        for number in range(1, 8):
            say(small, session, str(number))
        assert contents(small, session) == ["3", "4", "5", "6", "7"]
        assert ok(small.get(session))["message_count"] == 5


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("title", {"title": "x" * 301}),
        ("title", {"title": 7}),
        ("user_id", {"user_id": ""}),
        ("user_id", {"user_id": "x" * 257}),
        ("ttl_s", {"ttl_s": 0}),
        ("ttl_s", {"ttl_s": 1e12}),
        ("ttl_s", {"ttl_s": "soon"}),
        ("metadata", {"metadata": {str(number): "x" for number in range(17)}}),
        ("metadata", {"metadata": ["x"]}),
        ("metadata.k", {"metadata": {"k": "x" * 513}}),
        ("metadata.k", {"metadata": {"k": 1}}),
        ("colour", {"colour": "blue"}),
    ],
)
def test_a_session_that_is_not_as_it_must_be_is_refused_by_its_field(
    demo: httpx.Client, field: str, body: dict[str, Any]
) -> None:
    assert field in refused_fields(demo.post("/chat/sessions", json=body))


def test_the_largest_allowed_fields_are_allowed(demo: httpx.Client) -> None:
    metadata = {"é" * 63 + chr(ord("a") + number): "ü" * 512 for number in range(16)}
    session = new_session(demo, title="ß" * 300, user_id="ñ" * 256, metadata=metadata)
    assert ok(demo.get(session))["metadata"] == metadata


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("role", {"role": "tool", "content": "x"}),
        ("role", {"content": "x"}),
        ("content", {"role": "user"}),
        ("content", {"role": "user", "content": ""}),
        ("content", {"role": "user", "content": "x" * 32_001}),
        ("id", {"role": "user", "content": "x", "id": 1}),
    ],
)
def test_a_message_that_is_not_as_it_must_be_is_refused_by_its_field(
    demo: httpx.Client, field: str, body: dict[str, Any]
) -> None:
    session = new_session(demo)
    assert field in refused_fields(demo.post(f"{session}/messages", json=body))
    assert contents(demo, session) == []


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 101}, {"limit": "x"}, {"after": "x" * 65}])
def test_a_page_that_can_not_be_is_refused_by_its_parameter(demo: httpx.Client, query: dict[str, Any]) -> None:
    assert set(refused_fields(demo.get("/chat/sessions", params=query))) == set(query)


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 1001}, {"before": 0}, {"before": 2**63}])
def test_a_page_of_history_that_can_not_be_is_refused_by_its_parameter(
    demo: httpx.Client, query: dict[str, Any]
) -> None:
    assert set(refused_fields(demo.get(f"{new_session(demo)}/messages", params=query))) == set(query)
