"""Does a request that is sent again with its Idempotency-Key change nothing, and get the same answer?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from actors import ChatSession, ObjectOverloaded
from actors.runtime.clock import ManualClock
from deployments.documents import Ingested, NewDocument
from deployments.ingress import app as ingress
from deployments.ingress.documents import KEYED_DOCUMENTS_MAX
from deployments.ingress.problem import MEDIA_TYPE
from deployments.ingress.services import Services
from tests.unit.handles import EchoModel, FailingObjects, Handle, services_over, tenant

TENANTS = {"acme": tenant("acme"), "demo": tenant("demo")}
CRASH = ObjectOverloaded("ChatSession/acme:s", "the process ended here", 1.0)
SAY = {"role": "user", "content": "hello"}


class Parts:
    """An ingest that stores nothing. Fails as `becomes` says, one entry for each request."""

    def __init__(self) -> None:
        self.stored: list[list[NewDocument]] = []
        self.becomes: list[Ingested] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def store(self, tenant: str, documents: Sequence[NewDocument]) -> list[Ingested]:
        self.stored.append(list(documents))
        await self.may_end.wait()
        if self.becomes:
            return [self.becomes.pop(0)]
        status: Any = "stored" if len(self.stored) == 1 else "unchanged"
        return [Ingested(document.id or document.filename, 1, status) for document in documents]


@pytest.fixture
def objects(tmp_path: Path, clock: ManualClock) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, clock)
    yield objects
    objects.close()


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def services(objects: FailingObjects, parts: Parts, clock: ManualClock) -> Services:
    return services_with(objects, parts, clock)


def services_with(objects: FailingObjects, parts: Parts, clock: ManualClock) -> Services:
    behind = Handle(parts)
    return services_over(
        objects, clock, TENANTS, chat=behind, model=EchoModel(), embedding=behind, ingest=behind, search=behind
    )


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """Made once, since describing the API takes a while; each test puts its own services behind it."""
    objects = FailingObjects(tmp_path_factory.mktemp("built"))
    built = ingress.build(services_with(objects, Parts(), ManualClock()))
    objects.close()
    return built


@pytest.fixture
async def client(app: FastAPI, services: Services) -> AsyncIterator[httpx.AsyncClient]:
    app.state.services = services
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"authorization": "Bearer sk-acme"}
    async with httpx.AsyncClient(transport=transport, base_url="http://mobula", headers=headers) as client:
        yield client


def key(value: str = "k1", **more: str) -> dict[str, str]:
    return {"idempotency-key": value, **more}


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    body: dict[str, Any] = response.json()
    return body


async def new_session(client: httpx.AsyncClient) -> str:
    return f"/chat/sessions/{(await client.post('/chat/sessions')).json()['id']}"


async def listed(client: httpx.AsyncClient) -> list[str]:
    return [session["id"] for session in (await client.get("/chat/sessions")).json()["sessions"]]


def documents(*texts: str) -> dict[str, Any]:
    return {"documents": [{"id": f"d{number}", "text": text} for number, text in enumerate(texts)]}


async def test_a_repeated_message_is_said_once_and_answered_alike(
    client: httpx.AsyncClient, clock: ManualClock
) -> None:
    session = await new_session(client)
    first = await client.post(f"{session}/messages", json=SAY, headers=key())
    clock.advance(5)
    other = await client.post(f"{session}/messages", json=SAY, headers=key("k2"))
    again = await client.post(f"{session}/messages", json=SAY, headers=key())
    assert (first.status_code, first.json()["id"], other.json()["id"]) == (201, 1, 2)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert (await client.get(session)).json()["message_count"] == 2


async def test_the_listing_does_not_go_back_when_an_old_message_is_repeated(
    client: httpx.AsyncClient, clock: ManualClock
) -> None:
    session = await new_session(client)
    for number in ("k1", "k2", "k1"):
        clock.advance(5)
        await client.post(f"{session}/messages", json=SAY, headers=key(number))
    (entry,) = (await client.get("/chat/sessions")).json()["sessions"]
    assert entry == (await client.get(session)).json()
    assert entry["message_count"] == 2


async def test_a_key_with_another_body_is_refused_and_named(client: httpx.AsyncClient) -> None:
    session = await new_session(client)
    for path, body, other in (
        (f"{session}/messages", SAY, {**SAY, "content": "bye"}),
        ("/chat/sessions", {"title": "a"}, {"title": "b"}),
        ("/ingest", documents("fish"), documents("bird")),
    ):
        assert (await client.post(path, json=body, headers=key())).is_success
        refused = problem(await client.post(path, json=other, headers=key()), 422)
        assert refused["errors"] == [
            {"field": "Idempotency-Key", "problem": "was used for another request", "value": "k1"}
        ]
        assert (await client.post(path, json=body, headers=key())).is_success
    assert (await client.get(session)).json()["message_count"] == 1


async def test_a_key_counts_for_one_session_alone(client: httpx.AsyncClient) -> None:
    one, other = await new_session(client), await new_session(client)
    for session in (one, other):
        assert (await client.post(f"{session}/messages", json=SAY, headers=key())).json()["id"] == 1
        assert (await client.get(session)).json()["message_count"] == 1


async def test_a_message_that_was_refused_may_be_sent_again_with_its_key(client: httpx.AsyncClient) -> None:
    session = await new_session(client)
    problem(await client.post(f"{session}/messages", json={**SAY, "content": ""}, headers=key()), 422)
    assert (await client.post(f"{session}/messages", json=SAY, headers=key())).status_code == 201


async def test_a_repeated_session_is_the_same_one_as_it_was_then(client: httpx.AsyncClient, clock: ManualClock) -> None:
    first = await client.post("/chat/sessions", json={"title": "a", "user_id": "ann"}, headers=key())
    session = f"/chat/sessions/{first.json()['id']}"
    clock.advance(5)
    await client.patch(session, json={"title": "b"})
    await client.post(f"{session}/messages", json=SAY)
    again = await client.post("/chat/sessions", json={"user_id": "ann", "title": "a"}, headers=key())
    assert (again.status_code, again.content) == (201, first.content)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert (await client.get(session)).json()["title"] == "b"
    assert await listed(client) == [first.json()["id"]]


async def test_a_deleted_session_is_not_made_again_by_a_repeat(client: httpx.AsyncClient) -> None:
    first = await client.post("/chat/sessions", headers=key())
    session = f"/chat/sessions/{first.json()['id']}"
    assert (await client.delete(session)).status_code == 204
    again = await client.post("/chat/sessions", headers=key())
    assert (again.status_code, again.content) == (201, first.content)
    problem(await client.get(session), 404)
    assert await listed(client) == []


@pytest.mark.parametrize("when", ["failing", "failing_after"])
@pytest.mark.parametrize(
    "step", [("Directory", "put"), ("ChatSession", "create"), ("KeyValue", "swap")], ids=lambda step: ".".join(step)
)
async def test_a_session_that_was_cut_off_anywhere_is_finished_by_a_repeat_and_never_made_twice(
    client: httpx.AsyncClient,
    objects: FailingObjects,
    clock: ManualClock,
    tmp_path: Path,
    step: tuple[str, str],
    when: str,
) -> None:
    getattr(objects, when)[step] = [CRASH]
    problem(await client.post("/chat/sessions", json={"title": "a"}, headers=key()), 503)
    clock.advance(60)  # where even the claim could not be given up
    again = await client.post("/chat/sessions", json={"title": "a"}, headers=key())
    assert again.status_code == 201
    session_id = again.json()["id"]
    assert await listed(client) == [session_id]
    assert (await client.get(f"/chat/sessions/{session_id}")).json() == again.json()
    assert len(list(tmp_path.glob("objects/ChatSession/**/*.sqlite"))) == 1


async def test_two_tenants_with_one_key_do_not_meet(client: httpx.AsyncClient) -> None:
    other = key(authorization="Bearer sk-demo")
    ours = await client.post("/chat/sessions", json={"title": "a"}, headers=key())
    theirs = await client.post("/chat/sessions", json={"title": "b"}, headers=other)
    assert (ours.status_code, theirs.status_code) == (201, 201)
    assert (ours.json()["tenant"], theirs.json()["tenant"]) == ("acme", "demo")
    assert "idempotent-replayed" not in theirs.headers


async def test_repeated_documents_are_answered_as_they_were_stored(client: httpx.AsyncClient, parts: Parts) -> None:
    first = await client.post("/ingest", json=documents("fish", "bird"), headers=key())
    spaced = documents("fish", "bird")
    again = await client.post("/ingest", content=str(spaced).replace("'", '"').replace(",", " ,"), headers=key())
    assert [one["status"] for one in first.json()["documents"]] == ["stored", "stored"]
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert len(parts.stored) == 1


async def test_the_same_files_are_the_same_request_whatever_divides_them(
    client: httpx.AsyncClient, parts: Parts
) -> None:
    def files(data: bytes) -> Any:
        return [("files", ("a.md", data, "text/markdown"))]

    first = await client.post("/ingest", files=files(b"fish"), headers=key())
    again = await client.post("/ingest", files=files(b"fish"), headers=key())
    assert first.request.headers["content-type"] != again.request.headers["content-type"]
    assert again.content == first.content
    problem(await client.post("/ingest", files=files(b"bird"), headers=key()), 422)
    assert len(parts.stored) == 1


async def test_documents_that_could_not_be_stored_for_now_are_tried_again(
    client: httpx.AsyncClient, parts: Parts
) -> None:
    parts.becomes = [
        Ingested("d0", 0, "failed", "could not be stored; send it again later", retryable=True),
        Ingested("d0", 0, "failed", "holds no text"),
    ]
    answers = [await client.post("/ingest", json=documents("fish"), headers=key()) for _ in range(3)]
    errors = [answer.json()["documents"][0]["error"] for answer in answers]
    assert errors == ["could not be stored; send it again later", "holds no text", "holds no text"]
    assert len(parts.stored) == 2
    assert answers[0].json()["documents"][0].keys() == {"document_id", "chunks", "status", "error"}


async def test_documents_under_way_are_answered_409(client: httpx.AsyncClient, parts: Parts) -> None:
    parts.may_end.clear()
    asked = asyncio.create_task(client.post("/ingest", json=documents("fish"), headers=key()))
    async with asyncio.timeout(30):
        while not parts.stored:
            await asyncio.sleep(0)
    busy = await client.post("/ingest", json=documents("fish"), headers=key())
    assert "Idempotency-Key" in problem(busy, 409)["detail"]
    assert busy.headers["retry-after"] == "1"
    parts.may_end.set()
    first = await asked
    assert (await client.post("/ingest", json=documents("fish"), headers=key())).content == first.content
    assert len(parts.stored) == 1


async def test_with_a_key_there_is_a_limit_to_the_documents_whose_answer_is_kept(client: httpx.AsyncClient) -> None:
    many = documents(*["fish"] * (KEYED_DOCUMENTS_MAX + 1))
    problem(await client.post("/ingest", json=many, headers=key()), 422)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("8e03978e-40d5-43dd", '"8e03978e-40d5-43dd"'),
        (r'a"b\c', r'"a\"b\\c"'),
        ("k1", ' "k1"\t'),
        ("x" * 255, f'"{"x" * 255}"'),
        ("a,b", '"a,b"'),
        ("!", '"!"'),
    ],
)
async def test_a_key_may_stand_in_quotes(client: httpx.AsyncClient, one: str, other: str) -> None:
    first = await client.post("/chat/sessions", headers=key(one))
    assert first.status_code == 201
    again = await client.post("/chat/sessions", headers=key(other))
    assert again.content == first.content


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        '""',
        '"',
        '"a',
        '"a"b',
        '"a";b=1',
        '"a", "b"',
        "a b",
        '"a b"',
        '"\\a"',
        '"a\\"',
        "x" * 256,
        "é",
        "a\x01",
    ],
)
@pytest.mark.parametrize("path", ["/chat/sessions", "/ingest", f"/chat/sessions/s{'0' * 32}/messages"])
async def test_what_is_no_key_is_refused(client: httpx.AsyncClient, parts: Parts, path: str, value: str) -> None:
    body = SAY if path.endswith("messages") else documents("fish") if path == "/ingest" else {}
    refused = await client.post(path, json=body, headers={b"idempotency-key": value.encode("latin-1")})
    assert problem(refused, 400)["detail"].startswith("Idempotency-Key: ")
    assert (parts.stored, await listed(client)) == ([], [])


async def test_two_keys_are_no_key(client: httpx.AsyncClient) -> None:
    headers = [("idempotency-key", "k1"), ("idempotency-key", "k2")]
    problem(await client.post("/chat/sessions", headers=headers), 400)
    assert await listed(client) == []


async def test_without_a_key_every_request_counts(client: httpx.AsyncClient, parts: Parts) -> None:
    for _ in range(2):
        assert (await client.post("/chat/sessions")).status_code == 201
        assert (await client.post("/ingest", json=documents("fish"))).status_code == 200
    assert len(await listed(client)) == len(parts.stored) == 2


async def test_the_key_is_described_where_it_is_taken_and_nowhere_else(app: FastAPI) -> None:
    taking = {
        path
        for path, operations in app.openapi()["paths"].items()
        for operation in operations.values()
        if any(parameter["name"] == "Idempotency-Key" for parameter in operation.get("parameters", []))
    }
    openai = {"chat/completions", "conversations", "conversations/{conversation_id}/items", "responses"}
    own = {
        "/chat",
        "/chat/sessions",
        "/chat/sessions/{session_id}/messages",
        "/chat/sessions/{session_id}/fork",
        "/ingest",
    }
    assert taking == own | {f"/v1/{path}" for path in openai}


async def test_a_repeat_of_a_session_goes_to_the_objects_no_more_than_it_must(
    client: httpx.AsyncClient, objects: FailingObjects
) -> None:
    await client.post("/chat/sessions", headers=key())
    objects.calls.clear()
    await client.post("/chat/sessions", headers=key())
    assert ChatSession.__name__ not in {class_name for class_name, _ in objects.calls}
