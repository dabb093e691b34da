"""Are the objects of a running service looked after over HTTP, by whom they concern and nobody else?"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.calls import contents, new_session, ok, problem, refused_fields, say, unique
from tests.integration.conftest import Service

ADMIN = "/admin/objects"
ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def operator(service: Service) -> Iterator[httpx.Client]:
    with service.client("sk-operator") as client:
        yield client


def session_of(client: httpx.Client, *said: str) -> str:
    """The name of a new session's object."""
    session = new_session(client)
    for content in said:
        say(client, session, content)
    return session.rpartition("/")[2]


def query(client: httpx.Client, name: str, sql: str, **more: Any) -> httpx.Response:
    params = {"name": name, **({"tenant": more.pop("tenant")} if "tenant" in more else {})}
    return client.post(f"{ADMIN}/ChatSession/query", params=params, json={"sql": sql, **more})


@pytest.mark.parametrize("key", ["sk-demo", "sk-acme"])
def test_a_session_is_listed_and_described_pooled_or_dedicated(service: Service, key: str) -> None:
    with service.client(key) as client:
        name = session_of(client, "hello")
        listed = ok(client.get(ADMIN, params={"class": "ChatSession", "prefix": name}))
        (found,) = listed["objects"]
        assert listed["next"] is None
        assert (found["class"], found["tenant"], found["name"]) == ("ChatSession", key.removeprefix("sk-"), name)
        described = ok(client.get(f"{ADMIN}/ChatSession", params={"name": name}))
        assert (described["resident"], described["quarantined"], described["problem"]) == (True, False, None)
        assert described["size_bytes"] > 0
        assert described["schema_version"]


def test_objects_come_page_by_page(demo: httpx.Client) -> None:
    made = {session_of(demo) for _ in range(5)}
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        params = {"class": "ChatSession", "limit": "2", **({"after": after} if after else {})}
        page = ok(demo.get(ADMIN, params=params))
        seen += [found["name"] for found in page["objects"]]
        after = page["next"]
    assert seen == sorted(seen)
    assert len(seen) == len(set(seen))
    assert made <= set(seen)


def test_what_is_another_tenants_does_not_exist(demo: httpx.Client, acme: httpx.Client) -> None:
    name = session_of(demo, "private")
    path = f"{ADMIN}/ChatSession"
    for params in ({"name": name}, {"name": name, "tenant": "demo"}, {"name": name, "tenant": "nobody"}):
        requests = [
            acme.get(path, params=params),
            acme.delete(path, params=params),
            acme.post(f"{path}/query", params=params, json={"sql": "SELECT 1"}),
            acme.post(f"{path}/evict", params=params),
            acme.post(f"{path}/alarm", params=params),
            acme.post(f"{path}/release", params=params),
            acme.get(f"{path}/export", params=params),
        ]
        if "tenant" in params:
            requests += [acme.put(f"{path}/import", params={**params, "replace": "true"}, content=b"x")]
            requests += [acme.get(ADMIN, params={"tenant": params["tenant"]})]
        assert len({problem(response, 404)["detail"] for response in requests}) == 1
    assert {found["tenant"] for found in ok(acme.get(ADMIN))["objects"]} <= {"acme"}
    assert contents(demo, f"/chat/sessions/{name}") == ["private"]


def test_an_operator_reaches_every_tenant(operator: httpx.Client, acme: httpx.Client) -> None:
    name = session_of(acme, "of acme")
    assert ok(query(operator, name, "SELECT content FROM message", tenant="acme"))["rows"] == [["of acme"]]
    problem(query(operator, name, "SELECT content FROM message"), 404)  # its own tenant has no such session
    found = ok(operator.get(ADMIN, params={"class": "ChatSession", "prefix": name}))["objects"]
    assert [one["tenant"] for one in found] == ["acme"]
    problem(operator.get("/chat/sessions"), 403)  # being one opens nothing but what its other scopes do


def test_a_query_reads_and_nothing_else(demo: httpx.Client) -> None:
    name = session_of(demo, "first", "second")
    answer = ok(query(demo, name, "SELECT id, content FROM message WHERE id > ? ORDER BY id", binds=[0], rows_max=1))
    assert answer == {"columns": ["id", "content"], "rows": [[1, "first"]], "truncated": True}
    assert ok(query(demo, name, "SELECT NULL, 1.5, x'00ff', 9e999"))["rows"] == [
        [None, 1.5, {"base64": "AP8="}, {"float": "inf"}]
    ]
    for sql in (
        "DELETE FROM message",
        "DROP TABLE message",
        "PRAGMA journal_mode = DELETE",
        "ATTACH 'x' AS y",
        "SELEC",
    ):
        assert list(refused_fields(query(demo, name, sql))) == ["sql"]
    assert list(refused_fields(query(demo, name, "SELECT ?", binds=[{}]))) == ["binds.0"]
    assert contents(demo, f"/chat/sessions/{name}") == ["first", "second"]


def test_an_endless_query_is_stopped(demo: httpx.Client) -> None:
    name = session_of(demo, "first")
    assert "longer than" in problem(query(demo, name, ENDLESS, timeout_s=0.2), 422)["detail"]
    assert contents(demo, f"/chat/sessions/{name}") == ["first"]


@pytest.mark.parametrize("key", ["sk-demo", "sk-acme"])
def test_an_export_is_a_database_and_comes_back_by_an_import(service: Service, key: str, tmp_path: Path) -> None:
    with service.client(key) as client:
        name = session_of(client, "kept", "x" * 30_000)
        exported = client.get(f"{ADMIN}/ChatSession/export", params={"name": name})
        assert exported.status_code == 200
        assert exported.headers["content-type"] == "application/vnd.sqlite3"
        file = tmp_path / "session.sqlite"
        file.write_bytes(exported.content)
        with closing(sqlite3.connect(file)) as copy:
            assert copy.execute("SELECT content FROM message WHERE id = 1").fetchall() == [("kept",)]
            copy.execute("CREATE TABLE ballast AS SELECT zeroblob(12000000) AS b")  # above the limit of other bodies
            copy.commit()
        say(client, f"/chat/sessions/{name}", "newer")
        to = {"name": name}
        problem(client.put(f"{ADMIN}/ChatSession/import", params=to, content=file.read_bytes()), 409)
        imported = client.put(f"{ADMIN}/ChatSession/import", params={**to, "replace": True}, content=file.read_bytes())
        assert ok(imported)["size_bytes"] > 12_000_000
        assert contents(client, f"/chat/sessions/{name}") == ["kept", "x" * 30_000]


def test_what_is_no_database_is_refused(demo: httpx.Client) -> None:
    for content in (b"", b"no database"):
        response = demo.put(f"{ADMIN}/ChatSession/import", params={"name": unique("new")}, content=content)
        assert list(refused_fields(response)) == ["database"]


def test_an_object_is_evicted_and_deleted(demo: httpx.Client, service: Service) -> None:
    name = session_of(demo, "first")
    params = {"name": name}
    ok(demo.post(f"{ADMIN}/ChatSession/evict", params=params), 204)
    assert not ok(demo.get(f"{ADMIN}/ChatSession", params=params))["resident"]
    ok(demo.post(f"{ADMIN}/ChatSession/evict", params={**params, "force": "true"}), 204)
    assert ok(demo.post(f"{ADMIN}/ChatSession/alarm", params=params)) == {"fired": False}
    assert ok(demo.post(f"{ADMIN}/ChatSession/release", params=params)) == {"released": False}
    assert contents(demo, f"/chat/sessions/{name}") == ["first"]
    ok(demo.delete(f"{ADMIN}/ChatSession", params=params), 204)
    assert service.files_of(name) == []
    problem(demo.get(f"{ADMIN}/ChatSession", params=params), 404)


@pytest.mark.parametrize("name", ["a/b", "../demo:x", "a?b&c=d", "é\n", "%2e", ":", "a.sqlite", "x" * 235])
def test_names_of_any_kind_are_names(demo: httpx.Client, name: str) -> None:
    problem(demo.get(f"{ADMIN}/KeyValue", params={"name": name}), 404)


@pytest.mark.parametrize(
    ("path", "params", "field"),
    [
        (ADMIN, {"class": "Nobody"}, "class"),
        (ADMIN, {"limit": "101"}, "limit"),
        (ADMIN, {"after": "x"}, "after"),
        (f"{ADMIN}/KeyValue", {}, "name"),
        (f"{ADMIN}/KeyValue", {"name": ""}, "name"),
    ],
)
def test_what_is_asked_wrong_is_named(demo: httpx.Client, path: str, params: dict[str, str], field: str) -> None:
    assert list(refused_fields(demo.get(path, params=params))) == [field]
