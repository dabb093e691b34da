"""Do the Serve configs that ship deploy the service on a Ray cluster?"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from deployments.free_port import free_port

REPOSITORY = Path(__file__).parents[2]
MANIFEST = REPOSITORY / "configs" / "kuberay" / "rayservice.yaml"
DEPLOY = Path(__file__).with_name("deploy_config.py")
KEY = "sk-of-the-test"


@contextmanager
def deployed(
    config: dict[str, Any], environ: Mapping[str, str], resources: Mapping[str, float]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The address of the service that a Serve config makes, and what its cluster says."""
    port = free_port()
    config = {**config, "http_options": {**config["http_options"], "host": "127.0.0.1", "port": port}}
    process = subprocess.Popen(
        [sys.executable, str(DEPLOY), json.dumps(config), str(free_port()), json.dumps(resources)],
        env={**os.environ, **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        if not said:
            raise AssertionError(process.communicate(timeout=30)[1][-2000:])
        yield f"http://127.0.0.1:{port}", json.loads(said)
    finally:
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()
        if process.stderr is not None:
            process.stderr.close()


def append_and_read(url: str, key: str) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        assert client.get("/readyz").json() == {"status": "ok", "failing": {}}
        session = client.post("/chat/sessions", json={}).json()
        path = f"/chat/sessions/{session['id']}/messages"
        assert client.post(path, json={"role": "user", "content": "hello"}).status_code == 201
        assert [message["content"] for message in client.get(path).json()["messages"]] == ["hello"]


def test_the_manifest_of_kuberay_deploys_with_its_hosts_only_where_the_data_is(tmp_path: Path) -> None:
    documents = list(yaml.safe_load_all(MANIFEST.read_text()))
    files = {
        document["metadata"]["name"]: document["data"] for document in documents if document["kind"] == "ConfigMap"
    }
    (service_dir := tmp_path / "service").mkdir()
    (tenants_dir := tmp_path / "tenants").mkdir()
    data_dir = tmp_path / "data"
    service = files["mobula-service"]["service.yaml"].replace("/var/lib/mobula", str(data_dir))
    (service_dir / "service.yaml").write_text(service)
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    for name, tenant in files["mobula-tenants"].items():
        (tenants_dir / name).write_text(tenant.replace("0" * 64, digest))
    (ray_service,) = [document for document in documents if document["kind"] == "RayService"]
    config = yaml.safe_load(ray_service["spec"]["serveConfigV2"])

    environ = {"MOBULA_CONFIG": str(service_dir / "service.yaml")}
    with deployed(config, environ, {"mobula_data": 1000}) as (url, cluster):
        append_and_read(url, KEY)
        assert [name for name in cluster["running"] if name.startswith("host-")] == ["host-0", "host-1"]
        # What each host, the control actor and the vectors' owner take of it.
        assert cluster["free"]["mobula_data"] < 1000
    assert list((data_dir / "objects" / "ChatSession").rglob("*.sqlite"))


def test_the_serve_config_deploys_on_a_running_cluster(tmp_path: Path) -> None:
    config = yaml.safe_load((REPOSITORY / "configs" / "serve.yaml").read_text())
    with deployed(config, {"MOBULA_DATA_DIR": str(tmp_path)}, {}) as (url, _):
        append_and_read(url, "sk-demo")
