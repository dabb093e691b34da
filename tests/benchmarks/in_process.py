"""`python -m tests.benchmarks.in_process FOLDER OBJECTS ROUNDS`: what does an object cost, without Ray or HTTP?

Microseconds of one turn, and bytes of one object. Runs in a process of its own, whose memory is nobody else's, and with
0 rounds in another one, for objects at rest.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from actors import ChatSession, LocalBackend, TokenBucket
from actors.runtime import sqlite_memory
from actors.runtime.call import Call, pack_arguments
from actors.runtime.clock import ManualClock
from actors.runtime.host_settings import HostSettings
from tests.benchmarks.over_stubs import TENANT, make_sessions
from tests.benchmarks.report import Row, Skipped, at_most, figure

RESIDENT_KB_MAX = 60.0
HIBERNATED_KB_MAX = 1.0
BATCH = 64
POLICIES = (("default", 1e6, 1e6, False),)
IDLE_S = 60.0
#: Sessions that are used between two sweeps, and how far these are apart: the others are at rest.
USED_AT_ONCE = 16
REST_S = 1.0
#: As many at most: each has two files open.
RESTING = 2000


def measure(objects: int, rounds: int) -> list[Row | Skipped]:
    with tempfile.TemporaryDirectory(prefix="mobula-bench-") as folder:
        # Here, so that the other process meets them as a host does that has just started.
        begun = time.perf_counter()
        make_sessions(Path(folder), objects)
        made_s = (time.perf_counter() - begun) / objects
        told = _run(folder, objects, rounds) | _run(folder, min(objects, RESTING), 0)
    return [
        at_most("memory of a resident session, just used", told["resident_kb"], RESIDENT_KB_MAX, unit="kB"),
        at_most("memory of a resident session, at rest", told["resting_kb"], RESIDENT_KB_MAX, unit="kB"),
        at_most("memory of a hibernated session", told["hibernated_kb"], HIBERNATED_KB_MAX, unit="kB"),
        figure("layer: a turn in process", told["turn_s"], unit="µs"),
        figure(f"layer: a turn in a batch of {BATCH}, of as many objects", told["spread_s"], unit="µs"),
        figure(f"layer: a turn in a batch of {BATCH}, of one object", told["hot_s"], unit="µs"),
        figure("layer: a session opened, and its first turn", told["opened_s"], unit="µs"),
        figure("layer: a turn of a session at rest", told["woken_s"], unit="µs"),
        figure("layer: a session made", [made_s], unit="µs"),
    ]


def _run(folder: str, objects: int, rounds: int) -> dict[str, list[float]]:
    program = [sys.executable, "-m", __name__, folder, str(objects), str(rounds)]
    printed = subprocess.run(program, check=True, timeout=300, stdout=subprocess.PIPE, text=True).stdout
    told: dict[str, list[float]] = json.loads(printed.splitlines()[-1])
    return told


def _check(name: str) -> Call:
    return "TokenBucket", TENANT, name, "check", pack_arguments((1.0, POLICIES), {}), "", None


def _touch(name: str) -> Call:
    return "ChatSession", TENANT, name, "history", pack_arguments((1,), {}), "", None


async def _measure(data_dir: Path, sessions: int, rounds: int) -> dict[str, list[float]]:
    sqlite_memory.take_little()  # as hosts do
    clock = ManualClock()
    settings = HostSettings(resident_objects_max=sessions + BATCH + 1)
    objects = LocalBackend(data_dir, [ChatSession, TokenBucket], settings=settings, clock=clock, keeps_time=False)
    told: dict[str, list[float]] = {}
    try:
        for name, calls in (
            ("turn_s", [_check("b0")]),
            ("spread_s", [_check(f"b{number}") for number in range(BATCH)]),
            ("hot_s", [_check("b0")] * BATCH),
        ):
            told[name] = [await _each_s(objects, calls) for _ in range(rounds + 1)][1:]
        _hibernate(objects, clock)
        told |= {"resident_kb": [], "hibernated_kb": [], "opened_s": []}
        asleep = 0
        touched = sessions // (rounds + 2)
        for number in range(rounds + 2):
            names = [f"touch-{one}" for one in range(number * touched, (number + 1) * touched)]
            before = _memory_bytes()
            begun = time.perf_counter()
            for name in names:
                await objects.host.batch([_touch(name)])
            took_s = time.perf_counter() - begun
            resident = _memory_bytes() - before
            _hibernate(objects, clock)
            was_asleep, asleep = asleep, _memory_bytes()
            if number == 0:
                # What the process had not had before; later ones find memory that it had, and gave back to itself.
                told["resident_kb"].append(resident / touched / 1000)
            if number > 1:
                told["hibernated_kb"].append((asleep - was_asleep) / touched / 1000)
                told["opened_s"].append(took_s / touched)
    finally:
        objects.close()
    return told


async def _measure_rest(data_dir: Path, sessions: int) -> dict[str, list[float]]:
    """What each further session adds to a host that has some which are used, and many more which are not just then."""
    sqlite_memory.take_little()
    clock = ManualClock()
    settings = HostSettings(resident_objects_max=sessions, idle_after_s=sessions * REST_S, rest_after_s=REST_S)
    objects = LocalBackend(data_dir, [ChatSession], settings=settings, clock=clock, keeps_time=False)
    try:
        before = 0
        for first in range(0, sessions, USED_AT_ONCE):
            for number in range(first, min(sessions, first + USED_AT_ONCE)):
                await objects.host.batch([_touch(f"touch-{number}")])
            clock.advance(REST_S)
            objects.host.sweep()
            before = before or _memory_bytes()
        resting_kb = (_memory_bytes() - before) / (sessions - USED_AT_ONCE) / 1000
        assert objects.host.resident_objects == sessions
        begun = time.perf_counter()
        for number in range(sessions):
            await objects.host.batch([_touch(f"touch-{number}")])
        return {"resting_kb": [resting_kb], "woken_s": [(time.perf_counter() - begun) / sessions]}
    finally:
        objects.close()


async def _each_s(objects: LocalBackend, calls: list[Call]) -> float:
    begun = time.perf_counter()
    turns = 0
    while time.perf_counter() - begun < 0.3:
        await objects.host.batch(calls)
        turns += len(calls)
    return (time.perf_counter() - begun) / turns


def _hibernate(objects: LocalBackend, clock: ManualClock) -> None:
    clock.advance(IDLE_S)
    objects.host.sweep()
    assert not objects.host.resident_objects


def _memory_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_full_info().uss)


if __name__ == "__main__":
    where, how_many, how_often = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    measuring = _measure(where, how_many, how_often) if how_often else _measure_rest(where, how_many)
    print(json.dumps(asyncio.run(measuring)))
