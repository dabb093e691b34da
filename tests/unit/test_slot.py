"""Can two own one slot?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.runtime import SlotOwned
from actors.runtime.slot import OWNER_BYTES_MAX, SlotLock, host_of, record_slots, slots_of
from tests.conftest import REPOSITORY

HOLDER = """
import sys
from pathlib import Path
from actors.runtime.slot import SlotLock
lock = SlotLock(Path(sys.argv[1]), "the holder", wait_s=0.0)
print("held", flush=True)
sys.stdin.read()
"""
CONTENDER = """
import os, sys
from pathlib import Path
from actors.runtime import SlotOwned
from actors.runtime.slot import SlotLock
path, marker, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
taken = 0
while taken < rounds:
    try:
        lock = SlotLock(path, f"process {os.getpid()}", wait_s=0.0)
    except SlotOwned:
        continue
    # Whoever holds the lock is alone: the marker can't be there yet.
    os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    marker.unlink()
    taken += 1
    lock.release(remove=True)
print("done")
"""


@contextmanager
def python(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    try:
        with process:
            yield process
    finally:
        process.kill()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "slots" / "007.lock"


def test_a_second_holder_is_refused_and_told_the_owner(path: Path) -> None:
    lock = SlotLock(path, "host-0", wait_s=0.0)
    with pytest.raises(SlotOwned) as owned:
        SlotLock(path, "host-1", wait_s=0.0)
    assert (owned.value.slot, owned.value.owner) == ("007", "host-0")
    lock.release()
    SlotLock(path, "host-1", wait_s=0.0).release()


def test_a_lock_is_taken_as_soon_as_it_is_free(path: Path) -> None:
    lock = SlotLock(path, "host-0", wait_s=0.0)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            lock.release()

    SlotLock(path, "host-1", wait_s=5.0, sleep=wait).release()
    assert len(waits) == 3


def test_waiting_ends(path: Path) -> None:
    lock = SlotLock(path, "host-0", wait_s=0.0)
    waits: list[float] = []
    with pytest.raises(SlotOwned):
        SlotLock(path, "host-1", wait_s=1.0, sleep=waits.append)
    assert 0.5 < sum(waits) <= 1.0
    lock.release()


def test_a_killed_process_frees_its_slot_at_once(path: Path) -> None:
    with python(HOLDER, str(path)) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(SlotOwned, match="the holder"):
            SlotLock(path, "host-1", wait_s=0.0)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait(10.0)
        lock = SlotLock(path, "host-1", wait_s=0.0)
    assert path.read_text() == "host-1"  # and nothing of the longer name before
    lock.release()


def test_releasing_twice_closes_nothing_else(path: Path) -> None:
    lock = SlotLock(path, "host-0", wait_s=0.0)
    lock.release()
    innocent = os.open(os.devnull, os.O_RDONLY)  # gets the number that the lock had
    lock.release(remove=True)
    os.fstat(innocent)
    os.close(innocent)
    assert path.exists()


def test_a_lock_on_a_removed_file_is_not_taken_for_the_slot(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = SlotLock(path, "host-0", wait_s=0.0)
    open_file = os.open

    def open_as_the_owner_leaves(name: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = open_file(name, flags, mode)
        owner.release(remove=True)  # the first time; it does nothing after that
        return descriptor

    waits: list[float] = []
    with monkeypatch.context() as patch:
        patch.setattr("actors.runtime.slot.os.open", open_as_the_owner_leaves)
        successor = SlotLock(path, "host-1", wait_s=1.0, sleep=waits.append)
    assert len(waits) == 1
    with pytest.raises(SlotOwned, match="host-1"):
        SlotLock(path, "host-2", wait_s=0.0)
    successor.release(remove=True)
    assert not path.exists()


def test_locks_that_come_and_go_are_held_by_one_at_a_time(path: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    with (
        python(CONTENDER, str(path), str(marker), "100") as first,
        python(CONTENDER, str(path), str(marker), "100") as second,
    ):
        for process in (first, second):
            output, errors = process.communicate(timeout=30.0)
            assert (output, errors) == ("done\n", "")


def test_an_owners_name_of_any_length_and_script_is_shown(path: Path) -> None:
    lock = SlotLock(path, "ö" * 500, wait_s=0.0)
    assert path.stat().st_size == OWNER_BYTES_MAX
    with pytest.raises(SlotOwned, match="ööö"):
        SlotLock(path, "host-1", wait_s=0.0)
    lock.release()


@pytest.mark.parametrize("hosts", [1, 2, 3, 7])
def test_the_hosts_slots_are_all_slots_each_once(hosts: int) -> None:
    owned = [slot for host in range(hosts) for slot in slots_of(host, hosts, 256)]
    assert sorted(owned) == list(range(256))
    assert all(len(slots_of(host, hosts, 256)) > 256 / hosts / 2 for host in range(hosts))


@pytest.mark.parametrize("hosts", [1, 2, 3, 7])
def test_a_host_more_moves_only_what_it_takes(hosts: int) -> None:
    moved = [slot for slot in range(256) if host_of(slot, hosts) != host_of(slot, hosts + 1)]
    assert moved == slots_of(hosts, hosts + 1, 256)


def test_the_number_of_slots_is_recorded_for_ever(data_dir: Path) -> None:
    record_slots(data_dir, 256)
    record_slots(data_dir, 256)
    with pytest.raises(ValueError, match=r"was made with 256 slots and keeps them \(got 128\)"):
        record_slots(data_dir, 128)
    assert [file.name for file in (data_dir / "objects").iterdir()] == ["slots"]
