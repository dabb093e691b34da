"""Which running service owns this data directory?

The one that holds the kernel's lock on its lock file. The lock goes with the process, however it ends, and is not
inherited by the processes that it starts; the file's content only says whom to name to the one who is refused.

A process that was killed holds it for some time more, until the kernel has taken it apart. That is waited for.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from deployments.process_end import is_ending

LOCK_NAME: Final = "lock"
MAX_OWNER_BYTES: Final = 200
#: How long a process that ends is waited for.
WAIT_S: Final = 5.0
AGAIN_AFTER_S: Final = 0.1
_PROCESS: Final = re.compile(r"process (\d+)\b")


class DataDirectoryInUse(Exception):
    """Another service runs on this data directory."""

    def __init__(self, data_dir: Path, owner: str) -> None:
        super().__init__(data_dir, owner)
        self.data_dir = data_dir
        self.owner = owner

    def __str__(self) -> str:
        return f"a service already runs on {self.data_dir} ({self.owner}); stop it, or choose another data directory"


@contextmanager
def hold(
    directory: Path,
    *,
    data_dir: Path,
    owner: str,
    ends: Callable[[int], bool] = is_ending,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Own the data directory inside the block, or raise `DataDirectoryInUse`: at once if its owner lives.

    Args:
        directory: Where the lock file is.
        data_dir: Named to the one who is refused.
        owner: Who this is, with `process` and its id in it.
        ends: Whether the process of that id is gone or will be. One that ends is waited for, `WAIT_S` at most.
        monotonic: Seconds.
        sleep: For so many seconds.
    """
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until_s = monotonic() + WAIT_S
        while not _take(descriptor):
            held_by = os.pread(descriptor, MAX_OWNER_BYTES, 0).decode(errors="replace").strip()
            process = _PROCESS.search(held_by)
            if process is None or not ends(int(process[1])) or monotonic() >= until_s:
                raise DataDirectoryInUse(data_dir, held_by or "owner unknown")
            sleep(AGAIN_AFTER_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode()[:MAX_OWNER_BYTES], 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
