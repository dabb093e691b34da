"""What may SQL of an author's not do?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors.runtime import StatementRefused
from actors.runtime.namespace import Stub
from actors.runtime.schema import Schema
from actors.runtime.storage import Storage
from tests.conformance.support import outcomes_of
from tests.unit.storage.shelf import Shelf

REFUSED = [
    ("ATTACH ':memory:' AS other", "attach or detach a database"),
    ("DETACH main", "attach or detach a database"),
    ("VACUUM INTO '/nowhere/copy'", "attach or detach a database"),
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
    ("INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('shelf', 'x')", "change _sqlite_migrations"),
    ("INSERT OR REPLACE INTO main._SQLITE_migrations (id) VALUES (1)", "change _sqlite_migrations"),
    ("UPDATE _sqlite_migrations SET name = 'x'", "change _sqlite_migrations"),
    ("DELETE FROM _sqlite_migrations", "change _sqlite_migrations"),
    ('DROP TABLE "_sqlite_migrations"', "change _sqlite_migrations"),
    ("DROP INDEX idx__sqlite_migrations_migration_set_name", "change _sqlite_migrations"),
    ("ALTER TABLE _sqlite_migrations RENAME TO mine", "change _sqlite_migrations"),
    ("ALTER TABLE _sqlite_migrations ADD COLUMN mine", "change _sqlite_migrations"),
    ("CREATE TRIGGER mine AFTER INSERT ON _sqlite_migrations BEGIN SELECT 1; END", "change _sqlite_migrations"),
    ("CREATE INDEX mine ON _sqlite_migrations (name)", "change _sqlite_migrations"),
    ("CREATE TEMP TABLE _sqlite_migrations (name)", "change _sqlite_migrations"),
    ("CREATE TEMP VIEW _sqlite_migrations AS SELECT 1", "change _sqlite_migrations"),
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
    "SELECT migration_set, name FROM _sqlite_migrations",
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
            # SQLite's own refusal comes first within a transaction, and the connection's without one.
            storage.rollback()
            storage.connection.in_turn = True
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

    def test_a_trigger_does_not_reach_the_ledger_of_migrations(self, storage: Storage) -> None:
        storage.sql("CREATE TRIGGER mine AFTER INSERT ON thing BEGIN DELETE FROM _sqlite_migrations; END")
        with pytest.raises(StatementRefused, match="change _sqlite_migrations"):
            storage.sql("INSERT INTO thing (name) VALUES ('x')")

    def test_the_ledger_of_migrations_is_guarded_by_the_name_that_the_class_gives_it(self, tmp_path: Path) -> None:
        class Renamed(Migrations):
            migrations_table = 'My "ledger"'

        renamed = Renamed("renamed")

        @renamed()
        def first(database: Database) -> None:
            database.execute("CREATE TABLE thing (name)")

        schema = Schema(renamed)
        storage = Storage("Shelf/acme:s", tmp_path / "s.sqlite", schema)
        assert schema.applied(storage.connection) == ("first",)
        storage.begin()
        with pytest.raises(StatementRefused, match="ledger"):
            storage.sql('DELETE FROM "my ""LEDGER"""')
        storage.close()

    @pytest.mark.parametrize(
        "query", ["CREATE TABLE _sqlite_migrations (name)", "ALTER TABLE thing RENAME TO _sqlite_migrations"]
    )
    def test_a_class_without_migrations_makes_no_ledger_of_its_own(self, tmp_path: Path, query: str) -> None:
        storage = Storage("Shelf/acme:s", tmp_path / "s.sqlite", Schema(None))
        storage.begin()
        storage.sql("CREATE TABLE thing (name)")
        with pytest.raises(StatementRefused, match="change _sqlite_migrations"):
            storage.sql(query)
        storage.close()

    def test_a_statement_that_a_migration_could_run_is_refused_afterwards(self, tmp_path: Path) -> None:
        steps = Migrations("steps")
        clear = "DELETE FROM _sqlite_migrations WHERE name = 'nothing'"
        path = tmp_path / "s.sqlite"

        @steps()
        def first(database: Database) -> None:
            database.execute("CREATE TABLE thing (name)")

        path.write_bytes(Schema(steps).template)

        @steps()
        def second(database: Database) -> None:
            database.execute(clear)

        storage = Storage("Shelf/acme:s", path, Schema(steps))
        storage.begin()
        assert storage.sql("SELECT name FROM _sqlite_migrations ORDER BY id") == [("first",), ("second",)]
        with pytest.raises(StatementRefused, match="change _sqlite_migrations"):
            storage.database.execute(clear)
        storage.close()

    def test_a_migration_is_guarded_as_a_turn_is(self) -> None:
        impatient = Migrations("impatient")

        @impatient()
        def faster(database: Database) -> None:
            database.execute("PRAGMA synchronous = OFF")

        with pytest.raises(StatementRefused, match="PRAGMA synchronous"):
            Schema(impatient)
