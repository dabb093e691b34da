"""How is an error told to a client of OpenAI's API?

As OpenAI does: `{"error": {"message", "type", "param", "code"}}`, made from the same problem that any other client is
told. What is wrong with a request is 400 here, where it is 422 elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from pydantic_core import to_json

from deployments.errors import RequestError
from deployments.ingress.problem import ProblemResponse

PREFIX = "/v1/"
_RESPONSES = "/v1/responses"
_INVALID = "invalid_request_error"
_SERVER = "server_error"
#: The type and the code by which clients know what is told with a status.
_KINDS: dict[int, tuple[str, str | None]] = {
    401: (_INVALID, "invalid_api_key"),
    403: (_INVALID, "missing_scope"),
    409: (_INVALID, "conflict"),
    413: (_INVALID, "request_too_large"),
    429: ("requests", "rate_limit_exceeded"),
    503: (_SERVER, "service_unavailable"),
    504: (_SERVER, "timeout"),
}
#: Problems that OpenAI's clients know as 400.
_BAD_REQUESTS = frozenset({410, 422})
#: Of a problem's headers; the others belong to its body.
_KEPT_HEADERS = ("retry-after", "www-authenticate", "allow")


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorBody


class Refused(RequestError):
    """A request that is refused in a client's own words: `param` is what is at fault, `code` how clients know it."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message, param, code, status)
        self.message = message
        self.param = param
        self.code = code
        self.status = status


def error_body(message: str, *, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind, usual_code = _KINDS.get(status, (_SERVER if status >= 500 else _INVALID, None))
    return {"error": {"message": message, "type": kind, "param": param, "code": code or usual_code}}


def told(path: str, problem: ProblemResponse) -> Response:
    """A problem, in the form that who asked for the path expects."""
    if not path.startswith(PREFIX):
        return problem
    said = problem.problem
    status = 400 if said["status"] in _BAD_REQUESTS else said["status"]
    field, code = said["errors"][0]["field"] if "errors" in said else None, said.get("code") or None
    if field == "message":
        # What a turn calls what it was asked.
        field = "input" if path.startswith(_RESPONSES) else "messages"
    body = error_body(said["detail"], status=status, param=None if field == "body" else field, code=code)
    headers = {name: problem.headers[name] for name in _KEPT_HEADERS if name in problem.headers}
    return _response(status, body, headers)


def install(app: FastAPI) -> None:
    """Has what this package refuses answered from here."""

    async def on_refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        body = error_body(error.message, status=error.status, param=error.param, code=error.code)
        return _response(error.status, body, {})

    app.add_exception_handler(Refused, on_refused)


def _response(status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    return Response(to_json(body), status, headers=dict(headers), media_type="application/json")


def errors(descriptions: Mapping[int, str]) -> dict[int | str, dict[str, Any]]:
    """Errors that routes may answer, by status, for the documentation."""
    return {status: {"model": Error, "description": description} for status, description in descriptions.items()}
