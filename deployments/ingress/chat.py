"""/chat: a question, answered as a stream of server-sent events or as one JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any

import fastapi
from fastapi import APIRouter, Request, Response
from pydantic import Field, PlainValidator

from actors import InvalidArgument, ObjectConflict
from actors.runtime import RequestReused
from deployments.errors import IdempotencyKeyReused, TurnConflict
from deployments.idempotency import Outcome, key_id
from deployments.ingress import replies, ui_chat
from deployments.ingress.access import Caller, asker_of, guarded_by
from deployments.ingress.events import SCHEMA, gathered, streamed
from deployments.ingress.fields import AnswerOptions, Text
from deployments.ingress.idempotency import KEY_CHARS_MAX, KEYED, REPLAYED_HEADER, IdempotencyKey, outcome_soon
from deployments.ingress.replies import problems, reply
from deployments.ingress.services import Services, services_of
from deployments.ingress.turns import events_path
from deployments.ingress.ui_chat import AnswerFormat, wants_ui_messages
from deployments.ingress.ui_messages import UIChat
from deployments.ingress.ui_stream import ui_streamed
from deployments.question import Asked, Question, new_turn_id

router = APIRouter(route_class=guarded_by("chat", "chat"), tags=["chat"])


class NewQuestion(AnswerOptions):
    message: Annotated[Text, Field(min_length=1)] | None = Field(
        default=None, description="required, but where a message is answered again"
    )
    session_id: Annotated[str, Field(max_length=64)] | None = None
    stream: bool = True
    regenerate: bool = Field(default=False, description="answer the last message of the session again")
    replace: Annotated[int, Field(ge=1, le=2**53)] | None = Field(
        default=None, description="a message of the user that gives way to this one, with all that follows it"
    )
    request_id: Annotated[str, Field(min_length=1, max_length=KEY_CHARS_MAX, pattern=r"^[!-~]+$")] | None = Field(
        default=None, description="as the header Idempotency-Key, for those who can't send it"
    )


def question_or_chat(body: Any) -> NewQuestion | UIChat:
    """Not a union of types, which would put its members' names into the name of the field that is at fault."""
    is_chat = isinstance(body, dict) and "messages" in body
    return UIChat.model_validate(body) if is_chat else NewQuestion.model_validate(body)


#: `useChat` has a body of its own.
QuestionOrChat = Annotated[
    NewQuestion | UIChat,
    PlainValidator(question_or_chat, json_schema_input_type=NewQuestion | UIChat),
    fastapi.Body(),
]


@router.post(
    "/chat",
    response_model=replies.Answer,
    responses={
        **KEYED,
        **problems({409: "an answer is under way, and this message may not wait for it"}),
        200: {
            "description": "with `stream` events `turn.created`, `sources`, `text.delta`, then one that ends the turn,"
            " each with an id; without it one JSON. As a UI message stream, what the AI SDK reads",
            "content": {"text/event-stream": {"schema": SCHEMA}},
        },
    },
)
async def answer(
    request: Request, caller: Caller, body: QuestionOrChat, key: IdempotencyKey, form: AnswerFormat = None
) -> Response:
    services = services_of(request)
    as_ui_messages = wants_ui_messages(request, form)
    if isinstance(body, UIChat):
        as_ui_messages |= form is None
        asked = await ui_chat.ask(request, caller.tenant, body, key)
    elif as_ui_messages and not body.stream:
        raise InvalidArgument("stream", False, "must be true where the answer is to be a UI message stream")
    else:
        asked = await ask(request, _question(services, caller.tenant, body), key or body.request_id)
    events = await services.turns.answer(caller.tenant, asked)
    location = events_path(asked.session_id, asked.turn_id)
    if as_ui_messages:
        response = ui_streamed(events, asked.session_id, asked.turn_id, location=location)
    elif isinstance(body, UIChat) or body.stream:
        response = streamed(events, location=location)
    else:
        names = {"turn_id": asked.turn_id, "session_id": asked.session_id}
        response = reply({**names, **await gathered(events)})
    if asked.joined:
        response.headers[REPLAYED_HEADER] = "true"
    return response


def _question(services: Services, tenant: str, body: NewQuestion) -> Question:
    chars_max = services.config.limits.message_chars_max
    if body.message is None and not body.regenerate and body.replace is None:
        raise InvalidArgument("message", None, "is required")
    if body.message is not None and body.regenerate:
        raise InvalidArgument("message", body.message, "goes with `replace`; to regenerate is to ask the same again")
    if body.message is not None and len(body.message) > chars_max:
        raise InvalidArgument("message", body.message, f"has more than {chars_max} characters")
    if body.session_id is None and (body.regenerate or body.replace is not None):
        raise InvalidArgument("session_id", None, "is required: there is no message to answer again without one")
    return Question(
        tenant=tenant,
        message=body.message,
        session_id=body.session_id,
        replace=body.replace,
        on_conflict=body.on_conflict,
        user_id=body.user_id,
        retrieve=body.retrieve,
        top_k=body.top_k,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        options=body.options,
    )


async def begin(services: Services, question: Question, key: str | None = None) -> Asked:
    """Begins the turn that answers a question, or finds the one that its session knows by the key of the request.

    Raises:
        TurnConflict: an answer is under way, and this one may not wait for it.
        IdempotencyKeyReused: the key came with another question.
    """
    if key is not None:
        question = replace(question, key=key_id("turns", key))
    try:
        asked: Asked = await services.chat.begin(question)
    except ObjectConflict:
        raise TurnConflict from None
    except RequestReused:
        if key is None:
            raise
        raise IdempotencyKeyReused(key) from None
    return asked


def outcome_of(asked: Asked) -> Outcome:
    """A turn that was begun, as it is kept under the key of its request."""
    return Outcome(content={"session_id": asked.session_id, "turn_id": asked.turn_id}, replayed=asked.joined)


async def ask(request: Request, question: Question, key: str | None) -> Asked:
    """Begins the turn that answers a question, or finds the one that the same request has begun.

    Raises:
        TurnConflict: an answer is under way, and this one may not wait for it.
        IdempotencyKeyReused: the key came with another question.
        IdempotencyKeyBusy: the process that took the question up was lost in the middle; its lease will run out.
    """
    services = services_of(request)
    question = replace(question, asker=asker_of(request, request.state.caller))
    if key is None or question.session_id is not None:
        # The session itself knows its requests: the turn and its key can't come apart.
        return await begin(services, question, key)

    async def work(plan: str) -> Outcome:
        session_id, turn_id = json.loads(plan)
        made = await begin(services, replace(question, new_session_id=session_id, turn_id=turn_id))
        return outcome_of(made)

    payload: dict[str, Any] = {"message": question.message, "user_id": question.user_id, **question.request()}
    plan = json.dumps([services.sessions.new_id(), new_turn_id()])
    outcome = await outcome_soon(request, question.tenant, key, payload, plan=plan, work=work)
    return Asked(**outcome.content, joined=outcome.replayed)
