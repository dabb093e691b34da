"""/ratelimit: a client's token buckets."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import Field

from actors.bucket import when_full
from actors.runtime.object_id import STEM_BYTES_MAX
from deployments.errors import QuotaExceeded
from deployments.ingress import replies
from deployments.ingress.access import Caller, guarded_by, requester_of
from deployments.ingress.fields import Body, Text
from deployments.ingress.problem import problem_of
from deployments.ingress.rate_limit_fields import note_limits
from deployments.ingress.replies import reply
from deployments.ingress.services import services_of

# Routes of the limiter itself cost nothing: asking what is left must not use it up.
router = APIRouter(route_class=guarded_by(None, None), prefix="/ratelimit", tags=["rate limit"])
resetting = APIRouter(route_class=guarded_by("admin", None), prefix="/ratelimit", tags=["rate limit"])

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
    """Takes tokens from the caller's buckets, for work that the caller does elsewhere."""
    cost = 1.0 if body is None else body.cost
    verdict = await services_of(request).limiter.check(requester_of(request, caller), "check", cost)
    note_limits(request, verdict)
    told = {"allowed": verdict.allowed, "remaining": verdict.remaining, "retry_after_s": verdict.retry_after_s}
    if verdict.allowed:
        return reply(told)
    answer = reply(told, 429)
    answer.headers["Retry-After"] = problem_of(QuotaExceeded(verdict.retry_after_s, ())).headers["Retry-After"]
    return answer


@router.get("/usage", response_model=replies.RateLimitUsage)
async def usage(request: Request, caller: Caller) -> Response:
    """What the caller's buckets hold, and what its tenant's budgets do. Takes nothing."""
    services = services_of(request)
    used = await services.limiter.usage(requester_of(request, caller))
    left = await services.allowances.left(caller.tenant, used.client)
    note_limits(request, used.verdict)
    return reply(
        {
            "client": used.client,
            "remaining": used.verdict.remaining,
            "policies": [
                {
                    "name": policy.name,
                    "capacity": policy.capacity,
                    "refill_per_second": policy.refill_per_second,
                    "remaining": state.tokens,
                    "full_after_s": None if (full_at := when_full(state)) is None else full_at - state.updated_at,
                    "routes": policy.routes,
                    "shadow": policy.shadow,
                }
                for policy, state in used.policies
            ],
            **left,
        }
    )


@resetting.post("/reset", status_code=204)
async def reset(request: Request, caller: Caller, body: Reset | None = None) -> Response:
    """Fills all buckets of one of the tenant's clients. Answered when that holds everywhere."""
    services = services_of(request)
    requester = requester_of(request, caller)
    client = body.client if body is not None and body.client else services.limiter.client_of(requester)
    await services.limiter.reset(caller.tenant, client)
    await services.limit_changes.announce(caller.tenant, client)
    return Response(status_code=204)
