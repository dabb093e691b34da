"""What does the disk know of the history of classes, and how do the objects of a class move?

`objects/classes.json` holds the migrations that were applied and the moves that are not done yet; it is replaced whole.
A move is written there before it begins and struck out when it is done. In between it may stop anywhere, and does what
is left when it is carried out again. Whoever moves must be the only one to open objects.

An object's slot depends on the name of its class, so its file goes to another folder, and not just the class's folder
to another name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.runtime.class_migration import ClassMigration, Deletion, Move
from actors.runtime.errors import ClassesRefused, InvalidArgument
from actors.runtime.folder import make_folder, sync_folder
from actors.runtime.object_id import ObjectId

RECORD_NAME = "classes.json"
FORMAT = 1
# No class has a name with a dot.
_MOVING = ".moving"
_DELETED = ".deleted"
#: Beside an object's database, and of no use without its process: locks, marks, and files that were not finished.
_PASSING = ("lock", "new", "running", "trouble-new")
#: Beside an object's database, and of no use without it: what SQLite keeps there, and takes for its own if it finds it;
#: what is held against the object; and when its alarms are due.
_COMPANION = re.compile(r"sqlite-(wal|shm|journal)|trouble|a[0-9]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassRecord:
    """What was applied to a data directory. Moves that are left belong to what was applied."""

    applied: tuple[ClassMigration, ...]
    moves: tuple[Move, ...]


class ClassFiles:
    """The folders of all classes, and the record beside them.

    Args:
        objects_dir: where the classes' folders are.
        slots: the data directory's number of slots.
        step: told before each change on disk what it is; a test ends there.
    """

    def __init__(self, objects_dir: Path, slots: int, step: Callable[[str], None]) -> None:
        self._objects_dir = objects_dir
        self._slots = slots
        self._step = step
        self.record_path = objects_dir / RECORD_NAME

    # -- the record

    def read(self) -> ClassRecord | None:
        """None: no history was applied to this data yet.

        Raises:
            ClassesRefused: the file is damaged, or of newer code.
        """
        try:
            text = self.record_path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            data = json.loads(text)
            if data["format"] == FORMAT:
                return _record(data)
            problem = f"has format {data['format']!r}, and this code knows {FORMAT}: run the newer code"
        except (ValueError, KeyError, TypeError, AttributeError):
            problem = "is damaged: restore it from a backup"
        raise ClassesRefused(str(self.record_path), "", "", problem)

    def write(self, record: ClassRecord) -> None:
        data = {
            "format": FORMAT,
            "applied": [_plain(migration) for migration in record.applied],
            "moves": [[move.tag, move.source, move.target] for move in record.moves],
        }
        unfinished = self.record_path.with_name(f".{RECORD_NAME}.new")
        self._step(f"write {unfinished.name}")
        with unfinished.open("w") as file:
            file.write(json.dumps(data, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._step(f"replace {RECORD_NAME}")
        os.replace(unfinished, self.record_path)
        sync_folder(self._objects_dir)

    # -- the objects

    def keys(self, class_name: str) -> frozenset[str]:
        """The objects that the class has, as their files are named."""
        return frozenset(path.stem for path in _files(self._objects_dir / class_name) if path.suffix == ".sqlite")

    def dedicated_locks(self, class_name: str) -> list[Path]:
        """The locks of objects of the class that may run in a process of their own."""
        return [path for path in _files(self._objects_dir / class_name) if path.suffix == ".lock"]

    def require_movable(self, class_name: str) -> None:
        """
        Raises:
            ClassesRefused: the class's folder holds a file that belongs to no object, and so can't go anywhere.
        """
        for path in _files(self._objects_dir / class_name):
            self._target_of(path, class_name)

    def carry_out(self, move: Move) -> int:
        """Does the move, or what is left of it. Returns how many objects it found to move."""
        if move.target is None:
            return self._delete(move.source)
        moved = self._drain(move.target)
        source = self._objects_dir / move.source
        if source.is_dir():
            self._tidy(source, move.target)
            # From here on a write-ahead log without its database is one whose database has gone ahead.
            self._step(f"set {move.source} aside")
            os.rename(source, self._objects_dir / _MOVING)
            sync_folder(self._objects_dir)
            moved += self._drain(move.target)
        return moved

    def _delete(self, class_name: str) -> int:
        deleted = len(self.keys(class_name))
        for _ in range(2):  # what an earlier try has left, then what is there
            if (gone := self._objects_dir / _DELETED).is_dir():
                self._step(f"delete {_DELETED}")
                shutil.rmtree(gone)
            if (source := self._objects_dir / class_name).is_dir():
                self._step(f"set {class_name} aside")
                os.rename(source, gone)
                sync_folder(self._objects_dir)
        return deleted

    def _tidy(self, source: Path, target: str) -> None:
        """Removes what would stand beside a database that is not its own."""
        moving = set()
        for path in _files(source):
            goal = self._target_of(path, target)
            _, ending = _split(path)
            if ending in _PASSING or (_COMPANION.fullmatch(ending) and not path.with_suffix(".sqlite").exists()):
                self._step(f"remove {path.name}")
                path.unlink()
            elif path.suffix == ".sqlite":
                if goal.exists():
                    raise ClassesRefused(str(goal), "", target, "is there already, and would be overwritten")
                moving.add(goal)
        # One look at the folders: how many alarms an object has, and when, its name does not say.
        for path in _files(self._objects_dir / target) if moving else ():
            stem, ending = _split(path)
            if _COMPANION.fullmatch(ending) and path.with_name(f"{stem}.sqlite") in moving:
                self._step(f"remove {path.name}")
                path.unlink()

    def _drain(self, target: str) -> int:
        moving = self._objects_dir / _MOVING
        if not moving.is_dir():
            return 0
        moved = 0
        for path in _files(moving):
            goal = self._target_of(path, target)
            make_folder(goal.parent)
            if goal.exists():
                raise ClassesRefused(str(goal), "", target, "is there already, and would be overwritten")
            self._step(f"move {path.name}")
            os.rename(path, goal)
            moved += path.suffix == ".sqlite"
        # All of them: an earlier try may have moved something and ended before it came here.
        goals = self._objects_dir / target
        for folder in [*goals.iterdir(), goals] if goals.is_dir() else ():
            if folder.is_dir():
                sync_folder(folder)
        self._step(f"remove {_MOVING}")
        shutil.rmtree(moving)  # nothing but empty folders
        sync_folder(self._objects_dir)
        return moved

    def _target_of(self, path: Path, class_name: str) -> Path:
        stem, _ = _split(path)
        try:
            database = ObjectId.from_key(class_name, stem).path(self._objects_dir, self._slots)
        except InvalidArgument:
            problem = "belongs to no object: move it out of the class's folder"
            raise ClassesRefused(str(path), "", class_name, problem) from None
        return database.with_name(path.name)


def _files(folder: Path) -> Iterator[Path]:
    """Everything in the slots' folders of a class. A listing each, so that they may be moved meanwhile."""
    for slot in sorted(folder.iterdir()) if folder.is_dir() else ():
        if slot.is_dir():
            yield from sorted(slot.iterdir())
        else:
            yield slot


def _split(path: Path) -> tuple[str, str]:
    """`tenant:name.sqlite-wal` as `tenant:name` and `sqlite-wal`. No ending holds a dot; names may."""
    stem, _, ending = path.name.rpartition(".")
    return stem, ending


def _plain(migration: ClassMigration) -> dict[str, Any]:
    return {
        "tag": migration.tag,
        "new": migration.new,
        "renamed": migration.renamed,
        "transferred": migration.transferred,
        "deleted": [deletion.name for deletion in migration.deleted],
    }


def _record(data: dict[str, Any]) -> ClassRecord:
    applied = [
        ClassMigration(
            tag=str(plain["tag"]),
            new=tuple(map(str, plain["new"])),
            renamed=_pairs(plain["renamed"]),
            transferred=_pairs(plain["transferred"]),
            deleted=tuple(Deletion(name=str(name), confirmed=True) for name in plain["deleted"]),
        )
        for plain in data["applied"]
    ]
    moves = [Move(tag=str(tag), source=str(source), target=target) for tag, source, target in data["moves"]]
    return ClassRecord(applied=tuple(applied), moves=tuple(moves))


def _pairs(plain: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((str(source), str(target)) for source, target in plain)
