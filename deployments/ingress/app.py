"""What is the HTTP interface, as a whole? The routes, the limits before them, and the errors behind them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from deployments.ingress import (
    admin,
    chat,
    documents,
    health,
    hot,
    key_value,
    problem,
    ratelimit,
    reloading,
    sessions,
    turns,
    ui_chat,
    usage,
)
from deployments.ingress.body_limit import BodyLimit
from deployments.ingress.hot import HotApp
from deployments.ingress.openai import completions, conversations, embeddings, models, responses
from deployments.ingress.openai import errors as openai_errors
from deployments.ingress.rate_limit_fields import RateLimitFields
from deployments.ingress.replies import problems
from deployments.ingress.services import Services

#: What any authenticated route may answer.
_REFUSALS = {
    401: "no known API key",
    403: "the key lacks the scope",
    404: "no such thing, or not the tenant's",
    413: "the body is too large",
    429: "the client's rate limit is used up for now; Retry-After says how long",
    503: "a part is busy or restarting; Retry-After says how long",
}
_MALFORMED = "a field is not as it must be; the body names it"
_PROBLEMS = problems({**_REFUSALS, 422: _MALFORMED})
_OPENAI_ERRORS = openai_errors.errors({**_REFUSALS, 400: _MALFORMED})

_ROUTERS = (
    sessions.router,
    chat.router,
    ui_chat.router,
    turns.router,
    usage.router,
    documents.ingesting,
    documents.router,
    documents.searching,
    key_value.router,
    ratelimit.router,
    ratelimit.resetting,
    admin.router,
    reloading.router,
)

_OPENAI_ROUTERS = (
    completions.router,
    models.router,
    embeddings.router,
    conversations.router,
    responses.router,
    responses.kept,
)


def build(services: Services) -> HotApp:
    """The ASGI app of one ingress replica."""
    app = HotApp(
        title="Mobula",
        summary="Multi-tenant chat, retrieval and rate limits on durable objects.",
        version="0.1.0",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=_lifespan,
    )
    app.state.services = services
    problem.install(app, openai_errors.told)
    openai_errors.install(app)
    app.add_middleware(
        BodyLimit,
        size_bytes_max=services.config.limits.body_bytes_max,
        of_path=admin.body_bytes_max,
        told=openai_errors.told,
    )
    # Last, and so around all others.
    app.add_middleware(RateLimitFields)
    app.include_router(health.router)
    for router in _ROUTERS:
        app.include_router(router, responses=_PROBLEMS)
    for router in _OPENAI_ROUTERS:
        app.include_router(router, responses=_OPENAI_ERRORS)
    _describe(app)
    hot.install(app, services.config.limits.body_bytes_max)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """What goes on beside the requests, for as long as the replica lives."""
    services: Services = app.state.services
    tasks = [asyncio.create_task(work) for work in services.beside_requests()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _describe(app: FastAPI) -> None:
    """Has the documentation ask for a key; the routes check it themselves. OpenAI's clients know no 422."""
    schema = app.openapi()
    schema.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        if path not in ("/healthz", "/readyz"):
            for operation in operations.values():
                operation["security"] = [{"key": []}]
                if path.startswith(openai_errors.PREFIX):
                    operation["responses"].pop("422", None)
