"""What may an object do with its database: by SQL, by keys, and with all of it?"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.runtime import InvalidArgument, ObjectReset, StatementRefused, StorageFull
from actors.runtime.call import unpack
from actors.runtime.host_settings import HostSettings
from actors.runtime.namespace import Stub
from actors.testing import Lab
from tests.conformance.classes import STORAGE_USES, Desk, desk_with
from tests.conformance.support import FAR_S, Backend, call_of, outcomes_of
from tests.objects import Refusal


class Sql:
    """Everywhere."""

    async def test_rows_come_back_with_their_types(self, desk: Stub[Desk]) -> None:
        row = (1, -(2**63), 2.5, "tëxt 💾", b"\0bytes", None)
        assert await desk.run("SELECT ?, ?, ?, ?, ?, ?", *row) == [row]

    async def test_an_object_makes_tables_indexes_triggers_and_views(self, desk: Stub[Desk]) -> None:
        for statement in (
            "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT UNIQUE)",
            "CREATE INDEX i ON t (b)",
            "CREATE VIEW v AS SELECT b FROM t",
            "CREATE TRIGGER r AFTER INSERT ON t BEGIN INSERT INTO line (text) VALUES (new.b); END",
            "INSERT INTO t (b) VALUES ('x')",
            "ALTER TABLE t ADD COLUMN c",
        ):
            await desk.run(statement)
        assert await desk.run("SELECT b FROM v") == [("x",)]
        assert await desk.lines() == ["x"]

    async def test_full_text_json_and_window_functions_are_there(self, desk: Stub[Desk]) -> None:
        await desk.run("CREATE VIRTUAL TABLE f USING fts5 (text)")
        await desk.run("INSERT INTO f VALUES ('the quick fox'), ('a lazy dog')")
        assert await desk.run("SELECT text FROM f WHERE f MATCH 'fox'") == [("the quick fox",)]
        assert await desk.run("""SELECT json_extract('{"a": [1, 2]}', '$.a[1]')""") == [(2,)]
        query = "SELECT value, row_number() OVER (ORDER BY value DESC) FROM json_each('[1, 2]')"
        assert await desk.run(query) == [(2, 1), (1, 2)]

    @pytest.mark.parametrize(
        "statement",
        [
            "ATTACH ':memory:' AS other",
            "ATTACH '/nowhere/other.sqlite' AS other",
            "DETACH main",
            "PRAGMA synchronous = OFF",
            "PRAGMA journal_mode = DELETE",
            "PRAGMA locking_mode = NORMAL",
            "PRAGMA foreign_keys = OFF",
            "PRAGMA wal_checkpoint",
            "PRAGMA writable_schema = ON",
            "PRAGMA max_page_count = 10",
            "PRAGMA user_version = 7",
            "PRAGMA temp_store_directory = '/tmp'",
            "SELECT load_extension('x')",
        ],
    )
    async def test_what_would_undo_the_runtimes_promises_is_refused(self, desk: Stub[Desk], statement: str) -> None:
        with pytest.raises(StatementRefused) as refused:
            await desk.run(statement)
        assert not refused.value.retryable
        assert refused.value.object_key == str(desk.id)
        assert await desk.add("goes on") == 1

    @pytest.mark.parametrize("table", ["_mobula_kv", "_mobula_requests", "_mobula_alarm", "_MOBULA_KV"])
    @pytest.mark.parametrize(
        "statement",
        [
            "SELECT * FROM {}",
            "DELETE FROM {}",
            "INSERT INTO {} VALUES (1, 2)",
            "UPDATE {} SET rowid = 1",
            "DROP TABLE {}",
            "ALTER TABLE {} RENAME TO mine",
            "CREATE INDEX i ON {} (key)",
            "SELECT 1 WHERE EXISTS (SELECT 1 FROM {})",
        ],
    )
    async def test_the_runtimes_tables_are_out_of_reach(self, desk: Stub[Desk], table: str, statement: str) -> None:
        with pytest.raises(Exception) as refused:  # noqa: PT011  SQLite's own, where there is nothing to refuse
            await desk.run(statement.format(table))
        assert isinstance(refused.value, StatementRefused) or "no such column" in str(refused.value)
        assert await desk.kv("list") == {}

    @pytest.mark.parametrize(
        "statement",
        [
            "DELETE FROM _sqlite_migrations",
            "UPDATE _sqlite_migrations SET name = 'another'",
            "DROP TABLE _sqlite_migrations",
            "ALTER TABLE _sqlite_migrations RENAME TO mine",
        ],
    )
    async def test_the_ledger_of_migrations_is_read_and_never_changed(self, desk: Stub[Desk], statement: str) -> None:
        select = "SELECT name FROM _sqlite_migrations ORDER BY id"
        applied = await desk.run(select)
        assert applied
        with pytest.raises(StatementRefused, match="change _sqlite_migrations"):
            await desk.run(statement)
        assert await desk.run(select) == applied
        assert await desk.add("goes on") == 1

    async def test_no_copy_of_the_database_is_made_behind_the_runtimes_back(
        self, desk: Stub[Desk], tmp_path: Path
    ) -> None:
        with pytest.raises(Exception, match="cannot VACUUM from within a transaction"):
            await desk.run(f"VACUUM INTO '{tmp_path / 'other.sqlite'}'")
        assert list(tmp_path.iterdir()) == []

    async def test_names_of_the_runtime_are_not_for_tables_of_an_object(self, desk: Stub[Desk]) -> None:
        for statement in ("CREATE TABLE _mobula_mine (a)", "ALTER TABLE note RENAME TO _mobula_note"):
            with pytest.raises(StatementRefused, match="_mobula_"):
                await desk.run(statement)

    async def test_a_statement_that_is_wrong_undoes_its_turn_and_no_other(self, desk: Stub[Desk]) -> None:
        before, wrong, after = await outcomes_of(desk.add("a"), desk.run("SELEC 1"), desk.add("b"))
        assert (before, after) == (1, 2)
        assert "syntax error" in str(wrong)

    async def test_one_statement_is_run_at_a_time(self, desk: Stub[Desk]) -> None:
        with pytest.raises(Exception, match="one statement at a time"):
            await desk.run("INSERT INTO line (text) VALUES ('a'); DELETE FROM line")
        assert await desk.lines() == []

    async def test_text_of_users_is_a_value_and_never_a_statement(self, desk: Stub[Desk]) -> None:
        text = "'); DROP TABLE line; --"
        await desk.add(text)
        assert await desk.lines() == [text]

    async def test_an_object_knows_its_size(self, desk: Stub[Desk]) -> None:
        before = await desk.size_bytes()
        await desk.fill(200_000)
        assert await desk.size_bytes() >= before + 150_000  # some of it was free before


class KeyValues:
    """Everywhere."""

    async def test_a_value_is_read_back_equal(self, desk: Stub[Desk]) -> None:
        value = {"a": [1, 2.5, None, True, "ü"], "": {}}
        await desk.kv("put", "k", value)
        assert await desk.kv("get", "k") == value

    async def test_a_key_that_is_not_there_is_the_default(self, desk: Stub[Desk]) -> None:
        assert await desk.kv("get", "k") is None
        assert await desk.kv("get", "k", 7) == 7
        assert await desk.kv("delete", "k") is False

    async def test_a_deleted_key_is_gone(self, desk: Stub[Desk]) -> None:
        await desk.kv("put", "k", 1)
        assert await desk.kv("delete", "k") is True
        assert await desk.kv("list") == {}

    async def test_entries_are_listed_in_order_of_their_keys_bytes(self, desk: Stub[Desk]) -> None:
        keys = ["b", "a", "B", "ä", "a/2", "a/10", "\uffff", "\U0001f4be", ""]
        await desk.kv("put_many", dict.fromkeys(keys, 0))
        assert list(await desk.kv("list")) == sorted(keys, key=str.encode)

    async def test_a_list_takes_a_prefix_bounds_a_limit_and_a_direction(self, desk: Stub[Desk]) -> None:
        await desk.kv("put_many", dict.fromkeys(("a/1", "a/2", "a/3", "b/1"), 0))
        assert list(await desk.kv("list", "a/")) == ["a/1", "a/2", "a/3"]
        assert list(await desk.kv("list", "a/", limit=2, reverse=True)) == ["a/3", "a/2"]
        assert list(await desk.kv("list", "a/", start_after="a/1", end="a/3")) == ["a/2"]
        assert list(await desk.kv("list", "none")) == []

    @pytest.mark.parametrize("value", [b"bytes", (1, 2), {1: 2}, float("nan"), {"a": {1}}], ids=repr)
    async def test_what_is_not_json_is_refused(self, desk: Stub[Desk], value: Any) -> None:
        with pytest.raises(InvalidArgument):
            await desk.kv("put", "k", value)
        assert await desk.kv("list") == {}

    async def test_keys_and_values_have_a_largest_size(self, desk: Stub[Desk]) -> None:
        for key, value in (("k" * 2049, 1), ("k", "x" * 2 * 1024 * 1024)):
            with pytest.raises(InvalidArgument, match="must take at most"):
                await desk.kv("put", key, value)

    async def test_many_are_put_together_or_none(self, desk: Stub[Desk]) -> None:
        with pytest.raises(InvalidArgument):
            await desk.kv("put_many", {"a": 1, "b": b"no JSON"})
        assert await desk.kv("list") == {}


class Deletion:
    """Everywhere."""

    async def test_delete_all_takes_rows_values_and_tables(self, desk: Stub[Desk]) -> None:
        await desk.add("x")
        await desk.kv("put", "k", 1)
        await desk.run("CREATE TABLE t (a)")
        await desk.erase()
        assert [await desk.lines(), await desk.kv("list")] == [[], {}]
        with pytest.raises(Exception, match="no such table: t"):
            await desk.run("SELECT * FROM t")

    async def test_delete_all_takes_what_was_recorded_of_requests(self, backend: Backend, desk: Stub[Desk]) -> None:
        request = call_of(desk, "append", "x", request_id="r1")
        assert unpack(await backend.send(desk.id, request)) == 1
        await desk.erase()
        assert await desk.lines() == []
        assert unpack(await backend.send(desk.id, request)) == 1
        assert await desk.lines() == ["x"]

    async def test_delete_all_takes_what_its_own_turn_wrote(self, desk: Stub[Desk]) -> None:
        await desk.add_and_erase("x")
        assert await desk.lines() == []

    async def test_delete_all_of_one_object_is_no_other_objects(self, backend: Backend, desk: Stub[Desk]) -> None:
        others = [
            backend.namespace(Desk).get(*parts) for parts in (("demo", desk.id.name), ("acme", "x" + desk.id.name))
        ]
        for other in others:
            await other.add("kept")
        await desk.erase()
        assert [await other.lines() for other in others] == [["kept"]] * 2

    async def test_a_turn_that_raises_deletes_nothing(self, desk: Stub[Desk]) -> None:
        await desk.add("kept")
        with pytest.raises(Refusal):
            await desk.erase_and_raise()
        await desk.erase_and_undo()
        assert await desk.lines() == ["kept"]
        outcomes = await outcomes_of(desk.add("a"), desk.erase_and_raise(), desk.add("b"))
        assert [type(outcome) for outcome in outcomes] == [int, Refusal, int]
        assert await desk.lines() == ["kept", "a", "b"]

    @pytest.mark.parametrize("use", list(STORAGE_USES))
    @pytest.mark.parametrize("method", ["erase_and", "erase_and_later"])
    async def test_what_a_turn_does_after_it_deleted_all_is_refused_and_the_turn_undone(
        self, desk: Stub[Desk], use: str, method: str
    ) -> None:
        await desk.add("kept")
        at = await desk.set_alarm_in(FAR_S)
        with pytest.raises(StatementRefused, match="the object is deleted with this turn") as refused:
            await getattr(desk, method)(use)
        assert not refused.value.retryable
        assert [await desk.lines(), await desk.alarm_at()] == [["kept"], at]

    @pytest.mark.parametrize("within", ["storage", "sqlite_utils"])
    async def test_a_deletion_that_was_undone_leaves_the_turn_as_it_was(self, desk: Stub[Desk], within: str) -> None:
        await desk.add("kept")
        await desk.erase_undo_and_add("goes on", within)
        assert await desk.lines() == ["kept", "goes on"]

    @pytest.mark.parametrize("within", ["storage", "sqlite_utils"])
    async def test_a_deletion_within_blocks_that_end_well_is_one(self, desk: Stub[Desk], within: str) -> None:
        await desk.add("x")
        await desk.erase_within(within)
        assert await desk.lines() == []

    async def test_deleting_twice_in_a_turn_is_deleting_once(self, desk: Stub[Desk]) -> None:
        await desk.add("x")
        assert await desk.append_and_erase("y") == 2
        assert await desk.lines() == []

    async def test_turns_around_a_deletion_see_what_was_before_and_after(self, desk: Stub[Desk]) -> None:
        outcomes = await outcomes_of(
            desk.add("a"), desk.lines(), desk.erase(), desk.lines(), desk.add("b"), desk.lines()
        )
        assert outcomes == [1, ["a"], None, [], 1, ["b"]]

    async def test_deleting_what_is_not_there_is_no_error(self, desk: Stub[Desk]) -> None:
        await desk.erase()
        await desk.erase()
        assert await desk.add("x") == 1


class TestSql(Sql):
    """In process."""

    async def test_an_object_that_outgrew_its_allowance_says_so_and_goes_on(self, settings: dict[str, Any]) -> None:
        async with Lab([Desk], settings=HostSettings(**settings, database_bytes_max=200_000)) as lab:
            desk = lab.get(Desk, "acme", "d")
            await desk.add("kept")
            with pytest.raises(StorageFull) as full:
                await desk.fill(300_000)
            assert full.value.retryable
            assert await desk.lines() == ["kept"]
            assert await desk.add("more") == 2


class TestKeyValues(KeyValues):
    """In process."""


class TestDeletion(Deletion):
    """In process."""

    async def test_nothing_is_left_on_disk_when_the_reply_leaves(
        self, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        async with Lab([Desk], data_dir=tmp_path / "data", settings=HostSettings(**settings)) as lab:
            desk = lab.get(Desk, "acme", "d")
            await desk.add("x")
            await desk.set_alarm_in(100)

            def left() -> list[Path]:
                return [path for path in (tmp_path / "data" / "objects" / "Desk").rglob("*") if path.is_file()]

            assert left()
            await desk.erase()
            assert left() == []

    @pytest.mark.parametrize("reached_disk", [False, True])
    async def test_a_deletion_that_a_crash_cuts_off_is_done_or_not(self, lab: Lab, reached_disk: bool) -> None:
        desk = lab.get(Desk, "acme", "d")
        await desk.add("x")
        lab.crash_in_next_commit(desk, reached_disk=reached_disk)
        with pytest.raises(ObjectReset):
            await desk.erase()
        assert lab.exists(desk) is not reached_disk
        assert await desk.lines() == ([] if reached_disk else ["x"])

    async def test_a_deletion_that_fails_leaves_the_object(self, lab: Lab) -> None:
        desk = lab.get(Desk, "acme", "d")
        at = await desk.set_alarm_in(100)
        lab.fail_next_commit(desk)
        with pytest.raises(ObjectReset):
            await desk.erase()
        assert await desk.alarm_at() == at
        await lab.advance(100)
        assert len(await desk.runs()) == 1

    async def test_a_handler_may_delete_its_object(self, settings: dict[str, Any]) -> None:
        async def alarm(self: Desk, info: Any) -> None:
            self.add("last words")
            await asyncio.sleep(0)
            self.storage.delete_all()

        desk_class = desk_with(alarm)
        async with Lab([desk_class], settings=HostSettings(**settings)) as lab:
            desk = lab.get(desk_class, "acme", "d")
            await desk.set_alarm_in(10)
            await lab.advance(10)
            assert not lab.exists(desk)
            await lab.advance(1000)
            assert not lab.exists(desk)
            assert await desk.lines() == []
