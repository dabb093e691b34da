"""What is refused, and what is left, when there is no room?"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from actors.runtime import InvalidArgument, ObjectReset, StorageFull
from actors.runtime.connection import ROW_BYTES_MAX, VALUE_BYTES_MAX
from actors.runtime.namespace import Stub
from actors.runtime.storage import Storage
from tests.conformance.support import outcomes_of
from tests.unit.storage.shelf import Shelf, shelf_in


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

    @pytest.mark.parametrize(
        "query",
        [
            "SELECT zeroblob({})",
            "SELECT hex(zeroblob({0} / 4)) || hex(zeroblob({0} / 4 + 1))",
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9)"
            " SELECT group_concat(hex(zeroblob({} / 16))) FROM n",
            "INSERT INTO thing (name) VALUES (zeroblob({}))",
            "INSERT INTO thing (name, parent) VALUES (zeroblob({0} / 2), zeroblob({0} / 2))",
        ],
        ids=["blob", "text", "text of many rows", "stored", "row"],
    )
    def test_what_a_statement_makes_has_a_largest_size(self, storage: Storage, query: str) -> None:
        for run in (storage.sql, storage.database.execute):
            with pytest.raises(InvalidArgument, match=f"must take at most {ROW_BYTES_MAX} bytes"):
                run(query.format(ROW_BYTES_MAX + 1))
        assert storage.sql("SELECT length(zeroblob(?)), (SELECT count(*) FROM thing)", ROW_BYTES_MAX) == [
            (ROW_BYTES_MAX, 0)
        ]

    def test_other_databases_of_the_process_have_no_such_limit(self, storage: Storage) -> None:
        with contextlib.closing(Database(memory=True)) as other:
            query = f"SELECT length(zeroblob({ROW_BYTES_MAX + 1}))"
            assert other.execute(query).fetchone() == (ROW_BYTES_MAX + 1,)

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
