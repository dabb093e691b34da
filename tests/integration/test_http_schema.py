"""Does any input that the interface's own description allows, or nearly allows, make the service fail?"""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tests.integration.conftest import Service
from tests.integration.test_http_access import ROUTES

#: Of inputs as described, and as many again of others.
EXAMPLES = 5
#: An answer of the model takes the longest.
REQUEST_TIMEOUT_S = 60.0
OPERATIONS = [(method, path, mode) for method, path, _ in ROUTES for mode in GenerationMode]
#: These take no input that could be wrong.
OPERATIONS += [("GET", path, GenerationMode.POSITIVE) for path in ("/healthz", "/readyz")]


@schemathesis.serializer("application/vnd.sqlite3")
def as_bytes(_: Any, value: Any) -> bytes:
    """What stands for a database: anything but one."""
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


@pytest.fixture(scope="module")
def interface(service: Service) -> Any:
    return schemathesis.openapi.from_url(f"{service.url}/openapi.json")


@pytest.mark.parametrize(("method", "path", "mode"), OPERATIONS)
def test_no_input_makes_the_service_fail(interface: Any, method: str, path: str, mode: GenerationMode) -> None:
    cases = interface[path][method].as_strategy(generation_mode=mode)

    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=cases)
    def send(case: Any) -> None:
        if isinstance(case.body, dict):
            _make_cheap(path, case.body)
        response = case.call(headers={"Authorization": "Bearer sk-demo"}, timeout=REQUEST_TIMEOUT_S)
        checks = [not_a_server_error, content_type_conformance, response_schema_conformance]
        case.validate_response(response, checks=checks)

    send()


#: How each route that asks the model calls the length of an answer.
LENGTHS = {"/chat": "max_tokens", "/v1/chat/completions": "max_completion_tokens", "/v1/responses": "max_output_tokens"}


def _make_cheap(path: str, question: dict[str, Any]) -> None:
    """What is asked is for the interface to judge; a long answer would only take the model's time."""
    if path not in LENGTHS:
        return
    asked_for = question.get(LENGTHS[path])
    if asked_for is None or (isinstance(asked_for, int) and asked_for > 1):
        question[LENGTHS[path]] = 1
    if path.startswith("/v1/"):
        if isinstance(question.get("model"), str):
            question["model"] = "default"  # no chance finds it
        return
    if question.get("retrieve", True) is True:
        question["retrieve"] = False  # or it would read passages before it answers
