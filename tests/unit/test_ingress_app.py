"""Does the HTTP interface, as a whole and by itself, let in what it should and answer what it promises?"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from fastapi import FastAPI
from ray.exceptions import RayActorError

from actors import ObjectReset
from actors.runtime.clock import ManualClock
from actors.runtime.object_id import ObjectId
from actors.runtime.quarantine import CRASHES_MAX
from configs.limits import TenantLimits
from configs.service import HttpConfig, RequestLimits, ServiceConfig
from configs.tenant import KeyConfig
from deployments.chat_request import ChatRequest, Finished, ModelEvent
from deployments.documents import Found, Ingested, NewDocument
from deployments.ingress import app as ingress
from deployments.ingress.addresses import ClientAddresses
from deployments.ingress.problem import MEDIA_TYPE, OBJECT_QUARANTINED
from deployments.ingress.services import Services
from deployments.question import Asked, Question
from tests.conformance.classes import Desk
from tests.openapi import resolved
from tests.rate_limit_fields import fields
from tests.unit.handles import CLASSES, SCOPES, EchoModel, FailingObjects, Handle, services_over, tenant

CONFIG = ServiceConfig(limits=RequestLimits(body_bytes_max=4096, message_chars_max=100, query_chars_max=50))
JSON = {"content-type": "application/json"}
SESSION = "s" + "0" * 32
TURN = "t" + "0" * 24
CONVERSATION = "conv_" + "0" * 32
RESPONSE = "resp_" + "0" * 56
ITEM = f"msg_{'0' * 32}_1"


def _keys(name: str) -> list[KeyConfig]:
    """One with all scopes, one for each scope alone."""
    every = KeyConfig.model_validate({"id": "all", "plain": f"sk-{name}", "scopes": list(SCOPES)})
    return [every] + [
        KeyConfig.model_validate({"id": scope, "plain": f"sk-{name}-{scope}", "scopes": [scope]})
        for scope in sorted(SCOPES)
    ]


TENANTS = {
    "acme": tenant("acme", keys=_keys("acme"), limits=TenantLimits(capacity=1000, refill_per_second=1)),
    "small": tenant("small", limits=TenantLimits(capacity=3, refill_per_second=0.5, client_key=("ip",))),
}


class Parts:
    """What stands behind the ingress: notes what it is asked, and answers what it is told to."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def begin(self, question: Question) -> Asked:
        self.asked.append(question)
        return Asked(session_id=SESSION, turn_id=TURN, joined=False)

    async def store(self, tenant: str, documents: Sequence[NewDocument]) -> list[Ingested]:
        self.asked.append((tenant, list(documents)))
        return [Ingested(document.id or document.filename, 1, "stored") for document in documents]

    async def remove(self, tenant: str, document_id: str) -> bool:
        self.asked.append((tenant, document_id))
        return document_id == "here"

    async def find(self, tenant: str, query: str, *, top_k: int | None = None, where: Any = None) -> Found:
        self.asked.append((tenant, query, top_k, where))
        return Found([], cached=True)

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ModelEvent, None]:
        self.asked.append(request)
        yield Finished(finish_reason="stop", input_tokens=1, output_tokens=0, estimated=False)

    async def embed(self, texts: list[str]) -> npt.NDArray[np.float32]:
        return np.ones((len(texts), 2), dtype=np.float32)

    async def tokens(self, texts: list[str]) -> int:
        return len(texts)

    async def ready(self) -> bool:
        return True


@pytest.fixture
def objects(tmp_path: Path, clock: ManualClock) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, clock)
    yield objects
    objects.close()


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def behind(parts: Parts) -> Handle:
    return Handle(parts)


@pytest.fixture
def services(objects: FailingObjects, behind: Handle, clock: ManualClock) -> Services:
    return services_with(objects, behind, clock)


def services_with(objects: FailingObjects, behind: Handle, clock: ManualClock) -> Services:
    return services_over(
        objects,
        clock,
        TENANTS,
        config=CONFIG,
        chat=behind,
        model=EchoModel(),
        embedding=behind,
        ingest=behind,
        search=behind,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """Made once, since describing the API takes a while; each test puts its own services behind it."""
    objects = FailingObjects(tmp_path_factory.mktemp("built"))
    app = ingress.build(services_with(objects, Handle(object()), ManualClock()))
    objects.close()
    return app


@pytest.fixture
async def client(built: FastAPI, services: Services) -> AsyncIterator[httpx.AsyncClient]:
    built.state.services = services
    transport = httpx.ASGITransport(app=built, raise_app_exceptions=False, client=("10.0.0.1", 1234))
    headers = {"authorization": "Bearer sk-acme"}
    async with httpx.AsyncClient(transport=transport, base_url="http://mobula", headers=headers) as client:
        yield client


def _key(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    if response.request.url.path.startswith("/v1/"):
        error: dict[str, Any] = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error
    assert response.headers["content-type"] == MEDIA_TYPE
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert {"type", "title", "detail"} <= body.keys()
    return body


#: Each authenticated route with the scope that it needs (None: any key), and a request that it takes.
ROUTES: list[tuple[str, str, str | None, Any]] = [
    ("POST", "/chat", "chat", {"message": "Why?"}),
    ("POST", "/chat/sessions", "chat", {}),
    ("GET", "/chat/sessions", "chat", None),
    ("GET", f"/chat/sessions/{SESSION}", "chat", None),
    ("PATCH", f"/chat/sessions/{SESSION}", "chat", {}),
    ("DELETE", f"/chat/sessions/{SESSION}", "chat", None),
    ("GET", f"/chat/sessions/{SESSION}/messages", "chat", None),
    ("POST", f"/chat/sessions/{SESSION}/messages", "chat", {"role": "user", "content": "x"}),
    ("POST", f"/chat/sessions/{SESSION}/fork", "chat", {}),
    ("GET", f"/chat/sessions/{SESSION}/export", "chat", None),
    ("GET", f"/chat/sessions/{SESSION}/usage", "chat", None),
    ("GET", "/chat/c1/stream", "chat", None),
    ("GET", "/chat/c1/messages", "chat", None),
    ("GET", "/usage", "chat", None),
    ("GET", f"/chat/sessions/{SESSION}/turns", "chat", None),
    ("GET", f"/chat/sessions/{SESSION}/turns/{TURN}", "chat", None),
    ("POST", f"/chat/sessions/{SESSION}/turns/{TURN}/cancel", "chat", None),
    ("GET", f"/chat/sessions/{SESSION}/turns/{TURN}/events", "chat", None),
    ("POST", "/ingest", "ingest", {"documents": [{"text": "fish"}]}),
    ("GET", "/documents", "ingest", None),
    ("GET", "/documents/a/b", "ingest", None),
    ("DELETE", "/documents/a/b", "ingest", None),
    ("POST", "/search", "search", {"query": "fish"}),
    ("GET", "/kv", "kv", None),
    ("GET", "/kv/a/b", "kv", None),
    ("PUT", "/kv/a/b", "kv", {"value": 1}),
    ("DELETE", "/kv/a/b", "kv", None),
    ("POST", "/ratelimit/check", None, {}),
    ("GET", "/ratelimit/usage", None, None),
    ("POST", "/ratelimit/reset", "admin", {}),
    ("POST", "/v1/chat/completions", "chat", {"model": "default", "messages": [{"role": "user", "content": "Why?"}]}),
    ("GET", "/v1/models", "chat", None),
    ("GET", "/v1/models/default", "chat", None),
    ("POST", "/v1/embeddings", "search", {"model": "default", "input": "fish"}),
    ("POST", "/v1/conversations", "chat", {}),
    ("GET", f"/v1/conversations/{CONVERSATION}", "chat", None),
    ("POST", f"/v1/conversations/{CONVERSATION}", "chat", {"metadata": {}}),
    ("DELETE", f"/v1/conversations/{CONVERSATION}", "chat", None),
    ("POST", f"/v1/conversations/{CONVERSATION}/items", "chat", {"items": [{"role": "user", "content": "x"}]}),
    ("GET", f"/v1/conversations/{CONVERSATION}/items", "chat", None),
    ("GET", f"/v1/conversations/{CONVERSATION}/items/{ITEM}", "chat", None),
    ("DELETE", f"/v1/conversations/{CONVERSATION}/items/{ITEM}", "chat", None),
    ("POST", "/v1/responses", "chat", {"input": "Why?"}),
    ("GET", f"/v1/responses/{RESPONSE}", "chat", None),
    ("DELETE", f"/v1/responses/{RESPONSE}", "chat", None),
    ("POST", f"/v1/responses/{RESPONSE}/cancel", "chat", None),
    ("GET", f"/v1/responses/{RESPONSE}/input_items", "chat", None),
    ("GET", "/admin/objects", "admin", None),
    ("GET", "/admin/objects/KeyValue?name=x", "admin", None),
    ("DELETE", "/admin/objects/KeyValue?name=x", "admin", None),
    ("POST", "/admin/objects/KeyValue/query?name=x", "admin", {"sql": "SELECT 1"}),
    ("POST", "/admin/objects/KeyValue/evict?name=x", "admin", None),
    ("POST", "/admin/objects/KeyValue/alarm?name=x", "admin", None),
    ("POST", "/admin/objects/KeyValue/release?name=x", "admin", None),
    ("GET", "/admin/objects/KeyValue/export?name=x", "admin", None),
    ("PUT", "/admin/objects/KeyValue/import?name=x", "admin", None),
]

#: Needs two scopes at once.
RELOAD = ("POST", "/admin/reload")


async def _remaining(client: httpx.AsyncClient) -> float:
    response = await client.get("/ratelimit/usage", headers=_key("sk-acme"))
    return float(response.json()["remaining"])


def test_the_routes_above_are_all_there_are(built: FastAPI) -> None:
    described = {
        (method.upper(), path)
        for path, operations in built.openapi()["paths"].items()
        for method in operations
        if path not in ("/healthz", "/readyz")
    }
    parts = {
        SESSION: "{session_id}",
        TURN: "{turn_id}",
        "/chat/c1/": "/chat/{chat_id}/",
        "/kv/a/b": "/kv/{key}",
        "a/b": "{document_id}",
        "KeyValue": "{class_name}",
        CONVERSATION: "{conversation_id}",
        RESPONSE: "{response_id}",
        ITEM: "{item_id}",
        "models/default": "models/{model}",
    }
    named = set()
    for method, path, _, _ in ROUTES:
        for part, parameter in parts.items():
            path = path.replace(part, parameter)
        named.add((method, path.removesuffix("?name=x")))
    assert named | {RELOAD} == described


def test_every_reference_of_the_description_leads_somewhere(built: FastAPI) -> None:
    description = json.loads(json.dumps(built.openapi()))
    assert description["openapi"].startswith("3.1")
    assert resolved(description)


def test_every_authenticated_route_is_described_as_such_with_what_it_may_refuse(built: FastAPI) -> None:
    for path, operations in built.openapi()["paths"].items():
        for operation in operations.values():
            if path in ("/healthz", "/readyz"):
                assert "security" not in operation
                continue
            assert operation["security"] == [{"key": []}]
            if path.startswith("/v1/"):
                for status in ("400", "401", "403", "404", "413", "429", "503"):
                    assert "application/json" in operation["responses"][status]["content"]
                assert "422" not in operation["responses"]
                continue
            for status in ("401", "403", "404", "413", "422", "429", "503"):
                content = operation["responses"][status]["content"]
                assert MEDIA_TYPE in content or (status == "429" and path == "/ratelimit/check")


async def test_the_description_and_its_page_are_served(client: httpx.AsyncClient) -> None:
    assert (await client.get("/openapi.json")).json()["info"]["title"] == "Mobula"
    assert "text/html" in (await client.get("/docs")).headers["content-type"]


@pytest.mark.parametrize(("method", "path", "scope", "body"), ROUTES)
async def test_a_route_is_closed_to_who_has_no_key_and_costs_nothing_then(
    client: httpx.AsyncClient, objects: FailingObjects, method: str, path: str, scope: str | None, body: Any
) -> None:
    for authorization in ("", "Bearer sk-nobody", "Basic sk-acme", "Bearer sk-acme2"):
        response = await client.request(method, path, json=body, headers={"authorization": authorization})
        _problem(response, 401)
        assert response.headers["www-authenticate"].startswith("Bearer")
    assert objects.calls == []


@pytest.mark.parametrize(("method", "path", "scope", "body"), ROUTES)
async def test_a_route_is_open_to_its_scope_alone_and_costs_one_token_or_is_free(
    client: httpx.AsyncClient, objects: FailingObjects, method: str, path: str, scope: str | None, body: Any
) -> None:
    for other in sorted(SCOPES - {scope}) if scope else []:
        refused = await client.request(method, path, json=body, headers=_key(f"sk-acme-{other}"))
        problem = _problem(refused, 403)
        assert problem.get("scope", scope) == scope
        assert repr(scope) in problem.get("detail", problem.get("message", ""))
    assert objects.calls == []

    opened = await client.request(method, path, json=body, headers=_key(f"sk-acme-{scope or 'kv'}"))
    # An import without a body is looked at, and is none.
    assert opened.status_code in (200, 201, 204, 404) or (opened.status_code == 422 and "import" in path), opened.text
    free = path in ("/ratelimit/usage", "/ratelimit/reset")
    assert objects.calls.count(("TokenBucket", "check")) == (0 if free else 1)


@pytest.mark.parametrize(("method", "path", "scope", "body"), ROUTES)
async def test_every_response_to_a_known_caller_tells_the_limits_whatever_it_is(
    client: httpx.AsyncClient, objects: FailingObjects, method: str, path: str, scope: str | None, body: Any
) -> None:
    policy = {"default": {"q": 1000, "w": 1000}}
    opened = await client.request(method, path, json=body)
    assert fields(opened, "RateLimit-Policy") == policy
    if path.endswith("/reset"):
        assert "RateLimit" not in opened.headers
    else:
        left = 1000 if path.endswith("/usage") and path.startswith("/ratelimit") else 999
        assert fields(opened, "RateLimit") == {"default": {"r": left, "t": 1000 - left}}
    if scope is not None:
        refused = await client.request(method, path, json=body, headers=_key(f"sk-acme-{min(SCOPES - {scope})}"))
        assert refused.status_code == 403
        assert fields(refused, "RateLimit-Policy") == policy
    stranger = await client.request(method, path, json=body, headers=_key("sk-nobody"))
    assert not {"ratelimit", "ratelimit-policy"} & stranger.headers.keys()


async def test_a_denied_request_is_told_which_policies_and_when(client: httpx.AsyncClient) -> None:
    small = _key("sk-small")
    for left in (2, 1, 0):
        response = await client.get("/kv", headers=small)
        assert fields(response, "RateLimit-Policy") == {"default": {"q": 3, "w": 6}}
        assert fields(response, "RateLimit") == {"default": {"r": left, "t": (3 - left) * 2}}
    for path in ("/kv", "/v1/models", "/documents/none"):
        denied = await client.get(path, headers=small)
        told = _problem(denied, 429)
        if not path.startswith("/v1/"):
            assert told["violated-policies"] == ["default"]
        assert fields(denied, "RateLimit") == {"default": {"r": 0, "t": 2}}
        assert denied.headers["retry-after"] == "2"


async def test_errors_of_all_kinds_tell_the_limits(client: httpx.AsyncClient, objects: FailingObjects) -> None:
    objects.failing["KeyValue", "list"] = [RuntimeError("/data/secret"), ObjectReset("KeyValue/acme:store", "lost")]
    for path, status in (("/kv", 500), ("/kv", 503), ("/kv/none", 404), ("/kv?limit=x", 422)):
        response = await client.get(path)
        assert response.status_code == status
        assert set(fields(response, "RateLimit")) == {"default"}


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/nowhere", "", 404),
        ("GET", "/v1/nowhere", "", 404),
        ("PUT", "/search", "", 405),
        ("POST", "/search/", "", 307),
        ("POST", "/search", "x" * 5000, 413),
        ("POST", "/ratelimit/check", "x" * 5000, 413),
        ("GET", "/healthz", "", 200),
    ],
)
async def test_what_is_answered_before_its_key_is_looked_at_tells_a_known_caller_the_policies(
    client: httpx.AsyncClient, objects: FailingObjects, method: str, path: str, content: str, status: int
) -> None:
    answer = await client.request(method, path, content=content, headers=JSON)
    assert answer.status_code == status
    assert fields(answer, "RateLimit-Policy") == {"default": {"q": 1000, "w": 1000}}
    assert "RateLimit" not in answer.headers
    for nobody in ("Bearer sk-nobody", ""):
        stranger = await client.request(method, path, content=content, headers={**JSON, "authorization": nobody})
        assert stranger.status_code == status
        assert not {"ratelimit", "ratelimit-policy"} & stranger.headers.keys()
    assert objects.calls == []


async def test_files_are_read_again_for_those_who_run_the_service(
    objects: FailingObjects, clock: ManualClock, tmp_path: Path
) -> None:
    everybody = {"acme": tenant("acme", keys=[*_keys("acme"), _operator("sk-op", "admin"), _operator("sk-op-only")])}
    folder = tmp_path / "tenants"
    folder.mkdir()
    (folder / "acme.yaml").write_text("tenant: acme")
    config = ServiceConfig(tenants_dir=folder)
    transport = httpx.ASGITransport(app=ingress.build(services_over(objects, clock, everybody, config=config)))
    async with httpx.AsyncClient(transport=transport, base_url="http://mobula") as client:
        method, path = RELOAD
        for key in ("sk-nobody", "sk-acme-chat", "sk-acme-admin", "sk-op-only"):
            refused = await client.request(method, path, headers=_key(key))
            _problem(refused, 401 if key == "sk-nobody" else 403)
        reloaded = await client.request(method, path, headers=_key("sk-op"))
        assert reloaded.json() == {"restart": {}, "problems": {"acme.yaml": "keys: is required"}}


def _operator(key: str, *scopes: str) -> KeyConfig:
    return KeyConfig.model_validate({"id": key, "plain": key, "scopes": [*scopes, "operator"]})


async def test_health_is_told_to_anybody(client: httpx.AsyncClient, objects: FailingObjects) -> None:
    del client.headers["authorization"]
    assert (await client.get("/healthz")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"status": "ok", "failing": {}}
    assert objects.calls == []


async def test_readiness_names_the_parts_that_are_not_there(client: httpx.AsyncClient, behind: Handle) -> None:
    behind.errors["ready"] = RayActorError()
    response = await client.get("/readyz")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json() == {
        "status": "unavailable",
        "failing": dict.fromkeys(("chat and model", "ingest and embedding", "search and vectors"), "RayActorError"),
    }


@pytest.mark.parametrize(
    "path", ["/nowhere", "/chat/", "/chat/sessions/", "/kv/", "/documents/", "//", "/healthz/x", "/v1/nowhere", "/v1/"]
)
async def test_an_unknown_route_is_a_problem(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path)
    assert response.status_code in (307, 404, 405, 422), response.text
    if response.status_code != 307:
        _problem(response, response.status_code)


async def test_a_method_that_a_route_does_not_have_is_a_problem_that_names_those_it_has(
    client: httpx.AsyncClient,
) -> None:
    response = await client.delete("/search")
    _problem(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"message": "\xff"}',
        b'{"message": NaN}',
        b'{"message": "\\ud83d"}',
        b'{"message": "x", "\\ud83d": 1}',
        b'{"message": "x", "temperature": NaN}',
        b'{"message": "x", "temperature": 1e999}',
        b'{"message": "x", "top_k": 1' + b"0" * 400 + b"}",
        b'{"message": "x", "top_k": 1.5}',
        b'{"message": "x", "max_tokens": 0}',
        b'{"message": "x", "misspelt": 1}',
        b'{"message": ""}',
        b'{"message": "' + b"x" * 101 + b'"}',
        b'{"message": ' + b"9" * 3000 + b"}",
        b'{"message": ' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'{"message": ' + b'{"a":' * 600 + b"1" + b"}" * 600 + b"}",
    ],
)
async def test_a_body_that_is_not_as_it_must_be_is_refused_with_the_field(
    client: httpx.AsyncClient, parts: Parts, body: bytes
) -> None:
    problem = _problem(await client.post("/chat", content=body, headers=JSON), 422)
    assert problem["errors"]
    for error in problem["errors"]:
        assert error.keys() == {"field", "problem", "value"}
        assert len(error["value"]) <= 80
    assert parts.asked == []


@pytest.mark.parametrize("body", [b"{", b"", b'{"documents": []}', b'{"documents": [{"text": "\\ud83d"}]}', b"\xff"])
async def test_documents_that_are_not_as_they_must_be_are_refused_alike(
    client: httpx.AsyncClient, parts: Parts, body: bytes
) -> None:
    assert _problem(await client.post("/ingest", content=body, headers=JSON), 422)["errors"]
    assert parts.asked == []


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (b"[" * 99 + b"]" * 99, 200),
        (b"[" * 101 + b"]" * 101, 422),
        (b"[" * 900 + b"]" * 900, 422),
        (b"1" * 3000, 200),
        (b"NaN", 422),
        (b"-Infinity", 422),
        (b'"\\ud83d"', 422),
        (b'{"\\ud83d": 1}', 422),
    ],
)
async def test_a_value_that_was_put_can_always_be_read_again(
    client: httpx.AsyncClient, value: bytes, status: int
) -> None:
    put = await client.put("/kv/k", content=b'{"value": ' + value + b"}", headers=JSON)
    assert put.status_code == status, put.text
    got = await client.get("/kv/k")
    assert got.status_code == (200 if status == 200 else 404)
    if status == 200:
        assert got.json()["value"] == json.loads(value)


async def test_a_body_beyond_the_limit_is_refused_declared_or_not(client: httpx.AsyncClient, parts: Parts) -> None:
    async def undeclared() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 1000

    for path in ("/chat", "/ingest", "/search"):
        _problem(await client.post(path, content=b" " * 5000, headers=JSON), 413)
        _problem(await client.post(path, content=undeclared(), headers=JSON), 413)
    assert parts.asked == []


async def test_a_client_that_used_up_its_bucket_is_told_when_to_come_again(
    client: httpx.AsyncClient, clock: ManualClock
) -> None:
    small = _key("sk-small")
    for _ in range(3):
        assert (await client.get("/kv", headers=small)).status_code == 200
    refused = await client.get("/kv", headers=small)
    assert _problem(refused, 429)["violated-policies"] == ["default"]
    assert refused.headers["retry-after"] == "2"
    assert (await client.get("/ratelimit/usage", headers=small)).json()["remaining"] == 0
    clock.advance(2)
    assert (await client.get("/kv", headers=small)).status_code == 200


async def test_a_check_takes_what_it_says_or_nothing(client: httpx.AsyncClient) -> None:
    small = _key("sk-small")
    allowed = await client.post("/ratelimit/check", json={"cost": 2.5}, headers=small)
    assert allowed.json() == {"allowed": True, "remaining": 0.5, "retry_after_s": 0.0}
    denied = await client.post("/ratelimit/check", json={"cost": 1}, headers=small)
    assert (denied.status_code, denied.headers["retry-after"]) == (429, "1")
    assert denied.json() == {"allowed": False, "remaining": 0.5, "retry_after_s": 1.0}
    assert (await client.post("/ratelimit/reset", headers=small)).status_code == 204
    assert (await client.get("/ratelimit/usage", headers=small)).json()["remaining"] == 3


@pytest.mark.parametrize("peer_header", [None, "x-peer"])
@pytest.mark.parametrize(
    ("lines", "address"),
    [
        ([], "10.0.0.1"),
        (["192.0.2.1"], "192.0.2.1"),
        (["203.0.113.9, 192.0.2.1"], "192.0.2.1"),
        # The client sent a line of its own, and the proxy added another.
        (["203.0.113.9", "192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1, 203.0.113.9", "203.0.113.9,192.0.2.1 "], "192.0.2.1"),
        ([""], "10.0.0.1"),
        (["2001:db8::1"], "2001%3Adb8%3A%3A1"),
        # Two proxies, one behind the other.
        (["203.0.113.9, 192.0.2.1, 10.7.7.7"], "192.0.2.1"),
        (["192.0.2.1", "2001:db8:1::7", "::ffff:10.7.7.7"], "192.0.2.1"),
        # From within: all that is known are proxies.
        (["10.3.3.3, 10.7.7.7"], "10.3.3.3"),
        (["203.0.113.9, 192.0.2.1:4711"], "192.0.2.1"),
        (["[2001:db8::1]:4711"], "2001%3Adb8%3A%3A1"),
        (["192.0.2.1, unknown"], "unknown"),
        ([",".join(["10.7.7.7"] * 1000)], "10.7.7.7"),
    ],
)
async def test_a_clients_address_is_what_the_trusted_proxy_says_and_not_what_the_client_claims(
    client: httpx.AsyncClient,
    built: FastAPI,
    services: Services,
    peer_header: str | None,
    lines: list[str],
    address: str,
) -> None:
    http = HttpConfig(client_ip_header="X-Forwarded-For", trusted_proxies=("10.0.0.0/8", "2001:db8:1::/48"))
    built.state.services = dataclasses.replace(services, addresses=ClientAddresses(http, peer_header))
    headers = [("authorization", "Bearer sk-small"), *[("x-forwarded-for", line) for line in lines]]
    client.headers.pop("authorization")
    assert (await client.get("/ratelimit/usage", headers=headers)).json()["client"] == address


async def test_a_forwarded_address_counts_only_where_a_trusted_proxy_says_it(
    client: httpx.AsyncClient, built: FastAPI, services: Services
) -> None:
    headers = {**_key("sk-small"), "x-forwarded-for": "192.0.2.1"}

    async def address() -> str:
        return str((await client.get("/ratelimit/usage", headers=headers)).json()["client"])

    assert await address() == "10.0.0.1"
    others = HttpConfig(client_ip_header="X-Forwarded-For", trusted_proxies=("10.0.0.2",))
    built.state.services = dataclasses.replace(services, addresses=ClientAddresses(others, None))
    assert await address() == "10.0.0.1"


async def test_who_connects_is_told_by_the_services_own_proxy_and_by_nobody_else(
    client: httpx.AsyncClient, built: FastAPI, services: Services
) -> None:
    headers = {**_key("sk-small"), "x-peer": "192.0.2.1", "x-forwarded-for": "203.0.113.9"}

    async def address(http: HttpConfig, peer_header: str | None) -> str:
        built.state.services = dataclasses.replace(services, addresses=ClientAddresses(http, peer_header))
        return str((await client.get("/ratelimit/usage", headers=headers)).json()["client"])

    assert await address(HttpConfig(), None) == "10.0.0.1"
    assert await address(HttpConfig(), "x-peer") == "192.0.2.1"
    trusting = HttpConfig(client_ip_header="X-Forwarded-For", trusted_proxies=("10.0.0.1",))
    assert await address(trusting, "x-peer") == "192.0.2.1"
    trusting = HttpConfig(client_ip_header="X-Forwarded-For", trusted_proxies=("192.0.2.1",))
    assert await address(trusting, "x-peer") == "203.0.113.9"


async def test_an_object_that_is_restarting_asks_for_patience(
    client: httpx.AsyncClient, objects: FailingObjects
) -> None:
    objects.failing["KeyValue", "put"] = [ObjectReset("KeyValue/acme:store", "its host was lost")]
    response = await client.put("/kv/k", json={"value": 1})
    _problem(response, 503)
    assert response.headers["retry-after"] == "1"
    assert "host" not in response.text


async def test_an_error_that_nobody_foresaw_is_a_500_without_a_word_of_it(
    client: httpx.AsyncClient, objects: FailingObjects
) -> None:
    objects.failing["KeyValue", "list"] = [RuntimeError("/data/secret")]
    assert "secret" not in str(_problem(await client.get("/kv"), 500))


async def test_files_and_json_become_documents_of_the_callers_tenant(client: httpx.AsyncClient, parts: Parts) -> None:
    await client.post("/ingest", json={"documents": [{"id": "a", "text": "fish", "metadata": {"n": 1, "b": True}}]})
    files = [("files", ("notes.md", b"# Notes", "text/markdown")), ("any", ("b.pdf", b"%PDF", "application/pdf"))]
    response = await client.post("/ingest", files=files)
    assert [one["status"] for one in response.json()["documents"]] == ["stored", "stored"]
    assert parts.asked == [
        ("acme", [NewDocument(id="a", text="fish", metadata={"n": 1, "b": True})]),
        (
            "acme",
            [
                NewDocument(filename="notes.md", content_type="text/markdown", data=b"# Notes"),
                NewDocument(filename="b.pdf", content_type="application/pdf", data=b"%PDF"),
            ],
        ),
    ]


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"", "multipart/form-data"),
        (b"x", "multipart/form-data; boundary=b"),
        (b"--b--\r\n", "multipart/form-data; boundary=b"),
        (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n', "multipart/form-data; boundary=b"),
    ],
)
async def test_a_form_without_files_is_refused(
    client: httpx.AsyncClient, parts: Parts, content: bytes, content_type: str
) -> None:
    _problem(await client.post("/ingest", content=content, headers={"content-type": content_type}), 422)
    assert parts.asked == []


async def test_a_search_is_of_the_callers_tenant_with_its_filter(client: httpx.AsyncClient, parts: Parts) -> None:
    response = await client.post("/search", json={"query": "fish", "top_k": 2, "filter": {"a": True}})
    assert response.json() == {"results": [], "cached": True}
    assert parts.asked == [("acme", "fish", 2, {"a": True})]
    _problem(await client.post("/search", json={"query": "x" * 51}), 422)


async def test_a_document_that_is_not_there_cannot_be_removed(client: httpx.AsyncClient) -> None:
    assert (await client.delete("/documents/here")).status_code == 204
    _problem(await client.delete("/documents/not/here"), 404)


async def test_a_request_costs_a_token_even_if_what_it_asks_for_is_not_there(client: httpx.AsyncClient) -> None:
    before = await _remaining(client)
    _problem(await client.get("/kv/nothing"), 404)
    assert await _remaining(client) == before - 1


async def test_what_is_done_to_an_object_is_logged_with_the_key_that_did_it(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    ok = await client.put("/kv/a", json={"value": 1})
    assert ok.status_code == 200
    params = {"name": "store"}
    assert (await client.get("/admin/objects/KeyValue", params=params)).status_code == 200
    assert caplog.messages == []
    queried = await client.post("/admin/objects/KeyValue/query", params=params, json={"sql": "SELECT 1"})
    assert queried.json() == {"columns": ["1"], "rows": [[1]], "truncated": False}
    missing = await client.delete("/admin/objects/KeyValue", params={"name": "a\nb"})
    assert missing.status_code == 404
    assert caplog.messages == [
        "action=query object=KeyValue/acme:store by_tenant=acme by_key=all",
        "action=delete object=KeyValue/acme:a%0Ab by_tenant=acme by_key=all",
    ]


async def test_a_quarantined_object_is_listed_as_such_and_answers_again_when_it_was_released(
    client: httpx.AsyncClient, objects: FailingObjects
) -> None:
    await client.put("/kv/a", json={"value": 1})
    params = {"name": "store"}
    assert (await client.post("/admin/objects/KeyValue/evict", params=params)).status_code == 204
    assert await _quarantined(client) == []
    for _ in range(CRASHES_MAX):
        objects.host.quarantine.crashed(ObjectId("KeyValue", "acme", "store"), "put")
    assert _problem(await client.get("/kv/a"), 503)["type"] == OBJECT_QUARANTINED
    assert await _quarantined(client) == [("KeyValue", "acme", "store")]
    described = (await client.get("/admin/objects/KeyValue", params=params)).json()
    assert described["quarantined"]
    assert "its put ended the host's process" in described["problem"]
    release = "/admin/objects/KeyValue/release"
    assert (await client.post(release, params=params)).json() == {"released": True}
    assert await _quarantined(client) == []
    assert (await client.get("/kv/a")).json()["value"] == 1
    assert (await client.post(release, params=params)).json() == {"released": False}


async def _quarantined(client: httpx.AsyncClient) -> list[tuple[str, str, str]]:
    """Class, tenant and name. In the whole list they are among the others."""
    found = [
        (await client.get("/admin/objects", params={"quarantined": quarantined})).json()["objects"]
        for quarantined in ("true", "false")
    ]
    assert [one for one in found[1] if one["quarantined"]] == found[0]
    return [(one["class"], one["tenant"], one["name"]) for one in found[0]]


async def test_an_alarm_that_is_fired_before_its_time_runs_its_handler_and_is_over(
    client: httpx.AsyncClient, built: FastAPI, behind: Handle, clock: ManualClock, tmp_path: Path
) -> None:
    with contextlib.closing(FailingObjects(tmp_path / "desks", clock, classes=(*CLASSES, Desk))) as objects:
        built.state.services = services_with(objects, behind, clock)
        desk = objects.namespace(Desk).get("acme", "d")
        at = await desk.set_alarm_in(3_600)
        params = {"name": "d"}
        assert (await client.get("/admin/objects/Desk", params=params)).json()["alarm_at"] == at
        assert (await client.post("/admin/objects/Desk/alarm", params=params)).json() == {"fired": True}
        assert [run["scheduled_at"] for run in await desk.runs()] == [at]
        assert (await client.get("/admin/objects/Desk", params=params)).json()["alarm_at"] is None
        assert (await client.post("/admin/objects/Desk/alarm", params=params)).json() == {"fired": False}
        assert len(await desk.runs()) == 1


async def test_the_objects_of_another_tenant_are_an_operators_to_see_alone(
    client: httpx.AsyncClient, objects: FailingObjects, clock: ManualClock
) -> None:
    running = tenant("running", keys=[_operator("sk-op", "admin"), _operator("sk-op-only")])
    everybody = {**TENANTS, "running": running}
    transport_app = ingress.build(services_over(objects, clock, everybody))
    await client.put("/kv/a", json={"value": 1})
    transport = httpx.ASGITransport(app=transport_app)
    async with httpx.AsyncClient(transport=transport, base_url="http://mobula") as other:
        of_acme = {"name": "store", "tenant": "acme"}
        described = await other.get("/admin/objects/KeyValue", params=of_acme, headers=_key("sk-op"))
        assert described.json()["tenant"] == "acme"
        listed = await other.get("/admin/objects", params={"class": "KeyValue"}, headers=_key("sk-op"))
        assert [one["tenant"] for one in listed.json()["objects"]] == ["acme"]
        _problem(await other.get("/admin/objects/KeyValue", params=of_acme, headers=_key("sk-small")), 404)
        _problem(await other.get("/admin/objects", params={"tenant": "acme"}, headers=_key("sk-small")), 404)
        # It widens what another scope allows, and allows nothing by itself.
        _problem(await other.get("/admin/objects", headers=_key("sk-op-only")), 403)
