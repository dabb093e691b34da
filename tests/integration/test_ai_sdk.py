"""Does the AI SDK's `useChat` work with the service as it is? Its own code talks to it here, in the versions in use."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from actors.turn import TurnEvent
from deployments.ingress.ui_stream import ui_streamed
from tests.integration.calls import contents, eventually, ingest, new_session, ok, problem, refused_fields, unique
from tests.integration.conftest import Service
from tests.turn_events import CANCELLED, FAILED, INCOMPLETE, SESSION_ID, TURN_ID, WITH_TOOLS, Event, numbered

UI = Path(__file__).parent / "ui"
INSTALLED_WITHIN_S = 240
NODE_MIN = 20
#: The oldest and the newest of the versions in use.
PACKAGES = ["ai5", "ai7"]
SHORT = {"retrieve": False, "max_tokens": 8}
LONG = {"retrieve": False, "max_tokens": 60}


class Browser:
    """A page with a chat in it."""

    def __init__(self, folder: Path, package: str, url: str, key: str) -> None:
        self._process = subprocess.Popen(
            ["node", "chat.mjs", package, url, key],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, step: str, **options: Any) -> dict[str, Any]:
        """What is to be seen when it is done."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"step": step, **options}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the page has ended"
        seen: dict[str, Any] = json.loads(line)
        return seen

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)


def cannot_run(why: str) -> NoReturn:
    """Skips, or fails where these tests have to be run: what is skipped there, nobody would notice."""
    if os.environ.get("REQUIRE_AI_SDK"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The AI SDK, as the lock file has it."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        cannot_run("Node.js, which only these tests need, is not installed")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(version.removeprefix("v").partition(".")[0]) < NODE_MIN:
        cannot_run(f"these tests need Node.js {NODE_MIN}, and {version.strip()} is installed")
    folder = tmp_path_factory.mktemp("ui") / "ui"
    shutil.copytree(UI, folder, ignore=shutil.ignore_patterns("node_modules"))
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    installed = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=INSTALLED_WITHIN_S)
    if installed.returncode != 0 and re.search(r"ECONN|ENOTFOUND|ETIMEDOUT|EAI_AGAIN|network", installed.stderr):
        cannot_run(f"npm's registry can't be reached: {installed.stderr[-300:]}")
    assert installed.returncode == 0, installed.stderr
    return folder


@pytest.mark.parametrize(("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_nothing_is_skipped_where_all_is_required(
    monkeypatch: pytest.MonkeyPatch, required: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("REQUIRE_AI_SDK", required)
    with pytest.raises(outcome, match=r"no Node\.js"):
        cannot_run("no Node.js")


@pytest.fixture(params=PACKAGES)
def page(request: pytest.FixtureRequest, packages: Path, service: Service) -> Iterator[Browser]:
    browser = Browser(packages, request.param, service.url, "sk-demo")
    yield browser
    browser.close()


@pytest.fixture
def newest(packages: Path, service: Service) -> Iterator[Browser]:
    browser = Browser(packages, "ai7", service.url, "sk-demo")
    yield browser
    browser.close()


def user(text: str, message_id: str | None = None) -> dict[str, Any]:
    return {"id": message_id or unique("m"), "role": "user", "parts": [{"type": "text", "text": text}]}


def text_of(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["parts"] if part["type"] == "text")


def texts_of(messages: list[dict[str, Any]]) -> list[str]:
    return [text_of(message) for message in messages]


def session_of(seen: dict[str, Any]) -> str:
    """The path of the session in which the last answer is."""
    return f"/chat/sessions/{seen['messages'][-1]['metadata']['session_id']}"


def stored(client: httpx.Client, chat_id: str) -> dict[str, Any]:
    found: dict[str, Any] = ok(client.get(f"/chat/{chat_id}/messages"))
    return found


def test_a_chat_needs_nothing_but_an_address_and_a_key(page: Browser, demo: httpx.Client) -> None:
    chat_id = unique("chat")
    page.do("open", id=chat_id, api="/chat?format=ui-message", body=SHORT)
    first = page.do("send", message={"text": "Say hello."})
    assert (first["status"], first.get("error")) == ("ready", None)
    (response,) = first["responses"]
    assert (response["status"], response["mark"]) == (200, "v1")
    second = page.do("send", message={"text": "Say it again."})
    assert [message["role"] for message in second["messages"]] == ["user", "assistant"] * 2
    assert session_of(second) == session_of(first)
    assert contents(demo, session_of(second)) == texts_of(second["messages"])
    answer = second["messages"][-1]
    turn = ok(demo.get(f"{session_of(second)}/turns/{answer['id']}"))
    assert (turn["status"], turn["answer_id"]) == ("completed", answer["metadata"]["message_id"])
    assert answer["metadata"]["usage"] == turn["usage"]
    assert [part["type"] for part in answer["parts"]] == ["step-start", "text"]
    assert answer["parts"][1]["state"] == "done"


def test_the_stream_reader_understands_every_part(page: Browser, demo: httpx.Client) -> None:
    document_id = unique("otter")
    ingest(demo, {"id": document_id, "title": "Otters", "text": f"Otters of {document_id} hold hands."})
    question = user(f"What do the otters of {document_id} do?")
    read = page.do("read", id=unique("chat"), messages=[question], body={"top_k": 1, "max_tokens": 4})
    assert read["errors"] == []
    kinds = [part["type"] for part in read["parts"]]
    deltas = kinds.count("text-delta")
    assert kinds == [
        *("start", "start-step", "source-document", "text-start"),
        *["text-delta"] * deltas,
        *("text-end", "finish-step", "finish"),
    ]
    message = read["message"]
    assert message["id"] == message["metadata"]["turn_id"]
    (source,) = [part for part in message["parts"] if part["type"] == "source-document"]
    assert (source["title"], source["providerMetadata"]["mobula"]["document_id"]) == ("Otters", document_id)
    assert text_of(message) == contents(demo, f"/chat/sessions/{message['metadata']['session_id']}")[-1]
    assert demo.delete(f"/documents/{document_id}").status_code == 204


@pytest.mark.parametrize(
    ("last", "error"),
    [(None, None), (CANCELLED, None), (INCOMPLETE, "it was lost"), (FAILED, "busy")],
    ids=["completed", "cancelled", "incomplete", "failed"],
)
@pytest.mark.parametrize("package", PACKAGES)
async def test_the_stream_reader_understands_tools_and_every_ending(
    packages: Path, package: str, last: Event | None, error: str | None
) -> None:
    told = WITH_TOOLS if last is None else [*WITH_TOOLS[:-1], last]

    async def events() -> AsyncIterator[TurnEvent]:
        for event in numbered(told):
            yield event

    response: Any = ui_streamed(events(), SESSION_ID, TURN_ID, location="/")
    text = b"".join([event.encode() async for event in response.body_iterator]).decode()
    reader = Browser(packages, package, "", "")
    read = reader.do("parse", text=text)
    reader.close()
    assert read["errors"] == ([f"Error: {error}"] if error else [])
    parts = read["message"]["parts"]
    assert [part["type"] for part in parts] == [
        *("step-start", "source-document", "text", "dynamic-tool", "dynamic-tool", "step-start", "text")
    ]
    assert [part["text"] for part in parts if part["type"] == "text"] == ["Let me look.", "One."]
    assert [part["state"] for part in parts if part["type"] == "dynamic-tool"] == ["output-available", "output-error"]
    assert (parts[3]["input"], parts[3]["output"]) == ({"key": "a"}, {"value": 1})
    kinds = [part["type"] for part in read["parts"]]
    assert kinds.count("abort") == (last is CANCELLED)


def test_a_page_that_comes_back_hears_the_answer_from_its_beginning_to_its_end(
    page: Browser, demo: httpx.Client
) -> None:
    chat_id = unique("chat")
    page.do("open", id=chat_id, api="/chat?format=ui-message", body=LONG)
    left = page.do("leave", message={"text": "Tell me a long story about the sea."})
    heard = text_of(left["messages"][-1])
    assert heard
    # As a page is that was loaded anew.
    page.do("open", id=chat_id, api="/chat?format=ui-message", messages=stored(demo, chat_id)["messages"])
    back = page.do("resume")
    (response,) = back["responses"]
    assert (response["method"], response["path"]) == ("GET", f"/chat/{chat_id}/stream?format=ui-message")
    assert (response["status"], response["mark"], back["status"]) == (200, "v1", "ready")
    assert [message["role"] for message in back["messages"]] == ["user", "assistant"]
    assert text_of(back["messages"][-1]).startswith(heard)
    assert contents(demo, session_of(back)) == texts_of(back["messages"])
    assert back["messages"][-1]["id"] == left["messages"][-1]["id"]
    # Nothing is under way any more, and what was said is there to be loaded.
    again = page.do("resume")
    assert ([one["status"] for one in again["responses"]], again["status"]) == ([204], "ready")
    assert texts_of(stored(demo, chat_id)["messages"]) == texts_of(back["messages"])


def test_an_answer_is_made_again_in_place_of_the_first(page: Browser, demo: httpx.Client) -> None:
    page.do("open", id=unique("chat"), body={**SHORT, "temperature": 1.5})
    first = page.do("send", message={"text": "Invent a name."})
    again = page.do("regenerate")
    assert (again["status"], len(again["messages"])) == ("ready", 2)
    assert again["messages"][-1]["id"] != first["messages"][-1]["id"]
    assert contents(demo, session_of(again)) == texts_of(again["messages"])
    # Also one that is not the last: what followed it goes.
    page.do("send", message={"text": "Invent another."})
    earlier = page.do("regenerate", messageId=again["messages"][-1]["id"])
    assert len(earlier["messages"]) == 2
    assert contents(demo, session_of(earlier)) == texts_of(earlier["messages"])


def test_a_message_that_is_edited_gives_way_with_all_that_follows(page: Browser, demo: httpx.Client) -> None:
    chat_id = unique("chat")
    page.do("open", id=chat_id, body=SHORT)
    page.do("send", message={"text": "Say one."})
    two = page.do("send", message={"text": "Say two."})
    for text in ("Say three.", "Say four."):
        edited = page.do("send", message={"text": text, "messageId": two["messages"][2]["id"]})
        assert texts_of(edited["messages"])[::2] == ["Say one.", text]
        assert contents(demo, session_of(edited)) == texts_of(edited["messages"])
    # One that was loaded is edited just as well.
    loaded = stored(demo, chat_id)["messages"]
    page.do("open", id=chat_id, body=SHORT, messages=loaded)
    edited = page.do("send", message={"text": "Say five.", "messageId": loaded[0]["id"]})
    assert contents(demo, session_of(edited)) == texts_of(edited["messages"])
    assert len(edited["messages"]) == 2


def test_a_problem_before_the_stream_is_the_pages_error_and_the_next_try_is_a_new_question(
    page: Browser, demo: httpx.Client
) -> None:
    page.do("open", id=unique("chat"), body={**SHORT, "max_tokens": 0})
    refused = page.do("send", message={"text": "Say hello."})
    assert (refused["status"], refused["responses"][0]["status"]) == ("error", 422)
    assert "max_tokens" in refused["error"]
    assert [message["role"] for message in refused["messages"]] == ["user"]
    page.do("open", id=unique("chat"), body=SHORT, messages=refused["messages"])
    answered = page.do("regenerate")
    assert answered["status"] == "ready"
    assert contents(demo, session_of(answered)) == texts_of(answered["messages"])


def test_a_chat_whose_session_was_deleted_goes_on_in_a_new_one(newest: Browser, demo: httpx.Client) -> None:
    chat_id = unique("chat")
    newest.do("open", id=chat_id, body={**SHORT, "user_id": "ann"})
    first = newest.do("send", message={"text": "Say one."})
    assert ok(demo.get(session_of(first)))["user_id"] == "ann"
    assert demo.delete(session_of(first)).status_code == 204
    assert newest.do("resume")["responses"][0]["status"] == 204
    second = newest.do("send", message={"text": "Say two."})
    assert session_of(second) != session_of(first)
    assert contents(demo, session_of(second)) == texts_of(second["messages"][2:])


def test_a_chat_can_be_a_session_that_is_there(newest: Browser, demo: httpx.Client) -> None:
    session = new_session(demo, title="known")
    newest.do("open", id=session.rpartition("/")[2], body=SHORT)
    seen = newest.do("send", message={"text": "Say one."})
    assert session_of(seen) == session
    assert demo.delete(session).status_code == 204
    gone = newest.do("send", message={"text": "Say two."})
    assert (gone["status"], gone["responses"][0]["status"]) == ("error", 404)


def test_chats_of_two_tenants_are_two(service: Service, demo: httpx.Client, acme: httpx.Client) -> None:
    body: dict[str, Any] = {"id": unique("chat"), "messages": [user("Say one.")], **SHORT}
    assert demo.post("/chat", json=body).status_code == 200
    problem(acme.get(f"/chat/{body['id']}/messages"), 404)
    assert acme.get(f"/chat/{body['id']}/stream").status_code == 204
    theirs = demo.get(f"/chat/{body['id']}/messages").json()["session_id"]
    for path in (f"/chat/{theirs}/messages", f"/chat/{theirs}/stream"):
        problem(acme.get(path), 404)
    problem(acme.post("/chat", json={**body, "id": theirs}), 404)


def test_a_message_that_is_sent_twice_is_asked_once(demo: httpx.Client) -> None:
    body: dict[str, Any] = {"id": unique("chat"), "messages": [user("Say hello.")], **SHORT}
    first, second = demo.post("/chat", json=body), demo.post("/chat", json=body)
    assert first.text == second.text
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert len(stored(demo, body["id"])["messages"]) == 2
    changed = {**body, "messages": [user("Say goodbye.", body["messages"][0]["id"])]}
    assert list(refused_fields(demo.post("/chat", json=changed))) == ["messages"]


def test_the_format_is_the_clients_to_choose(demo: httpx.Client) -> None:
    question = {"message": "Say hello.", **SHORT}
    mark = "x-vercel-ai-ui-message-stream"
    assert mark not in demo.post("/chat", json=question).headers
    asked = demo.post("/chat", params={"format": "ui-message"}, json=question)
    accepted = demo.post(
        "/chat", headers={"Accept": "text/html, application/vnd.ai-sdk.ui-message-stream;q=0.9"}, json=question
    )
    for response in (asked, accepted):
        assert response.headers[mark] == "v1"
        assert response.headers["content-type"].startswith("text/event-stream")
        assert {line[:6] for line in response.text.splitlines() if line} == {"data: "}
        assert response.text.rstrip().endswith("data: [DONE]")
    chat = {"id": unique("chat"), "messages": [user("Say hello.")], **SHORT}
    assert demo.post("/chat", json=chat).headers[mark] == "v1"
    events = demo.post("/chat", params={"format": "events"}, json={**chat, "messages": [user("Again.")]})
    assert mark not in events.headers
    assert "event: turn.completed" in events.text
    refused = demo.post("/chat", params={"format": "ui-message"}, json={**question, "stream": False})
    assert list(refused_fields(refused)) == ["stream"]
    assert list(refused_fields(demo.post("/chat", params={"format": "xml"}, json=question))) == ["format"]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("messages", {"messages": []}),
        ("messages", {"messages": [{"id": "a", "role": "assistant", "parts": []}]}),
        ("messages", {"messages": [{"id": "a", "role": "user", "parts": []}]}),
        ("messages", {"messages": [{"id": "a", "role": "user", "parts": [{"type": "file", "url": "data:,x"}]}]}),
        ("messages", {"messages": [user("x" * 32_001)]}),
        ("messages.0.role", {"messages": [{"id": "a", "role": "tool", "parts": []}]}),
        ("messages.0.id", {"messages": [{"id": "", "role": "user", "parts": []}]}),
        ("id", {"id": "x" * 257}),
        ("trigger", {"trigger": "resume-stream"}),
        ("stream", {"stream": True}),
        ("top_k", {"top_k": 0}),
    ],
)
def test_a_chat_that_is_not_as_it_must_be_is_refused_by_its_field(
    demo: httpx.Client, field: str, change: dict[str, Any]
) -> None:
    body: dict[str, Any] = {"id": unique("chat"), "messages": [user("hello")], **SHORT}
    assert list(refused_fields(demo.post("/chat", json={**body, **change}))) == [field]
    problem(demo.get(f"/chat/{body['id']}/messages"), 404)


def test_a_page_that_is_cut_off_leaves_a_session_that_can_be_used(newest: Browser, demo: httpx.Client) -> None:
    """To ask the next thing while the first answer is under way: it waits for it, as `on_conflict` says."""
    chat_id = unique("chat")
    newest.do("open", id=chat_id, body=LONG)
    newest.do("leave", message={"text": "Tell me a long story."})
    seen = newest.do("send", message={"text": "Say two."})
    assert seen["status"] == "ready"
    eventually(lambda: len(contents(demo, session_of(seen))) == 4)
    said = contents(demo, session_of(seen))
    assert (said[2], said[3]) == ("Say two.", text_of(seen["messages"][-1]))
