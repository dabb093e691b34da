"""/healthz and /readyz: is this process alive, and can it reach what it needs?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from fastapi import APIRouter, Request, Response

from deployments.ingress import replies
from deployments.ingress.replies import reply
from deployments.ingress.services import services_of

router = APIRouter(tags=["health"])

#: A part that takes longer counts as not reachable.
PART_TIMEOUT_S = 5.0


@router.get("/healthz", response_model=replies.Health)
async def alive() -> Response:
    return reply({"status": "ok"})


@router.get(
    "/readyz",
    response_model=replies.Readiness,
    responses={503: {"model": replies.Readiness, "description": "a part can't be reached"}},
)
async def ready(request: Request) -> Response:
    """Every part reachable: the objects' hosts, the model, the embedding model, and the vectors."""
    services = services_of(request)
    asked = {
        "objects": services.objects.ready(),
        "chat and model": services.chat.ready(),
        "ingest and embedding": services.ingest.ready.remote(),
        "search and vectors": services.search.ready.remote(),
    }
    problems = await asyncio.gather(*[_problem_of(part) for part in asked.values()])
    failing = {part: problem for part, problem in zip(asked, problems, strict=True) if problem}
    if failing:
        answer = reply({"status": "unavailable", "failing": failing}, 503)
        answer.headers["Retry-After"] = "1"
        return answer
    return reply({"status": "ok", "failing": {}})


async def _problem_of(part: Awaitable[object]) -> str:
    try:
        async with asyncio.timeout(PART_TIMEOUT_S):
            await part
    except TimeoutError:
        return f"no answer within {PART_TIMEOUT_S:g} s"
    except Exception as error:  # whatever keeps a part from answering is what is asked for here
        return type(getattr(error, "cause", None) or error).__name__
    return ""
