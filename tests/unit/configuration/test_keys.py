"""Is a tenant's key known, its own alone, and never shown?"""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from configs.errors import ConfigError
from configs.loading import load_tenants
from configs.tenant import KeyConfig
from tests.unit.configuration.workspace import DIGEST, KEY, SECRET, Workspace, tenant_with, tenant_with_key


def test_a_key_is_known_by_its_digest_in_any_case(workspace: Workspace) -> None:
    tenant = workspace.load(tenant_with_key(id="k", sha256=DIGEST.upper(), scopes=["kv"]))
    assert tenant.keys[0].digest == DIGEST


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_plain_key_is_allowed_in_development_on_loopback(workspace: Workspace, host: str) -> None:
    workspace.tenant(tenant_with_key(id="k", plain=SECRET, scopes=["kv"]))
    tenants = load_tenants(workspace.service({"http": {"host": host}}))
    assert tenants["alpha"].keys[0].digest == DIGEST


@pytest.mark.parametrize(
    "service",
    [{"environment": "production"}, {"http": {"host": "0.0.0.0"}}, {"http": {"host": "mobula.example.org"}}],
    ids=["production", "all interfaces", "a name"],
)
def test_a_plain_key_is_refused_in_production_and_off_loopback(workspace: Workspace, service: dict[str, Any]) -> None:
    file = workspace.tenant(tenant_with_key(id="k", plain=SECRET, scopes=["kv"]))
    with pytest.raises(ConfigError, match="is allowed only with `environment: development`") as caught:
        load_tenants(workspace.service(service))
    assert (caught.value.file, caught.value.field) == (str(file.resolve()), "keys[0].plain")
    assert SECRET not in str(caught.value)


def test_the_same_key_in_two_tenants_is_refused_even_if_written_differently(workspace: Workspace) -> None:
    workspace.tenant(tenant_with(), "alpha")
    workspace.tenant({"tenant": "beta", "keys": [{"id": "other", "plain": SECRET, "scopes": ["kv"]}]}, "beta")
    with pytest.raises(ConfigError, match=r"beta\.yaml: keys\[0\]: is the same key as alpha/first") as caught:
        load_tenants(workspace.service())
    assert SECRET not in str(caught.value)
    assert DIGEST not in str(caught.value)


def test_the_same_key_twice_in_one_tenant_is_refused(workspace: Workspace) -> None:
    error = workspace.refusal_of_tenant(tenant_with(keys=[KEY, KEY | {"id": "second"}]))
    assert (error.field, error.value) == ("keys[1]", "'second'")


def test_the_same_id_twice_in_one_tenant_is_refused(workspace: Workspace) -> None:
    error = workspace.refusal_of_tenant(tenant_with(keys=[KEY, KEY | {"sha256": "0" * 64}]))
    assert (error.field, error.problem) == ("keys", "has two keys with the id 'first'")


def test_the_same_id_in_two_tenants_is_fine(workspace: Workspace) -> None:
    workspace.tenant(tenant_with(), "alpha")
    workspace.tenant({"tenant": "beta", "keys": [KEY | {"sha256": "0" * 64}]}, "beta")
    assert len(load_tenants(workspace.service())) == 2


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ({"id": "k", "scopes": ["kv"]}, "keys[0]"),
        ({"id": "k", "plain": SECRET, "sha256": DIGEST, "scopes": ["kv"]}, "keys[0]"),
        ({"id": "k", "sha256": SECRET, "scopes": ["kv"]}, "keys[0].sha256"),
        ({"id": "k", "sha256": DIGEST + "0", "scopes": ["kv"]}, "keys[0].sha256"),
        ({"id": "k", "plain": "", "scopes": ["kv"]}, "keys[0].plain"),
        ({"id": "k", "plain": SECRET + " and more", "scopes": ["kv"]}, "keys[0].plain"),
        ({"id": "k", "plain": 12345678, "scopes": ["kv"]}, "keys[0].plain"),
        ({"id": "k", "plain": [SECRET], "scopes": ["kv"]}, "keys[0].plain"),
        ({"id": "k", "plian": SECRET, "scopes": ["kv"]}, "keys[0].plian"),
        ({"plain": SECRET, "scopes": ["kv"]}, "keys[0].id"),
        ({"id": "", "plain": SECRET, "scopes": ["kv"]}, "keys[0].id"),
        ({"id": "a/b", "plain": SECRET, "scopes": ["kv"]}, "keys[0].id"),
        ({"id": "k", "plain": SECRET}, "keys[0].scopes"),
        ({"id": "k", "plain": SECRET, "scopes": []}, "keys[0].scopes"),
        ({"id": "k", "plain": SECRET, "scopes": "kv"}, "keys[0].scopes"),
        ({"id": "k", "plain": SECRET, "scopes": ["root"]}, "keys[0].scopes[0]"),
        (SECRET, "keys[0]"),
        (None, "keys[0]"),
    ],
)
def test_a_bad_key_is_refused_by_its_field_and_never_shown(workspace: Workspace, key: object, field: str) -> None:
    error = workspace.refusal_of_tenant(tenant_with(keys=[key]))
    assert error.field == field
    told = str(error) + repr(error.args) + "".join(traceback.format_exception(error))
    assert SECRET not in told
    assert DIGEST not in told


@pytest.mark.parametrize(
    "text",
    [
        f"tenant: alpha\nkeys: {SECRET}\n",
        f"tenant: alpha\nkeys: [{{id: k, plain: {SECRET}, plain: {SECRET}}}]\n",
        f"tenant: alpha\nkeys: [{{id: k, plain: *{SECRET}}}]\n",
        f"tenant: alpha\nkeys: [{{id: k, plain: !{SECRET} x}}]\n",
        f'tenant: alpha\nkeys: [{{id: k, plain: "{SECRET}\n',
        f"tenant: alpha\nplain: {SECRET}\n",
        f"tenant: alpha\napi_key: {SECRET}\n",
        f"tenant: alpha\nkeys: []\nmodel: {{api_key: {SECRET}}}\n",
        f"tenant: alpha\nkeys: []\nmodel: {{base_url: 'http://x', model: m, api_key_env: {SECRET}}}\n",
        f"tenant: alpha\nkeys: []\nmodel: {{base_url: 'https://user:{SECRET}@example.org/v1', model: m}}\n",
        f"tenant: alpha\nkeys: []\nmodel: {{server: 'https://user:{SECRET}@example.org/v1'}}\n",
    ],
)
def test_a_secret_in_a_wrong_place_is_not_shown_either(workspace: Workspace, text: str) -> None:
    error = workspace.refusal_of_tenant(text)
    assert SECRET not in str(error) + repr(error.args) + "".join(traceback.format_exception(error))
    assert error.__context__ is None or SECRET not in str(error.__context__) or error.__suppress_context__


def test_the_id_and_scopes_of_a_bad_key_are_shown(workspace: Workspace) -> None:
    error = workspace.refusal_of_tenant(tenant_with_key(id="k", plain=SECRET, scopes=["chat", "root"]))
    assert (error.field, error.value) == ("keys[0].scopes[1]", "'root'")
    assert workspace.refusal_of_tenant(tenant_with_key(id="a/b", plain=SECRET, scopes=["kv"])).value == "'a/b'"


def test_a_key_is_not_shown_by_the_configuration_itself() -> None:
    key = KeyConfig.model_validate({"id": "k", "plain": SECRET, "scopes": ["kv"]})
    assert SECRET not in repr(key) + str(key) + str(key.model_dump())
