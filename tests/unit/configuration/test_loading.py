"""Is the configuration found and read as written, and everything that is no configuration refused?"""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import actors.turn
import configs.tenant
from configs.base import Config
from configs.errors import ConfigError
from configs.loading import PACKAGED_SERVICE_FILE, load_service, load_tenants
from configs.service import HttpConfig, ServiceConfig
from configs.tenant import TenantConfig
from configs.yaml_file import FILE_BYTES_MAX, read
from tests.unit.configuration.workspace import KEY, Workspace

# What ships


def test_the_packaged_configuration_loads_with_both_development_tenants() -> None:
    service = load_service({})
    tenants = load_tenants(service)
    assert service.environment == "development"
    assert (service.http.host, service.http.port) == ("127.0.0.1", 8000)
    assert list(tenants) == ["acme", "demo"]
    assert tenants["demo"].keys[0].digest == hashlib.sha256(b"sk-demo").hexdigest()
    assert tenants["acme"].keys[0].digest == hashlib.sha256(b"sk-acme").hexdigest()
    assert tenants["demo"].keys[0].scopes == {"chat", "ingest", "search", "kv", "admin"}
    assert tenants["demo"].placement.of("ChatSession") == "pooled"
    assert tenants["acme"].placement.of("ChatSession") == "dedicated"
    assert tenants["acme"].placement.of("TokenBucket") == "dedicated"
    assert tenants["acme"].placement.of("KeyValue") == "pooled"


def test_the_packaged_files_show_the_defaults_that_they_say_they_show() -> None:
    assert read(PACKAGED_SERVICE_FILE, ServiceConfig) == ServiceConfig()
    demo = read(PACKAGED_SERVICE_FILE.parent / "tenants" / "demo.yaml", TenantConfig)
    assert demo == TenantConfig(tenant=demo.tenant, keys=demo.keys)


@pytest.mark.parametrize(
    ("file", "model"), [("service.yaml", ServiceConfig), ("tenants/demo.yaml", TenantConfig)], ids=["service", "tenant"]
)
def test_every_field_is_explained_in_a_packaged_file(file: str, model: type[Config]) -> None:
    def missing(model: type[Config], data: Mapping[str, Any], path: str) -> list[str]:
        absent = [f"{path}{name}" for name in model.model_fields if name not in data]
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, Config) and name in data:
                absent += missing(inner, data[name], f"{path}{name}.")
        return absent

    text = (PACKAGED_SERVICE_FILE.parent / file).read_text()
    assert missing(model, yaml.safe_load(text), "") == []
    for number, line in enumerate(lines := text.splitlines()):
        name, colon, value = line.strip().lstrip("- ").partition(":")
        if colon and value.strip() and name.isidentifier() and not line.strip().startswith("#"):
            explained = lines[number - 1].strip().startswith("#") or "placement" in "".join(lines[number - 6 : number])
            assert explained, f"{file}:{number + 1} has no comment"


def test_configurations_travel_by_pickle_and_stay_equal(workspace: Workspace) -> None:
    service = load_service({})
    tenants = load_tenants(service)
    assert pickle.loads(pickle.dumps((service, tenants))) == (service, tenants)


def test_a_configuration_can_not_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_service({}).http.port = 1


# Paths and the environment


def test_the_tenants_folder_counts_from_the_file_that_names_it(workspace: Workspace) -> None:
    (workspace.root / "elsewhere").mkdir()
    service = workspace.service("tenants_dir: ../" + workspace.root.name + "/elsewhere")
    assert service.tenants_dir == workspace.root.resolve() / "elsewhere"


def test_the_data_folder_counts_from_the_current_directory(workspace: Workspace, tmp_path: Path) -> None:
    service = load_service(workspace.environ, working_dir=tmp_path / "here")
    assert service.data_dir == tmp_path.resolve() / "here" / "data"


def test_the_current_directory_is_the_default_working_directory(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_service({"MOBULA_CONFIG": "service.yaml"}).data_dir == tmp_path.resolve() / "data"


def test_the_environment_overrides_port_and_data_folder(workspace: Workspace) -> None:
    service = workspace.service("http: {host: '::1', port: 80}", MOBULA_PORT="9000", MOBULA_DATA_DIR="/somewhere/else")
    assert service.http == HttpConfig(host="::1", port=9000)
    assert service.data_dir == Path("/somewhere/else")


def test_empty_variables_count_as_unset() -> None:
    assert load_service({"MOBULA_CONFIG": "", "MOBULA_PORT": "", "MOBULA_DATA_DIR": ""}) == load_service({})


@pytest.mark.parametrize("port", ["0", "65536", "-1", "8000.0", " 8000", "http", "8_000", "+8000", "٨٠٠٠", "9" * 5000])
def test_a_bad_port_variable_is_refused_by_name_and_value(workspace: Workspace, port: str) -> None:
    error = workspace.refusal_of_service("{}", MOBULA_PORT=port)
    assert (error.file, error.field) == ("environment", "MOBULA_PORT")
    assert ascii(port)[:20] in str(error)
    assert len(str(error)) < 250


def test_a_configuration_file_that_is_not_there_is_refused_by_its_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"environment: MOBULA_CONFIG: .*nowhere\.yaml"):
        load_service({"MOBULA_CONFIG": str(tmp_path / "nowhere.yaml")})


def test_a_home_directory_sign_is_not_expanded_but_refused(workspace: Workspace) -> None:
    assert workspace.refusal_of_service("data_dir: ~/data").field == "data_dir"
    assert workspace.refusal_of_service("{}", MOBULA_DATA_DIR="~/data").field == "MOBULA_DATA_DIR"


def test_a_tenants_folder_that_is_not_there_is_refused_by_file_field_and_value(workspace: Workspace) -> None:
    error = workspace.refusal_of_service("tenants_dir: nowhere")
    assert (error.file, error.field, error.value) == (str(workspace.service_file), "tenants_dir", "'nowhere'")


# What YAML lets through


def test_an_unknown_field_is_refused_with_file_field_value_and_what_is_known(workspace: Workspace) -> None:
    error = workspace.refusal_of_service("objects: {slots: 4, host: 7}")
    assert (error.file, error.field, error.value) == (str(workspace.service_file), "objects.host", "7")
    assert "dedicated_max, host_resource, hosts" in error.problem
    assert str(error).startswith(f"{workspace.service_file}: objects.host: is an unknown field")


def test_an_unknown_field_is_named_before_the_field_that_it_was_meant_to_be(workspace: Workspace) -> None:
    error = workspace.refusal_of_tenant({"tenannt": "alpha", "keys": [KEY]})
    assert (error.field, error.value) == ("tenannt", "'alpha'")


def test_a_field_given_twice_is_refused_and_not_silently_the_last(workspace: Workspace) -> None:
    error = workspace.refusal_of_service("http:\n  port: 1\n  host: localhost\n  port: 2\n")
    assert (error.field, error.problem) == ("http.port", "is given twice, again in line 4")


@pytest.mark.parametrize("text", ["", "- a\n", "just text", "42", "null"])
def test_a_file_that_holds_no_fields_is_refused(workspace: Workspace, text: str) -> None:
    assert workspace.refusal_of_service(text).problem == "must hold fields (name: value)"


@pytest.mark.parametrize(
    "text",
    ["a: [", "a: b: c", "\ta: 1", "a: !!python/object:os.system {}", "a: *nothing", "? {a: b}\n: 1", "d: 2020-99-99",
     "a: \x01", "a: " + "[" * 5000],
    ids=["open", "colons", "tab", "tag", "alias", "mapping as name", "no such date", "control", "deep"],
)  # fmt: skip
def test_what_is_no_yaml_is_refused_by_file(workspace: Workspace, text: str) -> None:
    error = workspace.refusal_of_service(text)
    assert error.file == str(workspace.service_file)
    assert "is not valid YAML" in error.problem


def test_a_syntax_error_is_refused_with_its_line(workspace: Workspace) -> None:
    problem = workspace.refusal_of_service("http:\n  port: [1\nx: 2").problem
    assert problem == "is not valid YAML at line 3, column 2: expected ',' or ']', but got ':'"


@pytest.mark.parametrize("text", ["objects: &a\n  x: *a", "a: &a [1]\nb: &b [*a,*a]\nc: &c [*b,*b]\nobjects: [*c, *c]"])
def test_yaml_that_refers_to_itself_or_multiplies_is_refused(workspace: Workspace, text: str) -> None:
    workspace.refusal_of_service(text)


def test_a_multiplying_file_takes_no_time_to_refuse(workspace: Workspace) -> None:
    levels = ["a0: &a0 [1,1,1,1,1,1,1,1]"]
    levels += [f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 8)}]" for level in range(1, 40)]
    assert workspace.refusal_of_service("\n".join(levels)).problem.startswith("is an unknown field")


def test_a_file_of_another_kind_is_refused(workspace: Workspace) -> None:
    workspace.service_file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_service(workspace.environ)
    workspace.service_file.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="is larger than"):
        load_service(workspace.environ)


def test_a_file_with_a_byte_order_mark_is_read(workspace: Workspace) -> None:
    workspace.service_file.write_bytes(b"\xef\xbb\xbfenvironment: production\n")
    assert load_service(workspace.environ).environment == "production"


# The error itself


def test_a_configuration_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("a.yaml", "http.port", "0", "is no port")))
    assert (error.file, error.field, error.value, error.problem) == ("a.yaml", "http.port", "0", "is no port")
    assert str(error) == "a.yaml: http.port: is no port (got 0)"


def test_a_long_value_is_shown_short_and_printable(workspace: Workspace) -> None:
    error = workspace.refusal_of_service({"environment": "\x1b[31m" + "x" * 1000})
    assert error.value.startswith("'\\x1b[31mxxx")
    assert len(error.value) == 80


def test_a_configuration_is_read_without_ray() -> None:
    """Ray reads its environment when it is imported, and that is set after the configuration was read."""
    code = "import sys, configs.loading, deployments.server; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_tenants_ways_with_a_message_during_an_answer_are_those_of_a_session() -> None:
    assert get_args(configs.tenant.OnConflict) == get_args(actors.turn.OnConflict)
