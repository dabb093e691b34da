"""Is what is known of an object known to the next host, whatever the disk holds?"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.runtime.errors import ObjectQuarantined
from actors.runtime.object_id import ObjectId
from actors.runtime.quarantine import CRASHES_MAX, FAILURES_MAX, STRIKES_KEPT_S, Quarantine
from actors.runtime.trouble import RECORD_BYTES_MAX, read, write
from tests.unit.quarantine.world import BAD, GOOD, SLOTS, WIDEST, World


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
    assert world.host.refusal(GOOD) is None
    assert world.host.crashed(BAD, "crash").crashes == 1


def test_the_record_of_other_code_is_there_until_the_object_is_loaded(world: World) -> None:
    world.crash(times=CRASHES_MAX)
    world.fail(GOOD, times=FAILURES_MAX)
    world.restart(code="code-2").admit(GOOD)
    assert world.files == [world.path().name]
    world.restart(code="code-1")
    assert world.host.refusal(GOOD) is None
    with pytest.raises(ObjectQuarantined):
        world.host.admit(BAD)
    assert not world.restart(code="code-2").release(BAD)
    assert world.files == []


@pytest.mark.parametrize("code", ["code-1", "code-2"])
def test_who_only_looks_holds_what_was_recorded_and_records_nothing(world: World, code: str) -> None:
    world.crash(times=CRASHES_MAX)
    world.fail(GOOD)
    unfinished = world.path(GOOD).with_suffix(".trouble-new")
    unfinished.write_text("{")
    before = [path.read_bytes() for path in (world.path(), world.path(GOOD))]
    world.clock.advance(STRIKES_KEPT_S + 1)
    world.restart(code=code, judges=False)
    with pytest.raises(ObjectQuarantined):
        world.host.admit(BAD)
    world.host.admit(GOOD)
    world.host.activated(GOOD)
    world.fail(GOOD)
    world.host.crashed(GOOD, "crash")
    world.host.crashed(ObjectId("Notebook", "acme", "another"), "crash")
    assert unfinished.exists()
    assert world.files == sorted([world.path().name, world.path(GOOD).name, unfinished.name])
    assert [path.read_bytes() for path in (world.path(), world.path(GOOD))] == before
    assert world.restart(code=code, judges=False, troubled_max=1).release(BAD)
    assert world.restart().refusal(BAD) is None


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
