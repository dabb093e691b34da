"""/chat/sessions: conversations and their messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import Field

from actors import InvalidArgument
from actors.runtime import RequestReused
from deployments import transcript_file
from deployments.errors import IdempotencyKeyReused
from deployments.idempotency import Outcome, key_id
from deployments.ingress import replies
from deployments.ingress.access import Caller, guarded_by
from deployments.ingress.fields import (
    TITLE_CHARS_MAX,
    Body,
    HistoryLimit,
    Limit,
    SessionMetadataField,
    Text,
    Title,
    TtlSeconds,
    UserId,
)
from deployments.ingress.idempotency import KEYED, IdempotencyKey, answer_once, described
from deployments.ingress.replies import reply
from deployments.ingress.services import services_of

router = APIRouter(route_class=guarded_by("chat", "sessions"), prefix="/chat/sessions", tags=["sessions"])


class NewSession(Body):
    title: Title | None = None
    user_id: UserId | None = None
    metadata: SessionMetadataField | None = None
    ttl_s: TtlSeconds | None = Field(default=None, description="seconds after its last use until it expires")


class SessionChanges(Body):
    title: Title | None = None
    metadata: SessionMetadataField | None = None


class Fork(Body):
    before: Annotated[int, Field(ge=1, le=2**53)] | None = Field(
        default=None, description="the id of the first message that is not copied; all are if it is left out"
    )


class NewMessage(Body):
    role: Literal["system", "user", "assistant"]
    content: Annotated[Text, Field(min_length=1)]


@router.post("", status_code=201, response_model=replies.Session, responses=described(201))
async def create(request: Request, caller: Caller, key: IdempotencyKey, body: NewSession | None = None) -> Response:
    fields = (body or NewSession()).model_dump()
    sessions = services_of(request).sessions

    async def work(session_id: str) -> Outcome:
        return Outcome(content={**await sessions.create(caller.tenant, session_id=session_id, **fields)})

    return await answer_once(request, caller, key, fields, status=201, plan=sessions.new_id(), work=work)


@router.get("", response_model=replies.SessionList)
async def page(
    request: Request,
    caller: Caller,
    limit: Limit = 20,
    after: Annotated[str | None, Query(max_length=64)] = None,
    user_id: Annotated[str | None, Query(max_length=256)] = None,
    q: Annotated[
        str | None, Query(min_length=1, max_length=TITLE_CHARS_MAX, description="text in the title, in any case")
    ] = None,
) -> Response:
    sessions = services_of(request).sessions
    return reply(await sessions.page(caller.tenant, limit=limit, after=after, user_id=user_id, text=q))


@router.get("/{session_id}", response_model=replies.Session)
async def read(request: Request, caller: Caller, session_id: str) -> Response:
    return reply(await services_of(request).sessions.metadata(caller.tenant, session_id))


@router.patch("/{session_id}", response_model=replies.Session)
async def update(request: Request, caller: Caller, session_id: str, body: SessionChanges) -> Response:
    """Changes the fields that are given; null clears one."""
    changes: dict[str, Any] = body.model_dump(exclude_unset=True)
    return reply(await services_of(request).sessions.update(caller.tenant, session_id, changes))


@router.delete("/{session_id}", status_code=204)
async def delete(request: Request, caller: Caller, session_id: str) -> Response:
    """Its data is gone from disk when this is answered."""
    await services_of(request).sessions.delete(caller.tenant, session_id)
    return Response(status_code=204)


@router.post("/{session_id}/fork", status_code=201, response_model=replies.Session, responses=described(201))
async def fork(
    request: Request, caller: Caller, session_id: str, key: IdempotencyKey, body: Fork | None = None
) -> Response:
    """Makes a session that begins as this one did, with its title, user, metadata and time to live."""
    before = None if body is None else body.before
    sessions = services_of(request).sessions

    async def work(new_session_id: str) -> Outcome:
        forked = await sessions.fork(caller.tenant, session_id, before=before, new_session_id=new_session_id)
        return Outcome(content={**forked})

    return await answer_once(request, caller, key, {"before": before}, status=201, plan=sessions.new_id(), work=work)


@router.get("/{session_id}/usage", response_model=replies.TokenCounts)
async def usage(request: Request, caller: Caller, session_id: str) -> Response:
    """The tokens of all its turns, those included whose messages are gone."""
    return reply(await services_of(request).sessions.usage(caller.tenant, session_id))


@router.get(
    "/{session_id}/export",
    response_class=Response,
    responses={
        200: {
            "description": "a file: a line of JSON for the session and one for each message, oldest first; or Markdown",
            "headers": {"Content-Disposition": {"schema": {"type": "string"}}},
            "content": {kind.media_type: {"schema": {"type": "string"}} for kind in transcript_file.KINDS.values()},
        }
    },
)
async def export(
    request: Request,
    caller: Caller,
    session_id: str,
    form: Annotated[transcript_file.Format, Query(alias="format")] = "jsonl",
) -> Response:
    """The whole session as a file, of any length."""
    sessions = services_of(request).sessions
    kind = transcript_file.KINDS[form]
    session = await sessions.metadata(caller.tenant, session_id)
    pages = sessions.transcript(caller.tenant, session_id)
    # The id is the service's own: letters and digits.
    headers = {"Content-Disposition": f'attachment; filename="{session["id"]}.{form}"'}
    return StreamingResponse(kind.write(session, pages), media_type=kind.media_type, headers=headers)


@router.get("/{session_id}/messages", response_model=replies.MessageList)
async def history(
    request: Request,
    caller: Caller,
    session_id: str,
    limit: HistoryLimit = 50,
    before: Annotated[int | None, Query(ge=1, le=2**53)] = None,
) -> Response:
    """The newest messages, or the newest before one of them, oldest first."""
    return reply(await services_of(request).sessions.history(caller.tenant, session_id, limit=limit, before=before))


@router.post("/{session_id}/messages", status_code=201, response_model=replies.AppendedMessage, responses=KEYED)
async def append(request: Request, caller: Caller, session_id: str, body: NewMessage, key: IdempotencyKey) -> Response:
    """Adds a message without asking for an answer."""
    services = services_of(request)
    if len(body.content) > services.config.limits.message_chars_max:
        raise InvalidArgument(
            "content", body.content, f"has more than {services.config.limits.message_chars_max} characters"
        )
    # No record beside the session's own, which it keeps with the message: the two can't come apart.
    request_id = None if key is None else key_id("messages", key)
    try:
        appended = await services.sessions.append(
            caller.tenant, session_id, body.role, body.content, request_id=request_id
        )
    except RequestReused:
        raise IdempotencyKeyReused(key or "") from None
    return reply({"id": appended["id"], "created_at": appended["created_at"]}, 201)
