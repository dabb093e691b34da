"""/v1/conversations: sessions and their messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from actors import ObjectNotFound
from actors.directory import SessionMetadata
from actors.message import Message, NewMessage
from actors.runtime import RequestReused
from deployments.errors import IdempotencyKeyReused
from deployments.idempotency import Outcome, key_id
from deployments.ingress.access import Caller, guarded_by
from deployments.ingress.fields import Body
from deployments.ingress.idempotency import IdempotencyKey, answer_once
from deployments.ingress.openai import items, shapes
from deployments.ingress.openai.errors import Refused
from deployments.ingress.openai.ids import Place, conversation_id, place_of, session_of
from deployments.ingress.openai.parameters import Ignored, Metadata
from deployments.ingress.replies import reply
from deployments.ingress.services import Services, services_of

router = APIRouter(
    route_class=guarded_by("chat", "sessions"), prefix="/v1/conversations", tags=["OpenAI: conversations"]
)

#: As many as OpenAI takes at a time.
NEW_ITEMS_MAX = 20
#: An item's id, and a little more than the longest.
ID_CHARS_MAX = 80

PageLimit = Annotated[int, Query(ge=1, le=100, description="items in the page")]
After = Annotated[str | None, Query(max_length=ID_CHARS_MAX, description="the last id of the page before")]
Order = Annotated[Literal["asc", "desc"], Query(description="oldest or newest first")]
Include = Annotated[list[str] | None, Query(max_length=20, description="taken and ignored")]

NewItems = Annotated[list[items.NewItem], Field(max_length=NEW_ITEMS_MAX)]


class NewConversation(Body):
    items: NewItems | None = None
    metadata: Metadata | None = None


class ConversationChanges(Body):
    metadata: Metadata | None


class AddedItems(Body):
    items: Annotated[NewItems, Field(min_length=1)]
    include: Ignored = None


def _shown(session: SessionMetadata) -> dict[str, Any]:
    return {
        "id": conversation_id(session["id"]),
        "object": "conversation",
        "created_at": int(session["created_at"]),
        "metadata": session["metadata"],
    }


@router.post("", response_model=shapes.Conversation)
async def create(
    request: Request, caller: Caller, key: IdempotencyKey, body: NewConversation | None = None
) -> Response:
    services = services_of(request)
    body = body or NewConversation()
    messages = _kept(services, body.items or ())

    async def work(session_id: str) -> Outcome:
        made = await services.sessions.create(caller.tenant, session_id=session_id, metadata=body.metadata)
        if messages:
            await services.sessions.extend(caller.tenant, session_id, messages, request_id=session_id)
        return Outcome(content=_shown(made))

    plan = services.sessions.new_id()
    return await answer_once(request, caller, key, body.model_dump(), status=200, plan=plan, work=work)


@router.get("/{conversation_id}", response_model=shapes.Conversation)
async def read(request: Request, caller: Caller, conversation_id: str) -> Response:
    session_id = session_of(conversation_id)
    return reply(_shown(await services_of(request).sessions.metadata(caller.tenant, session_id)))


@router.post("/{conversation_id}", response_model=shapes.Conversation)
async def update(request: Request, caller: Caller, conversation_id: str, body: ConversationChanges) -> Response:
    """Puts metadata in place of what is there."""
    changes = {"metadata": body.metadata}
    return reply(
        _shown(await services_of(request).sessions.update(caller.tenant, session_of(conversation_id), changes))
    )


@router.delete("/{conversation_id}", response_model=shapes.Deleted)
async def delete(request: Request, caller: Caller, conversation_id: str) -> Response:
    """Its items go with it: nothing of them is on disk when this is answered."""
    await services_of(request).sessions.delete(caller.tenant, session_of(conversation_id))
    return reply({"id": conversation_id, "object": "conversation.deleted", "deleted": True})


@router.post("/{conversation_id}/items", response_model=shapes.ItemList)
async def add(
    request: Request,
    caller: Caller,
    conversation_id: str,
    body: AddedItems,
    key: IdempotencyKey,
    include: Include = None,
) -> Response:
    """Adds messages, all or none, without asking for an answer. Results of functions come with their calls."""
    services = services_of(request)
    session_id = session_of(conversation_id)
    messages = _kept(services, body.items)
    # No record beside the session's own, which it keeps with the messages: the two can't come apart.
    request_id = None if key is None else key_id("items", key)
    try:
        added = await services.sessions.extend(caller.tenant, session_id, messages, request_id=request_id)
    except RequestReused:
        raise IdempotencyKeyReused(key or "") from None
    return reply(items.listed(_items_of(session_id, added), has_more=False))


@router.get("/{conversation_id}/items", response_model=shapes.ItemList)
async def page(
    request: Request,
    caller: Caller,
    conversation_id: str,
    limit: PageLimit = 20,
    after: After = None,
    order: Order = "desc",
    include: Include = None,
) -> Response:
    session_id = session_of(conversation_id)
    newest_first = order == "desc"
    behind: Place | None = None if after is None else place_of(after, session_id)
    # The message of the last item again, which may have more items, and one more than the page has room for.
    start = None if behind is None else behind.message_id + (1 if newest_first else -1)
    found = await services_of(request).sessions.listed(
        caller.tenant, session_id, limit=limit + 2, after=start, newest_first=newest_first
    )
    shown: list[dict[str, Any]] = []
    for message in found["messages"]:
        of_message = items.shown(session_id, message)
        for place, item in reversed(of_message) if newest_first else of_message:
            if behind is None or (place < behind if newest_first else place > behind):
                shown.append(item)
    return reply(items.listed(shown[:limit], has_more=len(shown) > limit))


@router.get("/{conversation_id}/items/{item_id}", response_model=shapes.Item)
async def read_item(
    request: Request, caller: Caller, conversation_id: str, item_id: str, include: Include = None
) -> Response:
    session_id = session_of(conversation_id)
    message = await _message(request, caller.tenant, session_id, place_of(item_id, session_id).message_id)
    for _, item in items.shown(session_id, message):
        if item["id"] == item_id:
            return reply(item)
    raise ObjectNotFound("item/?")


@router.delete("/{conversation_id}/items/{item_id}", response_model=shapes.Conversation)
async def remove_item(request: Request, caller: Caller, conversation_id: str, item_id: str) -> Response:
    """Removes the message that the item is of. Calls of tools go with their results."""
    services = services_of(request)
    session_id = session_of(conversation_id)
    message = await _message(request, caller.tenant, session_id, place_of(item_id, session_id).message_id)
    if message["role"] == "tool":
        raise Refused("item_id: the result of a tool goes with its call: delete that", "item_id")
    await services.sessions.remove(caller.tenant, session_id, message["id"])
    return reply(_shown(await services.sessions.metadata(caller.tenant, session_id)))


def _kept(services: Services, new: Sequence[items.NewItem]) -> list[NewMessage]:
    for number, item in enumerate(new):
        if item.type not in ("message", "function_call", "function_call_output"):
            where = f"items.{number}.type"
            raise Refused(f"{where}: a conversation takes messages, and calls of functions with their results", where)
    messages = items.for_session(new, "items", services.config.limits.message_chars_max)
    return items.answering(messages, {}, "items")


async def _message(request: Request, tenant: str, session_id: str, message_id: int) -> Message:
    sessions = services_of(request).sessions
    found = await sessions.listed(tenant, session_id, limit=1, after=message_id - 1, newest_first=False)
    for message in found["messages"]:
        if message["id"] == message_id:
            return message
    raise ObjectNotFound("item/?")


def _items_of(session_id: str, messages: list[Message]) -> list[dict[str, Any]]:
    return [item for message in messages for _, item in items.shown(session_id, message)]
