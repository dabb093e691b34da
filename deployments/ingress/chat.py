"""/chat: a question, answered as a stream of server-sent events or as one JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Request, Response
from pydantic import Field
from pydantic_core import to_json
from sse_starlette import EventSourceResponse, ServerSentEvent

from actors import InvalidArgument
from deployments.errors import ModelRefused, ModelUnavailable
from deployments.ingress import replies
from deployments.ingress.access import Caller, guarded_by
from deployments.ingress.fields import Body, Text, TopK, UserId
from deployments.ingress.replies import reply
from deployments.ingress.services import services_of
from deployments.question import Question, TurnEvent, TurnEventType

router = APIRouter(route_class=guarded_by("chat"), tags=["chat"])

#: A comment line that often keeps proxies from closing a stream while the model thinks.
PING_EVERY_S = 15


class NewQuestion(Body):
    message: Annotated[Text, Field(min_length=1)]
    session_id: Annotated[str, Field(max_length=64)] | None = None
    user_id: UserId | None = Field(default=None, description="of the session that is made where none is named")
    stream: bool = True
    retrieve: bool = Field(default=True, description="look for passages in the tenant's documents first")
    top_k: TopK | None = None
    max_tokens: Annotated[int, Field(ge=1, le=131_072)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None


#: One event; its data is JSON as well.
_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": list(get_args(TurnEventType))},
        "data": {"type": "string"},
    },
    "required": ["id", "event", "data"],
}


@router.post(
    "/chat",
    response_model=replies.Answer,
    responses={
        200: {
            "description": "with `stream` events `turn.created`, `sources`, `text.delta`, then `turn.completed` or"
            " `error`, each with an id; without it one JSON",
            "content": {"text/event-stream": {"schema": _EVENT}},
        }
    },
)
async def answer(request: Request, caller: Caller, body: NewQuestion) -> Response:
    services = services_of(request)
    if len(body.message) > services.config.limits.message_chars_max:
        raise InvalidArgument(
            "message", body.message, f"has more than {services.config.limits.message_chars_max} characters"
        )
    question = Question(
        tenant=caller.tenant,
        message=body.message,
        session_id=body.session_id,
        user_id=body.user_id,
        retrieve=body.retrieve,
        top_k=body.top_k,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
    )
    events = aiter(services.chat.options(stream=True).answer.remote(question))
    # What is wrong with the question itself is known before the first event, and gets a status of its own.
    first: TurnEvent = await anext(events)
    if body.stream:
        return EventSourceResponse(_sse(first, events), ping=PING_EVERY_S, headers={"X-Accel-Buffering": "no"})
    return reply(await _whole(first, events))


async def _sse(first: TurnEvent, events: AsyncIterator[TurnEvent]) -> AsyncIterator[ServerSentEvent]:
    yield _event(first)
    async for event in events:
        yield _event(event)


def _event(event: TurnEvent) -> ServerSentEvent:
    # Text stands in the data alone, as JSON, which has no line ends: it can't become a field or another event.
    return ServerSentEvent(data=to_json(event.data).decode(), event=event.type, id=str(event.number))


async def _whole(first: TurnEvent, events: AsyncIterator[TurnEvent]) -> dict[str, Any]:
    answer: dict[str, Any] = {**first.data, "text": "", "sources": []}
    text: list[str] = []
    async for event in events:
        match event.type:
            case "text.delta":
                text.append(event.data["text"])
            case "sources" | "turn.completed":
                answer.update(event.data)
            case "error":
                _raise(event.data)
    answer["text"] = "".join(text)
    return answer


def _raise(error: dict[str, Any]) -> None:
    if error["retryable"]:
        raise ModelUnavailable(error["message"], error["retry_after_s"] or 1.0)
    raise ModelRefused(error["message"], error["code"])
