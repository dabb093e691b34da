"""Is a question over HTTP answered, joined, followed and stopped as the interface says?"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from actors import ObjectNotFound, ObjectReset
from deployments import turns
from deployments.errors import ModelRefused, ModelUnavailable
from deployments.idempotency import LEASE_S
from deployments.ingress import app as ingress
from deployments.ingress.problem import MEDIA_TYPE
from deployments.question import Question
from tests.unit.handles import EchoModel, Handle, services_over, way_to
from tests.unit.objects_fixtures import ring
from tests.unit.talk import TENANTS, WITHIN_S, CutChat, Talk, talk_at, until

LOST = ObjectReset("ChatSession/acme:s", "its host was lost")
PIECES = ("line\r\n\nevent: error\n", "🐟")
TEXT = "".join(PIECES)


class Served:
    """A service whose model says what hurts most in a stream of events."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.model = EchoModel(*PIECES)
        self.chat = Handle(talk.replica(self.model))
        services = services_over(talk.objects, talk.clock, TENANTS, chat=self.chat, model=self.model)
        self.services = dataclasses.replace(services, sessions=talk.sessions, turns=talk.turns)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with talk_at(tmp_path) as talk:
        yield Served(talk)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """Made once, since describing the API takes a while; each test puts its own services behind it."""
    with talk_at(tmp_path_factory.mktemp("built")) as talk:
        return ingress.build(Served(talk).services)


@pytest.fixture
async def client(app: FastAPI, served: Served) -> AsyncIterator[httpx.AsyncClient]:
    app.state.services = served.services
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"authorization": "Bearer sk-acme"}
    async with httpx.AsyncClient(transport=transport, base_url="http://mobula", headers=headers) as client:
        yield client


def key(value: str = "k1") -> dict[str, str]:
    return {"idempotency-key": value}


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    body: dict[str, Any] = response.json()
    return body


def fields(response: httpx.Response) -> list[str]:
    return [error["field"] for error in problem(response, 422)["errors"]]


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """What a stream holds, taken apart by its line ends alone."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = [block.splitlines() for block in response.text.replace("\r\n", "\n").strip().split("\n\n")]
    events = [dict(line.split(": ", 1) for line in block) for block in blocks if block]
    return [{**event, "data": json.loads(event["data"])} for event in events]


async def whole(client: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    response = await client.post("/chat", json={"message": "Why?", "stream": False, **more})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def turn_path(answer: dict[str, Any]) -> str:
    return f"/chat/sessions/{answer['session_id']}/turns/{answer['turn_id']}"


async def test_an_answer_is_streamed_as_numbered_events_whose_text_cannot_forge_another(
    client: httpx.AsyncClient, served: Served
) -> None:
    response = await client.post("/chat", json={"message": "Why?", "user_id": "ann", "top_k": 2})
    events = events_of(response)
    assert [event["id"] for event in events] == [str(number) for number in range(1, len(events) + 1)]
    kinds = [event["event"] for event in events]
    assert (kinds[:2], set(kinds[2:-1]), kinds[-1]) == (["turn.created", "sources"], {"text.delta"}, "turn.completed")
    assert "".join(event["data"]["text"] for event in events[2:-1]) == TEXT
    assert served.talk.library.asked == [("acme", "Why?", 2)]
    created = events[0]["data"]
    assert response.headers["content-location"] == f"{turn_path(created)}/events"
    session = (await client.get(f"/chat/sessions/{created['session_id']}")).json()
    assert (session["tenant"], session["user_id"]) == ("acme", "ann")


async def test_an_answer_can_be_had_as_one_json(client: httpx.AsyncClient) -> None:
    answer = await whole(client)
    assert answer["text"] == TEXT
    assert (answer["message_id"], answer["status"], answer["finish_reason"]) == (2, "completed", "stop")
    assert answer["usage"] == {"input_tokens": 11, "output_tokens": 2, "total_tokens": 13, "estimated": False}


@pytest.mark.parametrize("is_use_chats", [False, True])
async def test_how_an_answer_is_to_be_made_reaches_the_model(
    client: httpx.AsyncClient, served: Served, is_use_chats: bool
) -> None:
    message = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": "Why?"}]}
    asked: dict[str, Any] = {"id": "c1", "messages": [message]} if is_use_chats else {"message": "Why?"}
    response = await client.post("/chat", json={**asked, "top_p": 0.25, "temperature": 0.5})
    assert response.status_code == 200
    (request,) = served.model.requests
    assert (request.options.given(), request.temperature) == ({"top_p": 0.25}, 0.5)
    assert fields(await client.post("/chat", json={**asked, "top_p": 2})) == ["top_p"]


async def test_an_answer_that_broke_off_is_told_as_such(client: httpx.AsyncClient, served: Served) -> None:
    served.model.failure = ModelRefused("no", "filtered")
    answer = await whole(client)
    assert (answer["text"], answer["status"], answer["error"]["code"]) == (TEXT, "incomplete", "ModelRefused")
    events = events_of(await client.post("/chat", json={"message": "Why?"}))
    assert events[-1]["event"] == "turn.incomplete"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ObjectNotFound("ChatSession/acme:s"), 404),
        (ModelUnavailable("busy", 3.0), 503),
        (BackPressureError(num_queued_requests=9, max_queued_requests=9), 503),
        (RayActorError(), 503),
        (ValueError("/data/secret"), 500),
    ],
)
async def test_what_is_wrong_before_the_first_event_has_a_status_of_its_own(
    client: httpx.AsyncClient, served: Served, error: Exception, status: int, stream: bool
) -> None:
    served.chat.errors["begin"] = error
    response = await client.post("/chat", json={"message": "Why?", "stream": stream})
    problem(response, status)
    assert ("retry-after" in response.headers) == (status == 503)
    assert "secret" not in response.text


@pytest.mark.parametrize(
    ("failure", "status"), [(ModelUnavailable("busy", 60.0), 503), (ModelRefused("no", "filtered"), 422)]
)
async def test_a_turn_that_fails_is_the_last_event_of_a_stream_and_the_status_of_one_json(
    client: httpx.AsyncClient, served: Served, failure: Exception, status: int
) -> None:
    served.model.failures = [failure, failure]
    assert events_of(await client.post("/chat", json={"message": "Why?"}))[-1]["event"] == "error"
    problem(await client.post("/chat", json={"message": "Why?", "stream": False}), status)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_message_that_can_never_fit_behind_what_its_session_begins_with_is_refused(
    client: httpx.AsyncClient, served: Served, stream: bool
) -> None:
    session_id = await served.talk.new_session("tight")
    await served.talk.sessions.extend("tight", session_id, [{"role": "system", "content": "word " * 1_000}])
    body = {"message": "Why?", "session_id": session_id, "stream": stream}
    refused = await client.post("/chat", json=body, headers={"authorization": "Bearer sk-tight"})
    assert fields(refused) == ["message"]
    assert refused.json()["code"] == "context_length_exceeded"
    assert await served.talk.said(session_id, "tight") == [("system", "word " * 1_000)]


async def test_a_stream_whose_session_is_lost_ends_and_can_be_taken_up_again(
    client: httpx.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LOST_FOR_MAX_S", 0.0)
    served.model.stalls_at = 1
    asked = await served.talk.replica(served.model).begin(Question(tenant="acme", message="Why?"))
    await served.talk.heard(asked, "text.delta")
    path = turn_path({"session_id": asked.session_id, "turn_id": asked.turn_id})
    reading = asyncio.create_task(client.get(f"{path}/events"))
    before = served.talk.objects.calls.count(("ChatSession", "events"))
    async with asyncio.timeout(WITHIN_S):
        while served.talk.objects.calls.count(("ChatSession", "events")) < before + 2:
            await asyncio.sleep(0)
    served.talk.objects.failing_after["ChatSession", "events"] = [LOST]
    served.model.may_go_on.set()
    first = events_of(await reading)
    assert first[-1]["event"] == "text.delta"
    second = events_of(await client.get(f"{path}/events", headers={"last-event-id": first[-1]["id"]}))
    assert second[-1]["event"] == "turn.completed"
    numbers = [int(event["id"]) for event in first + second]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("by", ["header", "body"])
async def test_the_same_request_ten_times_at_once_is_one_turn(
    client: httpx.AsyncClient, served: Served, named: bool, by: str
) -> None:
    session_id = await served.talk.new_session() if named else None
    body = {"message": "Why?", "session_id": session_id} | ({"request_id": "k1"} if by == "body" else {})
    headers = key() if by == "header" else {}
    requests = [client.post("/chat", json={**body, "stream": n % 2 == 0}, headers=headers) for n in range(10)]
    answers = await asyncio.gather(*requests)
    assert [answer.status_code for answer in answers] == [200] * 10
    assert sorted(answer.headers.get("idempotent-replayed", "false") for answer in answers) == ["false"] + ["true"] * 9
    (turn_id,) = {answer.json()["turn_id"] for answer in answers[1::2]}
    assert {events_of(answer)[-1]["data"]["turn_id"] for answer in answers[::2]} == {turn_id}
    assert {answer.text for answer in answers[1::2]} == {answers[1].text}
    assert len(served.model.requests) == 1
    made = answers[1].json()["session_id"]
    assert await served.talk.said(made) == [("user", "Why?"), ("assistant", TEXT)]
    assert len((await client.get("/chat/sessions")).json()["sessions"]) == 1
    assert (await served.talk.sessions.get("acme", made).usage())["total_tokens"] == 13
    again = await client.post("/chat", json={**body, "stream": False}, headers=headers)
    assert again.text == answers[1].text
    changed = await client.post("/chat", json={**body, "message": "Why not?"}, headers=headers)
    assert fields(changed) == ["Idempotency-Key"]


async def test_a_key_is_its_tenants_own(client: httpx.AsyncClient) -> None:
    one = await client.post("/chat", json={"message": "Why?", "stream": False}, headers=key())
    other = await client.post(
        "/chat", json={"message": "Why?", "stream": False}, headers={**key(), "authorization": "Bearer sk-hasty"}
    )
    assert one.json()["session_id"] != other.json()["session_id"]


async def test_a_question_cut_off_before_its_turn_was_recorded_is_begun_once(
    app: FastAPI, client: httpx.AsyncClient, served: Served
) -> None:
    app.state.services = dataclasses.replace(served.services, chat=way_to(CutChat(served.talk, served.model)))
    body = {"message": "Why?", "stream": False}
    problem(await client.post("/chat", json=body, headers=key()), 503)
    app.state.services = served.services
    served.talk.clock.advance(LEASE_S)
    again = await client.post("/chat", json=body, headers=key())
    assert again.status_code == 200
    assert len((await client.get("/chat/sessions")).json()["sessions"]) == 1
    assert await served.talk.said(again.json()["session_id"]) == [("user", "Why?"), ("assistant", TEXT)]


@pytest.mark.parametrize("trigger", ["regenerate-message", "submit-message"])
async def test_a_chat_is_asked_again_also_where_it_was_not_noted_that_its_session_is_there(
    app: FastAPI, client: httpx.AsyncClient, served: Served, trigger: str
) -> None:
    def chat(text: str, **more: Any) -> dict[str, Any]:
        return {
            "id": "c1",
            "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}]}],
            **more,
        }

    # One that was never asked is asked now.
    never = chat("Why?", trigger="regenerate-message") | {"id": "c0"}
    assert (await client.post("/chat", json=never)).status_code == 200
    app.state.services = dataclasses.replace(served.services, chat=way_to(CutChat(served.talk, served.model)))
    assert (await client.post("/chat", json=chat("Why?"))).status_code == 200
    app.state.services = served.services
    text = "Why?" if trigger == "regenerate-message" else "Why not?"
    again = await client.post("/chat", json=chat(text, trigger=trigger, messageId="m1"))
    assert (again.status_code, again.headers.get("idempotent-replayed")) == (200, None)
    assert len(served.model.requests) == 3
    session_id = (await client.get("/chat/c1/messages")).json()["session_id"]
    assert await served.talk.said(session_id) == [("user", text), ("assistant", TEXT)]


async def only_session(client: httpx.AsyncClient) -> dict[str, Any]:
    """The session that a question made, which is listed a moment after its model was asked."""
    async with asyncio.timeout(WITHIN_S):
        while not (sessions := (await client.get("/chat/sessions")).json()["sessions"]):
            pass
    (session,) = sessions
    return dict(session)


async def test_a_message_during_an_answer_waits_is_refused_or_ends_it(
    client: httpx.AsyncClient, served: Served
) -> None:
    served.model.stalls_at = 1
    first = asyncio.create_task(whole(client))
    async with asyncio.timeout(WITHIN_S):
        await served.model.stalled.wait()
    session = await only_session(client)
    there = {"session_id": session["id"]}
    problem(await client.post("/chat", json={"message": "No", "on_conflict": "reject", **there}), 409)
    assert fields(await client.post("/chat", json={"message": "No", "on_conflict": "perhaps", **there})) == [
        "on_conflict"
    ]
    waiting = asyncio.create_task(client.post("/chat", json={"message": "Wait", "on_conflict": "enqueue", **there}))
    async with asyncio.timeout(WITHIN_S):
        while len((await client.get(f"/chat/sessions/{session['id']}/turns")).json()["turns"]) < 2:
            pass
    last = asyncio.create_task(whole(client, message="Now", on_conflict="interrupt", **there))
    answer = await first
    assert (answer["status"], answer["text"]) == ("cancelled", PIECES[0])
    assert [event["event"] for event in events_of(await waiting)] == ["turn.queued", "turn.cancelled"]
    served.model.may_go_on.set()
    assert (await last)["text"] == TEXT
    assert await served.talk.said(session["id"]) == [
        ("user", "Why?"),
        ("assistant", PIECES[0]),
        ("user", "Now"),
        ("assistant", TEXT),
    ]


async def test_a_message_is_answered_again_or_replaced(client: httpx.AsyncClient, served: Served) -> None:
    answer = await whole(client)
    there = {"session_id": answer["session_id"], "stream": False}
    again = (await client.post("/chat", json={"regenerate": True, **there})).json()
    assert again["turn_id"] != answer["turn_id"]
    assert await served.talk.said(answer["session_id"]) == [("user", "Why?"), ("assistant", TEXT)]
    (asked, _) = await served.talk.history(answer["session_id"])
    replaced = await client.post("/chat", json={"message": "How?", "replace": asked["id"], **there})
    assert replaced.status_code == 200
    assert await served.talk.said(answer["session_id"]) == [("user", "How?"), ("assistant", TEXT)]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "message"),
        ({"message": "x", "regenerate": True, "session_id": "s" + "0" * 32}, "message"),
        ({"regenerate": True}, "session_id"),
        ({"message": "x", "replace": 1}, "session_id"),
        ({"message": "x", "replace": 0}, "replace"),
        ({"message": "x", "request_id": "a b"}, "request_id"),
        ({"message": "x", "request_id": ""}, "request_id"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused_by_its_field(
    client: httpx.AsyncClient, served: Served, body: dict[str, Any], field: str
) -> None:
    assert fields(await client.post("/chat", json=body)) == [field]
    assert served.talk.objects.calls.count(("ChatSession", "begin")) == 0


async def test_there_must_be_a_message_to_be_answered_again(client: httpx.AsyncClient, served: Served) -> None:
    session_id = await served.talk.new_session()
    assert fields(await client.post("/chat", json={"regenerate": True, "session_id": session_id})) == ["message"]
    replaced = await client.post("/chat", json={"message": "x", "replace": 7, "session_id": session_id})
    assert fields(replaced) == ["replace"]


async def test_a_turn_can_be_read_listed_and_followed_from_any_event_on(client: httpx.AsyncClient) -> None:
    answer = await whole(client)
    turn = (await client.get(turn_path(answer))).json()
    assert (turn["id"], turn["status"], turn["answer_id"]) == (answer["turn_id"], "completed", answer["message_id"])
    listed = (await client.get(f"/chat/sessions/{answer['session_id']}/turns")).json()
    assert listed == {"turns": [turn], "has_more": False}
    path = f"{turn_path(answer)}/events"
    every = events_of(await client.get(path))
    assert len(every) == turn["last_event"]
    for number in range(turn["last_event"]):
        assert events_of(await client.get(path, headers={"last-event-id": str(number)})) == every[number:]
        assert events_of(await client.get(path, params={"starting_after": number})) == every[number:]
    nothing = await client.get(path, headers={"last-event-id": str(turn["last_event"])})
    assert (nothing.status_code, nothing.text) == (200, "")


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "0x1", "1" * 17, "0 1"])
async def test_what_is_no_event_id_is_refused(client: httpx.AsyncClient, last: str) -> None:
    path = f"{turn_path(await whole(client))}/events"
    assert fields(await client.get(path, headers=[("last-event-id", last)])) == ["Last-Event-ID"]
    assert fields(await client.get(path, params={"starting_after": last})) == ["starting_after"]


async def test_events_that_are_no_longer_kept_are_gone(client: httpx.AsyncClient, served: Served) -> None:
    answer = await whole(client)
    served.talk.clock.advance(TENANTS["acme"].turns.events_kept_s + 1)
    await ring(served.talk.objects, served.talk.clock)
    problem(await client.get(f"{turn_path(answer)}/events"), 410)
    assert (await client.get(turn_path(answer))).json()["status"] == "completed"


async def test_a_request_that_comes_again_is_answered_as_long_as_its_answer_is_there(
    client: httpx.AsyncClient, served: Served
) -> None:
    body = {"message": "Why?", "request_id": "r1"}
    first = (await client.post("/chat", json={**body, "stream": False})).json()
    served.talk.clock.advance(TENANTS["acme"].turns.events_kept_s + 1)
    await ring(served.talk.objects, served.talk.clock)
    again = await client.post("/chat", json={**body, "stream": False})
    assert (again.json(), again.headers["idempotent-replayed"]) == (first, "true")
    kinds = [line for line in (await client.post("/chat", json=body)).text.splitlines() if line.startswith("event:")]
    told = ["turn.created", "sources", "text.delta", "turn.completed"]
    assert kinds == [f"event: {kind}" for kind in told]
    assert len(served.model.requests) == 1
    await served.talk.sessions.get("acme", first["session_id"]).remove(first["message_id"])
    problem(await client.post("/chat", json={**body, "stream": False}), 410)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_question_that_was_cut_off_is_told_again_also_when_its_events_are_gone(
    app: FastAPI, client: httpx.AsyncClient, served: Served, stream: bool
) -> None:
    app.state.services = dataclasses.replace(served.services, chat=way_to(CutChat(served.talk, served.model)))
    problem(await client.post("/chat", json={"message": "Why?", "stream": False}, headers=key()), 503)
    app.state.services = served.services
    session_id = (await only_session(client))["id"]

    async def has_ended() -> bool:
        (turn,) = (await served.talk.turns.page("acme", session_id, limit=10, before=None))["turns"]
        return turn["status"] == "completed"

    await until(has_ended)
    served.talk.clock.advance(TENANTS["acme"].turns.events_kept_s + 1)
    await ring(served.talk.objects, served.talk.clock)
    again = await client.post("/chat", json={"message": "Why?", "stream": stream}, headers=key())
    assert again.headers["idempotent-replayed"] == "true"
    if stream:
        assert events_of(again)[-1]["event"] == "turn.completed"
    else:
        assert (again.json()["text"], again.json()["status"]) == (TEXT, "completed")
    assert len(served.model.requests) == 1


async def test_a_turn_is_stopped_once_and_stays_as_it_is(client: httpx.AsyncClient, served: Served) -> None:
    served.model.stalls_at = 1
    asking = asyncio.create_task(whole(client))
    async with asyncio.timeout(WITHIN_S):
        await served.model.stalled.wait()
    session = await only_session(client)
    (turn,) = (await client.get(f"/chat/sessions/{session['id']}/turns")).json()["turns"]
    path = f"/chat/sessions/{session['id']}/turns/{turn['id']}/cancel"
    stopped = await client.post(path)
    assert (stopped.status_code, stopped.json()["status"]) == (200, "cancelled")
    assert served.model.stopped == 1
    assert (await client.post(path)).json() == stopped.json()
    answer = await asking
    assert (answer["status"], answer["text"]) == ("cancelled", PIECES[0])
    served.model.may_go_on.set()
    ended = await whole(client, session_id=session["id"])
    done = await client.post(f"{turn_path(ended)}/cancel")
    assert done.json()["status"] == "completed"


async def test_another_tenants_turns_are_not_there(client: httpx.AsyncClient) -> None:
    path = turn_path(await whole(client))
    theirs = {"authorization": "Bearer sk-hasty"}
    problem(await client.get(path, headers=theirs), 404)
    problem(await client.get(f"{path}/events", headers=theirs), 404)
    problem(await client.post(f"{path}/cancel", headers=theirs), 404)
    problem(await client.get(path.rpartition("/")[0], headers=theirs), 404)
    assert (await client.get(path)).json()["status"] == "completed"
