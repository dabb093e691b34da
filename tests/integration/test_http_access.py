"""Who may do what, and can a tenant ever see what is another's?"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.integration.calls import contents, found_by, ingest, new_session, ok, problem, say, unique
from tests.integration.conftest import Service

#: Every route that needs a key, and the scope that it needs; None: any key will do.
ROUTES = [
    ("POST", "/chat/sessions", "chat"),
    ("GET", "/chat/sessions", "chat"),
    ("GET", "/chat/sessions/{session_id}", "chat"),
    ("PATCH", "/chat/sessions/{session_id}", "chat"),
    ("DELETE", "/chat/sessions/{session_id}", "chat"),
    ("GET", "/chat/sessions/{session_id}/messages", "chat"),
    ("POST", "/chat/sessions/{session_id}/messages", "chat"),
    ("POST", "/chat/sessions/{session_id}/fork", "chat"),
    ("GET", "/chat/sessions/{session_id}/usage", "chat"),
    ("GET", "/chat/sessions/{session_id}/export", "chat"),
    ("GET", "/chat/sessions/{session_id}/turns", "chat"),
    ("GET", "/chat/sessions/{session_id}/turns/{turn_id}", "chat"),
    ("POST", "/chat/sessions/{session_id}/turns/{turn_id}/cancel", "chat"),
    ("GET", "/chat/sessions/{session_id}/turns/{turn_id}/events", "chat"),
    ("POST", "/chat", "chat"),
    ("GET", "/chat/{chat_id}/stream", "chat"),
    ("GET", "/chat/{chat_id}/messages", "chat"),
    ("GET", "/usage", "chat"),
    ("POST", "/ingest", "ingest"),
    ("GET", "/documents", "ingest"),
    ("GET", "/documents/{document_id}", "ingest"),
    ("DELETE", "/documents/{document_id}", "ingest"),
    ("POST", "/search", "search"),
    ("GET", "/kv", "kv"),
    ("GET", "/kv/{key}", "kv"),
    ("PUT", "/kv/{key}", "kv"),
    ("DELETE", "/kv/{key}", "kv"),
    ("POST", "/v1/chat/completions", "chat"),
    ("GET", "/v1/models", "chat"),
    ("GET", "/v1/models/{model}", "chat"),
    ("POST", "/v1/embeddings", "search"),
    ("POST", "/v1/conversations", "chat"),
    ("GET", "/v1/conversations/{conversation_id}", "chat"),
    ("POST", "/v1/conversations/{conversation_id}", "chat"),
    ("DELETE", "/v1/conversations/{conversation_id}", "chat"),
    ("POST", "/v1/conversations/{conversation_id}/items", "chat"),
    ("GET", "/v1/conversations/{conversation_id}/items", "chat"),
    ("GET", "/v1/conversations/{conversation_id}/items/{item_id}", "chat"),
    ("DELETE", "/v1/conversations/{conversation_id}/items/{item_id}", "chat"),
    ("POST", "/v1/responses", "chat"),
    ("GET", "/v1/responses/{response_id}", "chat"),
    ("DELETE", "/v1/responses/{response_id}", "chat"),
    ("POST", "/v1/responses/{response_id}/cancel", "chat"),
    ("GET", "/v1/responses/{response_id}/input_items", "chat"),
    ("POST", "/ratelimit/check", None),
    ("GET", "/ratelimit/usage", None),
    ("POST", "/ratelimit/reset", "admin"),
    ("GET", "/admin/objects", "admin"),
    ("GET", "/admin/objects/{class_name}", "admin"),
    ("DELETE", "/admin/objects/{class_name}", "admin"),
    ("POST", "/admin/objects/{class_name}/query", "admin"),
    ("POST", "/admin/objects/{class_name}/evict", "admin"),
    ("POST", "/admin/objects/{class_name}/alarm", "admin"),
    ("POST", "/admin/objects/{class_name}/release", "admin"),
    ("GET", "/admin/objects/{class_name}/export", "admin"),
    ("PUT", "/admin/objects/{class_name}/import", "admin"),
]
SESSION_ROUTES = [(method, path) for method, path, _ in ROUTES if "{session_id}" in path]
MALFORMED_IDS = [
    "x",
    "s123",
    "S" + "0" * 32,
    "s" + "0" * 31 + "g",
    "s" + "0" * 33,
    "demo:s1",
    "%2e%2e",
    "%00",
    "é",
    "*",
]


def of_someone(path: str, session_id: str = "s" + "0" * 32) -> str:
    # Of the others, no id has the right form.
    others = dict.fromkeys(("conversation_id", "item_id", "model", "response_id"), "x")
    return path.format(
        session_id=session_id,
        turn_id="t" + "0" * 24,
        chat_id="c",
        document_id="d",
        key="k",
        class_name="KeyValue",
        **others,
    )


def body_of(method: str, path: str) -> dict[str, Any] | None:
    """What the route accepts, so that an id alone decides."""
    bodies: dict[tuple[str, str], dict[str, Any]] = {
        ("PATCH", "/chat/sessions/{session_id}"): {"title": "taken over"},
        ("POST", "/chat/sessions/{session_id}/messages"): {"role": "user", "content": "taken over"},
    }
    return bodies.get((method, path))


@pytest.fixture
def nobody(service: Service) -> Any:
    with service.client(None) as client:
        yield client


def test_the_routes_tested_here_are_all_that_there_are(nobody: httpx.Client) -> None:
    paths = ok(nobody.get("/openapi.json"))["paths"]
    described = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    assert described - {("GET", "/healthz"), ("GET", "/readyz"), ("POST", "/admin/reload")} == {
        (method, path) for method, path, _ in ROUTES
    }


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_no_route_is_served_without_a_known_key(
    nobody: httpx.Client, method: str, path: str, scope: str | None
) -> None:
    url = of_someone(path)
    for authorization in (None, "Bearer sk-unknown", "Bearer", "Basic c2stZGVtbzo=", "sk-demo", "Token sk-demo"):
        headers = {} if authorization is None else {"Authorization": authorization}
        response = nobody.request(method, url, headers=headers)
        if path.startswith("/v1/"):
            assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        else:
            problem(response, 401)
        assert response.headers["www-authenticate"].startswith("Bearer ")


@pytest.mark.parametrize(
    "key", ["sk-demo\u00a0", "SK-DEMO", "sk-demo,sk-acme", "sk-dem", "sk-demo0", "x" * 5000, "\udcff"]
)
def test_a_key_counts_only_as_it_is(nobody: httpx.Client, key: str) -> None:
    headers = {b"Authorization": f"Bearer {key}".encode("utf-8", "surrogateescape")}
    problem(nobody.get("/chat/sessions", headers=headers), 401)


def test_the_scheme_may_be_written_in_any_case(nobody: httpx.Client) -> None:
    for authorization in ("bearer sk-demo", "BEARER sk-demo", "Bearer  sk-demo"):
        ok(nobody.get("/ratelimit/usage", headers={"Authorization": authorization}))


def test_a_key_in_the_query_or_a_cookie_is_none(nobody: httpx.Client) -> None:
    problem(nobody.get("/chat/sessions", params={"api_key": "sk-demo", "tenant": "demo"}), 401)
    problem(nobody.get("/chat/sessions", headers={"Cookie": "authorization=Bearer sk-demo"}), 401)


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_a_key_opens_only_what_its_scopes_allow(service: Service, method: str, path: str, scope: str | None) -> None:
    with service.client("sk-chat-only") as client:
        response = client.request(method, of_someone(path))
    if scope in ("chat", None):
        assert response.status_code not in (401, 403)
    elif path.startswith("/v1/"):
        assert (response.status_code, response.json()["error"]["code"]) == (403, "missing_scope")
    else:
        assert problem(response, 403)["scope"] == scope


def test_health_is_open_to_everybody(nobody: httpx.Client) -> None:
    assert ok(nobody.get("/healthz")) == {"status": "ok"}
    assert ok(nobody.get("/readyz")) == {"status": "ok", "failing": {}}


@pytest.mark.parametrize(("key", "other_key"), [("sk-demo", "sk-acme"), ("sk-acme", "sk-demo")])
def test_a_session_of_another_tenant_does_not_exist(service: Service, key: str, other_key: str) -> None:
    with service.client(key) as owner, service.client(other_key) as stranger:
        session = new_session(owner, title="mine")
        say(owner, session, "private")
        before = ok(owner.get(session))
        session_id = session.rpartition("/")[2]
        unknown = problem(stranger.get(of_someone("/chat/sessions/{session_id}")), 404)
        for method, path in SESSION_ROUTES:
            url = of_someone(path, session_id)
            # Nothing tells a session of another's from one that never was.
            assert problem(stranger.request(method, url, json=body_of(method, path)), 404) == unknown
        for stream in (True, False):
            asked = {"message": "what was said?", "session_id": session_id, "stream": stream}
            assert problem(stranger.post("/chat", json=asked), 404) == unknown
        assert session_id not in [one["id"] for one in ok(stranger.get("/chat/sessions"))["sessions"]]
        assert ok(owner.get(session)) == before
        assert contents(owner, session) == ["private"]


@pytest.mark.parametrize("key", ["sk-demo", "sk-acme"])
@pytest.mark.parametrize(("method", "path"), SESSION_ROUTES)
def test_what_is_no_session_id_is_not_found(service: Service, key: str, method: str, path: str) -> None:
    with service.client(key) as client:
        for session_id in MALFORMED_IDS:
            problem(client.request(method, of_someone(path, session_id), json=body_of(method, path)), 404)


@pytest.mark.parametrize("session_id", ["x", "", "s" + "0" * 32, "../acme:s1", "s1\x00"])
def test_a_chat_in_what_is_no_session_is_not_found_before_any_event(demo: httpx.Client, session_id: str) -> None:
    problem(demo.post("/chat", json={"message": "hello", "session_id": session_id}), 404)


def test_documents_of_the_same_id_are_each_tenants_own(demo: httpx.Client, acme: httpx.Client) -> None:
    document_id = unique("same")
    ingest(demo, {"id": document_id, "title": "Of demo", "text": "The quokka colony is on Rottnest island."})
    problem(acme.get(f"/documents/{document_id}"), 404)
    problem(acme.delete(f"/documents/{document_id}"), 404)
    assert document_id not in found_by(acme, "quokka colony", top_k=50)

    ingest(acme, {"id": document_id, "title": "Of acme", "text": "The quarterly figures are confidential."})
    assert ok(demo.get(f"/documents/{document_id}"))["title"] == "Of demo"
    assert ok(acme.get(f"/documents/{document_id}"))["title"] == "Of acme"
    for query, asked_for in (("quokka colony on the island", "Of demo"), ("confidential quarterly figures", "Of acme")):
        for client, title in ((demo, "Of demo"), (acme, "Of acme")):
            results = ok(client.post("/search", json={"query": query, "top_k": 50}))["results"]
            titles = {result["title"] for result in results if result["document_id"] == document_id}
            # The other tenant's own document is about something else, and may be among its best 50 or not.
            assert titles == {title} or (title != asked_for and not titles)

    assert demo.delete(f"/documents/{document_id}").status_code == 204
    assert ok(acme.get(f"/documents/{document_id}"))["title"] == "Of acme"
    assert document_id in found_by(acme, "confidential quarterly figures")
    assert acme.delete(f"/documents/{document_id}").status_code == 204


def test_the_search_cache_of_a_tenant_serves_no_other(demo: httpx.Client, acme: httpx.Client) -> None:
    document_id = unique("cached")
    query = {"query": f"where is {document_id}?"}
    ingest(demo, {"id": document_id, "text": f"The treasure {document_id} is under the old oak."})
    assert document_id in found_by(demo, **query)
    assert ok(demo.post("/search", json=query))["cached"] is True
    assert document_id not in found_by(acme, **query)


def test_keys_of_the_same_name_are_each_tenants_own(demo: httpx.Client, acme: httpx.Client) -> None:
    key = f"/kv/{unique('same')}"
    ok(demo.put(key, json={"value": "of demo"}))
    problem(acme.get(key), 404)
    problem(acme.delete(key), 404)
    ok(acme.put(key, json={"value": "of acme"}))
    assert ok(demo.get(key))["value"] == "of demo"
    assert demo.delete(key).status_code == 204
    assert ok(acme.get(key))["value"] == "of acme"


def test_a_tenant_named_in_a_request_changes_nothing(demo: httpx.Client, acme: httpx.Client) -> None:
    key = unique("named")
    ok(acme.put(f"/kv/{key}", json={"value": 1}))
    problem(demo.get(f"/kv/{key}", params={"tenant": "acme"}, headers={"X-Tenant": "acme"}), 404)
    problem(demo.post("/chat/sessions", json={"tenant": "acme"}), 422)
