"""These tests need no cluster, and may not start one. Their time is what they say it is."""

from __future__ import annotations

import pytest

from actors.runtime.clock import ManualClock


@pytest.fixture(autouse=True)
def without_ray(no_ray: None) -> None:
    """Applies `no_ray` to every test of this folder."""


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
