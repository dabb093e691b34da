"""Which running service owns this data directory?

The one that holds the kernel's lock on its lock file. The lock goes with the process, however it ends, and is not
inherited by the processes that it starts; the file's content only says whom to name to the one who is refused.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

LOCK_NAME: Final = "lock"
MAX_OWNER_BYTES: Final = 200


class DataDirectoryInUse(Exception):
    """Another service runs on this data directory."""

    def __init__(self, data_dir: Path, owner: str) -> None:
        super().__init__(data_dir, owner)
        self.data_dir = data_dir
        self.owner = owner

    def __str__(self) -> str:
        return f"a service already runs on {self.data_dir} ({self.owner}); stop it, or choose another data directory"


@contextmanager
def hold(directory: Path, *, data_dir: Path, owner: str) -> Iterator[None]:
    """Own the data directory inside the block, or raise `DataDirectoryInUse` at once."""
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held_by = os.pread(descriptor, MAX_OWNER_BYTES, 0).decode(errors="replace").strip()
            raise DataDirectoryInUse(data_dir, held_by or "owner unknown") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode()[:MAX_OWNER_BYTES], 0)
        yield
    finally:
        os.close(descriptor)
