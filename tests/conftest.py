"""What every test stands on: a clean environment, a data directory, and Ray or the lack of it."""

from __future__ import annotations

import os

# Before any import of the product: a developer's own settings must not decide what the tests see.
for _name in [name for name in os.environ if name.startswith("MOBULA_")]:
    del os.environ[_name]

import gc  # noqa: E402  after the environment is clean
import warnings  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# A shared machine stalls at times; how long one example takes says nothing about the code.
hypothesis.settings.register_profile("mobula", deadline=None)
hypothesis.settings.register_profile("long", deadline=None, max_examples=2_000, stateful_step_count=100)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "mobula"))


#: Workers find the tests' classes from here.
REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a test that would start Ray fail: what needs a cluster belongs to the integration tests."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a test without Ray called ray.init")

    monkeypatch.setattr("ray.init", refuse)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of the module's own: 2 CPUs, and `mobula_data`, as nodes have it that mount the data directory."""
    import ray

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    ray.init(
        address="local",
        num_cpus=2,
        resources={"mobula_data": 1},
        _node_ip_address="127.0.0.1",
        include_dashboard=True,  # without it `list_actors` has nobody to ask
        dashboard_host="127.0.0.1",
        object_store_memory=100 * 1024 * 1024,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()
    with warnings.catch_warnings():
        # Ray ends its processes without waiting for them, which `subprocess` notices when it forgets them.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
