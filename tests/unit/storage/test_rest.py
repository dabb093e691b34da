"""What does a database give back that is not used for a while, and does it go on as if nothing had been?"""

from __future__ import annotations

import ctypes
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.runtime import StatementRefused, sqlite, sqlite_library
from actors.runtime.connection import STATEMENTS_MAX, ObjectConnection
from actors.runtime.schema import Schema
from actors.runtime.storage import Storage

READ = "SELECT name, parent FROM thing WHERE id >= ? ORDER BY id"


@pytest.fixture
def connection(tmp_path: Path, schema: Schema) -> Iterator[ObjectConnection]:
    path = tmp_path / "s.sqlite"
    sqlite.create(path, schema.template)
    connection = sqlite.connect(path)
    connection.execute("INSERT INTO thing (name) VALUES ('a'), ('b'), ('c')")
    yield connection
    connection.close()


@pytest.fixture
def memory_used() -> Callable[[], int]:
    """Bytes that SQLite has taken, for the whole process."""
    used = sqlite_library.load().sqlite3_memory_used
    used.restype = ctypes.c_longlong
    return used


class TestMemory:
    """What is given back, and what is never taken?"""

    def test_it_gives_back_statements_pages_and_schema(
        self, connection: ObjectConnection, memory_used: Callable[[], int]
    ) -> None:
        connection.rest()
        at_rest = memory_used()
        for number in range(20):
            connection.run(f"{READ} LIMIT {number}", [1])
        used = memory_used() - at_rest
        connection.rest()
        assert used > 20_000
        assert memory_used() - at_rest < used / 20

    def test_as_many_statements_are_kept_as_may_be(
        self, connection: ObjectConnection, memory_used: Callable[[], int]
    ) -> None:
        for number in range(STATEMENTS_MAX):
            connection.run(f"SELECT {number:04}", [])
        before = memory_used()
        for number in range(STATEMENTS_MAX, 5 * STATEMENTS_MAX):
            connection.run(f"SELECT {number:04}", [])
        assert memory_used() - before < 10_000

    def test_what_has_run_leaves_nothing_behind(self, connection: ObjectConnection) -> None:
        def run() -> None:
            for _ in range(5_000):
                connection.run(READ, [1])
                connection.run_own("SELECT 1")

        run()
        tracemalloc.start()
        try:
            run()
            assert tracemalloc.get_traced_memory()[0] < 20_000
        finally:
            tracemalloc.stop()

    def test_one_that_is_closed_is_freed(self, tmp_path: Path, schema: Schema) -> None:
        path = tmp_path / "freed.sqlite"
        sqlite.create(path, schema.template)
        connection = sqlite.connect(path)
        connection.run(READ, [1])
        freed = weakref.ref(connection)
        connection.close()
        del connection
        assert freed() is None


class TestAfterwards:
    """Whatever an author has begun goes on."""

    def test_statements_run_as_before(self, connection: ObjectConnection) -> None:
        before = connection.run(READ, [2])
        connection.rest()
        connection.rest()
        assert connection.run(READ, [2]) == before == [("b", None), ("c", None)]

    def test_the_file_stays_locked(self, connection: ObjectConnection, tmp_path: Path) -> None:
        connection.rest()
        with pytest.raises(sqlite.Error) as caught:
            sqlite.connect(tmp_path / "s.sqlite")
        assert sqlite.is_busy(caught.value)

    def test_what_is_refused_stays_refused(self, storage: Storage) -> None:
        storage.own_sql("SELECT * FROM _mobula_kv")
        storage.commit()
        storage.rest()
        storage.begin()
        for query in ("SELECT * FROM _mobula_kv", "PRAGMA writable_schema = ON", "PRAGMA shrink_memory"):
            with pytest.raises(StatementRefused):
                storage.sql(query)

    def test_rows_that_nobody_has_read_yet_are_still_there(self, connection: ObjectConnection) -> None:
        cursor = connection.execute("SELECT name FROM thing ORDER BY id")
        assert cursor.fetchone() == ("a",)
        connection.rest()
        assert cursor.fetchall() == [("b",), ("c",)]

    def test_tables_for_a_while_and_functions_and_a_search_index_are_still_there(
        self, connection: ObjectConnection
    ) -> None:
        connection.create_function("twice", 1, lambda value: 2 * value)
        connection.execute("CREATE TEMP TABLE passing AS SELECT 21 AS value")
        connection.execute("CREATE VIRTUAL TABLE found USING fts5 (text)")
        connection.execute("INSERT INTO found VALUES ('a needle in it')")
        connection.rest()
        assert connection.run("SELECT twice(value) FROM passing", []) == [(42,)]
        assert connection.run("SELECT text FROM found WHERE found MATCH 'needle'", []) == [("a needle in it",)]

    def test_a_function_may_run_a_statement_within_one(self, connection: ObjectConnection) -> None:
        connection.create_function("count_things", 0, lambda: connection.run("SELECT count(*) FROM thing", [])[0][0])
        for _ in range(2):
            assert connection.run("SELECT id, count_things() FROM thing WHERE id = ?", [2]) == [(2, 3)]
            connection.rest()
