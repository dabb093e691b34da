"""Are files of other versions of the runtime brought up to date, or left alone?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlite_utils import Database

from actors.runtime import SchemaTooNew
from actors.runtime.namespace import Stub
from actors.runtime.schema import RUNTIME_VERSION, Schema
from actors.runtime.storage import Storage
from tests.unit.storage.shelf import Shelf


class TestRuntimeTables:
    """Do older files get the runtime's new tables, and newer ones stay as they are?"""

    def file_of(self, tmp_path: Path, schema: Schema, *statements: str) -> Path:
        path = tmp_path / "old.sqlite"
        storage = Storage("Shelf/acme:s", path, schema)
        storage.begin()
        storage.sql("INSERT INTO thing (name) VALUES ('kept')")
        storage.commit()
        storage.close()
        with Database(path) as database:
            for statement in statements:
                database.execute(statement)
        return path

    def test_a_file_from_before_there_were_entries_gets_their_table(self, tmp_path: Path, schema: Schema) -> None:
        path = self.file_of(tmp_path, schema, "DROP TABLE _mobula_kv", "PRAGMA user_version = 0")
        storage = Storage("Shelf/acme:s", path, schema)
        storage.begin()
        storage.kv.put("k", 1)
        assert storage.sql("SELECT name FROM thing") == [("kept",)]
        assert storage.sql("PRAGMA user_version") == [(RUNTIME_VERSION,)]
        storage.commit()
        storage.close()

    def test_a_file_of_a_newer_runtime_is_refused_and_left_alone(self, tmp_path: Path, schema: Schema) -> None:
        path = self.file_of(tmp_path, schema, f"PRAGMA user_version = {RUNTIME_VERSION + 1}")
        before = path.read_bytes()
        with pytest.raises(SchemaTooNew, match=re.escape(f"runtime {RUNTIME_VERSION + 1}")):
            Storage("Shelf/acme:s", path, schema)
        assert path.read_bytes() == before

    async def test_exactly_once_still_finds_its_records(self, shelf: Stub[Shelf]) -> None:
        await shelf.once("x")
        await shelf.once("y")
        assert await shelf.sql("SELECT name FROM thing ORDER BY name") == [("x",), ("y",)]
