"""/ratelimit: a client's token bucket."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field

from actors.runtime.object_id import STEM_BYTES_MAX
from deployments.errors import QuotaExceeded
from deployments.ingress import replies
from deployments.ingress.access import Caller, guarded_by, requester_of
from deployments.ingress.fields import Body, Text
from deployments.ingress.problem import problem_of
from deployments.ingress.replies import reply
from deployments.ingress.services import services_of

# Routes of the limiter itself cost nothing: asking what is left must not use it up.
router = APIRouter(route_class=guarded_by(None, cost=0), prefix="/ratelimit", tags=["rate limit"])
resetting = APIRouter(route_class=guarded_by("admin", cost=0), prefix="/ratelimit", tags=["rate limit"])

COST_MAX = 1_000_000_000


class Check(Body):
    cost: Annotated[float, Field(ge=0, le=COST_MAX)] = 1.0


class Reset(Body):
    client: Annotated[Text, Field(min_length=1, max_length=STEM_BYTES_MAX)] | None = Field(
        default=None, description="as /ratelimit/usage names it; the caller's own if left out"
    )


@router.post(
    "/check",
    response_model=replies.RateLimitDecision,
    responses={429: {"model": replies.RateLimitDecision, "description": "not allowed; Retry-After says when"}},
)
async def check(request: Request, caller: Caller, body: Check | None = None) -> Response:
    """Takes tokens from the caller's bucket, for work that the caller does elsewhere."""
    cost = 1.0 if body is None else body.cost
    decision = await services_of(request).limiter.check(requester_of(request, caller), cost)
    if decision.allowed:
        return reply(decision._asdict())
    denied = problem_of(QuotaExceeded(decision.retry_after_s))
    answer = reply(decision._asdict(), 429)
    answer.headers["Retry-After"] = denied.headers["Retry-After"]
    return answer


@router.get("/usage", response_model=replies.RateLimitUsage)
async def usage(request: Request, caller: Caller) -> Response:
    """What the caller's bucket holds, and what its tenant's budgets do. Takes nothing."""
    services = services_of(request)
    held = await services.limiter.usage(requester_of(request, caller))
    left = await services.allowances.left(caller.tenant, held.client)
    return reply({**dataclasses.asdict(held), **left})


@resetting.post("/reset", status_code=204)
async def reset(request: Request, caller: Caller, body: Reset | None = None) -> Response:
    """Fills a bucket of the tenant's."""
    limiter = services_of(request).limiter
    client = body.client if body is not None and body.client else limiter.client_of(requester_of(request, caller))
    await limiter.reset(caller.tenant, client)
    return Response(status_code=204)
