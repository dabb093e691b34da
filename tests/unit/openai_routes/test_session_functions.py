"""Can completions in a session call functions of their client, and go on with what came of them?"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import openai
import pytest
from fastapi import FastAPI
from openai.types.chat import ChatCompletion

from deployments.chat_request import ChatMessage, ToolCall
from deployments.errors import ModelUnavailable
from tests.unit.handles import way_to
from tests.unit.objects_fixtures import ring
from tests.unit.openai_routes.lab import TEXT, TOOL, Lab
from tests.unit.talk import TENANTS, CutChat, passage

ASKED: Any = {"role": "user", "content": "Why?"}
TOOLS: Any = [{"type": "function", "function": TOOL}, {"type": "function", "function": {"name": "other"}}]
CALL = ToolCall(id="c1", name="look_up", arguments='{"word": "fish"}')
SECOND = ToolCall(id="c2", name="other", arguments="{}")


class Session:
    """One session, asked by completions."""

    def __init__(self, client: openai.AsyncOpenAI, session_id: str) -> None:
        self.id = session_id
        self._client = client

    async def ask(self, *messages: Any, key: str | None = None, **more: Any) -> ChatCompletion:
        headers = {} if key is None else {"Idempotency-Key": key}
        asked: dict[str, Any] = {"tools": TOOLS, **more}
        completion: ChatCompletion = await self._client.chat.completions.create(
            model="default", messages=messages, metadata={"session_id": self.id}, extra_headers=headers, **asked
        )
        return ChatCompletion.model_validate(completion.model_dump())

    async def streamed(self, *messages: Any, key: str | None = None) -> ChatCompletion:
        """The completion that the package puts together from the chunks."""
        headers = {} if key is None else {"Idempotency-Key": key}
        metadata = {"session_id": self.id}
        async with self._client.chat.completions.stream(
            model="default", messages=messages, metadata=metadata, tools=TOOLS, extra_headers=headers
        ) as stream:
            return await stream.get_final_completion()


@pytest.fixture
async def session(client: openai.AsyncOpenAI, lab: Lab) -> Session:
    return Session(client, await lab.talk.new_session())


async def calling(session: Session, lab: Lab, *calls: ToolCall, **more: Any) -> ChatCompletion:
    """A completion in which the model calls functions."""
    lab.model.calls = list(calls)
    try:
        return await session.ask(ASKED, **more)
    finally:
        lab.model.calls = []


def result(call_id: str = "c1", text: str = "A fish.") -> Any:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def told(lab: Lab) -> list[tuple[str, str]]:
    """What the model was told last, but for its instructions."""
    return [(message.role, message.content) for message in lab.model.requests[-1].messages[1:]]


async def roles(lab: Lab, session: Session) -> list[str]:
    return [role for role, _ in await lab.talk.said(session.id)]


async def test_a_call_is_given_to_the_client_and_the_next_turn_goes_on_with_its_result(
    session: Session, lab: Lab
) -> None:
    first = await calling(session, lab, CALL, tool_choice="required")
    assert [tool.name for tool in lab.model.requests[0].tools] == ["look_up", "other"]
    assert lab.model.requests[0].tool_choice == "required"
    (choice,) = first.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", TEXT)
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.to_dict() == {
        "id": "c1",
        "type": "function",
        "function": {"name": "look_up", "arguments": CALL.arguments},
    }
    second = await session.ask(ASKED, choice.message.to_dict(), result())
    assert (second.choices[0].finish_reason, second.choices[0].message.content) == ("stop", TEXT)
    assert lab.model.requests[-1].messages[1:] == (
        ChatMessage(role="user", content="Why?"),
        ChatMessage(role="assistant", content=TEXT, tool_calls=(CALL,)),
        ChatMessage(role="tool", content="A fish.", tool_call_id="c1"),
    )
    assert await roles(lab, session) == ["user", "assistant", "tool", "assistant"]


async def test_in_a_stream_as_well(session: Session, lab: Lab) -> None:
    lab.model.calls = [CALL, SECOND]
    first = (await session.streamed(ASKED)).choices[0]
    assert first.finish_reason == "tool_calls"
    assert [call.id for call in first.message.tool_calls or ()] == ["c1", "c2"]
    lab.model.calls = []
    second = (await session.streamed(result("c2", "two"), result("c1", "one"))).choices[0]
    assert (second.finish_reason, second.message.content) == ("stop", TEXT)
    assert told(lab)[2:] == [("tool", "two"), ("tool", "one")]


async def test_calls_and_results_are_items_of_the_conversation_and_may_be_answered_as_a_response(
    client: openai.AsyncOpenAI, session: Session, lab: Lab
) -> None:
    await calling(session, lab, CALL)
    conversation = f"conv_{session.id[1:]}"
    output: Any = {"type": "function_call_output", "call_id": "c1", "output": "A fish."}
    await client.responses.create(model="default", conversation=conversation, input=[output])
    assert told(lab)[2:] == [("tool", "A fish.")]
    kinds = [item.type async for item in client.conversations.items.list(conversation, order="asc")]
    assert kinds == ["message", "message", "function_call", "function_call_output", "message"]


async def test_the_services_own_tools_are_run_beside_those_of_the_client(app: FastAPI, lab: Lab) -> None:
    async with lab.client(app, "sk-tooled") as client:
        session = Session(client, await lab.talk.new_session("tooled"))
        first = await calling(session, lab, CALL, ToolCall(id="c0", name="whoami", arguments="{}"))
        assert [call.id for call in first.choices[0].message.tool_calls or ()] == ["c1"]
        await session.ask(result())
        assert [message.tool_call_id for message in lab.model.requests[-1].messages[1:]] == [None, None, "c0", "c1"]
        await session.ask(ASKED, tools=[], tool_choice="none")
        assert [tool.name for tool in lab.model.requests[-1].tools] == ["whoami"]
        assert lab.model.requests[-1].tool_choice == "none"
        with pytest.raises(openai.BadRequestError) as refused:
            await session.ask(ASKED, tools=[{"type": "function", "function": {"name": "whoami"}}])
        assert refused.value.param == "tools"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([result()], "c2"),
        ([result(), result()], "c1"),
        ([result(), result("c2"), result("c2")], "c2"),
        ([result(), result("c3")], "c3"),
        ([result(), {"role": "tool", "content": "x"}], "tool_call_id"),
        ([result(), result("c2", "x" * 101)], "messages.1.content"),
        ([result(), result("c2"), {"role": "assistant", "content": "x"}], "the last one"),
    ],
)
async def test_what_does_not_answer_all_calls_is_refused(session: Session, lab: Lab, given: Any, named: str) -> None:
    await calling(session, lab, CALL, SECOND)
    with pytest.raises(openai.BadRequestError, match=named) as refused:
        await session.ask(*given)
    assert (refused.value.param or "").startswith("messages")
    assert refused.value.type == "invalid_request_error"
    assert len(lab.model.requests) == 1
    assert await roles(lab, session) == ["user", "assistant"]
    await session.ask(result(), result("c2"))  # nothing has come of that


async def test_a_result_is_taken_once(session: Session, lab: Lab) -> None:
    await calling(session, lab, CALL)
    await session.ask(result())
    with pytest.raises(openai.BadRequestError, match="c1"):
        await session.ask(result())
    assert await roles(lab, session) == ["user", "assistant", "tool", "assistant"]


async def test_a_result_that_the_model_was_not_told_can_be_sent_again(session: Session, lab: Lab) -> None:
    await calling(session, lab, CALL, SECOND)
    lab.model.failures = [ModelUnavailable("gone", 60), ModelUnavailable("gone", 60)]
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            await session.ask(result(), result("c2", "one"))
    assert (await session.ask(result("c2", "two"), result())).choices[0].message.content == TEXT
    assert told(lab)[2:] == [("tool", "two"), ("tool", "A fish.")]
    assert await roles(lab, session) == ["user", "assistant", "tool", "tool", "assistant"]


async def test_results_may_come_with_the_users_next_message_or_not_at_all(session: Session, lab: Lab) -> None:
    await calling(session, lab, CALL)
    await session.ask(result(), {"role": "user", "content": "Well?"}, key="k1")
    assert told(lab)[2:] == [("tool", "A fish."), ("user", "Well?")]
    # What a client sends of what was said before is in the session.
    await session.ask(result(), {"role": "user", "content": "And?"})
    assert [role for role, _ in told(lab)] == ["user", "assistant", "tool", "user", "assistant", "user"]
    await calling(session, lab, SECOND)
    await session.ask({"role": "user", "content": "Never mind."})
    assert "interrupted" in told(lab)[-2][1]
    assert told(lab)[-1] == ("user", "Never mind.")


@pytest.mark.parametrize("times_at_once", [1, 10])
async def test_a_request_with_a_key_answers_a_call_once(session: Session, lab: Lab, times_at_once: int) -> None:
    await calling(session, lab, CALL, key="k1")
    again = await calling(session, lab, SECOND, key="k1")
    assert [call.id for call in again.choices[0].message.tool_calls or ()] == ["c1"]
    with pytest.raises(openai.BadRequestError, match="Idempotency-Key"):
        await session.ask(result(), key="k1")
    answers = await asyncio.gather(*[session.ask(result(), key="k2") for _ in range(times_at_once)])
    answers += [await session.ask(result(), key="k2"), await session.streamed(result(), key="k2")]
    assert len({answer.id for answer in answers}) == 1
    assert {answer.choices[0].message.content for answer in answers} == {TEXT}
    assert len(lab.model.requests) == 2
    with pytest.raises(openai.BadRequestError, match="Idempotency-Key"):
        await session.ask(result(text="another"), key="k2")
    assert await roles(lab, session) == ["user", "assistant", "tool", "assistant"]


async def test_an_answer_to_a_call_that_was_cut_off_is_told_again_also_when_its_events_are_gone(
    session: Session, app: FastAPI, lab: Lab
) -> None:
    await calling(session, lab, CALL)
    app.state.services = dataclasses.replace(lab.services, chat=way_to(CutChat(lab.talk, lab.model)))
    with pytest.raises(openai.InternalServerError):
        await session.ask(result(), key="k1")
    app.state.services = lab.services
    lab.talk.clock.advance(TENANTS["acme"].turns.events_kept_s + 1)
    await ring(lab.talk.objects, lab.talk.clock)
    for again in (await session.ask(result(), key="k1"), await session.streamed(result(), key="k1")):
        assert (again.choices[0].finish_reason, again.choices[0].message.content) == ("stop", TEXT)
    assert len(lab.model.requests) == 2


async def test_a_key_names_a_request_of_one_session(client: openai.AsyncOpenAI, session: Session, lab: Lab) -> None:
    other = Session(client, await lab.talk.new_session())
    for one in (session, other):
        await calling(one, lab, CALL, key="k1")
        await one.ask(result(text=one.id), key="k2")
    assert [messages[-2] for messages in [await lab.talk.said(one.id) for one in (session, other)]] == [
        ("tool", session.id),
        ("tool", other.id),
    ]


async def test_results_do_not_wait_behind_another_answer(session: Session, lab: Lab) -> None:
    await calling(session, lab, CALL)
    answers = await asyncio.gather(
        *[session.ask(result(text=text)) for text in ("one", "other")], return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, openai.APIStatusError)]
    assert [error.status_code for error in refused] in ([400], [409])
    assert len(lab.model.requests) == 2
    assert await roles(lab, session) == ["user", "assistant", "tool", "assistant"]


async def test_documents_are_searched_for_what_the_user_asked(session: Session, lab: Lab) -> None:
    lab.talk.library.passages = [passage(1, "Fish have no eyelids.")]
    await calling(session, lab, CALL)
    await session.ask(result(), extra_body={"retrieve": True})
    assert [query for _, query, _ in lab.talk.library.asked] == ["Why?"]


async def test_a_call_of_another_tenant_can_not_be_answered(app: FastAPI, session: Session, lab: Lab) -> None:
    await calling(session, lab, CALL)
    async with lab.client(app, "sk-stingy") as other:
        with pytest.raises(openai.NotFoundError):
            await Session(other, session.id).ask(result())
