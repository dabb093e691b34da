"""Is a conversation a session, and an item one of its messages?"""

from __future__ import annotations

from typing import Any

import openai
import pytest
from fastapi import FastAPI
from openai.types.conversations import ConversationItemList

from actors import ChatSession
from tests.unit.openai_routes.lab import TEXT, Lab

ITEMS: Any = [
    {"role": "developer", "content": "Be brief."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
    {"role": "assistant", "content": "Ho"},
]


def session_of(conversation_id: str) -> str:
    return "s" + conversation_id.removeprefix("conv_")


def text_of(item: Any) -> str:
    return str(item.content[0].text)


async def texts(client: openai.AsyncOpenAI, conversation_id: str, **page: Any) -> list[str]:
    return [text_of(item) async for item in client.conversations.items.list(conversation_id, **page)]


async def test_a_conversation_is_a_session_with_its_items_and_metadata(client: openai.AsyncOpenAI, lab: Lab) -> None:
    made = await client.conversations.create(items=ITEMS, metadata={"topic": "fish"})
    assert (made.object, made.metadata) == ("conversation", {"topic": "fish"})
    session = await lab.talk.sessions.metadata("acme", session_of(made.id))
    assert (session["metadata"], session["message_count"]) == ({"topic": "fish"}, 3)
    said = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho")]
    assert await lab.talk.said(session_of(made.id)) == said
    assert await client.conversations.retrieve(made.id) == made
    changed = await client.conversations.update(made.id, metadata={"topic": "birds"})
    assert (await client.conversations.retrieve(made.id)).metadata == changed.metadata == {"topic": "birds"}


async def test_a_session_that_was_made_elsewhere_is_a_conversation(client: openai.AsyncOpenAI, lab: Lab) -> None:
    session_id = await lab.talk.new_session()
    await lab.talk.sessions.append("acme", session_id, "user", "Hi")
    assert await texts(client, f"conv_{session_id[1:]}") == ["Hi"]


async def test_a_conversation_that_was_deleted_is_gone_with_its_items(client: openai.AsyncOpenAI, lab: Lab) -> None:
    made = await client.conversations.create(items=ITEMS)
    gone = await client.conversations.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "conversation.deleted")
    for ask in (client.conversations.retrieve, client.conversations.delete):
        with pytest.raises(openai.NotFoundError):
            await ask(made.id)


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_items_are_listed_page_by_page_in_either_order(
    client: openai.AsyncOpenAI, limit: int, order: Any
) -> None:
    made = await client.conversations.create(items=ITEMS)
    expected = ["Be brief.", "Hi", "Ho"]
    assert await texts(client, made.id, limit=limit, order=order) == (expected if order == "asc" else expected[::-1])


async def test_a_page_says_where_it_begins_and_ends(client: openai.AsyncOpenAI) -> None:
    made = await client.conversations.create(items=ITEMS)
    page = await client.conversations.items.list(made.id, limit=2)
    assert (page.has_more, page.last_id) == (True, page.data[-1].id)
    ConversationItemList.model_validate(page.model_dump())
    empty = await client.conversations.items.list((await client.conversations.create()).id)
    assert (empty.data, empty.has_more) == ([], False)


async def test_items_are_added_read_and_removed_one_by_one(client: openai.AsyncOpenAI, lab: Lab) -> None:
    made = await client.conversations.create()
    added = await client.conversations.items.create(made.id, items=ITEMS)
    assert [text_of(item) for item in added.data] == ["Be brief.", "Hi", "Ho"]
    second = added.data[1]
    assert second.id is not None
    assert await client.conversations.items.retrieve(second.id, conversation_id=made.id) == second
    assert (await client.conversations.items.delete(second.id, conversation_id=made.id)).id == made.id
    assert await texts(client, made.id, order="asc") == ["Be brief.", "Ho"]
    assert (await lab.talk.sessions.metadata("acme", session_of(made.id)))["message_count"] == 2
    with pytest.raises(openai.NotFoundError):
        await client.conversations.items.retrieve(second.id, conversation_id=made.id)


async def test_an_item_is_found_in_its_own_conversation_alone(client: openai.AsyncOpenAI) -> None:
    one, other = await client.conversations.create(items=ITEMS), await client.conversations.create(items=ITEMS)
    item = (await client.conversations.items.list(one.id)).data[0]
    assert item.id is not None
    for ask in (client.conversations.items.retrieve, client.conversations.items.delete):
        with pytest.raises(openai.NotFoundError):
            await ask(item.id, conversation_id=other.id)
    with pytest.raises(openai.NotFoundError):
        await client.conversations.items.list(other.id, after=item.id)


async def test_items_that_come_twice_with_one_key_are_added_once(client: openai.AsyncOpenAI) -> None:
    made = await client.conversations.create()
    keyed = {"Idempotency-Key": "k1"}
    first = await client.conversations.items.create(made.id, items=ITEMS, extra_headers=keyed)
    again = await client.conversations.items.create(made.id, items=ITEMS, extra_headers=keyed)
    assert [item.id for item in again.data] == [item.id for item in first.data]
    assert len(await texts(client, made.id)) == 3
    with pytest.raises(openai.BadRequestError):
        await client.conversations.items.create(made.id, items=ITEMS[:1], extra_headers=keyed)


async def test_a_conversation_that_is_made_twice_with_one_key_is_one(client: openai.AsyncOpenAI) -> None:
    keyed = {"Idempotency-Key": "k1"}
    first = await client.conversations.create(items=ITEMS, extra_headers=keyed)
    assert (await client.conversations.create(items=ITEMS, extra_headers=keyed)).id == first.id
    assert len(await texts(client, first.id)) == 3


async def test_calls_of_tools_are_items_with_their_results_and_go_with_them(
    client: openai.AsyncOpenAI, lab: Lab
) -> None:
    made = await client.conversations.create()
    session = lab.talk.objects.namespace(ChatSession).get("acme", session_of(made.id))
    turn = {"turn_id": "t1"}
    calls = [{"id": f"c{n}", "name": "look_up", "arguments": "{}"} for n in (1, 2)]
    await session.append("assistant", "Let me see.", data={**turn, "tool_calls": calls})
    for call in calls:
        await session.append("tool", '"found"', data={**turn, "tool_call_id": call["id"], "name": "look_up"})
    for order in ("asc", "desc"):
        listed = [item async for item in client.conversations.items.list(made.id, limit=1, order=order)]
        types = ["message", "function_call", "function_call", "function_call_output", "function_call_output"]
        assert [item.type for item in listed] == (types if order == "asc" else types[::-1])
        assert len({item.id for item in listed}) == 5
        for item in listed:
            assert await client.conversations.items.retrieve(str(item.id), conversation_id=made.id) == item
    result = listed[0]
    with pytest.raises(openai.BadRequestError):
        await client.conversations.items.delete(str(result.id), conversation_id=made.id)
    await client.conversations.items.delete(str(listed[2].id), conversation_id=made.id)
    assert [item async for item in client.conversations.items.list(made.id)] == []


@pytest.mark.parametrize(
    ("items", "param"),
    [
        ([{"role": "user", "content": "x"}] * 21, "items"),
        ([{"content": "x"}], "items.0.role"),
        ([{"role": "tool", "content": "x"}], "items.0.role"),
        ([{"role": "user", "content": ""}], "items.0.content"),
        ([{"role": "user", "content": "x" * 101}], "items.0.content"),
        ([{"role": "user", "content": [{"type": "input_image"}]}], "items.0.content"),
        ([{"type": "function_call", "call_id": "c", "name": "f"}], "items.0"),
        ([{"type": "function_call_output", "call_id": "c", "output": "x"}], "items"),
        ([{"type": "mcp_call"}], "items.0.type"),
        ([{"type": "computer_call"}], "items.0.type"),
    ],
)
async def test_what_a_conversation_does_not_take_is_refused_by_its_name(
    client: openai.AsyncOpenAI, items: Any, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.conversations.create(items=items)
    assert refused.value.param == param


async def test_a_conversation_of_another_tenant_does_not_exist(app: FastAPI, lab: Lab) -> None:
    async with lab.client(app) as acme:
        made = await acme.conversations.create(items=ITEMS)
        item = str((await acme.conversations.items.list(made.id)).data[0].id)
    async with lab.client(app, "sk-stingy") as other:
        for ask in (
            other.conversations.retrieve(made.id),
            other.conversations.update(made.id, metadata={}),
            other.conversations.delete(made.id),
            other.conversations.items.list(made.id),
            other.conversations.items.create(made.id, items=ITEMS),
            other.conversations.items.retrieve(item, conversation_id=made.id),
            other.conversations.items.delete(item, conversation_id=made.id),
            other.responses.create(input="Why?", conversation=made.id),
        ):
            with pytest.raises(openai.NotFoundError):
                await ask
    assert [text for _, text in await lab.talk.said(session_of(made.id))] == ["Be brief.", "Hi", "Ho"]


async def test_a_response_in_a_conversation_adds_its_question_and_its_answer(client: openai.AsyncOpenAI) -> None:
    made = await client.conversations.create(items=ITEMS)
    response = await client.responses.create(input="Why?", conversation={"id": made.id})
    assert response.conversation is not None
    assert response.conversation.id == made.id
    assert await texts(client, made.id, order="asc") == ["Be brief.", "Hi", "Ho", "Why?", TEXT]
