"""Can a stored response call functions of its client, and be gone on from with what came of them?"""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from openai.types.responses import Response

from actors import InvalidArgument
from deployments.chat_request import ChatMessage, ToolCall
from deployments.errors import ModelUnavailable
from tests.unit.openai_routes.lab import TEXT, TOOL, Lab
from tests.unit.talk import passage

FUNCTION: Any = {"type": "function", "strict": False, **TOOL}
OTHER: Any = {"type": "function", "name": "other"}
SEARCH: Any = {"type": "file_search", "vector_store_ids": ["default"]}
CALL = ToolCall(id="c1", name="look_up", arguments='{"word": "fish"}')
SECOND = ToolCall(id="c2", name="other", arguments="{}")


async def create(client: openai.AsyncOpenAI, **more: Any) -> Response:
    asked: dict[str, Any] = {"model": "default", "input": "Why?", "tools": [FUNCTION, OTHER], **more}
    response: Response = await client.responses.create(**asked)
    return Response.model_validate(response.to_dict())


async def calling(client: openai.AsyncOpenAI, lab: Lab, *calls: ToolCall, **more: Any) -> Response:
    """A response in which the model calls functions."""
    lab.model.calls = list(calls)
    try:
        return await create(client, **more)
    finally:
        lab.model.calls = []


def output(call_id: str = "c1", text: str = "A fish.") -> Any:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def told(lab: Lab) -> list[tuple[str, str]]:
    """What the model was told last, but for its instructions."""
    return [(message.role, message.content) for message in lab.model.requests[-1].messages[1:]]


async def kinds(client: openai.AsyncOpenAI, response: Response) -> list[str]:
    conversation = f"conv_{response.id.removeprefix('resp_')[:32]}"
    return [item.type async for item in client.conversations.items.list(conversation, order="asc")]


async def test_a_call_is_given_to_the_client_and_goes_on_with_what_came_of_it(
    client: openai.AsyncOpenAI, lab: Lab
) -> None:
    first = await calling(client, lab, CALL, tool_choice="required")
    assert [(tool.name, tool.parameters) for tool in lab.model.requests[0].tools] == [
        ("look_up", TOOL["parameters"]),
        ("other", {"type": "object", "properties": {}}),
    ]
    assert lab.model.requests[0].tool_choice == "required"
    assert first.status == "completed"
    call: Any = first.output[-1]
    assert (call.type, call.call_id, call.name, call.arguments) == ("function_call", "c1", "look_up", CALL.arguments)
    assert (await client.responses.retrieve(first.id)).to_dict() == first.to_dict()

    second = await create(client, previous_response_id=first.id, input=[output()])
    assert second.output_text == TEXT
    assert lab.model.requests[-1].messages[1:] == (
        ChatMessage(role="user", content="Why?"),
        ChatMessage(role="assistant", content=TEXT, tool_calls=(CALL,)),
        ChatMessage(role="tool", content="A fish.", tool_call_id="c1"),
    )
    assert [tool.name for tool in lab.model.requests[-1].tools] == ["look_up", "other"]
    (item,) = [item async for item in client.responses.input_items.list(second.id)]
    assert item.to_dict() | {"id": ""} == {**output(), "id": "", "status": "completed"}
    expected = ["message", "message", "function_call", "function_call_output", "message"]
    assert await kinds(client, second) == expected

    await create(client, previous_response_id=second.id, input="And then?")
    assert [role for role, _ in told(lab)] == ["user", "assistant", "tool", "assistant", "user"]


async def test_the_services_own_tools_are_run_beside_those_of_the_client(app: FastAPI, lab: Lab) -> None:
    async with lab.client(app, "sk-tooled") as client:
        own = ToolCall(id="c0", name="whoami", arguments="{}")
        first = await calling(client, lab, CALL, own, tools=[FUNCTION])
        assert [tool.name for tool in lab.model.requests[0].tools] == ["whoami", "look_up"]
        ran, call = first.output[-2:]
        assert (ran.type, call.type) == ("mcp_call", "function_call")
        assert (await client.responses.retrieve(first.id)).to_dict() == first.to_dict()
        await create(client, previous_response_id=first.id, input=[output()], tools=[FUNCTION])
        assert [message.tool_call_id for message in lab.model.requests[-1].messages[1:]] == [None, None, "c0", "c1"]
        assert "tooled/" in told(lab)[2][1]
        with pytest.raises(openai.BadRequestError) as refused:
            await create(client, tools=[{"type": "function", "name": "whoami"}])
        assert refused.value.param == "tools"


async def test_a_call_in_a_named_conversation_goes_on_there(client: openai.AsyncOpenAI, lab: Lab) -> None:
    conversation = (await client.conversations.create()).id
    await calling(client, lab, CALL, conversation=conversation)
    second = await create(client, conversation=conversation, input=[output()], stream=False)
    assert second.output_text == TEXT
    assert told(lab) == [("user", "Why?"), ("assistant", TEXT), ("tool", "A fish.")]


async def test_all_calls_of_an_answer_are_answered_together(client: openai.AsyncOpenAI, lab: Lab) -> None:
    first = await calling(client, lab, CALL, SECOND)
    for given, missing in (([output()], "c2"), ([output("c2")], "c1"), ([output(), output()], "c1")):
        with pytest.raises(openai.BadRequestError, match=missing) as refused:
            await create(client, previous_response_id=first.id, input=given)
        assert refused.value.param == "input"
    assert await kinds(client, first) == ["message", "message", "function_call", "function_call"]
    await create(client, previous_response_id=first.id, input=[output("c2", "two"), output("c1", "one")])
    assert told(lab)[2:] == [("tool", "two"), ("tool", "one")]


async def test_what_came_of_a_call_may_come_with_the_users_next_message(client: openai.AsyncOpenAI, lab: Lab) -> None:
    first = await calling(client, lab, CALL)
    await create(client, previous_response_id=first.id, input=[output(), {"role": "user", "content": "Well?"}])
    assert told(lab)[2:] == [("tool", "A fish."), ("user", "Well?")]


async def test_a_call_that_nobody_answered_keeps_nothing_from_being_asked(client: openai.AsyncOpenAI, lab: Lab) -> None:
    first = await calling(client, lab, CALL)
    second = await create(client, previous_response_id=first.id, input="Never mind.")
    assert second.output_text == TEXT
    assert [role for role, _ in told(lab)] == ["user", "assistant", "tool", "user"]
    assert "interrupted" in told(lab)[2][1]


async def test_a_call_may_be_answered_in_several_ways_each_in_a_copy(client: openai.AsyncOpenAI, lab: Lab) -> None:
    first = await calling(client, lab, CALL)
    one = await create(client, previous_response_id=first.id, input=[output(text="one")])
    other = await create(client, previous_response_id=first.id, input=[output(text="other")])
    assert told(lab) == [("user", "Why?"), ("assistant", TEXT), ("tool", "other")]
    assert one.id[:37] == first.id[:37] != other.id[:37]


async def test_of_two_that_answer_a_call_at_once_one_is_refused_or_goes_on_in_a_copy(
    client: openai.AsyncOpenAI, lab: Lab
) -> None:
    first = await calling(client, lab, CALL)
    both = await asyncio.gather(
        *[create(client, previous_response_id=first.id, input=[output(text=text)]) for text in ("one", "other")]
    )
    assert sorted(response.status or "" for response in both) in (["completed", "completed"], ["completed", "failed"])
    for request in lab.model.requests[1:]:
        assert [message.role for message in request.messages[1:]] == ["user", "assistant", "tool"]


async def test_of_two_that_answer_a_call_in_a_conversation_at_once_one_is_refused(
    client: openai.AsyncOpenAI, lab: Lab
) -> None:
    conversation = (await client.conversations.create()).id
    first = await calling(client, lab, CALL, conversation=conversation)
    both = await asyncio.gather(
        *[create(client, conversation=conversation, input=[output(text=text)]) for text in ("one", "other")],
        return_exceptions=True,
    )
    (refused,) = [error for error in both if isinstance(error, openai.APIStatusError)]
    assert refused.status_code in (400, 409)
    expected = ["message", "message", "function_call", "function_call_output", "message"]
    assert await kinds(client, first) == expected


async def test_what_does_not_fit_is_told_as_a_context_that_is_too_short(app: FastAPI, lab: Lab) -> None:
    wordy: Any = {**TOOL, "description": "word " * 1_000}
    async with lab.client(app, "sk-tight") as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await create(client, tools=[{"type": "function", **wordy}])
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
        session_id = await lab.talk.new_session("tight")
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(
                model="default",
                messages=[{"role": "user", "content": "Why?"}],
                metadata={"session_id": session_id},
                tools=[{"type": "function", "function": wordy}],
            )
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_conversation_that_begins_with_too_much_is_refused_before_anything_is_stored(
    app: FastAPI, lab: Lab, stream: bool
) -> None:
    long: Any = [{"type": "message", "role": "developer", "content": "word " * 20}] * 20
    async with lab.client(app, "sk-tight") as client:
        conversation = (await client.conversations.create(items=long)).id
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="default", input="Why?", conversation=conversation, stream=stream)
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(
                model="default",
                messages=[{"role": "user", "content": "Why?"}],
                metadata={"session_id": f"s{conversation.removeprefix('conv_')}"},
                stream=stream,
            )
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
        assert len([item async for item in client.conversations.items.list(conversation)]) == len(long)


async def test_what_else_is_wrong_with_a_message_is_not_called_too_long(client: openai.AsyncOpenAI, lab: Lab) -> None:
    lab.chat.errors["begin"] = InvalidArgument("message", "Why?", "is not to be asked")
    with pytest.raises(openai.BadRequestError, match="not to be asked") as refused:
        await create(client)
    assert (refused.value.code, refused.value.param) == (None, "input")


async def test_a_whole_conversation_with_its_calls_can_be_brought_along(client: openai.AsyncOpenAI, lab: Lab) -> None:
    brought: Any = [
        {"role": "user", "content": "Why?"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": CALL.arguments},
        output(),
    ]
    await create(client, input=brought)
    assert lab.model.requests[-1].messages[1:] == (
        ChatMessage(role="user", content="Why?"),
        ChatMessage(role="assistant", content="Let me see.", tool_calls=(CALL,)),
        ChatMessage(role="tool", content="A fish.", tool_call_id="c1"),
    )


async def test_a_conversation_takes_calls_with_their_results(client: openai.AsyncOpenAI, lab: Lab) -> None:
    kept: Any = [
        {"role": "user", "content": "Why?"},
        {"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": "{}"},
    ]
    conversation = (await client.conversations.create(items=kept)).id
    await create(client, conversation=conversation, input=[output()])
    assert [role for role, _ in told(lab)] == ["user", "assistant", "tool"]
    more: Any = [{**kept[1], "call_id": "c2"}, output("c2", "later")]
    added = await client.conversations.items.create(conversation, items=more)
    assert [item.type for item in added.data] == ["function_call", "function_call_output"]


async def test_a_conversation_that_was_brought_with_some_results_waits_for_the_others(
    client: openai.AsyncOpenAI, lab: Lab
) -> None:
    called: Any = {"type": "function_call", "name": "look_up", "arguments": "{}"}
    kept: Any = [
        {"role": "user", "content": "Why?"}, {**called, "call_id": "c1"}, {**called, "call_id": "c2"},
        output("c1", "one"),
    ]  # fmt: skip
    conversation = (await client.conversations.create(items=kept)).id
    with pytest.raises(openai.BadRequestError, match="c1"):
        await create(client, conversation=conversation, input=[output("c1", "another"), output("c2", "two")])
    lab.model.failures = [ModelUnavailable("gone", 60)]
    for text in ("lost", "two"):
        await create(client, conversation=conversation, input=[output("c2", text)])
    assert told(lab)[2:] == [("tool", "one"), ("tool", "two")]
    # So it does behind a turn that has nothing to do with them.
    more: Any = [{**called, "call_id": "c3"}, {**called, "call_id": "c4"}, output("c3", "three")]
    await client.conversations.items.create(conversation, items=more)
    await create(client, conversation=conversation, input=[output("c4", "four")])
    assert told(lab)[-2:] == [("tool", "three"), ("tool", "four")]


async def test_documents_are_searched_for_what_the_user_asked(client: openai.AsyncOpenAI, lab: Lab) -> None:
    lab.talk.library.passages = [passage(1, "Fish have no eyelids.")]
    first = await calling(client, lab, CALL, tools=[FUNCTION, SEARCH])
    second = await create(client, previous_response_id=first.id, input=[output()], tools=[FUNCTION, SEARCH])
    assert [query for _, query, _ in lab.talk.library.asked] == ["Why?", "Why?"]
    question = lab.model.requests[-1].messages[1].content
    assert "Fish have no eyelids." in question
    assert question.endswith("Why?")
    assert [item.type for item in second.output] == ["file_search_call", "message"]


async def test_a_response_that_failed_can_be_answered_for_again(client: openai.AsyncOpenAI, lab: Lab) -> None:
    first = await calling(client, lab, CALL)
    lab.model.failures = [ModelUnavailable("gone", 60)]
    failed = await create(client, previous_response_id=first.id, input=[output(text="one")])
    assert failed.status == "failed"
    again = await create(client, previous_response_id=first.id, input=[output(text="two")])
    assert again.status == "completed"
    assert told(lab)[2:] == [("tool", "two")]


async def test_a_request_with_a_key_answers_a_call_once(client: openai.AsyncOpenAI, lab: Lab) -> None:
    conversation = (await client.conversations.create()).id
    await calling(client, lab, CALL, SECOND, conversation=conversation)
    more: Any = {
        "conversation": conversation,
        "input": [output(), output("c2")],
        "extra_headers": {"Idempotency-Key": "k1"},
    }
    assert (await create(client, **more)).id == (await create(client, **more)).id
    assert len(lab.model.requests) == 2


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ([output()], "input"),
        ([{"role": "user", "content": "Why?"}, output()], "input"),
        ([{"type": "function_call", "call_id": "c1", "name": "look_up", "arguments": "{}"}], "input"),
        ([{"type": "function_call", "call_id": "c1", "name": "look_up"}, output()], "input.0"),
        ([{"type": "function_call_output", "output": "x"}], "input.0.call_id"),
        (
            [{"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}, output(text="x" * 101)],
            "input.1.output",
        ),
        ([{"type": "reasoning", "summary": []}], "input"),
    ],
)
async def test_what_answers_no_call_is_refused(client: openai.AsyncOpenAI, lab: Lab, given: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await create(client, input=given)
    assert refused.value.param == param
    assert lab.model.requests == []


async def test_a_call_of_another_tenant_can_not_be_answered(app: FastAPI, client: openai.AsyncOpenAI, lab: Lab) -> None:
    first = await calling(client, lab, CALL)
    async with lab.client(app, "sk-stingy") as other:
        with pytest.raises(openai.BadRequestError) as refused:
            await create(other, previous_response_id=first.id, input=[output()])
    assert refused.value.code == "previous_response_not_found"
