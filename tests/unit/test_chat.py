"""Does a question become a turn that is run, whoever listens and whichever replica is there?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import (
    Directory,
    DurableError,
    InvalidArgument,
    ObjectConflict,
    ObjectNotFound,
    ObjectOverloaded,
    ObjectReset,
    TurnQueue,
)
from actors.runtime import RequestReused
from actors.session_row import LISTED_WITHIN_S
from actors.turn import LEASE_S
from actors.turn_queue import QUEUE_NAME, QUEUE_TENANT
from deployments.chat import Chat
from deployments.errors import ModelUnavailable
from deployments.question import Asked, Question, new_turn_id
from tests.unit.handles import EchoModel
from tests.unit.objects_fixtures import counting, ring
from tests.unit.talk import TENANTS, WITHIN_S, Talk, question, talk_at, text_of, types_of, until


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    with talk_at(tmp_path) as talk:
        yield talk


async def begun(chat: Chat, asked: Question) -> Asked:
    async with asyncio.timeout(WITHIN_S):
        return await chat.begin(asked)


async def test_the_users_message_is_stored_before_the_model_is_asked(talk: Talk) -> None:
    talk.library.may_answer.clear()
    model = EchoModel("Yes")
    asked = await begun(talk.replica(model), question())
    assert await talk.said(asked.session_id) == [("user", "Why?")]
    assert model.requests == []
    talk.library.may_answer.set()
    assert types_of(await talk.events(asked))[-1] == "turn.completed"


async def test_a_turn_goes_on_when_its_listener_leaves(talk: Talk) -> None:
    model = EchoModel("To be", " continued", stalls_at=1)
    asked = await begun(talk.replica(model), question())
    await talk.heard(asked, "text.delta")
    model.may_go_on.set()
    await talk.ended(asked)
    assert await talk.said(asked.session_id) == [("user", "Why?"), ("assistant", "To be continued")]
    assert model.stopped == 0


async def test_a_turn_goes_on_when_the_task_that_began_it_is_cancelled(talk: Talk) -> None:
    model = EchoModel("Still", " here", stalls_at=1)
    chat = talk.replica(model)
    told: asyncio.Future[Asked] = asyncio.get_running_loop().create_future()

    async def request() -> None:
        told.set_result(await chat.begin(question()))
        await asyncio.Event().wait()

    requesting = asyncio.create_task(request())
    asked = await told
    requesting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await requesting
    model.may_go_on.set()
    await talk.ended(asked)
    assert (await talk.said(asked.session_id))[1] == ("assistant", "Still here")


async def test_a_session_is_made_for_a_question_that_names_none(talk: Talk) -> None:
    asked = await begun(talk.replica(EchoModel("Yes")), question(user_id="ann"))
    await talk.ended(asked)
    metadata = await talk.sessions.metadata("acme", asked.session_id)
    assert (metadata["user_id"], metadata["message_count"]) == ("ann", 2)

    async def is_listed_as_it_is() -> bool:
        page = await talk.sessions.page("acme", limit=10, after=None, user_id="ann")
        return page["sessions"] == [await talk.sessions.metadata("acme", asked.session_id)]

    await until(is_listed_as_it_is)


async def test_a_session_that_a_question_made_is_entered_once(talk: Talk) -> None:
    model = EchoModel("Yes", "No", stalls_at=1)
    with counting(talk.objects, Directory, "put") as entries:
        asked = await begun(talk.replica(model), question())
        model.may_go_on.set()
        await talk.ended(asked)
        talk.clock.advance(LISTED_WITHIN_S)
        await ring(talk.objects, talk.clock)
        # Behind its alarm, whoever has fired that.
        assert (await talk.sessions.metadata("acme", asked.session_id))["message_count"] == 2
    assert len(entries) == 1


@pytest.mark.parametrize(
    ("refused", "error"),
    [
        (question(session_id="s" + "0" * 32), ObjectNotFound),
        (question(session_id="../../etc/passwd"), ObjectNotFound),
        (question("word " * 1000, tenant="tight"), InvalidArgument),
    ],
)
async def test_a_question_that_is_refused_begins_and_stores_nothing(
    talk: Talk, refused: Question, error: type[DurableError]
) -> None:
    model = EchoModel("Yes")
    with pytest.raises(error):
        await talk.replica(model).begin(refused)
    assert model.requests == []
    for name in TENANTS:
        assert (await talk.sessions.page(name, limit=10, after=None, user_id=None))["sessions"] == []


async def test_a_question_too_long_for_the_model_is_not_stored_in_its_session(talk: Talk) -> None:
    session_id = await talk.new_session("tight")
    with pytest.raises(InvalidArgument):
        await talk.replica(EchoModel("Yes")).begin(question("word " * 1000, tenant="tight", session_id=session_id))
    assert await talk.history(session_id, "tight") == []
    assert (await talk.turns.page("tight", session_id, limit=10, before=None))["turns"] == []


async def test_another_tenants_session_is_not_found(talk: Talk) -> None:
    session_id = await talk.new_session("tight")
    with pytest.raises(ObjectNotFound):
        await talk.replica(EchoModel("Yes")).begin(question(session_id=session_id))
    assert await talk.history(session_id, "tight") == []


async def test_an_object_that_is_overloaded_refuses_the_question_with_its_own_error(talk: Talk) -> None:
    session_id = await talk.new_session()
    talk.objects.failing["ChatSession", "begin"] = [ObjectOverloaded("ChatSession/acme:s", "too many calls", 2.0)]
    with pytest.raises(ObjectOverloaded):
        await talk.replica(EchoModel("Yes")).begin(question(session_id=session_id))
    assert await talk.history(session_id) == []


async def test_turns_without_listeners_are_bounded_as_well(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.chat.TURNS_AT_ONCE_MAX", 5)
    model = EchoModel("Yes", stalls_at=0)
    chat = talk.replica(model)
    session_id = await talk.new_session()
    turns = [await begun(chat, question(session_id=session_id)) for _ in range(5)]
    with pytest.raises(ModelUnavailable):
        await chat.begin(question(session_id=session_id))
    model.may_go_on.set()
    for asked in turns:
        assert (await talk.ended(asked))["status"] == "completed"

    async def has_room() -> bool:
        try:
            await chat.begin(question(session_id=session_id))
        except ModelUnavailable:
            return False
        return True

    await until(has_room)


async def test_messages_of_one_session_at_once_are_answered_one_after_the_other(talk: Talk) -> None:
    session_id = await talk.new_session()
    chat = talk.replica(EchoModel("a", "b"))
    asked = await asyncio.gather(*[begun(chat, question(f"q{n}", session_id=session_id)) for n in range(9)])
    turns = await asyncio.gather(*[talk.events(one) for one in asked])
    assert [types_of(turn)[-1] for turn in turns] == ["turn.completed"] * 9
    assert sorted(types_of(turn)[0] for turn in turns) == ["turn.created"] + ["turn.queued"] * 8
    messages = await talk.history(session_id)
    assert [message["id"] for message in messages] == list(range(1, 19))
    assert [message["role"] for message in messages] == ["user", "assistant"] * 9
    for asking, answering in zip(messages[::2], messages[1::2], strict=True):
        assert asking["data"] is not None
        assert answering["data"] is not None
        assert asking["data"]["turn_id"] == answering["data"]["turn_id"]
    assert {message["content"] for message in messages[::2]} == {f"q{n}" for n in range(9)}


async def test_a_message_of_more_than_may_wait_is_refused(talk: Talk) -> None:
    model = EchoModel("Yes", stalls_at=0)
    chat = talk.replica(model)
    session_id = await talk.new_session()
    for _ in range(1 + TENANTS["acme"].turns.queue_max):
        await begun(chat, question(session_id=session_id))
    with pytest.raises(ObjectConflict):
        await chat.begin(question(session_id=session_id))
    model.may_go_on.set()
    await chat.drain()


async def test_the_tenants_way_with_a_message_during_an_answer_holds_where_the_question_has_none(talk: Talk) -> None:
    model = EchoModel("Long", " answer", stalls_at=1)
    chat = talk.replica(model)
    first = await begun(chat, question(tenant="hasty"))
    with pytest.raises(ObjectConflict):
        await chat.begin(question(tenant="hasty", session_id=first.session_id))
    second = await begun(chat, question(tenant="hasty", session_id=first.session_id, on_conflict="enqueue"))
    model.may_go_on.set()
    assert [(await talk.ended(turn, "hasty"))["status"] for turn in (first, second)] == ["completed", "completed"]


@pytest.mark.parametrize(
    ("on_conflict", "said"),
    [
        ("interrupt", [("user", "First"), ("assistant", "So"), ("user", "Second"), ("assistant", "So far")]),
        ("rollback", [("user", "Second"), ("assistant", "So far")]),
    ],
)
async def test_a_message_may_end_the_answer_that_is_under_way(
    talk: Talk, on_conflict: str, said: list[tuple[str, str]]
) -> None:
    model = EchoModel("So", " far", stalls_at=1)
    chat = talk.replica(model)
    first = await begun(chat, question("First"))
    await talk.heard(first, "text.delta")
    second = await begun(chat, question("Second", session_id=first.session_id, on_conflict=on_conflict))
    assert (await talk.ended(first))["status"] == "cancelled"
    assert model.stopped == 1
    model.may_go_on.set()
    await talk.ended(second)
    assert await talk.said(first.session_id) == said


async def test_the_same_request_ten_times_at_once_is_one_turn(talk: Talk) -> None:
    session_id = await talk.new_session()
    replicas = [talk.replica(EchoModel("Once", ".")) for _ in range(2)]
    same = question(session_id=session_id, key="k1")
    asked = await asyncio.gather(*[begun(replicas[n % 2], same) for n in range(10)])
    assert len({one.turn_id for one in asked}) == 1
    assert sorted(one.joined for one in asked) == [False] + [True] * 9
    heard = await asyncio.gather(*[talk.events(one) for one in asked])
    assert all(events == heard[0] for events in heard)
    assert await talk.said(session_id) == [("user", "Why?"), ("assistant", "Once.")]
    assert (await talk.sessions.get("acme", session_id).usage())["total_tokens"] == 13
    with pytest.raises(RequestReused):
        await replicas[0].begin(question("Why not?", session_id=session_id, key="k1"))


async def test_a_question_that_is_begun_again_with_its_ids_is_run_once(talk: Talk) -> None:
    model = EchoModel("Yes", stalls_at=0)
    planned = question(new_session_id=talk.sessions.new_id(), turn_id=new_turn_id())
    first = await begun(talk.replica(model), planned)
    second = await begun(talk.replica(model), planned)
    assert (second.session_id, second.turn_id) == (first.session_id, first.turn_id)
    model.may_go_on.set()
    await talk.ended(first)
    assert len(model.requests) == 1
    assert await talk.said(first.session_id) == [("user", "Why?"), ("assistant", "Yes")]


@pytest.mark.parametrize("kept", [True, False])
async def test_the_last_message_can_be_answered_again(talk: Talk, kept: bool) -> None:
    chat = talk.replica(EchoModel("First"))
    asked = await begun(chat, question())
    await talk.ended(asked)
    chat = talk.replica(EchoModel("Second", failure=None if kept else ModelUnavailable("down", 60.0)))
    if not kept:
        chat = talk.replica(EchoModel(failure=ModelUnavailable("down", 60.0)))
    await talk.answer(chat, question(None, session_id=asked.session_id))
    # Where nothing came of it, what was there stays.
    assert await talk.said(asked.session_id) == [("user", "Why?"), ("assistant", "Second" if kept else "First")]


async def test_a_message_can_be_replaced_with_all_that_follows_it(talk: Talk) -> None:
    chat = talk.replica(EchoModel("Yes"))
    asked = await begun(chat, question("One"))
    await talk.ended(asked)
    await talk.answer(chat, question("Two", session_id=asked.session_id))
    await talk.answer(chat, question("Uno", session_id=asked.session_id, replace=1))
    assert await talk.said(asked.session_id) == [("user", "Uno"), ("assistant", "Yes")]


async def test_a_turn_whose_replica_is_lost_is_run_by_another(talk: Talk) -> None:
    lost_model, model = EchoModel("never"), EchoModel("Here", " I am")
    lost, other = talk.replica(lost_model), talk.replica(model)
    await other.check_health()
    # As if the replica had died with the claim in its hands.
    talk.objects.failing["ChatSession", "record"] = [RuntimeError("killed")]
    talk.objects.failing["ChatSession", "attend"] = [RuntimeError("killed")]
    talk.objects.failing["ChatSession", "finish"] = [RuntimeError("killed")] * 2
    talk.objects.failing["ChatSession", "release"] = [RuntimeError("killed")] * 2
    asked = await begun(lost, question())
    await lost.drain()
    assert (await talk.turns.get("acme", asked.session_id, asked.turn_id))["status"] == "in_progress"
    for errors in talk.objects.failing.values():
        errors.clear()
    talk.clock.advance(LEASE_S + 1)
    assert await ring(talk.objects, talk.clock) > 0
    events = await talk.events(asked)
    assert types_of(events)[-1] == "turn.completed"
    # It was lost before it had told anything.
    assert types_of(events)[0] == "turn.created"
    assert text_of(events) == "Here I am"
    assert await talk.said(asked.session_id) == [("user", "Why?"), ("assistant", "Here I am")]
    await other.drain()


async def test_a_queue_that_fails_is_asked_again(talk: Talk, caplog: pytest.LogCaptureFixture) -> None:
    talk.objects.failing["TurnQueue", "take"] = [ObjectReset("TurnQueue/_service:turns", "lost")] * 2
    chat = talk.replica(EchoModel("Yes"))
    await chat.check_health()
    await chat.check_health()

    async def is_taking() -> bool:
        return talk.objects.calls.count(("TurnQueue", "take")) == 3

    await until(is_taking)
    assert caplog.text.count("the queue of turns is not reached") == 2
    await chat.drain()


async def test_a_replica_that_is_stopped_waits_for_its_turns(talk: Talk) -> None:
    model = EchoModel("Nearly", " there", stalls_at=1)
    chat = talk.replica(model)
    asked = await begun(chat, question())
    await talk.heard(asked, "text.delta")
    draining = asyncio.create_task(chat.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    model.may_go_on.set()
    await draining
    assert (await talk.turns.get("acme", asked.session_id, asked.turn_id))["status"] == "completed"


async def test_an_answer_that_a_stopped_replica_can_not_finish_is_kept_as_far_as_it_is(talk: Talk) -> None:
    model = EchoModel("Half", " of it", stalls_at=1)
    chat = talk.replica(model)
    asked = await begun(chat, question())
    await talk.heard(asked, "text.delta")
    await chat.drain(within_s=0.0)
    turn = await talk.turns.get("acme", asked.session_id, asked.turn_id)
    assert turn["status"] == "incomplete"
    assert turn["error"] is not None
    assert turn["error"]["code"] == "RunnerStopped"
    assert await talk.said(asked.session_id) == [("user", "Why?"), ("assistant", "Half")]
    assert model.stopped == 1


async def test_turns_that_a_stopped_replica_has_not_begun_to_answer_are_run_by_another(talk: Talk) -> None:
    model = EchoModel("never", stalls_at=0)
    stopped, other = talk.replica(model), talk.replica(EchoModel("Yes"))
    first = await begun(stopped, question("One"))
    async with asyncio.timeout(WITHIN_S):
        await model.stalled.wait()
    second = await begun(stopped, question("Two", session_id=first.session_id))
    await asyncio.gather(stopped.drain(within_s=0.0), other.check_health())
    for asked in (first, second):
        assert (await talk.ended(asked))["status"] == "completed"
    said = await talk.said(first.session_id)
    assert said == [("user", "One"), ("assistant", "Yes"), ("user", "Two"), ("assistant", "Yes")]
    assert model.stopped == 1
    queue = talk.objects.namespace(TurnQueue).get(QUEUE_TENANT, QUEUE_NAME)
    assert await queue.take(0.0) is None
    await other.drain()


async def test_readiness_is_that_of_the_model(talk: Talk) -> None:
    assert await talk.replica(EchoModel()).ready()
