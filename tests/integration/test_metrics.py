"""Does whoever runs the service see how many requests were answered, and how?"""

from __future__ import annotations

import subprocess
import sys

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.calls import eventually
from tests.integration.conftest import Service

REPORTED_WITHIN_S = 60.0

PRINT_PORT = """
import ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
print(ray.nodes()[0]["MetricsExportPort"])
"""


@pytest.fixture(scope="module")
def metrics_url(service: Service) -> str:
    """Where Ray shows the metrics of all processes of the machine."""
    program = [sys.executable, "-c", PRINT_PORT]
    printed = subprocess.run(
        program, env=service.ray_environ, check=True, stdout=subprocess.PIPE, text=True, timeout=60
    ).stdout
    return f"http://127.0.0.1:{printed.split()[-1]}/metrics"


def answered(metrics_url: str, route: str, status: int) -> float:
    """Requests so far."""
    wanted = {"route": route, "status_code": str(status)}
    return sum(
        sample.value
        for family in text_string_to_metric_families(httpx.get(metrics_url).raise_for_status().text)
        for sample in family.samples
        if sample.name == "ray_serve_num_http_requests_total" and wanted.items() <= sample.labels.items()
    )


def test_requests_are_counted_by_route_and_status(demo: httpx.Client, metrics_url: str) -> None:
    route = "/ratelimit/check"
    before = answered(metrics_url, route, 422)

    for _ in range(3):
        assert demo.post(route, json={"cost": "much"}).status_code == 422

    eventually(lambda: answered(metrics_url, route, 422) == before + 3, REPORTED_WITHIN_S)
