"""How does a test make a program's disk fail?

A `FaultyDisk` is a plan, in a file that the program has mapped (`faulty_disk.c`): the n-th of the program's calls of
some kinds, on files under one folder, fails with an error, alone or with all that follow. The files stay real, and so
do SQLite, the kernel's locks and `kill -9`.
"""

from __future__ import annotations

import enum
import mmap
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

SOURCE = Path(__file__).with_name("faulty_disk.c")
COMPILE_TIMEOUT_S = 240.0

_PATH_BYTES = 4096
_SUFFIX_BYTES = 64
#: As `struct plan` in the source.
_PLAN = struct.Struct(f"=6I{_SUFFIX_BYTES}s{_PATH_BYTES}s")
_COUNTS = struct.Struct("=2I")
_COUNTS_AT = 16


class Kind(enum.IntFlag):
    """Calls of one kind, as in the source."""

    OPEN = 1
    READ = 2
    WRITE = 4
    SYNC = 8
    TRUNCATE = 16
    RENAME = 32
    UNLINK = 64
    MKDIR = 128


#: What asks for space.
SPACE = Kind.WRITE | Kind.RENAME | Kind.MKDIR | Kind.TRUNCATE
ALL = Kind(255)


def compile_library(folder: Path) -> Path:
    """Compiles the source. The compiler is a package, since a machine that runs the tests may have none."""
    library = folder / "faulty_disk.so"
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE],
            check=True,
            timeout=COMPILE_TIMEOUT_S,
            env={**os.environ, "ZIG_LOCAL_CACHE_DIR": cache, "ZIG_GLOBAL_CACHE_DIR": cache},
        )
    return library


class FaultyDisk:
    """The plan for one program. Nothing fails until `fail` is called."""

    def __init__(self, library: Path, plan: Path, folder: Path) -> None:
        plan.write_bytes(bytes(_PLAN.size))
        self._folder = os.fsencode(folder)
        self.environ = {"LD_PRELOAD": str(library), "FAULTY_DISK": str(plan)}
        with plan.open("r+b") as file:
            self._plan = mmap.mmap(file.fileno(), _PLAN.size)

    def fail(self, kinds: Kind, error: int, *, nth: int, onward: bool = False, suffix: str = "") -> None:
        """Has the `nth` call of `kinds` from now fail, and with `onward` all later ones; 0 only counts.

        Args:
            kinds: the calls that count.
            error: the `errno` that they fail with.
            nth: which one fails, from 1.
            onward: whether those after it fail too.
            suffix: of the path of a file; others don't count.
        """
        self._write(kinds, nth, onward, error, suffix)

    def count(self, kinds: Kind, *, suffix: str = "") -> None:
        """Counts the calls of `kinds` from now, and lets none fail."""
        self._write(kinds, 0, False, 0, suffix)

    def work(self) -> tuple[int, int]:
        """Has the disk work again. Returns how many calls were counted, and how many of them failed."""
        seen, failed = _COUNTS.unpack_from(self._plan, _COUNTS_AT)
        self.count(Kind(0))
        return seen, failed

    def _write(self, kinds: Kind, nth: int, onward: bool, error: int, suffix: str) -> None:
        # The program waits for its next order meanwhile, so that it never sees half a plan.
        self._plan[:] = _PLAN.pack(kinds, nth, onward, error, 0, 0, suffix.encode(), self._folder)

    def __enter__(self) -> FaultyDisk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._plan.close()
