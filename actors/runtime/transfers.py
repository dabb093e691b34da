"""How does an object's database travel, out of its host and in again, piece by piece?

Each journey has a ticket. One that nobody goes on with for a minute is over, so a caller who is gone leaves nothing,
and there are only so many at once. Files on their way are in a folder of their own beside the objects, where no crash
can make one an object. A copy on its way out has no name there any more: what is left of a crash is only what was being
written, and the next host to start removes it.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actors.runtime.clock import Clock
from actors.runtime.errors import InvalidArgument, ObjectOverloaded, ObjectReset, StorageFull
from actors.runtime.folder import make_folder
from actors.runtime.object_id import ObjectId
from actors.runtime.sqlite import is_full

#: What travels in one message.
CHUNK_BYTES = 1024 * 1024
JOURNEYS_MAX = 4
IDLE_MAX_S = 60.0
#: Nobody writes to a file for so long without touching it.
_LEFT_BEHIND_AFTER_S = 3600.0


@dataclass(kw_only=True, slots=True)
class Journey:
    """One database on its way. `path` is None on the way out."""

    id: ObjectId
    descriptor: int
    size_bytes: int
    path: Path | None
    used_s: float


class Transfers:
    """The databases that are on their way, of one host.

    Args:
        folder: on the file system of the objects.
        size_bytes_max: of a database that comes in.
    """

    def __init__(self, folder: Path, clock: Clock, size_bytes_max: int) -> None:
        self._folder = folder
        self._clock = clock
        self._size_bytes_max = size_bytes_max
        self._journeys: dict[str, Journey] = {}
        self._making = 0
        if folder.is_dir():
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):  # another host starts, too
                    if clock.now() - path.stat().st_mtime > _LEFT_BEHIND_AFTER_S:
                        path.unlink()

    @property
    def under_way(self) -> int:
        """How many journeys there are, those left out that nobody goes on with."""
        for ticket, journey in list(self._journeys.items()):
            if self._clock.monotonic() - journey.used_s > IDLE_MAX_S:
                self.end(ticket)
        return len(self._journeys) + self._making

    @contextlib.contextmanager
    def room_for(self, object_id: ObjectId) -> Iterator[Path]:
        """A name for a new file. The place is taken while the block lasts; the file is gone after it.

        Raises:
            ObjectOverloaded: too many journeys are under way.
        """
        if self.under_way >= JOURNEYS_MAX:
            raise ObjectOverloaded(str(object_id), f"{JOURNEYS_MAX} databases are on their way", 5.0)
        make_folder(self._folder)
        path = self._folder / f"{secrets.token_hex(8)}.{object_id.class_name}"
        self._making += 1
        try:
            yield path
        finally:
            self._making -= 1
            path.unlink(missing_ok=True)

    def depart(self, object_id: ObjectId, path: Path) -> tuple[str, int]:
        """Sends the file at `path` on its way out, and takes its name away. Returns a ticket, and its size in bytes."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        path.unlink()
        size_bytes = os.fstat(descriptor).st_size
        return self._ticket(object_id, descriptor, size_bytes, None), size_bytes

    def read(self, ticket: str, offset: int) -> bytes:
        """
        Raises:
            ObjectReset: the journey is over.
        """
        return os.pread(self._journey(ticket).descriptor, CHUNK_BYTES, offset)

    def expect(self, object_id: ObjectId) -> str:
        """A ticket for a database that comes in.

        Raises:
            ObjectOverloaded, StorageFull
        """
        if self.under_way >= JOURNEYS_MAX:
            raise ObjectOverloaded(str(object_id), f"{JOURNEYS_MAX} databases are on their way", 5.0)
        make_folder(self._folder)
        path = self._folder / f"{secrets.token_hex(8)}.{object_id.class_name}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        return self._ticket(object_id, descriptor, 0, path)

    def write(self, ticket: str, offset: int, data: bytes) -> None:
        """Takes in the next piece.

        Raises:
            InvalidArgument: it is not the next, or the database is too large.
            ObjectReset: the journey is over.
            StorageFull
        """
        journey = self._journey(ticket)
        if offset != journey.size_bytes:
            raise InvalidArgument("offset", offset, f"must be {journey.size_bytes}")
        if offset + len(data) > self._size_bytes_max:
            raise InvalidArgument("database", f"{offset + len(data)} bytes", f"has more than {self._size_bytes_max}")
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(journey.descriptor, view, journey.size_bytes)
                journey.size_bytes += written
                view = view[written:]
        except OSError as error:
            if is_full(error):
                raise StorageFull(str(journey.id), "import") from error
            raise

    def arrive(self, ticket: str) -> Path:
        """The file that came in, not synced. It is there until `end`, however long that takes.

        Raises:
            ObjectReset: the journey is over.
        """
        journey = self._journey(ticket)
        assert journey.path is not None
        journey.used_s = math.inf
        return journey.path

    def object_of(self, ticket: str) -> ObjectId:
        """
        Raises:
            ObjectReset: the journey is over.
        """
        return self._journey(ticket).id

    def end(self, ticket: str) -> None:
        """Ends a journey, and removes what it has left."""
        journey = self._journeys.pop(ticket, None)
        if journey is not None:
            os.close(journey.descriptor)
            if journey.path is not None:
                # A process that was killed leaves the others.
                for ending in ("", "-wal", "-journal"):
                    journey.path.with_name(journey.path.name + ending).unlink(missing_ok=True)

    def close(self) -> None:
        for ticket in list(self._journeys):
            self.end(ticket)

    def _ticket(self, object_id: ObjectId, descriptor: int, size_bytes: int, path: Path | None) -> str:
        ticket = secrets.token_hex(8)
        used_s = self._clock.monotonic()
        self._journeys[ticket] = Journey(
            id=object_id, descriptor=descriptor, size_bytes=size_bytes, path=path, used_s=used_s
        )
        return ticket

    def _journey(self, ticket: str) -> Journey:
        journey = self._journeys.get(ticket)
        if journey is None:
            raise ObjectReset(f"ticket {ticket}", "its host was restarted, or nobody went on with it for a minute")
        journey.used_s = self._clock.monotonic()
        return journey
