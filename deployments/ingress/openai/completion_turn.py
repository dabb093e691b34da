"""How does a completion become a turn of a session?

What was said before is in the session, so the last message of the client counts alone; or, where its own functions were
called, their results at the end. The next turn goes on with those if each call that waits in the session has one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request

from actors.message import NewMessage
from deployments.idempotency import Outcome
from deployments.ingress.access import asker_of
from deployments.ingress.chat import ask, begin, outcome_of
from deployments.ingress.idempotency import outcome_soon
from deployments.ingress.openai.client_calls import beginning, turn_to_follow, waiting_in
from deployments.ingress.services import services_of
from deployments.question import Asked, Question, new_turn_id


async def ask_in_session(
    request: Request,
    question: Question,
    session_id: str,
    given: Sequence[NewMessage],
    payload: Callable[[], Any],
    key: str | None,
) -> Asked:
    """Begins the turn, or finds the one that the same request has begun.

    Args:
        question: How it is to be answered.
        given: Results of calls, and the user's message; one of both at least.
        payload: Gives what makes the request another one, as plain data.

    Raises:
        Refused: a result whose call does not wait for it, or a call that is left without one.
        TurnConflict: an answer is under way, and this one may not wait for it.
        IdempotencyKeyReused, IdempotencyKeyBusy: as `ask`.
    """
    services, tenant = services_of(request), question.tenant
    brings_results = given[-1]["role"] == "tool"
    if len(given) == 1 and not brings_results:
        return await ask(request, replace(question, message=given[0]["content"], session_id=session_id), key)

    async def work(turn_id: str) -> Outcome:
        follows = await turn_to_follow(services, tenant, session_id, turn_id) if brings_results else None
        waiting = await waiting_in(services, tenant, session_id, turn_id)
        # In front of the user's message, what does not wait was said before, and is in the session.
        taken = [one for one in given if brings_results or one.get("data", {}).get("tool_call_id") in (None, *waiting)]
        message, leading, result_of = beginning(taken, waiting, "messages")
        asked = await begin(
            services,
            replace(
                question,
                message=message,
                leading=leading,
                result_of=result_of,
                session_id=session_id,
                turn_id=turn_id,
                follows=follows,
                asker=asker_of(request, request.state.caller),
            ),
            key,
        )
        return outcome_of(asked)

    if key is None:
        return Asked(**(await work(new_turn_id())).content, joined=False)
    # Names a request within its session, as a key does that the session itself keeps.
    named = f"{key} in {session_id}"
    outcome = await outcome_soon(request, tenant, named, payload(), plan=new_turn_id(), work=work)
    return Asked(**outcome.content, joined=outcome.replayed)
