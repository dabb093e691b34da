"""A data directory of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.class_history.data import Data


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path / "data")
