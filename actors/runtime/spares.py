"""How does a new object come by its file without waiting for the disk?

A new database is the bytes of its class's template, written and synced. A host has some lying ready, made while it has
nothing else to do: then a new object's file takes no more than a name. Where none is left, one is written as ever.

They are this host's alone, and worth nothing to the next one: it may run other code.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from actors.runtime import sqlite
from actors.runtime.folder import make_folder

#: Of each class of which objects have been made. As many are made in a second, at most.
EACH = 4


class Spares:
    """The files that lie ready. All methods belong to one event loop.

    Args:
        folder: for them alone, on the disk that the objects are on; what is there goes.
        write: makes a file of these bytes, synced; a test may have it fail.
    """

    def __init__(self, folder: Path, write: Callable[[Path, bytes], None] = sqlite.write_synced) -> None:
        self._folder = folder
        self._write = write
        self._ready: defaultdict[str, deque[Path]] = defaultdict(deque)
        self._templates: dict[str, bytes] = {}
        self._numbers = itertools.count()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spares")
        self._filling: Future[None] | None = None
        shutil.rmtree(folder, ignore_errors=True)

    def create(self, class_name: str, path: Path, template: bytes) -> None:
        """Makes a new database, as `sqlite.create` does.

        Raises:
            OSError: as there.
        """
        self._templates[class_name] = template
        if ready := self._ready[class_name]:
            make_folder(path.parent)
            with contextlib.suppress(OSError):  # somebody has removed it, or it is on another disk
                sqlite.put(ready.popleft(), path)
                return
        sqlite.create(path, template)

    def refill(self) -> None:
        """Has what was taken made again, in a thread. Returns at once."""
        if self._filling is not None and not self._filling.done():
            return
        missing = [name for name in self._templates for _ in range(EACH - len(self._ready[name]))]
        if missing:
            self._filling = self._thread.submit(self._fill, missing)

    def wait(self) -> None:
        """Returns when none is being made."""
        if self._filling is not None:
            self._filling.result()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _fill(self, class_names: list[str]) -> None:
        with contextlib.suppress(OSError):  # as when the disk is full: then there are none
            make_folder(self._folder)
            for class_name in class_names:
                path = self._folder / str(next(self._numbers))
                try:
                    self._write(path, self._templates[class_name])
                except OSError:
                    path.unlink(missing_ok=True)
                    raise
                self._ready[class_name].append(path)
