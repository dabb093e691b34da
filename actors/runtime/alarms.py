"""Which objects of a host have an alarm, and which is due next?

The index: one empty file per alarm, named `<stem>.a<milliseconds since 1970>`, beside the object's database, and a heap
of them in memory. So an alarm is found without opening the object, survives every process, and goes where the object's
files go.

The time in the index is never later than the one in the object: an earlier time is put here before the object's commit,
and a later one after it. What a crash leaves is an entry that comes too soon; the object knows better, and is asked.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from actors.runtime.folder import make_folder, sync_folder
from actors.runtime.object_id import ObjectId

#: class name, stem
Key: TypeAlias = tuple[str, str]

#: Old entries that a heap may hold whatever its size.
_OLD_MAX = 64

_ENTRY = re.compile(r"(.+)\.a(\d{1,13})")


def entry_of(name: str) -> tuple[str, float] | None:
    """Stem and time of an index entry, by its file's name; None for any other file."""
    match = _ENTRY.fullmatch(name)
    return (match[1], int(match[2]) / 1000) if match else None


def key_of(object_id: ObjectId) -> Key:
    return object_id.class_name, object_id.stem


class AlarmIndex:
    """The alarms of one host's objects.

    Args:
        objects_dir: where the classes' folders are.
        slots: the data directory's number of slots.
        changed: told after each change that may bring the next alarm forward.
        sync: makes the names in a folder durable.
    """

    def __init__(
        self,
        objects_dir: Path,
        slots: int,
        changed: Callable[[], None],
        sync: Callable[[Path], None] = sync_folder,
    ) -> None:
        self._objects_dir = objects_dir
        self._slots = slots
        self._changed = changed
        self._sync = sync
        #: As the files say, in milliseconds.
        self._at_ms: dict[Key, int] = {}
        #: (when to fire, key). Entries that don't agree with `_fire_ms` are old.
        self._heap: list[tuple[int, Key]] = []
        self._fire_ms: dict[Key, int] = {}
        self._failures: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._at_ms)

    def at(self, key: Key) -> float | None:
        at_ms = self._at_ms.get(key)
        return None if at_ms is None else at_ms / 1000

    def is_too_late(self, key: Key, at: float | None) -> bool:
        """The index must follow before an object with an alarm at `at` commits."""
        known_ms = self._at_ms.get(key)
        return at is not None and (known_ms is None or _ms(at) < known_ms)

    def differs(self, key: Key, at: float | None) -> bool:
        """The index does not say `at`."""
        return self._at_ms.get(key) != (None if at is None else _ms(at))

    def set(self, object_id: ObjectId, at: float | None) -> None:
        """Makes the index say so, durably.

        Raises:
            OSError: it may say what it did before, or has yet to be made durable.
        """
        key, at_ms = key_of(object_id), None if at is None else _ms(at)
        self._failures.pop(key, None)
        known_ms = self._at_ms.get(key)
        if at is None or at_ms is None:
            self._fire_ms.pop(key, None)
            self._at_ms.pop(key, None)
        else:
            if at_ms != known_ms:
                self._enter(self._path(object_id, at_ms), None if known_ms is None else self._path(object_id, known_ms))
                self._at_ms[key] = at_ms
            self._push(key, _ms_not_before(at))
        self._changed()
        if known_ms is not None and at_ms is None:
            self._path(object_id, known_ms).unlink(missing_ok=True)

    def _enter(self, path: Path, before: Path | None) -> None:
        """Makes the entry, in place of the one before: a name is changed for less than a file is made."""
        try:
            if before is not None:
                before.rename(path)
        except FileNotFoundError:
            before = None  # somebody has removed it
        if before is None:
            make_folder(path.parent)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        self._sync(path.parent)

    def load(self, entries: Iterable[Path]) -> None:
        """Takes in what is on disk: files of this host's objects, in folders `<class>/<slot>`."""
        for path in entries:
            entry = entry_of(path.name)
            if entry is None:
                continue
            stem, at = entry
            key, at_ms = (path.parent.parent.name, stem), _ms(at)
            known_ms = self._at_ms.get(key)
            if known_ms is None or at_ms < known_ms:
                self._at_ms[key] = at_ms
                self._push(key, at_ms)
            if known_ms is not None and known_ms != at_ms:
                # A crash came between the new entry and the end of the old one.
                path.with_name(f"{stem}.a{max(known_ms, at_ms)}").unlink(missing_ok=True)
        self._changed()

    @property
    def next_at(self) -> float | None:
        """When the next alarm is to be fired."""
        while self._heap and self._fire_ms.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] / 1000 if self._heap else None

    def take_due(self, now: float, limit: int) -> list[ObjectId]:
        """Objects whose time has come, longest ago first. Each is given once, until it is set or deferred."""
        due: list[ObjectId] = []
        while len(due) < limit and (at := self.next_at) is not None and at <= now:
            _, key = heapq.heappop(self._heap)
            del self._fire_ms[key]
            due.append(ObjectId.from_key(*key))
        return due

    def defer(self, object_id: ObjectId, at: float) -> None:
        """Has it fired then, whatever the entry says. In memory only."""
        self._push(key_of(object_id), _ms_not_before(at))
        self._changed()

    def rearm(self) -> None:
        """Has every alarm fired at its time that is not going to be. One that is under way is asked once too often."""
        for key, at_ms in self._at_ms.items():
            if key not in self._fire_ms:
                self._push(key, at_ms)

    def failed(self, object_id: ObjectId) -> int:
        """Counts a failure that is not the handler's. Returns how many came in a row."""
        key = key_of(object_id)
        self._failures[key] = self._failures.get(key, 0) + 1
        return self._failures[key]

    def _push(self, key: Key, fire_ms: int) -> None:
        if self._fire_ms.get(key) != fire_ms:
            self._fire_ms[key] = fire_ms
            heapq.heappush(self._heap, (fire_ms, key))
            if len(self._heap) > 2 * len(self._fire_ms) + _OLD_MAX:
                # Alarms that are put off again and again, as those of sessions are, would fill it until their time.
                self._heap = [(when, key) for key, when in self._fire_ms.items()]
                heapq.heapify(self._heap)

    def _path(self, object_id: ObjectId, at_ms: int) -> Path:
        return object_id.path(self._objects_dir, self._slots).with_name(f"{object_id.stem}.a{at_ms}")


def _ms(at: float) -> int:
    """The last whole millisecond that is not later. Of one that was divided by 1000, itself."""
    at_ms = round(at * 1000)
    return at_ms if at_ms / 1000 <= at else at_ms - 1


def _ms_not_before(at: float) -> int:
    """The first whole millisecond that is not earlier. Whoever is asked too soon is asked again, at once."""
    at_ms = _ms(at)
    return at_ms if at_ms / 1000 >= at else at_ms + 1
