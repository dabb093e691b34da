"""/chat/sessions/{id}/turns: answers under way and past ones. Followed from any event on, and stopped."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from actors import InvalidArgument
from deployments.ingress import replies
from deployments.ingress.access import Caller, guarded_by
from deployments.ingress.events import SCHEMA, streamed
from deployments.ingress.fields import Limit
from deployments.ingress.replies import problems, reply
from deployments.ingress.services import services_of

PREFIX = "/chat/sessions/{session_id}/turns"
router = APIRouter(route_class=guarded_by("chat", "turns"), prefix=PREFIX, tags=["turns"])

EVENT_NUMBER_MAX = 2**53
_EVENT_NUMBER = re.compile(r"[0-9]{1,16}")

LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", max_length=16, description="the id of the last event that was seen")
]
StartingAfter = Annotated[
    int | None, Query(ge=0, le=EVENT_NUMBER_MAX, description="the same, for those who can't send the header")
]


def events_path(session_id: str, turn_id: str) -> str:
    return f"{PREFIX.format(session_id=session_id)}/{turn_id}/events"


def after(last_event_id: str | None, starting_after: int | None) -> int:
    """The number of the event that a reader saw last; 0 where it saw none."""
    if starting_after is not None:
        return starting_after
    if not last_event_id:
        return 0
    if not _EVENT_NUMBER.fullmatch(last_event_id):
        raise InvalidArgument("Last-Event-ID", last_event_id, "must be the id of an event: a number")
    return int(last_event_id)


@router.get("", response_model=replies.TurnList)
async def page(
    request: Request,
    caller: Caller,
    session_id: str,
    limit: Limit = 20,
    before: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """Newest first."""
    turns = services_of(request).turns
    return reply(await turns.page(caller.tenant, session_id, limit=limit, before=before))


@router.get("/{turn_id}", response_model=replies.Turn)
async def read(request: Request, caller: Caller, session_id: str, turn_id: str) -> Response:
    return reply(await services_of(request).turns.get(caller.tenant, session_id, turn_id))


@router.post("/{turn_id}/cancel", response_model=replies.Turn)
async def cancel(request: Request, caller: Caller, session_id: str, turn_id: str) -> Response:
    """Stops the answer. What it has so far is kept. One that has ended stays as it is."""
    return reply(await services_of(request).turns.cancel(caller.tenant, session_id, turn_id))


@router.get(
    "/{turn_id}/events",
    response_class=Response,
    responses={
        200: {"description": "all events, then those that come", "content": {"text/event-stream": {"schema": SCHEMA}}},
        **problems({410: "the turn has ended, and its events are no longer kept"}),
    },
)
async def follow(
    request: Request,
    caller: Caller,
    session_id: str,
    turn_id: str,
    last_event_id: LastEventId = None,
    starting_after: StartingAfter = None,
) -> Response:
    """The turn's events as a stream: those behind the last that was seen, and on to its end."""
    events = await services_of(request).turns.follow(
        caller.tenant, session_id, turn_id, after=after(last_event_id, starting_after)
    )
    return streamed(events, location=events_path(session_id, turn_id))
