"""Over the wire: is a fork a session of its own that begins as another did?"""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.integration.calls import contents, new_session, ok, problem, refused_fields, say, unique
from tests.integration.conftest import Service


def said(client: httpx.Client, count: int = 4, **fields: object) -> str:
    session = new_session(client, **fields)
    for number in range(1, count + 1):
        say(client, session, f"message {number}")
    return session


@pytest.mark.parametrize("key", ["sk-demo", "sk-acme"])
def test_a_fork_begins_as_its_original_and_goes_on_by_itself(service: Service, key: str) -> None:
    with service.client(key) as client:
        user = unique("forks")
        original = said(client, title="T", user_id=user, metadata={"k": "v"}, ttl_s=3600)
        fork = ok(client.post(f"{original}/fork", json={"before": 3}), 201)
        path = f"/chat/sessions/{fork['id']}"
        assert ok(client.get(path)) == fork
        assert (fork["title"], fork["user_id"], fork["metadata"], fork["message_count"]) == ("T", user, {"k": "v"}, 2)
        assert fork["expires_at"] == pytest.approx(fork["last_active_at"] + 3600)
        assert contents(client, path) == ["message 1", "message 2"]
        assert say(client, path, "another way") == 3
        assert contents(client, original) == [f"message {number}" for number in range(1, 5)]
        listed = ok(client.get("/chat/sessions", params={"user_id": user}))["sessions"]
        assert {one["id"] for one in listed} == {fork["id"], original.rpartition("/")[2]}


@pytest.mark.parametrize("body", [None, {}, {"before": None}, {"before": 2**53}])
def test_without_a_message_to_stop_at_all_is_copied(demo: httpx.Client, body: object) -> None:
    original = said(demo, 3)
    fork = ok(demo.post(f"{original}/fork", json=body), 201)
    assert contents(demo, f"/chat/sessions/{fork['id']}") == contents(demo, original)


def test_a_question_can_be_asked_in_a_fork(demo: httpx.Client) -> None:
    asked = {"message": "Say one.", "stream": False, "retrieve": False, "max_tokens": 4}
    first = ok(demo.post("/chat", json=asked))
    original = f"/chat/sessions/{first['session_id']}"
    fork = ok(demo.post(f"{original}/fork", json={"before": 2}), 201)
    again = ok(demo.post("/chat", json={**asked, "message": None, "session_id": fork["id"], "regenerate": True}))
    assert contents(demo, f"/chat/sessions/{fork['id']}") == ["Say one.", again["text"]]
    assert contents(demo, original) == ["Say one.", first["text"]]
    assert ok(demo.get(f"{original}/turns"))["turns"][0]["id"] != again["turn_id"]


async def test_a_fork_that_many_make_at_once_with_one_key_is_one(service: Service, demo: httpx.Client) -> None:
    user = unique("once")
    original = said(demo, user_id=user)
    headers = {"Idempotency-Key": unique("fork")}
    async with service.async_client() as client:
        answers = await asyncio.gather(*[client.post(f"{original}/fork", headers=headers) for _ in range(8)])
    made = {answer.json()["id"] for answer in answers if answer.status_code == 201}
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len(made) == 1
    again = demo.post(f"{original}/fork", headers=headers)
    assert (ok(again, 201)["id"], again.headers["idempotent-replayed"]) == (made.pop(), "true")
    assert len(ok(demo.get("/chat/sessions", params={"user_id": user}))["sessions"]) == 2
    other = demo.post(f"{original}/fork", headers=headers, json={"before": 2})
    assert list(refused_fields(other)) == ["Idempotency-Key"]


@pytest.mark.parametrize("before", [0, -1, 2**54, "two", 1.5])
def test_a_message_that_can_not_be_is_refused(demo: httpx.Client, before: object) -> None:
    assert list(refused_fields(demo.post(f"{new_session(demo)}/fork", json={"before": before}))) == ["before"]


def test_a_session_that_is_not_there_or_anothers_can_not_be_forked(demo: httpx.Client, acme: httpx.Client) -> None:
    original = said(demo)
    problem(acme.post(f"{original}/fork"), 404)
    assert demo.delete(original).status_code == 204
    problem(demo.post(f"{original}/fork"), 404)
