"""What becomes of a file when the code's migrations are others?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors.runtime import DurableObject, ObjectFailed, SchemaTooNew, read
from actors.runtime.backend_local import LocalBackend
from actors.runtime.namespace import Stub
from tests.objects import Refusal
from tests.unit.object_runtime.backend import SETTINGS


class TestSchema:
    """Is a file brought up to date, all of it or nothing, and one of newer code left alone?"""

    @staticmethod
    def page_class(*steps: str) -> type[DurableObject]:
        migrations = Migrations("page")
        for step in steps:

            def migrate(database: Database, step: str = step) -> None:
                if step == "broken":
                    database.execute("CREATE TABLE half (a)")
                    raise Refusal("this migration does not work", 1)
                database.execute(f"CREATE TABLE {step} (text TEXT)")
                database.execute(f"INSERT INTO {step} VALUES ('made by {step}')")

            migrations(name=step)(migrate)

        class Page(DurableObject):
            def write(self, table: str, text: str) -> None:
                self.storage.sql(f"INSERT INTO {table} VALUES (?)", text)

            @read
            def tables(self) -> list[str]:
                rows = self.storage.sql("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
                return [name for (name,) in rows if not name.startswith("_")]

            @read
            def texts(self, table: str) -> list[str]:
                return [text for (text,) in self.storage.sql(f"SELECT text FROM {table}")]

        Page.migrations = migrations if steps else None
        return Page

    @contextmanager
    def page(self, data_dir: Path, page_class: type[DurableObject]) -> Iterator[Stub[Any]]:
        backend = LocalBackend(data_dir, [page_class], settings=SETTINGS)
        try:
            yield backend.namespace(page_class).get("acme", "p")
        finally:
            backend.close()

    async def test_an_older_file_is_migrated_on_activation(self, data_dir: Path) -> None:
        with self.page(data_dir, self.page_class("first")) as page:
            await page.write("first", "kept")
        with self.page(data_dir, self.page_class("first", "second", "third")) as page:
            assert await page.tables() == ["first", "second", "third"]
            assert await page.texts("first") == ["made by first", "kept"]
            assert await page.texts("third") == ["made by third"]

    async def test_a_file_from_before_there_were_migrations_is_migrated(self, data_dir: Path) -> None:
        with self.page(data_dir, self.page_class()) as page:
            with pytest.raises(Exception, match="no such table"):
                await page.write("first", "x")
            assert await page.tables() == []
        # Nothing was written, so that there is no file yet; an unmigrated one is made by hand.
        with self.page(data_dir, self.page_class()) as page:
            path = page.id.path(data_dir / "objects", SETTINGS.slots)
        by_hand = Database(path)
        by_hand.execute("CREATE TABLE _mobula_requests (request_id TEXT PRIMARY KEY, fingerprint, result, at)")
        by_hand.close()
        with self.page(data_dir, self.page_class("first")) as page:
            assert await page.texts("first") == ["made by first"]

    async def test_a_migration_that_fails_leaves_the_file_as_it_was(self, data_dir: Path) -> None:
        with self.page(data_dir, self.page_class("first")) as page:
            await page.write("first", "kept")
        broken = self.page_class("first")
        assert broken.migrations is not None
        with self.page(data_dir, broken) as page:
            path = page.id.path(data_dir / "objects", SETTINGS.slots)
            # Made broken after the template, which is made from scratch.
            step = broken.migrations

            @step(name="second")
            def second(database: Database) -> None:
                database.execute("CREATE TABLE second (text TEXT)")

            @step(name="third")
            def third(database: Database) -> None:
                database.execute("CREATE TABLE half (a)")
                raise Refusal("this migration does not work", 1)

            backend = page._backend
            assert isinstance(backend, LocalBackend)
            backend.host._schemas["Page"]._names.extend(["second", "third"])
            for _ in range(2):
                with pytest.raises(ObjectFailed, match="activation failed"):
                    await page.texts("first")
        left = Database(path)
        assert [name for name in left.table_names() if not name.startswith("_")] == ["first"]
        left.close()
        with self.page(data_dir, self.page_class("first", "second")) as page:
            assert await page.texts("first") == ["made by first", "kept"]
            assert await page.texts("second") == ["made by second"]

    async def test_a_file_of_newer_code_is_refused_and_left_alone(self, data_dir: Path) -> None:
        with self.page(data_dir, self.page_class("first", "second")) as page:
            await page.write("first", "kept")
            path = page.id.path(data_dir / "objects", SETTINGS.slots)
        before = path.read_bytes()
        with self.page(data_dir, self.page_class("first")) as page:
            with pytest.raises(SchemaTooNew) as too_new:
                await page.texts("first")
            assert (too_new.value.found, too_new.value.known) == ("second", "first")
        assert path.read_bytes() == before
