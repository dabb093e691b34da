"""Turns are tried with sessions that stay resident, and with those that hibernate after each call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from actors import ChatSession, LocalBackend
from actors.runtime.clock import ManualClock
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.testing import Lab
from tests.turns import CLASSES
from tests.unit.objects_fixtures import Hibernating


@pytest.fixture(params=[LocalBackend, Hibernating], ids=["resident", "hibernating"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Iterator[LocalBackend]:
    backend = request.param(tmp_path, CLASSES, settings=HostSettings(slots=4), clock=clock, keeps_time=False)
    yield backend
    backend.close()


@pytest.fixture
async def session(objects: LocalBackend) -> Stub[ChatSession]:
    session = objects.namespace(ChatSession).get("acme", "s1")
    await session.create()
    return session


@pytest.fixture(params=[False, True], ids=["resident", "hibernating"])
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    async with Lab(CLASSES, always_evict=request.param) as lab:
        yield lab
