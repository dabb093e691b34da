"""Is an object that harms its host kept from being loaded, and one that was only there when it happened not?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import timeit
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.runtime import (
    InvalidArgument,
    ObjectNotFound,
    ObjectOverloaded,
    ObjectQuarantined,
    ObjectReset,
    SchemaTooNew,
    SlotOwned,
    StatementRefused,
    StorageFull,
)
from actors.runtime.clock import ManualClock
from actors.runtime.object_id import STEM_BYTES_MAX, ObjectId
from actors.runtime.quarantine import CRASHES_MAX, FAILURES_MAX, STRIKES_KEPT_S, Quarantine
from actors.runtime.running import ACTIVATION, METHOD_BYTES_MAX, SIZE_BYTES, RunningMark, bounded_method, encode_mark
from actors.runtime.trouble import METHODS_MAX, RECORD_BYTES_MAX, TEXT_CHARS_MAX, Trouble, path_of, read, write
from tests.conftest import REPOSITORY
from tests.objects import Unprintable

SLOTS = 8
BAD = ObjectId("Notebook", "acme", "bad")
GOOD = ObjectId("Notebook", "acme", "good")
WIDEST = ObjectId("C" * 64, "t", "n" * (STEM_BYTES_MAX - 2))
BROKEN = ValueError("this can't start")


class World:
    """A data directory, a clock, and one host after the other."""

    def __init__(self, objects_dir: Path) -> None:
        self.objects_dir = objects_dir
        self.clock = ManualClock()
        self.host = self.restart()

    def restart(self, code: str = "code-1", **options: Any) -> Quarantine:
        self.host = Quarantine(self.objects_dir, SLOTS, code=code, clock=self.clock, **options)
        self.host.load(sorted(self.objects_dir.rglob("*")), lambda _: True)
        return self.host

    def crash(self, object_id: ObjectId = BAD, method: str = "crash", times: int = 1) -> Trouble:
        for _ in range(times):
            trouble = self.restart().crashed(object_id, method)
        return trouble

    def fail(self, object_id: ObjectId = BAD, error: Exception = BROKEN, times: int = 1) -> Trouble | None:
        for _ in range(times):
            trouble = self.host.activation_failed(object_id, error)
        return trouble

    def path(self, object_id: ObjectId = BAD) -> Path:
        return path_of(object_id, self.objects_dir, SLOTS)

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.objects_dir.rglob("*") if path.is_file())


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "objects")


# The mark


@pytest.fixture
def mark_path(tmp_path: Path) -> Path:
    return tmp_path / "host-0.running"


@pytest.mark.parametrize("object_id", [BAD, WIDEST, ObjectId("A", "ä/ö", "a.b\ud83d")], ids=["plain", "widest", "odd"])
def test_a_mark_is_read_by_the_next_host(mark_path: Path, object_id: ObjectId) -> None:
    mark = RunningMark(mark_path)
    mark.set(encode_mark(object_id, "append"))
    assert RunningMark(mark_path).read() == (object_id, "append")
    mark.clear()
    assert RunningMark(mark_path).read() is None


def test_a_mark_replaces_a_longer_one(mark_path: Path) -> None:
    mark = RunningMark(mark_path)
    mark.set(encode_mark(WIDEST, "m" * METHOD_BYTES_MAX))
    mark.set(encode_mark(BAD, ACTIVATION))
    assert mark.read() == (BAD, ACTIVATION)


def test_a_method_of_any_length_is_marked_by_how_it_begins(mark_path: Path) -> None:
    mark = RunningMark(mark_path)
    for method in ("ä" * 10_000, "aä" * 200, "m" * METHOD_BYTES_MAX):
        for marked in (encode_mark(WIDEST, method), encode_mark(WIDEST, "") + method.encode()):
            mark.set(marked)
            assert mark.read() == (WIDEST, bounded_method(method))
    assert mark_path.stat().st_size == SIZE_BYTES


def test_a_mark_that_was_half_set_is_none(mark_path: Path) -> None:
    mark = RunningMark(mark_path)
    mark.set(encode_mark(BAD, "crash"))
    new = mark_path.read_bytes().rstrip(b"\0")
    for written in range(1, len(new)):
        # From either end: in which order the bytes are copied, nobody promises.
        for offset, part in ((0, new[:written]), (len(new) - written, new[-written:])):
            mark.set(encode_mark(GOOD, "append"))
            mark.clear()
            with mark_path.open("r+b") as file:
                file.seek(offset)
                file.write(part)
            assert mark.read() is None, (written, offset)


@given(content=st.binary(max_size=2 * SIZE_BYTES) | st.binary(max_size=SIZE_BYTES).map(lambda rest: b"\x01" + rest))
def test_any_other_file_holds_no_mark(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("mark") / "host-0.running"
    path.write_bytes(content)
    mark = RunningMark(path)
    assert mark.read() is None
    mark.set(encode_mark(BAD, "crash"))
    assert RunningMark(path).read() == (BAD, "crash")


def test_text_that_names_no_object_is_no_mark(mark_path: Path) -> None:
    mark = RunningMark(mark_path)
    for text in (
        b"",
        b"a\0b",
        b"1\0t:n\0m",
        b"A\0no colon\0m",
        b"A\0t:%ff\0m",
        b"\xff\0t:n\0m",
        b"A\0:\0m",
        b"A\0t:n\0m\0",
    ):
        mark.set(text)
        assert mark.read() is None, text


def test_a_host_without_a_place_for_its_mark_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mark = RunningMark(tmp_path)  # a folder
    assert "will not be recognised" in caplog.text
    mark.set(encode_mark(WIDEST, "m" * METHOD_BYTES_MAX))
    mark.clear()
    assert mark.read() is None
    mark.close()


def test_a_mark_does_not_follow_a_link(mark_path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"x" * SIZE_BYTES)
    mark_path.symlink_to(victim)
    RunningMark(mark_path).set(encode_mark(BAD, "crash"))
    assert victim.read_bytes() == b"x" * SIZE_BYTES


def test_a_closed_mark_says_nothing_and_may_be_cleared_late(mark_path: Path) -> None:
    mark = RunningMark(mark_path)
    mark.set(encode_mark(BAD, "crash"))
    mark.close()
    mark.set(encode_mark(BAD, "crash"))
    mark.clear()
    mark.close()
    assert RunningMark(mark_path).read() is None
    mark.close(remove=True)
    assert not mark_path.exists()
    mark.close(remove=True)


DIES = """
import os, signal, sys
from pathlib import Path
from actors.runtime.object_id import ObjectId
from actors.runtime.running import RunningMark, encode_mark
mark = RunningMark(Path(sys.argv[1]))
if sys.argv[2] != "idle":
    mark.set(encode_mark(ObjectId("Notebook", "acme", "good"), "append"))
    mark.clear()
    mark.set(encode_mark(ObjectId("Notebook", "acme", "bad"), "crash"))
if sys.argv[2] == "exit":
    os._exit(7)
os.kill(os.getpid(), getattr(signal, "SIGKILL" if sys.argv[2] == "idle" else sys.argv[2]))
"""


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGSEGV", "idle"])
def test_a_process_that_died_left_its_mark(mark_path: Path, how: str) -> None:
    died = subprocess.run([sys.executable, "-c", DIES, str(mark_path), how], cwd=REPOSITORY, timeout=60, check=False)
    assert died.returncode == (7 if how == "exit" else died.returncode) != 0
    assert RunningMark(mark_path).read() == (None if how == "idle" else (BAD, "crash"))


def test_setting_a_mark_costs_next_to_nothing(mark_path: Path) -> None:
    mark = RunningMark(mark_path)
    encoded = encode_mark(WIDEST, "append")
    best_s = min(timeit.repeat(lambda: mark.set(encoded), number=10_000, repeat=7)) / 10_000
    # It takes a sixth of this where nothing else runs.
    assert best_s < 3e-6


# Crashes


def test_a_method_that_always_crashes_is_quarantined(world: World) -> None:
    for number in range(1, CRASHES_MAX):
        assert world.crash().crashes == number
        assert world.host.is_suspect(BAD)
        assert world.host.refusal(BAD) is None
    world.crash()
    refusal = world.host.refusal(BAD)
    assert isinstance(refusal, ObjectQuarantined)
    assert refusal.object_key == str(BAD)
    assert refusal.since == world.clock.now()
    assert refusal.reason == f"its crash ended the host's process {CRASHES_MAX} times in a row"
    assert not refusal.retryable
    assert not world.host.is_suspect(GOOD)
    assert world.host.refusal(GOOD) is None


def test_successes_of_other_methods_do_not_save_a_method_that_always_crashes(world: World) -> None:
    for _ in range(CRASHES_MAX):
        world.crash()
        world.host.activated(BAD)
        world.host.succeeded(BAD, "append")
    assert world.host.refusal(BAD) is not None


def test_a_success_of_the_method_strikes_out_its_crashes_and_leaves_nothing(world: World) -> None:
    for _ in range(CRASHES_MAX * 3):
        world.crash(method="append", times=CRASHES_MAX - 1)
        world.host.succeeded(BAD, "append")
        assert not world.host.is_suspect(BAD)
        assert world.files == []
        assert not world.restart().is_suspect(BAD)


def test_two_methods_that_crash_now_and_then_do_not_add_up(world: World) -> None:
    world.crash(method="one", times=CRASHES_MAX - 1)
    world.crash(method="two", times=CRASHES_MAX - 1)
    assert world.host.refusal(BAD) is None
    world.host.succeeded(BAD, "one")
    assert world.crash(method="two").quarantined_at is not None


def test_an_activation_that_crashes_is_quarantined_whatever_methods_did(world: World) -> None:
    world.crash(method=ACTIVATION, times=CRASHES_MAX - 1)
    world.host.succeeded(BAD, "append")
    assert world.crash(method=ACTIVATION).quarantined_at is not None


def test_an_activation_that_succeeds_strikes_out_those_that_crashed(world: World) -> None:
    world.crash(method=ACTIVATION, times=CRASHES_MAX - 1)
    world.host.activated(BAD)
    assert world.files == []


def test_a_method_with_an_absurd_name_is_counted_and_cleared_as_any_other(world: World) -> None:
    method = "m" * 10_000
    world.crash(method=method)
    world.host.succeeded(BAD, method)
    assert not world.host.is_suspect(BAD)
    assert world.crash(method=method, times=CRASHES_MAX).quarantined_at is not None


def test_strikes_of_many_methods_stay_few(world: World) -> None:
    for number in range(METHODS_MAX + 5):
        trouble = world.host.crashed(BAD, f"m{number}")
    assert [strikes.method for strikes in trouble.strikes] == [f"m{number}" for number in range(5, METHODS_MAX + 5)]
    assert world.restart().known(BAD) == trouble


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(1, CRASHES_MAX - 1), st.booleans(), st.floats(0, STRIKES_KEPT_S)),
        max_size=12,
    )
)
def test_an_object_whose_kills_are_followed_by_a_success_is_never_quarantined(
    tmp_path_factory: pytest.TempPathFactory, kills: list[tuple[str, int, bool, float]]
) -> None:
    world = World(tmp_path_factory.mktemp("kills") / "objects")
    for method, times, restarted, pause_s in kills:
        for _ in range(times):
            assert world.restart().refusal(BAD) is None
            world.host.crashed(BAD, method)
            world.clock.advance(pause_s)
        if restarted:
            world.restart()
        assert world.host.refusal(BAD) is None
        world.host.activated(BAD)
        world.host.succeeded(BAD, method)
    assert not world.restart().is_suspect(BAD)
    assert world.files == []


@given(st.lists(st.lists(st.sampled_from(["restart", "activated", "other", "neighbour"]), max_size=4), min_size=3))
def test_a_method_that_always_crashes_is_quarantined_whatever_happens_between(
    tmp_path_factory: pytest.TempPathFactory, between: list[list[str]]
) -> None:
    world = World(tmp_path_factory.mktemp("always") / "objects")
    for happenings in between[:CRASHES_MAX]:
        world.crash()
        for what in happenings:
            match what:
                case "restart":
                    world.restart()
                case "activated":
                    world.host.activated(BAD)
                case "other":
                    world.host.succeeded(BAD, "append")
                case _:
                    world.host.succeeded(GOOD, "crash")
    assert world.restart().refusal(BAD) is not None


# Activations


def test_an_object_that_fails_activation_again_and_again_is_quarantined(world: World) -> None:
    world.fail(times=FAILURES_MAX - 1)
    assert world.host.refusal(BAD) is None
    world.fail()
    refusal = world.host.refusal(BAD)
    assert refusal is not None
    assert refusal.reason == f"its activation failed {FAILURES_MAX} times in a row: ValueError: this can't start"


def test_failures_are_counted_across_restarts(world: World) -> None:
    for _ in range(FAILURES_MAX):
        world.fail()
        world.restart()
    assert world.host.refusal(BAD) is not None


def test_a_success_between_failures_begins_a_new_row(world: World) -> None:
    world.fail(times=FAILURES_MAX - 1)
    world.host.activated(BAD)
    assert world.files == []
    world.fail(times=FAILURES_MAX - 1)
    assert world.host.refusal(BAD) is None


def test_an_activation_leaves_what_methods_did(world: World) -> None:
    world.crash()
    world.fail()
    world.host.activated(BAD)
    held = world.restart().known(BAD)
    assert held is not None
    assert (held.crashes, held.failures) == (1, 0)


@pytest.mark.parametrize(
    "error",
    [
        StorageFull(str(BAD), "open"),
        SlotOwned(str(BAD), "another process"),
        SchemaTooNew(str(BAD), "m2", "m1"),
        ObjectReset(str(BAD), "open failed: disk I/O error"),
        ObjectOverloaded(str(GOOD), "too many calls", 1.0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_the_objects_fault_is_not_held_against_it(world: World, error: Exception) -> None:
    assert world.fail(error=error, times=FAILURES_MAX * 2) is None
    assert not world.host.is_suspect(BAD)
    assert world.files == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        InvalidArgument("title", 1, "is no text"),
        ObjectNotFound(str(BAD)),
        StatementRefused(str(BAD), "ATTACH", "one file"),
        Unprintable(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_the_objects_own_code_raises_is_held_against_it(world: World, error: Exception) -> None:
    world.fail(error=error, times=FAILURES_MAX)
    refusal = world.restart().refusal(BAD)
    assert refusal is not None
    assert type(error).__name__ in refusal.reason


def test_what_an_error_says_is_kept_short_and_can_be_shown(world: World) -> None:
    trouble = world.fail(error=ValueError("\ud83d\n" + "x" * 100_000), times=FAILURES_MAX)
    assert trouble is not None
    assert len(trouble.error) <= TEXT_CHARS_MAX + 10
    assert len(trouble.reason) <= TEXT_CHARS_MAX
    assert trouble.reason.encode()
    assert world.path().stat().st_size < 4096


# What is kept


def test_a_quarantine_holds_in_the_next_host(world: World) -> None:
    world.crash(times=CRASHES_MAX)
    since = world.clock.now()
    world.clock.advance(3 * STRIKES_KEPT_S)
    refusal = world.restart().refusal(BAD)
    assert refusal is not None
    assert refusal.since == since


def test_a_record_is_read_back_as_it_was_written(world: World) -> None:
    world.crash(WIDEST, method="one")
    world.clock.advance(1.5)
    world.fail(WIDEST)
    trouble = world.fail(WIDEST, times=FAILURES_MAX)
    assert trouble is not None
    assert read(world.path(WIDEST), WIDEST) == trouble
    assert world.files == [f"{WIDEST.stem}.trouble"]


def test_a_record_can_be_read_by_people(world: World) -> None:
    odd = ObjectId("Notebook", "Ä", "\ud83d x")
    world.crash(odd, times=CRASHES_MAX)
    record = json.loads(world.path(odd).read_text())
    assert (record["class"], record["tenant"], record["name"]) == ("Notebook", "Ä", "\ud83d x")
    assert (record["method"], record["code"]) == ("crash", "code-1")
    assert record["quarantined_at"] == record["last_at"]


def test_a_record_belongs_to_the_object_beside_which_it_stands(world: World) -> None:
    world.crash(times=CRASHES_MAX)
    moved = ObjectId("Ledger", "acme", "bad")
    world.path(moved).parent.mkdir(parents=True)
    world.path().rename(world.path(moved))
    assert world.restart().refusal(BAD) is None
    refusal = world.host.refusal(moved)
    assert refusal is not None
    assert refusal.object_key == str(moved)


def test_a_record_where_no_object_can_be_is_left_alone(world: World) -> None:
    world.crash(times=CRASHES_MAX)
    content = world.path().read_bytes()
    wrong_slot = world.path().parent.with_name("999") / world.path().name
    strangers = [wrong_slot, world.path().with_name("notes.trouble"), world.objects_dir / "acme:bad.trouble"]
    for stranger in strangers:
        stranger.parent.mkdir(exist_ok=True)
        stranger.write_bytes(content)
    assert [held.id for held in world.restart().quarantined()] == [BAD]
    assert all(stranger.exists() for stranger in strangers)


def test_what_happened_long_ago_is_forgotten(world: World) -> None:
    world.crash(times=CRASHES_MAX - 1)
    world.fail(GOOD, times=FAILURES_MAX - 1)
    world.clock.advance(STRIKES_KEPT_S + 1)
    assert world.host.crashed(BAD, "crash").crashes == 1
    failed = world.fail(GOOD)
    assert failed is not None
    assert failed.failures == 1
    world.clock.advance(STRIKES_KEPT_S + 1)
    assert not world.restart().is_suspect(BAD)
    assert world.files == []


def test_only_what_is_old_is_forgotten(world: World) -> None:
    world.crash(method="one", times=2)
    world.clock.advance(STRIKES_KEPT_S * 0.75)
    world.crash(method="two", times=2)
    world.clock.advance(STRIKES_KEPT_S * 0.75)
    held = world.restart().known(BAD)
    assert held is not None
    assert [(strikes.method, strikes.crashes) for strikes in held.strikes] == [("two", 2)]


def test_what_a_wrong_clock_recorded_in_the_future_is_forgotten_too(world: World) -> None:
    world.crash(times=CRASHES_MAX - 1)
    world.clock.set_wall(world.clock.now() - 10 * STRIKES_KEPT_S)
    assert world.host.crashed(BAD, "crash").crashes == 1


def test_other_code_begins_with_a_clean_record(world: World) -> None:
    world.crash(times=CRASHES_MAX)
    world.fail(GOOD, times=FAILURES_MAX)
    assert len(world.restart().quarantined()) == 2
    world.restart(code="code-2")
    assert world.host.quarantined() == []
    assert world.files == []
    assert world.host.crashed(BAD, "crash").crashes == 1
    assert world.host.refusal(GOOD) is None


def test_code_with_a_long_name_knows_its_own_records(world: World) -> None:
    world.restart(code="c" * 5000).crashed(BAD, "crash")
    assert world.restart(code="c" * 5000).is_suspect(BAD)


DAMAGED = [
    b"",
    b"\0" * 300,
    b"\xff\xfe",
    b"{}",
    b"[]",
    b"null",
    b'{"format": 2}',
    b"[" * 50_000,
    b"x" * (RECORD_BYTES_MAX + 1),
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_record_makes_a_suspect_of_whom_nothing_is_known(world: World, content: bytes) -> None:
    world.crash(GOOD, times=CRASHES_MAX)
    world.path().parent.mkdir(parents=True, exist_ok=True)
    world.path().write_bytes(content)
    world.restart()
    assert world.host.refusal(GOOD) is not None
    assert world.host.is_suspect(BAD)
    assert world.host.refusal(BAD) is None
    assert world.crash(times=CRASHES_MAX - 1).crashes == CRASHES_MAX - 1
    world.path().write_bytes(content)
    world.restart().activated(BAD)
    assert not world.host.is_suspect(BAD)
    assert world.files == [world.path(GOOD).name]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("code", 1),
        ("first_at", float("nan")),
        ("first_at", "then"),
        ("last_at", -1),
        ("last_at", 1e300),
        ("failures", -1),
        ("failures", True),
        ("failures", 10**30),
        ("failed_at", None),
        ("strikes", None),
        ("strikes", [["one"]]),
        ("strikes", [["one", 1.5, 1]]),
        ("strikes", {"one": 1}),
        ("method", None),
        ("quarantined_at", "now"),
        ("quarantined_at", float("inf")),
    ],
)
def test_a_record_with_a_wrong_field_is_damaged(world: World, field: str, value: Any) -> None:
    world.crash(times=CRASHES_MAX)
    record = json.loads(world.path().read_text())
    world.path().write_text(json.dumps({**record, field: value}))
    with pytest.raises(ValueError, match=r"is no|unpack"):
        read(world.path(), BAD)
    assert world.restart().is_suspect(BAD)
    assert world.host.refusal(BAD) is None


@given(st.binary(max_size=300))
def test_no_file_keeps_a_host_from_starting(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    world = World(tmp_path_factory.mktemp("any") / "objects")
    world.path().parent.mkdir(parents=True)
    world.path().write_bytes(content)
    assert world.restart().refusal(BAD) is None


def test_what_stands_in_a_records_place_keeps_no_host_from_starting(world: World, tmp_path: Path) -> None:
    for name in ("folder", "pipe", "link"):
        world.path(ObjectId("Notebook", "acme", name)).parent.mkdir(parents=True, exist_ok=True)
    world.path(ObjectId("Notebook", "acme", "folder")).mkdir()
    os.mkfifo(world.path(ObjectId("Notebook", "acme", "pipe")))
    world.path(ObjectId("Notebook", "acme", "link")).symlink_to(tmp_path)
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    world.restart()
    assert world.host.quarantined() == []
    assert not descriptors or len(os.listdir("/proc/self/fd")) == descriptors


def test_records_of_objects_that_others_own_are_not_touched(world: World) -> None:
    world.crash(times=CRASHES_MAX)
    world.crash(GOOD)
    world.path(GOOD).with_suffix(".trouble-new").write_text("{")
    before = world.files
    host = Quarantine(world.objects_dir, SLOTS, code="code-2", clock=world.clock)
    host.load(sorted(world.objects_dir.rglob("*")), lambda _: False)
    assert not host.is_suspect(BAD)
    assert world.files == before


def test_what_was_not_finished_is_removed_at_the_next_start(world: World) -> None:
    world.crash()
    world.path().with_suffix(".trouble-new").write_text("{")
    world.restart()
    assert world.files == [world.path().name]


# A disk that takes nothing


def test_what_the_disk_does_not_take_is_kept_in_memory(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.objects_dir.write_text("no folder can be made in a file")
    for _ in range(CRASHES_MAX):
        world.host.crashed(BAD, "crash")
    world.fail(GOOD, times=FAILURES_MAX)
    assert [held.id for held in world.host.quarantined()] == [BAD, GOOD]
    assert "known to this process alone" in caplog.text
    assert world.host.release(BAD)
    assert world.host.refusal(BAD) is None


def test_a_record_that_can_not_be_replaced_stands(world: World) -> None:
    before = world.crash()
    blocked = world.path().with_suffix(".trouble-new")
    blocked.mkdir()
    with pytest.raises(OSError, match="trouble-new"):
        write(world.path(), before, durable=True)
    assert read(world.path(), BAD) == before


# Release and listing


def test_a_released_object_may_try_again_and_its_record_is_gone(world: World) -> None:
    world.crash(times=CRASHES_MAX)
    assert world.host.release(BAD)
    assert world.host.refusal(BAD) is None
    assert not world.host.is_suspect(BAD)
    assert world.files == []
    assert world.restart().refusal(BAD) is None
    assert world.host.crashed(BAD, "crash").crashes == 1


def test_releasing_what_is_not_quarantined_says_so(world: World) -> None:
    assert not world.host.release(BAD)
    world.crash()
    assert not world.host.release(BAD)
    assert not world.host.is_suspect(BAD)
    assert world.files == []


def test_a_host_that_loaded_nothing_finds_the_record_of_the_object_it_is_asked_for(world: World) -> None:
    world.crash(times=CRASHES_MAX)
    alone = Quarantine(world.objects_dir, SLOTS, code="code-1", clock=world.clock)
    assert alone.known(GOOD) is None
    held = alone.known(BAD)
    assert held is not None
    assert held.quarantined_at is not None
    assert alone.refusal(BAD) is not None
    assert Quarantine(world.objects_dir, SLOTS, code="code-1", clock=world.clock).release(BAD)
    assert world.files == []


def test_the_quarantined_are_listed_the_longest_first_and_suspects_are_not(world: World) -> None:
    names = ["c", "a", "b"]
    for name in names:
        world.crash(ObjectId("Notebook", "acme", name), times=CRASHES_MAX)
        world.clock.advance(1)
    world.crash(GOOD)
    assert [held.id.name for held in world.restart().quarantined()] == names


def test_a_success_that_was_under_way_does_not_lift_a_quarantine(world: World) -> None:
    world.crash(times=CRASHES_MAX)
    world.host.succeeded(BAD, "crash")
    world.host.activated(BAD)
    assert world.restart().refusal(BAD) is not None


# Bounds


def test_an_object_that_made_no_trouble_takes_no_memory_and_no_disk(world: World) -> None:
    world.host.activated(GOOD)
    world.host.succeeded(GOOD, "append")
    assert world.host.known(GOOD) is None
    assert not world.host.is_suspect(GOOD)
    assert world.files == []


def test_of_too_many_the_ones_that_did_least_and_longest_ago_are_forgotten(world: World) -> None:
    world.restart(troubled_max=4)
    ids = [ObjectId("Notebook", "acme", f"n{number}") for number in range(8)]
    for _ in range(CRASHES_MAX):
        world.host.crashed(ids[0], "crash")
    world.fail(ids[1], times=FAILURES_MAX)
    for number in range(2, 8):
        world.clock.advance(1)
        world.fail(ids[number])
    assert [held.id for held in world.host.quarantined()] == ids[:2]
    assert [object_id for object_id in ids if world.host.is_suspect(object_id)] == [*ids[:2], *ids[6:]]
    assert len(world.files) == 4
    for number in range(2, 5):
        world.clock.advance(1)
        for _ in range(CRASHES_MAX):
            world.host.crashed(ids[number], "crash")
    assert world.host.refusal(ids[0]) is not None
    assert world.host.refusal(ids[1]) is None
    world.restart(troubled_max=2)
    assert len(world.files) == 2
