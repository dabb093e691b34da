"""What may an object do with its storage, what is refused, and what is left when there is no room?"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors.runtime import (
    DurableObject,
    InvalidArgument,
    ObjectReset,
    SchemaTooNew,
    StatementRefused,
    StorageFull,
    exactly_once,
    read,
)
from actors.runtime.backend_local import LocalBackend
from actors.runtime.connection import VALUE_BYTES_MAX
from actors.runtime.host import HostSettings
from actors.runtime.key_values import KEY_BYTES_MAX, KeyValues
from actors.runtime.key_values import VALUE_BYTES_MAX as KV_BYTES_MAX
from actors.runtime.namespace import Stub
from actors.runtime.schema import RUNTIME_VERSION, Schema
from actors.runtime.storage import Storage
from tests.conformance.support import outcomes_of

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


REFUSED = [
    ("ATTACH ':memory:' AS other", "attach or detach a database"),
    ("DETACH main", "attach or detach a database"),
    ("VACUUM INTO '/tmp/copy'", "attach or detach a database"),
    ("BEGIN", "BEGIN"),
    ("COMMIT", "COMMIT"),
    ("END", "COMMIT"),
    ("ROLLBACK", "ROLLBACK"),
    ("SAVEPOINT mine", "use SAVEPOINT mine"),
    ("ROLLBACK TO _mobula_turn", "use SAVEPOINT _mobula_turn"),
    ("RELEASE _mobula_turn", "use SAVEPOINT _mobula_turn"),
    ("PRAGMA journal_mode = DELETE", "use PRAGMA journal_mode = DELETE"),
    ("PRAGMA main.Synchronous(OFF)", "use PRAGMA synchronous = OFF"),
    ("PRAGMA writable_schema = ON", "use PRAGMA writable_schema = ON"),
    ("PRAGMA user_version = 7", "use PRAGMA user_version = 7"),
    ("PRAGMA schema_version = 7", "use PRAGMA schema_version = 7"),
    ("PRAGMA max_page_count = 1000000", "use PRAGMA max_page_count = 1000000"),
    ("PRAGMA locking_mode = NORMAL", "use PRAGMA locking_mode = NORMAL"),
    ("PRAGMA foreign_keys = OFF", "use PRAGMA foreign_keys = OFF"),
    ("PRAGMA wal_checkpoint", "use PRAGMA wal_checkpoint"),
    ("SELECT load_extension('x')", "call load_extension"),
    ("SELECT * FROM _mobula_kv", "touch _mobula_kv"),
    ("SELECT count(*) FROM _MOBULA_requests", "touch _MOBULA_requests"),
    ("INSERT INTO _mobula_kv VALUES ('k', '1')", "touch _mobula_kv"),
    ("UPDATE _mobula_kv SET value = '2'", "touch _mobula_kv"),
    ("DELETE FROM _mobula_requests", "touch _mobula_requests"),
    ("DROP TABLE _mobula_requests", "touch _mobula_requests"),
    ("DROP INDEX _mobula_requests_at", "touch _mobula_requests_at"),
    ("CREATE TABLE _mobula_mine (a)", "touch _mobula_mine"),
    ("CREATE TABLE _Mobula_mine AS SELECT 1", "touch _Mobula_mine"),
    ("CREATE TEMP TABLE _mobula_kv (key, value)", "touch _mobula_kv"),
    ("CREATE VIEW _mobula_mine AS SELECT 1", "touch _mobula_mine"),
    ("CREATE INDEX mine ON _mobula_kv (value)", "touch _mobula_kv"),
    ("CREATE INDEX _mobula_mine ON thing (name)", "touch _mobula_mine"),
    ("CREATE TRIGGER mine AFTER INSERT ON _mobula_kv BEGIN SELECT 1; END", "touch _mobula_kv"),
    ("CREATE VIRTUAL TABLE _mobula_mine USING fts5(a)", "touch _mobula_mine"),
    ("ALTER TABLE _mobula_kv ADD COLUMN mine", "touch _mobula_*"),
    ("ALTER TABLE thing RENAME TO _mobula_mine", "touch _mobula_*"),
    ('ALTER TABLE thing RENAME TO "_MOBULA_mine"', "touch _mobula_*"),
    ("ALTER TABLE _mobula_kv RENAME TO mine", "touch _mobula_*"),
    ("WITH stolen AS (SELECT * FROM _mobula_kv) SELECT * FROM stolen", "touch _mobula_kv"),
    ("SELECT name FROM thing WHERE name IN (SELECT key FROM _mobula_kv)", "touch _mobula_kv"),
]

ALLOWED = [
    "PRAGMA journal_mode",
    "PRAGMA table_info(thing)",
    "PRAGMA table_xinfo(_mobula_kv)",
    "PRAGMA foreign_key_list(thing)",
    "PRAGMA quick_check",
    "PRAGMA integrity_check(5)",
    "PRAGMA optimize",
    "PRAGMA user_version",
    "PRAGMA page_count",
    "SELECT * FROM pragma_table_list",
    "SELECT sql FROM sqlite_schema",
    "CREATE TEMP TABLE passing (a)",
    "CREATE VIRTUAL TABLE words USING fts5(text)",
    "ALTER TABLE thing ADD COLUMN colour TEXT",
    "ALTER TABLE thing RENAME TO item",
    "EXPLAIN QUERY PLAN SELECT * FROM thing",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT i FROM n",
    "ANALYZE",
    "REINDEX",
]


class TestAuthorizer:
    """What is the runtime's stays out of an author's reach, and the rest of SQLite does not."""

    @pytest.mark.parametrize(("query", "action"), REFUSED, ids=[query for query, _ in REFUSED])
    @pytest.mark.parametrize("way", ["sql", "sqlite_utils"])
    def test_a_statement_is_refused_by_name_with_its_reason(
        self, storage: Storage, query: str, action: str, way: str
    ) -> None:
        run: Callable[[str], Any] = storage.sql if way == "sql" else storage.database.execute
        if query.startswith("VACUUM"):
            storage.rollback()  # SQLite's own refusal comes first within a transaction
        with pytest.raises(StatementRefused) as refused:
            run(query)
        assert refused.value.action == action
        assert str(refused.value).startswith(f"Shelf/acme:s may not {action}: ")
        assert not refused.value.retryable

    @pytest.mark.parametrize("query", ALLOWED)
    def test_other_statements_run(self, storage: Storage, query: str) -> None:
        storage.sql(query)
        assert storage.in_transaction

    @pytest.mark.parametrize("method", ["commit", "rollback"])
    def test_the_drivers_own_ways_of_ending_a_transaction_are_refused(self, storage: Storage, method: str) -> None:
        with pytest.raises(StatementRefused, match="every turn is one transaction"):
            getattr(storage.database.conn, method)()
        assert storage.in_transaction

    def test_a_script_can_neither_commit_nor_hide_a_statement(self, storage: Storage) -> None:
        with pytest.raises(StatementRefused, match="COMMIT"):
            storage.database.conn.executescript("SELECT 1")  # the driver commits first
        with pytest.raises(StatementRefused, match="touch _mobula_kv"):
            storage.database.executescript("SELECT 1; DELETE FROM _mobula_kv; SELECT 2;")
        with pytest.raises(StatementRefused, match="touch _mobula_kv"):
            storage.sql_many("INSERT INTO _mobula_kv VALUES (?, ?)", [("k", "1")])

    def test_neither_the_authorizer_nor_extensions_are_the_authors(self, storage: Storage) -> None:
        connection = storage.database.conn
        for attempt in (
            lambda: connection.set_authorizer(None),
            lambda: connection.enable_load_extension(True),
            lambda: connection.blobopen("_mobula_kv", "value", 1),
        ):
            with pytest.raises(StatementRefused):
                attempt()

    @pytest.mark.parametrize(
        ("make", "use"),
        [
            ("CREATE VIEW mine AS SELECT * FROM _mobula_kv", "SELECT * FROM mine"),
            (
                "CREATE TRIGGER mine AFTER INSERT ON thing BEGIN DELETE FROM _mobula_requests; END",
                "INSERT INTO thing (name) VALUES ('x')",
            ),
            (
                "CREATE VIRTUAL TABLE mine USING fts5(value, content='_mobula_kv', content_rowid='key')",
                "INSERT INTO mine (mine) VALUES ('rebuild')",
            ),
        ],
        ids=["view", "trigger", "full-text search"],
    )
    def test_the_runtimes_tables_are_out_of_reach_on_a_detour_too(self, storage: Storage, make: str, use: str) -> None:
        storage.kv.put("k", "secret")
        storage.sql(make)
        with pytest.raises(StatementRefused, match="touch _mobula_"):
            storage.sql(use)
        assert storage.kv.get("k") == "secret"

    @pytest.mark.parametrize(
        "query",
        [
            "COMMIT",
            "BEGIN",
            "ROLLBACK",
            "SAVEPOINT _mobula_turn",
            "RELEASE _mobula_turn",
            "SELECT value FROM _mobula_kv WHERE key = ?",
        ],
    )
    def test_what_was_prepared_for_the_runtime_is_not_lent_to_the_author(self, storage: Storage, query: str) -> None:
        storage.kv.get("k")
        storage.savepoint()
        storage.release()
        storage.commit()
        storage.begin()
        storage.rollback()
        storage.begin()
        with pytest.raises(StatementRefused):
            storage.sql(query, *["k"] * query.count("?"))
        assert storage.in_transaction

    def test_tables_of_the_runtime_are_the_same_in_every_file(self) -> None:
        assert Schema(None).template == Schema(None).template

    def test_what_was_prepared_for_the_runtime_survives_a_change_of_schema(self, storage: Storage) -> None:
        storage.kv.put("k", 1)
        storage.sql("CREATE TABLE another (a)")  # every statement is prepared again, under the authorizer
        storage.kv.put("k", 2)
        assert storage.kv.get("k") == 2
        storage.commit()
        storage.begin()

    def test_a_replace_fires_the_same_triggers_before_sqlite_utils_is_used_and_after(self, storage: Storage) -> None:
        storage.sql("CREATE TABLE gone (name)")
        storage.sql("CREATE TRIGGER leaves AFTER DELETE ON thing BEGIN INSERT INTO gone VALUES (old.name); END")
        storage.sql("INSERT INTO thing VALUES (1, 'first', NULL)")
        storage.sql("INSERT OR REPLACE INTO thing VALUES (1, 'second', NULL)")
        storage.database.table_names()
        storage.sql("INSERT OR REPLACE INTO thing VALUES (1, 'third', NULL)")
        assert storage.sql("SELECT name FROM gone") == [("first",), ("second",)]

    def test_sqlite_utils_works_within_a_turn(self, storage: Storage) -> None:
        database = storage.database
        people: Any = database["person"]
        people.insert_all([{"id": 1, "name": "Ada"}, {"id": 2, "name": "Grace"}], pk="id")
        people.upsert({"id": 1, "name": "Ada L."}, pk="id")
        people.add_column("born", int)
        people.create_index(["name"])
        people.enable_fts(["name"], create_triggers=True)
        people.insert({"id": 3, "name": "Katherine"})
        assert [row["name"] for row in people.search("katherine")] == ["Katherine"]
        people.transform(rename={"born": "birth"}, types={"id": int})
        assert "birth" in people.columns_dict
        with database.atomic(), database.atomic():
            people.delete(2)
        assert [row["name"] for row in database.query("SELECT name FROM person ORDER BY id")] == ["Ada L.", "Katherine"]
        assert "thing" in database.table_names()
        assert storage.in_transaction

    async def test_a_refused_statement_undoes_its_turn_and_no_other(self, shelf: Stub[Shelf]) -> None:
        before, refused, through, after = await outcomes_of(
            shelf.put("before", 1), shelf.sql("COMMIT"), shelf.through_sqlite_utils("COMMIT"), shelf.put("after", 1)
        )
        assert (before, after) == (None, None)
        assert isinstance(refused, StatementRefused)
        assert isinstance(through, StatementRefused)
        assert await shelf.keys() == ["after", "before"]

    def test_a_migration_is_guarded_as_a_turn_is(self) -> None:
        impatient = Migrations("impatient")

        @impatient()
        def faster(database: Database) -> None:
            database.execute("PRAGMA synchronous = OFF")

        with pytest.raises(StatementRefused, match="PRAGMA synchronous"):
            Schema(impatient)


class TestLimits:
    """What is too large is refused before it is stored."""

    @pytest.mark.parametrize(
        "value",
        ["x" * (VALUE_BYTES_MAX + 1), "ü" * (VALUE_BYTES_MAX // 2 + 1), b"x" * (VALUE_BYTES_MAX + 1)],
        ids=["text", "wide text", "blob"],
    )
    def test_a_value_that_is_too_large_is_refused_on_every_way_in(self, storage: Storage, value: Any) -> None:
        query = "INSERT INTO thing (name) VALUES (?)"
        things: Any = storage.database["thing"]
        for attempt in (
            lambda: storage.sql(query, value),
            lambda: storage.sql_many(query, [("small",), (value,)]),
            lambda: storage.database.execute(query, [value]),
            lambda: storage.database.execute("INSERT INTO thing (name) VALUES (:name)", {"name": value}),
            lambda: things.insert({"name": value}),
        ):
            with (
                pytest.raises(InvalidArgument, match=f"must take at most {VALUE_BYTES_MAX} bytes"),
                storage.transaction(),
            ):
                attempt()
        assert storage.sql("SELECT count(*) FROM thing") == [(0,)]

    def test_a_value_of_the_largest_size_is_kept(self, storage: Storage) -> None:
        storage.sql("INSERT INTO thing (name) VALUES (?)", "x" * VALUE_BYTES_MAX)
        assert storage.sql("SELECT length(name) FROM thing") == [(VALUE_BYTES_MAX,)]

    def test_what_is_too_large_for_sqlite_is_the_callers_mistake(self, storage: Storage) -> None:
        with pytest.raises(InvalidArgument, match="larger than SQLite can hold"):
            storage.sql("SELECT zeroblob(2000000000)")

    def test_values_that_sqlite_cannot_hold_are_refused_through_sqlite_utils_too(self, storage: Storage) -> None:
        for value in (2**63, "\ud800"):
            with pytest.raises(InvalidArgument):
                storage.database.execute("SELECT ?", [value])


class TestAllowance:
    """An object that has used up its space keeps what it has, and says so."""

    ALLOWANCE_BYTES = 128 * 1024

    @pytest.fixture
    def shelf(self, data_dir: Path) -> Iterator[Stub[Shelf]]:
        with shelf_in(data_dir, database_bytes_max=self.ALLOWANCE_BYTES) as stub:
            yield stub

    async def test_a_write_beyond_is_undone_with_its_turn_and_the_next_call_works(self, shelf: Stub[Shelf]) -> None:
        await shelf.put("kept", 1)
        with pytest.raises(StorageFull, match="in its allowance") as full:
            await shelf.put("large", "x" * self.ALLOWANCE_BYTES)
        assert full.value.retryable
        assert await shelf.keys() == ["kept"]
        await shelf.put("small", 2)
        assert await shelf.keys() == ["kept", "small"]

    async def test_it_can_be_used_up_and_freed_again(self, shelf: Stub[Shelf]) -> None:
        outcomes = [(await outcomes_of(shelf.put(f"{number:03d}", "x" * 4000)))[0] for number in range(40)]
        kept = outcomes.count(None)
        assert 10 < kept < 30
        assert all(isinstance(outcome, StorageFull) for outcome in outcomes[kept:])
        assert len(await shelf.keys()) == kept
        assert await shelf.size_bytes() <= self.ALLOWANCE_BYTES
        assert await shelf.sql("PRAGMA integrity_check") == [("ok",)]
        await shelf.put("000", 0)  # a smaller value in place of a larger one
        await shelf.put("001", 0)
        await shelf.put("new", "x" * 4000)

    async def test_a_turn_that_went_on_after_it_kept_nothing(self, shelf: Stub[Shelf]) -> None:
        """SQLite has rolled back by then: what the turn writes next must not be committed by itself."""
        await shelf.put("kept", 1)
        outcomes = await outcomes_of(shelf.put("grouped", 1), shelf.fill_and_go_on(self.ALLOWANCE_BYTES))
        assert [type(outcome) for outcome in outcomes] == [StorageFull, StorageFull]
        assert await shelf.keys() == ["kept"]
        await shelf.put("next", 1)

    async def test_an_object_above_it_opens_and_grows_no_more(self, data_dir: Path) -> None:
        with shelf_in(data_dir / "large") as shelf:
            await shelf.put("large", "x" * 1_000_000)
            size_bytes = await shelf.size_bytes()
        with shelf_in(data_dir / "large", database_bytes_max=self.ALLOWANCE_BYTES) as shelf:
            assert len(await shelf.get("large")) == 1_000_000
            with pytest.raises(StorageFull):
                await shelf.put("larger", "x" * 1_000_000)
            assert await shelf.size_bytes() == size_bytes


class TestDisk:
    """What does a disk leave that fails in the middle of something?"""

    async def test_a_database_for_which_there_is_no_room_is_not_left_half_made(
        self, shelf: Stub[Shelf], data_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def write_half_at_most(descriptor: int, content: memoryview) -> int:
            if len(content) < 8192:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, content[:4096])

        write = os.write
        monkeypatch.setattr(os, "write", write_half_at_most)
        with pytest.raises(StorageFull, match=r"\(open\)"):
            await shelf.put("lost", 1)
        assert [path for path in (data_dir / "objects" / "Shelf").rglob("*") if path.is_file()] == []
        monkeypatch.undo()
        await shelf.put("kept", 1)
        assert await shelf.keys() == ["kept"]

    async def test_a_write_that_fails_keeps_nothing_of_its_turn_and_the_next_call_works(
        self, shelf: Stub[Shelf], data_dir: Path
    ) -> None:
        await shelf.put("kept", 1)
        (wal,) = (data_dir / "objects").rglob("*-wal")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 6000, hard))  # in the middle of its second page
        try:
            outcomes = await outcomes_of(shelf.put("grouped", 1), shelf.fill_and_go_on(1_500_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {type(outcome) for outcome in outcomes} <= {StorageFull, ObjectReset}
        assert await shelf.keys() == ["kept"]
        assert await shelf.sql("PRAGMA integrity_check") == [("ok",)]
        await shelf.put("next", 1)
        assert await shelf.keys() == ["kept", "next"]


class TestKeyValues:
    """What is put is read back equal, in order, and is part of the turn."""

    @pytest.fixture
    def kv(self, storage: Storage) -> KeyValues:
        return storage.kv

    def test_a_value_is_read_back_replaced_and_deleted(self, kv: KeyValues) -> None:
        assert kv.get("k") is None
        assert kv.get("k", "default") == "default"
        kv.put("k", {"a": [1, 2.5, None, True, "ü"]})
        assert kv.get("k", "default") == {"a": [1, 2.5, None, True, "ü"]}
        kv.put("k", None)
        assert kv.get("k", "default") is None
        assert kv.delete("k")
        assert not kv.delete("k")
        assert kv.list() == {}

    def test_put_many_stores_all_or_none(self, kv: KeyValues) -> None:
        kv.put_many({"a": 1, "b": 2})
        with pytest.raises(InvalidArgument):
            kv.put_many({"a": 3, "c": b"no JSON"})
        assert kv.list() == {"a": 1, "b": 2}

    @pytest.mark.parametrize(
        "value",
        [
            b"bytes",
            (1, 2),
            {1: "a"},
            {"a": {(1,)}},
            float("nan"),
            float("inf"),
            {"a": [(1, 2)]},
            object(),
            1j,
            "\ud800",
        ],
        ids=repr,
    )
    def test_what_json_would_change_or_refuse_is_refused(self, kv: KeyValues, value: Any) -> None:
        with pytest.raises(InvalidArgument, match="value: ") as refused:
            kv.put("k", value)
        assert not refused.value.retryable
        assert kv.get("k", "nothing") == "nothing"

    def test_values_without_end_are_refused(self, kv: KeyValues) -> None:
        circle: list[Any] = []
        circle.append(circle)
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        for value in (circle, deep):
            with pytest.raises(InvalidArgument, match="must be what JSON can hold"):
                kv.put("k", value)

    def test_keys_and_values_have_a_largest_size(self, kv: KeyValues) -> None:
        kv.put("k" * KEY_BYTES_MAX, "x" * (KV_BYTES_MAX - 2))
        for key in ("k" * (KEY_BYTES_MAX + 1), "ü" * (KEY_BYTES_MAX // 2 + 1)):
            for attempt in (
                lambda key=key: kv.put(key, 1),
                lambda key=key: kv.get(key),
                lambda key=key: kv.delete(key),
            ):
                with pytest.raises(InvalidArgument, match="must take at most 2048 bytes"):
                    attempt()
        with pytest.raises(InvalidArgument, match="must take at most 2097152 bytes as JSON"):
            kv.put("k", "x" * (KV_BYTES_MAX - 1))
        not_keys: list[Any] = ["\ud800", 1]
        for key in not_keys:
            with pytest.raises(InvalidArgument):
                kv.put(key, 1)

    def test_a_list_takes_a_prefix_bounds_a_limit_and_a_direction(self, kv: KeyValues) -> None:
        kv.put_many({key: key for key in ("a", "a/1", "a/2", "a/3", "a0", "b")})

        def keys(*arguments: Any, **options: Any) -> list[str]:
            return list(kv.list(*arguments, **options))

        assert keys() == ["a", "a/1", "a/2", "a/3", "a0", "b"]
        assert keys("a/") == ["a/1", "a/2", "a/3"]
        assert keys("a/", reverse=True, limit=2) == ["a/3", "a/2"]
        assert keys("a/", start="a/2") == ["a/2", "a/3"]
        assert keys("a/", start_after="a/2") == ["a/3"]
        assert keys("a/", end="a/2") == ["a/1"]
        assert keys(start="a/3", end="b", reverse=True) == ["a0", "a/3"]
        assert keys("none") == keys(limit=0) == keys("a", start="b") == []
        with pytest.raises(InvalidArgument, match="must not be negative"):
            keys(limit=-1)

    @given(
        keys=st.sets(st.text("ab\0\x7f\x80\u07ff\ud7ff\ue000\uffff\U00010000\U0010ffff", max_size=4), max_size=20),
        prefix=st.text("ab\ud7ff\U0010ffff", max_size=2),
        start=st.none() | st.text("ab\uffff\U00010000", max_size=2),
        limit=st.none() | st.integers(0, 5),
        reverse=st.booleans(),
    )
    def test_a_list_is_what_sorting_by_utf_8_bytes_gives(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        schema: Schema,
        keys: set[str],
        prefix: str,
        start: str | None,
        limit: int | None,
        reverse: bool,
    ) -> None:
        storage = Storage("Shelf/acme:s", tmp_path_factory.getbasetemp() / "listed.sqlite", schema)
        storage.begin()
        storage.kv.put_many(dict.fromkeys(keys, 1))
        listed = list(storage.kv.list(prefix, start=start, limit=limit, reverse=reverse))
        storage.close()
        expected = sorted(
            (key for key in keys if key.startswith(prefix) and (start is None or key >= start)),
            key=str.encode,
            reverse=reverse,
        )
        assert listed == expected[:limit]

    async def test_entries_are_rolled_back_and_committed_with_their_turn(self, shelf: Stub[Shelf]) -> None:
        await shelf.put("kept", 1)
        with pytest.raises(ValueError, match="lost"):
            await shelf.put_and_raise("lost", 1)
        await shelf.put_and_undo("undone", "second")
        assert await shelf.keys() == ["kept", "undone"]
        assert await shelf.get("undone") == "first"
        backend = shelf._backend
        assert isinstance(backend, LocalBackend)
        assert backend.host.evict(shelf.id)
        assert await shelf.get("kept") == 1

    async def test_a_read_must_not_put(self, shelf: Stub[Shelf]) -> None:
        with pytest.raises(Exception, match="is declared @read and wrote"):
            await shelf.put_though_a_read()

    def test_values_are_json_text_in_the_file(self, storage: Storage, tmp_path: Path) -> None:
        storage.kv.put("k", {"a": "ü"})
        storage.commit()
        storage.close()
        with Database(tmp_path / "s.sqlite") as left:
            ((text,),) = left.execute("SELECT value FROM _mobula_kv").fetchall()
        assert text == '{"a":"ü"}'
        assert json.loads(text) == {"a": "ü"}


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
