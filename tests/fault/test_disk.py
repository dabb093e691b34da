"""The disk fills up, or fails: is a reply ever given for what was not kept, and does an object go on afterwards?

Each call that a short life of an object makes to its disk fails in turn, for real (see `faulty_disk`): alone, or with
all after it. What the object answered is then compared with what is there, in the same process once the disk works
again, and in another one after `kill -9`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from actors.runtime.alarms import entry_of, key_of
from tests.conformance.classes import Desk
from tests.fault.disk_victim import CHECKPOINT_PAGES, OBJECT, SETTINGS, Call, Outcome, Victim, desk_in
from tests.fault.faulty_disk import ALL, SPACE, FaultyDisk, Kind, compile_library

#: Several pages, some of which overflow.
LONG = "x" * 20_000
#: Two of them are more than the 1,000 pages at which SQLite copies its log into the database after a commit.
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
#: Its log is copied into its database twice: after the second `fill`, and when it falls asleep.
LARGE_LIFE: list[list[Call]] = [
    [("append", "created")],
    [("fill", FILL_BYTES)],
    [("fill", FILL_BYTES)],
    [("append", "after")],
    [],
    [("append", "woken")],
]
#: The same with a log that is copied after a few pages: after each long line, and when it falls asleep.
COPIED_SOON = {CHECKPOINT_PAGES: "6"}
COPYING_LIFE: list[list[Call]] = [
    [("append", "created")],
    [("append", LONG)],
    [("append", "between")],
    [("append", LONG)],
    [],
    [("append", "woken")],
]
#: No test lives to see them ring.
SOON, LATER = 8_000_000_000.0, 9_000_000_000.0
#: Its alarm is set, brought forward, put off, taken back and erased.
ALARM_LIFE: list[list[Call]] = [
    [("set_alarm_at", LATER)],
    [("set_alarm_at", SOON)],
    [],
    [("set_alarm_at", LATER), ("append", "with it")],
    [("delete_alarm",)],
    [("set_alarm_at", SOON)],
    [("erase",)],
    [("set_alarm_at", LATER)],
]
#: Where the names of all these files stand.
FOLDER = f"/{OBJECT.path(Path(), SETTINGS.slots).parent}"
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
    alarms: set[float | None] = field(default_factory=lambda: {None})
    alarmed: bool = False
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
        if method in ("set_alarm_at", "delete_alarm", "erase"):
            alarm = float(arguments[0]) if arguments else None
            self.alarmed = self.alarmed or alarm is not None
            if not outcome.error:
                self.alarms = {alarm}
            elif outcome.error == "ObjectReset":
                self.alarms = self.alarms | {alarm}
            if method != "erase":
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
        folder.mkdir()
        self._victim = victim
        self._disk = disk
        self._folder = folder
        self._lived: list[tuple[str, Path, Expected]] = []

    async def live(self, life: list[list[Call]], *, what: str = "", goes_on: bool = True) -> tuple[int, int]:
        """Lives one life under the disk's plan, and goes on when the disk works again, or is left as it is then.

        Returns:
            How many calls to the disk the plan counted, and how many failed.
        """
        data_dir = self._folder / f"{len(self._lived):04d}"
        expected = Expected()
        started = await self._victim.start(data_dir)
        counts = (0, 0)
        if started.error:
            assert started.error == "OSError", started
            counts = self._disk.work()
            assert await self._victim.start(data_dir) == Outcome(), what
        for calls in life:
            await self._step(calls, expected)
        counts = max(counts, self._disk.work())
        if goes_on:
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
            backend = desk_in(data_dir)
            try:
                desk = backend.namespace(Desk).get(OBJECT.tenant, OBJECT.name)
                expected.read(await desk.lines())
                alarm = await desk.alarm_at()
                assert alarm in expected.alarms, what
                if alarm is not None:  # it is found, and not too late
                    assert (backend.host.alarms.at(key_of(OBJECT)) or alarm + 1) <= alarm, what
                assert await desk.pragma("integrity_check") == "ok", what
                assert await desk.append("reopened")
            finally:
                backend.close()
            path = OBJECT.path(data_dir / "objects", SETTINGS.slots)
            others = [other for other in path.parent.iterdir() if other != path]
            assert all(entry_of(other.name) for other in others), what
            # An entry that could not be removed comes too soon, and the object knows better.
            assert not others or expected.alarmed, what


class TestEachCallFailsInTurn:
    """What of a life is kept when the n-th call to the disk fails, for every n?"""

    @pytest.mark.parametrize(
        ("life", "kinds", "error"),
        [
            pytest.param(LONG_LIFE, ALL, errno.EIO, id="anything"),
            pytest.param(LONG_LIFE, SPACE, errno.ENOSPC, id="no-space"),
            pytest.param(LONG_LIFE, Kind.OPEN, errno.EMFILE, id="no-more-files"),
            pytest.param(LONG_LIFE, Kind.READ, errno.EIO, id="read"),
            pytest.param(LONG_LIFE, Kind.SYNC | Kind.UNLINK, errno.ENOSPC, id="no-space-for-names"),
            pytest.param(ALARM_LIFE, ALL, errno.EIO, id="anything-alarm"),
            pytest.param(ALARM_LIFE, SPACE | Kind.OPEN, errno.ENOSPC, id="no-space-alarm"),
            pytest.param(SHORT_LIFE, ALL, errno.EIO, id="anything-short"),
            pytest.param(SHORT_LIFE, Kind.WRITE, errno.EDQUOT, id="over-quota-short"),
            pytest.param(SHORT_LIFE, Kind.SYNC | Kind.UNLINK, errno.ENOSPC, id="no-space-for-names-short"),
        ],
    )
    async def test_what_was_acknowledged_is_kept_and_the_object_goes_on(
        self, disk: FaultyDisk, tmp_path: Path, life: list[list[Call]], kinds: Kind, error: int
    ) -> None:
        async with Victim(disk.environ) as victim:
            run = Run(victim, disk, tmp_path / "disk")
            disk.count(kinds)
            calls, _ = await run.live(life)
            assert calls > 0
            for nth in range(1, calls + 1):
                disk.fail(kinds, error, nth=nth)
                _, failed = await run.live(life, what=f"call {nth} of {calls}")
                assert failed == 1
            for nth in range(1, calls + 1, 2):
                disk.fail(kinds, error, nth=nth, onward=True)
                _, failed = await run.live(life, what=f"call {nth} of {calls} and on", goes_on=nth % 4 == 1)
                assert failed > 0
            await run.kill_and_compare()

    @pytest.mark.parametrize("onward", [False, True], ids=["once", "onward"])
    async def test_a_log_is_no_harm_wherever_its_copying_into_the_database_ends(
        self, disk: FaultyDisk, tmp_path: Path, onward: bool
    ) -> None:
        async with Victim({**disk.environ, **COPIED_SOON}) as victim:
            run = Run(victim, disk, tmp_path / "disk")
            for kinds, error in ((Kind.WRITE, errno.ENOSPC), (Kind.WRITE | Kind.SYNC | Kind.TRUNCATE, errno.EIO)):
                disk.count(kinds, suffix=".sqlite")
                calls, _ = await run.live(COPYING_LIFE)
                for nth in range(1, calls + 1):
                    disk.fail(kinds, error, nth=nth, onward=onward, suffix=".sqlite")
                    _, failed = await run.live(COPYING_LIFE, what=f"call {nth} of {calls}", goes_on=nth % 2 == 0)
                    assert failed > 0
            await run.kill_and_compare()

    @pytest.mark.parametrize("onward", [False, True], ids=["once", "onward"])
    async def test_a_log_that_is_half_copied_into_the_database_is_no_harm(
        self, disk: FaultyDisk, tmp_path: Path, onward: bool
    ) -> None:
        async with Victim(disk.environ) as victim:
            run = Run(victim, disk, tmp_path / "disk")
            for kinds, error in ((Kind.WRITE, errno.ENOSPC), (Kind.SYNC | Kind.TRUNCATE, errno.EIO)):
                disk.count(kinds, suffix=".sqlite")
                calls, _ = await run.live(LARGE_LIFE)
                for nth in sorted({1, 2, calls // 2, calls - 1, calls}):
                    disk.fail(kinds, error, nth=nth, onward=onward, suffix=".sqlite")
                    _, failed = await run.live(LARGE_LIFE, what=f"call {nth} of {calls}", goes_on=nth % 2 == 0)
                    assert failed > 0
            await run.kill_and_compare()


class TestFullDisk:
    """What does it keep from being done?"""

    async def test_objects_are_read_and_erased_and_hosts_start_while_there_is_no_space(
        self, disk: FaultyDisk, tmp_path: Path
    ) -> None:
        data_dir = tmp_path / "disk"
        async with Victim(disk.environ) as victim:
            await victim.start(data_dir)
            assert await victim.call(("append", "kept")) == [Outcome(value=1)]
        disk.fail(SPACE, errno.ENOSPC, nth=1, onward=True)
        async with Victim(disk.environ) as victim:
            assert await victim.start(data_dir) == Outcome()
            for _ in range(2):
                (refused,) = await victim.call(("append", "refused"))
                assert refused.error == "StorageFull"
                assert await victim.call(("lines",)) == [Outcome(value=["kept"])]
                await victim.hibernate()
            assert await victim.call(("erase",)) == [Outcome()]
            assert [outcome.error for outcome in await victim.call(("append", "refused"))] == ["StorageFull"]
            disk.work()
            assert await victim.call(("lines",), ("append", "new")) == [Outcome(value=[]), Outcome(value=1)]


class TestSync:
    """Is a reply given for what a power cut could take?"""

    async def test_no_write_is_acknowledged_whose_log_was_not_synced(self, disk: FaultyDisk, tmp_path: Path) -> None:
        async with Victim(disk.environ) as victim:
            await victim.start(tmp_path / "disk")
            disk.fail(Kind.SYNC, errno.EIO, nth=1, onward=True, suffix="-wal")
            for _ in range(3):
                (outcome,) = await victim.call(("append", "not on disk"))
                assert outcome.error == "ObjectReset"

    @pytest.mark.parametrize(
        ("before", "call", "suffix"),
        [
            pytest.param([], ("append", "x"), ".new", id="a new database"),
            pytest.param([], ("append", "x"), FOLDER, id="the name of a new database"),
            pytest.param([], ("add_in_steps", "x"), FOLDER, id="the same in a step"),
            pytest.param([("append", "x")], ("set_alarm_at", SOON), FOLDER, id="an alarm"),
            pytest.param([("set_alarm_at", LATER)], ("set_alarm_at", SOON), FOLDER, id="an earlier alarm"),
            pytest.param([("append", "x")], ("erase",), FOLDER, id="a removal"),
        ],
    )
    async def test_nothing_is_acknowledged_that_hangs_on_a_name_which_was_not_synced(
        self, disk: FaultyDisk, tmp_path: Path, before: list[Call], call: Call, suffix: str
    ) -> None:
        async with Victim(disk.environ) as victim:
            await victim.start(tmp_path / "disk")
            for each in before:
                assert [outcome.error for outcome in await victim.call(each)] == [""]
            disk.fail(Kind.SYNC, errno.EIO, nth=1, onward=True, suffix=suffix)
            assert [outcome.error for outcome in await victim.call(call)] == ["ObjectReset"]
            _, failed = disk.work()
            assert failed > 0

    async def test_a_new_object_whose_name_can_not_be_synced_leaves_nothing(
        self, disk: FaultyDisk, tmp_path: Path
    ) -> None:
        async with Victim(disk.environ) as victim:
            await victim.start(tmp_path / "disk")
            disk.fail(Kind.SYNC, errno.ENOSPC, nth=1, onward=True, suffix=FOLDER)
            # It is not `StorageFull`, after which a caller may take it for not done.
            assert [outcome.error for outcome in await victim.call(("append", "lost"))] == ["ObjectReset"]
            assert list(OBJECT.path(tmp_path / "disk" / "objects", SETTINGS.slots).parent.iterdir()) == []
            disk.work()
            assert await victim.call(("lines",), ("append", "new")) == [Outcome(value=[]), Outcome(value=1)]

    async def test_an_object_that_wakes_writes_to_a_new_log_whose_name_is_synced_before_its_first_reply(
        self, disk: FaultyDisk, tmp_path: Path
    ) -> None:
        async with Victim(disk.environ) as victim:
            await victim.start(tmp_path / "disk")
            await victim.call(("append", "kept"))
            await victim.hibernate()
            disk.fail(Kind.SYNC, errno.EIO, nth=1, onward=True, suffix=FOLDER)
            assert await victim.call(("lines",)) == [Outcome(value=["kept"])]
            assert [outcome.error for outcome in await victim.call(("append", "perhaps kept"))] == ["ObjectReset"]
            disk.count(Kind.SYNC, suffix=FOLDER)
            assert [outcome.error for outcome in await victim.call(("append", "x"), ("append", "y"))] == ["", ""]
            assert await victim.call(("append", "z")) == [Outcome(value=5)]
            synced, _ = disk.work()
            assert synced == 2, "by SQLite, and by us, and with the first write only"

    async def test_what_a_killed_process_left_in_its_log_is_synced_before_anybody_sees_it(
        self, disk: FaultyDisk, tmp_path: Path
    ) -> None:
        async with Victim(disk.environ) as victim:
            await victim.start(tmp_path / "disk")
            await victim.call(("append", "perhaps on disk"))
        disk.fail(Kind.SYNC, errno.EIO, nth=1, suffix="-wal")
        async with Victim(disk.environ) as victim:
            await victim.start(tmp_path / "disk")
            assert [outcome.error for outcome in await victim.call(("lines",))] == ["ObjectReset"]
            disk.count(Kind.SYNC, suffix="-wal")
            assert await victim.call(("lines",)) == [Outcome(value=["perhaps on disk"])]
            assert disk.work() == (1, 0)
