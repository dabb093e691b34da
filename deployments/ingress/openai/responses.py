"""/v1/responses: answers that can be asked for again, followed, stopped, and gone on from.

A response is a turn. Its id says where it is, so that any replica finds it; its events are the turn's, told in OpenAI's
words, and a stream can be taken up behind any of them. Where no conversation is named, a session is made for it; one
that goes on from another is in the same session if nothing has followed there, and else in a copy of it up to there.

With `store: false` there is no session: the model is asked directly, and the client keeps what it needs.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json
from sse_starlette import EventSourceResponse, ServerSentEvent

from actors import DurableError, ObjectConflict, ObjectNotFound
from actors.session_views import AnsweredTurn
from actors.turn import FINAL, TurnEvent
from deployments.idempotency import Outcome
from deployments.ingress.access import Caller, asker_of, guarded_by
from deployments.ingress.chat import outcome_of
from deployments.ingress.events import PING_EVERY_S
from deployments.ingress.idempotency import REPLAYED_HEADER, IdempotencyKey, outcome_soon
from deployments.ingress.openai import items, shapes
from deployments.ingress.openai.client_calls import beginning, newest_turn, turn_to_follow, waiting_in
from deployments.ingress.openai.conversations import After, Include, Order, PageLimit
from deployments.ingress.openai.direct import DirectQuestion, ask_model
from deployments.ingress.openai.errors import Refused, error_body
from deployments.ingress.openai.ids import response_id, session_of, turn_of
from deployments.ingress.openai.models import required
from deployments.ingress.openai.response_events import ResponseEvents
from deployments.ingress.openai.response_request import NewResponse
from deployments.ingress.openai.response_shape import begun, blank, ended
from deployments.ingress.openai.tools import checked
from deployments.ingress.replies import reply
from deployments.ingress.services import Services, services_of
from deployments.question import Asked, Question, new_turn_id
from deployments.retelling import retold

logger = logging.getLogger("mobula.ingress")

router = APIRouter(route_class=guarded_by("chat", "chat"), prefix="/v1/responses", tags=["OpenAI: responses"])
kept = APIRouter(route_class=guarded_by("chat", "turns"), prefix="/v1/responses", tags=["OpenAI: responses"])

NUMBER_MAX = 2**53
#: Nothing was seen yet: the first event has the number 0.
NONE_SEEN = -1
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the response; with `stream` its events, each with a `sequence_number`",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.post("", response_model=shapes.Response, responses=_STREAM)
async def create(request: Request, caller: Caller, body: NewResponse, key: IdempotencyKey) -> Response:
    services = services_of(request)
    model = required(body.model, services.tenants[caller.tenant].model.name)
    body.require_consistent()
    if not body.is_stored:
        return await _answer_directly(services, caller.tenant, model, body, asker_of(request, caller))
    asked = await _ask(request, caller.tenant, body, key)
    answered = await _answered(services, caller.tenant, asked.session_id, asked.turn_id)
    told = begun(asked.session_id, model, answered)
    if body.background and not body.stream:
        response = reply(await _now(services, caller.tenant, asked.session_id, answered, told))
    else:
        events = await services.turns.answer(caller.tenant, asked)
        if body.stream:
            response = _streamed(events, told, NONE_SEEN)
        else:
            async for event in events:
                told.take(event)
            turn = await services.turns.get(caller.tenant, asked.session_id, asked.turn_id)
            response = reply(ended(told.response(), turn))
    if asked.joined:
        response.headers[REPLAYED_HEADER] = "true"
    return response


@kept.get("/{response_id}", response_model=shapes.Response, responses=_STREAM)
async def read(
    request: Request,
    caller: Caller,
    response_id: str,
    stream: bool = False,
    starting_after: Annotated[
        int | None, Query(ge=0, le=NUMBER_MAX, description="the `sequence_number` of the last event that was seen")
    ] = None,
    include: Include = None,
    include_obfuscation: Annotated[bool | None, Query(description="taken and ignored")] = None,
) -> Response:
    """The response as it is now, or with `stream` its events: those behind the last that was seen, on to its end."""
    services = services_of(request)
    session_id, turn_id = turn_of(response_id)
    answered = await _answered(services, caller.tenant, session_id, turn_id)
    told = begun(session_id, services.tenants[caller.tenant].model.name, answered)
    if stream:
        # All of them again, since what an event is called depends on those before it.
        events = await services.turns.follow(caller.tenant, session_id, turn_id)
        return _streamed(events, told, NONE_SEEN if starting_after is None else starting_after)
    return reply(await _now(services, caller.tenant, session_id, answered, told))


@kept.post("/{response_id}/cancel", response_model=shapes.Response)
async def cancel(request: Request, caller: Caller, response_id: str) -> Response:
    """Stops the answer. What it has so far is kept. One that has ended stays as it is."""
    services = services_of(request)
    session_id, turn_id = turn_of(response_id)
    await _answered(services, caller.tenant, session_id, turn_id)
    await services.turns.cancel(caller.tenant, session_id, turn_id)
    answered = await _answered(services, caller.tenant, session_id, turn_id)
    told = begun(session_id, services.tenants[caller.tenant].model.name, answered)
    return reply(await _now(services, caller.tenant, session_id, answered, told))


@kept.delete("/{response_id}", response_model=shapes.Deleted)
async def delete(request: Request, caller: Caller, response_id: str) -> Response:
    """Stops and forgets the response. Its messages stay in a conversation that was named, or that others go on from."""
    services = services_of(request)
    session_id, turn_id = turn_of(response_id)
    answered = await _answered(services, caller.tenant, session_id, turn_id)
    if answered["turn"]["status"] not in FINAL:
        await services.turns.cancel(caller.tenant, session_id, turn_id)
    others = await services.sessions.get(caller.tenant, session_id).disown(turn_id)
    if not others and not answered["request"]["client"]["in_conversation"]:
        await services.sessions.delete(caller.tenant, session_id)
    return reply({"id": response_id, "object": "response.deleted", "deleted": True})


@kept.get("/{response_id}/input_items", response_model=shapes.ItemList)
async def input_items(
    request: Request,
    caller: Caller,
    response_id: str,
    limit: PageLimit = 20,
    after: After = None,
    order: Order = "desc",
    include: Include = None,
) -> Response:
    """What the response was asked with, without what the conversation held before."""
    session_id, turn_id = turn_of(response_id)
    answered = await _answered(services_of(request), caller.tenant, session_id, turn_id)
    asked = answered["turn"]["message_id"] or 0
    given = [message for message in answered["messages"] if message["id"] <= asked]
    shown = [item for message in given for _, item in items.shown(session_id, message)]
    if order == "desc":
        shown.reverse()
    ids = [item["id"] for item in shown]
    if after is not None and after not in ids:
        raise ObjectNotFound("item/?")
    start = 0 if after is None else ids.index(after) + 1
    return reply(items.listed(shown[start : start + limit], has_more=len(shown) > start + limit))


async def _answered(services: Services, tenant: str, session_id: str, turn_id: str) -> AnsweredTurn:
    """
    Raises:
        ObjectNotFound: there is no such turn, or it is no response.
    """
    answered: AnsweredTurn = await services.sessions.get(tenant, session_id).answered(turn_id)
    if "client" not in answered["request"]:
        raise ObjectNotFound("response/?")
    return answered


async def _now(
    services: Services, tenant: str, session_id: str, answered: AnsweredTurn, told: ResponseEvents
) -> dict[str, Any]:
    """The response as it is, without waiting for what comes."""
    turn = answered["turn"]
    if turn["status"] in FINAL:
        for event in retold(session_id, answered):
            told.take(event)
        return ended(told.response(), turn)
    for event in await services.turns.so_far(tenant, session_id, turn["id"]):
        told.take(event)
    return told.response()


def _streamed(events: AsyncIterator[TurnEvent], told: ResponseEvents, seen: int) -> EventSourceResponse:
    return EventSourceResponse(_sse(events, told, seen), ping=PING_EVERY_S)


async def _sse(events: AsyncIterator[TurnEvent], told: ResponseEvents, seen: int) -> AsyncIterator[ServerSentEvent]:
    try:
        async for event in events:
            for one in told.take(event):
                if one["sequence_number"] > seen:
                    yield ServerSentEvent(data=to_json(one).decode(), event=one["type"])
    except DurableError:
        # The session was deleted, or can't be reached: no event of the response, so that none takes its number.
        error = error_body("the response can't be followed any further", status=503)
        yield ServerSentEvent(data=to_json(error).decode(), event="error")


# -- asking


async def _ask(request: Request, tenant: str, body: NewResponse, key: str | None) -> Asked:
    """Begins the response's turn, or finds the one that the same request has begun."""
    services = services_of(request)
    given = items.for_session(body.input, "input", services.config.limits.message_chars_max)
    if not given or given[-1]["role"] not in ("user", "tool"):
        raise Refused("input: the last item must be a message of the user, or the output of a function", "input")
    specs, choice = checked([tool.spec() for tool in body.functions], body.function_choice)

    search = body.file_search

    async def work(plan: str) -> Outcome:
        new_session_id, turn_id = json.loads(plan)
        place = await _place(services, tenant, body, turn_id, brings_results=given[-1]["role"] == "tool")
        session_id, follows = place.session_id, place.follows
        message, leading, result_of = beginning(given, place.waiting, "input")
        query = next((one["content"] for one in reversed(given) if one["role"] == "user"), "")
        asked = Question(
            tenant=tenant,
            message=message,
            leading=leading,
            session_id=session_id,
            follows=follows,
            new_session_id=new_session_id,
            turn_id=turn_id,
            user_id=body.user or None,
            retrieve=search is not None,
            top_k=None if search is None else search.max_num_results,
            max_tokens=body.max_output_tokens,
            temperature=body.temperature,
            instructions=body.instructions,
            options=body.options,
            functions=specs,
            tool_choice=choice,
            result_of=result_of,
            client=body.request(query),
            asker=asker_of(request, request.state.caller),
        )
        try:
            begun: Asked = await services.chat.begin(asked)
        except ObjectConflict:
            if session_id is None or follows is None or body.conversation is not None:
                raise
            newest = await newest_turn(services, tenant, session_id)
            if newest is None or newest["id"] == follows:
                raise
            # Something goes on from there already, or has begun to at the same time.
            await _fork(services, tenant, session_id, follows, new_session_id)
            try:
                begun = await services.chat.begin(replace(asked, session_id=new_session_id, follows=None))
            except Exception:  # whatever it was, nobody knows of the copy
                await _discard_copy(services, tenant, new_session_id, turn_id)
                raise
        return outcome_of(begun)

    plan = json.dumps([services.sessions.new_id(), new_turn_id()])
    if key is None:
        return Asked(**(await work(plan)).content, joined=False)
    payload = body.model_dump(exclude={"stream", "stream_options"})
    outcome = await outcome_soon(request, tenant, key, payload, plan=plan, work=work)
    return Asked(**outcome.content, joined=outcome.replayed)


class _Place(NamedTuple):
    """Where a response is to be.

    `session_id` None: in a session of its own. `follows` is the turn that it is to follow, None where that is all the
    same; `waiting` is as in `beginning`.
    """

    session_id: str | None
    follows: str | None
    waiting: dict[str, str]


async def _place(services: Services, tenant: str, body: NewResponse, turn_id: str, *, brings_results: bool) -> _Place:
    """
    Raises:
        Refused: there is no such response to go on from.
        TurnConflict: another answers in the conversation, and results can't wait for it.
    """
    if body.conversation is not None:
        session_id = session_of(body.conversation)
        follows = await turn_to_follow(services, tenant, session_id, turn_id) if brings_results else None
        return _Place(session_id, follows, await waiting_in(services, tenant, session_id, turn_id))
    if body.previous_response_id is None:
        return _Place(None, None, {})
    try:
        session_id, previous_id = turn_of(body.previous_response_id)
        previous = await _answered(services, tenant, session_id, previous_id)
    except ObjectNotFound:
        problem = f"Previous response with id {body.previous_response_id!r} not found."
        raise Refused(problem, "previous_response_id", "previous_response_not_found") from None
    return _Place(session_id, previous_id, items.waiting(previous["messages"]))


async def _fork(services: Services, tenant: str, session_id: str, turn_id: str, new_session_id: str) -> None:
    """Copies the session up to the end of a turn.

    Raises:
        Refused: the turn has not ended.
    """
    answered = await _answered(services, tenant, session_id, turn_id)
    turn = answered["turn"]
    if turn["status"] not in FINAL:
        raise Refused("previous_response_id: it has not ended, and another follows it", "previous_response_id")
    # Results of tools may follow an answer that broke off.
    numbers = [message["id"] for message in answered["messages"]]
    last = max([*numbers, turn["answer_id"] or 0, turn["message_id"] or 0])
    await services.sessions.fork(tenant, session_id, before=last + 1, new_session_id=new_session_id)


async def _discard_copy(services: Services, tenant: str, session_id: str, turn_id: str) -> None:
    """Removes a copy that is nobody's, since its turn was not begun: neither now nor by an attempt that was lost."""
    try:
        if not await services.sessions.get(tenant, session_id).has_begun(turn_id, None):
            await services.sessions.delete(tenant, session_id)
    except DurableError as error:  # what kept the turn from being begun is told
        logger.warning("tenant=%s a copy of a session is left over: %s", tenant, error)


async def _answer_directly(services: Services, tenant: str, model: str, body: NewResponse, asker: str) -> Response:
    search = body.file_search
    system_prompt = services.tenants[tenant].model.system_prompt
    specs, choice = checked([tool.spec() for tool in body.functions], body.function_choice)
    messages = items.for_model(body.input, body.instructions, system_prompt)
    query = next((message.content for message in reversed(messages) if message.role == "user"), "")
    name = response_id(f"s{secrets.token_hex(16)}", new_turn_id())
    request: dict[str, Any] = {
        "client": body.request(query),
        "instructions": body.instructions,
        "options": body.options.given(),
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
    }
    told = ResponseEvents(
        blank(name, model, created_at=time.time(), request=request),
        queries=None if search is None else [query],
        shows_results=request["client"]["shows_results"],
    )
    events = await ask_model(
        services,
        DirectQuestion(
            tenant=tenant,
            messages=messages,
            tools=specs,
            tool_choice=choice,
            max_tokens=body.max_output_tokens,
            temperature=body.temperature,
            options=body.options,
            retrieve=search is not None,
            top_k=None if search is None else search.max_num_results,
            asker=asker,
        ),
    )
    if body.stream:
        return _streamed(events, told, NONE_SEEN)
    async for event in events:
        told.take(event)
    response = told.response()
    return reply({**response, "completed_at": time.time() if response["status"] == "completed" else None})
