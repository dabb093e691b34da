"""Is every refusal told as it must be, and does no input get past the limits or break the service?"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.integration.calls import new_session, ok, problem, refused_fields
from tests.integration.conftest import Service
from tests.openapi import resolved

#: What the service's configuration for tests says.
BODY_BYTES_MAX = 1024 * 1024
JSON = {"Content-Type": "application/json"}


def chunks(size_bytes: int) -> Iterator[bytes]:
    """A body whose length is not declared."""
    for _ in range(0, size_bytes, 65536):
        yield b" " * 65536


def test_an_unknown_route_is_a_problem(demo: httpx.Client) -> None:
    assert problem(demo.get("/nothing/here"), 404)["type"] == "about:blank"


def test_a_method_that_a_route_does_not_have_is_a_problem_that_names_those_it_has(demo: httpx.Client) -> None:
    response = demo.put("/chat")
    problem(response, 405)
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"{", id="cut off"),
        pytest.param(b'{"title": "x"} and more', id="followed by something"),
        pytest.param(b"{'title': 'x'}", id="in single quotes"),
        pytest.param(b"\xff\xfe\x00{}", id="not UTF-8"),
        pytest.param(b'{"title": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="nested too deep"),
        pytest.param(b'{"ttl_s": ' + b"9" * 100_000 + b"}", id="a number too long"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b'"text"', id="a string"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused_as_a_whole(demo: httpx.Client, body: bytes) -> None:
    assert list(refused_fields(demo.post("/chat/sessions", content=body, headers=JSON))) == ["body"]
    assert list(refused_fields(demo.post("/ingest", content=body, headers=JSON))) == ["body"]


def test_a_body_that_is_not_declared_as_json_is_refused(demo: httpx.Client) -> None:
    for content_type in ("text/plain", "application/xml", ""):
        refused = demo.post("/chat", content=b'{"message": "x"}', headers={"Content-Type": content_type})
        assert list(refused_fields(refused)) == ["body"]


@pytest.mark.parametrize(
    ("path", "body", "field", "value"),
    [
        ("/chat/sessions", '{"title": "\\ud800"}', "title", r"'\ud800'"),
        ("/chat/sessions", '{"metadata": {"k": "\\udfff"}}', "metadata.k", r"'\udfff'"),
        ("/chat/sessions", '{"ttl_s": NaN}', "ttl_s", "nan"),
        ("/chat/sessions", '{"ttl_s": Infinity}', "ttl_s", "inf"),
        ("/chat/sessions", '{"ttl_s": 1e999}', "ttl_s", "inf"),
        ("/chat", '{"message": "\\ud83d"}', "message", r"'\ud83d'"),
        ("/chat", '{"message": "x", "temperature": NaN}', "temperature", "nan"),
        ("/chat", '{"message": "x", "max_tokens": 0}', "max_tokens", "0"),
        ("/chat", '{"message": "x", "max_tokens": 99999999999999999999}', "max_tokens", "99999999999999999999"),
        ("/chat", '{"message": ""}', "message", "''"),
        ("/search", '{"query": "\\udc00"}', "query", r"'\udc00'"),
        ("/search", '{"query": "x", "top_k": 51}', "top_k", "51"),
        ("/search", '{"query": "x", "filter": {"k": NaN}}', "filter.k", "nan"),
        ("/search", '{"query": "x", "filter": {"k": null}}', "filter.k", "None"),
        ("/search", '{"query": "x", "filter": {"k": [1]}}', "filter.k", "[1]"),
        ("/search", '{"query": "x", "filter": {"k": 9007199254740993}}', "filter.k", "9007199254740993"),
        ("/ingest", '{"documents": []}', "documents", "[]"),
        ("/ingest", '{"documents": [{"text": ""}]}', "documents.0.text", "''"),
        ("/ingest", '{"documents": [{"text": "x", "id": "a\\u0000b"}]}', "documents.0.id", r"'a\x00b'"),
        ("/ingest", '{"documents": [{"text": "x", "metadata": {"n": NaN}}]}', "documents.0.metadata.n", "nan"),
        ("/ingest", '{"documents": [{"text": "x", "metadata": {"n": {}}}]}', "documents.0.metadata.n", "{}"),
        ("/ratelimit/check", '{"cost": NaN}', "cost", "nan"),
        ("/ratelimit/check", '{"cost": -1}', "cost", "-1"),
        ("/ratelimit/check", '{"cost": 1e300}', "cost", "1e+300"),
        ("/ratelimit/reset", '{"client": "\\ud800"}', "client", r"'\ud800'"),
    ],
)
def test_a_refusal_names_the_field_and_its_value(
    demo: httpx.Client, path: str, body: str, field: str, value: str
) -> None:
    assert refused_fields(demo.post(path, content=body, headers=JSON)) == {field: value}


def test_a_value_is_shown_cut_and_never_whole(demo: httpx.Client) -> None:
    shown = refused_fields(demo.post("/chat/sessions", json={"title": "x" * 10_000}))["title"]
    assert shown.endswith("...")
    assert len(shown) <= 80


def test_every_field_that_is_at_fault_is_named(demo: httpx.Client) -> None:
    body = {"title": 1, "user_id": "", "ttl_s": -1, "colour": "blue"}
    assert set(refused_fields(demo.post("/chat/sessions", json=body))) == set(body)


@pytest.mark.parametrize("path", ["/chat/sessions", "/chat", "/ingest", "/search", "/kv/k", "/nothing/here"])
def test_a_body_that_is_too_long_is_refused_whether_or_not_its_length_is_declared(
    demo: httpx.Client, path: str
) -> None:
    method = "PUT" if path.startswith("/kv") else "POST"
    declared = demo.request(method, path, content=b" " * (BODY_BYTES_MAX + 1), headers=JSON)
    assert str(BODY_BYTES_MAX) in problem(declared, 413)["detail"]
    if path != "/nothing/here":  # nobody reads what is sent there
        chunked = demo.request(method, path, content=chunks(2 * BODY_BYTES_MAX), headers=JSON)
        assert problem(chunked, 413) == problem(declared, 413)


def test_a_form_that_is_too_long_is_refused_whether_or_not_its_length_is_declared(demo: httpx.Client) -> None:
    files = {"files": ("a.txt", b"x" * (BODY_BYTES_MAX + 1), "text/plain")}
    request = demo.build_request("POST", "/ingest", files=files)
    problem(demo.send(request), 413)
    chunked = (request.read()[at : at + 65536] for at in range(0, len(request.read()), 65536))
    problem(demo.post("/ingest", content=chunked, headers={"Content-Type": request.headers["content-type"]}), 413)


def test_a_body_of_the_greatest_length_is_read(demo: httpx.Client) -> None:
    body = b'{"title": "x"}'
    padded = body + b" " * (BODY_BYTES_MAX - len(body))
    assert ok(demo.post("/chat/sessions", content=padded, headers=JSON), 201)["title"] == "x"


def test_a_refused_body_leaves_the_service_as_it_was(demo: httpx.Client) -> None:
    session = new_session(demo)
    for _ in range(3):
        problem(demo.post(f"{session}/messages", content=chunks(4 * BODY_BYTES_MAX), headers=JSON), 413)
    assert ok(demo.get(session))["message_count"] == 0


def test_a_form_that_is_none_is_refused(demo: httpx.Client) -> None:
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=a"):
        refused = demo.post("/ingest", content=b"x", headers={"Content-Type": content_type})
        assert list(refused_fields(refused)) == ["body"]


def test_a_form_without_a_file_is_refused(demo: httpx.Client) -> None:
    boundary = {"Content-Type": "multipart/form-data; boundary=a"}
    field = b'--a\r\nContent-Disposition: form-data; name="files"\r\n\r\nno file\r\n--a--\r\n'
    assert list(refused_fields(demo.post("/ingest", content=field, headers=boundary))) == ["files"]


def test_more_documents_than_a_request_may_hold_are_refused(demo: httpx.Client) -> None:
    documents = [{"id": f"many-{number}", "text": "x"} for number in range(101)]
    assert list(refused_fields(demo.post("/ingest", json={"documents": documents}))) == ["documents"]
    files = [("files", (f"many-{number}.txt", b"x", "text/plain")) for number in range(101)]
    assert list(refused_fields(demo.post("/ingest", files=files))) == ["body"]
    problem(demo.get("/documents/many-0"), 404)


def test_the_interface_describes_itself(service: Service) -> None:
    with service.client(None) as nobody:
        described = ok(nobody.get("/openapi.json"))
        assert described["info"]["title"] == "Mobula"
        assert described["paths"]["/chat"]["post"]["security"] == [{"key": []}]
        assert "security" not in described["paths"]["/healthz"]["get"]
        assert "application/problem+json" in described["paths"]["/chat"]["post"]["responses"]["429"]["content"]
        page = nobody.get("/docs")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        assert "/openapi.json" in page.text


def test_every_reference_in_the_description_leads_somewhere(service: Service) -> None:
    with service.client(None) as nobody:
        described = ok(nobody.get("/openapi.json"))
    assert resolved(described)
