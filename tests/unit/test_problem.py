"""Does every error have the status that was chosen for it, and does none say more than a client should know?"""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import Response
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from actors import DurableError
from actors.runtime import errors as objects
from deployments import document_errors as documents
from deployments import errors as service
from deployments.document_errors import DocumentError
from deployments.errors import ServiceError
from deployments.ingress.problem import MEDIA_TYPE, OBJECT_QUARANTINED, QUOTA_EXCEEDED, REDUCED_CAPACITY, problem_of
from tests.unit.handles import as_ray_raises

# What the service's own errors say of its inside, none of which a client may read.
INSIDE = "/data/secret of pid-12"

STATUSES: list[tuple[Exception, int, str | None]] = [
    (objects.InvalidArgument("title", "x" * 500, "is too long"), 422, None),
    (objects.ObjectNotFound(INSIDE), 404, None),
    (objects.ObjectConflict(INSIDE, INSIDE), 409, None),
    (objects.SlotOwned(INSIDE, INSIDE), 503, "1"),
    (objects.ObjectOverloaded(INSIDE, INSIDE, 2.5), 503, "3"),
    (objects.ObjectReset(INSIDE, INSIDE), 503, "1"),
    (objects.StorageFull(INSIDE, INSIDE), 503, "5"),
    # It ends when somebody has looked at the object, and no header can say when.
    (objects.ObjectQuarantined(INSIDE, INSIDE, 1_000_000_000.0), 503, None),
    # Only a mistake of the service's own leads to these: nothing that a client does, and no waiting, helps.
    (objects.ObjectFailed(INSIDE, INSIDE, INSIDE), 500, None),
    (objects.CallCycle(INSIDE, (INSIDE,)), 500, None),
    (objects.RequestReused(INSIDE, INSIDE), 500, None),
    (objects.SchemaTooNew(INSIDE, INSIDE, INSIDE), 500, None),
    (objects.StatementRefused(INSIDE, INSIDE, INSIDE), 500, None),
    (objects.ClassesRefused(INSIDE, INSIDE, INSIDE, INSIDE), 500, None),
    (objects.ObjectError(INSIDE), 500, None),
    (objects.DurableError(INSIDE), 500, None),
    (service.Unauthorized(), 401, None),
    (service.Forbidden("kv"), 403, None),
    (service.BodyTooLarge(1000), 413, None),
    (service.EventsGone("t1"), 410, None),
    (service.TurnConflict(), 409, None),
    (service.QuotaExceeded(0.01, ("burst",)), 429, "1"),
    (service.TooManyNewClients(0.5), 503, "1"),
    (service.TooManyTurns(("turns-per-client",), 1.0), 429, "1"),
    (service.BudgetExceeded(("daily",), 3600.5), 429, "3601"),
    (service.BudgetTooSmall(("daily",), 1000, 500), 422, None),
    (service.IdempotencyKeyMalformed("holds a blank"), 400, None),
    (service.IdempotencyKeyReused("order-17"), 422, None),
    (service.IdempotencyKeyBusy(0.5), 409, "1"),
    (service.ModelUnavailable(INSIDE, 7.0), 503, "7"),
    (service.ModelTimeout(30.0), 504, None),
    (service.ModelRefused("too long", "context_length_exceeded"), 422, None),
    (service.VectorStoreOwned(INSIDE, INSIDE, 5.0), 503, "5"),
    (service.VectorsUnavailable(INSIDE, 1.0), 503, "1"),
    (service.RequestError(INSIDE), 500, None),
    (service.ModelError(INSIDE), 500, None),
    (service.VectorsError(INSIDE), 500, None),
    (service.ServiceError(INSIDE), 500, None),
    (documents.UnsupportedDocument("a.bin", "is neither text nor PDF"), 422, None),
    (documents.UnreadableDocument("a.pdf", "is encrypted"), 422, None),
    (documents.DocumentTooLarge("a.pdf", "has too many pages"), 413, None),
    (documents.ExtractorBusy("a.pdf", "too many documents"), 503, "5"),
    (documents.DocumentError("a.pdf", "is broken"), 422, None),
    # Of Ray's own: a part is not there, or has too much to do.
    (RayActorError(), 503, "1"),
    (BackPressureError(num_queued_requests=9, max_queued_requests=9), 503, "1"),
    (DeploymentUnavailableError(None), 503, "1"),
    # Anybody's.
    (ValueError(INSIDE), 500, None),
    (KeyError(INSIDE), 500, None),
    (RayTaskError("remote", INSIDE, ValueError(INSIDE)), 500, None),
]

MODULES = {module.__name__ for module in (objects, service, documents)}


def _classes(root: type[Exception]) -> set[type[Exception]]:
    """The class and those made from it for callers. The runtime has some of its own, and Ray makes mixtures."""
    own = {root} if root.__module__ in MODULES else set()
    return own.union(*[_classes(child) for child in root.__subclasses__()])


def _body(response: Response) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(bytes(response.body))
    return body


def test_every_error_class_of_the_service_is_in_the_table_above() -> None:
    chosen = {type(error) for error, _, _ in STATUSES}
    assert _classes(DurableError) | _classes(ServiceError) | _classes(DocumentError) <= chosen


@pytest.mark.parametrize(("error", "status", "retry_after"), STATUSES, ids=lambda value: type(value).__name__)
def test_an_error_has_its_status_whether_it_was_raised_here_or_in_another_process(
    error: Exception, status: int, retry_after: str | None
) -> None:
    elsewhere = [] if isinstance(error, RayTaskError) else [as_ray_raises(error)]
    for raised in [error, *elsewhere]:
        response = problem_of(raised)
        body = _body(response)
        assert response.status_code == body["status"] == status
        assert response.headers["content-type"] == MEDIA_TYPE
        assert response.headers.get("retry-after") == retry_after
        assert {"type", "title", "detail"} <= body.keys()
        text = bytes(response.body).decode() + str(response.headers)
        assert "secret" not in text
        assert "pid-12" not in text
        assert "Traceback" not in text


@pytest.mark.parametrize(("error", "status", "_"), STATUSES, ids=lambda value: type(value).__name__)
def test_what_may_be_retried_is_never_called_the_services_fault(error: Exception, status: int, _: object) -> None:
    if getattr(error, "retryable", False):
        assert status in (409, 429, 503, 504)
    else:
        assert status not in (429, 504)


@pytest.mark.parametrize(
    ("retry_after_s", "header"),
    [(0.0, "1"), (0.001, "1"), (1.0, "1"), (1.001, "2"), (59.5, "60"), (86_400.0, "86400")],
)
def test_retry_after_is_in_whole_seconds_and_never_too_soon(retry_after_s: float, header: str) -> None:
    assert problem_of(service.QuotaExceeded(retry_after_s, ("burst",))).headers["retry-after"] == header


def test_problems_that_are_registered_have_their_registered_types() -> None:
    quota = _body(problem_of(service.QuotaExceeded(1.0, ("burst",))))
    assert (quota["type"], quota["violated-policies"]) == (QUOTA_EXCEEDED, ["burst"])
    assert _body(problem_of(objects.ObjectReset("o", "lost")))["type"] == REDUCED_CAPACITY
    assert _body(problem_of(service.Unauthorized()))["type"] == "about:blank"


def test_an_object_that_is_set_aside_is_told_from_one_that_is_busy() -> None:
    body = _body(problem_of(objects.ObjectQuarantined("o", "it crashed", 1_000_000_000.0)))
    assert body["type"] == OBJECT_QUARANTINED
    assert "was not carried out" in body["detail"]
    assert "crashed" not in str(body)


def test_a_missing_key_is_answered_with_the_scheme_that_is_wanted() -> None:
    assert problem_of(service.Unauthorized()).headers["www-authenticate"].startswith("Bearer")


def test_an_argument_that_is_wrong_is_named_with_its_value() -> None:
    body = _body(problem_of(objects.InvalidArgument("title", "a\ud83d\n" + "x" * 500, "is too long")))
    (error,) = body["errors"]
    assert error["field"] == "title"
    assert error["problem"] == "is too long"
    assert error["value"].startswith("'a\\ud83d\\nxxx")
    assert len(error["value"]) <= 80


def test_an_unexpected_error_is_logged_in_full_and_told_in_brief(caplog: pytest.LogCaptureFixture) -> None:
    response = problem_of(ValueError(INSIDE))
    assert INSIDE in caplog.text
    assert _body(response)["detail"] == "an error of the service's own; it has been logged"
