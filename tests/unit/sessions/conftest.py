"""Sessions of three tenants, whose objects may fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors import ChatSession, Directory
from actors.runtime.clock import ManualClock
from deployments.sessions import Sessions
from tests.unit.handles import FailingObjects, sessions_of


@pytest.fixture
def objects(tmp_path: Path, clock: ManualClock) -> Iterator[FailingObjects]:
    objects = FailingObjects(tmp_path, clock, classes=[ChatSession, Directory])
    yield objects
    objects.close()


@pytest.fixture
def sessions(objects: FailingObjects, clock: ManualClock) -> Sessions:
    return sessions_of(objects, clock)
