"""How does each response say what its client may still do?

By the fields `RateLimit-Policy` and `RateLimit`, on every response to a caller whose key is known: answers, streams and
errors alike. They are added where a response leaves, from what was noted of its request. Only the policies are told
where the buckets were not asked: the key lacks the scope, their owner can't be reached, or the request was answered
before anybody looked at its key.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import Unauthorized
from deployments.ingress.services import services_of
from deployments.limiter import Verdict

POLICY_FIELD = "RateLimit-Policy"
LEFT_FIELD = "RateLimit"
_STATE = "limits"


def note_limits(request: Request, verdict: Verdict) -> None:
    """To be told with the response."""
    setattr(request.state, _STATE, verdict)


def add_limits(request: Request, response: Response) -> None:
    """For a response that leaves by a way around `RateLimitFields`."""
    for name, value in _fields(request.scope):
        response.headers[name] = value


class RateLimitFields:
    """ASGI middleware: adds the fields."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_fields(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(name.lower().encode(), value.encode()) for name, value in _fields(scope)]
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        await self._app(scope, receive, with_fields)


def _fields(scope: Scope) -> Iterator[tuple[str, str]]:
    verdict: Verdict | None = scope.get("state", {}).get(_STATE) or _of_all(scope)
    if verdict is None or not verdict.quota.policy_field:
        return  # nobody is known, or nothing limits them
    yield POLICY_FIELD, verdict.quota.policy_field
    if verdict.decision is not None:
        yield LEFT_FIELD, verdict.quota.left_field(verdict.decision)


def _of_all(scope: Scope) -> Verdict | None:
    """For what was answered before its route was known, such as 404, 405 and 413: all that limits the key's tenant."""
    request = Request(scope)
    services = services_of(request)
    try:
        principal = services.keyring.authenticate(request.headers.get("authorization"))
    except Unauthorized:
        return None
    return Verdict(allowed=True, quota=services.limiter.quotas_of(principal.tenant).everything, decision=None)
