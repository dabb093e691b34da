"""Is what comes from outside let in only if the object could have written it?"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import psutil
import pytest
from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from actors import LocalBackend, Operator
from actors.runtime import DurableObject, InvalidArgument, ObjectFailed, ObjectReset, SchemaTooNew, incoming
from actors.runtime.child import GRACE_S
from actors.runtime.inspection import TRANSFERS
from actors.runtime.object_id import ObjectId
from actors.runtime.transfers import CHUNK_BYTES
from tests.objects import Notebook
from tests.unit.inspection.support import (
    ANOTHERS,
    MADE,
    SETTINGS,
    Growing,
    GrowingBefore,
    bytes_of,
    changed,
    exported,
    names,
    notebook,
    write,
)


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


async def older(tmp_path: Path, *names_of_things: str) -> bytes:
    """An object of the class as it was, exported."""
    with contextlib.closing(LocalBackend(tmp_path / "before", [GrowingBefore], settings=SETTINGS)) as before:
        for name in names_of_things:
            await before.namespace(GrowingBefore).get("acme", "old").add(name)
        return await exported(Operator(before), ObjectId("Growing", "acme", "old"))


# One step of SQLite's machine for each, which takes it minutes.
HOSTILE = "instr(big, substr(big, 1, length(big) / 2) || 'b') = 0"
BIG = "replace(hex(zeroblob(1000000)), '0', 'a')"
TRAP = (
    "PRAGMA ignore_check_constraints = ON",
    f"CREATE TABLE trap (big TEXT, CHECK ({HOSTILE}))",
    f"INSERT INTO trap VALUES ({BIG})",
)


async def test_what_keeps_sqlite_busy_while_it_is_checked_is_refused_in_time_and_leaves_nothing(
    backend: LocalBackend, operator: Operator, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(backend, notebook("one"))
    good = await exported(operator, notebook("one"))
    hostile = changed(tmp_path, good, *TRAP)
    monkeypatch.setattr(incoming, "TIMEOUT_S", 0.2)
    began_s = time.monotonic()
    with pytest.raises(InvalidArgument, match=r"took longer than 0\.\d+ s to check") as refused:
        await operator.import_(notebook("two"), bytes_of(hostile))
    assert time.monotonic() - began_s < 0.3 + GRACE_S + 3.0
    assert refused.value.field == "database"
    assert names((await operator.list("Notebook")).objects) == ["one"]
    assert list((data_dir / TRANSFERS).iterdir()) == []


async def test_a_host_that_stops_ends_a_check(data_dir: Path, tmp_path: Path) -> None:
    backend = LocalBackend(data_dir, [Notebook], settings=SETTINGS)
    await write(backend, notebook("one"))
    hostile = changed(tmp_path, await exported(Operator(backend), notebook("one")), *TRAP)
    do = backend.inspector.do
    ticket = await do("import_begin", {"object_id": notebook("two"), "replace": False})
    for offset in range(0, len(hostile), CHUNK_BYTES):
        await do("import_write", {"ticket": ticket, "offset": offset, "data": hostile[offset : offset + CHUNK_BYTES]})
    importing = asyncio.create_task(do("import_finish", {"ticket": ticket, "replace": False}))
    async with asyncio.timeout(10.0):
        while not psutil.Process().children():
            await asyncio.sleep(0)
    stopped_s = time.monotonic()
    backend.close()
    with pytest.raises(ObjectReset):
        await importing
    assert time.monotonic() - stopped_s < 2.0
    assert psutil.Process().children() == []
    assert list((data_dir / TRANSFERS).iterdir()) == []


async def test_an_object_of_older_code_is_brought_up_to_date(
    backend: LocalBackend, operator: Operator, tmp_path: Path
) -> None:
    growing = ObjectId("Growing", "acme", "new")
    info = await operator.import_(growing, bytes_of(await older(tmp_path, "a", "b")))
    assert (info.schema_version, info.migrations, MADE) == ("second", 2, ["old"])
    assert (await operator.query(growing, "SELECT name, size FROM thing")).rows == (("a", None), ("b", None))


async def test_what_keeps_sqlite_busy_while_it_is_migrated_is_refused_in_time(
    backend: LocalBackend, operator: Operator, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The migration reads the names. The check does not: they may be of any type.
    computed = f"CASE WHEN {HOSTILE} THEN 'good' ELSE 'fails' END"
    hostile = changed(
        tmp_path,
        await older(tmp_path, "a"),
        "DROP TABLE thing",
        "CREATE TABLE thing (big TEXT)",
        f"INSERT INTO thing VALUES ({BIG})",
        f"ALTER TABLE thing ADD COLUMN name AS ({computed})",
    )
    # For the modules of the class as well, which the migrations are loaded from.
    monkeypatch.setattr(incoming, "TIMEOUT_S", 3.0)
    with pytest.raises(InvalidArgument, match=r"took longer than 3\.\d+ s to migrate"):
        await operator.import_(ObjectId("Growing", "acme", "new"), bytes_of(hostile))
    assert list((data_dir / TRANSFERS).iterdir()) == []


async def test_a_migration_that_fails_says_so_and_nothing_is_imported(
    backend: LocalBackend, operator: Operator, tmp_path: Path
) -> None:
    with pytest.raises(ObjectFailed, match="ValueError: this one can't be brought up to date"):
        await operator.import_(ObjectId("Growing", "acme", "new"), bytes_of(await older(tmp_path, "fails")))
    assert names((await operator.list("Growing")).objects) == []


async def test_a_class_that_no_other_process_knows_takes_in_what_is_up_to_date(data_dir: Path, tmp_path: Path) -> None:
    class Growing(DurableObject):
        migrations = Migrations("growing")

        def add(self, name: str) -> None:
            self.storage.sql("INSERT INTO thing (name) VALUES (?)", name)

    @Growing.migrations(name="first")
    def make(database: Database) -> None:
        database.execute("CREATE TABLE thing (name TEXT)")

    @Growing.migrations(name="second")
    def widen(database: Database) -> None:
        database.execute("ALTER TABLE thing ADD COLUMN size INTEGER")

    with contextlib.closing(LocalBackend(data_dir, [Growing], settings=SETTINGS)) as backend:
        operator = Operator(backend)
        await backend.namespace(Growing).get("acme", "one").add("thing")
        data = await exported(operator, ObjectId("Growing", "acme", "one"))
        two = ObjectId("Growing", "acme", "two")
        assert (await operator.import_(two, bytes_of(data))).schema_version == "second"
        assert (await operator.query(two, "SELECT name FROM thing")).rows == (("thing",),)
        with pytest.raises(InvalidArgument, match="can't load the migrations"):
            await operator.import_(ObjectId("Growing", "acme", "three"), bytes_of(await older(tmp_path, "a")))


async def test_the_list_of_migrations_may_compute_nothing(
    backend: LocalBackend, operator: Operator, tmp_path: Path
) -> None:
    await write(backend, notebook("one"))
    changes = (
        "ALTER TABLE _sqlite_migrations RENAME TO kept",
        "CREATE TABLE _sqlite_migrations (id INTEGER, migration_set TEXT, applied_at TEXT, n TEXT, name TEXT AS (n))",
        "INSERT INTO _sqlite_migrations (id, migration_set, applied_at, n)"
        " SELECT id, migration_set, applied_at, name FROM kept",
    )
    data = changed(tmp_path, await exported(operator, notebook("one")), *changes)
    with pytest.raises(InvalidArgument, match="changed tables of the runtime"):
        await operator.import_(notebook("two"), bytes_of(data))
