"""What may be asked of an object's database, and what comes back?"""

from __future__ import annotations

import asyncio
import math
import threading
from pathlib import Path
from typing import Any

import pytest

from actors import LocalBackend, Operator
from actors.runtime import (
    InvalidArgument,
    ObjectNotFound,
    ObjectOverloaded,
    ObjectReset,
    StatementRefused,
)
from actors.runtime import query as object_query
from actors.runtime.clock import ManualClock
from actors.runtime.query import Query
from actors.runtime.query_child import RESULT_BYTES_MAX
from actors.runtime.schema import REQUESTS_TABLE
from actors.runtime.sqlite import wal_of
from tests.objects import Notebook
from tests.unit.inspection.support import ENDLESS, SETTINGS, busy, held, lines, logged, notebook, path_of, write


async def test_a_query_reads_what_was_committed_and_wakes_nobody(backend: LocalBackend, operator: Operator) -> None:
    await write(backend, notebook("one"), text="first")
    result = await operator.query(notebook("one"), "SELECT number, text AS said FROM line WHERE text = ?", "first")
    assert result == object_query.QueryResult(columns=("number", "said"), rows=((1, "first"),), truncated=False)
    assert backend.host.resident_objects == 0


async def test_a_query_of_a_resident_object_has_it_hibernate_and_is_met_by_no_call(
    backend: LocalBackend, operator: Operator
) -> None:
    stub = backend.namespace(Notebook).get("acme", "one")
    await stub.add("first")
    incarnation = await stub.incarnation()
    answered = asyncio.create_task(operator.query(notebook("one"), "SELECT text FROM line"))
    await held(backend, notebook("one"))
    assert await stub.add("second") == 2  # it wakes when the query is over
    assert answered.done()
    assert (await answered).rows == (("first",),)
    assert await stub.incarnation() != incarnation
    for refused in ("DELETE FROM line", "PRAGMA query_only = OFF"):
        with pytest.raises(StatementRefused):
            await operator.query(notebook("one"), refused)
    assert await stub.lines() == ["first", "second"]


async def test_an_object_that_stored_nothing_is_not_found(backend: LocalBackend, operator: Operator) -> None:
    assert await lines(backend, notebook("one")) == []
    assert backend.host.resident_objects == 1
    with pytest.raises(ObjectNotFound):
        await operator.query(notebook("one"), "SELECT 1")
    assert await lines(backend, notebook("one")) == []


async def test_a_query_reads_the_log_that_a_crash_left_and_leaves_it(
    backend: LocalBackend, operator: Operator, data_dir: Path
) -> None:
    path = path_of(data_dir, notebook("one"))
    await write(backend, notebook("one"), text="in the file")
    await logged(backend, path, notebook("one"), "in the log")
    before, log = path.read_bytes(), wal_of(path).read_bytes()
    result = await operator.query(notebook("one"), "SELECT text FROM line ORDER BY text")
    assert result.rows == (("in the file",), ("in the log",))
    assert (path.read_bytes(), wal_of(path).read_bytes()) == (before, log)
    assert {file.name for file in path.parent.glob("*one*")} == {path.name, wal_of(path).name}
    assert await lines(backend, notebook("one")) == ["in the file", "in the log"]


async def test_an_object_that_is_looked_into_stays_where_it_is(
    backend: LocalBackend, operator: Operator, clock: ManualClock
) -> None:
    await write(backend, notebook("one"), asleep=False)
    asking = asyncio.create_task(operator.query(notebook("one"), ENDLESS, timeout_s=0.3))
    await held(backend, notebook("one"))
    clock.advance(SETTINGS.idle_after_s + 1)
    assert backend.host.sweep() == 0
    assert not await operator.evict(notebook("one"))
    assert not backend.host.retire()
    with pytest.raises(ObjectOverloaded, match="somebody else"):
        await operator.delete(notebook("one"))
    with pytest.raises(InvalidArgument, match="took longer"):
        await asking
    assert await operator.evict(notebook("one"))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO line (text) VALUES ('x')",
        "UPDATE line SET text = 'x'",
        "DELETE FROM line",
        "CREATE TABLE x (y)",
        "CREATE TEMP TABLE x (y)",
        "DROP TABLE line",
        "ATTACH ':memory:' AS other",
        "VACUUM INTO '/nowhere/stolen.sqlite'",
        "VACUUM",
        "BEGIN",
        "SAVEPOINT s",
        "PRAGMA query_only = OFF",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA user_version",
        "SELECT * FROM pragma_database_list",
        "SELECT load_extension('x')",
        "SELECT zeroblob(1000000000)",
        "REINDEX",
        "ANALYZE",
        "EXPLAIN DELETE FROM line",
    ],
)
async def test_a_query_that_does_more_than_read_is_refused(
    backend: LocalBackend, operator: Operator, sql: str, resident: bool
) -> None:
    await write(backend, notebook("one"), asleep=not resident)
    with pytest.raises(StatementRefused):
        await operator.query(notebook("one"), sql)
    assert await lines(backend, notebook("one")) == ["a line"]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT 1; SELECT 2", "one statement"),
        ("SELECT 1; DELETE FROM line", "one statement"),
        ("SELEC 1", "syntax error"),
        ("SELECT * FROM nowhere", "no such table"),
        ("SELECT ?", "binding"),
        ("SELECT '\0'", "zero character"),
        ("SELECT '\ud800'", "surrogates"),
        ("x" * 100_001, "at most 100000 characters"),
    ],
)
async def test_a_query_that_can_not_run_says_why(
    backend: LocalBackend, operator: Operator, sql: str, said: str
) -> None:
    await write(backend, notebook("one"))
    with pytest.raises(InvalidArgument, match=said) as refused:
        await operator.query(notebook("one"), sql)
    assert refused.value.field == "sql"


async def test_an_endless_query_is_stopped_while_other_objects_go_on(backend: LocalBackend, operator: Operator) -> None:
    await write(backend, notebook("one"), notebook("other"))
    endless = asyncio.create_task(operator.query(notebook("one"), ENDLESS, timeout_s=0.5))
    turns = 0
    while not endless.done():
        await write(backend, notebook("other"), asleep=False)
        await asyncio.sleep(0)
        turns += 1
    with pytest.raises(InvalidArgument, match=r"took longer than 0\.5 s"):
        await endless
    assert turns > 10


async def test_a_query_ends_at_its_limits_of_rows_and_bytes(backend: LocalBackend, operator: Operator) -> None:
    await write(backend, notebook("one"))
    numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) SELECT i FROM n"
    for there, rows_max, truncated in ((100, 100, False), (101, 100, True), (5, 3, True), (1000, 1000, False)):
        result = await operator.query(notebook("one"), numbers.format(there), rows_max=rows_max)
        assert (len(result.rows), result.truncated) == (min(there, rows_max), truncated)
    wide = f"SELECT '{'x' * 90_000}' FROM ({numbers.format(1000)})"
    result = await operator.query(notebook("one"), wide, rows_max=1000)
    assert result.truncated
    assert len(result.rows) == RESULT_BYTES_MAX // 90_000


@pytest.mark.parametrize("limits", [{"rows_max": 0}, {"rows_max": 1001}, {"timeout_s": 0.0}, {"timeout_s": 5.1}])
async def test_nobody_asks_for_more_than_a_query_may_have(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Query(sql="SELECT 1", **limits)


async def test_nothing_of_how_a_query_is_run_shows_in_its_columns(backend: LocalBackend, operator: Operator) -> None:
    await write(backend, notebook("one"))
    asked = 'SELECT 1, 2 + 2, text, "text" AS t, count(*) FROM line -- and a remark'
    assert (await operator.query(notebook("one"), asked)).columns == ("1", "2 + 2", "text", "t", "count(*)")


async def test_a_query_sees_the_tables_of_the_runtime(backend: LocalBackend, operator: Operator) -> None:
    await backend.namespace(Notebook).get("acme", "one").append("once")
    assert (await operator.query(notebook("one"), f"SELECT count(*) FROM {REQUESTS_TABLE}")).rows == ((1,),)


async def test_values_of_all_kinds_come_back_and_bad_text_as_far_as_it_can_be_read(
    backend: LocalBackend, operator: Operator
) -> None:
    await write(backend, notebook("one"))
    values = {
        "NULL": None,
        "9223372036854775807": 2**63 - 1,
        "-9223372036854775808": -(2**63),
        "2.0": 2.0,
        "0.1": 0.1,
        "5e-324": 5e-324,
        "9e999": math.inf,
        "-9e999": -math.inf,
        "9e999 - 9e999": None,  # SQLite knows no other
        "'é \U0001f600'": "é \U0001f600",
        "CAST(x'610062' AS TEXT)": "a\0b",
        "CAST(x'61ff' AS TEXT)": "a\ufffd",
        "char(10) || char(8232) || '\"'": '\n\u2028"',
        "x'ff000a'": b"\xff\x00\n",
        "x''": b"",
        "''": "",
    }
    (row,) = (await operator.query(notebook("one"), f"SELECT {', '.join(values)}")).rows
    assert [(type(value), value) for value in row] == [(type(value), value) for value in values.values()]


async def test_values_of_all_kinds_can_be_bound(backend: LocalBackend, operator: Operator) -> None:
    await write(backend, notebook("one"))
    values = (None, 2**63 - 1, -(2**63), 0.1, math.inf, "é\0\n", b"\xff\x00")
    questions = ", ".join("?" * len(values))
    assert (await operator.query(notebook("one"), f"SELECT {questions}", *values)).rows == (values,)
    with pytest.raises(InvalidArgument, match="too large"):
        await operator.query(notebook("one"), "SELECT ?", 2**63)


async def test_a_query_waits_for_the_turn_that_runs_and_calls_wait_for_the_query(
    backend: LocalBackend, operator: Operator, tmp_path: Path
) -> None:
    stub, turn, open_gate = await busy(backend, tmp_path)
    query = asyncio.create_task(operator.query(notebook("one"), "SELECT text FROM line"))
    await asyncio.sleep(0)
    later = asyncio.create_task(stub.add("later"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not query.done()
    open_gate()
    # All of the turn, and nothing of what came after the query.
    assert (await query).rows == (("text before",), ("text after",))
    assert await turn == "text"
    assert await later == 3


async def test_a_turn_that_does_not_end_is_not_waited_for_without_end(
    backend: LocalBackend, operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.runtime.custody.HOLD_WAIT_S", 0.05)
    stub, turn, open_gate = await busy(backend, tmp_path)
    with pytest.raises(ObjectOverloaded, match="longer than"):
        await operator.query(notebook("one"), "SELECT 1")
    later = asyncio.create_task(stub.add("later"))
    open_gate()
    assert await turn == "text"
    assert await later == 3  # the object goes on


async def test_a_query_whose_asker_goes_away_ends_and_lets_the_object_go_on(
    backend: LocalBackend, operator: Operator
) -> None:
    await write(backend, notebook("one"), asleep=False)
    asking = asyncio.create_task(operator.query(notebook("one"), ENDLESS, timeout_s=5.0))
    while not any(thread.name.startswith("mobula-inspection") for thread in threading.enumerate()):
        await asyncio.sleep(0)
    cancelled_s = asyncio.get_running_loop().time()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await lines(backend, notebook("one")) == ["a line"]
    assert asyncio.get_running_loop().time() - cancelled_s < 3.0


async def test_closing_a_backend_ends_a_query(data_dir: Path) -> None:
    backend = LocalBackend(data_dir, [Notebook], settings=SETTINGS)
    await write(backend, notebook("one"), asleep=False)
    asking = asyncio.create_task(Operator(backend).query(notebook("one"), ENDLESS, timeout_s=5.0))
    while not any(thread.name.startswith("mobula-inspection") for thread in threading.enumerate()):
        await asyncio.sleep(0)
    backend.close()
    with pytest.raises((ObjectReset, ObjectOverloaded)):
        await asking
