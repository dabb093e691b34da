"""Does the HTTP interface keep sessions as it says?"""

from __future__ import annotations

import httpx


def test_a_session_is_created_read_listed_changed_and_deleted(demo: httpx.Client) -> None:
    created = demo.post("/chat/sessions", json={"title": "first", "metadata": {"colour": "blue"}})
    assert created.status_code == 201
    session = created.json()
    path = f"/chat/sessions/{session['id']}"
    assert demo.get(path).json() == session
    assert session["id"] in [one["id"] for one in demo.get("/chat/sessions").json()["sessions"]]
    assert demo.patch(path, json={"title": "second"}).json()["title"] == "second"
    assert demo.delete(path).status_code == 204
    assert demo.get(path).status_code == 404
    assert demo.delete(path).status_code == 404
    assert session["id"] not in [one["id"] for one in demo.get("/chat/sessions").json()["sessions"]]
