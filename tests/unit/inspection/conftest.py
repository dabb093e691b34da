"""A backend without Ray, and who looks after its objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import LocalBackend, Operator
from actors.runtime.clock import ManualClock
from tests.objects import AlarmClock, Ledger, Notebook
from tests.unit.inspection.support import MADE, NOW, SETTINGS, Endless, Growing


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def backend(data_dir: Path, clock: ManualClock) -> Iterator[LocalBackend]:
    backend = LocalBackend(data_dir, [Notebook, Ledger, Growing, AlarmClock, Endless], settings=SETTINGS, clock=clock)
    MADE.clear()
    yield backend
    backend.close()


@pytest.fixture
def operator(backend: LocalBackend) -> Operator:
    return Operator(backend)
