"""A shelf behind its stub, and the storage of one in the middle of a turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.runtime.namespace import Stub
from actors.runtime.schema import Schema
from actors.runtime.storage import Storage
from tests.unit.storage.shelf import Shelf, migrations, shelf_in


@pytest.fixture
def shelf(data_dir: Path) -> Iterator[Stub[Shelf]]:
    with shelf_in(data_dir) as stub:
        yield stub


@pytest.fixture(scope="module")
def schema() -> Schema:
    return Schema(migrations)


@pytest.fixture
def storage(tmp_path: Path, schema: Schema) -> Iterator[Storage]:
    """In the middle of a turn."""
    storage = Storage("Shelf/acme:s", tmp_path / "s.sqlite", schema)
    storage.begin()
    yield storage
    storage.close()
