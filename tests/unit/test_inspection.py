"""Can objects be looked at, and looked after, without waking or disturbing them?"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors import LocalBackend, Operator
from actors.runtime import (
    DurableObject,
    InvalidArgument,
    ObjectConflict,
    ObjectNotFound,
    ObjectOverloaded,
    ObjectReset,
    SchemaTooNew,
    StatementRefused,
)
from actors.runtime import query as object_query
from actors.runtime import sqlite as object_sqlite
from actors.runtime.call import HostLost, HostRetired
from actors.runtime.clock import ManualClock
from actors.runtime.connection import ObjectConnection
from actors.runtime.host import HostSettings
from actors.runtime.inspection import TRANSFERS
from actors.runtime.object_id import ObjectId
from actors.runtime.object_info import ObjectInfo
from actors.runtime.operations import Inspectable
from actors.runtime.quarantine import CRASHES_MAX
from actors.runtime.query import RESULT_BYTES_MAX, Query
from actors.runtime.schema import REQUESTS_TABLE
from actors.runtime.sqlite import wal_of
from actors.runtime.transfers import CHUNK_BYTES, IDLE_MAX_S, JOURNEYS_MAX
from tests.objects import AlarmClock, Ledger, Notebook, gate_in

NOW = 1_700_000_000.0
SETTINGS = HostSettings(slots=16)
MADE: list[str] = []

old_steps = Migrations("growing")
steps = Migrations("growing")


@old_steps()
@steps()
def first(database: Database) -> None:
    database.execute("CREATE TABLE thing (name TEXT)")


@steps()
def second(database: Database) -> None:
    if next(database.query("SELECT count(*) AS n FROM thing WHERE name = 'fails'"))["n"]:
        raise ValueError("this one can't be brought up to date")
    database.execute("ALTER TABLE thing ADD COLUMN size INTEGER")


class Growing(DurableObject):
    migrations = steps

    def start(self) -> None:
        MADE.append(self.id.name)

    def add(self, name: str) -> None:
        self.storage.sql("INSERT INTO thing (name) VALUES (?)", name)

    def count(self, to: int) -> int:
        """Takes SQLite some steps for each."""
        counting = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT ?) SELECT count(*) FROM n"
        return int(self.storage.sql(counting, to)[0][0])


GrowingBefore = type("Growing", (Growing,), {"migrations": old_steps, "__module__": __name__})


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def backend(data_dir: Path, clock: ManualClock) -> Iterator[LocalBackend]:
    backend = LocalBackend(data_dir, [Notebook, Ledger, Growing, AlarmClock], settings=SETTINGS, clock=clock)
    MADE.clear()
    yield backend
    backend.close()


@pytest.fixture
def operator(backend: LocalBackend) -> Operator:
    return Operator(backend)


def notebook(name: str, tenant: str = "acme") -> ObjectId:
    return ObjectId("Notebook", tenant, name)


async def write(backend: LocalBackend, *ids: ObjectId, text: str = "a line", asleep: bool = True) -> None:
    classes = {"Notebook": Notebook, "Ledger": Ledger}
    for object_id in ids:
        await backend.namespace(classes[object_id.class_name]).get(object_id.tenant, object_id.name).add(text)
        if asleep:
            assert backend.host.evict(object_id)


async def lines(backend: LocalBackend, object_id: ObjectId) -> list[str]:
    found: list[str] = await backend.namespace(Notebook).get(object_id.tenant, object_id.name).lines()
    return found


async def exported(operator: Operator, object_id: ObjectId) -> bytes:
    async with operator.export(object_id) as (size_bytes, pieces):
        data = b"".join([piece async for piece in pieces])
    assert len(data) == size_bytes
    return data


async def bytes_of(data: bytes, at_once: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), at_once):
        yield data[start : start + at_once]


async def running(backend: LocalBackend, object_id: ObjectId) -> None:
    """Returns when a turn of the object has begun and waits for something."""
    async with asyncio.timeout(5.0):
        while (activation := backend.host.activation_of(object_id)) is None or not activation.running:
            await asyncio.sleep(0)
    await asyncio.sleep(0)


async def held(backend: LocalBackend, object_id: ObjectId) -> None:
    """Returns when somebody looks into the object."""
    async with asyncio.timeout(5.0):
        while (activation := backend.host.activation_of(object_id)) is None or activation.held is None:
            await asyncio.sleep(0)


def path_of(data_dir: Path, object_id: ObjectId) -> Path:
    return object_id.path(data_dir / "objects", SETTINGS.slots)


def names(infos: tuple[ObjectInfo, ...]) -> list[str]:
    return [info.id.name for info in infos]


# -- listing


async def test_a_listing_tells_of_each_object_and_wakes_none(
    backend: LocalBackend, operator: Operator, data_dir: Path, clock: ManualClock
) -> None:
    await write(backend, notebook("asleep"))
    path = path_of(data_dir, notebook("asleep"))
    written_at = path.stat().st_mtime
    await write(backend, notebook("awake"), asleep=False)
    clock.advance(3)
    asleep, awake = (await operator.list("Notebook")).objects
    assert asleep == ObjectInfo(
        id=notebook("asleep"),
        size_bytes=path.stat().st_size,
        last_active_at=written_at,
        alarm_at=None,
        schema_version="create_tables",
        migrations=1,
        resident=False,
        quarantined=False,
    )
    assert (awake.id.name, awake.resident, awake.last_active_at) == ("awake", True, NOW)
    assert (awake.schema_version, awake.migrations) == ("create_tables", 1)
    assert awake.size_bytes > 0
    assert backend.host.resident_objects == 1
    # Nothing of the looking is left: no log, no lock, and the time that tells when it was active.
    assert path.stat().st_mtime == written_at
    assert {file.name for file in path.parent.glob("*asleep*")} == {path.name}


async def test_objects_come_in_order_of_class_tenant_and_name_whatever_their_names_hold(
    backend: LocalBackend, operator: Operator
) -> None:
    odd = ["a", "A", "a.sqlite", "a.a123", "a.trouble", "a/b", "..", "a:b", "é", "\ud800", "%41", "a b\n", "z" * 100]
    ids = [notebook(name, tenant) for tenant in ("acme", "acm", "acme:x") for name in odd]
    ids += [ObjectId("Ledger", "acme", "a")]
    await write(backend, *ids)
    in_order = sorted(ids, key=lambda object_id: (object_id.class_name, object_id.tenant, object_id.name))
    found: list[ObjectId] = []
    after = None
    while True:
        page = await operator.list(limit=4, after=after)
        assert len(page.objects) <= 4
        found += [info.id for info in page.objects]
        if (after := page.next) is None:
            break
    assert found == in_order


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"tenant": "acme"}, ["Ledger/acme:x", "Notebook/acme:x", "Notebook/acme:xy", "Notebook/acme:y"]),
        ({"class_name": "Notebook", "prefix": "x"}, ["Notebook/acme:x", "Notebook/acme:xy", "Notebook/acme2:x"]),
        ({"tenant": "acme", "prefix": "xy"}, ["Notebook/acme:xy"]),
        ({"tenant": "acme", "prefix": "X"}, []),
        ({"tenant": "acm"}, []),
        ({"class_name": "Growing"}, []),
    ],
)
async def test_only_what_is_wanted_is_listed(
    backend: LocalBackend, operator: Operator, wanted: dict[str, Any], expected: list[str]
) -> None:
    await write(backend, notebook("x"), notebook("xy"), notebook("y"), notebook("x", "acme2"))
    await write(backend, ObjectId("Ledger", "acme", "x"))
    assert [str(info.id) for info in (await operator.list(**wanted)).objects] == expected


async def test_a_prefix_may_hold_what_file_names_encode(backend: LocalBackend, operator: Operator) -> None:
    await write(backend, notebook("Über/1"), notebook("Über/2"), notebook("über/3"))
    assert names((await operator.list(prefix="Über/")).objects) == ["Über/1", "Über/2"]


@pytest.mark.parametrize("arguments", [{"class_name": "Nobody"}, {"limit": 0}, {"limit": 1000}, {"after": "x"}])
async def test_a_listing_of_what_can_not_be_is_refused(operator: Operator, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        await operator.list(**arguments)


async def test_alarms_and_quarantine_are_told_without_waking_anybody(backend: LocalBackend, operator: Operator) -> None:
    await write(backend, notebook("fine"), notebook("bad.one"), notebook("failed once"))
    alarmed, quarantine = ObjectId("AlarmClock", "acme", "alarmed"), backend.host.quarantine
    await backend.namespace(AlarmClock).get("acme", "alarmed").ring_at(NOW + 123.456, Path("bell"))
    backend.host.evict(alarmed)
    for _ in range(CRASHES_MAX):
        quarantine.crashed(notebook("bad.one"), "add")
        quarantine.crashed(notebook("never made"), "start")
    quarantine.crashed(notebook("failed once"), "add")
    assert (await operator.describe(alarmed)).alarm_at == NOW + 123.456
    by_name = {info.id.name: info for info in (await operator.list("Notebook")).objects}
    assert by_name["fine"].alarm_at is None
    assert {name for name, info in by_name.items() if info.quarantined} == {"bad.one", "never made"}
    assert names((await operator.quarantined()).objects) == ["bad.one", "never made"]
    assert names((await operator.quarantined(limit=1)).objects) == ["bad.one"]
    assert (await operator.quarantined(limit=1)).next is not None
    assert await operator.release(notebook("bad.one"))
    assert not await operator.release(notebook("failed once"))
    assert names((await operator.quarantined()).objects) == ["never made"]
    assert backend.host.resident_objects == 0


async def test_a_page_of_many_objects_looks_into_the_files_of_that_page_only(
    backend: LocalBackend, operator: Operator, data_dir: Path
) -> None:
    for number in range(2000):
        path = path_of(data_dir, notebook(f"n{number:05d}"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no database")  # whoever opens it notices
    page = await operator.list("Notebook", limit=100)
    assert names(page.objects) == [f"n{number:05d}" for number in range(100)]
    assert {info.problem for info in page.objects} == {"file is not a database"}
    assert backend.host.resident_objects == 0
    assert (await operator.list("Notebook", limit=1, after="Notebook/acme:n01998")).next is None


async def test_a_log_that_a_crash_left_is_looked_into(
    backend: LocalBackend, operator: Operator, data_dir: Path
) -> None:
    growing = ObjectId("Growing", "acme", "g")
    path = path_of(data_dir, growing)
    await backend.namespace(Growing).get("acme", "g").add("thing")
    database, log = path.read_bytes(), wal_of(path).read_bytes()
    assert backend.host.evict(growing)
    path.write_bytes(database)
    wal_of(path).write_bytes(log)
    info = await operator.describe(growing)
    assert (info.schema_version, info.migrations) == ("second", 2)
    assert (await operator.query(growing, "SELECT name FROM thing")).rows == (("thing",),)


# -- describing


async def test_an_object_is_described_without_waking(backend: LocalBackend, operator: Operator) -> None:
    await write(backend, notebook("one"))
    assert await operator.describe(notebook("one")) == (await operator.list("Notebook")).objects[0]
    assert backend.host.resident_objects == 0


@pytest.mark.parametrize("object_id", [notebook("none"), ObjectId("Nobody", "acme", "x")])
async def test_what_does_not_exist_is_not_found_and_not_made(
    operator: Operator, data_dir: Path, object_id: ObjectId
) -> None:
    for asked in (
        operator.describe(object_id),
        operator.query(object_id, "SELECT 1"),
        operator.evict(object_id),
        operator.fire_alarm(object_id),
        operator.release(object_id),
        operator.delete(object_id),
        exported(operator, object_id),
    ):
        with pytest.raises(ObjectNotFound):
            await asked
    assert not list((data_dir / "objects").glob("N*"))


async def test_an_operation_that_is_none_is_refused(backend: LocalBackend) -> None:
    for name in ("close", "do", "_find", "__init__"):
        with pytest.raises(InvalidArgument):
            await backend.inspect(0, name, {}, start=True)


# -- queries


async def test_a_query_reads_what_was_committed_and_wakes_nobody(backend: LocalBackend, operator: Operator) -> None:
    await write(backend, notebook("one"), text="first")
    result = await operator.query(notebook("one"), "SELECT number, text AS said FROM line WHERE text = ?", "first")
    assert result == object_query.QueryResult(columns=("number", "said"), rows=((1, "first"),), truncated=False)
    assert backend.host.resident_objects == 0


async def test_a_query_of_a_resident_object_leaves_it_resident_and_as_it_was(
    backend: LocalBackend, operator: Operator
) -> None:
    stub = backend.namespace(Notebook).get("acme", "one")
    await stub.add("first")
    incarnation = await stub.incarnation()
    assert (await operator.query(notebook("one"), "SELECT text FROM line")).rows == (("first",),)
    with pytest.raises(StatementRefused):
        await operator.query(notebook("one"), "DELETE FROM line")
    with pytest.raises(InvalidArgument, match="took longer"):
        await operator.query(notebook("one"), ENDLESS, timeout_s=0.05)
    await stub.add("second")  # writes are possible again
    assert await stub.lines() == ["first", "second"]
    assert await stub.incarnation() == incarnation


async def test_the_clock_of_a_query_ends_no_turn_after_it(backend: LocalBackend, operator: Operator) -> None:
    stub = backend.namespace(Growing).get("acme", "one")
    await stub.add("thing")
    await operator.query(ObjectId("Growing", "acme", "one"), "SELECT 1", timeout_s=0.000_001)
    assert await stub.count(100_000) == 100_000


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


ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


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
        "VACUUM INTO '/tmp/stolen.sqlite'",
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


async def test_a_statement_that_the_object_has_prepared_is_refused_all_the_same(
    backend: LocalBackend, operator: Operator
) -> None:
    await write(backend, notebook("one"), asleep=False)
    with pytest.raises(StatementRefused):
        await operator.query(notebook("one"), "INSERT INTO line (text) VALUES (?)", "smuggled")
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
    sql = "SELECT NULL, 1, 2.5, 'é', x'ff00', CAST(x'61ff' AS TEXT), 9e999"
    assert (await operator.query(notebook("one"), sql)).rows == (
        (None, 1, 2.5, "é", b"\xff\x00", "a\ufffd", float("inf")),
    )


async def test_a_query_waits_for_the_turn_that_runs_and_calls_wait_for_the_query(
    backend: LocalBackend, operator: Operator, tmp_path: Path
) -> None:
    gate, open_gate = gate_in(tmp_path)
    stub = backend.namespace(Notebook).get("acme", "one")
    turn = asyncio.create_task(stub.add_around_gate("text", gate))
    await running(backend, notebook("one"))
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
    monkeypatch.setattr("actors.runtime.inspection.HOLD_WAIT_S", 0.05)
    gate, open_gate = gate_in(tmp_path)
    stub = backend.namespace(Notebook).get("acme", "one")
    turn = asyncio.create_task(stub.add_around_gate("text", gate))
    await running(backend, notebook("one"))
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
    with pytest.raises((InvalidArgument, ObjectReset, ObjectOverloaded)):
        await asking


# -- looking after


async def test_an_object_is_evicted_unless_a_turn_runs(
    backend: LocalBackend, operator: Operator, tmp_path: Path
) -> None:
    gate, open_gate = gate_in(tmp_path)
    stub = backend.namespace(Notebook).get("acme", "one")
    turn = asyncio.create_task(stub.add_around_gate("text", gate))
    await running(backend, notebook("one"))
    assert not await operator.evict(notebook("one"))
    open_gate()
    await turn
    assert await operator.evict(notebook("one"))
    assert backend.host.resident_objects == 0
    assert await stub.lines() == ["text before", "text after"]


@pytest.mark.parametrize("asleep", [True, False])
async def test_a_deleted_object_leaves_nothing_and_can_be_made_anew(
    backend: LocalBackend, operator: Operator, data_dir: Path, asleep: bool
) -> None:
    await write(backend, notebook("one"), notebook("one.a5"), asleep=asleep)
    path = path_of(data_dir, notebook("one"))
    path.with_suffix(".a1700000000000").touch()
    backend.host.quarantine.crashed(notebook("one"), "add")
    assert path.with_suffix(".trouble").exists()
    await operator.delete(notebook("one"))
    assert not path.exists()
    assert not path.with_suffix(".a1700000000000").exists()
    assert not path.with_suffix(".trouble").exists()
    assert names((await operator.list("Notebook")).objects) == ["one.a5"]
    assert await lines(backend, notebook("one")) == []
    assert await lines(backend, notebook("one.a5")) == ["a line"]


async def test_an_object_without_an_alarm_fires_none(backend: LocalBackend, operator: Operator) -> None:
    await write(backend, notebook("one"))
    assert not await operator.fire_alarm(notebook("one"))


# -- out and in


@pytest.mark.parametrize("asleep", [True, False])
async def test_an_export_is_one_file_that_any_sqlite_opens(
    backend: LocalBackend, operator: Operator, data_dir: Path, tmp_path: Path, asleep: bool
) -> None:
    await write(backend, notebook("one"), text="x" * 3 * CHUNK_BYTES, asleep=asleep)
    file = tmp_path / "copy.sqlite"
    file.write_bytes(await exported(operator, notebook("one")))
    file.chmod(0o400)
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as copy:
        assert copy.execute("SELECT length(text) FROM line").fetchall() == [(3 * CHUNK_BYTES,)]
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert list((data_dir / TRANSFERS).iterdir()) == []
    assert backend.host.resident_objects == (not asleep)


async def test_what_was_exported_is_imported_as_another_object_with_all_that_it_had(
    backend: LocalBackend, operator: Operator
) -> None:
    stub = backend.namespace(Notebook).get("acme", "one")
    number = await stub.append("once")
    data = await exported(operator, notebook("one"))
    info = await operator.import_(notebook("two", "other"), bytes_of(data))
    assert (info.id, info.resident, info.schema_version) == (notebook("two", "other"), False, "create_tables")
    copy = backend.namespace(Notebook).get("other", "two")
    assert await copy.lines() == ["once"]
    assert await copy.add("more") == number + 1
    assert await stub.lines() == ["once"]
    assert not backend.inspector.busy


async def test_an_import_replaces_an_object_only_on_purpose(backend: LocalBackend, operator: Operator) -> None:
    await write(backend, notebook("one"), text="old")
    data = await exported(operator, notebook("one"))
    await write(backend, notebook("one"), text="newer", asleep=False)
    with pytest.raises(ObjectConflict):
        await operator.import_(notebook("one"), bytes_of(data))
    assert await lines(backend, notebook("one")) == ["old", "newer"]
    await operator.import_(notebook("one"), bytes_of(data), replace=True)
    assert await lines(backend, notebook("one")) == ["old"]


async def test_an_import_is_not_mixed_with_the_log_of_what_it_replaces(
    backend: LocalBackend, operator: Operator, data_dir: Path
) -> None:
    await write(backend, notebook("one"), text="old")
    data = await exported(operator, notebook("one"))
    path = path_of(data_dir, notebook("one"))
    await write(backend, notebook("one"), text="in the log", asleep=False)
    before, log = path.read_bytes(), wal_of(path).read_bytes()
    backend.host.evict(notebook("one"))
    path.write_bytes(before)
    wal_of(path).write_bytes(log)
    await operator.import_(notebook("one"), bytes_of(data), replace=True)
    assert await lines(backend, notebook("one")) == ["old"]


async def test_a_damaged_object_can_be_replaced(backend: LocalBackend, operator: Operator, data_dir: Path) -> None:
    await write(backend, notebook("one"), text="saved")
    data = await exported(operator, notebook("one"))
    path = path_of(data_dir, notebook("one"))
    await write(backend, notebook("one"), text="in the log", asleep=False)
    log = wal_of(path).read_bytes()
    backend.host.evict(notebook("one"))
    path.write_bytes(b"scrap" * 2000)
    wal_of(path).write_bytes(log)
    await operator.import_(notebook("one"), bytes_of(data), replace=True)
    assert await lines(backend, notebook("one")) == ["saved"]


async def test_an_object_that_can_not_be_opened_can_be_replaced(
    backend: LocalBackend, operator: Operator, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(backend, notebook("one"), text="old")
    data = await exported(operator, notebook("one"))
    path = path_of(data_dir, notebook("one"))
    await write(backend, notebook("one"), text="in the log", asleep=False)
    log = wal_of(path).read_bytes()
    backend.host.evict(notebook("one"))
    wal_of(path).write_bytes(log)
    connect = object_sqlite.connect

    def fail(opened: Path, *limits: int) -> ObjectConnection:
        if opened == path:
            raise object_sqlite.Error("the disk failed")
        return connect(opened, *limits)

    with monkeypatch.context() as patch:
        patch.setattr(object_sqlite, "connect", fail)
        await operator.import_(notebook("one"), bytes_of(data), replace=True)
    assert await lines(backend, notebook("one")) == ["old"]


async def test_an_object_keeps_all_that_it_has_when_its_replacement_fails(
    backend: LocalBackend, operator: Operator, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(backend, notebook("one"), text="old")
    data = await exported(operator, notebook("one"))
    path = path_of(data_dir, notebook("one"))
    await write(backend, notebook("one"), text="in the log", asleep=False)
    before, log = path.read_bytes(), wal_of(path).read_bytes()
    backend.host.evict(notebook("one"))
    path.write_bytes(before)
    wal_of(path).write_bytes(log)

    def fail(*_: object) -> None:
        raise OSError(5, "the disk failed")

    with monkeypatch.context() as patch:
        patch.setattr("actors.runtime.inspection.os.rename", fail)
        with pytest.raises(ObjectReset):
            await operator.import_(notebook("one"), bytes_of(data), replace=True)
    assert await lines(backend, notebook("one")) == ["old", "in the log"]
    assert list((data_dir / TRANSFERS).iterdir()) == []


def changed(tmp_path: Path, data: bytes, *statements: str) -> bytes:
    file = tmp_path / "changed.sqlite"
    file.write_bytes(data)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)
    return file.read_bytes()


ANOTHERS = "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('growing', 'first', '')"


async def test_what_is_no_whole_object_of_the_class_is_not_imported(
    backend: LocalBackend, operator: Operator, data_dir: Path, tmp_path: Path
) -> None:
    await write(backend, notebook("one"), text="x" * 50_000)
    await backend.namespace(Growing).get("acme", "other").add("thing")
    good = await exported(operator, notebook("one"))
    other = await exported(operator, ObjectId("Growing", "acme", "other"))
    torn = bytearray(good)
    for page in range(4096, len(good), 4096):
        torn[page : page + 100] = b"\xff" * 100
    endless = "WITH RECURSIVE t (x) AS (SELECT 1 UNION ALL SELECT x FROM t) SELECT x AS text, x AS number FROM t"
    own_trigger = "CREATE TRIGGER t AFTER INSERT ON line BEGIN DELETE FROM line; END"
    runs = "CREATE TRIGGER t AFTER INSERT ON _mobula_requests BEGIN DELETE FROM line; END"
    cases = {
        "is no SQLite database": [b"", b"scrap" * 1000, good[16:]],
        "another class": [other],
        "was not made by": [
            changed(tmp_path, b"", "CREATE TABLE t (x)"),
            changed(tmp_path, good, "DROP TABLE _mobula_kv"),
        ],
        "other migrations": [changed(tmp_path, good, ANOTHERS)],
        "trigger": [
            changed(tmp_path, good, runs),
            changed(tmp_path, good, own_trigger),
            changed(tmp_path, good, "DROP TABLE line", f"CREATE VIEW line AS {endless}"),
            changed(tmp_path, good, "DROP TABLE _sqlite_migrations", f"CREATE VIEW _sqlite_migrations AS {endless}"),
            changed(tmp_path, good, "DROP TABLE _mobula_alarm", f"CREATE VIEW _mobula_alarm AS {endless}"),
        ],
        "changed tables of the runtime": [
            changed(tmp_path, good, "ALTER TABLE _mobula_kv ADD COLUMN more"),
            changed(tmp_path, good, "CREATE TABLE _MOBULA_more (x)"),
            changed(tmp_path, good, "DROP TABLE _mobula_alarm"),
        ],
        "alarm at no time": [
            changed(tmp_path, good, f"INSERT INTO _mobula_alarm VALUES (1, {at}, 1, {retries})")
            for at, retries in [("'soon'", 0), ("9e999", 0), ("1e300", 0), (-1, 0), (1, "'many'")]
        ],
        "pages of 4096": [changed(tmp_path, good, "PRAGMA page_size = 8192", "VACUUM")],
        "damaged|refused by SQLite": [bytes(torn), good[: len(good) // 2]],
    }
    for said, all_data in cases.items():
        for data in all_data:
            with pytest.raises(InvalidArgument, match=said):
                await operator.import_(notebook("two"), bytes_of(data))
    newer = "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('notebook', 'from_tomorrow', '')"
    for statement in (newer, "PRAGMA user_version = 99"):
        with pytest.raises(SchemaTooNew):
            await operator.import_(notebook("two"), bytes_of(changed(tmp_path, good, statement)))
    assert names((await operator.list("Notebook")).objects) == ["one"]
    assert list((data_dir / TRANSFERS).iterdir()) == []
    assert not backend.inspector.busy


async def test_a_database_above_the_limit_is_refused_before_all_of_it_came(data_dir: Path) -> None:
    settings = dataclasses.replace(SETTINGS, database_bytes_max=2 * CHUNK_BYTES)
    with contextlib.closing(LocalBackend(data_dir, [Notebook], settings=settings)) as backend:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += CHUNK_BYTES
                yield b"x" * CHUNK_BYTES

        with pytest.raises(InvalidArgument, match="has more than"):
            await Operator(backend).import_(notebook("one"), endless())
        assert sent <= 4 * CHUNK_BYTES
        assert list((data_dir / TRANSFERS).iterdir()) == []


async def test_only_so_many_databases_are_on_their_way_and_forgotten_ones_make_room(
    backend: LocalBackend, operator: Operator, clock: ManualClock, data_dir: Path
) -> None:
    await write(backend, notebook("one"))
    for _ in range(JOURNEYS_MAX):
        await backend.inspector.import_begin(notebook("two"), replace=False)
    with pytest.raises(ObjectOverloaded):
        await exported(operator, notebook("one"))
    with pytest.raises(ObjectOverloaded):
        await operator.import_(notebook("three"), bytes_of(b"x"))
    clock.advance(IDLE_MAX_S + 1)
    assert await exported(operator, notebook("one"))
    assert list((data_dir / TRANSFERS).iterdir()) == []


async def test_an_export_that_is_broken_off_leaves_nothing(
    backend: LocalBackend, operator: Operator, data_dir: Path
) -> None:
    await write(backend, notebook("one"))
    async with operator.export(notebook("one")):
        during = backend.inspector.busy
    assert (during, backend.inspector.busy) == (True, False)
    assert list((data_dir / TRANSFERS).iterdir()) == []


def test_what_a_crash_left_of_an_export_goes_with_the_next_start(data_dir: Path) -> None:
    folder = data_dir / TRANSFERS
    folder.mkdir(parents=True)
    (folder / "old").touch()
    (folder / "new").touch()
    for name, age_s in (("old", 4000.0), ("new", 10.0)):
        os.utime(folder / name, (NOW - age_s, NOW - age_s))
    LocalBackend(data_dir, [Notebook], settings=SETTINGS, clock=ManualClock(NOW)).close()
    assert [path.name for path in folder.iterdir()] == ["new"]


# -- what other parts of the runtime know


async def test_an_alarm_is_fired_when_somebody_says_so(
    backend: LocalBackend, operator: Operator, tmp_path: Path
) -> None:
    bell = tmp_path / "bell"
    await backend.namespace(AlarmClock).get("acme", "one").ring_at(NOW + 1000, bell)
    assert await operator.fire_alarm(ObjectId("AlarmClock", "acme", "one"))
    assert bell.exists()
    assert not await operator.fire_alarm(ObjectId("AlarmClock", "acme", "one"))


async def test_an_alarm_comes_and_goes_with_the_database(
    backend: LocalBackend, operator: Operator, data_dir: Path, tmp_path: Path
) -> None:
    one, two = [ObjectId("AlarmClock", "acme", name) for name in ("one", "two")]
    clocks = backend.namespace(AlarmClock)
    await clocks.get("acme", "one").ring_at(NOW + 1000, tmp_path / "bell")
    await clocks.get("acme", "two").ring_at(NOW + 1, tmp_path / "another")
    data = await exported(operator, one)
    info = await operator.import_(two, bytes_of(data), replace=True)
    assert (info.alarm_at, info.quarantined) == (NOW + 1000, False)
    await operator.delete(one)
    assert [path.name for path in path_of(data_dir, one).parent.glob("acme:one*")] == []
    assert [(await operator.describe(two)).alarm_at, backend.host.alarms.next_at] == [NOW + 1000, NOW + 1000]


# -- schema


async def test_a_sweep_brings_all_objects_up_to_date_tells_how_far_it_is_and_wakes_none(data_dir: Path) -> None:
    with contextlib.closing(LocalBackend(data_dir, [GrowingBefore], settings=SETTINGS)) as before:
        for number in range(120):
            await before.namespace(GrowingBefore).get("acme", f"g{number}").add("fails" if number == 7 else "fine")
    MADE.clear()
    with contextlib.closing(LocalBackend(data_dir, [Growing, Notebook], settings=SETTINGS)) as backend:
        operator = Operator(backend)
        await backend.namespace(Growing).get("acme", "resident").add("thing")
        await write(backend, notebook("one"))
        MADE.clear()
        assert (await operator.describe(ObjectId("Growing", "acme", "g3"))).schema_version == "first"
        told = [progress async for progress in operator.migrate("Growing")]
        assert [(one.seen, one.total) for one in told] == [(0, 121), (50, 121), (100, 121), (121, 121)]
        assert (told[-1].migrated, told[-1].failures) == (119, 1)
        ((failed, why),) = told[-1].failed
        assert (failed.name, why) == ("g7", "ValueError: this one can't be brought up to date")
        assert (await operator.describe(ObjectId("Growing", "acme", "g3"))).schema_version == "second"
        assert (await operator.describe(ObjectId("Growing", "acme", "g7"))).schema_version == "first"
        assert MADE == []
        again = [progress async for progress in operator.migrate()]
        assert (again[-1].total, again[-1].migrated, again[-1].failures) == (122, 0, 1)
        await backend.namespace(Growing).get("acme", "g3").add("works")


# -- hosts that are lost


class Losing(Inspectable):
    """Loses the first answers."""

    def __init__(self, backend: LocalBackend, *losses: Exception) -> None:
        self._backend = backend
        self._losses = list(losses)
        self.asked: list[str] = []

    @property
    def hosts(self) -> int:
        return 1

    async def inspect(self, where: ObjectId | int, operation: str, arguments: dict[str, Any], *, start: bool) -> Any:
        self.asked.append(operation)
        if self._losses:
            raise self._losses.pop(0)
        return await self._backend.inspect(where, operation, arguments, start=start)


async def test_what_is_safe_to_repeat_is_asked_again_and_the_rest_only_if_it_was_not_done(
    backend: LocalBackend,
) -> None:
    await write(backend, notebook("one"))
    lost = HostLost("host-0", "gone")
    losing = Losing(backend, lost, lost)
    assert (await Operator(losing).describe(notebook("one"))).id == notebook("one")
    assert losing.asked == ["describe"] * 3
    with pytest.raises(ObjectReset):
        await Operator(Losing(backend, lost)).delete(notebook("one"))
    await Operator(Losing(backend, HostRetired(), HostRetired())).delete(notebook("one"))
    with pytest.raises(ObjectNotFound):
        await Operator(backend).describe(notebook("one"))
