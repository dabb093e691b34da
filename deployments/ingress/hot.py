"""Which routes are asked so often that FastAPI's way to their handlers is too long?

A check of a bucket, and a session's messages, added and read. FastAPI looks through all routes, twice, and then takes
longer to find out what a handler takes than the handler does. `HotRoutes` stands before its routes and leads to the
same handlers, behind the same `Access`, with the same types of fields and the same problems. What it does not know,
such as another kind of body or an unusual query, goes FastAPI's way, which also describes these routes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from deployments.ingress import ratelimit, sessions
from deployments.ingress.access import Guard, guard_of
from deployments.ingress.idempotency import key_of
from deployments.keyring import Principal

Model = TypeVar("Model", bound=BaseModel)

#: Reads what the handler takes, and calls it.
Handle: TypeAlias = Callable[[Request, Principal], Awaitable[Response]]

_MESSAGES = re.compile(r"/chat/sessions/(?P<session_id>[^/]+)/messages")
_LIMIT = re.compile(rb"limit=(?:1000|[1-9][0-9]{0,2})")
_JSON = b"application/json"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Hot:
    guard: Guard
    handle: Handle


class HotRoutes(BaseRoute):
    """The routes, as one of Starlette's."""

    def __init__(self) -> None:
        self._check = _Hot(guard=guard_of(ratelimit.router, ratelimit.check), handle=_check)
        self._append = _Hot(guard=guard_of(sessions.router, sessions.append), handle=_append)
        self._history = _Hot(guard=guard_of(sessions.router, sessions.history), handle=_history)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and (found := self._find(scope)) is not None:
            hot, path_params = found
            return Match.FULL, {"endpoint": hot, "path_params": path_params}
        return Match.NONE, {}

    def _find(self, scope: Scope) -> tuple[_Hot, Mapping[str, str]] | None:
        path, method, query = scope["path"], scope["method"], scope["query_string"]
        if path == "/ratelimit/check":
            return (self._check, {}) if method == "POST" and not query and _is_json(scope) else None
        match = _MESSAGES.fullmatch(path)
        if match is None:
            return None
        if method == "GET":
            return (self._history, match.groupdict()) if not query or _LIMIT.fullmatch(query) else None
        return (self._append, match.groupdict()) if method == "POST" and not query and _is_json(scope) else None

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        hot: _Hot = scope["endpoint"]
        caller = request.state.caller = await hot.guard(request)
        response = await hot.handle(request, caller)
        await response(scope, receive, send)


def install(app: FastAPI) -> None:
    app.router.routes.insert(0, HotRoutes())


async def _check(request: Request, caller: Principal) -> Response:
    content = await request.body()
    found = _parsed(content) if content else None
    body = None if found is None else _validated(ratelimit.Check, found)
    return await ratelimit.check(request, caller, body)


async def _append(request: Request, caller: Principal) -> Response:
    content = await request.body()
    if not content:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    body = _validated(sessions.NewMessage, _parsed(content))
    return await sessions.append(request, caller, request.path_params["session_id"], body, key_of(request))


async def _history(request: Request, caller: Principal) -> Response:
    _, _, limit = request.scope["query_string"].partition(b"=")
    session_id = request.path_params["session_id"]
    return await (
        sessions.history(request, caller, session_id, int(limit))
        if limit
        else sessions.history(request, caller, session_id)
    )


def _is_json(scope: Scope) -> bool:
    return any(name == b"content-type" and value == _JSON for name, value in scope["headers"])


def _parsed(content: bytes) -> Any:
    """JSON. Refuses as FastAPI does."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        problem = {"type": "json_invalid", "loc": ("body", error.pos), "msg": "JSON decode error", "input": {}}
        raise RequestValidationError([{**problem, "ctx": {"error": error.msg}}]) from error
    except Exception as error:  # bytes in no encoding that JSON may have, or nested too deep
        raise HTTPException(400, "There was an error parsing the body") from error


def _validated(model: type[Model], found: Any) -> Model:
    """The same."""
    try:
        return model.model_validate(found, from_attributes=True)
    except ValidationError as error:
        problems: list[Any] = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(problems) from error
