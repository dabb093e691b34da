"""Is every bad value of the service refused by file, field and value?"""

from __future__ import annotations

import pytest

from configs.service import HttpConfig, ObjectsConfig
from tests.unit.configuration.workspace import Workspace


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("environment", "staging"),
        ("environment", True),
        ("http", [1]),
        ("http", None),
        ("http.host", ""),
        ("http.host", "300.1.1.1"),
        ("http.host", "no host"),
        ("http.host", "a" * 300),
        ("http.port", 0),
        ("http.port", 65536),
        ("http.port", "8000"),
        ("http.port", 80.0),
        ("http.port", True),
        ("http.client_ip_header", "X Forwarded"),
        ("http.client_ip_header", ""),
        ("http.access_log", "yes"),
        ("http.access_log", 1),
        ("data_dir", ""),
        ("data_dir", 5),
        ("data_dir", None),
        ("tenants_dir", None),
        ("migrations", ""),
        ("migrations", ["v1"]),
        ("migrations", "~/migrations.yaml"),
        ("objects.slots", 0),
        ("objects.slots", 65537),
        ("objects.slots", 2.5),
        ("objects.hosts", 0),
        ("objects.hosts", 257),
        ("objects.idle_after_s", 0),
        ("objects.idle_after_s", -1),
        ("objects.idle_after_s", float("inf")),
        ("objects.idle_after_s", float("nan")),
        ("objects.idle_after_s", "10"),
        ("objects.idle_after_s", "1e3"),
        ("objects.resident_objects_max", 0),
        ("objects.dedicated_max", -1),
        ("objects.slow_turn_ms", 0),
        ("objects.slow_turn_ms", -1),
        ("objects.slow_turn_ms", 60_001),
        ("objects.host_resource", "CPU"),
        ("objects.host_resource", "node:10.0.0.1"),
        ("objects.host_resource", ""),
        ("limits.body_bytes_max", 0),
        ("limits.body_bytes_max", None),
        ("limits.message_chars_max", 0),
        ("limits.query_chars_max", 0),
        ("limits.kv_value_bytes_max", 0),
        ("ingest.documents_per_request_max", 0),
        ("ingest.text_chars_max", 0),
        ("ingest.pdf_pages_max", 0),
        ("ingest.extract_timeout_s", 0),
        ("ingest.extract_timeout_s", 10**400),
    ],
)
def test_a_bad_value_of_the_service_is_refused_by_file_field_and_value(
    workspace: Workspace, field: str, value: object
) -> None:
    section, _, name = field.partition(".")
    error = workspace.refusal_of_service({section: {name: value} if name else value})
    assert (error.file, error.field) == (str(workspace.service_file), field)
    assert error.problem
    if not isinstance(value, list):
        assert error.value[:70] == ascii(value)[:70]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("example.org", False),
    ],
)
def test_loopback_is_told_from_what_others_can_reach(host: str, loopback: bool) -> None:
    assert HttpConfig(host=host).is_loopback is loopback


def test_a_custom_resource_for_the_hosts_is_taken_as_written(workspace: Workspace) -> None:
    assert workspace.service("objects: {host_resource: mobula_data}").objects == ObjectsConfig(
        host_resource="mobula_data"
    )
