"""Is an answer made, told and kept as it should be, and does every turn end, whatever fails?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.exceptions import RayActorError

from actors import ObjectReset
from actors.turn import TurnEvent
from deployments import turn_runner
from deployments.errors import (
    ModelRefused,
    ModelTimeout,
    ModelUnavailable,
    ServiceError,
    VectorStoreOwned,
    VectorsUnavailable,
)
from tests.unit.handles import EchoModel, as_ray_raises
from tests.unit.talk import Talk, passage, question, talk_at, text_of, types_of

#: More than a runner waits for.
LONG_S = 60.0


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    with talk_at(tmp_path) as talk:
        yield talk


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_runner, "LOST_PAUSE_S", 0.01)


async def answered(talk: Talk, model: EchoModel, message: str | None = "Why?", **fields: object) -> list[TurnEvent]:
    return await talk.answer(talk.replica(model), question(message, **fields))


def session_of(events: list[TurnEvent]) -> str:
    return str(events[0]["data"]["session_id"])


async def test_a_question_is_answered_in_events_numbered_without_a_gap(talk: Talk) -> None:
    events = await answered(talk, EchoModel("Be", "cause", "."))
    kinds = types_of(events)
    assert kinds[:2] == ["turn.created", "sources"]
    assert set(kinds[2:-1]) == {"text.delta"}
    assert kinds[-1] == "turn.completed"
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert text_of(events) == "Because."
    created, completed = events[0]["data"], events[-1]["data"]
    assert completed["turn_id"] == created["turn_id"]
    assert completed["session_id"] == created["session_id"]
    assert completed["finish_reason"] == "stop"
    assert completed["usage"] == {"input_tokens": 11, "output_tokens": 3, "total_tokens": 14, "estimated": False}
    asking, answering = await talk.history(created["session_id"])
    assert (asking["id"], answering["id"]) == (created["message_id"], completed["message_id"])


async def test_the_question_and_the_answer_are_in_the_history_with_what_belongs_to_them(talk: Talk) -> None:
    talk.library.passages = [passage(1)]
    events = await answered(talk, EchoModel("Because", "."))
    turn_id = events[0]["data"]["turn_id"]
    asking, answering = await talk.history(session_of(events))
    assert (asking["role"], asking["content"], asking["data"]) == ("user", "Why?", {"turn_id": turn_id})
    assert (answering["role"], answering["content"], answering["tokens"]) == ("assistant", "Because.", 2)
    assert answering["data"] == {
        "turn_id": turn_id,
        "sources": events[1]["data"]["sources"],
        "finish_reason": "stop",
        "usage": events[-1]["data"]["usage"],
    }


async def test_the_next_question_of_a_session_is_sent_with_what_was_said(talk: Talk) -> None:
    model = EchoModel("Because")
    chat = talk.replica(model)
    session_id = session_of(await talk.answer(chat, question()))
    await talk.sessions.append("acme", session_id, "user", "By the way")
    await talk.answer(chat, question("And then?", session_id=session_id))
    sent = [(message.role, message.content) for message in model.requests[1].messages]
    assert sent[1:] == [
        ("user", "Why?"),
        ("assistant", "Because"),
        ("user", "By the way"),
        ("user", "And then?"),
    ]


async def test_what_is_found_is_told_as_sources_and_given_to_the_model_between_markers(talk: Talk) -> None:
    talk.library.passages = [passage(1, "Sharks are fish."), passage(2, "Whales are not.")]
    model = EchoModel("Yes")
    events = await answered(talk, model, "Are sharks fish?", top_k=7)
    assert talk.library.asked == [("acme", "Are sharks fish?", 7)]
    assert events[1]["data"]["sources"][0] == {
        "document_id": "d1",
        "chunk_id": "d1:v:0",
        "title": "Title 1",
        "text": "Sharks are fish.",
        "start": 0,
        "end": 16,
    }
    system, asked = model.requests[0].messages
    assert "Sharks" not in system.content
    assert "[1] Title 1\nSharks are fish.\n\n[2] Title 2\nWhales are not." in asked.content
    assert asked.content.endswith("\n\nAre sharks fish?")


async def test_the_markers_are_others_each_time(talk: Talk) -> None:
    model = EchoModel("Yes")
    talk.library.passages = [passage(1)]
    await answered(talk, model)
    # A document that quotes the whole of an earlier prompt.
    talk.library.passages = [passage(2, model.requests[0].messages[-1].content)]
    await answered(talk, model)
    first, second = [request.messages[-1].content.partition("markers ")[2].split(". ")[0] for request in model.requests]
    assert first != second
    assert model.requests[1].messages[-1].content.count(second) == 3


async def test_sources_are_those_that_the_model_was_given(talk: Talk) -> None:
    talk.library.passages = [passage(1, "a" * 60), passage(2, "b" * 60)]
    model = EchoModel("Yes")
    events = await answered(talk, model, tenant="stingy")
    assert [source["document_id"] for source in events[1]["data"]["sources"]] == ["d1"]
    assert "bbb" not in model.requests[0].messages[-1].content


async def test_a_question_that_wants_no_documents_searches_none(talk: Talk) -> None:
    talk.library.passages = [passage(1)]
    model = EchoModel("Yes")
    events = await answered(talk, model, retrieve=False)
    assert talk.library.asked == []
    assert events[1]["data"] == {"sources": []}
    assert model.requests[0].messages[-1].content == "Why?"


@pytest.mark.parametrize(("asked", "given"), [(None, 100), (7, 7), (5000, 100)])
async def test_an_answer_is_as_long_as_asked_for_and_no_longer_than_the_tenant_may(
    talk: Talk, asked: int | None, given: int
) -> None:
    model = EchoModel("Yes")
    await answered(talk, model, max_tokens=asked)
    assert model.requests[0].max_tokens == given


async def test_the_tenants_settings_hold_where_the_question_has_none(talk: Talk) -> None:
    model = EchoModel("Yes")
    await answered(talk, model)
    await answered(talk, model, temperature=0.0)
    assert [request.temperature for request in model.requests] == [0.5, 0.0]
    assert all(29 < request.timeout_s <= 30 for request in model.requests)


@pytest.mark.parametrize(
    ("failure", "code", "retryable", "retry_after_s"),
    [
        (ModelUnavailable("overloaded", 2.5), "ModelUnavailable", True, 2.5),
        (ModelTimeout(30), "ModelTimeout", True, None),
        (ModelRefused("no", "bad"), "ModelRefused", False, None),
        (ModelRefused("too long", "context_length_exceeded"), "context_length_exceeded", False, None),
        (RayActorError(), "ModelUnavailable", True, 1.0),
        (RuntimeError("/secret/path"), "ModelUnavailable", True, 1.0),
    ],
)
async def test_what_was_shown_of_an_answer_is_kept_when_the_model_fails(
    talk: Talk, failure: Exception, code: str, retryable: bool, retry_after_s: float | None
) -> None:
    model = EchoModel("Half of", " it", failure=failure)
    events = await answered(talk, model)
    assert types_of(events)[-1] == "turn.incomplete"
    assert text_of(events) == "Half of it"
    error = events[-1]["data"]["error"]
    assert (error["code"], error["retryable"], error["retry_after_s"]) == (code, retryable, retry_after_s)
    assert "/" not in error["message"]
    # It is not begun again behind the back of who has read half of it.
    assert len(model.requests) == 1
    _, answering = await talk.history(session_of(events))
    assert answering["content"] == "Half of it"
    assert answering["data"] is not None
    assert answering["data"]["finish_reason"] == "incomplete"
    assert answering["data"]["turn_id"] == events[0]["data"]["turn_id"]
    assert answering["data"]["usage"]["estimated"]
    assert answering["data"]["usage"]["output_tokens"] == 2


async def test_a_turn_that_is_stopped_before_the_first_word_counts_what_the_model_has_read(talk: Talk) -> None:
    model = EchoModel("Never", stalls_at=0)
    model.accepts = True
    asked = await talk.replica(model).begin(question())
    await model.stalled.wait()
    await talk.turns.cancel("acme", asked.session_id, asked.turn_id)
    turn = await talk.ended(asked)
    read = model.requests[0].estimated_input_tokens()
    assert turn["usage"] == {"input_tokens": read, "output_tokens": 0, "total_tokens": read, "estimated": True}


async def test_an_answer_without_an_end_is_incomplete(talk: Talk) -> None:
    model = EchoModel("Half")
    model.finishes = False
    events = await answered(talk, model)
    assert (events[-1]["type"], events[-1]["data"]["error"]["code"]) == ("turn.incomplete", "ModelUnavailable")
    assert (await talk.said(session_of(events)))[1:] == [("assistant", "Half")]


@pytest.mark.usefixtures("without_pauses")
@pytest.mark.parametrize("failure", [ModelUnavailable("down", 0.01), RayActorError(), RuntimeError("a mistake")])
async def test_a_model_that_fails_before_its_first_word_is_asked_again(talk: Talk, failure: Exception) -> None:
    model = EchoModel("At", " last")
    model.failures = [failure, failure]
    events = await answered(talk, model)
    assert types_of(events).count("turn.created") == 1
    assert types_of(events).count("turn.retrying") == 2
    assert types_of(events)[-1] == "turn.completed"
    assert await talk.said(session_of(events)) == [("user", "Why?"), ("assistant", "At last")]
    assert len(model.requests) == 3


@pytest.mark.usefixtures("without_pauses")
async def test_a_turn_is_tried_no_more_often_than_the_tenant_may(talk: Talk) -> None:
    model = EchoModel(failure=ModelUnavailable("down", 0.01))
    events = await answered(talk, model)
    assert len(model.requests) == 3
    error = events[-1]
    assert (error["type"], error["data"]["code"], error["data"]["retry_after_s"]) == ("error", "ModelUnavailable", 0.01)
    assert await talk.said(session_of(events)) == [("user", "Why?")]
    await answered(talk, model, tenant="hasty")
    assert len(model.requests) == 4


@pytest.mark.parametrize("failure", [ModelUnavailable("busy", LONG_S), ModelTimeout(30), ModelRefused("no", None)])
async def test_a_turn_that_would_take_too_long_or_fail_again_is_not_tried_again(
    talk: Talk, failure: ServiceError
) -> None:
    model = EchoModel(failure=failure)
    events = await answered(talk, model)
    assert types_of(events) == ["turn.created", "sources", "error"]
    assert events[-1]["data"]["code"] == type(failure).__name__
    assert len(model.requests) == 1
    assert await talk.said(session_of(events)) == [("user", "Why?")]


@pytest.mark.usefixtures("without_pauses")
@pytest.mark.parametrize(
    "failure",
    [VectorsUnavailable("at /data/vectors", 0.01), VectorStoreOwned("/data/vectors", "process 12", 0.01)],
)
async def test_a_search_that_fails_is_told_as_an_error_without_a_word_of_the_inside(
    talk: Talk, failure: ServiceError
) -> None:
    talk.search.errors["find"] = as_ray_raises(failure)
    model = EchoModel("Yes")
    events = await answered(talk, model)
    assert types_of(events) == ["turn.created", "turn.retrying", "turn.retrying", "error"]
    error = events[-1]["data"]
    assert (error["code"], error["retryable"]) == (type(failure).__name__, True)
    assert error["retry_after_s"] == failure.retry_after_s
    assert not {"/data", "process"} & set(error["message"].split())
    assert model.requests == []
    assert await talk.said(session_of(events)) == [("user", "Why?")]


async def test_a_mistake_of_the_services_own_is_logged_and_not_shown(
    talk: Talk, caplog: pytest.LogCaptureFixture
) -> None:
    talk.search.errors["find"] = RuntimeError("/secret/path")
    events = await answered(talk, EchoModel("Yes"), tenant="hasty")
    assert events[-1]["type"] == "error"
    assert "/secret" not in events[-1]["data"]["message"]
    assert "/secret/path" in caplog.text


async def test_a_session_deleted_during_the_turn_ends_it_with_an_error(talk: Talk) -> None:
    model = EchoModel("Yes", "No", stalls_at=1)
    chat = talk.replica(model)
    asked = await chat.begin(question())
    await talk.heard(asked, "text.delta")
    reading = await talk.turns.follow("acme", asked.session_id, asked.turn_id, after=3)
    await talk.sessions.delete("acme", asked.session_id)
    (last,) = [event async for event in reading]
    assert (last["type"], last["number"]) == ("error", 4)
    assert (last["data"]["code"], last["data"]["retryable"]) == ("ObjectNotFound", False)
    await chat.drain()
    assert model.stopped == 1


async def test_a_cancelled_turn_stops_the_model_and_keeps_what_it_wrote(talk: Talk) -> None:
    model = EchoModel("So", " far", stalls_at=1)
    chat = talk.replica(model)
    asked = await chat.begin(question())
    await talk.heard(asked, "text.delta")
    turn = await talk.turns.cancel("acme", asked.session_id, asked.turn_id)
    assert model.stopped == 1
    assert (turn["status"], turn["finish_reason"]) == ("cancelled", None)
    assert turn["usage"] is not None
    assert (turn["usage"]["output_tokens"], turn["usage"]["estimated"]) == (1, True)
    assert await talk.said(asked.session_id) == [("user", "Why?"), ("assistant", "So")]
    assert types_of(await talk.events(asked))[-1] == "turn.cancelled"
    # A second time it stays as it is.
    assert await talk.turns.cancel("acme", asked.session_id, asked.turn_id) == turn


async def test_a_turn_cancelled_while_it_searches_asks_no_model(talk: Talk) -> None:
    talk.library.may_answer.clear()
    model = EchoModel("Yes")
    asked = await talk.replica(model).begin(question())
    turn = await talk.turns.cancel("acme", asked.session_id, asked.turn_id)
    assert (turn["status"], turn["usage"]) == ("cancelled", None)
    assert model.requests == []
    assert await talk.said(asked.session_id) == [("user", "Why?")]


@pytest.mark.parametrize("method", ["record", "finish", "attend"])
@pytest.mark.parametrize("ran", [False, True])
async def test_a_session_that_is_lost_for_a_moment_costs_a_turn_nothing(talk: Talk, method: str, ran: bool) -> None:
    lost = ObjectReset("ChatSession/acme:s", "its host was lost")
    failing = talk.objects.failing_after if ran else talk.objects.failing
    failing["ChatSession", method] = [lost, lost]
    events = await answered(talk, EchoModel("All", " of", " it"))
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert (text_of(events), types_of(events)[-1]) == ("All of it", "turn.completed")
    assert await talk.said(session_of(events)) == [("user", "Why?"), ("assistant", "All of it")]
