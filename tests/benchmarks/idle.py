"""`python -m tests.benchmarks.idle FOLDER SESSIONS WINDOWS WINDOW_S`: what does a host pay for objects that sleep?

Two hosts, each in a process of its own, without Ray: one whose sessions have been used and have hibernated since by
its own sweeps, and one that has none. Both keep time by the real clock, and are watched over the same seconds, which
begin when a line comes in. Each prints its seconds of CPU for each second as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from actors import ChatSession, LocalBackend
from actors.runtime import sqlite_memory
from actors.runtime.host_settings import HostSettings
from tests.benchmarks.over_stubs import TENANT, make_sessions
from tests.benchmarks.report import Row, Skipped, at_most_more

MORE_S_MAX = 0.001
WINDOWS = 3
IDLE_S = 0.5
SLEEP_WITHIN_S = 120.0
IN_FLIGHT = 64


def measure(sessions: int, seconds: float) -> list[Row | Skipped]:
    with tempfile.TemporaryDirectory(prefix="mobula-bench-") as folder, contextlib.ExitStack() as hosts:
        make_sessions(Path(folder, "many"), sessions)
        program = [sys.executable, "-m", __name__]
        many, none = (
            hosts.enter_context(
                subprocess.Popen(
                    [*program, str(Path(folder, name)), str(number), str(WINDOWS), str(seconds / WINDOWS)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for name, number in (("many", sessions), ("none", 0))
        )
        try:
            for host in (many, none):
                assert host.stdin is not None
                assert host.stdout is not None
                assert host.stdout.readline() == "asleep\n"
            for host in (many, none):
                assert host.stdin is not None
                host.stdin.write("go\n")
                host.stdin.flush()
            with_many, with_none = (json.loads(host.communicate(timeout=60 + seconds)[0]) for host in (many, none))
        finally:
            for host in (many, none):
                host.kill()
    return [
        at_most_more(
            f"CPU that a host with {sessions} hibernated sessions takes in a second",
            with_many,
            "with none",
            with_none,
            more_s=MORE_S_MAX,
        )
    ]


async def _measure(data_dir: Path, sessions: int, windows: int, window_s: float) -> list[float]:
    sqlite_memory.take_little()  # as hosts do
    objects = LocalBackend(data_dir, [ChatSession], settings=HostSettings(idle_after_s=IDLE_S))
    try:
        await objects.ready()
        namespace = objects.namespace(ChatSession)
        for first in range(0, sessions, IN_FLIGHT):
            numbers = range(first, min(first + IN_FLIGHT, sessions))
            await asyncio.gather(*(namespace.get(TENANT, f"touch-{number}").history(1) for number in numbers))
        async with asyncio.timeout(SLEEP_WITHIN_S):
            while objects.host.resident_objects:
                await asyncio.sleep(0.1)
        gc.collect()
        print("asleep", flush=True)
        sys.stdin.readline()
        took_s = []
        for _ in range(windows):
            begun_s, cpu_s = time.perf_counter(), time.process_time()
            await asyncio.sleep(window_s)
            took_s.append((time.process_time() - cpu_s) / (time.perf_counter() - begun_s))
        return took_s
    finally:
        objects.close()


if __name__ == "__main__":
    folder, *numbers = sys.argv[1:]
    print(json.dumps(asyncio.run(_measure(Path(folder), int(numbers[0]), int(numbers[1]), float(numbers[2])))))
