"""Is an answer made, told and kept, whoever listens and whatever fails?"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors import ChatSession, Directory, DurableError, InvalidArgument, ObjectNotFound, ObjectOverloaded
from actors.document_index import Passage
from actors.message import Message
from actors.runtime.clock import ManualClock
from configs.tenant import ModelConfig, RetrievalConfig
from deployments.activity import ActivityLog
from deployments.chat import Chat
from deployments.documents import Found
from deployments.errors import (
    ModelRefused,
    ModelTimeout,
    ModelUnavailable,
    ServiceError,
    VectorStoreOwned,
    VectorsUnavailable,
)
from deployments.question import Question
from deployments.sessions import Sessions
from tests.unit.handles import EchoModel, FailingObjects, Handle, as_ray_raises, tenant

TENANTS = {
    "acme": tenant("acme", model=ModelConfig(max_tokens=100, temperature=0.5, timeout_s=30)),
    "tight": tenant("tight", model=ModelConfig(max_tokens=100, context_tokens=400)),
    "stingy": tenant("stingy", retrieval=RetrievalConfig(context_chars_max=100)),
}


class Library:
    """Finds the passages it is given, and notes what it was asked for."""

    def __init__(self) -> None:
        self.passages: list[Passage] = []
        self.asked: list[tuple[str, str, int | None]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def find(self, tenant: str, query: str, *, top_k: int | None = None) -> Found:
        self.asked.append((tenant, query, top_k))
        await self.may_answer.wait()
        return Found(self.passages, cached=False)


@pytest.fixture
def objects(tmp_path: Path, clock: ManualClock) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, clock, classes=[ChatSession, Directory])
    yield objects
    objects.close()


@pytest.fixture
def sessions(objects: FailingObjects, clock: ManualClock) -> Sessions:
    return Sessions(objects, TENANTS, ActivityLog(objects), clock.now)


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def search(library: Library) -> Handle:
    return Handle(library)


@pytest.fixture
def chat_with(objects: FailingObjects, search: Handle, clock: ManualClock) -> Callable[[EchoModel], Chat]:
    def made(model: EchoModel) -> Chat:
        return Chat(connect=lambda: objects, tenants=TENANTS, model=Handle(model), search=search, now=clock.now)

    return made


def _question(message: str = "Why?", **fields: Any) -> Question:
    return Question(**{"tenant": "acme", "message": message, **fields})


async def _all(events: AsyncIterator[Any]) -> list[Any]:
    async with asyncio.timeout(20):
        return [event async for event in events]


def _types(events: list[Any]) -> list[str]:
    return [event.type for event in events]


async def _history(sessions: Sessions, session_id: str, tenant_name: str = "acme") -> list[Message]:
    history = await sessions.history(tenant_name, session_id, limit=100, before=None)
    return history["messages"]


async def _said(sessions: Sessions, session_id: str) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in await _history(sessions, session_id)]


async def _settled(sessions: Sessions, session_id: str, messages: int) -> list[tuple[str, str]]:
    """What is said once there are so many messages, asked for until then."""
    async with asyncio.timeout(20):
        while len(said := await _said(sessions, session_id)) < messages:
            pass
    return said


def _passage(number: int, text: str = "a passage") -> Passage:
    return {
        "id": f"d{number}:v:0",
        "document_id": f"d{number}",
        "title": f"Title {number}",
        "heading": "",
        "text": text,
        "start": 0,
        "end": len(text),
        "metadata": {},
    }


async def test_a_question_is_answered_in_events_numbered_without_a_gap(
    chat_with: Callable[[EchoModel], Chat], sessions: Sessions
) -> None:
    events = await _all(chat_with(EchoModel("Be", "cause", ".")).answer(_question()))
    assert _types(events) == ["turn.created", "sources", "text.delta", "text.delta", "text.delta", "turn.completed"]
    assert [event.number for event in events] == [1, 2, 3, 4, 5, 6]
    created, completed = events[0].data, events[-1].data
    assert [event.data["text"] for event in events[2:5]] == ["Be", "cause", "."]
    assert completed["turn_id"] == created["turn_id"]
    assert completed["session_id"] == created["session_id"]
    assert completed["finish_reason"] == "stop"
    assert completed["usage"] == {"input_tokens": 11, "output_tokens": 3, "total_tokens": 14, "estimated": False}
    question, answer = await _history(sessions, created["session_id"])
    assert (question["id"], answer["id"]) == (created["message_id"], completed["message_id"])


async def test_the_question_and_the_answer_are_in_the_history_with_what_belongs_to_them(
    chat_with: Callable[[EchoModel], Chat], sessions: Sessions, library: Library
) -> None:
    library.passages = [_passage(1)]
    events = await _all(chat_with(EchoModel("Because", ".")).answer(_question(user_id="ann")))
    session_id, turn_id = events[0].data["session_id"], events[0].data["turn_id"]
    question, answer = await _history(sessions, session_id)
    assert (question["role"], question["content"], question["data"]) == ("user", "Why?", {"turn_id": turn_id})
    assert (answer["role"], answer["content"], answer["tokens"]) == ("assistant", "Because.", 2)
    assert answer["data"] == {
        "turn_id": turn_id,
        "sources": events[1].data["sources"],
        "finish_reason": "stop",
        "usage": events[-1].data["usage"],
    }
    metadata = await sessions.metadata("acme", session_id)
    assert (metadata["user_id"], metadata["message_count"]) == ("ann", 2)


async def test_the_users_message_is_stored_before_the_model_is_asked(
    chat_with: Callable[[EchoModel], Chat], sessions: Sessions, library: Library
) -> None:
    library.may_answer.clear()
    model = EchoModel("Yes")
    events = chat_with(model).answer(_question())
    created = await anext(events)
    assert await _said(sessions, created.data["session_id"]) == [("user", "Why?")]
    assert model.requests == []
    library.may_answer.set()
    assert _types(await _all(events))[-1] == "turn.completed"


async def test_a_turn_goes_on_when_its_listener_leaves(
    chat_with: Callable[[EchoModel], Chat], sessions: Sessions
) -> None:
    model = EchoModel("To be", " continued", stalls_at=1)
    events = chat_with(model).answer(_question())
    created = await anext(events)
    while (await anext(events)).type != "text.delta":
        pass
    await events.aclose()
    model.may_go_on.set()
    said = await _settled(sessions, created.data["session_id"], 2)
    assert said == [("user", "Why?"), ("assistant", "To be continued")]


async def test_a_turn_goes_on_when_the_task_that_listens_is_cancelled(
    chat_with: Callable[[EchoModel], Chat], sessions: Sessions
) -> None:
    session_id = (await sessions.create("acme"))["id"]
    model = EchoModel("Still", " here", stalls_at=1)
    started = asyncio.Event()

    async def listen() -> None:
        async for event in chat.answer(_question(session_id=session_id)):
            if event.type == "text.delta":
                started.set()

    chat = chat_with(model)
    listener = asyncio.create_task(listen())
    async with asyncio.timeout(20):
        await started.wait()
    listener.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await listener
    model.may_go_on.set()
    assert (await _settled(sessions, session_id, 2))[1] == ("assistant", "Still here")


async def test_several_listeners_hear_all_events_of_one_turn_whenever_they_come() -> None:
    turn = Turn()
    early = [asyncio.create_task(_all(turn.events())) for _ in range(3)]
    for number in range(100):
        turn.add("text.delta", {"text": str(number)})
        if number % 7 == 0:
            early.append(asyncio.create_task(_all(turn.events())))
            await asyncio.sleep(0)
    turn.end()
    late = await _all(turn.events())
    assert [event.number for event in late] == list(range(1, 101))
    assert all(heard == late for heard in await asyncio.gather(*early))


async def test_a_listener_that_leaves_takes_no_event_from_the_others() -> None:
    turn = Turn()
    leaver, stayer = turn.events(), turn.events()
    turn.add("text.delta", {"text": "a"})
    await anext(aiter(leaver))
    turn.add("text.delta", {"text": "b"})
    turn.end()
    assert len(await _all(stayer)) == 2


async def test_the_next_question_of_a_session_is_sent_with_what_was_said(
    chat_with: Callable[[EchoModel], Chat], sessions: Sessions
) -> None:
    model = EchoModel("Because")
    chat = chat_with(model)
    session_id = (await _all(chat.answer(_question())))[0].data["session_id"]
    await sessions.append("acme", session_id, "user", "By the way")
    await _all(chat.answer(_question("And then?", session_id=session_id)))
    sent = [(message.role, message.content) for message in model.requests[1].messages]
    assert sent[1:] == [
        ("user", "Why?"),
        ("assistant", "Because"),
        ("user", "By the way"),
        ("user", "And then?"),
    ]


async def test_what_is_found_is_told_as_sources_and_given_to_the_model_between_markers(
    chat_with: Callable[[EchoModel], Chat], library: Library
) -> None:
    library.passages = [_passage(1, "Sharks are fish."), _passage(2, "Whales are not.")]
    model = EchoModel("Yes")
    events = await _all(chat_with(model).answer(_question("Are sharks fish?", top_k=7)))
    assert library.asked == [("acme", "Are sharks fish?", 7)]
    assert events[1].data["sources"][0] == {
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


async def test_the_markers_are_others_each_time(chat_with: Callable[[EchoModel], Chat], library: Library) -> None:
    model = EchoModel("Yes")
    chat = chat_with(model)
    library.passages = [_passage(1)]
    await _all(chat.answer(_question()))
    # A document that quotes the whole of an earlier prompt.
    library.passages = [_passage(2, model.requests[0].messages[-1].content)]
    await _all(chat.answer(_question()))
    first, second = [request.messages[-1].content.partition("markers ")[2].split(". ")[0] for request in model.requests]
    assert first != second
    assert model.requests[1].messages[-1].content.count(second) == 3


async def test_sources_are_those_that_the_model_was_given(
    chat_with: Callable[[EchoModel], Chat], library: Library
) -> None:
    library.passages = [_passage(1, "a" * 60), _passage(2, "b" * 60)]
    model = EchoModel("Yes")
    events = await _all(chat_with(model).answer(_question(tenant="stingy")))
    assert [source["document_id"] for source in events[1].data["sources"]] == ["d1"]
    assert "bbb" not in model.requests[0].messages[-1].content


async def test_a_question_that_wants_no_documents_searches_none(
    chat_with: Callable[[EchoModel], Chat], library: Library
) -> None:
    library.passages = [_passage(1)]
    model = EchoModel("Yes")
    events = await _all(chat_with(model).answer(_question(retrieve=False)))
    assert library.asked == []
    assert events[1].data == {"sources": []}
    assert model.requests[0].messages[-1].content == "Why?"


@pytest.mark.parametrize(("asked", "given"), [(None, 100), (7, 7), (5000, 100)])
async def test_an_answer_is_as_long_as_asked_for_and_no_longer_than_the_tenant_may(
    chat_with: Callable[[EchoModel], Chat], asked: int | None, given: int
) -> None:
    model = EchoModel("Yes")
    await _all(chat_with(model).answer(_question(max_tokens=asked)))
    assert model.requests[0].max_tokens == given


async def test_the_tenants_settings_hold_where_the_question_has_none(
    chat_with: Callable[[EchoModel], Chat],
) -> None:
    model = EchoModel("Yes")
    chat = chat_with(model)
    await _all(chat.answer(_question()))
    await _all(chat.answer(_question(temperature=0.0)))
    assert [(request.temperature, request.timeout_s) for request in model.requests] == [(0.5, 30), (0.0, 30)]


@pytest.mark.parametrize(
    ("failure", "code", "retryable", "retry_after_s"),
    [
        (ModelUnavailable("overloaded", 2.5), "ModelUnavailable", True, 2.5),
        (ModelTimeout(30), "ModelTimeout", True, None),
        (ModelRefused("too long", "context_length_exceeded"), "ModelRefused", False, None),
        (RayActorError(), "ModelUnavailable", True, 1.0),
        (RuntimeError("/secret/path"), "ModelUnavailable", True, 1.0),
    ],
)
async def test_what_was_shown_of_an_answer_is_kept_when_the_model_fails(
    chat_with: Callable[[EchoModel], Chat],
    sessions: Sessions,
    failure: Exception,
    code: str,
    retryable: bool,
    retry_after_s: float | None,
) -> None:
    events = await _all(chat_with(EchoModel("Half of", " it", failure=failure)).answer(_question()))
    assert _types(events) == ["turn.created", "sources", "text.delta", "text.delta", "error"]
    assert [event.number for event in events] == [1, 2, 3, 4, 5]
    error = events[-1].data
    assert (error["code"], error["retryable"], error["retry_after_s"]) == (code, retryable, retry_after_s)
    assert "/" not in error["message"]
    _, answer = await _history(sessions, events[0].data["session_id"])
    assert answer["content"] == "Half of it"
    assert answer["data"] is not None
    assert answer["data"]["finish_reason"] == "incomplete"
    assert answer["data"]["turn_id"] == events[0].data["turn_id"]


async def test_an_answer_without_an_end_is_a_failure(
    chat_with: Callable[[EchoModel], Chat], sessions: Sessions
) -> None:
    model = EchoModel("Half")
    model.finishes = False
    events = await _all(chat_with(model).answer(_question()))
    assert (events[-1].type, events[-1].data["code"]) == ("error", "ModelUnavailable")
    assert (await _said(sessions, events[0].data["session_id"]))[1:] == [("assistant", "Half")]


async def test_a_model_that_fails_at_once_leaves_the_question_and_no_answer(
    chat_with: Callable[[EchoModel], Chat], sessions: Sessions
) -> None:
    events = await _all(chat_with(EchoModel(failure=ModelUnavailable("down", 1.0))).answer(_question()))
    assert _types(events) == ["turn.created", "sources", "error"]
    assert await _said(sessions, events[0].data["session_id"]) == [("user", "Why?")]


@pytest.mark.parametrize(
    "failure",
    [VectorsUnavailable("at /data/vectors", 1.0), VectorStoreOwned("/data/vectors", "process 12", 5.0)],
)
async def test_a_search_that_fails_is_told_as_an_error_without_a_word_of_the_inside(
    chat_with: Callable[[EchoModel], Chat], search: Handle, sessions: Sessions, failure: ServiceError
) -> None:
    search.errors["find"] = as_ray_raises(failure)
    model = EchoModel("Yes")
    events = await _all(chat_with(model).answer(_question()))
    assert _types(events) == ["turn.created", "error"]
    assert events[1].data["code"] == type(failure).__name__
    assert events[1].data["retryable"] is True
    assert events[1].data["retry_after_s"] == failure.retry_after_s
    assert not {"/data", "process"} & set(events[1].data["message"].split())
    assert model.requests == []
    assert await _said(sessions, events[0].data["session_id"]) == [("user", "Why?")]


async def test_a_session_deleted_during_the_turn_ends_it_with_an_error(
    chat_with: Callable[[EchoModel], Chat], sessions: Sessions
) -> None:
    model = EchoModel("Yes", "No", stalls_at=1)
    events = chat_with(model).answer(_question())
    session_id = (await anext(events)).data["session_id"]
    await sessions.delete("acme", session_id)
    model.may_go_on.set()
    last = (await _all(events))[-1]
    assert (last.type, last.data["code"], last.data["retryable"]) == ("error", "ObjectNotFound", False)
    assert session_id not in last.data["message"]


@pytest.mark.parametrize(
    ("question", "error"),
    [
        (_question(session_id="s" + "0" * 32), ObjectNotFound),
        (_question(session_id="../../etc/passwd"), ObjectNotFound),
        (_question("word " * 1000, tenant="tight"), InvalidArgument),
    ],
)
async def test_a_question_that_is_refused_raises_before_any_event_and_stores_nothing(
    chat_with: Callable[[EchoModel], Chat],
    sessions: Sessions,
    question: Question,
    error: type[DurableError],
) -> None:
    model = EchoModel("Yes")
    with pytest.raises(error):
        await anext(chat_with(model).answer(question))
    assert model.requests == []
    for name in TENANTS:
        assert (await sessions.page(name, limit=10, after=None, user_id=None))["sessions"] == []


async def test_a_question_too_long_for_the_model_is_not_stored_in_its_session(
    chat_with: Callable[[EchoModel], Chat], sessions: Sessions
) -> None:
    session_id = (await sessions.create("tight"))["id"]
    with pytest.raises(InvalidArgument):
        await anext(
            chat_with(EchoModel("Yes")).answer(_question("word " * 1000, tenant="tight", session_id=session_id))
        )
    assert await _history(sessions, session_id, "tight") == []


async def test_another_tenants_session_is_not_found(chat_with: Callable[[EchoModel], Chat], sessions: Sessions) -> None:
    session_id = (await sessions.create("tight"))["id"]
    with pytest.raises(ObjectNotFound):
        await anext(chat_with(EchoModel("Yes")).answer(_question(session_id=session_id)))
    assert await _history(sessions, session_id, "tight") == []


async def test_an_object_that_is_overloaded_refuses_the_question_with_its_own_error(
    chat_with: Callable[[EchoModel], Chat], sessions: Sessions, objects: FailingObjects
) -> None:
    session_id = (await sessions.create("acme"))["id"]
    objects.failing["ChatSession", "append"] = [ObjectOverloaded("ChatSession/acme:s", "too many calls", 2.0)]
    with pytest.raises(ObjectOverloaded):
        await anext(chat_with(EchoModel("Yes")).answer(_question(session_id=session_id)))
    assert await _history(sessions, session_id) == []


async def test_a_mistake_of_the_services_own_before_the_first_event_is_logged_and_not_shown(
    chat_with: Callable[[EchoModel], Chat],
    sessions: Sessions,
    objects: FailingObjects,
    caplog: pytest.LogCaptureFixture,
) -> None:
    session_id = (await sessions.create("acme"))["id"]
    objects.failing["ChatSession", "history"] = [RuntimeError("/secret/path")]
    with pytest.raises(ModelUnavailable) as refused:
        await anext(chat_with(EchoModel("Yes")).answer(_question(session_id=session_id)))
    assert "/secret" not in str(refused.value)
    assert "/secret/path" in caplog.text


async def test_turns_without_listeners_are_bounded_as_well(
    chat_with: Callable[[EchoModel], Chat], sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.chat.TURNS_AT_ONCE_MAX", 5)
    model = EchoModel("Yes", stalls_at=0)
    chat = chat_with(model)
    session_id = (await sessions.create("acme"))["id"]
    for _ in range(5):
        events = chat.answer(_question(session_id=session_id))
        await anext(events)
        await events.aclose()
    with pytest.raises(ModelUnavailable):
        await anext(chat.answer(_question(session_id=session_id)))
    model.may_go_on.set()
    async with asyncio.timeout(20):
        while (await sessions.metadata("acme", session_id))["message_count"] < 10:
            pass
    assert _types(await _all(chat.answer(_question(session_id=session_id))))[-1] == "turn.completed"


async def test_turns_of_one_session_at_once_are_all_answered(
    chat_with: Callable[[EchoModel], Chat], sessions: Sessions
) -> None:
    session_id = (await sessions.create("acme"))["id"]
    chat = chat_with(EchoModel("a", "b"))
    turns = await asyncio.gather(
        *[_all(chat.answer(_question(f"q{number}", session_id=session_id))) for number in range(10)]
    )
    assert [_types(turn)[-1] for turn in turns] == ["turn.completed"] * 10
    messages = await _history(sessions, session_id)
    assert [message["id"] for message in messages] == list(range(1, 21))
    by_turn: dict[str, list[str]] = {}
    for message in messages:
        assert message["data"] is not None
        by_turn.setdefault(message["data"]["turn_id"], []).append(message["role"])
    assert list(by_turn.values()) == [["user", "assistant"]] * 10


async def test_the_listing_shows_what_was_chatted(
    chat_with: Callable[[EchoModel], Chat], sessions: Sessions, objects: FailingObjects
) -> None:
    chat = chat_with(EchoModel("Yes"))
    session_id = (await _all(chat.answer(_question())))[0].data["session_id"]
    async with asyncio.timeout(20):
        while True:
            page = await sessions.page("acme", limit=10, after=None, user_id=None)
            if page["sessions"] == [await sessions.metadata("acme", session_id)]:
                break


async def test_readiness_is_that_of_the_model(chat_with: Callable[[EchoModel], Chat]) -> None:
    assert await chat_with(EchoModel()).ready()
