"""Over the wire: are the tokens of a session and of a tenant told as they were used?"""

from __future__ import annotations

import datetime
from typing import Any

import httpx
import pytest

from tests.integration.calls import eventually, new_session, ok, problem, refused_fields, totals


def ask(client: httpx.Client, **more: Any) -> dict[str, Any]:
    asked = {"message": "Say one.", "stream": False, "retrieve": False, "max_tokens": 4, **more}
    answer: dict[str, Any] = ok(client.post("/chat", json=asked))
    return answer


def test_a_session_tells_the_tokens_of_all_its_turns(demo: httpx.Client, acme: httpx.Client) -> None:
    session = new_session(demo)
    nothing = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    assert ok(demo.get(f"{session}/usage")) == nothing
    used = [ask(demo, session_id=session.rpartition("/")[2])["usage"] for _ in range(2)]
    expected = {name: used[0][name] + used[1][name] for name in nothing}
    assert ok(demo.get(f"{session}/usage")) == expected
    problem(acme.get(f"{session}/usage"), 404)
    assert demo.delete(session).status_code == 204
    problem(demo.get(f"{session}/usage"), 404)


def test_a_tenants_turns_are_counted_by_day_and_model(demo: httpx.Client, acme: httpx.Client) -> None:
    before, others = totals(demo), totals(acme)
    used = ask(demo)["usage"]
    eventually(lambda: totals(demo)["turns"] > before["turns"])
    report = ok(demo.get("/usage"))
    assert report["totals"] == {
        "turns": before["turns"] + 1,
        **{name: before[name] + used[name] for name in ("input_tokens", "output_tokens", "total_tokens")},
    }
    today = datetime.datetime.now(datetime.UTC).date()
    assert report["to"] == today.isoformat()
    assert report["from"] == (today - datetime.timedelta(days=29)).isoformat()
    for name, total in report["totals"].items():
        assert sum(day[name] for day in report["days"]) == total
    assert all(day["model"] for day in report["days"])
    assert totals(demo, **{"from": "2001-01-01", "to": "2001-12-31"})["turns"] == 0
    assert totals(acme) == others


@pytest.mark.parametrize(
    ("field", "query"),
    [
        ("from", {"from": "2026-02-01", "to": "2026-01-31"}),
        ("from", {"from": "2020-01-01", "to": "2026-01-01"}),
        ("from", {"from": "yesterday"}),
        ("to", {"to": "2026-02-30"}),
    ],
)
def test_days_that_can_not_be_are_refused(demo: httpx.Client, field: str, query: dict[str, str]) -> None:
    assert list(refused_fields(demo.get("/usage", params=query))) == [field]


def test_the_first_day_of_all_is_a_day(demo: httpx.Client) -> None:
    assert totals(demo, to="0001-01-01")["turns"] == 0
