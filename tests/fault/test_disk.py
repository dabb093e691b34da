"""The disk fills up, or fails: is a reply ever given for what was not kept, and does an object go on afterwards?

Each call that a short life of an object makes to its disk fails in turn, for real (see `faulty_disk`): alone, or with
all after it. What the object answered is then compared with what is there, in the same process once the disk works
again, and in another one after `kill -9`.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.fault.disk_victim import OBJECT, SETTINGS, Call, Outcome, Victim, notebook_in
from tests.fault.faulty_disk import ALL, SPACE, FaultyDisk, Kind, compile_library
from tests.objects import Notebook

#: Several pages, some of which overflow.
LONG = "x" * 20_000
#: In bytes; two of them make SQLite copy its log into the database after a commit.
FILL_BYTES = 2_500_000

#: The life of an object: each step is the calls made at once; no call is a hibernation.
LONG_LIFE: list[list[Call]] = [
    [("append", "created")],
    [("add", "grouped"), ("append", "with it"), ("lines",)],
    [],
    [("append", "woken")],
    [("lines",)],
    [("append", LONG)],
    [("erase",)],
    [("add", "after")],
    [],
    [("lines",)],
]
#: Asked for before it was written to, and erased in the residence in which it was made.
SHORT_LIFE: list[list[Call]] = [
    [("lines",)],
    [],
    [("append", "kept")],
    [("erase",)],
    [("lines",)],
]
#: What an object does when its disk works again.
AFTERWARDS: list[list[Call]] = [
    [("lines",)],
    [("append", "recovered")],
    [],
    [("lines",)],
    [("append", "and woken")],
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_library(tmp_path_factory.mktemp("library"))


@pytest.fixture
def disk(library: Path, tmp_path: Path) -> Iterator[FaultyDisk]:
    with FaultyDisk(library, tmp_path / "plan", tmp_path / "disk") as disk:
        yield disk


@dataclass(kw_only=True, slots=True)
class Expected:
    """What the lines of the notebook may be, after the calls made so far and what they were answered."""

    lines: set[tuple[str, ...]] = field(default_factory=lambda: {()})
    errors: list[Outcome] = field(default_factory=list)

    def take(self, call: Call, outcome: Outcome) -> None:
        method, *arguments = call
        if outcome.error:
            self.errors.append(outcome)
            # Never an error of SQLite's or the kernel's, and never one that calls the author's class to account.
            assert outcome.error in ("ObjectReset", "StorageFull"), outcome
        if method == "lines":
            if not outcome.error:
                self.read(outcome.value)
            return
        done = {() if method == "erase" else (*lines, *map(_text_of, arguments)) for lines in self.lines}
        if not outcome.error:
            self.lines = done
        elif outcome.error == "ObjectReset":
            self.lines = self.lines | done  # it may or may not have run

    def read(self, lines: list[str]) -> None:
        assert tuple(lines) in self.lines, f"there are {_short(lines)}, and may be {list(map(_short, self.lines))}"
        # From now on it has been seen, and must not go away again.
        self.lines = {tuple(lines)}


def _text_of(argument: Any) -> str:
    return "x" * argument if isinstance(argument, int) else str(argument)


def _short(lines: list[str] | tuple[str, ...]) -> list[str]:
    return [text[:20] for text in lines]


class Run:
    """One victim that lives many lives, each in a data directory of its own, so that each begins with nothing."""

    def __init__(self, victim: Victim, disk: FaultyDisk, folder: Path) -> None:
        self._victim = victim
        self._disk = disk
        self._folder = folder
        self._lived: list[tuple[str, Path, Expected]] = []

    async def live(self, what: str, life: list[list[Call]]) -> tuple[int, int]:
        """Lives one life under the disk's plan, and goes on when the disk works again.

        Returns:
            How many calls to the disk the plan counted, and how many failed.
        """
        data_dir = self._folder / f"{len(self._lived):04d}"
        expected = Expected()
        counts = (0, 0)
        started = await self._victim.start(data_dir)
        if started.error:
            assert started.error == "OSError", started
            counts = self._disk.work()
            assert await self._victim.start(data_dir) == Outcome(), what
        for calls in life:
            await self._step(calls, expected)
        counts = max(counts, self._disk.work())
        met = len(expected.errors)
        for calls in AFTERWARDS:
            await self._step(calls, expected)
        assert expected.errors[met:] == [], what
        self._lived.append((what, data_dir, expected))
        return counts

    async def _step(self, calls: list[Call], expected: Expected) -> None:
        if not calls:
            await self._victim.hibernate()
        else:
            for call, outcome in zip(calls, await self._victim.call(*calls), strict=True):
                expected.take(call, outcome)

    async def kill_and_compare(self) -> None:
        """Kills the victim, and reads what it left, with a disk that works."""
        await self._victim.kill()
        for what, data_dir, expected in self._lived:
            backend = notebook_in(data_dir)
            try:
                notebook = backend.namespace(Notebook).get(OBJECT.tenant, OBJECT.name)
                expected.read(await notebook.lines())
                assert await notebook.pragma("integrity_check") == "ok", what
                assert await notebook.append("reopened")
            finally:
                backend.close()
            files = {path.name for path in (data_dir / "objects").rglob("*") if path.is_file()}
            assert files == {"slots", OBJECT.path(data_dir, SETTINGS.slots).name}, what


class TestEachCallFailsInTurn:
    """What of a life is kept when the n-th call to the disk fails, for every n?"""

    @pytest.mark.parametrize(
        ("kind", "error"),
        [
            (Kind.OPEN, errno.EIO),
            (Kind.OPEN, errno.EMFILE),
            (Kind.OPEN, errno.ENOSPC),
            (Kind.READ, errno.EIO),
            (Kind.WRITE, errno.ENOSPC),
            (Kind.WRITE, errno.EDQUOT),
            (Kind.WRITE, errno.EIO),
            (Kind.SYNC, errno.EIO),
            (Kind.SYNC, errno.ENOSPC),
            (Kind.TRUNCATE, errno.EIO),
            (Kind.TRUNCATE, errno.ENOSPC),
            (Kind.RENAME, errno.ENOSPC),
            (Kind.UNLINK, errno.EIO),
            (Kind.UNLINK, errno.ENOSPC),
            (Kind.MKDIR, errno.ENOSPC),
            (SPACE, errno.ENOSPC),
            (ALL, errno.EIO),
        ],
        ids=lambda value: (value.name or "") if isinstance(value, Kind) else errno.errorcode[value],
    )
    @pytest.mark.parametrize("life", [LONG_LIFE, SHORT_LIFE], ids=["long", "short"])
    async def test_what_was_acknowledged_is_kept_and_the_object_goes_on(
        self, disk: FaultyDisk, tmp_path: Path, life: list[list[Call]], kind: Kind, error: int
    ) -> None:
        async with Victim(disk.environ) as victim:
            run = Run(victim, disk, tmp_path / "disk")
            disk.count(kind)
            calls, _ = await run.live("nothing fails", life)
            assert calls > 0
            for onward in (False, True):
                for nth in range(1, calls + 1):
                    disk.fail(kind, error, nth=nth, onward=onward)
                    _, failed = await run.live(f"call {nth}{' and all later ones' if onward else ''}", life)
                    assert failed > 0
            await run.kill_and_compare()
