"""/chat for the AI SDK: the requests of `useChat`, and the streams that it reads.

`useChat` knows a chat by an id that it makes up, and a message by another. The first is mapped to a session; the second
is the key of the message's turn, so that a message that is sent twice is asked once, and one that is edited is found.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from actors import DurableError, InvalidArgument, ObjectNotFound
from actors.runtime import RequestReused
from actors.turn import FINAL
from deployments.chats import Chats, Place
from deployments.ingress import replies
from deployments.ingress.access import Caller, asker_of, guarded_by
from deployments.ingress.fields import HistoryLimit
from deployments.ingress.replies import problems, reply
from deployments.ingress.services import Services, services_of
from deployments.ingress.turns import events_path
from deployments.ingress.ui_messages import ID_CHARS_MAX, UIChat, stored_id, text_of, turn_key, ui_messages
from deployments.ingress.ui_stream import ui_streamed
from deployments.question import Asked, Question, new_turn_id

logger = logging.getLogger("mobula.chat")

router = APIRouter(route_class=guarded_by("chat", "turns"), prefix="/chat/{chat_id}", tags=["chat"])

MEDIA_TYPE = "application/vnd.ai-sdk.ui-message-stream"
#: Of the newest turns, among which one that is under way is looked for.
TURNS_LOOKED_AT = 20
#: How often a chat's session may go while it is asked.
_ATTEMPTS_MAX = 3

AnswerFormat = Annotated[
    Literal["events", "ui-message"] | None,
    Query(
        alias="format",
        description="how the answer is streamed: as the service's own events, or as the AI SDK's UI message stream"
        f" (also by `Accept: {MEDIA_TYPE}`, and wherever the body is that of `useChat`)",
    ),
]
ChatId = Annotated[str, Path(min_length=1, max_length=ID_CHARS_MAX, description="useChat's id, or a session's")]

#: What a UI message stream is, for the documentation.
SCHEMA = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}


def wants_ui_messages(request: Request, form: str | None) -> bool:
    """Whether the answer is to be the AI SDK's stream, by what the request says of it."""
    if form is not None:
        return form == "ui-message"
    accepted = ",".join(request.headers.getlist("accept")).split(",")
    return any(media_type.partition(";")[0].strip().lower() == MEDIA_TYPE for media_type in accepted)


async def ask(request: Request, tenant: str, chat: UIChat, key: str | None) -> Asked:
    """Begins the turn that answers the chat's last message, or finds the one that the same message has begun.

    Raises:
        InvalidArgument: the message can't be asked.
        ObjectNotFound: the chat's id is that of a session, and there is none.
    """
    text = text_of(chat.question)
    chars_max = services_of(request).config.limits.message_chars_max
    if len(text) > chars_max:
        raise InvalidArgument("messages", text, f"must end with a message of at most {chars_max} characters")
    chats = _chats(request)
    place = await chats.find(tenant, chat.id) or await chats.reserve(tenant, chat.id)
    for _ in range(_ATTEMPTS_MAX):
        try:
            asked = await _ask_in(request, tenant, place, chat, text, key)
        except ObjectNotFound:
            # It was deleted, or has expired: the chat goes on in a new one.
            place = await chats.reserve(tenant, chat.id, instead_of=place)
            continue
        if not place.is_made:
            try:
                await chats.made(tenant, chat.id, place)
            except DurableError as error:  # the answer is on its way, and the chat's next message says it again
                logger.warning("tenant=%s a chat's session is not noted: %s", tenant, error)
        return asked
    raise ObjectNotFound(f"ChatSession/{tenant}:{place.session_id}")


async def _ask_in(request: Request, tenant: str, place: Place, chat: UIChat, text: str, key: str | None) -> Asked:
    services = services_of(request)
    message_key = turn_key(chat.question.id)
    question = Question(
        tenant=tenant,
        message=text,
        session_id=place.session_id if place.is_made else None,
        new_session_id=None if place.is_made else place.session_id,
        user_id=chat.user_id,
        key=message_key,
        on_conflict=chat.on_conflict,
        retrieve=chat.retrieve,
        top_k=chat.top_k,
        max_tokens=chat.max_tokens,
        temperature=chat.temperature,
        options=chat.options,
        asker=asker_of(request, request.state.caller),
    )
    known = await _asked_before(services, tenant, place, chat) if chat.is_again else None
    if known is not None:
        turn_id = new_turn_id()
        # Asked as often as the user likes; once with one Idempotency-Key.
        again = turn_id if key is None else hashlib.sha256(key.encode()).hexdigest()
        question = replace(
            question,
            session_id=place.session_id,
            new_session_id=None,
            turn_id=turn_id,
            key=f"{message_key}-{again}",
            message=None if chat.trigger == "regenerate-message" else text,
            replace=known,
            # What is under way is what shall give way.
            on_conflict=chat.on_conflict or "interrupt",
        )
    # Else it never got here, or is long forgotten: it is asked now.
    try:
        asked: Asked = await services.chat.begin(question)
    except RequestReused:
        problem = "ends with a message whose id another one had: an edited one comes with its `messageId`"
        raise InvalidArgument("messages", chat.question.id, problem) from None
    return asked


async def _asked_before(services: Services, tenant: str, place: Place, chat: UIChat) -> int | None:
    """The message in the session that is to be asked again; None if it is not there.

    Raises:
        ObjectNotFound: the session has gone.
    """
    try:
        found: int | None = await services.sessions.get(tenant, place.session_id).asked_as(turn_key(chat.question.id))
    except ObjectNotFound:
        if place.is_made:
            raise
        return None  # nothing was ever asked; where it is only not noted that the session was made, it is found
    return stored_id(chat.question.id) if found is None else found


@router.get(
    "/stream",
    response_class=Response,
    responses={
        200: {
            "description": "the answer that is under way, from its beginning, as a UI message stream",
            "content": {"text/event-stream": {"schema": SCHEMA}},
        },
        204: {"description": "no answer is under way"},
        **problems({410: "the turn's events are no longer kept"}),
    },
)
async def resume(request: Request, caller: Caller, chat_id: ChatId) -> Response:
    """What `useChat` asks for with `resume`, or when it has lost its connection."""
    place = await _chats(request).find(caller.tenant, chat_id)
    nothing = Response(status_code=204)
    if place is None:
        return nothing
    session_id = place.session_id
    turns = services_of(request).turns
    try:
        page = await turns.page(caller.tenant, session_id, limit=TURNS_LOOKED_AT, before=None)
    except ObjectNotFound:
        if session_id == chat_id:
            raise
        return nothing
    turn = next((turn for turn in page["turns"] if turn["status"] not in FINAL), None)
    if turn is None:
        return nothing
    events = await turns.follow(caller.tenant, session_id, turn["id"])
    return ui_streamed(events, session_id, turn["id"], location=events_path(session_id, turn["id"]))


@router.get("/messages", response_model=replies.UIMessageList)
async def messages(
    request: Request,
    caller: Caller,
    chat_id: ChatId,
    limit: HistoryLimit = 50,
    before: Annotated[int | None, Query(ge=1, le=2**53)] = None,
) -> Response:
    """The chat's newest messages, or the newest before one of them, as `useChat` is to begin with them."""
    place = await _chats(request).find(caller.tenant, chat_id)
    if place is None:
        raise ObjectNotFound(f"chat {chat_id}")
    session_id = place.session_id
    history = await services_of(request).sessions.history(caller.tenant, session_id, limit=limit, before=before)
    shown = ui_messages(session_id, history["messages"])
    first = history["messages"][0]["id"] if history["messages"] else None
    older = first if history["has_more"] else None
    return reply({"session_id": session_id, "messages": shown, "before": older})


def _chats(request: Request) -> Chats:
    services = services_of(request)
    return Chats(services.objects, services.sessions.new_id, time.time)
