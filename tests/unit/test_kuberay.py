"""Would KubeRay take the manifest, and do its parts agree with each other and with the service's own loader?"""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from configs.loading import load_service, load_tenants
from configs.service import ServiceConfig
from deployments.fast_http import FAST_HTTP_FLAGS

CONFIGS = Path(__file__).parents[2] / "configs"
DEFINITIONS = CONFIGS.parents[1] / "shared" / "kuberay"


# Serve's own use of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on .Field.:DeprecationWarning")


@pytest.fixture
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CONFIGS / "kuberay" / "rayservice.yaml").read_text()))


@pytest.fixture
def service(documents: list[dict[str, Any]]) -> dict[str, Any]:
    (document,) = (document for document in documents if document["kind"] == "RayService")
    spec: dict[str, Any] = document["spec"]
    return spec


@pytest.fixture
def groups(service: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every kind of pod by its name."""
    cluster = service["rayClusterConfig"]
    return {"head": cluster["headGroupSpec"]} | {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    result: dict[str, Any] = only
    return result


# The definitions


def closed(schema: Any) -> Any:
    """A copy of an openAPIV3Schema as JSON schema that refuses what the API server would drop in silence."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: closed(value) for name, value in schema.items()}
    # A field may be *named* properties or type: only a mapping under it makes this a schema of an object.
    is_object = isinstance(schema.get("properties"), dict) and isinstance(schema.get("type"), str)
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string") is True:
        result.pop("type", None)
        result.setdefault("anyOf", [{"type": "integer"}, {"type": "string"}])
    return result


@pytest.fixture(scope="module")
def schemas() -> dict[str, dict[str, Any]]:
    """The schema of each kind in the manifest."""
    file = DEFINITIONS / "ray.io_rayservices.yaml"
    if not file.is_file():
        pytest.skip(f"KubeRay's definitions are not here: {file}")
    definition = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (version for version in definition["spec"]["versions"] if version["name"] == "v1")
    ray_service = closed(version["schema"]["openAPIV3Schema"])

    # The definition has a claim inside of its pods' volumes: the same type as a claim of its own.
    pod = ray_service["properties"]["spec"]["properties"]["rayClusterConfig"]["properties"]["headGroupSpec"]
    volume = pod["properties"]["template"]["properties"]["spec"]["properties"]["volumes"]["items"]
    claim = volume["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]

    def core(**properties: Any) -> dict[str, Any]:
        named = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
        head = {"apiVersion": {"const": "v1"}, "kind": {"type": "string"}, "metadata": named | CLOSED}
        return {"type": "object", "properties": head | properties, "required": [*head, *properties]} | CLOSED

    return {
        "RayService": ray_service,
        "PersistentVolumeClaim": core(spec=claim),
        "ConfigMap": core(data={"type": "object", "additionalProperties": {"type": "string"}}),
    }


CLOSED = {"additionalProperties": False}


def test_every_document_fits_its_definition(
    documents: list[dict[str, Any]], schemas: dict[str, dict[str, Any]]
) -> None:
    assert sorted({document["kind"] for document in documents}) == sorted(schemas)
    for document in documents:
        jsonschema.Draft7Validator(schemas[document["kind"]]).validate(document)


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from mappings(inner)


#: Mappings whose names are the author's own, so that no name in them can be unknown.
FREE = ("matchLabels", "rayStartParams", "requests", "limits")


def test_an_unknown_field_is_refused_wherever_it_is_put(
    documents: list[dict[str, Any]], schemas: dict[str, dict[str, Any]]
) -> None:
    validator = jsonschema.Draft7Validator(schemas["RayService"])
    (original,) = (document for document in documents if document["kind"] == "RayService")
    # By way of JSON, since the manifest's anchors make one mapping out of several.
    plain = json.loads(json.dumps(original))
    free = [id(plain["metadata"])]
    free += [id(mapping[name]) for mapping in mappings(plain) for name in FREE if isinstance(mapping.get(name), dict)]
    checked = 0
    for mapping in list(mappings(plain)):
        if id(mapping) in free:
            continue
        mapping["tpyo"] = "x"
        assert not validator.is_valid(plain), f"'tpyo' passed beside {sorted(mapping)}"
        del mapping["tpyo"]
        checked += 1
    assert validator.is_valid(plain)
    assert checked > 40


@pytest.mark.parametrize("kind", ["ConfigMap", "PersistentVolumeClaim"])
def test_an_unknown_field_of_the_other_kinds_is_refused(
    documents: list[dict[str, Any]], schemas: dict[str, dict[str, Any]], kind: str
) -> None:
    document = copy.deepcopy(next(document for document in documents if document["kind"] == kind))
    document["dta"] = {}
    assert not jsonschema.Draft7Validator(schemas[kind]).is_valid(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "replicas"), "2"),
        (("spec", "rayClusterConfig", "headGroupSpec", "template", "spec", "containers"), None),
    ],
    ids=["number for text", "text for a number", "nothing for a list"],
)
def test_a_value_of_the_wrong_type_is_refused(
    documents: list[dict[str, Any]], schemas: dict[str, dict[str, Any]], path: tuple[Any, ...], value: object
) -> None:
    document = copy.deepcopy(next(document for document in documents if document["kind"] == "RayService"))
    place: Any = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    assert not jsonschema.Draft7Validator(schemas["RayService"]).is_valid(document)


# The Serve configuration


def deployed(text: str) -> Any:
    # Here and not above: importing Serve warns, and while modules are collected a warning ends the whole run.
    from ray.serve.schema import ServeDeploySchema

    data = yaml.safe_load(text)
    schema = ServeDeploySchema.model_validate(data)
    # Serve passes over fields that it does not know at these two levels.
    assert set(data) <= set(ServeDeploySchema.model_fields)
    assert set(data["http_options"]) <= set(type(schema.http_options).model_fields)
    return schema


def test_the_serve_config_of_the_manifest_deploys_the_service_on_all_interfaces(service: dict[str, Any]) -> None:
    schema = deployed(service["serveConfigV2"])
    (application,) = schema.applications
    assert (application.name, application.route_prefix, application.import_path) == ("mobula", "/", "serve_app:app")
    assert (schema.http_options.host, schema.http_options.port) == ("0.0.0.0", 8000)


def test_the_serve_config_file_deploys_the_service_where_the_packaged_service_file_says() -> None:
    schema = deployed((CONFIGS / "serve.yaml").read_text())
    (application,) = schema.applications
    assert (application.name, application.route_prefix, application.import_path) == ("mobula", "/", "serve_app:app")
    http = load_service({}).http
    assert (schema.http_options.host, schema.http_options.port) == (http.host, http.port)


# The parts of the manifest agree


def mounted(group: dict[str, Any], documents: list[dict[str, Any]], root: Path) -> Path:
    """Lays out the ConfigMaps under `root` as Kubernetes would lay them out in the group's pod, and names the
    service's file there."""
    maps = {document["metadata"]["name"]: document["data"] for document in documents if document["kind"] == "ConfigMap"}
    volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
    for mount in container(group)["volumeMounts"]:
        if config_map := volumes[mount["name"]].get("configMap"):
            folder = root / mount["mountPath"].lstrip("/")
            (folder / "..content").mkdir(parents=True)
            (folder / "..data").symlink_to("..content")
            for name, text in maps[config_map["name"]].items():
                (folder / "..content" / name).write_text(text)
                (folder / name).symlink_to(Path("..data") / name)
    environ = {variable["name"]: str(variable["value"]) for variable in container(group)["env"]}
    return root / environ["MOBULA_CONFIG"].lstrip("/")


@pytest.fixture
def loaded(documents: list[dict[str, Any]], groups: dict[str, dict[str, Any]], tmp_path: Path) -> ServiceConfig:
    return load_service({"MOBULA_CONFIG": str(mounted(groups["data"], documents, tmp_path))})


@pytest.mark.parametrize("name", ["head", "stateless", "data"])
def test_every_pod_finds_the_same_configuration(
    documents: list[dict[str, Any]], groups: dict[str, dict[str, Any]], tmp_path: Path, name: str
) -> None:
    service = load_service({"MOBULA_CONFIG": str(mounted(groups[name], documents, tmp_path))})
    assert list(load_tenants(service)) == ["example"]
    assert service.environment == "production"
    assert not service.allows_plain_keys
    assert (service.http.host, service.http.port) == ("0.0.0.0", 8000)


def test_there_are_three_kinds_of_pods(groups: dict[str, dict[str, Any]]) -> None:
    assert sorted(groups) == ["data", "head", "stateless"]


def test_only_the_data_pod_declares_the_resource_that_hosts_ask_for(
    groups: dict[str, dict[str, Any]], loaded: ServiceConfig
) -> None:
    # KubeRay writes the parameter into a command line that a shell reads.
    (text,) = shlex.split(groups["data"]["rayStartParams"]["resources"])
    assert list(json.loads(text)) == [loaded.objects.host_resource]
    assert all("resources" not in groups[name]["rayStartParams"] for name in ("head", "stateless"))


def test_only_one_data_pod_mounts_the_claim_and_where_the_service_keeps_its_data(
    documents: list[dict[str, Any]], groups: dict[str, dict[str, Any]], loaded: ServiceConfig
) -> None:
    (claim,) = (document for document in documents if document["kind"] == "PersistentVolumeClaim")
    mounts: dict[str, list[str]] = {}
    for name, group in groups.items():
        claims = {
            volume["name"]
            for volume in group["template"]["spec"]["volumes"]
            if volume.get("persistentVolumeClaim", {}).get("claimName") == claim["metadata"]["name"]
        }
        mounts[name] = [mount["mountPath"] for mount in container(group)["volumeMounts"] if mount["name"] in claims]
    assert mounts == {"head": [], "stateless": [], "data": [str(loaded.data_dir)]}
    data = groups["data"]
    assert (data["minReplicas"], data["replicas"], data["maxReplicas"]) == (1, 1, 1)
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]


def test_serve_replicas_land_on_stateless_pods_only(groups: dict[str, dict[str, Any]]) -> None:
    assert groups["head"]["rayStartParams"]["num-cpus"] == "0"
    assert groups["data"]["rayStartParams"]["num-cpus"] == "0"
    assert "num-cpus" not in groups["stateless"]["rayStartParams"]


def test_every_pod_runs_the_same_image_with_the_fast_http_path_and_no_privileges(
    service: dict[str, Any], groups: dict[str, dict[str, Any]]
) -> None:
    containers = [container(group) for group in groups.values()]
    assert len({one["image"] for one in containers}) == 1
    for one in containers:
        environ = {variable["name"]: variable["value"] for variable in one["env"]}
        assert FAST_HTTP_FLAGS.items() <= environ.items()
        assert environ["RAY_SERVE_DEFAULT_HTTP_HOST"] == "0.0.0.0"
        assert one["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for group in groups.values():
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    assert service["upgradeStrategy"] == {"type": "None"}


def test_the_image_has_the_versions_of_ray_and_of_the_service_that_the_manifest_names(
    service: dict[str, Any], groups: dict[str, dict[str, Any]]
) -> None:
    root = CONFIGS.parent
    assert f"ray=={service['rayClusterConfig']['rayVersion']}" in (root / "constraints.txt").read_text().split()
    version = container(groups["head"])["image"].rpartition(":")[2]
    assert f'\nversion = "{version}"\n' in (root / "pyproject.toml").read_text()


def test_the_image_is_built_from_folders_that_exist() -> None:
    root = CONFIGS.parent
    dockerfile = (CONFIGS / "kuberay" / "Dockerfile").read_text()
    copied = [line.split()[1:-1] for line in dockerfile.splitlines() if line.startswith("COPY ") and "--" not in line]
    packages = {name for names in copied for name in names}
    assert {"actors", "configs", "deployments", "constraints.txt", "weights.txt", "serve_app.py"} <= packages
    assert [
        name for name in ("actors", "configs", "deployments", "constraints.txt") if not (root / name).exists()
    ] == []
