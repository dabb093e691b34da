"""Is each object told of, and none woken by it?"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors import LocalBackend, Operator
from actors.runtime import (
    InvalidArgument,
    ObjectNotFound,
)
from actors.runtime.clock import ManualClock
from actors.runtime.object_id import ObjectId
from actors.runtime.object_info import ObjectInfo
from actors.runtime.quarantine import CRASHES_MAX
from actors.runtime.sqlite import wal_of
from tests.objects import AlarmClock
from tests.unit.inspection.support import (
    NOW,
    Growing,
    exported,
    names,
    notebook,
    path_of,
    write,
)


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
    assert {name: info.problem for name, info in by_name.items() if info.quarantined} == {
        "bad.one": "its add ended the host's process 3 times in a row",
        "never made": "its start ended the host's process 3 times in a row",
    }
    assert by_name["failed once"].problem is None
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


async def test_a_log_that_a_crash_left_is_looked_into_and_stays_as_it_is(
    backend: LocalBackend, operator: Operator, data_dir: Path
) -> None:
    growing = ObjectId("Growing", "acme", "g")
    path = path_of(data_dir, growing)
    await backend.namespace(Growing).get("acme", "g").add("thing")
    database, log = path.read_bytes(), wal_of(path).read_bytes()
    assert backend.host.evict(growing)
    path.write_bytes(database)
    wal_of(path).write_bytes(log)
    os.utime(wal_of(path), (NOW, NOW))
    os.utime(path, (NOW - 1, NOW - 1))
    for _ in range(2):
        info = await operator.describe(growing)
        assert (info.schema_version, info.migrations, info.last_active_at) == ("second", 2, NOW)
        assert info.size_bytes == len(database) + len(log)
    assert (await operator.query(growing, "SELECT name FROM thing")).rows == (("thing",),)
    assert (path.read_bytes(), wal_of(path).read_bytes()) == (database, log)
    assert (path.stat().st_mtime, wal_of(path).stat().st_mtime) == (NOW - 1, NOW)
    assert {file.name for file in path.parent.glob("*g*")} == {path.name, wal_of(path).name}


@pytest.mark.parametrize("lives", [True, False])
async def test_what_only_a_dedicated_objects_own_host_knows_is_asked_of_it(
    backend: LocalBackend, operator: Operator, lives: bool
) -> None:
    await write(backend, notebook("one"))
    known = await operator.describe(notebook("one"))
    unknown = replace(known, resident=True, migrations=None, schema_version=None)

    class OfTwoHosts:
        """A pool's host, which may not open the file, and the object's own."""

        hosts = 1

        async def inspect(self, where: Any, operation: str, arguments: dict[str, Any], *, start: bool) -> Any:
            if operation == "page":
                return [unknown]
            assert (where, operation, start) == (notebook("one"), "describe", False)
            if not lives:
                raise ObjectNotFound(str(where))
            return known

    page = await Operator(OfTwoHosts()).list()
    assert page.objects == (known if lives else unknown,)


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
