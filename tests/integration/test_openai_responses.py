"""Does OpenAI's package make, follow and stop responses of the running service, and keep conversations in it?"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from tests.integration.calls import eventually, unique
from tests.integration.conftest import Service
from tests.integration.openai_client import TOOL, openai_client
from tests.integration.scripted_model import KEY, MODEL, ScriptedModel, answer, question

#: For the upstream server to notice, from the moment the stop was asked for.
STOPPED_WITHIN_S = 1.0
FINAL = ("completed", "failed", "cancelled", "incomplete")
FUNCTION: Any = {"type": "function", "strict": False, **TOOL}


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai_client(service, KEY) as client:
        yield client


def ended(client: openai.OpenAI, response_id: str) -> Response:
    eventually(lambda: client.responses.retrieve(response_id).status in FINAL)
    return client.responses.retrieve(response_id)


def test_the_embedded_model_answers_whole_and_in_a_stream(service: Service) -> None:
    with openai_client(service) as client:
        whole = client.responses.create(input="Say hello.", max_output_tokens=8, temperature=0)
        Response.model_validate(whole.model_dump())
        assert whole.output_text
        assert whole.usage is not None
        assert 0 < whole.usage.output_tokens <= 8
        with client.responses.stream(
            model="embedded", input="Say hello.", max_output_tokens=8, temperature=0
        ) as stream:
            events = list(stream)
        assert [event.sequence_number for event in events] == list(range(len(events)))
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        final: Any = events[-1]
        assert final.response.output_text == text
        assert client.responses.retrieve(final.response.id).output_text == text


def test_a_response_that_is_cut_off_anywhere_is_taken_up_exactly_there(service: Service) -> None:
    tag = unique("cut")
    heard: list[Any] = []
    with openai_client(service, KEY) as first:
        stream: Any = first.responses.create(
            input=question(tag, pieces=40, pause_s=0.02), model=MODEL, stream=True, background=True
        )
        for event in stream:
            heard.append(event)
            if len(heard) == 7:
                break
        stream.close()
    response_id = heard[0].response.id
    while heard[-1].type != "response.completed":
        # Another connection each time, and so another replica now and then.
        with openai_client(service, KEY) as another:
            stream = another.responses.retrieve(response_id, stream=True, starting_after=heard[-1].sequence_number)
            for event, _ in zip(stream, range(9), strict=False):
                heard.append(event)
            stream.close()
    assert [event.sequence_number for event in heard] == list(range(len(heard)))
    text = "".join(event.delta for event in heard if event.type == "response.output_text.delta")
    assert text.encode() == answer(tag, 40).encode() == heard[-1].response.output_text.encode()
    with openai_client(service, KEY) as another:
        again = list(another.responses.retrieve(response_id, stream=True))
        assert [event.model_dump() for event in again] == [event.model_dump() for event in heard]
        assert another.responses.retrieve(response_id).output_text == text


def test_a_background_response_comes_to_its_end_by_itself(client: openai.OpenAI) -> None:
    tag = unique("background")
    response = client.responses.create(input=question(tag, pieces=10, pause_s=0.02), background=True)
    assert response.status in ("queued", "in_progress")
    assert ended(client, response.id).output_text == answer(tag, 10)


def test_a_background_response_that_is_cancelled_stops_the_model_and_keeps_what_it_has(
    client: openai.OpenAI, model: ScriptedModel
) -> None:
    tag = unique("cancelled")
    response = client.responses.create(input=question(tag, pieces=1000, pause_s=0.02), background=True)
    eventually(lambda: client.responses.retrieve(response.id).output_text != "")
    asked_s = time.monotonic()
    client.responses.cancel(response.id)
    eventually(lambda: tag in model.gone, within_s=5)
    assert model.gone[tag] - asked_s < STOPPED_WITHIN_S
    cancelled = ended(client, response.id)
    assert cancelled.status == "cancelled"
    assert cancelled.output_text
    assert answer(tag, 1000).startswith(cancelled.output_text)
    assert client.responses.cancel(response.id) == cancelled


def test_responses_that_go_on_from_one_another_share_what_was_said(client: openai.OpenAI) -> None:
    tags = [unique(name) for name in ("one", "two", "other")]
    first = client.responses.create(input=question(tags[0], pieces=2))
    second = client.responses.create(input=question(tags[1], pieces=2), previous_response_id=first.id)
    other = client.responses.create(input=question(tags[2], pieces=2), previous_response_id=first.id)
    assert [one.output_text for one in (first, second, other)] == [answer(tag, 2) for tag in tags]
    session = [one.id.removeprefix("resp_")[:32] for one in (first, second, other)]
    assert session[0] == session[1] != session[2]
    copied = [item.model_dump() for item in client.conversations.items.list(f"conv_{session[2]}", order="asc")]
    assert [item["content"][0]["text"] for item in copied] == [
        question(tags[0], pieces=2),
        answer(tags[0], 2),
        question(tags[2], pieces=2),
        answer(tags[2], 2),
    ]


def test_a_conversation_is_made_filled_answered_in_and_deleted(client: openai.OpenAI) -> None:
    tag = unique("conversation")
    conversation = client.conversations.create(
        items=[{"role": "developer", "content": "Be brief."}], metadata={"tag": tag}
    )
    added = client.conversations.items.create(conversation.id, items=[{"role": "user", "content": "Hi"}])
    item_id = str(added.data[0].id)
    assert client.conversations.items.retrieve(item_id, conversation_id=conversation.id) == added.data[0]
    client.conversations.items.delete(item_id, conversation_id=conversation.id)
    asked = question(tag, pieces=2)
    response = client.responses.create(input=asked, conversation=conversation.id)
    assert [item.type for item in client.responses.input_items.list(response.id)] == ["message"]
    listed = [item.model_dump() for item in client.conversations.items.list(conversation.id, limit=1, order="asc")]
    assert [item["content"][0]["text"] for item in listed] == ["Be brief.", asked, answer(tag, 2)]
    assert client.conversations.update(conversation.id, metadata={"a": "b"}).metadata == {"a": "b"}
    assert client.conversations.retrieve(conversation.id).metadata == {"a": "b"}
    assert client.conversations.delete(conversation.id).deleted
    for gone in (
        lambda: client.conversations.retrieve(conversation.id),
        lambda: client.responses.retrieve(response.id),
    ):
        with pytest.raises(openai.NotFoundError):
            gone()


def test_a_response_that_is_deleted_is_gone(client: openai.OpenAI) -> None:
    response = client.responses.create(input=question(unique("deleted"), pieces=1))
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


@pytest.mark.parametrize("store", [True, False])
def test_a_function_of_the_client_is_called_and_its_result_answered(
    client: openai.OpenAI, model: ScriptedModel, store: bool
) -> None:
    tag = unique("function")
    given: Any = [{"role": "user", "content": question(tag, pieces=1, call="look_up")}]
    with client.responses.stream(model=MODEL, input=given, store=store, tools=[FUNCTION]) as stream:
        types = [event.type for event in stream]
        first: Any = stream.get_final_response()
    assert "response.function_call_arguments.done" in types
    message, call = first.output
    assert (message.type, call.type, call.name, call.call_id) == ("message", "function_call", "look_up", f"call_{tag}")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "found"}
    # Either all is brought again, or what was stored is gone on from.
    given += [one.to_dict() for one in first.output]
    more: Any = {"previous_response_id": first.id, "input": [result]} if store else {"input": [*given, result]}
    second = client.responses.create(model=MODEL, store=store, tools=[FUNCTION], **more)
    assert second.output_text == answer(tag, 1)
    told = model.told[tag]["messages"][1:]
    assert [(one["role"], one.get("tool_call_id")) for one in told] == [
        ("user", None),
        ("assistant", None),
        ("tool", call.call_id),
    ]
    assert (told[1]["tool_calls"][0]["id"], told[2]["content"]) == (call.call_id, "found")


def test_a_function_of_the_client_is_answered_in_a_conversation_and_in_a_stream(client: openai.OpenAI) -> None:
    tag = unique("kept")
    conversation = client.conversations.create()
    steps = [[("look_up", '{"word": "a"}'), ("look_up", '{"word": "b"}')], [("look_up", '{"word": "c"}')]]
    given: Any = question(tag, pieces=1, steps=steps)
    asked: Any = {"conversation": conversation.id, "tools": [FUNCTION]}
    for expected in (2, 1, 0):
        with client.responses.stream(model=MODEL, input=given, **asked) as stream:
            response: Any = stream.get_final_response() if list(stream) else None
        calls = [item for item in response.output if item.type == "function_call"]
        assert len(calls) == expected
        given = [{"type": "function_call_output", "call_id": call.call_id, "output": call.arguments} for call in calls]
    kept = [item.type for item in client.conversations.items.list(conversation.id, order="asc")]
    answered = [*["function_call"] * 2, *["function_call_output"] * 2]
    assert kept == ["message", "message", *answered, "message", *answered[1:3], "message"]
    with pytest.raises(openai.BadRequestError):
        client.responses.create(input=[{"type": "function_call_output", "call_id": "c", "output": "x"}], **asked)


def test_an_answer_is_made_by_the_schema_that_was_asked_for(service: Service) -> None:
    schema = {
        "type": "object",
        "properties": {"fish": {"enum": ["cod", "eel"]}},
        "required": ["fish"],
        "additionalProperties": False,
    }
    asked: Any = {"input": "Name a fish.", "max_output_tokens": 20, "temperature": 0}
    with openai_client(service) as client:
        form: Any = {"type": "json_schema", "name": "fish", "schema": schema, "strict": True}
        response = client.responses.create(text={"format": form}, **asked)
    assert json.loads(response.output_text)["fish"] in ("cod", "eel")


def test_documents_are_searched_and_cited_if_that_is_asked_for(service: Service, client: openai.OpenAI) -> None:
    tag = unique("document")
    with service.client(KEY) as http:
        document = {"id": tag, "title": "Lighthouses", "text": f"The lighthouse {tag} was rebuilt in 1857."}
        assert http.post("/ingest", json={"documents": [document]}).status_code == 200
        response: Any = client.responses.create(
            input=f"lighthouse {tag} " + question(tag, pieces=1),
            tools=[{"type": "file_search", "vector_store_ids": ["default"], "max_num_results": 1}],
            include=["file_search_call.results"],
        )
        search, message = response.output
        assert search.results[0].file_id == tag
        assert message.content[0].annotations[0].file_id == tag
        assert client.responses.retrieve(response.id).output == response.output
        http.delete(f"/documents/{tag}")


def test_a_request_that_is_sent_again_with_its_key_is_answered_once(client: openai.OpenAI) -> None:
    asked: Any = {
        "input": question(unique("key"), pieces=2),
        "extra_headers": {"Idempotency-Key": unique("key")},
    }
    first, again = client.responses.create(**asked), client.responses.create(**asked)
    assert first == again
    session = first.id.removeprefix("resp_")[:32]
    assert len(list(client.conversations.items.list(f"conv_{session}"))) == 2


def test_a_response_of_another_tenant_does_not_exist(service: Service, client: openai.OpenAI) -> None:
    response = client.responses.create(input=question(unique("private"), pieces=1))
    with openai_client(service, "sk-acme") as other:
        for ask in (other.responses.retrieve, other.responses.cancel, other.responses.delete):
            with pytest.raises(openai.NotFoundError):
                ask(response.id)
