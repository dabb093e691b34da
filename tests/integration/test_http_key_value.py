"""Does the HTTP interface keep a tenant's values under any key?"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.integration.calls import eventually, ok, problem, refused_fields, unique


def url_of(key: str) -> str:
    """Every byte escaped: what a key holds must not be taken for a part of the URL."""
    return "/kv/" + "".join(f"%{byte:02X}" for byte in key.encode())


def keys_of(client: httpx.Client, **query: Any) -> list[str]:
    return [item["key"] for item in ok(client.get("/kv", params=query))["items"]]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**70),
        1.5,
        1e-300,
        "",
        "text \x00 \u2028 👩‍👩‍👧",
        [],
        {},
        {"": [1, {"a": None}], "é": "ü"},
        [[[[[[[[["deep"]]]]]]]]],
    ],
)
def test_a_value_is_read_as_it_was_put(demo: httpx.Client, value: object) -> None:
    key = url_of(unique("value"))
    put = ok(demo.put(key, json={"value": value}))
    assert put["value"] == value
    assert put["expires_at"] is None
    assert ok(demo.get(key)) == put


@pytest.mark.parametrize(
    "key",
    [
        "a",
        "a/b/c",
        "/",
        "//x//",
        "..",
        "../../etc/passwd",
        "a b",
        "?q=1#f",
        "100%",
        "%2F",
        "é氷河👩‍👩‍👧",
        "\x00\x1f\x7f",
        "a:b",
    ],
)
def test_a_key_may_be_any_text(demo: httpx.Client, key: str) -> None:
    assert ok(demo.put(url_of(key), json={"value": key}))["key"] == key
    assert ok(demo.get(url_of(key)))["value"] == key
    assert demo.delete(url_of(key)).status_code == 204
    problem(demo.get(url_of(key)), 404)
    problem(demo.delete(url_of(key)), 404)


def test_a_key_may_have_512_characters_and_no_more(demo: httpx.Client) -> None:
    ok(demo.put(url_of("é" * 512), json={"value": 1}))
    assert demo.delete(url_of("é" * 512)).status_code == 204
    for method in ("GET", "PUT", "DELETE"):
        body = {"value": 1} if method == "PUT" else None
        assert list(refused_fields(demo.request(method, url_of("x" * 513), json=body))) == ["key"]
        assert list(refused_fields(demo.request(method, "/kv/", json=body))) == ["key"]


def test_a_value_is_replaced_as_a_whole(demo: httpx.Client) -> None:
    key = url_of(unique("replaced"))
    first = ok(demo.put(key, json={"value": {"a": 1}, "ttl_s": 1000}))
    second = ok(demo.put(key, json={"value": {"b": 2}}))
    assert (second["value"], second["expires_at"]) == ({"b": 2}, None)
    assert second["updated_at"] > first["updated_at"]
    assert ok(demo.get(key)) == second


def test_a_value_is_gone_after_its_time(demo: httpx.Client) -> None:
    prefix = unique("ttl")
    put = ok(demo.put(url_of(f"{prefix}/short"), json={"value": 1, "ttl_s": 0.3}))
    assert put["expires_at"] == pytest.approx(put["updated_at"] + 0.3)
    ok(demo.put(url_of(f"{prefix}/long"), json={"value": 2, "ttl_s": 3600}))
    eventually(lambda: demo.get(url_of(f"{prefix}/short")).status_code == 404)
    assert keys_of(demo, prefix=prefix) == [f"{prefix}/long"]
    problem(demo.delete(url_of(f"{prefix}/short")), 404)


def test_keys_are_listed_in_order_by_prefix_in_pages(demo: httpx.Client) -> None:
    prefix = unique("list")
    names = [f"{prefix}/{name}" for name in ("a", "a/b", "b", "c%", "c_", "é")]
    for name in reversed(names):
        ok(demo.put(url_of(name), json={"value": name}))
    ok(demo.put(url_of(f"{prefix}0"), json={"value": "a neighbour"}))
    assert keys_of(demo, prefix=f"{prefix}/") == names
    assert keys_of(demo, prefix=f"{prefix}/a") == names[:2]
    assert keys_of(demo, prefix=f"{prefix}/c%") == [f"{prefix}/c%"]
    assert keys_of(demo, prefix=f"{prefix}/", limit=2) == names[:2]
    assert keys_of(demo, prefix=f"{prefix}/", limit=2, after=names[1]) == names[2:4]
    assert keys_of(demo, prefix=f"{prefix}/", after=names[-1]) == []


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("value", {}),
        ("ttl_s", {"value": 1, "ttl_s": 0}),
        ("ttl_s", {"value": 1, "ttl_s": -1}),
        ("ttl_s", {"value": 1, "ttl_s": 1e12}),
        ("expires_at", {"value": 1, "expires_at": 5}),
    ],
)
def test_a_value_that_is_not_as_it_must_be_is_refused_by_its_field(
    demo: httpx.Client, field: str, body: dict[str, Any]
) -> None:
    assert list(refused_fields(demo.put(url_of(unique("bad")), json=body))) == [field]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("NaN", id="no number"),
        pytest.param("[-Infinity]", id="infinite"),
        pytest.param('"\\ud800"', id="half a character"),
        pytest.param('{"\\udfff": 1}', id="half a character in a name"),
        pytest.param("[" * 101 + "]" * 101, id="nested too deep"),
        pytest.param("[" * 900 + "]" * 900, id="nested far too deep"),
        pytest.param('"' + "x" * 262_143 + '"', id="too long"),
    ],
)
def test_a_value_that_json_can_not_hold_is_refused_and_changes_nothing(demo: httpx.Client, value: str) -> None:
    key = url_of(unique("kept"))
    ok(demo.put(key, json={"value": "before"}))
    body = f'{{"value": {value}}}'.encode()
    refused = demo.put(key, content=body, headers={"Content-Type": "application/json"})
    assert list(refused_fields(refused)) == ["value"]
    assert ok(demo.get(key))["value"] == "before"


@pytest.mark.parametrize("value", ["[" * 100 + "]" * 100, '"' + "x" * 262_142 + '"', "9" * 4000])
def test_the_largest_values_are_kept(demo: httpx.Client, value: str) -> None:
    key = url_of(unique("large"))
    put = demo.put(key, content=f'{{"value": {value}}}'.encode(), headers={"Content-Type": "application/json"})
    assert ok(demo.get(key)) == ok(put)
    assert demo.delete(key).status_code == 204
