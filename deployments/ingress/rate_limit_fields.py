"""How does each response say what its client may still do?

By the fields `RateLimit-Policy` and `RateLimit`, on every response to a caller whose key is known: answers, streams and
errors alike. They are added where a response leaves, from what was noted of its request. Only the policies are told
where the buckets were not asked: the key lacks the scope, or their owner can't be reached.
"""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
    verdict: Verdict | None = scope.get("state", {}).get(_STATE)
    if verdict is None or not verdict.quota.policy_field:
        return  # nobody is known, or nothing limits them
    yield POLICY_FIELD, verdict.quota.policy_field
    if verdict.decision is not None:
        yield LEFT_FIELD, verdict.quota.left_field(verdict.decision)
