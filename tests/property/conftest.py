"""These tests need no cluster, and may not start one."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def without_ray(no_ray: None) -> None:
    """Applies `no_ray` to every test of this folder."""
