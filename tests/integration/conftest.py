"""The whole service, as `make run` starts it, in processes of its own; one for all tests that talk to it over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from deployments.fast_http import client_environment
from deployments.free_port import free_port
from tests.integration.scripted_model import KEY, MODEL, ScriptedModel, scripted_model

CONFIG = Path(__file__).parent / "service" / "service.yaml"
START_WITHIN_S = 180.0
END_WITHIN_S = 120.0
TOOLED_KEY = "sk-tooled"
TOOLS = ["vector_search", "kv_get", "tests.integration.own_tools:whoami", "tests.integration.own_tools:hangs"]
STEPS_MAX = 4
MODEL_TIMEOUT_S = 8.0
#: Of tenants that may not do all that they like. Their keys are `sk-` and the name.
ANSWER_TOKENS = 20
LIMITED: dict[str, dict[str, Any]] = {
    # Five answers a month.
    "budgeted": {"budgets": [{"name": "monthly", "per": "month", "output_tokens": 5 * ANSWER_TOKENS}]},
    "crowded": {
        "concurrency": {"per_client": 3, "per_tenant": 5},
        "limits": {"refill_per_second": 100_000, "capacity": 100_000, "client_key": ["header:x-client"]},
    },
    "leased": {
        "limits": {
            "client_key": ["header:x-client"],
            "policies": [
                {"name": "quota", "capacity": 100, "refill_per_second": 0, "lease": {"tokens": 20, "ttl_s": 3}}
            ],
        },
    },
}
TOOL_TIMEOUT_S = 3.0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has tests of the shared service run last: it takes memory and a share of the cores for as long as it runs."""
    items.sort(key=_needs_the_shared_service)


def _needs_the_shared_service(item: pytest.Item) -> bool:
    # A module may have a service of its own, and a fixture of the same name for it.
    return isinstance(item, pytest.Function) and "service" in item.fixturenames and "service" not in vars(item.module)


def configured(folder: Path, model: ScriptedModel, **more: Any) -> Path:
    """The tests' configuration in a folder of its own, with more tenants whose model is this one.

    One has all tools, and little patience; others are limited.
    """
    tenants = folder / "tenants"
    shutil.copytree(CONFIG.parent / "tenants", tenants)
    tenant: dict[str, Any] = {
        "tenant": MODEL,
        "keys": [{"id": "all", "plain": KEY, "scopes": ["chat", "ingest", "search", "kv", "admin"]}],
        "limits": {"refill_per_second": 100_000, "capacity": 100_000},
        "model": {"base_url": model.url, "model": MODEL, "max_tokens": 100_000, "context_tokens": 1_000_000},
        **more,
    }
    (tenants / f"{MODEL}.yaml").write_text(yaml.safe_dump(tenant))
    tooled = {
        **tenant,
        "tenant": "tooled",
        "keys": [{**tenant["keys"][0], "plain": TOOLED_KEY}],
        "model": {**tenant["model"], "timeout_s": MODEL_TIMEOUT_S},
        "tools": {"enabled": TOOLS, "steps_max": STEPS_MAX, "timeout_s": TOOL_TIMEOUT_S},
    }
    (tenants / "tooled.yaml").write_text(yaml.safe_dump(tooled))
    for name, limited in LIMITED.items():
        key = {**tenant["keys"][0], "plain": f"sk-{name}"}
        (tenants / f"{name}.yaml").write_text(
            yaml.safe_dump(
                {
                    **tenant,
                    "tenant": name,
                    "keys": [key],
                    "model": {**tenant["model"], "max_tokens": ANSWER_TOKENS},
                    **limited,
                }
            )
        )
    return Path(shutil.copy(CONFIG, folder))


class Service:
    """A running service. `start` and `kill` may alternate on the same data."""

    def __init__(self, data_dir: Path, port: int, config: Path = CONFIG) -> None:
        self.data_dir = data_dir
        self.config = config
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.said = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        environ = {**os.environ, "MOBULA_CONFIG": str(self.config), "MOBULA_PORT": str(self.port)}
        environ["MOBULA_DATA_DIR"] = str(self.data_dir)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deployments"],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        limit = threading.Timer(START_WITHIN_S, self._kill, [""])
        limit.start()
        try:
            for line in self._process.stdout:
                self.said += line
                if "Mobula is at" in line:
                    return
        finally:
            limit.cancel()
        self._forget()
        raise AssertionError(f"the service ended without being ready:\n{self.said}")

    def stop(self) -> None:
        """As Ctrl-C does."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGINT)
            self._forget()

    def _forget(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        assert process.stdout is not None
        process.wait(timeout=END_WITHIN_S)
        # Not read to its end, which is not there while anything that it started lives.
        process.stdout.close()

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Those of this service whose command line holds `name`; Ray calls a worker `ray::<class>`."""
        assert self._process is not None
        root = psutil.Process(self._process.pid)
        return [process for process in [root, *root.children(recursive=True)] if name in " ".join(_command(process))]

    def kill(self, name: str = "") -> int:
        """`kill -9` of those processes; of all without a name. Returns how many there were."""
        killed = self._kill(name)
        if not name:
            self._forget()
        return killed

    def _kill(self, name: str) -> int:
        found = self.processes(name)
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=END_WITHIN_S)
        return len(found)

    def files_of(self, name: str) -> list[Path]:
        """What the service keeps on disk for the objects whose name holds `name`."""
        return sorted((self.data_dir / "objects").rglob(f"*{name}*"))

    @property
    def ray_environ(self) -> dict[str, str]:
        """What another process needs to join the service's Ray cluster."""
        record = json.loads((self.data_dir / "run" / "run.json").read_text())
        return {**os.environ, **client_environment(record["ray_address"])}

    def client(self, key: str | None = "sk-demo", *, timeout_s: float = 60.0) -> httpx.Client:
        """A client of one tenant. Close it, or use it as a context."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # There is no TLS here, and to load the certificates takes longer than most requests.
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, verify=False)

    def async_client(self, key: str = "sk-demo", *, timeout_s: float = 60.0) -> httpx.AsyncClient:
        """The same for many requests at once."""
        # httpx would hold some of them back otherwise.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout_s, limits=limits, verify=False)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(scope="session")
def model() -> Iterator[ScriptedModel]:
    """What answers the tenant `scripted` of the shared service."""
    with scripted_model() as model:
        yield model


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, model: ScriptedModel) -> Iterator[Service]:
    config = configured(tmp_path_factory.mktemp("config"), model)
    running = Service(tmp_path_factory.mktemp("service"), free_port(), config)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def demo(service: Service) -> Iterator[httpx.Client]:
    with service.client("sk-demo") as client:
        yield client


@pytest.fixture
def scripted(service: Service) -> Iterator[httpx.Client]:
    with service.client(KEY) as client:
        yield client


@pytest.fixture
def tooled(service: Service) -> Iterator[httpx.Client]:
    with service.client(TOOLED_KEY) as client:
        yield client


@pytest.fixture
def acme(service: Service) -> Iterator[httpx.Client]:
    with service.client("sk-acme") as client:
        yield client
