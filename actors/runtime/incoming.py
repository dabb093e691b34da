"""Is a database that came from outside an object of this class, and whole?

It is looked through before it counts: that SQLite finds no fault in it, that it has the runtime's tables as they are
made here and the class's migrations and no other's, and none that this code does not know. Views and triggers are code:
they would run in the host, for as long as they like, and only those that the class's migrations make are let in. Then
it is brought up to date, as any file is when its object wakes. Until all of that is done it is a file beside the
objects, and no object's.

All of it is done in processes that are killed when their time is over: a file from outside may hold what keeps SQLite
busy for ever. The host itself does not open it.
"""

from __future__ import annotations

import base64
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from actors.runtime import incoming_child, migrate_child, sqlite
from actors.runtime.child import ChildEnded, ChildLimits, Program, Why, answer_of
from actors.runtime.errors import InvalidArgument, ObjectFailed, ObjectReset, SchemaTooNew, StorageFull
from actors.runtime.schema import Schema

#: For each of the processes, and so much more for each GiB: SQLite checks it in a third of that.
TIMEOUT_S = 60.0
TIMEOUT_S_PER_GIB = 40.0
CHECK_MEMORY_BYTES_MAX = 512 * 1024 * 1024
#: Of a process that loads the author's modules, and all that they import.
MIGRATE_MEMORY_BYTES_MAX = 8 * 1024**3

_HEADER = b"SQLite format 3\0"
_FIELD = "database"
_ANSWER_BYTES_MAX = 1024 * 1024
#: What a program writes beside the database: a journal, or compiled modules.
_BESIDE_BYTES = 64 * 1024 * 1024


def make_ready(
    path: Path,
    object_key: str,
    schema: Schema,
    *,
    size_bytes_max: int,
    stopped: Callable[[], bool],
) -> float | None:
    """Makes the file at `path` one that the object could have written, or refuses it. Returns when its alarm is due.

    Raises:
        InvalidArgument: it is no whole database of the class, or can't be checked in time.
        SchemaTooNew: newer code wrote it.
        ObjectFailed: a migration of the class failed.
        ObjectReset: the disk failed, or the host is stopping.
        ObjectOverloaded: no process could be started for it.
        StorageFull
    """
    with path.open("rb") as file:
        if file.read(len(_HEADER)) != _HEADER:
            raise InvalidArgument(_FIELD, path.stat().st_size, "is no SQLite database")
    arrival = _Arrival(path, object_key, stopped)
    answer = arrival.check(schema, is_new=True)
    if "is_older" in answer:
        arrival.migrate(schema, size_bytes_max)
        answer = arrival.check(schema, is_new=False)
    if "alarm_at" not in answer:
        raise ObjectFailed(object_key, "Migrations", "the file is not up to date after all of them were applied")
    if sqlite.wal_of(path).exists():
        raise ObjectReset(object_key, "import failed: its log could not be folded into it")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    alarm_at: float | None = answer["alarm_at"]
    return alarm_at


class _Arrival:
    """A file that came in, and what becomes of it in other processes."""

    def __init__(self, path: Path, object_key: str, stopped: Callable[[], bool]) -> None:
        self._path = path
        self._object_key = object_key
        self._stopped = stopped
        self._size_bytes = path.stat().st_size

    def check(self, schema: Schema, *, is_new: bool) -> dict[str, Any]:
        driver, folder = sqlite.driver()
        asked = {
            "driver": driver,
            "uri": f"{self._path.absolute().as_uri()}?mode=rw",
            "class": schema.facts,
            "page_bytes": sqlite.PAGE_BYTES,
            "is_new": is_new,
        }
        program = Program(path=Path(incoming_child.__file__).resolve(), folders=(folder,))
        return self._answer("check", program, asked, CHECK_MEMORY_BYTES_MAX, self._size_bytes)

    def migrate(self, schema: Schema, size_bytes_max: int) -> None:
        try:
            migrations = pickle.dumps(schema.migrations)
        except Exception as error:  # pickling looks for the author's functions where they say that they are
            raise self._can_not_be_loaded(error) from error
        program = Program(
            path=Path(migrate_child.__file__).resolve(),
            folders=(*map(os.path.abspath, sys.path), Path(__file__).resolve().parents[2]),
            environment=os.environ,
            site=True,
        )
        asked = {
            "path": str(self._path),
            "object_key": self._object_key,
            "size_bytes_max": size_bytes_max,
            "migrations": base64.b64encode(migrations).decode(),
        }
        answer = self._answer("migrate", program, asked, MIGRATE_MEMORY_BYTES_MAX, 2 * size_bytes_max)
        if "unknown" in answer:
            raise self._can_not_be_loaded(answer["unknown"])
        if "failed" in answer:
            raise ObjectFailed(self._object_key, *answer["failed"])

    def _answer(
        self, doing: str, program: Program, asked: Mapping[str, Any], memory_bytes: int, file_bytes: int
    ) -> dict[str, Any]:
        limits = ChildLimits(
            timeout_s=TIMEOUT_S + TIMEOUT_S_PER_GIB * self._size_bytes / 1024**3,
            memory_bytes=memory_bytes,
            file_bytes=file_bytes + _BESIDE_BYTES,
            answer_bytes_max=_ANSWER_BYTES_MAX,
        )
        try:
            answer = answer_of(program, asked, limits, stopped=self._stopped)
        except ChildEnded as ended:
            if (error := ended.meaning(self._object_key)) is not None:
                raise error from ended
            late = f"took longer than {limits.timeout_s:g} s to {doing}"
            problem = late if ended.why is Why.LATE else f"ended the process that was to {doing} it ({ended.detail})"
            raise InvalidArgument(_FIELD, f"{self._size_bytes} bytes", problem) from ended
        if "refused" in answer:
            raise InvalidArgument(_FIELD, *answer["refused"])
        if "too_new" in answer:
            raise SchemaTooNew(self._object_key, *answer["too_new"])
        if "memory" in answer:
            raise InvalidArgument(_FIELD, f"{self._size_bytes} bytes", f"took too much memory to {doing}")
        if "code" in answer:
            if sqlite.is_full_code(answer["code"]):
                raise StorageFull(self._object_key, "import")
            raise InvalidArgument(_FIELD, answer["type"], f"is refused by SQLite: {answer['message']}")
        return answer

    @staticmethod
    def _can_not_be_loaded(error: object) -> InvalidArgument:
        problem = "is of an older version, and another process can't load the migrations of its class from a module"
        return InvalidArgument(_FIELD, str(error), problem)
