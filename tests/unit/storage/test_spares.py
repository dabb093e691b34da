"""Where does a new object's file come from, and what if there is none?"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.runtime.schema import Schema
from actors.runtime.spares import EACH, Spares
from actors.runtime.sqlite import write_synced
from actors.runtime.storage import Storage

TEMPLATE = Schema(None).template


class Disk:
    """Writes spares, as many as there is room for."""

    def __init__(self) -> None:
        self.room = 100

    def write(self, path: Path, content: bytes) -> None:
        if not self.room:
            path.touch()
            raise OSError(errno.ENOSPC, "no space left")
        self.room -= 1
        write_synced(path, content)


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spares"


@pytest.fixture
def spares(folder: Path, disk: Disk) -> Iterator[Spares]:
    spares = Spares(folder, disk.write)
    yield spares
    spares.close()


def made(spares: Spares, path: Path) -> bytes:
    spares.create("Shelf", path, TEMPLATE)
    return path.read_bytes()


def filled(spares: Spares) -> None:
    spares.refill()
    spares.wait()


def test_the_first_object_of_a_class_has_its_file_written_and_the_next_ones_take_what_lies_ready(
    spares: Spares, disk: Disk, folder: Path, tmp_path: Path
) -> None:
    assert made(spares, tmp_path / "s" / "first.sqlite") == TEMPLATE
    filled(spares)
    ready = {path.stat().st_ino for path in folder.iterdir()}
    assert len(ready) == EACH
    for number in range(EACH):
        path = tmp_path / f"{number:03d}" / "next.sqlite"
        assert made(spares, path) == TEMPLATE
        assert path.stat().st_ino in ready
    assert not list(folder.iterdir())
    assert made(spares, tmp_path / "s" / "last.sqlite") == TEMPLATE


def test_as_many_are_made_again_as_were_taken(spares: Spares, disk: Disk, folder: Path, tmp_path: Path) -> None:
    made(spares, tmp_path / "first.sqlite")
    filled(spares)
    made(spares, tmp_path / "second.sqlite")
    filled(spares)
    assert len(list(folder.iterdir())) == EACH
    filled(spares)
    assert disk.room == 100 - EACH - 1


def test_an_object_can_use_a_file_that_lay_ready(spares: Spares, disk: Disk, tmp_path: Path) -> None:
    made(spares, tmp_path / "first.sqlite")
    filled(spares)
    path = tmp_path / "s.sqlite"
    for _ in range(2):
        storage = Storage(
            "Shelf/acme:s", path, Schema(None), create=lambda path, template: spares.create("Shelf", path, template)
        )
        storage.begin()
        storage.sql("CREATE TABLE IF NOT EXISTS books (title TEXT)")
        storage.sql("INSERT INTO books VALUES ('Emma')")
        storage.commit()
        storage.close()
    storage = Storage("Shelf/acme:s", path, Schema(None))
    assert storage.own_sql("SELECT count(*) FROM books") == [(2,)]
    storage.close()


def test_a_log_that_a_deleted_object_left_is_not_taken_for_the_new_ones(
    spares: Spares, disk: Disk, tmp_path: Path
) -> None:
    made(spares, tmp_path / "first.sqlite")
    filled(spares)
    left = tmp_path / "s.sqlite-wal"
    left.touch()
    made(spares, tmp_path / "s.sqlite")
    assert not left.exists()


def test_where_somebody_has_removed_what_lay_ready_the_file_is_written(
    spares: Spares, disk: Disk, folder: Path, tmp_path: Path
) -> None:
    made(spares, tmp_path / "first.sqlite")
    filled(spares)
    for path in folder.iterdir():
        path.unlink()
    assert made(spares, tmp_path / "s.sqlite") == TEMPLATE


def test_on_a_full_disk_none_lies_ready_and_nothing_half_written_is_left(
    spares: Spares, disk: Disk, folder: Path, tmp_path: Path
) -> None:
    made(spares, tmp_path / "first.sqlite")
    disk.room = 1
    filled(spares)
    assert len(list(folder.iterdir())) == 1
    assert made(spares, tmp_path / "second.sqlite") == TEMPLATE
    assert made(spares, tmp_path / "third.sqlite") == TEMPLATE
    disk.room = 100
    filled(spares)
    assert len(list(folder.iterdir())) == EACH


def test_what_an_earlier_host_left_goes_and_so_does_what_this_one_leaves(folder: Path, disk: Disk) -> None:
    folder.mkdir()
    (folder / "0").write_bytes(b"of other code")
    spares = Spares(folder, disk.write)
    assert not folder.exists()
    made(spares, folder.parent / "first.sqlite")
    filled(spares)
    spares.close()
    assert not folder.exists()
