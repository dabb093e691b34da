"""Notebooks in this process, on files and a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.runtime.backend_local import LocalBackend
from actors.runtime.clock import ManualClock
from actors.runtime.namespace import Namespace, Stub
from tests.objects import Notebook
from tests.unit.object_runtime.backend import SETTINGS, opened


@pytest.fixture
def backend(data_dir: Path, clock: ManualClock) -> Iterator[LocalBackend]:
    with opened(data_dir, clock) as backend:
        yield backend


@pytest.fixture
def notebooks(backend: LocalBackend) -> Namespace[Notebook]:
    return backend.namespace(Notebook)


@pytest.fixture
def notebook(notebooks: Namespace[Notebook]) -> Stub[Notebook]:
    return notebooks.get("acme", "n1")


@pytest.fixture
def path_of(data_dir: Path) -> Callable[[Stub[Any]], Path]:
    return lambda stub: stub.id.path(data_dir / "objects", SETTINGS.slots)
