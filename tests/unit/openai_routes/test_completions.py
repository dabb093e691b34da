"""Is a completion what OpenAI's package takes for one, with and without a session?"""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

from actors import TokenUsage
from actors.token_usage import USAGE_NAME
from deployments.chat_request import ChatMessage, ToolCall
from deployments.errors import ModelError, ModelRefused, ModelUnavailable
from deployments.ingress.openai.direct import DirectQuestion, ask_model
from tests.unit.openai_routes.lab import PIECES, TEXT, TOOL, Lab
from tests.unit.talk import passage

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Why?"}]
CALL = ToolCall(id="call_1", name="look_up", arguments='{"word": "fish"}')
TOOLS: Any = [{"type": "function", "function": TOOL}]


async def whole(client: openai.AsyncOpenAI, messages: Any = ASKED, **more: Any) -> ChatCompletion:
    completion: ChatCompletion = await client.chat.completions.create(model="default", messages=messages, **more)
    return ChatCompletion.model_validate(completion.model_dump())


async def chunks(client: openai.AsyncOpenAI, messages: Any = ASKED, **more: Any) -> list[ChatCompletionChunk]:
    stream: Any = await client.chat.completions.create(model="default", messages=messages, stream=True, **more)
    return [ChatCompletionChunk.model_validate(chunk.model_dump()) async for chunk in stream]


async def used(lab: Lab) -> list[tuple[str, int, int]]:
    await lab.services.usage.told()
    days = await lab.talk.objects.namespace(TokenUsage).get("acme", USAGE_NAME).days("0000", "9999")
    return [(day["model"], day["input_tokens"], day["output_tokens"]) for day in days]


async def test_a_completion_is_an_answer_with_its_tokens(client: openai.AsyncOpenAI, lab: Lab) -> None:
    completion = await whole(client)
    assert completion.object == "chat.completion"
    assert completion.model == "embedded"
    (choice,) = completion.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", TEXT, "stop")
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens, completion.usage.total_tokens) == (
        11,
        2,
        13,
    )
    assert await used(lab) == [("embedded", 11, 2)]


@pytest.mark.parametrize(
    ("failure", "is_read"), [(ModelUnavailable("the answer broke off", 1.0), True), (ModelRefused("no"), False)]
)
async def test_a_prompt_that_was_read_counts_though_nothing_came_of_it(
    client: openai.AsyncOpenAI, lab: Lab, failure: ModelError, is_read: bool
) -> None:
    lab.model.accepts = True
    lab.model.failures = [failure]
    with pytest.raises(openai.APIStatusError):
        await whole(client)
    read = lab.model.requests[0].estimated_input_tokens()
    assert await used(lab) == ([("embedded", read, 0)] if is_read else [])
    assert (await whole(client)).choices[0].message.content == TEXT


async def test_without_a_session_nothing_is_stored_but_the_tokens(client: openai.AsyncOpenAI, lab: Lab) -> None:
    await whole(client)
    await lab.services.usage.told()
    assert {name for name, _ in lab.talk.objects.calls} == {"TokenBucket", "TokenUsage"}


async def test_a_stream_is_a_role_then_text_then_an_end(client: openai.AsyncOpenAI) -> None:
    told = await chunks(client)
    assert [chunk.choices[0].delta.content for chunk in told] == ["", *PIECES, None]
    assert [chunk.choices[0].delta.role for chunk in told] == ["assistant", None, None, None]
    assert [chunk.choices[0].finish_reason for chunk in told] == [None, None, None, "stop"]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in told}) == 1
    assert all(chunk.usage is None for chunk in told)


async def test_a_stream_tells_its_tokens_last_if_that_is_wanted(client: openai.AsyncOpenAI) -> None:
    told = await chunks(client, stream_options={"include_usage": True})
    assert told[-1].choices == []
    assert told[-1].usage is not None
    assert told[-1].usage.total_tokens == 13
    assert [chunk.usage for chunk in told[:-1]] == [None] * 4


async def test_the_model_is_told_each_message_in_its_role(client: openai.AsyncOpenAI, lab: Lab) -> None:
    said: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "found"},
        {"role": "user", "content": "Well?"},
    ]
    await whole(client, said, tools=TOOLS, tool_choice="required", max_tokens=5, temperature=1.5)
    (request,) = lab.model.requests
    assert request.messages == (
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="a\nb"),
        ChatMessage(role="assistant", content="", tool_calls=(ToolCall(id="c1", name="look_up", arguments="{}"),)),
        ChatMessage(role="tool", content="found", tool_call_id="c1"),
        ChatMessage(role="user", content="Well?"),
    )
    assert (request.max_tokens, request.temperature, request.tool_choice) == (5, 1.5, "required")
    assert [(tool.name, tool.description, tool.parameters) for tool in request.tools] == [
        (TOOL["name"], TOOL["description"], TOOL["parameters"])
    ]


async def test_the_tenants_instructions_count_where_the_client_gives_none(client: openai.AsyncOpenAI, lab: Lab) -> None:
    await whole(client)
    assert lab.model.requests[0].messages[0].role == "system"
    assert lab.model.requests[0].messages[0].content == lab.services.tenants["acme"].model.system_prompt


async def test_no_more_tokens_are_asked_for_than_the_tenant_may_have(client: openai.AsyncOpenAI, lab: Lab) -> None:
    await whole(client, max_completion_tokens=1_000_000)
    assert lab.model.requests[0].max_tokens == lab.services.tenants["acme"].model.max_tokens


async def test_a_call_of_the_clients_tool_is_given_back_to_it(client: openai.AsyncOpenAI, lab: Lab) -> None:
    lab.model.calls = [CALL]
    (choice,) = (await whole(client, tools=TOOLS)).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.id, call.function.name, call.function.arguments) == ("call_1", "look_up", CALL.arguments)

    told = await chunks(client, tools=TOOLS)
    (delta,) = [chunk.choices[0].delta.tool_calls for chunk in told if chunk.choices[0].delta.tool_calls]
    assert delta is not None
    assert (delta[0].index, delta[0].id, delta[0].type) == (0, "call_1", "function")
    assert delta[0].function is not None
    assert (delta[0].function.name, delta[0].function.arguments) == ("look_up", CALL.arguments)
    assert told[-1].choices[0].finish_reason == "tool_calls"


async def test_documents_are_looked_at_only_if_that_is_wanted(client: openai.AsyncOpenAI, lab: Lab) -> None:
    lab.talk.library.passages = [passage(1, "Fish have no eyelids.")]
    await whole(client)
    assert lab.talk.library.asked == []
    for more in ({"metadata": {"retrieve": "true"}}, {"extra_body": {"retrieve": True, "top_k": 2}}):
        completion = await whole(client, [{"role": "system", "content": "s"}, *ASKED], **more)
        asked = lab.model.requests[-1].messages
        assert [message.role for message in asked] == ["system", "user"]
        assert "Fish have no eyelids." in asked[-1].content
        assert asked[-1].content.endswith("Why?")
        assert completion.model_extra is not None
        assert [source["document_id"] for source in completion.model_extra["sources"]] == ["d1"]
    assert lab.talk.library.asked == [("acme", "Why?", None), ("acme", "Why?", 2)]


async def test_with_a_session_the_last_message_is_a_turn_of_it(client: openai.AsyncOpenAI, lab: Lab) -> None:
    session_id = await lab.talk.new_session()
    more: Any = {"metadata": {"session_id": session_id}}
    first = await whole(client, **more)
    told = await chunks(client, [{"role": "user", "content": "not this"}, {"role": "user", "content": "And?"}], **more)
    assert first.choices[0].message.content == TEXT
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == TEXT
    assert await lab.talk.said(session_id) == [
        ("user", "Why?"),
        ("assistant", TEXT),
        ("user", "And?"),
        ("assistant", TEXT),
    ]
    assert [message.content for message in lab.model.requests[-1].messages[1:]] == ["Why?", TEXT, "And?"]
    assert first.model_extra is not None
    assert first.model_extra["session_id"] == session_id
    turn = await lab.talk.turns.get("acme", session_id, first.model_extra["turn_id"])
    assert turn["status"] == "completed"


async def test_a_request_with_a_key_is_one_turn_of_its_session(client: openai.AsyncOpenAI, lab: Lab) -> None:
    session_id = await lab.talk.new_session()
    more: Any = {"metadata": {"session_id": session_id}, "extra_headers": {"Idempotency-Key": "k1"}}
    assert (await whole(client, **more)).id == (await whole(client, **more)).id
    assert len(await lab.talk.said(session_id)) == 2
    with pytest.raises(openai.BadRequestError):
        await whole(client, [{"role": "user", "content": "Something else?"}], **more)


async def test_a_session_of_somebody_else_is_not_found(client: openai.AsyncOpenAI, lab: Lab) -> None:
    theirs = await lab.talk.new_session("stingy")
    for session_id in (theirs, "s1", "x"):
        with pytest.raises(openai.NotFoundError):
            await whole(client, metadata={"session_id": session_id})


async def test_what_keeps_the_model_from_answering_is_told_by_its_status(client: openai.AsyncOpenAI, lab: Lab) -> None:
    lab.model.failures = [
        ModelUnavailable("it is busy", 3.2),
        ModelRefused("too long", ModelRefused.CONTEXT_LENGTH),
    ] * 2
    for ask in (whole, chunks):
        with pytest.raises(openai.InternalServerError) as busy:
            await ask(client)
        assert busy.value.status_code == 503
        assert busy.value.response.headers["retry-after"] == "4"
        with pytest.raises(openai.BadRequestError) as refused:
            await ask(client)
        assert (refused.value.code, refused.value.type) == ("context_length_exceeded", "invalid_request_error")
    assert await used(lab) == []


async def test_a_model_that_breaks_off_ends_the_stream_with_an_error(client: openai.AsyncOpenAI, lab: Lab) -> None:
    lab.model.failure = ModelUnavailable("it broke off", 1.0)
    stream: Any = await client.chat.completions.create(model="default", messages=ASKED, stream=True)
    heard = [(await anext(stream)).choices[0].delta.content for _ in range(3)]
    assert "".join(heard) == TEXT
    with pytest.raises(openai.APIError, match="it broke off"):
        await anext(stream)
    with pytest.raises(openai.InternalServerError):
        await whole(client)
    # What was said was paid for.
    assert [(model, answered) for model, _, answered in await used(lab)] == [("embedded", 4)]


async def test_a_client_that_goes_away_stops_the_model(client: openai.AsyncOpenAI, lab: Lab) -> None:
    lab.model.stalls_at = 1
    events: Any = await ask_model(
        lab.services, DirectQuestion(tenant="acme", messages=(ChatMessage(role="user", content="Why?"),))
    )
    heard = [(await anext(events))["type"], (await anext(events))["type"]]
    assert heard == ["turn.created", "text.delta"]
    listening = asyncio.create_task(anext(events))
    await lab.model.stalled.wait()
    listening.cancel()
    await asyncio.wait({listening})
    assert lab.model.stopped == 1
    assert await used(lab) == [("embedded", 1, 1)]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"n": 2}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop.0"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.json_schema"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"store": True}, "store"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"misspelt": 1}}, "misspelt"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}, "tools": TOOLS}, "tool_choice.type"),
        ({"metadata": {"retrieve": "perhaps"}}, "metadata.retrieve"),
        ({"tools": TOOLS + TOOLS}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "auto"}}]}, "tools"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": []}, "messages"),
    ],
)
async def test_what_is_not_taken_is_refused_by_its_name(
    client: openai.AsyncOpenAI, lab: Lab, more: Any, param: str
) -> None:
    for metadata in ({}, {"session_id": await lab.talk.new_session()}):
        asked = {"model": "default", "messages": ASKED, **more}
        asked["metadata"] = {**metadata, **more.get("metadata", {})}
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**asked)
        assert refused.value.param == param
        assert refused.value.type == "invalid_request_error"
    assert lab.model.requests == []


async def test_what_only_tunes_an_answer_or_says_what_is_the_case_is_taken(client: openai.AsyncOpenAI) -> None:
    await whole(
        client,
        n=1,
        logprobs=False,
        store=False,
        user="u1",
        parallel_tool_calls=True,
        reasoning_effort="low",
        response_format={"type": "text"},
        service_tier="auto",
    )


@pytest.mark.parametrize("in_session", [False, True])
async def test_how_an_answer_is_to_be_made_is_told_to_the_model(
    client: openai.AsyncOpenAI, lab: Lab, in_session: bool
) -> None:
    schema = {"name": "fish", "schema": {"type": "object", "required": ["eyes"]}, "strict": True}
    asked: dict[str, Any] = {
        "top_p": 0.9,
        "seed": 7,
        "presence_penalty": 0.5,
        "frequency_penalty": -2,
        "stop": ["a", "b"],
        "response_format": {"type": "json_schema", "json_schema": schema},
        "user": "ann",
    }
    metadata = {"session_id": await lab.talk.new_session()} if in_session else None
    await whole(client, metadata=metadata, **asked)
    assert lab.model.requests[0].options.given() == asked
    await whole(client, metadata=metadata, stop=".", response_format={"type": "json_object"})
    assert lab.model.requests[1].options.given() == {"stop": ["."], "response_format": {"type": "json_object"}}
    await whole(client, metadata=metadata, stop=[], response_format={"type": "text"}, user="")
    assert lab.model.requests[2].options.given() == {}


async def test_a_turn_that_is_tried_again_is_asked_for_in_the_same_way(client: openai.AsyncOpenAI, lab: Lab) -> None:
    lab.model.failures = [ModelUnavailable("it is busy", 0.001)]
    session_id = await lab.talk.new_session()
    await whole(client, metadata={"session_id": session_id}, seed=7, stop=".")
    assert [request.options.given() for request in lab.model.requests] == [{"seed": 7, "stop": ["."]}] * 2


async def test_a_model_that_the_tenant_does_not_have_is_not_found(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="gpt-6", messages=ASKED)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


async def test_a_session_is_asked_with_the_users_last_message_alone(client: openai.AsyncOpenAI, lab: Lab) -> None:
    session_id = await lab.talk.new_session()
    for more in (
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": "x" * 101}]},
    ):
        with pytest.raises(openai.BadRequestError):
            await whole(client, **{"messages": ASKED, "metadata": {"session_id": session_id}, **more})
    assert await lab.talk.said(session_id) == []
