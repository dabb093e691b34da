"""Who may open an object's file?

Whoever holds the kernel's lock on its slot. A lock lives exactly as long as its process, so a killed host frees its
slots at once, and a second host, of this Ray cluster or of another on the machine, can't own them at the same time.
Ray's name table is never asked: it does not fence.

This holds for one machine, or for file systems whose locks work between machines.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from actors.runtime.errors import InvalidArgument, SlotOwned
from actors.runtime.folder import make_folder, sync_folder

OWNER_BYTES_MAX = 200
#: A host restarted after `kill -9` can be up before the kernel has finished with its predecessor.
ACQUIRE_WAIT_S = 5.0
_RETRY_EVERY_S = 0.05


class SlotLock:
    """An exclusive lock on one file, held from construction until `release` or the end of the process."""

    def __init__(
        self,
        path: Path,
        owner: str,
        *,
        wait_s: float = ACQUIRE_WAIT_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """
        Raises:
            SlotOwned: another process still held it after `wait_s`; says who.
        """
        make_folder(path.parent)
        self._path = path
        self._descriptor = -1
        tries_left = max(1, round(wait_s / _RETRY_EVERY_S))
        while (rival := self._try(owner)) is not None:
            tries_left -= 1
            if not tries_left:
                raise SlotOwned(path.stem, rival)
            sleep(_RETRY_EVERY_S)

    def _try(self, owner: str) -> str | None:
        """Takes the lock, or returns who has it."""
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A lock on a file that its last owner removed meanwhile keeps nobody out.
            if os.fstat(descriptor).st_nlink == 0:
                raise BlockingIOError
        except BlockingIOError:
            try:
                return os.pread(descriptor, OWNER_BYTES_MAX, 0).decode(errors="replace")
            finally:
                os.close(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        # The lock is what counts, the name a courtesy to rivals: a full disk must not keep objects from being read.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, owner.encode()[:OWNER_BYTES_MAX], 0)
        return None

    def release(self, *, remove: bool = False) -> None:
        """Gives the lock up. With `remove` its file goes as well, for locks that come and go in any number."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return  # released before; the number may belong to another file by now
        if remove:
            self._path.unlink(missing_ok=True)
        os.close(descriptor)


def host_of(slot: int, hosts: int) -> int:
    """Which of `hosts` pool hosts owns `slot`: rendezvous hashing, so that adding a host moves only what it takes."""
    return max(range(hosts), key=lambda host: blake2b(f"{host}:{slot}".encode(), digest_size=8).digest())


def slots_of(host: int, hosts: int, slots: int) -> list[int]:
    """The slots that pool host number `host` owns."""
    return [slot for slot in range(slots) if host_of(slot, hosts) == host]


def recorded_slots(data_dir: Path) -> int | None:
    """The data directory's number of slots; None: it is none."""
    try:
        return int((data_dir / "objects" / "slots").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def record_slots(data_dir: Path, slots: int) -> None:
    """Records the number of slots for ever: another number would look for every object in the wrong place.

    Raises:
        InvalidArgument: the data directory was made with another number.
    """
    path = data_dir / "objects" / "slots"
    make_folder(path.parent)
    if not path.exists():  # a disk that is full since must not keep a host from starting
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:
            file.write(str(slots))
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(file.name, path)
    sync_folder(path.parent)  # also for one whose maker was killed before this
    recorded = path.read_text()
    if recorded != str(slots):
        raise InvalidArgument("objects.slots", slots, f"{data_dir} was made with {recorded} slots and keeps them")
