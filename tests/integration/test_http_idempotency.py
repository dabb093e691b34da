"""Over the wire: is a request that is sent again done once, and answered as it was?"""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.integration.calls import contents, eventually, new_session, ok, problem, refused_fields, unique
from tests.integration.conftest import Service

AT_ONCE = 10


def key(name: str = "key") -> dict[str, str]:
    return {"Idempotency-Key": unique(name)}


def listed(client: httpx.Client, user_id: str) -> list[str]:
    page = ok(client.get("/chat/sessions", params={"user_id": user_id}))
    return [session["id"] for session in page["sessions"]]


async def until_done(client: httpx.AsyncClient, path: str, body: Any, headers: dict[str, str]) -> httpx.Response:
    """Sends a request as a careful client does: again, while the first with its key is under way."""
    async with asyncio.timeout(60):
        while True:
            answer = await client.post(path, json=body, headers=headers)
            if answer.status_code != 409:
                return answer
            problem(answer, 409)
            await asyncio.sleep(int(answer.headers["retry-after"]))


def answered_alike(answers: list[httpx.Response], status: int) -> None:
    assert {answer.status_code for answer in answers} == {status}
    assert len({answer.content for answer in answers}) == 1


async def test_a_message_that_many_send_at_once_with_one_key_is_said_once(service: Service, demo: httpx.Client) -> None:
    session = new_session(demo)
    headers, body = key(), {"role": "user", "content": "once"}
    async with service.async_client() as client:
        sending = [client.post(f"{session}/messages", json=body, headers=headers) for _ in range(AT_ONCE)]
        answered_alike(await asyncio.gather(*sending), 201)
    assert contents(demo, session) == ["once"]
    other = demo.post(f"{session}/messages", json={**body, "content": "twice"}, headers=headers)
    assert refused_fields(other) == {"Idempotency-Key": headers["Idempotency-Key"]}
    assert contents(demo, session) == ["once"]


async def test_a_session_that_many_make_at_once_with_one_key_is_one(service: Service, demo: httpx.Client) -> None:
    user_id = unique("user")
    headers, body = key(), {"user_id": user_id, "title": "One"}
    async with service.async_client() as client:
        making = [until_done(client, "/chat/sessions", body, headers) for _ in range(AT_ONCE)]
        answered_alike(await asyncio.gather(*making), 201)
    assert len(listed(demo, user_id)) == 1
    assert "Idempotency-Key" in refused_fields(demo.post("/chat/sessions", json={"title": "Two"}, headers=headers))


async def test_documents_that_many_send_at_once_with_one_key_are_stored_once(
    service: Service, demo: httpx.Client
) -> None:
    headers = key()
    body = {"documents": [{"id": unique("doc"), "text": "The bell was cast in bronze."}, {"text": unique("text")}]}
    async with service.async_client() as client:
        answers = await asyncio.gather(*[until_done(client, "/ingest", body, headers) for _ in range(AT_ONCE)])
        answered_alike(answers, 200)
    assert [one["status"] for one in answers[0].json()["documents"]] == ["stored", "stored"]
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert "Idempotency-Key" in refused_fields(
        demo.post("/ingest", json={"documents": body["documents"][:1]}, headers=headers)
    )


def test_two_tenants_with_one_key_do_not_meet(demo: httpx.Client, acme: httpx.Client) -> None:
    headers = key()
    for number, client in enumerate((demo, acme)):
        made = client.post("/chat/sessions", json={"title": f"of {number}"}, headers=headers)
        session = ok(made, 201)
        assert session["title"] == f"of {number}"
        said = client.post(
            f"/chat/sessions/{session['id']}/messages", json={"role": "user", "content": f"{number}"}, headers=headers
        )
        assert ok(said, 201)["id"] == 1
        stored = client.post(
            "/ingest", json={"documents": [{"id": headers["Idempotency-Key"], "text": f"{number}"}]}, headers=headers
        )
        assert ok(stored)["documents"][0]["status"] == "stored"
        for answer in (made, said, stored):
            assert "idempotent-replayed" not in answer.headers


@pytest.mark.parametrize("value", ["", "a b", '"open', "x" * 256])
def test_what_is_no_key_is_refused(demo: httpx.Client, value: str) -> None:
    assert "Idempotency-Key" in problem(demo.post("/chat/sessions", headers={"Idempotency-Key": value}), 400)["detail"]


def test_repeats_are_answered_alike_after_every_host_was_killed(service: Service, demo: httpx.Client) -> None:
    user_id = unique("user")
    headers = key()
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/chat/sessions", {"user_id": user_id}),
        (f"{new_session(demo)}/messages", {"role": "user", "content": "kept"}),
        ("/ingest", {"documents": [{"id": unique("doc"), "text": "A shark is a fish."}]}),
    ]
    first = [demo.post(path, json=body, headers=headers) for path, body in requests]
    assert [answer.status_code for answer in first] == [201, 201, 200]

    assert service.kill("ray::ObjectHost") > 0

    eventually(lambda: demo.get("/readyz").status_code == 200)
    for (path, body), before in zip(requests, first, strict=True):
        again = demo.post(path, json=body, headers=headers)
        assert (again.status_code, again.content) == (before.status_code, before.content)
    assert listed(demo, user_id) == [first[0].json()["id"]]
