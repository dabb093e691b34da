"""Is a response a turn: made once, found by its id, followed from any event, stopped, and gone on from?"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from openai.types.responses import Response, ResponseCompletedEvent, ResponseItemList, ResponseStreamEvent
from ray.exceptions import RayActorError

from actors import ObjectNotFound, ObjectOverloaded
from actors.runtime.fingerprint import fingerprint
from deployments.chat_request import ChatMessage, ToolCall
from deployments.errors import ModelRefused, ModelUnavailable
from deployments.idempotency import LEASE_S
from deployments.ingress import idempotency
from deployments.ingress.openai.ids import turn_of
from deployments.question import Asked, Question
from tests.unit.handles import way_to
from tests.unit.objects_fixtures import ring
from tests.unit.openai_routes.lab import PIECES, TEXT, TOOL, Lab
from tests.unit.talk import TENANTS, CutChat, passage

FUNCTION: Any = {"type": "function", "strict": False, **TOOL}
SEARCH: Any = {"type": "file_search", "vector_store_ids": ["default"], "max_num_results": 2}


async def create(client: openai.AsyncOpenAI, **more: Any) -> Response:
    response: Response = await client.responses.create(**{"model": "default", "input": "Why?", **more})
    return Response.model_validate(response.to_dict())


async def heard(client: openai.AsyncOpenAI, response_id: str, **more: Any) -> list[ResponseStreamEvent]:
    return [event async for event in await client.responses.retrieve(response_id, stream=True, **more)]


def asked(response: Response) -> Asked:
    session_id, turn_id = turn_of(response.id)
    return Asked(session_id=session_id, turn_id=turn_id, joined=False)


def session_of(response: Response) -> str:
    return turn_of(response.id)[0]


async def test_a_response_is_a_turn_of_a_session_made_for_it(client: openai.AsyncOpenAI, lab: Lab) -> None:
    response = await create(client, metadata={"a": "b"}, user="u1", max_output_tokens=7, temperature=0.25)
    assert (response.output_text, response.status, response.model) == (TEXT, "completed", "embedded")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (11, 2)
    assert (response.metadata, response.max_output_tokens, response.temperature) == ({"a": "b"}, 7, 0.25)
    assert response.conversation is None
    session_id, turn_id = turn_of(response.id)
    assert (await lab.talk.turns.get("acme", session_id, turn_id))["status"] == "completed"
    assert (await lab.talk.sessions.metadata("acme", session_id))["user_id"] == "u1"
    assert await lab.talk.said(session_id) == [("user", "Why?"), ("assistant", TEXT)]
    assert lab.model.requests[0].max_tokens == 7


async def test_what_is_found_again_is_what_was_answered_also_when_its_events_are_gone(
    client: openai.AsyncOpenAI, lab: Lab
) -> None:
    lab.talk.library.passages = [passage(1)]
    response = await create(client, tools=[SEARCH], instructions="Be brief.", include=["file_search_call.results"])
    assert [item.type for item in response.output] == ["file_search_call", "message"]
    assert await client.responses.retrieve(response.id) == response
    (last,) = [event for event in await heard(client, response.id) if event.type == "response.completed"]
    assert last.response.output == response.output


async def test_a_stream_tells_what_is_told_without_one(client: openai.AsyncOpenAI) -> None:
    async with client.responses.stream(model="default", input="Why?") as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert final.output_text == TEXT
    again = await client.responses.retrieve(final.id)
    assert (again.output_text, again.usage) == (TEXT, final.usage)


async def test_a_stream_is_taken_up_behind_any_of_its_events(client: openai.AsyncOpenAI) -> None:
    response = await create(client)
    events = await heard(client, response.id)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for seen in range(len(events) + 1):
        assert await heard(client, response.id, starting_after=seen) == events[seen + 1 :]


async def test_a_background_response_is_answered_while_nobody_waits(client: openai.AsyncOpenAI, lab: Lab) -> None:
    lab.model.stalls_at = 1
    response = await create(client, background=True)
    assert response.status in ("queued", "in_progress")
    assert response.background
    await lab.talk.heard(asked(response), "text.delta")
    under_way = await client.responses.retrieve(response.id)
    assert (under_way.status, under_way.output_text) == ("in_progress", PIECES[0])
    lab.model.may_go_on.set()
    await lab.talk.ended(asked(response))
    assert (await client.responses.retrieve(response.id)).output_text == TEXT


async def test_a_response_that_is_cancelled_keeps_what_it_has(client: openai.AsyncOpenAI, lab: Lab) -> None:
    lab.model.stalls_at = 1
    response = await create(client, background=True)
    await lab.talk.heard(asked(response), "text.delta")
    cancelled = await client.responses.cancel(response.id)
    assert (cancelled.status, cancelled.output_text) == ("cancelled", PIECES[0])
    assert (await heard(client, response.id))[-1].type == "response.incomplete"
    assert lab.model.stopped == 1
    assert await client.responses.cancel(response.id) == cancelled
    assert await client.responses.retrieve(response.id) == cancelled


async def test_a_response_that_failed_says_why_and_keeps_nothing(client: openai.AsyncOpenAI, lab: Lab) -> None:
    lab.model.failures = [ModelRefused("too long", ModelRefused.CONTEXT_LENGTH)]
    response = await create(client)
    assert (response.status, response.output) == ("failed", [])
    assert response.error is not None
    assert response.error.code == "invalid_prompt"
    assert "too long" in response.error.message
    assert await client.responses.retrieve(response.id) == response


async def test_an_answer_that_came_to_its_limit_is_incomplete(client: openai.AsyncOpenAI, lab: Lab) -> None:
    lab.model.finish_reason = "length"
    response = await create(client)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert await client.responses.retrieve(response.id) == response


async def test_instructions_count_for_one_response_in_place_of_the_tenants(
    client: openai.AsyncOpenAI, lab: Lab
) -> None:
    first = await create(client, instructions="Speak like a fish.")
    second = await create(client, previous_response_id=first.id)
    told = [request.messages[0].content for request in lab.model.requests]
    assert told == ["Speak like a fish.", lab.services.tenants["acme"].model.system_prompt]
    assert (first.instructions, second.instructions) == ("Speak like a fish.", None)


async def test_what_goes_on_from_the_newest_response_is_in_its_session(client: openai.AsyncOpenAI, lab: Lab) -> None:
    first = await create(client)
    second = await create(client, input="And?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert session_of(second) == session_of(first)
    assert [message.content for message in lab.model.requests[-1].messages[1:]] == ["Why?", TEXT, "And?"]


async def test_what_goes_on_from_an_earlier_response_is_in_a_copy_up_to_it(
    client: openai.AsyncOpenAI, lab: Lab
) -> None:
    first = await create(client)
    await create(client, input="And?", previous_response_id=first.id)
    other = await create(client, input="Or?", previous_response_id=first.id)
    assert session_of(other) != session_of(first)
    assert [message.content for message in lab.model.requests[-1].messages[1:]] == ["Why?", TEXT, "Or?"]
    assert len(await lab.talk.said(session_of(first))) == 4


async def test_of_two_that_go_on_from_one_response_at_once_each_has_a_conversation_of_its_own(
    client: openai.AsyncOpenAI, lab: Lab
) -> None:
    first = await create(client)
    questions = ["And?", "Or?"]
    both = await asyncio.gather(
        *(
            create(
                client,
                input=[{"role": "developer", "content": f"on {asked}"}, {"role": "user", "content": asked}],
                previous_response_id=first.id,
            )
            for asked in questions
        )
    )
    assert [response.status for response in both] == ["completed"] * 2
    assert sum(session_of(response) == session_of(first) for response in both) == 1
    for asked, response in zip(questions, both, strict=True):
        said = [text for _, text in await lab.talk.said(session_of(response))]
        assert said == ["Why?", TEXT, f"on {asked}", asked, TEXT]


async def test_what_was_gone_on_with_is_the_same_when_it_is_asked_for_again_later(
    client: openai.AsyncOpenAI, lab: Lab
) -> None:
    first = await create(client)
    more: Any = {"previous_response_id": first.id, "extra_headers": {"Idempotency-Key": "k1"}}
    second = await create(client, **more)
    await create(client, input="And then?", previous_response_id=second.id)
    assert (await create(client, **more)).id == second.id


async def test_messages_before_the_question_are_part_of_the_conversation(client: openai.AsyncOpenAI, lab: Lab) -> None:
    given: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"role": "user", "content": "c"},
    ]
    response = await create(client, input=given)
    assert [message.content for message in lab.model.requests[0].messages[1:]] == ["Be brief.", "a", "b", "c"]
    listed = [item async for item in client.responses.input_items.list(response.id, limit=3, order="asc")]
    texts: list[Any] = [item.model_dump()["content"][0]["text"] for item in listed]
    assert texts == ["Be brief.", "a", "b", "c"]
    page = await client.responses.input_items.list(response.id)
    ResponseItemList.model_validate(page.model_dump() | {"first_id": "", "object": "list"})
    assert [item.model_dump()["content"][0]["text"] for item in page.data] == texts[::-1]


async def test_a_response_that_is_asked_for_twice_with_one_key_is_one(client: openai.AsyncOpenAI, lab: Lab) -> None:
    given = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    more: Any = {"input": given, "extra_headers": {"Idempotency-Key": "k1"}}
    first, again = await create(client, **more), await create(client, **more)
    assert again == first
    assert len(await lab.talk.said(session_of(first))) == 4
    with pytest.raises(openai.BadRequestError):
        await create(client, extra_headers={"Idempotency-Key": "k1"})


async def test_responses_that_are_asked_for_at_once_with_one_key_are_one(
    client: openai.AsyncOpenAI, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Any] = []

    def counted(*args: Any) -> bytes:
        compared.append(args)
        return fingerprint(*args)

    monkeypatch.setattr(idempotency, "fingerprint", counted)
    more: Any = {"extra_headers": {"Idempotency-Key": "k1"}}
    answers = await asyncio.gather(*[create(client, **more) for _ in range(10)])
    assert len({answer.id for answer in answers}) == 1
    assert {answer.output_text for answer in answers} == {TEXT}
    assert len(lab.model.requests) == 1
    # Once for each, however often it has looked whether the first is done.
    assert len(compared) == 10


class NoCopies:
    """A chat that begins no turn in a copy of a session."""

    def __init__(self, lab: Lab, error: Exception) -> None:
        self._chat = lab.talk.replica(lab.model)
        self._error = error

    async def begin(self, question: Question) -> Asked:
        if question.session_id is not None and question.follows is None:
            raise self._error
        return await self._chat.begin(question)


@pytest.mark.parametrize(
    "error", [ModelUnavailable("busy", 1.0), ObjectOverloaded("ChatSession/acme:s", "busy", 1.0), RayActorError()]
)
async def test_a_copy_in_which_nothing_was_begun_is_removed(
    client: openai.AsyncOpenAI, app: FastAPI, lab: Lab, error: Exception
) -> None:
    first = await create(client)
    await create(client, previous_response_id=first.id)
    app.state.services = dataclasses.replace(lab.services, chat=way_to(NoCopies(lab, error)))
    with pytest.raises(openai.InternalServerError):
        await create(client, previous_response_id=first.id)
    page = await lab.talk.sessions.page("acme", limit=10, after=None, user_id=None)
    assert [session["id"] for session in page["sessions"]] == [session_of(first)]


async def test_a_copy_that_is_answered_in_stays_when_it_is_asked_for_again_in_vain(
    client: openai.AsyncOpenAI, app: FastAPI, lab: Lab
) -> None:
    first = await create(client)
    await create(client, previous_response_id=first.id)
    more: Any = {"previous_response_id": first.id, "extra_headers": {"Idempotency-Key": "k1"}}
    for chat in (CutChat(lab.talk, lab.model), NoCopies(lab, ModelUnavailable("busy", 1.0))):
        app.state.services = dataclasses.replace(lab.services, chat=way_to(chat))
        with pytest.raises(openai.InternalServerError):
            await create(client, **more)
        lab.talk.clock.advance(LEASE_S)
    app.state.services = lab.services
    again = await create(client, **more)
    assert again.output_text == TEXT
    assert session_of(again) != session_of(first)
    assert len(lab.model.requests) == 3


@pytest.mark.parametrize("stream", [True, False])
async def test_a_response_that_was_cut_off_is_told_again_also_when_its_events_are_gone(
    client: openai.AsyncOpenAI, app: FastAPI, lab: Lab, stream: bool
) -> None:
    more: Any = {"model": "default", "input": "Why?", "extra_headers": {"Idempotency-Key": "k1"}}
    app.state.services = dataclasses.replace(lab.services, chat=way_to(CutChat(lab.talk, lab.model)))
    with pytest.raises(openai.InternalServerError):
        await client.responses.create(**more)
    app.state.services = lab.services
    lab.talk.clock.advance(TENANTS["acme"].turns.events_kept_s + 1)
    await ring(lab.talk.objects, lab.talk.clock)
    if stream:
        last = [event async for event in await client.responses.create(stream=True, **more)][-1]
        assert isinstance(last, ResponseCompletedEvent)
        again = last.response
    else:
        again = await client.responses.create(**more)
    assert (again.status, again.output_text) == ("completed", TEXT)
    assert len(lab.model.requests) == 1


async def test_a_copy_that_is_asked_for_twice_with_one_key_is_one(client: openai.AsyncOpenAI) -> None:
    first = await create(client)
    await create(client, previous_response_id=first.id)
    more: Any = {"previous_response_id": first.id, "extra_headers": {"Idempotency-Key": "k1"}}
    assert (await create(client, **more)).id == (await create(client, **more)).id


async def test_a_response_that_is_deleted_is_gone_and_so_is_a_session_made_for_it(
    client: openai.AsyncOpenAI, lab: Lab
) -> None:
    first = await create(client)
    second = await create(client, previous_response_id=first.id)
    await client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(first.id)
    # The other one goes on from it.
    assert (await client.responses.retrieve(second.id)).output_text == TEXT
    await client.responses.delete(second.id)
    with pytest.raises(ObjectNotFound):
        await lab.talk.sessions.metadata("acme", session_of(first))


async def test_a_conversation_outlives_its_responses(client: openai.AsyncOpenAI, lab: Lab) -> None:
    made = await client.conversations.create()
    response = await create(client, conversation=made.id)
    await client.responses.delete(response.id)
    assert len(await lab.talk.said(session_of(response))) == 2


async def test_a_turn_that_was_not_asked_for_as_a_response_is_none(client: openai.AsyncOpenAI, lab: Lab) -> None:
    session_id = await lab.talk.new_session()
    completion = await client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": "Why?"}], metadata={"session_id": session_id}
    )
    turn_id = completion.id.removeprefix("chatcmpl-")
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(f"resp_{session_id[1:]}{turn_id}")


async def test_a_response_of_another_tenant_does_not_exist(app: FastAPI, lab: Lab) -> None:
    async with lab.client(app) as acme:
        response = await create(acme)
    async with lab.client(app, "sk-stingy") as other:
        for ask in (
            other.responses.retrieve(response.id),
            other.responses.cancel(response.id),
            other.responses.delete(response.id),
            other.responses.input_items.list(response.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await ask
        with pytest.raises(openai.BadRequestError) as refused:
            await create(other, previous_response_id=response.id)
        assert refused.value.code == "previous_response_not_found"


async def test_without_storing_the_model_is_asked_and_nothing_is_kept(client: openai.AsyncOpenAI, lab: Lab) -> None:
    response = await create(client, store=False)
    assert (response.output_text, response.status) == (TEXT, "completed")
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(response.id)
    await lab.services.usage.told()
    assert {name for name, _ in lab.talk.objects.calls} == {"TokenBucket", "TokenUsage", "ChatSession"}
    assert ("ChatSession", "create") not in lab.talk.objects.calls


async def test_a_clients_own_function_is_called_and_its_result_told_to_the_model(
    client: openai.AsyncOpenAI, lab: Lab
) -> None:
    lab.model.pieces = ()
    lab.model.calls = [ToolCall(id="c1", name="look_up", arguments='{"word": "fish"}')]
    given: Any = [{"role": "user", "content": "What is a fish?"}]
    first = await create(client, input=given, store=False, tools=[FUNCTION], tool_choice="required")
    (call,) = first.output
    assert call.type == "function_call"
    assert (call.call_id, call.name, call.arguments) == ("c1", "look_up", '{"word": "fish"}')
    lab.model.pieces, lab.model.calls = PIECES, []
    result = {"type": "function_call_output", "call_id": "c1", "output": "an animal"}
    given += [call.model_dump(), result]
    second = await create(client, input=given, store=False, tools=[FUNCTION])
    assert second.output_text == TEXT
    assert lab.model.requests[0].tool_choice == "required"
    assert lab.model.requests[1].messages[1:] == (
        ChatMessage(role="user", content="What is a fish?"),
        ChatMessage(
            role="assistant",
            content="",
            tool_calls=(ToolCall(id="c1", name="look_up", arguments='{"word": "fish"}'),),
        ),
        ChatMessage(role="tool", content="an animal", tool_call_id="c1"),
    )


async def test_a_function_call_is_streamed_as_such(client: openai.AsyncOpenAI, lab: Lab) -> None:
    lab.model.calls = [ToolCall(id="c1", name="look_up", arguments="{}")]
    async with client.responses.stream(input="Why?", model="default", store=False, tools=[FUNCTION]) as stream:
        types = [event.type async for event in stream]
    assert "response.function_call_arguments.done" in types
    assert types[-1] == "response.completed"


@pytest.mark.parametrize("store", [True, False])
async def test_how_an_answer_is_to_be_made_is_told_to_the_model_and_to_who_looks(
    client: openai.AsyncOpenAI, lab: Lab, store: bool
) -> None:
    form = {"type": "json_schema", "name": "fish", "schema": {"type": "object"}, "strict": True}
    response = await create(client, store=store, top_p=0.5, text={"format": form})
    assert lab.model.requests[0].options.given() == {
        "top_p": 0.5,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "fish", "schema": {"type": "object"}, "strict": True},
        },
    }
    assert response.top_p == 0.5
    assert response.text is not None
    assert response.text.to_dict() == {"format": form}
    if store:
        assert (await client.responses.retrieve(response.id)).text == response.text


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [FUNCTION, FUNCTION]}, "tools"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{**SEARCH, "vector_store_ids": ["vs_1"]}]}, "tools.0.file_search.vector_store_ids.0"),
        ({"store": False, "background": True}, "background"),
        ({"store": False, "conversation": "conv_1"}, "conversation"),
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": []}, "input"),
        ({"input": ""}, "input.0.content"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "input"),
        ({"input": "x" * 101}, "input.0.content"),
        ({"truncation": "disabled"}, "truncation"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.json_schema.schema"),
        ({"top_p": -1}, "top_p"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"extra_body": {"misspelt": 1}}, "misspelt"),
        ({"store": False, "input": [{"type": "function_call", "call_id": "c"}]}, "input.0"),
        ({"store": False, "input": [{"type": "reasoning", "summary": []}]}, "input"),
    ],
)
async def test_what_is_not_taken_is_refused_by_its_name(
    client: openai.AsyncOpenAI, lab: Lab, more: Any, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await create(client, **more)
    assert refused.value.param == param
    assert lab.model.requests == []


async def test_a_stream_whose_session_goes_away_ends_with_an_error(client: openai.AsyncOpenAI, lab: Lab) -> None:
    lab.model.stalls_at = 1
    response = await create(client, background=True)
    await lab.talk.heard(asked(response), "text.delta")
    hearing = asyncio.ensure_future(heard(client, response.id))
    await asyncio.sleep(0)
    await lab.talk.sessions.delete("acme", session_of(response))
    with pytest.raises(openai.APIError):
        await hearing
