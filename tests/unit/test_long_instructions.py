"""Is a question refused that can never fit behind what its session begins with, before anything is stored of it?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from actors import InvalidArgument, TokenUsage
from actors.message import NewMessage
from deployments.errors import ModelRefused
from tests.unit.handles import EchoModel
from tests.unit.objects_fixtures import counting
from tests.unit.talk import Talk, question, talk_at, types_of

#: More than the context of the tenant `tight`, by an estimate.
LONG: NewMessage = {"role": "system", "content": "word " * 400}


class Counted(EchoModel):
    """Has so many tokens for each byte."""

    tokens_per_byte = 1.0

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [int(self.tokens_per_byte * len(text)) + 1 for text in texts]


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    with talk_at(tmp_path) as talk:
        yield talk


async def begins_with(talk: Talk, *messages: NewMessage) -> str:
    session_id = await talk.new_session("tight")
    await talk.sessions.extend("tight", session_id, messages)
    return session_id


@pytest.mark.parametrize("said", [False, True], ids=["first", "later"])
async def test_a_question_that_does_not_fit_behind_the_sessions_instructions_is_not_stored(
    talk: Talk, said: bool
) -> None:
    before: list[NewMessage] = [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": "Hm."}]
    session_id = await begins_with(talk, LONG, *(before if said else []))
    stored = await talk.history(session_id, "tight")
    with pytest.raises(InvalidArgument) as refused:
        await talk.replica(EchoModel("Yes")).begin(question(tenant="tight", session_id=session_id, retrieve=False))
    assert (refused.value.field, refused.value.code) == ("message", ModelRefused.CONTEXT_LENGTH)
    assert await talk.history(session_id, "tight") == stored
    assert (await talk.turns.page("tight", session_id, limit=10, before=None))["turns"] == []


@pytest.mark.parametrize("has_session", [False, True])
async def test_instructions_that_come_with_the_first_question_count_as_well(talk: Talk, has_session: bool) -> None:
    session_id = await begins_with(talk) if has_session else None
    asked = question(tenant="tight", session_id=session_id, leading=(LONG,), retrieve=False)
    with pytest.raises(InvalidArgument) as refused:
        await talk.replica(EchoModel("Yes")).begin(asked)
    assert refused.value.code == ModelRefused.CONTEXT_LENGTH
    sessions = (await talk.sessions.page("tight", limit=10, after=None, user_id=None))["sessions"]
    assert [session["message_count"] for session in sessions] == ([0] if has_session else [])


async def test_what_the_system_says_later_is_no_reason_to_refuse_a_question(talk: Talk) -> None:
    session_id = await begins_with(talk, {"role": "user", "content": "Hm?"}, LONG)
    asked = question(tenant="tight", session_id=session_id, leading=(LONG,), retrieve=False)
    events = await talk.answer(talk.replica(EchoModel("Yes")), asked)
    assert types_of(events)[-1] == "turn.completed"


async def test_instructions_that_fit_by_the_models_own_count_are_taken(talk: Talk) -> None:
    session_id = await begins_with(talk, LONG)
    model = Counted("Yes")
    model.tokens_per_byte = 0.1
    asked = question(tenant="tight", session_id=session_id, retrieve=False)
    events = await talk.answer(talk.replica(model), asked)
    assert types_of(events)[-1] == "turn.completed"
    assert LONG["content"] in [message.content for message in model.requests[0].messages]


async def test_a_short_beginning_costs_no_further_call(talk: Talk) -> None:
    session_id = await begins_with(talk, {"role": "system", "content": "Rhyme."})
    talk.objects.calls.clear()
    await talk.answer(talk.replica(EchoModel("Yes")), question(tenant="tight", session_id=session_id, retrieve=False))
    methods = [method for class_name, method in talk.objects.calls if class_name == "ChatSession"]
    assert methods.count("begin") == 1
    assert "instructions" not in methods


async def test_what_turns_out_not_to_fit_when_its_time_has_come_is_told_as_what_it_is(talk: Talk) -> None:
    # Fewer tokens than bytes are expected, and there are not.
    session_id = await begins_with(talk, {"role": "system", "content": "word" * 75})
    asked = question(tenant="tight", session_id=session_id, retrieve=False, instructions="Rhyme.")
    (*_, error) = await talk.answer(talk.replica(Counted("Yes")), asked)
    assert error["type"] == "error"
    told = {name: error["data"][name] for name in ("code", "message", "retryable")}
    assert told == {
        "code": ModelRefused.CONTEXT_LENGTH,
        "message": "message is too long for the model's context",
        "retryable": False,
    }


async def test_a_refused_question_gives_back_what_it_was_promised(talk: Talk) -> None:
    session_id = await talk.new_session("thrifty")
    await talk.sessions.extend("thrifty", session_id, [{"role": "system", "content": "word " * 4_000}])
    with counting(talk.objects, TokenUsage, "settle") as settled, pytest.raises(InvalidArgument):
        await talk.replica(EchoModel("Yes")).begin(question(tenant="thrifty", session_id=session_id, retrieve=False))
    assert len(settled) == 1
