"""Does the configuration load as written, and is everything else refused by file, field and value?"""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
import traceback
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
from configs.service import HttpConfig, ObjectsConfig, ServiceConfig
from configs.tenant import KeyConfig, TenantConfig
from configs.yaml_file import FILE_BYTES_MAX, read

SECRET = "sk-very-secret-0123456789"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()
KEY: dict[str, Any] = {"id": "first", "sha256": DIGEST, "scopes": ["chat"]}


class Workspace:
    """A configuration in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tenants = root / "tenants"
        self.tenants.mkdir()
        self.service_file = root / "service.yaml"
        self.service_file.write_text("{}")
        self.environ = {"MOBULA_CONFIG": str(self.service_file)}

    def service(self, text: str | Mapping[str, Any] = "{}", **environ: str) -> ServiceConfig:
        self.service_file.write_text(text if isinstance(text, str) else yaml.safe_dump(dict(text)))
        return load_service(self.environ | environ, working_dir=self.root)

    def tenant(self, content: str | Mapping[str, Any], name: str = "alpha") -> Path:
        file = self.tenants / f"{name}.yaml"
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(dict(content)))
        return file

    def load(self, content: str | Mapping[str, Any], name: str = "alpha") -> TenantConfig:
        self.tenant(content, name)
        return load_tenants(self.service())[name]

    def refusal_of_service(self, text: str | Mapping[str, Any], **environ: str) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            self.service(text, **environ)
        return caught.value

    def refusal_of_tenant(self, content: str | Mapping[str, Any], name: str = "alpha") -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            self.load(content, name)
        return caught.value


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def tenant_with(**fields: Any) -> dict[str, Any]:
    return {"tenant": "alpha", "keys": [KEY]} | fields


def tenant_with_key(**fields: Any) -> dict[str, Any]:
    return {"tenant": "alpha", "keys": [fields]}


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


# The service's fields


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


# The tenants' folder


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


# Keys


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


# The other fields of a tenant


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


def test_classes_that_tenants_can_not_place_are_pooled() -> None:
    assert load_tenants(load_service({}))["acme"].placement.of("Anything") == "pooled"


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
