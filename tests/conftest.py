"""What every test stands on: an environment without settings of ours, and temporary data directories."""

from __future__ import annotations

import os

# Before any import of the product: a developer's own settings must not decide what the tests see.
for _name in [name for name in os.environ if name.startswith("MOBULA_")]:
    del os.environ[_name]

from pathlib import Path  # noqa: E402  after the environment is clean

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# A shared machine stalls at times; how long one example takes says nothing about the code.
hypothesis.settings.register_profile("mobula", deadline=None)
hypothesis.settings.register_profile("long", deadline=None, max_examples=2_000, stateful_step_count=100)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "mobula"))


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a test that would start Ray fail: what needs a cluster belongs to the integration tests."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a test without Ray called ray.init")

    monkeypatch.setattr("ray.init", refuse)
