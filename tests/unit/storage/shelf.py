"""Which object lets a test do all that an author could?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors.runtime import DurableObject, exactly_once, read
from actors.runtime.backend_local import LocalBackend
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub

migrations = Migrations("shelf")


@migrations()
def create_tables(database: Database) -> None:
    database.execute("CREATE TABLE thing (id INTEGER PRIMARY KEY, name TEXT UNIQUE, parent INTEGER REFERENCES thing)")


class Shelf(DurableObject):
    """Runs what it is told to."""

    migrations = migrations

    def sql(self, query: str, *binds: Any) -> list[Any]:
        return self.storage.sql(query, *binds)

    def through_sqlite_utils(self, query: str) -> list[Any]:
        return list(self.storage.database.execute(query).fetchall())

    @exactly_once
    def once(self, name: str) -> None:
        self.storage.sql("INSERT INTO thing (name) VALUES (?)", name)

    def put(self, key: str, value: Any) -> None:
        self.storage.kv.put(key, value)

    @read
    def get(self, key: str) -> Any:
        return self.storage.kv.get(key)

    @read
    def put_though_a_read(self) -> None:
        self.storage.kv.put("k", 1)

    def put_and_raise(self, key: str, value: Any) -> None:
        self.storage.kv.put(key, value)
        raise ValueError(key)

    def put_and_undo(self, key: str, value: Any) -> None:
        self.storage.kv.put(key, "first")
        try:
            with self.storage.transaction():
                self.storage.kv.put(key, value)
                raise ValueError(key)
        except ValueError:
            pass

    @read
    def keys(self) -> list[str]:
        return list(self.storage.kv.list())

    def fill_and_go_on(self, size_bytes: int) -> None:
        try:
            self.storage.kv.put("large", "x" * size_bytes)
        except Exception:  # what a careless author does
            self.storage.kv.put("afterwards", 1)

    @read
    def size_bytes(self) -> int:
        return self.storage.size_bytes


@contextmanager
def shelf_in(data_dir: Path, **settings: Any) -> Iterator[Stub[Shelf]]:
    backend = LocalBackend(data_dir, [Shelf], settings=HostSettings(slots=2, **settings))
    try:
        yield backend.namespace(Shelf).get("acme", "s")
    finally:
        backend.close()
