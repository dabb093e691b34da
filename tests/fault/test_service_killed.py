"""Is everything that was acknowledged still there when every process of the service was killed at once, or was stopped?

The service is started by itself for this, and killed by `kill -9` while clients write to it, or stopped while it
answers.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest
from httpx_sse import connect_sse

from deployments.free_port import free_port
from tests.integration.calls import contents, eventually, found_by, ingest, new_session, ok, pdf, say, unique, upload
from tests.integration.conftest import Service, configured
from tests.integration.scripted_model import KEY, answer, question, scripted_model

#: Two starts of the whole service, on a machine that may do other things as well.
TIMEOUT_S = 600
KEYS = ("sk-demo", "sk-acme")
#: Written before the kill comes, so that it comes in the middle.
ACKNOWLEDGED_FIRST = 30
#: Of the scripted model: some seconds, and less than a replica that is stopped lets its turns go on.
PIECES, PAUSE_S = 60, 0.1
#: Of the embedded model: some seconds as well, as they are told at once.
STORIES = ("a ship", "a hill", "a cat", "a fox")
STORY_TOKENS = 160


@pytest.fixture(scope="module")
def own_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with scripted_model() as model:
        config = configured(tmp_path_factory.mktemp("config"), model)
        running = Service(tmp_path_factory.mktemp("killed"), free_port(), config)
        running.start()
        try:
            yield running
        finally:
            running.stop()


class Writer:
    """Does one thing again and again until the service is gone, and remembers what was acknowledged."""

    def __init__(self, write: Callable[[int], httpx.Response]) -> None:
        self._write = write
        self.answers: list[dict[str, Any]] = []

    def run(self, enough: threading.Event) -> None:
        while True:
            try:
                response = self._write(len(self.answers))
            except httpx.TransportError:
                return
            if response.status_code >= 500:
                return  # HAProxy outlived for a moment what stands behind it
            assert response.is_success, response.text
            self.answers.append(response.json())
            if len(self.answers) >= ACKNOWLEDGED_FIRST:
                enough.set()


def write_until_killed(service: Service, writers: list[Writer]) -> None:
    enough = [threading.Event() for _ in writers]
    with concurrent.futures.ThreadPoolExecutor(len(writers)) as threads:
        running = [threads.submit(writer.run, event) for writer, event in zip(writers, enough, strict=True)]
        for event in enough:
            assert event.wait(timeout=60)
        assert service.kill() > 5
        for one in running:
            one.result(timeout=60)


def make_session(client: httpx.Client, tag: str, number: int) -> httpx.Response:
    """The same request for the same number."""
    body = {"title": f"{tag} {number}", "user_id": f"{tag} made"}
    return client.post("/chat/sessions", json=body, headers={"Idempotency-Key": f"{tag}-{number}"})


def listed_titles(client: httpx.Client, user_id: str) -> list[str]:
    titles: list[str] = []
    page: dict[str, Any] = {"has_more": True}
    asked: dict[str, str | int] = {"user_id": user_id, "limit": 100}
    while page["has_more"]:
        page = ok(client.get("/chat/sessions", params=asked))
        titles += [session["title"] for session in page["sessions"]]
        if page["sessions"]:
            asked["after"] = page["sessions"][-1]["id"]
    return titles


def ingest_once(client: httpx.Client, tag: str) -> httpx.Response:
    body = {"documents": [{"text": f"The {tag} clock stopped."}]}
    return client.post("/ingest", json=body, headers={"Idempotency-Key": tag})


def appender(client: httpx.Client, session: str) -> Writer:
    return Writer(lambda n: client.post(f"{session}/messages", json={"role": "user", "content": f"under fire {n}"}))


@pytest.mark.timeout(TIMEOUT_S)
def test_after_a_kill_of_every_process_and_a_restart_all_that_was_acknowledged_is_there(own_service: Service) -> None:
    service = own_service
    tag = unique("kept")
    sessions: dict[str, str] = {}
    for key in KEYS:
        with service.client(key) as client:
            sessions[key] = new_session(client, title=f"of {key}", user_id=tag, metadata={"k": "v"})
            for number in range(5):
                say(client, sessions[key], f"quiet {number}")
    with service.client("sk-demo") as demo:
        ingest(demo, {"id": tag, "title": "Kept", "text": f"The {tag} bell was cast in bronze.", "metadata": {"n": 1}})
        upload(demo, (f"{tag}.pdf", pdf(f"The {tag} tower has 199 steps."), "application/pdf"))
        ok(demo.put(f"/kv/{tag}", json={"value": {"kept": True}}))
        answer = ok(demo.post("/chat", json={"message": "Say hello.", "stream": False, "max_tokens": 4}))
        before = ok(demo.get(sessions["sk-demo"]))
        stored = ingest_once(demo, tag)
    with service.client("sk-small") as small:
        small.headers["x-client"] = tag
        ok(small.post("/ratelimit/check", json={"cost": 7}))

    with service.client("sk-demo") as one, service.client("sk-acme") as other, service.client("sk-demo") as third:
        writers = [
            appender(one, sessions["sk-demo"]),
            appender(other, sessions["sk-acme"]),
            Writer(lambda number: third.put(f"/kv/{tag}/{number}", json={"value": number})),
            Writer(lambda number: make_session(third, tag, number)),
        ]
        write_until_killed(service, writers)
    appended = dict(zip(KEYS, writers, strict=False))
    values, created = writers[2:]

    service.start()

    for key in KEYS:
        with service.client(key) as client:
            said = contents(client, sessions[key], limit=1000)
            acknowledged = appended[key].answers
            # One more may have been written, and its acknowledgement lost.
            assert len(said) - 5 - len(acknowledged) in (0, 1)
            assert said == [f"quiet {n}" for n in range(5)] + [f"under fire {n}" for n in range(len(said) - 5)]
            assert [one["id"] for one in acknowledged] == list(range(6, 6 + len(acknowledged)))
            assert say(client, sessions[key], "after") == len(said) + 1
            listed = ok(client.get("/chat/sessions", params={"user_id": tag}))["sessions"]
            assert [session["title"] for session in listed] == [f"of {key}"]
    with service.client("sk-demo") as demo:
        for number, value in enumerate(values.answers):
            assert ok(demo.get(f"/kv/{tag}/{number}")) == value
        for number, session in enumerate(created.answers):
            assert ok(demo.get(f"/chat/sessions/{session['id']}")) == session
            assert ok(make_session(demo, tag, number), 201) == session
        # The one that the kill cut off: begun or not, it is made now, and made once.
        eventually(lambda: make_session(demo, tag, len(created.answers)).status_code != 409)
        ok(make_session(demo, tag, len(created.answers)), 201)
        assert sorted(listed_titles(demo, f"{tag} made")) == sorted(
            f"{tag} {number}" for number in range(len(created.answers) + 1)
        )
        assert ingest_once(demo, tag).content == stored.content
        assert ok(demo.get(f"/kv/{tag}"))["value"] == {"kept": True}
        assert ok(demo.get(sessions["sk-demo"])) | {"last_active_at": 0, "message_count": 0} == before | {
            "last_active_at": 0,
            "message_count": 0,
        }
        assert contents(demo, f"/chat/sessions/{answer['session_id']}") == ["Say hello.", answer["text"]]
        assert found_by(demo, f"what is the {tag} bell made of?", filter={"n": 1}) == [tag]
        assert f"{tag}.pdf" in found_by(demo, f"how many steps has the {tag} tower?")
        assert ok(demo.post("/chat", json={"message": "Say hello.", "stream": False, "max_tokens": 2}))["text"]
    with service.client("sk-small") as small:
        small.headers["x-client"] = tag
        assert ok(small.get("/ratelimit/usage"))["remaining"] == 23


def begun(client: httpx.Client, message: str, **more: Any) -> str:
    """The path of a turn that has shown a part of its answer, and that nobody follows."""
    with connect_sse(client, "POST", "/chat", json={"message": message, "retrieve": False, **more}) as source:
        next(event for event in source.iter_sse() if event.event == "text.delta")
        return str(source.response.headers["content-location"]).removesuffix("/events")


@pytest.mark.timeout(TIMEOUT_S)
def test_a_stopped_service_ends_its_answers_leaves_no_process_and_starts_again_on_its_data(
    own_service: Service,
) -> None:
    service, tag = own_service, unique("answered")
    with service.client() as client, service.client(KEY) as scripted:
        session = new_session(client, title="kept")
        say(client, session, "before")
        slow = begun(scripted, question(tag, pieces=PIECES, pause_s=PAUSE_S))
        told = [begun(client, f"Tell me a long story of {hero}.", max_tokens=STORY_TOKENS) for hero in STORIES]
        under_way = [ok(scripted.get(slow)), *[ok(client.get(turn)) for turn in told]]
        assert {turn["status"] for turn in under_way} == {"in_progress"}
    processes = service.processes()
    service.stop()
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert alive == []
    service.start()
    with service.client() as client:
        assert contents(client, session) == ["before"]
        assert say(client, session, "after") == 2
        for turn in told:
            assert_answered_at_once(client, turn)
    with service.client(KEY) as scripted:
        assert assert_answered_at_once(scripted, slow) == answer(tag, PIECES)


def assert_answered_at_once(client: httpx.Client, path: str) -> str:
    """The turn has come to its end the first time that it was tried. Returns its text."""
    turn = ok(client.get(path))
    assert (turn["status"], turn["attempt"]) == ("completed", 1)
    with connect_sse(client, "GET", f"{path}/events") as source:
        heard = [event for event in source.iter_sse() if event.data]
    assert "turn.retrying" not in [event.event for event in heard]
    return "".join(event.json()["text"] for event in heard if event.event == "text.delta")
