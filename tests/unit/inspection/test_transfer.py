"""Do databases leave a host and come in whole?"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from actors import LocalBackend, Operator
from actors.runtime import (
    InvalidArgument,
    ObjectConflict,
    ObjectOverloaded,
    ObjectReset,
)
from actors.runtime import sqlite as object_sqlite
from actors.runtime.clock import ManualClock
from actors.runtime.connection import ObjectConnection
from actors.runtime.inspection import TRANSFERS
from actors.runtime.transfers import CHUNK_BYTES, IDLE_MAX_S, JOURNEYS_MAX
from tests.objects import Notebook
from tests.unit.inspection.support import (
    NOW,
    SETTINGS,
    bytes_of,
    exported,
    lines,
    logged,
    notebook,
    path_of,
    write,
)


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


async def replaceable(backend: LocalBackend, operator: Operator, path: Path) -> bytes:
    """Makes a notebook with a line in the file and one in the log that a crash left. Returns it without the second."""
    await write(backend, notebook("one"), text="old")
    data = await exported(operator, notebook("one"))
    await logged(backend, path, notebook("one"), "in the log")
    return data


async def test_an_import_is_not_mixed_with_the_log_of_what_it_replaces(
    backend: LocalBackend, operator: Operator, data_dir: Path
) -> None:
    path = path_of(data_dir, notebook("one"))
    data = await replaceable(backend, operator, path)
    await operator.import_(notebook("one"), bytes_of(data), replace=True)
    assert await lines(backend, notebook("one")) == ["old"]


async def test_a_damaged_object_can_be_replaced(backend: LocalBackend, operator: Operator, data_dir: Path) -> None:
    path = path_of(data_dir, notebook("one"))
    data = await replaceable(backend, operator, path)
    path.write_bytes(b"scrap" * 2000)
    await operator.import_(notebook("one"), bytes_of(data), replace=True)
    assert await lines(backend, notebook("one")) == ["old"]


async def test_an_object_that_can_not_be_opened_can_be_replaced(
    backend: LocalBackend, operator: Operator, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = path_of(data_dir, notebook("one"))
    data = await replaceable(backend, operator, path)
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
    path = path_of(data_dir, notebook("one"))
    data = await replaceable(backend, operator, path)

    def fail(*_: object) -> None:
        raise OSError(5, "the disk failed")

    with monkeypatch.context() as patch:
        patch.setattr("actors.runtime.porter.os.rename", fail)
        with pytest.raises(ObjectReset):
            await operator.import_(notebook("one"), bytes_of(data), replace=True)
    assert await lines(backend, notebook("one")) == ["old", "in the log"]
    assert list((data_dir / TRANSFERS).iterdir()) == []


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
        await backend.inspector.do("import_begin", {"object_id": notebook("two"), "replace": False})
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
