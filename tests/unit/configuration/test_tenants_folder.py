"""Which files of the tenants' folder are tenants?"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.errors import ConfigError
from configs.loading import load_tenants
from tests.unit.configuration.workspace import Workspace, tenant_with


def test_a_folder_without_tenants_is_refused(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="holds no tenant") as caught:
        load_tenants(workspace.service())
    assert caught.value.file == str(workspace.tenants.resolve())


def test_a_tenants_folder_that_went_away_is_refused(workspace: Workspace) -> None:
    service = workspace.service()
    workspace.tenants.rmdir()
    with pytest.raises(ConfigError, match="can't be read"):
        load_tenants(service)


def test_hidden_files_and_other_kinds_are_passed_over(workspace: Workspace) -> None:
    # A ConfigMap is mounted as links through a hidden folder.
    hidden = workspace.tenants / "..2026_01_01"
    hidden.mkdir()
    (hidden / "alpha.yaml").write_text(yaml.safe_dump(tenant_with()))
    (workspace.tenants / "..data").symlink_to(hidden)
    (workspace.tenants / "alpha.yaml").symlink_to(Path("..data") / "alpha.yaml")
    (workspace.tenants / ".alpha.yaml.swp").write_bytes(b"\0")
    (workspace.tenants / "README.md").write_text("tenants")
    assert list(load_tenants(workspace.service())) == ["alpha"]


@pytest.mark.parametrize("name", ["beta.yml", "beta.YAML"])
def test_a_file_that_looks_like_a_tenant_but_would_be_passed_over_is_refused(workspace: Workspace, name: str) -> None:
    workspace.tenant(tenant_with())
    (workspace.tenants / name).write_text("{}")
    with pytest.raises(ConfigError, match=r"must be named \.yaml"):
        load_tenants(workspace.service())


def test_a_folder_named_like_a_tenant_is_refused(workspace: Workspace) -> None:
    (workspace.tenants / "alpha.yaml").mkdir()
    with pytest.raises(ConfigError, match="can't be read"):
        load_tenants(workspace.service())


def test_a_tenant_must_be_named_like_its_file(workspace: Workspace) -> None:
    error = workspace.refusal_of_tenant(tenant_with(), name="beta")
    assert (error.field, error.value, error.problem) == ("tenant", "'alpha'", "must be the file's name, 'beta'")


@pytest.mark.parametrize("name", ["ab", "a" * 64, "Alpha", "-abc", "a b c", "../abc", "abc\n", "a:bc", "", 123, None])
def test_a_tenant_name_that_could_not_name_objects_is_refused(workspace: Workspace, name: object) -> None:
    assert workspace.refusal_of_tenant(tenant_with(tenant=name)).field == "tenant"
