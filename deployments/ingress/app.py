"""What is the HTTP interface, as a whole? The routes, the limits before them, and the errors behind them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from deployments.ingress import admin, chat, documents, health, key_value, problem, ratelimit, sessions
from deployments.ingress.body_limit import BodyLimit
from deployments.ingress.replies import Problem
from deployments.ingress.services import Services

_PROBLEM: dict[str, Any] = {"content": {problem.MEDIA_TYPE: {"schema": Problem.model_json_schema()}}}
#: What any authenticated route may answer.
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"description": "no known API key", **_PROBLEM},
    403: {"description": "the key lacks the scope", **_PROBLEM},
    404: {"description": "no such thing, or not the tenant's", **_PROBLEM},
    413: {"description": "the body is too large", **_PROBLEM},
    422: {"description": "a field is not as it must be; the body names it", **_PROBLEM},
    429: {"description": "the client's rate limit is used up for now; Retry-After says how long", **_PROBLEM},
    503: {"description": "a part is busy or restarting; Retry-After says how long", **_PROBLEM},
}

_ROUTERS = (
    sessions.router,
    chat.router,
    documents.router,
    documents.searching,
    key_value.router,
    ratelimit.router,
    ratelimit.resetting,
    admin.router,
)


def build(services: Services) -> FastAPI:
    """The ASGI app of one ingress replica."""
    app = FastAPI(
        title="Mobula",
        summary="Multi-tenant chat, retrieval and rate limits on durable objects.",
        version="0.1.0",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    app.state.services = services
    problem.install(app)
    app.add_middleware(BodyLimit, size_bytes_max=services.config.limits.body_bytes_max, of_path=admin.body_bytes_max)
    app.include_router(health.router)
    for router in _ROUTERS:
        app.include_router(router, responses=_PROBLEMS)
    _describe_keys(app)
    return app


def _describe_keys(app: FastAPI) -> None:
    """Has the documentation ask for a key; the routes check it themselves."""
    schema = app.openapi()
    schema.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        if path not in ("/healthz", "/readyz"):
            for operation in operations.values():
                operation["security"] = [{"key": []}]
