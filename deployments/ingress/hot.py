"""Which routes are asked so often that FastAPI's way to their handlers is too long?

A check of a bucket, a session's messages, added and read, and a question, whose first word somebody waits for. FastAPI
goes through its middleware and all routes, and then takes longer to find out what a handler takes than the handler
does. `HotApp` leads to the same handlers, behind the same `Access`, with the same types of fields and the same
problems. What it does not know, such as another kind of body or an unusual query, goes FastAPI's way, which also
describes these routes.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias, TypeVar

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send

from deployments.errors import BodyTooLarge
from deployments.ingress import chat, ratelimit, sessions
from deployments.ingress.access import Guard, guard_of
from deployments.ingress.body_limit import CountedBody, declares_more
from deployments.ingress.idempotency import key_of
from deployments.ingress.rate_limit_fields import add_limits
from deployments.keyring import Principal

Body = TypeVar("Body")
Model = TypeVar("Model", bound=BaseModel)

#: Reads what the handler takes, and calls it.
Handle: TypeAlias = Callable[[Request, Principal], Awaitable[Response]]

_NO_QUERY: Final = re.compile(rb"")
_LIMIT: Final = re.compile(rb"(?:limit=(?:1000|[1-9][0-9]{0,2}))?")
_JSON: Final = b"application/json"


class HotRoute(BaseRoute):
    """One of them. As a route of the app it is there for its name alone, which Serve's metrics have.

    Args:
        method: of the requests.
        path: as FastAPI writes it.
        query: all queries that it knows.
        guard: stands before it.
        handle: answers.
    """

    def __init__(self, method: str, path: str, query: re.Pattern[bytes], guard: Guard, handle: Handle) -> None:
        self.path = path
        self._method = method
        self._path = re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", path))
        self._query = query
        self._guard = guard
        self._handle = handle

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        found = self.find(scope) if scope["type"] == "http" else None
        return (Match.NONE, {}) if found is None else (Match.FULL, {"path_params": found.groupdict()})

    def find(self, scope: Scope) -> re.Match[str] | None:
        """None if the request is another route's, or is to go FastAPI's way."""
        if scope["method"] != self._method or (found := self._path.fullmatch(scope["path"])) is None:
            return None
        is_known = self._query.fullmatch(scope["query_string"]) and (self._method == "GET" or _is_json(scope))
        return found if is_known else None

    async def respond(self, request: Request) -> Response:
        caller = request.state.caller = await self._guard(request)
        return await self._handle(request, caller)


class HotApp(FastAPI):
    """An app that answers its hot routes before anything else of it is asked.

    `hot`: those routes. `body_bytes_max`: of their requests.
    """

    hot: tuple[HotRoute, ...] = ()
    body_bytes_max: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for route in self.hot:
                if (found := route.find(scope)) is not None:
                    scope["app"], scope["path_params"] = self, found.groupdict()
                    await self._answer(route, scope, receive, send)
                    return
        await super().__call__(scope, receive, send)

    async def _answer(self, route: HotRoute, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, CountedBody(receive, self.body_bytes_max), send)
        try:
            if declares_more(scope, self.body_bytes_max):
                raise BodyTooLarge(self.body_bytes_max)
            response = await route.respond(request)
        except Exception as error:  # the app has a handler of whatever it is
            handlers = self.exception_handlers
            told = next(handlers[kind] for kind in type(error).__mro__ if kind in handlers)(request, error)
            assert not isinstance(told, Response)
            response = await told
        add_limits(request, response)
        await response(scope, receive, send)


def install(app: HotApp, body_bytes_max: int) -> None:
    messages = "/chat/sessions/{session_id}/messages"
    app.hot = (
        HotRoute("POST", "/ratelimit/check", _NO_QUERY, guard_of(ratelimit.router, ratelimit.check), _check),
        HotRoute("POST", "/chat", _NO_QUERY, guard_of(chat.router, chat.answer), _chat),
        HotRoute("POST", messages, _NO_QUERY, guard_of(sessions.router, sessions.append), _append),
        HotRoute("GET", messages, _LIMIT, guard_of(sessions.router, sessions.history), _history),
    )
    app.body_bytes_max = body_bytes_max
    app.router.routes[:0] = app.hot


async def _check(request: Request, caller: Principal) -> Response:
    content = await request.body()
    found = _parsed(content) if content else None
    body = None if found is None else _validated(_as(ratelimit.Check), found)
    return await ratelimit.check(request, caller, body)


async def _chat(request: Request, caller: Principal) -> Response:
    body = _validated(chat.question_or_chat, await _required(request))
    return await chat.answer(request, caller, body, key_of(request))


async def _append(request: Request, caller: Principal) -> Response:
    body = _validated(_as(sessions.NewMessage), await _required(request))
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


async def _required(request: Request) -> Any:
    """JSON that has to be there. Refuses as FastAPI does."""
    content = await request.body()
    if not content:
        raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    return _parsed(content)


def _parsed(content: bytes) -> Any:
    """JSON. Refuses as FastAPI does."""
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        problem = {"type": "json_invalid", "loc": ("body", error.pos), "msg": "JSON decode error", "input": {}}
        raise RequestValidationError([{**problem, "ctx": {"error": error.msg}}]) from error
    except Exception as error:  # bytes in no encoding that JSON may have, or nested too deep
        raise HTTPException(400, "There was an error parsing the body") from error


def _as(model: type[Model]) -> Callable[[Any], Model]:
    return functools.partial(model.model_validate, from_attributes=True)


def _validated(validate: Callable[[Any], Body], found: Any) -> Body:
    """The same."""
    try:
        return validate(found)
    except ValidationError as error:
        problems: list[Any] = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(problems) from error
