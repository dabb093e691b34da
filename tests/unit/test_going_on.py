"""Does a model go on from where a lost one was, and do readers and the history see one answer?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path

import pytest
from ray.exceptions import RayActorError

from deployments import turn_runner
from deployments.chat_request import ChatMessage, ChatRequest, ModelEvent, ModelOptions
from deployments.errors import ModelRefused, ModelTimeout, ModelUnavailable
from deployments.token_count import estimate
from tests.unit.handles import EchoModel
from tests.unit.talk import WITHIN_S, Talk, passage, question, talk_at, text_of, types_of

#: Its model can go on from a part of an answer.
LASTING = "lasting"


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Talk]:
    monkeypatch.setattr(turn_runner, "LOST_PAUSE_S", 0.01)
    with talk_at(tmp_path) as talk:
        yield talk


class Relay:
    """One model after another: what one request begins is gone on with by the next."""

    def __init__(self, *models: EchoModel) -> None:
        self._left = list(models)
        self.requests: list[ChatRequest] = []

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ModelEvent, None]:
        self.requests.append(request)
        async for event in self._left.pop(0).stream(request):
            yield event

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [estimate(text) for text in texts]

    async def ready(self) -> bool:
        return True


@pytest.mark.parametrize("failure", [ModelUnavailable("down", 0.01), RayActorError()])
async def test_an_answer_that_breaks_off_is_gone_on_with(talk: Talk, failure: Exception) -> None:
    talk.library.passages = [passage(1)]
    models = Relay(EchoModel("Be", failure=failure), EchoModel("cau", failure=failure), EchoModel("se", "."))
    events = await talk.answer(talk.replica(models), question(tenant=LASTING))
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert (types_of(events).count("turn.created"), types_of(events).count("sources")) == (1, 1)
    assert types_of(events)[-1] == "turn.completed"
    assert text_of(events) == "Because."
    session_id = events[0]["data"]["session_id"]
    assert await talk.said(session_id, LASTING) == [("user", "Why?"), ("assistant", "Because.")]
    answering = (await talk.history(session_id, LASTING))[-1]
    assert answering["data"] is not None
    assert [source["chunk_id"] for source in answering["data"]["sources"]] == ["d1:v:0"]
    # A piece each of those that broke off, and what the last one counted.
    assert (answering["tokens"], answering["data"]["usage"]["estimated"]) == (4, True)


async def test_an_answer_in_a_format_is_not_gone_on_with(talk: Talk) -> None:
    models = Relay(EchoModel('{"a": ', failure=ModelUnavailable("down", 0.01)), EchoModel("1}"))
    options = ModelOptions(response_format={"type": "json_object"})
    events = await talk.answer(talk.replica(models), question(tenant=LASTING, options=options))
    assert events[-1]["type"] == "turn.incomplete"
    assert events[-1]["data"]["error"]["code"] == "ModelUnavailable"
    assert (text_of(events), len(models.requests)) == ('{"a": ', 1)


async def test_the_model_is_told_what_it_was_told_and_what_it_had_said(talk: Talk) -> None:
    talk.library.passages = [passage(1, "Io is a moon.")]
    models = Relay(EchoModel("Be", failure=ModelUnavailable("down", 0.01)), EchoModel("cause"))
    await talk.answer(talk.replica(models), question(tenant=LASTING, max_tokens=50))
    first, second = models.requests
    assert (first.continues, second.continues) == (False, True)
    assert second.messages[0] == first.messages[0]
    assert "Io is a moon." in second.messages[1].content
    assert second.messages[2:] == (ChatMessage(role="assistant", content="Be"),)
    assert (first.max_tokens, second.max_tokens) == (50, 49)
    # Documents are not searched again: what was found may be another by now.
    assert len(talk.library.asked) == 1


async def test_an_answer_that_has_all_its_tokens_is_at_its_end(talk: Talk) -> None:
    models = Relay(EchoModel("Be", "cause", failure=ModelUnavailable("down", 0.01)))
    events = await talk.answer(talk.replica(models), question(tenant=LASTING, max_tokens=2))
    assert (types_of(events)[-1], events[-1]["data"]["finish_reason"]) == ("turn.completed", "length")
    assert text_of(events) == "Because"
    assert len(models.requests) == 1


@pytest.mark.parametrize("failure", [ModelTimeout(30), ModelRefused("no", None), ModelUnavailable("busy", 60.0)])
async def test_what_would_fail_again_is_not_gone_on_with(talk: Talk, failure: Exception) -> None:
    models = Relay(EchoModel("Be", failure=failure))
    events = await talk.answer(talk.replica(models), question(tenant=LASTING))
    assert (types_of(events)[-1], text_of(events)) == ("turn.incomplete", "Be")


async def test_a_model_that_breaks_off_for_ever_is_asked_as_often_as_the_tenant_may(talk: Talk) -> None:
    models = Relay(*(EchoModel("x", failure=ModelUnavailable("down", 0.01)) for _ in range(3)))
    events = await talk.answer(talk.replica(models), question(tenant=LASTING))
    assert (types_of(events)[-1], text_of(events)) == ("turn.incomplete", "xxx")
    assert events[-1]["data"]["error"]["code"] == "ModelUnavailable"
    assert len(models.requests) == 3


async def test_an_answer_that_a_stopped_replica_can_not_finish_is_finished_by_another(talk: Talk) -> None:
    stalling = EchoModel("Half", " of it", stalls_at=1)
    stopped, other = talk.replica(stalling), talk.replica(EchoModel(" of it"))
    asked = await stopped.begin(question(tenant=LASTING))
    async with asyncio.timeout(WITHIN_S):
        async for event in await talk.turns.follow(LASTING, asked.session_id, asked.turn_id):
            if event["type"] == "text.delta":
                break
    await asyncio.gather(stopped.drain(within_s=0.0), other.check_health())
    assert text_of(await talk.events(asked, LASTING)) == "Half of it"
    assert (await talk.ended(asked, LASTING))["status"] == "completed"
    await other.drain()
