"""How is an error told to an HTTP client?

As `application/problem+json` (RFC 9457), by one table from error class to status. What an error says comes from its
fields, never from the text of an exception of somebody else's, and an error that is not in the table is answered 500
without a word of its inside.
"""

from __future__ import annotations

import http
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.exceptions import HTTPException

from actors import DurableError, InvalidArgument, ObjectConflict, ObjectNotFound, ObjectQuarantined
from deployments.document_errors import DocumentError, DocumentTooLarge
from deployments.errors import (
    BodyTooLarge,
    BudgetExceeded,
    BudgetTooSmall,
    EventsGone,
    Forbidden,
    IdempotencyKeyBusy,
    IdempotencyKeyMalformed,
    IdempotencyKeyReused,
    ModelRefused,
    ModelTimeout,
    QuotaExceeded,
    ServiceError,
    TooManyTurns,
    TurnConflict,
    Unauthorized,
)
from deployments.ingress.rate_limit_fields import add_limits

logger = logging.getLogger("mobula.ingress")

MEDIA_TYPE = "application/problem+json"
QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
QUOTA_EXCEEDED_TITLE = "Request cannot be satisfied as assigned quota has been exceeded"
#: What OpenAI's clients know a budget by that is used up; another word for one that never was enough.
INSUFFICIENT_QUOTA = "insufficient_quota"
BUDGET_TOO_SMALL = "budget_too_small"
REDUCED_CAPACITY = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
# A URI that nobody can mistake for a page: RFC 9457 wants `tag:` where there is none to show.
OBJECT_QUARANTINED = "tag:mobula,2025:object-quarantined"
VALUE_CHARS_MAX = 80
VALIDATION_ERRORS_MAX = 20
RETRY_AFTER_DEFAULT_S = 1.0


class ProblemResponse(Response):
    """A problem, which may yet be told in another form."""

    def __init__(self, problem: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        super().__init__(to_json(problem), problem["status"], headers=dict(headers), media_type=MEDIA_TYPE)
        self.problem = problem


#: How a problem is told to who asked for a path.
Telling: TypeAlias = Callable[[str, ProblemResponse], Response]


def problem(
    status: int,
    detail: str,
    *,
    problem_type: str = "about:blank",
    title: str | None = None,
    retry_after_s: float | None = None,
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> ProblemResponse:
    """A problem response. `more` are members of the body beside those of the RFC."""
    body = {
        "type": problem_type,
        "title": title or http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **(more or {}),
    }
    all_headers = dict(headers or {})
    if retry_after_s is not None:
        # Whole seconds, up: sooner would be refused again.
        all_headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    return ProblemResponse(body, all_headers)


def problem_of(error: Exception) -> ProblemResponse:
    """The table."""
    if isinstance(error, RayTaskError):
        # What a deployment raised arrives as a mixture of Ray's class and its own.
        error = error.cause if isinstance(error.cause, Exception) else error
    match error:
        case Unauthorized():
            headers = {"WWW-Authenticate": 'Bearer realm="mobula"'}
            return problem(401, "a known API key is needed: Authorization: Bearer <key>", headers=headers)
        case Forbidden():
            return problem(403, f"the key lacks the scope {error.scope!r}", more={"scope": error.scope})
        case ObjectNotFound():
            return problem(404, "there is no such thing, or it is not yours")
        case ObjectConflict():
            return problem(409, "the object is there already, or has calls under way that this would disturb")
        case TurnConflict():
            return problem(409, "an answer is under way, and the message may not wait for it, or too many wait already")
        case EventsGone():
            return problem(410, "the turn's events are no longer kept; its messages are in the session's history")
        case BodyTooLarge():
            return problem(413, f"a body has at most {error.size_bytes_max} bytes")
        case InvalidArgument():
            return invalid([{"field": error.field, "problem": error.problem, "value": error.value}], error.code)
        case ModelRefused():
            return problem(422, f"the model refused: {error.problem}", more={"code": error.code})
        case QuotaExceeded():
            return problem(
                429,
                "this client's rate limit is used up for now",
                problem_type=QUOTA_EXCEEDED,
                title=QUOTA_EXCEEDED_TITLE,
                retry_after_s=error.retry_after_s,
                more={"violated-policies": list(error.policies)},
            )
        case TooManyTurns() | BudgetExceeded():
            return problem(
                429,
                str(error),
                problem_type=QUOTA_EXCEEDED,
                title=QUOTA_EXCEEDED_TITLE,
                retry_after_s=error.retry_after_s,
                more={
                    "violated-policies": list(error.policies),
                    **({"code": INSUFFICIENT_QUOTA} if isinstance(error, BudgetExceeded) else {}),
                },
            )
        case BudgetTooSmall():
            # Not 429: to wait would not help, and clients wait by themselves.
            more = {"violated-policies": list(error.policies), "code": BUDGET_TOO_SMALL}
            return problem(422, f"{error}: ask for less, or for fewer max_tokens", more=more)
        case IdempotencyKeyMalformed():
            return problem(400, f"Idempotency-Key: {error.problem}")
        case IdempotencyKeyReused():
            value = ascii(error.key)[1:-1][:VALUE_CHARS_MAX]
            return invalid([{"field": "Idempotency-Key", "problem": "was used for another request", "value": value}])
        case IdempotencyKeyBusy():
            return problem(
                409,
                "Idempotency-Key: the first request with this key is still under way",
                retry_after_s=error.retry_after_s,
            )
        case DocumentTooLarge():
            return problem(413, f"{error.name}: {error.problem}")
        case DocumentError() if not error.retryable:
            return problem(422, f"{error.name}: {error.problem}")
        case ModelTimeout():
            return problem(504, f"the model gave no whole answer within {error.timeout_s:g} s")
        case ObjectQuarantined():
            # Without Retry-After: it ends when somebody has looked, and no clock says when.
            return problem(
                503,
                "what this request needs has failed again and again, and is set aside until somebody has looked at it; "
                "the request was not carried out",
                problem_type=OBJECT_QUARANTINED,
                title="Set Aside After Repeated Failures",
            )
        case DurableError() | ServiceError() | DocumentError() if error.retryable:
            return unavailable(error.retry_after_s)
        case BackPressureError() | DeploymentUnavailableError() | RayError() if not isinstance(error, RayTaskError):
            return unavailable(RETRY_AFTER_DEFAULT_S)
    logger.error("unexpected error", exc_info=error)
    return problem(500, "an error of the service's own; it has been logged")


def unavailable(retry_after_s: float | None) -> ProblemResponse:
    return problem(
        503,
        "a part of the service is busy or restarting; nothing is wrong with the request",
        problem_type=REDUCED_CAPACITY,
        retry_after_s=retry_after_s or RETRY_AFTER_DEFAULT_S,
    )


def invalid(errors: Sequence[Mapping[str, Any]], code: str | None = None) -> ProblemResponse:
    """422, naming each field with its value."""
    first = errors[0]
    more = {"errors": list(errors), **({} if code is None else {"code": code})}
    return problem(422, f"{first['field']}: {first['problem']}", more=more)


def _validation_problem(error: RequestValidationError) -> ProblemResponse:
    errors = []
    for found in error.errors()[:VALIDATION_ERRORS_MAX]:
        # The first part says where the field is: body, query, path or header. What follows it where the body is no JSON
        # is a position.
        names = () if found["type"] == "json_invalid" else found["loc"][1:]
        field = ".".join(str(name) for name in names) or str(found["loc"][0])
        # ascii() also of what can't be encoded, such as half of a surrogate pair.
        value = ascii(found.get("input"))
        if len(value) > VALUE_CHARS_MAX:
            value = value[: VALUE_CHARS_MAX - 3] + "..."
        errors.append(
            {
                "field": field.encode("ascii", "backslashreplace").decode(),
                "problem": found["msg"].removeprefix("Value error, "),
                "value": value,
            }
        )
    return invalid(errors)


def as_it_is(_: str, told: ProblemResponse) -> Response:
    return told


def install(app: FastAPI, told: Telling = as_it_is) -> None:
    """Has every error of the app answered from here."""

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return told(request.url.path, _validation_problem(error))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 400:
            # What FastAPI and Starlette say of a body that they can't parse, and of nothing else.
            found = invalid([{"field": "body", "problem": str(error.detail), "value": ""}])
        else:
            found = problem(error.status_code, str(error.detail), headers=error.headers)
        return told(request.url.path, found)

    async def on_any(request: Request, error: Exception) -> Response:
        return told(request.url.path, problem_of(error))

    async def on_unforeseen(request: Request, error: Exception) -> Response:
        # Starlette sends it by a way around all middleware.
        response = await on_any(request, error)
        add_limits(request, response)
        return response

    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    known_errors = (DurableError, ServiceError, DocumentError, RayError, BackPressureError, DeploymentUnavailableError)
    for known in known_errors:
        app.add_exception_handler(known, on_any)
    app.add_exception_handler(Exception, on_unforeseen)
