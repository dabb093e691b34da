"""What do tests of the HTTP interface do again and again?

Short ways to make things and to say what an answer must be. Each fails with the answer's own words.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from fpdf import FPDF

#: For what the service does by itself after it answered.
WITHIN_S = 30.0
LOOK_EVERY_S = 0.05


def eventually(holds: Callable[[], bool], within_s: float = WITHIN_S) -> float:
    """Waits until `holds` does, and returns how long it took; other processes take their time, and nothing tells us."""
    started_s = time.monotonic()
    while not holds():
        assert time.monotonic() - started_s < within_s, f"not within {within_s:g} s"
        time.sleep(LOOK_EVERY_S)
    return time.monotonic() - started_s


def unique(prefix: str) -> str:
    """A name that no other test has: all share one service."""
    return f"{prefix}-{secrets.token_hex(6)}"


def ok(response: httpx.Response, status: int = 200) -> Any:
    """The JSON of an answer that must have this status; None of one without a body."""
    assert response.status_code == status, f"{response.status_code}: {response.text[:500]}"
    return response.json() if response.content else None


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem that must be the answer."""
    assert response.status_code == status, f"{response.status_code}: {response.text[:500]}"
    assert response.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = response.json()
    assert found["status"] == status
    assert all(isinstance(found[member], str) and found[member] for member in ("type", "title", "detail"))
    return found


def refused_fields(response: httpx.Response) -> dict[str, str]:
    """The fields that a 422 names, each with the value that it shows."""
    errors = problem(response, 422)["errors"]
    assert all(error["problem"] for error in errors)
    return {error["field"]: error["value"] for error in errors}


def new_session(client: httpx.Client, **fields: Any) -> str:
    """The path of a new session."""
    return f"/chat/sessions/{ok(client.post('/chat/sessions', json=fields), 201)['id']}"


def say(client: httpx.Client, session: str, content: str, role: str = "user") -> int:
    """Appends a message and returns its number."""
    appended = ok(client.post(f"{session}/messages", json={"role": role, "content": content}), 201)
    return int(appended["id"])


def totals(client: httpx.Client, **query: str) -> dict[str, int]:
    """What the tenant has used."""
    found: dict[str, int] = ok(client.get("/usage", params=query))["totals"]
    return found


def contents(client: httpx.Client, session: str, **page: int) -> list[str]:
    """What was said in a session, oldest first."""
    history = ok(client.get(f"{session}/messages", params=page))
    return [message["content"] for message in history["messages"]]


def ingest(client: httpx.Client, *documents: dict[str, Any]) -> list[dict[str, Any]]:
    """What became of documents sent as JSON."""
    ingested: list[dict[str, Any]] = ok(client.post("/ingest", json={"documents": documents}))["documents"]
    return ingested


def upload(client: httpx.Client, *files: tuple[str, bytes, str]) -> dict[str, dict[str, Any]]:
    """What became of files, each a name, bytes and a type; by the documents' ids."""
    answer = ok(client.post("/ingest", files=[("files", file) for file in files]))
    return {document["document_id"]: document for document in answer["documents"]}


def found_by(client: httpx.Client, query: str, **more: Any) -> Sequence[str]:
    """The ids of the documents that a search finds, best first."""
    results = ok(client.post("/search", json={"query": query, **more}))["results"]
    return [result["document_id"] for result in results]


def pdf(*paragraphs: str) -> bytes:
    """A PDF with this text."""
    document = FPDF()
    document.add_page()
    document.set_font("helvetica", size=12)
    for paragraph in paragraphs:
        document.multi_cell(0, 8, paragraph, new_x="LMARGIN", new_y="NEXT")
    return bytes(document.output())
