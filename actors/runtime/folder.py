"""When is a new folder, or a new name in one, on disk for good?

Syncing a file doesn't sync the name that leads to it: after a power cut the file may be there and not be found. What
is made here survives one.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Makes the folder and those above it, each on disk before what it holds."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    try:
        sync_folder(folder.parent)
    except OSError:
        # Whoever finds it takes it for one that is on disk, so it must not stay. If somebody uses it, somebody synced.
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


def sync_folder(folder: Path) -> None:
    """Returns when the names in the folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
