"""Is every bad value of a tenant refused by file and field?"""

from __future__ import annotations

import pytest

from configs.loading import load_service, load_tenants
from tests.unit.configuration.workspace import Workspace, tenant_with


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("keys", []),
        ("keys", None),
        ("placement.ChatSession", "alone"),
        ("placement.ChatSesion", "pooled"),
        ("limits.refill_per_second", -0.1),
        ("limits.refill_per_second", float("nan")),
        ("limits.refill_per_second", True),
        ("limits.capacity", 0),
        ("limits.capacity", -5),
        ("limits.capacity", float("inf")),
        ("limits.client_key", []),
        ("limits.client_key", "api_key"),
        ("limits.client_key", ["ip", "ip"]),
        ("limits.client_key", ["header:X-A", "header:x-a"]),
        ("limits.client_key", ["header:a", "header:b", "header:c", "header:d", "header:e"]),
        ("sessions.ttl_s", 0),
        ("sessions.ttl_s", -1),
        ("sessions.ttl_s", float("inf")),
        ("sessions.messages_max", 0),
        ("model.base_url", "ftp://example.org"),
        ("model.base_url", "example.org/v1"),
        ("model.base_url", "http://"),
        ("model.base_url", "http://example.org:99999/v1"),
        ("model.base_url", "http://[::1/v1"),
        ("model.base_url", "http://example.org/v1?a=b"),
        ("model.base_url", "http://example.org/ v1"),
        ("model.model", "gpt"),
        ("model.model", ""),
        ("model.api_key_env", "OPENAI_API_KEY"),
        ("model.system_prompt", "x" * 20_001),
        ("model.temperature", 2.1),
        ("model.temperature", -0.1),
        ("model.max_tokens", 0),
        ("model.context_tokens", 256),
        ("model.timeout_s", 0),
        ("model.timeout_s", 3601),
        ("model.tokenizer", "tokenizer.json"),
        ("tools", {"enabled": ["kv_get"]}),
        ("tools.steps_max", 1),
        ("tools.calls_per_step_max", 0),
        ("tools.timeout_s", 0),
        ("tools.result_bytes_max", 499),
        ("tools.context_share", 1.0),
        ("retrieval.top_k", 0),
        ("retrieval.top_k", 51),
        ("retrieval.candidates", 2),
        ("retrieval.context_chars_max", 0),
        ("retrieval.cache_ttl_s", -1),
    ],
)
def test_a_bad_value_of_a_tenant_is_refused_by_file_and_field(workspace: Workspace, field: str, value: object) -> None:
    section, _, name = field.partition(".")
    error = workspace.refusal_of_tenant(tenant_with(**{section: {name: value} if name else value}))
    assert error.file == str(workspace.tenants.resolve() / "alpha.yaml")
    assert error.field == field


@pytest.mark.parametrize(
    "part", ["header:", "header: x", "header:a b", "header:Authorization", "header:cookie", "tenant", "API_KEY", "", 3]
)
def test_a_client_key_part_that_is_unknown_or_secret_is_refused(workspace: Workspace, part: object) -> None:
    error = workspace.refusal_of_tenant(tenant_with(limits={"client_key": ["api_key", part]}))
    assert (error.field, error.value) == ("limits.client_key[1]", ascii(part))


def test_header_names_of_a_client_key_ignore_case(workspace: Workspace) -> None:
    tenant = workspace.load(tenant_with(limits={"client_key": ["api_key", "user", "header:X-Team"]}))
    assert tenant.limits.client_key == ("api_key", "user", "header:x-team")


def test_a_bucket_that_never_refills_is_allowed(workspace: Workspace) -> None:
    tenant = workspace.load(tenant_with(limits={"refill_per_second": 0, "capacity": 20}))
    assert (tenant.limits.refill_per_second, tenant.limits.capacity) == (0.0, 20.0)


def test_a_tenant_can_name_a_model_server_of_its_own(workspace: Workspace) -> None:
    model = {"base_url": "https://models.example.org/v1", "model": "large", "api_key_env": "OPENAI_API_KEY"}
    tenant = workspace.load(tenant_with(model=model))
    assert (tenant.model.base_url, tenant.model.model, tenant.model.api_key_env) == tuple(model.values())


def test_a_model_server_without_the_name_of_a_model_is_refused(workspace: Workspace) -> None:
    error = workspace.refusal_of_tenant(tenant_with(model={"base_url": "http://127.0.0.1:8080/v1"}))
    assert (error.field, error.problem[:27]) == ("model.model", "is required with base_url: t"[:27])


MODEL_SERVER = {"base_url": "http://127.0.0.1:8080/v1", "model": "m"}


@pytest.mark.parametrize(
    ("said", "embedded", "other"), [(None, True, False), (True, True, True), (False, False, False)]
)
def test_an_answer_is_gone_on_with_where_the_model_can(
    workspace: Workspace, said: bool | None, embedded: bool, other: bool
) -> None:
    assert workspace.load(tenant_with(model={"continues": said})).model.continues_answers is embedded
    assert workspace.load(tenant_with(model=MODEL_SERVER | {"continues": said})).model.continues_answers is other


def test_a_tenant_can_enable_tools_where_another_server_answers(workspace: Workspace) -> None:
    enabled = ["vector_search", "kv_get", "acme_tools.weather:forecast"]
    tenant = workspace.load(tenant_with(model=MODEL_SERVER, tools={"enabled": enabled}))
    assert tenant.tools.enabled == tuple(enabled)
    assert tenant.tool_tokens == tenant.model.context_tokens // 4
    assert workspace.load(tenant_with()).tool_tokens == 0


@pytest.mark.parametrize(
    "path", ["web_search", "no_colon.here", "a:b:c", ":f", "m:", "a b:c", "os.path:é", "../x:y", 3]
)
def test_a_tool_that_is_no_path_is_refused_by_its_place(workspace: Workspace, path: object) -> None:
    error = workspace.refusal_of_tenant(tenant_with(model=MODEL_SERVER, tools={"enabled": ["kv_get", path]}))
    assert (error.field, error.value) == ("tools.enabled[1]", ascii(path))


def test_two_tools_of_one_name_are_refused(workspace: Workspace) -> None:
    error = workspace.refusal_of_tenant(tenant_with(model=MODEL_SERVER, tools={"enabled": ["kv_get", "own:kv_get"]}))
    assert error.field == "tools.enabled"
    assert "named kv_get" in error.problem


def test_a_tokenizer_counts_from_the_file_that_names_it_and_must_be_there(workspace: Workspace) -> None:
    model = {**MODEL_SERVER, "tokenizer": "../tokenizer.json"}
    error = workspace.refusal_of_tenant(tenant_with(model=model))
    assert (error.field, error.value) == ("model.tokenizer", "'../tokenizer.json'")
    (workspace.root / "tokenizer.json").touch()
    assert workspace.load(tenant_with(model=model)).model.tokenizer == (workspace.root / "tokenizer.json").resolve()


def test_events_are_kept_for_ten_minutes_and_for_an_hour_where_a_turn_broke_off(workspace: Workspace) -> None:
    turns = workspace.load(tenant_with()).turns
    assert (turns.events_kept_s, turns.broken_events_kept_s) == (600.0, 3600.0)


def test_classes_that_tenants_can_not_place_are_pooled() -> None:
    assert load_tenants(load_service({}))["acme"].placement.of("Anything") == "pooled"
