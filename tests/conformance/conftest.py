"""Where the tests of a subject find objects: in process, once with objects that stay and once with such that don't."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.testing import Lab
from tests.conformance.classes import CLASSES, SETTINGS, Desk
from tests.conformance.support import Backend, Eventually


@pytest.fixture(autouse=True)
def without_ray(request: pytest.FixtureRequest) -> None:
    """These tests need no cluster, and may not start one, but for those of `test_on_ray`."""
    if "ray_cluster" not in request.fixturenames:
        request.getfixturevalue("no_ray")


@pytest.fixture(params=[False, True], ids=["resident", "hibernating"])
async def lab(request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    async with Lab(CLASSES, always_evict=request.param, settings=HostSettings(**SETTINGS)) as lab:
        yield lab


@pytest.fixture
def backend(lab: Lab) -> Backend:
    return lab


@pytest.fixture
def desk(backend: Backend) -> Stub[Desk]:
    """One that no other test has used, wherever the objects are."""
    return backend.namespace(Desk).get("acme", f"d-{secrets.token_hex(6)}")


@pytest.fixture
def eventually(lab: Lab) -> Eventually:
    async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
        await lab.advance(2.5)
        assert await holds()

    return eventually


@pytest.fixture
def settings() -> dict[str, Any]:
    """What a test may change of a lab of its own."""
    return dict(SETTINGS)
